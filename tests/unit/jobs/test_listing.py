"""The jobs of a run: Snakemake is asked what it would do, and what is on disk is read."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import snakemake.jobs

from saelineage.errors import InputError
from saelineage.jobs.code_digest import SCRIPTS
from saelineage.jobs.listing import WHY, Job, collect, explain, job_name, left_behind, planned, read_jobs, state_of

LISTING = """
Job stats:
job      count
-----  -------
make         1
total        1

[Sat Nov 21 19:31:52 2026]
localrule make:
    input: corpora/own.txt, results/r/a.txt
    output: results/r/b.txt, results/r/b.manifest.json
    log: results/r/logs/b.log
    jobid: 7
    benchmark: results/r/benchmarks/b.tsv
    reason: Params have changed since last execution: Union: before: two
lines now: one ; Updated input files: results/r/a.txt
    wildcards: run=r, name=b
    resources: tmpdir=/tmp
Would remove temporary output results/r/b.txt
[Sat Nov 21 19:31:52 2026]
rule all:
    input: results/r/b.txt
    jobid: 0
    reason: Forced execution
    resources: tmpdir=/tmp
Reasons:
    (check individual jobs above for details)
    forced:
        all, make
"""
SNAKEFILE = """
include: "rules/first.smk"
include: "rules/second.smk"

rule all:
    default_target: True
    input:
        "results/r/page.txt",
"""
FIRST = """
rule cut:
    output:
        temp("results/r/{name}.part"),
    benchmark:
        "results/r/benchmarks/{name}.tsv"
    shell:
        "echo {wildcards.name} > {output}"
"""
SECOND = """
rule join:
    input:
        config["own"],
        expand("results/r/{name}.part", name=config["names"]),
    output:
        whole="results/r/whole.txt",
        manifest="results/r/whole.manifest.json",
    log:
        "results/r/logs/join.log",
    benchmark:
        "results/r/benchmarks/join.tsv"
    params:
        code=config["code"],
    shell:
        "cat {input} > {output.whole}; echo joined > {log}; echo '{{}}' > {output.manifest}"

rule page:
    input:
        "results/r/whole.txt",
    output:
        "results/r/page.txt",
    benchmark:
        "results/r/benchmarks/page.tsv"
    params:
        command=config["command"],
    shell:
        "{params.command} > {output}"
