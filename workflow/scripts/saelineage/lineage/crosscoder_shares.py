"""Shares of a crosscoder's latents by verdict, on each edge and with each control in the child's place.

Beside each edge stand its floor and nulls. The *floor* is the parent as its own child: its activations on one half of
the documents beside those on the other half, where every latent should persist. *Nulls* are controls in the child's
place: random weights, where none should, and models that were trained further on the parent's own text or repeat the
child.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

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
    quotients,
)
from saelineage.lineage.exclusivity import (
    DISAPPEARS,
    EMERGES,
    IN_LINEAGE,
    OTHER_HALF,
    ROTATED,
    VERDICTS,
    ExclusivityRules,
    add_exclusivity,
    exclusivity_curve,
)
from saelineage.lineage.matching import PERSISTS
from saelineage.plan.crosscoders import OF_EDGE

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


def floor_table(
    groups: Sequence[ScalingSums], products: Mapping[Couple, Float[np.ndarray, " d_sae"]], model: str
) -> pd.DataFrame:
    """A model as its own child: its scaling on every second group of documents beside that on the others.

    Args:
        groups: sums over each group of documents.
        products: from `latent_scaling.decoder_products`.
        model: the model.

    Returns:
        The columns of `latent_scaling.pair_table` that verdicts rest on. `n_firings` is that of the half with fewer.
        Both halves have one direction, so the cosine is 1 and a latent's own direction says what nu says.
    """
    halves = [weighted(groups, [int(place % 2 == half) for place in range(len(groups))]) for half in (0, 1)]
    couple = Couple(model, model)
    one, other = (betas(half, products, [couple]) for half in halves)
    from_other = other[ERROR][couple] > one[ERROR][couple]
    columns: dict[str, np.ndarray] = {
        "latent": np.arange(len(from_other)),
        "n_firings": np.minimum(*(half.n_firings for half in halves)),
        "relative_norm": np.full(len(from_other), 0.5),
        "cosine": np.ones(len(from_other)),
        "writer": np.where(from_other, CHILD, PARENT),
    }
    for target in (ERROR, RECONSTRUCTION):
        sides = one[target][couple], other[target][couple]
        nu = quotients(np.where(from_other, *sides), np.where(from_other, *sides[::-1]))
        columns |= {f"nu_{target}": nu, f"own_ratio_{target}": nu}
    return pd.DataFrame(columns)


class Exclusivity(NamedTuple):
    """The verdicts of a crosscoder's latents on pairs of models, and what follows from them."""

    latents: pd.DataFrame
    """`edge`, `parent`, `child`, `role` and the columns of `add_exclusivity`."""
    shares: pd.DataFrame
    """Of each pair, and of the floor of each edge, the number of latents of each verdict, `persist_share` (of those
    that the parent writes) and `inherited_share` (of those that the child writes), each with `_n`, `_low` and `_high`:
    percentiles 2.5 and 97.5 of the replicates, NaN for the floor."""
    curves: pd.DataFrame
    """Of each pair and floor, the columns of `exclusivity_curve`, and the bounds of verdicts."""


def measure_pairs(
    groups: Sequence[ScalingSums],
    crosscoder: Crosscoder,
    pairs: Sequence[Mapping[str, str]],
    rules: ExclusivityRules,
    n_replicates: int,
    seed: int,
) -> Exclusivity:
    """Verdicts of all latents for each pair of models, and their shares.

    Args:
        groups: sums over each group of documents.
        crosscoder: the crosscoder.
        pairs: `edge`, `parent`, `child` and `role` of each.
        rules: the bounds of verdicts.
        n_replicates: replicates of the groups, drawn with replacement, for intervals.
        seed: of the draws.
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
    tables, rows, curves = [], [], []
    for shares, pair in zip(again, pairs, strict=True):
        table = verdicts(whole, pair)
        tables.append(pd.DataFrame({**pair, "latent": table["latent"]}).merge(table, on="latent"))
        rows.append({**pair, **_row(verdict_counts(table), pd.DataFrame(shares, columns=list(WRITTEN_BY)))})
        curves.append(_curve(table, pair, rules))
    floors = {(pair["edge"], pair["parent"]) for pair in pairs}
    for edge, parent in sorted(floors):
        table = add_exclusivity(floor_table(groups, products, parent), rules)
        named = {"edge": edge, "parent": parent, "child": parent, "role": OTHER_HALF}
        rows.append({**named, **_row(verdict_counts(table), pd.DataFrame(columns=list(WRITTEN_BY), dtype=float))})
        curves.append(_curve(table, named, rules))
    return Exclusivity(pd.concat(tables, ignore_index=True), pd.DataFrame(rows), pd.concat(curves, ignore_index=True))


def decoder_norms(crosscoder: Crosscoder, latents: pd.DataFrame, min_firings: int) -> pd.DataFrame:
    """The norm of each latent's decoder direction in each model.

    Args:
        crosscoder: the crosscoder.
        latents: from `measure_pairs`.
        min_firings: of `ExclusivityRules`.

    Returns:
        Columns `model`, with those of edges first; `role`, `lineage` or that of a control; `latent`; `n_firings`;
        `norm`, in float64; and `fires`, whether the latent fires often enough to be testable.
    """
    pairs = latents[["parent", "child", "role"]].drop_duplicates()
    in_lineage = {*pairs["parent"], *pairs["child"][pairs["role"] == OF_EDGE]}
    roles = dict(zip(pairs["child"], pairs["role"], strict=True)) | dict.fromkeys(in_lineage, IN_LINEAGE)
    n_firings = latents.drop_duplicates("latent").set_index("latent")["n_firings"].sort_index()
    products = decoder_products(crosscoder, [Couple(model, model) for model in crosscoder.models])
    tables = [
        pd.DataFrame(
            {
                "model": model,
                "role": roles[model],
                "latent": n_firings.index,
                "n_firings": n_firings.to_numpy(),
                "norm": np.sqrt(products[Couple(model, model)]),
                "fires": n_firings.to_numpy() >= min_firings,
            }
        )
        for model in sorted(crosscoder.models, key=lambda model: model not in in_lineage)
    ]
    return pd.concat(tables, ignore_index=True)


def _curve(table: pd.DataFrame, pair: Mapping[str, str], rules: ExclusivityRules) -> pd.DataFrame:
    bounds = {name: getattr(rules, name) for name in ("nu_error_below", "nu_reconstruction_below")}
    curve = exclusivity_curve(table, min_firings=rules.min_firings)
    return pd.DataFrame(dict(pair), index=curve.index).join(curve.assign(**bounds))


def _row(counts: Mapping[str, int], replicates: pd.DataFrame) -> dict:
    row: dict = dict(counts)
    for name, value in shares_of(counts).items():
        low, high = replicates[name].quantile([0.025, 0.975]) if len(replicates) else (float("nan"), float("nan"))
        n = sum(counts[verdict] for verdict in WRITTEN_BY[name][1])
        row |= {f"{name}_share": value, f"{name}_share_n": n, f"{name}_share_low": low, f"{name}_share_high": high}
    return row
