"""SAEs in the files of other libraries: their latents by formula, and what is refused."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saelineage.errors import InputError
from saelineage.files.hub import HubRepo
from saelineage.foreign import hub
from saelineage.foreign.sae_formats.registry import check_source, describe_source, local_source
from saelineage.foreign.sae_formats.sources import LAYOUTS, SaeSource, choose_files
from saelineage.foreign.sae_inputs import RunInput
from saelineage.saes import folding, imports
from saelineage.saes.folding import fold_centring
from saelineage.saes.imports import ImportedSae, find_sae, read_sae
from saelineage.saes.sae import Sae, load_sae, save_sae

D_IN, D_SAE, K = 3, 5, 2
OF_LIBRARIES = ("saelens", "dictionary_learning", "sparsify")
"""Formats of libraries; those of publications are tested in test_published.py."""
WEIGHTS = {name: LAYOUTS[name][0].weights for name in OF_LIBRARIES}
CONFIGS = {name: str(LAYOUTS[name][0].config) for name in OF_LIBRARIES}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


W_ENC, W_DEC = drawn(D_IN, D_SAE, seed=1), 2 * drawn(D_SAE, D_IN, seed=2)
B_ENC, B_DEC = drawn(D_SAE, seed=3), drawn(D_IN, seed=4)
B_MAG, R_MAG = drawn(D_SAE, seed=5), 0.3 * drawn(D_SAE, seed=6)
THRESHOLD = torch.tensor([0.0, 0.2, 0.5, 1.0, 2.0])
ACTS = drawn(40, D_IN, seed=7)
NORMS = W_DEC.norm(dim=1)


def topk(pre_acts: Tensor, k: int = K) -> Tensor:
    kept = torch.zeros_like(pre_acts, dtype=torch.bool).scatter(1, pre_acts.topk(k).indices, True)
    return pre_acts.relu() * kept


def write(folder: Path, format: str, config: dict, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / CONFIGS[format]).write_text(json.dumps(config))
    save = torch.save if format == "dictionary_learning" else save_file
    save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS[format])
    return folder


def read(folder: Path, format: str = "auto") -> ImportedSae:
    return read_sae(find_sae({"folder": str(folder), "format": format}, "saes.import"))


def error_of(call: Callable, *args: object) -> str:
    with pytest.raises(InputError) as raised:
        call(*args)
    return str(raised.value)


def require_latents(sae: Sae, latents: Tensor, recons: Tensor) -> None:
    assert torch.allclose(sae.encode(ACTS), latents, atol=1e-5)
    assert torch.allclose(sae(ACTS), recons, atol=1e-5)
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
    # Some latents fire and some do not, so that the comparison means something.
    assert 0.05 < float((latents > 0).float().mean()) < 0.8


# SAELens.


def saelens(architecture: str = "topk", **settings: object) -> dict:
    metadata = {"metadata": {"sae_lens_version": "6.54.12"}}
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"} | metadata
    return config | ({"k": K} if architecture == "topk" else {}) | settings


def saelens_tensors(architecture: str = "topk") -> dict[str, Tensor]:
    shared = {"W_enc": W_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    if architecture == "gated":
        return shared | {"b_gate": B_ENC, "b_mag": B_MAG, "r_mag": R_MAG}
    return shared | {"b_enc": B_ENC} | ({"threshold": THRESHOLD} if architecture == "jumprelu" else {})


def saelens_latents(architecture: str, acts: Tensor) -> Tensor:
    """SAELens's formulas; `acts` are what enters the encoder."""
    if architecture == "gated":
        return (acts @ (W_ENC * R_MAG.exp()) + B_MAG).relu() * (acts @ W_ENC + B_ENC > 0)
    pre_acts = acts @ W_ENC + B_ENC
    if architecture == "jumprelu":
        return pre_acts.relu() * (pre_acts > THRESHOLD)
    return topk(pre_acts) if architecture == "topk" else pre_acts.relu()


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_s_architectures_have_saelens_s_latents(tmp_path, architecture):
    for subtracts_b_dec in (True, False):
        config = saelens(architecture, apply_b_dec_to_input=subtracts_b_dec)
        imported = read(write(tmp_path, "saelens", config, saelens_tensors(architecture)))
        latents = saelens_latents(architecture, ACTS - B_DEC if subtracts_b_dec else ACTS)
        require_latents(imported.sae, latents, latents @ W_DEC + B_DEC)
        assert (imported.format, imported.k) == ("saelens", K if architecture == "topk" else None)


