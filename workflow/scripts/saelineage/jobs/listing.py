"""The jobs of a run: what Snakemake plans, which jobs it would run again and why, and what each has left behind.

In the order of use: `planned` lists every job; `collect` adds states, times, files, logs and provenance. Snakemake is
asked in a process of its own, by dry runs, so the answer is what `snakemake` would do (an edit of a conda environment
alone is not noticed); no file of the run is written. A dry run separates names by ", ": a path of the user's own with a
comma in it is shown in pieces.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from saelineage.jobs.code_digest import SCRIPTS

WORKFLOW = SCRIPTS.parent.parent
RULE = re.compile(r"^(?:rule|checkpoint) (\w+):", re.MULTILINE)
JOB = re.compile(
    r"^(?:local)?(?:rule|checkpoint) (\w+):\n(.*?)(?=^(?:local)?(?:rule|checkpoint) \w+:\n|\Z)", re.M | re.S
)
FIELD = re.compile(r"^    (input|output|log|benchmark|reason|wildcards): (.*)$", re.MULTILINE)
TEMPORARY = re.compile(r"^Would remove temporary output (.+)$", re.MULTILINE)
WHY = {  # how Snakemake 9.27 begins a reason, and what that means; {} stands for the files it names
    "Missing output files": "its files are missing: {}",
    "Incomplete output files": "it was interrupted while it wrote {}",
    "Updated input files": "inputs changed: {}",
    "Input files updated by another job": "inputs will be made again: {}",
    "Set of input files has changed since last execution": "it needs other files than before",
    "Params have changed since last execution": "its settings or code changed",
}
REASON = re.compile(rf"(?:^|; )({'|'.join(map(re.escape, WHY))})(?:: |(?=; |$))", re.DOTALL)
# As the profile has them, but for software environments: whoever asks cannot know how the run's jobs are deployed.
TRIGGERS = ("mtime", "params", "input")
OTHER_CODE = re.compile(r"[^:]*: before: '[0-9a-f]{16}' now: '[0-9a-f]{16}'\s*")  # code_digest's alone
MANY_FILES = 3
LOG_CHARACTERS = 4000
PROVENANCE = ("settings", "found", "code_sha256", "threads", "python", "versions")


class Job(NamedTuple):
    """A job as a dry run lists it."""

    rule: str
    wildcards: dict[str, str]
    inputs: list[str]
    outputs: list[str]
    log: str | None
    benchmark: str | None
    reason: str
    """Why Snakemake would run it, in Snakemake's words."""


class Plan(NamedTuple):
    """What Snakemake says of a whole run."""

    jobs: list[Job]
    """Every job with outputs, as a run from nothing would have them."""
    temporary: set[str]
    """Outputs that are removed once they were used."""
    stages: dict[str, str]
    """The stage of each rule, in the order of the workflow."""


def planned(config: dict, folder: Path | str = ".", workflow: Path = WORKFLOW) -> list[dict]:
    """Every job of a run from nothing, whatever is there already.

    Args:
        config: the config with its defaults; asking Snakemake again with it plans the same run.
        folder: the working directory, in which results/ lies.
        workflow: the folder of the Snakefile.

    Returns:
        JSON-able descriptions, sorted by stage, rule and name: `id` (the place in the list), `rule`, `stage`, `name`
        (what tells the rule's jobs apart), `wildcards`, and `needs` (the ids of the jobs whose outputs it reads).

    Raises:
        InputError: if Snakemake cannot plan the run.
    """
    return describe(plan(config, folder, workflow))


def collect(
    config: dict, folder: Path | str = ".", running: str | None = None, workflow: Path = WORKFLOW
) -> list[dict]:
    """What `planned` says of every job, with its state now and what it has left behind.

    Args:
        config: as for `planned`.
        folder: as for `planned`.
        running: the rule that asks, where it is part of the run itself; its jobs are in the state `running`.
        workflow: as for `planned`.

    Returns:
        As `planned`, and: `state` (`fresh`, `stale`, `missing`, `running`) with `why` (sentences); `seconds` and
        `max_rss_mb` (MiB) of its last run, None where not measured; `files` (`path`, `bytes`, None where absent,
        `sha256`, None where no manifest names it, `temporary`) and the sum `bytes`; `inputs` (files that no job
        makes); `log` (`path`, and `tail`, the last 4,000 characters); `provenance` (from its manifest, or None).

    Raises:
        InputError: if Snakemake cannot plan the run.
    """
    found = plan(config, folder, workflow)
    pending = {tuple(job.outputs): job.reason for job in read_jobs(ask_snakemake(config, folder, workflow))}
    made = {path for job in found.jobs for path in job.outputs}
    described = []
    for job, description in zip(found.jobs, describe(found), strict=True):
        state, why = state_of(job, pending.get(tuple(job.outputs)), found.temporary, Path(folder))
        if job.rule == running:
            state, why = "running", ["it was writing this page"]
        left = left_behind(job, found.temporary, Path(folder))
        own_files = {"inputs": [path for path in job.inputs if path not in made]}
        described.append(description | {"state": state, "why": why} | left | own_files)
    return described


