"""Tables hold what the summary says, shares with their controls, and nothing for what was not measured."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.evidence import ALL, IDENTIFIED
from saelineage.report import tables as report_tables
from saelineage.report.registry import TABLES
from saelineage.report.tables import (
    HIDDEN,
    TableInputs,
    ablation_table,
    agreement_table,
    by_corpus_table,
    class_table,
    control_table,
    curve_table,
    density_table,
    difference_table,
    document_table,
    edge_table,
    effect_table,
    flow_table,
    hookpoint_table,
    instrument_table,
    is_fit,
    kind_table,
    largest_random,
    make_tables,
    matching_table,
    passage_feature_table,
    passage_table,
    ranked_table,
    reading,
    sampled_table,
    score_table,
    sees_new,
    source_table,
    taught_table,
    timing_table,
)
from tests.unit.report.test_changes import changed, drift

COUNTS = {
    IDENTIFIED: {
        "parent": {"persists": 2, "drifted": 1, "gone": 1, "untestable": 0, "headline": 1, "robust": 1},
        "child": {"inherited": 3, "drifted": 1, "new": 2, "untestable": 0, "headline": 2, "robust": 0},
    },
    ALL: {
        "parent": {"persists": 2, "drifted": 1, "gone": 5, "untestable": 1, "headline": 1, "robust": 1},
        "child": {"inherited": 3, "drifted": 1, "new": 4, "untestable": 1, "headline": 2, "robust": 0},
    },
}
"""Of an edge: 4 of the parent's 8 testable features and 6 of the child's 8 are identified."""
N_IDENTIFIED = 4


def a_share(name: str, value: float | None, n: int = 8) -> dict:
    """A share of the summary, its interval a tenth to each side."""
    bounds = None if value is None else [max(0.0, value - 0.1), min(1.0, value + 0.1)]
    return {name: value, f"{name}_n": 0 if value is None else n, f"{name}_interval": bounds}


def a_control(value: float | None = 0.01, auc: float = 0.2) -> dict:
    found = a_share("persist_share", value) | a_share("persist_share_there", 0.625)
    return found | {"auc": auc, "threshold_at_1_percent": 0.5}


def group(
    share: float | None,
    no_change: float | None,
    relative: list[float] | None = None,
    controls: dict[str, float | None] | None = None,
    n: int = 8,
) -> dict:
    """The shares of a group of features."""
    values = {"persist_share": share, "no_change_share": no_change, "inherited_share": 0.375}
    found: dict = {"control_shares": controls or {}, "document_interval": [0.2, 0.3]}
    for name, value in values.items():
        found |= a_share(name, value, n)
    found["corpora"] = {
        "lua": a_share("persist_share", share, n - 2) | a_share("no_change_share", no_change, n),
        "stories": a_share("persist_share", 0.0, 2) | a_share("no_change_share", None, 0),
        "empty": a_share("persist_share", None, 0) | a_share("no_change_share", None, 0),
    }
    for figures in found["corpora"].values():
        figures |= a_share("inherited_share", 0.375, n)
    return found | {
        "relative_persistence": None if no_change is None or share is None else share / no_change,
        "relative_persistence_interval": None if no_change is None else relative or [0.4, 0.6],
    }


KNOWN = group(0.5, 0.96, controls={"shifted": 0.0}, n=N_IDENTIFIED) | a_share("inherited_share", 0.5, 6)
"""The shares of identified features."""


def comparison(
    share: float | None = 0.25,
    no_change: float | None = 0.5,
    relative: list[float] | None = None,
    instrument: str = "anchored",
    two_seeds: float | None = 0.375,
    parent: str = "base",
    child: str = "merged",
    controls: dict | None = None,
    identified: dict | None = KNOWN,
) -> dict:
    """One of the summary's `instruments`; shares are of all features, except for those in `identified`."""
    controls = {"shifted": a_control()} if controls is None else controls
    of_controls = {name: control["persist_share"] for name, control in controls.items()}
    found = {"parent": parent, "child": child, "instrument": instrument, "pair": "a__b"}
    found |= {"auc": 0.5, "no_change_auc": 0.75, "two_seed_auc": 0.375}
    values = {"two_seed_share": two_seeds, "child_two_seed_share": two_seeds, "same_index_rate": 0.125}
    for name, value in values.items():
        found |= a_share(name, value)
    rule = a_share("persist_share", share) | a_share("no_change_share", no_change)
    return found | {
        "groups": {
            IDENTIFIED: identified and identified | {"control_shares": dict.fromkeys(controls, 0.0)},
            ALL: group(share, no_change, relative, of_controls),
        },
        "matchings": {"assignment": rule, "best": rule, "mutual": rule},
        "controls": controls,
        "over_seeds": {IDENTIFIED: None, ALL: {"n": 3, "least": 0.25, "largest": 0.5, "interval": [0.1, 0.6]}},
    }


