"""Start jobs from a process that has already imported the slow libraries.

    python -P launcher.py SOCKET

Importing torch and transformers takes 3 to 9 CPU-seconds, more than the work of most small jobs. The launcher imports
them once and forks a child for every script, which runs as it would have run on its own: with the environment, the
working folder and the output of the process that asked for it. That process is `launcher_client.py`, which Snakemake
starts in place of the script. It passes signals on to the child, and ends as the child ends; if it is killed, so is the
child. If no launcher answers, it becomes the script.

The launcher ends with its Snakemake. It forks before it starts a thread or uses a GPU (docs/decisions/0021).
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

DECIDES_RESULTS = False

CLIENT = Path(__file__).with_name("launcher_client.py")
SWITCH = "SAELINEAGE_LAUNCHER"
"""Environment variable; `off` runs every script on its own."""
MIN_JOBS = 8
"""With fewer jobs the launcher costs more than it saves."""
PRELOADED = (
    "numba",
    "scipy.sparse",
    "torch",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
)
"""Libraries of others that start no thread when they are imported; pyarrow does, and pandas imports it."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CREDENTIALS = struct.Struct("3i")
"""Layout of SO_PEERCRED in unix(7): process, user and group of a peer."""
STANDARD = (0, 1, 2)
"""File descriptors of input, output and errors."""
STARTED = b"+"
"""First byte of an answer: the script runs."""
MOST_SOCKET_BYTES = 100
"""Longest path of a socket."""
PR_SET_PDEATHSIG = 1
"""Option of prctl(2): a signal that a process gets when its parent ends."""


_started: list[subprocess.Popen] = []
"""Kept, because a launcher ends when its input is closed."""


def is_worthwhile(address: Path, n_jobs: int, n_gpus: int) -> bool:
    """True if a launcher works on this machine, is wanted, and saves time. CUDA does not work in forked processes."""
    is_wanted = os.environ.get(SWITCH, "").lower() != "off" and n_jobs >= MIN_JOBS
    if not is_wanted or n_gpus or len(os.fsencode(address)) > MOST_SOCKET_BYTES:
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))  # Linux 5.3 and later
    except (AttributeError, OSError):
        return False
    return True


def start(address: Path) -> str:
    """Start a launcher that ends with this process.

    Args:
        address: of its socket; relative to the working folder, because sockets have short paths.

    Returns:
        Beginning of a shell command that `python SCRIPT` completes.
    """
    address.parent.mkdir(parents=True, exist_ok=True)
    address.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(address)],
        stdin=subprocess.PIPE,  # which the kernel closes when this process ends
        env=os.environ | dict.fromkeys(THREADS, "1"),
        start_new_session=True,  # Ctrl-C reaches a job through its client
    )
    _started.append(process)
    return f"exec {shlex.join([sys.executable, '-IS', str(CLIENT), str(address)])} "


class Launcher:
    """Listens to a socket and forks."""

    def __init__(self, address: Path):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self._jobs: dict[int, tuple[int, socket.socket]] = {}
        """By process: a file descriptor that is readable when it has ended, and the connection to its client."""

    def serve(self) -> dict | None:
        """Fork a child for each request; return the request in the child, and None in the launcher at the end."""
        while sys.stdin.fileno() not in (ready := self._wait()):
            for pid, (ended, client) in list(self._jobs.items()):
                if ended in ready:
                    self._report(pid)
                elif client.fileno() in ready:
                    os.kill(pid, _signal_from(client))
            if self._listener.fileno() in ready and (request := self._fork()):
                return request
        for pid in self._jobs:
            os.kill(pid, signal.SIGKILL)
        return None

    def _wait(self) -> set[int]:
        """Wait until something can be read; return file descriptors."""
        connections = [source for job in self._jobs.values() for source in job]
        with selectors.DefaultSelector() as selector:
            for source in (sys.stdin, self._listener, *connections):
                selector.register(source, selectors.EVENT_READ)
            return {key.fd for key, _ in selector.select()}

    def _fork(self) -> dict | None:
        """Accept a client and fork; return its request in the child."""
        client, _ = self._listener.accept()
        standard, request = _received(client)
        if request is None:
            client.close()
            return None
        try:
            pid = os.fork()
        except OSError:  # no memory; the client runs the script itself
            client.close()
            _close(standard)
            return None
        if pid == 0:
            self._become(standard, client)
            return request
        self._jobs[pid] = os.pidfd_open(pid), client
        _close(standard)
        with suppress(OSError):
            client.sendall(STARTED)
        return None

    def _become(self, standard: list[int], client: socket.socket) -> None:
        """In a child: let go of what is the launcher's, and take a client's input and output."""
        for connection in (self._listener, client, *(other for _, other in self._jobs.values())):
            connection.close()
        for new, old in zip(standard, STANDARD, strict=True):
            os.dup2(new, old)
        _close([*standard, *(ended for ended, _ in self._jobs.values())])
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def _report(self, pid: int) -> None:
        """Tell a client how its job ended."""
        ended, client = self._jobs.pop(pid)
        _, status = os.waitpid(pid, 0)
        _close([ended])
        with client, suppress(OSError):
            client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _received(client: socket.socket) -> tuple[list[int], dict | None]:
    """A client's input and output, and its request; None for another user, or if the client is gone already."""
    _, user, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    if user != os.getuid():
        return [], None
    _, standard, _, _ = socket.recv_fds(client, 1, len(STANDARD))
    with client.makefile("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        _close(standard)
        return [], None
    return standard, json.loads(line)


def _close(numbers: list[int]) -> None:
    for number in numbers:
        os.close(number)


def _signal_from(client: socket.socket) -> int:
    """A signal that a client passes on; SIGKILL if the client is gone."""
    with suppress(OSError):
        if byte := client.recv(1):
            return byte[0]
    return signal.SIGKILL


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run a script in this process, as `python SCRIPT ARGUMENTS` would."""
    from threadpoolctl import threadpool_limits  # imported here because the rules import this module

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # a library may have asked for it before
    sys.argv = arguments
    sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
    threadpool_limits(int(environment.get("OMP_NUM_THREADS", "1")))
    runpy.run_path(arguments[0], run_name="__main__")


def _has_ended(source: IO) -> bool:
    """True if the other end of a pipe is closed."""
    return bool(select.select([source], [], [], 0)[0])


def main(address: Path) -> None:
    """Import the libraries and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for library in PRELOADED:
        importlib.import_module(library)
        if _has_ended(sys.stdin):
            return
    gc.freeze()  # so that children do not copy pages to count references
    request = Launcher(address).serve()
    if request is None:
        address.unlink(missing_ok=True)
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(**request)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
