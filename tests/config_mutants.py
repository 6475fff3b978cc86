"""Configs with something wrong in them: a good one changed at random, and some that were thought up.

Each is a text or bytes, for much of what can be wrong is wrong before there is a mapping. A good config is among them
now and then: a changed number may be as good as the one before.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

BASE = """
run: fuzz
corpora:
  english: {source: sample, kind: english, max_bytes: 100000, seed: 1}
  lua: {source: sample, kind: lua}
  own: {source: files, path: texts, glob: "*.txt", separator: "<|endoftext|>"}
  python: {source: stdlib, max_bytes: 100000}
  web: {source: hub, repo: owner/web, revision: 0123456789abcdef0123456789abcdef01234567, max_rows: 1000}
splits: {validation: 0.1, probe: 0.1}
tokenizer: {source: train, vocab_size: 384, corpora: [english, lua]}
tokens: {n_ctx: 32, max_tokens: {validation: 2048, probe: 4096}}
models:
  base: {pretrain: {corpora: {english: 0.5, lua: 0.5}, n_tokens: 20480, n_layers: 2, d_model: 32, n_heads: 2}}
  left: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 5120, learning_rate: 0.001, warmup_steps: 2}}
  right: {finetune: {parent: base, corpora: {english: 1.0}, epochs: 0.5, adam_betas: [0.9, 0.99]}}
  merged: {merge: {method: slerp, parents: [left, right], t: 0.5}}
  theirs: {path: {folder: theirs, parents: [base]}}
  far: {hub: {repo: owner/model, revision: main}}
  random: {reinitialise: {like: base, seed: 3}}
activations: {hookpoint: model.layers.1.mlp.down_proj.input, dtype: float16, max_tokens: 8192, n_shards: 2}
saes:
  architecture: topk
  expansion_factor: 4
  k: 8
  seeds: [0, 1]
  batch_tokens: 512
  anchored: {learning_rate: 0.0005}
  models: {left: {n_tokens: 4096}, theirs: {seed0: {import: {folder: sae, format: auto}}}}
correlations: {min_firings: 10, top_matches: 4, nulls: [shifted, rotated]}
lineage: {threshold: 0.8, instruments: [anchored, independent], budgets: [2048], n_replicates: 20}
labels: {syntax: {lua: lua}, explanations: {model: words, request: {temperature: 0.5}}}
sweeps: {merged: {model: merged, t: [0.0, 0.5, 1.0], corpora: [lua]}}
report: {n_features: 2, quantiles: [0.75, 0.25]}
threads: {models: 1}
"""

VALUES = [
    *(0, -1, 1, 3, 10**30, -(10**30), 2**63, 1e308, 1e-320, 0.0, -0.5, 1.5, float("nan"), float("inf"), float("-inf")),
    *(True, False, None, "", " ", "a", "0", "1e3", "1e-400", "null", "base", "../x", "/etc/passwd", "a\0b", "\x1b[2J"),
    *("é", "模型", "\u202eevil", "a\nb", "x" * 300, "x" * 20_000, "{run}", "{{7*7}}", "$(id)", "~", "*", "C:\\x", "-"),
    *([], [[]], [None], {}, {"a": 1}, [1, 1], ["lua", "lua"], [0.5, 0.5], ["x"] * 1000, b"bytes", {"": {}}),
]
NAMES = [
    "",
    " ",
    "a b",
    "A",
    "a__b",
    "../up",
    "a/b",
    "é",
    "x" * 65,
    "x" * 300,
    "a\nb",
    "a.b",
    "seed0",
    "pooled",
    "-",
    "~",
]
NAMES += [
    "shifted",
    "left_shifted",
    "\x1b[2J",
    "__proto__",
    "__use_yte",
    "nul",
    "{run}",
    "*",
    "null",
    "true",
    "1",
    "1.5",
]
PARENTS = ["base", "left", "right", "merged", "random", "theirs", "far", "nobody", "", "Base", "base "]


class Mutant(NamedTuple):
    """A config file's content and what was done to it."""

    kind: str
    what: str
    content: bytes


def lay_out(folder: Path) -> None:
    """The files that the good config names."""
    for name in ("texts", "theirs", "sae"):
        (folder / name).mkdir(parents=True)
    (folder / "texts" / "one.txt").write_text("One.<|endoftext|>Two.", encoding="utf-8")


