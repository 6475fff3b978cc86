"""What an SAE computes, and its folder on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelineage.errors import InputError
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


@pytest.mark.parametrize(
    ("threshold", "latents"),
    [([0.0, 0.0, 0.0], [3, 0, 1]), ([2.9, 0.0, 1.0], [3, 0, 0]), ([3.0, -2.0, 0.9], [0, 0, 1])],
)
def test_jumprelu_keeps_what_is_above_the_threshold_and_above_zero(threshold, latents):
    sae = by_hand("jumprelu")
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


@pytest.mark.parametrize(("k", "latents"), [(1, [3, 0, 0]), (2, [3, 0, 1]), (3, [3, 0, 1])])
def test_topk_keeps_the_largest_and_never_what_is_below_zero(k, latents):
    assert by_hand("topk", k).encode(ACTS).tolist() == [latents]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_equals_decoding_the_code(architecture):
    sae, acts = random_sae(architecture), random_acts()
    assert torch.equal(sae(acts), sae.decode(sae.encode(acts)))
    in_rows = acts.view(5, 10, D_IN)
    assert torch.allclose(sae(in_rows).view(50, D_IN), sae(acts), atol=1e-5)


# With a bias of -4 most tokens fire fewer than k latents, and some none at all.
@pytest.mark.parametrize("bias", [0.0, -4.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_code_equals_the_dense_one(architecture, bias):
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


def test_equal_latents_are_kept_alike_in_both_codes():
    sae = random_sae("topk")
    with torch.no_grad():  # 20 latents, 5 of each kind: the k-th place is always shared
        sae.W_enc.copy_(sae.W_enc[:, :4].repeat(1, 5))
        sae.b_enc.zero_()
    acts = random_acts()
    sparse, dense = sae.encode_sparse(acts), sae.encode(acts)
    token = torch.repeat_interleave(torch.arange(50), sparse.indptr.diff())
    assert torch.equal(torch.zeros_like(dense).index_put((token, sparse.indices.long()), sparse.values), dense)


@pytest.mark.parametrize("bias", [0.0, -4.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_the_sparse_code_equals_decoding_the_dense_one(architecture, bias):
    sae, acts = random_sae(architecture, bias), random_acts()
    with torch.inference_mode():
        assert torch.allclose(sae.decode_sparse(sae.encode_sparse(acts)), sae(acts), atol=1e-5)


def test_no_tokens_have_an_empty_code():
    sae = random_sae("topk")
    sparse = sae.encode_sparse(torch.zeros(0, D_IN))
    assert (sparse.indptr.tolist(), sparse.indices.tolist(), sparse.values.tolist()) == ([0], [], [])


@pytest.mark.parametrize("k", [0, -1, 21, None])
def test_k_must_lie_between_one_and_the_number_of_latents(k):
    with pytest.raises(InputError, match=r"saes\.k must be between 1 and d_sae = 20 .*got"):
        Sae("topk", D_IN, D_SAE, k)


def test_relu_has_no_k():
    assert Sae("relu", D_IN, D_SAE, 32).k is None


@pytest.mark.parametrize(("factor", "expected"), [(8, 48), (0.5, 3), (0.01, 1), (1.25, 8)])
def test_latents_are_the_width_times_the_expansion_factor(factor, expected):
    assert n_latents(D_IN, float(factor)) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_sae_has_equal_latents_when_it_is_read_again(architecture, tmp_path):
    sae, acts = random_sae(architecture), random_acts()
    save_sae(sae, tmp_path, {})
    loaded = load_sae(tmp_path)
    assert (loaded.architecture, loaded.k, loaded.training) == (sae.architecture, sae.k, False)
    assert torch.equal(loaded.encode(acts), sae.encode(acts))
    assert torch.equal(loaded(acts), sae(acts))


@pytest.mark.parametrize("max_norm", [12.5, float("inf")])
def test_the_longest_activations_that_mean_something_are_saved_with_an_sae(tmp_path, max_norm):
    sae = random_sae("relu")
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


def test_a_relu_sae_is_saelens_s_standard_without_k(tmp_path):
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
    """A folder whose config differs in some keys; None removes one."""

    def change(**keys: object):
        save_sae(random_sae("topk"), tmp_path, {})
        config = json.loads((tmp_path / "cfg.json").read_text()) | keys
        kept = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "cfg.json").write_text(json.dumps(kept))
        return tmp_path

    return change


def test_a_config_that_claims_a_billion_latents_is_refused_without_making_them(changed):
    # 2 x 10^6 x 10^9 x 4 bytes = 8 PB, more than a process can address.
    with pytest.raises(InputError, match=r"its config needs tensors .*1000000000"):
        load_sae(changed(d_in=10**6, d_sae=10**9))


def test_the_largest_sizes_are_refused_alike(changed):
    with pytest.raises(InputError, match=r"its config needs tensors .*1073741824"):
        load_sae(changed(d_in=2**30, d_sae=2**30))


@pytest.mark.parametrize(
    "keys",
    [{"d_sae": 10**30}, {"d_sae": -20}, {"d_sae": "20"}, {"d_in": None}, {"d_in": 6.0}, {"k": None}, {"k": True}],
    ids=str,
)
def test_sizes_that_are_no_sizes_are_refused(changed, keys):
    with pytest.raises(InputError, match=r"cfg\.json': d_in, d_sae and k must be whole numbers above 0"):
        load_sae(changed(**keys))


def test_a_k_above_the_number_of_latents_is_refused(changed):
    with pytest.raises(InputError, match="between 1 and d_sae"):
        load_sae(changed(k=21))


@pytest.mark.parametrize("architecture", ["temporal", None, ["topk"]])
def test_other_architectures_are_refused(changed, architecture):
    with pytest.raises(InputError, match=r"architecture must be one of \['gated', 'jumprelu', 'standard', 'topk'\]"):
        load_sae(changed(architecture=architecture))


@pytest.mark.parametrize(
    "keys",
    [
        {"apply_b_dec_to_input": False},
        {"normalize_activations": "layer_norm"},
        {"reshape_activations": "hook_z"},
        {"rescale_acts_by_decoder_norm": True},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_foreign_saes_that_would_compute_something_else_are_refused(changed, keys):
    with pytest.raises(InputError, match=f"{next(iter(keys))} must be"):
        load_sae(changed(**keys))


def test_saelens_s_own_defaults_may_be_left_out(changed):
    folder = changed(apply_b_dec_to_input=None, normalize_activations=None, rescale_acts_by_decoder_norm=None)
    assert load_sae(folder).k == K


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"W_dec": torch.zeros(6, 20)},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "b_enc"},
        lambda tensors: tensors | {"threshold": torch.zeros(20)},
    ],
    ids=["transposed", "missing", "more"],
)
def test_weights_that_do_not_fit_the_config_are_refused(changed, change):
    path = changed() / "sae_weights.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(InputError, match="its config needs tensors"):
        load_sae(path.parent)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(changed, value):
    path = changed() / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["b_enc"][3] = value
    save_file(tensors, path)
    with pytest.raises(InputError, match="weights must be finite, but b_enc is not"):
        load_sae(path.parent)


@pytest.mark.parametrize("n_bytes", [0, 7, -1])
def test_cut_off_weights_are_refused(changed, n_bytes):
    path = changed() / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
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
