"""Tables hold what the summary says, shares with their floors and nulls, and nothing for what was not measured."""

import numpy as np
import pandas as pd
import pytest

from saelineage.report import tables as report_tables
from saelineage.report.registry import TABLES
from saelineage.report.tables import (
    TableInputs,
    ablation_table,
    absence_table,
    agreement_table,
    class_table,
    control_table,
    curve_table,
    density_table,
    edge_table,
    effect_table,
    flow_table,
    instrument_table,
    is_fit,
    largest_random,
    make_tables,
    matching_table,
    reading,
    score_table,
    source_table,
    timing_table,
)

COUNTS = {"persists": 2, "disappears": 6, "untestable_parent": 1, "inherited": 3, "emerges": 5, "untestable_child": 1}


def a_share(name: str, value: float | None, n: int = 8) -> dict:
    """A share of the summary, its interval a tenth to each side."""
    bounds = None if value is None else [max(0.0, value - 0.1), min(1.0, value + 0.1)]
    return {name: value, f"{name}_n": 0 if value is None else n, f"{name}_interval": bounds}


def a_null(value: float | None = 0.01, auc: float = 0.2) -> dict:
    found = a_share("persist_share", value) | a_share("persist_share_there", 0.625)
    return found | {"auc": auc, "threshold_at_1_percent": 0.5}


def comparison(
    share: float | None = 0.25,
    floor: float | None = 0.5,
    relative: list[float] | None = None,
    instrument: str = "anchored",
    seed_floor: float | None = 0.375,
    parent: str = "base",
    child: str = "merged",
    nulls: dict | None = None,
) -> dict:
    """One of the summary's `instruments`."""
    values = {"persist_share": share, "no_change_share": floor, "inherited_share": 0.375, "same_index_rate": 0.125}
    values |= {"two_seed_share": seed_floor, "child_two_seed_share": seed_floor}
    found = {"parent": parent, "child": child, "instrument": instrument, "pair": "a__b"}
    found |= {"auc": 0.5, "no_change_auc": 0.75, "two_seed_auc": 0.375}
    for name, value in values.items():
        found |= a_share(name, value)
    rule = a_share("persist_share", share) | a_share("no_change_share", floor)
    return found | {
        "matchings": {"assignment": rule, "best": rule, "mutual": rule},
        "document_interval": [0.2, 0.3],
        "relative_persistence": None if floor is None or share is None else share / floor,
        "relative_persistence_interval": None if floor is None else relative or [0.4, 0.6],
        "nulls": {"shifted": a_null()} if nulls is None else nulls,
    }


def an_edge(found: dict, **changes) -> dict:
    """One of the summary's `edges`: counts and the leading instrument's row."""
    kinds = {"kinds": {"1:1": 1, "split": 1, "merged": 0}, "robustly_disappears": 4, "robustly_emerges": 0}
    return COUNTS | kinds | {"absences": {"gone": 1, "missed": 2, "undecided": 3}} | found | changes


def summary(*found: dict, leading: str = "anchored", **changes) -> dict:
    """A summary of comparisons; those of the leading instrument are the edges."""
    edges = [an_edge(row) for row in found if row["instrument"] == leading]
    models = list(dict.fromkeys(model for edge in edges for model in (edge["parent"], edge["child"])))
    models = models or ["base", "merged"]
    made_of = {"run": "tiny", "threshold": 0.8, "models": models, "leading": leading, "edges": edges}
    made_of["saes"] = dict.fromkeys(models, "seed0")
    return made_of | {"instruments": list(found), "agreements": [], "sources": {}} | changes


def sae_metrics(model: str = "base", fvu: float | None = 0.2, dead_fraction: float = 0.0) -> dict:
    numbers = {"fvu": fvu, "l0": 4.0, "dead_fraction": dead_fraction, "ce_recovered": None, "ce_difference": 0.1}
    numbers |= {"n_tokens": 100}
    histogram = {"log10_edges": [-4.0, -3.0, -2.0, -1.0, 0.0], "counts": [0, 0, 7, 0]}
    found = {"model": model, "sae": "seed0", "pooled": numbers, "corpora": {"lua": numbers}}
    return found | {"density_histogram": histogram}


def measured_jobs() -> list[dict]:
    rows = [
        ("saes", 1.0, 1.0, 10.0),
        ("saes", 2.0, 1.0, 30.0),
        ("models", 9.0, 5.0, 20.0),
        ("models", None, None, None),
    ]
    return [dict(zip(("stage", "seconds", "cpu_seconds", "max_rss_mb"), row, strict=True)) for row in rows]


