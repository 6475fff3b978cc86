"""Sums over the differences of two models' activations, and what the folder of their SAE says."""

import math
from pathlib import Path

import pytest
import torch

from saelineage.crosscoders.differences import (
    difference_metadata,
    recorded_max_norms,
    require_difference,
    rounding_share,
    rounding_squares,
    size,
    sums_by_corpus,
)
from saelineage.crosscoders.dumps import DifferenceDump
from saelineage.errors import InputError
from saelineage.saes.metrics import fvu
from saelineage.saes.sae import Sae, save_sae
from tests.unit.crosscoders.made import write_dumps, write_shard

CPU = torch.device("cpu")
NO_LIMITS = {"parent": math.inf, "child": math.inf}


@pytest.fixture
def acts() -> dict[str, torch.Tensor]:
    """Activations of a parent and of a child that has moved a little, in half precision."""
    random = torch.Generator().manual_seed(0)
    parent = torch.randn(60, 4, generator=random).half()
    return {"parent": parent, "child": (parent + 0.3 * torch.randn(60, 4, generator=random)).half()}


def sae_of_two() -> Sae:
    """An SAE with one latent for each sign of the first dimension."""
    sae = Sae("relu", 4, 2)
    with torch.no_grad():
        sae.W_enc[0] = sae.W_dec[:, 0] = torch.tensor([1.0, -1.0])
    return sae


def test_sums_of_a_corpus_are_those_of_its_tokens_in_float64(tmp_path: Path, acts):
    shards = write_dumps(tmp_path, acts)
    paths = {
        side: dict(zip(("lua", "english"), map(lambda path: [str(path)], of), strict=True))
        for side, of in shards.items()
    }
    found = sums_by_corpus(sae_of_two(), paths, NO_LIMITS, CPU)
    for corpus, half in (("lua", slice(0, 30)), ("english", slice(30, 60))):
        parent, child = (acts[side][half].double() for side in ("parent", "child"))
        difference, sums = child - parent, found[corpus]
        assert sums.squares == pytest.approx(float(difference.square().sum()), rel=1e-6)  # differences are float32
        assert size(sums) == pytest.approx(float(difference.square().sum() / (child - child.mean(0)).square().sum()))
        residual = difference[:, 1:].square().sum()
        assert fvu(sums.sae) == pytest.approx(float(residual / (difference - difference.mean(0)).square().sum()))
        assert sums.sae.firings.tolist() == [int((difference[:, 0] > 0).sum()), int((difference[:, 0] < 0).sum())]
        assert sums.child.n == 30


def test_outliers_of_either_model_and_tokens_that_one_does_not_share_are_left_out(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, acts, n_shards=1)
    write_shard(paths["child"][0], acts["child"], not_shared=(3,))
    limit = acts["parent"].float().norm(dim=1).sort().values[-2].item()
    by_side = {side: {"lua": list(map(str, of))} for side, of in paths.items()}
    sums = sums_by_corpus(sae_of_two(), by_side, {"parent": limit, "child": math.inf}, CPU)["lua"]
    assert sums.child.n == 58


def test_the_rounding_of_a_number_format_is_the_error_that_it_makes():
    exact = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    for number_format in (torch.float16, torch.bfloat16):
        rounded = exact.to(number_format)
        error = float((rounded.double() - exact).square().sum())
        assert rounding_squares(rounded.float(), number_format) == pytest.approx(error, rel=0.03)
    assert rounding_squares(torch.zeros(2, 4), torch.float16) == 0.0


def test_rounding_alone_is_all_of_a_difference(tmp_path: Path):
    exact = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    paths = write_dumps(tmp_path, {"parent": exact.half(), "child": exact}, n_shards=1)
    by_side = {side: {"lua": list(map(str, of))} for side, of in paths.items()}
    sums = sums_by_corpus(sae_of_two(), by_side, NO_LIMITS, CPU)["lua"]
    assert rounding_share(sums) == pytest.approx(1.0, rel=0.05)


def test_equal_models_are_refused_with_a_way_on(tmp_path: Path, acts):
    paths = write_dumps(tmp_path, {"parent": acts["parent"], "child": acts["parent"]})
    dump = DifferenceDump(paths["parent"], paths["child"])
    with pytest.raises(InputError, match=r"'tuned' at layer\.output must differ from those of 'base'.*seeds to \[\]"):
        require_difference(dump, "base", "tuned")
    require_difference(DifferenceDump(*write_dumps(tmp_path / "2", acts).values()), "base", "tuned")


def test_the_folder_says_what_is_read_and_keeps_the_cut_offs(tmp_path: Path, acts):
    dump = DifferenceDump(*write_dumps(tmp_path, acts).values(), max_norm_ratio=1.5)
    metadata = difference_metadata(dump, {"k": 2}, "base", "tuned", {"name": "models/tuned"})
    assert metadata["hook_name"] is None
    assert metadata["model_name"] == "models/tuned"
    assert "of models/tuned at layer.output minus those of base" in str(metadata["hook_name_note"])
    save_sae(sae_of_two(), tmp_path / "sae", metadata)
    assert recorded_max_norms(tmp_path / "sae") == pytest.approx(dump.max_norms)
    everything = DifferenceDump(*write_dumps(tmp_path, acts).values())
    save_sae(sae_of_two(), tmp_path / "all", difference_metadata(everything, {}, "base", "tuned", {"name": "tuned"}))
    assert recorded_max_norms(tmp_path / "all") == NO_LIMITS


def test_the_folder_of_another_sae_is_refused(tmp_path: Path):
    save_sae(sae_of_two(), tmp_path, {"saelineage": {"model": "base"}})
    with pytest.raises(InputError, match=r"max_norms must be of parent and child.*got None; delete the folder"):
        recorded_max_norms(tmp_path)
