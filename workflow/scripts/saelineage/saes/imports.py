"""Importing third-party SAEs from folders and repositories.

Where a format computes latents differently, the difference is folded into the weights. Latents and reconstructions
then equal those of the format's library, up to rounding in float32. Formats that cannot be folded are refused.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.hub import hub_download
from saelineage.foreign.hub import fetch_sae_config
from saelineage.foreign.sae_formats.registry import SaeSource, describe_source, local_source
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hook_z,
    llama_scope,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from saelineage.saes.sae import Sae, require_finite


class ImportedSae(NamedTuple):
    """An imported SAE and its source."""

    sae: Sae
    format: str
    k: int | None
    """Latents per token that it was trained to keep, if its files say so."""
    files: list[Path]


def find_sae(settings: dict, key: str, check: Callable[[SaeSource], None] = lambda source: None) -> SaeSource:
    """Find the SAE that an `import` block names; only the files of its format are downloaded from the hub.

    Args:
        settings: the block.
        key: the block's place in the config, for error messages.
        check: called before weights, which may be large, are downloaded.

    Raises:
        InputError: if the folder holds no SAE or several, or the hub does not have the repository.
    """
    if "folder" in settings:
        source = local_source(settings)
        check(source)
        return source
    described = fetch_sae_config(settings, key)
    check(described.source)
    weights = hub_download(settings["repo"], described.repo.commit, described.weights, key)
    if described.source.folder is not None:
        return described.source
    n_below = len(PurePosixPath(described.source.weights_name or "").parts)
    return described.source._replace(folder=weights.parents[n_below - 1])


def read_sae(source: SaeSource) -> ImportedSae:
    """Read an SAE of any format.

    Raises:
        InputError: if its files do not conform to the format, or its computation cannot be folded.
    """
    described = describe_source(source)
    sae, k = READERS[source.format](source)
    for size, (said, held) in {"d_in": (described.d_in, sae.d_in), "d_sae": (described.d_sae, sae.d_sae)}.items():
        if said not in (None, held):
            raise InputError(f"'{described.where}' says {size} {said}, but its weights have {held}; {REMEDY}")
    require_finite(dict(sae.named_parameters()), source.weights)  # again, because folding multiplies
    return ImportedSae(sae, source.format, k, source.files)


def _of_files(read: Callable[[Path, Path], tuple[Sae, int | None]]) -> Callable[[SaeSource], tuple[Sae, int | None]]:
    """Read an SAE that its config and its weights describe."""
    return lambda source: read(source.config, source.weights)


def _saelens(source: SaeSource) -> tuple[Sae, int | None]:
    return saelens.read(source.config, source.weights, source.settings.get("norm_scaling_factor"))


READERS: dict[str, Callable[[SaeSource], tuple[Sae, int | None]]] = {
    "saelens": _saelens,
    "dictionary_learning": _of_files(dictionary_learning.read),
    "sparsify": _of_files(sparsify.read),
    "gemma_scope": gemma_scope.read,
    "gemma_scope_2": gemma_scope_2.read,
    "llama_scope": llama_scope.read,
    "qwen_scope": qwen_scope.read,
    "goodfire": goodfire.read,
    "openai": openai.read,
    "hook_z": _of_files(hook_z.read),
}
"""Reading the weights of third-party SAEs, a module per format."""
