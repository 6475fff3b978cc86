"""The short keys of config/compare.yaml: base, tuned and text become an ordinary config that passes every check."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.plan.brought import check_on_disk
from saelineage.plan.checks import check, check_files
from saelineage.plan.compare import expand
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.load import load_plan
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import read_yaml
from tests.hub_server import SCRIPTS, running_hub

CONFIGS = SCRIPTS.parents[1] / "config"
SCHEMA = CONFIGS / "config.schema.yaml"
LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16},
    **{"num_hidden_layers": 5, "vocab_size": 4, "max_position_embeddings": 64},
}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []}}


@pytest.fixture(autouse=True)
def _in_a_folder_with_two_models_and_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "tuned"):
        write_model(name)
    Path("text.jsonl").write_text('{"text": "a"}\n')


def write_model(name: str, tokenizer: dict | None = TOKENIZER, **changes: object) -> None:
    Path(name).mkdir(exist_ok=True)
    Path(name, "config.json").write_text(json.dumps(LLAMA | changes))
    Path(name, "model.safetensors").touch()
    if tokenizer:
        Path(name, "tokenizer.json").write_text(json.dumps(tokenizer))


def expanded(**given: object) -> tuple[dict, list[str]]:
    """config/compare.yaml with keys as after --config; None leaves one of the three out."""
    short = {"base": "base", "tuned": "tuned", "text": "text.jsonl"} | given
    config, sentences = expand(read_yaml(CONFIGS / "compare.yaml") | short)
    return load_config(config, read_schema(SCHEMA)), sentences


def refusal(**given: object) -> str:
    with pytest.raises(InputError) as refused:
        expanded(**given)
    return str(refused.value)


PLAIN = {"dequantise": False, "follow_links": False}


def test_three_keys_become_a_whole_config_that_passes_the_checks():
    config, sentences = expanded()
    assert config["models"] == {
        "base": {"path": {"folder": "base", "parents": []} | PLAIN},
        "tuned": {"path": {"folder": "tuned", "parents": ["base"]} | PLAIN},
    }
    assert config["tokenizer"] == {"source": "path", "path": "base"}
    assert config["corpora"]["text"]["path"] == "text.jsonl"
    assert list(config["activations"]["hookpoints"]) == ["model.layers.2.output"]  # 5 layers: 5 // 2
    assert config["tokens"]["n_ctx"] == 64  # of 128, because of the models' positions
    assert [sentence.split(" ")[:3] for sentence in sentences] == [
        ["the", "hookpoint", "is"],
        ["the", "models", "are"],
        ["no", "SAE", "is"],
    ]
    plan = Plan(config)
    check(plan)
    check_files(plan)
    assert check_on_disk(plan, lambda path: False) == []


def test_an_ordinary_config_is_returned_untouched():
    config = read_yaml(CONFIGS / "config.yaml")
    assert expand(config) == (config, [])
    assert expand(config)[0] is config


def test_everything_else_can_be_set_as_in_any_config():
    config, sentences = expanded(
        hookpoint="model.layers.0.mlp.output",
        tokens={"n_ctx": 16},
        corpora={"text": {"text_column": "content"}},
        saes={"seeds": [3], "anchored": {"k": 4}},
        run="mine",
    )
    assert list(config["activations"]["hookpoints"]) == ["model.layers.0.mlp.output"]
    assert (config["tokens"]["n_ctx"], config["corpora"]["text"]["text_column"]) == (16, "content")
    assert (config["run"], config["saes"]["seeds"], config["saes"]["anchored"]) == ("mine", [3], {"k": 4})
    assert len(sentences) == 1


@pytest.mark.parametrize(
    ("config", "hookpoint"),
    [
        ({"model_type": "gpt2", "n_layer": 12, "num_hidden_layers": None}, "transformer.h.6.output"),
        ({"model_type": "gpt_neox", "num_hidden_layers": 6}, "gpt_neox.layers.3.output"),
        ({"model_type": "opt", "num_hidden_layers": 1}, "model.decoder.layers.0.output"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 8}}, "model.language_model.layers.4.output"),
    ],
)
def test_the_middle_layer_has_the_name_that_the_architecture_gives_it(config: dict, hookpoint: str):
    write_model("base", **config)
    assert expanded()[0]["activations"]["hookpoints"] == {hookpoint: hookpoint}


def test_one_text_is_split_at_blank_lines_and_a_table_is_not():
    Path("book.txt").write_text("a\n\nb")
    config, sentences = expanded(text="book.txt")
    assert config["corpora"]["text"]["separator"] == "\n\n"
    assert any("the text is one text file, so each paragraph" in sentence for sentence in sentences)
    assert expanded()[0]["corpora"]["text"]["separator"] is None
    own = expanded(text="book.txt", corpora={"text": {"separator": "---"}})[0]
    assert own["corpora"]["text"]["separator"] == "---"


def test_many_texts_in_a_folder_are_a_document_each():
    Path("texts").mkdir()
    for number in range(100):
        Path("texts", f"{number}.txt").write_text("a")
    assert expanded(text="texts")[0]["corpora"]["text"]["separator"] is None
    Path("texts", "0.txt").unlink()
    assert "99 text files" in expanded(text="texts")[1][2]
    assert "the 99 files of text are read as one corpus" in expanded(text="texts")[1][3]
    assert not any("one corpus" in sentence for sentence in expanded()[1])


def test_a_given_sae_is_the_base_s_and_the_only_seed():
    Path("sae").mkdir()
    config, sentences = expanded(sae="sae", hookpoint="model.layers.1.output")
    assert config["saes"]["models"]["base"]["seed0"]["import"]["folder"] == "sae"
    assert config["saes"]["seeds"] == [0]
    assert config["lineage"]["instruments"] == ["anchored", "frozen"]
    assert any("the base's SAE is the given one" in sentence for sentence in sentences)


def test_several_hookpoints_take_the_place_of_the_one_in_the_middle():
    places = {"early": "model.layers.1.output", "late": "model.layers.3.output"}
    config, sentences = expanded(activations={"hookpoints": places})
    assert config["activations"]["hookpoints"] == places
    assert not any("the hookpoint is" in sentence for sentence in sentences)


def test_an_sae_of_one_hookpoint_may_have_saelens_s_names():
    published = {"import": {"saelens": {"release": "gpt2-small-res-jb", "sae_id": "blocks.8.hook_resid_pre"}}}
    hookpoints = {"late": {"models": {"base": {"seed0": published}}}}
    config, _ = expanded(
        activations={"hookpoints": {"early": "model.layers.1.output", "late": "model.layers.3.output"}},
        saes={"hookpoints": hookpoints},
    )
    block = config["saes"]["hookpoints"]["late"]["models"]["base"]["seed0"]["import"]
    assert block["repo"] == "jbloom/GPT2-Small-SAEs-Reformatted"


def test_an_sae_may_have_saelens_s_names_of_its_release_and_itself():
    sae = "gpt2-small-res-jb:blocks.8.hook_resid_pre"
    config, sentences = expanded(sae=sae, hookpoint="model.layers.1.output")
    block = config["saes"]["models"]["base"]["seed0"]["import"]
    assert (block["repo"], block["revision"]) == ("jbloom/GPT2-Small-SAEs-Reformatted", "main")
    assert (block["subfolder"], block["saelens"]["model"]) == ("blocks.8.hook_resid_pre", "gpt2-small")
    assert any(f"at revision main of its repository, which can move; write {sae}@COMMIT" in line for line in sentences)
    config, sentences = expanded(sae=f"{sae}@v2", hookpoint="model.layers.1.output")
    assert config["saes"]["models"]["base"]["seed0"]["import"]["revision"] == "v2"
    assert not any("which can move" in line for line in sentences)
    Path("a:b").mkdir()
    config, _ = expanded(sae="a:b", hookpoint="model.layers.1.output")
    assert config["saes"]["models"]["base"]["seed0"]["import"]["folder"] == "a:b"


def test_an_sae_of_the_hub_may_lie_in_a_subfolder():
    config, sentences = expanded(sae="own/saes/layers.1/big@v2", hookpoint="model.layers.1.output")
    block = config["saes"]["models"]["base"]["seed0"]["import"]
    assert {key: block[key] for key in ("repo", "revision", "subfolder")} == {
        "repo": "own/saes",
        "revision": "v2",
        "subfolder": "layers.1/big",
    }
    assert not any("can move" in sentence for sentence in sentences)


def test_models_of_the_hub_are_at_main_with_a_warning_unless_a_revision_is_given():
    given = {"base": "own/base@abc", "tuned": "own/tuned", "hookpoint": "model.layers.1.output"}
    config, sentences = expanded(**given)
    assert config["models"]["base"] == {"hub": {"repo": "own/base", "revision": "abc", "parents": []}}
    assert config["models"]["tuned"] == {"hub": {"repo": "own/tuned", "revision": "main", "parents": ["base"]}}
    assert config["tokenizer"] == {"source": "hub", "repo": "own/base", "revision": "abc"}
    assert config["tokens"]["n_ctx"] == 128
    assert sentences[0] == (
        "tuned is 'own/tuned' of the hub, because no such folder is here, at revision main, which can move; write "
        "own/tuned@COMMIT to keep what is compared"
    )


ASK = """
import json, sys
from saelineage.errors import InputError
from saelineage.plan.compare import expand
short = {"run": "compare", "base": sys.argv[1], "tuned": "own/tuned", "text": "text.jsonl"}
try:
    print(json.dumps(expand(short)[0]["activations"]["hookpoint"]))
