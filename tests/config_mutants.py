"""Configs with mistakes: a good config changed at random, and hand-made ones.

Each is the bytes of a file, because many mistakes are made before there is a mapping. Some are good after all, because
a changed number may be as good as the original.
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
  again: {twin: {of: left, seed: 1}}
  more: {continued: {parent: base, like: left}}
activations: {hookpoint: model.layers.1.mlp.down_proj.input, dtype: float16, max_tokens: 8192, n_shards: 2}
saes:
  architecture: topk
  expansion_factor: 4
  k: 8
  seeds: [0, 1]
  batch_tokens: 512
  anchored: {learning_rate: 0.0005}
  models: {left: {n_tokens: 4096}, theirs: {seed0: {import: {folder: sae, format: auto}}}}
correlations: {min_firings: 10, top_matches: 4, random_controls: [shifted, rotated]}
lineage: {threshold: 0.8, instruments: [anchored, independent], budgets: [2048], n_replicates: 20}
labels: {syntax: {lua: lua}, explanations: {model: words, request: {temperature: 0.5}}}
sweeps: {merged: {model: merged, over: {t: [0.0, 0.5, 1.0]}, corpora: [lua]}}
report: {n_features: 2, quantiles: [0.75, 0.25]}
threads: {models: 1}
"""

VALUES: list[object] = [
    *(0, -1, 1, 3, 10**30, -(10**30), 2**63, 1e308, 1e-320, 0.0, -0.5, 1.5, float("nan"), float("inf"), float("-inf")),
    *(True, False, None, "", " ", "a", "0", "1e3", "1e-400", "null", "base", "../x", "/etc/passwd", "a\0b", "\x1b[2J"),
    *("é", "模型", "\u202eevil", "a\nb", "x" * 300, "x" * 20_000, "{run}", "{{7*7}}", "$(id)", "~", "*", "C:\\x", "-"),
    *([], [[]], [None], {}, {"a": 1}, [1, 1], ["lua", "lua"], [0.5, 0.5], ["x"] * 1000, b"bytes", {"": {}}),
]
NAMES = [
    *(
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
    ),
    *("shifted", "left_shifted", "\x1b[2J", "__proto__", "__use_yte", "nul", "{run}", "*", "null", "true", "1", "1.5"),
]
PARENTS = ["base", "left", "right", "merged", "random", "theirs", "far", "again", "more", "nobody", "", "Base", "base "]


class Mutant(NamedTuple):
    """A config file with a mistake."""

    kind: str
    what: str
    """A few words on the mistake."""
    content: bytes


class Place(NamedTuple):
    """A place in a config."""

    inside: dict | list
    """The mapping or list that holds the value."""
    key: str | int
    path: str
    """Dotted."""

    @property
    def value(self) -> object:
        if isinstance(self.inside, dict):
            return self.inside[self.key]
        return self.inside[int(self.key)]

    def put(self, value: object) -> str:
        """Replace the value; say what there is now."""
        if isinstance(self.inside, dict):
            self.inside[self.key] = value
        else:
            self.inside[int(self.key)] = value
        return f"= {value!r:.40}"

    def take(self) -> object:
        """Remove the value and return it."""
        return self.inside.pop(self.key) if isinstance(self.inside, dict) else self.inside.pop(int(self.key))


def lay_out(folder: Path) -> None:
    """Make the files that the good config names."""
    for name in ("texts", "theirs", "sae"):
        (folder / name).mkdir(parents=True)
    (folder / "texts" / "one.txt").write_text("One.<|endoftext|>Two.", encoding="utf-8")


def good() -> dict:
    """The config that mutants are made from."""
    return yaml.load(BASE, Loader=yaml.CSafeLoader)


def mutants(n: int, seed: int) -> list[Mutant]:
    """All hand-made mutants, and random ones up to n in all."""
    draw = random.Random(seed)
    kinds = sorted(RANDOM)
    n_random = max(0, n - len(hand_made()))
    return [*hand_made(), *(RANDOM[kinds[place % len(kinds)]](draw) for place in range(n_random))]


# At random.


def places(value: object, path: str = "") -> list[Place]:
    """All places below a value."""
    if not isinstance(value, dict | list):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    here = [Place(value, key, f"{path}.{key}".lstrip(".")) for key, _ in items]
    return [place for outer in here for place in [outer, *places(outer.value, outer.path)]]


