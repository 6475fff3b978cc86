"""The best point of a sweep, by each criterion, and a merge that takes it."""

import pandas as pd
import pytest

from saelineage.errors import InputError
from saelineage.models.merging.sweeps import best_settings, mark_best
from saelineage.plan.merges import sweeps_behind, with_best
from tests.merges import settings

ROWS = [
    # model, t, corpus, loss, accuracy, barrier
    (None, 0.0, "lua", 1.0, 0.2, 0.0),
    (None, 0.0, "stories", 5.0, 0.2, 0.3),
    (None, 0.5, "lua", 2.0, 0.4, 0.2),
    (None, 0.5, "stories", 3.0, 0.2, 0.2),
    (None, 1.0, "lua", 4.0, 0.1, 0.1),
    (None, 1.0, "stories", 2.0, 0.6, 0.0),
    ("base", None, "lua", 0.0, 1.0, None),
]
TABLE = pd.DataFrame(ROWS, columns=["model", "t", "corpus", "loss", "accuracy", "barrier"])


@pytest.mark.parametrize(("best_by", "t"), [("mean_loss", 0.5), ("mean_accuracy", 1.0), ("largest_barrier", 1.0)])
def test_the_best_merge_is_marked_and_the_base_cannot_be_it(best_by, t, tmp_path):
    marked = mark_best(TABLE, ["t"], best_by)
    assert marked.loc[marked["is_best"], "t"].tolist() == [t, t]
    marked.to_parquet(tmp_path / "sweep.parquet")
    assert best_settings(tmp_path / "sweep.parquet", ["t"]) == {"t": t}


def test_of_equally_good_merges_the_first_is_best_also_of_two_settings():
    grid = [(None, scale, density, "lua", 1.0) for scale in (0.5, 1.0) for density in (0.1, 0.2)]
    table = pd.DataFrame(grid, columns=["model", "lambda", "density", "corpus", "loss"])
    marked = mark_best(table, ["lambda", "density"], "mean_loss")
    assert marked["is_best"].tolist() == [True, False, False, False]


def test_a_merge_takes_the_best_value_of_a_sweep():
    merge = settings(["a", "b"], t={"from_sweep": "fine"})
    assert sweeps_behind(merge) == {"t": "fine"}
    assert with_best(merge, {"fine": {"t": 0.3}})["t"] == 0.3
    assert sweeps_behind(settings(["a", "b"], method="ties", density=0.3)) == {}


def test_a_merge_whose_loss_is_not_finite_cannot_be_best():
    table = TABLE.assign(loss=TABLE["loss"].where(TABLE["t"] != 0.5, float("nan")))
    marked = mark_best(table, ["t"], "mean_loss")
    assert marked.loc[marked["is_best"], "t"].tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="must be finite for some merge"):
        mark_best(table.assign(barrier=float("nan")), ["t"], "largest_barrier")
