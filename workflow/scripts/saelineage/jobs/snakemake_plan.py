"""Ask Snakemake for the jobs of a run, and write its answer as JSON.

    python -P snakemake_plan.py --output FILE --workflow FOLDER --configfile FILE [TARGET ...]

Run in a process of its own, from the working directory of the run, because Snakemake keeps global state. It plans and
runs nothing. Settings come from the workflow's profile `default`, as for the user's own `snakemake`.

Snakemake 9.27 has no public call that returns a plan. Everything that depends on its internals is in this file, and
tests/unit/jobs/test_listing.py plans real workflows with it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.cli import parse_args
from snakemake.settings.enums import RerunTrigger
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings


def plan(workflow: Path, configfile: str, targets: list[str]) -> dict[str, Any] | None:
    """Plan a run in the working directory.

    Args:
        workflow: the folder of the Snakefile.
        configfile: the config of the run.
        targets: files to make; without any, those of the default target.

    Returns:
        `rules` (name and file, in the order of the workflow) and `jobs` (all of them, whether they would run or not);
        None if Snakemake cannot plan the run, after printing its message on stderr.
    """
    options = ["--snakefile", str(workflow / "Snakefile"), "--configfile", configfile, "--cores", "1"]
    options += ["--workflow-profile", str(workflow / "profiles" / "default")]
    _, arguments = parse_args(options)
    with SnakemakeApi(OutputSettings(nocolor=True, enable_file_logging=False)) as api:
        try:
            loaded = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=arguments.configfile),
                snakefile=arguments.snakefile,
            )
            loaded.dag(
                DAGSettings(
                    targets=frozenset(targets),
                    force_incomplete=True,  # plan interrupted jobs again instead of stopping
                    # The caller cannot know how the run's jobs are deployed.
                    rerun_triggers=frozenset(arguments.rerun_triggers) - {RerunTrigger.SOFTWARE_ENV},
                    max_checksum_file_size=arguments.max_checksum_file_size,
                )
            )
            return _planned(loaded._workflow)
        except Exception as error:
            api.print_exception(error)
            return None


def _planned(workflow: Any) -> dict[str, Any]:
    """Build the graph of jobs, as `WorkflowApi` does for `--dag`, and describe it."""
    # A running Snakemake holds the lock. Planning changes no file of the run, so it needs none.
    workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True, nolock=True)
    workflow._build_dag()
    return {
        "rules": [{"name": rule.name, "file": str(rule.snakefile)} for rule in workflow.rules],
        "jobs": [_described(job, workflow.dag) for job in workflow.dag.jobs],
    }


def _described(job: Any, dag: Any) -> dict[str, Any]:
    return {
        "rule": job.rule.name,
        "wildcards": {key: str(value) for key, value in job.wildcards_dict.items()},
        "inputs": [str(path) for path in job.input],
        "outputs": [str(path) for path in job.output],
        "temporary": sorted(str(path) for path in job.temp_output),
        "log": str(job.log[0]) if job.log else None,
        "reason": _reason(dag.reason(job)) if dag.needrun(job) else None,
    }


def _reason(reason: Any) -> dict[str, Any]:
    """Snakemake's reason to run a job, field by field."""
    return {
        "missing": sorted(map(str, reason.missing_output)),
        # Nothing is forced here, so Snakemake forces only jobs that did not finish writing their files.
        "was_interrupted": bool(reason.forced),
        "updated": sorted(map(str, reason.updated_input - reason.updated_input_run)),
        "made_again": sorted(map(str, reason.updated_input_run)),
        "has_other_inputs": bool(reason.input_changed),
        "params_before": sorted(map(str, reason.params_changed.only_old)),
        "params_now": sorted(map(str, reason.params_changed.only_new)),
        "text": str(reason),
    }


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workflow", type=Path, required=True)
    parser.add_argument("--configfile", required=True)
    parser.add_argument("targets", nargs="*")
    given = parser.parse_args()
    answer = plan(given.workflow, given.configfile, given.targets)
    if answer is not None:
        given.output.write_text(json.dumps(answer), encoding="utf-8")
    return int(answer is None)


if __name__ == "__main__":
    sys.exit(main())
