"""The jobs of a run: what Snakemake plans, which jobs it would run again and why, and what each has left behind.

In the order of use: `planned` lists every job; `collect` adds states, times, files, logs and provenance. Snakemake is
asked in a process of its own (`snakemake_plan`), so the answer is what `snakemake` would do, except that an edit of a
conda environment alone is not noticed. No file of the run is written.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from saelineage.jobs.benchmark import benchmark_path
from saelineage.jobs.code_digest import SCRIPTS

WORKFLOW = SCRIPTS.parent.parent
ASK = Path(__file__).with_name("snakemake_plan.py")
CODE_DIGEST = re.compile(r"'[0-9a-f]{16}'")  # a param as Snakemake remembers it
MANY_FILES = 3
LOG_CHARACTERS = 4000
PROVENANCE = ("settings", "found", "code_sha256", "threads", "python", "versions")


class Reason(NamedTuple):
    """Snakemake's reason to run a job."""

    missing: Sequence[str] = ()
    """Outputs that are not there."""
    was_interrupted: bool = False
    """The job did not finish writing its files."""
    updated: Sequence[str] = ()
    """Inputs that are newer than the outputs."""
    made_again: Sequence[str] = ()
    """Inputs that another job of the plan will make again."""
    has_other_inputs: bool = False
    """The list of inputs differs from that of the last run."""
    params_before: Sequence[str] = ()
    """Params of the last run that are gone, as Python literals."""
    params_now: Sequence[str] = ()
    """Params that the last run did not have."""
    text: str = ""
    """All of it in Snakemake's words."""


class Job(NamedTuple):
    """A job as Snakemake plans it."""

    rule: str
    wildcards: dict[str, str]
    inputs: list[str]
    outputs: list[str]
    temporary: list[str]
    """Outputs that are removed after use."""
    log: str | None
    reason: Reason | None
    """None if Snakemake would not run it."""


class Plan(NamedTuple):
    """Snakemake's plan of a whole run."""

    jobs: list[Job]
    """Every job, whether it would run or not, sorted by stage, rule and name."""
    stages: dict[str, str]
    """The stage of each rule, in the order of the workflow."""


def planned(config: dict, folder: Path | str = ".", workflow: Path = WORKFLOW) -> list[dict]:
    """Describe every job of a run from nothing, whatever is there already.

    Args:
        config: the config with its defaults; Snakemake plans the same run with it.
        folder: the working directory, in which results/ lies.
        workflow: the folder of the Snakefile.

    Returns:
        JSON-able descriptions, sorted by stage, rule and name: `id` (the place in the list), `rule`, `stage`, `name`
        (tells the rule's jobs apart), `wildcards`, and `needs` (the ids of the jobs whose outputs it reads).

    Raises:
        InputError: if Snakemake cannot plan the run.
    """
    return describe(with_outputs(ask_snakemake(config, folder, workflow)))


def collect(
    config: dict, folder: Path | str = ".", running: str | None = None, workflow: Path = WORKFLOW
) -> list[dict]:
    """Describe every job, with its state now and the files, log and provenance of its last run.

    Args:
        config: as for `planned`.
        folder: as for `planned`.
        running: the rule that asks, if it is part of the run itself; its jobs are in the state `running`.
        workflow: as for `planned`.

    Returns:
        As `planned`, and: `state` (`fresh`, `stale`, `missing`, `running`) with `why` (sentences); `seconds`,
        `cpu_seconds` and `max_rss_mb` (MiB) of its last run, None if not measured; `files` (`path`, `bytes`, None if
        absent, `sha256`, None if no manifest names it, `temporary`) and the sum `bytes`; `inputs` (files that no job
        makes); `log` (`path`, and `tail`, the last 4,000 characters); `provenance` (from its manifest, or None).

    Raises:
        InputError: if Snakemake cannot plan the run.
    """
    plan = with_outputs(ask_snakemake(config, folder, workflow))
    made = {path for job in plan.jobs for path in job.outputs}
    temporary = {path for job in plan.jobs for path in job.temporary}
    jobs = []
    for job, description in zip(plan.jobs, describe(plan), strict=True):
        state, why = state_of(job, temporary, Path(folder))
        if job.rule == running:
            state, why = "running", ["it was writing this page"]
        user_files = {"inputs": [path for path in job.inputs if path not in made]}
        jobs.append(description | {"state": state, "why": why} | left_behind(job, Path(folder)) | user_files)
    return jobs


