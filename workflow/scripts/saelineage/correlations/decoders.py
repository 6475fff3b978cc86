"""Decoder rows of two SAEs in a one-to-one assignment: PW-MCC between seeds, GT-MCC against true directions.

Arrays only, so that jobs that report these figures need no PyTorch. `cosines` has the similarities of all pairs.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from scipy.optimize import linear_sum_assignment

from saelineage.errors import InputError
from saelineage.plan.comparisons import names_in_pair

MAX_ASSIGNED = 8_192
"""Most latents that are assigned by default. Memory grows with their square, time at most with their cube."""
BLOCK_ROWS = 1_024


class NoSimilarityError(InputError):
    """A similarity is not defined for two SAEs or their models. Others may be."""


class PairwiseMcc(TypedDict):
    """PW-MCC of several SAEs of one model."""

    pw_mcc: float | None
    """Mean over the pairs; None if it is undefined for one."""
    chance: float | None
    """The same of as many random directions, the mean over the pairs: in few dimensions some are always close."""
    n_pairs: int
    left_out: str | None
    """The reason where it is None."""


def load_decoder(path: Path | str) -> Float[np.ndarray, "d_sae d_in"]:
    """Read W_dec alone from an SAE's weights file.

    Raises:
        InputError: if the file is damaged or holds no W_dec.
    """
    try:
        with safe_open(path, framework="np") as file:
            return file.get_tensor("W_dec")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{path}' must hold an SAE's W_dec, but is damaged or another file ({error}); delete it and run again"
        ) from error


def assigned_cosines(
    a: Float[np.ndarray, "d_sae_a d_in_a"],
    b: Float[np.ndarray, "d_sae_b d_in_b"],
    *,
    signed: bool = True,
    max_latents: int = MAX_ASSIGNED,
) -> Float[np.ndarray, " pair"]:
    """Cosines of the pairs of rows in the one-to-one assignment with the largest sum of cosines.

    Each row of the smaller side has a partner. Zero rows are left out.

    All cosines are in memory once, in float64. On one core, 1,024 rows took 0.1 s; 8,192 rows of 512 dimensions 2 to
    15 s and 0.7 GB; 16,384 took 18 s or more and 2.4 GB. At worst the time of the assignment grows with the cube.

    Args:
        a, b: the rows.
        signed: False takes absolute cosines, as SAELens does against true directions.
        max_latents: refuse more rows.

    Raises:
        NoSimilarityError: if a side has more than `max_latents` rows, or their widths differ.
    """
    if a.shape[1] != b.shape[1]:
        raise NoSimilarityError(f"the SAEs read activations of different width: {a.shape[1]} and {b.shape[1]}")
    if max(len(a), len(b)) > max_latents:
        raise NoSimilarityError(
            f"assigning {len(a)} x {len(b)} latents takes a lot of memory; call "
            f"saelineage.correlations.cosines.pw_mcc(a, b, max_latents={max(len(a), len(b))})"
        )
    unit_a, unit_b = unit_rows(a), unit_rows(b)
    costs = np.empty((len(unit_a), len(unit_b)))
    for first in range(0, len(unit_a), BLOCK_ROWS):
        cosine = np.clip(unit_a[first : first + BLOCK_ROWS] @ unit_b.T, -1, 1)
        np.negative(cosine if signed else np.abs(cosine), out=costs[first : first + BLOCK_ROWS])
    return -costs[linear_sum_assignment(costs)]


def unit_rows(rows: Float[np.ndarray, "row width"]) -> Float[np.ndarray, "some_rows width"]:
    """Rows divided by their norms, in float32; zero rows are left out."""
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(norms > 0, norms, np.nan))[norms[:, 0] > 0].astype(np.float32)


def mean_correlation(cosines: Float[np.ndarray, " pair"]) -> float | None:
    """Mean of assigned cosines (MCC); None if there are none."""
    return float(cosines.mean(dtype=np.float64)) if len(cosines) else None


def seeds_pw_mcc(pairs: Sequence[str], load: Callable[[str], Float[np.ndarray, "d_sae d_in"]]) -> PairwiseMcc:
    """PW-MCC of a model's SAEs of several seeds: the mean over its pairs.

    Args:
        pairs: the names of the pairs, `{model}.{sae}__{model}.{sae}`.
        load: gives decoder rows by an SAE's name.
    """
    values, by_chance = [], []
    for name in pairs:
        a, b = map(load, names_in_pair(name))
        try:
            value, reason = mean_correlation(assigned_cosines(a, b)), f"all decoder rows of an SAE of {name} are zero"
        except NoSimilarityError as error:
            value, reason = None, str(error)
        if value is None:
            return {"pw_mcc": None, "chance": None, "n_pairs": len(pairs), "left_out": reason}
        values.append(value)
        by_chance.append(chance_mcc(len(a), len(b), a.shape[1]))
    pw_mcc, chance = (float(np.mean(part)) if part else None for part in (values, by_chance))
    return {"pw_mcc": pw_mcc, "chance": chance, "n_pairs": len(pairs), "left_out": None}


@cache
def chance_mcc(n_a: int, n_b: int, d_in: int) -> float:
    """MCC of two sets of random directions, drawn uniformly from a fixed seed."""
    random = np.random.default_rng(0)
    cosines = assigned_cosines(*(random.standard_normal((n, d_in), dtype=np.float32) for n in (n_a, n_b)))
    return float(cosines.mean(dtype=np.float64))
