"""The verdicts of a crosscoder on the features of SAEs."""

import numpy as np
import pandas as pd

from saelineage.lineage.crosstable import (
    UNMATCHED,
    cross_counts,
    crosscoder_verdicts,
    is_found_by_crosscoder,
    matches_of_features,
    seed_counts,
)
from tests.unit.lineage.pairs import NAN, correlation


def test_a_feature_takes_the_verdict_of_the_latent_that_it_fires_with():
    # The last feature is untestable.
    r = [[0.9, 0.1, 0.2, NAN], [0.2, 0.7, 0.3, NAN], [0.1, 0.1, 0.95, NAN], [0.1, 0.1, 0.1, NAN]]
    matches = matches_of_features([correlation(r, ("lineage.seed0", "lua.seed1"))])
    assert matches[["model", "sae"]].drop_duplicates().to_numpy().tolist() == [["lua", "seed1"]]
    assert matches["match"].tolist() == [0, 1, 2, -1]
    exclusivity = pd.DataFrame({"latent": [0, 1, 2, 3], "verdict": ["persists", "emerges", "rotated", "untestable"]})
    verdicts = crosscoder_verdicts(matches, exclusivity, 0.8)
    assert verdicts.tolist() == ["persists", UNMATCHED, "rotated", UNMATCHED]
    assert crosscoder_verdicts(matches, exclusivity, 0.7)[1] == "emerges"


def test_latents_of_the_first_seed_are_counted_by_whether_another_has_them_with_the_same_verdict():
    r = [[0.9, 0.1, 0.2, 0.1], [0.2, 0.85, 0.3, 0.1], [0.1, 0.1, 0.95, 0.1], [0.1, 0.1, 0.1, 0.3]]
    names = ("lineage.seed0", "base.seed0")  # an SAE may have the name of the seed
    matches = matches_of_features([correlation(r, ("lineage.seed1", name)) for name in names])
    first, other = (
        pd.DataFrame({"edge": "base__lua", "role": "edge", "latent": range(4), "verdict": verdicts})
        for verdicts in (
            ["emerges", "emerges", "persists", "persists"],
            ["emerges", "persists", "persists", "persists"],
        )
    )
    found = seed_counts("lineage", {"seed0": first, "seed1": other}, {"seed1": matches}, 0.8)
    assert {(row["edge"], row["seed"]) for row in found} == {("base__lua", "seed1")}
    counts = {row["verdict"]: (row["n"], row["matched"], row["same"]) for row in found}
    assert (counts["emerges"], counts["persists"], counts["rotated"]) == ((2, 2, 1), (2, 1, 1), (0, 0, 0))
    assert seed_counts("lineage", {"seed0": first}, {}, 0.8) == []


def test_a_crosscoder_that_gives_a_feature_to_the_other_model_alone_has_no_say():
    verdicts = np.array(["persists", "rotated", "disappears", "emerges", "untestable", UNMATCHED])
    of_parent, of_child = (is_found_by_crosscoder(verdicts, side).tolist() for side in (0, 1))
    assert of_parent == ["persists", "persists", "disappears", "untestable", "untestable", "untestable"]
    assert of_child == ["persists", "persists", "untestable", "disappears", "untestable", "untestable"]


def test_features_are_counted_by_both_verdicts():
    table = pd.DataFrame(
        {
            "side": ["parent"] * 3 + ["child"] * 2,
            "verdict": ["persists", "persists", "gone", "new", "inherited"],
            "crosscoder": ["persists", UNMATCHED, "disappears", "emerges", "persists"],
            "identified": [True, False, True, True, False],
        }
    )
    counts = {(row["side"], row["group"], row["verdict"]): row["crosscoder"] for row in cross_counts(table)}
    assert len(counts) == 16
    assert counts["parent", "all", "persists"] == {
        **{"persists": 1, "rotated": 0, "emerges": 0, "disappears": 0, "untestable": 0},
        UNMATCHED: 1,
    }
    assert counts["parent", "identified", "persists"][UNMATCHED] == 0
    assert counts["child", "identified", "new"]["emerges"] == 1
    assert sum(counts["child", "all", "drifted"].values()) == 0
