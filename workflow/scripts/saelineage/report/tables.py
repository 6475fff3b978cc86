"""Tables of a report: what the stages saved, one table per subject; each is shown on the page and saved beside it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saelineage.lineage.trajectories import ABSENCES
from saelineage.lineage.verdicts import MERGED, ONE_TO_ONE, SPLIT
from saelineage.plan import graph

LEAST_FLOOR = 0.95
"""An instrument is fit when it finds at least this share of features again where nothing changed.

One that loses more of them by itself hides losses of that size."""
LARGEST_NULL = 0.05
"""An instrument is fit when it finds at most this share of features where none can persist.

Controls are no nulls: they are trained models, which may have come to the same features."""
CONTROL = "control "
"""How `comparisons.null_pairs` begins the names of controls that are no nulls."""
KINDS = {
    "pretrain": "pretrained here",
    "finetune": "fine-tuned from {parents}",
    "merge": "merged from {parents}, t = {t}",
    "hub": "imported from the hub",
    "path": "imported from a folder",
    "reinitialise": "random weights, like {like}",
}
BELOW, AT_FLOOR, NO_RATIO, NO_FLOOR, NOTHING = "below the floor", "at the floor", "no ratio", "no floor", "not testable"
"""How an edge's persisting share stands to its floor: what `reading` returns."""
VERDICT_COUNTS = ("persists", "disappears", "untestable_parent", "inherited", "emerges", "untestable_child")
LABELS, EXPLANATIONS = "labels", "explanations"
"""Where descriptions of features come from: from counts, or written by a service."""
N_SCORE_BINS = 40
RULES = ("best", "mutual", "assignment", "token_type")
"""Of matching, as `evidence.weigh` names them, in the order in which they are shown."""
ROBUST = ("robustly_disappears", "robustly_emerges")
FLOORS = ("floor_share", "seed_floor_share", "child_seed_floor_share")
EDGE_SHARES = ("persist_share", "inherited_share", *FLOORS)
INSTRUMENT_SHARES = (*EDGE_SHARES, "same_index_rate")


def reading(edge: Mapping) -> str:
    """How an edge's share stands to what its instrument finds where nothing changed.

    `BELOW` where the interval of their ratio (`relative_persistence_interval`, over documents) lies below 1, `AT_FLOOR`
    where it reaches 1 or lies above; `NO_RATIO` where there is a floor but no interval, as where the floor is zero.
    """
    if edge["persist_share"] is None:
        return NOTHING
    if edge["floor_share"] is None:
        return NO_FLOOR
    if edge["relative_persistence_interval"] is None:
        return NO_RATIO
    return BELOW if edge["relative_persistence_interval"][1] < 1 else AT_FLOOR


def edge_table(summary: dict) -> pd.DataFrame:
    """One row per edge: counts of every class, shares with what they are shares of and their intervals."""
    rows = [
        {key: edge[key] for key in ("parent", "child", *VERDICT_COUNTS)}
        | _shares(edge, EDGE_SHARES)
        | _bounded(edge, "relative_persistence")
        | {"reading": reading(edge)}
        for edge in summary["edges"]
    ]
    relative = _with_bounds("relative_persistence")
    return pd.DataFrame(
        rows, columns=["parent", "child", *VERDICT_COUNTS, *_columns(EDGE_SHARES), *relative, "reading"]
    )


def instrument_table(summary: dict) -> pd.DataFrame:
    """One row per edge and instrument: its shares and floors, its largest null, how far it agrees with the leading one.

    Returns:
        Beside the figures of `summary["instruments"]`: `leading`; `largest_null` and `largest_null_share`, controls
        left out; `fit`, see `is_fit`; `same_verdict_share` and `kappa`, its agreement with the leading one (missing for
        that itself, and where another SAE of the parent is compared).
    """
    agreements = {_comparison(row): row for row in summary["agreements"]}
    rows = [_instrument_row(found, summary["leading"], agreements) for found in summary["instruments"]]
    columns = [
        "parent",
        "child",
        "instrument",
        "leading",
        *_columns(INSTRUMENT_SHARES),
        "document_low",
        "document_high",
    ]
    columns += [*_with_bounds("relative_persistence"), "auc", "floor_auc"]
    columns += ["largest_null", "largest_null_share", "fit", "same_verdict_share", "kappa"]
    return pd.DataFrame(rows, columns=columns)


