"""Manifests: what each job wrote, from what; they find damage and never blame a file that is not theirs."""

import hashlib
import platform
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from saelineage.files import read_json, write_json
from saelineage.manifests import check_manifest, manifest_path, record_job, recorded_sha256

# printf one | sha256sum
SHA256_OF_ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
SHA256_OF_TWO = hashlib.sha256(b"two").hexdigest()


class Params(dict):
    """Snakemake's params: items by name, and as attributes."""

    __getattr__ = dict.__getitem__


def record(inputs: list[Path | str], outputs: list[Path], *, found: dict | None = None, **params: object) -> None:
    """Record a finished job, given what a script gets to see of its rule."""
    params = Params(code="c0de", **params)
    finished = SimpleNamespace(input=inputs, output=outputs, params=params, wildcards={"run": "demo"}, threads=2)
    record_job(finished, **(found or {}))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_manifest_of_one_file_is_named_after_it():
    assert manifest_path("a/shard-0.safetensors") == Path("a/shard-0.manifest.json")


def test_a_folder_of_outputs_gets_one_manifest_with_everything_on_record(tmp_path: Path):
    source = written(tmp_path / "in.txt", "two")
    one = written(tmp_path / "out" / "one.txt", "one")
    deep = written(tmp_path / "out" / "deep" / "two.txt", "two")
    manifest = tmp_path / "out" / "manifest.json"
    record([source], [deep, one, manifest], found={"commit": "abc"}, k=32)
    recorded = read_json(manifest)
    versions = recorded.pop("versions")
    assert recorded == {
        "inputs": {str(source): SHA256_OF_TWO},
        "settings": {"k": 32},
        # printf '{"k": 32}' | sha256sum
        "settings_sha256": hashlib.sha256(b'{"k": 32}').hexdigest(),
        "wildcards": {"run": "demo"},
        "found": {"commit": "abc"},
        "code_sha256": "c0de",
        "threads": 2,
        "python": platform.python_version(),
        "files": {
            "one.txt": {"sha256": SHA256_OF_ONE, "bytes": 3},
            "deep/two.txt": {"sha256": SHA256_OF_TWO, "bytes": 3},
        },
    }
    assert versions["numpy"] == numpy.__version__


def test_files_with_manifests_of_their_own_are_recorded_there_each_with_its_sidecar(tmp_path: Path):
    outputs = [written(tmp_path / name, "one") for name in ("a.npy", "a.json", "b.npy")]
    record([], [*outputs, tmp_path / "a.manifest.json", tmp_path / "b.manifest.json"])
    entry = {"sha256": SHA256_OF_ONE, "bytes": 3}
    assert read_json(tmp_path / "a.manifest.json")["files"] == {"a.npy": entry, "a.json": entry}
    assert read_json(tmp_path / "b.manifest.json")["files"] == {"b.npy": entry}


def test_a_job_of_two_folders_writes_two_manifests(tmp_path: Path):
    outputs = [written(tmp_path / "a" / "x", "one"), written(tmp_path / "b" / "x", "two")]
    record([], [*outputs, tmp_path / "a" / "manifest.json", tmp_path / "b" / "manifest.json"])
    assert read_json(tmp_path / "a" / "manifest.json")["files"] == {"x": {"sha256": SHA256_OF_ONE, "bytes": 3}}
    assert read_json(tmp_path / "b" / "manifest.json")["files"] == {"x": {"sha256": SHA256_OF_TWO, "bytes": 3}}


def test_of_an_output_that_is_a_folder_every_file_is_recorded(tmp_path: Path):
    folder = tmp_path / "data" / "base"
    written(folder / "table.js", "one")
    written(folder / "deep" / "000000.js", "two")
    written(tmp_path / "data" / "lua" / "table.js", "two")
    manifest = tmp_path / "data" / "base.manifest.json"
    record([], [folder, manifest])
    assert read_json(manifest)["files"] == {
        "base/table.js": {"sha256": SHA256_OF_ONE, "bytes": 3},
        "base/deep/000000.js": {"sha256": SHA256_OF_TWO, "bytes": 3},
    }
    assert check_manifest(manifest) == []
    (folder / "table.js").write_text("eno")
    assert check_manifest(manifest) == [f"'{folder}/table.js' does not have the sha256 of its manifest"]


@pytest.mark.parametrize("name", ["one.txt", "deep/one.txt"])
def test_the_digest_of_an_input_is_taken_from_the_manifest_beside_or_above_it(tmp_path: Path, name: str):
    one = written(tmp_path / name, "one")
    record([], [one, tmp_path / "manifest.json"])
    assert recorded_sha256(one) == SHA256_OF_ONE


def test_the_manifest_of_a_file_itself_goes_before_that_of_its_folder(tmp_path: Path):
    shard = written(tmp_path / "shard.npy", "one")
    record([], [shard, tmp_path / "manifest.json"])
    shard.write_text("two")
    record([], [shard, tmp_path / "shard.manifest.json"])
    assert recorded_sha256(shard) == SHA256_OF_TWO


def test_a_file_that_no_manifest_names_has_no_digest_on_record(tmp_path: Path):
    record([], [written(tmp_path / "one.txt", "one"), tmp_path / "manifest.json"])
    assert recorded_sha256(written(tmp_path / "two.txt", "two")) is None
    assert recorded_sha256(written(tmp_path / "alone" / "deep" / "two.txt", "two")) is None


def test_a_file_of_the_working_folder_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # corpora_dir is "." unless the config says otherwise, so this is how a user's own file reaches a job.
    monkeypatch.chdir(tmp_path)
    written(Path("lua.jsonl"), "two")
    record(["lua.jsonl"], [written(tmp_path / "out" / "one", "one"), tmp_path / "out" / "manifest.json"])
    assert read_json(tmp_path / "out" / "manifest.json")["inputs"] == {"lua.jsonl": SHA256_OF_TWO}


@pytest.mark.parametrize("theirs", [{"files": ["lua.jsonl"]}, {"files": {"lua.jsonl": "md5"}}, {"name": "lua corpus"}])
def test_a_manifest_that_came_with_a_users_corpus_is_not_taken_for_ours(tmp_path: Path, theirs: dict):
    write_json(tmp_path / "manifest.json", theirs)
    assert recorded_sha256(written(tmp_path / "lua.jsonl", "two")) is None


def test_an_intact_folder_has_no_problems(tmp_path: Path):
    record([], [written(tmp_path / "one", "one"), tmp_path / "manifest.json"])
    assert check_manifest(tmp_path / "manifest.json") == []


def test_files_in_folders_below_a_manifest_are_checked_too(tmp_path: Path):
    (tmp_path / "edges").mkdir()
    below = written(tmp_path / "edges" / "one", "one")
    record([], [below, tmp_path / "manifest.json"])
    assert check_manifest(tmp_path / "manifest.json") == []
    below.write_text("eno")
    assert check_manifest(tmp_path / "manifest.json") == [f"'{below}' does not have the sha256 of its manifest"]


def test_every_damaged_file_is_a_sentence(tmp_path: Path):
    files = [written(tmp_path / name, "one") for name in ("altered", "intact", "lost", "short")]
    record([], [*files, tmp_path / "manifest.json"])
    (tmp_path / "altered").write_text("eno")
    (tmp_path / "lost").unlink()
    (tmp_path / "short").write_text("on")
    assert check_manifest(tmp_path / "manifest.json") == [
        f"'{tmp_path}/altered' does not have the sha256 of its manifest",
        f"'{tmp_path}/lost' is missing",
        f"'{tmp_path}/short' has 2 bytes, its manifest says 3",
    ]
