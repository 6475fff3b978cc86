"""Training crosscoders: features of one model alone are found, k is annealed, and training resumes to equal bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saelineage.crosscoders.crosscoder import save_crosscoder
from saelineage.crosscoders.dumps import DifferenceDump, JointDump
from saelineage.crosscoders.latent_scaling import CHILD, PARENT, decoder_products, measure_scaling_sums, pair_table
from saelineage.crosscoders.training import TrainedCrosscoder, joint_settings, train_crosscoders
from saelineage.errors import InputError
from saelineage.lineage.exclusivity import DISAPPEARS, EMERGES, add_exclusivity
from saelineage.lineage.matching import PERSISTS
from saelineage.saes.objectives import ReluL1
from saelineage.saes.sparse_products import AllEntries
from saelineage.saes.training import train_saes
from tests.unit.crosscoders.made import write_dumps

CPU = torch.device("cpu")
D_IN, N_SHARED, N_EXCLUSIVE = 32, 16, 4
SHARED, OF_PARENT, OF_CHILD = range(16), range(16, 20), range(20, 24)
EXCLUSIVE_FRACTION, SHARED_FRACTION, NOISE, CHILD_SCALE = 0.005, 0.15, 0.05, 3.0
N_TRAIN, N_HELD_OUT = 60_000, 20_000


def planted(n_tokens: int, seed: int) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Activations [token, feature] of planted features, and each model's activations.

    The directions do not depend on the seed. They come from another stream than the SAEs' initial ones.
    """
    directions = np.random.default_rng(1_000).normal(size=(24, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    fractions = np.repeat([SHARED_FRACTION, EXCLUSIVE_FRACTION], [N_SHARED, 2 * N_EXCLUSIVE])
    features = (random.random((n_tokens, 24)) < fractions) * random.uniform(0.5, 1.5, (n_tokens, 24))
    acts = {}
    for model, absent, scale in ((PARENT, OF_CHILD, 1.0), (CHILD, OF_PARENT, CHILD_SCALE)):
        written = features.copy()
        written[:, absent] = 0
        noise = NOISE * random.normal(size=(n_tokens, D_IN))
        acts[model] = torch.from_numpy(scale * (written @ directions + noise)).float()
    return features, acts


@pytest.fixture
def settings(sae_settings: dict) -> dict:
    """A BatchTopK crosscoder of 64 latents that keeps 4, annealed from 64."""
    return sae_settings | {
        "architecture": "batchtopk",
        "expansion_factor": 2.0,
        "k": 4,
        "k_start": 64,
        "k_anneal_fraction": 0.2,
        "batch_tokens": 512,
        "learning_rate": 3e-3,
        "dead_after_tokens": 20_000,
        "n_tokens": 200_000,
    }


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> JointDump:
    """The dumps of both models."""
    return JointDump(write_dumps(tmp_path_factory.mktemp("planted"), planted(N_TRAIN, 1)[1], n_shards=3))


def best_latents(latent_acts: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature the latent that correlates with it best, and of each latent the feature."""
    n = latent_acts.shape[1]
    with np.errstate(invalid="ignore"):  # latents that never fire
        r = np.nan_to_num(np.corrcoef(latent_acts.T, features.T)[:n, n:])
    return r.argmax(0), r.argmax(1)


def test_latent_scaling_finds_rare_features_of_one_model(joint: JointDump, settings: dict):
    crosscoder = train_crosscoders(joint, [settings], CPU)[0].crosscoder
    features, acts = planted(N_HELD_OUT, 2)
    held_out = crosscoder.joint(acts)
    sums = measure_scaling_sums(crosscoder, held_out.split(4096), [(PARENT, CHILD)])
    table = add_exclusivity(pair_table(sums, decoder_products(crosscoder, sums.couples), PARENT, CHILD))
    dense = crosscoder.encoder().encode(held_out).matrix(crosscoder.d_sae).to_dense().numpy()
    latents, feature_of = best_latents(dense, features)
    verdicts, by_norms = (table[column].to_numpy()[latents] for column in ("verdict", "by_norms"))
    expected = np.repeat([PERSISTS, DISAPPEARS, EMERGES], [N_SHARED, N_EXCLUSIVE, N_EXCLUSIVE])
    assert (verdicts == expected)[:N_SHARED].all()
    assert (verdicts == expected)[N_SHARED:].sum() >= 7  # 4 of 4 and 4 of 4 here; rounding may differ elsewhere
    assert (by_norms == expected)[N_SHARED:].sum() <= 5  # bins of decoder norms: 2 of 4 and 2 of 4 here
    for verdict, planted_there in ((DISAPPEARS, OF_PARENT), (EMERGES, OF_CHILD)):
        claimed = feature_of[table["verdict"] == verdict]
        assert np.isin(claimed, planted_there).mean() > 0.8, verdict


def test_the_error_s_norm_as_a_loss_is_the_mean_over_models():
    random = torch.Generator().manual_seed(0)
    acts, W_dec = torch.randn(5, 6, generator=random), torch.randn(4, 6, generator=random)
    weights = {"W_enc": torch.randn(4, 6, generator=random), "W_dec": W_dec, "b_dec": torch.ones(6)}
    weights["b_enc"] = torch.zeros(4)
    latent_acts = ((acts - 1) @ weights["W_enc"].T).relu()
    error = acts - latent_acts @ W_dec - 1
    penalty = (latent_acts * (W_dec[:, :3].norm(dim=1) + W_dec[:, 3:].norm(dim=1))).sum(1).mean()
    for error_norm, misfit in (
        (False, error.square().sum(1).mean()),
        (True, (error[:, :3].norm(dim=1) + error[:, 3:].norm(dim=1)).mean() / 2),
    ):
        objective = ReluL1({"k": None, "n_models": 2, "error_norm": error_norm}, 6, 4)
        loss = objective.loss(AllEntries(4), acts, weights, None, 0.1).loss
        assert float(loss) == pytest.approx(float(misfit + 0.1 * penalty), rel=1e-6)


def test_a_crosscoder_trained_on_the_error_s_norm_reconstructs_both_models(joint: JointDump, settings: dict):
    curve = train_crosscoders(joint, [settings | {"n_tokens": 60_000, "error_norm": True}], CPU)[0].curve
    assert curve["fvu"].iloc[-1] < 0.4


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_other_architectures_reconstruct_both_models(joint: JointDump, settings: dict, architecture: str):
    changes = {"architecture": architecture, "n_tokens": 60_000, "sparsity_coefficient": 0.1}
    crosscoder, curve = train_crosscoders(joint, [settings | changes], CPU)[0]
    assert (crosscoder.models, crosscoder.d_sae, crosscoder.d_in) == ([PARENT, CHILD], 64, D_IN)
    assert curve["fvu"].iloc[-1] < 0.4
    acts = planted(2000, 3)[1]
    latents = crosscoder.encode(acts)
    for model, of_model in acts.items():
        error = of_model - crosscoder.decode(latents, model)
        assert float(error.square().sum() / (of_model - of_model.mean(0)).square().sum()) < 0.5, model


def test_k_falls_from_its_start_and_latents_per_token_with_it(joint: JointDump, settings: dict, caplog):
    points: list[dict] = []
    training = settings | {"n_tokens": 75 * 512, "k_anneal_fraction": 0.5}
    train_crosscoders(joint, [training], CPU, watch=lambda number, point: points.append(point))
    # The 25th step has number 24: 64 x (4 / 64) ^ (24 / 37.5) = 10.9, rounded to 11. From step 38 on it is 4.
    assert [round(point["l0"]) for point in points] == [11, 4, 4]


def test_gated_crosscoders_are_refused(settings: dict):
    with pytest.raises(InputError, match="'gated' does not; use batchtopk"):
        joint_settings(settings | {"architecture": "gated"}, 2)


class StopError(Exception):
    """Interrupts a training."""


def stop_at(step: int) -> Callable[[int, dict], None]:
    def watch(number: int, point: dict) -> None:
        if point["step"] == step:
            raise StopError

    return watch


@pytest.mark.parametrize("architecture", ["batchtopk", "relu"])
def test_an_interrupted_training_resumes_to_equal_bytes(joint, settings, tmp_path: Path, architecture: str):
    training = settings | {"architecture": architecture, "n_tokens": 60 * 512, "checkpoint_steps": 20}
    training |= {"k_anneal_fraction": 0.8, "dead_after_tokens": 3000}

    def written(trained: TrainedCrosscoder, name: str) -> list[bytes]:
        save_crosscoder(trained.crosscoder, tmp_path / name)
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    whole = train_crosscoders(joint, [training], CPU)[0]
    checkpoint = tmp_path / "state" / "state.safetensors"
    with pytest.raises(StopError):
        train_crosscoders(joint, [training], CPU, checkpoint, stop_at(50))
    resumed = train_crosscoders(joint, [training], CPU, checkpoint)[0]
    assert written(whole, "whole") == written(resumed, "resumed")
    assert whole.curve.equals(resumed.curve)


def test_an_sae_of_the_difference_finds_what_one_model_alone_writes(joint: JointDump, settings: dict):
    paths = {model: [shard.path for shard in dump.shards] for model, dump in joint.dumps.items()}
    # The child is three times as large, so differences hold the shared features too.
    dump = DifferenceDump(paths[PARENT], paths[CHILD])
    sae = train_saes(dump, [settings], CPU)[0].sae
    features, acts = planted(N_HELD_OUT, 2)
    dense = sae.encode(acts[CHILD] - acts[PARENT]).detach().numpy()
    latents, _ = best_latents(dense, features)
    r = [np.corrcoef(dense[:, latent], features[:, feature])[0, 1] for feature, latent in enumerate(latents)]
    assert min(r[feature] for feature in (*SHARED, *OF_CHILD)) > 0.85
