"""Dumps of several models read in step: the same tokens, one scale, and differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saelineage.crosscoders.dumps import DifferenceDump, JointDump, batches_in_step, open_in_step
from saelineage.errors import InputError
from tests.unit.crosscoders.made import write_dumps, write_shard


@pytest.fixture
def acts() -> dict[str, torch.Tensor]:
    """Activations of two models, one 50 times as large and far from zero, in the format of a dump."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(40, 3, generator=random)
    return {"base": base.half(), "tuned": (50 * torch.randn(40, 3, generator=random) + 200).half()}


def test_models_lie_side_by_side_centred_and_of_one_rms(tmp_path: Path, acts):
    dump = JointDump(write_dumps(tmp_path, acts))
    assert (dump.models, dump.width, dump.d_in, len(dump)) == (["base", "tuned"], 3, 6, 40)
    joint = dump[np.arange(40)].view(40, 2, 3).double()
    assert joint.mean(0).abs().max().item() < 1e-5
    assert joint.square().mean((0, 2)).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    base = acts["base"].float()
    expected = (base - base.mean(0)) / (base - base.mean(0)).square().mean().sqrt()
    assert torch.allclose(joint[:, 0].float(), expected, atol=1e-5)


def test_tokens_are_read_across_shards_in_the_given_order(tmp_path: Path, acts):
    dump = JointDump(write_dumps(tmp_path, acts, n_shards=3))
    tokens = np.array([39, 0, 13, 14, 27, 0])
    assert torch.equal(dump[tokens], dump[np.arange(40)][tokens])
    assert torch.equal(dump[tokens], JointDump(write_dumps(tmp_path / "one", acts, n_shards=1))[tokens])


def test_a_token_that_one_model_leaves_out_is_left_out_of_all(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, acts, n_shards=1)
    write_shard(paths["base"][0], acts["base"], not_shared=(3,))
    outlier = acts["tuned"].clone()
    outlier[7] *= 40
    write_shard(paths["tuned"][0], outlier)
    dump = JointDump(paths, max_norm_ratio=10.0)
    assert (len(dump), dump.n_left_out) == (38, 2)
    kept = [token for token in range(40) if token not in (3, 7)]
    tuned = acts["tuned"][kept].float()
    assert torch.allclose(dump[np.arange(38)][:, 3:], (tuned - tuned.mean(0)) * dump.scalings["tuned"].scale, atol=1e-3)
    assert dump.max_norms["tuned"] == pytest.approx(10 * tuned.norm(dim=1).median().item(), rel=0.05)


def test_batches_in_step_are_unscaled_and_leave_out_what_training_did(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, acts)
    norms = acts["tuned"].float().norm(dim=1)
    cut_off = norms.sort().values[-3].item()
    dumps = open_in_step(paths, max_norms={"base": math.inf, "tuned": cut_off})
    batches = list(batches_in_step(dumps, 16))
    assert [len(batch["base"]) for batch in batches] == [16, 16, 6]
    for model in acts:
        assert torch.equal(torch.cat([batch[model] for batch in batches]), acts[model][norms <= cut_off].float())


def test_other_tokens_shards_and_widths_are_refused(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, acts, n_shards=1)
    other = {
        r"ids_sha256.*delete both": write_shard(tmp_path / "1.safetensors", acts["tuned"], ids_sha256="1" * 8),
        r"first_row, stop_row\)": write_shard(tmp_path / "2.safetensors", acts["tuned"], first_row=5),
        r"hookpoint\); delete": write_shard(tmp_path / "3.safetensors", acts["tuned"], hookpoint="x.input"),
        r"of one width, got \{'base': 3, 'tuned': 2\}": write_shard(tmp_path / "4.safetensors", acts["tuned"][:, :2]),
    }
    for message, path in other.items():
        with pytest.raises(InputError, match=message):
            JointDump(paths | {"tuned": [path]})
    with pytest.raises(InputError, match=r"equally many activation shards, got \{'base': 1, 'tuned': 2\}"):
        JointDump(paths | {"tuned": paths["tuned"] * 2})


def test_models_that_share_no_token_are_refused(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, acts, n_shards=1)
    write_shard(paths["base"][0], acts["base"], not_shared=tuple(range(20)))
    write_shard(paths["tuned"][0], acts["tuned"], not_shared=tuple(range(20, 40)))
    with pytest.raises(InputError, match="no token is shared by all"):
        JointDump(paths)


def test_a_difference_is_the_child_minus_the_parent(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, acts)
    dump = DifferenceDump(paths["base"], paths["tuned"])
    tokens = np.array([30, 2, 2])
    assert (len(dump), dump.d_in) == (40, 3)
    assert torch.equal(dump[tokens], (acts["tuned"].float() - acts["base"].float())[tokens])