def test_an_edge_is_read_by_the_interval_of_its_ratio_to_the_floor():
    assert reading(comparison(0.5, 0.6, [0.7, 0.99])) == report_tables.BELOW
    assert reading(comparison(0.5, 0.6, [0.7, 1.0])) == report_tables.AT_CONTROL
    assert reading(comparison(0.7, 0.6, [1.1, 1.2])) == report_tables.AT_CONTROL
    assert reading(comparison(0.9, None)) == report_tables.NO_CONTROL
    assert reading(comparison(None, 0.2, [0.7, 0.9])) == report_tables.NOTHING
    assert reading(comparison() | {"relative_persistence_interval": None}) == report_tables.NO_RATIO


def test_an_edge_has_its_counts_both_floors_and_the_ratio():
    row = edge_table(summary(comparison(0.25, 0.5, [0.4, 0.6]))).iloc[0]
    assert row[list(COUNTS)].tolist() == list(COUNTS.values())
    assert row[["persist_share", "persist_share_n", "persist_share_low"]].tolist() == [0.25, 8, 0.15]
    assert row[["no_change_share", "two_seed_share"]].tolist() == [0.5, 0.375]
    assert row[["relative_persistence", "relative_persistence_low", "relative_persistence_high"]].tolist() == [
        *(0.5, 0.4, 0.6)
    ]
    assert row["reading"] == "below the floor"
    row = edge_table(summary(comparison(0.25, None))).iloc[0]  # without a floor
    assert row[["no_change_share", "floor_share_low", "relative_persistence_high"]].isna().all()
    assert row["floor_share_n"] == 0


def test_every_instrument_is_a_row_with_its_agreement_with_the_leading_one():
    agreed = {"parent": "base", "child": "merged", "instrument": "independent", "n": 8, "share": 0.75, "kappa": 0.5}
    found = summary(comparison(), comparison(0.1, instrument="independent"), agreements=[agreed])
    table = instrument_table(found).set_index("instrument")
    assert table["leading"].tolist() == [True, False]
    assert table["persist_share"].tolist() == [0.25, 0.1]
    assert table.loc["independent", ["same_verdict_share", "kappa"]].tolist() == [0.75, 0.5]
    assert np.isnan(table.loc["anchored", "kappa"])
    assert table.loc["anchored", ["document_low", "document_high", "auc", "no_change_auc"]].tolist() == [
        0.2,
        0.3,
        0.5,
        0.75,
    ]
    of_another_edge = [agreed | {"parent": "other"}]
    found = summary(comparison(), comparison(instrument="independent"), agreements=of_another_edge)
    assert instrument_table(found)["kappa"].isna().all()


def test_a_control_is_no_null():
    nulls = {"shifted": a_null(0.01), "reinitialised (r)": a_null(0.03), "control (twin)": a_null(0.4)}
    assert largest_random(nulls) == ("reinitialised (r)", 0.03)
    assert largest_random({"control (twin)": a_null(0.4)}) == (None, None)
    assert largest_random({"shifted": a_null(None)}) == (None, None)


def test_an_instrument_is_fit_if_floor_and_null_are_within_bounds():
    expected = {
        (0.95, 0.05): True,  # both bounds included
        (0.94, 0.05): False,
        (0.95, 0.06): False,
        (0.94, None): False,  # one that fails is enough
        (0.95, None): None,
        (None, 0.05): None,
    }
    for (floor, null), is_within in expected.items():
        assert is_fit(comparison(0.5, floor, nulls={"shifted": a_null(null)})) is is_within, (floor, null)


def test_every_matching_rule_is_a_row_and_the_best_match_comes_first():
    found = comparison(0.25, 0.5)
    found["matchings"]["mutual"] = a_share("persist_share", 0.125) | a_share("no_change_share", 0.375)
    table = matching_table(summary(found)).set_index("rule")
    assert table.index.tolist() == ["best", "mutual", "assignment"]
    assert table.loc["mutual", ["persist_share", "persist_share_n", "no_change_share"]].tolist() == [0.125, 8, 0.375]


