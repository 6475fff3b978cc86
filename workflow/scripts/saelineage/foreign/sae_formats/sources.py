"""The files of third-party SAEs: which belong to which format, and where those of one SAE lie."""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.refusals import require_no_transcoders

STEM = "{stem}"
"""In the name of a config: the name of the weights without its ending."""
NEAR_FOLDERS = 5
"""Folders at the end of a path whose names may tell what an SAE is."""


class Layout(NamedTuple):
    """The files of an SAE, relative to its folder."""

    weights: str
    """A name, or a pattern of names if a folder may hold several SAEs."""
    config: str | None = None
    """None if names tell all that is known."""
    needs_config: bool = True
    """False if names can stand in for a missing config."""
    extras: tuple[str, ...] = ()
    """Small files that are read if they are there."""
    unless: str | None = None
    """A file that shows that the others are of another format."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that must be there."""
        return (self.config, self.weights) if self.config and self.needs_config else (self.weights,)


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "saelens": (Layout("sae_weights.safetensors", "cfg.json", extras=("activation_scaler.json",)),),
    "dictionary_learning": (Layout("ae.pt", "config.json"),),
    "sparsify": (Layout("sae.safetensors", "cfg.json"),),
    "gemma_scope": (Layout("params.npz"),),
    "gemma_scope_2": (Layout("params.safetensors", "config.json", needs_config=False),),
    "llama_scope": (
        Layout("checkpoints/final.safetensors", "hyperparams.json"),
        Layout("sae_weights.safetensors", "config.json", unless="cfg.json"),
    ),
    "qwen_scope": (Layout("layer*.sae.pt"),),
    "goodfire": (Layout("*-SAE-l[0-9]*.pt"), Layout("*-SAE-l[0-9]*.pth")),
    "openai": (Layout("[0-9].pt"), Layout("[0-9][0-9].pt")),
    "hook_z": (Layout("*_Hcat_z_*.pt", f"{STEM}_cfg.json"),),
}


class SaeSource(NamedTuple):
    """The location of an SAE's files, of which the weights may not be downloaded yet."""

    folder: Path | None
    """None as long as none of them was downloaded."""
    format: str
    commit: str | None
    """Commit of the hub repository they come from; None for a local folder."""
    weights_name: str | None = None
    """Path of the weights in the folder; None for the usual name."""
    config_name: str | None = None
    """Path of the config in the folder."""
    extras: tuple[str, ...] = ()
    """Paths of further small files in the folder."""
    place: str = ""
    """Repository and subfolder, or the folder, as the user names it."""
    settings: Mapping = {}
    """The `import` block."""

    @property
    def where(self) -> str:
        """The SAE's name for messages: repository or folder, and file."""
        return f"{self.place}/{self.weights_name}" if self.place else str(self.weights)

    @property
    def config(self) -> Path:
        """Its config."""
        return self._path(self.config_name or LAYOUTS[self.format][0].config or "")

    @property
    def weights(self) -> Path:
        """Its weights."""
        return self._path(self.weights_name or LAYOUTS[self.format][0].weights)

    @property
    def files(self) -> list[Path]:
        """All its files."""
        layout = LAYOUTS[self.format][0]
        names = (
            (self.config_name, self.weights_name, *self.extras)
            if self.weights_name
            else (layout.config, layout.weights)
        )
        return [self._path(name) for name in names if name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the folders it lies in, outermost first, as far as they may tell something, and of its file."""
        place = self.place if self.commit else Path(self.place or self.folder or ".").absolute().as_posix()
        return (*PurePosixPath(place).parts[-NEAR_FOLDERS:], PurePosixPath(self.weights_name or "").name)

    @property
    def local_weights(self) -> Path | None:
        """Its weights, if they lie on this machine."""
        return self.weights if self.folder is not None and self.weights.exists() else None

    def _path(self, name: str) -> Path:
        assert self.folder is not None, f"no file of '{self.place}' was downloaded"
        return self.folder / name


def choose_files(names: Collection[str], settings: Mapping, place: str) -> SaeSource:
    """Choose an SAE among the files of a folder or repository.

    The format is `import.format`, or, for `auto`, the only one whose files are present.

    Args:
        names: paths of files relative to the folder; those below it matter for some formats.
        settings: the `import` block.
        place: the repository and subfolder, or the folder.

    Raises:
        InputError: if the files are missing, or there are several SAEs.
    """
    chosen, file = settings["format"], settings.get("file")
    formats = list(LAYOUTS) if chosen == "auto" else [chosen]
    found = [source for format in formats for source in _sources(format, names, chosen == "auto", file)]
    if len(found) == 1:
        return found[0]._replace(place=place, settings=settings)
    if len(present := list(dict.fromkeys(source.format for source in found))) > 1:
        raise InputError(
            f"'{place}' holds SAEs of several formats ({', '.join(present)}); choose one with import.format"
        )
    if found:
        listed = ", ".join(str(source.weights_name) for source in found[:40])
        raise InputError(f"'{place}' holds {len(found)} SAEs ({listed}); name the file of one with import.file")
    require_no_transcoders(names, place)
    listed = f"the file '{file}' of an SAE" if file else "an SAE"
    raise InputError(
        f"'{place}' must hold {listed} ({required_files(formats)}), but holds {sorted(names)[:20]}; name the folder "
        f"with these files{_examples(names, formats)}, and for files under other names import.format and import.file"
    )


def required_files(formats: Collection[str]) -> str:
    """The files of formats, for messages."""
    return "; ".join(
        f"{format}: {' or '.join(' and '.join(layout.files) for layout in LAYOUTS[format])}" for format in formats
    )


def _examples(names: Collection[str], formats: Collection[str]) -> str:
    """Some folders below that hold SAEs, for messages."""
    folders = set()
    for layout in (layout for format in formats for layout in LAYOUTS[format]):
        depth = len(PurePosixPath(layout.weights).parts)
        for parts in (PurePosixPath(name).parts for name in names):
            if len(parts) > depth and fnmatchcase("/".join(parts[-depth:]), layout.weights):
                folders.add("/".join(parts[:-depth]))
    return f", such as {', '.join(repr(folder) for folder in sorted(folders)[:3])}" if folders else ""


def _sources(format: str, names: Collection[str], is_auto: bool, file: str | None) -> Iterator[SaeSource]:
    """The SAEs of a format; a file of a format that the user gives may have any name."""
    chosen = set()
    for layout in LAYOUTS[format]:
        is_of_several = any(character in layout.weights for character in "*[")
        for name in sorted(names):
            if file is not None and name != file:
                continue
            is_named = file is not None and not is_auto and is_of_several
            if name in chosen or layout.unless in names or not (is_named or fnmatchcase(name, layout.weights)):
                continue
            config = layout.config.replace(STEM, PurePosixPath(name).stem) if layout.config else None
            if config is not None and config not in names:
                if layout.needs_config:
                    continue
                config = None
            chosen.add(name)
            extras = tuple(extra for extra in layout.extras if extra in names)
            yield SaeSource(None, format, None, name, config, extras)
