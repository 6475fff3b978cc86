"""Importing third-party SAEs from folders and repositories.

Where a format computes latents differently, the difference is folded into the weights. Latents and reconstructions
then equal those of the format's library, up to rounding in float32. Formats that cannot be folded are refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from saelineage.files.hub import hub_download
from saelineage.foreign.hub import fetch_sae_config
from saelineage.foreign.sae_formats.registry import SaeSource, local_source
from saelineage.saes.formats import dictionary_learning, saelens, sparsify
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
    hub_download(settings["repo"], described.repo.commit, described.weights, key)
    return described.source


def read_sae(source: SaeSource) -> ImportedSae:
    """Read an SAE of any format.

    Raises:
        InputError: if its files do not conform to the format, or its computation cannot be folded.
    """
    sae, k = READERS[source.format](source.config, source.weights)
    require_finite(dict(sae.named_parameters()), source.weights)  # again, because folding multiplies
    return ImportedSae(sae, source.format, k, source.files)


READERS: dict[str, Callable[[Path, Path], tuple[Sae, int | None]]] = {
    "saelens": saelens.read,
    "dictionary_learning": dictionary_learning.read,
    "sparsify": sparsify.read,
}
