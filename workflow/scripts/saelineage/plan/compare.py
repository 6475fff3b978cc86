"""The short keys of `config/compare.yaml`, expanded into an ordinary config: my base, my fine-tune, my text.

Everything after this knows ordinary configs only. What the expansion assumes it says in sentences, which the start of
the run and the page show. Each job expands again, so nothing here depends on what changes while a run goes on.
"""

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from saelineage.errors import InputError
from saelineage.foreign.hub import peek_model_config
from saelineage.foreign.models import (
    ADAPTER_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    n_layers,
    n_positions,
    read_config,
    residual_stream,
    weight_files,
)
from saelineage.foreign.tokenizers import VOCABULARY_FILES
from saelineage.foreign.usual_places import SHORT
from saelineage.plan.strict_yaml import plain
from saelineage.plan.text_formats import text_format
from saelineage.plan.user_files import EVERY_FILE, find_files

REQUIRED = {
    "base": "the folder of a model, or owner/name of one on the hub",
    "tuned": "the folder of its fine-tune, or owner/name of one on the hub",
    "text": "a file or folder of text that both models are read on",
}
OPTIONAL = ("hookpoint", "sae")
MADE = ("tokenizer", "models")
"""Blocks that are made from the short keys, and cannot be given beside them."""
PATH_STARTS = ("./", "../", "/", "~")
HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)(?P<subfolder>(/[A-Za-z0-9._-]+)*)(@(?P<revision>[^@\s]+))?"
)
HOOKPOINT = re.compile(rf"[A-Za-z0-9_.]+\.(input|output)|{SHORT.pattern}")
RELEASED = re.compile(r"(?P<release>[A-Za-z0-9._-]+):(?P<sae_id>[^\s:@]+(:[^\s:@]+)*)(@(?P<revision>[^@\s]+))?")
"""An SAE by SAELens's names. Repositories on the hub have no colon in their names."""
MAIN = "main"
LONGEST_ROW = 128
"""Tokens of a row, unless a model has fewer positions."""
FEW_FILES = 100
"""Texts below which each paragraph, not each file, is a document, because documents are dealt to three splits."""
PARAGRAPHS = "\n\n"
NEAR = 0.75
"""Least likeness of a key and of what it was meant to be (difflib)."""
ONE_CORPUS = (
    "the {n} files of text are read as one corpus; to see what changed on each, give one of them as text and the "
    "others as corpora, such as text=A.jsonl 'corpora={{b: {{source: files, path: B.jsonl}}}}'"
)


def expand(config: Mapping) -> tuple[Mapping, list[str]]:
    """Expand the short keys of a config. A config without any of them is returned as it is.

    Args:
        config: as Snakemake merged it from the config files and `--config`.

    Returns:
        An ordinary config, and what was assumed, a sentence each.

    Raises:
        InputError: if a short key is missing or names nothing that can be compared.
    """
    if not config.keys() & {*REQUIRED, *OPTIONAL}:
        return config, []
    given = plain(config)
    short = {key: given.pop(key, None) for key in (*REQUIRED, *OPTIONAL)}
    _require_short(short, given)
    base, tuned = (_place(short[key], key, "model") for key in ("base", "tuned"))
    hookpoint = short["hookpoint"] or _block(given, "activations").get("hookpoint")
    models = {
        "base": _model_block(base, "base", []),
        "tuned": _model_block(tuned, "tuned", ["base"]),
    }
    corpus, text_sentences = _corpus(short["text"], given)
    sae, sae_sentences = _saes(short["sae"], hookpoint)
    configs = [_model_config(place, key, hookpoint) for key, place in (("base", base), ("tuned", tuned))]
    if "folder" in base:
        _require_tokenizer(base["folder"])
    rows, row_sentences = _row(configs, given)
    is_given = "hookpoints" in _block(given, "activations")
    place, place_sentences = ({}, []) if is_given else _hookpoint(hookpoint, configs[0])
    made = {
        "corpora": {"text": corpus},
        "tokenizer": _tokenizer_block(base),
        "models": models,
        "tokens": rows,
        "activations": place,
        **sae,
    }
    sentences = [*_moving({"base": base, "tuned": tuned}), *place_sentences, *row_sentences]
    return _merged(made, given), [*sentences, *text_sentences, *sae_sentences]