"""
ASKING = """
import json, sys
from pathlib import Path
sys.path.insert(0, {scripts!r})
from saelineage.jobs.listing import collect
config = json.loads(Path("config.json").read_text())
print(json.dumps(collect(config, running="page", workflow=Path({workflow!r}))))
"""
CODE = "0123456789abcdef"


def run_in(folder: Path) -> tuple[Path, dict]:
    """A workflow that has run, in another working directory than its own; its last job asks for the jobs."""
    workflow, here = folder / "workflow", folder / "here"
    files = {"Snakefile": SNAKEFILE, "rules/first.smk": FIRST, "rules/second.smk": SECOND}
    files["profiles/default/config.yaml"] = "rerun-triggers: [mtime, params, input]\nrerun-incomplete: true\n"
    for name, text in files.items():
        (workflow / name).parent.mkdir(parents=True, exist_ok=True)
        (workflow / name).write_text(text)
    here.mkdir()
    (here / "ask.py").write_text(ASKING.format(scripts=str(SCRIPTS), workflow=str(workflow)))
    (here / "own.txt").write_text("own\n")
    config = {"own": "own.txt", "names": ["a", "b"], "code": CODE, "command": f"{sys.executable} ask.py"}
    (here / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", str(workflow / "Snakefile")]
    command += ["--configfile", "config.json", "--workflow-profile", str(workflow / "profiles/default")]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return here, config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    return run_in(tmp_path_factory.mktemp("run"))


def jobs_in(here: Path, config: dict) -> dict[str, dict]:
    """What `collect` says, by rule and name."""
    found = collect(config, here, workflow=here.parent / "workflow")
    return {f"{job['rule']} {job['name']}".strip(): job for job in found}


def job(**changes: object) -> Job:
    plain = Job("make", {}, [], ["a.txt", "a.manifest.json"], "a.log", "a.tsv", "")
    return plain._replace(**changes)


def test_a_listing_is_read_job_by_job_without_those_that_write_nothing():
    assert read_jobs(LISTING) == [
        Job(
            rule="make",
            wildcards={"run": "r", "name": "b"},
            inputs=["corpora/own.txt", "results/r/a.txt"],
            outputs=["results/r/b.txt", "results/r/b.manifest.json"],
            log="results/r/logs/b.log",
            benchmark="results/r/benchmarks/b.tsv",
            reason="Params have changed since last execution: Union: before: two",
        )
    ]


def test_a_listing_of_nothing_has_no_jobs():
    assert read_jobs("Nothing to be done (all requested files are present and up to date).\n") == []


def test_a_name_leaves_out_the_run_and_an_only_shard():
    assert job_name(job(wildcards={"run": "r", "a": "x.seed0", "b": "y.seed0", "shard": "00000-of-00001"})) == (
        "x.seed0 · y.seed0"
    )
    assert job_name(job(wildcards={"run": "r", "shard": "00001-of-00002"})) == "00001-of-00002"


def test_every_reason_that_is_put_in_plain_words_is_one_of_snakemakes():
    source = inspect.getsource(snakemake.jobs.Reason.__str__)
    assert [reason for reason in WHY if reason not in source] == []


def test_each_cause_becomes_a_sentence():
    reason = (
        "Missing output files: c, a; Updated input files: x; Set of input files has changed since last execution; "
        "Params have changed since last execution: Union of exclusive params before and now across all output: "
        "before: {'k': 1} now: {'k': 2} "
    )
    assert explain(reason, {"c"}) == [
        "its files are missing: a, c",
        "inputs changed: x",
        "it needs other files than before",
        "its settings or code changed",
    ]


def test_another_digest_alone_means_other_code():
    reason = "Params have changed since last execution: Union of: before: '{}' now: '{}' "
    assert explain(reason.format(CODE, CODE[::-1]), set()) == ["its code changed"]
    assert explain(reason.format("k", CODE), set()) == ["its settings or code changed"]


def test_temporary_files_are_not_called_missing():
    assert explain("Missing output files: b, a", {"a", "b"}) == [
        "files that were removed after use are needed again: a, b"
    ]


def test_of_many_files_the_first_are_named():
    assert explain("Updated input files: e, d, c, b, a", set()) == ["inputs changed: a, b, c and 2 more"]


def test_a_reason_that_is_not_known_stays_as_it_is():
    assert explain("Because.", set()) == ["Because."]


def test_a_job_whose_files_are_there_and_that_would_not_run_is_fresh(tmp_path: Path):
    for name in ("a.txt", "a.manifest.json"):
        (tmp_path / name).touch()
    assert state_of(job(), None, set(), tmp_path) == ("fresh", [])


def test_a_removed_temporary_file_leaves_a_job_fresh(tmp_path: Path):
    (tmp_path / "a.manifest.json").touch()
    assert state_of(job(), None, {"a.txt"}, tmp_path) == ("fresh", [])


def test_a_file_that_is_gone_is_missing_even_where_nothing_needs_it(tmp_path: Path):
    (tmp_path / "a.manifest.json").touch()
    state, why = state_of(job(), None, set(), tmp_path)
    assert state == "missing"
    assert why == ["its files are missing, but nothing that would run needs them: a.txt"]


def test_a_job_of_temporary_files_is_missing_until_it_ran_and_stale_afterwards(tmp_path: Path):
    reason, temporary = "Missing output files: a.txt", {"a.txt", "a.manifest.json"}
    assert state_of(job(), reason, temporary, tmp_path)[0] == "missing"
    (tmp_path / "a.tsv").touch()
    assert state_of(job(), reason, temporary, tmp_path)[0] == "stale"


def test_what_a_job_left_behind_is_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("12345")
    manifest = {"files": {"a.txt": {"sha256": "d1", "bytes": 5}}, "settings": {"k": 3}, "code_sha256": CODE}
    (tmp_path / "a.manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "a.tsv").write_text("s\th:m:s\tmax_rss\n9.0\t0:00:09\t1.0\n2.5\t0:00:02\t-\n")
    (tmp_path / "a.log").write_bytes(b"\xffx" + b"y" * 3999)
    found = left_behind(job(), {"a.txt"}, tmp_path)
    size = (tmp_path / "a.manifest.json").stat().st_size
    assert found == {
        "seconds": 2.5,  # of the last run
        "max_rss_mb": None,
        "files": [
            {"path": "a.txt", "bytes": 5, "sha256": "d1", "temporary": True},
            {"path": "a.manifest.json", "bytes": size, "sha256": None, "temporary": False},
        ],
        "bytes": 5 + size,
        "log": {"path": "a.log", "tail": "x" + "y" * 3999},  # 4,000 characters: the broken byte before is cut off
        "provenance": {"settings": {"k": 3}, "code_sha256": CODE},
    }


def test_a_job_that_left_nothing_has_nothing(tmp_path: Path):
    found = left_behind(job(log=None), set(), tmp_path)
    assert [file["bytes"] for file in found["files"]] == [None, None]
    assert found | {"files": []} == {
        **{"seconds": None, "max_rss_mb": None, "files": [], "bytes": 0, "log": None, "provenance": None}
    }


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path):
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/a").write_text("123")
    (tmp_path / "data/deep/b").write_text("45")
    assert left_behind(job(outputs=["data"]), set(), tmp_path)["bytes"] == 5


def test_a_damaged_manifest_is_no_provenance(tmp_path: Path):
    (tmp_path / "a.manifest.json").write_text("{")
    assert left_behind(job(), set(), tmp_path)["provenance"] is None


def test_after_a_run_every_job_is_fresh_and_nothing_was_written(finished: tuple[Path, dict]):
    here, config = finished
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if ".snakemake" not in path.parts}
    jobs = jobs_in(here, config)
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*") if ".snakemake" not in path.parts}
    assert after == before
    assert {name: job["state"] for name, job in jobs.items()} == {
        **{"cut a": "fresh", "cut b": "fresh", "join": "fresh", "page": "fresh"}
    }
    assert list(jobs) == ["cut a", "cut b", "join", "page"]  # by stage, then rule, then name
    assert jobs["cut a"]["files"] == [{"path": "results/r/a.part", "bytes": None, "sha256": None, "temporary": True}]
    assert jobs["join"]["needs"] == [0, 1]
    assert (jobs["join"]["stage"], jobs["page"]["needs"], jobs["join"]["inputs"]) == ("second", [2], ["own.txt"])
    assert jobs["join"]["log"] == {"path": "results/r/logs/join.log", "tail": "joined\n"}
    assert jobs["join"]["seconds"] is not None


def test_a_running_job_sees_itself_as_running_and_all_before_as_fresh(finished: tuple[Path, dict]):
    found = json.loads((finished[0] / "results/r/page.txt").read_text())
    assert [job["state"] for job in found] == ["fresh", "fresh", "fresh", "running"]


def test_a_plan_has_no_states(finished: tuple[Path, dict]):
    here, config = finished
    jobs = planned(config, here, here.parent / "workflow")
    assert [job["rule"] for job in jobs] == ["cut", "cut", "join", "page"]
    assert {key for job in jobs for key in job} == {"id", "rule", "stage", "name", "wildcards", "needs"}


def test_other_code_makes_a_job_stale_and_what_follows(finished: tuple[Path, dict]):
    here, config = finished
    jobs = jobs_in(here, config | {"code": CODE[::-1]})
    assert {name: job["why"] for name, job in jobs.items()} == {
        "cut a": ["files that were removed after use are needed again: results/r/a.part"],
        "cut b": ["files that were removed after use are needed again: results/r/b.part"],
        "join": ["inputs will be made again: results/r/a.part, results/r/b.part", "its code changed"],
        "page": ["inputs will be made again: results/r/whole.txt"],
    }
    assert {job["state"] for job in jobs.values()} == {"stale"}


def test_a_job_that_needs_fewer_files_is_stale(finished: tuple[Path, dict]):
    here, config = finished
    jobs = jobs_in(here, config | {"names": ["a"]})
    assert list(jobs) == ["cut a", "join", "page"]
    assert "it needs other files than before" in jobs["join"]["why"]


def test_a_new_job_is_missing(finished: tuple[Path, dict]):
    here, config = finished
    jobs = jobs_in(here, config | {"names": ["a", "b", "c"]})
    assert {name: job["state"] for name, job in jobs.items()} == {
        **{"cut a": "stale", "cut b": "stale", "cut c": "missing", "join": "stale", "page": "stale"}
    }
    assert jobs["cut c"]["why"] == ["its files are missing: results/r/c.part"]


def test_an_edited_file_of_the_users_own_is_named(finished: tuple[Path, dict]):
    here, config = finished
    (here / "own.txt").write_text("other\n")
    try:
        assert "inputs changed: own.txt" in jobs_in(here, config)["join"]["why"]
    finally:
        (here / "own.txt").write_text("own\n")


def test_a_run_that_cannot_be_planned_says_why(finished: tuple[Path, dict]):
    here, _ = finished
    with pytest.raises(InputError, match=r"only if Snakemake can plan it(.|\n)*KeyError"):
        planned({}, here, here.parent / "workflow")


def test_a_profile_of_the_users_environment_changes_nothing(
    finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
):
    here, config = finished
    monkeypatch.setitem(os.environ, "SNAKEMAKE_PROFILE", "no-such-profile")
    assert {job["state"] for job in jobs_in(here, config).values()} == {"fresh"}
