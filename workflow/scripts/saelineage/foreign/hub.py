"""The small files of models and SAEs on the hub, downloaded before anything large."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.hub import HubRepo, hub_download, hub_repo
from saelineage.foreign.adapters import read_adapter_config, require_adapter_files
from saelineage.foreign.models import (
    ADAPTER_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    check_config,
    no_safetensors,
    read_config,
)
from saelineage.foreign.sae_formats.sources import SaeSource, choose_files


class HubModel(NamedTuple):
    """A model on the hub whose small files are here."""

    repo: HubRepo
    weights: str
    """Its weights file, or the index of several, which is not downloaded yet."""
    files: list[Path]
    """The files that are here, config.json first."""

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.files[0].parent


class HubAdapter(NamedTuple):
    """An adapter on the hub whose config is here."""

    repo: HubRepo
    path: Path
    """Its config."""
    config: dict

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.path.parent


class HubSae(NamedTuple):
    """An SAE on the hub whose config is here."""

    repo: HubRepo
    source: SaeSource
    weights: str
    """Its weights file in the repository, which is not downloaded yet."""


def fetch_model_config(settings: Mapping, key: str, names: Iterable[str], n_ctx: int | None) -> HubModel:
    """Download and check a model's config.json, and download other small files.

    Args:
        settings: the model's block, with a repo and its revision.
        key: the block's place in the config, for error messages.
        names: the other files; those that the repository does not have are passed over.
        n_ctx: tokens of a row; None leaves out the check of positions.

    Raises:
        InputError: if the hub does not have the model, or not as safetensors, or config.json shows that it cannot be
            used.
    """
    repo = hub_repo(settings["repo"], settings["revision"], "model", key)
    weights = next((name for name in (WEIGHTS_FILE, INDEX_FILE) if name in repo.files), None)
    if weights is None:
        raise InputError(f"{key}: {no_safetensors(repr(settings['repo']), repo.files)}")
    small = [CONFIG_FILE, *sorted(set(names) & set(repo.files) - {CONFIG_FILE})]
    model = HubModel(repo, weights, [hub_download(settings["repo"], repo.commit, name, key) for name in small])
    check_config(read_config(model.folder), key, n_ctx)
    return model


def fetch_adapter_config(settings: Mapping, key: str) -> HubAdapter:
    """Download and check an adapter's config.

    Args:
        settings: the adapter's block, with a repo and its revision.
        key: the block's place in the config, for error messages.

    Raises:
        InputError: if the hub does not have the repository, it holds no adapter in safetensors, or its config shows
            that it cannot be used.
    """
    repo = hub_repo(settings["repo"], settings["revision"], "model", key)
    require_adapter_files(repo.files, f"{key}: '{settings['repo']}'")
    path = hub_download(settings["repo"], repo.commit, ADAPTER_FILE, key)
    return HubAdapter(repo, path, read_adapter_config(path.parent))


def cached_model_config(settings: Mapping) -> dict | None:
    """Read the config.json of a model on the hub from the hub's cache on this machine; None if it is not there.

    Args:
        settings: the model's block, with a repo and its revision.

    Raises:
        InputError: if the file shows that the model cannot be used.
    """
    from huggingface_hub import try_to_load_from_cache  # imported here because most runs need no hub

    cached = try_to_load_from_cache(settings["repo"], CONFIG_FILE, revision=settings["revision"])
    return read_config(Path(cached).parent) if isinstance(cached, str) else None


def peek_model_config(settings: Mapping, key: str) -> dict:
    """Read the config.json of a model on the hub: the copy in the hub's cache, or else a fresh one.

    Args:
        settings: the model's block, with a repo and its revision.
        key: the config key that names the repository, for error messages.

    Raises:
        InputError: if the hub has no such file or cannot be reached, or the file shows that the model cannot be used.
    """
    if (cached := cached_model_config(settings)) is not None:
        return cached
    return read_config(hub_download(settings["repo"], settings["revision"], CONFIG_FILE, key).parent)


def fetch_sae_config(settings: Mapping, key: str) -> HubSae:
    """Download an SAE's config.

    Args:
        settings: the `import` block, with a repo, its revision and perhaps a subfolder, or a path to a file.
        key: the block's place in the config, for error messages.

    Raises:
        InputError: if the hub does not have the repository, or it holds no SAE there or several.
    """
    repo = hub_repo(settings["repo"], settings["revision"], "model", key)
    subfolder = PurePosixPath(settings.get("subfolder", "."))
    if str(subfolder) in repo.files:  # the path of an SAE, as in SAELens's registry, may be that of a file
        settings, subfolder = {**settings, "file": subfolder.name}, subfolder.parent
    paths = [PurePosixPath(path) for path in repo.files]
    names = [str(path.relative_to(subfolder)) for path in paths if path.is_relative_to(subfolder)]
    source = choose_files(names, settings, str(PurePosixPath(settings["repo"], subfolder)))
    source = source._replace(commit=repo.commit)
    for name in [name for name in (source.config_name, *source.extras) if name]:
        path = hub_download(settings["repo"], repo.commit, str(subfolder / name), key)
        source = source._replace(folder=path.parent)
    return HubSae(repo, source, str(subfolder / str(source.weights_name)))
