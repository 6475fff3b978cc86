"""All formats of third-party SAEs: reading what an SAE's config and names say, without its weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.releases import overrides
from saelineage.foreign.sae_formats import (
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
from saelineage.foreign.sae_formats.sources import LAYOUTS, SaeSource, choose_files
from saelineage.foreign.sae_formats.values import block
from saelineage.foreign.sae_inputs import RunInput, SaeInput, compare_with_run

OPTIONS = ("k", "norm_scaling_factor")
"""Keys of the `import` block that only some formats need."""


class SaeFormat(NamedTuple):
    """The description of an SAE from what is not its weights."""

    read_config: Callable[[Path], dict] | None
    """Raises InputError if the SAE computes what cannot be imported; None if the format has no config."""
    describe: Callable[[Mapping, SaeSource], SaeInput]
    """From the config, empty if there is none. Raises InputError if names tell that it is no SAE."""
    options: tuple[str, ...] = ()
    """Keys of the `import` block that say what its files do not (`OPTIONS`)."""
    check_header: Callable[[Mapping, Path], None] | None = None
    """Raises InputError if names and shapes of the weights are not those of the config; None if that is left to the
    reader."""


def _by_config(describe: Callable[[Mapping, str], SaeInput]) -> Callable[[Mapping, SaeSource], SaeInput]:
    """Describe an SAE by its config, which is also its name for messages."""
    return lambda config, source: describe(config, str(source.config))


def _saelens(config: Mapping, source: SaeSource) -> SaeInput:
    return saelens.describe(config, str(source.config), source.settings.get("norm_scaling_factor"))


FORMATS = {
    "saelens": SaeFormat(saelens.read_config, _saelens, ("norm_scaling_factor",), saelens.check_header),
    "dictionary_learning": SaeFormat(dictionary_learning.read_config, _by_config(dictionary_learning.describe)),
    "sparsify": SaeFormat(sparsify.read_config, _by_config(sparsify.describe)),
    "gemma_scope": SaeFormat(None, gemma_scope.describe),
    "gemma_scope_2": SaeFormat(gemma_scope_2.read_config, gemma_scope_2.describe),
    "llama_scope": SaeFormat(llama_scope.read_config, llama_scope.describe, ("norm_scaling_factor",)),
    "qwen_scope": SaeFormat(None, qwen_scope.describe, ("k",)),
    "goodfire": SaeFormat(None, goodfire.describe),
    "openai": SaeFormat(None, openai.describe),
    "hook_z": SaeFormat(hook_z.read_config, hook_z.describe),
}


def local_source(settings: Mapping) -> SaeSource:
    """The SAE in the folder that an `import` block names.

    Raises:
        InputError: as for `choose_files`.
    """
    folder = Path(settings["folder"])
    below = {layout.weights for layouts in LAYOUTS.values() for layout in layouts if "/" in layout.weights}
    names = sorted([path.name for path in folder.iterdir()] + [name for name in below if (folder / name).exists()])
    return choose_files(names, settings, str(folder))._replace(folder=folder)


def describe_source(source: SaeSource) -> SaeInput:
    """Read an SAE's config and names, and what they say of its input. Values of unexpected types count as not given.

    If the config names no place, the names of the two folders above may.

    Raises:
        InputError: if it is not a config of the format, the SAE computes what cannot be imported, or the `import` block
            has a key that the format does not need.
    """
    format = FORMATS[source.format]
    unused = [key for key in OPTIONS if source.settings.get(key) is not None and key not in format.options]
    if unused:
        raise InputError(
            f"'{source.where}': its files say all that {source.format} needs; leave import.{unused[0]} out"
        )
    has_config = format.read_config is not None and (source.config_name is not None or source.weights_name is None)
    config = format.read_config(source.config) if format.read_config and has_config else {}
    described = format.describe(_replaced(config, overrides(source.settings)), source)
    if described.readings or not has_config:
        return described
    of_folders = [read_hook_name(folder.name) for folder in source.config.parents[:2]]
    return described._replace(readings=tuple(reading for reading in of_folders if reading.layer is not None)[:1])


def _replaced(config: Mapping, overrides: Mapping) -> Mapping:
    """A config with keys about the input replaced, as SAELens's registry does (`foreign.releases`)."""
    metadata = {"metadata": {**block(config, "metadata"), **overrides}} if "metadata" in config else {}
    return {**config, **overrides, **metadata}


def check_source(source: SaeSource, run: RunInput, key: str) -> list[str]:
    """Refuse an SAE whose config contradicts a run; needs the config, and the header of the weights if they are here.

    Args:
        source: the SAE.
        run: the activations that it is imported for.
        key: the key of the config that names the SAE, for messages.

    Returns:
        What cannot be told for sure, a sentence each.

    Raises:
        InputError: if the config is not one of the format, the SAE is of another place, or its tensors are not those of
            the config.
    """
    sentences = compare_with_run(describe_source(source), run, key)
    format = FORMATS[source.format]
    if format.check_header is not None and format.read_config is not None and source.local_weights is not None:
        format.check_header(format.read_config(source.config), source.local_weights)
    return sentences
