"""Corpora from the hub: pinned, in order and complete despite lost connections. The hub is a small one on loopback."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pyarrow
import pyarrow.parquet
import pytest

from tests.hub_server import Hub, running_hub

# Reads one JSON request per line and prints one answer. Pauses are recorded instead of slept through.
READER = """
import faulthandler, json, logging, sys, time, types

faulthandler.dump_traceback_later(100, exit=True)
import datasets.utils.file_utils, huggingface_hub.utils._http
from saelineage.corpora import documents as corpora
from saelineage.files import hub

def counting(name):
    sleep = lambda seconds: pauses.append([name, seconds])
    return types.SimpleNamespace(**{**vars(time), "sleep": sleep})

pauses, warnings = [], []
corpora.time = counting("saelineage")
datasets.utils.file_utils.time = counting("datasets")
huggingface_hub.utils._http.time = counting("huggingface_hub")
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
corpora.logger.addHandler(handler)

for line in sys.stdin:
    request = json.loads(line)
    pauses.clear(), warnings.clear()
    answer = {"documents": []}
    try:
        if "cache" in request:
            datasets.load_dataset(**request["cache"])
        if "commit" in request:
            answer["commit"] = hub.hub_commit(**request["commit"])
        if "read" in request:
            for text in corpora.read_documents("chat", request["read"], []):
                answer["documents"].append(text)
    except corpora.InputError as error:
        answer["error"] = str(error)
    print(json.dumps(answer | {"pauses": pauses, "warnings": warnings}), flush=True)
"""


class Reader:
    """A process that reads from the hub, as a job does."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def ask(self, **request: object) -> dict:
        """Return the documents, commit or error of one request, with the pauses and warnings on the way."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the reader died; its traceback is on stderr"
        return json.loads(answer)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def reader(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("home")
    # A folder with the name of a repository, in the working directory, must not be read in its place.
    (home / "own" / "shadowed").mkdir(parents=True)
    (home / "own" / "shadowed" / "train.jsonl").write_text('{"text": "from the folder"}\n')
    with subprocess.Popen(
        [sys.executable, "-c", READER],
        cwd=home,
        env=server.environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Reader(process)
        process.stdin.close()


@pytest.fixture
def hub(server: Hub) -> Iterator[Hub]:
    """The hub in working order, whatever the previous test broke."""
    server.requests.clear()
    yield server
    server.fault = lambda request: None


def settings(repo: str, revision: str, **changed: object) -> dict:
    """A `hub` corpus with the schema's defaults."""
    defaults = {"config": None, "split": "train", "text_column": "text", "max_rows": None, "max_bytes": None}
    return {"source": "hub", "repo": repo, "revision": revision, "retries": 2} | defaults | changed


def rows(first: int, last: int) -> list[str]:
    return [f"row {number}" for number in range(first, last)]


def parquet(texts: list[str], rows_per_group: int = 10) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), sink, row_group_size=rows_per_group)
    return sink.getvalue().to_pybytes()


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def two_files() -> dict[str, bytes]:
    """60 rows: 0 to 29 in the first file, 30 to 59 in the second."""
    return {
        "data/train-00000-of-00002.parquet": parquet(rows(0, 30)),
        "data/train-00001-of-00002.parquet": parquet(rows(30, 60)),
    }


def failing(times: int, part_of_request: str, how: str | int) -> Callable[[str], str | int | None]:
    """Return a fault for the first `times` requests that contain `part_of_request`."""
    left = times

    def fault(request: str) -> str | int | None:
        nonlocal left
        if left and part_of_request in request:
            left -= 1
            return how
        return None

    return fault


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(two_files(), id="two parquet files"),
        pytest.param({"train.jsonl": jsonl(rows(0, 60))}, id="one jsonl file"),
    ],
)
def test_documents_come_in_the_order_of_the_rows(hub: Hub, reader: Reader, files: dict[str, bytes]):
    repo = f"own/plain-{len(files)}"
    commit = hub.push(repo, files)
    assert reader.ask(read=settings(repo, commit)) == {"documents": rows(0, 60), "pauses": [], "warnings": []}


def test_a_branch_is_resolved_to_its_commit_and_that_commit_is_read_when_the_branch_has_moved(hub: Hub, reader: Reader):
    old = hub.push("own/moving", {"train.jsonl": jsonl(["old"])})
    resolve = {"repo": "own/moving", "revision": "main", "repo_type": "dataset", "key": "corpora.chat"}
    assert reader.ask(commit=resolve)["commit"] == old
    new = hub.push("own/moving", {"train.jsonl": jsonl(["new"])})
    assert reader.ask(commit=resolve)["commit"] == new
    assert reader.ask(read=settings("own/moving", old))["documents"] == ["old"]
    assert reader.ask(read=settings("own/moving", new))["documents"] == ["new"]


def test_reading_stops_after_max_rows(hub: Hub, reader: Reader):
    commit = hub.push("own/limited", two_files())
    assert reader.ask(read=settings("own/limited", commit, max_rows=33))["documents"] == rows(0, 33)


