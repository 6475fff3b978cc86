"""Manifests: what each job wrote, from what, with which settings, code and versions.

A job that fills a folder writes `manifest.json` in it; one that writes single files writes `{stem}.manifest.json`
beside each.
"""

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from saelineage.errors import InputError
from saelineage.files.atomic import may_be_abandoned, read_json, sha256_file, sha256_json, write_json

DECIDES_RESULTS = False

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "numba",
    "scipy",
    "pandas",
    "pyarrow",
    "plotly",
    "jinja2",
    "requests",
    "tree_sitter",
    "tree_sitter_python",
    "tree_sitter_lua",
)

RESULTS = "results"
"""Where manifests are this workflow's; elsewhere a file of that name is the user's own."""
LARGE_BYTES = 1 << 30
MOST_NAMED = 5
NO_MANIFEST = (InputError, KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What reading a manifest ends in when it is none."""


class Problem(NamedTuple):
    """What is wrong with a run's files in one place."""

    what: str
    """A sentence without a full stop."""
    remove: list[str]
    """What to delete, so that Snakemake makes it again."""

    def __str__(self) -> str:
        return f"{self.what}: rm -f {shlex.join(self.remove)}"


class Check(NamedTuple):
    """What `check_run` found."""

    problems: list[Problem]
    leftovers: list[str]
    """Temporary files of processes that were killed, or of other hosts; they harm nothing."""
    n_manifests: int
    n_bytes: int
    """Of the files that were read."""


def manifest_path(path: Path | str) -> Path:
    """The manifest of a file that has one of its own: `shard.safetensors` -> `shard.manifest.json`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.manifest.json")


def recorded_sha256(path: Path | str) -> str | None:
    """The sha256 that a manifest beside or above `path` holds for it, or None where no manifest names it."""
    found = _recorded(Path(path))
    return found[1]["sha256"] if found else None


def require_inputs(paths: Iterable[Path | str]) -> None:
    """Refuse inputs that are not what their manifests say; files that no manifest names are the user's own.

    Only files that changed after they were recorded are read; `check_run` reads them all.

    Raises:
        InputError: naming the first such file, and what to delete.
    """
    for path in sorted(map(Path, paths)):
        found = _recorded(path)
        if found and _has_changed(path, found[0], found[1]["bytes"]) and not _is_whole(path, found[1]):
            raise InputError(
                f"'{path}' is not the file that was made here: its sha256 is not that of '{found[0]}'; "
                f"delete both and run again: rm -f {shlex.join([str(path), str(found[0])])}"
            )


def record_job(snakemake: Any, **found: object) -> None:
    """Write the manifests of a finished job, as its rule declares them: each for the outputs beside and below it.

    Args:
        snakemake: the script's object: its inputs, outputs, params, wildcards and threads.
        **found: what the job learnt and should be on record, such as the commit behind a hub revision.
    """
    outputs = [Path(path) for path in snakemake.output]
    manifests = [path for path in outputs if path.name.endswith("manifest.json")]
    if not manifests:
        return
    settings = {key: value for key, value in snakemake.params.items() if key != "code"}
    record = {
        "inputs": {str(path): recorded_sha256(path) or sha256_file(path) for path in sorted(map(str, snakemake.input))},
        "settings": settings,
        "settings_sha256": sha256_json(settings),
        "wildcards": dict(snakemake.wildcards.items()),
        "found": found,
        "code_sha256": snakemake.params.code,
        "threads": snakemake.threads,
        "python": platform.python_version(),
        "versions": _versions(),
    }
    for manifest in manifests:
        own = [path for path in outputs if path not in manifests and _nearest(path, manifests) == manifest]
        files = [file for path in own for file in _files(path)]
        write_json(manifest, record | {"files": {_name(path, manifest): _entry(path) for path in sorted(files)}})


def check_run(folder: Path | str, threads: int = 1) -> Check:
    """Compare every file of a run with the manifest that describes it, and with what was made from it.

    Where a file was made again and what was made from it is older, nothing is wrong: Snakemake makes that again.

    Args:
        folder: results/{run}.
        threads: files read at a time.
    """
    found = _walk(folder)
    manifests, problems = _read_manifests(found)
    entries = _entries(manifests)
    named = {path for record in manifests.values() for path in record["inputs"]}
    present = sorted(path for path in entries.keys() | named if Path(path).is_file())
    with ThreadPoolExecutor(threads) as pool:
        digests = dict(zip(present, pool.map(sha256_file, present), strict=True))
    for path, (manifest, entry) in sorted(entries.items()):
        if what := _what_is_wrong(Path(path), entry, digests.get(path)):
            problems.append(Problem(what, [path, str(manifest)]))
    problems += _strangers(folder, manifests) + _other_inputs(manifests, entries, digests)
    leftovers = [str(path) for path in found if may_be_abandoned(path)]
    return Check(problems, leftovers, len(manifests), sum(Path(path).stat().st_size for path in present))


def check_changes(folder: Path | str) -> list[Problem]:
    """What of a run is damaged or another run's, as far as sizes, times and manifests tell.

    A file is read only if it changed after it was recorded, and has at most `LARGE_BYTES`: larger ones are read by the
    job that needs them (`require_inputs`), so that a copied run of terabytes is planned in seconds. Where one was made
    again and what was made from it is older, nothing is wrong: Snakemake makes that again. Files that are missing are
    left to Snakemake, too.

    Args:
        folder: results/{run}.
    """
    manifests, problems = _read_manifests(_walk(folder))
    entries = _entries(manifests)
    digests = {path: entry["sha256"] for path, (_, entry) in entries.items()}
    for manifest, record in manifests.items():
        files = {str(manifest.parent / name): entry for name, entry in record["files"].items()}
        changed = {path: entry for path, entry in files.items() if _has_changed(path, manifest, entry["bytes"])}
        unread = [path for path, entry in changed.items() if os.stat(path).st_size == entry["bytes"] > LARGE_BYTES]
        damaged = sorted(path for path in changed.keys() - unread if not _is_whole(path, files[path]))
        problems += [Problem(_what_is_wrong(path, files[path], ""), [path, str(manifest)]) for path in damaged]
        mine = {path: sha for path, sha in record["inputs"].items() if path not in entries}
        mine = {
            path: sha for path, sha in mine.items() if _has_changed(path, manifest) and not _is_newer(path, manifest)
        }
        digests |= {path: sha256_file(path) for path in mine if path not in digests}
        if (changed or mine) and not (damaged or unread) and all(digests[path] == sha for path, sha in mine.items()):
            _renew(manifest)
    return problems + _strangers(folder, manifests) + _other_inputs(manifests, entries, digests)


def refuse_damage(folder: Path | str) -> None:
    """End Snakemake if a file of a run is damaged or from another run, of which Snakemake takes no notice.

    Raises:
        SystemExit: naming the first few files, and the `rm` for each. Of other exceptions Snakemake makes a traceback.
    """
    problems = check_changes(folder)
    if problems:
        lines = [str(problem) for problem in problems[:MOST_NAMED]]
        if len(problems) > MOST_NAMED:
            lines.append(f"... and {len(problems) - MOST_NAMED} more, which `snakemake --cores 2 verify` names")
        listing = "\n".join(lines)
        sys.exit(f"error: files of {folder} are damaged; delete them and run again:\n{listing}")


def _walk(folder: Path | str) -> list[Path]:
    """Every file of a run, also where a link leads to its folder, and folders that are being written."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        found += [Path(parent, name) for name in names]
        found += [Path(parent, name) for name in folders if may_be_abandoned(Path(name))]
    return sorted(found)


def _read_manifests(paths: Iterable[Path]) -> tuple[dict[Path, dict], list[Problem]]:
    """The manifests among a run's files, and those of them that cannot be read."""
    manifests, problems = {}, []
    for path in paths:
        if not path.name.endswith("manifest.json") or path.name.startswith("."):
            continue
        try:
            manifests[path] = _record(path)
        except FileNotFoundError:
            continue  # its job has just begun again
        except NO_MANIFEST:
            problems.append(Problem(f"'{path}' is no manifest any more", [str(path)]))
    return manifests, problems


def _record(manifest: Path) -> dict:
    """What is compared of a manifest: its files, inputs and wildcards."""
    record = read_json(manifest)
    files = {
        name: {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])} for name, entry in record["files"].items()
    }
    return {"files": files, "inputs": dict(record["inputs"]), "wildcards": dict(record["wildcards"])}