def _require_short(short: Mapping, given: Mapping) -> None:
    """The short keys are there as text, and nothing contradicts them."""
    for key in MADE:
        if key in given:
            raise InputError(
                f"{key}: must be left out beside base, tuned and text, from which it is made, but is given; run with "
                f"--configfile config/compare.yaml, or leave out {' and '.join(k for k in short if short[k])}"
            )
    for key, meaning in REQUIRED.items():
        if short[key] in (None, ""):
            near = get_close_matches(key, list(given), n=1, cutoff=NEAR)
            instead = f", in place of {near[0]}=" if near else ""
            raise InputError(f"{key}: must be given: {meaning}; add {key}=... after --config{instead}")
    if near := get_close_matches("hookpoint", list(given), n=1, cutoff=NEAR):
        raise InputError(f"{near[0]}: is no key of a config; did you mean hookpoint?")
    for key, value in short.items():
        if isinstance(value, list):
            raise InputError(f"{key}: must be one path, but is a list of {len(value)}; put the files into one folder")
        if value is not None and not isinstance(value, str):
            raise InputError(f"{key}: must be text, not {value!r:.60}; write a path as ./{str(value)[:60]}")
    hookpoint = short["hookpoint"]
    if hookpoint and not HOOKPOINT.fullmatch(hookpoint):
        raise InputError(
            f"hookpoint: must be the name of a module, as print(model) shows it, and .output or .input, such as "
            f"model.layers.12.output, or a short name such as resid_post.12, not '{hookpoint:.80}'; correct it, or "
            "leave it out for the middle layer"
        )


def _place(text: str, key: str, kind: str) -> dict:
    """The folder that a short key names, if it exists or is written like a path, or else the repository of the hub."""
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return {"folder": path}
    if os.path.exists(path) or text.startswith(PATH_STARTS):
        problem = "is a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"{key}: must be the folder of the {kind}, but '{text}' {problem}; correct the path")
    name = HUB_NAME.fullmatch(text)
    if name is None or (name["subfolder"] and kind == "model"):
        raise InputError(
            f"{key}: must be a folder that exists, or owner/name[@revision] of the hub, but '{text}' is neither; "
            "correct it, or write a path as ./PATH"
        )
    place = {"repo": name["repo"], "revision": name["revision"] or MAIN}
    return place | ({"subfolder": name["subfolder"][1:]} if name["subfolder"] else {})


def _require_tokenizer(folder: str) -> None:
    if not any(Path(folder, name).exists() for name in VOCABULARY_FILES):
        raise InputError(
            f"base: must have its tokenizer beside it, because all models are read with it, but '{folder}' holds none "
            f"of {', '.join(VOCABULARY_FILES)}; save it there (AutoTokenizer.from_pretrained, then save_pretrained)"
        )


def _model_block(place: dict, key: str, parents: list[str]) -> dict:
    """The block of a model, or of an adapter to its parent."""
    if "repo" in place:
        return {"hub": place | {"parents": parents}}
    folder = place["folder"]
    names = sorted(os.listdir(folder))
    if ADAPTER_FILE not in names or {WEIGHTS_FILE, INDEX_FILE} & set(names):
        return {"path": place | {"parents": parents}}
    if not parents:
        raise InputError(
            f"{key}: must be a whole model, but '{folder}' is an adapter to one ({ADAPTER_FILE}); give that model as "
            f"{key}, and the adapter as tuned"
        )
    return {"adapter": place | {"parent": parents[0]}}


def _model_config(place: dict, key: str, hookpoint: str | None) -> dict | None:
    """A model's config.json; None for an adapter, and for the hub if the hookpoint is known without it."""
    if "repo" in place:
        return _hub_config(place, key) if hookpoint is None and key == "base" else None
    if Path(place["folder"], ADAPTER_FILE).exists() and not Path(place["folder"], "config.json").exists():
        return None
    try:
        weight_files(place["folder"])
        return read_config(place["folder"])
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def _hub_config(place: dict, key: str) -> dict:
    try:
        return peek_model_config(place, key)
    except InputError as error:
        reason = str(error).removeprefix(f"{key}: ").rpartition("; ")[0]
        raise InputError(
            f"{key}: '{place['repo']}' is no folder here, so its {CONFIG_FILE} is read from the hub, to find the "
            f"middle layer, but {reason}; correct {key}, or name the place with hookpoint=MODULE.output"
        ) from error


def _tokenizer_block(base: dict) -> dict:
    return {"source": "path", "path": base["folder"]} if "folder" in base else {"source": "hub"} | base


