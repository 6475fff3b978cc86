"""Figures of difference SAEs: their latents beside the directions of both models, and what there is on each corpus.

SAEs of one model have other directions for each seed, so the share of directions that are the child's alone has a
floor: the same share with a second SAE of the parent in place of the child's. Its null has as many random directions
there.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saelineage.correlations.cosines import cosines
from saelineage.crosscoders.differences import DifferenceSums, rounding_share, size
from saelineage.lineage.new_directions import CHILD_ALONE, DIRECTIONS, directions
from saelineage.lineage.shares import share
from saelineage.plan.graph import POOLED
from saelineage.saes import metrics

RANDOM_SEED = 0
"""Seed of the random directions."""
UNCHANGED, RANDOM = "unchanged", "random"
"""What stands in the child's place in the floor and in the null."""


def latent_table(
    W_dec: Float[Tensor, "d_sae d_in"],
    decoders: Mapping[str, Float[Tensor, "_latent d_in"]],
    by_corpus: Mapping[str, DifferenceSums],
    same_above: float,
    threads: int = 1,
) -> pd.DataFrame:
    """The firings and the closest directions of a difference SAE's latents.

    Args:
        W_dec: the decoder of the difference SAE.
        decoders: those of the SAEs of `parent` and `child`, and of a second one of the parent (`unchanged`) if there is
            one.
        by_corpus: sums over the probe (`crosscoders.differences.sums_by_corpus`).
        same_above: cosine from which two directions count as the same.
        threads: of the search.

    Returns:
        Columns `latent`, `n_firings`, `density` (share of the tokens), `firings_{corpus}`, `firing_share_{corpus}` (of
        its firings; NaN if it never fires); for both models `cosine_{side}`, `closest_{side}` (the latent of that SAE)
        and `opposite_{side}`, the largest cosine of the opposite direction; `cosine_unchanged` (NaN without that SAE),
        `cosine_random`; and `direction` (`new_directions`).
    """
    firings = {corpus: _firings(sums, len(W_dec)) for corpus, sums in by_corpus.items()}
    n_firings = np.sum(list(firings.values()), axis=0)
    columns = {"latent": np.arange(len(W_dec)), "n_firings": n_firings}
    columns["density"] = n_firings / max(1, sum(sums.child.n for sums in by_corpus.values()))
    with np.errstate(invalid="ignore"):
        for corpus, of_corpus in firings.items():
            columns |= {f"firings_{corpus}": of_corpus, f"firing_share_{corpus}": of_corpus / n_firings}
    for side in ("parent", "child"):
        columns[f"cosine_{side}"], columns[f"closest_{side}"] = closest(W_dec, decoders[side], threads)
        columns[f"opposite_{side}"], _ = closest(-W_dec, decoders[side], threads)
    second, random = decoders.get(UNCHANGED), torch.Generator().manual_seed(RANDOM_SEED)
    columns["cosine_unchanged"] = np.nan if second is None else closest(W_dec, second, threads)[0]
    drawn = torch.randn(decoders["child"].shape, generator=random)
    columns["cosine_random"], _ = closest(W_dec, drawn, threads)
    table = pd.DataFrame(columns)
    return table.assign(direction=directions(table, same_above))


def closest(
    rows: Float[Tensor, "row d_in"], others: Float[Tensor, "_other d_in"], threads: int = 1
) -> tuple[Float[np.ndarray, " row"], np.ndarray]:
    """The largest cosine of each row with the others, and which other it is; NaN and -1 for a row of zeros."""
    matches = cosines(rows, others, top_matches=1, keep_above=1.0, threads=threads)
    return matches.best[0][:, 0], matches.partners[0][:, 0]


def summary_table(
    latents: pd.DataFrame, by_corpus: Mapping[str, DifferenceSums], same_above: float, min_firings: int
) -> pd.DataFrame:
    """Figures of a difference SAE over all corpora (`pooled`) and on each.

    Args:
        latents: from `latent_table`.
        by_corpus: sums over the probe.
        same_above: as for `latent_table`.
        min_firings: latents that fire on fewer tokens, of all or of the corpus, are not counted by direction.

    Returns:
        Columns `corpus`, `n_tokens`, `difference_size` and `rounding_share` (see `crosscoders.differences`), `fvu`,
        `l0`, `n_latents`, `n_alive` (that fire), `n_testable` (often enough), the number of testable ones of each
        direction, and `child_alone_share` with `_n`, `_low` and `_high` (Wilson), `_floor` and `_null`.
    """
    pooled = DifferenceSums()
    for sums in by_corpus.values():
        pooled = pooled.add(sums)
    rows = [_figures(POOLED, pooled, latents, latents["n_firings"], same_above, min_firings)]
    for corpus, sums in by_corpus.items():
        rows.append(_figures(corpus, sums, latents, latents[f"firings_{corpus}"], same_above, min_firings))
    return pd.DataFrame(rows)


def _figures(
    corpus: str,
    sums: DifferenceSums,
    latents: pd.DataFrame,
    firings: pd.Series,
    same_above: float,
    min_firings: int,
) -> dict:
    testable = latents[firings >= min_firings]
    counts = testable["direction"].value_counts()
    of_child = share(int(counts.get(CHILD_ALONE, 0)), len(testable))
    low, high = of_child.interval or (np.nan, np.nan)
    baselines = {
        f"{CHILD_ALONE}_share_{name}": _alone_share(testable, column, same_above)
        for name, column in (("floor", UNCHANGED), ("null", RANDOM))
    }
    fvu = metrics.fvu(sums.sae) if sums.child.n else None
    return {
        "corpus": corpus,
        "n_tokens": sums.child.n,
        "difference_size": size(sums),
        "rounding_share": rounding_share(sums),
        "fvu": np.nan if fvu is None else fvu,
        "l0": metrics.l0(sums.sae) if sums.child.n else np.nan,
        "n_latents": len(latents),
        "n_alive": int((firings > 0).sum()),
        "n_testable": len(testable),
        **{direction: int(counts.get(direction, 0)) for direction in DIRECTIONS},
        f"{CHILD_ALONE}_share": np.nan if of_child.value is None else of_child.value,
        f"{CHILD_ALONE}_share_n": of_child.n,
        f"{CHILD_ALONE}_share_low": low,
        f"{CHILD_ALONE}_share_high": high,
        **baselines,
    }


def _alone_share(testable: pd.DataFrame, in_place: str, same_above: float) -> float:
    """`child_alone`'s share with something else in the child's place; NaN without it, or without latents."""
    cosine = testable[f"cosine_{in_place}"]
    if not len(testable) or cosine.isna().all():
        return np.nan
    return float(((cosine >= same_above) & ~(testable["cosine_parent"] >= same_above)).mean())


def _firings(sums: DifferenceSums, d_sae: int) -> np.ndarray:
    """[d_sae]: tokens on which each latent fires; zeros of a corpus without tokens."""
    return np.zeros(d_sae, np.int64) + sums.sae.firings
