"""What a user brings is checked by its small files before the first job."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.foreign.tokenizers import read_tokenizer
from saelineage.plan.brought import check_on_disk as checked_on_disk
from saelineage.plan.brought import left_for_the_start, run_input, without_seeds
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.plan import Plan
from tests.hub_server import SCRIPTS, running_hub
from tests.unit.plan.jobs import Wildcards

SCHEMA = SCRIPTS.parents[1] / "config" / "config.schema.yaml"
LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16},
    **{"num_hidden_layers": 2, "vocab_size": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6},
}
WORDS = ["a", "b", "c", "d"]
CFG = {"architecture": "topk", "d_in": 8, "d_sae": 32, "k": 4, "metadata": {"sae_lens_version": "6.0.0"}}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def model_folder(name: str, words: list[str] = WORDS, **changes: object) -> str:
    """A folder with the small files of a Llama, and an empty weights file."""
    write_json(Path(name, "config.json"), LLAMA | changes)
    write_json(Path(name, "tokenizer.json"), {"model": {"type": "BPE", "vocab": tokens(words), "merges": []}})
    Path(name, "model.safetensors").touch()
    return name


def check_on_disk(plan: Plan, *here: str) -> list[str]:
    """The check, when nothing has been imported but what these manifests are of."""
    return checked_on_disk(plan, here.__contains__)


def tokens(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def sae_folder(name: str, **changes: object) -> str:
    config = CFG | changes
    write_json(Path(name, "cfg.json"), config)
    d_in, d_sae = config["d_in"], config["d_sae"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    tensors = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    save_file(tensors, Path(name, "sae_weights.safetensors"))
    return name


def plan(models: dict, n_ctx: int = 32, hookpoint: str = "model.layers.1.output", **saes: object) -> Plan:
    tokenizer = {"source": "path", "path": model_folder("tokenizer")}
    given = {
        **{"run": "mine", "corpora": {"lua": {"source": "sample", "kind": "lua"}}, "tokenizer": tokenizer},
        **{"models": models, "activations": {"hookpoint": hookpoint}, "tokens": {"n_ctx": n_ctx}},
        "saes": {"seeds": [0], "models": {name: {"seed0": {"import": {"folder": f}}} for name, f in saes.items()}},
    }
    return Plan(load_config(given, read_schema(SCHEMA))).places[hookpoint]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def in_folder(folder: str) -> dict:
    return {"path": {"folder": folder}}


def test_models_that_fit_the_run_pass_without_a_word():
    models = {name: in_folder(model_folder(name)) for name in ("base", "tuned")}
    assert check_on_disk(plan(models)) == []


def test_one_folder_under_two_names_is_said_to_be_one_model():
    (sentence,) = check_on_disk(plan(dict.fromkeys(("base", "tuned"), in_folder(model_folder("base")))))
    assert "models 'base', 'tuned' are taken from the same place" in sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_position_embeddings": 16}, "tokens.n_ctx must be at most 16"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is an encoder"),
        ({"words": ["a", "b", "d", "c"]}, "2 of 4 ids differ"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_a_model_that_does_not_fit_the_run_is_refused(changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        check_on_disk(plan({"base": in_folder(model_folder("base", **changes))}))


@pytest.mark.parametrize(
    ("hookpoint", "problem"),
    [
        ("model.layers.2.output", "it has 2 layers, counted from 0, so the last one is model.layers.1; choose another"),
        ("transformer.h.1.output", "its type 'llama' has its layers at model.layers, not at transformer.h; choose"),
        ("model.layer.1.output", "its type 'llama' has its layers at model.layers, not at model.layer; choose"),
    ],
)
def test_a_place_that_a_model_does_not_have_is_refused(hookpoint: str, problem: str):
    start = f"activations.hookpoint: all models of a run are read at one place, '{hookpoint}', which 'base' does not"
    with pytest.raises(InputError, match=f"^{start} have: {problem}"):
        check_on_disk(plan({"base": in_folder(model_folder("base"))}, hookpoint=hookpoint))


def test_a_place_that_a_hub_model_does_not_have_is_refused_if_its_config_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    given = {"base": {"hub": {"repo": "a/b", "revision": "main"}}}
    assert check_on_disk(plan(given, hookpoint="model.layers.2.output")) == []  # nothing is known of it
    stored, commit = tmp_path / "cache" / "models--a--b", "0" * 40
    write_json(stored / "snapshots" / commit / "config.json", LLAMA)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    assert check_on_disk(plan(given, hookpoint="model.layers.1.output")) == []
    with pytest.raises(InputError, match="'base' does not have: it has 2 layers"):
        check_on_disk(plan(given, hookpoint="model.layers.2.output"))


def test_a_place_is_asked_of_models_again_that_an_earlier_run_imported():
    models, here = {"base": in_folder(model_folder("base"))}, "results/mine/models/base/manifest.json"
    model_folder("results/mine/models/base")
    assert check_on_disk(plan(models, hookpoint="model.layers.1.output"), here) == []
    with pytest.raises(InputError, match="'base' does not have: it has 2 layers"):
        check_on_disk(plan(models, hookpoint="model.layers.2.output"), here)


def with_weights(folder: str, *names: str) -> str:
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, Path(folder, "model.safetensors"))
    return folder


@pytest.mark.parametrize(
    ("hookpoint", "remedy"),
    [
        ("model.layers.1.mlp.down_prj.input", "did you mean down_proj"),
        ("model.layers.1.mlpp.down_proj.input", "did you mean mlp"),
        ("model.layers.1.attention.dense.input", "mlp, self_attn"),
    ],
)
def test_a_module_that_the_weights_of_a_folder_do_not_have_is_refused_with_those_beside_it(hookpoint: str, remedy: str):
    layer = "model.layers.1."
    folder = with_weights(
        model_folder("base"), f"{layer}mlp.down_proj.weight", f"{layer}mlp.up_proj.weight", f"{layer}self_attn.q.weight"
    )
    with pytest.raises(InputError, match=remedy):
        check_on_disk(plan({"base": in_folder(folder)}, hookpoint=hookpoint))
    for place in ("mlp.down_proj.input", "mlp.act_fn.output", "mlp.output", "output"):  # act_fn has no weights
        assert check_on_disk(plan({"base": in_folder(folder)}, hookpoint=layer + place)) == []


def test_where_weights_have_other_names_than_modules_no_module_is_refused():
    for names in (["h.1.mlp.c_fc.weight"], ["model.layers.1.mlp.experts.0.w1.weight"]):
        folder = with_weights(model_folder("base"), *names)
        assert check_on_disk(plan({"base": in_folder(folder)}, hookpoint="model.layers.1.mlpp.down_proj.input")) == []


def test_an_sae_does_not_start_from_that_of_a_model_of_another_width():
    child = {"path": {"folder": model_folder("wide", hidden_size=16), "parents": ["base"]}}
    with pytest.raises(InputError, match=r"^lineage.instruments: anchored starts .* but have 16 and 8 dimensions"):
        check_on_disk(plan({"base": in_folder(model_folder("base")), "wide": child}))


def test_a_dry_run_says_what_it_leaves_for_the_start():
    hub = {"repo": "own/tuned", "revision": "main"}
    assert left_for_the_start(plan({"base": in_folder(model_folder("base"))})) is None
    assert left_for_the_start(plan({"base": in_folder("base"), "tuned": {"hub": hub}})) == (
        "what comes from the hub (models tuned) is not checked in a dry run; models and SAEs are when the run starts, "
        "and corpora and the tokenizer in their jobs"
    )


def test_gguf_alone_is_refused_with_the_way_round():
    Path("base").mkdir()
    Path("base", "model-Q4.gguf").touch()
    with pytest.raises(InputError, match=r"but GGUF \('model-Q4.gguf'\)"):
        check_on_disk(plan({"base": in_folder("base")}))


def test_a_gguf_is_checked_before_the_first_job():
    Path("base").mkdir()
    Path("base", "model-Q4.gguf").write_bytes(b"GGML")
    block = {"folder": "base", "gguf": "model-Q4.gguf"}
    with pytest.raises(InputError, match=r"^models.base.path.dequantise: must be true to read 'base/model-Q4.gguf'"):
        check_on_disk(plan({"base": {"path": block}}))
    with pytest.raises(InputError, match="is not a GGUF file"):
        check_on_disk(plan({"base": {"path": block | {"dequantise": True}}}))


def test_links_out_of_a_folder_are_followed_only_where_the_config_says_so():
    store, folder = Path(model_folder("store")), Path("linked")
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    with pytest.raises(InputError, match="is a link that leads out of 'linked'"):
        check_on_disk(plan({"base": in_folder("linked")}))
    followed = {"path": {"folder": "linked", "follow_links": True}}
    assert check_on_disk(plan({"base": followed})) == []
    with pytest.raises(InputError, match="is a link that leads out of 'linked'"):  # of one model, not of all others
        check_on_disk(plan({"base": followed, "tuned": in_folder("linked")}))


def adapter_folder(name: str, rank: int = 2, **changes: object) -> str:
    """A folder with the config and the header of an adapter of rank 2 to one matrix."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "someone/base"}
    write_json(Path(name, "adapter_config.json"), config | changes)
    start = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{start}A.weight": np.ones((rank, 8)), f"{start}B.weight": np.ones((8, rank))}
    save_file(tensors, Path(name, "adapter_model.safetensors"))
    return name


