"""The page of a run: sentences that say what its tables mean, views of the tables, one HTML file of it all.

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
from pandas.api.typing import NAType
from plotly.offline import get_plotlyjs

from saelineage import figures
from saelineage.dag import Graph, arrange
from saelineage.figures import visible
from saelineage.files import sha256_json
from saelineage.report_tables import (
    AT_FLOOR,
    BELOW,
    LARGEST_NULL,
    LEAST_FLOOR,
    NO_FLOOR,
    NO_RATIO,
    NOTHING,
    is_fit,
    largest_null,
    reading,
)

HIGH_FVU, HIGH_DEAD_FRACTION, HIGH_FVU_SPREAD = 0.25, 0.3, 0.1
NOT_MEASURED = "not measured"
SPACE = "\u00a0"
"""Between a number and its unit, which stay on one line."""
READINGS = {
    BELOW: "below the floor: features are lost",
    AT_FLOOR: "at the floor: no loss beyond the instrument's own",
    NO_RATIO: "not comparable: its ratio to the floor has no interval",
    NO_FLOOR: "no floor was measured: train a second seed",
    NOTHING: "no feature is testable",
}
INSTRUMENTS = {
    "independent": "Each model's SAE is trained from a random seed of its own. Where nothing changed: SAEs from two "
    "seeds of the parent.",
    "anchored": "The child's SAE starts from the parent's and is trained on from there, on the child; a merge's starts "
    "from the average of its parents'. It may keep what the child no longer needs. Where nothing changed: the parent's "
    "SAE, trained on in the same way on the parent.",
    "frozen": "The SAE of the model without parents reads every model and is trained on none of them, so nothing can "
    "emerge. Where nothing changed: the SAE beside itself.",
    "same_init": "All models' SAEs start from the same random weights and see tokens in the same order. Where nothing "
    "changed: the same start on the parent, with tokens in another order.",
    "own_mixture": "As independent, each SAE trained only on the corpora that its model and the model's ancestors "
    "were trained on. Where nothing changed: SAEs from two seeds of the parent.",
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
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "interval": interval,
        "lines": lines,
        "signed": signed,
    }
    page = environment.from_string(template).render(
        run=results.summary["run"],
        threshold=results.summary["threshold"],
        models=results.summary["models"],
        lead=results.summary["lead"],
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
        versions=versions(results.manifests),
        config_yaml=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True, width=100),
        config_sha256=sha256_json(results.config),
        dag_svg=Markup(results.dag_svg),  # noqa: S704 - drawn, and escaped, by dag.py
        rulegraph_svg=Markup(results.rulegraph_svg),  # noqa: S704
        stylesheet=Markup(stylesheet),  # noqa: S704
        plotlyjs=Markup(get_plotlyjs().replace("</script", r"<\/script")),  # noqa: S704
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


def draw(results: Results) -> dict[str, Markup]:
    """Every picture that has something to show, as HTML."""
    tables, threshold = results.tables, results.summary["threshold"]
    labels = results.tables["edges"].assign(
        label=[f"{percent(share)} persist" for share in tables["edges"]["persist_share"]],
        floor=[f"floor {percent(share)}" for share in tables["edges"]["floor_share"]],
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
    leading = tables["curves"][tables["curves"]["lead"].astype(bool)]
    if len(leading):
        pictures["curves"] = _embedded(figures.share_curves_figure(leading, threshold), "curves")
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
    """The answer: each edge's share beside its floors, what they say together, and whether the instrument is fit."""
    if not summary["edges"]:
        return ["The lineage has no edge, so there is nothing to compare."]
    return [
        f"All shares here are those of this run's leading instrument, {summary['lead']}.",
        *[_edge_sentence(edge) for edge in summary["edges"]],
        _together([reading(edge) for edge in summary["edges"]]),
        instrument_check(summary),
    ]


def instrument_check(summary: dict) -> str:
    """Whether the leading instrument finds what is there, and nothing else: its lowest floor and its largest null."""
    leading = _leading(summary)
    floors = [(one["floor_share"], _arrow(one)) for one in leading if one["floor_share"] is not None]
    nulls = [(share, null, _arrow(one)) for one in leading for null, share in [largest_null(one["nulls"])] if null]
    floor, null = "No floor was measured", "no null was computed"
    if floors:
        share, edge = min(floors)
        asked = f"{percent(LEAST_FLOOR, 0)} or more is asked for"
        floor = f"Where nothing changed it finds {percent(share)} again at worst ({edge}; {asked})"
    if nulls:
        share, name, edge = max(nulls)
        asked = f"{percent(LARGEST_NULL, 0)} or less is asked for"
        null = f"where nothing can persist it finds {percent(share)} at most ({name}, {edge}; {asked})"
    fits = [is_fit(one) for one in leading]
    verdict = "fails its check" if False in fits else "could not be checked" if None in fits else "passes its check"
    return f"The instrument {verdict}. {floor}; {null}."


