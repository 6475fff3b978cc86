"""Encoding and decoding of SAEs, and their folder on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelineage.errors import InputError
from saelineage.plan import sizes
from saelineage.saes import encoding
from saelineage.saes.encoding import ENCODED_VALUES, Encoder
from saelineage.saes.sae import PER_LATENT, Sae, load_sae, n_latents, rotated, save_sae

D_IN, D_SAE, K = 6, 20, 4
ARCHITECTURES = tuple(PER_LATENT)


def random_sae(architecture: str, bias: float = 0.0) -> Sae:
    random = torch.Generator().manual_seed(0)
    sae = Sae(architecture, D_IN, D_SAE, K if architecture == "topk" else None)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
        for name in {"b_enc", "b_gate", "b_mag"} & set(PER_LATENT[architecture]):
            sae.get_parameter(name).add_(bias)
    return sae


def random_acts(n_tokens: int = 50) -> torch.Tensor:
    return torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(1))


def by_hand(architecture: str, k: int | None = None) -> Sae:
    """Two inputs, three latents, unit weights."""
    sae = Sae(architecture, 2, 3, k)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
        if architecture != "gated":
            sae.b_enc.copy_(torch.tensor([0.0, 0.0, -1.0]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
    return sae


# acts - b_dec = (3, -1): raw 3, -1 and 3 - 1 = 2; with the bias, pre-activations 3, -1 and 1.
ACTS = torch.tensor([[4.0, 0.0]])


def test_relu_by_hand():
    sae = by_hand("relu")
    assert sae.encode(ACTS).tolist() == [[3, 0, 1]]
    # 3 (1, 0) + 1 (2, 2) + (1, 1)
    assert sae(ACTS).tolist() == [[6, 3]]


def test_jumprelu_keeps_latents_above_the_threshold_and_above_zero():
    sae = by_hand("jumprelu")
    for threshold, latents in [
        ([0.0, 0.0, 0.0], [3, 0, 1]),
        ([2.9, 0.0, 1.0], [3, 0, 0]),
        ([3.0, -2.0, 0.9], [0, 0, 1]),
    ]:
        with torch.no_grad():
            sae.threshold.copy_(torch.tensor(threshold))
        assert sae.encode(ACTS).tolist() == [latents]


def test_gated_by_hand():
    sae = by_hand("gated")
    with torch.no_grad():
        # Gates 3 - 3 = 0 (shut), -1 + 2 = 1 and 2 - 1 = 1; magnitudes -, -1 + 0.5 < 0 and 2 x 2 + 1 = 5.
        sae.b_gate.copy_(torch.tensor([-3.0, 2.0, -1.0]))
        sae.r_mag.copy_(torch.tensor([0.0, 0.0, 2.0]).clamp(min=1).log())
        sae.b_mag.copy_(torch.tensor([0.0, 0.5, 1.0]))
    assert sae.encode(ACTS).tolist() == [[0, 0, 5]]
    # 5 (2, 2) + (1, 1)
    assert sae(ACTS).tolist() == [[11, 11]]


def test_topk_keeps_the_largest_latents_above_zero():
    for k, latents in [(1, [3, 0, 0]), (2, [3, 0, 1]), (3, [3, 0, 1])]:
        assert by_hand("topk", k).encode(ACTS).tolist() == [latents]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_decodes_the_latents_and_rows_are_encoded_like_tokens(architecture):
    sae, acts = random_sae(architecture), random_acts()
    assert torch.equal(sae(acts), sae.decode(sae.encode(acts)))
    in_rows = acts.view(5, 10, D_IN)
    assert torch.allclose(sae(in_rows).view(50, D_IN), sae(acts), atol=1e-5)


# With a bias of -4 most tokens fire fewer than k latents, and some none at all.
@pytest.mark.parametrize("bias", [0.0, -4.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_latents_equal_the_dense_ones_and_decode_alike(architecture, bias):
    sae, acts = random_sae(architecture, bias), random_acts()
    dense = sae.encode(acts)
    sparse = sae.encode_sparse(acts)
    filled = torch.zeros_like(dense)
    for token in range(len(acts)):
        entries = slice(int(sparse.indptr[token]), int(sparse.indptr[token + 1]))
        latents = sparse.indices[entries].long()
        assert latents.tolist() == sorted(set(latents.tolist()))
        filled[token, latents] = sparse.values[entries]
    assert torch.equal(filled, dense)
    assert bool((sparse.values > 0).all())
    assert len(sparse.values) == int((dense > 0).sum())
    if bias:
        counts = sparse.indptr.diff()
        assert int(counts.min()) == 0
        assert bool(((counts > 0) & (counts < K)).any())
    with torch.inference_mode():
        assert torch.allclose(sae.decode_sparse(sparse), sae(acts), atol=1e-5)


def test_ties_are_broken_alike_in_sparse_and_dense_latents():
    sae = random_sae("topk")
    with torch.no_grad():  # 20 latents, 5 of each kind: the k-th largest is always tied
        sae.W_enc.copy_(sae.W_enc[:, :4].repeat(1, 5))
        sae.b_enc.zero_()
    acts = random_acts()
    sparse, dense = sae.encode_sparse(acts), sae.encode(acts)
    token = torch.repeat_interleave(torch.arange(50), sparse.indptr.diff())
    assert torch.equal(torch.zeros_like(dense).index_put((token, sparse.indices.long()), sparse.values), dense)


def test_without_tokens_the_sparse_latents_are_empty():
    sparse = random_sae("topk").encode_sparse(torch.zeros(0, D_IN))
    assert (sparse.indptr.tolist(), sparse.indices.tolist(), sparse.values.tolist()) == ([0], [], [])


def test_k_must_lie_between_one_and_the_number_of_latents():
    for k in (0, -1, 21, None):
        with pytest.raises(InputError, match=rf"saes\.k must be between 1 and d_sae = 20 .* got {k}; lower it"):
            Sae("topk", D_IN, D_SAE, k)
    assert Sae("relu", D_IN, D_SAE, 32).k is None


def test_latents_are_the_width_times_the_expansion_factor():
    assert [n_latents(D_IN, factor) for factor in (8.0, 0.5, 0.01, 1.25)] == [48, 3, 1, 8]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_sae_has_equal_latents_when_it_is_read_again(architecture, tmp_path):
    sae, acts = random_sae(architecture), random_acts()
    save_sae(sae, tmp_path, {})
    loaded = load_sae(tmp_path)
    assert (loaded.architecture, loaded.k, loaded.training) == (sae.architecture, sae.k, False)
    assert torch.equal(loaded.encode(acts), sae.encode(acts))
    assert torch.equal(loaded(acts), sae(acts))


def test_the_outlier_limit_is_saved_with_an_sae(tmp_path):
    sae = random_sae("relu")
    for max_norm in (12.5, float("inf")):
        sae.max_norm = max_norm
        save_sae(sae, tmp_path, {})
        assert load_sae(tmp_path).max_norm == max_norm


def test_the_config_is_what_saelens_expects(tmp_path):
    save_sae(random_sae("topk"), tmp_path, {"model_name": "lua", "hook_name": "x.input", "context_size": 16})
    assert json.loads((tmp_path / "cfg.json").read_text()) == {
        "architecture": "topk",
        "d_in": 6,
        "d_sae": 20,
        "k": 4,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_class_name": "AutoModelForCausalLM",
            "max_norm": None,
            "model_name": "lua",
            "hook_name": "x.input",
            "context_size": 16,
        },
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}

    save_sae(random_sae("relu"), tmp_path, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "standard"
    assert not config.keys() & {"k", "rescale_acts_by_decoder_norm"}


def test_saving_twice_gives_equal_bytes(tmp_path):
    for name in ("first", "second"):
        save_sae(random_sae("topk"), tmp_path / name, {"b": 1, "a": 2})
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.fixture
def changed(tmp_path):
    """Write a folder with some config keys changed; None removes a key."""

    def change(**keys: object):
        save_sae(random_sae("topk"), tmp_path, {})
        config = json.loads((tmp_path / "cfg.json").read_text()) | keys
        kept = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "cfg.json").write_text(json.dumps(kept))
        return tmp_path

    return change


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        # 2 x 10^6 x 10^9 x 4 bytes = 8 PB, more than a process can address: nothing may be allocated.
        ({"d_in": 10**6, "d_sae": 10**9}, "its config needs tensors .*1000000000"),
        ({"d_in": 2**30, "d_sae": 2**30}, "its config needs tensors .*1073741824"),
        ({"d_sae": 10**30}, "must be whole numbers above 0"),
        ({"d_sae": -20}, "must be whole numbers above 0"),
        ({"d_in": None}, "must be whole numbers above 0"),
        ({"d_in": 6.0}, "must be whole numbers above 0"),
        ({"k": None}, "must be whole numbers above 0"),
        ({"k": True}, "must be whole numbers above 0"),
        ({"k": 21}, "between 1 and d_sae = 20"),
        ({"architecture": "temporal"}, "architecture must be one of"),
        ({"architecture": ["topk"]}, "architecture must be one of"),
        ({"apply_b_dec_to_input": False}, "apply_b_dec_to_input must be True"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations must be 'none'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations must be 'none'"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm must be False"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(changed, tmp_path, keys, message):
    with pytest.raises(InputError, match=rf"'{tmp_path}.*{message}"):
        load_sae(changed(**keys))


def test_saelens_s_own_defaults_may_be_left_out(changed):
    folder = changed(apply_b_dec_to_input=None, normalize_activations=None, rescale_acts_by_decoder_norm=None)
    assert load_sae(folder).k == K


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_dec": torch.zeros(6, 20)}, "its config needs tensors"),
        ({"b_enc": None}, "its config needs tensors"),
        ({"threshold": torch.zeros(20)}, "its config needs tensors"),
        ({"b_enc": torch.full((20,), torch.nan)}, "weights must be finite, but b_enc is not"),
        ({"b_enc": torch.full((20,), torch.inf)}, "weights must be finite, but b_enc is not"),
    ],
    ids=["transposed", "missing", "more", "NaN", "infinite"],
)
def test_weights_that_do_not_fit_are_refused(changed, tensors, message):
    path = changed() / "sae_weights.safetensors"
    held = load_file(path) | tensors
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, path)
    with pytest.raises(InputError, match=message):
        load_sae(path.parent)


def test_cut_off_weights_are_refused(changed):
    path = changed() / "sae_weights.safetensors"
    whole = path.read_bytes()
    for n_bytes in (0, 7, -1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=r"sae_weights\.safetensors' is not a whole safetensors file"):
            load_sae(path.parent)


def test_weights_in_half_precision_are_read_in_float32(changed):
    path = changed() / "sae_weights.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert {parameter.dtype for parameter in load_sae(path.parent).parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_rotated_sae_reads_activations_as_if_they_were_rotated_around_b_dec(architecture):
    sae, acts = random_sae(architecture), random_acts()
    null = rotated(sae, seed=0)
    rotation = torch.linalg.lstsq(sae.W_enc.T, null.W_enc.T).solution.T  # null.W_enc = rotation @ W_enc
    assert torch.allclose(rotation @ rotation.T, torch.eye(D_IN), atol=1e-4)
    centred = (acts - sae.b_dec) @ rotation
    assert torch.allclose(null.encode(acts), sae.encode(centred + sae.b_dec), atol=1e-4)
    assert torch.allclose(centred.norm(dim=1), (acts - sae.b_dec).norm(dim=1), atol=1e-4)
    assert torch.allclose((null(acts) - sae.b_dec) @ rotation, sae(centred + sae.b_dec) - sae.b_dec, atol=1e-3)


def test_rotations_are_drawn_from_their_seed():
    sae = random_sae("relu")
    assert torch.equal(rotated(sae, 1).W_enc, rotated(sae, 1).W_enc)
    assert not torch.allclose(rotated(sae, 1).W_enc, rotated(sae, 2).W_enc, atol=0.1)
    assert not torch.allclose(rotated(sae, 1).W_enc, sae.W_enc, atol=0.1)


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu", "gated"])
def test_wide_saes_encode_few_tokens_at_a_time(architecture, monkeypatch):
    random = torch.Generator().manual_seed(0)
    sae = Sae(architecture, 4, 64, 3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    acts = torch.randn(10, 4, generator=random)
    whole = sae.encode_sparse(acts)
    seen = []
    encode_chunk = Encoder._encode_chunk
    monkeypatch.setattr(encoding, "ENCODED_VALUES", 3 * 64)
    monkeypatch.setattr(Encoder, "_encode_chunk", lambda self, acts: seen.append(len(acts)) or encode_chunk(self, acts))
    parts = sae.encode_sparse(acts)
    assert seen == [3, 3, 3, 1]
    assert torch.equal(parts.indptr, whole.indptr)
    assert torch.equal(parts.indices, whole.indices)
    assert torch.allclose(parts.values, whole.values, atol=1e-6)
    assert len(sae.encode_sparse(acts[:0]).indptr) == 1


def test_the_plan_counts_with_the_values_that_are_encoded_at_once():
    assert sizes.ENCODED_VALUES == 1 << 24 == ENCODED_VALUES
