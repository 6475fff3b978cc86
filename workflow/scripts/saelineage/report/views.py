"""Views: the tables of the report, arranged as the page and its figures show them."""

from collections.abc import Hashable, Mapping, Sequence
from urllib.parse import urlencode

import pandas as pd

from saelineage.lineage.evidence import ALL, IDENTIFIED
from saelineage.lineage.importance import CHANGED
from saelineage.lineage.matching import SIDES
from saelineage.lineage.verdicts import NEW
from saelineage.plan.graph import POOLED, REVIVED
from saelineage.plan.merges import FROM_SWEEP
from saelineage.report.acted import acted_view, taught_view
from saelineage.report.drawing import Graph, arrange
from saelineage.report.sentences import (
    agreement_of_effects,
    count,
    described,
    moved,
    percent,
    pooled,
    revived,
    stabilised,
)
from saelineage.report.style import VERDICT_COLOURS, Colours

CROSSCODER_TABLES = ("crosscoders", "crosscoder_curves", "crosscoder_norms")
"""Tables of crosscoders, whose figures show one seed."""

FOUND = ["persist_share", "persist_share_low", "persist_share_high"]
"""Columns of the table of edges that stand on the lineage's arrows."""

WIDE = 0.06
"""Share of a bar from which its number fits in."""


def views(tables: Mapping[str, pd.DataFrame]) -> dict:
    """Tables that the page does not show row by row, arranged as it shows them."""
    return {
        "described": described(tables["instruments"]),
        "instruments": by_edge(tables["instruments"]),
        "matchings": matchings_view(tables["matchings"]),
        "matchings_rules": list(dict.fromkeys(tables["matchings"]["rule"])),
        "ablations": ablations_view(tables["ablations"]),
        "crosscoder_ablations": crosscoder_ablations_view(tables["crosscoder_ablations"]),
        "crosscoder_corpora": list(dict.fromkeys(tables["crosscoder_ablations"]["corpus"])),
        "ablated_corpora": list(dict.fromkeys(tables["ablations"]["corpus"])),
        "agreement_of_effects": agreement_of_effects(tables["effects"]),
        "sources": sources_view(tables["sources"]),
        "stabilised": stabilised(tables["budgets"]),
        "revived": revived(tables["revivals"]),
        "revivals": revivals_view(tables["revivals"]),
        "pooled": pooled(tables["saes"]),
        "step_lines": lines_view(tables["steps"], tables["survival"]),
        "merges": merges_view(tables["merges"]),
        "drift": by_edge(tables["drift"]),
        "by_corpus": by_edge(tables["by_corpus"]),
        "weights": by_edge(tables["weights"]),
        "important": important_view(tables["important"]),
        "estimates": estimates_view(tables["estimates"]),
        "acted": acted_view(*(tables[name] for name in ("edges", "acts", "act_summary", "patches"))),
        "taught": taught_view(*(tables[name] for name in ("edges", "enriched", "samples", "taught"))),
        "learnt": learnt_view(tables["edges"], tables["passages"], tables["passage_features"]),
    }


def figure_views(
    tables: Mapping[str, pd.DataFrame], lineage: Sequence[str], swept: Mapping[str, dict], colours: Colours
) -> dict[str, pd.DataFrame]:
    """The tables that figures draw, where they are not those of the report.

    Args:
        tables: those of the report.
        lineage: the models of the lineage.
        swept: of each sweep `chosen`, the swept settings of its merge, and `parents`.
        colours: of the page.
    """
    curves, sweeps = tables["curves"], tables["sweeps"]
    edges = tables["edges"].drop_duplicates(["parent", "child"])  # identified features, where they are known
    flow_nodes, flow_links = flows_view(leading_groups(tables["flows"]), colours)
    models = tables["models"][tables["models"]["model"].isin(lineage)]
    return {
        "lineage_models": models.assign(colour=[colours.model(model) for model in models["model"]]),
        "lineage_edges": edges.assign(
            label=[_found(*row) for row in edges[FOUND].itertuples(index=False)],
            control=[f"unchanged {percent(share, 0)}" for share in edges["no_change_share"]],
        ),
        **{f"first_{name}": of_first_seed(tables[name]) for name in CROSSCODER_TABLES},
        "budget_lines": _if_several(tables["budgets"], "n_tokens"),
        "leading_curves": curves[curves["leading"].astype(bool)],
        "flow_nodes": flow_nodes,
        "flow_links": flow_links,
        "chosen_sweeps": chosen_sweeps(sweeps, swept),
        "followed_lines": tables["followed"][tables["followed"]["second_setting"].isna()],
    }


