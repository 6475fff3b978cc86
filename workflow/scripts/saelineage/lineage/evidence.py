"""Evidence: the shares of an edge under every instrument, with the controls that give them a meaning.

Controls are SAEs of an unchanged model (no change) and of other seeds (two seeds), random controls, and other models in
the child's place. With them come matchings by other rules, intervals over documents, and the share at every
threshold. Plain functions over the pairs that `comparisons.plan` names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isnan
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from saelineage.correlations.bootstrap import (
    Replicates,
    centred_interval,
    relative,
    replicate_shares,
    require_paired,
)
from saelineage.correlations.matches import Correlation
from saelineage.lineage.by_corpus import shares_by_corpus
from saelineage.lineage.curves import auc, best_r, curve_table, false_match_threshold
from saelineage.lineage.identified import is_identified, recurrence
from saelineage.lineage.matching import (
    INHERITED,
    SIDES,
    UNTESTABLE,
    agreement_share,
    best_matches,
    edge_table,
    matched_share,
    matching_shares,
    same_index_rate,
)
from saelineage.lineage.seeds import over_seeds
from saelineage.lineage.shares import Share, pooled, share
from saelineage.lineage.verdicts import Rules
from saelineage.plan.comparisons import names_in_pair

FALSE_MATCH_RATE = 0.01
"""Share of a control's features that match at the threshold reported for it."""
BEST = "best"
"""The rule of `matching.matching_shares` for whose share and control intervals over documents are computed."""
IDENTIFIED, ALL = "identified", "all"
GROUPS = (IDENTIFIED, ALL)
"""Features that shares are given for: those that other seeds of their model have too, first."""
CURVE_THRESHOLDS = np.linspace(0.0, 1.0, 101)


class Compared(NamedTuple):
    """The measurements of a pair of SAEs."""

    correlation: Correlation
    replicates: Replicates
    rests_on: tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]]
    """Per side, the effective number of documents behind each feature (`few_documents.rests_on`)."""
    by_types: Correlation | None
    """The correlation by the original study's protocol (`token_types`), where the config asks for it."""


Load = Callable[[str], Compared]
Marked = tuple[Bool[np.ndarray, " d_sae_a"], Bool[np.ndarray, " d_sae_b"]]
"""The features of the parent's and of the child's SAE that count."""
Counted = tuple[Compared, int, Bool[np.ndarray, " d_sae"] | None]
"""A pair, one of its sides, and the features of that side that count (None for all)."""


def named(name: str, named_share: Share) -> dict:
    """Spread a share over three keys: `{name}`, `{name}_n` and `{name}_interval`."""
    interval = list(named_share.interval) if named_share.interval else None
    return {name: named_share.value, f"{name}_n": named_share.n, f"{name}_interval": interval}


def weigh(comparison: Mapping, load: Load, rules: Rules) -> dict:
    """Compute the shares of one edge under one instrument, with their controls.

    Args:
        comparison: one of `comparisons.plan`'s.
        load: gives a pair by its name.
        rules: the threshold, and which features are identified.

    Returns:
        - `n_documents` of the probe by corpus, over which intervals over documents are;
        - `groups`, for `identified` and `all` features of each side the shares of `group_shares`; None where the SAE
          has no other seeds;
        - `over_seeds`, the same two groups' share over SAE seeds (`by_seed`), None for instruments of one seed;
        - `two_seed_share` and `child_two_seed_share`, on which two seeds of the parent and of the child agree, in both
          directions;
        - `matchings`, for each rule the parent's share and that of the no-change control;
        - `auc`, `no_change_auc` and `two_seed_auc`, the area under the share over all thresholds;
        - `same_index_rate`;
        - `controls`, for each the share, its `auc`, the threshold at which 1 % match and the edge's share there.
    """
    threshold = rules.threshold
    compared = load(comparison["pair"])
    unchanged = [load(name) for name in comparison["no_change"]]
    seeds = [[load(name).correlation for name in comparison["seeds"][comparison[side]]] for side in SIDES]
    controls = {name: load(pair).correlation for name, pair in sorted(comparison["controls"].items())}
    marked = identified(comparison, load, rules)
    everywhere: list[Counted] = [(pair, side, None) for pair in unchanged for side in range(2)]
    return {
        **{key: comparison[key] for key in ("parent", "child", "instrument", "pair")},
        "n_documents": compared.replicates.n_documents,
        "groups": {
            IDENTIFIED: marked
            and group_shares(compared, _held_out(comparison, load, rules), controls, marked, threshold),
            ALL: group_shares(compared, everywhere, controls, None, threshold),
        },
        "over_seeds": by_seed(comparison, load, rules),
        **named("two_seed_share", agreement_share(seeds[0], threshold)),
        **named("child_two_seed_share", agreement_share(seeds[1], threshold)),
        "matchings": _matchings(compared, unchanged, threshold),
        "auc": _number(auc(best_r(compared.correlation, 0))),
        "no_change_auc": _number(auc(_no_change_r([pair.correlation for pair in unchanged]))),
        "two_seed_auc": _number(auc(_no_change_r(seeds[0]))),
        **named("same_index_rate", same_index_rate(compared.correlation, threshold)),
        "controls": {name: _control(control, compared.correlation, threshold) for name, control in controls.items()},
    }


