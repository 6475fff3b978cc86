"""Checks of files against manifests: they find damage, and never blame a file of the user."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from saelineage.errors import InputError
from saelineage.files.atomic import PLACE, read_json, sha256_file, write_json
from saelineage.jobs.job import job
from saelineage.jobs.manifests import (
    Problem,
    check_changes,
    check_run,
    manifest_path,
    note_on_records,
    recorded_sha256,
    require_inputs,
)
from tests.unit.jobs.scripts import script_object

# printf one | sha256sum
SHA256_OF_ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def record(inputs: list[Path | str], outputs: list[Path]) -> None:
    """Write the manifests of a job whose outputs are there."""
    with TemporaryDirectory() as folder, job(script_object(Path(folder, "logs/stage/job.log"), inputs, outputs)):
        pass


def problems(folder: Path) -> list[str]:
    """The problems of a run, in sentences."""
    return [problem.what for problem in check_run(folder).problems]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_manifest_of_one_file_is_named_after_it():
    assert manifest_path("a/shard-0.safetensors") == Path("a/shard-0.manifest.json")


@pytest.mark.parametrize("name", ["one.txt", "deep/one.txt"])
def test_the_digest_of_an_input_is_taken_from_the_manifest_beside_or_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    one = written(Path("results") / name, "one")
    record([], [one, Path("results/manifest.json")])
    assert recorded_sha256(one) == SHA256_OF_ONE


def test_the_manifest_of_a_file_itself_goes_before_that_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shard = written(Path("results/shard.npy"), "one")
    record([], [shard, Path("results/manifest.json")])
    shard.write_text("two")
    record([], [shard, Path("results/shard.manifest.json")])
    assert recorded_sha256(shard) == sha256_file(shard)


def test_a_file_that_no_manifest_names_has_no_digest_on_record(tmp_path: Path):
    record([], [written(tmp_path / "one.txt", "one"), tmp_path / "manifest.json"])
    assert recorded_sha256(written(tmp_path / "two.txt", "two")) is None
    assert recorded_sha256(written(tmp_path / "alone" / "deep" / "two.txt", "two")) is None


@pytest.mark.parametrize(
    "theirs",
    [
        '{"files": {"lua.jsonl": "md5"}}',
        '{"code_sha256": "c", "files": {"lua.jsonl": {"sha256": "d", "bytes": 3}}, "inputs": {}, "wildcards": {}}',
    ],
    ids=["another format", "ours"],
)
def test_a_manifest_that_came_with_a_users_corpus_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
):
    monkeypatch.chdir(tmp_path)
    written(Path("texts/manifest.json"), theirs)
    written(Path("texts/lua.jsonl"), "one")
    assert recorded_sha256("texts/lua.jsonl") is None
    record(["texts/lua.jsonl"], [written(Path("results/one"), "one"), Path("results/manifest.json")])
    assert read_json("results/manifest.json")["inputs"] == {"texts/lua.jsonl": SHA256_OF_ONE}


def test_an_input_beside_a_damaged_manifest_is_refused(run: Path):
    written(run / "a" / "manifest.json", "[")
    with pytest.raises(InputError, match=r"'results/demo/a/manifest\.json'.*rm -f results/demo/a/manifest.json$"):
        require_inputs([str(run / "a" / "a.bin")])


def test_files_in_folders_below_a_manifest_are_checked_too(tmp_path: Path):
    demo = tmp_path / "demo"
    (demo / "edges").mkdir(parents=True)
    below = written(demo / "edges" / "one", "one")
    record([], [below, demo / "manifest.json"])
    assert problems(demo) == []
    below.write_text("eno")
    assert problems(demo) == [f"'{below}' does not have the sha256 of its manifest"]


def test_every_damaged_file_is_a_sentence(tmp_path: Path):
    demo = tmp_path / "demo"
    files = [written(demo / name, "one") for name in ("altered", "intact", "lost", "short")]
    record([], [*files, demo / "manifest.json"])
    (demo / "altered").write_text("eno")
    (demo / "lost").unlink()
    (demo / "short").write_text("on")
    assert problems(demo) == [
        f"'{demo}/altered' does not have the sha256 of its manifest",
        f"'{demo}/lost' is missing",
        f"'{demo}/short' has 2 bytes, its manifest says 3",
    ]


def later(path: Path) -> None:
    """Give a file a time after its manifest's."""
    after = path.stat().st_mtime + 60.0
    os.utime(path, (after, after))


def with_its_old_time(path: Path, text: str) -> Path:
    """Write a file, and put its time back to what it was."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three steps: mine.txt -> a/a.bin -> b/b.bin and b/c.bin."""
    monkeypatch.chdir(tmp_path)
    mine, folder = written(Path("mine.txt"), "mine"), Path("results/demo")
    a = written(folder / "a" / "a.bin", "one")
    record([mine], [a, folder / "a" / "manifest.json"])
    b, c = written(folder / "b" / "b.bin", "two"), written(folder / "b" / "c.bin", "three")
    record([a], [b, folder / "b" / "b.manifest.json"])
    record([a, b], [c, folder / "b" / "c.manifest.json"])
    return folder


