"""Correlations that rest on few documents.

Pearson r weighs a token by the products of its activations. If two unrelated features are very strong on one token that
they share, their r is near 1, and if one is, its r with its true partner is near 0. So a feature whose squares come
from a handful of documents can neither be found nor be missed.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float
from safetensors import SafetensorError

from saelineage.correlations.bootstrap import DocumentSums
from saelineage.correlations.matches import SIDES
from saelineage.errors import InputError
from saelineage.files.tensors import read_group

RESTS_ON_ARRAYS = len(SIDES)
"""Arrays of `rests_on_tensors`."""
LEAST_DOCUMENTS = 5.0
"""Effective number of documents below which r says little (docs/benchmarks.md)."""


def rests_on(sums: DocumentSums) -> tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]]:
    """Per side, the effective number of documents that carry each feature's sum of squares.

    It is (sum q)^2 / sum q^2, with q a document's sum of squared activations, Hill's number of order 2 (Hill 1973,
    Ecology 54, 427-432): n if n documents carry equal parts, near 1 if one document carries almost all. NaN for a
    feature that never fires.

    A pair need not be looked at. If one document carries the share p of a pair's sum of products and the pair's cosine
    is c, both features have a share of at least (p c)^2 of their squares there, by the Cauchy-Schwarz inequality.
    """
    a, b = (_effective_number(squares) for squares in sums.squares)
    return a, b


def rests_on_few(documents: Float[np.ndarray, " d_sae"], least: float = LEAST_DOCUMENTS) -> Bool[np.ndarray, " d_sae"]:
    """Mark features that fire, and whose r rests on fewer documents (`rests_on`) than are needed."""
    return documents < least


def rests_on_tensors(sums: DocumentSums) -> dict[str, np.ndarray]:
    """`rests_on` as the arrays `rests_on_a` and `rests_on_b`, which lie beside a pair's replicates."""
    return {f"rests_on_{side}": documents for side, documents in zip(SIDES, rests_on(sums), strict=True)}


def load_rests_on(
    path: Path | str, partner: str
) -> tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]]:
    """Read `rests_on` of the correlation with one partner.

    Args:
        path: `correlations/{hookpoint}/{a}/replicates.safetensors`.
        partner: the SAE on side b, `{model}.{sae}`.

    Raises:
        InputError: if the file is damaged or does not hold this partner.
    """
    try:
        _, tensors = read_group(path, partner)
        a, b = (tensors[f"rests_on_{side}"] for side in SIDES)
        return a, b
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' must hold the effective numbers of documents with '{partner}', but is damaged or another file "
            f"({error}); delete it and run again"
        ) from error


def _effective_number(parts: scipy.sparse.csr_array) -> Float[np.ndarray, " row"]:
    """(sum q)^2 / sum q^2 of each row of a sparse array [row, part]; NaN for rows of zeros."""
    totals, squares = parts.sum(axis=1), parts.multiply(parts).sum(axis=1)
    return np.divide(totals**2, squares, out=np.full(len(totals), np.nan), where=squares > 0)