def an_edge(found: dict, **changes) -> dict:
    """One of the summary's `edges`: counts and the leading instrument's row."""
    groups = {name: shares and shares | COUNTS[name] for name, shares in found["groups"].items()}
    study = {"persists": 2, "disappears": 6, "inherited": 3, "emerges": 5}
    of_edge = {"kinds": {"1:1": 1, "split": 1, "merged": 0}, "relocated": 0, "rescaled": 0, "partial": 0}
    of_edge |= {"study": study, "shares_basis": True, "shares_scale": True}
    return found | of_edge | {"groups": groups} | changes


def summary(*found: dict, leading: str = "anchored", **changes) -> dict:
    """A summary of comparisons; those of the leading instrument are the edges."""
    edges = [an_edge(row) for row in found if row["instrument"] == leading]
    models = list(dict.fromkeys(model for edge in edges for model in (edge["parent"], edge["child"])))
    models = models or ["base", "merged"]
    made_of = {"run": "tiny", "threshold": 0.8, "identified_from": 1.0, "relocated_below": 0.5}
    made_of |= {"models": models, "leading": leading, "edges": edges, "saes": dict.fromkeys(models, "seed0")}
    return made_of | {"instruments": list(found), "agreements": [], "crosscoder": [], "sources": {}} | changes


def sae_metrics(model: str = "base", fvu: float | None = 0.2, dead_fraction: float = 0.0) -> dict:
    numbers = {"fvu": fvu, "l0": 4.0, "dead_fraction": dead_fraction, "ce_difference": 0.1}
    numbers |= {"ce_recovered": None, "ce_recovered_from_mean": 0.75, "n_tokens": 100}
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


def test_a_share_is_read_by_the_interval_of_its_ratio_to_the_no_change_control():
    assert reading(group(0.5, 0.6, [0.7, 0.99])) == report_tables.BELOW
    assert reading(group(0.5, 0.6, [0.7, 1.0])) == report_tables.AT_CONTROL
    assert reading(group(0.7, 0.6, [1.1, 1.2])) == report_tables.AT_CONTROL
    assert reading(group(0.9, None)) == report_tables.NO_CONTROL
    assert reading(group(None, 0.2, [0.7, 0.9])) == report_tables.NOTHING
    assert reading(group(0.5, 0.6) | {"relative_persistence_interval": None}) == report_tables.NO_RATIO


def test_an_edge_has_a_row_for_identified_features_and_one_for_all():
    table = edge_table(summary(comparison(0.25, 0.5, [0.9, 1.1])), {})
    assert table[["parent", "child", "group"]].to_numpy().tolist() == [
        ["base", "merged", "identified"],
        ["base", "merged", "all"],
    ]
    names = [f"{side}_{name}" for side, counts in COUNTS[ALL].items() for name in counts]
    assert [list(table.loc[row, names]) for row in (0, 1)] == [
        [n for counts in COUNTS[group].values() for n in counts.values()] for group in (IDENTIFIED, ALL)
    ]
    assert table["persist_share"].tolist() == [0.5, 0.25]
    assert table["persist_share_n"].tolist() == [4, 8]
    assert table["no_change_share"].tolist() == [0.96, 0.5]
    assert table["reading"].tolist() == ["below the control", "at the control"]
    without = edge_table(summary(comparison(identified=None), comparison(parent="left")), {})
    assert without[["parent", "group"]].to_numpy().tolist() == [
        ["base", "all"],
        ["left", "identified"],
        ["left", "all"],
    ]


