"""Shares of a crosscoder's latents by verdict, on each edge and with each control in the child's place.

Beside each edge stand its floor and nulls. The *floor* is the parent as its own child: its activations on one half of
the documents beside those on the other half, where every latent should persist. *Nulls* are controls in the child's
place: random weights, where none should, and models that were trained on with the parent's own text or repeat the
child.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.crosscoders.latent_scaling import (
    CHILD,
    ERROR,
    PARENT,
    RECONSTRUCTION,
    Couple,
    ScalingSums,
    betas,
    decoder_products,
    pair_table,
)
from saelineage.lineage.exclusivity import (
    DISAPPEARS,
    EMERGES,
    ROTATED,
    VERDICTS,
    ExclusivityRules,
    add_exclusivity,
)
from saelineage.lineage.matching import PERSISTS, UNTESTABLE

OTHER_HALF = "the parent on other documents"
"""Role of the floor."""
WRITTEN_BY = {"persist": (PARENT, (PERSISTS, ROTATED, DISAPPEARS)), "inherited": (CHILD, (PERSISTS, ROTATED, EMERGES))}
"""Name of a share, the model whose latents it is of, and their verdicts; the share is of those that persist."""


def weighted(groups: Sequence[ScalingSums], weights: Sequence[int]) -> ScalingSums:
    """The sums over groups, each counted as often as its weight says."""
    first = groups[0]

    def total(name: str) -> np.ndarray:
        return reduce(np.add, (weight * getattr(group, name) for group, weight in zip(groups, weights, strict=True)))

    arrays = (total(name) for name in ("n_firings", "squares", "on_error", "on_recons"))
    n_tokens = sum(weight * group.n_tokens for group, weight in zip(groups, weights, strict=True))
    return ScalingSums(first.couples, n_tokens, *arrays)


def verdict_counts(table: pd.DataFrame) -> dict[str, int]:
    """The number of latents of each verdict."""
    counts = table["verdict"].value_counts()
    return {verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS}


def shares_of(counts: Mapping[str, int]) -> dict[str, float]:
    """The shares of the parent's latents that persist, and of the child's that are inherited; NaN of no latents."""
    return {
        name: counts[PERSISTS] / n if (n := sum(counts[verdict] for verdict in verdicts)) else float("nan")
        for name, (_, verdicts) in WRITTEN_BY.items()
    }


def floor_counts(
    groups: Sequence[ScalingSums],
    products: Mapping[Couple, Float[np.ndarray, " d_sae"]],
    model: str,
    rules: ExclusivityRules,
) -> dict[str, int]:
    """Verdict counts of a model as its own child: its betas on every second group beside those on the others."""
    halves = [weighted(groups, [int(place % 2 == half) for place in range(len(groups))]) for half in (0, 1)]
    couple, nu = Couple(model, model), {}
    own = [betas(half, products, [couple]) for half in halves]
    for target in (ERROR, RECONSTRUCTION):
        one, other = (of_half[target][couple] for of_half in own)
        with np.errstate(invalid="ignore", divide="ignore"):
            nu[target] = np.minimum(one, other) / np.maximum(one, other)
    fires = np.minimum(*(half.n_firings for half in halves)) >= rules.min_firings
    testable = fires & np.isfinite(nu[ERROR]) & np.isfinite(nu[RECONSTRUCTION])
    alone = (nu[ERROR] < rules.nu_error_below) & (nu[RECONSTRUCTION] < rules.nu_reconstruction_below)
    counts = dict.fromkeys(VERDICTS, 0)
    counts[PERSISTS], counts[DISAPPEARS] = int((testable & ~alone).sum()), int((testable & alone).sum())
    counts[UNTESTABLE] = len(testable) - int(testable.sum())
    return counts


def measure_pairs(
    groups: Sequence[ScalingSums],
    crosscoder: Crosscoder,
    pairs: Sequence[Mapping[str, str]],
    rules: ExclusivityRules,
    n_replicates: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts of all latents for each pair of models, and their shares.

    Args:
        groups: sums over each group of documents.
        crosscoder: the crosscoder.
        pairs: `edge`, `parent`, `child` and `role` of each.
        rules: the bounds of verdicts.
        n_replicates: replicates of the groups, drawn with replacement, for intervals.
        seed: of the draws.

    Returns:
        The latents: `edge`, `parent`, `child`, `role` and the columns of `add_exclusivity`. The shares: of each pair,
        and of the floor of each edge, the number of latents of each verdict, `persist_share` (of those that the parent
        writes) and `inherited_share` (of those that the child writes), each with `_n`, `_low` and `_high`: percentiles
        2.5 and 97.5 of the replicates, NaN for the floor.
    """
    products = decoder_products(crosscoder, groups[0].couples)

    def verdicts(sums: ScalingSums, pair: Mapping[str, str]) -> pd.DataFrame:
        return add_exclusivity(pair_table(sums, products, pair["parent"], pair["child"]), rules)

    drawn = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), n_replicates)
    again: list[list[dict[str, float]]] = [[] for _ in pairs]
    for weights in drawn.tolist():
        sums = weighted(groups, weights)
        for shares, pair in zip(again, pairs, strict=True):
            shares.append(shares_of(verdict_counts(verdicts(sums, pair))))
    whole = weighted(groups, [1] * len(groups))
    tables, rows = [], []
    for shares, pair in zip(again, pairs, strict=True):
        table = verdicts(whole, pair)
        tables.append(pd.DataFrame({**pair, "latent": table["latent"]}).merge(table, on="latent"))
        rows.append({**pair, **_row(verdict_counts(table), pd.DataFrame(shares, columns=list(WRITTEN_BY)))})
    floors = {(pair["edge"], pair["parent"]) for pair in pairs}
    for edge, parent in sorted(floors):
        counts = floor_counts(groups, products, parent, rules)
        named = {"edge": edge, "parent": parent, "child": parent, "role": OTHER_HALF}
        rows.append({**named, **_row(counts, pd.DataFrame(columns=list(WRITTEN_BY), dtype=float))})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


def _row(counts: Mapping[str, int], replicates: pd.DataFrame) -> dict:
    row: dict = dict(counts)
    for name, value in shares_of(counts).items():
        low, high = replicates[name].quantile([0.025, 0.975]) if len(replicates) else (float("nan"), float("nan"))
        n = sum(counts[verdict] for verdict in WRITTEN_BY[name][1])
        row |= {f"{name}_share": value, f"{name}_share_n": n, f"{name}_share_low": low, f"{name}_share_high": high}
    return row