def test_no_file_beyond_max_rows_is_requested(hub: Hub, reader: Reader):
    commit = hub.push("own/exact", two_files())
    hub.fault = failing(1000, "GET /datasets/own/exact/resolve/" + commit + "/data/train-00001", "close")
    # The first file has 30 rows.
    assert reader.ask(read=settings("own/exact", commit, max_rows=30, retries=0)) == {
        "documents": rows(0, 30),
        "pauses": [],
        "warnings": [],
    }


def test_reading_ends_with_the_document_that_reaches_max_bytes(hub: Hub, reader: Reader):
    commit = hub.push("own/bytes", two_files())
    # Each of "row 0" to "row 2" has 5 bytes, so the third reaches 15.
    assert reader.ask(read=settings("own/bytes", commit, max_bytes=15))["documents"] == rows(0, 3)


def test_a_subset_and_a_split_may_be_named(hub: Hub, reader: Reader):
    card = "---\nconfigs:\n- config_name: nl\n  data_files:\n  - split: dev\n    path: nl/dev.jsonl\n---\n"
    commit = hub.push("own/subsets", {"README.md": card.encode(), "nl/dev.jsonl": jsonl(["hallo"])})
    assert reader.ask(read=settings("own/subsets", commit, config="nl", split="dev"))["documents"] == ["hallo"]


def test_a_folder_of_the_same_name_is_not_read_for_the_repository(hub: Hub, reader: Reader):
    commit = hub.push("own/shadowed", {"train.jsonl": jsonl(["from the hub"])})
    assert reader.ask(read=settings("own/shadowed", commit))["documents"] == ["from the hub"]


def test_a_row_without_the_column_or_with_another_type_is_named(hub: Hub, reader: Reader):
    commit = hub.push("own/null", {"train.jsonl": b'{"text": "a", "id": 1}\n{"text": "b", "id": 2}\n'})
    error = reader.ask(read=settings("own/null", commit, text_column="content"))["error"]
    assert error.startswith("corpus 'chat': row 1 of 'own/null' has no 'content', only ['id', 'text']; ")
    assert error.endswith("set corpora.chat.text_column to the one that holds the text")
    error = reader.ask(read=settings("own/null", commit, text_column="id"))["error"]
    assert error.startswith("corpus 'chat': 'id' in row 1 of 'own/null' must be text, not int; ")


def test_a_row_whose_text_is_null_is_passed_on_as_such(hub: Hub, reader: Reader):
    commit = hub.push("own/nulls", {"train.jsonl": b'{"text": "a"}\n{"text": null}\n{"text": "c"}\n'})
    answer = reader.ask(read=settings("own/nulls", commit))
    assert answer["documents"] == ["a", ["row 2 of 'own/nulls'"], "c"]  # a Null, as JSON


def test_an_unknown_repository_or_revision_is_named(hub: Hub, reader: Reader):
    hub.push("own/known", {"train.jsonl": jsonl(["a"])})
    for repo, revision in (("own/nowhere", "main"), ("own/known", "v2"), ("own/not--a-name", "main")):
        asked = {"repo": repo, "revision": revision, "repo_type": "dataset", "key": "corpora.chat"}
        error = reader.ask(commit=asked)["error"]
        assert error.startswith(
            f"corpora.chat: the hub has no dataset '{repo}' at revision '{revision}', or it needs a"
        )
        assert error.endswith("; correct corpora.chat.repo or .revision")


@pytest.mark.parametrize(
    ("repo", "files", "changed", "reason"),
    [
        ("own/absent", None, {}, "Dataset 'own/absent' doesn't exist"),
        ("own/split", {"train.jsonl": jsonl(["a"])}, {"split": "dev"}, "Bad split: dev"),
        ("own/subset", {"train.jsonl": jsonl(["a"])}, {"config": "nl"}, "BuilderConfig 'nl' not found"),
        ("own/script", {"script.py": b"", "train.jsonl": jsonl(["a"])}, {}, "Dataset scripts are no longer supported"),
        ("own/surrogates", {"train.jsonl": b'{"text": "half a pair \\ud83d"}\n'}, {}, "JSON parse error: "),
        ("own/bare", {"notes.docx": b"no data"}, {}, ""),
    ],
    ids=["no repository", "no split", "no subset", "code", "lone surrogate", "no data files"],
)
def test_a_dataset_that_cannot_be_read_gives_one_sentence(
    hub: Hub, reader: Reader, repo: str, files: dict | None, changed: dict, reason: str
):
    commit = hub.push(repo, files) if files else "0" * 40
    answer = reader.ask(read=settings(repo, commit, **changed))
    error = answer.pop("error")
    assert error.startswith(f"corpus 'chat': hub dataset '{repo}' at revision '{commit}' cannot be read ({reason}")
    assert error.endswith("; correct corpora.chat.repo, .revision, .config or .split")
    assert "\n" not in error
    assert answer == {"documents": [], "pauses": [], "warnings": []}


