"""Features are followed through two steps, and moved on those where their match is lost."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.stages import add_stages, follow, moved_by, stage_counts
from tests.unit.lineage.pairs import NAN, correlation, diagonal

START, FIRST, SECOND = "base.seed0", "base.data_lua", "lua.data+model_base"
STEP = correlation(diagonal(0.9, 0.5, 0.9, 0.5), (START, FIRST))
NEXT = correlation(diagonal(0.9, 0.9, 0.5, 0.5), (FIRST, SECOND))


def test_a_feature_is_followed_to_its_match_and_from_there():
    r = diagonal(0.9, 0.1, 0.1, 0.1)
    r[1][2] = 0.85  # on the first step, feature 1 becomes latent 2
    one, two = follow(correlation(r, (START, FIRST)), NEXT)
    assert one[:2].tolist() == pytest.approx([0.9, 0.85])
    assert two[:2].tolist() == pytest.approx([0.9, 0.5])


def test_it_moved_on_the_steps_on_which_r_is_below_the_threshold():
    r_data, r_model = np.array([0.9, 0.5, 0.9, 0.5, NAN]), np.array([0.9, 0.9, 0.5, 0.5, 0.9])
    assert moved_by(r_data, r_model, 0.8).tolist() == ["neither", "data", "model", "both", "untestable"]
    assert moved_by(np.array([0.8]), np.array([0.8]), 0.8).tolist() == ["neither"]


def test_the_parent_s_features_get_both_orders_and_the_child_s_none():
    table = pd.DataFrame({"side": ["parent"] * 4 + ["child"] * 4, "latent": [0, 1, 2, 3] * 2})
    lines = {"data_model": [STEP, NEXT], "model_data": [STEP, NEXT]}
    table = add_stages(table, lines, 0.8)
    parents, children = table[:4], table[4:]
    assert parents["moved_by"].tolist() == ["neither", "data", "model", "both"]
    # The same losses, but the first step is the model's.
    assert parents["moved_by_reversed"].tolist() == ["neither", "model", "data", "both"]
    assert parents["then_model_r"].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5])
    assert parents["then_data_r"].tolist() == parents["then_model_r"].tolist()
    assert (children[["moved_by", "moved_by_reversed"]] == "").all(axis=None)
    assert children[["data_r", "model_r"]].isna().all(axis=None)
    one_each = {"data": 1, "model": 1, "both": 1, "neither": 1, "untestable": 0}
    assert stage_counts(table) == {"data_model": one_each, "model_data": one_each, "n": 4, "same": 2}


def test_a_feature_that_cannot_be_tested_on_a_step_is_in_no_comparison_of_the_orders():
    table = pd.DataFrame({"side": ["parent"] * 4, "latent": range(4)})
    rare = correlation(diagonal(0.9, 0.9, 0.9, NAN), (FIRST, SECOND))
    counts = stage_counts(add_stages(table, {"data_model": [STEP, rare], "model_data": [STEP, NEXT]}, 0.8))
    assert (counts["data_model"]["untestable"], counts["n"]) == (1, 3)
