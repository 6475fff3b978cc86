"""Run a command in the launcher, and end as it ends.

    python -IS launched.py SOCKET PYTHON SCRIPT ARGUMENTS...

Only the standard library is imported, because this runs once per job. If no launcher answers, this process becomes the
command.
"""

import json
import os
import signal
import socket
import sys

DECIDES_RESULTS = False

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT)
STARTED = b"+"
"""First byte of the launcher's answer: the script runs."""


def main(address: str, python: str, *arguments: str) -> None:
    """Run a Python script in the launcher, and anything else in this process."""
    client = _started(address, arguments) if python == sys.executable else None
    if client is None:
        os.execvp(python, [python, *arguments])  # noqa: S606 - as Snakemake's own shell would start it
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: client.send(bytes([number])))
    signal.signal(signal.SIGTSTP, lambda *_: _stop(client))
    with client.makefile("r") as answer:
        status = answer.readline()
    if not status:
        sys.exit("error: the launcher of jobs is gone, and this job with it; run snakemake again")
    if int(status) < 0:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -int(status))
    sys.exit(int(status))


def _started(address: str, arguments: tuple[str, ...]) -> socket.socket | None:
    """Ask the launcher to run a script; None if it does not."""
    client = socket.socket(socket.AF_UNIX)
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    try:
        client.connect(address)
        socket.send_fds(client, [b"\0"], [0, 1, 2])
        client.sendall(json.dumps(request).encode() + b"\n")
        return client if client.recv(1) == STARTED else None
    except OSError:
        return None


def _stop(client: socket.socket) -> None:
    """Stop the script and this process, as Ctrl-Z does; SIGCONT goes on with both."""
    client.send(bytes([signal.SIGSTOP]))  # SIGTSTP has no effect in the launcher's session, which has no terminal
    os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    main(*sys.argv[1:])
