"""What instruments see of true changes is said as it was measured, and not of those that were not tried."""

from pathlib import Path

from saelineage.plan.instruments import INSTRUMENTS
from saelineage.report.truth_test import MEASURED, sensitivity

BENCHMARKS = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def test_an_instrument_that_was_tried_is_said_to_see_so_many_of_so_many():
    (lost, n_lost), (new, n_new) = MEASURED["anchored"]
    assert sensitivity("anchored").endswith(f"{lost} of {n_lost} that were lost and {new} of {n_new} that are new.")


def test_of_an_instrument_that_was_not_tried_nothing_is_claimed():
    assert "not measured" in sensitivity("own_mixture")


def test_the_figures_are_those_of_the_documentation():
    assert set(MEASURED) <= set(INSTRUMENTS)
    lines = [line for line in BENCHMARKS.read_text().splitlines() if line.startswith("|") and " of " in line]
    for name, seen in MEASURED.items():
        (row,) = (line for line in lines if line.startswith(f"| {name} ") and line.endswith((" yes |", " no |")))
        assert [f"{count} of {n}" in cell for (count, n), cell in zip(seen, row.split("|")[2:4], strict=True)] == [
            True
        ] * 2
