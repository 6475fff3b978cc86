"""Everything around a job's work: its log, its Snakemake, its inputs, its time, and the manifests of its outputs."""

import logging
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saelineage.errors import InputError
from saelineage.files.atomic import disk_fault, sha256_file, sha256_json, write_json, write_text
from saelineage.jobs.benchmark import benchmark, benchmark_path
from saelineage.jobs.gpus import note_device, noted_device
from saelineage.jobs.locks import in_job
from saelineage.jobs.manifests import manifest_path, name_in_manifest, recorded_sha256, require_inputs

DECIDES_RESULTS = False

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
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
"""Packages whose versions are on record, if they are installed."""

logger = logging.getLogger("saelineage")


@contextmanager
def job(snakemake: Any) -> Iterator[dict[str, object]]:
    """Run a job with a log; end it if its Snakemake is gone or an input damaged; then write manifests and a benchmark.

    An `InputError`, or a disk that cannot be written, ends the job with a message alone, in the log and on stderr;
    other exceptions keep their traceback.

    Args:
        snakemake: the script's object: log, inputs, outputs, params, wildcards, config, threads. Snakemake makes it at
            run time, so it has no static type.

    Yields:
        A dict for facts that the job puts on record, such as the commit behind a hub revision.
    """
    facts: dict[str, object] = {}
    with in_job(), _logged(snakemake.log[0]):
        require_inputs(snakemake.input)
        note_device("cpu")  # until the job picks another
        yield facts
        _write_manifests(snakemake, facts)
        write_text(benchmark_path(snakemake.log[0]), benchmark())


@contextmanager
def _logged(path: Path | str) -> Iterator[None]:
    """Send log records and warnings to a new log file, and end the process with a message for the user's mistakes."""
    handler = _opened(path)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, InputError) else disk_fault(error)
        if message is None:
            logger.exception("the job failed")
            raise
        logger.error("%s", message)
        sys.exit(f"error: {message}")
    finally:
        with suppress(OSError):
            handler.flush()


class _LogFile(logging.FileHandler):
    """A log file. A full disk is reported once, by the job, and not for every line that the log loses."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line."""


def _opened(path: Path | str) -> logging.Handler:
    """Begin a new log file; a disk that cannot be written ends the job here."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, mode="w", encoding="utf-8")
    except OSError as error:
        sys.exit(f"error: {disk_fault(error) or error}")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _write_manifests(snakemake: Any, facts: Mapping[str, object]) -> None:
    """Write the manifests that a rule declares, each for the outputs beside and below it."""
    outputs = [Path(path) for path in snakemake.output]
    manifests = [path for path in outputs if path.name.endswith("manifest.json")]
    if not manifests:
        return
    settings = {key: value for key, value in snakemake.params.items() if key != "code"}
    record = {
        "inputs": {str(path): recorded_sha256(path) or sha256_file(path) for path in sorted(map(str, snakemake.input))},
        "settings": settings,
        "settings_sha256": sha256_json(settings),
        "wildcards": {"run": snakemake.config["run"], **dict(snakemake.wildcards.items())},
        "found": dict(facts),
        "code_sha256": snakemake.params.code,
        "threads": snakemake.threads,
        "device": noted_device(),
        "python": platform.python_version(),
        "versions": package_versions(),
    }
    for manifest in manifests:
        described = [path for path in outputs if path not in manifests and _nearest(path, manifests) == manifest]
        files = sorted(file for path in described for file in _files(path))
        write_json(manifest, record | {"files": {name_in_manifest(path, manifest): _entry(path) for path in files}})


def _nearest(path: Path, manifests: list[Path]) -> Path:
    """A file's own manifest, or the one deepest above it."""
    if manifest_path(path) in manifests:
        return manifest_path(path)
    above = [manifest for manifest in manifests if manifest.parent in path.parents]
    return max(above, key=lambda manifest: len(manifest.parts))


def _files(path: Path) -> list[Path]:
    """An output, or all files in it if it is a folder."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _entry(path: Path) -> dict[str, str | int]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def package_versions() -> dict[str, str]:
    """Versions of the installed packages, whether this job loaded them or not: a launcher loads them for all jobs."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