def test_decoder_norms_that_choose_the_top_k_are_folded_in(tmp_path):
    for subtracts_b_dec in (True, False):
        config = saelens(rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=subtracts_b_dec)
        sae = read(write(tmp_path, "saelens", config, saelens_tensors())).sae
        latents = topk(((ACTS - B_DEC if subtracts_b_dec else ACTS) @ W_ENC + B_ENC) * NORMS)
        require_latents(sae, latents, latents / NORMS @ W_DEC + B_DEC)


def test_a_latent_that_decodes_to_nothing_stays_silent_when_norms_are_folded(tmp_path):
    tensors = saelens_tensors() | {"W_dec": W_DEC * torch.tensor([0.0, 1, 1, 1, 1])[:, None]}
    sae = read(write(tmp_path, "saelens", saelens(rescale_acts_by_decoder_norm=True), tensors)).sae
    assert bool(torch.isfinite(sae(ACTS)).all())
    assert not bool(sae.encode(ACTS)[:, 0].any())


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_latents_on_centred_activations_are_folded_into_the_weights(tmp_path, architecture):
    sae = read(write(tmp_path, "saelens", saelens(architecture), saelens_tensors(architecture))).sae
    fold_centring(sae)
    centred = ACTS - ACTS.mean(1, keepdim=True)
    latents = saelens_latents(architecture, centred - B_DEC)
    require_latents(sae, latents, latents @ W_DEC + B_DEC)
    once = sae.encode(ACTS)
    fold_centring(sae)  # an SAE that was folded and saved is folded again when it is imported
    assert torch.allclose(sae.encode(ACTS), once, atol=1e-6)
    save_sae(sae, tmp_path / "ours", {})
    assert load_sae(tmp_path / "ours").centred