def test_every_null_of_every_instrument_is_a_row():
    other = comparison(instrument="independent", nulls={"rotated": a_null(0.2, 0.3)})
    table = control_table(summary(comparison(), other))
    assert table[["instrument", "null"]].to_numpy().tolist() == [["anchored", "shifted"], ["independent", "rotated"]]
    expected = [0.2, 8, 0.1, 0.3, 0.3, 0.5, 0.625]
    assert table.iloc[1, 4:].tolist() == pytest.approx(expected)
    assert table.columns[4:].tolist() == [
        *("share", "n", "low", "high", "auc", "threshold_at_1_percent", "persist_share_there")
    ]


def test_curves_have_the_areas_of_their_own_edge_and_instrument():
    keys = {"parent": "base", "child": "merged", "threshold": 0.5, "share": 0.5, "n": 8}
    names = [("anchored", "edge"), ("anchored", "floor"), ("anchored", "shifted"), ("independent", "edge")]
    curves = pd.DataFrame([keys | {"instrument": instrument, "name": name} for instrument, name in names])
    found = summary(comparison(), comparison(instrument="independent") | {"auc": 0.25})
    table = curve_table(curves, found)
    assert table["auc"].tolist() == [0.5, 0.75, 0.2, 0.25]
    assert table["leading"].tolist() == [True, True, True, False]
    assert curve_table(curves.head(1), summary(comparison() | {"auc": None}))["auc"].isna().all()


def test_agreements_are_listed_as_they_stand():
    row = {"parent": "base", "child": "merged", "instrument": "anchored, by token types", "n": 8, "share": 0.75}
    table = agreement_table(summary(agreements=[row | {"kappa": None}]))
    assert table.iloc[0, :5].tolist() == ["base", "merged", "anchored, by token types", 8, 0.75]
    assert table["kappa"].isna().all()


def test_sources_of_a_merge_go_from_its_parents_to_none():
    shares = {name: a_share("share", value) for name, value in [("base", 0.1), ("both", 0.2), ("left", 0.3)]}
    shares |= {"new": a_share("share", 0.15), "right": a_share("share", 0.25)}
    table = source_table(summary(sources={"merged": shares}), {"merged": ["right", "left"]})
    assert table["source"].tolist() == ["right", "left", "both", "base", "new"]
    assert table["share"].tolist() == [0.25, 0.3, 0.2, 0.1, 0.15]
    assert table["low"].iloc[1] == pytest.approx(0.2)


def test_kinds_robust_counts_and_absences_are_whole_numbers_or_missing():
    found = summary(comparison(), comparison(parent="left"), comparison(parent="right"))
    del found["edges"][1]["absences"]
    found["edges"][2] |= {"robustly_disappears": None, "robustly_emerges": None}
    assert absence_table(found).to_csv(index=False).splitlines()[1:] == [
        "base,merged,1,1,0,4,0,1,2,3",
        "left,merged,1,1,0,4,0,,,",
        "right,merged,1,1,0,,,1,2,3",
    ]


def test_ablations_of_all_edges_are_one_table():
    groups = pd.DataFrame({"side": ["parent"], "group": ["persists"], "corpus": ["lua"], "n_latents": [2]})
    groups = groups.assign(loss=3.0, loss_change=0.1, loss_change_per_firing=0.01, n_firings=9, n_tokens=99)
    table = ablation_table({"base__left": groups, "left__merged": groups})
    assert table[["parent", "child"]].to_numpy().tolist() == [["base", "left"], ["left", "merged"]]
    assert table["loss_change"].tolist() == [0.1, 0.1]
    assert ablation_table({}).columns.tolist() == table.columns.tolist()


def test_features_are_counted_by_the_class_that_most_of_their_firings_have():
    # Latents 0 to 2 have labels, latent 3 fires too rarely. Latent 0 has half of its firings on the template: not most.
    shares = {"template": [0.5, 1.0, 0.6], "system": [0.0, 0.0, 0.0], "user": [0.5, 0.0, 0.4], "assistant": [0.0] * 3}
    rows = [(latent, name, share[latent]) for name, share in shares.items() for latent in range(3)]
    labels = pd.DataFrame(rows, columns=["latent", "label", "precision"])
    verdicts = pd.DataFrame({"side": "child", "latent": range(4), "verdict": ["inherited", *["emerges"] * 3]})
    table = class_table({"base__tuned": verdicts}, {"tuned": labels}).set_index(["verdict", "class"])
    assert table.loc[("emerges", "template"), ["share", "n"]].tolist() == [1.0, 2]
    assert table.loc[("emerges", "user"), ["share", "n"]].tolist() == [0.0, 2]
    assert table.loc[("inherited", "template"), ["share", "n"]].tolist() == [0.0, 1]
    # Wilson's interval of 2 of 2: from 1 / (1 + 1.96^2 / 2) = 0.342 to 1.
    assert table.loc[("emerges", "template"), ["low", "high"]].tolist() == pytest.approx([0.342, 1.0], abs=1e-3)
    assert class_table({"base__tuned": verdicts}, {}).empty


