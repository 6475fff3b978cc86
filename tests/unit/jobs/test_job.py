"""Around a job: its log, its inputs and its manifests. A mistake of the user is one sentence, a defect a traceback."""

import errno
import hashlib
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy
import pytest

import saelineage
from saelineage.files.atomic import atomic_path, read_json
from saelineage.jobs import benchmark
from saelineage.jobs.job import job
from saelineage.jobs.manifests import check_run
from tests.unit.jobs.scripts import script_object

# printf one | sha256sum
SHA256_OF_ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
SHA256_OF_TWO = hashlib.sha256(b"two").hexdigest()


def lines(path: Path) -> list[str]:
    """The log's lines without their dates."""
    return [line[24:] for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run_job(log: Path, inputs: list, outputs: list, facts: dict | None = None, **params: object) -> None:
    """A job that has nothing left to do but to record its outputs."""
    with job(script_object(log, inputs, outputs, **params)) as record:
        record |= facts or {}


def test_an_input_error_is_its_message_alone_and_exit_code_1(tmp_path: Path):
    script = (
        "from tests.unit.jobs.scripts import script_object\n"
        "from saelineage.jobs.job import job; from saelineage.errors import InputError\n"
        "with job(script_object('logs/x/job.log')): raise InputError('t must be at most 1, got ½')\n"
    )
    folders = [Path(saelineage.__file__).parents[1], Path(__file__).parents[3]]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONUTF8": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == "error: t must be at most 1, got ½\n"
    assert lines(tmp_path / "logs/x/job.log") == ["ERROR saelineage: t must be at most 1, got ½"]


def test_another_exception_keeps_its_traceback_in_the_log_and_goes_on(tmp_path: Path):
    output, manifest = written(tmp_path / "a.bin", "one"), tmp_path / "a.manifest.json"
    with (
        pytest.raises(KeyError, match="nobody"),
        job(script_object(tmp_path / "logs/x/job.log", [], [output, manifest])),
    ):
        {}["nobody"]
    text = (tmp_path / "logs/x/job.log").read_text()
    assert lines(tmp_path / "logs/x/job.log")[0] == "ERROR saelineage: the job failed"
    assert "Traceback (most recent call last)" in text
    assert text.endswith("KeyError: 'nobody'\n")
    assert not manifest.exists()


def test_records_and_warnings_of_the_last_run_are_in_the_log(tmp_path: Path):
    log = tmp_path / "logs/x/job.log"
    for number in (1, 2):
        with job(script_object(log)):
            logging.getLogger("saelineage.corpora.documents").info("%d documents", number)
            logging.getLogger("saelineage.corpora.documents").debug("not for the log")
            warnings.warn("a warning", DeprecationWarning, stacklevel=1)
    info, warning, *_ = lines(log)
    assert info == "INFO saelineage.corpora.documents: 2 documents"
    assert warning.startswith("WARNING py.warnings: ")
    assert warning.endswith("DeprecationWarning: a warning")
    assert "not for the log" not in log.read_text()


def test_a_full_disk_is_one_message_and_no_traceback(tmp_path: Path):
    with (
        pytest.raises(SystemExit) as ended,
        job(script_object(tmp_path / "logs/x/job.log")),
        atomic_path(tmp_path / "a.bin"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = f"'{tmp_path}/a.bin': No space left on device; free space on its disk and run again"
    assert ended.value.code == f"error: {message}"
    assert lines(tmp_path / "logs/x/job.log") == [f"ERROR saelineage: {message}"]


def test_a_log_that_cannot_be_opened_ends_the_job_with_a_message():
    with pytest.raises(SystemExit) as ended, job(script_object("/proc/version/x/job.log")):
        pytest.fail("the job must not begin")
    assert str(ended.value.code).startswith("error: ")


def test_a_job_does_not_begin_with_a_damaged_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    a = written(Path("results/a.bin"), "one")
    run_job(tmp_path / "logs/x/a.log", [], [a, Path("results/a.manifest.json")])
    run_job(tmp_path / "logs/x/b.log", [a], [])
    a.write_text("eno")
    with pytest.raises(SystemExit) as ended, job(script_object(tmp_path / "logs/x/b.log", [a])):
        pytest.fail("the job must not begin")
    assert str(ended.value.code).startswith(f"error: '{a}' must be the file that was made here")


def test_a_folder_of_outputs_gets_one_manifest_with_everything_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # corpora_dir is "." by default, so this is how a user's own file reaches a job.
    monkeypatch.chdir(tmp_path)
    source, one = written(Path("in.txt"), "two"), written(tmp_path / "out" / "one.txt", "one")
    deep, manifest = written(tmp_path / "out" / "deep" / "two.txt", "two"), tmp_path / "out" / "manifest.json"
    run_job(tmp_path / "logs/x/job.log", [source], [deep, one, manifest], facts={"commit": "abc"}, k=32)
    recorded = read_json(manifest)
    versions = recorded.pop("versions")
    assert recorded == {
        "inputs": {"in.txt": SHA256_OF_TWO},
        "settings": {"k": 32},
        # printf '{"k": 32}' | sha256sum
        "settings_sha256": hashlib.sha256(b'{"k": 32}').hexdigest(),
        "wildcards": {"run": "demo"},
        "found": {"commit": "abc"},
        "code_sha256": "c0de",
        "threads": 2,
        "device": "cpu",
        "python": platform.python_version(),
        "files": {
            "one.txt": {"sha256": SHA256_OF_ONE, "bytes": 3},
            "deep/two.txt": {"sha256": SHA256_OF_TWO, "bytes": 3},
        },
    }
    assert versions["numpy"] == numpy.__version__


def test_the_benchmark_has_the_time_and_memory_of_the_process_and_of_its_children(tmp_path: Path):
    with job(script_object(tmp_path / "logs/x/job.log")):
        work = "import time\nwhile time.process_time() < 0.5: pass\nbytearray(400 * 2**20)"
        subprocess.run([sys.executable, "-c", work], check=True)
        usage = resource.getrusage(resource.RUSAGE_SELF)
    head, row = [line.split("\t") for line in (tmp_path / "benchmarks/x/job.tsv").read_text().splitlines()]
    measured = dict(zip(head, map(float, row), strict=True))
    assert measured.keys() == {"s", "max_rss", "cpu_time"}
    assert measured["max_rss"] >= 400  # MiB
    assert measured["cpu_time"] > 0.45 + usage.ru_utime + usage.ru_stime
    assert measured["s"] > measured["cpu_time"] / os.cpu_count()


@pytest.mark.parametrize("missing", ["/proc", "clock"])
def test_a_machine_without_linux_s_ways_to_see_the_start_of_a_process_counts_from_the_import(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if missing == "clock":
        monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    else:

        def no_such_file(path: Path, **_: object) -> str:
            raise FileNotFoundError(path)

        monkeypatch.setattr(benchmark.Path, "read_text", no_such_file)
    monkeypatch.setattr(benchmark, "IMPORTED", time.monotonic() - 1000)
    head, row = [line.split("\t") for line in benchmark.benchmark().splitlines()]
    assert head[0] == "s"
    assert 1000 <= float(row[0]) < 1100


def test_files_with_manifests_of_their_own_are_recorded_there_each_with_its_sidecar(tmp_path: Path):
    outputs = [written(tmp_path / name, "one") for name in ("a.npy", "a.json", "b.npy")]
    run_job(tmp_path / "logs/x/job.log", [], [*outputs, tmp_path / "a.manifest.json", tmp_path / "b.manifest.json"])
    entry = {"sha256": SHA256_OF_ONE, "bytes": 3}
    assert read_json(tmp_path / "a.manifest.json")["files"] == {"a.npy": entry, "a.json": entry}
    assert read_json(tmp_path / "b.manifest.json")["files"] == {"b.npy": entry}


def test_a_job_of_two_folders_writes_two_manifests(tmp_path: Path):
    outputs = [written(tmp_path / "a" / "x", "one"), written(tmp_path / "b" / "x", "two")]
    run_job(
        tmp_path / "logs/x/job.log", [], [*outputs, tmp_path / "a" / "manifest.json", tmp_path / "b" / "manifest.json"]
    )
    assert read_json(tmp_path / "a" / "manifest.json")["files"] == {"x": {"sha256": SHA256_OF_ONE, "bytes": 3}}
    assert read_json(tmp_path / "b" / "manifest.json")["files"] == {"x": {"sha256": SHA256_OF_TWO, "bytes": 3}}


def test_every_file_of_an_output_that_is_a_folder_is_recorded(tmp_path: Path):
    demo = tmp_path / "demo"
    folder, manifest = demo / "data" / "base", demo / "data" / "base.manifest.json"
    written(folder / "table.js", "one")
    written(folder / "deep" / "000000.js", "two")
    written(demo / "data" / "lua" / "table.js", "two")
    run_job(tmp_path / "logs/x/job.log", [], [folder, manifest])
    assert read_json(manifest)["files"] == {
        "base/table.js": {"sha256": SHA256_OF_ONE, "bytes": 3},
        "base/deep/000000.js": {"sha256": SHA256_OF_TWO, "bytes": 3},
    }
    (folder / "table.js").write_text("eno")
    (problem,) = check_run(demo).problems
    assert problem.remove == [str(folder / "table.js"), str(manifest)]