def test_weights_are_folded_a_few_latents_at_a_time(tmp_path, monkeypatch):
    config = saelens(rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    folder = write(tmp_path, "saelens", config, saelens_tensors())
    whole = read(folder).sae
    monkeypatch.setattr(folding, "FOLDED_VALUES", 2 * D_IN)
    parts = read(folder).sae
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_an_imported_sae_can_be_saved_and_read_again(tmp_path):
    sae = read(write(tmp_path / "theirs", "saelens", saelens(apply_b_dec_to_input=False), saelens_tensors())).sae
    save_sae(sae, tmp_path / "ours", {})
    assert torch.equal(load_sae(tmp_path / "ours").encode(ACTS), sae.encode(ACTS))


def test_a_config_older_than_saelens_6_is_read_as_saelens_6_reads_it(tmp_path):
    config = {"d_in": D_IN, "d_sae": D_SAE, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    config |= {"normalize_activations": False, "hook_name": "blocks.0.hook_resid_post"}
    tensors = saelens_tensors() | {"scaling_factor": torch.ones(D_SAE)}
    latents = topk((ACTS - B_DEC) @ W_ENC + B_ENC)
    require_latents(read(write(tmp_path, "saelens", config, tensors)).sae, latents, latents @ W_DEC + B_DEC)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (saelens(normalize_activations="layer_norm"), "their mean, divided by their standard deviation, and weights"),
        (saelens(normalize_activations="constant_norm_rescale"), "divided by their norm, and weights cannot hold"),
        (saelens(normalize_activations="covariance_whitening"), "sae.fold_activation_whitening(w.mean, w.matrix,"),
        (saelens(normalize_activations="median"), "must be 'none' or 'expected_average_only_in', not 'median'"),
        ({"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": True}, "set import.norm_scaling_factor to it"),
        (saelens(reshape_activations="hook_z"), "metadata.hook_name must be a hook of the heads"),
        (saelens(reshape_activations="hook_q"), "reshape_activations must be 'none' or 'hook_z', not 'hook_q'"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn must be 'relu' or 'topk', not 'tanh-relu'"),
        (saelens("temporal"), "whose latents depend on earlier tokens through attention layers of the SAE's own"),
        (saelens("matching_pursuit"), "it chooses latents one after another"),
        (saelens("abstopk"), "save it as a topk SAE of twice the latents"),
        (saelens("transcoder"), "it is a transcoder"),
        (saelens("jumprelu_skip_transcoder"), "it is a transcoder"),
        (
            saelens(metadata={"hook_name": "blocks.0.hook_mlp_in", "hook_name_out": "blocks.0.hook_mlp_out"}),
            "it is a tr",
        ),
        (
            saelens("own"),
            "architecture must be one of ['batchtopk', 'gated', 'jumprelu', 'matryoshka_batchtopk', 'stan",
        ),
        (saelens(d_sae=None), "d_in, d_sae and k must be whole numbers above 0, got [3, None, 2]"),
        (saelens(k=6), "k must be between 1 and d_sae = 5, its config says 6"),
        (saelens("standard", d_in=4), "its config needs tensors {'W_enc': (4, 5)"),
    ],
    ids=range(18),
)
def test_what_saelens_computes_and_we_cannot_is_refused(tmp_path, config, message):
    assert message in error_of(read, write(tmp_path, "saelens", config, saelens_tensors()))


# Checkpoints of SAELens's training.


def checkpoint(architecture: str = "batchtopk", **settings: object) -> dict:
    config = saelens(architecture, decoder_init_norm=0.1, topk_threshold_lr=0.01, k=2.0)
    return config | {"rescale_acts_by_decoder_norm": True} | settings


def checkpoint_tensors(threshold: float = 0.5) -> dict[str, Tensor]:
    return saelens_tensors() | {"topk_threshold": torch.tensor(threshold, dtype=torch.float64)}


def above(pre_acts: Tensor, threshold: Tensor | float) -> Tensor:
    return pre_acts.relu() * (pre_acts > threshold)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("subtracts_b_dec", [True, False])
def test_a_checkpoint_of_batch_topk_is_jumprelu_with_its_one_threshold(
    tmp_path, architecture, rescales, subtracts_b_dec
):
    config = checkpoint(architecture, rescale_acts_by_decoder_norm=rescales, apply_b_dec_to_input=subtracts_b_dec)
    imported = read(write(tmp_path, "saelens", config, checkpoint_tensors()))
    norms = NORMS if rescales else torch.ones(D_SAE)
    latents = above(((ACTS - B_DEC if subtracts_b_dec else ACTS) @ W_ENC + B_ENC) * norms, 0.5)
    require_latents(imported.sae, latents, latents / norms @ W_DEC + B_DEC)
    assert (imported.sae.architecture, imported.k) == ("jumprelu", 2)


@pytest.mark.parametrize("rescales", [True, False])
def test_the_factor_of_a_checkpoint_is_folded_in_with_its_threshold(tmp_path, rescales):
    factor = 0.5
    config = checkpoint(normalize_activations="expected_average_only_in", rescale_acts_by_decoder_norm=rescales)
    folder = write(tmp_path, "saelens", config, checkpoint_tensors())
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor, "has_whitening": False}))
    sae = read(folder).sae
    # In training latents were those of scaled inputs, times the norms of the decoder that is not divided yet.
    norms = NORMS if rescales else torch.ones(D_SAE)
    in_training = above(((factor * ACTS - B_DEC) @ W_ENC + B_ENC) * norms, 0.5)
    latents = in_training / factor if rescales else in_training
    require_latents(sae, latents, (in_training / norms @ W_DEC + B_DEC) / factor)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_one_factor_for_all_tokens_is_folded_into_the_weights(tmp_path, architecture):
    config = saelens(architecture, normalize_activations="expected_average_only_in")
    folder = write(tmp_path, "saelens", config, saelens_tensors(architecture))
    settings = {"folder": str(folder), "format": "auto", "norm_scaling_factor": 0.7}
    sae = read_sae(find_sae(settings, "saes.import")).sae
    latents = saelens_latents(architecture, 0.7 * ACTS - B_DEC)
    require_latents(sae, latents, (latents @ W_DEC + B_DEC) / 0.7)


