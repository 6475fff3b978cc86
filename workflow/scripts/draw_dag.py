"""Draw the graph of jobs and the graph of rules, as Snakemake itself plans them."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.code_digest import SCRIPTS
from saelineage.dag import jobs_svg, read_dot, rules_svg
from saelineage.files import write_text
from saelineage.logs import job_log, logger
from saelineage.manifests import record_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

WORKFLOW = SCRIPTS.parent.parent
RULE = re.compile(r"^(?:rule|checkpoint) (\w+):", re.MULTILINE)


def draw_dag(config: dict, path_to_dag: str, path_to_rulegraph: str) -> None:
    """Write both pictures.

    Args:
        config: the config with its defaults; asking Snakemake again with it plans the same run.
        path_to_dag: the picture of all jobs.
        path_to_rulegraph: the picture of all rules.
    """
    graph = read_dot(planned_jobs(config))
    stages = stages_of_rules(WORKFLOW)
    write_text(path_to_dag, jobs_svg(graph, stages))
    write_text(path_to_rulegraph, rules_svg(graph, stages))


def planned_jobs(config: dict) -> str:
    """What `snakemake --dag` prints of a whole run from nothing (`--forceall`), whatever is there already.

    Raises:
        RuntimeError: if Snakemake cannot plan the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        plan = ["--snakefile", str(WORKFLOW / "Snakefile"), "--configfile", str(path), "--dag", "dot", "--forceall"]
        # The running Snakemake holds the lock; a plan writes nothing, so it needs none. Profiles are about running.
        command = [sys.executable, "-m", "snakemake", *plan, "--nolock", "--workflow-profile", "none"]
        environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logger.info("%s", done.stderr)
    if done.returncode:
        raise RuntimeError(f"snakemake --dag ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def stages_of_rules(workflow: Path) -> dict[str, str]:
    """The stage of each rule: the name of the file it stands in, in the order the Snakefile includes them."""
    snakefile = (workflow / "Snakefile").read_text(encoding="utf-8")
    stages = re.findall(r'^include: "rules/(\w+)\.smk"', snakefile, re.MULTILINE)
    texts = {stage: (workflow / "rules" / f"{stage}.smk").read_text(encoding="utf-8") for stage in stages}
    return {rule: stage for stage, text in texts.items() for rule in RULE.findall(text)}


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        # The whole config, but not as a param: only what shapes the graph makes the pictures stale (params.shape).
        draw_dag(snakemake.config, snakemake.output.dag, snakemake.output.rulegraph)
        record_job(snakemake)
