"""What a Snakemake does around a run's jobs: notes and checks at its start, its hold on the run, and its launcher.

The rules call these with Snakemake's `workflow`, which has no public type.
"""

import atexit
import os
import sys
from collections.abc import Iterable
from typing import Any

from snakemake.io import IOFile

from saelineage.jobs import commands, launcher, locks
from saelineage.jobs.gpus import torch_without_cuda, visible_gpus
from saelineage.jobs.manifests import note_on_records, refuse_damage
from saelineage.plan import turns
from saelineage.plan.brought import check_on_disk, check_on_hub, left_for_the_start, without_seeds
from saelineage.plan.plan import Plan

DECIDES_RESULTS = False

SPINS = "1000"
"""How often an idle thread of OpenMP looks for work before it sleeps. By default it looks for milliseconds, which on a
busy machine keeps the threads that have work from their cores (docs/benchmarks.md)."""


def default_config(basedir: str) -> str:
    """The config without --configfile: of the working directory, or else of the workflow's (`--snakefile`)."""
    path = os.path.join("config", "config.yaml")
    return path if os.path.exists(path) else os.path.join(basedir, path)


def enter(workflow: Any, run: Plan, notes: Iterable[str] = ()) -> None:
    """Tell jobs which Snakemake started them; the main process also checks what the user brings, and removes the stale
    locks of a killed one.

    Args:
        workflow: Snakemake's.
        run: the plan.
        notes: sentences to print first.

    Raises:
        InputError: if something that the user brings cannot be used.
    """
    settings = workflow.config_settings
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    commands.announce_options(workflow.main_snakefile, settings.configfiles, settings.config_args or [])
    if not workflow.deployment_settings.deployment_method:
        commands.require_quotable(sys.executable)
    locks.announce(run.name)
    if (
        turns.RESOURCE not in workflow.global_resources
    ):  # neither here nor in a profile, where --resources would hide it
        workflow.register_resource(turns.RESOURCE, turns.ALL)
    if not workflow.is_main_process:
        return
    on_disk = [note for plan in run.places.values() for note in check_on_disk(plan, os.path.exists)]
    for note in dict.fromkeys([*notes, *map(without_seeds, run.places.values()), *on_disk]):
        _say(note)
    _say(torch_without_cuda())
    stale = locks.remove_stale(run.name)
    _say(stale)
    if not stale:
        atexit.register(lambda: _say(locks.note_at_end(run.name)))


def begin(workflow: Any, run: Plan) -> str | None:
    """Keep other Snakemakes from a run while this one works on it, and check what it will fetch from the hub.

    With `--nolock` nothing is claimed.

    Returns:
        The beginning of shell commands with which jobs reach the launcher; None if there is none.

    Raises:
        InputError: if another Snakemake has the run, or something on the hub cannot be used.
    """
    if not workflow.is_main_process:
        return None
    is_claimed = workflow.execution_settings.lock
    if is_claimed:
        locks.claim(run.name, jobs_are_local=workflow.local_exec)
    to_make = {str(file) for job in workflow.dag.needrun_jobs() for file in job.output}
    on_hub = [note for plan in run.places.values() for note in check_on_hub(plan, lambda path: path not in to_make)]
    for note in dict.fromkeys(on_hub):
        _say(note)
    socket = locks.launcher_socket(run.name)
    runs_here = workflow.local_exec and not workflow.touch and not workflow.deployment_settings.deployment_method
    if is_claimed and runs_here and launcher.is_worthwhile(socket, len(workflow.dag), visible_gpus()):
        return f"set -euo pipefail; {launcher.start(socket)}"
    return None


def succeed(workflow: Any, run: Plan) -> None:
    """Say where the page is, if it was made."""
    page = next(iter(run.pages().values()))["page"]
    if workflow.is_main_process and os.path.exists(page):
        _say(f"the report is {page}")


def manifests(workflow: Any, run: Plan) -> list[str]:
    """What `all` asks for beside results, if no file is damaged or from another run. A dry run says what it leaves out.

    Other targets are not checked in advance: a job checks what it reads, and `verify` reads everything. While another
    Snakemake works on the run there are files whose manifests are not written yet.

    Raises:
        SystemExit: naming the damaged files.
    """
    paths = run.manifests()
    if workflow.is_main_process and workflow.dryrun:
        for note in dict.fromkeys(map(left_for_the_start, run.places.values())):
            _say(note)
    if locks.is_free(run.name):
        refuse_damage(run.paths.folder)
        if workflow.is_main_process:
            is_recorded = workflow.persistence.metadata
            _say(note_on_records(run.paths.folder, paths, lambda path: is_recorded(IOFile(path)) is not None))
    return paths


def _say(note: str | None) -> None:
    """Print a note, if there is one."""
    if note:
        print(f"note: {note}", file=sys.stderr)
