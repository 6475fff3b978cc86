"""Verdicts on the latents of a crosscoder, from their scaling."""

import numpy as np
import pandas as pd

from saelineage.lineage.exclusivity import ExclusivityRules, add_exclusivity, exclusivity_curve

COLUMNS = (
    *("n_firings", "relative_norm", "cosine", "writer", "nu_error", "nu_reconstruction"),
    *("own_ratio_error", "own_ratio_reconstruction"),
)
NAN = float("nan")
LATENTS = {
    "persists": (100, 0.5, 0.99, "child", 0.95, 0.9, 0.97, 1.0),
    "persists, half as strong": (100, 0.75, 0.95, "child", 0.5, 0.5, 0.5, 0.5),
    "persists, by other latents": (100, 0.9, 0.1, "child", 0.05, 0.8, 0.02, 0.0),
    "rotated": (100, 0.5, 0.1, "child", 0.1, 0.1, 0.9, 1.1),
    "rotated, and its direction is there": (100, 0.5, 0.4, "parent", 0.4, 0.7, 0.9, 0.9),
    "emerges": (100, 0.97, NAN, "child", 0.0, 0.1, 0.0, 0.0),
    "emerges, and the parent's decoder makes up for it": (100, 0.7, 0.2, "child", 0.1, 0.2, 0.5, 0.05),
    "disappears": (20, 0.05, -0.2, "parent", -0.1, 0.49, 0.19, 0.8),
    "untestable, too few": (19, 0.97, 0.0, "child", 0.0, 0.0, 0.0, 0.0),
    "untestable, explains nothing": (100, 0.5, 1.0, "child", NAN, 1.0, 1.0, 1.0),
}


def table() -> pd.DataFrame:
    return pd.DataFrame(list(LATENTS.values()), columns=list(COLUMNS))


def test_each_latent_gets_its_verdict():
    assert add_exclusivity(table())["verdict"].tolist() == [name.partition(",")[0] for name in LATENTS]


def test_bounds_are_rules():
    strict = ExclusivityRules(nu_error_below=0.05, min_firings=10, rotated_below=0.05)
    verdicts = dict(zip(LATENTS, add_exclusivity(table(), strict)["verdict"], strict=True))
    assert verdicts["emerges, and the parent's decoder makes up for it"] == "persists"
    assert verdicts["untestable, too few"] == "emerges"
    assert verdicts["rotated"] == "persists"


def test_norm_bins_are_beside():
    by_norms = dict(zip(LATENTS, add_exclusivity(table())["by_norms"], strict=True))
    assert by_norms["emerges"] == by_norms["persists, by other latents"] == "emerges"
    assert by_norms["disappears"] == "disappears"
    assert by_norms["rotated"] == "persists"
    assert by_norms["emerges, and the parent's decoder makes up for it"] == ""


def test_the_curve_counts_latents_below_each_threshold_by_writer():
    curve = exclusivity_curve(table(), [0.01, 0.15, 0.5])
    # Eight are testable. Below 0.15: the rotated one too, because nu alone cannot tell it. Below 0.5 also the other
    # emerging one and, of the parent, the one that disappears.
    assert curve.to_dict("list") == {
        "threshold": [0.01, 0.15, 0.5],
        "parent_only": [0, 0, 1],
        "child_only": [0, 2, 3],
        "n_testable": [8, 8, 8],
    }


def test_thresholds_of_the_curve_hold_the_bounds_of_verdicts():
    assert {0.02, 0.2, 0.5, 1.0} <= set(exclusivity_curve(table())["threshold"])


def test_verdicts_leave_the_table_as_it_was():
    before = table()
    add_exclusivity(before)
    assert before.equals(table())
    assert np.isnan(before["cosine"][5])
