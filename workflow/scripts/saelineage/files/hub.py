"""The hub: which commit a revision stands for, what a repository holds, and single files of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saelineage.errors import InputError

TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500
COMMIT = re.compile(r"[0-9a-f]{40,64}")
"""It becomes part of paths in the hub's cache."""


class HubRepo(NamedTuple):
    """A repository at one commit."""

    commit: str
    files: list[str]
    """Paths of all its files."""


def hub_commit(repo: str, revision: str, repo_type: str, key: str) -> str:
    """The commit that a revision of a hub repository stands for now (see `hub_repo`)."""
    return hub_repo(repo, revision, repo_type, key).commit


def hub_repo(repo: str, revision: str, repo_type: str, key: str) -> HubRepo:
    """A repository as a revision of it stands now.

    Raises:
        InputError: naming `key`, if the hub does not know it or cannot be reached.
    """
    from huggingface_hub import HfApi  # here, for most jobs need no hub

    with hub_errors(f"{repo_type} '{repo}' at revision '{revision}'", key):
        info = HfApi().repo_info(repo, revision=revision, repo_type=repo_type)
    if not COMMIT.fullmatch(str(info.sha)):
        raise InputError(
            f"{key}: the hub must answer with a commit of '{repo}', not {info.sha!r:.80}; check HF_ENDPOINT"
        )
    return HubRepo(info.sha, [sibling.rfilename for sibling in info.siblings or []])


def hub_download(repo: str, commit: str, file: str, key: str) -> Path:
    """One file of a model repository at a commit, in the hub's cache.

    Raises:
        InputError: naming `key`, if it is not there or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    if set(PurePosixPath(file).parts) & {"..", "/"}:
        raise InputError(f"{key}: files of '{repo}' must lie in it, but '{file}' does not; take another repository")
    with hub_errors(f"file '{file}' in '{repo}' at commit '{commit}'", key):
        return Path(hf_hub_download(repo, file, revision=commit))


@contextmanager
def hub_errors(asked: str, key: str) -> Iterator[None]:
    """Say in one sentence what went wrong when the hub was asked for something."""
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
    """Whether an exception, or one that caused it, is a lost or refused connection rather than a wrong request."""
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
    """The first line of an exception's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
