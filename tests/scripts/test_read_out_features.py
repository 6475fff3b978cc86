"""Writing the table of readouts, as the rule does."""

import numpy as np
import pandas as pd
import pytest
import torch

from read_out_features import read_out_features
from saelineage.errors import InputError
from saelineage.lineage.readouts import read_out


@pytest.fixture
def shards(write_acts, write_features):
    """Activations of a parent and a child, and features that are linear functions of their own model's activations."""
    random = torch.Generator().manual_seed(0)
    parent = torch.randn(128, 3, generator=random)
    child = parent + torch.randn(128, 3, generator=random)
    acts = [[str(write_acts(values, name))] for name, values in (("parent", parent), ("child", child))]
    latents = [
        [str(write_features(np.array((values[:, :n] + 6).numpy()), f"{name}_features").path)]
        for name, values, n in (("parent", parent, 2), ("child", child, 1))
    ]
    return tuple(acts), tuple(latents)


def test_the_features_of_both_sides_are_read_from_the_other_side_and_from_their_own(shards, tmp_path):
    path = tmp_path / "readouts/a__b.parquet"
    read_out_features(*shards, str(path))
    found = pd.read_parquet(path)
    assert found["side"].tolist() == ["parent"] * 2 + ["child"]
    (parent, child), (features, of_child) = shards
    for side, own, other, latents in (("parent", parent, child, features), ("child", child, parent, of_child)):
        rows = found[found["side"] == side].drop(columns="side").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, read_out(own, other, latents))
    assert found["r2_own"].to_numpy() == pytest.approx(1, abs=1e-9)
    # Half of the child's variance is noise, so either way R^2 is about 1/2.
    assert found["r2_other"].between(0.2, 0.8).all()


def test_equal_inputs_give_equal_bytes(shards, tmp_path):
    paths = [tmp_path / f"{name}.parquet" for name in "ab"]
    for path in paths:
        read_out_features(*shards, str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_nothing_is_written_when_shards_are_refused(shards, tmp_path):
    (parent, child), features = shards
    path = tmp_path / "readouts.parquet"
    with pytest.raises(InputError, match="same order"):
        read_out_features((parent * 2, child), features, str(path))
    assert not path.exists()