def good() -> dict:
    """The config that is changed."""
    return yaml.safe_load(BASE)


def mutants(n: int, seed: int) -> list[Mutant]:
    """The thought-up configs, and as many random ones as make up n."""
    found = list(thought_up())
    draw = random.Random(seed)
    kinds = sorted(RANDOM)
    found += [RANDOM[kinds[place % len(kinds)]](draw) for place in range(max(0, n - len(found)))]
    return found


# At random.


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of everything below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *places(inner, (*path, key))]]


def at(config: object, path: tuple) -> object:
    """What stands at a path."""
    for key in path:
        config = config[key]
    return config


def dump(config: object) -> bytes:
    """As YAML, whatever it is."""
    return yaml.dump(config, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def change(kind: str, edit: Callable[[random.Random, object, object], str]) -> Callable[[random.Random], Mutant]:
    """A kind of mutant: one place of the good config is edited."""

    def make(draw: random.Random) -> Mutant:
        config = good()
        path = draw.choice(places(config))
        what = edit(draw, at(config, path[:-1]), path[-1])
        return Mutant(kind, f"{'.'.join(map(str, path))} {what}"[:100], dump(config))

    return make


def wrong_value(draw: random.Random, inside: dict | list, key: str | int) -> str:
    inside[key] = deepcopy(draw.choice(VALUES))
    return f"= {inside[key]!r:.40}"


def missing(_draw: random.Random, inside: dict | list, key: str | int) -> str:
    del inside[key]
    return "is missing"


def unknown(draw: random.Random, inside: dict | list, key: str | int) -> str:
    name = draw.choice(["kk", "seed", "path", "extra", *NAMES])
    inside[key] = inside[key] | {name: 1} if isinstance(inside[key], dict) else {name: inside[key]}
    return f"+ {name!r:.40}"


def renamed(draw: random.Random, inside: dict | list, key: str | int) -> str:
    name, value = draw.choice(NAMES), inside.pop(key)
    inside.append({name: value}) if isinstance(inside, list) else inside.update({name: value})
    return f"-> {name!r:.40}"


def other_shape(draw: random.Random, inside: dict | list, key: str | int) -> str:
    value = inside[key]
    shapes = [[value], {"a": value}, str(value), list(value) if isinstance(value, dict) else [value, value]]
    inside[key] = draw.choice(shapes)
    return f"as {type(inside[key]).__name__}"


def swapped(draw: random.Random, inside: dict | list, key: str | int) -> str:
    config = good()
    other = draw.choice(places(config))
    inside[key] = deepcopy(at(config, other))
    return f"= what is {'.'.join(map(str, other))}"


def parents(draw: random.Random) -> Mutant:
    """Two models get other parents: unknown ones, themselves, each other."""
    config = good()
    models, said = config["models"], []
    for model in draw.sample(["left", "right", "merged", "theirs", "random"], 2):
        name, other = draw.choice(PARENTS), draw.choice(PARENTS)
        (way,) = models[model]
        key = {"finetune": "parent", "reinitialise": "like"}.get(way, "parents")
        models[model][way][key] = [name, other] if key == "parents" else name
        said.append(f"{model} from {models[model][way][key]}")
    return Mutant("parents", "; ".join(said), dump(config))


def twice(draw: random.Random) -> Mutant:
    """One line of the file stands there twice."""
    lines = dump(good()).decode().splitlines(keepends=True)
    place = draw.randrange(len(lines))
    return Mutant(
        "line twice",
        lines[place].strip()[:60],
        "".join([*lines[:place], *lines[place:][:1] * 2, *lines[place + 1 :]]).encode(),
    )


def damaged(draw: random.Random) -> Mutant:
    """Some bytes are others, or are missing, or the file ends early."""
    content = bytearray(BASE.encode())
    for _ in range(draw.randint(1, 5)):
        place = draw.randrange(len(content))
        content[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
    content = content[: draw.choice([None, draw.randrange(len(content))])]
    return Mutant("bytes", f"{len(content)} bytes", bytes(content))


RANDOM: dict[str, Callable[[random.Random], Mutant]] = {
    "wrong value": change("wrong value", wrong_value),
    "wrong value, again": change("wrong value", wrong_value),
    "missing key": change("missing key", missing),
    "unknown key": change("unknown key", unknown),
    "other name": change("other name", renamed),
    "other shape": change("other shape", other_shape),
    "swapped": change("swapped", swapped),
    "parents": parents,
    "line twice": twice,
    "bytes": damaged,
}


# Thought up.


def edited(*edits: tuple[str, object]) -> bytes:
    """The good config with values at dotted paths set, or taken out where the value is `...`."""
    config = good()
    for path, value in edits:
        *folders, last = path.split(".")
        inside = at(config, tuple(folders))
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
    return dump(config)


def doubled(levels: int) -> str:
    """Aliases of lists of aliases: nine times as much at every level."""
    rows = [f"a0: &a0 [{', '.join('x' * 9)}]"]
    return "\n".join([*rows, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))])


