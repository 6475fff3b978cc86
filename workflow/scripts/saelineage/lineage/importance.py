"""Importance: which of the lost and new features to read first.

The importance of a feature is what its own model loses without it, times how much of it the other model has not. Pure
functions of arrays: `attributions` measures the effects, `correlations` the rest.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Integer

from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.verdicts import GONE, NEW

PER_TOKENS = 1000
"""Effects are given in nats per so many tokens."""
CHANGED = dict(zip(SIDES, (GONE, NEW), strict=True))
"""Per side, the verdict of the features that the other model has not."""


class Effects(NamedTuple):
    """What ablating each latent of a model alone does to its loss, by corpus (sorted)."""

    corpora: tuple[str, ...]
    per_thousand: Float[np.ndarray, "corpus d_sae"]
    """Nats per `PER_TOKENS` tokens of the corpus, above 0 where the feature helps."""
    n_firings: Int[np.ndarray, "corpus d_sae"]
    """On the rows that the effects were measured on."""


def per_thousand(
    sums: Float[np.ndarray, "corpus d_sae"], n_tokens: Integer[np.ndarray, " corpus"]
) -> Float[np.ndarray, "corpus d_sae"]:
    """Summed changes of the loss as nats per `PER_TOKENS` tokens predicted; NaN where a corpus has none."""
    return PER_TOKENS * sums / np.where(n_tokens > 0, n_tokens, np.nan)[:, None]


def contrast_corpora(density: Float[np.ndarray, "corpus d_sae"]) -> Int[np.ndarray, " d_sae"]:
    """The corpus that shows each feature most: where it fires on the largest share of tokens, on a tie the first.

    It is chosen by densities alone, so that an effect there is not the largest of several noisy ones.
    """
    return density.argmax(axis=0)


def own_share(r: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " feature"]:
    """The share of each feature's variance that no single feature of the other model follows: 1 - max(r, 0)^2.

    Args:
        r: of each feature with its best match; NaN where there is none, which leaves it all its own.
    """
    return 1.0 - np.maximum(np.nan_to_num(r), 0.0) ** 2


def importances(
    effects: Float[np.ndarray, "corpus d_sae"],
    density: Float[np.ndarray, "corpus d_sae"],
    r: Float[np.ndarray, " d_sae"],
) -> Float[np.ndarray, " d_sae"]:
    """Effect on the own model's loss on the contrast corpus x `own_share`, in nats per `PER_TOKENS` tokens.

    Positive where taking the feature out hurts the model that has it.

    Args:
        effects: as in `Effects.per_thousand`.
        density: share of each corpus's tokens on which each latent fires, corpora in the same order.
        r: of each latent with its best match in the other model.
    """
    return np.take_along_axis(effects, contrast_corpora(density)[None], axis=0)[0] * own_share(r)


def importance_table(
    rows: pd.DataFrame,
    effects: Effects,
    density: Float[np.ndarray, "corpus d_sae"],
    other_density: Float[np.ndarray, "corpus d_sae_other"],
) -> pd.DataFrame:
    """The importance of the testable features of one side of an edge.

    Args:
        rows: of one side of an edge's table, one for each latent in order.
        effects: of that side's model.
        density: of its latents, by corpus, in the order of `effects.corpora`.
        other_density: of the other model's latents.

    Returns:
        One row per testable feature, in order of latents: `side`, `latent`, `verdict`, `identified`, `headline`, `r`,
        `match`; `contrast_corpus`, and there `effect`, `n_firings`, `density` and `match_density` (of its best match;
        NaN without one); `own_share`; `importance`; `rank` within its verdict, from 1, the most important first, on a
        tie the lower latent; and per corpus C `effect_C`, `density_C` and `match_density_C`.
    """
    match, r = rows["match"].to_numpy(), rows["r"].to_numpy(dtype=np.float64)
    shown = contrast_corpora(density)
    of_match = np.where(match >= 0, other_density[:, np.maximum(match, 0)], np.nan)
    by_corpus = {"effect": effects.per_thousand, "density": density, "match_density": of_match}
    there = {name: values[shown, np.arange(len(shown))] for name, values in by_corpus.items()}
    columns = {
        **{
            name: rows[name].to_numpy()
            for name in ("side", "latent", "verdict", "identified", "headline", "r", "match")
        },
        "contrast_corpus": np.array(effects.corpora, dtype=object)[shown],
        **there,
        "n_firings": effects.n_firings[shown, np.arange(len(shown))],
        "own_share": own_share(r),
        "importance": importances(effects.per_thousand, density, r),
        **{
            f"{name}_{corpus}": of
            for name, values in by_corpus.items()
            for corpus, of in zip(effects.corpora, values, strict=True)
        },
    }
    table = pd.DataFrame(columns)
    table = table[table["verdict"] != UNTESTABLE].reset_index(drop=True)
    ranks = table.groupby("verdict")["importance"].rank(method="first", ascending=False, na_option="bottom")
    first = list(table.columns[: list(table.columns).index("importance") + 1])
    return table.assign(rank=ranks.astype(np.int64))[[*first, "rank", *table.columns.drop(first)]]


def reading_order(table: pd.DataFrame) -> pd.DataFrame:
    """The lost or new features of one or both sides in the order in which to read them.

    Those lost or new for sure come first, then identified ones, then the others; within these the most important first.

    Args:
        table: from `importance_table`.
    """
    changed = table[table["verdict"] == table["side"].map(CHANGED)]
    by = ["headline", "identified", "importance", "latent"]
    return changed.sort_values(by, ascending=[False, False, False, True], kind="stable")


def add_exact(table: pd.DataFrame, exact: dict[int, float]) -> pd.DataFrame:
    """Add `exact_effect`: of the features that were ablated, the measured effect on the contrast corpus; else NaN.

    Args:
        table: from `importance_table`.
        exact: nats per `PER_TOKENS` tokens by latent.
    """
    measured = table["latent"].map(exact).astype(np.float64)
    return table.assign(exact_effect=measured)


def heads(tables: Iterable[pd.DataFrame], n: int) -> dict[str, Int[np.ndarray, " latent"]]:
    """The features of one model that are among the first of any of its tables, ascending, by their contrast corpus.

    Args:
        tables: from `importance_table`, of sides of edges that the model is part of.
        n: how many of each, in `reading_order`.
    """
    first = pd.concat([reading_order(table).head(n) for table in tables])
    return {
        str(corpus): np.unique(rows["latent"].to_numpy(dtype=np.int64))
        for corpus, rows in first.groupby("contrast_corpus")
    }
