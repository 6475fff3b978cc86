"""Logs: a mistake of the user is one sentence, a defect keeps its traceback, and both are in the job's log."""

import errno
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import saelineage
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, sha256_file, write_json
from saelineage.jobs.job import job_log, on_terminal


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """`job_log` takes the process over, as jobs want; tests hand it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(path: Path) -> list[str]:
    """The log's lines without their dates."""
    return [line[24:] for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_input_error_is_its_message_alone_and_exit_code_1(tmp_path: Path):
    with pytest.raises(SystemExit) as ended, job_log(tmp_path / "job.log"):
        raise InputError("corpora.lua.path: 'x' is not there; correct the path")
    # sys.exit with a text prints it on stderr and ends with 1.
    assert ended.value.code == "error: corpora.lua.path: 'x' is not there; correct the path"
    assert lines(tmp_path / "job.log") == ["ERROR saelineage: corpora.lua.path: 'x' is not there; correct the path"]


def test_a_process_ends_with_the_message_on_stderr_and_no_traceback(tmp_path: Path):
    job = (
        "from saelineage.jobs.job import job_log; from saelineage.errors import InputError\n"
        "with job_log('job.log'): raise InputError('t must be at most 1, got ½')\n"
    )
    environment = {"PYTHONPATH": str(Path(saelineage.__file__).parent.parent), "PYTHONUTF8": "1"}
    ended = subprocess.run([sys.executable, "-c", job], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == "error: t must be at most 1, got ½\n"


def test_another_exception_keeps_its_traceback_in_the_log_and_goes_on(tmp_path: Path):
    with pytest.raises(KeyError, match="nobody"), job_log(tmp_path / "job.log"):
        {}["nobody"]
    written = lines(tmp_path / "job.log")
    assert written[0] == "ERROR saelineage: the job failed"
    text = (tmp_path / "job.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert '{}["nobody"]' in text
    assert text.endswith("KeyError: 'nobody'\n")


def test_records_and_warnings_of_a_job_are_in_its_log(tmp_path: Path):
    with job_log(tmp_path / "logs" / "job.log"):
        logging.getLogger("saelineage.corpora.documents").info("%d documents", 3)
        logging.getLogger("saelineage.corpora.documents").debug("not for the log")
        warnings.warn("a warning", DeprecationWarning, stacklevel=1)
    written = lines(tmp_path / "logs" / "job.log")
    assert written[0] == "INFO saelineage.corpora.documents: 3 documents"
    assert written[1].startswith("WARNING py.warnings: ")
    assert written[1].endswith("DeprecationWarning: a warning")
    assert "not for the log" not in " ".join(written)


def test_a_full_disk_is_one_message_and_no_traceback(tmp_path: Path):
    with pytest.raises(SystemExit) as ended, job_log(tmp_path / "job.log"), atomic_path(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = f"'{tmp_path}/a.bin': No space left on device; free space on its disk and run again"
    assert ended.value.code == f"error: {said}"
    assert lines(tmp_path / "job.log") == [f"ERROR saelineage: {said}"]


def test_a_log_that_cannot_be_opened_ends_the_job_with_a_message():
    with pytest.raises(SystemExit) as ended, job_log("/proc/version/job.log"):
        pytest.fail("the job must not begin")
    assert ended.value.code.startswith("error: ")


def test_a_job_does_not_begin_with_a_damaged_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    damaged = Path("results/a.bin")
    damaged.parent.mkdir()
    damaged.write_text("whole")
    record = {"files": {"a.bin": {"bytes": 5, "sha256": sha256_file(damaged)}}, "inputs": {}, "wildcards": {}}
    write_json("results/a.manifest.json", record)
    with job_log(tmp_path / "job.log", [str(damaged)]):
        pass
    damaged.write_text("hole")
    with pytest.raises(SystemExit) as ended, job_log(tmp_path / "job.log", [str(damaged)]):
        pytest.fail("the job must not begin")
    assert ended.value.code.startswith(f"error: '{damaged}' is not the file that was made here")


def test_a_log_holds_the_last_run_alone(tmp_path: Path):
    for number in (1, 2):
        with job_log(tmp_path / "job.log"):
            logging.getLogger("saelineage").info("run %d", number)
    assert lines(tmp_path / "job.log") == ["INFO saelineage: run 2"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, is_terminal: bool):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert on_terminal() is is_terminal
