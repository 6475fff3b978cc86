"""The page of a run: tables from what the stages saved, sentences that say what they mean, one HTML file of it all.

All text on the page is treated as hostile: it is escaped, and characters that would be invisible or turn text around
are shown.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.io
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from saelineage import figures, graph
from saelineage.dag import Graph, arrange
from saelineage.figures import visible
from saelineage.files import sha256_json

HIGH_FVU, HIGH_DEAD_FRACTION, HIGH_FVU_SPREAD = 0.25, 0.3, 0.1
NOT_MEASURED = "not measured"
KINDS = {
    "pretrain": "pretrained here",
    "finetune": "fine-tuned from {parents}",
    "merge": "merged from {parents}, t = {t}",
    "hub": "imported from the hub",
    "path": "imported from a folder",
    "reinitialise": "like {like}, with random weights",
}
AT_FLOOR, OVERLAPS, ABOVE, NO_FLOOR, NOTHING = "at or below the floor", "overlaps the floor", "above the floor", "", "-"
READINGS = {
    AT_FLOOR: "says nothing about fine-tuning",
    OVERLAPS: "above the floor, but the intervals overlap",
    ABOVE: "above the floor, and the intervals do not overlap",
    NO_FLOOR: "no floor was measured: train a second seed",
    NOTHING: "no feature is testable",
}


class Results(NamedTuple):
    """Everything the page shows."""

    config: dict
    summary: dict
    tables: Mapping[str, pd.DataFrame]
    examples: dict
    timings: pd.DataFrame
    manifests: Sequence[dict]
    dag_svg: str
    rulegraph_svg: str


def render_page(results: Results, template: str, stylesheet: str) -> str:
    """The page as one HTML text that loads nothing from elsewhere; equal results give equal text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "count": count, "percent": percent, "interval": interval, "lines": lines}
    page = environment.from_string(template).render(
        run=results.summary["run"],
        threshold=results.summary["threshold"],
        models=results.summary["models"],
        edges=[edge | {"reading": reading(edge)} for edge in results.summary["edges"]],
        readings=READINGS,
        answer=answer(results.summary),
        corpora=list(results.config["corpora"]),
        tables={name: table.to_dict("records") for name, table in results.tables.items()},
        pictures=draw(results),
        warnings=sae_warnings(results.tables["saes"]),
        pooled=pooled(results.tables["saes"]),
        examples=examples_view(results.examples),
        merges=merges_view(results.tables["merges"]),
        timings=results.timings.to_dict("records"),
        versions=versions(results.manifests),
        config_yaml=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True, width=100),
        config_sha256=sha256_json(results.config),
        dag_svg=Markup(results.dag_svg),  # noqa: S704 - drawn, and escaped, by dag.py
        rulegraph_svg=Markup(results.rulegraph_svg),  # noqa: S704
        stylesheet=Markup(stylesheet),  # noqa: S704
        plotlyjs=Markup(get_plotlyjs().replace("</script", r"<\/script")),  # noqa: S704
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def draw(results: Results) -> dict[str, Markup]:
    """Every picture that has something to show, as HTML."""
    tables, threshold = results.tables, results.summary["threshold"]
    labels = results.tables["edges"].assign(
        label=[f"{percent(share)} persist" for share in tables["edges"]["persist_share"]],
        floor=[f"floor {percent(share)}" for share in tables["edges"]["seed_floor_share"]],
    )
    pictures = {"lineage": Markup(figures.lineage_svg(tables["models"], labels))}  # noqa: S704 - escaped there
    plots: dict[str, tuple[pd.DataFrame, Callable]] = {
        "saes": (tables["saes"], figures.fvu_figure),
        "densities": (tables["densities"], figures.density_figure),
        "training": (tables["training"], figures.training_figure),
    }
    pictures |= {name: _embedded(figure(table), name) for name, (table, figure) in plots.items() if len(table)}
    if len(tables["flows"]):
        pictures["flows"] = _embedded(figures.flows_figure(*flow_nodes(tables["flows"])), "flows")
    if len(tables["correlations"]):
        found = figures.correlation_figure(tables["correlations"], threshold)
        pictures["correlations"] = _embedded(found, "correlations")
    for sweep, rows in tables["sweeps"].groupby("sweep", sort=False):
        chosen = results.config["models"][results.config["sweeps"][sweep]["model"]]["merge"]["t"]
        for measure in ("accuracy", "loss"):
            name = f"sweep-{sweep}-{measure}"
            pictures[name] = _embedded(figures.sweep_figure(rows, measure, chosen), name)
    return pictures


def answer(summary: dict) -> list[str]:
    """The answer in sentences: each edge's share beside its floor, then what they say together."""
    sentences = []
    for edge in summary["edges"]:
        way = f"From {edge['parent']} to {edge['child']}"
        if edge["persist_share"] is None:
            sentences.append(f"{way} no feature is testable.")
            continue
        share = f"{way} {_share(edge, 'persist_share')} of {count(edge['persist_share_n'])} testable features persist"
        floor = f"two SAE seeds of {edge['parent']} agree on {_share(edge, 'seed_floor_share')}"
        if edge["seed_floor_share"] is None:
            floor = f"no seed floor was measured for {edge['parent']}"
        sentences.append(f"{share}; {floor}.")
    return [*sentences, _together([reading(edge) for edge in summary["edges"]])]


