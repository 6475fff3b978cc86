"""The jobs of a run: Snakemake is asked what it would do, and what is on disk is read."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.jobs.code_digest import SCRIPTS
from saelineage.jobs.listing import Job, Reason, collect, explain, job_name, left_behind, planned, state_of

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
    log:
        "results/r/logs/first/{name}.log",
    shell:
        "echo {wildcards.name} > {output}; mkdir -p results/r/benchmarks/first; "
        "echo s > results/r/benchmarks/first/{wildcards.name}.tsv"
"""
SECOND = r'''
rule join:
    input:
        config["own"],
        expand("results/r/{name}.part", name=config["names"]),
    output:
        whole="results/r/whole.txt",
        manifest="results/r/whole.manifest.json",
    log:
        "results/r/logs/second/join.log",
    params:
        code=config["code"],
    shell:
        r"""
        cat {input:q} > {output.whole}
        echo '{{}}' > {output.manifest}
        echo joined > {log}
        mkdir -p results/r/benchmarks/second
        printf 's\tmax_rss\n1.0\t2.0\n' > results/r/benchmarks/second/join.tsv
        """

rule page:
    input:
        "results/r/whole.txt",
    output:
        "results/r/page.txt",
    log:
        "results/r/logs/second/page.log",
    params:
        command=config["command"],
    shell:
        "{params.command} > {output}; echo s > results/r/benchmarks/second/page.tsv"
'''
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
    (here / "own, and.txt").write_text("own\n")
    config = {"own": "own, and.txt", "names": ["a", "b"], "code": CODE, "command": f"{sys.executable} ask.py"}
    (here / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", str(workflow / "Snakefile")]
    command += ["--configfile", "config.json", "--workflow-profile", str(workflow / "profiles/default")]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return here, config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    return run_in(tmp_path_factory.mktemp("run"))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def jobs_in(here: Path, config: dict) -> dict[str, dict]:
    """The jobs that `collect` lists, by rule and name."""
    jobs = collect(config, here, workflow=here.parent / "workflow")
    return {f"{job['rule']} {job['name']}".strip(): job for job in jobs}


def job(**changes: object) -> Job:
    plain = Job("make", {}, [], ["a.txt", "a.manifest.json"], [], "logs/x/a.log", None)
    return plain._replace(**changes)


def test_a_name_leaves_out_the_run_and_an_only_shard():
    assert job_name(job(wildcards={"run": "r", "a": "x.seed0", "b": "y.seed0", "shard": "00000-of-00001"})) == (
        "x.seed0 · y.seed0"
    )
    assert job_name(job(wildcards={"run": "r", "shard": "00001-of-00002"})) == "00001-of-00002"


def test_each_cause_becomes_a_sentence():
    reason = Reason(
        missing=["c", "a"],
        was_interrupted=True,
        updated=["e", "d", "c", "b", "a"],
        made_again=["x, y"],
        has_other_inputs=True,
        params_before=["{'k': 1}"],
        params_now=["{'k': 2}"],
    )
    assert explain(reason, {"c"}) == [
        "its files are missing: a, c",
        "it was interrupted while it wrote its files",
        "inputs changed: a, b, c and 2 more",
        "inputs will be made again: x, y",
        "it needs other files than before",
        "its settings or code changed",
    ]
    assert explain(Reason(missing=["b", "a"]), {"a", "b"}) == [
        "files that were removed after use are needed again: a, b"
    ]
    assert explain(Reason(text="Because."), set()) == ["Because."]


def test_another_digest_alone_means_other_code():
    before, now = f"'{CODE}'", f"'{CODE[::-1]}'"
    assert explain(Reason(params_before=[before], params_now=[now]), set()) == ["its code changed"]
    for params_before in (["'k'"], [], [before, "7"]):
        reason = Reason(params_before=params_before, params_now=[now])
        assert explain(reason, set()) == ["its settings or code changed"]


def test_a_job_is_fresh_if_its_files_are_there_or_were_removed_after_use(tmp_path: Path):
    (tmp_path / "a.manifest.json").touch()
    assert state_of(job(), {"a.txt"}, tmp_path) == ("fresh", [])
    (tmp_path / "a.txt").touch()
    assert state_of(job(), set(), tmp_path) == ("fresh", [])


def test_an_absent_file_is_missing_even_if_nothing_needs_it(tmp_path: Path):
    (tmp_path / "a.manifest.json").touch()
    assert state_of(job(), set(), tmp_path) == (
        "missing",
        ["its files are missing, but nothing that would run needs them: a.txt"],
    )


def test_a_job_of_temporary_files_is_missing_until_it_ran_and_stale_afterwards(tmp_path: Path):
    planned_job, temporary = job(reason=Reason(missing=["a.txt"])), {"a.txt", "a.manifest.json"}
    assert state_of(planned_job, temporary, tmp_path)[0] == "missing"
    written(tmp_path / "benchmarks/x/a.tsv", "")
    assert state_of(planned_job, temporary, tmp_path)[0] == "stale"


def test_what_a_job_left_behind_is_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("12345")
    manifest = {"files": {"a.txt": {"sha256": "d1", "bytes": 5}}, "settings": {"k": 3}, "code_sha256": CODE}
    (tmp_path / "a.manifest.json").write_text(json.dumps(manifest))
    written(tmp_path / "benchmarks/x/a.tsv", "s\tcpu_time\tmax_rss\n9.0\t8.0\t1.0\n2.5\t2.0\t-\n")
    written(tmp_path / "logs/x/a.log", "").write_bytes(b"\xffx" + b"y" * 3999)
    left = left_behind(job(temporary=["a.txt"]), tmp_path)
    size = (tmp_path / "a.manifest.json").stat().st_size
    assert left == {
        "seconds": 2.5,  # of the last run
        "cpu_seconds": 2.0,
        "max_rss_mb": None,
        "files": [
            {"path": "a.txt", "bytes": 5, "sha256": "d1", "temporary": True},
            {"path": "a.manifest.json", "bytes": size, "sha256": None, "temporary": False},
        ],
        "bytes": 5 + size,
        "log": {
            "path": "logs/x/a.log",
            "tail": "x" + "y" * 3999,
        },  # 4,000 characters: the broken byte before is cut off
        "provenance": {"settings": {"k": 3}, "code_sha256": CODE},
    }


def test_a_job_that_left_nothing_has_nothing(tmp_path: Path):
    left = left_behind(job(log=None), tmp_path)
    assert [file["bytes"] for file in left["files"]] == [None, None]
    assert left | {"files": []} == {
        **{
            "seconds": None,
            "cpu_seconds": None,
            "max_rss_mb": None,
            "files": [],
            "bytes": 0,
            "log": None,
            "provenance": None,
        }
    }


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path):
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/a").write_text("123")
    (tmp_path / "data/deep/b").write_text("45")
    assert left_behind(job(outputs=["data"]), tmp_path)["bytes"] == 5


