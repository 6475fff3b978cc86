"""Third-party tokenizers."""

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
from tests.hostile_input.refusals import DEEP_JSON, refusal

TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny.tokenizer, tmp_path / "theirs")


def take(folder: Path) -> Path:
    """Copy the tokenizer, as a run does, and write token rows with it."""
    taken = folder.with_name("taken")
    make_tokenizer({"source": "path", "path": str(folder)}, 16, [], taken)
    write_rows(["A cat sat on a mat. " * 40], taken, 16, None, folder.with_name("rows.npy"))
    return taken


def refused(folder: Path) -> str:
    return refusal(lambda: take(folder))


def edit(folder: Path, change: Callable[[dict], object], name: str = "tokenizer.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda json: json["model"].update(vocab={}), "Token `h` out of vocabulary"),
        (lambda json: json["model"]["vocab"].update(beyond=1 << 32), "integer `4294967296`, expected u32"),
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
            "makes 100028",
        ),
        (
            lambda json: json.update(normalizer={"type": "Replace", "pattern": {"Regex": "(?m)."}, "content": ""}),
            "makes 0",
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
        *("no vocabulary", "id of 2^32", "no unknown token", "panic when opened", "panic on text", "text is added"),
        *("text is removed", "bad pattern", "empty"),
    ],
)
def test_a_tokenizer_that_cannot_encode_text_is_refused(folder: Path, change: Callable, said: str):
    edit(folder, change)
    assert said in refused(folder)


def test_a_tokenizer_that_is_not_json_is_refused(folder: Path):
    for content in (b"", b"{" * 100_000, b'{"a":' * 100_000, b"\xff", b"[]", b"null"):
        (folder / "tokenizer.json").write_bytes(content)
        assert "cannot be opened as a tokenizer" in refused(folder), content[:10]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP_JSON, "must be JSON"),
        (b'{"bos_token": 7, "eos_token": {"a": 1}}', "bos_token has to be either str or AddedToken"),
        (b'{"bos_token": [], "eos_token": null}', "bos_token has to be either str or AddedToken"),
        (b'{"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}}', ""),
        (b'{"tokenizer_class": ["a"]}', ""),
        (b'{"fast_tokenizer_files": ["../../elsewhere/tokenizer.4.0.0.json"]}', "must be names in this folder"),
        (b'{"fast_tokenizer_files": 7}', "must be names in this folder"),
    ],
    ids=["deep", "odd tokens", "no tokens", "code", "odd class", "file elsewhere", "number"],
)
def test_a_hostile_config_is_refused(folder: Path, tmp_path: Path, content: bytes, said: str):
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "tokenizer_config.json").write_bytes(content)
    assert said in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_files_elsewhere_that_a_config_names_are_not_read(folder: Path, tmp_path: Path):
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    edit(elsewhere, lambda json: json["added_tokens"].append(TOKEN | {"id": 300, "content": "elsewhere"}))
    path = str(elsewhere / "tokenizer.json")
    for key in ("tokenizer_file", "vocab_file", "special_tokens_map_file", "name_or_path"):
        theirs = shutil.copytree(folder, tmp_path / key / "theirs")
        edit(theirs, lambda json, key=key: json.update({key: path}), "tokenizer_config.json")
        assert load_tokenizer(take(theirs)).token_to_id("elsewhere") is None, key


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def test_of_several_chat_templates_the_default_is_kept_in_the_config_alone(folder: Path):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(TEMPLATE)
    named = [{"name": name, "template": TEMPLATE} for name in ("default", "tool_use", "../rag")]
    for template in (TEMPLATE, named):
        edit(folder, lambda config, template=template: config.update(chat_template=template), "tokenizer_config.json")
        taken = take(folder)
        assert sorted(path.name for path in taken.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
        assert json.loads((taken / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE


def test_a_full_disk_is_not_blamed_on_the_tokenizer():
    with pytest.raises(OSError, match="No space left"), tokenizer_errors("theirs"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match="'theirs' cannot be opened as a tokenizer"), tokenizer_errors("theirs"):
        raise OSError("Can't load tokenizer")


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(folder: Path):
    edit(folder, lambda json: json.update(fast_tokenizer_files=["tokenizer.4.0.0.json"]), "tokenizer_config.json")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tokenizer.4.0.0.json", "chat_template.jinja", "spiece.model", "additional_chat_templates/a", "odd"):
        os.mkfifo(folder / name)
        assert f"'{folder / name}' must be a regular file" in refused(folder)
        (folder / name).unlink()


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path):
    shutil.copy(folder / "tokenizer.json", tmp_path / "outside.json")
    for name in ("tokenizer.4.0.0.json", "chat_template.jinja", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("../outside.json")
        assert f"'{folder / name}' is a link that leads out of '{folder}'" in refused(folder)
        (folder / name).unlink()


def test_a_folder_of_templates_elsewhere_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "private").mkdir()
    (folder / "additional_chat_templates").symlink_to(tmp_path / "private")
    assert "additional_chat_templates' is a link that leads out of" in refused(folder)


def test_ids_too_large_to_keep_counts_for_are_refused(folder: Path):
    edit(folder, lambda json: json["model"]["vocab"].update(far=1 << 25))
    assert "ids of a tokenizer must be below 16777216, but one is 33554432" in refused(folder)


def test_truncation_and_padding_that_a_tokenizer_asks_for_are_switched_off(folder: Path, tiny):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padded = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    padding = padded | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    text = "The cat and the dog sat on the mat."
    for changes in ({"truncation": cut}, {"truncation": None, "padding": padding}):
        edit(folder, lambda json, changes=changes: json.update(changes))
        assert load_tokenizer(take(folder)).encode(text).ids == load_tokenizer(tiny.tokenizer).encode(text).ids


def array(shape: str, descr: str = "'<u2'", order: str = "False") -> bytes:
    """Return a .npy file that claims this shape and holds 64 bytes."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64


HOSTILE_ARRAYS = {
    "10^15 rows": array("(1000000000000000, 16)"),
    "10^25 rows": array("(9999999999999999999999999, 16)"),
    "negative": array("(-2, 16)"),
    "objects": array("(2, 16)", "'|O'"),
    "code": array("(2, 16)", "'<u2', __import__('os').system('exit')"),
    "brackets": array("(" + "(" * 3000 + ")" * 3000 + ")"),
    "huge items": array("(2, 16)", "[('a', '<u2', (100000, 100000))]"),
    "more keys": array("(2, 16), 'more': 1"),
    "version 9": b"\x93NUMPY\x09\x00",
    "header of 2 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
    "empty": b"",
    "zip": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("kind", HOSTILE_ARRAYS)
def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "probe.npy"
    path.write_bytes(HOSTILE_ARRAYS[kind])
    path.with_suffix(".json").write_text('{"n_rows": 2, "n_ctx": 16, "ids_sha256": "0"}')
    assert f"'{path}'" in refusal(lambda: TokenRows(path))


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path):
    path = tmp_path / "probe.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.with_suffix(".json").write_text('{"n_rows": 1, "n_ctx": 1, "ids_sha256": "0"}')
    assert "is not a whole .npy file" in refusal(lambda: TokenRows(path))
