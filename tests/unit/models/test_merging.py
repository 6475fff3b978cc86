"""Merging models: each method by hand, its limits, and folders that load and say how they were merged."""

import json
import logging
import shutil
from math import pi, sqrt

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from saelineage.errors import InputError
from saelineage.models.merging import weights as merging_weights
from saelineage.models.merging.combinations import cosine, karcher, linear, slerp, task_arithmetic
from saelineage.models.merging.differences import Largest, breadcrumbs, elected
from saelineage.models.merging.merge import parent_shares
from saelineage.models.merging.parents import open_parents
from saelineage.plan.merges import METHODS
from tests.merges import merge, merged, settings

RIGHT, UP = [1.0, 0.0], [0.0, 1.0]
RANDOM = torch.Generator().manual_seed(0)
BASE, A, B, C = (torch.randn(6, 5, generator=RANDOM) for _ in range(4))
FROM_BASE = [method for method in METHODS if METHODS[method].from_base and METHODS[method].n_parents[0] == 1]


def gram(*vectors: list) -> np.ndarray:
    rows = np.array(vectors, float)
    return rows @ rows.T


def one(folder, parents: list, base=None, **own) -> torch.Tensor:
    """The merge of a single tensor."""
    tensors = {name: {"w": tensor} for name, tensor in zip("abc", parents, strict=False)}
    return merged(folder, tensors, None if base is None else {"w": base}, **own)["w"]


def test_a_mean_is_weighted_by_shares_of_the_weights():
    assert linear([1.0, 1.0, 2.0]) == [0.25, 0.25, 0.5]
    with pytest.raises(InputError, match="must not add up to zero"):
        linear([1.0, -1.0])


def test_a_linear_merge_by_hand(tmp_path):
    assert one(tmp_path, [RIGHT, [0.0, 3.0]], method="linear", t=0.25).tolist() == [0.75, 0.75]
    assert one(tmp_path, [RIGHT, [0.0, 3.0], [2.0, 3.0]], method="linear").tolist() == [1.0, 2.0]
    assert one(tmp_path, [RIGHT, [0.0, 3.0], [2.0, 3.0]], method="linear", weights=[2.0, 0.0, 2.0]).tolist() == [
        1.5,
        1.5,
    ]


def test_orthogonal_unit_vectors_meet_half_way_on_the_circle(tmp_path):
    assert slerp(gram(RIGHT, UP), 0.5) == (pytest.approx([sqrt(0.5), sqrt(0.5)]), "slerp")
    assert one(tmp_path, [RIGHT, UP], t=0.5).tolist() == pytest.approx([sqrt(0.5), sqrt(0.5)])


def test_a_third_of_a_right_angle_is_thirty_degrees():
    # sin(60)/sin(90) = 0.866 of the first and sin(30)/sin(90) = 0.5 of the second.
    assert slerp(gram(RIGHT, UP), 1 / 3)[0] == pytest.approx([sqrt(3) / 2, 0.5])


def test_lengths_are_interpolated_with_the_directions(tmp_path):
    # Between (2, 0) and (0.5, 0.866): cos 0.5, theta 60. At t = 0.5 both have the factor sin(30)/sin(60) = 0.57735.
    vectors = [[2.0, 0.0], [0.5, sqrt(3) / 2]]
    assert cosine(gram(*vectors)) == pytest.approx(0.5)
    assert one(tmp_path, vectors, t=0.5).tolist() == pytest.approx([2.5 / sqrt(3), 0.5])


@pytest.mark.parametrize(("degrees", "branch"), [(1.7, "lerp"), (1.9, "slerp"), (178.1, "slerp"), (178.3, "lerp")])
def test_nearly_parallel_tensors_are_merged_linearly(degrees, branch):
    # The cosine of 1.8119 degrees is 0.9995.
    angle = degrees * pi / 180
    factors, found = slerp(gram(RIGHT, [np.cos(angle), np.sin(angle)]), 0.25)
    assert found == branch
    if branch == "lerp":
        assert factors == [0.75, 0.25]
    else:
        assert np.linalg.norm(factors[0] * np.array(RIGHT) + factors[1] * np.array([np.cos(angle), np.sin(angle)])) == (
            pytest.approx(1.0)
        )