def with_adapter(folder: str) -> dict:
    return {"base": in_folder(model_folder("base")), "tuned": {"adapter": {"folder": folder, "parent": "base"}}}


def test_an_adapter_is_checked_before_the_first_job():
    assert check_on_disk(plan(with_adapter(adapter_folder("lora")))) == []
    with pytest.raises(InputError, match="must have rank 2, as r and rank_pattern"):
        check_on_disk(plan(with_adapter(adapter_folder("other", rank=4))))
    with pytest.raises(InputError, match="peft_type must be LORA"):
        check_on_disk(plan(with_adapter(adapter_folder("ia3", peft_type="IA3"))))
    (sentence,) = check_on_disk(plan(with_adapter(adapter_folder("far", base_model_name_or_path="someone/else"))))
    assert sentence.startswith(
        "models.tuned: the adapter says that it belongs to 'someone/else', but its parent 'base'"
    )


def test_a_model_with_an_adapter_has_its_parent_s_config_for_saes():
    described = run_input(plan(with_adapter(adapter_folder("lora"))), "tuned")
    assert described.d_in == LLAMA["hidden_size"]


def test_parents_that_compute_something_else_are_not_merged():
    parents = {"a": in_folder(model_folder("a")), "b": in_folder(model_folder("b", rms_norm_eps=0.01))}
    merge = {"merged": {"merge": {"parents": ["a", "b"], "t": 0.5}}}
    with pytest.raises(InputError, match=r"differ in rms_norm_eps \(1e-06 and 0.01\)"):
        check_on_disk(plan(parents | merge))