def plan(config: dict, folder: Path | str = ".", workflow: Path = WORKFLOW) -> Plan:
    """Every job of a run from nothing (`--forceall`), sorted by stage, rule and name.

    Raises:
        InputError: if Snakemake cannot plan the run.
        ValueError: if what it prints holds no job.
    """
    text, stages = ask_snakemake(config, folder, workflow, "--forceall"), stages_of_rules(workflow)
    order = {rule: index for index, rule in enumerate(stages)}
    jobs = sorted(read_jobs(text), key=lambda job: (order.get(job.rule, len(order)), job.rule, job_name(job)))
    if not jobs:
        raise ValueError(f"this is no list of jobs as Snakemake prints it: {text[-200:]!r}")
    return Plan(jobs, set(TEMPORARY.findall(text)), stages)


def ask_snakemake(config: dict, folder: Path | str, workflow: Path, *options: str) -> str:
    """What a dry run prints, under the workflow's own profile: that decides what counts as stale.

    Raises:
        InputError: if Snakemake cannot plan the run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "config.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        # A running Snakemake holds the lock; a dry run changes no file of the run, so it needs none.
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--nocolor", "--cores", "1", *options]
        command += ["--snakefile", str(workflow / "Snakefile"), "--configfile", str(path)]
        command += ["--workflow-profile", str(workflow / "profiles" / "default"), "--rerun-triggers", *TRIGGERS]
        environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
        environment["PYTHONIOENCODING"] = "utf-8"
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise InputError(f"the run's jobs can be listed only if Snakemake can plan it, but it says: {said}")
    return done.stdout


def read_jobs(text: str) -> list[Job]:
    """The jobs with outputs that a dry run lists; a rule without any, such as `all`, only gathers others' files."""
    found = []
    for rule, block in JOB.findall(text):
        fields = dict(FIELD.findall(block))
        wildcards = dict(part.split("=", 1) for part in _names(fields.get("wildcards")))
        job = Job(
            rule,
            wildcards,
            _names(fields.get("input")),
            _names(fields.get("output")),
            fields.get("log"),
            fields.get("benchmark"),
            fields.get("reason", ""),
        )
        if job.outputs:
            found.append(job)
    return found


def stages_of_rules(workflow: Path) -> dict[str, str]:
    """The stage of each rule: the name of the file it stands in, in the order the Snakefile includes them."""
    snakefile = (workflow / "Snakefile").read_text(encoding="utf-8")
    stages = re.findall(r'^include: "rules/(\w+)\.smk"', snakefile, re.MULTILINE)
    texts = {stage: (workflow / "rules" / f"{stage}.smk").read_text(encoding="utf-8") for stage in stages}
    return {rule: stage for stage, text in texts.items() for rule in RULE.findall(text)}


def job_name(job: Job) -> str:
    """What tells a rule's jobs apart: the wildcards, without the run and the number of an only shard."""
    return " · ".join(value for key, value in job.wildcards.items() if key != "run" and not value.endswith("-of-00001"))


def describe(found: Plan) -> list[dict]:
    """The part of `collect` that follows from the plan alone."""
    maker = {path: number for number, job in enumerate(found.jobs) for path in job.outputs}
    return [
        {
            "id": number,
            "rule": job.rule,
            "stage": found.stages.get(job.rule, "others"),
            "name": job_name(job),
            "wildcards": job.wildcards,
            "needs": sorted({maker[path] for path in job.inputs if path in maker}),
        }
        for number, job in enumerate(found.jobs)
    ]