def _hookpoint(given: str | None, config: Mapping | None) -> tuple[dict, list[str]]:
    """The hookpoint: the given one, or the residual stream after the middle layer."""
    if given is not None or config is None:
        return {"hookpoint": given}, []
    count = n_layers(config)
    if count is None:
        raise InputError(
            "hookpoint: must be given, because config.json of the base does not say how many layers it has, and the "
            "middle one is the default; add hookpoint=MODULE.output, with a name that print(model) shows for a layer"
        )
    hookpoint = residual_stream(config, count // 2)
    return {"hookpoint": hookpoint}, [
        f"the hookpoint is {hookpoint}, the residual stream after layer {count // 2} of the {count} layers (counted "
        "from 0); choose another with hookpoint="
    ]


def _row(configs: Sequence[Mapping | None], given: Mapping) -> tuple[dict, list[str]]:
    """The length of rows: the most that all models have positions for, up to `LONGEST_ROW`."""
    if "n_ctx" in _block(given, "tokens"):
        return {}, []
    limits = [limit for config in configs if config is not None and (limit := n_positions(config))]
    n_ctx = min([LONGEST_ROW, *limits])
    return {"n_ctx": n_ctx}, [f"the models are read in rows of {n_ctx} tokens (tokens.n_ctx)"]


def _corpus(text: str, given: Mapping) -> tuple[dict, list[str]]:
    """The corpus of a file or folder. Few texts are split at blank lines."""
    path = os.path.expanduser(text)
    root = str(given.get("corpora_dir") or ".")
    where = os.path.join(root, path)
    if not os.path.exists(where):
        raise InputError(f"text: must be a file or folder that exists, but '{text}' does not; correct the path")
    if os.path.isdir(where) and not os.listdir(where):
        raise InputError(f"text: must be a file or folder of text, but '{text}' is empty; correct the path")
    block = {"source": "files", "path": path, **_block(_block(given, "corpora"), "text")}
    files = find_files("text", {"glob": EVERY_FILE} | block, root)
    together = [ONE_CORPUS.format(n=len(files))] if len(files) > 1 else []
    if "separator" in block or len(files) >= FEW_FILES or any(text_format(file).is_table for file in files):
        return block, together
    counted = "one text file" if len(files) == 1 else f"{len(files)} text files"
    return block | {"separator": PARAGRAPHS}, [
        f"the text is {counted}, so each paragraph (up to a blank line) counts as a document; give corpora.text."
        "separator for another mark between documents",
        *together,
    ]


def _saes(text: str | None, hookpoint: str | None) -> tuple[dict, list[str]]:
    """Blocks about SAEs: trained ones, or a given one of the base, from which the others start."""
    if text is None:
        return {}, ["no SAE is given, so SAEs of both models are trained on the text"]
    if hookpoint is None:
        raise InputError(
            "hookpoint: must be given together with sae, because an SAE is read where it was trained; add "
            "hookpoint=MODULE.output or MODULE.input, such as hookpoint=model.layers.12.output"
        )
    place = _sae_place(text)
    saes = {"seeds": [0], "models": {"base": {"seed0": {"import": place}}}}
    return {"saes": saes, "lineage": {"instruments": ["anchored", "frozen"]}}, [
        *(_moving({"sae": place}) if "saelens" not in place else _moving_release(place, text)),
        "the base's SAE is the given one; those of other models start from it, so there is one seed, and nothing "
        "tells which features are identified",
    ]


def _sae_place(text: str) -> dict:
    """An `import` block: of a published SAE (`RELEASE:SAE_ID`), a folder, or a repository of the hub."""
    released = None if os.path.exists(os.path.expanduser(text)) else RELEASED.fullmatch(text)
    if released is None:
        return _place(text, "sae", "SAE")
    named = {"release": released["release"], "sae_id": released["sae_id"]}
    return {"saelens": named, "revision": released["revision"] or MAIN}


def _moving_release(place: Mapping, text: str) -> list[str]:
    """Say that a published SAE is taken at a revision that can change."""
    if place["revision"] != MAIN:
        return []
    return [
        f"sae is a release of SAELens, at revision {MAIN} of its repository, which can move; write "
        f"{text.removesuffix(f'@{MAIN}')}@COMMIT to keep what is compared"
    ]


def _moving(places: Mapping[str, Mapping]) -> list[str]:
    """Say which places on the hub can change."""
    return [
        f"{key} is '{place['repo']}' of the hub, because no such folder is here, at revision {MAIN}, which can move; "
        f"write {place['repo']}@COMMIT to keep what is compared"
        for key, place in places.items()
        if place.get("revision") == MAIN
    ]


def _block(config: Mapping, key: str) -> Mapping:
    """A block of the given config; empty if it is missing, or is none, which the schema then refuses."""
    block = config.get(key)
    return block if isinstance(block, Mapping) else {}


def _merged(made: Mapping, given: Mapping) -> dict:
    """What was made, with everything that the config gives itself in its place."""
    both = {
        key: _merged(made[key], given[key])
        for key in made.keys() & given.keys()
        if isinstance(made[key], Mapping) and isinstance(given[key], Mapping)
    }
    return {**made, **given, **both}
