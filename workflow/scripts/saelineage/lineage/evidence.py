"""Evidence: the shares of an edge under every instrument, with the baselines that give them a meaning.

Baselines are floors (no change), nulls and controls in the child's place. With them come matchings by other rules,
intervals over documents, the share at every threshold, and the agreement between instruments. Plain functions over the
pairs that `comparisons.plan` names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isnan
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelineage.correlations.bootstrap import (
    Replicates,
    centred_interval,
    relative,
    replicate_shares,
    require_paired,
)
from saelineage.correlations.matches import Correlation
from saelineage.lineage.curves import auc, best_r, curve_table, false_match_threshold
from saelineage.lineage.verdicts import (
    DISAPPEARS,
    INHERITED,
    PERSISTS,
    SIDES,
    UNTESTABLE,
    Share,
    agreement,
    edge_table,
    floor_share,
    matched_share,
    matching_shares,
    pooled,
    same_index_rate,
    share,
)

FALSE_MATCH_RATE = 0.01
"""Share of a null's features that match at the threshold reported for it."""
BEST = "best"
"""The rule of `verdicts.matching_shares` for whose share and floor intervals over documents are computed."""
CURVE_THRESHOLDS = np.linspace(0.0, 1.0, 101)


class Compared(NamedTuple):
    """The measurements of a pair of SAEs."""

    correlation: Correlation
    replicates: Replicates
    by_types: Correlation | None
    """The correlation by the original study's protocol (`token_types`), where the config asks for it."""


Load = Callable[[str], Compared]


def named(name: str, named_share: Share) -> dict:
    """Spread a share over three keys: `{name}`, `{name}_n` and `{name}_interval`."""
    interval = list(named_share.interval) if named_share.interval else None
    return {name: named_share.value, f"{name}_n": named_share.n, f"{name}_interval": interval}


def weigh(comparison: Mapping, load: Load, threshold: float) -> dict:
    """Compute the shares of one edge under one instrument, with their baselines.

    Args:
        comparison: one of `comparisons.plan`'s.
        load: gives a pair by its name.
        threshold: r at or above this is a match.

    Returns:
        - `persist_share` and `inherited_share`, with splits and merges;
        - `floor_share`, the share matched where nothing changed, `seed_floor_share` and `child_seed_floor_share`, the
          same between two seeds of parent and child, all three in both directions;
        - `matchings`, for each rule the parent's share and the floor's;
        - `relative_persistence`, the best rule's share over its floor, with an interval over documents;
        - `auc`, `floor_auc` and `seed_floor_auc`, the area under the share over all thresholds;
        - `same_index_rate`;
        - `nulls`, for each the share, its `auc`, the threshold at which 1 % match and the edge's share there.
    """
    compared = load(comparison["pair"])
    floors = [load(name) for name in comparison["floors"]]
    seeds = [[load(name).correlation for name in comparison["seeds"][comparison[side]]] for side in SIDES]
    matchings = _matchings(compared, floors, threshold)
    return {
        **{key: comparison[key] for key in ("parent", "child", "instrument", "pair")},
        **named("persist_share", matched_share(compared.correlation, 0, threshold)),
        **named("inherited_share", matched_share(compared.correlation, 1, threshold)),
        **named("floor_share", floor_share([floor.correlation for floor in floors], threshold)),
        **named("seed_floor_share", floor_share(seeds[0], threshold)),
        **named("child_seed_floor_share", floor_share(seeds[1], threshold)),
        "matchings": matchings,
        **_over_documents(compared, floors, matchings[BEST], threshold),
        "auc": _number(auc(best_r(compared.correlation, 0))),
        "floor_auc": _number(auc(_floor_r([floor.correlation for floor in floors]))),
        "seed_floor_auc": _number(auc(_floor_r(seeds[0]))),
        **named("same_index_rate", same_index_rate(compared.correlation, threshold)),
        "nulls": {
            null: _null(load(name).correlation, compared.correlation, threshold)
            for null, name in sorted(comparison["nulls"].items())
        },
    }