@pytest.mark.parametrize(
    ("held", "chosen", "normalize", "message"),
    [
        (None, None, "expected_average_only_in", "set import.norm_scaling_factor to it"),
        (0.5, 0.6, "expected_average_only_in", "inputs were multiplied by 0.5, but import.norm_scaling_factor is 0.6"),
        (None, 0.6, "none", "leave import.norm_scaling_factor out"),
        (-1, None, "expected_average_only_in", "scaling_factor must be a number above 0, not -1"),
        ("2", None, "expected_average_only_in", "scaling_factor must be a number above 0, not '2'"),
    ],
)
def test_a_factor_must_be_known_and_only_one(tmp_path, held, chosen, normalize, message):
    folder = write(tmp_path, "saelens", saelens(normalize_activations=normalize), saelens_tensors())
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": held}))
    source = local_source({"folder": str(folder), "format": "auto", "norm_scaling_factor": chosen})
    assert message in error_of(describe_source, source)  # before weights are read
    assert message in error_of(read_sae, source)


def test_a_checkpoint_from_before_the_first_step_has_no_threshold(tmp_path):
    folder = write(tmp_path, "saelens", checkpoint(), checkpoint_tensors(0.0))
    assert "topk_threshold must be one number above 0, not 0.0; it is 0 before the first step" in error_of(read, folder)


def test_a_checkpoint_from_within_a_training_is_told_by_its_folder(tmp_path):
    for name, remarks in {"122880": 1, "final_122880": 0}.items():
        folder = write(tmp_path / name, "saelens", checkpoint(), checkpoint_tensors())
        described = describe_source(local_source({"folder": str(folder), "format": "auto"}))
        assert len(described.remarks) == remarks
        assert all("a checkpoint after 122880 tokens" in remark for remark in described.remarks)


def test_the_logarithm_of_thresholds_is_read_as_thresholds(tmp_path):
    tensors = saelens_tensors("jumprelu")
    tensors["log_threshold"] = (tensors.pop("threshold") + 0.1).log()
    latents = above((ACTS - B_DEC) @ W_ENC + B_ENC, THRESHOLD + 0.1)
    sae = read(write(tmp_path, "saelens", saelens("jumprelu"), tensors)).sae
    require_latents(sae, latents, latents @ W_DEC + B_DEC)


def test_factors_that_were_tuned_after_training_scale_what_is_decoded(tmp_path):
    scales = torch.tensor([1.0, 1.5, 2.0, 0.5, 3.0])
    tensors = saelens_tensors("standard") | {"scaling_factor": scales}
    folder = write(tmp_path, "saelens", saelens("standard", finetuning_scaling_factor=True), tensors)
    latents = saelens_latents("standard", ACTS - B_DEC)
    require_latents(read(folder).sae, latents, latents * scales @ W_DEC + B_DEC)
    folder = write(tmp_path, "saelens", saelens("standard"), tensors)
    assert "what it scales cannot be told" in error_of(read, folder)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (saelens(), saelens_tensors() | {"W_skip": W_DEC}, "it is a transcoder"),
        (saelens("standard"), saelens_tensors() | {"W_dec": drawn(D_SAE, 4), "b_dec": drawn(4)}, "it is a transcoder"),
        (checkpoint(), saelens_tensors() | {"threshold": THRESHOLD}, "must hold topk_threshold"),
        (saelens("jumprelu"), saelens_tensors(), "its config needs tensors"),
        (saelens("gated"), saelens_tensors(), "its config needs tensors"),
    ],
    ids=range(5),
)
def test_names_and_shapes_of_tensors_tell_before_weights_are_read(tmp_path, config, tensors, message):
    folder = write(tmp_path, "saelens", config, tensors)
    run = RunInput("model.layers.0.output", 8, "base")
    assert message in error_of(
        check_source, local_source({"folder": str(folder), "format": "auto"}), run, "saes.import"
    )
    assert message in error_of(read, folder)


