"""One partner for each feature: mutual best matches, and the assignment with the largest sum of similarities."""

import numpy as np
import scipy.sparse
from jaxtyping import Int
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from saelineage.correlations.matches import Matches

HIGHEST = 2.0
"""A bound above every similarity. Costs are this minus the similarity, so no edge of the sparse graph costs 0."""


def mutual_best(matches: Matches) -> Int[np.ndarray, " d_sae_a"]:
    """For each feature of side a, its best partner if each is the other's best partner, else -1."""
    best, back = (partners[:, 0] for partners in matches.partners)
    mutual = (best >= 0) & (back[best] == np.arange(len(best)))
    return np.where(mutual, best, -1)


def one_to_one(kept: scipy.sparse.csr_array) -> Int[np.ndarray, " d_sae_a"]:
    """For each feature of side a, its partner in the assignment with the largest sum of similarities, or -1.

    Optimal assignment on the sparse graph of the similarities kept (Jonker and Volgenant's algorithm for sparse
    matrices, as in `scipy.sparse.csgraph.min_weight_full_bipartite_matching`). A feature of side a may also stay
    unassigned, which adds 0.

    Args:
        kept: [d_sae_a, d_sae_b] similarities of the pairs that may be assigned, all above 0.
    """
    n_rows, n_columns = kept.shape
    costs = scipy.sparse.csr_array((HIGHEST - kept.data, kept.indices, kept.indptr), shape=kept.shape)
    unassigned = scipy.sparse.diags_array(np.full(n_rows, HIGHEST), format="csr")
    rows, columns = min_weight_full_bipartite_matching(scipy.sparse.hstack([costs, unassigned], format="csr"))
    partners = np.full(n_rows, -1, dtype=np.int64)
    partners[rows] = np.where(columns < n_columns, columns, -1)
    return partners
