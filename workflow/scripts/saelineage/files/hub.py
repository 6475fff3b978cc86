"""The Hugging Face hub: commits of revisions, file lists of repositories, and downloads of single files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saelineage.errors import InputError

TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500
COMMIT = re.compile(r"[0-9a-f]{40,64}")
"""A commit becomes part of paths in the hub's cache, so nothing else may pass for one."""


class HubRepo(NamedTuple):
    """A repository at one commit."""

    commit: str
    files: list[str]
    """Paths of all its files."""


def hub_commit(repo: str, revision: str, repo_type: str, key: str) -> str:
    """Return the commit that a revision of a hub repository points to now (see `hub_repo`)."""
    return hub_repo(repo, revision, repo_type, key).commit


def hub_repo(repo: str, revision: str, repo_type: str, key: str) -> HubRepo:
    """Look up a repository at the commit that a revision points to now.

    Args:
        repo: `owner/name`.
        revision: a branch, tag or commit.
        repo_type: "model" or "dataset".
        key: the config key that names the repository, for error messages.

    Raises:
        InputError: if the hub has no such repository or revision, or cannot be reached.
    """
    from huggingface_hub import DatasetInfo, HfApi, ModelInfo  # imported here because most jobs need no hub

    with hub_errors(f"{repo_type} '{repo}' at revision '{revision}'", key):
        info = HfApi().repo_info(repo, revision=revision, repo_type=repo_type)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise InputError(f"{key}: the hub must answer with a commit of '{repo}', not {commit!r:.80}; check HF_ENDPOINT")
    assert isinstance(info, ModelInfo | DatasetInfo)
    return HubRepo(commit, [sibling.rfilename for sibling in info.siblings or []])


def hub_download(repo: str, commit: str, file: str, key: str) -> Path:
    """Download one file of a model repository at a commit into the hub's cache, and return its path there.

    Raises:
        InputError: naming `key`, if the repository has no such file or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    if set(PurePosixPath(file).parts) & {"..", "/"}:
        raise InputError(f"{key}: files of '{repo}' must lie in it, but '{file}' does not; choose another repository")
    with hub_errors(f"file '{file}' in '{repo}' at commit '{commit}'", key):
        return Path(hf_hub_download(repo, file, revision=commit))


@contextmanager
def hub_errors(asked: str, key: str) -> Iterator[None]:
    """Turn errors of a request to the hub into one InputError that names what was asked for and the config key."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except Exception as error:
        if is_connection_error(error):
            raise InputError(
                f"{key}: the hub cannot be reached ({first_line(error)}); check the network or HF_ENDPOINT"
            ) from error
        if not isinstance(error, HfHubHTTPError | HFValidationError):
            raise
        raise InputError(
            f"{key}: the hub has no {asked}, or it needs a token (HF_TOKEN): "
            f"{first_line(error).rstrip('.')}; correct {key}.repo or .revision"
        ) from error


def is_connection_error(error: Exception) -> bool:
    """Return True if an exception or one of its causes is a lost or refused connection, not a wrong request."""
    names = {"ConnectionError", "Timeout", "TimeoutException", "TransportError", "ClientError", "FSTimeoutError"}
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ConnectionError | TimeoutError) or names & {base.__name__ for base in type(chain).__mro__}:
            return True
        status = getattr(getattr(chain, "response", None), "status_code", 0)
        if status == TOO_MANY_REQUESTS or status >= SERVER_ERROR:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def first_line(error: Exception) -> str:
    """First line of an exception's text, or the exception's type where the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