def test_latents_of_both_signs_are_a_top_k_of_twice_the_latents(tmp_path):
    # The way round that the refusal of SAELens's abstopk names.
    doubled = {"W_enc": torch.cat([W_ENC, -W_ENC], 1), "b_enc": torch.cat([B_ENC, -B_ENC])}
    doubled |= {"W_dec": torch.cat([W_DEC, -W_DEC]), "b_dec": B_DEC}
    sae = read(write(tmp_path, "saelens", saelens(d_sae=2 * D_SAE), doubled)).sae
    pre_acts = (ACTS - B_DEC) @ W_ENC + B_ENC
    signed = pre_acts * torch.zeros_like(pre_acts).scatter(1, pre_acts.abs().topk(K).indices, 1.0)
    latents = sae.encode(ACTS)
    assert torch.allclose(latents[:, :D_SAE] - latents[:, D_SAE:], signed, atol=1e-5)
    assert torch.allclose(sae(ACTS), signed @ W_DEC + B_DEC, atol=1e-5)


# dictionary-learning.


def trainer(dict_class: object, **settings: object) -> dict:
    return {"trainer": {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE} | settings}


LINEAR = {"encoder.weight": W_ENC.T, "decoder.weight": W_DEC.T}
MATRICES = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC}
COUNTED = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.6)}
OF_TOPK = LINEAR | {"encoder.bias": B_ENC, "b_dec": B_DEC} | COUNTED
OF_GATED = {"decoder_bias": B_DEC, "gate_bias": B_ENC, "mag_bias": B_MAG, "r_mag": R_MAG}
DICTIONARIES = {
    "AutoEncoder": LINEAR | {"encoder.bias": B_ENC, "bias": B_DEC},
    "AutoEncoderNew": LINEAR | {"encoder.bias": B_ENC, "decoder.bias": B_DEC},
    "GatedAutoEncoder": LINEAR | OF_GATED,
    "JumpReluAutoEncoder": MATRICES | {"threshold": THRESHOLD},
    "AutoEncoderTopK": OF_TOPK,
    "BatchTopKSAE": OF_TOPK,
    "MatryoshkaBatchTopKSAE": MATRICES | COUNTED | {"group_sizes": torch.tensor([2, 3])},
}


def dictionary_latents(dict_class: str) -> Tensor:
    """The `encode` of each class."""
    centred = (ACTS - B_DEC) @ W_ENC
    if dict_class == "AutoEncoder":  # its from_pretrained scales decoder vectors to norm 1
        return (centred + B_ENC).relu() * NORMS
    if dict_class == "AutoEncoderNew":
        return (ACTS @ W_ENC + B_ENC).relu()
    if dict_class == "GatedAutoEncoder":
        return (centred * R_MAG.exp() + B_MAG).relu() * (centred + B_ENC > 0)
    if dict_class == "JumpReluAutoEncoder":
        pre_acts = ACTS @ W_ENC + B_ENC
        return pre_acts.relu() * (pre_acts > THRESHOLD)
    if dict_class == "AutoEncoderTopK":
        return topk(centred + B_ENC)
    return (centred + B_ENC).relu() * ((centred + B_ENC).relu() > 0.6)


@pytest.mark.parametrize("dict_class", list(DICTIONARIES))
def test_dictionary_learning_s_classes_have_its_latents(tmp_path, dict_class):
    counted = {"k": K} if "k" in DICTIONARIES[dict_class] else {}
    folder = write(tmp_path, "dictionary_learning", trainer(dict_class, **counted), DICTIONARIES[dict_class])
    imported = read(folder)
    latents = dictionary_latents(dict_class)
    rows = W_DEC / NORMS[:, None] if dict_class == "AutoEncoder" else W_DEC
    require_latents(imported.sae, latents, latents @ rows + B_DEC)
    assert (imported.format, imported.k) == ("dictionary_learning", counted.get("k"))


def test_a_threshold_that_was_never_set_is_refused(tmp_path):
    for dict_class in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        tensors = DICTIONARIES[dict_class] | {"threshold": torch.tensor(-1.0)}
        error = error_of(read, write(tmp_path, "dictionary_learning", trainer(dict_class, k=K), tensors))
        assert "threshold must be one number, 0 or more, but is -1.0" in error
        assert "threshold_start_step" in error


