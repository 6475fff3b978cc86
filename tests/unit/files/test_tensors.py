"""Safetensors files written array by array or group by group, and their digests."""

import numpy as np
import pytest
from safetensors import safe_open

from saelineage.files.atomic import decode_header
from saelineage.files.tensors import (
    DTYPE_NAMES,
    group_names,
    read_group,
    require_sha256,
    sha256_tensors,
    writing_groups,
    writing_tensors,
)

ARRAYS = {
    "three": np.array([1, 2, 3], dtype=np.int32),  # 12 bytes, so that the next array does not start at a multiple of 8
    "plane": np.arange(6, dtype=np.float64).reshape(2, 3),
    "none": np.empty(0, dtype=np.int64),
    "no_rows": np.empty((0, 5), dtype=np.float32),
    "yes": np.array([True, False, True]),
    "one": np.array(7),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def written(path, arrays=ARRAYS, header_bytes=2048, header=None):
    with writing_tensors(path, header_bytes) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        writer.header = header or {"what": "a test"}
    return path


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_safetensors_reads_what_was_written(tmp_path, framework):
    with safe_open(written(tmp_path / "new" / "file.safetensors"), framework=framework) as file:
        assert decode_header(file.metadata()) == {"what": "a test"}
        assert sorted(file.keys()) == sorted(ARRAYS)
        for name, array in ARRAYS.items():
            stored = np.asarray(file.get_tensor(name))
            assert (stored.dtype, stored.shape) == (array.dtype, array.shape)
            assert np.array_equal(stored, array)


def test_every_number_format_comes_back(tmp_path):
    arrays = {dtype: np.array([0, 1, 1, 0, 1]).astype(dtype) for dtype in DTYPE_NAMES}
    with safe_open(written(tmp_path / "file", arrays), framework="np") as file:
        for dtype, array in arrays.items():
            stored = file.get_tensor(dtype)
            assert stored.dtype == dtype
            assert np.array_equal(stored, array)


def test_a_file_without_arrays_can_be_read(tmp_path):
    with safe_open(written(tmp_path / "file", {}), framework="np") as file:
        assert list(file.keys()) == []


def test_a_header_larger_than_its_room_leaves_no_file(tmp_path):
    for header_bytes in (0, 1, 100):
        with pytest.raises(ValueError, match=r"a header of \d+ bytes does not fit into \d+"):
            written(tmp_path / "file", header_bytes=header_bytes)
    assert list(tmp_path.iterdir()) == []


def test_a_header_may_fill_its_room_to_the_last_byte(tmp_path):
    path = written(tmp_path / "file", {})
    used = len(path.read_bytes()[8:].rstrip())
    filled = {"what": "a test" + "!" * (-used % 8)}
    room = used + -used % 8
    assert written(path, {}, room, filled).stat().st_size == 8 + room
    with safe_open(path, framework="np") as file:
        assert decode_header(file.metadata()) == filled
    with pytest.raises(ValueError, match=f"{room + 1} bytes does not fit into {room}"):
        written(path, {}, room, {"what": filled["what"] + "!"})


def test_a_failed_write_leaves_nothing_behind_and_an_earlier_file_untouched(tmp_path):
    path = written(tmp_path / "file")
    before = path.read_bytes()
    with pytest.raises(KeyError, match="complex128"):
        written(path, {"x": np.ones(1000), "y": np.zeros(2, dtype=np.complex128)})
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with writing_tensors(tmp_path / "file", 2048) as writer:
        writer.add("x", np.zeros(2))
        with pytest.raises(ValueError, match="'x' was added before"):
            writer.add("x", np.ones(2))


def test_equal_arrays_give_equal_bytes(tmp_path):
    assert written(tmp_path / "first").read_bytes() == written(tmp_path / "second").read_bytes()


X = np.array([1.0, 2.0])


def test_the_digest_covers_the_header_and_names_formats_shapes_and_bytes_of_tensors():
    digest = sha256_tensors({"n": 1}, {"x": X, "y": X})
    assert digest == sha256_tensors({"n": 1, "sha256": digest}, {"y": X.copy(), "x": X})
    others = [
        sha256_tensors({"n": 2}, {"x": X, "y": X}),
        sha256_tensors({"n": 1}, {"x": X, "z": X}),
        sha256_tensors({"n": 1}, {"x": X, "y": X.reshape(1, 2)}),
        sha256_tensors({"n": 1}, {"x": X, "y": X.view(np.int64)}),
        sha256_tensors({"n": 1}, {"x": X, "y": X[::-1]}),
    ]
    assert len({digest, *others}) == 6


def test_altered_tensors_are_refused():
    header = {"n": 1, "sha256": sha256_tensors({"n": 1}, {"x": X})}
    require_sha256(header, {"x": X})
    with pytest.raises(ValueError, match="its bytes are not those that were written"):
        require_sha256(header, {"x": X + 1})


GROUPS = {
    "lua.seed1": ({"names": ["base", "lua"]}, {"r/best": X, "n": np.array([3])}),
    "lua.seed0_shifted": ({"names": []}, {"r/best": X + 1}),
}


@pytest.fixture
def grouped(tmp_path):
    with writing_groups(tmp_path / "new" / "groups", len(GROUPS), 2) as writer:
        for name, (header, tensors) in GROUPS.items():
            writer.add(name, header, tensors)
    return tmp_path / "new" / "groups"


def test_groups_are_read_as_they_were_written_each_with_its_digest(grouped):
    assert group_names(grouped) == sorted(GROUPS)
    for name, (header, tensors) in GROUPS.items():
        loaded_header, loaded = read_group(grouped, name)
        assert loaded_header == {**header, "sha256": sha256_tensors(header, tensors)}
        assert loaded.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert (loaded[key].dtype, loaded[key].tolist()) == (tensor.dtype, tensor.tolist())


def test_a_missing_group_is_a_key_error(grouped):
    for name in ("lua", "lua.seed0", ""):
        with pytest.raises(KeyError):
            read_group(grouped, name)


def test_a_damaged_byte_of_a_group_is_refused_and_other_groups_can_be_read(grouped):
    whole = bytearray(grouped.read_bytes())
    whole[-1] ^= 1
    grouped.write_bytes(whole)
    with pytest.raises(ValueError, match="its bytes are not those that were written"):
        read_group(grouped, "lua.seed0_shifted")
    assert read_group(grouped, "lua.seed1")[1]["n"].tolist() == [3]