def test_an_edge_has_its_controls_and_the_ratio():
    controls = {"shifted": a_control(0.02), "control (twin)": a_control(0.4)}
    row = edge_table(summary(comparison(0.25, 0.5, [0.4, 0.6], controls=controls)), {}).iloc[1]
    assert row[["persist_share", "persist_share_n", "persist_share_low"]].tolist() == [0.25, 8, 0.15]
    assert row[["no_change_share", "two_seed_share", "child_two_seed_share"]].tolist() == [0.5, 0.375, 0.375]
    assert row[["largest_random", "largest_random_share"]].tolist() == ["shifted", 0.02]
    assert row[["relative_persistence", "relative_persistence_low", "relative_persistence_high"]].tolist() == [
        *(0.5, 0.4, 0.6)
    ]
    moved_little = drift(pooled=changed(0.1, unexplained=0.2))
    assert set(edge_table(summary(comparison(0.25, 0.5, [0.4, 0.6])), moved_little)["reading"]) == {HIDDEN}
    row = edge_table(summary(comparison(0.25, None, controls={})), {}).iloc[1]  # without controls
    missing = ["no_change_share", "no_change_share_low", "relative_persistence_high"]
    assert row[[*missing, "largest_random", "largest_random_share"]].isna().all()
    assert row["no_change_share_n"] == 0


def test_hookpoints_are_compared_where_there_are_several():
    one, other = summary(comparison(0.25, 0.5)), summary(comparison(0.75, 1.0, two_seeds=0.5))
    table = hookpoint_table({"mlp": one, "late": other})
    assert table[["hookpoint", "group"]].to_numpy().tolist() == [
        [hookpoint, group] for hookpoint in ("mlp", "late") for group in COUNTS
    ]
    of_all = table[table["group"] == "all"]
    assert of_all[["persist_share", "no_change_share", "two_seed_share"]].to_numpy().tolist() == [
        [0.25, 0.5, 0.375],
        [0.75, 1.0, 0.5],
    ]
    assert of_all["lost_for_sure"].tolist() == [COUNTS["all"]["parent"]["headline"]] * 2
    assert hookpoint_table({"mlp": one}).empty


def test_every_instrument_and_group_is_a_row_with_its_agreement_with_the_leading_one():
    edge = {"parent": "base", "child": "merged", "side": "parent"}
    agreed = edge | {"instrument": "independent", "n": 8, "share": 0.75, "kappa": 0.5}
    of_child = agreed | {"side": "child", "group": "all", "share": 0.25}
    agreements = [agreed | {"group": "all"}, agreed | {"group": "identified", "share": 1.0, "kappa": 0.9}, of_child]
    found = summary(comparison(), comparison(0.1, instrument="independent"), agreements=agreements)
    table = instrument_table(found).set_index(["instrument", "group"])
    assert table.index.tolist() == [(name, group) for name in ("anchored", "independent") for group in COUNTS]
    assert table["leading"].tolist() == [True, True, False, False]
    assert table["persist_share"].tolist() == [0.5, 0.25, 0.5, 0.1]
    assert table.loc[("independent", "all"), ["same_verdict_share", "kappa"]].tolist() == [0.75, 0.5]
    assert table.loc[("independent", "identified"), ["same_verdict_share", "kappa"]].tolist() == [1.0, 0.9]
    assert table.loc["anchored", "kappa"].isna().all()
    over_seeds = ["seeds_n", "seeds_least", "seeds_largest", "seeds_low", "seeds_high"]
    assert table.loc[("independent", "all"), over_seeds].tolist() == [3, 0.25, 0.5, 0.1, 0.6]
    assert table.loc[("independent", "identified"), over_seeds].isna().all()
    figures = ["document_low", "document_high", "auc", "no_change_auc", "largest_random", "largest_random_share"]
    assert table.loc[("anchored", "all"), figures].tolist() == [0.2, 0.3, 0.5, 0.75, "shifted", 0.01]
    of_another_edge = [agreed | {"parent": "other", "group": "all"}]
    found = summary(comparison(), comparison(instrument="independent"), agreements=of_another_edge)
    assert instrument_table(found)["kappa"].isna().all()