def identified(comparison: Mapping, load: Load, rules: Rules) -> Marked | None:
    """Mark the identified features of both SAEs of an edge; None if the parent's has no other seeds to compare with.

    If the child's has none, as under other budgets than the leading instrument's, none of its features are marked.
    """
    recurs, names = comparison["recurs"], names_in_pair(comparison["pair"])
    if not recurs[SIDES[0]]:
        return None
    parent, child = (
        is_identified(
            recurrence([load(pair).correlation for pair in recurs[side]], name, rules.threshold), rules.identified_from
        )
        if recurs[side]
        else np.zeros(len(load(comparison["pair"]).correlation.testable[1]), dtype=bool)
        for side, name in zip(SIDES, names, strict=True)
    )
    return parent, child


def by_seed(comparison: Mapping, load: Load, rules: Rules) -> dict:
    """The share of the parent's features that is found, over pairs of SAEs that have no SAE in common.

    Args:
        comparison, load, rules: as for `weigh`; the comparison's `by_seed` names the pairs.

    Returns:
        `seeds.over_seeds` as a mapping, for `identified` features (None if it is not known which these are) and `all`.
    """
    shares: dict[str, list[float | None]] = {group: [] for group in GROUPS}
    for pair in comparison["by_seed"]:
        correlation, marked = load(pair["pair"]).correlation, identified(pair, load, rules)
        shares[ALL].append(matched_share(correlation, 0, rules.threshold).value)
        if marked:
            shares[IDENTIFIED].append(matched_share(correlation, 0, rules.threshold, marked[0]).value)
    return {group: over_seeds(values)._asdict() if values else None for group, values in shares.items()}


def group_shares(
    compared: Compared,
    unchanged: Sequence[Counted],
    controls: Mapping[str, Correlation],
    marked: Marked | None,
    threshold: float,
) -> dict:
    """The shares of some of an edge's features that are found on the other side, with their controls.

    Args:
        compared: the edge.
        unchanged: SAEs of the parent that are trained like the edge's, and their features that count.
        controls: pairs of the parent's SAE with others in the child's place.
        marked: the features of the edge that count; None for all.
        threshold: r at or above this is a match.

    Returns:
        - `persist_share` and `inherited_share`, of the parent's and of the child's features, with splits and merges;
        - `no_change_share`, the same where the model is unchanged;
        - `control_shares`, by control;
        - `document_interval` of the parent's share by the best match alone; `relative_persistence`, that share over the
          no-change control's, with its `_interval`;
        - `corpora`, the first three shares by corpus (`by_corpus.shares_by_corpus`).
    """
    of_parent, of_child = marked or (None, None)
    no_change = [matched_share(pair.correlation, side, threshold, among) for pair, side, among in unchanged]
    return {
        **named("persist_share", matched_share(compared.correlation, 0, threshold, of_parent)),
        **named("inherited_share", matched_share(compared.correlation, 1, threshold, of_child)),
        **named("no_change_share", pooled(no_change)),
        "control_shares": {
            control: matched_share(pair, 0, threshold, of_parent).value for control, pair in controls.items()
        },
        **_over_documents((compared, 0, of_parent), unchanged, threshold),
        "corpora": _by_corpus(compared.correlation, unchanged, (of_parent, of_child), threshold),
    }


def _by_corpus(
    edge: Correlation,
    unchanged: Sequence[Counted],
    marked: tuple[Bool[np.ndarray, " d_sae_a"] | None, Bool[np.ndarray, " d_sae_b"] | None],
    threshold: float,
) -> dict[str, dict]:
    """By corpus, the shares of features that fire most on it: of the parent, of the child, and without a change."""
    persist, inherited = (shares_by_corpus([(edge, side, marked[side])], threshold) for side in range(2))
    no_change = shares_by_corpus([(pair.correlation, side, among) for pair, side, among in unchanged], threshold)
    return {
        corpus: named("persist_share", persist[corpus])
        | named("inherited_share", inherited[corpus])
        | named("no_change_share", no_change.get(corpus, share(0, 0)))
        for corpus in edge.corpora
    }


