"""Directions and strengths: what a feature and its match write.

Decoder directions of two models can be compared where their activations have one basis, as those of a model and its
fine-tune do (`verdicts.shares_basis` tells). Strengths are lengths, so they need no common basis, but activations of
one scale (`verdicts.shares_scale`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from saelineage.correlations.matches import Correlation
from saelineage.lineage.matching import SIDES


def add_directions(
    table: pd.DataFrame, correlation: Correlation, decoders: Sequence[Float[np.ndarray, "_d_sae _d_in"]]
) -> pd.DataFrame:
    """Add to a copy of an edge's table what is known of directions and strengths of features and matches.

    - `cosine`: of the directions of a feature and its best match (`match_cosines`).
    - `parts_cosine`: of the direction of a feature with several parts and of what its parts write together.
    - `strength_ratio` and `spread_ratio`: the child's over the parent's, of a feature and its best match (`strengths`,
      `spreads`).

    All but `cosine` are NaN if activations were not summed.

    Args:
        table: from `matching.edge_table`.
        correlation: of the two SAEs.
        decoders: the rows of W_dec of the parent's SAE and of the child's.
    """
    directions = [unit_directions(rows) for rows in decoders]
    measures = {"strength_ratio": strengths, "spread_ratio": spreads}
    of_latents = {
        name: [measure(correlation, side, decoders[side]) for side in range(2)] for name, measure in measures.items()
    }
    columns = []
    for side in range(2):
        match = table.loc[table["side"] == SIDES[side], "match"].to_numpy()
        of_side = {
            "cosine": match_cosines(directions[side], directions[1 - side], match),
            "parts_cosine": parts_cosines(correlation, side, directions[side], decoders[1 - side]),
        }
        for name, sides in of_latents.items():
            of_match = np.where(match >= 0, sides[1 - side][np.maximum(match, 0)], np.nan)
            of_side[name] = of_match / sides[0] if side == 0 else sides[1] / of_match
        columns.append(pd.DataFrame(of_side))
    return table.assign(**pd.concat(columns, ignore_index=True))


def unit_directions(rows: Float[np.ndarray, "d_sae d_in"]) -> Float[np.ndarray, "d_sae d_in"]:
    """Rows of W_dec scaled to length 1, in float32; NaN for rows of zeros."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows.astype(np.float32) / np.where(norms > 0, norms, np.nan).astype(np.float32)


def match_cosines(
    own: Float[np.ndarray, "d_sae d_in"],
    other: Float[np.ndarray, "d_sae_other d_in_other"],
    match: Int[np.ndarray, " d_sae"],
) -> Float[np.ndarray, " d_sae"]:
    """The cosine of each feature's direction and that of its best match, in [-1, 1].

    NaN where there is no match (-1) or no direction, and everywhere if the models have different widths.

    Args:
        own, other: from `unit_directions`.
        match: latents of the other SAE.
    """
    if own.shape[1] != other.shape[1]:
        return np.full(len(own), np.nan)
    cosines = np.einsum("ij,ij->i", own, other[np.maximum(match, 0)], dtype=np.float64)
    return np.where(match >= 0, np.clip(cosines, -1.0, 1.0), np.nan)


def parts_cosines(
    correlation: Correlation,
    whole: int,
    own: Float[np.ndarray, "d_sae d_in"],
    other_rows: Float[np.ndarray, "d_sae_other d_in_other"],
) -> Float[np.ndarray, " d_sae"]:
    """The cosine of each whole's direction and of the sum of all that its parts write, over all tokens; in [-1, 1].

    NaN where a feature has no parts, and everywhere if the models have different widths or activations were not summed.

    Args:
        correlation: of the two SAEs.
        whole: the side of the features that are divided.
        own: their directions, from `unit_directions`.
        other_rows: the rows of W_dec of the parts' SAE.
    """
    cosines = np.full(len(own), np.nan)
    if correlation.combined is None or correlation.totals is None or own.shape[1] != other_rows.shape[1]:
        return cosines
    whole_of, totals = correlation.combined.whole_of[1 - whole], correlation.totals[1 - whole]
    for feature in np.unique(whole_of[whole_of >= 0]):
        parts = whole_of == feature
        written = totals[parts] @ other_rows[parts].astype(np.float64)
        length = np.linalg.norm(written)
        if length > 0:
            cosines[feature] = np.clip(own[feature] @ written / length, -1.0, 1.0)
    return cosines


def strengths(
    correlation: Correlation, side: int, rows: Float[np.ndarray, "d_sae d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """The length of what each feature of a side writes where it is active: its mean activation times its decoder norm.

    It is the mean over all that the feature writes, sum f^2 / sum f, not over the tokens on which it fires: how many
    weak firings a latent has depends on the other latents of its SAE. NaN where it is zero or activations were not
    summed.
    """
    if correlation.totals is None or correlation.squares is None:
        return np.full(len(rows), np.nan)
    totals = correlation.totals[side]
    return _of_nonzero(correlation.squares[side] / np.where(totals > 0, totals, np.nan), rows)


def spreads(correlation: Correlation, side: int, rows: Float[np.ndarray, "d_sae d_in"]) -> Float[np.ndarray, " d_sae"]:
    """The standard deviation over all tokens of the length that each feature of a side writes; NaN as `strengths`."""
    if correlation.totals is None or correlation.squares is None:
        return np.full(len(rows), np.nan)
    n_tokens = sum(correlation.n_tokens.values())
    variances = correlation.squares[side] / n_tokens - (correlation.totals[side] / n_tokens) ** 2
    return _of_nonzero(np.sqrt(np.maximum(variances, 0)), rows)


def _of_nonzero(
    activations: Float[np.ndarray, " d_sae"], rows: Float[np.ndarray, "d_sae d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """Activations times the norms of decoder rows; NaN for zero."""
    written = activations * np.linalg.norm(rows.astype(np.float64), axis=1)
    return np.where(written > 0, written, np.nan)