def test_a_run_without_edges_has_every_table_of_the_registry_with_its_columns():
    fields = {"corpora": [], "summary": summary(), "model_metrics": [], "sae_metrics": []}
    fields |= {"share_curves": pd.DataFrame()}
    tables = make_tables(TableInputs(**{name: fields.get(name, {}) for name in TableInputs._fields}))
    assert list(tables) == list(TABLES)
    assert all(table.empty and len(table.columns) > 2 for table in tables.values())


def test_captions_are_labels_for_snakemake():
    # In labels, Snakemake takes names in braces for wildcards.
    assert [name for name, table in TABLES.items() if not table.caption.endswith(".") or "{" in table.caption] == []


def test_flows_hold_every_class_of_both_sides():
    table = flow_table(summary(comparison()))
    assert table["n_features"].tolist() == [2, 6, 1, 3, 5, 1]
    assert table["verdict"].tolist() == ["persists", "disappears", "untestable", "inherited", "emerges", "untestable"]


def test_densities_are_cut_to_the_bins_in_use():
    assert density_table([sae_metrics()])["log10_density"].tolist() == [-3.0, -2.0, -1.0]


def test_time_is_summed_and_memory_is_the_largest():
    table = timing_table(measured_jobs()).set_index("stage")
    assert table.index.tolist() == ["models", "saes", "all stages"]
    assert table.loc["saes"].tolist() == [2, 3.0, 2.0, 30.0]
    assert table.loc["all stages"].tolist() == [3, 12.0, 7.0, 30.0]
    assert timing_table([]).empty


def test_effects_of_all_edges_are_one_table():
    agreement = pd.DataFrame({"corpus": ["pooled"], "n": [4], "pearson": [0.5], "spearman": [0.25]})
    table = effect_table({"base__lua": agreement, "lua__merged": agreement})
    assert table[["parent", "child", "n"]].to_numpy().tolist() == [["base", "lua", 4], ["lua", "merged", 4]]
    assert effect_table({}).columns.tolist() == ["parent", "child", "corpus", "n", "pearson", "spearman"]


def scored(*scores: float) -> pd.DataFrame:
    return pd.DataFrame({"score": np.array(scores)})


def test_scores_are_counted_in_bins_from_minus_one_to_one():
    table = score_table({("base", "seed0"): scored(-1.0, 0.0, 0.024, 0.3, 1.0)}, {})
    # 40 bins of 0.05; each holds its left edge, the last also 1.
    assert table["r"].tolist() == pytest.approx([-1 + index / 20 for index in range(40)])
    found = table[table["n_features"] > 0].set_index("r")["n_features"].to_dict()
    assert found == {-1.0: 1, 0.0: 2, 0.3: 1, 0.95: 1}
    assert table[["model", "sae", "source", "n", "median"]].drop_duplicates().values.tolist() == [
        ["base", "seed0", "labels", 5, 0.024]
    ]


def test_labels_and_explanations_of_every_model_are_told_apart():
    labels = {("base", "seed0"): scored(0.5), ("lua", "from_base"): scored(0.5, 0.75)}
    table = score_table(labels, {("base", "seed0"): scored(0.25)})
    found = table[["model", "sae", "source", "n", "median"]].drop_duplicates().values.tolist()
    assert found == [
        ["base", "seed0", "labels", 1, 0.5],
        ["lua", "from_base", "labels", 2, 0.625],
        ["base", "seed0", "explanations", 1, 0.25],
    ]
    assert table["n_features"].sum() == 4


def test_descriptions_without_a_score_are_not_counted():
    table = score_table({("base", "seed0"): scored(0.5, np.nan), ("lua", "seed0"): scored()}, {})
    assert table.groupby("model")[["n", "n_features"]].agg({"n": "first", "n_features": "sum"}).values.tolist() == [
        [1, 1],
        [0, 0],
    ]
    assert table.loc[table["model"] == "lua", "median"].isna().all()
