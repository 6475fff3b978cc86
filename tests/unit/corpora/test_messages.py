"""Corpora of messages: read from tables, checked row by row, and kept as JSON."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prepare_corpus import prepare_corpus
from saelineage.corpora.documents import holds_conversations, read_split
from saelineage.corpora.messages import conversation, messages_of
from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from tests.chats import said

SETTINGS = {
    "source": "files",
    "path": ".",
    "text_column": "text",
    "messages_column": "talk",
    "separator": None,
    "max_bytes": None,
}
TALKS = [said(("user", f"Who sat on mat {number}?"), ("assistant", f"Cat {number}.")) for number in range(60)]


def prepared(folder: Path, file: Path) -> dict:
    paths = {split: folder / f"{split}.parquet" for split in ("train", "validation", "probe")}
    prepare_corpus("chat", SETTINGS, {"validation": 0.2, "probe": 0.2}, [str(file)], paths, str(folder / "counts.json"))
    assert all(map(holds_conversations, paths.values()))
    return {split: list(map(messages_of, read_split(path))) for split, path in paths.items()}


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_conversations_are_read_from_tables_and_kept_without_other_keys(tmp_path: Path, ending: str):
    rows: list[dict] = [{"id": 1, "talk": [message | {"name": None} for message in talk]} for talk in TALKS]
    rows += [rows[0], {"id": 2, "talk": None}, {"id": 3, "talk": said(("user", " \n"))}]
    file = tmp_path / f"talks.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    found = prepared(tmp_path / "out", file)
    assert sorted(map(str, (talk for talks in found.values() for talk in talks))) == sorted(map(str, TALKS))
    counts = read_json(tmp_path / "out" / "counts.json")
    assert {key: counts[key] for key in ("duplicates", "empty", "nulls")} == {"duplicates": 1, "empty": 1, "nulls": 1}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("hello", "must be a list of messages, not str"),
        ([], "must be a list of messages, not an empty list"),
        (["hello"], "must have a role of system, user, assistant in each message, but message 1 is str"),
        ([{"from": "human", "value": "a"}], "but message 1 is dict without a role"),
        ([*said(("user", "a")), {"role": "tool", "content": "b"}], "but message 2 has 'tool'"),
        (
            [{"role": "user", "content": None}],
            "must have text as the content of each message, but that of",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], "but that of message 1 is a list"),
        (said(("user", "a")) * 10_001, "must have at most 10000 messages, not 10001"),
    ],
)
def test_a_bad_row_is_one_error_with_its_place_and_the_key(cell: object, reason: str):
    with pytest.raises(InputError) as raised:
        conversation(cell, "talk", "chat", "a.jsonl, line 7")
    message = str(raised.value)
    assert message.startswith("corpus 'chat': 'talk' in a.jsonl, line 7 must")
    assert reason in message
    assert message.endswith("corpora.chat.messages_column to another column")