def curves(comparison: Mapping, load: Load) -> pd.DataFrame:
    """Tabulate the share of features with a best match at every threshold: of the edge, its floors and its nulls.

    Returns:
        Columns `parent`, `child`, `instrument`, `name` (`edge`, `floor`, `seed floor` where that differs from the
        floor, or a null's), `threshold`, `share`, `n`.
    """
    lines = {"edge": best_r(load(comparison["pair"]).correlation, 0)}
    seeds = comparison["seeds"][comparison["parent"]]
    floors = {"floor": comparison["floors"], "seed floor": seeds if seeds != comparison["floors"] else []}
    lines |= {name: _floor_r([load(pair).correlation for pair in pairs]) for name, pairs in floors.items() if pairs}
    lines |= {null: best_r(load(name).correlation, 0) for null, name in sorted(comparison["nulls"].items())}
    table = curve_table(lines, CURVE_THRESHOLDS)
    keys = ("parent", "child", "instrument")
    return table.assign(**{key: comparison[key] for key in keys})[[*keys, *table.columns]]


def agreements(plan: Mapping, load: Load, threshold: float) -> list[dict]:
    """Measure, edge by edge, the agreement of other ways of comparing with the leading instrument's verdicts.

    Other ways are the other instruments, where they compare the same SAE of the parent, and the original study's
    protocol. Verdicts are those of the parent's features.

    Returns:
        One row per edge and way, with `parent`, `child`, `instrument` (with `, by token types` for the protocol), and
        `verdicts.agreement`'s figures.
    """
    of_leading = [row for row in plan["comparisons"] if row["instrument"] == plan["leading"]]
    leading_rows = {(row["parent"], row["child"]): row for row in of_leading}
    rows = []
    for comparison in plan["comparisons"]:
        edge, instrument = (comparison["parent"], comparison["child"]), comparison["instrument"]
        leading, compared = leading_rows[edge], load(comparison["pair"])
        leading_correlation = load(leading["pair"]).correlation
        if compared.correlation.names[0] != leading_correlation.names[0]:
            continue
        leading_table = edge_table(leading_correlation, threshold)
        tables = {} if comparison is leading else {instrument: edge_table(compared.correlation, threshold)}
        if compared.by_types is not None:
            by_types = _by_best_match(edge_table(compared.by_types, threshold), threshold)
            tables[f"{instrument}, by token types"] = by_types
        for way, table in tables.items():
            row = {"parent": edge[0], "child": edge[1], "instrument": way}
            figures = agreement(leading_table, table, SIDES[0])
            rows.append(row | {name: _number(value) for name, value in figures.items()})
    return rows


