"""The report's sentences on verdicts, controls, warnings and SAEs, and its format of numbers."""

import pandas as pd

from saelineage.lineage.evidence import ALL, IDENTIFIED
from saelineage.plan.instruments import INSTRUMENTS
from saelineage.report.sentences import (
    answer,
    count,
    described,
    instrument_check,
    instrument_warnings,
    interval,
    number,
    over_trainings,
    percent,
    sae_warnings,
    signed,
)
from saelineage.report.tables import sae_table
from saelineage.report.truth_test import sensitivity
from tests.unit.report.test_tables import COUNTS, KNOWN, a_control, a_share, comparison, group, sae_metrics, summary

SEED0 = {"a": "seed0", "b": "seed0", "base": "seed0"}


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return text.replace("\u00a0", " ")


def sentences(*found: dict, **changes) -> list[str]:
    """The answer, with ordinary spaces."""
    return [plain(sentence) for sentence in answer(summary(*found, **changes))]


def with_counts(found: dict, name: str, n: int, **counts: int) -> dict:
    """A summary in which a group of the only edge has other counts of the parent's features, and a number of them."""
    (edge,) = found["edges"]
    edge["groups"][name] |= a_share("persist_share", counts["persists"] / n if n else None, n)
    edge["groups"][name] |= {"parent": COUNTS[name]["parent"] | counts}
    return found


def test_the_answer_gives_the_verdicts_on_identified_features_first_and_then_on_all():
    edge, _ = sentences(comparison(0.25, 0.5), comparison(0.875, instrument="independent"))
    of_parent, of_child, of_all = edge.split(". ")
    assert of_parent == (
        "From base to merged: of 4 identified features of base, 2 persist, 1 has drifted and 1 is gone "
        "(50.0 % [40.0 to 60.0 %] found; 96.0 % if nothing changes)"
    )
    assert of_child == "Of 6 identified features of merged, 3 are inherited, 1 has drifted and 2 are new"
    assert of_all == (
        "For comparison, of all 8 testable features of base, 2 persist, 1 has drifted and 5 are gone "
        "(25.0 % [15.0 to 35.0 %] found; 50.0 % if nothing changes)."
    )


def test_every_edge_has_its_own_sentences_in_order():
    first, second, check = sentences(comparison(), comparison(parent="left", child="right"))
    assert first.startswith("From base to merged: of 4 identified features of base, ")
    assert second.startswith("From left to right: of 4 identified features of left, ")
    assert check.startswith("All verdicts are those of the leading instrument, anchored.")


def test_without_other_seeds_the_answer_is_of_all_features_and_says_so():
    edge, _ = sentences(comparison(0.25, 0.5, identified=None))
    assert edge == (
        "From base to merged: of all 8 testable features of base, 2 persist, 1 has drifted and 5 are gone "
        "(25.0 % [15.0 to 35.0 %] found; 50.0 % if nothing changes). Which of them are identified is not known."
    )


def test_what_cannot_be_told_is_counted_and_one_feature_is_singular():
    one = with_counts(summary(comparison()), IDENTIFIED, 2, persists=1, drifted=0, gone=0)
    (edge, _) = map(plain, answer(one))
    assert (
        "of 2 identified features of base, 1 persists, 0 have drifted, 0 are gone and 1 cannot be told (50.0 %" in edge
    )
    many = with_counts(
        summary(comparison(identified=None)), ALL, 1000 + 200 + 30 + 4, persists=1000, drifted=200, gone=30
    )
    (edge, _) = map(plain, answer(many))
    assert (
        "of all 1,234 testable features of base, 1,000 persist, 200 have drifted, 30 are gone and 4 cannot be" in edge
    )
    of_child = summary(comparison(identified=KNOWN | a_share("inherited_share", 0.25, 9)))
    (edge, _) = map(plain, answer(of_child))
    assert (
        "Of 9 identified features of merged, 3 are inherited, 1 has drifted, 2 are new and 3 cannot be told. " in edge
    )


def test_without_a_feature_there_is_no_share():
    none = with_counts(summary(comparison()), IDENTIFIED, 0, persists=0, drifted=0, gone=0)
    (edge, _) = map(plain, answer(none))
    assert "of 0 identified features of base, 0 persist, 0 have drifted and 0 are gone. Of 6 identified" in edge
    assert sentences(comparison(None))[0] == "From base to merged, no feature is testable."
    assert answer(summary()) == ["The lineage has no edge, so there is nothing to compare."]


def test_controls_that_were_not_measured_are_named_so():
    unmeasured = group(0.5, None, n=4) | a_share("inherited_share", 0.5, 6)
    edge, check = sentences(comparison(0.25, None, controls={}, identified=unmeasured))
    assert "(50.0 % [40.0 to 60.0 %] found; not measured for the unchanged model). Of 6" in edge
    assert "(25.0 % [15.0 to 35.0 %] found; not measured for the unchanged model)." in edge
    assert check == (
        "All verdicts are those of the leading instrument, anchored. Its no-change control on identified features was "
        f"not measured. No random control was computed. {sensitivity('anchored')}"
    )
    # Of edges without identified features no control of theirs is known, whatever that of all features is.
    assert "on identified features was not measured" in instrument_check(summary(comparison(identified=None)))