def test_a_trained_control_is_no_random_control():
    assert largest_random({"shifted": 0.01, "reinitialised (r)": 0.03, "control (twin)": 0.4}) == (
        "reinitialised (r)",
        0.03,
    )
    assert largest_random({"control (twin)": 0.4}) == largest_random({"shifted": None}) == (None, None)
    assert largest_random({"shifted": None, "rotated": 0.0}) == ("rotated", 0.0)


def fitness(no_change: float | None, random: float | None, instrument: str = "anchored") -> bool | None:
    """Whether an instrument with this control of identified features and this random control is fit."""
    identified = group(0.5, no_change, n=N_IDENTIFIED)
    controls = {"shifted": a_control(random), "control (twin)": a_control(0.9)}
    return is_fit(comparison(0.5, 0.1, instrument=instrument, controls=controls, identified=identified))


def test_an_instrument_is_fit_if_its_controls_are_within_bounds():
    expected = {
        (0.95, 0.05): True,  # both bounds included
        (0.94, 0.05): False,
        (0.95, 0.06): False,
        (0.94, None): False,  # one that fails is enough
        (0.95, None): None,
        (None, 0.05): None,
        (None, 0.06): False,
    }
    assert {bounds: fitness(*bounds) for bounds in expected} == expected
    # Where it is not known which features are identified, the control of all features does not stand in for theirs.
    assert is_fit(comparison(0.5, 0.99, identified=None)) is None
    assert instrument_table(summary(comparison(identified=None)))["fit"].tolist() == [None]


def test_an_instrument_that_trains_no_child_sae_is_never_fit_because_it_sees_nothing_new():
    names = {"frozen": False, "anchored@0": False, "anchored@20480": True, "anchored to left alone": True}
    names |= {"anchored": True, "independent": True, "same_init": True, "own_mixture": True}
    assert {name: sees_new(name) for name in names} == names
    assert (fitness(1.0, 0.0, "frozen"), fitness(1.0, 0.0, "independent")) == (False, True)
    assert fitness(None, None, "frozen") is False


def test_every_matching_rule_is_a_row_and_the_best_match_comes_first():
    found = comparison(0.25, 0.5)
    found["matchings"]["mutual"] = a_share("persist_share", 0.125) | a_share("no_change_share", 0.375)
    table = matching_table(summary(found)).set_index("rule")
    assert table.index.tolist() == ["best", "mutual", "assignment"]
    assert table.loc["mutual", ["persist_share", "persist_share_n", "no_change_share"]].tolist() == [0.125, 8, 0.375]


def test_every_control_of_every_instrument_is_a_row():
    other = comparison(instrument="independent", controls={"rotated": a_control(0.2, 0.3)})
    other["groups"][IDENTIFIED]["control_shares"] = {"rotated": 0.25}
    unknown = comparison(instrument="own_mixture", identified=None)
    table = control_table(summary(comparison(), other, unknown))
    assert table[["instrument", "control"]].to_numpy().tolist() == [
        ["anchored", "shifted"],
        ["independent", "rotated"],
        ["own_mixture", "shifted"],
    ]
    assert table.columns[4:].tolist() == [
        *("share", "n", "low", "high", "identified_share", "auc", "threshold_at_1_percent", "persist_share_there")
    ]
    assert table.iloc[1, 4:].tolist() == pytest.approx([0.2, 8, 0.1, 0.3, 0.25, 0.3, 0.5, 0.625])
    assert table["identified_share"].tolist() == pytest.approx([0.0, 0.25, np.nan], nan_ok=True)


