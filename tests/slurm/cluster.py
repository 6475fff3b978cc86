"""A real SLURM of one node on the loopback device, with fake GPUs, for as long as a test session lasts.

It needs root and Debian's slurm-wlm and munge, and leaves nothing behind: keys, state, logs and sockets are in one
folder, clients find it by SLURM_CONF, and no port is open to the outside. It needs no control groups: SLURM tracks
processes by their parents and polls their memory.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REQUIRED = "SAELINEAGE_NEEDS_SLURM"
"""If set, a missing SLURM is a failure; otherwise tests of the cluster are skipped without one."""
DAEMONS = ("munged", "slurmctld", "slurmd")
N_CPUS, MEMORY_MB, N_GPUS = 4, 8000, 2
"""Resources that the node claims to have, whatever the machine has."""
STARTS_WITHIN_SECONDS = 30
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
GresTypes=gpu
ReturnToService=2
MinJobAge=3600
KillWait=2
SchedulerParameters=sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def require_slurm() -> None:
    """Skip a test if SLURM cannot be started, or fail it if SLURM is required."""
    if os.geteuid() == 0 and all(map(shutil.which, DAEMONS)):
        return
    (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(
        "tests of the cluster start their own SLURM; run them as root, with Debian's slurm-wlm and munge"
    )


class Cluster:
    """A running SLURM; its clients need `environment`."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def ask(self, *command: str) -> str:
        """Run a client of SLURM; return its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout

    def queue(self, states: str = "pending,running,configuring,completing") -> list[dict[str, str]]:
        """The jobs in some states: id, state, comment (rule and wildcards), requested memory, start and end."""
        fields = {"id": "%i", "state": "%T", "comment": "%k", "memory": "%m", "start": "%S", "end": "%e"}
        lines = self.ask("squeue", "--noheader", f"--states={states}", "--format", "|".join(fields.values()))
        return [dict(zip(fields, line.split("|"), strict=True)) for line in lines.splitlines()]

    def cancel_all(self) -> None:
        """Cancel every job and wait until all have ended."""
        self.ask("scancel", "--user=root")
        self.wait_until_idle()

    def wait_until_idle(self, seconds: float = 20.0) -> None:
        """Wait until no job is left in the queue."""
        ends = time.monotonic() + seconds
        while jobs := self.queue():
            assert time.monotonic() < ends, jobs
            time.sleep(0.2)


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """A cluster, started and stopped.

    Args:
        folder: empty; its path must be short, because it will hold a socket.
    """
    folder.chmod(0o755)  # munge refuses a socket in a folder that others cannot enter
    cluster, processes = Cluster(folder), []
    write_config(folder)
    write_srun(folder)
    try:
        processes.append(start_munge(folder))
        for daemon in ("slurmctld", "slurmd"):
            processes.append(start([daemon, "-D"], folder / f"{daemon}.out", cluster.environment))
        wait_for_node(cluster)
        yield cluster
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            cluster.cancel_all()
        for process in reversed(processes):
            stop(process)


def write_config(folder: Path) -> None:
    """Write slurm.conf, the list of GPUs (devices like /dev/null), and a key for munge."""
    host = socket.gethostname().split(".")[0]
    controller_port, node_port = free_ports(2)
    values = {"cpus": N_CPUS, "memory": MEMORY_MB, "gpus": N_GPUS}
    values |= {"host": host, "folder": folder, "controller_port": controller_port, "node_port": node_port}
    (folder / "slurm.conf").write_text(CONFIG.format(**values), encoding="ascii")
    for number in range(N_GPUS):
        os.mknod(folder / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
    lines = [f"NodeName={host} Name=gpu File={folder}/gpu{number}\n" for number in range(N_GPUS)]
    (folder / "gres.conf").write_text("".join(lines), encoding="ascii")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))


def write_srun(folder: Path) -> None:
    """Write an srun that knows where the cluster is: Snakemake's plugin calls it without SLURM's own variables."""
    (folder / "bin").mkdir()
    text = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
    (folder / "bin" / "srun").write_text(text, encoding="ascii")
    (folder / "bin" / "srun").chmod(0o755)


def start_munge(folder: Path) -> subprocess.Popen:
    """Start the daemon that signs messages, and wait for its socket."""
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / name}" for option, name in (files | {"log-file": "munge.log"}).items()]
    process = start(["munged", "--foreground", "--force", *options], folder / "munge.out", dict(os.environ))
    wait_for((folder / "munge.socket").exists, folder / "munge.out")
    return process


def wait_for_node(cluster: Cluster) -> None:
    """Wait until the node takes jobs."""

    def is_idle() -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):  # the controller does not answer yet
            return cluster.ask("sinfo", "--noheader", "--format=%t").strip() == "idle"
        return False

    wait_for(is_idle, cluster.folder / "slurmctld.log")


def wait_for(condition, log: Path) -> None:
    """Wait until a function returns something true; otherwise fail with the end of a log."""
    ends = time.monotonic() + STARTS_WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < ends, log.read_text(errors="replace")[-3000:] if log.exists() else f"no {log.name}"
        time.sleep(0.1)


def start(command: list[str], output: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a daemon in a new session, so that Ctrl-C in a terminal does not reach it."""
    with output.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def stop(process: subprocess.Popen) -> None:
    """End a daemon."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(n: int) -> list[int]:
    """Free ports of the loopback device."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
