"""Tables of the report: a function per table, and `make_tables`, which makes them all.

`registry.TABLES` lists them. Each table is shown on the page and saved as CSV next to it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from saelineage.corpora.messages import CLASSES
from saelineage.labels.labels import descriptions
from saelineage.lineage.crosstable import UNMATCHED, seed_counts
from saelineage.lineage.evidence import GROUPS, IDENTIFIED
from saelineage.lineage.exclusivity import NEAR_0, OTHER_HALF
from saelineage.lineage.exclusivity import VERDICTS as VERDICTS_OF_CROSSCODERS
from saelineage.lineage.importance import reading_order
from saelineage.lineage.matching import MERGED, ONE_TO_ONE, SIDES, SPLIT, UNTESTABLE
from saelineage.lineage.new_directions import CHILD_ALONE, DIRECTIONS
from saelineage.lineage.shares import share
from saelineage.lineage.stabilisation import KEPT, RESET
from saelineage.lineage.stages import MOVED_BY, STEPS
from saelineage.lineage.survival import survival
from saelineage.lineage.twins import GROUPS as TWIN_GROUPS
from saelineage.lineage.verdicts import CHANGES, NEW, VERDICTS
from saelineage.plan.comparisons import TRAINED_CONTROLS, names_in_pair
from saelineage.plan.crosscoders import OF_EDGE
from saelineage.plan.graph import CONTINUED, POOLED, TWIN, Edge
from saelineage.plan.instruments import INSTRUMENTS, instrument
from saelineage.plan.sae_names import SaeName
from saelineage.report.registry import TABLES

LEAST_NO_CHANGE = 0.95
"""An instrument is fit only if at least this share of identified features persists where the model is unchanged.

Otherwise it loses so many itself that losses of that size say nothing."""
LARGEST_RANDOM = 0.05
"""An instrument is fit only if at most this share persists in every random control.

