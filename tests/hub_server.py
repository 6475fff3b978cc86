"""A small Hugging Face hub on loopback: it answers the requests for a pinned repository, and fails on demand.

A process started with `hub.environment(home)` uses it instead of the real hub, because HF_ENDPOINT is read at import.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import saelineage
from tests.loopback import serving

SCRIPTS = Path(saelineage.__file__).parent.parent


def commit_of(files: Mapping[str, bytes]) -> str:
    """Return a commit hash like git's: 40 digits that depend on the content."""
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


class Hub:
    """Repositories, the requests so far, and the fault to answer with.

    Attributes:
        requests: `METHOD /path` of every request in order, followed by ` bytes=first-last` if it asks for a range.
        fault: function of such a request; returns `None` (answer), `"cut"` (close the connection half-way through the
            answer), `"close"` (close it without an answer) or an HTTP status to answer with.
    """

    def __init__(self) -> None:
        self.revisions: dict[tuple[str, str], dict[str, Mapping[str, bytes]]] = {}
        self.requests: list[str] = []
        self.fault: Callable[[str], str | int | None] = lambda request: None
        self.url = ""

    def push(self, repo: str, files: Mapping[str, bytes], kind: str = "datasets") -> str:
        """Push files to a repository as the newest commit of its branch `main`, and return the commit."""
        commit = commit_of(files)
        self.revisions.setdefault((kind, repo), {}).update({commit: files, "main": files})
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process that uses this hub alone, a cache in `home` and no proxy."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SCRIPTS),
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port of loopback."""
    hub = Hub()
    with serving(type("HandlerOfHub", (Handler,), {"hub": hub})) as hub.url:
        yield hub


class Handler(BaseHTTPRequestHandler):
    """Answers like huggingface.co, as far as `datasets` and `huggingface_hub` need it."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        """Answer GET, HEAD and POST alike; HEAD is answered without a body."""
        asked = unquote(urlsplit(self.path).path)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {asked} {self.headers.get('Range', '')}".rstrip())
        fault = self.hub.fault(self.hub.requests[-1])
        if fault == "close":
            self.close_connection = True
        elif isinstance(fault, int):
            self._send(fault, b"out of order")
        elif asked.startswith("/api/"):
            self._answer_api(*asked.removeprefix("/api/").split("/"), cut=fault == "cut")
        else:
            self._answer_file(asked, cut=fault == "cut")

    do_HEAD = do_POST = do_GET  # noqa: N815 - names that http.server calls

    def log_message(self, *_args: object) -> None:
        """Say nothing on the console."""

    def _answer_api(self, kind: str, owner: str, name: str, what: str, revision: str, *folder: str, cut: bool) -> None:
        repo = f"{owner}/{name}"
        files = self._files(kind, repo, revision)
        if files is None:
            return
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            answer = {"id": repo, "sha": commit_of(files), "siblings": siblings, "private": False, "tags": []}
        elif what == "tree":
            answer = list_folder(files, "/".join(folder))
        else:
            return self._send(404, b"no such request")
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, cut=cut)

    def _answer_file(self, asked: str, cut: bool) -> None:
        repo, _, rest = asked.removeprefix("/").partition("/resolve/")
        kind = "datasets" if repo.startswith("datasets/") else "models"
        revision, _, path = rest.partition("/")
        files = self._files(kind, repo.removeprefix("datasets/"), revision)
        if files is None:
            return
        if path not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_of(files)})
        content = files[path]
        headers = {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes"}
        if "Range" not in self.headers:
            return self._send(200, content, headers, cut=cut)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._send(206, part, headers, cut=cut)

    def _files(self, kind: str, repo: str, revision: str) -> Mapping[str, bytes] | None:
        """Return the files of a repository at a revision, or answer 404 and return None."""
        revisions = self.hub.revisions.get((kind, repo))
        if revisions is None or revision not in revisions:
            missing = "RepoNotFound" if revisions is None else "RevisionNotFound"
            self._send(404, b"", {"X-Error-Code": missing})
            return None
        return revisions[revision]

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if cut:
            self.close_connection = True
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            self.wfile.write(body)


def list_folder(files: Mapping[str, bytes], folder: str) -> list[dict]:
    """List the files and folders directly in a folder of a repository."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    entries = {}
    for path, content in inside.items():
        name, slash, _ = path.removeprefix(prefix).partition("/")
        if slash:
            entries[name] = {"type": "directory", "path": prefix + name, "oid": blob_id(name.encode()), "size": 0}
        else:
            entries[name] = {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
    return list(entries.values())


def blob_id(content: bytes) -> str:
    """Return 40 digits that depend on a file's bytes."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