def largest_null(nulls: Mapping[str, Mapping]) -> tuple[str | None, float | None]:
    """The null under which the largest share of features persists, and that share; None where none was measured."""
    shares = {
        null: found["persist_share"]
        for null, found in nulls.items()
        if not null.startswith(CONTROL) and found["persist_share"] is not None
    }
    return max(shares.items(), key=_second) if shares else (None, None)


def is_fit(found: Mapping) -> bool | None:
    """Whether an instrument's floor on an edge is at least `LEAST_FLOOR` and its largest null at most `LARGEST_NULL`.

    None where one of them was not measured and the other is within its bound.
    """
    floor, null = found["floor_share"], largest_null(found["nulls"])[1]
    checks = [None if floor is None else floor >= LEAST_FLOOR, None if null is None else null <= LARGEST_NULL]
    return False if False in checks else None if None in checks else True


def matching_table(summary: dict) -> pd.DataFrame:
    """One row per edge, instrument and matching rule: the share that persists by that rule, and the floor's."""
    shares = ("persist_share", "floor_share")
    rows = [
        {key: found[key] for key in ("parent", "child", "instrument")}
        | {"rule": rule}
        | _shares(found["matchings"][rule], shares)
        for found in summary["instruments"]
        for rule in RULES
        if rule in found["matchings"]
    ]
    return pd.DataFrame(rows, columns=["parent", "child", "instrument", "rule", *_columns(shares)])


def null_table(summary: dict) -> pd.DataFrame:
    """One row per edge, instrument and null or control: what persists where the child is not the parent's descendant.

    Returns:
        `share` with `n`, `low`, `high`; `auc`; `threshold_at_1_percent`, from which on at most 1 % match; and
        `persist_share_there`, the share of the edge itself at that threshold.
    """
    figures = ("auc", "threshold_at_1_percent", "persist_share_there")
    rows = []
    for found in summary["instruments"]:
        for null, own in found["nulls"].items():
            row = {key: found[key] for key in ("parent", "child", "instrument")} | {"null": null}
            rows.append(row | _as_share(own, "persist_share") | {key: own[key] for key in figures})
    columns = ["parent", "child", "instrument", "null", "share", "n", "low", "high", *figures]
    return pd.DataFrame(rows, columns=columns)


def curve_table(curves: pd.DataFrame, summary: dict) -> pd.DataFrame:
    """`lineage/curves.parquet` with the area under each curve, `auc`, and whether its instrument leads, `leading`."""
    areas = {}
    for found in summary["instruments"]:
        areas[*_comparison(found), "edge"] = found["auc"]
        areas[*_comparison(found), "floor"] = found["floor_auc"]
        areas[*_comparison(found), "seed floor"] = found["seed_floor_auc"]
        areas |= {(*_comparison(found), null): own["auc"] for null, own in found["nulls"].items()}
    keys = ["parent", "child", "instrument", "name"]
    if curves.empty:
        return pd.DataFrame(columns=[*keys, "threshold", "share", "n", "leading", "auc"])
    auc = [areas[key] for key in curves[keys].itertuples(index=False, name=None)]
    return curves.assign(leading=curves["instrument"] == summary["leading"], auc=np.array(auc, dtype=np.float64))


def agreement_table(summary: dict) -> pd.DataFrame:
    """One row per edge and other way of comparing: how far it gives the leading instrument's verdicts."""
    return pd.DataFrame(summary["agreements"], columns=["parent", "child", "instrument", "n", "share", "kappa"])


def source_table(summary: dict, merges: Mapping[str, Mapping]) -> pd.DataFrame:
    """One row per merged model and source: each parent alone, both, the model that they descend from, and none of them.

    Args:
        summary: `lineage/summary.json`.
        merges: `sources` of `comparisons.plan`, which names each merge's `parents`.
    """
    rows = []
    for merge, shares in summary["sources"].items():
        parents = list(dict.fromkeys(merges[merge]["parents"]))
        others = [name for name in shares if name not in (*parents, "both", "new")]
        for name in [*parents, "both", *others, "new"]:
            rows.append({"merge": merge, "source": name} | _as_share(shares[name], "share"))
    return pd.DataFrame(rows, columns=["merge", "source", "share", "n", "low", "high"])