def test_top_k_needs_no_threshold(tmp_path):
    tensors = {name: tensor for name, tensor in OF_TOPK.items() if name != "threshold"}
    assert read(write(tmp_path, "dictionary_learning", trainer("AutoEncoderTopK", k=K), tensors)).k == K


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {}, "trainer.dict_class must be one of ['AutoEncoder', 'AutoEncoderNew', "),
        (trainer(["AutoEncoder"]), {}, "not ['AutoEncoder']; "),
        (trainer("AutoEncoder"), OF_TOPK, "an SAE of class AutoEncoder must hold ['bias', 'decoder.weight', "),
        (trainer("AutoEncoderTopK", k=3), OF_TOPK, "k is 3 there and {2} in the weights"),
        (trainer("AutoEncoderTopK", k=3), OF_TOPK | {"k": torch.tensor([3, 2])}, "k is 3 there and {2, 3} in the"),
        (trainer("AutoEncoderTopK"), {n: t for n, t in OF_TOPK.items() if n != "k"}, "k is None there and missing in"),
        (trainer("AutoEncoderTopK", k=K) | {"x": 1}, OF_TOPK | {"b_dec": torch.zeros(4)}, "'b_dec': (4,)"),
        (trainer("BatchTopKSAE", k=K, dict_size=6), OF_TOPK, "trainer.dict_size must be 5, "),
        (
            trainer("BatchTopKSAE", k=K),
            OF_TOPK | {"encoder.weight": B_ENC},
            "encoder must be a matrix, not of shape (5,",
        ),
        (
            trainer("JumpReluAutoEncoder"),
            DICTIONARIES["JumpReluAutoEncoder"] | {"b_enc": B_ENC / 0},
            "weights must be finite, but b_enc is not",
        ),
    ],
    ids=range(10),
)
def test_dictionaries_that_do_not_hold_what_their_config_says_are_refused(tmp_path, config, tensors, message):
    assert message in error_of(read, write(tmp_path, "dictionary_learning", config, tensors))


class Malicious:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path):
    folder = write(tmp_path / "sae", "dictionary_learning", trainer("AutoEncoder"), {})
    code = {"bias": Malicious(tmp_path / "made")}
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))):
        save(code, folder / "ae.pt")
        assert "must be a state dict that torch.load(weights_only=True) reads" in error_of(read, folder)
        assert not (tmp_path / "made").exists()


def test_a_file_that_is_not_a_state_dict_is_refused(tmp_path):
    folder = write(tmp_path, "dictionary_learning", trainer("AutoEncoder"), {})
    for content in (b"", b"not a pickle"):
        (folder / "ae.pt").write_bytes(content)
        assert "must be a state dict that torch.load(weights_only=True) reads" in error_of(read, folder)
    torch.save({"bias": [1.0]}, folder / "ae.pt")
    assert "must be a state dict, tensors by name" in error_of(read, folder)


# sparsify.

SPARSIFY = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
SPARSIFY_CONFIG = {"activation": "topk", "k": K, "num_latents": D_SAE, "d_in": D_IN, "multi_topk": False}


def test_a_sparse_coder_has_sparsify_s_latents(tmp_path):
    imported = read(write(tmp_path, "sparsify", SPARSIFY_CONFIG, SPARSIFY))
    latents = topk(((ACTS - B_DEC) @ W_ENC + B_ENC).relu())
    require_latents(imported.sae, latents, latents @ W_DEC + B_DEC)
    assert (imported.format, imported.k) == ("sparsify", K)


def test_a_sparse_coder_may_give_its_size_by_the_expansion_factor(tmp_path):
    widened = {"encoder.weight": W_ENC.T.repeat(3, 1)[:12], "encoder.bias": B_ENC.repeat(3)[:12], "b_dec": B_DEC}
    config = {"expansion_factor": 4, "num_latents": 0, "k": K, "d_in": D_IN}
    folder = write(tmp_path, "sparsify", config, widened | {"W_dec": W_DEC.repeat(3, 1)[:12]})
    assert read(folder).sae.d_sae == 12


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"activation": "groupmax"}, {}, "activation must be 'topk', not 'groupmax'"),
        ({"transcode": True}, {}, "transcode must be False, not True"),
        ({}, {"W_skip": torch.zeros(D_IN, D_IN)}, "W_skip, a linear path around the latents"),
        ({}, {"more": B_DEC}, "a sparse coder must hold ['W_dec', 'b_dec', 'encoder.bias', "),
        ({"num_latents": 0, "expansion_factor": "8"}, {}, "must be whole numbers above 0, got 3, 2 and 0 ('8')"),
        ({"k": 6}, {}, "k must be between 1 and d_sae = 5, its config says 6"),
        ({}, {"W_dec": W_DEC.T}, "the weights file holds"),
        ({}, {"W_dec": W_DEC * float("nan")}, "weights must be finite, but W_dec is not"),
    ],
    ids=range(8),
)
def test_sparse_coders_that_compute_something_else_are_refused(tmp_path, settings, tensors, message):
    folder = write(tmp_path, "sparsify", SPARSIFY_CONFIG | settings, SPARSIFY | tensors)
    assert message in error_of(read, folder)