def test_an_sae_of_another_layer_or_width_is_refused_and_one_of_no_place_is_warned_of():
    models = {"base": in_folder(model_folder("base"))}
    right = sae_folder("right", metadata={"hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.0.0"})
    assert [line for line in check_on_disk(plan(models, base=right)) if "hookpoint" in line] == []
    wrong = sae_folder("wrong", metadata={"hook_name": "blocks.0.hook_resid_post", "sae_lens_version": "6.0.0"})
    with pytest.raises(InputError, match=r"saes.import \(for base.seed0\).*activations.hookpoint"):
        check_on_disk(plan(models, base=wrong))
    with pytest.raises(InputError, match=r"must have d_in 8, but .*16"):
        check_on_disk(plan(models, base=sae_folder("wide", d_in=16)))
    assert any("does not say at which hookpoint" in line for line in check_on_disk(plan(models, base=sae_folder("x"))))


def test_what_tensors_and_configs_of_an_sae_show_is_said_before_the_first_job():
    models = {"base": in_folder(model_folder("base"))}
    config = json.loads(
        Path(sae_folder("sae", metadata={"hook_name": "blocks.1.hook_resid_post"}), "cfg.json").read_text()
    )
    for changes, message in (
        ({"architecture": "batchtopk", "k": 4.0}, "must hold topk_threshold, because its config says 'batchtopk'"),
        ({"architecture": "temporal"}, "whose latents depend on earlier tokens"),
        ({"normalize_activations": "expected_average_only_in"}, "set import.norm_scaling_factor to it"),
        (
            {"reshape_activations": "hook_z", "metadata": {"hook_name": "blocks.1.attn.hook_z"}},
            "self_attn.o_proj.input'",
        ),
    ):
        write_json(Path("sae", "cfg.json"), config | {"sae_lens_version": "6.0.0"} | changes)
        with pytest.raises(InputError, match=re.escape(message)):
            check_on_disk(plan(models, base="sae"))


