"""Published SAEs by the names that SAELens gives them: a release and an SAE's id in it.

The table `saelens_releases.json.gz` is made from SAELens's registry (`pretrained_saes.yaml`, MIT licence, whose notice
is in `saelens_releases.LICENSE`) by `python -m benchmarks.saelens_releases --write`. It holds facts only: repositories,
paths, and the names of SAELens's loaders.
"""

import gzip
import json
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.sources import LAYOUTS

TABLE = Path(__file__).with_name("saelens_releases.json.gz")
WITH_FACTOR = "llama_scope_r1_distill"
"""The loader of SAEs whose factor of the input is in the registry only."""
LOADERS = {
    "sae_lens": "saelens",
    "dictionary_learning_1": "dictionary_learning",
    "sparsify": "sparsify",
    "gemma_2": "gemma_scope",
    "gemma_3": "gemma_scope_2",
    "llama_scope": "llama_scope",
    "qwen_scope": "qwen_scope",
    "goodfire": "goodfire",
    "deepseek_r1": "goodfire",
    "connor_rob_hook_z": "hook_z",
    WITH_FACTOR: "llama_scope",
}
"""The format (`foreign.sae_formats`) that each of SAELens's loaders reads."""
OF_ONE_FILE = ("qwen_scope", "goodfire", "hook_z")
"""Formats whose paths name a file, not a folder."""
TRANSCODER = "they are transcoders, whose latents reconstruct another place than the one they are read at"
NO_SAES = {
    "gemma_2_transcoder": TRANSCODER,
    "mwhanna_transcoder": TRANSCODER,
    "mntss_clt_layer_transcoder": TRANSCODER,
    "temporal": "their latents depend on earlier tokens through attention layers of the SAE's own",
}
"""Loaders of what is no SAE of single tokens, with the reason."""
NO_SAE_PATHS = {"gemma_3": re.compile(r"(^|/)(transcoder|clt|crosscoder)")}
"""Paths of a loader that also reads SAEs."""
FOLDED_OVERRIDES = ("dataset_path", "model_from_pretrained_kwargs", "neuronpedia_id")
"""Keys of an SAE's config that a release may override."""
MOST_NAMED, MOST_COMPARED = 5, 200
"""Limits on the names in a message, and on the letters of a name that is looked up."""
NEURONPEDIA = "https://www.neuronpedia.org"
NEURONPEDIA_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""`{model}/{sae}`, as in addresses there."""


class Release(NamedTuple):
    """SAEs that were published together."""

    repo: str
    """The repository on the hub."""
    model: str
    """SAELens's name of the model."""
    loader: str
    """The name of SAELens's loader."""
    overrides: Mapping
    """What SAELens replaces in the configs of its SAEs."""
    saes: Mapping[str, tuple[str, str | None, float | None]]
    """By id: the path in the repository, the id on Neuronpedia, and the factor of the input."""


@cache
def releases() -> tuple[str, Mapping[str, Release]]:
    """The version of SAELens that the table is made from, and all releases by name."""
    content = json.loads(gzip.decompress(TABLE.read_bytes()))
    return content["saelens"], {name: Release(**release) for name, release in content["releases"].items()}


RESOLVED = ("repo", "subfolder", "file", "format", "norm_scaling_factor")
"""Keys that `resolve` fills in; `revision` may be the user's."""


def resolve(block: Mapping, key: str) -> dict:
    """Turn an `import` block that names a release of SAELens into one that names the hub repository.

    Args:
        block: with `saelens: {release, sae_id}`, and perhaps a `revision`, which is `main` by default.
        key: the block's place in the config, for error messages.

    Returns:
        The block with `repo`, `revision`, `subfolder` or `file`, and `format`; its `saelens` also holds the version of
        the table, the `model` and, where there are any, `neuronpedia_id` and `overrides`.

    Raises:
        InputError: if there is no such release or SAE, it cannot be imported, or the block also names another source.
    """
    if "table" in block["saelens"]:  # resolved before, as in the config that a page shows
        block = {name: value for name, value in block.items() if name not in RESOLVED}
    _require_alone(block, key)
    name, sae_id = block["saelens"]["release"], block["saelens"]["sae_id"]
    version, table = releases()
    if name not in table:
        raise InputError(_unknown("release", name, table, f"{key}.saelens.release", f"SAELens {version}"))
    release = table[name]
    if sae_id not in release.saes:
        raise InputError(_unknown("sae_id", sae_id, release.saes, f"{key}.saelens.sae_id", f"the release '{name}'"))
    path, neuronpedia_id, factor = release.saes[sae_id]
    format_name = _readable_format(name, sae_id, f"{key}.saelens")
    record = {"release": name, "sae_id": sae_id, "table": f"sae_lens {version}", "model": release.model}
    record |= {"neuronpedia_id": neuronpedia_id} if neuronpedia_id else {}
    record |= {"overrides": dict(release.overrides)} if release.overrides else {}
    source = {"repo": release.repo, "revision": block.get("revision", "main"), **_place(path, format_name)}
    source |= {"norm_scaling_factor": factor} if release.loader == WITH_FACTOR else {}
    return {**block, **source, "format": format_name, "saelens": record}


