"""Spherical interpolation of models."""

import json
from math import sqrt

import pytest
import torch
from safetensors.torch import load_file

from saelineage.errors import InputError
from saelineage.models.merging import linear, merge_folders, merge_state, read_state, slerp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_at_both_ends_the_merge_is_the_parent_bit_for_bit(dtype):
    a, b = (torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(2))
    assert torch.equal(slerp(a, b, 0.0).tensor, a)
    assert torch.equal(slerp(a, b, 1.0).tensor, b)
    assert slerp(a, b, 0.0).branch == slerp(a, b, 1.0).branch == "parent"


def test_orthogonal_unit_vectors_meet_half_way_on_the_circle():
    merged = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert merged.tensor.tolist() == pytest.approx([sqrt(0.5), sqrt(0.5)])
    assert (merged.cos, merged.branch) == (0.0, "slerp")


def test_a_third_of_a_right_angle_is_thirty_degrees():
    # sin(60)/sin(90) = 0.866 of the first and sin(30)/sin(90) = 0.5 of the second.
    merged = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1 / 3)
    assert merged.tensor.tolist() == pytest.approx([sqrt(3) / 2, 0.5])


def test_lengths_are_weighted_with_the_directions():
    # Between (2, 0) and (0.5, 0.866): cos 0.5, theta 60, at t = 0.5 both weigh sin(30)/sin(60) = 0.57735.
    merged = slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.5, sqrt(3) / 2]), 0.5)
    assert merged.cos == pytest.approx(0.5)
    assert merged.tensor.tolist() == pytest.approx([2.5 / sqrt(3), 0.5])


def test_the_whole_tensor_is_one_vector():
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(a, b, 0.3).tensor, slerp(a.flatten(), b.flatten(), 0.3).tensor.view(6, 4))


@pytest.mark.parametrize(("degrees", "branch"), [(1.7, "lerp"), (1.9, "slerp"), (178.1, "slerp"), (178.3, "lerp")])
def test_nearly_parallel_tensors_are_merged_linearly(degrees, branch):
    # cos 1.8119 degrees = 0.9995
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.stack([angle.cos(), angle.sin()])
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


def test_equal_tensors_stay_as_they_are():
    a = torch.tensor([3.0, 4.0])
    assert torch.equal(slerp(a, a.clone(), 0.5).tensor, a)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_the_first_parent_s_number_format_is_kept(t):
    a, b = torch.tensor([1.0, 0.0]).half(), torch.tensor([0.0, 1.0])
    assert slerp(a, b, t).tensor.dtype == torch.float16


def test_every_tensor_is_merged_under_its_name():
    a = {"w": torch.tensor([1.0, 0.0]), "v": torch.zeros(1)}
    b = {"v": torch.ones(1), "w": torch.tensor([0.0, 1.0])}
    tensors, how = merge_state(a, b, 0.5, ("a", "b"))
    assert tensors["w"].tolist() == pytest.approx([sqrt(0.5), sqrt(0.5)])
    assert tensors["v"].tolist() == [0.5]
    assert how == {"v": {"cos": None, "branch": "lerp"}, "w": {"cos": 0.0, "branch": "slerp"}}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"w": torch.zeros(3, 2)}, r"'w' 'lua' has \(2, 3\), 'stories' has \(3, 2\)"),
        ({"v": torch.zeros(2, 3)}, "'v' 'lua' has none, 'stories' has"),
        ({"w": torch.zeros(2, 3), "x": torch.zeros(1)}, r"'x' 'lua' has none, 'stories' has \(1,\)"),
    ],
    ids=["shape", "name", "more"],
)
def test_models_of_different_shapes_are_refused_by_name(other, found):
    with pytest.raises(InputError, match=found):
        merge_state({"w": torch.zeros(2, 3)}, other, 0.5, ("lua", "stories"))


def test_merged_folders_load_and_say_how_they_were_merged(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge_folders(tiny.models["a"], tiny.models["b"], 0.58, None, tmp_path / "merged")
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


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_merged_folders_at_the_ends_hold_the_parents_tensors(tiny, tmp_path, t):
    merge_folders(tiny.models["a"], tiny.models["b"], t, None, tmp_path / "merged")
    merged, parent = load_file(tmp_path / "merged" / "model.safetensors"), read_state(tiny.models["ab"[int(t)]], None)
    assert all(torch.equal(merged[name], parent[name]) for name in parent)


def test_a_chosen_number_format_is_that_of_weights_and_config(tiny, tmp_path):
    merge_folders(tiny.models["a"], tiny.models["b"], 0.5, "float16", tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


def test_two_merges_are_equal_bytes(tiny, tmp_path):
    for name in ("first", "second"):
        merge_folders(tiny.models["a"], tiny.models["b"], 0.3, None, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def test_a_linear_merge_by_hand():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    merged = linear(a, b, 0.25)
    # 0.75 x 1 and 0.25 x 3; the arc between orthogonal vectors would give cos and sin of 22.5 degrees.
    assert merged.tensor.tolist() == [0.75, 0.75]
    assert (merged.cos, merged.branch) == (0.0, "lerp")
    tensors, how = merge_state({"w": a}, {"w": b}, 0.25, ("a", "b"), "linear")
    assert torch.equal(tensors["w"], merged.tensor)
    assert how == {"w": {"cos": 0.0, "branch": "lerp"}}


@pytest.mark.parametrize(("t", "end"), [(0.0, 0), (1.0, 1)])
def test_a_linear_merge_s_ends_are_the_parents(t, end):
    ends = torch.tensor([0.1, 0.7]), torch.tensor([0.3, 0.9])
    merged = linear(*ends, t)
    assert torch.equal(merged.tensor, ends[end])
    assert merged.branch == "parent"
