"""Tokenizers from strangers."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from make_tokenizer import make_tokenizer
from saelineage.errors import InputError
from saelineage.tokens import TokenRows, load_tokenizer, tokenizer_errors, write_rows
from tests.hostile_input.refusals import refusal

TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny.tokenizer, tmp_path / "theirs")


def take(folder: Path) -> Path:
    """Take the tokenizer over, as a run does, and make token rows with it."""
    taken = folder.with_name("taken")
    make_tokenizer({"source": "path", "path": str(folder)}, 16, [], taken)
    write_rows(["A cat sat on a mat. " * 40], taken, 16, None, folder.with_name("rows.npy"))
    return taken


def refused(folder: Path) -> str:
    return refusal(lambda: take(folder))


def edit(folder: Path, change: Callable[[dict], object], name: str = "tokenizer.json") -> None:
    found = json.loads((folder / name).read_text())
    change(found)
    (folder / name).write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda json: json["model"].update(vocab={}), "Token `h` out of vocabulary"),
        (lambda json: json["model"].update(merges=[["no", "such"]]), "Token `no` out of vocabulary"),
        (lambda json: json["model"]["vocab"].update(beyond=1 << 32), "integer `4294967296`, expected u32"),
        (lambda json: json["model"]["vocab"].update(negative=-1), "integer `-1`, expected u32"),
        (lambda json: json.update(model=None), "data did not match any variant"),
        (
            lambda json: json.update(model={"type": "WordLevel", "unk_token": "none", "vocab": {"<s>": 0, "</s>": 1}}),
            "Missing [UNK] token",
        ),
        (
            lambda json: json.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "Cannot parse precompiled_charsmap",
        ),
        (
            lambda json: json.update(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1000}),
            "index out of bounds",
        ),
        (
            lambda json: json.update(normalizer={"type": "Prepend", "prepend": "x" * 100_000}),
            "this one makes 100028 of 42 bytes",
        ),
        (
            lambda json: json.update(normalizer={"type": "Replace", "pattern": {"Regex": "(?m)."}, "content": ""}),
            "this one makes 0 of 42 bytes",
        ),
        (
            lambda json: json["pre_tokenizer"].update(
                type="Split", pattern={"Regex": "(("}, behavior="Isolated", invert=False
            ),
            "end pattern with unmatched parenthesis",
        ),
        (lambda json: json.clear(), "cannot be opened as a tokenizer"),
    ],
    ids=[
        *(
            "no vocabulary",
            "unknown merges",
            "id of 2^32",
            "id of -1",
            "no model",
            "no unknown token",
            "panics on opening",
        ),
        *("panics on text", "adds much", "takes all away", "bad pattern", "empty"),
    ],
)
def test_what_cannot_tokenize_is_refused(folder: Path, change: Callable, said: str):
    edit(folder, change)
    assert said in refused(folder)


@pytest.mark.parametrize("content", [b"", b"{" * 100_000, b'{"a":' * 100_000, b"\xff", b"[]", b"null"])
def test_what_is_no_json_is_refused(folder: Path, content: bytes):
    (folder / "tokenizer.json").write_bytes(content)
    assert "cannot be opened as a tokenizer" in refused(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "tokenizer_config.json' must be JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not nested so deeply"),
        (b'{"bos_token": "<s>", "bos_token": "a"}', "key 'bos_token' stands twice"),
        (
            b'{"bos_token": 7, "eos_token": {"a": 1}}',
            "bos_token has to be either str or AddedToken but got: <class 'int'>",
        ),
        (
            b'{"bos_token": [], "eos_token": null}',
            "bos_token has to be either str or AddedToken but got: <class 'list'>",
        ),
        (
            b'{"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}}',
            "You can inspect the reposito",
        ),
        (b'{"tokenizer_class": ["a"]}', "'list' object has no attribute"),
        (b'{"fast_tokenizer_files": ["../../elsewhere/tokenizer.4.0.0.json"]}', "must be names in this folder"),
        (b'{"fast_tokenizer_files": 7}', "must be names in this folder"),
    ],
    ids=["cut off", "deep", "twice", "odd tokens", "no tokens", "code", "odd class", "leads out", "number"],
)
def test_a_config_that_says_something_odd_is_refused(folder: Path, tmp_path: Path, content: bytes, said: str):
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "tokenizer_config.json").write_bytes(content)
    assert said in refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "special_tokens_map_file", "name_or_path"])
def test_files_elsewhere_that_a_config_names_are_not_read(folder: Path, tmp_path: Path, key: str):
    other = shutil.copytree(folder, tmp_path / "other")
    edit(other, lambda json: json["added_tokens"].append(TOKEN | {"id": 300, "content": "elsewhere"}))
    edit(folder, lambda json: json.update({key: str(other / "tokenizer.json")}), "tokenizer_config.json")
    assert load_tokenizer(take(folder)).token_to_id("elsewhere") is None


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    "template", [TEMPLATE, [{"name": name, "template": TEMPLATE} for name in ("default", "tool_use", "../rag")]]
)
def test_chat_templates_are_left_behind(folder: Path, template: object):
    edit(folder, lambda json: json.update(chat_template=template), "tokenizer_config.json")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(TEMPLATE)
    taken = take(folder)
    assert sorted(path.name for path in taken.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert "messages" not in (taken / "tokenizer_config.json").read_text()


def test_a_full_disk_is_no_fault_of_the_tokenizer_s():
    with pytest.raises(OSError, match="No space left"), tokenizer_errors("theirs"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match="'theirs' cannot be opened as a tokenizer"), tokenizer_errors("theirs"):
        raise OSError("Can't load tokenizer")


@pytest.mark.parametrize(
    "name", ["tokenizer.4.0.0.json", "chat_template.jinja", "spiece.model", "additional_chat_templates/a.jinja", "odd"]
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path, name: str):
    edit(folder, lambda json: json.update(fast_tokenizer_files=["tokenizer.4.0.0.json"]), "tokenizer_config.json")
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    assert f"'{folder / name}' must be a regular file" in refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.4.0.0.json", "tokenizer.json", "chat_template.jinja"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str):
    shutil.copy(folder / "tokenizer.json", tmp_path / "outside.json")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside.json")
    assert f"'{folder / name}' is a link that leads out of '{folder}'" in refused(folder)


def test_a_folder_of_templates_elsewhere_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "private").mkdir()
    (folder / "additional_chat_templates").symlink_to(tmp_path / "private")
    assert "additional_chat_templates' is a link that leads out of" in refused(folder)


def test_ids_that_no_count_could_be_kept_for_are_refused(folder: Path):
    edit(folder, lambda json: json["model"]["vocab"].update(far=1 << 25))
    assert "ids of a tokenizer must be below 16777216, but one is 33554432" in refused(folder)


def test_a_tokenizer_that_would_cut_documents_off_does_not(folder: Path, tiny):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder, lambda json: json.update(truncation=cut))
    text = "The cat and the dog sat on the mat."
    assert load_tokenizer(folder).encode(text).ids == load_tokenizer(tiny.tokenizer).encode(text).ids


def test_a_tokenizer_that_would_fill_documents_up_does_not(folder: Path, tiny):
    filled = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    edit(folder, lambda json: json.update(padding=filled | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}))
    assert len(load_tokenizer(take(folder)).encode("The cat").ids) < 10


def array(shape: str, descr: str = "'<u2'", order: str = "False") -> bytes:
    """A .npy file that claims this shape, and holds 64 bytes."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        array("(1000000000000000, 16)"),
        array("(9999999999999999999999999, 16)"),
        array("(-2, 16)"),
        array("(2, 16)", "'|O'"),
        array("(2, 16)", "'<u2', __import__('os').system('exit')"),
        array("(" + "(" * 3000 + ")" * 3000 + ")"),
        array("(2, 16)", "[('a', '<u2', (100000, 100000))]"),
        array("(2, 16), 'more': 1"),
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
        b"",
        b"PK\x03\x04" + b"\0" * 100,
    ],
    ids=[
        *(
            "10^15 rows",
            "10^25 rows",
            "negative",
            "objects",
            "code",
            "brackets",
            "huge items",
            "more keys",
            "version 9",
        ),
        *("header of 2 GB", "empty", "zip"),
    ],
)
def test_an_array_that_claims_what_is_not_there_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "probe.npy"
    path.write_bytes(content)
    path.with_suffix(".json").write_text('{"n_rows": 2, "n_ctx": 16, "ids_sha256": "0"}')
    assert f"'{path}'" in refusal(lambda: TokenRows(path))


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path):
    path = tmp_path / "probe.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.with_suffix(".json").write_text('{"n_rows": 1, "n_ctx": 1, "ids_sha256": "0"}')
    assert "is not a whole .npy file" in refusal(lambda: TokenRows(path))
