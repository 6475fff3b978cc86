"""The page of a run: views of its tables, its pictures, one HTML file of it all.

All text on the page is treated as hostile: it is escaped, and characters that would be invisible or turn text around
are shown.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from saelineage.files.atomic import sha256_json
from saelineage.report import figures
from saelineage.report.dashboards import FEATURES_PER_CHUNK, VERDICTS
from saelineage.report.drawing import Graph, arrange, jobs_svg
from saelineage.report.figures import visible
from saelineage.report.sentences import (
    READINGS,
    answer,
    count,
    described,
    instrument_warnings,
    interval,
    number,
    percent,
    pooled,
    sae_warnings,
    signed,
)
from saelineage.report.tables import (
    EXPLANATIONS,
    LARGEST_NULL,
    LEAST_FLOOR,
    reading,
)

TRAJECTORY_WIDTH, TRAJECTORY_HEIGHT, TRAJECTORY_CARD, TRAJECTORY_MARGIN = 196.0, 112.0, 70.0, 8.0
"""Room for a model's card in the picture of one feature's trajectory, in pixels; its own height is 54."""


class Results(NamedTuple):
    """Everything the page shows."""

    config: dict
    summary: dict
    tables: Mapping[str, pd.DataFrame]
    examples: dict
    timings: pd.DataFrame
    manifests: Mapping[str, dict]
    """By the folder that each tells of, under the run's own."""
    jobs: Sequence[dict]
    """From `jobs.collect`."""
    rulegraph_svg: str
    chunks: Mapping[str, str]
    """Data of the features that the page itself holds, by the chunk's name; others it loads from beside it."""


class Sources(NamedTuple):
    """What the page is made from."""

    template: str
    stylesheet: str
    scripts: Mapping[str, str]
    """JavaScript by name: `elements`, `explorer`, `jobs`, `page`."""


def render_page(results: Results, sources: Sources) -> str:
    """The page as one HTML text that loads nothing from elsewhere; equal results give equal text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "interval": interval,
        "lines": lines,
        "signed": signed,
    }
    page = environment.from_string(sources.template).render(
        run=results.summary["run"],
        threshold=results.summary["threshold"],
        models=results.summary["models"],
        leading=results.summary["leading"],
        edges=[edge | {"reading": READINGS[reading(edge)]} for edge in results.summary["edges"]],
        answer=answer(results.summary),
        bounds={"least_floor": LEAST_FLOOR, "largest_null": LARGEST_NULL},
        corpora=list(results.config["corpora"]),
        tables={name: table.to_dict("records") for name, table in results.tables.items()},
        pictures=draw(results),
        warnings=[
            *instrument_warnings(results.summary),
            *sae_warnings(results.tables["saes"], results.summary["saes"]),
        ],
        examples=examples_view(results.examples),
        **views(results.tables),
        timings=results.timings.to_dict("records"),
        versions=versions(results.manifests.values()),
        digests=digests(results.manifests),
        config_yaml=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True, width=100),
        config_sha256=sha256_json(results.config),
        n_jobs=len(results.jobs),
        jobs_svg=Markup(jobs_svg(results.jobs)),  # noqa: S704 - drawn, and escaped, by dag.py
        rulegraph_svg=Markup(results.rulegraph_svg),  # noqa: S704
        facts=_json(facts(results)),
        csv_links={name: csv_link(table) for name, table in results.tables.items()},
        explained=bool((results.tables["scores"]["source"] == EXPLANATIONS).any()),
        chunks=results.chunks,
        stylesheet=Markup(sources.stylesheet),  # noqa: S704
        scripts={name: _script(text) for name, text in sources.scripts.items()},
        plotlyjs=_script(get_plotlyjs()),
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def views(tables: Mapping[str, pd.DataFrame]) -> dict:
    """Tables as the page lays them out, where that is not row by row."""
    return {
        "described": described(tables["instruments"]),
        "instruments": by_edge(tables["instruments"]),
        "matchings": matchings_view(tables["matchings"]),
        "matchings_rules": list(dict.fromkeys(tables["matchings"]["rule"])),
        "ablations": ablations_view(tables["ablations"]),
        "ablated_corpora": list(dict.fromkeys(tables["ablations"]["corpus"])),
        "sources": sources_view(tables["sources"]),
        "pooled": pooled(tables["saes"]),
        "merges": merges_view(tables["merges"]),
    }


def facts(results: Results) -> dict:
    """What the page's table of features knows of the run: models, edges, and where models stand in the lineage."""
    edges = [[edge["parent"], edge["child"]] for edge in results.summary["edges"]]
    models = [model for model in results.summary["models"] if any(model in edge for edge in edges)]
    return {
        "models": models,
        "edges": edges,
        "layout": _layout(models, edges),
        "corpora": list(results.config["corpora"]),
        "verdicts": VERDICTS,
        "features_per_chunk": FEATURES_PER_CHUNK,
    }


def _layout(models: Sequence[str], edges: Sequence[Sequence[str]]) -> dict:
    """Upper middles of the models' cards, parents above children, and the size of the whole, in pixels."""
    if not models:
        return {"places": {}, "size": [0.0, 0.0]}
    number = {model: index for index, model in enumerate(models)}
    graph = Graph([(model,) for model in models], [(number[parent], number[child]) for parent, child in edges])
    found = arrange(graph, TRAJECTORY_WIDTH)
    places = {
        model: [place, TRAJECTORY_MARGIN + TRAJECTORY_HEIGHT * rank]
        for model, place, rank in zip(models, found.place, found.rank, strict=True)
    }
    return {"places": places, "size": [found.extent, TRAJECTORY_HEIGHT * max(found.rank) + TRAJECTORY_CARD]}