def _entries(manifests: Mapping[Path, Mapping]) -> dict[str, tuple[Path, dict]]:
    """Every file that manifests name, with its manifest and what that says."""
    return {
        str(manifest.parent / name): (manifest, entry)
        for manifest, record in manifests.items()
        for name, entry in record["files"].items()
    }


def _what_is_wrong(path: Path | str, entry: Mapping, sha256: str | None) -> str | None:
    """A sentence where a file differs from its manifest.

    Args:
        path: the file.
        entry: what its manifest says.
        sha256: what it has, None where it is missing.
    """
    if sha256 is None:
        return f"'{path}' is missing"
    size = os.stat(path).st_size
    if size != entry["bytes"]:
        return f"'{path}' has {size} bytes, its manifest says {entry['bytes']}"
    return f"'{path}' does not have the sha256 of its manifest" if sha256 != entry["sha256"] else None


def _strangers(folder: Path | str, manifests: Mapping[Path, Mapping]) -> list[Problem]:
    """Manifests of another run, which came with their files."""
    run, problems = Path(folder).name, []
    for manifest, record in sorted(manifests.items()):
        its = record["wildcards"].get("run", run)
        if its != run:
            files = [str(manifest.parent / name) for name in sorted(record["files"])]
            problems.append(Problem(f"'{manifest}' is of the run '{its}'", [*files, str(manifest)]))
    return problems