def dump(config: object) -> bytes:
    """A config as YAML."""
    return yaml.dump(config, Dumper=yaml.CDumper, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def change(kind: str, edit: Callable[[random.Random, Place], str]) -> Callable[[random.Random], Mutant]:
    """A kind of mutant: one place of the good config is edited."""

    def make(draw: random.Random) -> Mutant:
        config = good()
        place = draw.choice(places(config))
        what = edit(draw, place)
        return Mutant(kind, f"{place.path} {what}"[:100], dump(config))

    return make


def wrong_value(draw: random.Random, place: Place) -> str:
    return place.put(deepcopy(draw.choice(VALUES)))


def missing(_draw: random.Random, place: Place) -> str:
    place.take()
    return "is missing"


def unknown(draw: random.Random, place: Place) -> str:
    name = draw.choice(["kk", "seed", "path", "extra", *NAMES])
    place.put(place.value | {name: 1} if isinstance(place.value, dict) else {name: place.value})
    return f"+ {name!r:.40}"


def renamed(draw: random.Random, place: Place) -> str:
    name, value = draw.choice(NAMES), place.take()
    if isinstance(place.inside, dict):
        place.inside[name] = value
    else:
        place.inside.append({name: value})
    return f"-> {name!r:.40}"


def other_shape(draw: random.Random, place: Place) -> str:
    value = place.value
    shapes = [[value], {"a": value}, str(value), list(value) if isinstance(value, dict) else [value, value]]
    place.put(draw.choice(shapes))
    return f"as {type(place.value).__name__}"


def swapped(draw: random.Random, place: Place) -> str:
    source = draw.choice(places(good()))
    place.put(source.value)
    return f"= value of {source.path}"


def parents(draw: random.Random) -> Mutant:
    """Give two models other parents: unknown ones, themselves, each other."""
    config = good()
    models, changes = config["models"], []
    for model in draw.sample(["left", "right", "merged", "theirs", "random", "again", "more"], 2):
        first, second = draw.choice(PARENTS), draw.choice(PARENTS)
        (kind,) = models[model]
        key = {"finetune": "parent", "reinitialise": "like", "twin": "of", "continued": "parent"}.get(kind, "parents")
        models[model][kind][key] = [first, second] if key == "parents" else first
        changes.append(f"{model} from {models[model][kind][key]}")
    return Mutant("parents", "; ".join(changes), dump(config))


def twice(draw: random.Random) -> Mutant:
    """Repeat one line of the file."""
    lines = dump(good()).decode().splitlines(keepends=True)
    line = draw.randrange(len(lines))
    return Mutant("line twice", lines[line].strip()[:60], "".join([*lines[: line + 1], *lines[line:]]).encode())


def damaged(draw: random.Random) -> Mutant:
    """Change or remove some bytes, or cut the file off."""
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


# Hand-made.


def edited(*edits: tuple[str, object]) -> bytes:
    """The good config with values at dotted paths set, or removed if the value is `...`."""
    config = good()
    for path, value in edits:
        *keys, last = path.split(".")
        inside = config
        for key in keys:
            inside = inside[key]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
    return dump(config)


def doubled(levels: int) -> str:
    """Aliases of lists of aliases, nine times as many at every level."""
    rows = [f"a0: &a0 [{', '.join('x' * 9)}]"]
    return "\n".join([*rows, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))])


def merged_often(levels: int) -> str:
    """Merges of merges, nine times as many entries at every level."""
    rows = ["a0: &a0 {x: 1, y: 2}"]
    return "\n".join([*rows, *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels))])


def generations(n: int) -> dict:
    """A model, a fine-tune of it, and then merges of the last two models."""
    models = good()["models"]
    line = {"g0": models["base"], "g1": {"finetune": models["left"]["finetune"] | {"parent": "g0"}}}
    return line | {f"g{k}": {"merge": {"parents": [f"g{k - 1}", f"g{k - 2}"]}} for k in range(2, n)}


def descendants(n: int) -> dict:
    """A chain of fine-tunes."""
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
        "impossible date": BASE.replace("run: fuzz", "run: 2020-13-41"),
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
        "one parent twice": [("models.merged.merge.parents", ["left", "left"])],
        "three parents": [("models.merged.merge.parents", ["left", "right", "base"])],
        "45 generations of merges": [("models", generations(45)), ("saes.models", {}), ("sweeps", {})],
        "60 generations": [("models", descendants(60)), ("saes.models", {}), ("sweeps", {})],
        "250 generations": [("models", descendants(250)), ("saes.models", {}), ("sweeps", {})],
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
        "folder that is a file": [("models.theirs.path.folder", "texts/one.txt")],
        "NUL in a folder": [("models.theirs.path.folder", "a\0b")],
        "folder of 5,000 characters": [("models.theirs.path.folder", "x" * 5000)],
        "corpus of 5,000 characters": [("corpora.own.path", "x" * 5000)],
        "corpora_dir of 5,000 characters": [("corpora_dir", "x" * 5000)],
        "glob that is absolute": [("corpora.own.glob", "/etc/*")],
        "glob that leads out": [("corpora.own.glob", "../../*")],
        "glob of stars": [("corpora.own.glob", "**x")],
        "glob of brackets": [("corpora.own.glob", "[")],
        "subfolder that leads out": [
            ("saes.models.theirs.seed0.import", {"repo": "a/b", "revision": "main", "subfolder": "../x"})
        ],
        "repo that is a path": [("models.far.hub.repo", "../../etc/passwd")],
        "run that leads out": [("run", "../x")],
        "run that is absolute": [("run", "/etc/x")],
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
def hand_made() -> list[Mutant]:
    """The good config itself, and mistakes that random changes rarely make.

    `tests/unit/plan/test_config.py` has keys that contradict each other, with their messages.
    """
    made = [Mutant("good", "as it is", BASE.encode())]
    for kind, texts in TEXTS.items():
        made += [
            Mutant(kind, what, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
            for what, text in texts.items()
        ]
    for kind, named in EDITS.items():
        made += [Mutant(kind, what, edited(*edits)) for what, edits in named.items()]
    return made
