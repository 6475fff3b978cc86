"""Scores count over all testable latents, on either side, and give instruments a sensitivity and a specificity."""

import numpy as np
import pandas as pd
import pytest
from benchmarks.scores import (
    NO_LATENT,
    Truth,
    classes,
    detection,
    fitness,
    identifiable,
    persisting,
    score,
    with_ratios,
)


def table(side: str, verdicts: list[str], identified: list[bool]) -> pd.DataFrame:
    """One side of an edge's table: unmatched where the verdict is gone or new, listed where identified as well."""
    lost = [verdict in ("gone", "new") for verdict in verdicts]
    headline = [is_lost and known for is_lost, known in zip(lost, identified, strict=True)]
    unmatched = {"parent": "disappears", "child": "emerges"}[side]
    columns = {"verdict": verdicts, "identified": identified, "robust": headline, "headline": headline}
    study = [unmatched if is_lost else verdict for verdict, is_lost in zip(verdicts, lost, strict=True)]
    r = np.linspace(0.1, 0.5, len(verdicts))
    return pd.DataFrame({"side": side, "latent": range(len(verdicts)), "study_verdict": study, "r": r, **columns})


def truth(changed: list[int], kept: list[int], d_sae: int) -> Truth:
    numbers = np.arange(d_sae)
    return Truth(np.isin(numbers, changed), np.isin(numbers, kept))


def test_scores_count_over_all_testable_latents_and_leave_out_those_that_are_touched():
    # lost: 0 and 1; kept: 2 to 5; 6 is touched, 7 fires too seldom
    verdicts = ["gone", "persists", "gone", "gone", "persists", "persists", "gone", "untestable"]
    rows = table("parent", verdicts, [True, True, True, False, False, True, True, False])
    scored = pd.DataFrame(score(rows, truth([0, 1], [2, 3, 4, 5, 7], 8))).set_index("list")
    names = ["n_changed", "listed_changed", "n_kept", "listed_kept", "touched"]
    assert scored.loc["all", names].tolist() == [2, 1, 4, 2, 1]
    assert scored.loc["headline", names].tolist() == [2, 1, 2, 1, 1]
    ratios = with_ratios(scored)
    assert ratios.loc["all", ["precision", "recall", "false"]].tolist() == [1 / 3, 0.5, 0.5]
    assert ratios.loc["headline", ["precision", "recall", "false"]].tolist() == [0.5, 0.5, 0.5]


def test_a_planted_feature_is_found_where_a_latent_that_follows_it_is_listed():
    # latents 0 and 1 both follow graft 0. Nothing follows graft 1.
    rows = table("child", ["new", "inherited", "inherited"], [True, True, True])
    grafts = truth([0, 1], [2], 3)._replace(follows=np.array([0, 0, -1]), n_planted=2)
    scored = with_ratios(pd.DataFrame(score(rows, grafts)).set_index("list"))
    assert scored.loc["headline", ["n_planted", "planted_listed", "recall_planted"]].tolist() == [2, 1, 0.5]
    assert scored.loc["headline", ["n_changed", "listed_changed", "recall"]].tolist() == [2, 1, 0.5]


def test_detection_counts_identified_features_that_are_seen_and_spared():
    # lost and identified: 0 gone, 1 drifted, 2 persists; 3 is lost and not identified. Kept: 4 persists, 5 drifted
    verdicts = ["gone", "drifted", "persists", "gone", "persists", "drifted"]
    rows = table("parent", verdicts, [True, True, True, False, True, True])
    counts = detection(rows, truth([0, 1, 2, 3], [4, 5], 6))
    assert counts == {"n_changed": 3, "seen": 2, "n_kept": 2, "spared": 1}


def test_a_new_thing_is_missed_where_no_latent_follows_it_or_one_that_does_is_called_inherited():
    # grafts 0 to 3: 0 is new, 1 is called inherited by one of two latents, nothing follows 2, nobody identifies 3
    rows = table("child", ["new", "new", "inherited", "new", "inherited"], [True, True, True, False, True])
    grafts = truth([0, 1, 2, 3], [4], 5)._replace(follows=np.array([0, 1, 1, 3, -1]), n_planted=4)
    assert identifiable(rows, grafts).tolist() == [0, 1]
    own = np.array([0, 1, 2])
    assert detection(rows, grafts, own) == {"n_changed": 3, "seen": 1, "n_kept": 1, "spared": 1}
    assert detection(rows, grafts, NO_LATENT)["n_changed"] == 0


def test_an_instrument_is_fit_if_it_sees_and_spares_in_both_directions():
    def row(name: str, side: str, seen: int, spared: int) -> dict:
        counts = {"n_changed": 10, "seen": seen, "n_kept": 20, "spared": spared}
        return {"instrument": name, "side": side} | counts

    sides = [row("both", "parent", 9, 19), row("both", "child", 9, 19)]
    sides += [row("blind", "parent", 10, 20), row("blind", "child", 0, 20)]
    sides += [row("nervous", "parent", 10, 18), row("nervous", "child", 10, 20)]
    sides += [row("untried", "parent", 10, 20), row("untried", "child", 0, 20) | {"n_changed": 0}]
    found = fitness(pd.DataFrame(sides)).set_index("instrument")
    assert found["fit"].tolist() == [True, False, False, None]
    assert found.loc["both", ["sees_lost", "n_sees_lost", "spares_kept", "n_spares_kept"]].tolist() == [
        0.9,
        10,
        0.95,
        20,
    ]
    # Wilson's interval of 9 of 10: (0.9 + 1.9207 / 10 +- 1.96 sqrt(0.009 + 0.9604 / 100)) / 1.38415
    assert found.loc["both", ["sees_new_low", "sees_new_high"]].tolist() == pytest.approx([0.59585, 0.98212], abs=1e-4)


def test_what_persists_is_counted_beside_what_is_expected_to():
    rows = table("parent", ["persists", "gone", "persists", "untestable"], [True, True, False, False])
    counts = persisting(rows, truth([1], [0, 2], 4))
    assert counts == [
        {"of": "all", "n": 3, "persisting": 2, "expected": 2},
        {"of": "identified", "n": 2, "persisting": 1, "expected": 1},
    ]


def test_verdicts_on_identified_features_are_counted_by_truth():
    rows = table("parent", ["persists", "gone", "gone"], [True, True, False])
    assert classes(rows, truth([1, 2], [0], 3)) == [
        {"truth": "changed", "verdict": "gone", "n": 1},
        {"truth": "kept", "verdict": "persists", "n": 1},
    ]
