"""Crosscoders: latents by formula, a decoder for each model, and the folder on disk."""

import json
from pathlib import Path

import pytest
import torch

from saelineage.crosscoders.crosscoder import CONFIG_FILE, Crosscoder, load_crosscoder, save_crosscoder
from saelineage.errors import InputError
from saelineage.saes.batches import Scaling
from saelineage.saes.sae import Sae
from tests.unit.crosscoders.made import crosscoder_of

D_IN, D_SAE, N_TOKENS = 3, 7, 20


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SCALINGS = {"base": Scaling(drawn(D_IN, seed=1), 0.5), "tuned": Scaling(100 * drawn(D_IN, seed=2), 0.01)}
ACTS = {"base": 2 * drawn(N_TOKENS, D_IN, seed=3), "tuned": 100 * drawn(N_TOKENS, D_IN, seed=4)}


@pytest.fixture(params=["relu", "topk", "jumprelu"])
def crosscoder(request) -> Crosscoder:
    k = 3 if request.param == "topk" else None
    return crosscoder_of(drawn(2, D_SAE, D_IN, seed=5), request.param, k, **SCALINGS)


def test_latents_read_all_models_and_each_has_its_decoder(crosscoder: Crosscoder):
    scaled = [(ACTS[model] - scaling.mean) * scaling.scale for model, scaling in SCALINGS.items()]
    raw = sum((acts - crosscoder.b_dec[m]) @ crosscoder.W_enc[m] for m, acts in enumerate(scaled))
    pre_acts = raw + crosscoder.sae.b_enc.detach()
    fires = {
        "relu": pre_acts > 0,
        "topk": torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(3).indices, 1.0).bool(),
        "jumprelu": pre_acts > crosscoder.sae.threshold.detach() if hasattr(crosscoder.sae, "threshold") else None,
    }[crosscoder.sae.architecture]
    latents = crosscoder.encode(ACTS)
    dense = latents.matrix(D_SAE).to_dense()
    assert torch.allclose(dense, pre_acts.relu() * fires, atol=1e-5)
    for m, (model, scaling) in enumerate(SCALINGS.items()):
        recons = (dense @ crosscoder.W_dec[m] + crosscoder.b_dec[m]) / scaling.scale + scaling.mean
        assert torch.allclose(crosscoder.decode(latents, model), recons, rtol=1e-4, atol=1e-4)


def test_a_folder_gives_back_equal_latents_and_bytes(crosscoder: Crosscoder, tmp_path: Path):
    crosscoder.max_norms["base"] = 12.5
    save_crosscoder(crosscoder, tmp_path / "one", {"hookpoint": "layer.output"})
    loaded = load_crosscoder(tmp_path / "one")
    assert loaded.models == ["base", "tuned"]
    assert loaded.max_norms == crosscoder.max_norms
    for one, other in zip(crosscoder.encode(ACTS), loaded.encode(ACTS), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(loaded.decode(loaded.encode(ACTS), "tuned"), crosscoder.decode(crosscoder.encode(ACTS), "tuned"))
    save_crosscoder(loaded, tmp_path / "two", {"hookpoint": "layer.output"})
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path):
    save_crosscoder(crosscoder_of(drawn(2, D_SAE, D_IN)), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    faults = {
        r"models must be as": {"models": ["a", "a"]},
        r"format must be as.* 2": {"format": 2},
        r"architecture must be": {"architecture": "gated"},
        r"d_in must be": {"d_in": True},
        r"max_norms must be": {"max_norms": [None]},
        r"must have tensors.*W_enc.*\(2, 3, 8\)": {"d_sae": 8},
        r"must have a mean \[3, 3\]": {"models": ["a", "b", "c"], "max_norms": [None, None, None]},
    }
    for message, change in faults.items():
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            load_crosscoder(tmp_path)


def test_activations_of_other_models_and_an_sae_of_another_width_are_refused(crosscoder: Crosscoder):
    with pytest.raises(InputError, match=r"\['base', 'tuned'\] reads the activations of these, got \['base'\]"):
        crosscoder.encode({"base": ACTS["base"]})
    with pytest.raises(InputError, match=r"it is 7 wide and they are \[3\] each"):
        Crosscoder(Sae("relu", 7, 4), SCALINGS)