def test_a_tensor_of_zeros_has_no_direction(tmp_path):
    assert one(tmp_path, [[0.0, 0.0], [4.0, 8.0]], t=0.25).tolist() == [1.0, 2.0]
    assert cosine(gram([0, 0], [4, 8])) is None
    assert karcher(gram([0, 0], [4, 8], [4, 8]), [1.0, 1.0, 1.0])[0] == 0
    assert karcher(gram([0, 0], [0, 0], [0, 0]), [1.0, 1.0, 1.0]) == [0, 0, 0]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_the_karcher_mean_of_two_tensors_is_on_their_arc(t, tmp_path):
    of_two = [A, 3 * A + B]
    by_slerp = one(tmp_path, of_two, t=t).double()
    by_mean = one(tmp_path, of_two, method="karcher", weights=[1 - t, t]).double()
    assert (by_slerp - by_mean).abs().max() < 1e-6


def test_the_karcher_mean_of_three_orthogonal_directions_is_their_diagonal(tmp_path):
    vectors = (2 * np.eye(3)).tolist()
    assert one(tmp_path, vectors, method="karcher").tolist() == pytest.approx([2 / sqrt(3)] * 3)
    # With norms 1, 2 and 3 the mean of the norms is 2.
    stretched = np.diag([1.0, 2.0, 3.0]).tolist()
    assert one(tmp_path, stretched, method="karcher", norms="mean").tolist() == pytest.approx([2 / sqrt(3)] * 3)


def test_the_karcher_mean_is_where_the_summed_directions_to_the_parents_vanish(tmp_path):
    flat = torch.stack([A.flatten(), B.flatten(), C.flatten()]).double()
    units, shares = flat / flat.norm(dim=1, keepdim=True), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    factors = karcher((flat @ flat.T).numpy(), shares.tolist())
    mean = torch.tensor(factors, dtype=torch.float64) @ (
        units * flat.norm(dim=1, keepdim=True) / flat.norm(dim=1)[:, None]
    )
    assert float(mean.norm()) == pytest.approx(1.0)
    dots = units @ mean
    logs = (torch.arccos(dots) / torch.sin(torch.arccos(dots)))[:, None] * (units - dots[:, None] * mean)
    assert float((shares @ logs).norm()) < 1e-7


def test_antipodal_parents_have_no_spherical_mean():
    for weights in ([1.0, 1.0], [0.3, 0.7]):
        with pytest.raises(InputError, match="opposite directions"):
            karcher(gram(RIGHT, [-1.0, 0.0]), weights)
    with pytest.raises(InputError, match="opposite directions"):
        karcher(gram(RIGHT, [-1.0, 0.0], UP), [1.0, 2.0, 3.0])


def test_no_random_differences_at_all_give_the_base(tmp_path):
    for rescale in ("density", "l1"):
        found = one(tmp_path, [A], BASE, method="dare_linear", density=0.0, rescale=rescale)
        assert torch.equal(found, BASE)


def test_two_linear_parents_meet_half_way_by_t():
    assert settings(["a", "b"], method="linear")["t"] == 0.5
    assert settings(["a", "b", "c"], method="linear")["t"] is None
    assert settings(["a", "b"], method="linear", weights=[1.0, 3.0])["t"] is None