def test_a_whole_run_has_no_problems_and_every_byte_is_read_once(run: Path):
    for threads in (1, 3):
        # 3 manifests; mine (4 bytes), one, two (3), three (5)
        assert check_run(run, threads) == ([], [], 3, 15)


def test_a_damaged_file_is_named_with_what_to_delete_and_what_was_made_from_it_is_not(run: Path):
    (run / "a" / "a.bin").write_text("eno")
    what = "'results/demo/a/a.bin' does not have the sha256 of its manifest"
    remove = ["results/demo/a/a.bin", "results/demo/a/manifest.json"]
    assert check_run(run).problems == [Problem(what, remove)]
    assert str(check_run(run).problems[0]) == f"{what}: rm -f {' '.join(remove)}"


CHECKS = pytest.mark.parametrize("check", [lambda run: check_run(run).problems, check_changes], ids=["verify", "look"])


def remade(path: Path, text: str, *, age: float) -> None:
    """Make a/a.bin again, so many seconds before now, with its manifest."""
    record([Path("mine.txt")], [written(path, text), path.parent / "manifest.json"])
    times = path.stat()
    os.utime(path, (times.st_atime - age, times.st_mtime - age))


@CHECKS
def test_an_older_file_than_what_was_made_of_it_is_noticed_even_when_its_manifest_came_with_it(
    run: Path, check: Callable
):
    remade(run / "a" / "a.bin", "eno", age=60.0)
    what = "'results/demo/a/a.bin' is not the file that was read for 'results/demo/b/b.manifest.json' and 1 more"
    assert check(run) == [Problem(what, ["results/demo/a/a.bin", "results/demo/a/manifest.json"])]


@CHECKS
def test_a_file_that_was_made_again_is_no_problem_because_snakemake_makes_the_rest(run: Path, check: Callable):
    remade(run / "a" / "a.bin", "eno", age=-60.0)
    assert check(run) == []


@CHECKS
def test_if_only_one_of_several_was_made_from_another_file_it_is_the_one_to_delete(run: Path, check: Callable):
    record([written(Path("results/x"), "eno")], [run / "b" / "b.bin", run / "b" / "b.manifest.json"])
    manifest = run / "b" / "b.manifest.json"
    theirs = read_json(manifest)
    write_json(manifest, theirs | {"inputs": {str(run / "a" / "a.bin"): theirs["inputs"]["results/x"]}})
    what = "'results/demo/a/a.bin' is not the file that was read for 'results/demo/b/b.manifest.json'"
    assert check(run) == [Problem(what, ["results/demo/b/b.manifest.json"])]


@CHECKS
def test_what_came_from_a_run_of_another_name_is_noticed_though_nothing_was_made_from_it(run: Path, check: Callable):
    manifest = run / "b" / "c.manifest.json"
    write_json(manifest, read_json(manifest) | {"wildcards": {"run": "other"}})
    remove = ["results/demo/b/c.bin", "results/demo/b/c.manifest.json"]
    assert check(run) == [Problem("'results/demo/b/c.manifest.json' is of the run 'other'", remove)]


@CHECKS
def test_a_file_of_the_user_s_that_was_replaced_by_an_older_one_is_noticed(run: Path, check: Callable):
    with_its_old_time(Path("mine.txt"), "mine")
    assert check(run) == []
    with_its_old_time(Path("mine.txt"), "more")
    what = "'mine.txt' is not the file that was read for 'results/demo/a/manifest.json'"
    for _ in range(2):
        assert check(run) == [Problem(what, ["results/demo/a/manifest.json"])]
    later(Path("mine.txt"))
    assert check(run) == []  # Snakemake sees that itself


@CHECKS
def test_damage_is_found_in_folders_that_lie_elsewhere(run: Path, check: Callable, tmp_path: Path):
    (run / "a").rename(tmp_path / "scratch")
    (run / "a").symlink_to(tmp_path / "scratch")
    with_its_old_time(run / "a" / "a.bin", "eno")
    assert [problem.remove[0] for problem in check(run)] == ["results/demo/a/a.bin"]


def test_an_input_that_was_removed_after_use_is_no_problem(run: Path):
    (run / "b" / "b.bin").unlink()
    (run / "b" / "b.manifest.json").unlink()
    assert check_run(run).problems == []


@pytest.mark.parametrize("text", ["", "[1]", '{"code_sha256": "c", "files": 1}'])
def test_a_damaged_manifest_is_named(run: Path, text: str):
    written(run / "a" / "manifest.json", text)
    manifest = "results/demo/a/manifest.json"
    assert check_run(run).problems == [Problem(f"'{manifest}' cannot be read as a manifest", [manifest])]