@pytest.mark.parametrize("how", ["cut", 429])
def test_the_hub_library_recovers_from_one_lost_connection(hub: Hub, reader: Reader, how: str | int):
    commit = hub.push(f"own/once-{how}", two_files())
    hub.fault = failing(1, "train-00001-of-00002.parquet", how)
    answer = reader.ask(read=settings(f"own/once-{how}", commit))
    assert answer["documents"] == rows(0, 60)
    assert answer["warnings"] == []
    assert answer["pauses"] == [["huggingface_hub", 1]]


@pytest.mark.parametrize(("how", "times", "retries"), [("cut", 8, 1), ("close", 13, 2), (503, 6, 1)])
def test_reading_resumes_at_the_row_at_which_the_connection_was_lost(
    hub: Hub, reader: Reader, how: str | int, times: int, retries: int
):
    repo = f"own/long-{how}"
    commit = hub.push(repo, two_files())
    hub.fault = failing(times, "train-00001-of-00002.parquet", how)
    answer = reader.ask(read=settings(repo, commit))
    assert answer["documents"] == rows(0, 60)
    # The hub library gives up after 6 requests. Then this project retries, first after 2 s and next after 4 s.
    assert [pause for pause in answer["pauses"] if pause[0] == "saelineage"] == [
        ["saelineage", 2.0],
        ["saelineage", 4.0],
    ][:retries]
    assert [warning.split(" (")[0] for warning in answer["warnings"]] == ["connection lost after 30 rows"] * retries
    assert all(warning.endswith("); trying again") for warning in answer["warnings"])


def test_a_connection_lost_inside_a_file_neither_loses_nor_repeats_a_row(hub: Hub, reader: Reader):
    # 18 rows of 1 MB, of which `datasets` reads 10 MB at a time; the second request starts after 15 MiB.
    texts = [f"{text} {'x' * 1_000_000}" for text in rows(0, 18)]
    commit = hub.push("own/large", {"train.jsonl": jsonl(texts)})
    beyond = failing(8, "", "cut")
    hub.fault = lambda request: beyond(request) if first_byte(request) > 15_000_000 else None
    answer = reader.ask(read=settings("own/large", commit))
    assert [text.split(" x")[0] for text in answer["documents"]] == rows(0, 18)
    assert {len(text.split(" ")[-1]) for text in answer["documents"]} == {1_000_000}
    # The first 10 MB end inside the eleventh row, which is read completely.
    assert [warning.split(" (")[0] for warning in answer["warnings"]] == ["connection lost after 11 rows"]


def first_byte(request: str) -> int:
    """Return the start of the range of a request; 0 if it asks for none."""
    return int(request.partition("bytes=")[2].partition("-")[0] or 0)


def test_a_hub_error_while_the_dataset_is_looked_up_is_retried(hub: Hub, reader: Reader):
    for step in ("/revision/", "/tree/", "README.md"):
        repo = f"own/lookup-{step.strip('/').lower()}"
        commit = hub.push(repo, two_files())
        hub.fault = failing(1, step, 500)
        assert reader.ask(read=settings(repo, commit))["documents"] == rows(0, 60)


def test_a_connection_that_stays_lost_ends_after_retries_with_the_number_of_rows_read(hub: Hub, reader: Reader):
    commit = hub.push("own/lost", two_files())
    hub.fault = failing(1000, "train-00001-of-00002.parquet", "cut")
    answer = reader.ask(read=settings("own/lost", commit, retries=2))
    assert answer["documents"] == rows(0, 30)
    assert answer["error"].startswith(
        "corpus 'chat': the connection to hub dataset 'own/lost' was lost after 30 rows and 2 retries failed ("
    )
    assert answer["error"].endswith("run again, or raise corpora.chat.retries")
    assert len(answer["warnings"]) == 2
    # The 20 rounds of retries in `datasets` are switched off.
    assert sum(seconds for name, seconds in answer["pauses"] if name == "datasets") == 0


def test_another_revision_in_the_cache_does_not_replace_a_failing_hub(hub: Hub, reader: Reader):
    stale = hub.push("own/stale", {"train.jsonl": jsonl(["stale"])})
    assert "error" not in reader.ask(cache={"path": "own/stale", "revision": stale})
    commit = hub.push("own/stale", {"train.jsonl": jsonl(["fresh"])})
    hub.fault = failing(1000, "own/stale", 500)
    answer = reader.ask(read=settings("own/stale", commit, retries=1))
    assert answer["documents"] == []
    assert answer["error"].startswith(
        "corpus 'chat': the connection to hub dataset 'own/stale' was lost after 0 rows and 1 retries failed ("
    )


@pytest.mark.parametrize("how", ["close", 500])
def test_a_hub_that_cannot_be_reached_is_named_when_a_revision_is_resolved(hub: Hub, reader: Reader, how: str | int):
    hub.push("own/far", {"train.jsonl": jsonl(["a"])})
    hub.fault = failing(1000, "", how)
    asked = {"repo": "own/far", "revision": "main", "repo_type": "dataset", "key": "corpora.chat"}
    error = reader.ask(commit=asked)["error"]
    assert error.startswith("corpora.chat: the hub cannot be reached (")
    assert error.endswith("); check the network or HF_ENDPOINT")
