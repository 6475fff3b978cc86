# The plan of the run, and the guards around it. Nothing heavy is imported here, because every job on a cluster reads
# this file again.

import atexit
import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile

SCRIPTS = os.path.join(workflow.basedir, "workflow", "scripts")
sys.path.append(SCRIPTS)

import saelineage

if os.path.dirname(os.path.realpath(saelineage.__path__[0])) != os.path.realpath(SCRIPTS):
    raise WorkflowError(
        f"saelineage must be this checkout's own library, but Python imports it from '{saelineage.__path__[0]}'; "
        f"install this one (pip install -e '{workflow.basedir}') or uninstall the other"
    )

from saelineage.errors import InputError
from saelineage.jobs import commands, launcher, locks
from saelineage.jobs.code_digest import code_digest, rules_digest
from saelineage.jobs.gpus import visible_gpus
from saelineage.jobs.manifests import note_on_records, refuse_damage
from saelineage.plan import sizes
from saelineage.plan.brought import check_on_disk, check_on_hub
from saelineage.plan.compare import expand
from saelineage.plan.comparisons import pair_name
from saelineage.plan.load import load_plan
from saelineage.plan.params import partner_names
from saelineage.plan.paths import MODEL_FILES, SAE_FILES
from saelineage.plan.plan import any_of, models_followed_by
from saelineage.plan.strict_yaml import read_entries, read_yaml


def or_end(function, *arguments, **named):
    """Call a function; turn an InputError into a WorkflowError, which Snakemake prints without a traceback."""
    try:
        return function(*arguments, **named)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def default_config():
    """The config without --configfile: of the working directory, or else of the workflow's (`--snakefile`)."""
    path = os.path.join("config", "config.yaml")
    return path if os.path.exists(path) else os.path.join(workflow.basedir, path)


def enter_run():
    """Tell jobs which Snakemake started them; the main process also removes the stale locks of a killed one."""
    settings = workflow.config_settings
    commands.announce_options(workflow.main_snakefile, settings.configfiles, settings.config_args or [])
    if not workflow.deployment_settings.deployment_method:
        or_end(commands.require_quotable, sys.executable)
    locks.announce(run.name)
    if workflow.is_main_process:
        for note in [*assumptions, *or_end(check_on_disk, run, os.path.exists)]:
            say(note)
        stale = locks.remove_stale(run.name)
        say(stale)
        if not stale:
            atexit.register(lambda: say(locks.note_at_end(run.name)))


def say(note):
    """Print a note, if there is one."""
    if note:
        print(f"note: {note}", file=sys.stderr)


def begin_run():
    """Keep other Snakemakes from this run while this one works on it, and check what it will fetch from the hub.

    With `--nolock` nothing is claimed.
    """
    if not workflow.is_main_process:
        return
    if workflow.execution_settings.lock:
        or_end(locks.claim, run.name, jobs_are_local=workflow.local_exec)
    to_make = {str(file) for job in workflow.dag.needrun_jobs() for file in job.output}
    for note in or_end(check_on_hub, run, lambda path: path not in to_make):
        say(note)
    if workflow.execution_settings.lock and has_launcher():
        shell.prefix(f"set -euo pipefail; {launcher.start(locks.launcher_socket(run.name))}")


def has_launcher():
    """True if jobs run here, with this Python, and a launcher saves time."""
    is_here = workflow.local_exec and not workflow.touch and not workflow.deployment_settings.deployment_method
    return is_here and launcher.is_worthwhile(locks.launcher_socket(run.name), len(workflow.dag), visible_gpus())


def manifests_of_whole_run(wildcards):
    """What `all` asks for beside results, if no file is damaged or from another run.

    Other targets are not checked in advance: a job checks what it reads, and `verify` reads everything. While another
    Snakemake works on the run there are files whose manifests are not written yet.
    """
    manifests = run.paths.manifests()
    if locks.is_free(run.name):
        refuse_damage(run.paths.folder)
        if workflow.is_main_process:
            say(note_on_records(run.paths.folder, manifests, has_record))
    return manifests


def has_record(path):
    """True if Snakemake remembers how a file was made."""
    return workflow.persistence.metadata(IOFile(path)) is not None


def memory(need):
    """An input function: MB of memory, more at each attempt."""

    def of_job(wildcards, input, attempt):
        return sizes.memory_mb(need(wildcards, input).n_bytes, attempt)

    return of_job


def runtime(need):
    """An input function: minutes, more at each attempt."""

    def of_job(wildcards, input, attempt, threads):
        return sizes.runtime_minutes(need(wildcards, input).flop, threads, attempt)

    return of_job