def test_names_that_a_shell_would_split_are_quoted(run: Path):
    record([], [written(run / "d" / "a b.bin", "one"), run / "d" / "manifest.json"])
    (run / "d" / "a b.bin").unlink()
    assert str(check_run(run).problems[0]).endswith(": rm -f 'results/demo/d/a b.bin' results/demo/d/manifest.json")


def test_what_killed_processes_left_is_listed_and_no_problem(run: Path):
    left = [written(run / "a" / f".a.bin.{place}.999999999.tmp", "on") for place in ("another-host", PLACE)]
    written(run / "a" / f".a.bin.{PLACE}.{os.getppid()}.tmp", "on")
    assert check_run(run)[:2] == ([], [str(path) for path in sorted(left)])


@pytest.mark.parametrize(
    ("text", "what"), [("eno", "does not have the sha256 of its manifest"), ("on", "has 2 bytes, its manifest says 3")]
)
def test_damage_is_noticed_by_a_look_at_times_even_if_they_were_put_back(run: Path, text: str, what: str):
    with_its_old_time(run / "a" / "a.bin", text)
    remove = ["results/demo/a/a.bin", "results/demo/a/manifest.json"]
    assert check_changes(run) == [Problem(f"'results/demo/a/a.bin' {what}", remove)]


def test_files_that_did_not_change_since_they_were_recorded_are_not_read(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("saelineage.jobs.manifests.sha256_file", None)  # calling it fails
    assert check_changes(run) == []


def test_files_that_are_copied_are_read_once(run: Path, monkeypatch: pytest.MonkeyPatch):
    with_its_old_time(run / "a" / "a.bin", "one")
    manifest = run / "a" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert check_changes(run) == []
    assert manifest.stat().st_mtime_ns == before
    monkeypatch.setattr("saelineage.jobs.manifests.sha256_file", None)
    assert check_changes(run) == []


def test_a_whole_file_does_not_vouch_for_a_damaged_one_of_the_same_manifest(run: Path):
    files = [written(run / "e" / name, "one") for name in ("x", "y")]
    record([], [*files, run / "e" / "manifest.json"])
    with_its_old_time(files[0], "eno")
    with_its_old_time(files[1], "one")
    for _ in range(2):
        assert [problem.remove[0] for problem in check_changes(run)] == ["results/demo/e/x"]


def test_large_files_are_not_read_by_a_look_unless_their_size_has_changed(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("saelineage.jobs.manifests.LARGE_BYTES", 2)
    with_its_old_time(run / "a" / "a.bin", "eno")
    assert check_changes(run) == []
    with pytest.raises(InputError):
        require_inputs([str(run / "a" / "a.bin")])
    with_its_old_time(run / "a" / "a.bin", "on")
    assert len(check_changes(run)) == 1


def test_files_that_are_gone_are_left_to_snakemake(run: Path):
    (run / "a" / "a.bin").unlink()
    (run / "b" / "b.manifest.json").unlink()
    assert check_changes(run) == []
    assert check_changes(run.parent / "nothing") == []


def test_a_manifest_that_is_damaged_is_found_by_a_look_too(run: Path):
    manifest = str(written(run / "a" / "manifest.json", "{"))
    assert check_changes(run) == [Problem(f"'{manifest}' cannot be read as a manifest", [manifest])]


def test_inputs_that_agree_with_their_manifests_are_accepted_whatever_their_times(run: Path):
    later(run / "a" / "a.bin")
    require_inputs(["mine.txt", str(run / "a" / "a.bin")])


def test_a_damaged_input_is_refused_with_the_files_to_delete(run: Path):
    damaged = with_its_old_time(run / "a" / "a.bin", "eno")
    remedy = "rm -f results/demo/a/a.bin results/demo/a/manifest.json$"
    with pytest.raises(InputError, match=f"'{damaged}'.* sha256 .*{remedy}"):
        require_inputs([str(run / "b" / "b.bin"), str(damaged)])


def test_an_input_of_another_size_is_refused_whatever_its_time(run: Path):
    damaged = written(run / "a" / "a.bin", "on")
    os.utime(damaged, (0, 0))
    with pytest.raises(InputError, match="must be the file that was made here"):
        require_inputs([str(damaged)])


def test_a_run_that_was_copied_without_snakemakes_records_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAELINEAGE_OPTIONS", "--configfile demo.yaml")
    folder = tmp_path / "results" / "demo"
    manifests = [str(folder / name / "manifest.json") for name in ("a", "b", "c")]

    def note(remembered: list[str]) -> str | None:
        return note_on_records(folder, manifests, lambda path: path in remembered)

    assert note([]) is None  # a new run
    for path in manifests[:2]:
        written(Path(path), "{}")
    said = str(note([]))
    assert said.startswith(f"{folder} is here without Snakemake's records of it (.snakemake/metadata), so changes of ")
    assert "copy .snakemake along with results" in said
    assert said.endswith("anew: snakemake --cores 2 --forceall --configfile demo.yaml")
    assert note([manifests[1]]) is None
