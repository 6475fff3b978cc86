"""All formats of third-party SAEs, and which of them a folder or repository holds."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats import dictionary_learning, saelens, sparsify
from saelineage.foreign.sae_formats.values import block
from saelineage.foreign.sae_inputs import RunInput, SaeInput, compare_with_run


class SaeFormat(NamedTuple):
    """The files of an SAE, relative to its folder, and how its config is read without its weights."""

    config: str
    weights: str
    read_config: Callable[[Path], dict]
    """Raises InputError if the SAE computes what cannot be imported."""
    describe: Callable[[Mapping, str], SaeInput]
    """From the config and a name of the SAE for messages."""

    @property
    def files(self) -> tuple[str, ...]:
        """All files that an SAE of this format must have."""
        return self.config, self.weights


FORMATS = {
    "saelens": SaeFormat("cfg.json", "sae_weights.safetensors", saelens.read_config, saelens.describe),
    "dictionary_learning": SaeFormat(
        "config.json", "ae.pt", dictionary_learning.read_config, dictionary_learning.describe
    ),
    "sparsify": SaeFormat("cfg.json", "sae.safetensors", sparsify.read_config, sparsify.describe),
}


class SaeSource(NamedTuple):
    """The location of an SAE's files, of which the weights may not be downloaded yet."""

    folder: Path
    format: str
    commit: str | None
    """Commit of the hub repository they come from; None for a local folder."""
    overrides: Mapping[str, object] = MappingProxyType({})
    """Keys of its config about its input that SAELens's registry replaces (`foreign.releases`)."""

    @property
    def config(self) -> Path:
        """Its config."""
        return self.folder / FORMATS[self.format].config

    @property
    def weights(self) -> Path:
        """Its weights."""
        return self.folder / FORMATS[self.format].weights

    @property
    def files(self) -> list[Path]:
        """All its files."""
        return [self.folder / name for name in FORMATS[self.format].files]


def choose_format(names: Collection[str], chosen: str, where: str) -> str:
    """Choose the format of a folder with these files: `chosen`, or, for `auto`, the only one whose files are present.

    Args:
        names: paths of files relative to the folder; those below it matter for some formats.
        chosen: `import.format`.
        where: the folder, for messages.

    Raises:
        InputError: if the files are missing, or, for `auto`, there are those of several formats.
    """
    candidates = FORMATS if chosen == "auto" else {chosen: FORMATS[chosen]}
    present = [name for name, format in candidates.items() if set(format.files) <= set(names)]
    if len(present) == 1:
        return present[0]
    if present:
        raise InputError(
            f"'{where}' holds SAEs of several formats ({', '.join(present)}); choose one with import.format"
        )
    required = "; ".join(f"{name}: {' and '.join(format.files)}" for name, format in candidates.items())
    raise InputError(
        f"'{where}' must hold an SAE ({required}), but holds {sorted(names)[:20]}; name the folder with these files"
    )


def local_source(settings: Mapping) -> SaeSource:
    """The SAE in the folder that an `import` block names.

    Raises:
        InputError: as for `choose_format`.
    """
    folder = Path(settings["folder"])
    names = sorted(path.relative_to(folder).as_posix() for path in _possible_files(folder))
    return SaeSource(folder, choose_format(names, settings["format"], str(folder)), None)


def _possible_files(folder: Path) -> list[Path]:
    """The entries of a folder, and files below it that belong to a format."""
    below = {name for format in FORMATS.values() for name in format.files if len(PurePosixPath(name).parts) > 1}
    return [*folder.iterdir(), *(path for name in sorted(below) if (path := folder / name).exists())]


def describe_source(source: SaeSource) -> SaeInput:
    """Read an SAE's config, and what it says of the SAE's input. Values of unexpected types count as not given.

    If the config names no place, the names of the two folders above may.

    Raises:
        InputError: if it is not a config of the format, or the SAE computes what cannot be imported.
    """
    format = FORMATS[source.format]
    config = format.read_config(source.config)
    metadata = {"metadata": {**block(config, "metadata"), **source.overrides}} if "metadata" in config else {}
    described = format.describe({**config, **source.overrides, **metadata}, str(source.config))
    if described.readings:
        return described
    of_folders = [read_hook_name(folder.name) for folder in source.config.parents[:2]]
    return described._replace(readings=tuple(reading for reading in of_folders if reading.layer is not None)[:1])


def check_source(source: SaeSource, run: RunInput, key: str) -> list[str]:
    """Refuse an SAE whose config contradicts a run; needs the config alone.

    Args:
        source: the SAE.
        run: the activations that it is imported for.
        key: the key of the config that names the SAE, for messages.

    Returns:
        What cannot be told for sure, a sentence each.

    Raises:
        InputError: if the config is not one of the format, or the SAE is of another place.
    """
    return compare_with_run(describe_source(source), run, key)
