"""Manifests: the record of each job's outputs, inputs, settings, code and versions, and checks of files against it.

A job that fills a folder writes `manifest.json` in it; a job that writes single files writes `{stem}.manifest.json`
next to each (`saelineage.jobs.job`).
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.atomic import may_be_abandoned, read_json, sha256_file
from saelineage.jobs.commands import command

DECIDES_RESULTS = False

RESULTS = "results"
"""The folder whose manifests are this workflow's; elsewhere a file of that name belongs to the user."""
LARGE_BYTES = 1 << 30
MOST_NAMED = 5
NO_MANIFEST = (InputError, KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""Errors that reading a manifest ends in if the file holds something else."""


class Problem(NamedTuple):
    """One thing that is wrong with a run's files."""

    what: str
    """A sentence without a full stop."""
    remove: list[str]
    """Files to delete, so that Snakemake makes them again."""

    def __str__(self) -> str:
        return f"{self.what}: rm -f {shlex.join(self.remove)}"


class Check(NamedTuple):
    """The result of `check_run`."""

    problems: list[Problem]
    leftovers: list[str]
    """Temporary files of killed processes or other hosts; they do no harm."""
    n_manifests: int
    n_bytes: int
    """Of the files that were read."""


def manifest_path(path: Path | str) -> Path:
    """The manifest of a single file: `shard.safetensors` -> `shard.manifest.json`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.manifest.json")


def recorded_sha256(path: Path | str) -> str | None:
    """The sha256 that a manifest next to or above `path` holds for it, or None if no manifest names it."""
    recorded = _recorded(Path(path))
    return recorded[1]["sha256"] if recorded else None


def name_in_manifest(path: Path, manifest: Path) -> str:
    """The name of a file in a manifest next to or above it."""
    return path.relative_to(manifest.parent).as_posix()


def require_inputs(paths: Iterable[Path | str]) -> None:
    """Refuse inputs that differ from their manifests. Files that no manifest names are the user's and always pass.

    Only files that changed after they were recorded are read; `check_run` reads them all.

    Raises:
        InputError: naming the first such file and the files to delete.
    """
    for path in sorted(map(Path, paths)):
        recorded = _recorded(path)
        if recorded is None:
            continue
        manifest, entry = recorded
        if _has_changed(path, manifest, entry["bytes"]) and not _is_whole(path, entry):
            raise InputError(
                f"'{path}' must be the file that was made here, but its sha256 differs from that in '{manifest}'; "
                f"delete both and run again: rm -f {shlex.join([str(path), str(manifest)])}"
            )


def check_run(folder: Path | str, threads: int = 1) -> Check:
    """Compare every file of a run with its manifest, and with the record of it in manifests of files made from it.

    A file that is newer than the files made from it is no problem, because Snakemake makes those again.

    Args:
        folder: results/{run}.
        threads: files read at a time.
    """
    paths = _walk(folder)
    manifests, problems = _read_manifests(paths)
    entries = _entries(manifests)
    named = {path for record in manifests.values() for path in record["inputs"]}
    present = sorted(path for path in entries.keys() | named if Path(path).is_file())
    with ThreadPoolExecutor(threads) as pool:
        digests = dict(zip(present, pool.map(sha256_file, present), strict=True))
    for path, (manifest, entry) in sorted(entries.items()):
        if difference := _difference(Path(path), entry, digests.get(path)):
            problems.append(Problem(difference, [path, str(manifest)]))
    problems += _of_other_runs(folder, manifests) + _other_inputs(manifests, entries, digests)
    leftovers = [str(path) for path in paths if may_be_abandoned(path)]
    return Check(problems, leftovers, len(manifests), sum(Path(path).stat().st_size for path in present))


def check_changes(folder: Path | str) -> list[Problem]:
    """Find damaged files and files of other runs, as far as sizes, times and manifests tell.

    A file is read only if it changed after it was recorded and has at most `LARGE_BYTES`. Larger ones are read by the
    job that needs them (`require_inputs`), so that a copied run of terabytes is planned in seconds. Missing files, and
    files that are newer than the files made from them, are left to Snakemake.

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
        for path in damaged:
            if difference := _difference(path, files[path], ""):
                problems.append(Problem(difference, [path, str(manifest)]))
        user_files = {
            path: sha256
            for path, sha256 in record["inputs"].items()
            if path not in entries and _has_changed(path, manifest) and not _is_newer(path, manifest)
        }
        digests |= {path: sha256_file(path) for path in user_files if path not in digests}
        are_same = all(digests[path] == sha256 for path, sha256 in user_files.items())
        if (changed or user_files) and are_same and not (damaged or unread):
            _renew(manifest)
    return problems + _of_other_runs(folder, manifests) + _other_inputs(manifests, entries, digests)


def refuse_damage(folder: Path | str) -> None:
    """End Snakemake if a file of a run is damaged or from another run, which Snakemake itself does not notice.

    Raises:
        SystemExit: naming the first few files, with an `rm` command for each. Snakemake prints other exceptions with a
            traceback.
    """
    problems = check_changes(folder)
    if problems:
        lines = [str(problem) for problem in problems[:MOST_NAMED]]
        if len(problems) > MOST_NAMED:
            lines.append(f"... and {len(problems) - MOST_NAMED} more; `{command('--cores', '2', 'verify')}` lists all")
        listing = "\n".join(lines)
        again = command("--cores", "2")
        sys.exit(f"error: files of {folder} are damaged; delete them and run again:\n{listing}\n{again}")


def note_on_records(folder: Path | str, manifests: Iterable[str], has_record: Callable[[str], bool]) -> str | None:
    """A sentence if a run came here without Snakemake's records of it, which decide with times what is stale.

    Without them a change of settings or code goes unnoticed, and a file with a new time counts as a new file even if
    its content is the same.

    Args:
        folder: results/{run}.
        manifests: those of the run, whether they are there or not.
        has_record: true of a file that Snakemake remembers making.
    """
    there = [path for path in manifests if os.path.exists(path)]
    if not there or any(map(has_record, there)):
        return None
    return (
        f"{folder} is here without Snakemake's records of it (.snakemake/metadata), so changes of settings and code "
        "since it was made go unnoticed, and copies with new times are made again; copy .snakemake along with results, "
        f"or make everything anew: {command('--cores', '2', '--forceall')}"
    )


def _walk(folder: Path | str) -> list[Path]:
    """Every file of a run, including those in linked folders, and folders that are being written."""
    paths = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        paths += [Path(parent, name) for name in names]
        paths += [Path(parent, name) for name in folders if may_be_abandoned(Path(name))]
    return sorted(paths)


def _read_manifests(paths: Iterable[Path]) -> tuple[dict[Path, dict], list[Problem]]:
    """Read the manifests among a run's files; those that cannot be read are problems."""
    manifests, problems = {}, []
    for path in paths:
        if not path.name.endswith("manifest.json") or path.name.startswith("."):
            continue
        try:
            manifests[path] = _record(path)
        except FileNotFoundError:
            continue  # its job has just begun again
        except NO_MANIFEST:
            problems.append(Problem(f"'{path}' cannot be read as a manifest", [str(path)]))
    return manifests, problems


def _record(manifest: Path) -> dict:
    """Read the compared parts of a manifest: its files, inputs and wildcards."""
    record = read_json(manifest)
    files = {
        name: {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])} for name, entry in record["files"].items()
    }
    return {"files": files, "inputs": dict(record["inputs"]), "wildcards": dict(record["wildcards"])}