def _held_out(comparison: Mapping, load: Load, rules: Rules) -> list[Counted]:
    """The no-change control of identified features: the parent's SAE in each pair, with the features that count.

    Where a control's other SAE is itself one of the seeds that identify features, the remaining seeds identify them.
    With no remaining seed there is no control.
    """
    name, recurs = names_in_pair(comparison["pair"])[0], comparison["recurs"][SIDES[0]]
    sides: list[Counted] = []
    for pair in comparison["no_change"]:
        compared, others = load(pair), [load(other).correlation for other in recurs if other != pair]
        if name in compared.correlation.names and others:
            found = recurrence(others, name, rules.threshold)
            side = compared.correlation.names.index(name)
            sides.append((compared, side, is_identified(found, rules.identified_from)))
    return sides


def curves(comparison: Mapping, load: Load) -> pd.DataFrame:
    """Tabulate the share of features with a best match at every threshold, of the edge and of its controls.

    Returns:
        Columns `parent`, `child`, `instrument`, `name` (`edge`, `no change`, `two seeds` where that differs from it, or
        a control's), `threshold`, `share`, `n`.
    """
    lines = {"edge": best_r(load(comparison["pair"]).correlation, 0)}
    seeds = comparison["seeds"][comparison["parent"]]
    unchanged = {"no change": comparison["no_change"], "two seeds": seeds if seeds != comparison["no_change"] else []}
    lines |= {
        name: _no_change_r([load(pair).correlation for pair in pairs]) for name, pairs in unchanged.items() if pairs
    }
    lines |= {name: best_r(load(pair).correlation, 0) for name, pair in sorted(comparison["controls"].items())}
    table = curve_table(lines, CURVE_THRESHOLDS)
    keys = ("parent", "child", "instrument")
    return table.assign(**{key: comparison[key] for key in keys})[[*keys, *table.columns]]


def sources(merge: str, pairs: Mapping[str, Correlation], parents: Sequence[str], threshold: float) -> pd.DataFrame:
    """Trace the features of a merged model to its parents or to the model that they descend from.

    Args:
        merge: the merged model.
        pairs: by name, the correlation of each possible source (the parents and their common ancestor) with it.
        parents: the names of the parents.
        threshold: r at or above this is a match.

    Returns:
        Columns `latent`; `source` (a parent's name, `both` for all parents, `several` for some of three or more, the
        name of the common ancestor where no parent has the feature, `new`, `untestable`); the best r with each source,
        `r_{name}`; and `model`, the merged one.
    """
    tables = {name: edge_table(pair, threshold).query("side == 'child'") for name, pair in pairs.items()}
    first = next(iter(tables.values()))
    inherited = {name: (table["study_verdict"] == INHERITED).to_numpy() for name, table in tables.items()}
    source = np.full(len(first), "new", dtype=object)
    for name in [name for name in pairs if name not in parents] + list(parents):
        source[inherited[name]] = name
    n_parents = np.sum([inherited[name] for name in parents], axis=0)
    source[n_parents > 1] = "several"
    source[n_parents == len(parents)] = "both"
    source[(first["study_verdict"] == UNTESTABLE).to_numpy()] = "untestable"
    r = {f"r_{name}": table["r"].to_numpy() for name, table in tables.items()}
    return pd.DataFrame({"latent": first["latent"].to_numpy(), "source": source, **r}).assign(model=merge)


def trace_sources(named_sources: Mapping, merge: str, load: Load, threshold: float) -> pd.DataFrame:
    """`sources` of a merged model, from the pairs that the plan names.

    Args:
        named_sources: the merge's `parents`, and the names of its `pairs` by source.
        merge, threshold: as for `sources`.
        load: gives a pair by its name.
    """
    correlations = {name: load(pair).correlation for name, pair in named_sources["pairs"].items()}
    return sources(merge, correlations, named_sources["parents"], threshold)


def source_shares(table: pd.DataFrame, names: Iterable[str]) -> dict:
    """The share of a merged model's testable features from each source."""
    counts = table["source"].value_counts()
    n = int(len(table) - counts.get("untestable", 0))
    several = ["several"] if "several" in counts else []
    return {name: named("share", share(int(counts.get(name, 0)), n)) for name in [*names, *several, "both", "new"]}