def _found(share: float | None, low: float | None, high: float | None) -> str:
    """A share on an arrow of the lineage, with its interval if it has one."""
    if low is None or high is None or pd.isna(low):
        return f"{percent(share)} found"
    return f"{percent(share)} [{100 * low:.0f}, {100 * high:.0f}] found"


def _if_several(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A table if a column of it has several values, and its head without a row otherwise."""
    return table if table[column].nunique() > 1 else table.head(0)


def of_first_seed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first crosscoder of each group of models."""
    return table[table["seed"] == table.groupby("group", sort=False)["seed"].transform("first")]


def chosen_sweeps(sweeps: pd.DataFrame, swept: Mapping[str, dict]) -> pd.DataFrame:
    """The rows of all sweeps with the settings that their merged model has, and whether they are of its parents."""
    best: dict[str, dict[str, float]] = {}
    for row in sweeps[sweeps["is_best"]].drop_duplicates("sweep").to_dict("records"):
        best[row["sweep"]] = {row["setting"]: row["value"], row["second_setting"]: row["second_value"]}
    parts = []
    for sweep in dict.fromkeys(sweeps["sweep"]):
        rows = sweeps[sweeps["sweep"] == sweep]
        places = [_number(name, value, best) for name, value in swept[sweep]["chosen"].items()]
        chosen, second = [*places, float("nan")][:2]
        is_parent = rows["model"].isin(swept[sweep]["parents"])
        parts.append(rows.assign(chosen=chosen, second_chosen=second, is_parent=is_parent))
    extra = ["chosen", "second_chosen", "is_parent"]
    return pd.concat(parts) if parts else sweeps.reindex(columns=[*sweeps.columns, *extra])


def _number(name: str, value: object, best: Mapping[str, Mapping[str, float]]) -> float:
    """A setting's place on an axis: a number, or that of a sweep's best point; NaN for one that is neither."""
    if isinstance(value, Mapping):
        return best.get(value.get(FROM_SWEEP, ""), {}).get(name, float("nan"))
    return float(value) if isinstance(value, float | int) else float("nan")


def leading_groups(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each edge's first group: its identified features, where they are known."""
    first = table.groupby(["parent", "child"], sort=False)["group"].transform("first")
    return table[table["group"] == first].reset_index(drop=True)


def overview(tables: Mapping[str, pd.DataFrame]) -> list[dict]:
    """Per edge, a bar of the parent's features and one of the child's by verdict, and how far the model moved.

    They are of the edge's leading group: of identified features where they are known. Each part of a bar has the
    `address` of its features on the page.
    """
    flows, far = leading_groups(tables["flows"]), moved(tables["drift"])
    view = []
    for (parent, child), rows in flows.groupby(["parent", "child"], sort=False):
        bars = [
            _bar(parent if side == SIDES[0] else child, of_side.to_dict("records"))
            for side, of_side in rows.groupby("side", sort=False)
        ]
        edge = {"edge": f"{parent} → {child}", "change": far.get((str(parent), str(child)), "")}
        view.append(edge | {"bars": [bar for bar in bars if bar["parts"]]})
    return view


def _bar(model: Hashable, rows: Sequence[dict]) -> dict:
    """A model's features on an edge by verdict, as the parts of a bar."""
    total = sum(row["n_features"] for row in rows)
    parts = [
        {"verdict": row["verdict"], "n": row["n_features"], "is_wide": row["n_features"] >= WIDE * total}
        | {"address": address_of(row["parent"], row["child"], row["side"], row["verdict"], row["group"])}
        for row in rows
        if row["n_features"]
    ]
    return {"model": model, "group": rows[0]["group"], "parts": parts}


def address_of(parent: str, child: str, side: str, verdict: str, group: str) -> str:
    """Where the page lists the features of a verdict."""
    detail = {} if group == ALL else {"detail": group}
    return f"#/features?{urlencode({'on': f'{parent}.{child}.{side}.{verdict}'} | detail)}"


def by_edge(table: pd.DataFrame) -> list[dict]:
    """The rows of each edge, with edges in the table's order."""
    return [
        {"edge": f"{parent} → {child}", "rows": rows.to_dict("records")}
        for (parent, child), rows in table.groupby(["parent", "child"], sort=False)
    ]


def revivals_view(revivals: pd.DataFrame) -> list[dict]:
    """The rows of each revived model and group of features as one, with those of its `kinds` of model by name."""
    keys = ["parent", "child", "model", "group"]
    view = []
    for _, rows in revivals.groupby(keys, sort=False):
        kinds = {row["kind"]: row for row in rows.to_dict("records")}
        own = kinds[REVIVED]
        view.append(own | {"kinds": kinds, "latents": own["latents"].split()})
    return view


def matchings_view(matchings: pd.DataFrame) -> list[dict]:
    """Per edge and instrument, the row of each matching rule that was applied."""
    return [
        edge
        | {"rows": [{"instrument": name, "rules": rules} for name, rules in _by(edge["rows"], "instrument", "rule")]}
        for edge in by_edge(matchings)
    ]


def ablations_view(ablations: pd.DataFrame) -> list[dict]:
    """Per edge, a row for each group: its own rows by corpus, and those of its random group."""
    view = []
    for edge in by_edge(ablations):
        groups = dict(_by(edge["rows"], "group", "corpus"))
        rows = [
            {"group": group, "own": by_corpus, "random": groups[f"{group}_random"]}
            for group, by_corpus in groups.items()
            if f"{group}_random" in groups
        ]
        view.append(edge | {"rows": rows})
    return view


def crosscoder_ablations_view(ablations: pd.DataFrame) -> list[dict]:
    """Of each edge, model, verdict and crosscoder, the rows by corpus."""
    named = ["edge", "side", "verdict", "group", "seed"]
    return [{row["corpus"]: row for row in rows.to_dict("records")} for _, rows in ablations.groupby(named, sort=False)]


def sources_view(sources: pd.DataFrame) -> list[dict]:
    """Per merged model, the share of its features from each source, with the source in words."""
    view = []
    for merge, rows in sources.groupby("merge", sort=False):
        names = rows["source"].tolist()
        parents = names[: names.index("several" if "several" in names else "both")]
        words = {name: f"{name} alone" if name in parents else f"{name}, but no parent" for name in names}
        words |= {"both": "both parents" if len(parents) == 2 else "all parents", "new": "none of these"}
        words |= {"several": "several parents, but not all"}
        view.append({"merge": merge, "rows": rows.assign(words=[words[name] for name in names]).to_dict("records")})
    return view


def lines_view(steps: pd.DataFrame, survival: pd.DataFrame) -> list[dict]:
    """Per line: its models in order, the rows of each step, and for each model of birth the row at each later model.

    The latter are of the line's first group: its identified features, where they are known.
    """
    view = []
    for line, rows in steps.groupby("line", sort=False):
        of_line = survival[survival["line"] == line]
        first = of_line[of_line["group"].eq(of_line["group"].iloc[0])] if len(of_line) else of_line
        models = list(dict.fromkeys([*rows["parent"], *rows["child"]]))
        born = _by(first.to_dict("records"), "born", "model")
        view.append({"line": line, "models": models, "edges": by_edge(rows), "born": born})
    return view


def estimates_view(estimates: pd.DataFrame) -> dict | None:
    """The row over all edges and sides, if there is any."""
    return next(iter(estimates[estimates["side"] == POOLED].to_dict("records")), None)


def important_view(important: pd.DataFrame) -> list[dict]:
    """Per edge, the rows of its new features and of its lost ones."""
    view = []
    for edge in by_edge(important):
        rows = {side: [row for row in edge["rows"] if row["side"] == side] for side in SIDES}
        lists = [("new", rows[SIDES[1]]), ("lost", rows[SIDES[0]])]
        view.append(edge | {"lists": [(words, of_side) for words, of_side in lists if of_side]})
    return view


def learnt_view(edges: pd.DataFrame, passages: pd.DataFrame, features: pd.DataFrame) -> list[dict]:
    """Per edge, its passages with the latents that fire there and their verdicts, and the rows of these features."""
    view = []
    for parent, child in edges[["parent", "child"]].drop_duplicates().itertuples(index=False):
        own_passages, own = (
            table[(table["parent"] == parent) & (table["child"] == child)] for table in (passages, features)
        )
        rows = [
            row | {"latents": [int(latent) for latent in row["latents"].split()]}
            for row in own_passages.to_dict("records")
        ]
        name = {"edge": f"{parent} → {child}", "child": child, "passages": rows, "features": own.to_dict("records")}
        view.append(name)
    return view


def flows_view(flows: pd.DataFrame, colours: Colours) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nodes and links of the Sankey diagram. Between two models stands a node for each verdict.

    Features that persist and features that are inherited pass through one node.

    Args:
        flows: from `leading_groups` of `tables.flow_table`.
        colours: of models.

    Returns:
        The nodes: `name`, `label`, `model` (of models alone), `column`, `size`, `colour`. The links: `flows` with
        `source`, `target` and `edge`.
    """
    flows = flows.assign(edge=flows["parent"] + " → " + flows["child"])
    middles = flows["edge"] + flows["verdict"].replace({"inherited": "persists"}).map(" {}".format)
    middles = middles.where(~flows["verdict"].isin(["untestable", "drifted"]), middles + " " + flows["side"])
    of_parent = flows["side"] == "parent"
    flows = flows.assign(
        source=flows["parent"].where(of_parent, middles), target=middles.where(of_parent, flows["child"])
    )
    rank = _model_ranks(flows)
    totals = _model_totals(flows)
    nodes: dict[str, dict[str, object]] = {
        model: {"label": f"{model} {count(totals[model])}", "model": model, "column": 2.0 * place}
        | {"colour": colours.model(model)}
        for model, place in rank.items()
    }
    for flow, middle in zip(flows.to_dict("records"), middles, strict=True):
        verdict = "persists" if flow["verdict"] == "inherited" else flow["verdict"]
        column = 2.0 * rank[flow["parent"]] + 1 if flow["side"] == "parent" else 2.0 * rank[flow["child"]] - 1
        label = f"{flow['verdict']} {count(flow['n_features'])}"
        if middle in nodes:
            nodes[middle]["label"] = f"{nodes[middle]['label']} | {label}"
        else:
            nodes[middle] = {"label": label, "column": column, "colour": VERDICT_COLOURS[verdict]}
    inflow, outflow = flows.groupby("target")["n_features"].sum(), flows.groupby("source")["n_features"].sum()
    table = pd.DataFrame.from_dict(nodes, orient="index", columns=["label", "model", "column", "colour"])
    table = table.rename_axis("name").reset_index()
    table["size"] = [max(inflow.get(name, 0), outflow.get(name, 0)) for name in table["name"]]
    table = table[table["size"] > 0].reset_index(drop=True)
    return table[["name", "label", "model", "column", "size", "colour"]], flows


def _model_totals(flows: pd.DataFrame) -> dict[str, int]:
    """The number of features of each model in the diagram: of its edges the one with most, because n may differ."""
    of_sides = flows.groupby(["parent", "child", "side"], sort=False)["n_features"].sum()
    totals: dict[str, int] = {}
    for row in of_sides.reset_index().to_dict("records"):
        model = row["parent"] if row["side"] == SIDES[0] else row["child"]
        totals[model] = max(totals.get(model, 0), int(row["n_features"]))
    return totals


def examples_view(examples: dict, flows: pd.DataFrame) -> dict:
    """`examples.json` as the page shows it: each activation also as a share of its feature's largest.

    Args:
        examples: `examples.json`.
        flows: from `tables.flow_table`, for the number of features that changed, and why none is shown.
    """
    return examples | {
        "named": [_feature_view(feature) for feature in examples["named"]],
        "persisting": [_feature_view(feature) for feature in examples["persisting"]],
        "changed": [_changed_view(edge, flows) for edge in examples["changed"]],
    }


def _changed_view(edge: dict, flows: pd.DataFrame) -> dict:
    """The cards of an edge: its new and lost features, the number of all of them, and words where there is no card."""
    of_edge = flows[(flows["parent"] == edge["parent"]) & (flows["child"] == edge["child"])]
    n = of_edge[of_edge["group"] == ALL].groupby("verdict")["n_features"].sum()
    knows_identified = (of_edge["group"] == IDENTIFIED).any()
    counts = {verdict: int(n.get(verdict, 0)) for verdict in CHANGED.values()}
    return edge | {
        **{
            verdict: [_card(feature, edge["parent" if verdict == NEW else "child"]) for feature in edge[verdict]]
            for verdict in CHANGED.values()
        },
        "n": counts,
        "addresses": {
            verdict: address_of(edge["parent"], edge["child"], side, verdict, ALL) for side, verdict in CHANGED.items()
        },
        "none": {
            verdict: f"No identified feature is {verdict} with its whole interval of r below the threshold."
            if knows_identified and counts[verdict]
            else f"No feature is {verdict}."
            for verdict in CHANGED.values()
        },
    }


def _card(feature: dict, other: str) -> dict:
    """A lost or new feature: its passages, its closest feature, and the other model's latent of the same number."""
    own, *others = feature["members"]
    by_latent = {member["latent"]: member | {"r": feature["r"][0][place]} for place, member in enumerate(others, 1)}
    same = by_latent.get(own["latent"]) if feature["match"] != own["latent"] else None
    viewed = _feature_view(feature)
    names = [f"{member['model']} / {member['latent']}" for member in feature["members"]]
    passages = [
        passage | {"rows": [(name, tokens) for name, (_, tokens) in zip(names, passage["rows"], strict=True)]}
        for passage in viewed["passages"]
    ]
    return viewed | {
        "passages": passages,
        "other": other,
        "closest": by_latent.get(feature["match"]),
        "same_number": same,
    }


def merges_view(merges: pd.DataFrame) -> list[dict]:
    """Per merged model, its tensors and the number of tensors that took each branch."""
    return [
        {
            "model": model,
            "method": rows["method"].iloc[0],
            "tensors": rows.to_dict("records"),
            "branches": ", ".join(
                f"{n} by {branch}" for branch, n in rows["branch"].value_counts().sort_index().items()
            ),
        }
        for model, rows in merges.groupby("model", sort=False)
    ]


def _by(rows: Sequence[dict], first: str, then: str) -> list[tuple[str, dict[str, dict]]]:
    """Rows by the values of two columns, in the rows' order."""
    groups: dict[str, dict] = {}
    for row in rows:
        groups.setdefault(row[first], {})[row[then]] = row
    return list(groups.items())


def _model_ranks(flows: pd.DataFrame) -> dict[str, int]:
    """The depth of each model in the lineage."""
    names = list(dict.fromkeys([*flows["parent"], *flows["child"]]))
    if not names:
        return {}
    numbers = {name: index for index, name in enumerate(names)}
    edges = dict.fromkeys(zip(flows["parent"], flows["child"], strict=True))
    layout = arrange(Graph([(name,) for name in names], [(numbers[a], numbers[b]) for a, b in edges]), 1.0)
    return dict(zip(names, layout.rank, strict=True))


def _feature_view(feature: dict) -> dict:
    """A feature with a line per member and passage: token, activation, share of the member's largest activation."""
    names = [f"{member['model']}.{member['sae']} / {member['latent']}" for member in feature["members"]]
    largest = [member["max_activation"] for member in feature["members"]]
    passages = []
    for passage in feature["passages"]:
        rows = [
            (name, [(token, a, a / most if most else 0.0) for token, a in zip(passage["tokens"], line, strict=True)])
            for name, most, line in zip(names, largest, passage["activations"], strict=True)
        ]
        passages.append(passage | {"rows": rows})
    return feature | {"names": names, "passages": passages}