Other controls do not count: they are trained models, which may have learnt the same features."""
BELOW, AT_CONTROL, NO_RATIO, NO_CONTROL, NOTHING, HIDDEN = (
    "below the control",
    "at the control",
    "no ratio",
    "no control",
    "not testable",
    "no verdict",
)
"""Readings of an edge: its persisting share against the no-change control. `reading` returns one of them."""
LABELS, EXPLANATIONS = "labels", "explanations"
"""Sources of descriptions: labels found by counting, and explanations written by a language model."""
N_SCORE_BINS = 40
N_NORM_BINS = 20
RULES = ("best", "mutual", "assignment", "token_type")
"""Matching rules, named as `evidence.weigh` names them, in the order shown."""
GROUP_SHARES = ("persist_share", "inherited_share", "no_change_share")
"""Shares of identified and of all features."""
TWIN_SHARES, TWIN_COUNTS = ("persist_share", "lost_too", "new_too"), ("lost_beyond", "new_beyond")
"""Figures of `lineage.twins.compare`."""
OVER_SEEDS = ("seeds_n", "seeds_least", "seeds_largest", "seeds_low", "seeds_high")
"""The persisting share over seeds, of instruments whose SAEs have seeds of their own."""
REVIVAL_SHARES, REVIVAL_COUNTS = ("returned", "kept"), ("beyond", "short", "p")
"""Figures of `lineage.revivals.figures`."""
SEED_SHARES = ("two_seed_share", "child_two_seed_share")
SEED_MCCS = {
    "two_seed_pw_mcc": ("parent", "pw_mcc"),
    "two_seed_pw_mcc_chance": ("parent", "chance"),
    "child_two_seed_pw_mcc": ("child", "pw_mcc"),
    "child_two_seed_pw_mcc_chance": ("child", "chance"),
}
"""PW-MCC beside the shares on which two seeds agree, and that of random directions: the model and the key of each."""
COUNTS = {side: (*verdicts, UNTESTABLE, "headline", "robust") for side, verdicts in zip(SIDES, VERDICTS, strict=True)}
"""The counts of each side: its verdicts, and the features on the lists of lost and new ones (headline, robust)."""

BUDGET_SHARES = ("persist_share", "no_change_share", "kept_share", "reset_share", "two_seed_share")
N_RANKED = 20
"""Lost features of each edge, and new ones, that are listed."""
N_THERE = 8
"""New features of each edge, and others, that are listed beside its passages."""
N_FIRING = 5
"""Features that are named with a passage."""
N_SAMPLES, SHOWN_WAYS = 6, ("contrast", "alone")
"""Samples of an edge that are shown of each of these ways."""
NO_LABELS = pd.DataFrame(columns=["latent", "kind", "label"])
"""Labels of a model that has none."""
NO_SHARE = {"share": None, "share_n": 0, "share_interval": None}
"""A share that was not measured."""


class TableInputs(NamedTuple):
    """Everything that tables are made from, as the stages saved it. `registry.TABLES` names these fields."""

    corpora: Sequence[str]
    """The corpora, in the config's order."""
    made: Mapping[str, str]
    """How each model was made, in words; parents before children."""
    summary: dict
    """`lineage/{hookpoint}/summary.json`."""
    summaries: Mapping[str, dict]
    """`lineage/{hookpoint}/summary.json` of every hookpoint, by the hookpoint's name; one of them is `summary`."""
    model_metrics: Sequence[dict]
    """`models/{model}/metrics.json`."""
    sae_metrics: Sequence[dict]
    """`saes/{hookpoint}/{model}/metrics.json`."""
    training_curves: Mapping[tuple[str, str], pd.DataFrame]
    """`saes/{hookpoint}/{model}/{sae}/training.csv` by (model, SAE)."""
    share_curves: pd.DataFrame
    """`lineage/{hookpoint}/curves.parquet`."""
    merged_models: Mapping[str, Sequence[str]]
    """The parents of each merged model."""
    merges: Mapping[str, dict]
    """`models/{model}/merge.json` by model."""
    sweeps: Mapping[str, pd.DataFrame]
    """`sweeps/{sweep}.parquet` by sweep."""
    followed: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/sweeps/{sweep}.curves.parquet` by sweep."""
    exclusivity: Mapping[tuple[str, str], pd.DataFrame]
    """`lineage/{hookpoint}/crosscoders/{group}.{seed}.shares.parquet` by (group, seed)."""
    latent_verdicts: Mapping[tuple[str, str], pd.DataFrame]
    """`lineage/{hookpoint}/crosscoders/{group}.{seed}.parquet` by (group, seed)."""
    crosscoder_matches: Mapping[tuple[str, str], pd.DataFrame]
    """`lineage/{hookpoint}/crosscoders/{group}.{seed}.matches.parquet` by (group, seed)."""
    exclusivity_curves: Mapping[tuple[str, str], pd.DataFrame]
    """`lineage/{hookpoint}/crosscoders/{group}.{seed}.curves.parquet` by (group, seed)."""
    decoder_norms: Mapping[tuple[str, str], pd.DataFrame]
    """`lineage/{hookpoint}/crosscoders/{group}.{seed}.norms.parquet` by (group, seed)."""
    crosscoder_ablations: Mapping[tuple[str, str], pd.DataFrame]
    """`lineage/{hookpoint}/crosscoders/{group}.{seed}.ablations.parquet` by (group, seed), where they are asked for."""
    differences: Sequence[pd.DataFrame]
    """All `lineage/{hookpoint}/differences/{parent}__{child}.{seed}.summary.parquet`."""
    swept: Mapping[str, dict]
    """Of each sweep `chosen`, the swept settings of its merge, and `parents`."""
    histograms: Mapping[str, np.ndarray]
    """The histogram of all correlations behind each edge, by the edge's name, `{parent}__{child}`."""
    ablations: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/ablations/{edge}.parquet` by the edge's name."""
    effects: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/ablations/{edge}.agreement.parquet` by the edge's name."""
    drift: Mapping
    """`lineage/{hookpoint}/drift.json`; empty in runs without edges."""
    matrix_changes: Sequence[dict]
    """The `edges` of all `models/{model}/changes.json`; none where they were not asked for."""
    importance: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/importance/{edge}.parquet` by the edge's name."""
    importance_agreement: pd.DataFrame | None
    """`lineage/{hookpoint}/importance/agreement.parquet`; None in runs without edges."""
    passages: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/passages/{edge}.parquet` by the edge's name."""
    passage_features: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/passages/{edge}.features.parquet` by the edge's name."""
    acts: Mapping[str, pd.DataFrame]
    """`behaviour/{hookpoint}/{parent}__{child}.parquet` by the edge's name; none where features are not acted on."""
    act_summaries: Mapping[str, pd.DataFrame]
    """`behaviour/{hookpoint}/{parent}__{child}.summary.parquet`, likewise."""
    patches: Mapping[str, pd.DataFrame]
    """`behaviour/{hookpoint}/{parent}__{child}.patches.parquet`, likewise."""
    samples: Mapping[str, pd.DataFrame]
    """`behaviour/{hookpoint}/{parent}__{child}.samples.parquet` by the edge's name; none where nothing is sampled."""
    enriched: Mapping[str, pd.DataFrame]
    """`behaviour/{hookpoint}/{parent}__{child}.enriched.parquet`, likewise."""
    labels: Mapping[tuple[str, str], pd.DataFrame]
    """The winning labels in `labels/{hookpoint}/{model}/{sae}.parquet` by (model, SAE)."""
    explanations: Mapping[tuple[str, str], pd.DataFrame]
    """`labels/{hookpoint}/{model}/{sae}.explanations.parquet` by (model, SAE)."""
    verdicts: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/edges/{edge}.parquet` by the edge's name; none in runs without conversations."""
    class_labels: Mapping[str, pd.DataFrame]
    """The rows of kind `class` of the leading SAE's labels, by model."""
    lines: Sequence[Sequence[str]]
    """The chains of models that are shown by step (`Graph.lines`)."""
    features: pd.DataFrame
    """`lineage/{hookpoint}/features.parquet`; empty in runs without such chains."""
    line_verdicts: Mapping[str, pd.DataFrame]
    """`lineage/{hookpoint}/edges/{edge}.parquet` of their edges, by the edge's name."""
    token_rows: Mapping[tuple[str, str], dict]
    """`tokens/{corpus}/{split}.json` by (corpus, split)."""


def make_tables(inputs: TableInputs) -> dict[str, pd.DataFrame]:
    """Make every table of the registry, by name."""
    return {
        name: globals()[table.function](*(getattr(inputs, field) for field in table.inputs))
        for name, table in TABLES.items()
    }


def reading(shares: Mapping, visible: bool | None = None) -> str:
    """Compare a persisting share with its no-change control.

    `BELOW` if the interval of their ratio (`relative_persistence_interval`, over documents) lies below 1; `AT_CONTROL`
    if it reaches 1 or lies above; `NO_RATIO` if there is a control but no interval, as for a share of zero; `HIDDEN`,
    whatever the shares, if the model moved by less than its SAEs leave unexplained.

    Args:
        shares: `evidence.group_shares` of an edge.
        visible: `drift.is_visible` of the edge over all corpora.
    """
    if shares["persist_share"] is None:
        return NOTHING
    if visible is False:
        return HIDDEN
    if shares["no_change_share"] is None:
        return NO_CONTROL
    if shares["relative_persistence_interval"] is None:
        return NO_RATIO
    return BELOW if shares["relative_persistence_interval"][1] < 1 else AT_CONTROL


def edge_table(summary: dict, drift: Mapping) -> pd.DataFrame:
    """One row per edge and group: the number of features with each verdict, and shares with their n and intervals.

    Groups are `identified`, where a second seed was trained, and `all`. Counts are named `{side}_{verdict}`.

    Args:
        summary: `lineage/{hookpoint}/summary.json`.
        drift: `lineage/{hookpoint}/drift.json`.
    """
    visible = {(edge["parent"], edge["child"]): edge[POOLED]["visible"] for edge in drift.get("edges", [])}
    counted = [f"{side}_{name}" for side, names in COUNTS.items() for name in names]
    rows = []
    for edge in summary["edges"]:
        for group, shares in measured_groups(edge):
            control, random = largest_random(shares["control_shares"])
            rows.append(
                {"parent": edge["parent"], "child": edge["child"], "group": group}
                | {f"{side}_{name}": shares[side][name] for side, names in COUNTS.items() for name in names}
                | _shares(shares, GROUP_SHARES)
                | _shares(edge, SEED_SHARES)
                | seed_mccs(summary, edge)
                | {"largest_random": control, "largest_random_share": random}
                | _bounded(shares, "relative_persistence")
                | {"reading": reading(shares, visible.get((edge["parent"], edge["child"])))}
            )
    columns = ["parent", "child", "group", *counted, *_columns((*GROUP_SHARES, *SEED_SHARES)), *SEED_MCCS]
    columns += ["largest_random", "largest_random_share", *_with_bounds("relative_persistence"), "reading"]
    return pd.DataFrame(rows, columns=columns)


def by_corpus_table(summary: dict, drift: Mapping) -> pd.DataFrame:
    """One row per edge, group and corpus: the shares of the features that fire most on it; none for a single corpus.

    The corpora on which the smallest share of an edge's group persists come first, those without features last.

    Args:
        summary: `lineage/{hookpoint}/summary.json`.
        drift: `lineage/{hookpoint}/drift.json`; `visible` is missing where it has none.
    """
    visible = {
        (edge["parent"], edge["child"], corpus): figures["visible"]
        for edge in drift.get("edges", [])
        for corpus, figures in edge["corpora"].items()
    }
    rows = [
        {"parent": edge["parent"], "child": edge["child"], "group": group, "corpus": corpus}
        | _shares(figures, GROUP_SHARES)
        | {"visible": visible.get((edge["parent"], edge["child"], corpus))}
        for edge in summary["edges"]
        for group, shares in measured_groups(edge)
        if len(shares["corpora"]) > 1
        for corpus, figures in sorted(shares["corpora"].items(), key=_least_share)
    ]
    columns = ["parent", "child", "group", "corpus", *_columns(GROUP_SHARES), "visible"]
    return pd.DataFrame(rows, columns=columns)


def _least_share(of_corpus: tuple[str, Mapping]) -> float:
    """The share of a corpus that persists; infinite where it was not measured."""
    found = of_corpus[1]["persist_share"]
    return math.inf if found is None else found


def twin_table(summary: dict) -> pd.DataFrame:
    """One row per edge, twin or continued model, and group of features: the figures of `lineage.twins.compare`."""
    rows = [
        {"parent": edge["parent"], "child": edge["child"], "control": model, "kind": kind, "group": group}
        | _shares(figures, TWIN_SHARES)
        | {count: figures[count] for count in TWIN_COUNTS}
        for edge in summary["edges"]
        for key, kind in (("twins", TWIN), ("continued", CONTINUED))
        for model, groups in edge.get(key, {}).items()
        for group in TWIN_GROUPS
        if (figures := groups.get(group))
    ]
    columns = ["parent", "child", "control", "kind", "group", *_columns(TWIN_SHARES), *TWIN_COUNTS]
    return pd.DataFrame(rows, columns=columns)


def measured_groups(comparison: Mapping) -> list[tuple[str, dict]]:
    """The groups of features that shares were measured for, identified ones first."""
    return [(group, comparison["groups"][group]) for group in GROUPS if comparison["groups"][group]]


def instrument_table(summary: dict) -> pd.DataFrame:
    """One row per edge, instrument and group: shares and controls, agreement with the leading instrument.

    Returns:
        The figures of `summary["instruments"]`, and: `leading`; `largest_random` and `largest_random_share`, without
        controls that are trained; `fit`, see `is_fit`; `same_verdict_share` and `kappa`, the agreement with the leading
        instrument (missing for the leading instrument itself, and for those that compare another SAE of the parent);
        `seeds_n`, `seeds_least` and so on, the persisting share over SAE seeds and the interval of its mean.
    """
    agreements: dict[tuple, dict] = {
        (*_key(row), row["group"]): row for row in summary["agreements"] if row["side"] == SIDES[0]
    }
    rows = [
        _instrument_row(comparison, group, shares, summary["leading"], agreements) | seed_mccs(summary, comparison)
        for comparison in summary["instruments"]
        for group, shares in measured_groups(comparison)
    ]
    columns = ["parent", "child", "instrument", "group", "leading"]
    columns += [*_columns((*GROUP_SHARES, *SEED_SHARES, "same_index_rate")), *SEED_MCCS]
    columns += ["document_low", "document_high"]
    columns += [*_with_bounds("relative_persistence"), "auc", "no_change_auc"]
    columns += [*OVER_SEEDS, "largest_random", "largest_random_share", "fit", "same_verdict_share", "kappa"]
    return pd.DataFrame(rows, columns=columns)


def seed_mccs(summary: Mapping, edge: Mapping) -> dict[str, float | None]:
    """PW-MCC between the seeds of an edge's two models, and by chance; None where it was not computed."""
    of_models = summary.get("pw_mcc", {})
    return {name: of_models.get(edge[side], {}).get(key) for name, (side, key) in SEED_MCCS.items()}


def largest_random(shares: Mapping[str, float | None]) -> tuple[str | None, float | None]:
    """The random control with the largest persisting share, and that share; None where none was measured."""
    measured = {
        name: share for name, share in shares.items() if name.split()[0] not in TRAINED_CONTROLS and share is not None
    }
    return max(measured.items(), key=_second) if measured else (None, None)


def is_fit(comparison: Mapping) -> bool | None:
    """Whether an instrument's verdicts on identified features can be read at all on an edge.

    It must be able to see new features, keep at least `LEAST_NO_CHANGE` of the identified ones where the model is
    unchanged, and keep at most `LARGEST_RANDOM` of all in random controls. None if one of these was not measured and
    the others hold.

    A run can tell no more than this, its specificity: that what stays is left alone, and what is unrelated is not
    found. It cannot tell the sensitivity, the share that is seen of what was truly lost or is truly new, because there
    nobody knows what changed. That was measured where it is known: `benchmarks/truth.py`, `truth_test.MEASURED`.
    """
    identified, everything = (comparison["groups"][group] for group in GROUPS)
    control = identified and identified["no_change_share"]
    random = largest_random(everything["control_shares"])[1]
    checks = [
        sees_new(comparison["instrument"]),
        None if control is None else control >= LEAST_NO_CHANGE,
        None if random is None else random <= LARGEST_RANDOM,
    ]
    return False if False in checks else None if None in checks else True


def sees_new(name: str) -> bool:
    """True unless the instrument's child SAE is not trained, so that nothing can be new."""
    return name.startswith("anchored to ") or instrument(name).budget != "@0"


def matching_table(summary: dict) -> pd.DataFrame:
    """One row per edge, instrument and matching rule: the persisting share and its no-change control by that rule."""
    shares = ("persist_share", "no_change_share")
    rows = [
        {key: comparison[key] for key in ("parent", "child", "instrument")}
        | {"rule": rule}
        | _shares(comparison["matchings"][rule], shares)
        for comparison in summary["instruments"]
        for rule in RULES
        if rule in comparison["matchings"]
    ]
    return pd.DataFrame(rows, columns=["parent", "child", "instrument", "rule", *_columns(shares)])


def control_table(summary: dict) -> pd.DataFrame:
    """One row per edge, instrument and control in the child's place: the share that persists there.

    Returns:
        `share` with `n`, `low`, `high`, of all features; `identified_share`; `auc`; `threshold_at_1_percent`, the
        threshold from which at most 1 % match; and `persist_share_there`, the edge's own share at that threshold.
    """
    figures = ("auc", "threshold_at_1_percent", "persist_share_there")
    rows = []
    for comparison in summary["instruments"]:
        identified = comparison["groups"][IDENTIFIED]
        for name, control in comparison["controls"].items():
            row = {key: comparison[key] for key in ("parent", "child", "instrument")} | {"control": name}
            row |= {"identified_share": identified and identified["control_shares"][name]}
            rows.append(row | _as_share(control, "persist_share") | {key: control[key] for key in figures})
    columns = ["parent", "child", "instrument", "control", "share", "n", "low", "high", "identified_share", *figures]
    return pd.DataFrame(rows, columns=columns)


def curve_table(curves: pd.DataFrame, summary: dict) -> pd.DataFrame:
    """`lineage/{hookpoint}/curves.parquet` with the area under each curve (`auc`), and which instrument is leading."""
    areas = {}
    for comparison in summary["instruments"]:
        key = _key(comparison)
        areas[*key, "edge"] = comparison["auc"]
        areas[*key, "no change"] = comparison["no_change_auc"]
        areas[*key, "two seeds"] = comparison["two_seed_auc"]
        areas |= {(*key, name): control["auc"] for name, control in comparison["controls"].items()}
    keys = ["parent", "child", "instrument", "name"]
    if curves.empty:
        return pd.DataFrame(columns=[*keys, "threshold", "share", "n", "leading", "auc"])
    auc = [areas[key] for key in curves[keys].itertuples(index=False, name=None)]
    return curves.assign(leading=curves["instrument"] == summary["leading"], auc=np.array(auc, dtype=np.float64))


def agreement_table(summary: dict) -> pd.DataFrame:
    """One row per edge, side, other way of comparing and group: its agreement with the leading instrument."""
    columns = ["parent", "child", "side", "instrument", "group", "n", "share", "kappa"]
    return pd.DataFrame(summary["agreements"], columns=columns)


def budget_table(summary: dict, training_curves: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """One row per edge, anchored instrument and group of features: the budget, and shares with and without change.

    Args:
        summary: `lineage/{hookpoint}/summary.json`.
        training_curves: by (model, SAE), for the tokens that the child's SAE was trained on.
    """
    rows = []
    for comparison in summary["instruments"]:
        name = comparison["instrument"].partition("@")[0]
        if name in INSTRUMENTS and INSTRUMENTS[name].is_anchored:
            row = {key: comparison[key] for key in ("parent", "child", "instrument")}
            row["leading"] = comparison["instrument"] == summary["leading"]
            row["n_tokens"] = _trained_on(training_curves, SaeName.parse(names_in_pair(comparison["pair"])[1]))
            rows += [row | _budget_shares(comparison, group) for group in GROUPS if comparison["groups"][group]]
    columns = ["parent", "child", "instrument", "leading", "n_tokens", "group", *_columns(BUDGET_SHARES)]
    table = pd.DataFrame(rows, columns=columns)
    places = table["group"].map(GROUPS.index)
    order = table.assign(place=places).sort_values(["parent", "child", "place", "n_tokens"], kind="stable").index
    return table.loc[order]


def _budget_shares(comparison: Mapping, group: str) -> dict:
    """The shares of one group of features in a row of `budget_table`."""
    of_group, control = comparison["groups"][group], (comparison.get("reset_control") or {}).get(group)
    kept, reset = (control[name] if control else NO_SHARE for name in (KEPT, RESET))
    return {
        "group": group,
        **_shares(of_group, ("persist_share", "no_change_share")),
        **_renamed(kept, "kept_share"),
        **_renamed(reset, "reset_share"),
        **(_shares(comparison, ("two_seed_share",)) if group != IDENTIFIED else _renamed(NO_SHARE, "two_seed_share")),
    }


def stage_table(summary: dict) -> pd.DataFrame:
    """One row per edge, group of features and order of the two steps: the number of features that moved on each."""
    rows = [
        {key: edge[key] for key in ("parent", "child", "group")}
        | {"first": STEPS[order][0]}
        | edge[order]
        | {"same_in_both_orders": edge["same"], "testable_in_both_orders": edge["n"]}
        for edge in summary.get("stages", [])
        for order in STEPS
    ]
    columns = ["parent", "child", "group", "first", *MOVED_BY, "same_in_both_orders", "testable_in_both_orders"]
    return pd.DataFrame(rows, columns=columns)


def revival_table(summary: dict) -> pd.DataFrame:
    """One row per edge, revived model, group of features and kind of model: how many lost features return there.

    The figures of `lineage.revivals.figures`, `latents` joined by spaces. Controls have no `beyond`, `short`, `p` and
    `latents`.
    """
    rows = [
        {key: row[key] for key in ("parent", "child", "model", "group", "kind")}
        | _shares(row, REVIVAL_SHARES)
        | {key: row.get(key) for key in REVIVAL_COUNTS}
        | {"latents": " ".join(map(str, row["latents"])) if "latents" in row else None}
        for row in summary.get("revivals", [])
    ]
    columns = ["parent", "child", "model", "group", "kind", *_columns(REVIVAL_SHARES), *REVIVAL_COUNTS, "latents"]
    return pd.DataFrame(rows, columns=columns)


def hookpoint_table(summaries: Mapping[str, dict]) -> pd.DataFrame:
    """One row per hookpoint, edge and group of features: the persisting share and its controls; none for one hookpoint.

    Args:
        summaries: `lineage/{hookpoint}/summary.json` by hookpoint.
    """
    columns = ["hookpoint", "parent", "child", "group", *_columns(("persist_share", "no_change_share"))]
    columns += ["largest_random_share", "two_seed_share", "lost_for_sure", "new_for_sure"]
    rows = [
        {"hookpoint": hookpoint, "parent": edge["parent"], "child": edge["child"], "group": group}
        | _shares(shares, ("persist_share", "no_change_share"))
        | {
            "largest_random_share": largest_random(shares["control_shares"])[1],
            "two_seed_share": edge["two_seed_share"],
            "lost_for_sure": shares["parent"]["headline"],
            "new_for_sure": shares["child"]["headline"],
        }
        for hookpoint, summary in summaries.items()
        for edge in summary["edges"]
        for group, shares in measured_groups(edge)
    ]
    return pd.DataFrame(rows if len(summaries) > 1 else [], columns=columns)


def step_table(lines: Sequence[Sequence[str]], summary: dict) -> pd.DataFrame:
    """One row per line, edge on it and group of features: what persists and what comes and goes, beside the controls.

    A line has the name of its last model.

    Args:
        lines: from `Graph.lines`.
        summary: `lineage/{hookpoint}/summary.json`.
    """
    edges = {(edge["parent"], edge["child"]): edge for edge in summary["edges"]}
    rows = [
        {"line": line[-1], "parent": parent, "child": child, "group": group}
        | _shares(shares, GROUP_SHARES)
        | {"largest_random_share": largest_random(shares["control_shares"])[1]}
        | {f"{side}_drifted": shares[side]["drifted"] for side in SIDES}
        | {"lost": shares["parent"]["gone"], "lost_for_sure": shares["parent"]["headline"]}
        | {"born": shares["child"]["new"], "born_for_sure": shares["child"]["headline"]}
        for line in lines
        for parent, child in pairwise(line)
        for group, shares in measured_groups(edges[parent, child])
    ]
    columns = ["line", "parent", "child", "group", *_columns(GROUP_SHARES), "largest_random_share"]
    columns += [*(f"{side}_drifted" for side in SIDES), "lost", "lost_for_sure", "born", "born_for_sure"]
    return pd.DataFrame(rows, columns=columns)


def survival_table(
    lines: Sequence[Sequence[str]], features: pd.DataFrame, line_verdicts: Mapping[str, pd.DataFrame], summary: dict
) -> pd.DataFrame:
    """One row per line, group, model at which features are born and later model: the share that is still found there.

    Args:
        lines: from `Graph.lines`.
        features: `lineage/{hookpoint}/features.parquet`.
        line_verdicts: `lineage/{hookpoint}/edges/{edge}.parquet` of the lines' edges.
        summary: `lineage/{hookpoint}/summary.json`.
    """
    verdicts: dict[tuple[str, str], pd.DataFrame] = {Edge.parse(edge): of for edge, of in line_verdicts.items()}
    rows = [
        {"line": line[-1], "group": group} | row
        for line in lines
        for group in GROUPS
        for row in survival(line, features, verdicts, unchanged_shares(line, summary, group), group == IDENTIFIED)
    ]
    columns = ["line", "group", "born", "model", "no_longer_found", "share", "share_n", "share_low", "share_high"]
    return pd.DataFrame(rows, columns=[*columns, "unchanged_least", "unchanged_most"])


def unchanged_shares(line: Sequence[str], summary: dict, group: str) -> list[float | None]:
    """The no-change control of every edge of a line, for a group of features; None where there is none."""
    groups = {(edge["parent"], edge["child"]): edge["groups"][group] for edge in summary["edges"]}
    return [(groups[edge] or {}).get("no_change_share") for edge in pairwise(line)]


def source_table(summary: dict, merged_models: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per merged model and source: each parent alone, some, all, their common ancestor, and none of them.

    Args:
        summary: `lineage/{hookpoint}/summary.json`.
        merged_models: the parents of each merged model.
    """
    rows = []
    for merge, shares in summary["sources"].items():
        parents = list(dict.fromkeys(merged_models[merge]))
        ancestors = [name for name in shares if name not in (*parents, "several", "both", "new")]
        several = [name for name in shares if name == "several"]
        for name in [*parents, *several, "both", *ancestors, "new"]:
            rows.append({"merge": merge, "source": name} | _as_share(shares[name], "share"))
    return pd.DataFrame(rows, columns=["merge", "source", "share", "n", "low", "high"])


def kind_table(summary: dict) -> pd.DataFrame:
    """One row per edge: how found features are found, those that changed, and the study's verdicts."""
    study = ["persists", "disappears", "inherited", "emerges"]
    columns = [ONE_TO_ONE, SPLIT, MERGED, *CHANGES, *(f"study_{verdict}" for verdict in study)]
    rows = [
        {"parent": edge["parent"], "child": edge["child"], **edge["kinds"]}
        | {change: edge[change] for change in CHANGES}
        | {f"study_{verdict}": edge["study"][verdict] for verdict in study}
        for edge in summary["edges"]
    ]
    return pd.DataFrame(rows, columns=["parent", "child", *columns])


def class_table(verdicts: Mapping[str, pd.DataFrame], class_labels: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per edge, side, verdict and class: the share of features that fire mostly on tokens of that class."""
    rows: list[dict] = []
    for edge, table in verdicts.items():
        parent, child = Edge.parse(edge)
        for side, model in zip(SIDES, (parent, child), strict=True):
            labels = class_labels.get(model)
            if labels is None or labels.empty:
                continue
            precision = labels.pivot(index="latent", columns="label", values="precision")
            of_side = table[(table["side"] == side) & table["latent"].isin(precision.index)]
            for verdict in VERDICTS[SIDES.index(side)]:
                latents = of_side.loc[of_side["verdict"] == verdict, "latent"]
                for name in CLASSES:
                    found = share(int((precision.loc[latents, name] > 0.5).sum()), len(latents))
                    low, high = found.interval or (None, None)
                    key = {"parent": parent, "child": child, "side": side, "verdict": verdict, "class": name}
                    rows.append(key | {"share": found.value, "n": found.n, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["parent", "child", "side", "verdict", "class", "share", "n", "low", "high"])


def ablation_table(ablations: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The ablations of all edges, with the edge's models.

    Args:
        ablations: `lineage/{hookpoint}/ablations/*.parquet`, by the edge's name, `{parent}__{child}`.
    """
    tables = [table.assign(**Edge.parse(edge)._asdict()) for edge, table in ablations.items()]
    figures = ["n_latents", "loss", "loss_change", "loss_change_per_firing", "n_firings", "n_tokens"]
    columns = ["parent", "child", "side", "group", "corpus", *figures]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def effect_table(agreements: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per edge and corpus: agreement of the effects of matched features in parent and child.

    Args:
        agreements: `lineage/{hookpoint}/ablations/*.agreement.parquet`, by the edge's name, `{parent}__{child}`.
    """
    columns = ["parent", "child", "corpus", "n", "pearson", "spearman"]
    tables = [table.assign(**Edge.parse(edge)._asdict())[columns] for edge, table in agreements.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def flow_table(summary: dict) -> pd.DataFrame:
    """One row per edge, group, side and verdict, with the number of features."""
    rows = [
        {"parent": edge["parent"], "child": edge["child"], "group": group, "side": side, "verdict": verdict}
        | {"n_features": shares[side][verdict]}
        for edge in summary["edges"]
        for group, shares in measured_groups(edge)
        for side, verdicts in zip(SIDES, VERDICTS, strict=True)
        for verdict in (*verdicts, UNTESTABLE)
    ]
    return pd.DataFrame(rows, columns=["parent", "child", "group", "side", "verdict", "n_features"])


def drift_table(drift: Mapping) -> pd.DataFrame:
    """One row per edge and corpus, and one over all corpora (`pooled`): how much changed from parent to child."""
    figures = ["kl", "kl_reverse", "n_predictions", "drift", "fvu_parent", "fvu_child", "unexplained", "visible"]
    columns = ["parent", "child", "corpus", *figures, "n_tokens", "n_left_out"]
    rows = [
        {"parent": edge["parent"], "child": edge["child"], "corpus": corpus} | of_corpus
        for edge in drift.get("edges", [])
        for corpus, of_corpus in {**edge["corpora"], POOLED: edge[POOLED]}.items()
    ]
    return pd.DataFrame(rows, columns=columns)


def weight_table(drift: Mapping) -> pd.DataFrame:
    """One row per edge and layer, and one over all weights (`all`): the relative change of the weights."""
    rows = [
        {"parent": edge["parent"], "child": edge["child"], "layer": layer} | change
        for edge in drift.get("edges", [])
        for layer, change in {"all": edge["weights"]["all"], **edge["weights"]["layers"]}.items()
    ]
    return pd.DataFrame(rows, columns=["parent", "child", "layer", "relative_change", "n_weights"])


def intruder_table(matrix_changes: Sequence[dict], summary: dict) -> pd.DataFrame:
    """One row per edge, those with most intruders first: the change of its matrices, and the child's new features.

    Args:
        matrix_changes: the `edges` of all `models/{model}/changes.json`.
        summary: `lineage/{hookpoint}/summary.json`.
    """
    figures = ["n_matrices", "relative_change", "effective_rank_share", "subspace_energy", "subspace_energy_if_random"]
    figures += ["intruders", "with_intruders", "intruder_energy", "intruder_energy_if_random"]
    groups = {(edge["parent"], edge["child"]): measured_groups(edge)[0] for edge in summary["edges"]}
    rows = []
    for edge in sorted(matrix_changes, key=lambda edge: -edge["intruders"]):
        group, shares = groups[edge["parent"], edge["child"]]
        counts = shares[SIDES[1]]
        new = share(counts[NEW], sum(counts[verdict] for verdict in VERDICTS[1]))
        rows.append(
            {key: edge[key] for key in ("parent", "child", *figures)}
            | {"group": group, "new": counts[NEW], "new_for_sure": counts["headline"]}
            | _renamed({"share": new.value, "share_n": new.n, "share_interval": new.interval}, "new_share")
        )
    columns = ["parent", "child", *figures, "group", "new", "new_for_sure", *_columns(["new_share"])]
    return pd.DataFrame(rows, columns=columns)


def ranked_table(
    importance: Mapping[str, pd.DataFrame], labels: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.DataFrame:
    """One row per edge, side and lost or new feature, the first `N_RANKED` in `importance.reading_order`.

    Args:
        importance: of each edge, by its name.
        labels: the winning label of each feature, by (model, SAE).
    """
    figures = ["importance", "effect", "exact_effect", "contrast_corpus", "density", "match_density", "r", "match"]
    kept = ["latent", "verdict", "identified", "headline", *figures]
    words = _words_by_model(labels)
    parts = []
    for name, table in importance.items():
        edge = Edge.parse(name)
        for side, model in zip(SIDES, edge, strict=True):
            first = reading_order(table[table["side"] == side]).head(N_RANKED)[kept]
            named = first.assign(**edge._asdict(), side=side, place=range(1, len(first) + 1), model=model)
            parts.append(_labelled(named, words.get(model, {})))
    columns = ["parent", "child", "side", "place", "model", "latent", "label", *kept[1:]]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def estimate_table(agreement: pd.DataFrame | None) -> pd.DataFrame:
    """How far estimated effects agree with measured ones: one row per edge and side, and one over all (`pooled`)."""
    columns = ["parent", "child", "side", "n", "pearson", "spearman"]
    return pd.DataFrame(columns=columns) if agreement is None else agreement[columns]


def passage_table(passages: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per edge and passage on which its child learnt most, with the `N_FIRING` strongest latents there."""
    losses = ["loss_parent", "loss_sibling", "sibling", "loss_child", "gain"]
    strongest = {
        name: table.assign(latents=[" ".join(map(str, list(latents)[:N_FIRING])) for latents in table["latents"]])
        for name, table in passages.items()
        if len(table)
    }
    return _of_edges(strongest, ["corpus", "row", "place", "document", *losses, "before", "text", "after", "latents"])


def passage_feature_table(
    passage_features: Mapping[str, pd.DataFrame], labels: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.DataFrame:
    """One row per edge and feature that fires on its passages: the first `N_THERE` new ones, then as many others.

    Args:
        passage_features: of each edge, by its name, the least likely by chance first.
        labels: the winning label of each feature, by (model, SAE).
    """
    figures = ["n_there", "n", "base", "lift", "log10_p"]
    words, firsts = _words_by_model(labels), {}
    for name, table in passage_features.items():
        is_new = table["verdict"] == NEW
        first = pd.concat([table[is_new].head(N_THERE), table[~is_new].head(N_THERE)])
        firsts[name] = _labelled(first, words.get(Edge.parse(name).child, {}))
    return _of_edges(firsts, ["latent", "label", "verdict", "identified", "headline", *figures])


def act_table(acts: Mapping[str, pd.DataFrame], labels: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """One row per edge, feature, passage and setting in which it was continued.

    `next` is the most likely next tokens with their probabilities, as JSON.

    Args:
        acts: of each edge, by its name.
        labels: the winning label of each feature, by (model, SAE).
    """
    compared = ["next", "continuation", "same_next", "n_same", "n_new", "kl"]
    place = ["passage", "corpus", "row", "place", "strength", "before", "text"]
    words, followed = _words_by_model(labels), {}
    for name, table in acts.items():
        following = [
            json.dumps(list(zip(tokens, map(float, probabilities), strict=True)), ensure_ascii=False)
            for tokens, probabilities in zip(table["next"], table["probabilities"], strict=True)
        ]
        followed[name] = _labelled(table.assign(next=following), words.get(Edge.parse(name).child, {}))
    return _of_edges(followed, ["latent", "label", *place, "model", "setting", "value", "random", *compared])


def act_summary_table(act_summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per edge, model and setting (`behaviour.acts.summarise`)."""
    falls = ["kl_fall", "kl_fall_low", "kl_fall_high", "kl_fall_beside_random"]
    falls += ["kl_fall_beside_random_low", "kl_fall_beside_random_high"]
    shares = [f"{name}{end}" for name in ("same_next", "same_all", "kl") for end in ("", "_low", "_high")]
    return _of_edges(act_summaries, ["model", "setting", "n_features", "n_passages", *shares, *falls, "does"])


def patch_table(patches: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per edge, corpus and group of features that was patched (`behaviour.patching.recovered`)."""
    losses = ["loss_parent", "loss_child", "loss_patched", "gain", "gain_low", "gain_high"]
    shares = ["recovered", "recovered_low", "recovered_high", "n_draws", "n_latents_random"]
    random = ["recovered_random", "recovered_random_least", "recovered_random_largest"]
    counts = ["n_latents", "n_tokens", "n_documents"]
    return _of_edges(patches, ["corpus", "group", *counts, *losses, *shares, *random])


def sampled_table(samples: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per edge and sample: the first `N_SAMPLES` where the child is contrasted, and of the child alone."""
    shown = {
        edge: table[table["way"].isin(SHOWN_WAYS) & (table["sample"] % max(1, table["sample"].max() // N_SAMPLES) == 0)]
        for edge, table in samples.items()
    }
    return _of_edges(
        {edge: table.groupby("way", sort=False).head(N_SAMPLES) for edge, table in shown.items()},
        ["way", "sample", "start", "text"],
    )


def enriched_table(
    enriched: Mapping[str, pd.DataFrame], labels: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.DataFrame:
    """One row per edge and feature of its child, the first `N_RANKED` in the order of `contrasts.enrichment`.

    Args:
        enriched: of each edge, by its name.
        labels: the winning label of each feature, by (model, SAE).
    """
    shares = [f"samples_{name}{end}" for name in ("contrast", "alone", "itself") for end in ("", "_low", "_high")]
    kept = ["latent", "verdict", "identified", "headline", "enriched", *shares, "tokens_contrast", "tokens_alone"]
    counts = ["n_features", "n_new", "n_enriched", "n_enriched_new", "n_by_chance"]
    words, parts = _words_by_model(labels), {}
    for name, table in enriched.items():
        is_new, first = table["verdict"] == NEW, table.head(N_RANKED)
        marked = (table["latent"] >= 0, is_new, table["enriched"], table["enriched"] & is_new, table["by_chance"])
        figures = {count: int(of.sum()) for count, of in zip(counts, marked, strict=True)}
        parts[name] = _labelled(first.assign(**figures), words.get(Edge.parse(name).child, {}))
    return _of_edges(parts, ["latent", "label", *kept[1:], "n_samples", *counts])


def taught_table(
    importance: Mapping[str, pd.DataFrame], labels: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.DataFrame:
    """What lost and new features follow: one row per edge, side and property, those that most features follow first.

    Args:
        importance: of each edge, by its name.
        labels: the winning label of each feature, by (model, SAE).
    """
    columns = ["parent", "child", "side", "model", "kind", "label", "n_features", "n", "n_headline", "latents"]
    of_model, rows = {model: table for (model, _), table in labels.items()}, []
    for name, table in importance.items():
        edge = Edge.parse(name)
        for side, model in zip(SIDES, edge, strict=True):
            changed = reading_order(table[table["side"] == side])
            followed = changed.merge(of_model.get(model, NO_LABELS)[["latent", "kind", "label"]], on="latent")
            groups = [(key, rows_of) for key, rows_of in followed.groupby(["kind", "label"], sort=False)]
            groups.sort(key=lambda group: -len(group[1]))
            for (kind, label), of_group in groups[:N_RANKED]:
                named = edge._asdict() | {"side": side, "model": model, "kind": kind, "label": label}
                counts = {"n_features": len(of_group), "n": len(changed), "n_headline": int(of_group["headline"].sum())}
                latents = " ".join(map(str, of_group["latent"].head(N_FIRING)))
                rows.append(named | counts | {"latents": latents})
    return pd.DataFrame(rows, columns=columns)


def _of_edges(tables: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The tables of all edges, by their names, below one another."""
    named = ["parent", "child", *columns]
    parts = [table.assign(**Edge.parse(name)._asdict()) for name, table in tables.items() if len(table)]
    return pd.concat(parts, ignore_index=True)[named] if parts else pd.DataFrame(columns=named)


def _labelled(table: pd.DataFrame, words: Mapping[int, str]) -> pd.DataFrame:
    """A table of features of one model with what each follows, an empty text where that is nothing known."""
    return table.assign(label=[words.get(latent, "") for latent in table["latent"]])


def _words_by_model(labels: Mapping[tuple[str, str], pd.DataFrame]) -> dict[str, dict[int, str]]:
    """What each labelled feature follows, by model and latent."""
    return {model: descriptions(table) for (model, _), table in labels.items()}


def model_table(made: Mapping[str, str], corpora: Sequence[str], metrics: Sequence[dict]) -> pd.DataFrame:
    """One row per model and corpus: how the model was made, its loss and accuracy, and a unigram model's loss."""
    figures = ("loss", "accuracy", "unigram_loss", "n_predictions")
    by_model = {entry["model"]: entry["corpora"] for entry in metrics}
    rows = [
        {"model": model, "made": words, "corpus": corpus} | {key: by_model[model][corpus][key] for key in figures}
        for model, words in made.items()
        if model in by_model
        for corpus in corpora
        if corpus in by_model[model]
    ]
    return pd.DataFrame(rows, columns=["model", "made", "corpus", *figures])


def method_table(
    summary: dict, drift: Mapping, merged_models: Mapping[str, Sequence[str]], made: Mapping[str, str]
) -> pd.DataFrame:
    """One row per merged model, parent and group: what is kept of the parent beside the controls, and what is new.

    Args:
        summary: `lineage/{hookpoint}/summary.json`.
        drift: `lineage/{hookpoint}/drift.json`.
        merged_models: the parents of each merged model.
        made: how each model was made, in words.
    """
    edges = edge_table(summary, drift)
    rows = edges[edges["child"].isin(merged_models)]
    kept = ["parent", "group", *_columns(("persist_share", "no_change_share")), "largest_random_share", "child_new"]
    named = rows.assign(model=rows["child"], made=[made[child] for child in rows["child"]])
    return named[["model", "made", *kept]].reset_index(drop=True)


def sweep_table(sweeps: Mapping[str, pd.DataFrame], swept: Mapping[str, dict]) -> pd.DataFrame:
    """The rows of all sweeps: of each merge the settings that were swept, and the models that it is shown beside."""
    columns = ["sweep", "model", "setting", "value", "second_setting", "second_value", "corpus", "loss", "accuracy"]
    tables = [with_settings(table, sweep, list(swept[sweep]["chosen"])) for sweep, table in sweeps.items()]
    columns += ["n_predictions", "barrier", "is_best"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def followed_table(followed: Mapping[str, pd.DataFrame], swept: Mapping[str, dict]) -> pd.DataFrame:
    """The shares of features that are found along all sweeps, by parent and group."""
    columns = ["sweep", "model", "kind", "group", "setting", "value", "second_setting", "second_value"]
    columns += ["share", "share_n", "share_low", "share_high"]
    tables = [with_settings(table, sweep, list(swept[sweep]["chosen"])) for sweep, table in followed.items()]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def crosscoder_table(exclusivity: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """The shares of all crosscoders' latents by verdict: of each edge, its floor and its controls, seed by seed."""
    columns = ["edge", "parent", "child", "role", "group", "seed", *VERDICTS_OF_CROSSCODERS]
    columns += [f"{name}_share{end}" for name in ("persist", "inherited") for end in ("", "_n", "_low", "_high")]
    columns += ["fvu_parent", "fvu_child"]
    return _of_crosscoders(exclusivity, columns)


def crosscoder_curve_table(curves: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """The numbers of latents that one model alone writes at each threshold of nu, ordered as `crosscoder_table`."""
    columns = ["edge", "parent", "child", "role", "group", "seed", "threshold", "parent_only", "child_only"]
    return _of_crosscoders(curves, [*columns, "n_testable", "nu_error_below", "nu_reconstruction_below"])


def crosscoder_norm_table(norms: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Histograms of decoder norms as shares of the latent's largest, over latents that fire often enough."""
    edges, rows = np.linspace(0, 1, N_NORM_BINS + 1), []
    for (group, seed), table in norms.items():
        firing = table[table["fires"]]
        shares = firing["norm"] / firing.groupby("latent")["norm"].transform("max")
        for (model, role), of_model in shares.groupby([firing["model"], firing["role"]], sort=False):
            row = {"group": group, "seed": seed, "model": model, "role": role}
            row |= {"n": len(of_model), "median": of_model.median(), "n_near_0": int((of_model < NEAR_0).sum())}
            counts = np.histogram(of_model, bins=edges)[0]
            for norm, n in zip(edges, counts, strict=False):
                rows.append(row | {"norm": round(float(norm), 3), "n_latents": int(n)})
    return pd.DataFrame(
        rows, columns=["group", "seed", "model", "role", "n", "median", "n_near_0", "norm", "n_latents"]
    )


def _of_crosscoders(parts: Mapping[tuple[str, str], pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """The rows of all crosscoders, by (group, seed): of each edge first its own, then its floor, then its controls."""
    tables = [table.assign(group=group, seed=seed) for (group, seed), table in parts.items()]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)
    place = {edge: number for number, edge in enumerate(dict.fromkeys(table["edge"]))}
    roles = {role: number for number, role in enumerate(dict.fromkeys([OF_EDGE, OTHER_HALF, *table["role"]]))}
    keys = {"edge": table["edge"].map(place), "role": table["role"].map(roles), "child": table["child"]}
    return table.loc[pd.DataFrame(keys).sort_values(list(keys), kind="stable").index, columns].reset_index(drop=True)


def cross_table(summary: Mapping) -> pd.DataFrame:
    """The number of each edge's features by the leading instrument's verdict and by the crosscoder's."""
    columns = ["parent", "child", "side", "group", "verdict", *VERDICTS_OF_CROSSCODERS, UNMATCHED]
    rows = [
        {key: value for key, value in row.items() if key != "crosscoder"} | row["crosscoder"]
        for row in summary["crosscoder"]
    ]
    return pd.DataFrame(rows, columns=columns)


def crosscoder_ablation_table(crosscoder_ablations: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """The losses without the latents that one model of an edge writes alone, of all crosscoders, seed by seed."""
    columns = ["edge", "parent", "child", "side", "verdict", "group", "seed", "corpus"]
    columns += ["n_latents", "n_firings", "n_tokens", "loss", "loss_reconstructed", "loss_without"]
    columns += ["loss_change", "loss_change_low", "loss_change_high", "loss_change_per_firing"]
    columns += ["n_draws", "n_firings_random", "loss_change_random", "loss_change_random_least"]
    columns += ["loss_change_random_largest", "loss_change_random_per_firing"]
    tables = [table.assign(group=group, seed=seed) for (group, seed), table in crosscoder_ablations.items()]
    if not tables:
        return pd.DataFrame(columns=columns)
    # the child without what emerges first; corpora and seeds as they come
    by, ascending = ["edge", "side", "verdict"], [True, True, False]
    return pd.concat(tables, ignore_index=True)[columns].sort_values(by=by, ascending=ascending, kind="stable")


def difference_table(differences: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The figures of all difference SAEs by corpus: those of an edge before those of the parent's continued models."""
    share = [f"{CHILD_ALONE}_share{end}" for end in ("", "_n", "_low", "_high", "_floor", "_null")]
    columns = ["parent", "child", "role", "seed", "corpus", "n_tokens", "difference_size", "rounding_share", "fvu"]
    columns += ["l0", "n_latents", "n_alive", "n_testable", *DIRECTIONS, *share]
    if not differences:
        return pd.DataFrame(columns=columns)
    parents = dict.fromkeys(table["parent"].iloc[0] for table in differences)
    of_parent = [table for parent in parents for table in differences if table["parent"].iloc[0] == parent]
    return pd.concat(of_parent, ignore_index=True)[columns]


def crosscoder_seed_table(
    latent_verdicts: Mapping[tuple[str, str], pd.DataFrame],
    crosscoder_matches: Mapping[tuple[str, str], pd.DataFrame],
    summary: Mapping,
) -> pd.DataFrame:
    """How many latents of the first crosscoder those from other seeds have too, with the same verdict."""
    rows = []
    for group in dict.fromkeys(group for group, _ in latent_verdicts):
        verdicts, matches = (
            {seed: table for (of, seed), table in tables.items() if of == group}
            for tables in (latent_verdicts, crosscoder_matches)
        )
        rows += seed_counts(group, verdicts, matches, summary["threshold"])
    return pd.DataFrame(rows, columns=["edge", "seed", "verdict", "n", "matched", "same"])


def with_settings(table: pd.DataFrame, sweep: str, over: Sequence[str]) -> pd.DataFrame:
    """The rows of a sweep with its name, and with the names and values of the settings that were swept."""
    setting, *second = over
    of_second = {"second_setting": second[0], "second_value": table[second[0]]} if second else {}
    named: dict = {"sweep": sweep, "setting": setting, "value": table[setting], "second_setting": None}
    return table.assign(**(named | {"second_value": float("nan")} | of_second))


def sae_table(metrics: Sequence[dict]) -> pd.DataFrame:
    """One row per SAE and corpus, and one over all corpora (`pooled`)."""
    recovered = ["ce_recovered_from_mean", "ce_recovered", "ce_difference"]
    columns = ["fvu", "l0", "dead_fraction", *recovered, "n_tokens"]
    rows = [
        {"model": entry["model"], "sae": entry["sae"], "corpus": corpus} | {key: figures[key] for key in columns}
        for entry in metrics
        for corpus, figures in {"pooled": entry["pooled"], **entry["corpora"]}.items()
    ]
    return pd.DataFrame(rows, columns=["model", "sae", "corpus", *columns])


def density_table(metrics: Sequence[dict]) -> pd.DataFrame:
    """One row per SAE and bin of the density histogram, without bins at either end that are empty for all SAEs."""
    rows = [
        {"model": entry["model"], "sae": entry["sae"], "log10_density": edge, "n_latents": n}
        for entry in metrics
        for edge, n in zip(
            entry["density_histogram"]["log10_edges"], [*entry["density_histogram"]["counts"], 0], strict=True
        )
    ]
    table = pd.DataFrame(rows, columns=["model", "sae", "log10_density", "n_latents"])
    used = table.loc[table["n_latents"] > 0, "log10_density"]
    step = np.diff(np.unique(table["log10_density"])).max(initial=0)
    return table[table["log10_density"].between(used.min() - step, used.max() + step)] if len(used) else table


def training_table(curves: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """The training curves of all SAEs."""
    tables = [curve.assign(model=model, sae=sae) for (model, sae), curve in curves.items()]
    columns = ["model", "sae", "step", "tokens", "loss", "fvu", "l0", "dead_fraction"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def merge_table(merges: Mapping[str, dict]) -> pd.DataFrame:
    """One row per merged tensor: how it was merged (`models/{model}/merge.json`)."""
    rows = []
    for model, merge in merges.items():
        for name, tensor in merge["tensors"].items():
            factors = dict(zip([*merge["parents"], "base"], tensor.get("factors", []), strict=False))
            kept = dict(zip(merge["parents"], tensor.get("kept", []), strict=False))
            figures = {"factors": listed(factors, ".3g"), "kept": listed(kept, ",")}
            own = {"cos": tensor.get("cos"), "branch": tensor.get("branch")}
            rows.append({"model": model, "method": merge["method"], "tensor": name} | own | figures)
    return pd.DataFrame(rows, columns=["model", "method", "tensor", "cos", "branch", "factors", "kept"])


def listed(numbers: Mapping[str, float], form: str) -> str | None:
    """Numbers with their names, in words; None if there are none."""
    return ", ".join(f"{name} {number:{form}}" for name, number in numbers.items()) or None


def correlation_table(histograms: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row per edge and bin of r: the number of feature pairs in it."""
    rows = [
        {"edge": edge.replace("__", " → "), "r": float(left), "n_pairs": int(n)}
        for edge, histogram in histograms.items()
        for left, n in zip(np.linspace(-1, 1, len(histogram) + 1), histogram, strict=False)
    ]
    return pd.DataFrame(rows, columns=["edge", "r", "n_pairs"])


def score_table(
    labels: Mapping[tuple[str, str], pd.DataFrame], explanations: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.DataFrame:
    """How well descriptions predict activations: one row per model, source and bin of r.

    Args:
        labels: the winning label of each feature, by (model, SAE).
        explanations: written explanations by (model, SAE); may be empty.
    """
    edges = np.round(np.linspace(-1, 1, N_SCORE_BINS + 1), 10)
    rows = []
    for source, of_source in ((LABELS, labels), (EXPLANATIONS, explanations)):
        for (model, sae), table in of_source.items():
            scores = table["score"].dropna()
            counts = np.histogram(scores, bins=edges)[0]
            row = {"model": model, "sae": sae, "source": source, "n": len(scores), "median": scores.median()}
            rows += [row | {"r": float(r), "n_features": int(n)} for r, n in zip(edges, counts, strict=False)]
    return pd.DataFrame(rows, columns=["model", "sae", "source", "n", "median", "r", "n_features"])


def document_table(token_rows: Mapping[tuple[str, str], dict]) -> pd.DataFrame:
    """One row per corpus and split: the documents in its token rows.

    Args:
        token_rows: the sidecars of the rows, by (corpus, split).
    """
    rows = [
        {
            "corpus": corpus,
            "split": split,
            "limit": info.get("most_of_document"),
            **{key: info[key] for key in ("n_documents", "n_tokens", "largest_document_share")},
        }
        for (corpus, split), info in token_rows.items()
    ]
    columns = ["corpus", "split", "n_documents", "n_tokens", "largest_document_share", "limit"]
    return pd.DataFrame(rows, columns=columns).astype({"limit": "Int64"})


def timing_table(jobs: Sequence[Mapping]) -> pd.DataFrame:
    """Per stage and for all: number of jobs, summed wall and CPU seconds, largest memory of a job in MiB.

    Args:
        jobs: each with `stage`, `seconds`, `cpu_seconds` and `max_rss_mb`; those that were not measured are left out.
    """
    columns = ["stage", "n_jobs", "wall_seconds", "cpu_seconds", "max_rss_mb"]
    measured = pd.DataFrame([job for job in jobs if job["seconds"] is not None])
    if measured.empty:
        return pd.DataFrame(columns=columns)
    stages = measured.groupby("stage", sort=False).agg(
        n_jobs=("seconds", "size"),
        wall_seconds=("seconds", "sum"),
        cpu_seconds=("cpu_seconds", "sum"),
        max_rss_mb=("max_rss_mb", "max"),
    )
    stages = stages.sort_values("wall_seconds", ascending=False, kind="stable")
    stages.loc["all stages"] = [*stages[["n_jobs", "wall_seconds", "cpu_seconds"]].sum(), stages["max_rss_mb"].max()]
    return stages.reset_index(names="stage").astype({"n_jobs": int})[columns]


def _instrument_row(
    comparison: Mapping, group: str, shares: Mapping, leading: str, agreements: Mapping[tuple, Mapping]
) -> dict:
    """A row of `instrument_table`."""
    low, high = shares["document_interval"] or (None, None)
    control, random = largest_random(shares["control_shares"])
    agreement = agreements.get((*_key(comparison), group), {"share": None, "kappa": None})
    return {
        **{key: comparison[key] for key in ("parent", "child", "instrument", "auc", "no_change_auc")},
        "group": group,
        **_shares(shares, GROUP_SHARES),
        **_shares(comparison, (*SEED_SHARES, "same_index_rate")),
        **_bounded(shares, "relative_persistence"),
        "leading": comparison["instrument"] == leading,
        "document_low": low,
        "document_high": high,
        **_over_seeds(comparison["over_seeds"][group]),
        "largest_random": control,
        "largest_random_share": random,
        "fit": is_fit(comparison),
        "same_verdict_share": agreement["share"],
        "kappa": agreement["kappa"],
    }


def _over_seeds(figures: Mapping | None) -> dict:
    """The persisting share over SAE seeds: their number, the least and largest share, and the interval of the mean."""
    if figures is None:
        return dict.fromkeys(OVER_SEEDS)
    values = [figures["n"], figures["least"], figures["largest"], *(figures["interval"] or (None, None))]
    return dict(zip(OVER_SEEDS, values, strict=True))


def _key(row: Mapping) -> tuple[str, str, str]:
    """The edge and instrument of a row of the summary."""
    return row["parent"], row["child"], row["instrument"]


def _with_bounds(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _columns(shares: Sequence[str]) -> list[str]:
    """Four columns for each share."""
    return [column for name in shares for column in (name, f"{name}_n", f"{name}_low", f"{name}_high")]


def _bounded(row: Mapping, name: str) -> dict:
    """A figure of the summary and the ends of its interval, as columns."""
    return dict(zip(_with_bounds(name), (row[name], *(row[f"{name}_interval"] or (None, None))), strict=True))


def _shares(row: Mapping, shares: Sequence[str]) -> dict:
    """Shares of the summary with their n and the ends of their intervals, as columns."""
    columns: dict[str, float | None] = {}
    for name in shares:
        columns |= _bounded(row, name) | {f"{name}_n": row[f"{name}_n"]}
    return columns


def _renamed(row: Mapping, column: str) -> dict:
    """The `share` of a part of the summary, with its n and the ends of its interval, as columns of another name."""
    low, high = row["share_interval"] or (None, None)
    return {column: row["share"], f"{column}_n": row["share_n"], f"{column}_low": low, f"{column}_high": high}


def _trained_on(training_curves: Mapping[tuple[str, str], pd.DataFrame], sae: SaeName) -> int:
    """Tokens that an SAE was trained on; 0 if it was not."""
    curve = training_curves.get((sae.model, sae.sae))
    return 0 if curve is None or curve.empty else int(curve["tokens"].iloc[-1])


def _as_share(row: Mapping, name: str) -> dict:
    """A share of the summary as the only one of a table's row."""
    low, high = row[f"{name}_interval"] or (None, None)
    return {"share": row[name], "n": row[f"{name}_n"], "low": low, "high": high}


def _second(pair: tuple) -> float:
    return pair[1]