def _matchings(compared: Compared, unchanged: Sequence[Compared], threshold: float) -> dict:
    """The parent's share and the no-change control's under each rule."""
    rules = _by_rule(compared.correlation, [pair.correlation for pair in unchanged], threshold)
    if compared.by_types is not None:
        by_types = _by_rule(compared.by_types, [_token_types(pair) for pair in unchanged], threshold)
        rules["token_type"] = by_types[BEST]
    return rules


def _token_types(unchanged: Compared) -> Correlation:
    if unchanged.by_types is None:
        raise ValueError(
            "no-change controls must be matched by token types where their edge is, but "
            f"{unchanged.correlation.names} are not; plan token types for both"
        )
    return unchanged.by_types


def _by_rule(correlation: Correlation, unchanged: Sequence[Correlation], threshold: float) -> dict:
    tables = [edge_table(pair, threshold) for pair in unchanged]
    controls = [matching_shares(table, threshold, side) for table in tables for side in SIDES]
    edge_shares = matching_shares(edge_table(correlation, threshold), threshold, SIDES[0])
    return {
        rule: named("persist_share", edge_share) | named("no_change_share", pooled(shares[rule] for shares in controls))
        for rule, edge_share in edge_shares.items()
    }


def _over_documents(edge: Counted, unchanged: Sequence[Counted], threshold: float) -> dict:
    """Intervals over documents of the share with a best match, and of its ratio to that of the no-change control."""
    require_paired([pair.replicates for pair, _, _ in (edge, *unchanged)])
    n_documents, persist = edge[0].replicates.n_documents, _best_share([edge], threshold)
    shares = _replicated([edge], threshold)
    result = {"document_interval": _listed(centred_interval(shares, persist, n_documents))}
    if not unchanged:
        return result | {"relative_persistence": None, "relative_persistence_interval": None}
    control = _best_share(unchanged, threshold)
    ratio = persist / control if persist is not None and control else None
    ratios = relative(shares, _replicated(unchanged, threshold))
    return result | {
        "relative_persistence": ratio,
        "relative_persistence_interval": _listed(centred_interval(ratios, ratio, n_documents, (0.0, inf))),
    }


def _best_share(sides: Sequence[Counted], threshold: float) -> float | None:
    """The share of features over several sides with a best match at or above the threshold."""
    counted = [_counted(side) for side in sides]
    matches = [best_matches(pair.correlation, side)[0] >= threshold for pair, side, _ in sides]
    n = sum(int(of_side.sum()) for of_side in counted)
    return share(sum(int((of_side & m).sum()) for of_side, m in zip(counted, matches, strict=True)), n).value


def _counted(side: Counted) -> Bool[np.ndarray, " d_sae"]:
    """The testable features that count."""
    pair, index, among = side
    testable = pair.correlation.testable[index]
    return testable if among is None else testable & among


def _replicated(sides: Sequence[Counted], threshold: float) -> Float[np.ndarray, " replicate"]:
    """The share of features matched in each replicate over several sides of pairs, weighted by their numbers."""
    counted = [_counted(side) for side in sides]
    shares = [
        replicate_shares(pair.replicates.best[side], of_side, threshold)
        for (pair, side, _), of_side in zip(sides, counted, strict=True)
    ]
    counts = np.array([of_side.sum() for of_side in counted])
    if not counts.sum():
        return np.full(len(shares[0]), np.nan)
    return np.nansum([count * matched for count, matched in zip(counts, shares, strict=True)], axis=0) / counts.sum()


def _control(control: Correlation, edge: Correlation, threshold: float) -> dict:
    random_r, edge_r = best_r(control, 0), best_r(edge, 0)
    at_rate = false_match_threshold(random_r, FALSE_MATCH_RATE)
    return {
        **named("persist_share", matched_share(control, 0, threshold)),
        "auc": _number(auc(random_r)),
        "threshold_at_1_percent": _number(at_rate),
        **named("persist_share_there", share(int((edge_r >= at_rate).sum()), len(edge_r))),
    }


def _no_change_r(pairs: Sequence[Correlation]) -> Float[np.ndarray, " feature"]:
    """Best r of all features of both sides of some pairs."""
    return np.concatenate([best_r(pair, side) for pair in pairs for side in range(2)] or [np.empty(0)])


def _number(value: float | int) -> float | int | None:
    """A number for JSON, which has no NaN."""
    return None if isnan(value) else value


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return list(interval) if interval else None