def _entries(manifests: Mapping[Path, Mapping]) -> dict[str, tuple[Path, dict]]:
    """Every file that manifests name, with its manifest and its entry there."""
    return {
        str(manifest.parent / name): (manifest, entry)
        for manifest, record in manifests.items()
        for name, entry in record["files"].items()
    }


def _difference(path: Path | str, entry: Mapping, sha256: str | None) -> str | None:
    """A sentence if a file differs from its manifest.

    Args:
        path: the file.
        entry: its entry in the manifest.
        sha256: of the file as it is; None if it is missing.
    """
    if sha256 is None:
        return f"'{path}' is missing"
    size = os.stat(path).st_size
    if size != entry["bytes"]:
        return f"'{path}' has {size} bytes, its manifest says {entry['bytes']}"
    return f"'{path}' does not have the sha256 of its manifest" if sha256 != entry["sha256"] else None


def _of_other_runs(folder: Path | str, manifests: Mapping[Path, Mapping]) -> list[Problem]:
    """Find manifests of another run, which came with their files."""
    run, problems = Path(folder).name, []
    for manifest, record in sorted(manifests.items()):
        recorded_run = record["wildcards"].get("run", run)
        if recorded_run != run:
            files = [str(manifest.parent / name) for name in sorted(record["files"])]
            problems.append(Problem(f"'{manifest}' is of the run '{recorded_run}'", [*files, str(manifest)]))
    return problems