def test_curves_have_the_areas_of_their_own_edge_and_instrument():
    keys = {"parent": "base", "child": "merged", "threshold": 0.5, "share": 0.5, "n": 8}
    names = [("anchored", name) for name in ("edge", "no change", "two seeds", "shifted")] + [("independent", "edge")]
    curves = pd.DataFrame([keys | {"instrument": instrument, "name": name} for instrument, name in names])
    found = summary(comparison(), comparison(instrument="independent") | {"auc": 0.25})
    table = curve_table(curves, found)
    assert table["auc"].tolist() == [0.5, 0.75, 0.375, 0.2, 0.25]
    assert table["leading"].tolist() == [True, True, True, True, False]
    assert curve_table(curves.head(1), summary(comparison() | {"auc": None}))["auc"].isna().all()


def test_agreements_are_listed_as_they_stand():
    edge = {"parent": "base", "child": "merged", "side": "child"}
    row = edge | {"instrument": "anchored, by token types", "group": "all"}
    table = agreement_table(summary(agreements=[row | {"n": 8, "share": 0.75, "kappa": None}]))
    assert table.iloc[0, :7].tolist() == ["base", "merged", "child", "anchored, by token types", "all", 8, 0.75]
    assert table["kappa"].isna().all()


def test_sources_of_a_merge_go_from_its_parents_to_none():
    shares = {name: a_share("share", value) for name, value in [("base", 0.1), ("both", 0.2), ("left", 0.3)]}
    shares |= {"new": a_share("share", 0.15), "right": a_share("share", 0.25)}
    table = source_table(summary(sources={"merged": shares}), {"merged": ["right", "left"]})
    assert table["source"].tolist() == ["right", "left", "both", "base", "new"]
    assert table["share"].tolist() == [0.25, 0.3, 0.2, 0.1, 0.15]
    assert table["low"].iloc[1] == pytest.approx(0.2)


def test_an_edge_has_the_ways_in_which_features_are_found_and_the_study_s_verdicts():
    found = summary(comparison(), comparison(parent="left"))
    found["edges"][1] |= {"relocated": 3, "partial": 4, "kinds": {"1:1": 7, "split": 0, "merged": 2}}
    assert kind_table(found).to_csv(index=False).splitlines() == [
        "parent,child,1:1,split,merged,relocated,rescaled,partial,"
        "study_persists,study_disappears,study_inherited,study_emerges",
        "base,merged,1,1,0,0,0,0,2,6,3,5",
        "left,merged,7,0,2,3,0,4,2,6,3,5",
    ]


def test_shares_by_corpus_begin_with_the_smallest_and_say_where_no_verdict_is_possible():
    found = summary(comparison(), comparison(parent="left", identified=None))
    hidden = changed(0.005, 0.25, 0.25)
    table = by_corpus_table(found, drift(lua=changed(0.5, 0.75), stories=hidden))
    assert table[["parent", "group"]].drop_duplicates().to_numpy().tolist() == [
        ["base", "identified"],
        ["base", "all"],
        ["left", "all"],
    ]
    of_all = table[(table["parent"] == "base") & (table["group"] == "all")]
    assert of_all["corpus"].tolist() == ["stories", "lua", "empty"]
    assert of_all["persist_share_n"].tolist() == [2, 6, 0]
    assert of_all["visible"].tolist() == [False, True, None]
    for shares in (group for edge in found["edges"] for group in edge["groups"].values() if group):
        shares["corpora"] = {"lua": shares["corpora"]["lua"]}  # one corpus is all of them
    assert by_corpus_table(found, {}).columns.tolist() == table.columns.tolist()
    assert by_corpus_table(found, {}).empty


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
    verdicts = pd.DataFrame({"side": "child", "latent": range(4), "verdict": ["inherited", *["new"] * 3]})
    table = class_table({"base__tuned": verdicts}, {"tuned": labels}).set_index(["side", "verdict", "class"])
    assert table.loc[("child", "new", "template"), ["share", "n"]].tolist() == [1.0, 2]
    assert table.loc[("child", "new", "user"), ["share", "n"]].tolist() == [0.0, 2]
    assert table.loc[("child", "inherited", "template"), ["share", "n"]].tolist() == [0.0, 1]
    assert table.loc[("child", "drifted", "template"), "n"] == 0
    # Wilson's interval of 2 of 2: from 1 / (1 + 1.96^2 / 2) = 0.342 to 1.
    assert table.loc[("child", "new", "template"), ["low", "high"]].tolist() == pytest.approx([0.342, 1.0], abs=1e-3)
    assert class_table({"base__tuned": verdicts}, {}).empty


