"""Merging models by spherical and linear interpolation."""

import json
import logging
import shutil
from math import sqrt

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelineage.errors import InputError
from saelineage.models.merging import METHODS, linear, merge_folders, merge_state, read_parents, read_state, slerp

RIGHT, UP = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


@pytest.mark.parametrize("method", METHODS)
def test_at_both_ends_the_merge_is_the_parent_bit_for_bit(method):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = (torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(2))
        ends = [METHODS[method](a, b, t) for t in (0.0, 1.0)]
        assert [end.branch for end in ends] == ["parent", "parent"]
        assert torch.equal(ends[0].tensor, a)
        assert torch.equal(ends[1].tensor, b)


def test_orthogonal_unit_vectors_meet_half_way_on_the_circle():
    merged = slerp(RIGHT, UP, 0.5)
    assert merged.tensor.tolist() == pytest.approx([sqrt(0.5), sqrt(0.5)])
    assert (merged.cos, merged.branch) == (0.0, "slerp")


def test_a_third_of_a_right_angle_is_thirty_degrees():
    # sin(60)/sin(90) = 0.866 of the first and sin(30)/sin(90) = 0.5 of the second.
    assert slerp(RIGHT, UP, 1 / 3).tensor.tolist() == pytest.approx([sqrt(3) / 2, 0.5])


def test_lengths_are_interpolated_with_the_directions():
    # Between (2, 0) and (0.5, 0.866): cos 0.5, theta 60. At t = 0.5 both have the factor sin(30)/sin(60) = 0.57735.
    merged = slerp(2 * RIGHT, torch.tensor([0.5, sqrt(3) / 2]), 0.5)
    assert merged.cos == pytest.approx(0.5)
    assert merged.tensor.tolist() == pytest.approx([2.5 / sqrt(3), 0.5])


def test_the_whole_tensor_is_one_vector():
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(a, b, 0.3).tensor, slerp(a.flatten(), b.flatten(), 0.3).tensor.view(6, 4))


@pytest.mark.parametrize(("degrees", "branch"), [(1.7, "lerp"), (1.9, "slerp"), (178.1, "slerp"), (178.3, "lerp")])
def test_nearly_parallel_tensors_are_merged_linearly(degrees, branch):
    # The cosine of 1.8119 degrees is 0.9995.
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    a, b = RIGHT.double(), torch.stack([angle.cos(), angle.sin()])
    merged = slerp(a, b, 0.25)
    assert merged.branch == branch
    if branch == "lerp":
        assert torch.equal(merged.tensor, 0.75 * a + 0.25 * b)
    else:
        assert float(merged.tensor.norm()) == pytest.approx(1.0)


def test_a_tensor_of_zeros_has_no_direction_and_is_merged_linearly():
    merged = slerp(torch.zeros(2), torch.tensor([4.0, 8.0]), 0.25)
    assert merged.tensor.tolist() == [1.0, 2.0]
    assert (merged.cos, merged.branch) == (None, "lerp")


def test_equal_tensors_do_not_change():
    a = torch.tensor([3.0, 4.0])
    assert torch.equal(slerp(a, a.clone(), 0.5).tensor, a)


@pytest.mark.parametrize("method", METHODS)
def test_the_parents_number_format_is_kept(method):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert {METHODS[method](RIGHT.to(dtype), UP.to(dtype), t).tensor.dtype for t in (0.0, 0.5, 1.0)} == {dtype}


def test_a_linear_merge_by_hand():
    # 0.75 x 1 and 0.25 x 3; the arc between orthogonal vectors would give the cosine and sine of 22.5 degrees.
    merged = linear(RIGHT, 3 * UP, 0.25)
    assert merged.tensor.tolist() == [0.75, 0.75]
    assert (merged.cos, merged.branch) == (0.0, "lerp")


