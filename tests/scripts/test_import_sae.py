"""Taking over an SAE: one that fits the model's activations passes, others are refused with the likely cause."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from import_sae import import_sae, require_fit
from saelineage.errors import InputError
from saelineage.files.atomic import sha256_file
from saelineage.saes.imports import ImportedSae
from saelineage.saes.metrics import Moments, SaeSums
from saelineage.saes.sae import Sae, load_sae
from tests.hub_server import SCRIPTS

D_IN, D_SAE, K = 16, 64, 2
LIMITS = {"max_fvu": 0.9, "max_l0_fraction": 0.15}


def true_latents() -> torch.Tensor:
    """[token, d_sae]: two features of every token, with values from 1 to 3."""
    random = torch.Generator().manual_seed(0)
    latents = torch.rand(600, D_SAE, generator=random).argsort(1)[:, :K]
    return torch.zeros(600, D_SAE).scatter(1, latents, 1 + 2 * torch.rand(600, K, generator=random))


def directions() -> torch.Tensor:
    """[d_sae, d_in]: a unit vector for each feature."""
    found = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(1))
    return found / found.norm(dim=1, keepdim=True)


@pytest.fixture
def shards(write_acts) -> list[str]:
    """Activations that two of 64 directions make up, in two corpora."""
    acts = true_latents() @ directions() + 0.5
    return [str(write_acts(acts[:400], "words")), str(write_acts(acts[400:], "sums"))]


@pytest.fixture
def write_sae(tmp_path):
    """A SAELens folder with the true directions, and a config that can be changed."""

    def write(d_in: int = D_IN, threshold: float | None = None, **settings: object) -> Path:
        W_dec = directions()[:, :d_in]
        tensors = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": torch.zeros(D_SAE), "b_dec": torch.full((d_in,), 0.5)}
        if threshold is not None:
            settings |= {"architecture": "jumprelu"}
            tensors["threshold"] = torch.full((D_SAE,), threshold)
        folder = tmp_path / "theirs"
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
        config = {"architecture": "topk", "k": K, "d_in": d_in, "d_sae": D_SAE}
        config |= {"metadata": {"sae_lens_version": "6.54.12"}} | settings
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return write


def taken_over(
    source: Path,
    shards: list[str],
    folder: Path,
    max_fvu: float = 0.9,
    max_norm_ratio: float | None = None,
    model_config: dict | None = None,
) -> dict:
    settings = {"folder": str(source), "format": "auto", "max_fvu": max_fvu, "max_l0_fraction": 0.15}
    return import_sae("lua", "seed0", settings, max_norm_ratio, shards, folder, model_config)


def error_of(*arguments: object) -> str:
    with pytest.raises(InputError) as raised:
        taken_over(*arguments)
    return str(raised.value)


def test_an_sae_that_fits_is_taken_over_with_what_was_measured(write_sae, shards, tmp_path, caplog):
    source = write_sae()
    with caplog.at_level(logging.INFO):
        found = taken_over(source, shards, tmp_path / "ours")
    assert found["fvu"] < 0.5
    assert found["l0"] == K
    assert found["n_tokens"] == 600
    assert (found["format"], found["commit"]) == ("saelens", None)
    assert found["files"] == {name: sha256_file(source / name) for name in ("cfg.json", "sae_weights.safetensors")}
    (warning,) = found["warnings"]
    assert warning.endswith(
        f"'{source}/cfg.json' does not say at which hookpoint the SAE was trained; make sure that it is 'layer.output' "
        "(activations.hookpoint)"
    )
    assert [record.message for record in caplog.records if record.name == "import_sae"] == [
        warning,
        f"'{source}': fvu {found['fvu']}, l0 2 on 600 tokens",
    ]
    assert torch.equal(load_sae(tmp_path / "ours").W_enc, load_sae(source).W_enc)
    metadata = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"], metadata["context_size"]) == ("lua", "layer", 1)
    assert metadata["model_class_name"] == "AutoModelForCausalLM"
    assert {"prepend_bos", "exclude_special_tokens"}.isdisjoint(metadata)  # nothing is known of its training
    assert metadata["saelineage"] == {
        "model": "lua",
        "sae": "seed0",
        "hookpoint": "layer.output",
        "import": {"folder": str(source), "format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.15},
        "found": found,
        "original": {},
    }
    assert metadata["l0"] == K


def test_an_sae_of_another_layer_is_refused_before_its_weights_are_read(write_sae, write_acts, tmp_path):
    source = write_sae(metadata={"sae_lens_version": "6.54.12", "hf_hook_name": "model.layers.0.output"})
    (source / "sae_weights.safetensors").write_bytes(b"not read")
    shard = str(write_acts(true_latents() @ directions() + 0.5, "words", hookpoint="model.layers.1.output"))
    message = error_of(source, [shard], tmp_path / "ours")
    assert "'model.layers.0.output' (the residual stream before layer 1), but activations.hookpoint is" in message
    assert "; set it to 'model.layers.0.output', or import an SAE" in message


def test_what_the_sae_s_own_config_says_of_its_input_stays_as_it_was(write_sae, write_acts, tmp_path):
    theirs = {"hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2-small", "context_size": 1024}
    theirs |= {"neuronpedia_id": "gpt2-small/1-res"}
    source = write_sae(metadata={"sae_lens_version": "6.54.12"} | theirs)
    shard = str(write_acts(true_latents() @ directions() + 0.5, "words", hookpoint="transformer.h.1.output"))
    found = taken_over(source, [shard], tmp_path / "ours")
    metadata = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]
    assert metadata.items() >= (theirs | {"model_class_name": "HookedTransformer"}).items()
    assert metadata["saelineage"]["hookpoint"] == "transformer.h.1.output"
    assert metadata["saelineage"]["original"] == theirs
    assert ["'gpt2-small'" in found["warnings"][0], "contexts of 1024 tokens" in found["warnings"][1]] == [True, True]


def test_a_name_that_saelens_cannot_resolve_is_replaced_and_kept_as_it_was(write_sae, write_acts, tmp_path):
    hookpoint = "model.layers.0.mlp.down_proj.input"
    theirs = {"hook_name": hookpoint, "model_class_name": "AutoModelForCausalLM", "model_name": "base"}
    source = write_sae(metadata={"sae_lens_version": "6.54.12"} | theirs)  # as older versions of this project wrote it
    taken_over(source, [str(write_acts(true_latents() @ directions() + 0.5, hookpoint=hookpoint))], tmp_path / "ours")
    metadata = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["model_class_name"]) == ("blocks.0.mlp.hook_post", "HookedTransformer")
    assert (metadata["hf_hook_name"], metadata["model_name"]) == (hookpoint, "base")
    assert metadata["saelineage"]["original"] == theirs


def test_a_release_s_sae_has_its_id_on_neuronpedia(write_sae, shards, tmp_path):
    record = {"release": "some-release", "sae_id": "layer_0", "neuronpedia_id": "some-model/0-some-saes"}
    settings = {"folder": str(write_sae()), "format": "auto", "saelens": record} | LIMITS
    import_sae("lua", "seed0", settings, None, shards, tmp_path / "ours")
    metadata = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]
    assert metadata["neuronpedia_id"] == "some-model/0-some-saes"
    assert metadata["saelineage"]["import"]["saelens"] == record


def test_an_sae_of_centred_activations_has_its_latents_and_is_measured_on_these(write_sae, write_acts, tmp_path):
    # The mean over dimensions, which the SAE was trained without, is large here, and fvu would show it.
    acts = true_latents() @ directions() + 0.5
    uncentred = acts - acts.mean(1, keepdim=True) + 5 * torch.randn(600, 1, generator=torch.Generator().manual_seed(3))
    shard = str(write_acts(uncentred, "words", hookpoint="transformer.h.1.output"))
    settings = {
        "hook_name": "blocks.1.hook_resid_post",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    source = write_sae(metadata={"sae_lens_version": "6.54.12"} | settings)
    found = taken_over(source, [shard], tmp_path / "ours", model_config={"layer_norm_epsilon": 1e-5})
    ours, theirs = load_sae(tmp_path / "ours"), load_sae(source)
    centred = uncentred - uncentred.mean(1, keepdim=True)
    assert (ours.centred, theirs.centred, found["centred"]) == (True, False, True)
    assert torch.allclose(ours.encode(uncentred), theirs.encode(centred), atol=2e-5)
    residual = (centred - theirs(centred).detach()).double().square().sum()
    total = (centred - centred.mean(0)).double().square().sum()
    assert found["fvu"] == pytest.approx(float(residual / total), rel=1e-4)
    # A model with RMSNorm is never centred, so that the SAE stays as it is.
    rms = taken_over(source, [shard], tmp_path / "rms", max_fvu=1e6, model_config={"rms_norm_eps": 1e-5})
    assert (rms["centred"], torch.equal(load_sae(tmp_path / "rms").W_enc, theirs.W_enc)) == (False, True)


def test_fvu_is_measured_over_the_tokens_of_all_corpora(write_sae, shards, tmp_path):
    source = write_sae()
    found = taken_over(source, shards, tmp_path / "ours")
    sae, acts = load_sae(source), true_latents() @ directions() + 0.5
    with torch.no_grad():
        residual = (acts - sae(acts)).double().square().sum()
    assert found["fvu"] == pytest.approx(float(residual / (acts - acts.mean(0)).double().square().sum()), rel=1e-5)


def test_tokens_with_far_too_long_activations_are_left_out_and_on_record(write_sae, write_acts, tmp_path):
    acts = true_latents() @ directions() + 0.5
    outliers = torch.zeros(5, D_IN).index_fill(1, torch.tensor([3]), 1000.0)
    shards = [str(write_acts(torch.cat([acts, outliers]), "outliers"))]
    found = taken_over(write_sae(), shards, tmp_path / "ours", max_norm_ratio=10.0)
    assert (found["n_tokens"], found["n_left_out"]) == (600, 5)
    median = float(torch.cat([acts, outliers]).norm(dim=1).median())
    assert load_sae(tmp_path / "ours").max_norm == pytest.approx(10 * median)


def test_an_sae_s_own_limit_on_norms_goes_before_the_config_s(write_sae, shards, tmp_path):
    source = write_sae(metadata={"sae_lens_version": "6.54.12", "max_norm": 4.0})
    norms = (true_latents() @ directions() + 0.5).norm(dim=1)
    found = taken_over(source, shards, tmp_path / "ours", max_norm_ratio=10.0)
    assert found["n_left_out"] == int((norms > 4).sum()) > 0
    assert load_sae(tmp_path / "ours").max_norm == 4


def test_only_so_many_tokens_are_measured_as_many_of_every_shard(write_sae, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("import_sae.MEASURED_TOKENS", 301)
    monkeypatch.setattr("import_sae.CHUNK_TOKENS", 70)
    assert taken_over(write_sae(), shards, tmp_path / "ours")["n_tokens"] == 300


def test_top_k_weights_that_are_read_as_relu_are_refused(write_sae, shards, tmp_path):
    message = error_of(write_sae(architecture="standard"), shards, tmp_path / "ours")
    assert (
        "must leave at most 0.9 of the variance unexplained (saes.import.max_fvu), with at most 0.15 of its latents"
        in message
    )
    assert "of 64 latents active per token (l0); most likely it is read as the wrong architecture" in message
    assert not (tmp_path / "ours").exists()


# A threshold of 1 would fit: features have values from 1 to 3.
@pytest.mark.parametrize(
    ("threshold", "cause"),
    [
        (100.0, "with 0 of 64 latents active per token (l0); most likely its input is too small for it"),
        (0.01, "(TopK weights as ReLU), or its input is too large"),
    ],
)
def test_an_sae_for_activations_of_another_scale_is_refused(write_sae, shards, tmp_path, threshold, cause):
    assert cause in error_of(write_sae(threshold=threshold), shards, tmp_path / "ours")


def test_far_more_latents_than_k_are_a_sign_of_the_wrong_scale():
    moments = Moments(n=10, mean=torch.zeros(D_IN), deviation=1.0)
    # 9 latents per token are below 0.15 of 64, and above 4 x 2.
    sums = SaeSums(moments, residual=2.0, firings=np.array([90] + [0] * 63))
    sae = Sae("jumprelu", D_IN, D_SAE)
    with pytest.raises(InputError, match=r"its fvu is 2, with 9 of 64 latents .* or its input is too large$"):
        require_fit(ImportedSae(sae, "dictionary_learning", 2, []), sums, LIMITS, "'sae'")
    with pytest.raises(InputError, match=r"with 9 of 64 latents .* at another hookpoint or on another model$"):
        require_fit(ImportedSae(sae, "dictionary_learning", None, []), sums, LIMITS, "'sae'")


def test_an_sae_that_is_not_sparse_is_refused_however_well_it_reconstructs():
    sums = SaeSums(Moments(10, torch.zeros(D_IN), 1.0), 0.1, np.array([10] * 10 + [0] * 54))
    dense = r"its fvu is 0.1, with 10 of 64 latents .* it is dense and read as what it is,.*max_l0_fraction above 0.16$"
    with pytest.raises(InputError, match=dense):
        require_fit(ImportedSae(Sae("relu", D_IN, D_SAE), "saelens", None, []), sums, LIMITS, "'sae'")
    poor = SaeSums(sums.moments, 0.5, sums.firings)
    with pytest.raises(InputError, match=r"its fvu is 0.5, with 10 of 64 latents .* \(TopK weights as ReLU\)"):
        require_fit(ImportedSae(Sae("relu", D_IN, D_SAE), "saelens", None, []), poor, LIMITS, "'sae'")


@pytest.mark.parametrize("residual", [float("nan"), float("inf")])
def test_an_fvu_that_is_no_number_is_refused(residual):
    sums = SaeSums(Moments(10, torch.zeros(D_IN), 1.0), residual, np.full(D_SAE, 1))
    with pytest.raises(InputError, match=f"its fvu is {residual}, with 6.4 of 64"):
        require_fit(ImportedSae(Sae("relu", D_IN, D_SAE), "saelens", None, []), sums, LIMITS, "'sae'")


def test_an_sae_of_another_place_is_refused(write_sae, write_acts, tmp_path):
    elsewhere = torch.randn(600, D_IN, generator=torch.Generator().manual_seed(2)) * 0.1 - 3
    shard = str(write_acts(elsewhere, "elsewhere"))
    message = error_of(write_sae(), [shard], tmp_path / "ours")
    assert message.endswith("most likely it was trained at another hookpoint or on another model")


def test_an_sae_of_another_width_is_refused(write_sae, shards, tmp_path):
    source = write_sae(d_in=12)
    assert error_of(source, shards, tmp_path / "ours") == (
        f"saes.import (for lua.seed0): an SAE for 'layer.output' must have d_in 16, but '{source}/cfg.json' says 12; "
        "set activations.hookpoint to the place it was trained at, or import another SAE"
    )


def test_the_limit_is_the_config_s(write_sae, shards, tmp_path):
    source = write_sae()
    fvu = taken_over(source, shards, tmp_path / "ours")["fvu"]
    message = error_of(source, shards, tmp_path / "ours", 0.001)
    assert (
        "must leave at most 0.001 of the variance unexplained (saes.import.max_fvu), with at most 0.15 of its latents"
        in message
    )
    assert f" tokens its fvu is {fvu:.4g}, with 2 of 64 latents" in message


def test_activations_that_do_not_vary_are_refused(write_sae, write_acts, tmp_path):
    shard = str(write_acts(torch.ones(10, D_IN), "constant"))
    assert "its fvu is undefined, with" in error_of(write_sae(), [shard], tmp_path / "ours")


def test_reading_and_measuring_an_sae_needs_no_transformers():
    code = "import sys, import_sae; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=False).returncode == 0