def kept(no_change: float) -> dict:
    """The shares of identified features, of which that many persist where the model is unchanged."""
    return KNOWN | a_share("no_change_share", no_change, 4)


def test_the_check_gives_the_lowest_no_change_control_and_the_largest_random_one():
    controls = {"shifted": a_control(0.01), "reinitialised (r)": a_control(0.04)}
    high = comparison(0.5, 0.5, controls=controls, identified=kept(0.96))
    controls = {"shifted": a_control(0.02), "control (twin)": a_control(0.5)}
    low = comparison(0.5, 0.5, parent="left", controls=controls, identified=kept(0.95))
    other = comparison(0.5, 0.1, instrument="independent", identified=kept(0.1))
    found = summary(high, low, other)
    assert plain(instrument_check(found)) == (
        "All verdicts are those of the leading instrument, anchored. Where the model is unchanged, it keeps at least "
        "95.0 % of identified features (left → merged); 95 % are needed to read losses. At most 4.0 % of all "
        "features match in a random control (reinitialised (r), base → merged); 5 % are allowed. "
        f"{sensitivity('anchored')}"
    )
    assert instrument_warnings(found) == []


def warned(*found: dict, **changes) -> list[str]:
    """The warnings about what cannot be read, with ordinary spaces."""
    return [plain(warning) for warning in instrument_warnings(summary(*found, **changes))]


def test_edges_on_which_nothing_is_known_to_be_identified_are_warned_of():
    (warning,) = warned(comparison(identified=None), comparison(parent="left"))
    assert warning.startswith("On 1 of 2 edges it is not known which features are identified")
    assert warning.endswith("Set saes.seeds to three.")


def test_one_edge_on_which_the_instrument_loses_identified_features_is_warned_of():
    (warning,) = warned(comparison(identified=kept(0.96)), comparison(parent="left", identified=kept(0.94)))
    assert warning.startswith("Under anchored, fewer than 95 % of identified features persist where the model is")
    assert "on 1 of 2 edges" in warning
    assert "saes.anchored" in warning
    assert warned(comparison(identified=group(0.5, None, n=4))) == []  # not known
    assert warned(comparison(0.5, 0.1)) == []  # of all features, few persist under any instrument


def test_one_edge_with_matches_by_chance_is_warned_of():
    chance, good = {"shifted": a_control(0.06)}, {"shifted": a_control(0.05), "control (twin)": a_control(0.9)}
    (warning,) = warned(comparison(controls=chance), comparison(parent="left", controls=good))
    assert warning.startswith("Under anchored, a random control is above 5 % on 1 of 2 edges.")
    assert warned(comparison(controls={})) == []


def test_an_instrument_that_sees_nothing_new_is_warned_of():
    (warning,) = warned(comparison(instrument="frozen"), leading="frozen")
    assert warning == "frozen cannot see new features: the child's SAE is not trained."


def test_models_that_share_no_basis_are_warned_of():
    found = summary(comparison(), comparison(parent="left"))
    found["edges"][1]["shares_basis"] = False
    (warning,) = instrument_warnings(found)
    assert warning.startswith("The decoder directions of left → merged are unrelated")
    found["edges"][1]["kinds"]["1:1"] = 0  # nothing to compare directions of
    assert instrument_warnings(found) == []


def test_models_that_share_no_scale_are_warned_of():
    found = summary(comparison(), comparison(parent="left"))
    found["edges"][0]["shares_scale"] = False
    found["edges"][1]["shares_scale"] = None  # not measured
    (warning,) = instrument_warnings(found)
    assert warning.startswith("Features of base → merged that fire together differ in strength altogether")


def test_every_instrument_is_described():
    names = [*INSTRUMENTS, "anchored@20480", "anchored to left alone"]
    found = described(pd.DataFrame({"instrument": names}))
    assert list(found) == names
    assert all(f"No-change control: {INSTRUMENTS[name].no_change}." in found[name] for name in INSTRUMENTS)
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


def test_shares_over_trainings_are_said_of_edges_with_twins():
    found = {"n": 3, "mean": 0.5, "least": 0.4, "largest": 0.6, "interval": [0.25, 0.75]}
    edges = [
        {"parent": "base", "child": "lua", "over_trainings": {"all": found, "identified": found | {"n": 1}}},
        {"parent": "base", "child": "c", "over_trainings": {"all": found | {"n": 2, "interval": None}}},
        {"parent": "lua", "child": "merged"},
    ]
    three, two = over_trainings({"edges": edges})
    for figure in ("3 trainings of lua", f"{percent(0.4)} to {percent(0.6)}", f"{percent(0.25)} to {percent(0.75)}"):
        assert figure in three
    assert "two are too few" in two
