"""Comparing two SAEs by their weights, as the rule does."""

import json
from pathlib import Path

import pytest
import torch

from compare_weights import compare_weights
from saelineage.correlations.cosines import load_similarities
from saelineage.errors import InputError
from saelineage.saes.sae import PER_LATENT, Sae, save_sae

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_MLP, D_SAE = 48, 20
SETTINGS = {"top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 7, "threads": 1}


def write_sae(folder: Path, architecture: str, seed: int, d_in: int = D_MLP) -> Path:
    """An SAE of random weights."""
    random = torch.Generator().manual_seed(seed)
    sae = Sae(architecture, d_in, D_SAE, 4 if architecture == "topk" else None)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", *PER_LATENT[architecture]):
            parameter = sae.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    save_sae(sae, folder, {})
    return folder


NAMES = ("a.seed0", "b.seed1")


@pytest.fixture
def compare(tiny, tmp_path):
    """Compare two SAEs of the tiny models; gives the summary and the matches."""

    def run(saes: tuple[Path, Path], models: str = "ab", hookpoint: str = HOOKPOINT):
        paths = [str(tmp_path / f"similarities.{suffix}") for suffix in ("safetensors", "json")]
        folders = (tiny.models[models[0]], tiny.models[models[1]])
        compare_weights(NAMES, saes, folders, hookpoint, SETTINGS, *paths)
        return json.loads(Path(paths[1]).read_text()), load_similarities(paths[0])

    return run


def test_an_sae_compared_with_itself_is_found_by_every_measure(compare, tmp_path):
    sae = write_sae(tmp_path / "saes/a/seed0", "topk", seed=0)
    summary, found = compare((sae, sae), models="aa")
    assert list(found) == ["decoder_cosine", "encoder_cosine", "logit_effect_cosine"]
    assert summary["pw_mcc"] == pytest.approx(1)
    assert summary["left_out"] == {}
    for measure, matches in found.items():
        assert matches.partners[0][:, 0].tolist() == list(range(D_SAE))
        side = summary["measures"][measure]["a"]
        assert side["n"] == D_SAE
        assert [side["mean_best"], *side["best_quantiles"].values()] == pytest.approx([1] * 4)


def test_different_saes_of_different_models_and_architectures_are_compared(compare, tmp_path):
    saes = (
        write_sae(tmp_path / "saes/a/seed0", "gated", seed=0),
        write_sae(tmp_path / "saes/b/seed1", "jumprelu", seed=1),
    )
    summary, found = compare(saes)
    assert (summary["a"], summary["b"]) == ("a.seed0", "b.seed1")
    for measure, matches in found.items():
        assert matches.n_undefined == 0
        assert matches.histogram.sum() == D_SAE**2
        best = summary["measures"][measure]["b"]
        assert best["mean_best"] == pytest.approx(matches.best[1][:, 0].mean())
        assert best["best_quantiles"]["0.5"] < 0.9
    assert summary["pw_mcc"] < summary["measures"]["decoder_cosine"]["a"]["mean_best"]


def test_a_measure_that_is_not_defined_is_left_out_with_its_reason(compare, tmp_path):
    wide = write_sae(tmp_path / "saes/a/seed0", "topk", seed=0)
    narrow = write_sae(tmp_path / "saes/b/seed0", "topk", seed=1, d_in=32)
    summary, found = compare((wide, narrow), hookpoint="model.layers.0.self_attn.o_proj.input")
    assert (found, summary["measures"], summary["pw_mcc"]) == ({}, {}, None)
    assert "different width: 48 and 32" in summary["left_out"]["decoder_cosine"]
    assert "no linear path" in summary["left_out"]["logit_effect_cosine"]
    assert set(summary["left_out"]) == {"decoder_cosine", "encoder_cosine", "logit_effect_cosine", "pw_mcc"}


def test_a_damaged_model_is_an_error_not_a_measure_left_out(tiny, tmp_path):
    sae = write_sae(tmp_path / "saes/a/seed0", "topk", seed=0)
    broken = tmp_path / "broken"
    broken.mkdir()
    paths = str(tmp_path / "out.safetensors"), str(tmp_path / "out.json")
    with pytest.raises(InputError, match="cannot be opened"):
        compare_weights(NAMES, (sae, sae), (tiny.models["a"], broken), HOOKPOINT, SETTINGS, *paths)


def test_equal_inputs_give_equal_bytes(compare, tmp_path):
    saes = write_sae(tmp_path / "saes/a/seed0", "topk", seed=0), write_sae(tmp_path / "saes/b/seed0", "topk", seed=1)
    compare(saes)
    first = [(tmp_path / f"similarities.{suffix}").read_bytes() for suffix in ("safetensors", "json")]
    compare(saes)
    assert first == [(tmp_path / f"similarities.{suffix}").read_bytes() for suffix in ("safetensors", "json")]
