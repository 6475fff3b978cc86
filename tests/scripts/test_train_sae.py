"""Training an SAE that starts from an imported one, through the files of both."""

import json
from pathlib import Path

import pytest
import torch

from saelineage.saes.sae import Sae, load_sae, save_sae
from tests.sae_settings import SAE_SETTINGS
from train_sae import train_and_save

D_IN, D_SAE, K = 8, 32, 6
FROM_START = {"from_start": ["architecture", "k", "target_l0"]}


@pytest.fixture
def shard(write_acts) -> str:
    acts = torch.randn(2048, D_IN, generator=torch.Generator().manual_seed(0))
    return str(write_acts(acts, hookpoint="model.layers.0.output"))


def start(folder: Path, architecture: str, k: int | None, **metadata: object) -> str:
    """The folder of an imported SAE."""
    sae = Sae(architecture, D_IN, D_SAE, k)
    directions = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sae.W_dec.copy_(directions / directions.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    save_sae(sae, folder, metadata)
    return str(folder)


def trained(shard: str, folder: Path, starts: list[str], **changes: object) -> dict:
    """The metadata of the child's SAE."""
    settings = SAE_SETTINGS | {"architecture": "topk", "k": 20, "n_tokens": 1024, "seed": 5} | changes
    train_and_save("lua", {"from_base": settings}, [shard], folder, folder / "state", None, 0, starts)
    return json.loads((folder / "from_base" / "cfg.json").read_text())["metadata"]


def test_a_child_s_sae_keeps_k_of_the_imported_parent_s_and_says_so(shard, tmp_path, caplog):
    base = start(tmp_path / "base", "topk", K, l0=6.0)
    with caplog.at_level("INFO"):
        metadata = trained(shard, tmp_path / "lua", [base], **FROM_START)
    assert load_sae(tmp_path / "lua" / "from_base").k == K
    assert (metadata["l0"], metadata["saelineage"]["kept"]) == (6.0, {"k": K})
    assert metadata["saelineage"]["settings"]["k"] == K
    assert "lua.from_base keeps settings of the SAE that it starts from: {'k': 6}" in caplog.messages


def test_the_metadata_says_where_saelens_reads_the_activations(shard, tmp_path):
    settings = {"from_base": SAE_SETTINGS | {"architecture": "topk", "k": 20, "n_tokens": 1024, "seed": 5}}
    source = {"name": "own/base", "revision": "v2"}
    train_and_save("lua", settings, [shard], tmp_path, tmp_path / "state", None, 0, source=source)
    metadata = json.loads((tmp_path / "from_base" / "cfg.json").read_text())["metadata"]
    assert metadata["saelineage"]["hookpoint"] == "model.layers.0.output"
    assert {key: value for key, value in metadata.items() if key not in ("saelineage", "sae_lens_version")} == {
        "model_name": "own/base",
        "model_class_name": "AutoModelForCausalLM",
        "model_from_pretrained_kwargs": {"revision": "v2"},
        "hook_name": "model.layers.0",
        "context_size": 1,
        "max_norm": None,
    }


def test_an_explicit_k_is_honoured(shard, tmp_path):
    base = start(tmp_path / "base", "topk", K, l0=6.0)
    trained(shard, tmp_path / "lua", [base], from_start=["architecture", "target_l0"])
    assert load_sae(tmp_path / "lua" / "from_base").k == 20


def test_without_k_the_architecture_and_the_measured_l0_are_kept_along_a_chain(shard, tmp_path):
    base = start(tmp_path / "base", "relu", None, l0=4.5)
    for folder, parent in ((tmp_path / "lua", base), (tmp_path / "grandchild", str(tmp_path / "lua" / "from_base"))):
        metadata = trained(shard, folder, [parent], **FROM_START)
        assert load_sae(folder / "from_base").architecture == "relu"
        assert metadata["saelineage"]["kept"] == {"architecture": "relu", "target_l0": 4.5}
        assert metadata["l0"] == 4.5


def test_without_an_imported_ancestor_nothing_is_recorded_or_changed(shard, tmp_path):
    base = start(tmp_path / "base", "topk", 20)
    metadata = trained(shard, tmp_path / "lua", [base])
    assert "l0" not in metadata
    assert "kept" not in metadata["saelineage"]
