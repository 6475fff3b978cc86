"""The heavy work on a GPU beside the CPU. Each test also runs on the CPU in its place, to test its logic."""

import numpy as np
import pytest
import scipy.sparse
import torch

from encode_features import encode_features
from saelineage.activations import ActivationShard, dump_shards
from saelineage.features.shards import FeatureShard
from saelineage.jobs.devices import pick_device
from saelineage.lineage.readouts import FoldSums, products_by_latent, read_out
from saelineage.models.loading import on_device
from saelineage.models.matrix_changes import matrix_change
from saelineage.saes.encoding import Encoder, encode_dense
from saelineage.saes.sae import Sae, save_sae
from saelineage.saes.sparse_products import Entries
from saelineage.saes.trainer import SaeTrainer
from saelineage.tokens import TokenRows
from saelineage.transfers import to_device

CPU = torch.device("cpu")
D_IN, D_SAE, N_TOKENS = 32, 256, 96


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU if there is one that torch can use."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use")
    return pick_device(1) if request.param == "cuda" else CPU  # with the settings of a job


@pytest.fixture(scope="module")
def acts() -> torch.Tensor:
    return torch.randn(N_TOKENS, D_IN, generator=torch.Generator().manual_seed(0))


def random_sae(architecture: str, bias: float = 0.0) -> Sae:
    random = torch.Generator().manual_seed(1)
    sae = Sae(architecture, D_IN, D_SAE, 4 if architecture == "topk" else None)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
        sae.b_enc.add_(bias)
    return sae


def test_a_tensor_is_the_same_on_the_device(device, acts):
    copied = to_device(acts[torch.arange(N_TOKENS) % 3 > 0], device)
    assert copied.device.type == device.type
    assert torch.equal(copied.cpu(), acts[torch.arange(N_TOKENS) % 3 > 0])


def test_sparse_products_without_entries_are_empty_or_zero(device):
    entries = Entries(torch.zeros(4, dtype=torch.int64, device=device), torch.empty(0).long().to(device), 5)
    rows, W = torch.ones(3, 2, device=device), torch.ones(5, 2, device=device)
    products = entries.pre_activations(rows, W, torch.zeros(2, device=device), torch.zeros(5, device=device))
    assert products.shape == (0,)
    assert entries.decode(torch.empty(0, device=device), W).tolist() == [[0, 0]] * 3
    nothing = products_by_latent(scipy.sparse.csr_array((3, 4)), rows.double())
    assert nothing.tolist() == [[0, 0]] * 4


# With a bias of -1000 nothing fires.
@pytest.mark.parametrize("bias", [0.0, -10.0, -1000.0])
@pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu"])
def test_screening_on_the_device_finds_the_latents_of_the_cpu(device, acts, architecture, number_format, bias):
    sae = random_sae(architecture, bias)
    expected = encode_dense(acts.double(), architecture, {n: of.double() for n, of in sae.named_parameters()}, sae.k)
    weights = {name: of.to(device) for name, of in sae.named_parameters()}
    latents = Encoder(architecture, weights, sae.k, number_format).encode(acts.to(device))
    token, latent = expected.nonzero(as_tuple=True)
    assert latents.indices.tolist() == latent.tolist()  # ascending within each token
    assert torch.allclose(latents.values.cpu().double(), expected[token, latent], rtol=1e-4, atol=1e-4)
    assert (len(latent) == 0) == (bias == -1000)


def test_a_shard_encoded_on_the_device_has_the_features_of_the_cpu(device, acts, write_acts, tmp_path):
    save_sae(random_sae("topk"), tmp_path / "sae", {})
    dump = write_acts(acts)
    shards = []
    for name, used in (("expected", CPU), ("found", device)):
        path = tmp_path / f"{name}.safetensors"
        encode_features("m", "seed0", tmp_path / "sae", {"words": (str(dump), str(path))}, device=used)
        shards.append(FeatureShard(path).latents)
    assert np.array_equal(shards[0].indices, shards[1].indices)
    assert shards[1].data == pytest.approx(shards[0].data, rel=1e-4, abs=1e-4)


def test_readouts_on_the_device_equal_those_of_the_cpu(device, write_acts, write_features):
    random = torch.Generator().manual_seed(2)
    own = torch.randn(256, 6, generator=random)
    other = own + 0.3 * torch.randn(256, 6, generator=random)
    paths = [[write_acts(values, name)] for name, values in (("own", own), ("other", other))]
    features = [write_features(own[:, :4].relu().numpy()).path]
    expected, found = (read_out(*paths, features, device=used) for used in (CPU, device))
    for column in ("r2_own", "r2_other"):
        assert found[column].to_numpy() == pytest.approx(expected[column].to_numpy(), abs=1e-9)
    assert found["n_test_firings"].tolist() == expected["n_test_firings"].tolist()


def test_sums_for_readouts_lie_on_the_device(device):
    sums = FoldSums.zeros(3, 2, device)
    sums.add(torch.ones(4, 3), scipy.sparse.csr_array(np.eye(4, 2)))
    assert {tensor.device.type for tensor in (sums.x, sums.xx, sums.y, sums.yy, sums.yx)} == {device.type}
    assert sums.yx.tolist() == [[1, 1, 1]] * 2


# Random weights need several steps before a ReLU SAE is sparse, so the first ones compute all entries.
@pytest.mark.parametrize("architecture", ["topk", "relu", "batchtopk"])
def test_training_steps_on_the_device_equal_those_of_the_cpu(device, acts, sae_settings, architecture):
    settings = sae_settings | {"architecture": architecture, "precision": "float32", "seed": 0}
    losses = []
    for used in (CPU, device):
        trainer = SaeTrainer(settings, torch.zeros(D_IN), 10, used)
        losses.append([float(trainer.step(acts.to(used)).loss) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][2] < losses[0][0]


def test_a_dump_on_the_device_holds_the_activations_of_the_cpu(device, model, tiny, tmp_path):
    rows, place = TokenRows(tiny.tokens["words"]["probe"]), "model.layers.0.mlp.down_proj.input"
    found = []
    for number, used in enumerate((CPU, device)):
        path = tmp_path / f"{number}.safetensors"
        dump_shards(on_device(model, used), {place: path}, rows, range(4), 2, "float32")
        found.append(ActivationShard(path).acts())
    on_device(model, CPU)  # other tests share it
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_changes_of_matrices_are_those_of_the_cpu(device, shape):
    random = torch.Generator().manual_seed(0)
    parent = torch.randn(shape, generator=random)
    spike = torch.outer(torch.randn(shape[0], generator=random), torch.randn(shape[1], generator=random))
    child = parent + 0.1 * torch.randn(shape, generator=random) + spike
    expected = matrix_change(parent, child)
    assert expected.intruders == 1
    assert matrix_change(parent.to(device), child.to(device)) == pytest.approx(expected, rel=1e-9)
