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
    """A parent's and a child's activations, of which the parent's features are a linear function and one with noise."""
    random = torch.Generator().manual_seed(0)
    parent = torch.randn(128, 3, generator=random)
    child = parent + torch.randn(128, 3, generator=random)
    latents = (parent[:, :2] + 6).numpy()
    paths = write_acts(parent, "parent"), write_acts(child, "child"), write_features(np.array(latents)).path
    return [[str(path)] for path in paths]


def test_the_table_is_written_with_the_parents_own_readout_as_ceiling(shards, tmp_path):
    path = tmp_path / "readouts/a__b.parquet"
    read_out_features(*shards, str(path))
    found = pd.read_parquet(path)
    pd.testing.assert_frame_equal(found, read_out(*shards))
    assert found["r2_parent"].to_numpy() == pytest.approx(1, abs=1e-9)
    # The child's activations are half noise, so R^2 is about 1/2.
    assert found["r2_child"].between(0.2, 0.8).all()


def test_equal_inputs_give_equal_bytes(shards, tmp_path):
    paths = [tmp_path / f"{name}.parquet" for name in "ab"]
    for path in paths:
        read_out_features(*shards, str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_nothing_is_written_when_shards_are_refused(shards, tmp_path):
    path = tmp_path / "readouts.parquet"
    with pytest.raises(InputError, match="same order"):
        read_out_features(shards[0] * 2, *shards[1:], str(path))
    assert not path.exists()
