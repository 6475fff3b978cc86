"""Intervals of r in the table of an edge."""

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations.bootstrap import Replicates, widening
from saelineage.lineage.trajectories import add_intervals


def test_features_have_intervals_around_r_and_the_number_of_their_documents():
    # Ten replicates with z rising by 1/90; the third feature is untestable.
    rising = np.array([[np.tanh(0.8 + step / 90), 0.5, 0.9] for step in range(10)], dtype=np.float32)
    documents = np.array([9, 3, 9]), np.array([9, 2, 9])
    replicates = Replicates(("lua.seed0", "stories.seed0"), {"words": 9}, 0, (rising, rising), documents)
    r = [0.9, 0.79, np.nan, 0.79, 0.9, 0.8]
    table = add_intervals(pd.DataFrame({"side": ["parent"] * 3 + ["child"] * 3, "r": r}), replicates)
    assert table["documents"].tolist() == [9, 3, 9, 9, 2, 9]
    parents = table[table["side"] == "parent"]
    # 2.5 % and 97.5 % of ten are 4.275 steps of 1/90 on either side of the median, which is moved to r.
    z, half, flat = np.arctanh(parents["r"].iloc[0]), 4.275 / 90 * widening(9), parents["r"].iloc[1]
    assert parents["r_low"].tolist() == pytest.approx([np.tanh(z - half), flat, np.nan], abs=1e-6, nan_ok=True)
    assert parents["r_high"].tolist() == pytest.approx([np.tanh(z + half), flat, np.nan], abs=1e-6, nan_ok=True)
    # A feature of two documents has no interval.
    assert table["r_low"].isna().tolist()[4]
