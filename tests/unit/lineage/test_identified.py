"""Identified features: what other seeds of a model's SAE find again, and what no SAE of another model has."""

import numpy as np
import pytest

from saelineage.correlations.matches import Correlation
from saelineage.lineage.identified import Recurrence, absent, add_recurrence, is_identified, recurrence
from saelineage.lineage.matching import edge_table
from tests.unit.lineage.test_matching import NAN, TOY, correlation


def seeds() -> list[Correlation]:
    """Correlations of base.seed0, once on side 1, with three other SAEs.

    They have its latent 0 in all, 1 in the first, 2 in none, 3 in none, but untestable in the last.
    """
    rows = [
        np.diag([0.9, 0.8, 0.1, 0.2]),
        np.diag([0.85, 0.7, 0.1, 0.1]).T,
        np.diag([0.95, 0.3, 0.1, NAN]),
    ]
    rows[2][3] = NAN
    names = [("base.seed0", "base.seed1"), ("base.seed2", "base.seed0"), ("base.seed0", "base.seed3")]
    firings = ([50] * 4, [50] * 4)
    return [correlation(r.tolist(), pair, firings) for r, pair in zip(rows, names, strict=True)]


def test_recurrence_is_the_share_of_seeds_in_which_a_feature_has_a_match():
    # Latent 1 has 0.8, 0.7 and 0.3; latent 3 is untestable in the last, which counts as without a match.
    np.testing.assert_allclose(recurrence(seeds(), "base.seed0", 0.8), [1, 1 / 3, 0, 0])
    np.testing.assert_allclose(recurrence(seeds(), "base.seed0", 0.7), [1, 2 / 3, 0, 0])
    np.testing.assert_allclose(recurrence(seeds()[:1], "base.seed0", 0.8), [1, 1, 0, 0])


def test_a_feature_that_is_testable_in_no_seed_has_no_recurrence_and_is_not_identified():
    found = recurrence(seeds()[2:], "base.seed0", 0.8)
    np.testing.assert_array_equal(found, [1, 0, 0, NAN])
    assert is_identified(found, 1.0).tolist() == [True, False, False, False]


def test_a_feature_is_identified_from_the_share_of_seeds_that_the_config_asks_for():
    found = np.array([1.0, 2 / 3, 1 / 3, NAN])
    assert is_identified(found, 1.0).tolist() == [True, False, False, False]
    assert is_identified(found, 0.6).tolist() == [True, True, False, False]


def test_a_feature_that_is_testable_everywhere_and_found_nowhere_is_absent():
    assert absent(seeds(), "base.seed0", 0.8).tolist() == [False, False, True, False]
    assert absent(seeds()[1:2], "base.seed0", 0.8).tolist() == [False, True, True, True]


def test_recurrence_needs_correlations_of_the_sae():
    for mark in (recurrence, absent):
        with pytest.raises(ValueError, match=r"each with 'base.seed0' on one side, .* \[\]"):
            mark([], "base.seed0", 0.8)
        with pytest.raises(ValueError, match=r"\('lua.seed0', 'stories.seed0'\)"):
            mark([*seeds(), correlation(TOY)], "base.seed0", 0.8)


def test_the_columns_of_an_edge_are_those_of_its_sides():
    parent = Recurrence(np.array([1.0, 0.5, NAN]), np.array([True, False, False]))
    child = Recurrence(np.array([0.0, 1.0, 1.0]), np.array([False, False, True]))
    table = add_recurrence(edge_table(correlation(TOY), 0.8), parent, child, 1.0)
    np.testing.assert_array_equal(table["recurrence"], [1, 0.5, NAN, 0, 1, 1])
    assert table["identified"].tolist() == [True, False, False, False, True, True]
    assert table["absent"].tolist() == [True, False, False, False, False, True]
    with pytest.raises(ValueError, match="is of 5 for 6 rows"):
        add_recurrence(table, Recurrence(parent.recurrence[:2], parent.absent[:2]), child, 1.0)
