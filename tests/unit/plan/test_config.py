"""The config: defaults are filled in, and every mistake is one sentence with its key and a remedy."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

import saelineage
from saelineage.errors import InputError
from saelineage.plan.checks import check, check_files
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.load import load_plan
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import read_yaml

CONFIGS = Path(saelineage.__file__).parents[3] / "config"
SCHEMA = read_schema(CONFIGS / "config.schema.yaml")

SMALL = """
run: tiny
corpora:
  english: {source: sample, kind: english}
  lua: {source: sample, kind: lua, max_bytes: 1000}
tokenizer: {source: train, vocab_size: 300, corpora: [english, lua]}
models:
  base: {pretrain: {corpora: {english: 0.5, lua: 0.5}, n_tokens: 100000}}
  lua: {finetune: {parent: base, corpora: {lua: 1.0}, epochs: 1}}
  english: {finetune: {parent: base, corpora: {english: 1}, epochs: 0.5}}
  both: {merge: {parents: [lua, english]}}
saes: {seeds: [0, 1], models: {lua: {k: 16, seed1: {k: 24}}}}
sweeps: {both: {model: both}}
"""


def small() -> dict:
    return yaml.safe_load(SMALL)


def changed(path: str, value: object) -> dict:
    """The small config with one key set, or removed if the value is `...`."""
    config = small()
    *folders, last = path.split("/")
    inner = config
    for key in folders:
        inner = inner.setdefault(key, {})
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return config


def load(config: dict) -> dict:
    """A config with its defaults, after all checks that need no files."""
    plan = Plan(load_config(config, SCHEMA))
    check(plan)
    return plan.config


def error_of(config: dict) -> str:
    with pytest.raises(InputError) as raised:
        load(config)
    return str(raised.value)


def test_every_default_is_filled_in():
    filled = load(small())
    training = {
        "batch_rows": 16,
        "accumulate": 1,
        "gradient_checkpointing": False,
        "precision": "float32",
        "learning_rate": 0.001,
        "warmup_steps": 0,
        "scheduler": "cosine",
        "weight_decay": 0.1,
        "adam_betas": [0.9, 0.999],
        "max_grad_norm": 1.0,
        "seed": 0,
        "save_steps": 500,
        "bf16": "auto",
    }
    shape = {"n_layers": 1, "d_model": 128, "d_mlp": 256, "n_heads": 4, "n_kv_heads": 2}
    shape |= {"rms_norm_eps": 0.000001, "rope_theta": 10000.0, "tie_embeddings": False}
    sae = {"import": None, "architecture": "topk", "expansion_factor": 8, "k": 32}
    sae |= {"matryoshka_fractions": [0.03125, 0.09375, 0.21875, 0.46875], "bandwidth": 0.3, "initial_threshold": 1.0}
    sae |= {"sparsity_coefficient": 1.0, "target_l0": None, "sparsity_warmup_fraction": 0.2}
    sae |= {"aux_coefficient": 0.03125, "dead_after_tokens": 100000, "resample_every_tokens": None}
    sae |= {"precision": "auto", "max_norm_ratio": 10, "shuffle_seed": None, "checkpoint_steps": 500}
    sae |= {"n_tokens": None, "batch_tokens": 1024}
    sae |= {"learning_rate": 0.001, "adam_betas": [0.9, 0.999], "warmup_fraction": 0.05, "decay_fraction": 0.2}
    lengths = {"n_tokens": None, "epochs": None}
    tenths = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    of_methods = dict.fromkeys(("t", "weights", "lambda", "density", "trim", "normalize", "rescale", "q", "gamma"))
    of_methods |= dict.fromkeys(("mask", "alpha", "norms", "seed", "lines", "base", "dtype", "chosen_on"))
    assert {
        key: filled[key]
        for key in small() | {"tokens": 0, "batch_rows": 0, "model_dtype": 0, "splits": 0, "corpora_dir": 0}
    } == {
        "run": "tiny",
        "corpora_dir": ".",
        "corpora": {
            "english": {"source": "sample", "kind": "english", "max_bytes": 2000000, "seed": 0},
            "lua": {"source": "sample", "kind": "lua", "max_bytes": 1000, "seed": 0},
        },
        "splits": {"validation": 0.08, "probe": 0.12},
        "tokenizer": {
            "source": "train",
            "vocab_size": 300,
            "corpora": ["english", "lua"],
            "max_bytes_per_corpus": 20000000,
        },
        "tokens": {
            "n_ctx": 128,
            "special": "text",
            "unshared": "refuse",
            "max_tokens": {"train": None, "validation": None, "probe": None},
            "max_document_share": 0.02,
        },
        "batch_rows": 16,
        "model_dtype": "auto",
        "models": {
            "base": {
                "pretrain": training | shape | lengths | {"corpora": {"english": 0.5, "lua": 0.5}, "n_tokens": 100000}
            },
            "lua": {"finetune": training | lengths | {"parent": "base", "corpora": {"lua": 1.0}, "epochs": 1}},
            "english": {"finetune": training | lengths | {"parent": "base", "corpora": {"english": 1}, "epochs": 0.5}},
            "both": {"merge": {"method": "slerp", "parents": ["lua", "english"], "vocabulary": "refuse"} | of_methods},
        },
        "saes": sae
        | {
            "corpora": None,
            "seeds": [0, 1],
            "anchored": {},
            "hookpoints": {},
            "anchored_rate": 0.5,
            "one_pass": False,
            "tensorboard": False,
            # Overrides hold what was written and no defaults, which would hide the stage's settings.
            "models": {"lua": {"k": 16, "seed1": {"k": 24}}},
        },
        "sweeps": {"both": {"model": "both", "over": {"t": tenths}, "best_by": "mean_loss"}},
    }


def test_each_source_of_text_has_its_own_defaults():
    files = {"source": "files", "path": "lua.txt"}
    hub = {"source": "hub", "repo": "a/b", "revision": "main"}
    rows = {"text_column": "text", "messages_column": None, "max_bytes": None}
    of_hub = {"config": None, "split": "train", "max_rows": None, "retries": 5}

    def filled(corpus: dict) -> dict:
        return load(changed("corpora/lua", corpus))["corpora"]["lua"]

    assert filled({"source": "stdlib"}) == {"source": "stdlib", "max_bytes": None}
    assert filled(files) == files | rows | {"glob": "**/*", "separator": None}
    assert filled(hub) == hub | rows | of_hub


def test_every_shipped_config_is_valid_and_a_filled_config_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "models" / "smollm2").mkdir(parents=True)  # whose type decides what its short names of places mean
    (tmp_path / "models" / "smollm2" / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 30}')
    monkeypatch.chdir(tmp_path)
    shipped = [path for path in CONFIGS.glob("*.yaml") if path.stem not in ("config.schema", "compare")]
    assert len(shipped) >= 5
    for given in (small(), *map(read_yaml, shipped)):
        filled = load(given)
        assert load(deepcopy(filled)) == filled


def test_loading_changes_neither_the_given_config_nor_the_schema():
    given, schema = small(), deepcopy(SCHEMA)
    load_config(given, schema)["saes"]["seeds"].append(9)
    load_config({**given, "saes": {}}, schema)["saes"]["seeds"].append(9)
    assert given == small()
    assert schema == SCHEMA


def test_a_plan_is_loaded_from_what_snakemake_read_and_the_files_are_read_again_for_duplicate_keys(tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(SMALL)
    assert load_plan(small(), [config], CONFIGS / "config.schema.yaml").name == "tiny"
    config.write_text(SMALL + "run: other\n")
    with pytest.raises(InputError, match="key 'run' occurs twice"):
        load_plan(small() | {"run": "other"}, [config], CONFIGS / "config.schema.yaml")


def places_of_numbers(block: object, place: tuple = ()) -> list[tuple]:
    """The keys on the way to every number in a config."""
    inner = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ()
    is_number = isinstance(block, int | float) and not isinstance(block, bool)
    return [place] * is_number + [deeper for key, value in inner for deeper in places_of_numbers(value, (*place, key))]


def test_an_exponent_that_yaml_reads_as_text_is_named_at_every_key_that_holds_a_number():
    config = load(small())
    places = places_of_numbers(config)
    assert len(places) > 80
    for *way, last in places:
        wrong = deepcopy(config)
        block = wrong
        for key in way:
            block = block[key]
        block[last] = "1e-3"
        with pytest.raises(InputError, match=r"YAML reads 1e-3 as text; write '?0\.001") as raised:
            load_config(wrong, SCHEMA)
        assert str(raised.value).startswith(".".join(map(str, (*way, last))))


def test_models_from_elsewhere_can_be_part_of_the_lineage():
    config = small()
    config["models"]["theirs"] = {"hub": {"repo": "a/b", "revision": "main"}}
    config["models"]["own"] = {"path": {"folder": "models/own", "parents": ["theirs"]}}
    config["models"]["tuned"] = {"finetune": {"parent": "own", "corpora": {"lua": 1.0}, "n_tokens": 4096}}
    # Their shape is unknown until they are read, so merges of them pass.
    config["models"]["mixed"] = {"merge": {"parents": ["tuned", "lua"]}}
    config["lineage"] = {"instruments": ["independent"]}
    filled = load(config)
    assert filled["models"]["theirs"] == {"hub": {"repo": "a/b", "revision": "main", "parents": []}}
    own = {"folder": "models/own", "parents": ["theirs"], "dequantise": False, "follow_links": False}
    assert filled["models"]["own"] == {"path": own}


@pytest.mark.parametrize(
    ("path", "value", "key", "said"),
    [
        ("saes/kk", 8, "saes", ["unknown key 'kk'; did you mean k?", "config/config.schema.yaml"]),
        ("corpra", {}, "config", ["unknown key 'corpra'; did you mean corpora?"]),
        (
            "seeds",
            [0],
            "config",
            ["unknown key 'seeds'; did you mean saes.seeds or crosscoder.seeds or difference_saes.seeds?"],
        ),
        ("zzzz", 8, "config", ["unknown key 'zzzz'; config/config.schema.yaml lists every key"]),
        ("models/lua/finetune/parnet", "base", "models.lua.finetune", ["did you mean parent?"]),
        ("saes", "{seeds: [0]", "saes", ["not of type 'object' (it is text, because YAML", "close every bracket"]),
        ("saes/k", -3, "saes.k", ["-3 is less than the minimum of 1; correct it; meaning of the key: Latents kept"]),
        ("models/lua/finetune/parent", ..., "models.lua.finetune", ["'parent' is a required property", "add it"]),
        ("models/base/pretrain/learning_rate", "1e-3", "models.base.pretrain.learning_rate", ["write 0.001"]),
        ("models/base/pretrain/n_tokens", "1e6", "models.base.pretrain.n_tokens", ["write 1000000"]),
        ("tokens/n_ctx", 128.0, "tokens.n_ctx", ["128.0 is not of type 'integer'", "write 128", "Tokens per row"]),
        ("tokens/n_ctx", True, "tokens.n_ctx", ["True is not of type 'integer'"]),
        ("models/both/merge/t", float("nan"), "models.both.merge.t", ["nan is not of type 'number'"]),
        ("lineage/threshold", 1.5, "lineage.threshold", ["1.5", "maximum of 1", "Pearson r"]),
        ("corpora/lua/kind", "ruby", "corpora.lua.kind", ["'ruby'", "['english', 'stories', 'lua']"]),
        ("saes/seeds", [0, 0], "saes.seeds", ["[0, 0] has non-unique elements"]),
        (
            "activations/hookpoint",
            "model.layers.0.mlp",
            "activations.hookpoint",
            ["does not match", ".input or .output"],
        ),
        ("run", "../elsewhere", "run", ["'../elsewhere'", "lower-case letters and digits", "write 'elsewhere'"]),
        ("run", "x" * 500 + "/", "run", [f"'{'x' * 76}...;", f"write '{'x' * 64}'"]),
        (
            "models/lua__english",
            {"merge": {"parents": ["lua", "english"]}},
            "models",
            ["'lua__english'", "write 'lua-english'"],
        ),
        ("models/Llama-2.1", {"path": {"folder": "x"}}, "models", ["'Llama-2.1'", "write 'llama-2-1'"]),
        ("corpora/日本", {"source": "stdlib"}, "corpora", ["'日本'", "lower-case letters", "give it another one"]),
        (
            "models/both/merge/method",
            "della",
            "models.both.merge.method",
            ["'della'", "breadcrumbs_ties, graft", "mergekit", "{path: {folder: FOLDER, parents: [MODEL, MODEL]}}"],
        ),
        ("models/both/merge/method", "tie", "models.both.merge.method", ["did you mean ties?"]),
        (
            "models/lua/merge",
            {"parents": ["base", "english"]},
            "models.lua",
            [
                "exactly one way (pretrain, finetune, merge, adapter, hub, path, reinitialise, twin, continued,",
                "got ['finetune', 'merge']",
            ],
        ),
    ],
)
def test_the_schema_refuses_a_wrong_key_type_or_value(path: str, value: object, key: str, said: list[str]):
    message = error_of(changed(path, value))
    assert message.startswith(f"{key}: ")
    assert [part for part in said if part not in message] == []


ADAPTER = {"folder": "somewhere", "parent": "base"}
CONTRADICTIONS = {
    # lineage
    "models.lua.finetune: parent: 'bass' is not among models": ("models/lua/finetune/parent", "bass"),
    "models.lua.finetune: 'lua' cannot be its own parent": ("models/lua/finetune/parent", "lua"),
    "models: models ['both', 'lua'] are made from each other": ("models/lua/finetune/parent", "both"),
    "models.lua.reinitialise: like: 'bass' is not among models": ("models/lua", {"reinitialise": {"like": "bass"}}),
    "models.lua.reinitialise: like: 'lua' is also re-init": ("models/lua", {"reinitialise": {"like": "lua"}}),
    "models.lua.reinitialise: like: 'both' descends from": ("models/lua", {"reinitialise": {"like": "both"}}),
    "models.lua.adapter: parent: 'bass' is not among models": ("models/lua", {"adapter": ADAPTER | {"parent": "bass"}}),
    "models.lua.adapter: must name a folder, or a repo with its revision, got ['folder', 'repo']": (
        *("models/lua", {"adapter": ADAPTER | {"repo": "a/b"}}),
    ),
    "models: 'shifted' is the name of a random control": ("models/shifted", {"path": {"folder": "somewhere"}}),
    "models: 'lua_rotated' ends in the name of a random control": (
        "models/lua_rotated",
        {"path": {"folder": "somewhere"}},
    ),
    # corpora
    "corpora: 'pooled' is the name of all corpora together": ("corpora/pooled", {"source": "stdlib"}),
    "tokenizer.corpora: 'luau' is not among corpora (english, lua)": ("tokenizer/corpora", ["luau"]),
    "models.lua.finetune.corpora: 'luau' is not among corpora": ("models/lua/finetune/corpora", {"luau": 1}),
    "saes.corpora (for lua.seed0): 'luau' is not among corpora": ("saes/models/lua/corpora", ["luau"]),
    "sweeps.both.corpora: 'luau' is not among corpora": ("sweeps/both/corpora", ["luau"]),
    "labels.syntax: 'luau' is not among corpora": ("labels/syntax", {"luau": "lua"}),
    "models.base.pretrain.corpora: shares must sum to 1": (
        "models/base/pretrain/corpora",
        {"english": 0.5, "lua": 0.4},
    ),
    "saes.hookpoints: 'late' is not among activations.hookpoints (mlp)": ("saes/hookpoints", {"late": {"k": 4}}),
    "activations.hookpoints: each must be another place, but 'a' and 'b' are both": (
        "activations",
        {"hookpoints": {"a": "model.layers.0.output", "b": "model.layers.0.output"}},
    ),
    "activations: either hookpoint (one place) or hookpoints": (
        "activations",
        {"hookpoint": "model.layers.0.output", "hookpoints": {"a": "model.layers.0.output"}},
    ),
    "splits: the sum of validation and probe must be less than 1": ("splits", {"validation": 0.5, "probe": 0.5}),
    "corpora.talk.messages_column: needs a tokenizer with a chat template": (
        "corpora/talk",
        {"source": "hub", "repo": "a/b", "revision": "main", "messages_column": "messages"},
    ),
    # tokens: 16 rows of 128 tokens are 2048, 4 shards of one row are 512
    "models.base.pretrain.n_tokens: must be at least batch_rows x": ("models/base/pretrain/n_tokens", 2047),
    "models.base.pretrain.accumulate: must divide batch_rows (16), but is 3": ("models/base/pretrain/accumulate", 3),
    "tokens.max_tokens.probe: must be at least n_ctx (128)": ("tokens/max_tokens/probe", 127),
    "activations.max_tokens: must be at least n_shards x n_ctx": ("activations", {"max_tokens": 511, "n_shards": 4}),
    "activations.buffer_tokens: must be at least tokens.n_ctx (128)": (
        "activations",
        {"keep": "stream", "buffer_tokens": 127},
    ),
    "activations.buffer_tokens: must be at least saes.batch_tokens (1024 for base.seed0), not 1023;": (
        "activations",
        {"keep": "stream", "buffer_tokens": 1023},
    ),
    # training
    "models.base.pretrain: must have exactly one of n_tokens and epochs": ("models/base/pretrain/n_tokens", ...),
    "models.lua.finetune: must have exactly one of n_tokens and epochs": ("models/lua/finetune/n_tokens", 5000),
    "models.base.pretrain: d_model (132) must be divisible by 2 x n_heads (4)": ("models/base/pretrain/d_model", 132),
    "models.base.pretrain: n_heads (4) must be divisible by n_kv_heads (3)": ("models/base/pretrain/n_kv_heads", 3),
    "activations.hookpoint: 'model.layers.1.mlp.input' needs layer 1": (
        "activations/hookpoint",
        "model.layers.1.mlp.input",
    ),
    # SAEs
    "saes.models: 'luau' is not among models": ("saes/models/luau", {"k": 8}),
    "saes.models.lua: 'seed2' is not among the SAEs of that model": ("saes/models/lua/seed2", {"k": 8}),
    "saes.sparsity_coefficient (for base.seed0): must be above 0 with": (
        "saes",
        {"architecture": "relu", "target_l0": 32, "sparsity_coefficient": 0},
    ),
    "saes.import (for lua.seed1): must name a folder, or a repo with its revision": (
        "saes/models/lua/seed1/import",
        {"repo": "b/c"},
    ),
    "saes.import (for lua.seed0): must name a folder": ("saes/models/lua/import", {"folder": "a", "subfolder": "b"}),
    "saes.models.lua.from_base: only SAEs of saes.seeds can be imported": (
        "saes/models/lua/from_base",
        {"import": {"folder": "a"}},
    ),
    "saes.anchored: SAEs that start from a parent's SAE cannot be imported": (
        "saes/anchored",
        {"import": {"folder": "a"}},
    ),
    "saes.architecture (for base.from_base): must be topk": ("saes/anchored", {"architecture": "relu"}),
    "saes.expansion_factor (for lua.from_base): must be 8": ("saes/models/lua/expansion_factor", 16),
    # comparisons
    "lineage.controls.lua: 'scratch' is not among models": ("lineage/controls", {"lua": ["scratch"]}),
    "lineage.controls: 'base' has no parent": ("lineage/controls", {"base": ["english"]}),
    "lineage.controls.both: a control cannot be 'both' or a model that it": ("lineage/controls", {"both": ["lua"]}),
    "lineage.second_anchor: the leading instrument must be anchored": (
        "lineage",
        {"instruments": ["independent"], "second_anchor": True},
    ),
    "lineage.stages: 'luau' is not among models": ("lineage/stages", {"luau": ["lua"]}),
    "lineage.stages.lua: 'luau' is not among corpora": ("lineage/stages", {"lua": ["luau"]}),
    "lineage.stages: 'both' must be a lineage model with one parent": ("lineage/stages", {"both": ["lua"]}),
    "lineage.stages: the leading instrument must be anchored": (
        "lineage",
        {"instruments": ["independent"], "stages": True},
    ),
    "sweeps.both.model: 'neither' is not among models": ("sweeps/both/model", "neither"),
    "sweeps.both.model: must be a merged model, but 'lua' is not": ("sweeps/both/model", "lua"),
    "sweeps.both.over.density: slerp must not have it": ("sweeps/both/over", {"density": [0.1, 0.2]}),
    "models.both.merge.t.from_sweep: 'some' is not among sweeps": ("models/both/merge/t", {"from_sweep": "some"}),
    "models.other.merge.t.from_sweep: must name a sweep that varies t of 'other', but 'both' varies t of 'both'": (
        *("models/other", {"merge": {"parents": ["lua", "english"], "t": {"from_sweep": "both"}}}),
    ),
    "models.both.merge.base: 'bass' is not among models": (
        *("models/both", {"merge": {"method": "ties", "parents": ["lua", "english"], "base": "bass"}}),
    ),
    "models: models ['both', 'on'] are made from each other in a cycle": (
        "models",
        {
            "base": {"pretrain": {"corpora": {"english": 0.5, "lua": 0.5}, "n_tokens": 100000}},
            "lua": {"finetune": {"parent": "base", "corpora": {"lua": 1.0}, "epochs": 1}},
            "both": {"merge": {"method": "ties", "parents": ["lua", "base"], "base": "on"}},
            "on": {"finetune": {"parent": "both", "corpora": {"lua": 1.0}, "epochs": 1}},
        },
    ),
    "models.both.merge.density: slerp must not have it": ("models/both/merge/density", 0.2),
    "models.both.merge.parents: slerp must have 2, not 1": ("models/both/merge/parents", ["lua"]),
}
"""How the message begins, by what is wrong with the config."""


def test_parts_of_a_config_that_contradict_each_other_are_refused_with_a_remedy():
    messages = {start: error_of(changed(*change)) for start, change in CONTRADICTIONS.items()}
    assert {start: message for start, message in messages.items() if not message.startswith(start)} == {}
    assert [message for message in messages.values() if "; " not in message] == []


def test_an_import_has_defaults_wherever_it_is_given():
    for path in ("saes", "saes/models/lua", "saes/models/lua/seed1"):
        config = changed(f"{path}/import", {"folder": "sae"})
        config["saes"]["seeds"] = [1]
        block = filled = load(config)
        for key in f"{path}/import".split("/"):
            block = block[key]
        assert block == {"folder": "sae", "format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.15}
        assert filled["saes"]["models"]["lua"]["seed1"].keys() <= {"k", "import"}
        assert load(filled) == filled


def test_a_merge_can_be_anchored_if_its_parents_descend_from_one_root():
    config = changed("models/english", {"path": {"folder": "somewhere"}})
    message = error_of(config)
    assert message.startswith("lineage.instruments: ")
    assert "'both' descends from english, base; use independent alone" in message
    config["lineage"] = {"instruments": ["independent"]}
    assert load(config)
    config["lineage"] |= {"budgets": [1000]}
    assert error_of(config).startswith("lineage.instruments: ")


def test_saes_of_one_pass_see_the_same_batches_and_are_not_imported():
    config = small()
    config["saes"] = {"one_pass": True, "models": {"lua": {"seed1": {"batch_tokens": 512}}}}
    message = error_of(config)
    assert message.startswith("saes.batch_tokens: must be the same for all SAEs of 'lua' with saes.one_pass")
    assert "set it for the model, or set one_pass to false" in message
    config["saes"]["models"]["lua"]["seed1"] = {"import": {"folder": "sae"}}
    assert error_of(config).startswith("saes.one_pass: trains all SAEs, but lua.seed1 has `import`; leave out one")


def test_an_sae_from_the_hub_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    source = {"repo": "a/b", "revision": "main", "subfolder": "c/d"}
    check_files(Plan(load(changed("saes/models/lua/seed1/import", source))))


def test_two_saes_of_one_model_cannot_be_the_same_import():
    expected = "saes.import: lua.seed0 and lua.seed1 would be the same SAE"
    config = changed("saes/models/lua/import", {"folder": "a"})
    message = error_of(config)
    assert message.startswith(expected)
    assert "import another for one of them, train one (import: null), or leave one seed" in message
    # Another limit does not make it another SAE; another folder, or none, does.
    config["saes"]["models"]["lua"]["seed1"] = {"import": {"folder": "a", "max_fvu": 0.5}}
    assert error_of(config).startswith(expected)
    for source in ({"folder": "b"}, None):
        config["saes"]["models"]["lua"]["seed1"] = {"import": source}
        assert load(config)
    # So does another file of a folder.
    config["saes"]["models"]["lua"] = {
        f"seed{n}": {"import": {"folder": "a", "file": f"layer{n}.sae.pt"}} for n in (0, 1)
    }
    assert load(config)
    config["saes"]["models"]["lua"]["seed1"]["import"]["file"] = "layer0.sae.pt"
    assert error_of(config).startswith(expected)
    # Different models may share one.
    shared = changed("saes/import", {"folder": "a"})
    shared["saes"] |= {"seeds": [0], "models": {}}
    assert load(shared)


def test_models_of_different_shapes_cannot_be_merged():
    config = small()
    config["models"]["wide"] = {"pretrain": {"corpora": {"lua": 1.0}, "epochs": 1, "d_mlp": 512}}
    # A fine-tune has the shape of the model it starts from.
    config["models"]["wider"] = {"finetune": {"parent": "wide", "corpora": {"lua": 1.0}, "epochs": 1}}
    config["models"]["mixed"] = {"merge": {"parents": ["lua", "wider"]}}
    message = error_of(config)
    assert message.startswith("models.mixed.merge: parents and base must have the same shape")
    assert "d_mlp is 256 in 'lua' and 512 in 'wider'; merge models of one shape" in message


def test_values_at_the_limit_are_accepted():
    deeper = changed("models/base/pretrain/n_layers", 3)
    deeper["activations"] = {"hookpoint": "model.layers.2.mlp.down_proj.input"}
    place = "model.layers.2.mlp.down_proj.input"
    assert load(deeper)["activations"]["hookpoints"] == {place: place}
    rounded = changed("models/base/pretrain/corpora", {"english": 0.1 + 0.2, "lua": 0.7})
    assert load(rounded)["models"]["base"]["pretrain"]["corpora"]["english"] == 0.1 + 0.2


def test_files_and_folders_must_be_where_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lua").mkdir()
    (tmp_path / "lua" / "a.lua").write_text("print()")
    (tmp_path / "lua.txt").write_text("print()")

    def files(**corpus: str) -> dict:
        return changed("corpora/lua", {"source": "files", **corpus}) | {"corpora_dir": str(tmp_path)}

    check_files(Plan(load(files(path="lua.txt"))))
    mistakes = {
        f"corpora.lua.path: '{tmp_path}/lau' does not exist": files(path="lau"),
        f"corpora.lua.path: no file in '{tmp_path}/lua' matches '*.txt'": files(path="lua", glob="*.txt"),
        f"corpora.lua.path: '{tmp_path}/lua/a.lua' must be one of .txt, .csv": files(path="lua/a.lua"),
        "models.own.path.folder: 'nowhere' is not a folder": changed("models/own", {"path": {"folder": "nowhere"}}),
        "saes.import.folder (for lua.seed1): 'nowhere' is not a folder": changed(
            "saes/models/lua/seed1/import", {"folder": "nowhere"}
        ),
        "models.own.adapter.folder: 'nowhere' is not a folder": changed(
            "models/own", {"adapter": {"folder": "nowhere", "parent": "base"}}
        ),
        "tokenizer.path: 'nowhere' is not a folder": changed("tokenizer", {"source": "path", "path": "nowhere"}),
    }
    for start, config in mistakes.items():
        with pytest.raises(InputError, match=r"; (correct|convert)") as raised:
            check_files(Plan(load(config)))
        assert str(raised.value).startswith(start)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = small() | {"corpora_dir": "~"}
    config["corpora"]["lua"] = {"source": "files", "path": "~/texts/lua.txt"}
    config["tokenizer"] = {"source": "path", "path": "~/tokenizer"}
    config["models"]["own"] = {"path": {"folder": "~/models/own"}}
    config["saes"]["models"]["own"] = {
        "import": {"folder": "~/saes/0"},
        "seed1": {"import": {"folder": "~/saes/1"}},
    }
    config["labels"] = {"explanations": {"model": "words", "request": {"path": "~/kept"}}}
    filled = load(config)
    assert filled["corpora_dir"] == "/home/me"
    assert filled["corpora"]["lua"]["path"] == "/home/me/texts/lua.txt"
    assert filled["tokenizer"]["path"] == "/home/me/tokenizer"
    assert filled["models"]["own"]["path"]["folder"] == "/home/me/models/own"
    assert filled["saes"]["models"]["own"]["import"]["folder"] == "/home/me/saes/0"
    assert filled["saes"]["models"]["own"]["seed1"]["import"]["folder"] == "/home/me/saes/1"
    assert filled["labels"]["explanations"]["request"] == {"path": "~/kept"}


def test_a_corpus_under_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lua.txt").write_text("print()")
    check_files(Plan(load(changed("corpora/lua", {"source": "files", "path": "~/lua.txt"}))))
    with pytest.raises(InputError, match=f"corpora.lua.path: '{tmp_path}/lau.txt' does not exist"):
        check_files(Plan(load(changed("corpora/lua", {"source": "files", "path": "~/lau.txt"}))))
    # A name with a tilde further on is itself.
    assert load(changed("corpora/lua", {"source": "files", "path": "a~/b"}))["corpora"]["lua"]["path"] == "a~/b"


def test_a_hookpoint_s_name_must_leave_room_for_that_of_a_pair_in_the_name_of_a_log():
    long, config = "m" * 55, small()
    child = {"finetune": {"parent": long, "corpora": {"lua": 1.0}, "epochs": 1}}
    config["models"] = {long: config["models"]["base"], long.replace("m", "n"): child}
    config["saes"]["models"], config["sweeps"] = {}, {}
    config["activations"] = {"hookpoints": {"h" * 99: "model.layers.0.output"}}
    assert error_of(config).startswith("activations.hookpoints: logs would be called")


def test_too_many_models_seeds_and_budgets_are_refused_before_they_are_enumerated():
    config = small()
    config["saes"] = {"seeds": list(range(20))}
    config["lineage"] = {"budgets": list(range(1000, 1020))}
    tuned = {"finetune": {"parent": "base", "corpora": {"lua": 1.0}, "epochs": 1}}
    models = {"base": config["models"]["base"]} | {f"m{n}": tuned for n in range(99)}
    message = error_of(config | {"models": models, "sweeps": {}})
    assert message.startswith("saes.seeds: models x seeds x (1 + lineage.budgets) x hookpoints must be at most 5000")
    assert "100 x 20 x 21 x 1 are 42000" in message