def _other_inputs(
    manifests: Mapping[Path, Mapping], entries: Mapping[str, tuple[Path, Mapping]], digests: Mapping[str, str]
) -> list[Problem]:
    """Files that agree with their own manifest, but are not what others, which are no older, were made from.

    What is to be deleted is what differs from all that is there: a file of the run, if none was made from it as it is;
    otherwise, or if it is the user's own, what was made from another.
    """
    same: dict[str, list[Path]] = {}
    other: dict[str, list[Path]] = {}
    for manifest, record in sorted(manifests.items()):
        for path, sha256 in record["inputs"].items():
            whole = path in digests and (path not in entries or entries[path][1]["sha256"] == digests[path])
            if whole and digests[path] == sha256:
                same.setdefault(path, []).append(manifest)
            elif whole and not _is_newer(path, manifest):
                other.setdefault(path, []).append(manifest)
    problems = []
    for path, made in sorted(other.items()):
        more = f" and {len(made) - 1} more" if len(made) > 1 else ""
        is_stranger = path in entries and path not in same
        remove = [path, str(entries[path][0])] if is_stranger else [str(manifest) for manifest in made]
        problems.append(Problem(f"'{path}' is not the file that was read for '{made[0]}'{more}", remove))
    return problems


def _recorded(path: Path) -> tuple[Path, dict] | None:
    """The manifest beside or above a file that names it, and what it says; None of a file that is the user's own.

    Raises:
        InputError: if such a manifest is damaged.
    """
    if path.parts[0] != RESULTS:
        return None
    for manifest in (manifest_path(path), path.parent / "manifest.json", path.parent.parent / "manifest.json"):
        if manifest.exists():
            entry = _recorded_files(manifest).get(_name(path, manifest))
            if entry is not None:
                return manifest, entry
    return None


def _has_changed(path: Path | str, manifest: Path, n_bytes: int | None = None) -> bool:
    """Whether the size of a file that is there, or its time, says that it may not be what was recorded.

    The time is that of the last change (ctime), which the system sets and no `touch`; a copy or another owner is one.
    """
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    return n_bytes not in (None, now.st_size) or now.st_ctime_ns > manifest.stat().st_ctime_ns


def _is_whole(path: Path | str, entry: Mapping) -> bool:
    """Whether a file is what its manifest says; only one of the right size is read."""
    return os.stat(path).st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]


def _renew(manifest: Path) -> None:
    """Let a manifest be younger than its files, which were read and are whole, but for Snakemake as old as before."""
    times = manifest.stat()
    with suppress(OSError):  # somebody else's, or read-only
        os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))


def _is_newer(path: str, manifest: Path) -> bool:
    """Whether a file was made after what a manifest describes, so that Snakemake makes that again; or is gone."""
    try:
        return os.stat(path).st_mtime_ns > manifest.stat().st_mtime_ns
    except OSError:
        return True


def _recorded_files(manifest: Path) -> dict:
    try:
        return _record(manifest)["files"]
    except NO_MANIFEST as error:
        raise InputError(f"'{manifest}' is no manifest any more; delete it and run again: rm -f {manifest}") from error


def _nearest(path: Path, manifests: list[Path]) -> Path:
    """The manifest of a file's own, or the one deepest above it."""
    if manifest_path(path) in manifests:
        return manifest_path(path)
    return max((found for found in manifests if found.parent in path.parents), key=lambda found: len(found.parts))


def _files(path: Path) -> list[Path]:
    """An output, or all files in it where it is a folder."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _name(path: Path, manifest: Path) -> str:
    return path.relative_to(manifest.parent).as_posix()


def _entry(path: Path) -> dict:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _versions() -> dict[str, str]:
    """Versions of the packages that the job has loaded."""
    loaded = {name.split(".")[0] for name in sys.modules}
    return {name: version(name) for name in PACKAGES if name in loaded}