def test_what_is_already_imported_is_not_remarked_on_again():
    wrong = sae_folder("wrong", d_in=16)
    models = {"base": in_folder(model_folder("base", max_position_embeddings=16)), "same": in_folder("base")}
    here = [f"results/mine/models/{name}/manifest.json" for name in models]
    sae = "results/mine/saes/model.layers.1.output/base/seed0/manifest.json"
    assert check_on_disk(plan(models, base=wrong), *here, sae) == []
    with pytest.raises(InputError, match=r"tokens\.n_ctx must be at most 16"):
        check_on_disk(plan(models, base=wrong), here[0], sae)
    with pytest.raises(InputError, match="must have d_in 8"):
        check_on_disk(plan(models, base=wrong), *here)


def test_an_sae_of_an_mlp_whose_width_is_not_known_is_not_refused():
    folder = model_folder("base")
    odd = {key: value for key, value in LLAMA.items() if key != "intermediate_size"} | {"model_type": "odd"}
    write_json(Path(folder, "config.json"), odd)
    hook = {"hook_name": "blocks.1.mlp.hook_post", "sae_lens_version": "6.0.0"}
    run = plan({"base": in_folder(folder)}, hookpoint="model.layers.1.mlp.down_proj.input")
    assert run_input(run, "base").d_in is None
    sae = sae_folder("sae", d_in=24, metadata=hook)
    check_on_disk(plan({"base": in_folder(folder)}, hookpoint="model.layers.1.mlp.down_proj.input", base=sae))


def test_a_published_sae_is_recognised_and_its_own_files_are_the_job_s_inputs():
    folder = Path("SAE-Res-Qwen3-1.7B-Base-W32K-L0_50")
    folder.mkdir()
    for layer in range(3):
        (folder / f"layer{layer}.sae.pt").touch()
    run = plan({"base": in_folder(model_folder("base"))}, hookpoint="model.layers.1.output", base=str(folder))
    with pytest.raises(
        InputError,
        match=r"^saes\.import \(for base\.seed0\): .* holds 3 SAEs .*; name the file of one",
    ):
        check_on_disk(run)
    run.config["saes"]["models"]["base"]["seed0"]["import"]["file"] = "layer0.sae.pt"
    with pytest.raises(InputError, match=r"trained at 'blocks.0.hook_resid_post'.*set it to 'model.layers.0.output'"):
        check_on_disk(run)
    run.config["saes"]["models"]["base"]["seed0"]["import"]["file"] = "layer1.sae.pt"
    assert any("trained on the model 'Qwen/Qwen3-1.7B-Base'" in sentence for sentence in check_on_disk(run))
    assert run.paths.imported_sae(Wildcards(model="base", sae="seed0")) == [f"{folder}/layer1.sae.pt"]


def test_the_run_s_tokenizer_is_read_once(monkeypatch: pytest.MonkeyPatch):
    read = []
    monkeypatch.setattr(
        "saelineage.plan.brought.read_tokenizer", lambda folder: read.append(str(folder)) or read_tokenizer(folder)
    )
    run = plan({name: in_folder(model_folder(name)) for name in "abc"})
    write_json(Path("tokenizer", "tokenizer.json"), {"model": {"vocab": tokens(WORDS), "merges": []}})
    assert check_on_disk(run) == []
    assert read == ["tokenizer"]


ASK = """
import json, sys
from saelineage.errors import InputError
from saelineage.plan.brought import check_on_hub
from tests.unit.plan.test_brought import in_folder, model_folder, plan
where = {"repo": sys.argv[1], "revision": "main"}
models = {"base": {"hub": where}}
if "adapter" in sys.argv[1]:
    models = {"base": in_folder(model_folder("base")), "tuned": {"adapter": where | {"parent": "base"}}}
try:
    print(json.dumps(check_on_hub(plan(models), lambda path: sys.argv[2] == path)))
except InputError as error:
    print(json.dumps(str(error)))
"""


