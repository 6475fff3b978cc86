"""Verdicts by hand: what was found, what changed but is still there, and what is in one model alone."""

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations.pearson import correlate
from saelineage.lineage.directions import add_directions
from saelineage.lineage.matching import edge_table
from saelineage.lineage.verdicts import Rules, add_verdicts, shares_basis, shares_scale

NAN = float("nan")
RULES = Rules(threshold=0.8, drifted_from=0.5, readout_from=0.8, relocated_below=0.5, identified_from=1.0)
FOUND = {"parent": ("persists", "disappears"), "child": ("inherited", "emerges")}


def feature(side: str = "parent", **known) -> dict:
    """A feature that is found in the same direction, identified, and read out well, but for what is given."""
    r = known.get("r", 0.9)
    yes, no = FOUND[side]
    row = {"side": side, "study_verdict": yes if r >= 0.8 else no, "kind": "1:1" if r >= 0.8 else "", "r": r}
    row |= {"mutual": True, "cosine": 0.9, "readout": 0.9, "readout_of_own": 0.9, "r_high": r + 0.02, "rests_on": 9.0}
    row |= {"parts_cosine": NAN, "strength_ratio": 1.1, "spread_ratio": 1.05}
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
    table = judged(feature(cosine=0.49), feature(cosine=0.5), feature(cosine=NAN))
    assert table["verdict"].tolist() == ["drifted", "persists", "persists"]
    assert table["change"].tolist() == ["relocated", "", ""]


def test_directions_say_nothing_where_the_models_do_not_share_a_basis():
    permuted = add_verdicts(pd.DataFrame([feature(cosine=cosine) for cosine in (0.1, -0.1, 0.05)]), RULES)
    assert permuted["verdict"].tolist() == ["persists"] * 3
    assert not shares_basis(permuted)
    # The median of mutual single matches decides: 0.9, 0.6 and 0.1 share one.
    assert shares_basis(pd.DataFrame([feature(cosine=cosine) for cosine in (0.9, 0.6, 0.1)]))
    assert not shares_basis(pd.DataFrame([feature(cosine=NAN)]))


def test_a_feature_that_is_found_with_another_strength_is_rescaled():
    strengths = [0.49, 0.5, 2.0, 2.01, NAN]
    table = judged(*(feature(side, strength_ratio=ratio) for side in FOUND for ratio in strengths))
    assert table["verdict"].tolist() == ["persists"] * 5 + ["inherited"] * 5
    assert table["change"].tolist() == ["rescaled", "", "", "rescaled", ""] * 2
    # Not found, or found in parts, or in another direction, which says more.
    others = [{"r": 0.6}, {"kind": "split", "parts_cosine": 0.9}, {"cosine": 0.2}]
    assert judged(*(feature(strength_ratio=3.0, **other) for other in others))["change"].tolist() == [
        "",
        "",
        "relocated",
    ]


def test_strengths_say_nothing_where_a_whole_model_has_another_scale():
    doubled = pd.DataFrame([feature(strength_ratio=ratio) for ratio in (2.5, 3.0, 0.4)])
    assert set(add_verdicts(doubled, RULES)["change"]) == {""}
    assert not shares_scale(doubled)
    assert shares_scale(pd.DataFrame([feature(strength_ratio=ratio) for ratio in (2.5, 1.5, 0.4)]))
    assert not shares_scale(pd.DataFrame([feature(strength_ratio=NAN)]))