def reading(edge: Mapping) -> str:
    """How an edge's persisting share stands to the share that two seeds of the parent agree on."""
    share, floor = edge["persist_share"], edge["seed_floor_share"]
    if share is None:
        return NOTHING
    if floor is None:
        return NO_FLOOR
    if share <= floor:
        return AT_FLOOR
    return ABOVE if edge["persist_share_interval"][0] > edge["seed_floor_share_interval"][1] else OVERLAPS


def edge_table(summary: dict) -> pd.DataFrame:
    """One row per edge: counts of every class, shares with what they are shares of and their intervals."""
    shares = ("persist_share", "seed_floor_share", "inherited_share", "child_seed_floor_share")
    rows = []
    for edge in summary["edges"]:
        row = {key: edge[key] for key in ("parent", "child", "persists", "disappears", "untestable_parent")}
        row |= {key: edge[key] for key in ("inherited", "emerges", "untestable_child")}
        for name in shares:
            low, high = edge[f"{name}_interval"] or (None, None)
            row |= {name: edge[name], f"{name}_n": edge[f"{name}_n"], f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"reading": reading(edge)})
    bounds = [column for name in shares for column in (name, f"{name}_n", f"{name}_low", f"{name}_high")]
    counts = ["persists", "disappears", "untestable_parent", "inherited", "emerges", "untestable_child"]
    return pd.DataFrame(rows, columns=["parent", "child", *counts, *bounds, "reading"])


def null_table(summary: dict) -> pd.DataFrame:
    """One row per edge and null: the share of the parent's features that persist where nothing can."""
    rows = []
    for edge in summary["edges"]:
        for null, found in edge["null_shares"].items():
            low, high = found["persist_share_interval"] or (None, None)
            row = {
                "parent": edge["parent"],
                "child": edge["child"],
                "null": null,
                "persist_share": found["persist_share"],
            }
            rows.append(row | {"n": found["persist_share_n"], "low": low, "high": high})
    return pd.DataFrame(rows, columns=["parent", "child", "null", "persist_share", "n", "low", "high"])


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


def flow_nodes(flows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nodes and flows of the Sankey: models, and between two of them what is matched, lost, new and untestable.

    Returns:
        `name`, `label`, `column`, `size`, `colour` of the nodes; the flows with `source`, `target` and `edge`.
    """
    flows = flows.assign(edge=flows["parent"] + " → " + flows["child"])
    middles = flows["edge"] + flows["verdict"].replace({"inherited": "persists"}).map(" {}".format)
    middles = middles.where(flows["verdict"] != "untestable", middles + " " + flows["side"])
    of_parent = flows["side"] == "parent"
    flows = flows.assign(
        source=flows["parent"].where(of_parent, middles), target=middles.where(of_parent, flows["child"])
    )
    rank = _model_ranks(flows)
    inflow, outflow = flows.groupby("target")["n_features"].sum(), flows.groupby("source")["n_features"].sum()
    nodes = {model: {"label": model, "column": 2.0 * rank[model], "colour": figures.GREY} for model in rank}
    for row, middle in zip(flows.itertuples(), middles, strict=True):
        verdict = {"inherited": "persists"}.get(row.verdict, row.verdict)
        column = 2.0 * rank[row.parent] + 1 if of_parent[row.Index] else 2.0 * rank[row.child] - 1
        label = f"{row.verdict} {count(row.n_features)}"
        if middle in nodes:
            nodes[middle]["label"] += f" | {label}"
        else:
            nodes[middle] = {"label": label, "column": column, "colour": figures.VERDICT_COLOURS[verdict]}
    table = pd.DataFrame.from_dict(nodes, orient="index").rename_axis("name").reset_index()
    table["size"] = [max(inflow.get(name, 0), outflow.get(name, 0)) for name in table["name"]]
    table = table[table["size"] > 0].reset_index(drop=True)
    return table[["name", "label", "column", "size", "colour"]], flows


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


def pooled(saes: pd.DataFrame) -> list[dict]:
    """The rows of all corpora together, each with what it should be read with caution for."""
    rows = saes[saes["corpus"] == "pooled"].to_dict("records")
    return [
        row
        | {
            "high_fvu": row["fvu"] is not None and row["fvu"] > HIGH_FVU,
            "high_dead_fraction": row["dead_fraction"] > HIGH_DEAD_FRACTION,
        }
        for row in rows
    ]


def sae_warnings(saes: pd.DataFrame) -> list[str]:
    """What about the SAEs should make one careful, one sentence each."""
    rows = pooled(saes)
    warnings = [
        f"{row['model']}.{row['sae']} leaves {percent(row['fvu'])} of the variance unexplained (more than "
        f"{percent(HIGH_FVU)}): a feature it misses looks like one that disappeared."
        for row in rows
        if row["high_fvu"]
    ]
    warnings += [
        f"{percent(row['dead_fraction'])} of the latents of {row['model']}.{row['sae']} never fire (more than "
        f"{percent(HIGH_DEAD_FRACTION)})."
        for row in rows
        if row["high_dead_fraction"]
    ]
    known = [row for row in rows if row["fvu"] is not None and not np.isnan(row["fvu"])]
    if known:
        best, worst = min(known, key=_fvu), max(known, key=_fvu)
        if worst["fvu"] - best["fvu"] > HIGH_FVU_SPREAD:
            warnings.append(
                f"The SAEs are not equally good: fvu is {number(best['fvu'])} for {best['model']}.{best['sae']} and "
                f"{number(worst['fvu'])} for {worst['model']}.{worst['sae']}, so shares that rest on them differ for "
                "that too."
            )
    return warnings


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


def versions(manifests: Sequence[dict]) -> dict[str, str]:
    """The versions that the jobs recorded, by package; several where jobs differed."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in [("python", manifest["python"]), *manifest["versions"].items()]:
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}


