"""A script that the launcher runs behaves as one that Python runs, and ends with its client and with Snakemake."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saelineage.jobs import launcher

WITHOUT_LIBRARIES = """
import sys
from pathlib import Path
from saelineage.jobs import launcher
launcher.PRELOADED = ()
launcher.main(Path(sys.argv[1]))
"""
SLEEPING = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen]:
    """A launcher in the working folder, without libraries."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", WITHOUT_LIBRARIES, "socket"], stdin=subprocess.PIPE)
    wait_for(Path("socket").exists)
    yield process
    process.kill()
    process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def client(script: str, *arguments: str, python: str = sys.executable, **settings) -> subprocess.Popen:
    """Start a script as Snakemake does."""
    path = f"{len(list(Path().glob('*.py')))}.py"
    Path(path).write_text(script, encoding="utf-8")
    command = [sys.executable, "-IS", str(launcher.CLIENT), "socket", python, path, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and state_of(pid) != "Z"


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def started() -> int:
    """The process of SLEEPING, once it has begun."""
    wait_for(lambda: Path("pid").exists() and Path("pid").read_text())
    return int(Path("pid").read_text())


@pytest.mark.usefixtures("serving")
def test_a_script_has_the_arguments_environment_folder_and_files_of_its_client_and_a_parent_of_its_own(tmp_path: Path):
    script = "import os, sys; print(__name__, sys.argv, os.environ['LETTER'], os.getcwd(), sys.path[0], input())\n"
    script += "print(os.getppid()); sys.exit(3)"
    (tmp_path / "sub").mkdir()
    process = client(script, "x", env={"LETTER": "å", "PATH": os.environ["PATH"]})
    output, _ = process.communicate("typed\n")
    line, parent = output.splitlines()
    assert line == f"__main__ ['0.py', 'x'] å {tmp_path} {tmp_path} typed"
    assert int(parent) not in (os.getpid(), process.pid)
    assert process.returncode == 3


@pytest.mark.usefixtures("serving")
def test_an_exception_is_a_traceback_and_exit_status_1():
    process = client("{}['nobody']", stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.endswith("KeyError: 'nobody'\n")


@pytest.mark.usefixtures("serving")
def test_two_scripts_run_at_once():
    waiting = client("input(); print('first')")
    assert client("print('second')").communicate()[0] == "second\n"
    assert waiting.communicate("\n")[0] == "first\n"


@pytest.mark.usefixtures("serving")
def test_a_killed_script_kills_its_client_and_a_killed_client_its_script():
    process = client(SLEEPING)
    os.kill(started(), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    Path("pid").unlink()
    process = client(SLEEPING)
    pid = started()
    process.kill()
    wait_for(lambda: not is_running(pid))


@pytest.mark.usefixtures("serving")
def test_ctrl_c_is_passed_on_and_the_script_cleans_up():
    script = f"try:\n    {SLEEPING.replace('; ', chr(10) + '    ')}\nfinally:\n    print('cleaned up')"
    process = client(script, stderr=subprocess.DEVNULL)
    started()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert output == "cleaned up\n"
    assert process.returncode == -signal.SIGINT


@pytest.mark.usefixtures("serving")
def test_ctrl_z_stops_the_script_and_fg_goes_on_with_it():
    process = client(SLEEPING)
    pid = started()
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state_of(pid) == state_of(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: state_of(pid) == state_of(process.pid) == "S")
    process.kill()


def test_a_launcher_that_is_still_importing_ends_with_snakemake(tmp_path: Path):
    code = "from pathlib import Path; from saelineage.jobs import launcher; launcher.main(Path('socket'))"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=tmp_path)
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    assert not (tmp_path / "socket").exists()


def test_scripts_end_with_snakemake(serving: subprocess.Popen):
    process = client(SLEEPING)
    pid = started()
    serving.stdin.close()
    assert serving.wait(timeout=20) == 0
    wait_for(lambda: not is_running(pid))
    assert process.wait(timeout=20) != 0
    assert not Path("socket").exists()


def test_without_a_launcher_the_client_becomes_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    process = client("import os; print(os.getpid())")
    assert process.communicate()[0] == f"{process.pid}\n"


def test_a_script_for_another_python_is_run_by_that_python(serving: subprocess.Popen, tmp_path: Path):
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    process = client("import os, sys; print(os.getpid(), sys.executable)", python=str(other))
    assert process.communicate()[0] == f"{process.pid} {other}\n"


@pytest.mark.usefixtures("serving")
def test_threads_are_those_that_snakemake_gives_the_job():
    script = "import numpy, threadpoolctl; print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})"
    for n in ("1", "2"):
        assert client(script, env=os.environ | {"OMP_NUM_THREADS": n}).communicate()[0] == f"{{{n}}}\n"


def test_libraries_start_no_thread_when_they_are_imported():
    script = f"import importlib, os\nfor name in {launcher.PRELOADED}: importlib.import_module(name)\n"
    script += "print(len(os.listdir('/proc/self/task')))"
    environment = os.environ | dict.fromkeys(launcher.THREADS, "1")
    assert subprocess.check_output([sys.executable, "-c", script], env=environment) == b"1\n"


def test_there_is_none_with_a_gpu_for_few_jobs_or_if_it_is_switched_off(monkeypatch: pytest.MonkeyPatch):
    address = Path(".snakemake/saelineage/demo.socket")
    assert launcher.is_worthwhile(address, launcher.MIN_JOBS, 0)
    assert not launcher.is_worthwhile(address, launcher.MIN_JOBS, 1)
    assert not launcher.is_worthwhile(address, launcher.MIN_JOBS - 1, 0)
    assert not launcher.is_worthwhile(Path("x" * 108), launcher.MIN_JOBS, 0)
    monkeypatch.setenv(launcher.SWITCH, "off")
    assert not launcher.is_worthwhile(address, launcher.MIN_JOBS, 0)
