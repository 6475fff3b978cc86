"""Reading, replacing and storing activations."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from saelineage.activations import (
    ActivationShard,
    Hookpoint,
    dump_shards,
    hooked,
    norm_limit,
    read_activations,
    read_all,
    same_output,
)
from saelineage.errors import InputError
from saelineage.foreign.saelens_names import LISTED
from saelineage.tokens import TokenRows

HOOKPOINT = "model.layers.0.mlp.down_proj.input"


@pytest.fixture
def rows(tiny):
    return TokenRows(tiny.tokens["words"]["validation"])


@pytest.fixture
def ids(rows):
    return torch.from_numpy(rows.ids[:3].astype(np.int64))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


class Halves(nn.Module):
    """Returns its input and half of it; is called by keyword."""

    def forward(self, *, wide):
        return wide, wide / 2


class Toy(nn.Module):
    """Doubles, then halves: looks like a language model from outside."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(2, 2, bias=False)
        self.twice.weight = nn.Parameter(2 * torch.eye(2))
        self.halves = Halves()
        self.unused = nn.Linear(2, 2)

    def forward(self, input_ids, use_cache=False):
        acts = input_ids.unsqueeze(-1).float() * torch.tensor([1.0, 10.0])
        whole, half = self.halves(wide=self.twice(acts))
        return SimpleNamespace(logits=whole + half)


class Flat(Toy):
    """The same, but rows are flattened before the doubling, as OPT does around its MLP, and some tokens are lost."""

    def __init__(self, n_lost=0):
        super().__init__()
        self.n_lost = n_lost

    def forward(self, input_ids, use_cache=False):
        acts = input_ids.unsqueeze(-1).float() * torch.tensor([1.0, 10.0])
        flat = acts.flatten(0, 1)[self.n_lost :]
        return SimpleNamespace(logits=self.twice(flat).unflatten(0, (len(input_ids), -1)))


TOY_IDS = torch.tensor([[1, 2]])
# [1, 2] -> [[1, 10], [2, 20]], doubled [[2, 20], [4, 40]]; whole plus half of it [[3, 30], [6, 60]].


@pytest.mark.parametrize(
    ("hookpoint", "acts", "logits"),
    [
        ("twice.input", [[1, 10], [2, 20]], [[6, 60], [9, 90]]),  # 1 + 1 doubled is 4, plus its half 6
        ("twice.output", [[2, 20], [4, 40]], [[4.5, 31.5], [7.5, 61.5]]),  # (2 + 1) x 1.5
        ("halves.input", [[2, 20], [4, 40]], [[4.5, 31.5], [7.5, 61.5]]),  # passed by keyword
        ("halves.output", [[2, 20], [4, 40]], [[4, 31], [7, 61]]),  # the first of a tuple: 2 + 1, plus 1
    ],
)
def test_inputs_and_outputs_are_read_and_replaced(hookpoint, acts, logits):
    model = Toy()
    assert read_activations(model, hookpoint, TOY_IDS)[0].tolist() == acts
    added = torch.tensor([1.0, 10.0]) if hookpoint == "twice.input" else 1.0
    with hooked(model, hookpoint, lambda acts: acts + added):
        assert model(TOY_IDS).logits[0].tolist() == logits
    assert model(TOY_IDS).logits[0].tolist() == [[3, 30], [6, 60]]


def test_a_forward_pass_ends_where_it_is_read():
    model, ran = Twice(torch.nn.Linear(4, 4)), []
    handles = [
        module.register_forward_hook(lambda module, args, output: ran.append(module))
        for module in (model.embed, model.between, model.last)
    ]
    acts = read_activations(model, "between.input", TOY_IDS)
    for handle in handles:
        handle.remove()
    assert ran == [model.embed]
    assert torch.equal(acts, model.embed(TOY_IDS))


def test_several_places_are_read_off_one_forward_pass_that_ends_at_the_last():
    model, ran = Twice(torch.nn.Linear(4, 4)), []
    handle = model.last.register_forward_hook(lambda module, args, output: ran.append(module))
    between, embedded, again = read_all(model, ["between.output", "embed.output", "between.output"], TOY_IDS)
    handle.remove()
    assert ran == []
    assert torch.equal(embedded, model.embed(TOY_IDS))
    assert torch.equal(between, model.between(model.embed(TOY_IDS)))
    assert torch.equal(again, between)


class InPlace(torch.nn.Module):
    """Adds 1 to what it is given, in place."""

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return acts.add_(1)


def test_a_place_is_read_as_it_was_even_if_a_later_module_changes_it():
    model = Twice(InPlace())
    embedded, changed = read_all(model, ["embed.output", "between.output"], TOY_IDS)
    assert torch.equal(changed, embedded + 1)