@pytest.mark.parametrize(
    ("own", "n_parents", "expected"),
    [
        ({"t": 0.3}, 2, [0.7, 0.3]),
        ({"method": "ties", "weights": [1.0, 3.0]}, 2, [0.25, 0.75]),
        ({"method": "linear", "t": {"mlp.*": 0.2, "*": 0.5}}, 2, None),
        ({"method": "task_arithmetic", "weights": [1.0, -0.5]}, 2, None),
        ({"method": "graft"}, 1, None),
        ({"method": "transfer"}, 2, None),
    ],
)
def test_a_merge_has_a_place_between_its_parents_where_weights_give_it_one(own, n_parents, expected):
    shares = parent_shares(settings(list("abc")[:n_parents], **own), n_parents)
    assert shares == (None if expected is None else pytest.approx(expected))


def test_whole_numbers_and_fractions_are_not_averaged(tmp_path):
    with pytest.raises(InputError, match="'ids' does in b alone"):
        merged(tmp_path, {"a": {"ids": [1.0]}, "b": {"ids": torch.tensor([1])}})


def test_task_arithmetic_by_hand(tmp_path):
    # 1 + 0.5 (3 - 1) + 0.25 (9 - 1) = 4, and half of that change is 2.5.
    assert task_arithmetic([0.5, 0.25], 1.0) == ([0.5, 0.25], 0.25)
    merges = [
        one(tmp_path, [[3.0], [9.0]], [1.0], method="task_arithmetic", weights=[0.5, 0.25], **{"lambda": scale})
        for scale in (1.0, 0.5)
    ]
    assert [float(of) for of in merges] == [4.0, 2.5]


def test_a_transfer_adds_the_change_of_one_model_to_another(tmp_path):
    assert float(one(tmp_path, [[10.0], [3.0]], [1.0], method="transfer")) == 12.0
    assert torch.equal(one(tmp_path, [BASE, A], BASE, method="transfer"), A)


def test_ties_by_hand(tmp_path):
    base = [0.0, 0.0, 0.0, 0.0]
    # Of each parent the two largest: (4, -3, 0, 0), (2, 0, 0, -1). Signs: +, -, +, -. Means of those that agree.
    parents = [[4.0, -3.0, 1.0, 0.5], [2.0, 0.5, 0.0, -1.0]]
    for trim in ("model", "tensor"):
        assert one(tmp_path, parents, base, method="ties", density=0.5, trim=trim).tolist() == [3.0, -3.0, 0.0, -1.0]
    # Weights 1 and 3: (4 + 3 x 2) / 4 = 2.5. Without normalizing the sum is 10.
    weighted = {"method": "ties", "density": 0.5, "weights": [1.0, 3.0]}
    assert one(tmp_path, parents, base, **weighted).tolist() == [2.5, -3.0, 0.0, -1.0]
    assert one(tmp_path, parents, base, **weighted, normalize=False).tolist() == [10.0, -3.0, 0.0, -3.0]


def test_the_sign_of_the_larger_sum_is_elected():
    differences = [torch.tensor([3.0, -1.0]), torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, 3.0])]
    assert elected(differences, [1.0, 1.0, 1.0]).tolist() == [3.0, 3.0]
    assert elected(differences, [1.0, 3.0, 1.0]).tolist() == [-1.0, -1.0]


def test_the_largest_entries_of_the_whole_model_are_not_those_of_each_tensor(tmp_path):
    parent, base = {"v": [1.0, 2.0], "w": [10.0, 9.0]}, {"v": [0.0, 0.0], "w": [0.0, 0.0]}
    for trim, expected in (("model", {"v": [0, 0], "w": [10, 9]}), ("tensor", {"v": [0, 2], "w": [10, 0]})):
        found = merged(tmp_path, {"a": parent}, base, method="graft", density=0.5, trim=trim)
        assert {name: tensor.tolist() for name, tensor in found.items()} == expected