def state_of(job: Job, reason: str | None, temporary: set[str], folder: Path) -> tuple[str, list[str]]:
    """A job's state and why it is in it.

    Args:
        job: the job.
        reason: why Snakemake would run it, or None where it would not.
        temporary: outputs that are removed once they were used; that they are gone makes nothing missing.
        folder: the working directory.

    Returns:
        `missing` where a file that should stay is not there or the job never ran, otherwise `stale` where Snakemake
        would run it again, otherwise `fresh`; and sentences, none for a fresh job.
    """
    absent = [path for path in job.outputs if path not in temporary and not (folder / path).exists()]
    never_ran = reason is not None and not (job.benchmark and (folder / job.benchmark).exists())
    if reason is None and absent:
        return "missing", [f"its files are missing, but nothing that would run needs them: {_listed(absent)}"]
    if reason is None:
        return "fresh", []
    return "missing" if absent or never_ran else "stale", explain(reason, set() if never_ran else temporary)


def explain(reason: str, temporary: set[str]) -> list[str]:
    """Snakemake's reason in plain words, one sentence for each cause; what is not known stays as it is."""
    parts = REASON.split(reason)[1:]
    if not parts:
        return [reason]
    return [_sentence(cause, rest, temporary) for cause, rest in zip(parts[::2], parts[1::2], strict=True)]


def left_behind(job: Job, temporary: set[str], folder: Path) -> dict:
    """Time, files, log and provenance of a job's last run, whatever of them is there."""
    manifests = [(path, _manifest(folder / path)) for path in job.outputs if path.endswith("manifest.json")]
    digests = {
        (Path(path).parent / name).as_posix(): entry.get("sha256")
        for path, manifest in manifests
        for name, entry in manifest.get("files", {}).items()
    }
    files = [
        {"path": path, "bytes": _bytes(folder / path), "sha256": digests.get(path), "temporary": path in temporary}
        for path in job.outputs
    ]
    record = next((manifest for _, manifest in manifests if manifest), None)
    return {
        **_measured(folder / job.benchmark if job.benchmark else None),
        "files": files,
        "bytes": sum(file["bytes"] or 0 for file in files),
        "log": {"path": job.log, "tail": _tail(folder / job.log)} if job.log else None,
        "provenance": {key: record[key] for key in PROVENANCE if key in record} if record else None,
    }


def _names(text: str | None) -> list[str]:
    return text.split(", ") if text else []


def _listed(paths: Sequence[str]) -> str:
    """Paths in a sentence, sorted, the first few of many."""
    more = len(paths) - MANY_FILES
    return ", ".join(sorted(paths)[:MANY_FILES]) + (f" and {more} more" if more > 0 else "")


def _sentence(cause: str, rest: str, temporary: set[str]) -> str:
    if cause.startswith("Params") and OTHER_CODE.fullmatch(rest):
        return "its code changed"
    paths = _names(rest)
    if cause.startswith("Missing") and temporary.issuperset(paths):
        return f"files that were removed after use are needed again: {_listed(paths)}"
    return WHY[cause].format(_listed(paths))


def _manifest(path: Path) -> dict:
    """A manifest, or nothing where it is not there or damaged: `verify` is what complains of that."""
    try:
        return read_json(path) if path.exists() else {}
    except InputError:
        return {}


def _bytes(path: Path) -> int | None:
    """Size of a file, or of all files of a folder; None where there is nothing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else None


def _measured(benchmark: Path | None) -> dict[str, float | None]:
    """The last line of a benchmark: wall time in seconds, and the most memory in MiB."""
    if benchmark is None or not benchmark.exists():
        return {"seconds": None, "max_rss_mb": None}
    head, *rows = [line.split("\t") for line in benchmark.read_text(encoding="utf-8").splitlines()]
    row = dict(zip(head, rows[-1], strict=False)) if rows else {}
    return {"seconds": _number(row.get("s")), "max_rss_mb": _number(row.get("max_rss"))}


def _number(text: str | None) -> float | None:
    """A measurement; Snakemake writes "-" or "NA" for what it could not measure."""
    return None if text in (None, "", "-", "NA") else float(text)


def _tail(path: Path) -> str | None:
    """The end of a log, None where there is none."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * LOG_CHARACTERS))
        return file.read().decode("utf-8", errors="replace")[-LOG_CHARACTERS:]
