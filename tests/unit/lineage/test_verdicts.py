"""Verdicts by hand: what was found, what changed but is still there, and what is in one model alone."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.verdicts import Rules, add_verdicts, shares_basis

NAN = float("nan")
RULES = Rules(threshold=0.8, drifted_from=0.5, readout_from=0.8, relocated_below=0.5, identified_from=1.0)
FOUND = {"parent": ("persists", "disappears"), "child": ("inherited", "emerges")}


def feature(side: str = "parent", **known) -> dict:
    """A feature that is found in the same direction, identified, and read out well, but for what is given."""
    r = known.get("r", 0.9)
    yes, no = FOUND[side]
    row = {"side": side, "study_verdict": yes if r >= 0.8 else no, "kind": "1:1" if r >= 0.8 else "", "r": r}
    row |= {"mutual": True, "cosine": 0.9, "readout": 0.9, "readout_of_own": 0.9, "r_high": r + 0.02, "rests_on": 9.0}
    return row | {"identified": True, "absent": r < 0.8} | known


def judged(*features: dict) -> pd.DataFrame:
    """The verdicts on features, after ten that persist in a shared basis."""
    return add_verdicts(pd.DataFrame([feature()] * 10 + list(features)), RULES).iloc[10:].reset_index(drop=True)


@pytest.mark.parametrize(
    ("known", "verdicts"),
    [
        ({}, ("persists", "inherited")),
        # Not found, but read out with 0.73 of 0.9: at least 0.8 x 0.9 = 0.72.
        ({"r": 0.3, "readout": 0.73}, ("drifted", "drifted")),
        # Read out worse, but with a mutual match of 0.5.
        ({"r": 0.5, "readout": 0.1}, ("drifted", "drifted")),
        ({"r": 0.5, "readout": 0.1, "mutual": False}, ("gone", "new")),
        ({"r": 0.49, "readout": 0.71}, ("gone", "new")),
        # Not even its own model's activations give it: nothing can be told, unless it is found or close.
        ({"r": 0.3, "readout": 0.0, "readout_of_own": 0.09}, ("untestable", "untestable")),
        ({"r": 0.9, "readout": 0.0, "readout_of_own": 0.09}, ("persists", "inherited")),
        ({"r": 0.6, "readout": 0.0, "readout_of_own": 0.09}, ("drifted", "drifted")),
        # Without readouts, only the match counts.
        ({"r": 0.3, "readout": NAN, "readout_of_own": NAN}, ("gone", "new")),
        ({"study_verdict": "untestable", "r": NAN}, ("untestable", "untestable")),
        # Found in parts of which none is close.
        ({"r": 0.6, "kind": "split", "study_verdict": None, "readout": 0.1}, ("persists", "inherited")),
    ],
)
def test_the_verdict_on_a_feature_of_either_side(known: dict, verdicts: tuple[str, str]):
    sides = ("parent", "child")
    rows = [
        feature(side, **(known | ({"study_verdict": FOUND[side][0]} if known.get("kind") else {}))) for side in sides
    ]
    assert tuple(judged(*rows)["verdict"]) == verdicts


def test_a_feature_that_fires_alike_but_is_written_in_another_direction_is_relocated():
    table = judged(feature(cosine=0.49), feature(cosine=0.5), feature(cosine=0.1, kind="split"), feature(cosine=NAN))
    assert table["verdict"].tolist() == ["drifted", "persists", "persists", "persists"]
    assert table["change"].tolist() == ["relocated", "", "", ""]


def test_directions_say_nothing_where_the_models_do_not_share_a_basis():
    permuted = add_verdicts(pd.DataFrame([feature(cosine=cosine) for cosine in (0.1, -0.1, 0.05)]), RULES)
    assert permuted["verdict"].tolist() == ["persists"] * 3
    assert not shares_basis(permuted)
    # The median of mutual single matches decides: 0.9, 0.6 and 0.1 share one.
    assert shares_basis(pd.DataFrame([feature(cosine=cosine) for cosine in (0.9, 0.6, 0.1)]))
    assert not shares_basis(pd.DataFrame([feature(cosine=NAN)]))


def test_the_list_of_lost_and_new_features_holds_identified_ones_that_are_clearly_not_found():
    lost = {"r": 0.3, "readout": 0.1, "r_high": 0.4}
    table = judged(
        feature(**lost),
        feature("child", **lost),
        feature(**lost, identified=False),
        feature(**lost | {"r_high": 0.8}),
        feature(**lost | {"r_high": NAN}),
        feature(**lost, absent=False),
        feature(**lost, rests_on=4.9),  # nearly all of it lies in fewer than five documents
        feature(r=0.3),  # drifted
        feature(),
    )
    # One that fires in too few documents for an interval is not on the list.
    assert table["headline"].tolist() == [True, True, False, False, False, True, False, False, False]
    assert table["robust"].tolist() == [True, True, False, False, False, False, False, False, False]
    without_match = {"r": NAN, "r_high": NAN, "study_verdict": "disappears", "kind": "", "readout": 0.1, "absent": True}
    assert judged(feature(**without_match))["robust"].tolist() == [True]


def test_rules_are_taken_from_the_config():
    assert Rules.of(RULES._asdict() | {"instruments": ["anchored"]}) == RULES
    assert np.isclose(Rules.of(RULES._asdict()).threshold, 0.8)
