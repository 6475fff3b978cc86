"""Crosscoders in the files of others: their latents by formula, export and import, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.crosscoders.formats import export_crosscoder, read_crosscoder
from saelineage.errors import InputError
from saelineage.saes.batches import Scaling
from tests.unit.crosscoders.made import crosscoder_of

N_MODELS, D_IN, D_SAE, N_TOKENS = 2, 3, 6, 40
MODELS = ("base", "tuned")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ACTS = {"base": drawn(N_TOKENS, D_IN, seed=1), "tuned": 3 * drawn(N_TOKENS, D_IN, seed=2) + 1}
STACKED = torch.stack(list(ACTS.values()), 1)
WEIGHTS = {
    "encoder.weight": drawn(N_MODELS, D_IN, D_SAE, seed=3),
    "encoder.bias": drawn(D_SAE, seed=4),
    "decoder.weight": drawn(N_MODELS, D_SAE, D_IN, seed=5),
    "decoder.bias": drawn(N_MODELS, D_IN, seed=6),
}
NORMALIZER = {
    "activation_mean": drawn(N_MODELS, D_IN, seed=7),
    "activation_std": torch.ones(N_MODELS, D_IN),
    "activation_global_scale": torch.tensor([0.5, 0.2]),
    "target_rms": torch.tensor(1.0),
}
BATCHTOPK = {"k": torch.tensor(2, dtype=torch.int32), "threshold": torch.tensor(1.5)}


def crosscoder_learning(tensors: dict[str, torch.Tensor], kind: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and reconstructions [token, n_models, d_in] by crosscoder_learning's formulas."""
    acts, mean, scale = STACKED, torch.zeros(N_MODELS, D_IN), torch.ones(N_MODELS)
    if "activation_mean" in tensors:
        mean, scale = tensors["activation_mean"], tensors["activation_global_scale"]
        acts = (acts - mean) * scale[:, None]
    W_dec = tensors["decoder.weight"]
    latents = (torch.einsum("tmd,mdf->tf", acts, tensors["encoder.weight"]) + tensors["encoder.bias"]).relu()
    if "threshold" in tensors:
        of_models = W_dec.norm(dim=2)
        norms = {1: of_models.sum(0), 2: of_models.square().sum(0).sqrt(), 4: torch.ones(D_SAE)}[kind]
        latents = latents * (latents * norms > tensors["threshold"])
    recons = torch.einsum("tf,mfd->tmd", latents, W_dec) + tensors["decoder.bias"]
    return latents, recons / scale[:, None] + mean


def assert_computes(crosscoder: Crosscoder, latents: torch.Tensor, recons: torch.Tensor) -> None:
    found = crosscoder.encode(ACTS)
    dense = found.matrix(D_SAE).to_dense()
    assert 0.1 < (dense > 0).float().mean() < 0.9, "the test has too few or too many latents"
    assert torch.allclose(dense, latents, atol=2e-5)
    for number, model in enumerate(MODELS):
        assert torch.allclose(crosscoder.decode(found, model), recons[:, number], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalizer", [{}, NORMALIZER], ids=["plain", "normalized"])
@pytest.mark.parametrize("kind", [1, 2, 4])
def test_batchtopk_crosscoders_of_crosscoder_learning(tmp_path: Path, kind: int, normalizer: dict):
    tensors = WEIGHTS | BATCHTOPK | normalizer | {"code_normalization_id": torch.tensor(kind)}
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "ae.pt")
    assert_computes(read_crosscoder(tmp_path / "ae.pt", MODELS), *crosscoder_learning(tensors, kind))


def test_l1_crosscoders_of_crosscoder_learning_without_a_normalizer(tmp_path: Path):
    absent = {"activation_mean": torch.full((N_MODELS, D_IN), torch.nan)} | NORMALIZER
    absent["activation_mean"] = absent["activation_mean"] * torch.nan
    save_file(WEIGHTS | absent, tmp_path / "model.safetensors")
    crosscoder = read_crosscoder(tmp_path / "model.safetensors", MODELS)
    assert crosscoder.sae.architecture == "relu"
    assert_computes(crosscoder, *crosscoder_learning(WEIGHTS, 1))


