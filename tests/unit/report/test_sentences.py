"""What the report says of shares, floors, nulls and SAEs, and how it writes numbers."""

import pandas as pd

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


def test_the_answer_names_share_floor_and_seed_floor_of_every_edge():
    found = sentences(comparison(0.25, 0.5))
    assert found[0] == "All shares here are those of this run's leading instrument, anchored."
    assert found[1] == (
        "From base to merged 25.0 % [15.0 to 35.0 %] of 8 testable features persist; where nothing changed "
        "50.0 % [40.0 to 60.0 %] do, and two independent SAEs of base agree on 37.5 % [27.5 to 47.5 %]."
    )


def test_independent_saes_have_one_floor():
    found = sentences(comparison(0.25, 0.5, instrument="independent"), leading="independent")
    assert found[1].endswith("where nothing changed, between two independent SAEs of base, 50.0 % [40.0 to 60.0 %] do.")


def test_the_answer_is_that_of_the_leading_instrument_alone():
    found = sentences(comparison(0.25), comparison(0.875, instrument="independent"))
    assert not any("87.5 %" in sentence for sentence in found)


def test_the_answer_counts_the_edges_below_at_and_without_a_floor():
    below, at_floor = comparison(relative=[0.4, 0.6]), comparison(relative=[0.9, 1.1])
    found = sentences(below, below, at_floor, comparison(floor=None))
    assert found[-2] == (
        "Of 4 edges, 2 lie below the floor, where features are lost; 1 lies at the floor, with no loss beyond the "
        "instrument's own; 1 lies where no floor can be held against the share."
    )


def test_an_answer_without_a_second_seed_says_so():
    found = sentences(comparison(0.25, None))
    assert found[1].endswith("testable features persist; no floor was measured for base.")
    assert found[-2].startswith("Without a second SAE seed there is no floor")


def test_a_floor_without_a_second_seed_still_stands():
    found = sentences(comparison(0.25, 0.5, seed_floor=None))
    assert found[1].endswith("where nothing changed 50.0 % [40.0 to 60.0 %] do, and base has no two independent SAEs.")


def test_an_edge_without_testable_features_has_a_sentence():
    assert sentences(comparison(None))[1] == "From base to merged no feature is testable."


def test_a_lineage_without_edges_has_an_answer():
    assert answer(summary()) == ["The lineage has no edge, so there is nothing to compare."]


def test_the_check_names_the_lowest_floor_and_the_largest_null():
    high = comparison(0.5, 0.96, nulls={"shifted": a_null(0.01), "reinitialised (r)": a_null(0.04)})
    low = comparison(0.5, 0.95, parent="left", nulls={"shifted": a_null(0.02), "control (twin)": a_null(0.5)})
    assert plain(instrument_check(summary(high, low))) == (
        "The instrument passes its check. Where nothing changed it finds 95.0 % again at worst (left → merged; 95 % or "
        "more is asked for); where nothing can persist it finds 4.0 % at most (reinitialised (r), base → merged; "
        "5 % or less is asked for)."
    )
    assert instrument_warnings(summary(high, low)) == []


def test_the_check_fails_with_one_edge():
    good, poor = comparison(0.5, 0.96), comparison(0.5, 0.94)
    assert instrument_check(summary(good, poor)).startswith("The instrument fails its check.")
    assert "on 1 of 2 edges: the instrument loses features" in instrument_warnings(summary(good, poor))[0]


def test_a_null_above_its_bound_is_warned_of():
    found = summary(comparison(0.5, 0.96, nulls={"shifted": a_null(0.06)}))
    assert instrument_check(found).startswith("The instrument fails its check.")
    assert [text.split(":")[1].strip() for text in instrument_warnings(found)] == [
        "as many features match without any descent, so shares may be too high by that much."
    ]


def test_a_check_without_floor_or_null_was_not_made():
    found = instrument_check(summary(comparison(0.5, None, nulls={})))
    assert found == "The instrument could not be checked. No floor was measured; no null was computed."


def test_another_instrument_is_not_what_is_checked():
    found = summary(comparison(0.5, 0.96), comparison(0.5, 0.1, instrument="independent"))
    assert instrument_check(found).startswith("The instrument passes its check.")


def test_every_instrument_has_words():
    names = ["frozen", "anchored@20480", "anchored to left alone"]
    found = described(pd.DataFrame({"instrument": names}))
    assert list(found) == names
    assert "trained on 20,480 tokens" in found["anchored@20480"]


def test_poor_dead_and_unequal_saes_are_warned_of():
    saes = sae_table([sae_metrics("a", fvu=0.1), sae_metrics("b", fvu=0.3, dead_fraction=0.5)])
    warnings = sae_warnings(saes, SEED0)
    assert [text.split()[0] for text in warnings] == ["b.seed0", "50.0", "The"]


def test_good_saes_are_not_warned_of():
    assert sae_warnings(sae_table([sae_metrics("a"), sae_metrics("b")]), SEED0) == []


def test_saes_that_no_verdict_rests_on_are_not_warned_of():
    assert sae_warnings(sae_table([sae_metrics("a", fvu=0.9)]), {"a": "from_base", "b": "seed0"}) == []


def test_an_fvu_that_is_undefined_is_not_warned_of():
    assert sae_warnings(sae_table([sae_metrics(fvu=None)]), SEED0) == []


def test_numbers_are_written_plainly():
    assert (number(0.12345), number(None), number(float("nan"))) == ("0.123", "not measured", "not measured")
    assert (count(2048), count(None)) == ("2,048", "not measured")
    assert (percent(0.0205), percent(None)) == ("2.1\u00a0%", "not measured")
    assert (interval([0.0152, 0.0276]), interval(None)) == ("1.5 to 2.8\u00a0%", "")
    assert interval((float("nan"), float("nan"))) == ""
    assert (signed(0.25, 2), signed(-0.25, 2), signed(float("nan"))) == ("+0.25", "-0.25", "not measured")
    assert count(pd.NA) == "not measured"