@pytest.mark.parametrize("n", [0, 1, 7, 500, 999, 1000])
def test_the_largest_entries_are_those_of_a_sort_whatever_the_blocks_are(n):
    entries = torch.randn(1000, generator=torch.Generator().manual_seed(3)).double()
    entries[100:300] = 0.5  # many of one size
    order = entries.abs().float().argsort(descending=True, stable=True)[:n]
    expected = torch.zeros(1000, dtype=torch.bool).index_fill(0, order, value=True)
    for size in (1000, 64, 1):
        blocks = entries.split(size)
        largest = Largest(lambda blocks=blocks: blocks, n)
        assert torch.equal(torch.cat([largest.next(block) for block in blocks]), expected), size


def test_a_graft_keeps_none_all_or_nested_shares_of_the_change(tmp_path):
    kept = [one(tmp_path, [A], BASE, method="graft", density=density) for density in (0.0, 0.1, 0.4, 1.0)]
    assert torch.equal(kept[0], BASE)
    assert torch.equal(kept[3], A)
    masks = [tensor != BASE for tensor in kept]
    assert [int(mask.sum()) for mask in masks] == [0, 3, 12, 30]
    assert bool((masks[2] | ~masks[1]).all())
    assert (A - BASE).abs()[masks[1]].min() > (A - BASE).abs()[~masks[1]].max()


def test_a_compressed_change_has_three_values(tmp_path):
    # Of changes 3, -1, 0, -2 two are kept; their mean is 0 and their standard deviation sqrt(14 / 4).
    found = one(tmp_path, [[3.0, -1.0, 0.0, -2.0]], [0.0] * 4, method="compress", density=0.5, alpha=2.0)
    assert found.tolist() == pytest.approx([2 * sqrt(3.5), 0, 0, -2 * sqrt(3.5)])