# The choice of the format.


def chosen(names: list[str], **settings: str) -> str:
    return choose_files(names, {"format": "auto"} | settings, "sae").format


def test_the_format_is_chosen_by_the_files():
    for name in OF_LIBRARIES:
        assert chosen([WEIGHTS[name], CONFIGS[name], "README.md"]) == name


def test_without_the_files_of_a_format_those_needed_are_named():
    error = error_of(chosen, ["cfg.json"])
    for name in OF_LIBRARIES:
        assert f"{CONFIGS[name]} and {WEIGHTS[name]}" in error
    assert "holds ['cfg.json']" in error
    with pytest.raises(InputError, match=r"\(sparsify: cfg.json and sae.safetensors\)"):
        chosen(["cfg.json"], format="sparsify")


def test_with_the_files_of_several_formats_one_must_be_chosen():
    names = ["cfg.json", "sae.safetensors", "sae_weights.safetensors"]
    assert "(saelens, sparsify); choose one with import.format" in error_of(chosen, names)
    assert chosen(names, format="sparsify") == "sparsify"


@pytest.mark.parametrize("format", OF_LIBRARIES)
def test_a_config_that_is_not_a_mapping_is_refused(tmp_path, format):
    folder = write(tmp_path, format, {}, {})
    for content in ("{", "[]"):
        (folder / CONFIGS[format]).write_text(content)
        assert "fetch it again, or save it again" in error_of(read, folder)


def test_cut_off_weights_are_refused(tmp_path):
    for format, config, tensors in [
        ("saelens", saelens(), saelens_tensors()),
        ("sparsify", SPARSIFY_CONFIG, SPARSIFY),
    ]:
        path = write(tmp_path / format, format, config, tensors) / WEIGHTS[format]
        path.write_bytes(path.read_bytes()[:-1])
        assert "is not a whole safetensors file" in error_of(read, tmp_path / format)


def test_from_the_hub_only_the_two_files_of_the_format_are_downloaded(tmp_path, monkeypatch):
    folder = write(tmp_path, "sparsify", SPARSIFY_CONFIG, SPARSIFY)
    files = ["ae.pt", "README.md", "layers.0/cfg.json", "layers.0/sae.safetensors", "layers.0/optimizer.pt"]
    downloads = []

    def download(repo: str, commit: str, file: str, key: str) -> Path:
        downloads.append((repo, commit, file))
        return folder / Path(file).name

    monkeypatch.setattr(hub, "hub_repo", lambda repo, revision, repo_type, key: HubRepo(f"{revision}1", files))
    for module in (hub, imports):
        monkeypatch.setattr(module, "hub_download", download)
    settings = {"repo": "own/sae", "revision": "main", "format": "auto"}
    source = find_sae(settings | {"subfolder": "layers.0"}, "saes.import")
    assert source[:3] == (folder, "sparsify", "main1")
    assert downloads == [("own/sae", "main1", f"layers.0/{name}") for name in ("cfg.json", "sae.safetensors")]
    downloads.clear()

    def refuse(source: SaeSource) -> None:
        raise InputError(f"{source.config.name} of {source.format}")

    assert error_of(find_sae, settings | {"subfolder": "layers.0"}, "saes.import", refuse) == "cfg.json of sparsify"
    assert downloads == [("own/sae", "main1", "layers.0/cfg.json")]  # not the weights, which may be large
    assert torch.equal(read_sae(source).sae.b_dec, B_DEC)
    assert "'own/sae' must hold an SAE" in error_of(find_sae, settings, "saes.import")  # the files at the top