def test_drifted_features_of_the_parent_and_of_the_child_are_told_apart_by_class():
    labels = pd.DataFrame(
        {"latent": 0, "label": ["template", "system", "user", "assistant"], "precision": [1, 0, 0, 0]}
    )
    verdicts = pd.DataFrame({"side": ["parent", "child"], "latent": 0, "verdict": ["drifted", "new"]})
    table = class_table({"base__tuned": verdicts}, {"base": labels, "tuned": labels})
    drifted = table[(table["verdict"] == "drifted") & (table["class"] == "template")].set_index("side")
    assert drifted["n"].to_dict() == {"parent": 1, "child": 0}


def test_a_run_without_edges_has_every_table_of_the_registry_with_its_columns():
    fields = {
        "corpora": [],
        "lines": [],
        "matrix_changes": [],
        "differences": [],
        "features": pd.DataFrame(),
        "summary": summary(),
        "model_metrics": [],
        "sae_metrics": [],
    }
    fields |= {"share_curves": pd.DataFrame(), "importance_agreement": None}
    tables = make_tables(TableInputs(**{name: fields.get(name, {}) for name in TableInputs._fields}))
    assert list(tables) == list(TABLES)
    assert all(table.empty and len(table.columns) > 2 for table in tables.values())


def test_documents_are_counted_by_corpus_and_split():
    counts = {"n_documents": 9, "n_tokens": 1280, "largest_document_share": 0.5, "n_rows": 10}
    table = document_table({("lua", "train"): counts | {"most_of_document": None}, ("chat", "probe"): counts})
    assert table[["corpus", "split", "n_documents"]].to_numpy().tolist() == [["lua", "train", 9], ["chat", "probe", 9]]
    assert table["limit"].isna().all()


def test_captions_are_labels_for_snakemake():
    # In labels, Snakemake takes names in braces for wildcards.
    assert [name for name, table in TABLES.items() if not table.caption.endswith(".") or "{" in table.caption] == []


def test_flows_hold_every_verdict_of_both_sides_and_groups():
    table = flow_table(summary(comparison(), comparison(parent="left", identified=None)))
    names = ["persists", "drifted", "gone", "untestable", "inherited", "drifted", "new", "untestable"]
    assert table["verdict"].tolist() == names * 3
    assert table["side"].tolist() == (["parent"] * 4 + ["child"] * 4) * 3
    of_base, of_left = (rows for _, rows in table.groupby("parent"))
    assert of_base.groupby("group", sort=False)["n_features"].agg(list).to_dict() == {
        "identified": [2, 1, 1, 0, 3, 1, 2, 0],
        "all": [2, 1, 5, 1, 3, 1, 4, 1],
    }
    assert of_left["group"].unique().tolist() == ["all"]


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


def test_lost_and_new_features_are_in_reading_order_with_what_they_follow():
    rows = {
        "side": ["parent"] * 2 + ["child"] * 3,
        "latent": [0, 1, 0, 1, 2],
        "verdict": ["persists", "gone", "new", "new", "new"],
        "identified": [True, False, False, True, False],
        "importance": [9.0, 1.0, 2.0, 0.5, 3.0],
    }
    shown = {"effect": 1.0, "exact_effect": np.nan, "contrast_corpus": "lua", "density": 0.1, "match_density": 0.1}
    table = pd.DataFrame(rows).assign(headline=False, r=0.5, match=0, **shown)
    label = pd.DataFrame({"latent": [2], "kind": ["token"], "label": ["end"], "n_documents": [9]})
    found = ranked_table({"base__lua": table}, {("lua", "from_base"): label})
    assert found[["model", "latent", "place", "label"]].to_numpy().tolist() == [
        ["base", 1, 1, ""],
        ["lua", 1, 1, ""],
        ["lua", 2, 2, "token 'end'"],
        ["lua", 0, 3, ""],
    ]