@pytest.mark.parametrize(
    ("known", "change"),
    [
        # r is 0.8 to 1.25 times the ratio of spreads, which is below 0.8.
        ({"spread_ratio": 0.6}, "partial"),
        ({"spread_ratio": 1 / 0.6}, "partial"),
        ({"spread_ratio": 0.74}, "partial"),
        ({"spread_ratio": 0.76}, ""),  # 0.6 / 0.76 = 0.79: r is lower than the smaller size explains
        ({"spread_ratio": 0.47}, ""),  # 0.6 / 0.47 = 1.28: r is higher than a part allows
        ({"spread_ratio": 0.8, "r": 0.7}, ""),  # the sizes alone would allow r = 0.8
        ({"spread_ratio": NAN}, ""),
        ({"spread_ratio": 0.6, "strength_ratio": 0.49}, ""),
        # Something else that fires on a part of its tokens; where there is no direction, it cannot be told.
        ({"spread_ratio": 0.6, "cosine": 0.49}, ""),
        ({"spread_ratio": 0.6, "cosine": NAN}, "partial"),
        # Found, because it is strong on that part; or gone.
        ({"spread_ratio": 0.75, "r": 0.85}, ""),
        ({"spread_ratio": 0.6, "mutual": False, "readout": 0.1}, ""),
    ],
)
def test_a_drifted_feature_that_fires_on_a_part_of_its_match_s_tokens_is_partial(known: dict, change: str):
    table = judged(*(feature(side, **({"r": 0.6} | known)) for side in FOUND))
    assert table["change"].tolist() == [change, change]


def test_a_part_of_the_tokens_is_told_from_noise_and_from_another_strength():
    random = np.random.default_rng(0)
    fires = random.random((4000, 4)) < 0.05
    parent, noise = fires * random.exponential(size=(2, 4000, 4))
    # Half of the tokens; other strengths on the same tokens; a third of such; and one that stays.
    parts = [parent[:, 0] * (random.random(4000) < 0.5), noise[:, 1], noise[:, 2] / 3, parent[:, 3]]
    pair = correlate(parent, np.stack(parts, axis=1), progress=False)
    table = add_directions(edge_table(pair, 0.8), pair, [np.eye(4)] * 2)
    known = {"readout": 0.9, "readout_of_own": 0.9, "r_high": 0.9, "rests_on": 99.0}
    verdicts = add_verdicts(table.assign(**known, identified=True, absent=False), RULES)
    assert verdicts["verdict"].tolist()[:4] == ["drifted", "drifted", "drifted", "persists"]
    assert verdicts["change"].tolist() == ["partial", "", "", ""] * 2


PART = {"kind": "merged", "study_verdict": "persists", "r": 0.5, "mutual": False, "readout": 0.1, "r_high": 0.6}
"""One of the parent's features that a feature of the child covers together with others."""


def test_a_part_that_points_another_way_than_its_whole_is_not_found_in_it():
    # A specific feature under the general one that covers its tokens, and a part that points the whole's way.
    table = judged(
        feature(**PART, cosine=0.74),
        feature(**PART, cosine=0.75),
        feature(**PART | {"readout": 0.8}, cosine=0.3),
        feature(**PART | {"r": 0.85}, cosine=0.7),  # its match alone is enough
        feature(**PART | {"r": 0.85}, cosine=0.4),
    )
    assert table["verdict"].tolist() == ["gone", "persists", "drifted", "persists", "drifted"]
    assert table["change"].tolist() == ["", "", "", "", "relocated"]
    assert table["headline"].tolist() == [True, False, False, False, False]
    of_child = PART | {"kind": "split", "study_verdict": "inherited"}
    assert judged(feature("child", **of_child, cosine=0.3))["verdict"].tolist() == ["new"]
    permuted = pd.DataFrame([feature(cosine=0.1)] * 3 + [feature(**PART, cosine=0.1)])
    assert add_verdicts(permuted, RULES)["verdict"].tolist() == ["persists"] * 4


def test_a_whole_is_found_if_its_parts_together_point_its_way():
    # Its own best match is a part with the cosine 0.3; what all parts write counts.
    table = judged(*(feature(**PART | {"kind": "split"}, cosine=0.3, parts_cosine=value) for value in (0.7, 0.9, NAN)))
    assert table["verdict"].tolist() == ["gone", "persists", "persists"]


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