def test_a_damaged_manifest_is_no_provenance(tmp_path: Path):
    (tmp_path / "a.manifest.json").write_text("{")
    assert left_behind(job(), tmp_path)["provenance"] is None


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
    assert (jobs["join"]["stage"], jobs["page"]["needs"], jobs["join"]["inputs"]) == ("second", [2], ["own, and.txt"])
    assert jobs["join"]["log"] == {"path": "results/r/logs/second/join.log", "tail": "joined\n"}
    assert (jobs["join"]["seconds"], jobs["join"]["max_rss_mb"]) == (1.0, 2.0)


def test_a_running_job_sees_itself_as_running_and_all_before_as_fresh(finished: tuple[Path, dict]):
    jobs = json.loads((finished[0] / "results/r/page.txt").read_text())
    assert [job["state"] for job in jobs] == ["fresh", "fresh", "fresh", "running"]


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


def test_a_new_job_is_missing_and_the_job_that_reads_its_file_stale(finished: tuple[Path, dict]):
    here, config = finished
    jobs = jobs_in(here, config | {"names": ["b", "c"]})
    assert {name: job["state"] for name, job in jobs.items()} == {
        **{"cut b": "stale", "cut c": "missing", "join": "stale", "page": "stale"}
    }
    assert jobs["cut c"]["why"] == ["its files are missing: results/r/c.part"]
    assert "it needs other files than before" in jobs["join"]["why"]


def test_an_interrupted_job_is_stale(finished: tuple[Path, dict]):
    here, config = finished
    # Snakemake's mark on a file that is being written: its path in base 64.
    mark = here / ".snakemake/incomplete" / base64.b64encode(b"results/r/page.txt").decode()
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    try:
        page = jobs_in(here, config)["page"]
    finally:
        mark.unlink()
    assert (page["state"], page["why"]) == ("stale", ["it was interrupted while it wrote its files"])


def test_an_edited_file_of_the_user_is_named(finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    here, config = finished
    monkeypatch.setitem(os.environ, "SNAKEMAKE_PROFILE", "no-such-profile")  # must not be read
    (here / "own, and.txt").write_text("other\n")
    try:
        assert "inputs changed: own, and.txt" in jobs_in(here, config)["join"]["why"]
    finally:
        (here / "own, and.txt").write_text("own\n")


def test_a_run_that_cannot_be_planned_says_why(finished: tuple[Path, dict]):
    here, _ = finished
    with pytest.raises(InputError, match=r"only if Snakemake can plan it(.|\n)*KeyError"):
        planned({}, here, here.parent / "workflow")