def instrument_warnings(summary: dict) -> list[str]:
    """What follows where the leading instrument fails its check, one sentence each."""
    leading = _leading(summary)
    low = [one for one in leading if one["floor_share"] is not None and one["floor_share"] < LEAST_FLOOR]
    high = [one for one in leading if (largest_null(one["nulls"])[1] or 0.0) > LARGEST_NULL]
    warnings = []
    if low:
        warnings.append(
            f"Under {summary['lead']} the floor is less than {percent(LEAST_FLOOR, 0)} on {len(low)} of {len(leading)} "
            "edges: the instrument loses features by itself, so small losses cannot be seen, and an edge at the floor "
            "may have lost features all the same."
        )
    if high:
        warnings.append(
            f"Under {summary['lead']} a null is more than {percent(LARGEST_NULL, 0)} on {len(high)} of {len(leading)} "
            "edges: as many features match without any descent, so shares may be too high by that much."
        )
    return warnings


def described(instruments: pd.DataFrame) -> dict[str, str]:
    """What each instrument of the run is, in words."""
    return {name: _description(name) for name in dict.fromkeys(instruments["instrument"])}


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


def sae_warnings(saes: pd.DataFrame, leading: Mapping[str, str]) -> list[str]:
    """What about the SAEs should make one careful, one sentence each.

    Args:
        saes: from `sae_table`.
        leading: of each model, the SAE that verdicts rest on; of others nothing is said.
    """
    rows = [row for row in pooled(saes) if leading.get(row["model"]) == row["sae"]]
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
    return NOT_MEASURED if pd.isna(value) else f"{value:.{digits}f}"


def signed(value: float | int | None, digits: int = 3) -> str:
    """A change: a number with its sign."""
    return NOT_MEASURED if pd.isna(value) else f"{value:+.{digits}f}"


def count(value: float | int | NAType | None) -> str:
    """A whole number with commas between thousands."""
    return NOT_MEASURED if pd.isna(value) else f"{value:,.0f}"


def percent(value: float | int | None, digits: int = 1) -> str:
    """A share in percent."""
    return NOT_MEASURED if pd.isna(value) else f"{100 * value:.{digits}f}{SPACE}%"


def interval(bounds: Sequence[float | None] | None) -> str:
    """An interval of shares, in percent; nothing where there is none."""
    if bounds is None or pd.isna(bounds[0]):
        return ""
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}{SPACE}%"


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


def _edge_sentence(edge: Mapping) -> str:
    """An edge's share, and beside it the same where nothing changed, and between independent SAEs of the parent."""
    way = f"From {edge['parent']} to {edge['child']}"
    if edge["persist_share"] is None:
        return f"{way} no feature is testable."
    share = f"{way} {_share(edge, 'persist_share')} of {count(edge['persist_share_n'])} testable features persist"
    return f"{share}; {_floors(edge)}."


def _floors(edge: Mapping) -> str:
    """What an edge's share is to be held against, in words."""
    floor, seeds, parent = _share(edge, "floor_share"), _share(edge, "seed_floor_share"), edge["parent"]
    if edge["floor_share"] is None:
        return f"no floor was measured for {parent}"
    if edge["instrument"] == "independent":
        return f"where nothing changed, between two independent SAEs of {parent}, {floor} do"
    if edge["seed_floor_share"] is None:
        return f"where nothing changed {floor} do, and {parent} has no two independent SAEs"
    return f"where nothing changed {floor} do, and two independent SAEs of {parent} agree on {seeds}"


def _together(readings: Sequence[str]) -> str:
    """What the edges say together."""
    n, below, at_floor = len(readings), readings.count(BELOW), readings.count(AT_FLOOR)
    if readings.count(NO_FLOOR) == n:
        return "Without a second SAE seed there is no floor: the shares cannot be told from the noise of SAE training."
    counts = {
        "below the floor, where features are lost": below,
        "at the floor, with no loss beyond the instrument's own": at_floor,
        "where no floor can be held against the share": n - below - at_floor,
    }
    parts = [f"{found} {'lies' if found == 1 else 'lie'} {where}" for where, found in counts.items() if found]
    return f"Of {n} {'edge' if n == 1 else 'edges'}, {'; '.join(parts)}."


def _leading(summary: dict) -> list[dict]:
    """What the leading instrument says of each edge."""
    return [one for one in summary["instruments"] if one["instrument"] == summary["lead"]]


def _arrow(edge: Mapping) -> str:
    return f"{edge['parent']} → {edge['child']}"


def _description(instrument: str) -> str:
    """An instrument in words, those of several budgets and of one parent alone among them."""
    name, at, n_tokens = instrument.partition("@")
    if at:
        return f"As {name}, the child's SAE trained on {count(int(n_tokens))} tokens."
    if instrument.startswith("anchored to "):
        return "As anchored, the merge's SAE started from this parent's alone."
    return INSTRUMENTS[instrument]


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


def _fvu(row: Mapping) -> float:
    return row["fvu"]
