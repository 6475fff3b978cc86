"""Features along a line of models: births, losses and the shares that are left."""

import pandas as pd
import pytest

from saelineage.lineage.survival import born_at, survival

LINE = ["base", "early", "late"]
EDGES = {
    # base's features 0 to 3: two are found, one is gone, one fires too rarely. early's feature 2 is new.
    ("base", "early"): pd.DataFrame(
        {
            "side": ["parent"] * 4 + ["child"] * 4,
            "latent": [*range(4), *range(4)],
            "verdict": ["persists", "persists", "gone", "untestable", "inherited", "inherited", "new", "drifted"],
            "identified": [True, False, True, False, True, True, False, True],
        }
    ),
    # Of these, base's feature 0 (now 1) is found at last.
    ("early", "late"): pd.DataFrame(
        {
            "side": ["parent"] * 4 + ["child"] * 2,
            "latent": [*range(4), 0, 1],
            "verdict": ["gone", "persists", "persists", "gone", "inherited", "new"],
            "identified": True,
        }
    ),
}
FEATURES = pd.DataFrame(
    {
        "model": ["base"] * 4 + ["early"] * 4,
        "latent": [*range(4), *range(4)],
        "in_early": [1, 0, -1, -1, 0, 1, 2, 3],
        "in_late": [0, -1, -1, -1, -1, 0, 0, -1],
    }
)


def test_features_are_born_where_they_are_new_and_at_the_first_model_if_they_can_be_tested():
    assert born_at("base", LINE, EDGES, only_identified=False).tolist() == [0, 1, 2]
    assert born_at("base", LINE, EDGES, only_identified=True).tolist() == [0, 2]
    assert born_at("early", LINE, EDGES, only_identified=False).tolist() == [2]
    assert born_at("early", LINE, EDGES, only_identified=True).tolist() == []


def test_shares_are_of_the_features_born_at_a_model_at_every_later_one():
    rows = survival(LINE, FEATURES, EDGES, [0.9, 0.5], only_identified=False)
    counted = [(row["born"], row["model"], row["share"], row["share_n"], row["no_longer_found"]) for row in rows]
    # Of base's three, two are at early, one is at late; early's one is at late.
    assert counted == [
        ("base", "early", pytest.approx(2 / 3), 3, 1),
        ("base", "late", pytest.approx(1 / 3), 3, 1),
        ("early", "late", 1.0, 1, 0),
    ]
    # Wilson's interval of 1 of 1: from 1 / (1 + 1.96^2) = 0.207 to 1.
    assert (rows[2]["share_low"], rows[2]["share_high"]) == (pytest.approx(0.2065, abs=1e-4), 1.0)
    assert [row["born"] for row in survival(LINE, FEATURES, EDGES, [0.9, 0.5], only_identified=True)] == ["base"] * 2


def test_what_no_change_would_leave_lies_between_the_product_and_the_least_of_its_steps():
    rows = survival(LINE, FEATURES, EDGES, [0.9, 0.5], only_identified=False)
    bounds = [(row["unchanged_least"], row["unchanged_most"]) for row in rows]
    assert bounds == [(0.9, 0.9), (pytest.approx(0.45), 0.5), (0.5, 0.5)]
    rows = survival(LINE, FEATURES, EDGES, [None, 0.5], only_identified=False)
    assert [row["unchanged_least"] for row in rows] == [None, None, 0.5]
