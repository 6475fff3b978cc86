"""Evidence: what stands beside the shares of an edge, under every instrument, so that one can tell what they show.

Floors (no change), nulls and other controls for the child, matchings by other rules, intervals over documents, the
share at every threshold, and how far instruments agree. Plain functions over what `comparisons.plan` names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelineage.correlations.bootstrap import (
    Replicates,
    percentile_interval,
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
"""Nulls are asked for the threshold at which so many of their features match."""
BEST = "best"
"""The rule (`verdicts.matching_shares`) whose share and floor intervals over documents are of."""
CURVE_THRESHOLDS = np.linspace(0.0, 1.0, 101)


class Compared(NamedTuple):
    """A pair of SAEs and what was measured of it."""

    correlation: Correlation
    replicates: Replicates
    by_types: Correlation | None
    """As the original study correlates (`token_types`), where that was asked for."""


Load = Callable[[str], Compared]


def named(name: str, found: Share) -> dict:
    """A share with its n and its interval, under names that belong together."""
    interval = list(found.interval) if found.interval else None
    return {name: found.value, f"{name}_n": found.n, f"{name}_interval": interval}


def weigh(comparison: Mapping, load: Load, threshold: float) -> dict:
    """The shares of one edge under one instrument, with what they must be held against.

    Args:
        comparison: one of `comparisons.plan`'s.
        load: a pair by its name.
        threshold: r at or above this is a match.

    Returns:
        `persist_share` and `inherited_share` with splits and merges; `floor_share`, what is matched where nothing
        changed, and `seed_floor_share` and `child_seed_floor_share`, between two seeds of parent and child, all three
        in both directions; `matchings`, for each rule the parent's share and the floor's; `relative_persistence`, the
        best rule's share over its floor, with an interval over documents; `auc`, `floor_auc` and `seed_floor_auc`, of
        the share over all thresholds; `same_index_rate`; `nulls`, for each the share, its `auc`, the threshold at which
        1 % match and the edge's share there.
    """
    found = load(comparison["pair"])
    floors = [load(name) for name in comparison["floors"]]
    seeds = [[load(name).correlation for name in comparison["seeds"][comparison[side]]] for side in SIDES]
    matchings = _matchings(found, floors, threshold)
    return {
        **{key: comparison[key] for key in ("parent", "child", "instrument", "pair")},
        **named("persist_share", matched_share(found.correlation, 0, threshold)),
        **named("inherited_share", matched_share(found.correlation, 1, threshold)),
        **named("floor_share", floor_share([one.correlation for one in floors], threshold)),
        **named("seed_floor_share", floor_share(seeds[0], threshold)),
        **named("child_seed_floor_share", floor_share(seeds[1], threshold)),
        "matchings": matchings,
        **_over_documents(found, floors, matchings[BEST], threshold),
        "auc": _number(auc(best_r(found.correlation, 0))),
        "floor_auc": _number(auc(_floor_r([one.correlation for one in floors]))),
        "seed_floor_auc": _number(auc(_floor_r(seeds[0]))),
        **named("same_index_rate", same_index_rate(found.correlation, threshold)),
        "nulls": {
            null: _null(load(name).correlation, found.correlation, threshold)
            for null, name in sorted(comparison["nulls"].items())
        },
    }


def curves(comparison: Mapping, load: Load) -> pd.DataFrame:
    """The share of the parent's features with a best match at every threshold: of the edge, its floors and its nulls.

    Returns:
        `parent`, `child`, `instrument`, `name` (`edge`, `floor`, `seed floor` where that is another, or a null's),
        `threshold`, `share`, `n`.
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
    """How far other ways of comparing give a parent's features the leading instrument's verdicts, edge by edge.

    Other ways are the other instruments, where they compare the same SAE of the parent, and the original study's
    protocol.

    Returns:
        `parent`, `child`, `instrument` (with `, by token types` for the protocol), and `verdicts.agreement`'s figures.
    """
    of_leading = [row for row in plan["comparisons"] if row["instrument"] == plan["leading"]]
    leading_rows = {(row["parent"], row["child"]): row for row in of_leading}
    rows = []
    for one in plan["comparisons"]:
        leading, found = leading_rows[one["parent"], one["child"]], load(one["pair"])
        leading_correlation = load(leading["pair"]).correlation
        if found.correlation.names[0] != leading_correlation.names[0]:
            continue
        table = edge_table(leading_correlation, threshold)
        others = {} if one is leading else {one["instrument"]: edge_table(found.correlation, threshold)}
        if found.by_types is not None:
            by_types = _by_best_match(edge_table(found.by_types, threshold), threshold)
            others[f"{one['instrument']}, by token types"] = by_types
        for instrument, other in others.items():
            row = {"parent": one["parent"], "child": one["child"], "instrument": instrument}
            figures = agreement(table, other, SIDES[0])
            rows.append(row | {name: _number(value) for name, value in figures.items()})
    return rows


def _by_best_match(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The parent's side of a table with verdicts by the best match alone, as the original study has them."""
    own = table[table["side"] == SIDES[0]]
    by_r = np.where(own["r"] >= threshold, PERSISTS, DISAPPEARS)
    return own.assign(verdict=np.where(own["verdict"] == UNTESTABLE, UNTESTABLE, by_r))


def sources(merge: str, pairs: Mapping[str, Correlation], parents: Sequence[str], threshold: float) -> pd.DataFrame:
    """Where the features of a merged model come from.

    Args:
        merge: the merged model.
        pairs: the correlation of each possible source with it; its parents, and the model that they descend from.
        parents: which of them are the parents.
        threshold: r at or above this is a match.

    Returns:
        Columns `latent`, `source` (a parent's name, `both`, the name of the model that the parents descend from where
        none of them has the feature, `new`, `untestable`), and the best r with each, `r_{name}`.
    """
    tables = {name: edge_table(found, threshold).query("side == 'child'") for name, found in pairs.items()}
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


def _matchings(found: Compared, floors: Sequence[Compared], threshold: float) -> dict:
    """The parent's share under each rule, and the floor's under the same."""
    rules = _by_rule(found.correlation, [one.correlation for one in floors], threshold)
    if found.by_types is not None:
        by_types = _by_rule(found.by_types, [one.by_types for one in floors], threshold)
        rules["token_type"] = by_types[BEST]
    return rules


def _by_rule(found: Correlation, floors: Sequence[Correlation], threshold: float) -> dict:
    tables = [edge_table(one, threshold) for one in floors]
    of_floors = [matching_shares(table, threshold, side) for table in tables for side in SIDES]
    shares = matching_shares(edge_table(found, threshold), threshold, SIDES[0])
    return {
        rule: named("persist_share", own) | named("floor_share", pooled(one[rule] for one in of_floors))
        for rule, own in shares.items()
    }


def _over_documents(found: Compared, floors: Sequence[Compared], best: Mapping, threshold: float) -> dict:
    """Intervals over documents of the best rule's share and of its ratio to the floor.

    Args:
        found, floors: of an edge.
        best: their shares by the best rule, from `_matchings`.
        threshold: r at or above this is a match.
    """
    require_paired([one.replicates for one in (found, *floors)])
    shares, own, below = _replicated([(found, 0)], threshold), best["persist_share"], best["floor_share"]
    result = {"document_interval": _listed(percentile_interval(shares))}
    if not floors:
        return result | {"relative_persistence": None, "relative_persistence_interval": None}
    ratios = relative(shares, _replicated([(one, side) for one in floors for side in range(2)], threshold))
    return result | {
        "relative_persistence": own / below if own is not None and below else None,
        "relative_persistence_interval": _listed(percentile_interval(ratios)),
    }


def _replicated(sides: Sequence[tuple[Compared, int]], threshold: float) -> Float[np.ndarray, " replicate"]:
    """In each replicate, the share of features matched over several sides of pairs, which count by their features."""
    testable = [one.correlation.testable[side] for one, side in sides]
    shares = [
        replicate_shares(one.replicates.best[side], own, threshold)
        for (one, side), own in zip(sides, testable, strict=True)
    ]
    counts = np.array([own.sum() for own in testable])
    if not counts.sum():
        return np.full(len(shares[0]), np.nan)
    return np.nansum([count * one for count, one in zip(counts, shares, strict=True)], axis=0) / counts.sum()


def _null(null: Correlation, found: Correlation, threshold: float) -> dict:
    null_r, edge_r = best_r(null, 0), best_r(found, 0)
    at_rate = false_match_threshold(null_r, FALSE_MATCH_RATE)
    return {
        **named("persist_share", matched_share(null, 0, threshold)),
        "auc": _number(auc(null_r)),
        "threshold_at_1_percent": _number(at_rate),
        **named("persist_share_there", share(int((edge_r >= at_rate).sum()), len(edge_r))),
    }


def _floor_r(pairs: Sequence[Correlation]) -> Float[np.ndarray, " feature"]:
    """Best r of all features of both sides of some pairs."""
    return np.concatenate([best_r(found, side) for found in pairs for side in range(2)] or [np.empty(0)])


def _number(value: float | int) -> float | int | None:
    """A number for JSON, which has none that is undefined."""
    return None if isnan(value) else value


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return list(interval) if interval else None