except InputError as error:
    print(json.dumps(str(error)))
assert "torch" not in sys.modules
"""


def test_the_layers_of_a_base_on_the_hub_are_looked_up_once(tmp_path: Path):
    with running_hub() as hub:
        hub.push("own/base", {"config.json": json.dumps(LLAMA).encode()}, kind="models")
        environment = hub.environment(tmp_path)

        def ask(base: str) -> str:
            command = [sys.executable, "-c", ASK, base]
            return json.loads(subprocess.check_output(command, env=environment, cwd=tmp_path, text=True))

        assert ask("own/base") == "model.layers.2.output"
        n_requests = len(hub.requests)
        assert ask("own/base") == "model.layers.2.output"
        assert len(hub.requests) == n_requests  # a job on a machine without a network finds it in the cache
        said = ask("own/nothing")
    assert said.startswith("base: 'own/nothing' is no folder here, so its config.json is read from the hub, to find")
    assert said.endswith("correct base, or name the place with hookpoint=MODULE.output")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": None}, "base: must be given: the folder of a model, or owner/name of one on the hub; add base=..."),
        ({"text": None}, "text: must be given: a file or folder of text that both models are read on; add text=..."),
        ({"text": "no.txt"}, "text: must be a file or folder that exists, but 'no.txt' does not; correct the path"),
        ({"text": "empty"}, "text: must be a file or folder of text, but 'empty' is empty; correct the path"),
        ({"hookpoint": "model.layers.1"}, "hookpoint: must be the name of a module, as print(model) shows it, and .o"),
        ({"tuned": "./no"}, "tuned: must be the folder of the model, but './no' does not exist; correct the path"),
        ({"tuned": "text.jsonl"}, "tuned: must be the folder of the model, but 'text.jsonl' is a file; correct"),
        (
            {"tuned": "tunde"},
            "tuned: must be a folder that exists, or owner/name[@revision] of the hub, but 'tunde' is",
        ),
        ({"tuned": "a/b/c"}, "tuned: must be a folder that exists, or owner/name[@revision] of the hub, but 'a/b/c'"),
        ({"tuned": 7}, "tuned: must be text, not 7; write a path as ./7"),
        (
            {"base": None, "bse": "base"},
            "base: must be given: the folder of a model, or owner/name of one on the hub; ",
        ),
        ({"hookpont": "resid_post.1"}, "hookpont: is no key of a config; did you mean hookpoint?"),
        ({"text": ["a", "b"]}, "text: must be one path, but is a list of 2; put the files into one folder"),
        ({"sae": "own/sae"}, "hookpoint: must be given together with sae, because an SAE is read where it was trained"),
        ({"models": {}}, "models: must be left out beside base, tuned and text, from which it is made"),
        ({"tokenizer": {"source": "train"}}, "tokenizer: must be left out beside base, tuned and text"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_next_step(given: dict, message: str):
    Path("empty").mkdir()
    assert refusal(**given).startswith(message)


def test_a_misspelt_key_is_named_where_the_right_one_is_missing():
    assert refusal(base=None, bse="base").endswith("add base=... after --config, in place of bse=")


def test_a_base_without_a_tokenizer_of_an_unknown_type_or_without_layers_is_refused():
    os.remove("base/tokenizer.json")
    assert refusal().startswith("base: must have its tokenizer beside it, because all models are read with it, but 'ba")
    write_model("base", model_type="novel")
    assert refusal().startswith("hookpoint: must be given for models of type 'novel', whose layers have no name here")
    assert "layers.3.output" in expanded(hookpoint="layers.3.output")[0]["activations"]["hookpoints"]
    write_model("base", num_hidden_layers=None)
    assert refusal().startswith("hookpoint: must be given, because config.json of the base does not say how many")


def test_a_folder_without_weights_is_refused():
    os.remove("tuned/model.safetensors")
    assert refusal().startswith("tuned: 'tuned' cannot be opened as a causal model from safetensors")


def test_a_folder_with_an_adapter_alone_is_an_adapter_to_the_base_and_no_base():
    Path("lora").mkdir()
    Path("lora", "adapter_config.json").write_text("{}")
    Path("lora", "adapter_model.safetensors").touch()
    short = {"base": "base", "tuned": "lora", "text": "text.jsonl"}
    config, _ = expand(short)
    assert config["models"]["tuned"] == {"adapter": {"folder": "lora", "parent": "base"}}
    with pytest.raises(InputError, match=r"^base: must be a whole model, but 'lora' is an adapter to one .*as tuned$"):
        expand(short | {"base": "lora"})


def test_merge_yaml_passes_every_check():
    Path("models").mkdir()
    for name in ("base", "left", "right", "merged"):
        write_model(f"models/{name}", max_position_embeddings=128)
    path = CONFIGS / "merge.yaml"
    plan = load_plan(read_yaml(path), [path], SCHEMA)
    assert len(plan.graph.edges) == 4  # two fine-tunes, and the merge from both
    assert check_on_disk(plan, lambda path: False) == []