def test_beside_passages_new_features_come_before_others():
    rows = {"latent": [4, 5, 6], "verdict": ["inherited", "new", "new"], "log10_p": [-9.0, -5.0, -1.0]}
    table = pd.DataFrame(rows).assign(identified=False, headline=False, n_there=1, n=2, base=0.1, lift=5.0)
    found = passage_feature_table({"base__lua": table, "lua__both": table[:0]}, {})
    assert found[["parent", "child", "latent"]].to_numpy().tolist() == [["base", "lua", n] for n in (5, 6, 4)]


def test_passages_name_the_features_that_fire_most_strongly():
    losses = dict.fromkeys(("loss_parent", "loss_sibling", "loss_child", "gain"), 1.0)
    words = {
        "sibling": "s",
        "before": "a",
        "text": "b",
        "after": "c",
        "latents": [np.arange(9)],
        "strengths": [np.ones(9)],
    }
    table = pd.DataFrame({"corpus": ["lua"], "row": 0, "place": 2, "document": 3, **losses, **words})
    (row,) = passage_table({"base__lua": table, "lua__both": table[:0]}).to_dict("records")
    assert (row["parent"], row["child"], row["latents"]) == ("base", "lua", "0 1 2 3 4")


def test_differences_of_a_parent_s_edges_stand_before_those_of_its_continued_models():
    pairs = [("base", "lua"), ("lua", "merged"), ("base", "more")]  # as the plan lists them: continued models last
    figures = dict.fromkeys(difference_table([]).columns, 0)
    tables = [pd.DataFrame([figures | {"parent": parent, "child": child}]) for parent, child in pairs]
    found = difference_table(tables)
    assert found[["parent", "child"]].to_numpy().tolist() == [["base", "lua"], ["base", "more"], ["lua", "merged"]]


def test_what_new_and_lost_features_follow_is_counted_by_kind_and_label():
    child = {"side": "child", "latent": range(5), "verdict": ["new"] * 4 + ["inherited"], "identified": True}
    child |= {"headline": [False, True, False, False, False], "importance": [1.0, 2.0, 3.0, 4.0, 9.0]}
    parent = {"side": "parent", "latent": [7], "verdict": "gone", "identified": True, "headline": True}
    table = pd.concat([pd.DataFrame(child), pd.DataFrame(parent | {"importance": [1.0]})], ignore_index=True)
    labels = {"latent": [0, 1, 2, 4], "kind": ["token", "token", "shape", "token"], "label": ["a", "a", "b", "a"]}
    found = taught_table({"base__lua": table}, {("lua", "seed0"): pd.DataFrame(labels)})
    # Four are new, of which three have a label; the first by importance is the one for sure.
    assert found.to_dict("records") == [
        {"parent": "base", "child": "lua", "side": "child", "model": "lua", "kind": "token", "label": "a"}
        | {"n_features": 2, "n": 4, "n_headline": 1, "latents": "1 0"},
        {"parent": "base", "child": "lua", "side": "child", "model": "lua", "kind": "shape", "label": "b"}
        | {"n_features": 1, "n": 4, "n_headline": 0, "latents": "2"},
    ]


def test_samples_that_are_shown_are_spread_over_all():
    samples = pd.DataFrame({"way": np.repeat(["contrast", "alone", "itself"], 64), "sample": [*range(64)] * 3})
    found = sampled_table({"base__lua": samples.assign(start="", text="x"), "lua__both": samples[:0]})
    assert found["way"].tolist() == ["contrast"] * 6 + ["alone"] * 6
    assert found["sample"].tolist() == [0, 10, 20, 30, 40, 50] * 2
