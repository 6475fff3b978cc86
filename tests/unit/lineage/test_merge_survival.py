"""Features along a sweep of merges: sums of pairs, what is found where, and curves by group."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from saelineage.lineage.merge_curves import feature_groups, found_between, origin_groups, survival_curves
from saelineage.lineage.merge_survival import PairedSums

NAN = float("nan")


def sparse(rows: list | np.ndarray) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(np.asarray(rows, np.float32))


def test_r_is_pearson_s_however_the_tokens_are_split():
    random = np.random.default_rng(0)
    before, after = (random.random((40, 6)) * (random.random((40, 6)) < 0.4) for _ in range(2))
    after[:, 0] = 3 * before[:, 0]
    before[:, 1], after[:, 2] = 0, 0
    sums = PairedSums(6)
    for part in (slice(0, 13), slice(13, 40)):
        sums.add(sparse(before[part]), sparse(after[part]))
    r = sums.r()
    assert r[0] == pytest.approx(1)
    assert np.isnan(r[[1, 2]]).all()  # one that never fires on one of the models
    for latent in (3, 4, 5):
        expected = np.corrcoef(before[:, latent].astype(np.float32), after[:, latent].astype(np.float32))[0, 1]
        assert r[latent] == pytest.approx(expected)


def followed() -> pd.DataFrame:
    """Two latents of one parent: the first is found up to t = 0.5, the second nowhere."""
    t = [0.0, 0.5, 1.0]
    first = pd.DataFrame({"model": "lua", "latent": 0, "t": t, "r": [1.0, 0.8, 0.3]})
    return pd.concat([first, pd.DataFrame({"model": "lua", "latent": 1, "t": t, "r": [0.7, NAN, 0.1]})])


def test_a_feature_is_found_from_the_least_to_the_largest_value_at_which_r_is_large_enough():
    bounds = found_between(followed(), "t", 0.8).set_index("latent")
    assert bounds.loc[0, ["found_from", "found_to"]].tolist() == [0.0, 0.5]
    assert bounds.loc[1, ["found_from", "found_to"]].isna().all()


def test_curves_count_each_group_and_an_undefined_r_is_not_found():
    groups = pd.DataFrame(
        {
            "model": "lua",
            "latent": [0, 1, 0],
            "kind": ["all", "all", "identified"],
            "group": ["all", "all", "identified"],
        }
    )
    curves = survival_curves(followed(), groups, ["t"], 0.8)
    found = {(row.kind, row.t): (row.share, row.share_n) for row in curves.itertuples()}
    assert found == {
        ("all", 0.0): (0.5, 2),
        ("all", 0.5): (0.5, 2),
        ("all", 1.0): (0.0, 2),
        ("identified", 0.0): (1.0, 1),
        ("identified", 0.5): (1.0, 1),
        ("identified", 1.0): (0.0, 1),
    }
    assert bool((curves["share_low"] <= curves["share"]).all())


def test_testable_features_are_grouped_by_verdict_corpus_and_kind_of_label():
    edge = pd.DataFrame(
        {
            "side": ["parent", "parent", "parent", "child"],
            "latent": [0, 1, 2, 0],
            "verdict": ["persists", "gone", "untestable", "new"],
            "identified": [True, False, False, True],
        }
    )
    labels = pd.DataFrame({"latent": [1, 2], "kind": ["syntax", "token"]})
    corpora = np.array(["lua", "stories", "lua"])
    groups = pd.concat(feature_groups("lua", edge, labels, corpora))
    found = {kind: dict(zip(rows["latent"], rows["group"], strict=True)) for kind, rows in groups.groupby("kind")}
    assert found == {
        "all": {0: "all", 1: "all"},
        "identified": {0: "identified"},
        "verdict": {0: "persists", 1: "gone"},
        "corpus": {0: "lua", 1: "stories"},
        "label": {1: "syntax"},
    }


def test_features_are_grouped_by_what_they_are_since_the_model_before():
    edge = pd.DataFrame(
        {
            "side": ["parent", "child", "child", "child"],
            "latent": [0, 0, 1, 2],
            "verdict": ["persists", "inherited", "new", "untestable"],
            "identified": [True, None, True, True],
        }
    )
    groups = pd.concat(origin_groups("lua", "base", edge))
    assert groups[["latent", "kind", "group"]].to_numpy().tolist() == [
        [0, "since base", "inherited"],
        [1, "since base", "new"],
        [1, "since base, identified", "new"],
    ]
