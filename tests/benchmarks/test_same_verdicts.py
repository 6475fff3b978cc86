"""The comparison of verdicts of two runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.same_verdicts import agree, compare_runs, compare_tables

TABLE = pd.DataFrame(
    {
        "side": ["parent"] * 3 + ["child"],
        "latent": [0, 1, 2, 0],
        "r": [0.9, 0.70005, np.nan, 0.2],
        "verdict": ["persists", "persists", "untestable", "new"],
    }
)


def changed(place: int, **values: object) -> pd.DataFrame:
    table = TABLE.copy()
    for name, value in values.items():
        table.loc[place, name] = value
    return table


def test_equal_tables_agree_in_any_order():
    edge = compare_tables(TABLE, TABLE.iloc[::-1], 0.7)
    assert edge == {"n_features": 4, "largest_r_difference": 0, "n_differing_near_threshold": 0, "differing": []}
    assert agree({"edge": edge})


def test_a_verdict_may_differ_only_near_the_threshold():
    near = compare_tables(TABLE, changed(1, verdict="gone"), 0.7)
    assert (near["n_differing_near_threshold"], near["differing"]) == (1, [])
    far = compare_tables(TABLE, changed(0, verdict="gone"), 0.7)
    assert far["differing"] == ["parent 0"]
    assert (agree({"edge": near}), agree({"edge": far})) == (True, False)


@pytest.mark.parametrize(("difference", "agrees"), [(9e-6, True), (2e-5, False)])
def test_correlations_agree_within_their_tolerance(difference, agrees):
    edge = compare_tables(TABLE, changed(3, r=0.2 + difference), 0.7)
    assert edge["largest_r_difference"] == pytest.approx(difference)
    assert agree({"edge": edge}) == agrees


def test_other_features_and_missing_correlations_are_refused():
    with pytest.raises(ValueError, match="have 4 and 3"):
        compare_tables(TABLE, TABLE[:3], 0.7)
    with pytest.raises(ValueError, match="r must be missing for the same features"):
        compare_tables(TABLE, changed(2, r=0.5), 0.7)


def test_runs_are_compared_edge_by_edge(tmp_path: Path):
    for run in "ab":
        folder = tmp_path / run / "lineage/mlp/edges"
        folder.mkdir(parents=True)
        TABLE.to_parquet(folder / "x__y.parquet")
        (folder.parent / "summary.json").write_text(json.dumps({"threshold": 0.7}))
    assert agree(compare_runs(tmp_path / "a", tmp_path / "b"))
    (tmp_path / "b/lineage/mlp/edges/x__y.parquet").rename(tmp_path / "b/lineage/mlp/edges/y__z.parquet")
    with pytest.raises(ValueError, match="verdicts of the same edges"):
        compare_runs(tmp_path / "a", tmp_path / "b")