def absence_table(summary: dict) -> pd.DataFrame:
    """One row per edge: how features are found again, how many are robustly lost or new, and why others are not found.

    Returns:
        Whole numbers, empty where they were not measured.
    """
    columns = [ONE_TO_ONE, SPLIT, MERGED, *ROBUST, *ABSENCES]
    rows = [
        {"parent": edge["parent"], "child": edge["child"], **edge["kinds"], **edge.get("absences", {})}
        | {key: edge[key] for key in ROBUST}
        for edge in summary["edges"]
    ]
    return pd.DataFrame(rows, columns=["parent", "child", *columns]).astype(dict.fromkeys(columns, "Int64"))


def ablation_table(ablations: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all edges' ablations, with the edge's models.

    Args:
        ablations: `lineage/ablations/*.parquet`, by the edge's name, `{parent}__{child}`.
    """
    found = []
    for edge, table in ablations.items():
        parent, child = edge.split("__")
        found.append(table.assign(parent=parent, child=child))
    figures = ["n_latents", "loss", "loss_change", "loss_change_per_firing", "n_firings", "n_tokens"]
    columns = ["parent", "child", "side", "group", "corpus", *figures]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def effect_table(agreements: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per edge and corpus, how far the effects of matched features agree in parent and child.

    Args:
        agreements: `lineage/ablations/*.agreement.parquet`, by the edge's name, `{parent}__{child}`.
    """
    columns = ["parent", "child", "corpus", "n", "pearson", "spearman"]
    found = [
        table.assign(parent=edge.split("__")[0], child=edge.split("__")[1])[columns]
        for edge, table in agreements.items()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def flow_table(summary: dict) -> pd.DataFrame:
    """One row per edge, side and verdict, with the number of features."""
    kinds = (
        ("parent", "persists", "persists"),
        ("parent", "disappears", "disappears"),
        ("parent", "untestable", "untestable_parent"),
        ("child", "inherited", "inherited"),
        ("child", "emerges", "emerges"),
        ("child", "untestable", "untestable_child"),
    )
    rows = [
        {"parent": edge["parent"], "child": edge["child"], "side": side, "verdict": verdict, "n_features": edge[key]}
        for edge in summary["edges"]
        for side, verdict, key in kinds
    ]
    return pd.DataFrame(rows, columns=["parent", "child", "side", "verdict", "n_features"])


def model_table(config: dict, metrics: Sequence[dict]) -> pd.DataFrame:
    """One row per model and corpus: how the model was made, loss and accuracy beside a unigram model's loss."""
    order = graph.ordered_models(config)
    found = {entry["model"]: entry for entry in metrics}
    rows = [
        {"model": model, "made": made(config, model), "corpus": corpus}
        | {key: found[model]["corpora"][corpus][key] for key in ("loss", "accuracy", "unigram_loss", "n_predictions")}
        for model in order
        if model in found
        for corpus in config["corpora"]
        if corpus in found[model]["corpora"]
    ]
    columns = ["model", "made", "corpus", "loss", "accuracy", "unigram_loss", "n_predictions"]
    return pd.DataFrame(rows, columns=columns)


def made(config: dict, model: str) -> str:
    """How a model came to be, in words."""
    settings = config["models"][model][graph.kind(config, model)]
    words = KINDS[graph.kind(config, model)]
    parents = " and ".join(graph.parents(config, model))
    return words.format(parents=parents, t=settings.get("t"), like=settings.get("like"))


def sweep_table(sweeps: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all sweeps, with the sweep's name."""
    found = [table.assign(sweep=sweep) for sweep, table in sweeps.items()]
    columns = ["sweep", "t", "corpus", "loss", "accuracy", "n_predictions"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def sae_table(metrics: Sequence[dict]) -> pd.DataFrame:
    """One row per SAE and corpus, and one over all corpora (`pooled`)."""
    columns = ["fvu", "l0", "dead_fraction", "ce_recovered", "ce_difference", "n_tokens"]
    rows = [
        {"model": entry["model"], "sae": entry["sae"], "corpus": corpus} | {key: found[key] for key in columns}
        for entry in metrics
        for corpus, found in {"pooled": entry["pooled"], **entry["corpora"]}.items()
    ]
    return pd.DataFrame(rows, columns=["model", "sae", "corpus", *columns])


def density_table(metrics: Sequence[dict]) -> pd.DataFrame:
    """One row per SAE and bin of the density histogram, bins that are empty at either end for all SAEs left out."""
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
    found = [curve.assign(model=model, sae=sae) for (model, sae), curve in curves.items()]
    columns = ["model", "sae", "step", "tokens", "loss", "fvu", "l0", "dead_fraction"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def merge_table(merges: Mapping[str, dict]) -> pd.DataFrame:
    """One row per merged tensor: cosine between the parents' tensors, and how it was merged."""
    rows = [
        {"model": model, "t": merge["t"], "tensor": tensor, "cos": found["cos"], "branch": found["branch"]}
        for model, merge in merges.items()
        for tensor, found in merge["tensors"].items()
    ]
    return pd.DataFrame(rows, columns=["model", "t", "tensor", "cos", "branch"])


def correlation_table(histograms: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row per edge and bin: how many pairs of features have an r in it."""
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
        labels: of each (model, SAE), the label that wins for each feature.
        explanations: of each (model, SAE), where there are any.
    """
    edges = np.round(np.linspace(-1, 1, N_SCORE_BINS + 1), 10)
    rows = []
    for source, found in ((LABELS, labels), (EXPLANATIONS, explanations)):
        for (model, sae), table in found.items():
            scores = table["score"].dropna()
            counts = np.histogram(scores, bins=edges)[0]
            own = {"model": model, "sae": sae, "source": source, "n": len(scores), "median": scores.median()}
            rows += [own | {"r": float(r), "n_features": int(n)} for r, n in zip(edges, counts, strict=False)]
    return pd.DataFrame(rows, columns=["model", "sae", "source", "n", "median", "r", "n_features"])


def timing_table(benchmarks: pd.DataFrame) -> pd.DataFrame:
    """Per stage and in all: jobs, summed wall and CPU seconds, largest memory of a job in MB."""
    columns = ["stage", "n_jobs", "wall_seconds", "cpu_seconds", "max_rss_mb"]
    if benchmarks.empty:
        return pd.DataFrame(columns=columns)
    found = benchmarks.groupby("stage", sort=False).agg(
        n_jobs=("s", "size"), wall_seconds=("s", "sum"), cpu_seconds=("cpu_time", "sum"), max_rss_mb=("max_rss", "max")
    )
    found = found.sort_values("wall_seconds", ascending=False, kind="stable")
    found.loc["all stages"] = [*found[["n_jobs", "wall_seconds", "cpu_seconds"]].sum(), found["max_rss_mb"].max()]
    return found.reset_index(names="stage").astype({"n_jobs": int})[columns]


def _instrument_row(found: Mapping, leading: str, agreements: Mapping[tuple[str, str, str], Mapping]) -> dict:
    """A row of `instrument_table`."""
    low, high = found["document_interval"] or (None, None)
    null, null_share = largest_null(found["nulls"])
    agreed = agreements.get(_comparison(found), {"share": None, "kappa": None})
    return {
        **{key: found[key] for key in ("parent", "child", "instrument", "auc", "floor_auc")},
        **_shares(found, INSTRUMENT_SHARES),
        **_bounded(found, "relative_persistence"),
        "leading": found["instrument"] == leading,
        "document_low": low,
        "document_high": high,
        "largest_null": null,
        "largest_null_share": null_share,
        "fit": is_fit(found),
        "same_verdict_share": agreed["share"],
        "kappa": agreed["kappa"],
    }


def _comparison(row: Mapping) -> tuple[str, str, str]:
    """What a row of the summary is about."""
    return row["parent"], row["child"], row["instrument"]


def _with_bounds(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _columns(shares: Sequence[str]) -> list[str]:
    """The columns of some shares."""
    return [column for name in shares for column in (name, f"{name}_n", f"{name}_low", f"{name}_high")]


def _bounded(found: Mapping, name: str) -> dict:
    """A figure of the summary and the ends of its interval, as columns."""
    return dict(zip(_with_bounds(name), (found[name], *(found[f"{name}_interval"] or (None, None))), strict=True))


def _shares(found: Mapping, shares: Sequence[str]) -> dict:
    """Some shares of the summary with their n and the ends of their intervals, as columns."""
    row = {}
    for name in shares:
        row |= _bounded(found, name) | {f"{name}_n": found[f"{name}_n"]}
    return row


def _as_share(found: Mapping, name: str) -> dict:
    """The one share of a row."""
    low, high = found[f"{name}_interval"] or (None, None)
    return {"share": found[name], "n": found[f"{name}_n"], "low": low, "high": high}


def _second(pair: tuple) -> float:
    return pair[1]