def test_breadcrumbs_leave_out_the_largest_and_the_small():
    rows = torch.tensor([[5.0, -4.0, 3.0, -2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    kept = breadcrumbs(rows, density=0.4, gamma=0.2)
    assert kept.tolist() == [[False, True, True, False, False], [False, False, True, True, False]]
    assert bool(breadcrumbs(rows, density=1.0, gamma=0.2).all())


def test_breadcrumbs_of_a_tensor_are_not_those_of_its_rows(tmp_path):
    rows, zeros = [[5.0, -4.0], [3.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]
    for mask, expected in (("row", [[0.0, -4.0], [0.0, -2.0]]), ("tensor", [[0.0, -4.0], [3.0, 0.0]])):
        found = one(
            tmp_path, [rows], zeros, method="breadcrumbs", density=0.5, gamma=0.5 if mask == "row" else 0.25, mask=mask
        )
        assert found.tolist() == expected, mask


# compress keeps the signs of changes, not their sizes.
@pytest.mark.parametrize("method", [method for method in FROM_BASE if method != "compress"])
def test_one_parent_whose_whole_change_is_kept_gives_that_parent(method, tmp_path):
    own = {"density": 1.0} if "density" in METHODS[method].settings else {}
    assert torch.equal(one(tmp_path, [A], BASE, method=method, **own), A)


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_the_mean_of_one_parent_is_that_parent(method, tmp_path):
    torch.testing.assert_close(one(tmp_path, [A], method=method), A)


@pytest.mark.parametrize("method", FROM_BASE)
def test_a_factor_of_zero_gives_the_base(method, tmp_path):
    assert torch.equal(one(tmp_path, [A], BASE, method=method, **{"lambda": 0.0}), BASE)


@pytest.mark.parametrize(("own", "scale"), [({}, 1.0), ({"rescale": "q", "q": 0.5}, 0.25 / 0.5)])
def test_random_differences_have_the_mean_of_all_of_them(own, scale, tmp_path):
    n = 200
    draws = torch.stack(
        [
            one(tmp_path, [A], BASE, method="dare_linear", density=0.25, seed=seed, **own).double() - BASE
            for seed in range(n)
        ]
    )
    change, error = (A - BASE).double() * scale, draws.std(0) / sqrt(n)
    outside = ((draws.mean(0) - change).abs() > 3 * error).double().mean()
    assert float(outside) < 0.05  # of 30 entries a share of 0.003 is expected


def test_a_divisor_equal_to_the_density_is_the_paper_s_to_the_last_bit(tmp_path):
    ways = [{}, {"rescale": "q", "q": 0.3}]
    a, b = (one(tmp_path, [A, B], BASE, method="dare_ties", density=0.3, **own) for own in ways)
    assert torch.equal(a, b)


def test_a_tensor_keeps_its_sum_of_sizes(tmp_path):
    change = one(tmp_path, [A], BASE, method="dare_linear", density=0.3, rescale="l1") - BASE
    assert float(change.abs().sum()) == pytest.approx(float((A - BASE).abs().sum()), rel=1e-5)
    assert 0 < int((change != 0).sum()) < 20


def test_what_is_drawn_depends_on_names_and_seed_alone(tmp_path, monkeypatch):
    tensors = {"a": {"v": B, "w": A}, "b": {"v": C, "w": B.clone()}}
    base = {"v": BASE, "w": BASE.clone()}
    dare = {"method": "dare_linear", "density": 0.5}
    first = merged(tmp_path, tensors, base, **dare)
    turned = merged(tmp_path, dict(reversed(tensors.items())), base, **dare)
    alone = merged(tmp_path, {name: {"w": of["w"]} for name, of in tensors.items()}, {"w": BASE}, **dare)
    for other in (turned, alone):
        torch.testing.assert_close(other["w"], first["w"], rtol=0, atol=1e-6)
    monkeypatch.setattr(merging_weights, "BLOCK_WEIGHTS", 7)
    assert torch.equal(merged(tmp_path, tensors, base, **dare)["w"], first["w"])
    assert not torch.equal(merged(tmp_path, tensors, base, **dare, seed=1)["w"], first["w"])


def test_lines_scale_the_change_by_layer(tmp_path):
    names = ["embed.weight", "model.layers.0.w", "model.layers.1.w", "model.layers.2.w", "model.norm.w"]
    base, parent = ({name: [number] for name in names} for number in (0.0, 1.0))
    of_lines = {"base": "base", "embeddings": names[:1], "lines": {"alpha": 0.2, "beta": 0.6}}
    kept = {"method": "task_arithmetic"} | of_lines
    expected = pytest.approx([0.2, 0.2, 0.5, 0.8, 0.8])
    of_lines.pop("base")
    kept.pop("base")
    for own in (kept, {"method": "linear"} | of_lines, {"method": "ties", "density": 1.0} | of_lines):
        found = merged(tmp_path, {"a": parent}, base, **own)
        assert [float(found[name]) for name in names] == expected, own["method"]
    plain = merged(tmp_path, {"a": parent}, base, method="task_arithmetic", lines={"alpha": 1.0, "beta": 0.0})
    assert [float(found) for found in plain.values()] == [1.0] * 5
    with pytest.raises(InputError, match="two layers or more"):
        merged(tmp_path, {"a": {names[1]: [1.0]}}, {names[1]: [0.0]}, method="ties", lines=of_lines["lines"])


def test_positions_lie_before_the_layers_as_tokens_do(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=4, n_head=1, vocab_size=8, n_positions=8)).save_pretrained(tmp_path)
    before = open_parents([tmp_path], None).before_layers
    assert sorted(name.rpartition("transformer.")[2] for name in before) == ["wpe.weight", "wte.weight"]


def test_a_setting_may_differ_by_tensor_and_a_pattern_that_matches_none_is_refused(tmp_path):
    parents = {"a": {"mlp.w": RIGHT, "attn.w": RIGHT}, "b": {"mlp.w": UP, "attn.w": UP}}
    found = merged(tmp_path, parents, method="linear", t={"mlp.*": 0.25, "*": 1.0})
    assert found["mlp.w"].tolist() == [0.75, 0.25]
    assert found["attn.w"].tolist() == UP
    with pytest.raises(InputError, match=r"merge\.t: the pattern 'mpl\.\*' must match a tensor"):
        merged(tmp_path, parents, method="linear", t={"mpl.*": 0.25, "*": 1.0})


def test_whole_numbers_must_be_the_same(tmp_path):
    parents = {name: {"w": RIGHT, "ids": torch.tensor([3, number])} for name, number in (("a", 4), ("b", 5))}
    with pytest.raises(InputError, match="'ids' is not in 'a' and 'b'"):
        merged(tmp_path, parents)
    parents["b"]["ids"] = torch.tensor([3, 4])
    assert merged(tmp_path, parents)["ids"].tolist() == [3, 4]


def test_numbers_that_do_not_fit_are_refused_by_name(tmp_path):
    large = torch.tensor([6e4, 1.0], dtype=torch.float16)
    with pytest.raises(InputError, match=r"'w' are not in float16, the largest merged one being 1.2e\+05; .*dtype"):
        one(tmp_path, [large, large], torch.zeros(2, dtype=torch.float16), method="task_arithmetic")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"method": "slerp", "parents": ["a"]}, r"parents: slerp must have 2, not 1"),
        ({"method": "transfer", "parents": ["a"]}, r"parents: transfer must have at least 2, not 1"),
        ({"method": "slerp", "density": 0.2}, r"merge\.density: slerp must not have it.*ties"),
        ({"method": "linear", "t": 0.5, "weights": [1.0, 1.0]}, r"merge\.t: must stand alone.*weights"),
        ({"method": "linear", "t": 0.5, "parents": ["a", "b", "c"]}, r"merge\.t: .*not with 3 parents; give weights"),
        ({"method": "ties", "weights": [1.0]}, r"weights: must have one number for each parent \(2\), not 1"),
        ({"method": "dare_ties", "q": 0.5}, r"merge\.q: must be given with rescale: q alone"),
        (
            {"method": "dare_ties", "rescale": "q", "density": {"*": 0.2}},
            r"merge\.q: must be given where the density is not one",
        ),
        ({"method": "dare_ties", "rescale": "q", "q": 0.1, "density": 0.5}, r"at least the density"),
        ({"method": "slerp", "base": "c"}, r"merge\.base: slerp must not have it here"),
        ({"method": "ties", "chosen_on": ["lua"]}, r"merge\.chosen_on: ties must not have it here"),
        ({"method": "ties", "weights": [1.0, -1.0]}, r"weights: must not be negative .* normalize: false"),
        ({"method": "karcher", "weights": [1.0, -1.0]}, r"weights: must not be negative .* another method"),
        ({"method": "linear", "weights": [1.0, -1.0]}, r"weights: must not add up to zero"),
        ({"method": "ties", "density": {"*": 0.2}}, r"density: must be one number .* set trim: tensor"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(own, message):
    with pytest.raises(InputError, match=message):
        settings(own.pop("parents", ["a", "b"]), **own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_at_both_ends_the_merge_is_the_parent_bit_for_bit(method, dtype, tmp_path):
    a, b = A.to(dtype), B.to(dtype)
    a[0, 0] = -0.0
    for t, end in ((0.0, a), (1.0, b)):
        found = one(tmp_path, [a, b], method=method, t=t)
        assert found.dtype == dtype
        assert torch.equal(torch.signbit(found), torch.signbit(end))
        assert torch.equal(found, end)


def test_blocks_do_not_change_a_merge(tmp_path, monkeypatch):
    def every() -> list[torch.Tensor]:
        return [
            one(tmp_path, [A, B], BASE, method=method) for method in FROM_BASE if METHODS[method].n_parents[1] is None
        ]

    whole = every()
    monkeypatch.setattr(merging_weights, "BLOCK_WEIGHTS", 7)
    assert all(torch.equal(*pair) for pair in zip(whole, every(), strict=True))


def test_models_of_different_shapes_are_refused_by_name(tiny, tmp_path):
    shutil.copytree(tiny.models["b"], tmp_path / "other")
    state = load_file(tmp_path / "other" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for change in (state[name][:-1].contiguous(), None):
        changed = {key: tensor for key, tensor in state.items() if key != name} | (
            {} if change is None else {name: change}
        )
        save_file(changed, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            InputError,
            match=rf"'{name}' 'a' has \(\d+, \d+\), 'other' has (none|\(\d+, \d+\)); merge models of one base",
        ):
            merge([tiny.models["a"], tmp_path / "other"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merged_folders_load_and_say_how_they_were_merged(tiny, tmp_path):
    folders = [tiny.models["a"], tiny.models["b"]]
    for folder in ("merged", "again"):
        assert merge(folders, tmp_path / folder, t=0.58) == {}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    a, b = (load_file(folder / "model.safetensors") for folder in folders)
    name = "model.layers.1.mlp.up_proj.weight"
    products = gram(a[name].flatten().tolist(), b[name].flatten().tolist())
    factors, branch = slerp(products, 0.58)
    torch.testing.assert_close(model.state_dict()[name], factors[0] * a[name] + factors[1] * b[name])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == tiny.d_vocab

    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert {key: record[key] for key in ("method", "parents", "t")} == {
        "method": "slerp",
        "parents": ["a", "b"],
        "t": 0.58,
    }
    assert record["tensors"].keys() == a.keys()
    of_tensor = {"cos": pytest.approx(cosine(products)), "branch": branch, "factors": pytest.approx(factors)}
    assert record["tensors"][name] == of_tensor
    # Norm weights are all ones in both.
    ones = {"cos": pytest.approx(1.0), "branch": "lerp", "factors": pytest.approx([0.42, 0.58])}
    assert record["tensors"]["model.norm.weight"] == ones

    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("merged", "again")]
    assert weights[0] == weights[1]


def test_a_merge_that_is_one_of_the_models_says_so(tiny, tmp_path):
    a, b = tiny.models["a"], tiny.models["b"]
    assert merge([a, b], tmp_path / "end", t=1.0) == {"same_weights_as": "b"}
    assert merge([a], tmp_path / "none", base=b, method="graft", density=0.0) == {"same_weights_as": "b"}
    assert merge([a], tmp_path / "all", base=b, method="graft", density=1.0) == {"same_weights_as": "a"}


def test_a_method_that_needs_a_base_is_refused_without_one(tiny, tmp_path):
    with pytest.raises(InputError, match="ties must have a base"):
        merge([tiny.models["a"], tiny.models["b"]], tmp_path / "merged", method="ties")


def test_a_chosen_number_format_is_that_of_weights_and_config(tiny, tmp_path):
    merge([tiny.models["a"], tiny.models["b"]], tmp_path / "merged", dtype="float16")
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
            merge([a, b], tmp_path / f"merged{t}", t=t)
    names = [str(dtype).removeprefix("torch.") for dtype in (first, widest)]
    for part in (f"'first' in {names[0]}", "'b' in float32", f"the merge is {names[1]} throughout"):
        assert part in caplog.messages[0]
    found = {t: load_file(tmp_path / f"merged{t}" / "model.safetensors") for t in (0.0, 0.5, 1.0)}
    for name in of_a:
        assert torch.equal(found[0.0][name], of_a[name].to(widest))  # exact, because widening rounds nothing
        assert torch.equal(found[1.0][name], of_b[name].to(widest))
        assert found[0.5][name].dtype == widest
    assert json.loads((tmp_path / "merged0.5" / "config.json").read_text())["dtype"] == names[1]


def test_parents_of_one_number_format_keep_it_without_a_word(tiny, tmp_path, caplog):
    a, b = (in_format(tiny.models[name], torch.bfloat16, tmp_path / name) for name in "ab")
    with caplog.at_level(logging.INFO, logger="saelineage"):
        merge([a, b], tmp_path / "merged")
    assert caplog.messages == []
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert open_parents([a, b], None).dtype is None