def ask_snakemake(config: dict, folder: Path | str, workflow: Path, *targets: str) -> Plan:
    """Let Snakemake plan a run, under the workflow's own profile, which decides what counts as stale.

    Args:
        config: as for `planned`.
        folder: as for `planned`.
        workflow: as for `planned`.
        *targets: files to make; without any, those of the default target.

    Raises:
        InputError: if Snakemake cannot plan the run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path, output = Path(temporary, "config.json"), Path(temporary, "plan.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        # -P: the folder of the script is not searched for modules.
        command = [sys.executable, "-P", str(ASK), "--workflow", str(workflow), "--output", str(output)]
        command += ["--configfile", str(path), *targets]
        environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
        environment["PYTHONIOENCODING"] = "utf-8"
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if done.returncode:
            message = (done.stdout + done.stderr).strip()[-2000:]
            raise InputError(f"the run's jobs can be listed only if Snakemake can plan it, but it says: {message}")
        return read_plan(json.loads(output.read_text(encoding="utf-8")))


def read_plan(answer: dict[str, Any]) -> Plan:
    """Read the JSON of `snakemake_plan`."""
    stages = {rule["name"]: Path(rule["file"]).stem for rule in answer["rules"] if rule["file"].endswith(".smk")}
    order = {rule["name"]: number for number, rule in enumerate(answer["rules"])}
    jobs = [Job(**job | {"reason": Reason(**job["reason"]) if job["reason"] else None}) for job in answer["jobs"]]
    return Plan(sorted(jobs, key=lambda job: (order[job.rule], job_name(job))), stages)


def with_outputs(plan: Plan) -> Plan:
    """Leave out rules such as `all`, which only gather other jobs' files."""
    return plan._replace(jobs=[job for job in plan.jobs if job.outputs])


def job_name(job: Job) -> str:
    """The wildcards that tell a rule's jobs apart: not the run, nor the number of an only shard."""
    return " · ".join(value for key, value in job.wildcards.items() if key != "run" and not value.endswith("-of-00001"))


def describe(plan: Plan) -> list[dict]:
    """The part of `collect` that follows from the plan alone."""
    maker = {path: number for number, job in enumerate(plan.jobs) for path in job.outputs}
    return [
        {
            "id": number,
            "rule": job.rule,
            "stage": plan.stages.get(job.rule, "others"),
            "name": job_name(job),
            "wildcards": job.wildcards,
            "needs": sorted({maker[path] for path in job.inputs if path in maker}),
        }
        for number, job in enumerate(plan.jobs)
    ]


def state_of(job: Job, temporary: set[str], folder: Path) -> tuple[str, list[str]]:
    """A job's state and the reasons for it.

    Args:
        job: the job.
        temporary: outputs of any job that are removed after use; their absence makes nothing missing.
        folder: the working directory.

    Returns:
        `missing` if a file that should stay is absent or the job never ran, otherwise `stale` if Snakemake would run
        it again, otherwise `fresh`; and sentences, none for a fresh job.
    """
    absent = [path for path in job.outputs if path not in temporary and not (folder / path).exists()]
    if job.reason is None and absent:
        return "missing", [f"its files are missing, but nothing that would run needs them: {_listed(absent)}"]
    if job.reason is None:
        return "fresh", []
    never_ran = not (job.log and benchmark_path(folder / job.log).exists())
    return "missing" if absent or never_ran else "stale", explain(job.reason, set() if never_ran else temporary)