@pytest.mark.parametrize("side", ["input", "output"])
def test_flattened_activations_are_read_and_replaced_as_rows(side):
    ids, factor = torch.tensor([[1, 2, 3], [4, 5, 6]]), 1 if side == "input" else 2
    rows = [[[factor * n, factor * 10 * n] for n in row] for row in ids.tolist()]
    model = Flat()
    assert read_activations(model, f"twice.{side}", ids).tolist() == rows
    with hooked(model, f"twice.{side}", lambda acts: torch.stack([acts[0], torch.zeros_like(acts[1])])):
        assert model(ids).logits.tolist() == [[[2, 20], [4, 40], [6, 60]], [[0, 0]] * 3]
    assert read_activations(model, f"twice.{side}", ids[:, :2]).shape == (2, 2, 2)


def test_activations_of_some_of_the_tokens_are_refused():
    with pytest.raises(InputError, match=r"'twice\.input' must give activations .*, but gives torch.float32 \[4, 2\]"):
        read_activations(Flat(n_lost=2), "twice.input", torch.tensor([[1, 2, 3], [4, 5, 6]]))


def test_a_hookpoint_is_a_module_and_a_side():
    assert Hookpoint.parse(HOOKPOINT) == ("model.layers.0.mlp.down_proj", "input")


def test_the_mlp_s_activations_are_gate_times_up(model, ids):
    mlp = model.model.layers[0].mlp
    acts = read_activations(model, "model.layers.0.mlp.input", ids)
    with torch.inference_mode():
        gate, up = acts @ mlp.gate_proj.weight.T, acts @ mlp.up_proj.weight.T
        by_hand = gate * gate.sigmoid() * up
        down = by_hand @ mlp.down_proj.weight.T
    assert torch.allclose(read_activations(model, HOOKPOINT, ids), by_hand, atol=1e-6)
    assert torch.allclose(read_activations(model, "model.layers.0.mlp.down_proj.output", ids), down, atol=1e-6)


def test_attention_and_whole_layers_can_be_read(model, ids):
    for hookpoint in ("model.layers.1.self_attn.input", "model.layers.1.self_attn.output", "model.layers.1.output"):
        assert read_activations(model, hookpoint, ids).shape == (*ids.shape, 32)


def test_replacing_by_a_copy_changes_nothing_and_by_zeros_removes_the_module(model, ids):
    clean = logits(model, ids)
    with hooked(model, HOOKPOINT, lambda acts: acts.clone()):
        assert torch.equal(logits(model, ids), clean)
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.model.layers[0].mlp.down_proj.weight.zero_()
    with hooked(model, HOOKPOINT, torch.zeros_like):
        zeroed = logits(model, ids)
    assert torch.equal(zeroed, logits(without, ids))
    assert not torch.equal(zeroed, clean)


def test_hooks_are_removed_even_after_an_error(model, ids):
    clean = logits(model, ids)
    for side in ("input", "output"):
        with pytest.raises(ZeroDivisionError), hooked(model, f"model.layers.0.mlp.{side}", torch.zeros_like):
            raise ZeroDivisionError
    module = model.model.layers[0].mlp
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert torch.equal(logits(model, ids), clean)


@pytest.mark.parametrize(
    ("hookpoint", "reason"),
    [
        ("model.layers.0.mlp.downproj.input", r"'model\.layers\.0\.mlp\.downproj'; .*mlp\.down_proj, .*; correct it"),
        ("zzz.input", r"'zzz'; look at model\.named_modules"),
        ("model.layers.0.mlp", r"\.input or \.output, got 'model\.layers\.0\.mlp'"),
        ("model.embed_tokens.input", r"'model\.embed_tokens\.input' must give .* use the input or output"),
        ("model.output", r"'model\.output' must give .* use the input or output"),
        ("model.layers.output", r"never runs 'model\.layers\.output'; use a module inside"),
    ],
)
def test_places_without_activations_are_refused(model, ids, hookpoint, reason):
    with pytest.raises(InputError, match=rf"activations\.hookpoint.*{reason}"):
        read_activations(model, hookpoint, ids)


class Twice(torch.nn.Module):
    """Two layers, and a module between them that runs twice or gives new values."""

    def __init__(self, between: torch.nn.Module, n_runs: int = 1):
        super().__init__()
        self.embed, self.between, self.last = torch.nn.Embedding(9, 4), between, torch.nn.Linear(4, 9)
        self.n_runs = n_runs

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:
        acts = self.embed(input_ids)
        for _ in range(self.n_runs):
            acts = self.between(acts)
        self.last(acts)


def test_an_input_is_the_output_of_the_last_module_that_ran_before_with_these_values():
    assert same_output(Twice(torch.nn.Linear(4, 4)), "last.input") == "between"
    assert same_output(Twice(torch.nn.Linear(4, 4)), "between.input") == "embed"
    assert same_output(Twice(torch.nn.Identity()), "last.input") == "between"
    assert same_output(Twice(torch.nn.Identity(), n_runs=2), "last.input") == "embed"  # the other is not one place
    assert same_output(Twice(torch.nn.Linear(4, 4), n_runs=2), "last.input") is None
    assert same_output(Twice(torch.nn.Linear(4, 4), n_runs=2), "between.input") is None  # it is several places
    assert same_output(Twice(torch.nn.Linear(4, 4)), "last.output") == "last"