def test_cc_weights_with_the_scales_of_their_training(tmp_path: Path):
    theirs = {
        "W_enc": WEIGHTS["encoder.weight"],
        "W_dec": WEIGHTS["decoder.weight"].transpose(0, 1).contiguous(),
        "b_enc": WEIGHTS["encoder.bias"],
        "b_dec": WEIGHTS["decoder.bias"],
    }
    torch.save(theirs, tmp_path / "cc_weights.pt")
    scales = {"base": 0.5, "tuned": 0.2}
    scaled = {"activation_mean": torch.zeros(N_MODELS, D_IN), "activation_global_scale": torch.tensor([0.5, 0.2])}
    crosscoder = read_crosscoder(tmp_path / "cc_weights.pt", MODELS, scales)
    assert_computes(crosscoder, *crosscoder_learning(WEIGHTS | scaled, 1))


@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_an_export_has_equal_latents_by_their_formulas_and_read_back(tmp_path: Path, architecture: str):
    scalings = {"base": Scaling(drawn(D_IN, seed=8), 0.7), "tuned": Scaling(drawn(D_IN, seed=9), 0.3)}
    crosscoder = crosscoder_of(drawn(N_MODELS, D_SAE, D_IN, seed=10), architecture, **scalings)
    if architecture == "jumprelu":
        with torch.no_grad():
            crosscoder.sae.threshold.fill_(0.2)
    export_crosscoder(crosscoder, tmp_path)
    tensors = torch.load(tmp_path / "ae.pt", weights_only=True)
    assert_computes(crosscoder, *crosscoder_learning(tensors, int(tensors["code_normalization_id"])))
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == ("BatchTopKCrossCoder" if architecture == "jumprelu" else "CrossCoder")
    # their scale follows from what they store of the activations
    total = tensors["activation_std"].square().sum(1).sqrt()
    assert torch.allclose(tensors["target_rms"] / total, tensors["activation_global_scale"])
    read = read_crosscoder(tmp_path / "ae.pt", MODELS)
    assert_computes(read, *crosscoder_learning(tensors, 4))
    before = (tmp_path / "ae.pt").read_bytes()
    export_crosscoder(crosscoder, tmp_path)
    assert (tmp_path / "ae.pt").read_bytes() == before


def test_what_cannot_be_folded_is_refused(tmp_path: Path):
    faults = {
        r"threshold must be one number, 0 or more, but is -1": {"threshold": torch.tensor(-1.0)},
        r"code_normalization_id must be 1 \(CROSSCODER\).* but is 5": {"code_normalization_id": torch.tensor(5)},
        r"activation_mean and activation_global_scale must be \[2, 3\]": NORMALIZER
        | {"activation_mean": torch.zeros(3, 3)},
        r"a crosscoder must hold \['decoder.bias'.*this holds.*'more'": {"more": torch.zeros(1)},
        r"must have tensors .*W_dec": {"decoder.weight": drawn(N_MODELS, D_SAE, 2)},
        r"three dimensions for the 2 models": {"decoder.weight": drawn(D_SAE, D_IN)},
        r"weights must be finite, but W_dec": {"decoder.weight": WEIGHTS["decoder.weight"] * torch.inf},
    }
    for message, change in faults.items():
        torch.save(WEIGHTS | BATCHTOPK | change, tmp_path / "ae.pt")
        with pytest.raises(InputError, match=message):
            read_crosscoder(tmp_path / "ae.pt", MODELS)
    torch.save(WEIGHTS, tmp_path / "ae.pt")
    with pytest.raises(InputError, match=r"for the 1 models \['base'\], not of shapes \[\(2, 3, 6\)"):
        read_crosscoder(tmp_path / "ae.pt", ["base"])


def test_what_they_do_not_know_is_not_exported(tmp_path: Path):
    for architecture, k in (("topk", 2), ("jumprelu", None)):
        with pytest.raises(InputError, match=f"this is '{architecture}' with thresholds"):
            export_crosscoder(crosscoder_of(drawn(2, D_SAE, D_IN), architecture, k), tmp_path)
    assert list(tmp_path.iterdir()) == []