def draw(results: Results) -> dict[str, Markup | dict]:
    """Every picture that has something to show: Plotly's as its height and JSON, others as SVG."""
    tables, threshold = results.tables, results.summary["threshold"]
    labels = results.tables["edges"].assign(
        label=[f"{percent(share)} persist" for share in tables["edges"]["persist_share"]],
        floor=[f"floor {percent(share)}" for share in tables["edges"]["floor_share"]],
    )
    models = tables["models"][tables["models"]["model"].isin(results.summary["models"])]
    pictures = {"lineage": Markup(figures.lineage_svg(models, labels))}  # noqa: S704 - escaped there
    plots: dict[str, tuple[pd.DataFrame, Callable]] = {
        "saes": (tables["saes"], figures.fvu_figure),
        "densities": (tables["densities"], figures.density_figure),
        "training": (tables["training"], figures.training_figure),
        "scores": (tables["scores"], figures.scores_figure),
    }
    pictures |= {name: _figure(figure(table)) for name, (table, figure) in plots.items() if len(table)}
    if len(tables["flows"]):
        pictures["flows"] = _figure(figures.flows_figure(*flow_nodes(tables["flows"])))
    leading = tables["curves"][tables["curves"]["leading"].astype(bool)]
    if len(leading):
        pictures["curves"] = _figure(figures.share_curves_figure(leading, threshold))
    if len(tables["correlations"]):
        found = figures.correlation_figure(tables["correlations"], threshold)
        pictures["correlations"] = _figure(found)
    for sweep, rows in tables["sweeps"].groupby("sweep", sort=False):
        chosen = results.config["models"][results.config["sweeps"][sweep]["model"]]["merge"]["t"]
        for measure in ("accuracy", "loss"):
            name = f"sweep-{sweep}-{measure}"
            pictures[name] = _figure(figures.sweep_figure(rows, measure, chosen))
    return pictures


def by_edge(table: pd.DataFrame) -> list[dict]:
    """The rows of each edge, edges in the table's order."""
    return [
        {"edge": f"{parent} → {child}", "rows": rows.to_dict("records")}
        for (parent, child), rows in table.groupby(["parent", "child"], sort=False)
    ]


def matchings_view(matchings: pd.DataFrame) -> list[dict]:
    """Per edge and instrument the row of every rule that was applied."""
    return [
        edge
        | {"rows": [{"instrument": name, "rules": rules} for name, rules in _by(edge["rows"], "instrument", "rule")]}
        for edge in by_edge(matchings)
    ]


def ablations_view(ablations: pd.DataFrame) -> list[dict]:
    """Per edge a row for each group: its model, its rows by corpus, and those of the random group beside it."""
    found = []
    for edge in by_edge(ablations):
        groups = dict(_by(edge["rows"], "group", "corpus"))
        rows = [
            {"group": group, "own": own, "random": groups[f"{group}_random"]}
            for group, own in groups.items()
            if f"{group}_random" in groups
        ]
        found.append(edge | {"rows": rows})
    return found


def sources_view(sources: pd.DataFrame) -> list[dict]:
    """Per merged model the share of its features from each source, with words for the source."""
    found = []
    for merge, rows in sources.groupby("merge", sort=False):
        names = rows["source"].tolist()
        parents = names[: names.index("both")]
        words = {name: f"{name} alone" if name in parents else f"{name}, but neither parent" for name in names}
        words |= {"both": "both parents", "new": "none of these"}
        found.append({"merge": merge, "rows": rows.assign(words=[words[name] for name in names]).to_dict("records")})
    return found


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


def digests(manifests: Mapping[str, dict]) -> list[dict]:
    """Every file that manifests name: where it is, its size and its sha256."""
    return [
        {"path": f"{folder}/{name}", **entry}
        for folder, manifest in manifests.items()
        for name, entry in manifest["files"].items()
    ]


def versions(manifests: Iterable[dict]) -> dict[str, str]:
    """The versions that the jobs recorded, by package; several where jobs differed."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in [("python", manifest["python"]), *manifest["versions"].items()]:
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}


def examples_view(examples: dict) -> dict:
    """`examples.json` with each token's share of its feature's largest activation beside the activation."""
    return examples | {
        "named": [_feature_view(feature) for feature in examples["named"]],
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


def lines(text: str) -> Markup:
    """Text of several lines, its line breaks kept."""
    return Markup("\n").join(escape(visible(line)) for line in text.split("\n"))


def _shown(value: object) -> object:
    """What Jinja puts on the page for a value: text with nothing hidden in it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figure(figure: go.Figure) -> dict:
    """A Plotly figure as the page draws it."""
    return {"height": figure.layout.height, "json": _json(json.loads(figure.to_json()))}


def _json(value: object) -> Markup:
    """JSON for inside a script element, where no text can end the element."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", r"\u003c"))  # noqa: S704


def _script(text: str) -> Markup:
    """JavaScript for inside a script element."""
    return Markup(text.replace("</script", r"<\/script"))  # noqa: S704


def csv_link(table: pd.DataFrame) -> str:
    """A table as a link that holds all of it."""
    return f"data:text/csv;base64,{base64.b64encode(table.to_csv(index=False).encode()).decode()}"


def _by(rows: Sequence[dict], first: str, then: str) -> list[tuple[str, dict[str, dict]]]:
    """Rows by the values of two columns, in the order they come."""
    found: dict[str, dict] = {}
    for row in rows:
        found.setdefault(row[first], {})[row[then]] = row
    return list(found.items())


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
