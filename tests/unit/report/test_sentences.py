"""The report's sentences on verdicts, controls, warnings and SAEs, and its format of numbers."""

import pandas as pd

from saelineage.lineage.evidence import ALL, IDENTIFIED
from saelineage.plan.instruments import INSTRUMENTS
from saelineage.report.sentences import (
    agreement_of_effects,
    answer,
    checks,
    count,
    described,
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


def words(*found: dict, **changes) -> list[str]:
    """The answer on each edge, with ordinary spaces."""
    return [plain(edge["words"]) for edge in answer(summary(*found, **changes))]


def controls_of(found: dict) -> list[str]:
    """The checks, with ordinary spaces."""
    return [plain(sentence) for sentence in checks(found)]


def with_counts(found: dict, name: str, n: int, **counts: int) -> dict:
    """A summary in which a group of the only edge has other counts of the parent's features, and a number of them."""
    (edge,) = found["edges"]
    edge["groups"][name] |= a_share("persist_share", counts["persists"] / n if n else None, n)
    edge["groups"][name] |= {"parent": COUNTS[name]["parent"] | counts}
    return found


def test_the_answer_counts_identified_features_and_those_that_are_sure():
    (edge,) = words(comparison(0.25, 0.5), comparison(0.875, instrument="independent"))
    assert edge == (
        "of 4 identified features of base, 2 persist, 1 has drifted but can be read out and 1 is gone; of 6 "
        "identified features of merged, 2 are new. 1 loss and 2 new ones are sure."
    )


def test_every_edge_has_its_own_words_in_order():
    first, second = answer(summary(comparison(), comparison(parent="left", child="right")))
    assert (first["edge"], second["edge"]) == ("base → merged", "left → right")
    assert second["words"].startswith("of 4 identified features of left, ")


def test_without_other_seeds_the_answer_is_of_all_features_and_says_so():
    (edge,) = words(comparison(0.25, 0.5, identified=None))
    assert edge.startswith("of 8 testable features of base, 2 persist, 1 has drifted but can be read out and 5 are")
    assert edge.endswith("new. Which of them are identified is not known.")


def test_what_cannot_be_told_is_counted_and_one_feature_is_singular():
    one = with_counts(summary(comparison()), IDENTIFIED, 2, persists=1, drifted=0, gone=0)
    (edge,) = (plain(edge["words"]) for edge in answer(one))
    assert "of base, 1 persists, 0 have drifted but can be read out, 0 are gone and 1 cannot be told; of" in edge
    many = with_counts(
        summary(comparison(identified=None)), ALL, 1000 + 200 + 30 + 4, persists=1000, drifted=200, gone=30
    )
    (edge,) = (plain(edge["words"]) for edge in answer(many))
    assert "of 1,234 testable features of base, 1,000 persist, 200 have drifted but can be" in edge
    assert "30 are gone and 4 cannot be told" in edge


def test_without_a_feature_there_is_no_answer():
    none = with_counts(summary(comparison()), IDENTIFIED, 0, persists=0, drifted=0, gone=0)
    (edge,) = (plain(edge["words"]) for edge in answer(none))
    assert "of 0 identified features of base, 0 persist" in edge
    assert words(comparison(None)) == ["no feature is testable."]
    assert (answer(summary()), checks(summary())) == ([], [])


def test_controls_that_were_not_measured_are_named_so():
    unmeasured = group(0.5, None, n=4) | a_share("inherited_share", 0.5, 6)
    unchanged, random, sees = controls_of(summary(comparison(0.25, None, controls={}, identified=unmeasured)))
    assert "control on identified features was not measured" in unchanged
    assert random == "No random control was computed."
    assert sees == sensitivity("anchored")
    # Of edges without identified features no control of theirs is known, whatever that of all features is.
    assert "on identified features was not measured" in controls_of(summary(comparison(identified=None)))[0]


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
    unchanged, random, _ = controls_of(found)
    assert "at least 95.0 % of identified features (left → merged); 95 % are needed" in unchanged
    assert "at most 4.0 % of all features match in a random control (reinitialised (r), base → merged); 5 %" in random
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
    assert (number(-0.0001), number(-0.0001, 4)) == ("0.000", "-0.0001")  # no negative zero
    assert (number(0.12345), number(None), number(float("nan"))) == ("0.123", "not measured", "not measured")
    assert (count(2048), count(None)) == ("2,048", "not measured")
    assert (percent(0.0205), percent(None)) == ("2.1\u00a0%", "not measured")
    assert (interval([0.0152, 0.0276]), interval(None)) == ("1.5 to 2.8\u00a0%", "")
    assert interval((float("nan"), float("nan"))) == ""
    assert (signed(0.25, 2), signed(-0.25, 2), signed(float("nan"))) == ("+0.25", "-0.25", "not measured")
    assert count(pd.NA) == "not measured"


def test_effects_of_matched_features_are_concluded_from():
    effects = pd.DataFrame({"spearman": [0.9, 0.2, 0.6, float("nan")], "corpus": ["lua", "lua", "stories", "lua"]})
    pooled = pd.DataFrame({"spearman": [0.9], "corpus": ["pooled"]})  # no corpus of its own
    assert agreement_of_effects(pd.concat([effects, pooled])) == agreement_of_effects(effects)
    (sentence,) = agreement_of_effects(effects)
    assert "0.60 (n = 3): features that fire together mostly do the same" in sentence
    assert "does not tell" in agreement_of_effects(effects[1:2])[0]
    assert agreement_of_effects(effects[3:]) == []


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
