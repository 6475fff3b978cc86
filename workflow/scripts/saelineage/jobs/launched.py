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

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def main(address: str, python: str, *arguments: str) -> None:
    """Run a Python script, or whatever else the command is."""
    if python != sys.executable:
        os.execvp(python, [python, *arguments])  # noqa: S606 - as Snakemake's own shell would start it
    try:
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(client, [b"\0"], [0, 1, 2])
        client.sendall(json.dumps(request).encode() + b"\n")
    except OSError:
        os.execvp(python, [python, *arguments])  # noqa: S606 - as Snakemake's own shell would start it
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: client.send(bytes([number])))
    with client.makefile("r") as answer:
        status = answer.readline()
    if not status:
        sys.exit("error: the launcher of jobs is gone, and this job with it; run snakemake again")
    if int(status) < 0:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -int(status))
    sys.exit(int(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
