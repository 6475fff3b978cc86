"""The config: defaults are filled in, and every mistake is one sentence that names its key."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

import saelineage
from saelineage.errors import InputError
from saelineage.plan.checks import check, check_files
from saelineage.plan.config import load_config
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import SECRET_KEY, read_yaml

CONFIGS = Path(saelineage.__file__).parents[3] / "config"
SCHEMA = read_yaml(CONFIGS / "config.schema.yaml")

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
    """The small config with one key set, or left out where the value is `...`."""
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


def load(config: dict, schema: dict) -> dict:
    """A config with its defaults, once it has passed the checks that need no files."""
    plan = Plan(load_config(config, schema))
    check(plan)
    return plan.config


def error_of(config: dict) -> str:
    with pytest.raises(InputError) as raised:
        load(config, SCHEMA)
    return str(raised.value)


def test_every_default_is_filled_in():
    filled = load(small(), SCHEMA)
    training = {
        "batch_rows": 16,
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
    assert {key: filled[key] for key in small() | {"tokens": 0, "batch_rows": 0, "splits": 0, "corpora_dir": 0}} == {
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
        "tokens": {"n_ctx": 128, "max_tokens": {"train": None, "validation": None, "probe": None}},
        "batch_rows": 16,
        "models": {
            "base": {
                "pretrain": training | shape | lengths | {"corpora": {"english": 0.5, "lua": 0.5}, "n_tokens": 100000}
            },
            "lua": {"finetune": training | lengths | {"parent": "base", "corpora": {"lua": 1.0}, "epochs": 1}},
            "english": {"finetune": training | lengths | {"parent": "base", "corpora": {"english": 1}, "epochs": 0.5}},
            "both": {"merge": {"method": "slerp", "parents": ["lua", "english"], "t": 0.5, "dtype": None}},
        },
        "saes": sae
        | {
            "corpora": None,
            "seeds": [0, 1],
            "anchored": {},
            "one_pass": False,
            "tensorboard": False,
            # Overrides hold what was written and no defaults, which would hide the stage's settings.
            "models": {"lua": {"k": 16, "seed1": {"k": 24}}},
        },
        "sweeps": {"both": {"model": "both", "t": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}},
    }


@pytest.mark.parametrize(
    ("corpus", "filled"),
    [
        ({"source": "stdlib"}, {"max_bytes": None}),
        (
            {"source": "files", "path": "lua.txt"},
            {"glob": "**/*", "text_column": "text", "separator": None, "max_bytes": None},
        ),
        (
            {"source": "hub", "repo": "a/b", "revision": "main"},
            {
                "config": None,
                "split": "train",
                "text_column": "text",
                "max_rows": None,
                "max_bytes": None,
                "retries": 5,
            },
        ),
    ],
)
def test_each_source_of_text_has_defaults_of_its_own(corpus: dict, filled: dict):
    assert load(changed("corpora/lua", corpus), SCHEMA)["corpora"]["lua"] == corpus | filled


SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem != "config.schema"]


@pytest.mark.parametrize("given", [small(), *map(read_yaml, SHIPPED)], ids=["small", *(path.stem for path in SHIPPED)])
def test_a_filled_config_is_valid_and_stays_as_it_is(given: dict):
    filled = load(given, SCHEMA)
    assert load(deepcopy(filled), SCHEMA) == filled


def test_the_given_config_and_the_schema_are_left_alone():
    given, schema = small(), deepcopy(SCHEMA)
    load(given, schema)["saes"]["seeds"].append(9)
    load({**given, "saes": {}}, schema)["saes"]["seeds"].append(9)
    assert given == small()
    assert schema == SCHEMA


def test_models_from_elsewhere_may_stand_in_the_lineage():
    config = small()
    config["models"]["theirs"] = {"hub": {"repo": "a/b", "revision": "main"}}
    config["models"]["own"] = {"path": {"folder": "models/own", "parents": ["theirs"]}}
    config["models"]["tuned"] = {"finetune": {"parent": "own", "corpora": {"lua": 1.0}, "n_tokens": 4096}}
    # What shape they have is not known before they are read, so merges of them are let through.
    config["models"]["mixed"] = {"merge": {"parents": ["tuned", "lua"]}}
    config["lineage"] = {"instruments": ["independent"]}
    filled = load(config, SCHEMA)
    assert filled["models"]["theirs"] == {"hub": {"repo": "a/b", "revision": "main", "parents": []}}
    assert filled["models"]["own"] == {"path": {"folder": "models/own", "parents": ["theirs"]}}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "saes/kk",
            8,
            "saes: unknown key 'kk'; config/config.schema.yaml lists the keys there are",
        ),
        ("runs", "x", "config: unknown key 'runs'; config/config.schema.yaml lists the keys there are"),
        (
            "corpora/lua/separator",
            "x",
            "corpora.lua: unknown key 'separator'; config/config.schema.yaml lists the keys there are",
        ),
        (
            "models/lua/finetune/n_layers",
            2,
            "models.lua.finetune: unknown key 'n_layers'; config/config.schema.yaml lists the keys there are",
        ),
        (
            "saes/models/lua/seeds",
            [0],
            "saes.models.lua: unknown key 'seeds'; config/config.schema.yaml lists the keys there are",
        ),
        ("run", ..., "config: 'run' is a required property; config/config.schema.yaml says what it means"),
        (
            "models/lua/finetune/parent",
            ...,
            "models.lua.finetune: 'parent' is a required property; config/config.schema.yaml says what it means",
        ),
        (
            "models/base/pretrain/learning_rate",
            "1e-3",
            "models.base.pretrain.learning_rate: '1e-3' is not of type 'number' "
            "(YAML reads 1e-3 as text; write 0.001); it is: Peak learning rate.",
        ),
        (
            "models/base/pretrain/n_tokens",
            "1e6",
            "models.base.pretrain.n_tokens: '1e6' is not of type 'integer', 'null' "
            "(YAML reads 1e6 as text; write 1000000)",
        ),
        (
            "tokens/n_ctx",
            128.0,
            "tokens.n_ctx: 128.0 is not of type 'integer' (write 128); "
            "it is: Tokens in a row, one context length for language models, activations and SAEs alike.",
        ),
        (
            "tokens/n_ctx",
            True,
            "tokens.n_ctx: True is not of type 'integer'; "
            "it is: Tokens in a row, one context length for language models, activations and SAEs alike.",
        ),
        (
            "models/both/merge/t",
            float("nan"),
            "models.both.merge.t: nan is not of type 'number'; it is: Where between the parents the merge lies.",
        ),
        (
            "lineage/threshold",
            1.5,
            "lineage.threshold: 1.5 is greater than the maximum of 1; "
            "it is: A feature persists when its best match has Pearson r at or above this.",
        ),
        (
            "corpora/lua/kind",
            "ruby",
            "corpora.lua.kind: 'ruby' is not one of ['english', 'stories', 'lua']; "
            "it is: Which of the embedded generators writes the text.",
        ),
        (
            "run",
            "../elsewhere",
            "run: '../elsewhere' does not match ^[a-z0-9]+([_-][a-z0-9]+)*$; "
            "it is: A name, in lower-case letters, digits and single _ or - between them, "
            "for it becomes part of paths.",
        ),
        (
            "models/lua__english",
            {"merge": {"parents": ["lua", "english"]}},
            "models: 'lua__english' does not match ^[a-z0-9]+([_-][a-z0-9]+)*$; it is: A name, in lower-case letters, "
            "digits and single _ or - between them, for it becomes part of paths.",
        ),
        (
            "corpora/..",
            {"source": "stdlib"},
            "corpora: '..' does not match ^[a-z0-9]+([_-][a-z0-9]+)*$; it is: A name, in lower-case letters, "
            "digits and single _ or - between them, for it becomes part of paths.",
        ),
        (
            "models/lua/merge",
            {"parents": ["base", "english"]},
            "models.lua: must be made in exactly one way (pretrain, finetune, merge, hub, path, reinitialise), "
            "got ['finetune', 'merge']",
        ),
        (
            "models/lua",
            {},
            "models.lua: must be made in exactly one way (pretrain, finetune, merge, hub, path, reinitialise), got []",
        ),
        (
            "models/lua",
            {"reinitialise": {"like": "bass"}},
            "models.lua.reinitialise: like: 'bass' is not among models (base, both, english, lua); "
            "correct the name or add it there",
        ),
        (
            "models/lua",
            {"reinitialise": {"like": "lua"}},
            "models.lua.reinitialise: 'lua' is re-initialised itself; name a trained model",
        ),
        (
            "models/lua",
            {"reinitialise": {"like": "both"}},
            "models.lua.reinitialise: 'both' descends from it; name another model",
        ),
        (
            "corpora/pooled",
            {"source": "stdlib"},
            "corpora: 'pooled' is what all corpora together are called; rename that corpus",
        ),
        (
            "models/lua/finetune/parent",
            "bass",
            "models.lua.finetune: parent: 'bass' is not among models (base, both, english, lua); "
            "correct the name or add it there",
        ),
        (
            "models/both/merge/parents",
            ["lua", "stories"],
            "models.both.merge: parent: 'stories' is not among models (base, both, english, lua); "
            "correct the name or add it there",
        ),
        (
            "models/lua/finetune/parent",
            "lua",
            "models.lua.finetune: a model cannot be its own parent; name another model",
        ),
        (
            "models/lua/finetune/parent",
            "both",
            "models: models ['both', 'lua'] descend from each other in a circle; the lineage must be acyclic, "
            "so change one of their parents",
        ),
        (
            "tokenizer/corpora",
            ["luau"],
            "tokenizer.corpora: 'luau' is not among corpora (english, lua); correct the name or add it there",
        ),
        (
            "models/lua/finetune/corpora",
            {"luau": 1},
            "models.lua.finetune.corpora: 'luau' is not among corpora (english, lua); correct the name or add it there",
        ),
        (
            "saes/corpora",
            ["luau"],
            "saes.corpora (for base.seed0): 'luau' is not among corpora (english, lua); "
            "correct the name or add it there",
        ),
        (
            "saes/models/lua/corpora",
            ["luau"],
            "saes.corpora (for lua.seed0): 'luau' is not among corpora (english, lua); "
            "correct the name or add it there",
        ),
        (
            "sweeps/both/corpora",
            ["luau"],
            "sweeps.both.corpora: 'luau' is not among corpora (english, lua); correct the name or add it there",
        ),
        (
            "sweeps/both/model",
            "neither",
            "sweeps.both.model: 'neither' is not among models (base, both, english, lua); "
            "correct the name or add it there",
        ),
        (
            "sweeps/both/model",
            "lua",
            "sweeps.both.model: must be a merged model, but 'lua' is not; name a merge",
        ),
        (
            "models/base/pretrain/corpora",
            {"english": 0.5, "lua": 0.4},
            "models.base.pretrain.corpora: shares must sum to 1, but {'english': 0.5, 'lua': 0.4} sum to 0.9",
        ),
        (
            "splits",
            {"validation": 0.5, "probe": 0.5},
            "splits: validation and probe must leave documents to train on; make their sum less than 1",
        ),
        (
            "models/base/pretrain/n_tokens",
            ...,
            "models.base.pretrain: give one of n_tokens and epochs, to say how long the training lasts",
        ),
        (
            "models/base/pretrain/epochs",
            1,
            "models.base.pretrain: give one of n_tokens and epochs, to say how long the training lasts",
        ),
        (
            # 16 rows of 128 tokens are 2048.
            "models/base/pretrain/n_tokens",
            2047,
            "models.base.pretrain.n_tokens: must fill one step of batch_rows x n_ctx tokens; 2047 does not",
        ),
        (
            "tokens/max_tokens/probe",
            127,
            "tokens.max_tokens.probe: must hold a row of n_ctx (128) tokens; 127 does not",
        ),
        (
            "activations",
            {"max_tokens": 511, "n_shards": 4},
            "activations.max_tokens: must hold a row of n_ctx (128) tokens for each of n_shards (4); 511 does not",
        ),
        (
            "models/base/pretrain/d_model",
            132,
            "models.base.pretrain: d_model (132) must be divisible by 2 x n_heads (4)",
        ),
        (
            "models/base/pretrain/n_kv_heads",
            3,
            "models.base.pretrain: n_heads (4) must be divisible by n_kv_heads (3)",
        ),
        (
            "activations/hookpoint",
            "model.layers.1.mlp.down_proj.input",
            "activations.hookpoint: 'model.layers.1.mlp.down_proj.input' needs layer 1, "
            "but models.base.pretrain has n_layers 1; name a layer from 0 to 0",
        ),
        (
            "saes/models/luau",
            {"k": 8},
            "saes.models: 'luau' is not among models (base, both, english, lua); correct the name or add it there",
        ),
        (
            "saes/import",
            {"folder": "a", "repo": "b/c"},
            "saes.import (for base.seed0): must name a folder, or a repo with its revision (and a subfolder), "
            "got ['folder', 'repo']; keep one of the two",
        ),
        (
            "saes/models/lua/seed1/import",
            {"repo": "b/c"},
            "saes.import (for lua.seed1): must name a folder, or a repo with its revision (and a subfolder), "
            "got ['repo']; keep one of the two",
        ),
        (
            "saes/models/lua/import",
            {"folder": "a", "subfolder": "b"},
            "saes.import (for lua.seed0): must name a folder, or a repo with its revision (and a subfolder), "
            "got ['folder', 'subfolder']; keep one of the two",
        ),
        (
            "saes/models/lua/import",
            {"folder": "a", "format": "pickle"},
            "saes.models.lua.import.format: 'pickle' is not one of ['auto', 'saelens', 'dictionary_learning', "
            "'sparsify']; it is: The library it was saved by; auto tells by the files that are there.",
        ),
        (
            "saes/models/lua/seed2",
            {"k": 8},
            "saes.models.lua: 'seed2' is not among the SAEs of that model (from_base, from_lua, seed0, seed1); "
            "correct the name or add it there",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(path: str, value: object, message: str):
    assert error_of(changed(path, value)) == message


@pytest.mark.parametrize("path", ["saes", "saes/models/lua", "saes/models/lua/seed1"])
def test_an_import_has_its_defaults_wherever_it_stands(path: str):
    config = changed(f"{path}/import", {"folder": "sae"})
    config["saes"]["seeds"] = [1]
    found = filled = load(config, SCHEMA)
    for key in f"{path}/import".split("/"):
        found = found[key]
    assert found == {"folder": "sae", "format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.15}
    assert filled["saes"]["models"]["lua"]["seed1"].keys() <= {"k", "import"}
    assert load(filled, SCHEMA) == filled


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "lineage/instruments",
            ["anchored", "guess"],
            "lineage.instruments.1: 'guess' is not one of ['anchored', 'independent', 'frozen', 'same_init', "
            "'own_mixture']",
        ),
        (
            "lineage/controls",
            {"lua": ["scratch"]},
            "lineage.controls.lua: 'scratch' is not among models (base, both, english, lua); "
            "correct the name or add it there",
        ),
        (
            "lineage/controls",
            {"base": ["english"]},
            "lineage.controls: 'base' has no parent that models could be compared with in its place",
        ),
        (
            "lineage/controls",
            {"both": ["lua"]},
            "lineage.controls.both: 'both' itself, or a model it descends from, is named; name others",
        ),
        (
            "models/shifted",
            {"path": {"folder": "somewhere"}},
            "models: 'shifted' is what a null is called; rename that model",
        ),
        (
            "saes/models/lua/from_base",
            {"import": {"folder": "a"}},
            "saes.models.lua.from_base: only SAEs of saes.seeds can be imported, for others start from a parent's or "
            "share a seed; leave out `import`",
        ),
        (
            "saes/anchored",
            {"architecture": "relu"},
            "saes.architecture of base.from_base is relu, but it starts from base.seed0, which has topk; "
            "set it for all SAEs (saes.architecture), not under saes.anchored or saes.models",
        ),
        (
            "saes/models/lua/expansion_factor",
            16,
            "saes.expansion_factor of lua.from_base is 16, but it starts from base.seed0, which has 8; ",
        ),
        (
            "saes/anchored",
            {"import": {"folder": "a"}},
            "saes.anchored: SAEs that start from a parent's are trained, so leave out `import` there",
        ),
    ],
)
def test_a_mistake_in_what_is_compared_is_one_sentence(path: str, value: object, message: str):
    assert error_of(changed(path, value)).startswith(message)


def test_the_sae_of_a_merge_starts_where_its_parents_descend_from_one_model():
    config = changed("models/english", {"path": {"folder": "somewhere"}})
    assert error_of(config) == (
        "lineage.instruments: a merge's SAE starts from the average of its parents', which must descend from one "
        "model's, but 'both' descends from english, base; use independent alone"
    )
    config["lineage"] = {"instruments": ["independent"]}
    assert load(config, SCHEMA)
    config["lineage"] |= {"budgets": [1000]}
    assert error_of(config).startswith("lineage.instruments: a merge's SAE starts from the average")


def test_saes_of_one_pass_see_the_same_batches():
    config = small()
    config["saes"] = {"one_pass": True, "models": {"lua": {"seed1": {"batch_tokens": 512}}}}
    assert error_of(config) == (
        "saes.batch_tokens must be the same for all SAEs of 'lua' with saes.one_pass, for they see the same batches; "
        "set it for the model, or one_pass to false"
    )


def test_a_target_needs_a_coefficient_to_start_from():
    config = small()
    config["saes"] = {"architecture": "relu", "target_l0": 32, "sparsity_coefficient": 0}
    assert error_of(config).startswith("saes.sparsity_coefficient (for base.seed0) must be above 0 with a target_l0")


def test_saes_that_are_trained_in_one_pass_cannot_be_imported():
    config = changed("saes/models/lua/seed1/import", {"folder": "sae"})
    config["saes"]["one_pass"] = True
    assert error_of(config) == ("saes.one_pass trains all SAEs, but lua.seed1 has `import`; leave out one of the two")


def test_an_sae_from_the_hub_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    source = {"repo": "a/b", "revision": "main", "subfolder": "c/d"}
    config = load(changed("saes/models/lua/seed1/import", source), SCHEMA)
    check_files(Plan(config))


def test_two_saes_of_one_model_cannot_be_one_sae():
    message = (
        "saes.import: lua.seed0 and lua.seed1 would be one SAE, whose agreement with itself is no noise floor; "
        "import another for one of them, train one (import: null), or leave one seed in saes.seeds"
    )
    config = changed("saes/models/lua/import", {"folder": "a"})
    assert error_of(config) == message
    # Another limit does not make it another SAE; another folder, or none, does.
    config["saes"]["models"]["lua"]["seed1"] = {"import": {"folder": "a", "max_fvu": 0.5}}
    assert error_of(config) == message
    for source in ({"folder": "b"}, None):
        config["saes"]["models"]["lua"]["seed1"] = {"import": source}
        assert load(config, SCHEMA)
    # Different models may share one.
    shared = changed("saes/import", {"folder": "a"})
    shared["saes"] |= {"seeds": [0], "models": {}}
    assert load(shared, SCHEMA)


def test_models_of_different_shapes_cannot_be_merged():
    config = small()
    config["models"]["wide"] = {"pretrain": {"corpora": {"lua": 1.0}, "epochs": 1, "d_mlp": 512}}
    # The shape of a fine-tune is that of the model it starts from.
    config["models"]["wider"] = {"finetune": {"parent": "wide", "corpora": {"lua": 1.0}, "epochs": 1}}
    config["models"]["mixed"] = {"merge": {"parents": ["lua", "wider"]}}
    assert error_of(config) == (
        "models.mixed.merge: parents must have one shape, but d_mlp is 256 in 'lua' and 512 in 'wider'; "
        "merge models of one base"
    )


def test_a_long_value_is_cut_short_in_the_message():
    message = error_of(changed("run", "x" * 500 + "/"))
    assert message.startswith(f"run: '{'x' * 76}... does not match ^[a-z0-9]")


def test_the_hookpoint_of_a_deeper_model_may_name_its_last_layer():
    config = changed("models/base/pretrain/n_layers", 3)
    config["activations"] = {"hookpoint": "model.layers.2.mlp.down_proj.input"}
    assert load(config, SCHEMA)["activations"]["hookpoint"] == "model.layers.2.mlp.down_proj.input"


def test_shares_may_miss_1_by_rounding():
    config = changed("models/base/pretrain/corpora", {"english": 0.1 + 0.2, "lua": 0.7})
    assert load(config, SCHEMA)["models"]["base"]["pretrain"]["corpora"]["english"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nmodels: {}\nrun: b\n", "'{path}': key 'run' stands twice in the mapping at line 1; keep one"),
        (
            "run: a\nmodels:\n  lua: {}\n  base: {}\n  lua: {}\n",
            "'{path}': key 'lua' stands twice in the mapping at line 3; keep one",
        ),
        ("- run\n- models\n", "config file '{path}' must be a mapping of keys, not list"),
        ("", "config file '{path}' must be a mapping of keys, not NoneType"),
        (
            "run: [a\n",
            "config file '{path}' must be YAML in UTF-8, but: while parsing a flow sequence in \"{path}\", line 1, "
            "column 6 expected ',' or ']', but got '<stream end>' in \"{path}\", line 2, column 1",
        ),
    ],
)
def test_a_file_that_is_no_clean_mapping_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_yaml(path)
    assert str(raised.value) == message.replace("{path}", str(path))


def test_a_config_that_is_not_text_or_not_there_is_named(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(b"run: \xff")
    with pytest.raises(InputError, match=r"a\.yaml' must be YAML in UTF-8, but: 'utf-8' codec can't decode byte 0xff"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(InputError) as raised:
        read_yaml(tmp_path / "b.yaml")
    assert str(raised.value) == (
        f"config file '{tmp_path}/b.yaml' does not exist; look at the name given to --configfile"
    )


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a {k: 1, n: 2}\nb: {<<: *a, k: 3}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"k": 1, "n": 2}, "b": {"k": 3, "n": 2}}


def with_files(corpus: dict, folder: Path) -> dict:
    config = changed("corpora/lua", {"source": "files", **corpus})
    return load(config | {"corpora_dir": str(folder)}, SCHEMA)


def test_files_that_are_there_are_fine(tmp_path: Path):
    (tmp_path / "lua.txt").write_text("print()")
    config = with_files({"path": "lua.txt"}, tmp_path)
    check_files(Plan(config))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (
            {"path": "lau"},
            "corpora.lua.path: '{folder}/lau' does not exist (corpora_dir is '{folder}'); "
            "correct the path or corpora_dir",
        ),
        (
            {"path": "lua", "glob": "*.txt"},
            "corpora.lua.path: no file in '{folder}/lua' matches '*.txt'; correct corpora.lua.glob",
        ),
        (
            {"path": "lua/a.lua"},
            "corpora.lua.path: '{folder}/lua/a.lua' must be one of .txt, .jsonl, .jsonl.gz, .parquet; "
            "convert it or correct the path",
        ),
    ],
)
def test_files_that_are_not_where_the_config_says_are_named(tmp_path: Path, corpus: dict, message: str):
    (tmp_path / "lua").mkdir()
    (tmp_path / "lua" / "a.lua").write_text("print()")
    with pytest.raises(InputError) as raised:
        check_files(Plan(with_files(corpus, tmp_path)))
    assert str(raised.value) == message.replace("{folder}", str(tmp_path))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "models/own",
            {"path": {"folder": "nowhere"}},
            "models.own.path.folder: 'nowhere' is not a folder; correct the path",
        ),
        (
            "saes/models/lua/seed1/import",
            {"folder": "nowhere"},
            "saes.import.folder (for lua.seed1): 'nowhere' is not a folder; correct the path",
        ),
        (
            "tokenizer",
            {"source": "path", "path": "nowhere"},
            "tokenizer.path: 'nowhere' is not a folder; correct the path",
        ),
    ],
)
def test_folders_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: dict, message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        check_files(Plan(load(changed(path, value), SCHEMA)))
    assert str(raised.value) == message


LETTERS = "aB3xY7" * 7


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "api-key", "apikey", "x-api-key", "X-API-Key", "x-goog-api-key", "access-token", "access_token"),
        *("token", "Token", "X-Auth-Token", "hf_token", "secret", "secret_key", "client-secret", "private_key"),
        *("aws_secret_access_key", "Authorization", "Proxy-Authorization", "password", "cookie"),
    ],
)
def test_settings_that_are_called_like_secrets_are_refused(name):
    request = {"extra": {"headers": {name: "anything"}}}
    message = error_of(changed("labels/explanations", {"model": "words", "request": request}))
    assert message.startswith(f"labels.explanations.request.extra.headers.{name}: holds what looks like a token, key")
    assert "anything" not in message


@pytest.mark.parametrize("name", ["max_tokens", "stop_tokens", "eos_token", "tokens", "tokenizer", "key", "keys", "n"])
def test_settings_that_are_called_otherwise_are_not(name):
    request = {"extra": {"headers": {name: "anything"}}}
    load(changed("labels/explanations", {"model": "words", "request": request}), SCHEMA)


def test_no_key_of_the_config_is_called_like_a_secret():
    def keys(schema: object) -> list[str]:
        inner = list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []
        own = list(schema["properties"]) if isinstance(schema, dict) and "properties" in schema else []
        return own + [key for value in inner for key in keys(value)]

    assert "max_tokens" in keys(SCHEMA)
    assert [key for key in keys(SCHEMA) if SECRET_KEY.fullmatch(key)] == []


@pytest.mark.parametrize(
    "value",
    [
        *(
            f"hf_{LETTERS}",
            f"sk-{LETTERS}",
            f"sk-proj-{LETTERS}_-x",
            f"sk-ant-api03-{LETTERS}",
            f"sk-svcacct-{LETTERS}",
        ),
        *(f"gsk_{LETTERS}", f"xai-{LETTERS}", f"nvapi-{LETTERS}", f"AIza{LETTERS}", f"ghp_{LETTERS}"),
        *(f"github_pat_{LETTERS}", f"glpat-{LETTERS}", "AKIA" + "ABCD" * 4, f"xoxb-{LETTERS}", "Bearer abcdefghij"),
        *("https://me:secret@example.invalid/v1", f"https://example.invalid/?key=AIza{LETTERS}", f"token=hf_{LETTERS}"),
    ],
)
def test_values_that_look_like_secrets_are_refused_and_not_repeated(value):
    message = error_of(changed("labels/explanations", {"model": "words", "request": {"user": value}}))
    assert message.startswith("labels.explanations.request.user: holds what looks like a token, key or password")
    assert value not in message


@pytest.mark.parametrize(
    "value",
    [
        *("user/gpt2-sk-learning-internationalization", "owner/hf_transformerstutorialmodels", "0123456789abcdef" * 4),
        *(
            "sk-learn-experiments-2024",
            "task-sk-1",
            "mask-proj-0123456789012345678901234567",
            "gsk_8",
            "xai-org/grok-1",
        ),
        *("https://example.invalid:8000/v1", "nvidia/nvapi-models", "AIzawa", "Bearer of news"),
    ],
)
def test_values_that_only_begin_like_secrets_are_not_refused(value):
    config = changed("labels/explanations", {"model": "words", "request": {"user": value}})
    assert load(config, SCHEMA)["labels"]["explanations"]["request"]["user"] == value


def test_more_models_seeds_and_budgets_than_could_be_looked_at_are_refused_at_once():
    config = small()
    config["saes"] = {"seeds": list(range(20))}
    config["lineage"] = {"budgets": list(range(1000, 1020))}
    line = {f"m{n}": {"finetune": {"parent": "base", "corpora": {"lua": 1.0}, "epochs": 1}} for n in range(8)}
    models = {"base": config["models"]["base"], **line}
    assert load(config | {"models": models, "sweeps": {}}, SCHEMA)["run"] == "tiny"  # 9 x 20 x 21 = 3,780
    line = {f"m{n}": line["m0"] for n in range(99)}
    models = {"base": config["models"]["base"], **line}
    assert error_of(config | {"models": models, "sweeps": {}}) == (
        "saes.seeds: models x seeds x (1 + lineage.budgets) must be at most 5000, but 100 x 20 x 21 are 42000; "
        "leave out some of them"
    )