def test_models_of_the_hub_are_checked_before_weights_are_fetched_unless_they_are_here_or_the_hub_is_away(
    tmp_path: Path,
):
    short = {"config.json": json.dumps(LLAMA | {"max_position_embeddings": 16}).encode(), "model.safetensors": b""}
    here = "results/mine/models/base/manifest.json"
    with running_hub() as hub:
        hub.push("own/short", short, kind="models")
        environment = hub.environment(tmp_path)
        environment["PYTHONPATH"] += f":{SCRIPTS.parents[1]}"

        def ask(repo: str, path: str) -> list[str] | str:
            command = [sys.executable, "-c", ASK, repo, path]
            return json.loads(subprocess.check_output(command, env=environment, cwd=tmp_path, text=True))

        assert ask("own/short", here) == []
        assert hub.requests == []
        assert "models.base: tokens.n_ctx must be at most 16" in ask("own/short", "")
        assert not [request for request in hub.requests if "safetensors" in request]
        adapter = {"adapter_config.json": b'{"peft_type": "IA3"}', "adapter_model.safetensors": b""}
        hub.push("own/adapter", adapter, kind="models")
        assert "peft_type must be LORA" in ask("own/adapter", "")
        assert not [request for request in hub.requests if "safetensors" in request]
        hub.fault = lambda request: "close"
        (sentence,) = ask("own/short", "")
    assert sentence.startswith("what comes from the hub was not checked before the first job, because models.base: ")


def test_files_that_a_corpus_leaves_out_are_said_until_it_is_prepared():
    write_json(Path("web", "a.jsonl"), {"text": "one"})
    Path("web", "README.md").write_text("about")
    run = plan({"base": in_folder(model_folder("base"))})
    run.config["corpora"] = {"web": {"source": "files", "path": "web", "glob": "**/*"}}
    (sentence,) = check_on_disk(run)
    assert "1 of its 2 files are left out (README.md)" in sentence
    assert check_on_disk(run, "results/mine/corpora/web/manifest.json") == []


CHAT_ADDED = [
    {"id": 4, "content": "<|im_start|>", "special": True},
    {"id": 5, "content": "<|im_end|>", "special": True},
]


def chat_plan(unshared: str, vocab_size: int, *, messages: bool = True) -> Plan:
    """A run whose tokenizer has two control tokens more than its model."""
    made = plan({"base": {"path": {"folder": model_folder("base", vocab_size=vocab_size)}}})
    tokenizer = {"model": {"type": "BPE", "vocab": tokens(WORDS), "merges": []}, "added_tokens": CHAT_ADDED}
    write_json(Path("tokenizer/tokenizer.json"), tokenizer)
    Path("tokenizer/chat_template.jinja").write_text("<|im_start|>{{ messages }}<|im_end|>")
    if messages:
        made.config["corpora"]["lua"]["messages_column"] = "messages"
    made.config["tokens"]["unshared"] = unshared
    return made


@pytest.mark.parametrize("vocab_size", [4, 8], ids=["no row", "a row of the padding"])
def test_control_tokens_that_a_model_does_not_share_are_refused_or_left_out(vocab_size: int):
    message = r"^models\.base: the chat template writes tokens that the model does not share, .*: 2 \(<\|im_start\|>, "
    with pytest.raises(InputError, match=message):
        check_on_disk(chat_plan("refuse", vocab_size))
    assert "tokens.unshared counts where the text holds them: 2" in check_on_disk(chat_plan("leave_out", vocab_size))[0]
    check_on_disk(chat_plan("refuse", vocab_size, messages=False))  # whether plain text holds them is not known yet


def test_an_embedding_with_too_few_rows_for_the_tokenizer_is_refused():
    message = r"^models\.base: the model must have an embedding row for every token .*, but has 3 rows, too few for 1 "
    with pytest.raises(InputError, match=message):
        check_on_disk(plan({"base": {"path": {"folder": model_folder("base", vocab_size=3)}}}))


def test_trained_saes_of_one_seed_are_said_to_identify_nothing():
    one = plan({"base": in_folder("base")})
    assert without_seeds(one) == (
        "saes.seeds is [0], so nothing will tell which features are identified, that is, found again from other seeds, "
        "and the verdicts will be over all features; give three seeds to know"
    )
    imported = plan({"base": in_folder("base")}, base=sae_folder("sae"))
    assert without_seeds(imported) is None
