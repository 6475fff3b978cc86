"""Training an SAE that starts from an imported one, through the files of both."""

import json
from pathlib import Path

import pytest
import torch

from saelineage.saes.resets import reset_latents
from saelineage.saes.sae import Sae, load_sae, save_sae
from saelineage.saes.trainer import SaeTrainer
from tests.sae_settings import SAE_SETTINGS
from train_sae import train_and_save

D_IN, D_SAE, K = 8, 32, 6
PER_LATENT = ("W_enc", "W_dec", "b_enc")
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


def test_a_share_of_the_latents_starts_afresh_and_the_others_where_the_parent_s_are(tmp_path):
    base = load_sae(start(tmp_path / "base", "topk", K))
    settings = SAE_SETTINGS | {"k": K, "seed": 5}
    mean = torch.arange(D_IN) / D_IN
    kept, reset, fresh = (
        SaeTrainer(settings | changes, mean, 4, start=parent).weights
        for changes, parent in (({}, base), ({"reset_share": 0.25}, base), ({"expansion_factor": D_SAE / D_IN}, None))
    )
    latents = reset_latents(D_SAE, 0.25, seed=5)
    others = [latent for latent in range(D_SAE) if latent not in latents]
    assert len(latents) == 8
    for name in PER_LATENT:
        assert torch.equal(reset[name][latents], fresh[name][latents])
        assert torch.equal(reset[name][others], kept[name][others])
    assert not torch.isclose(reset["W_dec"][latents], kept["W_dec"][latents]).all(1).any()
    assert torch.equal(reset["b_dec"], kept["b_dec"])
    assert torch.equal(fresh["b_dec"], mean)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"])
def test_latents_of_every_architecture_start_afresh(architecture):
    settings = SAE_SETTINGS | {"architecture": architecture, "expansion_factor": D_SAE / D_IN}
    first = SaeTrainer(settings, torch.zeros(D_IN), 4)
    base = first.objective.trained({name: tensor.detach() for name, tensor in first.weights.items()}, 0.1)
    reset = SaeTrainer(settings | {"reset_share": 0.5, "seed": 9}, torch.zeros(D_IN), 4, start=base).weights
    fresh = SaeTrainer(settings | {"seed": 9}, torch.zeros(D_IN), 4).weights
    latents = reset_latents(D_SAE, 0.5, seed=9)
    assert reset.keys() == fresh.keys()
    assert all(torch.equal(reset[name][latents], fresh[name][latents]) for name in reset if name != "b_dec")


def test_a_reset_control_is_trained_like_the_no_change_control_and_twice_the_same(shard, tmp_path, caplog):
    base = start(tmp_path / "base", "topk", K)
    with caplog.at_level("INFO"):
        weights = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            trained(shard, folder, [base], k=K, reset_share=0.5)
            weights.append((folder / "from_base" / "sae_weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert f"{D_SAE // 2} of {D_SAE} latents start afresh" in caplog.messages
    metadata = trained(shard, tmp_path / "three", [base], k=K)
    assert "reset_share" not in metadata["saelineage"]["settings"]
    assert (tmp_path / "three" / "from_base" / "sae_weights.safetensors").read_bytes() != weights[0]
