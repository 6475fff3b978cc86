"""Half fine-tuning: frozen weights are byte for byte the parent's in the file, and all others are trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_model import finetune_model
from keep_step import keep_step
from saelineage.errors import InputError
from saelineage.models import training
from saelineage.models.freezing import freeze_weights, state_as_filed
from saelineage.models.loading import load_model
from saelineage.models.training import new_mistral, save_model
from saelineage.plan.graph import Graph
from tests.unit.models.test_architectures import ARCHITECTURES, IDS
from tests.unit.models.test_training import TRAINING, Kill, Killed

pytestmark = pytest.mark.filterwarnings("ignore")
HALF = {"share": 0.5, "seed": 0}
SETTINGS = TRAINING | {"parent": "a", "freeze": HALF, "n_tokens": 10 * 4 * 16}
"""10 steps of 4 rows of 16 tokens, with checkpoints at 5 and 10."""


def finetune(tiny, folder: Path, parent: Path | None = None, **settings: object) -> dict:
    """Train a model on as the rule does; the facts for its manifest."""
    return finetune_model(
        settings=SETTINGS | settings,
        paths_to_tokens={"words": str(tiny.tokens["words"]["train"])},
        parent_folder=parent or tiny.models["a"],
        folder=folder,
        checkpoints=folder.with_name(f"{folder.name}.checkpoints"),
        gpus=0,
        name="lua",
        path_to_steps=str(folder.with_name("steps.tar")) if "keep_steps" in settings else None,
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True of equal bytes in one format."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in sorted(before) if not is_same(before[name], after[name])]


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory) -> Path:
    """The folder of an undisturbed half fine-tuning; its checkpoints are beside it."""
    folder = tmp_path_factory.mktemp("half") / "lua"
    facts = finetune(tiny, folder)
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def test_half_of_the_blocks_stays_byte_for_byte_and_all_else_is_trained(tiny, half: Path):
    before, after = tensors(tiny.models["a"]), tensors(half)
    facts = json.loads((half / "facts.json").read_text())
    # Two blocks of 7 matrices and 2 norms: 2 of 4 of attention, 1 and 2 of the MLP, 1 norm of each block.
    assert len(facts["frozen"]) == 2 * 2 + 3 + 2
    assert changed(before, after) == sorted(before.keys() - set(facts["frozen"]))
    assert facts["trained"] == sum(before[name].numel() for name in before.keys() - set(facts["frozen"]))


def test_no_optimizer_state_is_held_of_frozen_weights(tiny, half: Path):
    state = torch.load(half.with_name("lua.checkpoints") / "checkpoint-10/optimizer.pt", weights_only=True)
    frozen = json.loads((half / "facts.json").read_text())["frozen"]
    assert len(state["state"]) == sum(len(group["params"]) for group in state["param_groups"])
    assert len(state["state"]) == len(tensors(tiny.models["a"])) - len(frozen)


@pytest.mark.parametrize("way", [{"accumulate": 2}, {"gradient_checkpointing": True}, {"max_grad_norm": 0.1}])
def test_other_ways_of_training_freeze_the_same_and_train_the_rest(tiny, half: Path, tmp_path: Path, way: dict):
    finetune(tiny, tmp_path / "lua", **way)
    before = tensors(tiny.models["a"])
    assert changed(before, tensors(tmp_path / "lua")) == changed(before, tensors(half))
    if "max_grad_norm" not in way:
        after, other = tensors(half), tensors(tmp_path / "lua")
        assert max(float((after[name] - other[name]).abs().max()) for name in after) < 1e-5


def test_a_share_of_zero_gives_the_bytes_of_plain_fine_tuning(tiny, tmp_path: Path):
    assert finetune(tiny, tmp_path / "none", freeze={"share": 0, "seed": 0}) == {}
    plain, tokens = SETTINGS.copy(), {"words": str(tiny.tokens["words"]["train"])}
    del plain["freeze"]
    finetune_model(plain, tokens, tiny.models["a"], tmp_path / "plain", tmp_path / "checkpoints", 0)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "none" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_share_of_one_trains_embeddings_and_the_last_norm_alone(tiny, tmp_path: Path):
    finetune(tiny, tmp_path / "lua", freeze={"share": 1, "seed": 0})
    trained = changed(tensors(tiny.models["a"]), tensors(tmp_path / "lua"))
    assert trained == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]


def test_a_tied_model_of_one_block_stays_tied_and_has_half_of_that_block_frozen(tiny, tmp_path: Path):
    sizes = {"n_layers": 1, "tie_embeddings": True, "seed": 0}
    parent = new_mistral(tiny.settings | sizes, tiny.d_vocab, 16, {"bos": 1, "eos": 2})
    save_model(parent, tiny.models["a"], tmp_path / "parent")
    frozen = finetune(tiny, tmp_path / "lua", tmp_path / "parent")["frozen"]
    before, after = tensors(tmp_path / "parent"), tensors(tmp_path / "lua")
    assert len(frozen) == 2 + 2 + 1
    assert changed(before, after) == sorted(before.keys() - set(frozen))
    assert "model.embed_tokens.weight" in changed(before, after)
    assert "lm_head.weight" not in after


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_training_ends_with_equal_bytes(tiny, half: Path, tmp_path: Path, monkeypatch, precision: str):
    whole = half if precision == "float32" else tmp_path / "whole"
    if whole != half:
        finetune(tiny, whole, precision=precision)
    with monkeypatch.context() as patch:
        patch.setattr(training, "LogToFile", Kill)
        with pytest.raises(Killed):
            finetune(tiny, tmp_path / "lua", precision=precision)
    assert not (tmp_path / "lua").exists()
    finetune(tiny, tmp_path / "lua", precision=precision)
    assert (tmp_path / "lua/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


FORMATS = [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"), ("bfloat16", "bfloat16")]


@pytest.mark.parametrize(("filed", "precision"), FORMATS)
def test_frozen_weights_keep_the_format_of_their_parent_s_file(tiny, tmp_path: Path, filed: str, precision: str):
    parent = tmp_path / "parent"
    save_model(load_model(tiny.models["a"]).to(getattr(torch, filed)), tiny.models["a"], parent)
    frozen = set(finetune(tiny, tmp_path / "lua", parent, precision=precision)["frozen"])
    before, after = tensors(parent), tensors(tmp_path / "lua")
    assert {name for name in before if is_same(before[name], after[name])} == frozen
    assert {after[name].dtype for name in after.keys() - frozen} == {getattr(torch, precision)}
    # Others that open the file by its config.json get the parent's numbers too, and so does a training from it.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "lua", dtype="auto").state_dict()
    assert all(torch.equal(theirs[name].double(), before[name].double()) for name in frozen)
    other = {"share": 0.5, "seed": 1}
    again = set(finetune(tiny, tmp_path / "later", tmp_path / "lua", precision=precision, freeze=other)["frozen"])
    assert again != frozen
    assert set(changed(after, tensors(tmp_path / "later"))) == after.keys() - again


@pytest.mark.parametrize("name", ["GPT-2, tied", "Llama", "Pythia", "Mixtral", "Gemma 3 text"])
def test_names_in_memory_that_files_do_not_have_are_saved_as_the_parent_s(tiny, tmp_path: Path, name: str):
    kind, sizes = ARCHITECTURES[name]
    parent = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).float().eval()
    save_model(parent, tiny.tokenizer, tmp_path / "parent")
    model = load_model(tmp_path / "parent", torch.bfloat16)
    frozen = freeze_weights(model, HALF, "key")
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=10.0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    save_model(model, tiny.tokenizer, tmp_path / "lua", state_as_filed(model, frozen, tmp_path / "parent"))
    before, after = tensors(tmp_path / "parent"), tensors(tmp_path / "lua")
    kept = before.keys() - set(changed(before, after))
    assert {before[each].dtype for each in before} == {torch.float32}
    assert {after[each].dtype for each in kept} == {torch.float32}
    assert {after[each].dtype for each in after.keys() - kept} == {torch.bfloat16}
    # As many numbers are the parent's as are frozen, whatever their names.
    weights = dict(model.named_parameters())
    assert sum(before[each].numel() for each in kept) == sum(weights[each].numel() for each in frozen)
    reopened = load_model(tmp_path / "lua").state_dict()
    assert all(torch.equal(reopened[each], parent.state_dict()[each]) for each in frozen)


def test_a_model_kept_at_a_step_and_a_twin_have_the_same_weights_frozen(tiny, half: Path, tmp_path: Path):
    before, frozen = tensors(tiny.models["a"]), json.loads((half / "facts.json").read_text())["frozen"]
    finetune(tiny, tmp_path / "stepped", precision="bfloat16", keep_steps=[4])
    (tmp_path / "kept").mkdir()
    keep_step(str(tmp_path / "steps.tar"), 4, tmp_path / "kept")
    models = {"a": {"path": {}}, "lua": {"finetune": SETTINGS}, "again": {"twin": {"of": "lua", "seed": 9}}}
    twin = Graph({"models": models, "corpora": {"words": {}}, "lineage": {"controls": {}}}).settings("again")
    finetune(tiny, tmp_path / "again", **{key: value for key, value in twin.items() if key != "parent"})
    for folder in ("kept", "again"):
        assert changed(before, tensors(tmp_path / folder)) == sorted(before.keys() - set(frozen))
    assert changed(tensors(half), tensors(tmp_path / "again")) == sorted(before.keys() - set(frozen))


def test_a_share_that_freezes_nothing_ends_the_job_before_it_trains(tiny, tmp_path: Path):
    with pytest.raises(InputError, match=r"models\.lua\.finetune\.freeze\.share: .* 0\.01 freezes none of the 14"):
        finetune(tiny, tmp_path / "lua", freeze={"share": 0.01, "seed": 0})
    assert not (tmp_path / "lua").exists()
    assert not (tmp_path / "lua.checkpoints").exists()