def test_every_tensor_is_merged_under_its_name_by_the_chosen_method():
    a, b = {"w": RIGHT, "v": torch.zeros(1)}, {"v": torch.ones(1), "w": UP}
    tensors, record = merge_state(a, b, 0.5, ("a", "b"))
    assert tensors["w"].tolist() == pytest.approx([sqrt(0.5), sqrt(0.5)])
    assert tensors["v"].tolist() == [0.5]
    assert record == {"v": {"cos": None, "branch": "lerp"}, "w": {"cos": 0.0, "branch": "slerp"}}
    tensors, record = merge_state(a, b, 0.5, ("a", "b"), "linear")
    assert tensors["w"].tolist() == [0.5, 0.5]
    assert record["w"] == {"cos": 0.0, "branch": "lerp"}


@pytest.mark.parametrize(
    ("state", "difference"),
    [
        ({"w": torch.zeros(3, 2)}, r"'w' 'lua' has \(2, 3\), 'stories' has \(3, 2\)"),
        ({"v": torch.zeros(2, 3)}, "'v' 'lua' has none, 'stories' has"),
    ],
    ids=["shape", "name"],
)
def test_models_of_different_shapes_are_refused_by_name(state, difference):
    with pytest.raises(InputError, match=f"{difference}.*; merge models of one base"):
        merge_state({"w": torch.zeros(2, 3)}, state, 0.5, ("lua", "stories"))


def test_merged_folders_load_and_say_how_they_were_merged(tiny, tmp_path):
    for folder in ("merged", "again"):
        merge_folders(tiny.models["a"], tiny.models["b"], 0.58, None, tmp_path / folder)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    a, b = (read_state(tiny.models[name], None) for name in "ab")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(model.state_dict()[name], slerp(a[name], b[name], 0.58).tensor)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == tiny.d_vocab

    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert {key: record[key] for key in ("method", "parents", "t")} == {
        "method": "slerp",
        "parents": ["a", "b"],
        "t": 0.58,
    }
    assert record["tensors"].keys() == a.keys()
    assert record["tensors"][name] == {"cos": slerp(a[name], b[name], 0.58).cos, "branch": "slerp"}
    # Norm weights are all ones in both.
    assert record["tensors"]["model.norm.weight"] == {"cos": pytest.approx(1.0), "branch": "lerp"}

    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("merged", "again")]
    assert weights[0] == weights[1]


def test_a_chosen_number_format_is_that_of_weights_and_config(tiny, tmp_path):
    merge_folders(tiny.models["a"], tiny.models["b"], 0.5, "float16", tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


def in_format(folder, dtype, copy):
    """A copy of a model folder with its weights in another number format."""
    shutil.copytree(folder, copy)
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    return copy


@pytest.mark.parametrize(
    ("first", "widest"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_parents_of_two_number_formats_are_merged_in_the_wider_one_and_this_is_logged(
    first, widest, tiny, tmp_path, caplog
):
    a, b = in_format(tiny.models["a"], first, tmp_path / "first"), tiny.models["b"]
    of_a, of_b = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert {tensor.dtype for tensor in of_b.values()} == {torch.float32}
    with caplog.at_level(logging.WARNING, logger="saelineage"):
        for t in (0.0, 0.5, 1.0):
            merge_folders(a, b, t, None, tmp_path / f"merged{t}")
    names = [str(dtype).removeprefix("torch.") for dtype in (first, widest)]
    assert caplog.messages[0] == (
        f"the tensors of 'first' are {names[0]} and those of 'b' float32, so the merge is {names[1]} throughout; to "
        "have another number format, set the merge's dtype"
    )
    merged = {t: load_file(tmp_path / f"merged{t}" / "model.safetensors") for t in (0.0, 0.5, 1.0)}
    for name in of_a:
        assert torch.equal(merged[0.0][name], of_a[name].to(widest))  # exact, because widening rounds nothing
        assert torch.equal(merged[1.0][name], of_b[name].to(widest))
        assert merged[0.5][name].dtype == widest
    assert json.loads((tmp_path / "merged0.5" / "config.json").read_text())["dtype"] == names[1]


def test_parents_of_one_number_format_keep_it_without_a_word(tiny, tmp_path, caplog):
    a, b = (in_format(tiny.models[name], torch.bfloat16, tmp_path / name) for name in "ab")
    with caplog.at_level(logging.INFO, logger="saelineage"):
        merge_folders(a, b, 0.5, None, tmp_path / "merged")
    assert caplog.messages == []
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert read_parents([a, b], None).dtype is None