def merged_often(levels: int) -> str:
    """Merges of merges: nine times as many entries at every level."""
    rows = ["a0: &a0 {x: 1, y: 2}"]
    return "\n".join([*rows, *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels))])


def generations(n: int) -> dict:
    """A model, a fine-tune of it, and merges of the last two, over and over."""
    models = good()["models"]
    line = {"g0": models["base"], "g1": {"finetune": models["left"]["finetune"] | {"parent": "g0"}}}
    return line | {f"g{k}": {"merge": {"parents": [f"g{k - 1}", f"g{k - 2}"]}} for k in range(2, n)}


def descendants(n: int) -> dict:
    """One line of fine-tunes."""
    models = good()["models"]
    line = {"d0": models["base"]}
    return line | {f"d{k}": {"finetune": models["left"]["finetune"] | {"parent": f"d{k - 1}"}} for k in range(1, n)}


TEXTS: dict[str, dict[str, str | bytes]] = {
    "not a config": {
        "empty": "",
        "comment alone": "# nothing\n",
        "list": "- run\n- models\n",
        "scalar": "hello",
        "null": "null",
        "number": "7",
        "two documents": BASE + "---\n" + BASE,
        "binary": bytes(range(256)) * 40,
        "safetensors": (8).to_bytes(8, "little") + b"{}      " + b"\0" * 100,
        "0.4 MB": BASE + "# " + "x" * 400_000,
    },
    "encoding": {
        "UTF-16": BASE.encode("utf-16"),
        "Latin-1": (BASE + "extra: caf\xe9\n").encode("latin-1"),
        "byte order mark": BASE.encode("utf-8-sig"),
        "NUL": BASE + "extra: a\0b\n",
        "escaped surrogate": BASE.replace('glob: "*.txt"', 'glob: "\\ud800"'),
        "tab": BASE + "extra:\n\tx: 1\n",
    },
    "YAML": {
        "object": BASE.replace("run: fuzz", "run: !!python/object/apply:os.system ['exit 1']"),
        "name": BASE.replace("run: fuzz", "run: !!python/name:os.system"),
        "tuple": BASE.replace("[0, 1]", "!!python/tuple [0, 1]"),
        "set": BASE.replace("[0, 1]", "!!set {0, 1}"),
        "binary": BASE.replace("run: fuzz", "run: !!binary aGVsbG8="),
        "bad binary": BASE.replace("run: fuzz", "run: !!binary é"),
        "date": BASE.replace("run: fuzz", "run: 2020-01-01"),
        "no date": BASE.replace("run: fuzz", "run: 2020-13-41"),
        "sexagesimal": BASE.replace("k: 8", "k: 1:30"),
        "5,000 digits": BASE.replace("k: 8", "k: " + "9" * 5000),
        "5,000 hexadecimal digits": BASE.replace("k: 8", "k: 0x" + "f" * 5000),
        "unknown alias": BASE.replace("run: fuzz", "run: *nothing"),
        "merge of a number": BASE + "<<: 5\n",
        "list as key": BASE + "? [a, b]\n: 1\n",
        "mapping as key": BASE + "? {a: b}\n: 1\n",
        "number as key": BASE + "1: 2\n",
        "null as key": BASE.replace("corpora:\n", "corpora:\n  null: {source: stdlib}\n", 1),
        "number as model": BASE.replace("models:\n", "models:\n  1: {hub: {repo: a/b, revision: main}}\n", 1),
        "template": BASE.replace("run: fuzz", "run: ?chr(97)"),
    },
    "bombs": {
        "lists, 20 levels": BASE + doubled(20),
        "lists, 20 levels, in a key": BASE.replace("[0, 1]", "*a19").replace("run: fuzz", doubled(20) + "\nrun: fuzz"),
        "merges, 6 levels": BASE + merged_often(6),
        "a circle": BASE + "extra: &a {x: *a}\n",
        "a circle of models": BASE.replace("{merge: {method: slerp,", "&m {merge: {method: *m,"),
        "5,000 brackets": BASE + "extra: " + "[" * 5_000 + "]" * 5_000,
        "40 levels": BASE.replace("temperature: 0.5", "x: " + "[" * 40 + "]" * 40),
        "11,000 keys": BASE + "extra: {" + ", ".join(f"k{n}: 1" for n in range(11_000)) + "}\n",
    },
}

