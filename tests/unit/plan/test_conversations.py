"""Runs on conversations are refused before the first job where they cannot be made."""

import json
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.foreign.chat_templates import chat_template
from saelineage.plan.brought import check_on_disk
from saelineage.plan.checks import check_files
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.plan import Plan
from tests.hub_server import SCRIPTS

SCHEMA = SCRIPTS.parents[1] / "config" / "config.schema.yaml"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").mkdir()
    Path("tokenizer/tokenizer_config.json").write_text("{}")


def plan(file: str = "talk.jsonl", **further: object) -> Plan:
    Path(file).write_text("{}")
    talk = {"source": "files", "path": file, "messages_column": "messages"}
    given = {"run": "mine", "corpora": {"talk": talk}, "tokenizer": {"source": "path", "path": "tokenizer"}}
    model = {"pretrain": {"corpora": {"talk": 1.0}, "n_tokens": 100_000}}
    return Plan(load_config(given | {"models": {"base": model}} | further, read_schema(SCHEMA)))


def refusal(check, of: Plan, *more) -> str:
    with pytest.raises(InputError) as raised:
        check(of, *more)
    return str(raised.value)


def test_a_tokenizer_on_disk_without_a_chat_template_is_refused():
    assert refusal(check_on_disk, plan(), lambda path: False).startswith(
        "tokenizer: 'tokenizer' must have a chat template"
    )
    Path("tokenizer/chat_template.jinja").write_text("{{ messages }}")
    assert check_on_disk(plan(), lambda path: False) == []


def test_files_whose_cells_cannot_be_lists_are_refused():
    message = "corpora.talk.messages_column: conversations must be in .json, .jsonl or .parquet files, but there is"
    assert refusal(check_files, plan("talk.csv")) == f"{message} 'talk.csv'; convert it, or leave messages_column out"
    assert refusal(check_files, plan("talk.txt")).startswith(message)
    check_files(plan("talk.jsonl.gz"))


def test_the_rules_of_conversations_and_of_texts_share_no_corpus():
    assert plan().conversations == ["talk"]
    assert plan().paths.class_verdicts() == []  # one model has no edge


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"chat_template": "a"}, "a"),
        ({"chat_template": [{"name": "rag", "template": "b"}, {"name": "default", "template": "a"}]}, "a"),
        ({"chat_template": [{"name": "rag", "template": "b"}]}, None),
    ],
)
def test_a_template_is_found_in_the_tokenizer_s_config(config: dict, expected: str | None):
    Path("tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    assert chat_template("tokenizer") == expected
    Path("tokenizer/chat_template.jinja").write_text("c")
    assert chat_template("tokenizer") == "c"


def test_a_template_that_is_no_text_or_too_large_is_refused():
    Path("tokenizer/tokenizer_config.json").write_text('{"chat_template": 3}')
    assert "chat_template must be text, not int" in refusal(chat_template, "tokenizer")
    Path("tokenizer/chat_template.jinja").write_text("a" * ((1 << 20) + 1))
    assert "must have at most 1048576 bytes" in refusal(chat_template, "tokenizer")
