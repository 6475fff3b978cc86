"""Third-party JSON and safetensors files, whichever package reads them."""

import os
from pathlib import Path

import pytest

from saelineage.files.foreign import named_numbers, read_foreign_json, require_regular, tensor_shapes
from tests.hostile_input.refusals import DEEP_JSON, PETABYTE, claim, refusal


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP_JSON, "must be JSON that is not nested so deeply"),
        (b'{"a": {"vocab_size": 300, "b": 1, "vocab_size": 301}}', "key 'vocab_size' appears twice"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        (b"[" * 50, "must be JSON"),
        (b'"mistral"', "must be a JSON mapping, not str"),
        (b"", "must be JSON"),
        (b'{"a": "' + b" " * (17 << 20) + b'"}', "must have at most 16777216 bytes"),
    ],
    ids=["deep", "repeated key", "long number", "no UTF-8", "cut off", "text", "empty", "large"],
)
def test_json_that_libraries_would_choke_on_is_refused(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    message = refusal(lambda: read_foreign_json(path))
    assert message.startswith(f"'{path}' must ")
    assert said in message


def test_numbers_are_found_at_any_depth_that_python_reads(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"n_layer": ' + "[" * 900 + "7, true, 1.5" + "]" * 900 + "}")
    assert list(named_numbers(read_foreign_json(path))) == [("n_layer", 7)]


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        PETABYTE,
        claim({"weight": entry([4], [1 << 40, (1 << 40) + 16])}) + b"\0" * 16,
        claim({"weight": entry([-4], [0, 16])}) + b"\0" * 16,
        claim({name: entry([4], [0, 16]) for name in "ab"}) + b"\0" * 16,
        claim(b"{}", 1 << 60),
        claim(b"{}", (1 << 64) - 1),
        claim(b"{" * 200_000),
        claim(b"\xff" * 100),
        claim({"a": entry([1], [0, 4], "F999")}) + b"\0" * 4,
        b"short",
    ],
    ids=[
        *("1 PB", "beyond the end", "negative", "overlapping", "header of 2^60 bytes", "header of 2^64 - 1 bytes"),
        *("deep", "no UTF-8", "unknown dtype", "short"),
    ],
)
def test_a_safetensors_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(lambda: tensor_shapes(path)).startswith(f"'{path}' is not a whole safetensors file")


def test_a_very_large_safetensors_header_is_refused_before_it_is_read(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(claim(b" " * ((16 << 20) + 1)) + b"\0")
    message = refusal(lambda: tensor_shapes(path))
    assert f"'{path}' must have a header of at most 16777216 bytes, but it has 16777217" in message


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path):
    path, n_bytes = tmp_path / "model.safetensors", 1 << 43  # 8 TiB, of which none are on the disk
    header = claim({"weight": entry([n_bytes // 4], [0, n_bytes])})
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + n_bytes)
    assert f"'{path}' needs 8192 GiB of memory, but this machine has" in refusal(lambda: tensor_shapes(path))


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        assert f"'{path}' must be a regular file" in refusal(lambda path=path: require_regular(path))
    assert "cannot be opened" in refusal(lambda: require_regular(tmp_path / "missing"))
