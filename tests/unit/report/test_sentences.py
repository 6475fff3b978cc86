"""The report's sentences on shares, floors, nulls and SAEs, and its format of numbers."""

import pandas as pd

from saelineage.plan.instruments import INSTRUMENTS
from saelineage.report.sentences import (
    answer,
    count,
    described,
    instrument_check,
    instrument_warnings,
    interval,
    number,
    percent,
    sae_warnings,
    signed,
)
from saelineage.report.tables import sae_table
from tests.unit.report.test_tables import a_null, comparison, sae_metrics, summary

SEED0 = {"a": "seed0", "b": "seed0", "base": "seed0"}


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return text.replace("\u00a0", " ")


def sentences(*found: dict, **changes) -> list[str]:
    """The answer, with ordinary spaces."""
    return [plain(sentence) for sentence in answer(summary(*found, **changes))]


def test_the_answer_gives_the_share_of_every_edge_with_its_baselines():
    leading, edge, *_ = sentences(comparison(0.25, 0.5), comparison(0.875, instrument="independent"))
    assert "leading instrument, anchored" in leading
    share, _, baselines = edge.partition(". Baselines: ")
    assert share == "From base to merged, 25.0 % [15.0 to 35.0 %] of 8 testable features persist"
    floor, seed_floor = baselines.split("; ")
    assert floor == "50.0 % [40.0 to 60.0 %] persist when the model is unchanged (floor)"
    assert seed_floor.startswith("37.5 % [27.5 to 47.5 %]")
    assert seed_floor.endswith("(seed floor).")


def test_baselines_that_do_not_exist_are_not_given():
    independent = sentences(comparison(0.25, 0.5, instrument="independent"), leading="independent")
    assert "50.0 % [40.0 to 60.0 %] persist between two independent SAEs of base (floor)." in independent[1]
    no_seed_floor = sentences(comparison(0.25, 0.5, seed_floor=None))
    assert "50.0 %" in no_seed_floor[1]
    assert "no seed floor" in no_seed_floor[1]
    no_floor = sentences(comparison(0.25, None))
    assert no_floor[1].endswith("No floor was measured for base.")
    assert "second SAE seed" in no_floor[-2]
    assert sentences(comparison(None))[1] == "From base to merged, no feature is testable."
    assert answer(summary()) == ["The lineage has no edge, so there is nothing to compare."]


def test_the_answer_counts_the_edges_below_at_and_without_a_floor():
    below, at_floor = comparison(relative=[0.4, 0.6]), comparison(relative=[0.9, 1.1])
    counts = sentences(below, below, at_floor, comparison(floor=None))[-2]
    assert counts.startswith("Of 4 edges, ")
    assert all(part in counts for part in ("2 are below the floor", "1 is at the floor", "1 cannot be compared"))


def test_the_check_gives_the_lowest_floor_and_the_largest_null():
    high = comparison(0.5, 0.96, nulls={"shifted": a_null(0.01), "reinitialised (r)": a_null(0.04)})
    low = comparison(0.5, 0.95, parent="left", nulls={"shifted": a_null(0.02), "control (twin)": a_null(0.5)})
    other = comparison(0.5, 0.1, instrument="independent")
    check = plain(instrument_check(summary(high, low, other)))
    assert check.startswith("The instrument passes its check.")
    assert "95.0 % (left → merged)" in check
    assert "4.0 % (reinitialised (r), base → merged)" in check
    assert instrument_warnings(summary(high, low, other)) == []
    unmeasured = instrument_check(summary(comparison(0.5, None, nulls={})))
    assert unmeasured == "The instrument could not be checked. No floor was measured. No null was computed."


def test_one_edge_out_of_bounds_fails_the_check_and_is_warned_of():
    good, poor = comparison(0.5, 0.96), comparison(0.5, 0.94)
    assert instrument_check(summary(good, poor)).startswith("The instrument fails its check.")
    (warning,) = instrument_warnings(summary(good, poor))
    assert plain(warning).startswith("Under anchored, the floor is below 95 % on 1 of 2 edges.")
    chance = summary(comparison(0.5, 0.96, nulls={"shifted": a_null(0.06)}))
    assert instrument_check(chance).startswith("The instrument fails its check.")
    (warning,) = instrument_warnings(chance)
    assert plain(warning).startswith("Under anchored, a null is above 5 % on 1 of 1 edges.")


def test_every_instrument_is_described():
    names = [*INSTRUMENTS, "anchored@20480", "anchored to left alone"]
    found = described(pd.DataFrame({"instrument": names}))
    assert list(found) == names
    assert all(INSTRUMENTS[name].floor in found[name] for name in INSTRUMENTS)
    assert "20,480 tokens" in found["anchored@20480"]


def test_poor_dead_and_unequal_saes_that_verdicts_rest_on_are_warned_of():
    saes = sae_table([sae_metrics("a", fvu=0.1), sae_metrics("b", fvu=0.3, dead_fraction=0.5)])
    assert [text.split()[0] for text in sae_warnings(saes, SEED0)] == ["b.seed0", "50.0", "The"]
    assert sae_warnings(saes, SEED0 | {"b": "from_base"}) == []
    assert sae_warnings(sae_table([sae_metrics("a"), sae_metrics("b")]), SEED0) == []
    assert sae_warnings(sae_table([sae_metrics(fvu=None)]), SEED0) == []


def test_numbers_are_written_plainly():
    assert (number(0.12345), number(None), number(float("nan"))) == ("0.123", "not measured", "not measured")
    assert (count(2048), count(None)) == ("2,048", "not measured")
    assert (percent(0.0205), percent(None)) == ("2.1\u00a0%", "not measured")
    assert (interval([0.0152, 0.0276]), interval(None)) == ("1.5 to 2.8\u00a0%", "")
    assert interval((float("nan"), float("nan"))) == ""
    assert (signed(0.25, 2), signed(-0.25, 2), signed(float("nan"))) == ("+0.25", "-0.25", "not measured")
    assert count(pd.NA) == "not measured"