def examples_view(examples: dict) -> dict:
    """`examples.json` with each token's share of its feature's largest activation beside the activation."""
    return examples | {
        "persisting": [_feature_view(feature) for feature in examples["persisting"]],
        "disappearing": [
            found | {"features": [_feature_view(feature) for feature in found["features"]]}
            for found in examples["disappearing"]
        ],
    }


def merges_view(merges: pd.DataFrame) -> list[dict]:
    """Per merged model its tensors, and how many went which way."""
    return [
        {
            "model": model,
            "t": rows["t"].iloc[0],
            "tensors": rows.to_dict("records"),
            "branches": ", ".join(
                f"{n} by {branch}" for branch, n in rows["branch"].value_counts().sort_index().items()
            ),
        }
        for model, rows in merges.groupby("model", sort=False)
    ]


def number(value: float | int | None, digits: int = 3) -> str:
    """A number with a fixed number of digits after the point."""
    return NOT_MEASURED if value is None or np.isnan(value) else f"{value:.{digits}f}"


def count(value: float | int | None) -> str:
    """A whole number with commas between thousands."""
    return NOT_MEASURED if value is None or np.isnan(value) else f"{value:,.0f}"


def percent(value: float | int | None, digits: int = 1) -> str:
    """A share in percent."""
    return NOT_MEASURED if value is None or np.isnan(value) else f"{100 * value:.{digits}f} %"


def interval(bounds: Sequence[float] | None) -> str:
    """An interval of shares, in percent."""
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def lines(text: str) -> Markup:
    """Text of several lines, its line breaks kept."""
    return Markup("\n").join(escape(visible(line)) for line in text.split("\n"))


def _shown(value: object) -> object:
    """What Jinja puts on the page for a value: text with nothing hidden in it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _embedded(figure: object, name: str) -> Markup:
    """A Plotly figure as HTML under a fixed id."""
    config = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}
    html = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, div_id=f"plot-{name}", config=config)
    return Markup(html)  # noqa: S704 - Plotly escapes what could end its script


def _share(edge: Mapping, name: str) -> str:
    """A share with its interval, for a sentence."""
    bounds = edge[f"{name}_interval"]
    return percent(edge[name]) + (f" [{interval(bounds)}]" if bounds else "")


def _together(readings: Sequence[str]) -> str:
    """The last sentence of the answer."""
    n, at_floor = len(readings), readings.count(AT_FLOOR)
    if n == 0:
        return "The lineage has no edge, so there is nothing to compare."
    if readings.count(NO_FLOOR) == n:
        return "Without a second SAE seed there is no floor: the shares cannot be told from the noise of SAE training."
    if at_floor == n:
        return "No share is above its floor, so by themselves they say nothing about what fine-tuning or merging did."
    above = readings.count(ABOVE)
    return (
        f"Of {n} edges, {at_floor} lie at or below the floor and say nothing about fine-tuning, "
        f"{readings.count(OVERLAPS)} overlap it, and {above} lie above it."
    )


def _model_ranks(flows: pd.DataFrame) -> dict[str, int]:
    """How deep in the lineage each model of the flows stands."""
    names = list(dict.fromkeys([*flows["parent"], *flows["child"]]))
    numbers = {name: index for index, name in enumerate(names)}
    pairs = flows[["parent", "child"]].drop_duplicates().itertuples(index=False)
    found = arrange(Graph([(name,) for name in names], [(numbers[a], numbers[b]) for a, b in pairs]), 1.0)
    return dict(zip(names, found.rank, strict=True))


def _feature_view(feature: dict) -> dict:
    """A feature with a line per member and passage: token, activation, share of the member's largest activation."""
    names = [f"{member['model']}.{member['sae']} / {member['latent']}" for member in feature["members"]]
    largest = [member["max_activation"] for member in feature["members"]]
    passages = []
    for passage in feature["passages"]:
        rows = [
            (name, [(token, a, a / most if most else 0.0) for token, a in zip(passage["tokens"], own, strict=True)])
            for name, most, own in zip(names, largest, passage["activations"], strict=True)
        ]
        passages.append(passage | {"rows": rows})
    return feature | {"names": names, "passages": passages}


def _fvu(row: Mapping) -> float:
    return row["fvu"]