EDITS: dict[str, dict[str, list[tuple[str, object]]]] = {
    "lineage": {
        "own parent": [("models.left.finetune.parent", "left")],
        "circle of two": [("models.left.finetune.parent", "right"), ("models.right.finetune.parent", "left")],
        "circle through a merge": [("models.base", {"path": {"folder": "theirs", "parents": ["merged"]}})],
        "one parent twice": [("models.merged.merge.parents", ["left", "left"])],
        "three parents": [("models.merged.merge.parents", ["left", "right", "base"])],
        "random of random": [("models.random.reinitialise.like", "random")],
        "made in two ways": [("models.left.path", {"folder": "theirs"})],
        "merge of two widths": [
            ("models.wide", {"pretrain": good()["models"]["base"]["pretrain"] | {"d_model": 64}}),
            ("models.merged.merge.parents", ["left", "wide"]),
        ],
        "45 generations of merges": [("models", generations(45)), ("saes.models", {}), ("sweeps", {})],
        "60 generations": [("models", descendants(60)), ("saes.models", {}), ("sweeps", {})],
        "250 generations": [("models", descendants(250)), ("saes.models", {}), ("sweeps", {})],
        "control for a root": [("lineage.controls", {"base": ["far"]})],
        "control for itself": [("lineage.controls", {"left": ["left"]})],
        "control that is a parent": [("lineage.controls", {"merged": ["left"]})],
    },
    "contradictions": {
        "shares of 0.9": [("models.base.pretrain.corpora", {"english": 0.5, "lua": 0.4})],
        "shares of an unknown corpus": [("models.base.pretrain.corpora", {"nothing": 1.0})],
        "nothing left to train on": [("splits", {"validation": 0.5, "probe": 0.5})],
        "no hookpoint": [("activations.hookpoint", "model.layers.1.mlp")],
        "hookpoint of a layer too many": [("activations.hookpoint", "model.layers.2.mlp.input")],
        "a quantile twice": [("report.quantiles", [0.5, 0.5])],
        "an instrument twice": [("lineage.instruments", ["anchored", "anchored"])],
        "a budget twice": [("lineage.budgets", [100, 100])],
        "a seed twice": [("saes.seeds", [0, 0])],
        "syntax of an unknown corpus": [("labels.syntax", {"nothing": "lua"})],
        "a sweep of no merge": [("sweeps.merged.model", "left")],
        "a sweep of nothing": [("sweeps.merged.model", "nobody")],
        "n_tokens and epochs": [("models.left.finetune.epochs", 1)],
        "neither": [("models.left.finetune.n_tokens", ...)],
        "less than a step": [("models.left.finetune.n_tokens", 1)],
        "less than a row": [("tokens.max_tokens.probe", 1)],
        "fewer rows than shards": [("activations.n_shards", 1000)],
        "heads that do not divide": [("models.base.pretrain.n_heads", 5)],
        "another architecture where anchored": [("saes.anchored.architecture", "relu")],
        "import where anchored": [("saes.anchored.import", {"folder": "sae"})],
        "import from nowhere": [("saes.models.theirs.seed0.import", {})],
        "import from two places": [("saes.models.theirs.seed0.import.repo", "a/b")],
        "one SAE twice": [("saes.models.theirs", {"import": {"folder": "sae"}})],
        "one pass and import": [("saes.one_pass", True)],
        "settings of an SAE that there is none of": [("saes.models.left.seed7", {"k": 4})],
        "target without coefficient": [("saes.target_l0", 5), ("saes.sparsity_coefficient", 0)],
        "corpus called pooled": [("corpora.pooled", {"source": "stdlib"})],
        "model called like a null": [("models.rotated", {"reinitialise": {"like": "base"}})],
        "model that ends like a null": [("models.left_shifted", {"reinitialise": {"like": "base"}})],
    },
    "sizes": {
        "10^12 shards": [("activations.n_shards", 10**12)],
        "10,000 shards of the probe": [("activations.n_probe_shards", 10_000), ("activations.max_tokens", None)],
        "1,000 seeds": [("saes.seeds", list(range(1000)))],
        "20 seeds": [("saes.seeds", list(range(20)))],
        "200 models, 20 seeds, 20 budgets": [
            *(("models", descendants(200)), ("saes.models", {}), ("sweeps", {})),
            *(("saes.seeds", list(range(20))), ("lineage.budgets", list(range(1000, 1020)))),
        ],
        "10^9 layers": [("models.base.pretrain.n_layers", 10**9)],
        "width of 10^12": [("models.base.pretrain.d_model", 10**12)],
        "rows of 10^12": [("tokens.n_ctx", 10**12)],
        "10^12 bins": [("correlations.n_bins", 10**12)],
        "10^12 latents": [("saes.expansion_factor", 1e12)],
        "names of 64 characters": [("models." + "x" * 64, {"finetune": good()["models"]["left"]["finetune"]})],
        "a line of them": [
            ("models." + "x" * 64, {"finetune": good()["models"]["left"]["finetune"]}),
            ("models." + "y" * 64, {"finetune": good()["models"]["left"]["finetune"] | {"parent": "x" * 64}}),
        ],
    },
    "paths": {
        "folder that is none": [("models.theirs.path.folder", "nowhere")],
        "folder that is a file": [("models.theirs.path.folder", "texts/one.txt")],
        "NUL in a folder": [("models.theirs.path.folder", "a\0b")],
        "folder of 5,000 characters": [("models.theirs.path.folder", "x" * 5000)],
        "SAE folder that is none": [("saes.models.theirs.seed0.import.folder", "nowhere")],
        "corpus that is none": [("corpora.own.path", "nowhere")],
        "corpus of 5,000 characters": [("corpora.own.path", "x" * 5000)],
        "corpora_dir of 5,000 characters": [("corpora_dir", "x" * 5000)],
        "corpus that is no text": [("corpora.own.path", "/bin/sh")],
        "glob that is absolute": [("corpora.own.glob", "/etc/*")],
        "glob that leads out": [("corpora.own.glob", "../../*")],
        "glob of stars": [("corpora.own.glob", "**x")],
        "glob of brackets": [("corpora.own.glob", "[")],
        "glob that finds nothing": [("corpora.own.glob", "*.md")],
        "subfolder that leads out": [
            ("saes.models.theirs.seed0.import", {"repo": "a/b", "revision": "main", "subfolder": "../x"})
        ],
        "repo that is a path": [("models.far.hub.repo", "../../etc/passwd")],
        "run that leads out": [("run", "../x")],
        "run that is absolute": [("run", "/etc/x")],
        "tokenizer that is none": [("tokenizer", {"source": "path", "path": "nowhere"})],
    },
    "secrets": {
        "hub token": [("models.far.hub.revision", "hf_" + "aB3" * 11)],
        "key in a request": [("labels.explanations.request", {"api_key": "anything"})],
        "key as a value": [("labels.explanations.request", {"user": "sk-" + "aB3" * 11})],
        "header": [("labels.explanations.request", {"extra": {"Authorization": "Bearer abcdefghijk"}})],
        "password in an address": [("labels.explanations.model", "https://me:pass@example.invalid/v1")],
        "token in a header": [("labels.explanations.request", {"extra": {"headers": {"X-API-Key": "anything"}}})],
        "token as a key": [("sweeps", {"hf_" + "aB3" * 11: {"model": "merged"}})],
    },
}  # fmt: skip


@cache
def thought_up() -> list[Mutant]:
    """The good config itself, and what may be met once in a thousand random ones."""
    found = [Mutant("good", "as it is", BASE.encode())]
    for kind, texts in TEXTS.items():
        found += [
            Mutant(kind, what, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
            for what, text in texts.items()
        ]
    for kind, named in EDITS.items():
        found += [Mutant(kind, what, edited(*edits)) for what, edits in named.items()]
    return found
