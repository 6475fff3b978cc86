"""Manifests: what each job wrote, from what, with which settings, code and versions.

A job that fills a folder writes `manifest.json` in it; one that writes single files writes `{stem}.manifest.json`
beside each.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

from saelineage.files import read_json, sha256_file, sha256_json, write_json

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


def manifest_path(path: Path | str) -> Path:
    """The manifest of a file that has one of its own: `shard.safetensors` -> `shard.manifest.json`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.manifest.json")


def recorded_sha256(path: Path | str) -> str | None:
    """The sha256 that a manifest beside or above `path` holds for it, or None where no manifest names it."""
    path = Path(path)
    for manifest in (manifest_path(path), path.parent / "manifest.json", path.parent.parent / "manifest.json"):
        if manifest.exists():
            entry = _recorded_files(manifest).get(_name(path, manifest))
            if entry is not None:
                return entry["sha256"]
    return None


def record_job(snakemake: object, **found: object) -> None:
    """Write the manifests of a finished job, as its rule declares them: each for the outputs beside and below it.

    Args:
        snakemake: the script's object: its inputs, outputs, params, wildcards and threads.
        **found: what the job learnt and should be on record, such as the commit behind a hub revision.
    """
    outputs = [Path(path) for path in snakemake.output]
    manifests = [path for path in outputs if path.name.endswith("manifest.json")]
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


def check_manifest(path: Path | str) -> list[str]:
    """What is wrong with the files that a manifest names: one sentence each, an empty list when all is well."""
    path = Path(path)
    problems = []
    for name, entry in sorted(read_json(path)["files"].items()):
        file = path.parent / name
        if not file.exists():
            problems.append(f"'{file}' is missing")
        elif file.stat().st_size != entry["bytes"]:
            problems.append(f"'{file}' has {file.stat().st_size} bytes, its manifest says {entry['bytes']}")
        elif sha256_file(file) != entry["sha256"]:
            problems.append(f"'{file}' does not have the sha256 of its manifest")
    return problems


def _recorded_files(manifest: Path) -> dict:
    """The files that a manifest names; none where it is somebody else's, such as one that came with a user's corpus."""
    found = read_json(manifest)
    return found["files"] if "code_sha256" in found else {}


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
