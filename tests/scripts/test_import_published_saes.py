"""Taking over a published SAE without a config: an `.npz` of Gemma Scope for a model of Gemma 2."""

import json
from pathlib import Path

import numpy as np
import torch

from import_sae import import_sae
from saelineage.saes.sae import load_sae

D_IN, D_SAE = 4, 8
FOLDER = Path("gemma-scope-2b-pt-att", "layer_3", "width_16k", "average_l0_82")


def test_an_npz_is_taken_over_with_what_its_names_say(write_acts, tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    both_signs = np.concatenate([np.eye(D_IN), -np.eye(D_IN)]).astype(np.float32)  # x = ReLU(x) - ReLU(-x)
    zeros = {"b_enc": np.zeros(D_SAE), "b_dec": np.zeros(D_IN), "threshold": np.zeros(D_SAE)}
    weights = {name: values.astype(np.float32) for name, values in zeros.items()}
    np.savez(folder / "params.npz", w_enc=both_signs.T, w_dec=both_signs, **weights)
    acts = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(0))
    shards = [str(write_acts(acts, "words"))]
    settings = {"folder": str(folder), "format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.6}
    config = {"model_type": "gemma2", "rms_norm_eps": 1e-6}
    found = import_sae("base", "seed0", settings, None, shards, tmp_path / "ours", config, ["google/gemma-2-2b"])
    assert found["format"] == "gemma_scope"
    assert found["fvu"] < 1e-6
    assert found["l0"] == D_IN
    assert list(found["files"]) == ["params.npz"]
    place, context = found["warnings"]  # the shards' hookpoint is 'layer.output', which has no layer
    assert "trained at 'blocks.3.attn.hook_z' (the concatenated heads in layer 3), and it is unclear whether" in place
    assert "contexts of 1024 tokens" in context
    assert torch.equal(load_sae(tmp_path / "ours").W_dec, torch.from_numpy(both_signs))
    original = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]["saelineage"]["original"]
    assert original["model_name"] == "google/gemma-2-2b"
    assert original["hook_name"] == "blocks.3.attn.hook_z"
