"""A fine-tune by LoRA in a run: a rule of its own, an adapter that is kept, and a plain model for what follows."""

import json

import pytest

from tests.workflow.conftest import Checkout

FINETUNED = "left: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 5120}}"
BY_LORA = "left: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 5120, lora: {r: 2}}}"
MODELS = [f"results/tiny/models/{model}/model.safetensors" for model in ("base", "left", "right")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The models of a run in which one is fine-tuned by LoRA."""
    checkout = Checkout(tmp_path_factory.mktemp("lora"))
    checkout.edit("tiny.yaml", FINETUNED, BY_LORA)
    done = checkout.snakemake("--cores", "2", "--", *MODELS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return checkout


def stale_models(checkout: Checkout) -> set[tuple[str, str]]:
    rules = ("pretrain_model", "finetune_model", "train_adapter")
    return {(rule, name) for rule, name in checkout.stale_jobs() if rule in rules}


def test_the_adapter_is_kept_beside_the_model_and_is_in_its_manifest(trained: Checkout):
    folder = trained.folder / "results/tiny/models/left"
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 16, "base")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name for name in manifest["files"] if name.startswith("adapter/")} == {
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    }
    assert manifest["found"]["adapted"] == 7
    assert not (folder / "adapter_config.json").exists()
    assert not list((trained.folder / "results/tiny/checkpoints").glob("models/*"))


def test_another_rank_trains_that_model_alone_again(trained: Checkout):
    assert stale_models(trained) == set()
    trained.edit("tiny.yaml", "lora: {r: 2}", "lora: {r: 3}")
    assert stale_models(trained) == {("train_adapter", "left")}
    trained.edit("tiny.yaml", "lora: {r: 3}", "lora: {r: 2}")
    assert stale_models(trained) == set()


def test_a_layer_that_does_not_exist_is_refused_before_any_job(trained: Checkout):
    trained.edit("tiny.yaml", "lora: {r: 2}", "lora: {r: 2, target_modules: [qproj]}")
    process = trained.snakemake("--cores", "1")
    trained.edit("tiny.yaml", "lora: {r: 2, target_modules: [qproj]}", "lora: {r: 2}")
    assert process.returncode == 1
    assert "models.left.finetune.lora.target_modules: 'qproj' must be a linear layer's name" in process.stderr
    assert "did you mean q_proj" in process.stderr
    assert "Traceback" not in process.stderr