def overrides(block: Mapping) -> Mapping:
    """Keys that replace those of an SAE's config, from its resolved `import` block."""
    return block.get("saelens", {}).get("overrides", {})


def neuronpedia_address(sae: object) -> str | None:
    """The address of an SAE's latents on Neuronpedia, to which `/{latent}` is added; None for what is no id of one.

    Args:
        sae: the id, from a file that somebody else wrote.
    """
    return f"{NEURONPEDIA}/{sae}" if isinstance(sae, str) and NEURONPEDIA_ID.fullmatch(sae) else None


def _require_alone(block: Mapping, key: str) -> None:
    given = sorted(block.keys() & {"folder", "repo", "subfolder", "file"})
    given += ["format"] if block.get("format", "auto") != "auto" else []
    if given:
        raise InputError(
            f"{key}: a release of SAELens says where its SAEs lie and who wrote them, so {' and '.join(given)} must be "
            "left out beside saelens; keep one of the two"
        )


def _unknown(what: str, name: str, names: Collection[str], key: str, where: str) -> str:
    """The message on a name that is none of those, with the nearest."""
    near = get_close_matches(name[:MOST_COMPARED], names, n=MOST_NAMED, cutoff=0.4) or sorted(names)[:MOST_NAMED]
    return (
        f"{key}: '{name[:100]}' is no {what} of the {len(names)} in {where}; the nearest are {', '.join(near)}; "
        "correct the name, or name the files with repo, revision and subfolder"
    )


def _readable_format(name: str, sae_id: str, key: str) -> str:
    """The format of an SAE's files.

    Raises:
        InputError: if they cannot be read, with the reason and the way round.
    """
    _, table = releases()
    release = table[name]
    reason = no_sae(release, sae_id)
    if reason:
        others = [
            other
            for other, candidate in table.items()
            if candidate.model == release.model and not all(no_sae(candidate, sae) for sae in candidate.saes)
        ]
        known = (
            f", of which there are {len(others)} for this model ({', '.join(others[:MOST_NAMED])})" if others else ""
        )
        raise InputError(f"{key}: '{name}' cannot be imported, because {reason}; choose a release of SAEs{known}")
    format_name = LOADERS.get(release.loader)
    if reason := _unread(release, sae_id, format_name):
        raise InputError(
            f"{key}: '{name}', '{sae_id[:100]}' cannot be imported as it is, because {reason}; open it by these two "
            "names with SAELens's SAE.from_pretrained, save it with its save_model(FOLDER), and import "
            "{folder: FOLDER}"
        )
    assert format_name is not None
    return format_name


def no_sae(release: Release, sae_id: str) -> str | None:
    """The reason why something in a release is no SAE of single tokens; None if it is one."""
    pattern = NO_SAE_PATHS.get(release.loader)
    if pattern and pattern.search(release.saes[sae_id][0]):
        return TRANSCODER
    return NO_SAES.get(release.loader)


def _unread(release: Release, sae_id: str, format_name: str | None) -> str | None:
    """The reason why an SAE's files cannot be read here, although it is an SAE; None if they can."""
    if format_name not in LAYOUTS:
        return f"files of SAELens's loader {release.loader} are not read here"
    unfolded = [key for key in release.overrides if key not in FOLDED_OVERRIDES]
    if unfolded:
        values = ", ".join(f"{key} with {release.overrides[key]!r}" for key in unfolded)
        return f"SAELens replaces {values} in its config, which cannot be folded into the weights"
    return None


def _place(path: str, format_name: str) -> dict[str, str]:
    """The keys of an `import` block for a path in a repository."""
    if format_name not in OF_ONE_FILE:
        return {"subfolder": path}
    folder = str(PurePosixPath(path).parent)
    return {"file": PurePosixPath(path).name} | ({} if folder == "." else {"subfolder": folder})