def _other_inputs(
    manifests: Mapping[Path, Mapping], entries: Mapping[str, tuple[Path, Mapping]], digests: Mapping[str, str]
) -> list[Problem]:
    """Find files that agree with their own manifest, but not with the record of them in later manifests.

    If no file was made from such a file as it is now, the file itself is to be deleted. Otherwise, or if it is the
    user's, the files made from another version of it are.
    """
    same: dict[str, list[Path]] = {}
    different: dict[str, list[Path]] = {}
    for manifest, record in sorted(manifests.items()):
        for path, sha256 in record["inputs"].items():
            whole = path in digests and (path not in entries or entries[path][1]["sha256"] == digests[path])
            if whole and digests[path] == sha256:
                same.setdefault(path, []).append(manifest)
            elif whole and not _is_newer(path, manifest):
                different.setdefault(path, []).append(manifest)
    problems = []
    for path, made in sorted(different.items()):
        more = f" and {len(made) - 1} more" if len(made) > 1 else ""
        nobody_read_it = path in entries and path not in same
        remove = [path, str(entries[path][0])] if nobody_read_it else [str(manifest) for manifest in made]
        problems.append(Problem(f"'{path}' is not the file that was read for '{made[0]}'{more}", remove))
    return problems


def _recorded(path: Path) -> tuple[Path, dict] | None:
    """The manifest next to or above a file that names it, and the file's entry; None for a file of the user.

    Raises:
        InputError: if such a manifest is damaged.
    """
    if path.parts[0] != RESULTS:
        return None
    for manifest in (manifest_path(path), path.parent / "manifest.json", path.parent.parent / "manifest.json"):
        if manifest.exists():
            entry = _recorded_files(manifest).get(name_in_manifest(path, manifest))
            if entry is not None:
                return manifest, entry
    return None


def _has_changed(path: Path | str, manifest: Path, n_bytes: int | None = None) -> bool:
    """True if the size or time of a file shows that it may have changed since it was recorded; False if it is absent.

    The time is that of the last change (ctime). The system sets it, and `touch` cannot; copying a file, or giving it
    another owner, counts as a change.
    """
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    return n_bytes not in (None, now.st_size) or now.st_ctime_ns > manifest.stat().st_ctime_ns


def _is_whole(path: Path | str, entry: Mapping) -> bool:
    """True if a file agrees with its entry in the manifest; it is read only if its size is right."""
    return os.stat(path).st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]


def _renew(manifest: Path) -> None:
    """Record that the files of a manifest were read and are whole: its ctime becomes now, its mtime stays."""
    times = manifest.stat()
    with suppress(OSError):  # another user's, or read-only
        os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))


def _is_newer(path: str, manifest: Path) -> bool:
    """True if a file is newer than the files of a manifest, so that Snakemake makes those again, or if it is gone."""
    try:
        return os.stat(path).st_mtime_ns > manifest.stat().st_mtime_ns
    except OSError:
        return True


def _recorded_files(manifest: Path) -> dict:
    try:
        return _record(manifest)["files"]
    except NO_MANIFEST as error:
        raise InputError(
            f"'{manifest}' cannot be read as a manifest; delete it and run again: rm -f {shlex.quote(str(manifest))}"
        ) from error