def explain(reason: Reason, temporary: set[str]) -> list[str]:
    """Snakemake's reason in plain words, one sentence for each cause; an unknown cause in Snakemake's own."""
    sentences = []
    if reason.missing and temporary.issuperset(reason.missing):
        sentences.append(f"files that were removed after use are needed again: {_listed(reason.missing)}")
    elif reason.missing:
        sentences.append(f"its files are missing: {_listed(reason.missing)}")
    if reason.was_interrupted:
        sentences.append("it was interrupted while it wrote its files")
    if reason.updated:
        sentences.append(f"inputs changed: {_listed(reason.updated)}")
    if reason.made_again:
        sentences.append(f"inputs will be made again: {_listed(reason.made_again)}")
    if reason.has_other_inputs:
        sentences.append("it needs other files than before")
    if reason.params_before or reason.params_now:
        is_code = all(
            len(params) == 1 and CODE_DIGEST.fullmatch(params[0])
            for params in (reason.params_before, reason.params_now)
        )
        sentences.append("its code changed" if is_code else "its settings or code changed")
    return sentences or [reason.text]


def left_behind(job: Job, folder: Path) -> dict:
    """Time, files, log and provenance of a job's last run, as far as they are there."""
    manifests = [(path, _manifest(folder / path)) for path in job.outputs if path.endswith("manifest.json")]
    digests = {
        (Path(path).parent / name).as_posix(): entry.get("sha256")
        for path, manifest in manifests
        for name, entry in manifest.get("files", {}).items()
    }
    sizes = {path: _bytes(folder / path) for path in job.outputs}
    files = [
        {"path": path, "bytes": size, "sha256": digests.get(path), "temporary": path in job.temporary}
        for path, size in sizes.items()
    ]
    record = next((manifest for _, manifest in manifests if manifest), None)
    return {
        **_measured(benchmark_path(folder / job.log) if job.log else None),
        "files": files,
        "bytes": sum(size or 0 for size in sizes.values()),
        "log": {"path": job.log, "tail": _tail(folder / job.log)} if job.log else None,
        "provenance": {key: record[key] for key in PROVENANCE if key in record} if record else None,
    }


def _listed(paths: Sequence[str]) -> str:
    """Paths in a sentence, sorted, the first few of many."""
    more = len(paths) - MANY_FILES
    return ", ".join(sorted(paths)[:MANY_FILES]) + (f" and {more} more" if more > 0 else "")


def _manifest(path: Path) -> dict:
    """A manifest, or an empty dict if it is absent or damaged, which `verify` reports."""
    try:
        return read_json(path) if path.exists() else {}
    except InputError:
        return {}


def _bytes(path: Path) -> int | None:
    """Size of a file, or of all files of a folder; None if absent."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else None


def _measured(benchmark: Path | None) -> dict[str, float | None]:
    """The last line of a benchmark: wall and CPU time in seconds, peak memory in MiB."""
    if benchmark is None or not benchmark.exists():
        return {"seconds": None, "cpu_seconds": None, "max_rss_mb": None}
    head, *rows = [line.split("\t") for line in benchmark.read_text(encoding="utf-8").splitlines()]
    row = dict(zip(head, rows[-1], strict=False)) if rows else {}
    names = {"seconds": "s", "cpu_seconds": "cpu_time", "max_rss_mb": "max_rss"}
    return {name: _number(row.get(column)) for name, column in names.items()}


def _number(text: str | None) -> float | None:
    """A measurement; in files of Snakemake's own, "-" or "NA" is none."""
    return None if text in (None, "", "-", "NA") else float(text)


def _tail(path: Path) -> str | None:
    """The end of a log, or None if it is absent."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * LOG_CHARACTERS))
        return file.read().decode("utf-8", errors="replace")[-LOG_CHARACTERS:]
