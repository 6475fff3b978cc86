"""Raw sums over the aligned tokens of two SAEs' features. They add up over shards, and correlations follow from them.

Sums of products are added into dense rows, some features of side a at a time, so that the products of all pairs are
never in memory. The features of both sides are, 8 bytes for each activation.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from numba import njit

from saelineage.correlations.prefetching import prefetch
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, require_aligned

ENTRY = np.dtype([("latent", np.int32), ("value", np.float32)])
"""A latent next to its activation, because most of the time goes into fetching them from memory."""
ENTRIES_A_LINE = 8
"""Entries in the 64 bytes that memory delivers at once."""
TOKENS_AHEAD = 3
"""Tokens of a feature whose activations are fetched ahead, each while those before are summed."""


class ShardSums:
    """Raw sums over the tokens of a shard of each SAE that are compared on both sides.

    For each feature of side a, the rows of side b at its tokens are added into a dense row (Gustavson 1978, ACM TOMS 4,
    250-269), in the order of tokens, in float64.

    Attributes:
        source: the files, as error messages name them.
        names: the two SAEs, as `{model}.{sae}`.
        corpus: the corpus.
        n_tokens: aligned tokens that are compared on both sides.
        covered: the token rows: digest of their ids, first row, end row (exclusive).
        totals, squares, firings: per side, [d_sae] sums of activations and their squares, and tokens that fire.
    """

    def __init__(self, a: FeatureShard, b: FeatureShard):
        """Sum all but the products; the shards themselves are no longer needed then.

        Raises:
            InputError: if the two shards are not of the same tokens.
        """
        require_aligned(a, b)
        compared = a.compared & b.compared
        self.source, self.corpus = f"'{a.path}' and '{b.path}'", a.corpus
        self.names = (f"{a.model}.{a.sae}", f"{b.model}.{b.sae}")
        self.n_tokens, self.covered = int(compared.sum()), (a.ids_sha256, a.first_row, a.stop_row)
        latents = _compared(a, compared)
        sums_of_a, by_latent = _sums_of_features(latents), latents.T.tocsr()
        self._starts, self._tokens, self._values = by_latent.indptr, by_latent.indices, by_latent.data
        latents = _compared(b, compared)
        self._starts_of_tokens, self._entries = latents.indptr, np.empty(latents.nnz, ENTRY)
        self._entries["latent"], self._entries["value"] = latents.indices, latents.data
        both = zip(sums_of_a, _sums_of_features(latents), strict=True)
        self.totals, self.squares, self.firings = both

    @property
    def shape(self) -> tuple[int, int]:
        """d_sae of both sides."""
        return len(self.totals[0]), len(self.totals[1])

    def add_products(self, first: int, out: Float[np.ndarray, "row d_sae_b"]) -> None:
        """Add sums over tokens of activation x activation, of features `first`, `first` + 1, ... of side a with all."""
        _add_products(self._starts[first:], self._tokens, self._values, self._starts_of_tokens, self._entries, out)

    def add_together(self, first: int, out: Int[np.ndarray, "row d_sae_b"]) -> None:
        """Add the numbers of tokens on which both features of a pair fire, of pairs as in `add_products`."""
        _add_together(self._starts[first:], self._tokens, self._starts_of_tokens, self._entries, out)


def all_sums(shards: Iterable[tuple[FeatureShard, FeatureShard]]) -> list[ShardSums]:
    """The sums of all pairs of shards, each of which is freed before the next is asked for."""
    sums = []
    for a, b in shards:
        sums.append(ShardSums(a, b))
        del a, b  # or they would stay in memory while the next are loaded
    return sums


def require_addable(sums: Sequence[ShardSums]) -> None:
    """Refuse to add sums of different pairs, sizes or tokens, or to count tokens twice.

    Raises:
        InputError: naming the two that do not go together.
    """
    if not sums:
        raise InputError("there are no sums to add; give at least one shard")
    for a, b in pairwise(sums):
        for name in ("names", "shape"):
            value_a, value_b = getattr(a, name), getattr(b, name)
            if value_a != value_b:
                raise InputError(
                    f"sums can be added only if they have the same {name}, not {value_a} ({a.source}) and "
                    f"{value_b} ({b.source}); delete the one that is wrong and run again"
                )
    for a, b in pairwise(sorted(sums, key=lambda of_shard: (of_shard.corpus, of_shard.covered))):
        (ids_a, _, stop_a), (ids_b, first_b, stop_b) = a.covered, b.covered
        if a.corpus != b.corpus:
            continue
        if ids_a != ids_b:
            raise InputError(
                f"sums on '{a.corpus}' can be added only if they are of the same tokens, not {ids_a} ({a.source}) "
                f"and {ids_b} ({b.source}); delete the one that is wrong and run again"
            )
        if first_b < min(stop_a, stop_b):
            raise InputError(
                f"sums of {a.names} on '{a.corpus}' would count token rows {first_b} to {min(stop_a, stop_b)} "
                f"twice ({a.source}; {b.source}); delete the one that is wrong and run again"
            )


def _compared(shard: FeatureShard, compared: np.ndarray) -> scipy.sparse.csr_array:
    """The latents of the tokens that are compared."""
    return shard.latents if compared.all() else shard.latents[compared]


def _sums_of_features(latents: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of activations and of their squares, and the number of tokens that fire, of each feature."""
    values = latents.data.astype(np.float64)
    firings = np.bincount(latents.indices, minlength=latents.shape[1])
    return _column_sums(latents, values), _column_sums(latents, values**2), firings


def _column_sums(latents: scipy.sparse.csr_array, values: Float[np.ndarray, " entry"]) -> Float[np.ndarray, " d_sae"]:
    sums = np.bincount(latents.indices, weights=values, minlength=latents.shape[1])
    return sums.astype(np.float64)  # without entries numpy returns integers


@njit(nogil=True, cache=True)
@no_type_check
def _add_products(starts, tokens, values, b_starts, b_entries, out):
    """Add the products of some features of side a; the entries of b that come next are fetched ahead."""
    for row in range(out.shape[0]):
        last = starts[row + 1] - 1
        for entry in range(starts[row], last + 1):
            later = tokens[min(entry + TOKENS_AHEAD, last)]
            for place in range(b_starts[later], b_starts[later + 1], ENTRIES_A_LINE):
                prefetch(b_entries, place)
            token, value = tokens[entry], np.float64(values[entry])
            for place in range(b_starts[token], b_starts[token + 1]):
                out[row, b_entries[place].latent] += value * b_entries[place].value


@njit(nogil=True, cache=True)
@no_type_check
def _add_together(starts, tokens, b_starts, b_entries, out):
    """Count the tokens on which some features of side a fire together with each of side b."""
    for row in range(out.shape[0]):
        for entry in range(starts[row], starts[row + 1]):
            token = tokens[entry]
            for place in range(b_starts[token], b_starts[token + 1]):
                out[row, b_entries[place].latent] += 1