def _by_best_match(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The parent's side of a table, with verdicts by the best match alone as in the original study."""
    parents = table[table["side"] == SIDES[0]]
    by_r = np.where(parents["r"] >= threshold, PERSISTS, DISAPPEARS)
    return parents.assign(verdict=np.where(parents["verdict"] == UNTESTABLE, UNTESTABLE, by_r))


def sources(merge: str, pairs: Mapping[str, Correlation], parents: Sequence[str], threshold: float) -> pd.DataFrame:
    """Trace the features of a merged model to its parents or to the model that they descend from.

    Args:
        merge: the merged model.
        pairs: by name, the correlation of each possible source (the parents and their common ancestor) with it.
        parents: the names of the parents.
        threshold: r at or above this is a match.

    Returns:
        Columns `latent`; `source` (a parent's name, `both`, the name of the common ancestor where no parent has the
        feature, `new`, `untestable`); the best r with each source, `r_{name}`; and `model`, the merged one.
    """
    tables = {name: edge_table(pair, threshold).query("side == 'child'") for name, pair in pairs.items()}
    first = next(iter(tables.values()))
    inherited = {name: (table["verdict"] == INHERITED).to_numpy() for name, table in tables.items()}
    source = np.full(len(first), "new", dtype=object)
    for name in [name for name in pairs if name not in parents] + list(parents):
        source[inherited[name]] = name
    source[np.all([inherited[name] for name in parents], axis=0)] = "both"
    source[(first["verdict"] == UNTESTABLE).to_numpy()] = "untestable"
    r = {f"r_{name}": table["r"].to_numpy() for name, table in tables.items()}
    return pd.DataFrame({"latent": first["latent"].to_numpy(), "source": source, **r}).assign(model=merge)


def source_shares(table: pd.DataFrame, names: Iterable[str]) -> dict:
    """The share of a merged model's testable features from each source."""
    counts = table["source"].value_counts()
    n = int(len(table) - counts.get("untestable", 0))
    return {name: named("share", share(int(counts.get(name, 0)), n)) for name in [*names, "both", "new"]}


def _matchings(compared: Compared, floors: Sequence[Compared], threshold: float) -> dict:
    """The parent's share and the floor's under each rule."""
    rules = _by_rule(compared.correlation, [floor.correlation for floor in floors], threshold)
    if compared.by_types is not None:
        by_types = _by_rule(compared.by_types, [_token_types(floor) for floor in floors], threshold)
        rules["token_type"] = by_types[BEST]
    return rules


def _token_types(floor: Compared) -> Correlation:
    if floor.by_types is None:
        raise ValueError(
            f"floors must be matched by token types where their edge is, but {floor.correlation.names} are not; "
            "plan token types for both"
        )
    return floor.by_types


def _by_rule(correlation: Correlation, floors: Sequence[Correlation], threshold: float) -> dict:
    tables = [edge_table(floor, threshold) for floor in floors]
    floor_shares = [matching_shares(table, threshold, side) for table in tables for side in SIDES]
    edge_shares = matching_shares(edge_table(correlation, threshold), threshold, SIDES[0])
    return {
        rule: named("persist_share", edge_share) | named("floor_share", pooled(shares[rule] for shares in floor_shares))
        for rule, edge_share in edge_shares.items()
    }


def _over_documents(compared: Compared, floors: Sequence[Compared], best: Mapping, threshold: float) -> dict:
    """Intervals over documents of the best rule's share and of its ratio to the floor.

    Args:
        compared, floors: of an edge.
        best: their shares by the best rule, from `_matchings`.
        threshold: r at or above this is a match.
    """
    require_paired([pair.replicates for pair in (compared, *floors)])
    shares, persist, floor = _replicated([(compared, 0)], threshold), best["persist_share"], best["floor_share"]
    n_documents = compared.replicates.n_documents
    result = {"document_interval": _listed(centred_interval(shares, persist, n_documents))}
    if not floors:
        return result | {"relative_persistence": None, "relative_persistence_interval": None}
    ratios = relative(shares, _replicated([(pair, side) for pair in floors for side in range(2)], threshold))
    ratio = persist / floor if persist is not None and floor else None
    return result | {
        "relative_persistence": ratio,
        "relative_persistence_interval": _listed(centred_interval(ratios, ratio, n_documents, (0.0, inf))),
    }


def _replicated(sides: Sequence[tuple[Compared, int]], threshold: float) -> Float[np.ndarray, " replicate"]:
    """The share of features matched in each replicate over several sides of pairs, weighted by testable features."""
    testable = [pair.correlation.testable[side] for pair, side in sides]
    shares = [
        replicate_shares(pair.replicates.best[side], of_side, threshold)
        for (pair, side), of_side in zip(sides, testable, strict=True)
    ]
    counts = np.array([of_side.sum() for of_side in testable])
    if not counts.sum():
        return np.full(len(shares[0]), np.nan)
    return np.nansum([count * matched for count, matched in zip(counts, shares, strict=True)], axis=0) / counts.sum()


def _null(null: Correlation, edge: Correlation, threshold: float) -> dict:
    null_r, edge_r = best_r(null, 0), best_r(edge, 0)
    at_rate = false_match_threshold(null_r, FALSE_MATCH_RATE)
    return {
        **named("persist_share", matched_share(null, 0, threshold)),
        "auc": _number(auc(null_r)),
        "threshold_at_1_percent": _number(at_rate),
        **named("persist_share_there", share(int((edge_r >= at_rate).sum()), len(edge_r))),
    }


def _floor_r(pairs: Sequence[Correlation]) -> Float[np.ndarray, " feature"]:
    """Best r of all features of both sides of some pairs."""
    return np.concatenate([best_r(pair, side) for pair in pairs for side in range(2)] or [np.empty(0)])


def _number(value: float | int) -> float | int | None:
    """A number for JSON, which has no NaN."""
    return None if isnan(value) else value


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return list(interval) if interval else None