def test_a_shard_holds_text_tokens_only_and_their_positions(model, rows, tmp_path):
    n_tokens = dump_shards(model, {HOOKPOINT: tmp_path / "shard.safetensors"}, rows, range(2, 7), 2, "float32")
    shard = ActivationShard(tmp_path / "shard.safetensors")
    expected = [
        (row * 16 + pos, row, pos)
        for row in range(2, 7)
        for pos in range(16)
        if rows.ids[row, pos] not in (rows.info["bos_id"], rows.info["eos_id"])
    ]
    assert shard.positions().tolist() == [position for position, _, _ in expected]
    assert n_tokens == shard.n_tokens == len(expected) < 5 * 15
    acts = read_activations(model, HOOKPOINT, torch.from_numpy(rows.ids[:7].astype(np.int64)))
    assert torch.allclose(shard.acts(), torch.stack([acts[row, pos] for _, row, pos in expected]), atol=1e-7)
    assert shard.header == {
        "hookpoint": HOOKPOINT,
        "ids_sha256": rows.digest,
        "first_row": 2,
        "stop_row": 7,
        "n_ctx": 16,
        "left_out_ids": sorted([rows.info["bos_id"], rows.info["eos_id"]]),
        "saelens": {
            "hook_name": "blocks.0.mlp.hook_post",
            "hf_hook_name": HOOKPOINT,
            "hook_name_note": LISTED,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": {},
        },
    }


def test_shards_one_after_the_other_are_the_one_shard(model, rows, tmp_path):
    dump_shards(model, {HOOKPOINT: tmp_path / "whole.safetensors"}, rows, range(9), 1, "float32")
    whole = ActivationShard(tmp_path / "whole.safetensors")
    parts = []
    for within in (range(4), range(4, 7), range(7, 9)):
        path = tmp_path / f"{within.start}.safetensors"
        dump_shards(model, {HOOKPOINT: path}, rows, within, 1, "float32")
        parts.append(ActivationShard(path))
    assert torch.equal(torch.cat([part.acts() for part in parts]), whole.acts())
    assert torch.equal(torch.cat([part.positions() for part in parts]), whole.positions())


def test_two_dumps_are_equal_bytes_and_their_chunks_float32(model, rows, tmp_path):
    for name in ("first", "second"):
        dump_shards(model, {HOOKPOINT: tmp_path / name}, rows, range(4), 2, "float16")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    shard = ActivationShard(tmp_path / "first")
    chunks = list(shard.chunks(25))
    assert shard.acts().dtype == torch.float16
    assert [len(chunk) for chunk in chunks[:-1]] == [25] * (len(chunks) - 1)
    assert torch.equal(torch.cat(chunks), shard.acts().float())


def test_activations_too_large_for_float16_are_refused_and_nothing_is_written(model, rows, tmp_path):
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.model.layers[0].mlp.up_proj.weight.mul_(1e9)
    with pytest.raises(InputError, match=r"for float16; set activations\.dtype to float32"):
        dump_shards(loud, {HOOKPOINT: tmp_path / "shard.safetensors"}, rows, range(4), 2, "float16")
    assert not list(tmp_path.iterdir())
    dump_shards(loud, {HOOKPOINT: tmp_path / "shard.safetensors"}, rows, range(4), 2, "float32")


def test_activations_that_are_not_finite_are_refused(model, rows, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="are not finite"):
        dump_shards(broken, {HOOKPOINT: tmp_path / "shard.safetensors"}, rows, range(4), 2, "float32")


def test_damaged_shards_and_other_files_are_refused(write_acts, tmp_path):
    path = write_acts(torch.ones(10, 4))
    whole = path.read_bytes()
    for n_bytes in (0, 7, 200, -1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=r"acts\.safetensors' is not a whole activation shard .*; delete it"):
            ActivationShard(path)
    save_file({"acts": torch.ones(2, 2)}, path)  # without a header
    with pytest.raises(InputError, match=r"acts\.safetensors' is not a whole activation shard .*; delete it"):
        ActivationShard(path)
    with pytest.raises(InputError, match=r"nowhere\.safetensors' is not a whole activation shard .*; delete it"):
        ActivationShard(tmp_path / "nowhere.safetensors")


def test_the_outlier_limit_is_a_multiple_of_the_median_of_the_nonzero_norms():
    for norms, limit in [
        ([1.0, 2.0, 4.0], 20.0),
        ([0.0, 0.0, 0.0, 1.0, 3.0], 20.0),
        ([0.0, 0.0], float("inf")),
        ([], float("inf")),
    ]:
        assert norm_limit(np.array(norms, np.float32), 10.0) == limit
