"""Raw sums over the aligned tokens of two SAEs' features. They add up over shards, and correlations follow from them.

Sums of products are sparse, because latents are. They come a block of rows (features of side a) at a time, so that
neither the products of all pairs nor all tokens are ever in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Integer
from numba import njit
from safetensors import SafetensorError, safe_open

from saelineage.correlations.matches import SIDES
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, require_aligned
from saelineage.files.atomic import decode_header
from saelineage.files.tensors import require_sha256, sha256_tensors, writing_tensors

T = TypeVar("T")
ENTRY = np.dtype([("latent", np.int32), ("value", np.float32)])
"""A latent next to its activation, because most of the time goes into fetching them from memory."""
HEADER_BYTES = 2048
"""Room in a file's header for the description of one set of sums, and for that of one block of products."""
SUMS_OF_ONE_SIDE = ("totals", "squares", "firings")


class Products(NamedTuple):
    """Some rows of the sums of products, as compressed sparse rows of the pairs that fire together on some token."""

    indptr: Int[np.ndarray, " row_plus_1"]
    indices: Integer[np.ndarray, " entry"]
    """The feature of side b, ascending in each row; in 16 bits where they suffice, because files are large."""
    products: Float[np.ndarray, " entry"]
    """Sums over tokens of activation x activation."""
    together: Integer[np.ndarray, " entry"]
    """Tokens on which both fire; in 16 bits where they suffice."""


class PairSums(ABC):
    """Raw sums over the aligned tokens of one corpus in one shard.

    Attributes:
        source: the files, as error messages name them.
        names: the two SAEs, as `{model}.{sae}`.
        corpus: the corpus.
        n_tokens: aligned tokens that are compared on both sides.
        covered: the token rows: digest of their ids, first row, end row (exclusive).
        totals, squares, firings: per side, [d_sae] sums of activations and their squares, and tokens that fire.
        block_features: features of side a in a block.
    """

    def __init__(
        self,
        source: str,
        names: tuple[str, str],
        corpus: str,
        n_tokens: int,
        covered: tuple[str, int, int],
        sides: Mapping[str, tuple[np.ndarray, np.ndarray]],
        block_features: int,
    ):
        """Keep everything but the products; `sides` holds `totals`, `squares` and `firings`."""
        self.source, self.names, self.corpus, self.n_tokens, self.covered = source, names, corpus, n_tokens, covered
        self.totals, self.squares, self.firings = (sides[name] for name in SUMS_OF_ONE_SIDE)
        self.block_features = block_features

    @property
    def shape(self) -> tuple[int, int]:
        """d_sae of both sides."""
        return len(self.totals[0]), len(self.totals[1])

    def blocks(self) -> list[range]:
        """The blocks of rows, in order."""
        n_rows = self.shape[0]
        return [
            range(start, min(start + self.block_features, n_rows)) for start in range(0, n_rows, self.block_features)
        ]

    @abstractmethod
    def products(self, rows: range) -> Products:
        """Sums of products of one of the `blocks`."""


class ShardSums(PairSums):
    """Sums computed from a shard of each SAE, over the tokens that are compared on both sides.

    For each feature of side a, the rows of side b at its tokens are added into a dense row (Gustavson 1978, ACM TOMS 4,
    250-269), in the order of tokens, in float64.
    """

    def __init__(self, a: FeatureShard, b: FeatureShard, block_features: int):
        """Sum all but the products.

        Raises:
            InputError: if the two shards are not of the same tokens.
        """
        require_aligned(a, b)
        compared = a.compared & b.compared
        sides = [shard.latents if compared.all() else shard.latents[compared] for shard in (a, b)]
        super().__init__(
            source=f"'{a.path}' and '{b.path}'",
            names=(f"{a.model}.{a.sae}", f"{b.model}.{b.sae}"),
            corpus=a.corpus,
            n_tokens=int(compared.sum()),
            covered=(a.ids_sha256, a.first_row, a.stop_row),
            sides={
                "totals": _of_both(sides, lambda latents: _column_sums(latents, latents.data.astype(np.float64))),
                "squares": _of_both(sides, lambda latents: _column_sums(latents, latents.data.astype(np.float64) ** 2)),
                "firings": _of_both(sides, lambda latents: np.bincount(latents.indices, minlength=latents.shape[1])),
            },
            block_features=block_features,
        )
        self._by_latent, self._starts = sides[0].T.tocsr(), sides[1].indptr
        self._entries = np.empty(sides[1].nnz, ENTRY)
        self._entries["latent"], self._entries["value"] = sides[1].indices, sides[1].data

    def products(self, rows: range) -> Products:
        """See `PairSums.products`."""
        a, d_sae_b = self._by_latent, self.shape[1]
        starts = a.indptr[rows.start : rows.stop + 1]
        tokens = a.indices[starts[0] : starts[-1]]
        lengths = np.diff(self._starts)[tokens]
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[starts - starts[0]]
        most = int(np.minimum(np.diff(ends), d_sae_b).sum())
        indptr, indices = np.zeros(len(rows) + 1, dtype=np.int64), np.empty(most, dtype=_smallest(d_sae_b - 1))
        products, together = np.empty(most), np.empty(most, dtype=_smallest(int(np.diff(starts).max())))
        out = (indptr, indices, products, together)
        _sum_products(starts, a.indices, a.data, self._starts, self._entries, d_sae_b, *out)
        n = indptr[-1]
        return Products(indptr, indices[:n], products[:n], together[:n])


class SavedSums(PairSums):
    """Sums in a file from `save_sums`. Products are read only when they are asked for."""

    def __init__(self, path: Path | str, header: Mapping, sides: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        """Keep everything but the products; callers use `load_sums` instead."""
        self._path, self._digests = path, header["digests"]
        super().__init__(
            source=f"'{path}'",
            names=tuple(header["names"]),
            corpus=header["corpus"],
            n_tokens=header["n_tokens"],
            covered=tuple(header["covered"]),
            sides=sides,
            block_features=header["block_features"],
        )

    def products(self, rows: range) -> Products:
        """See `PairSums.products`.

        Raises:
            InputError: if the file is damaged.
        """
        try:
            with safe_open(self._path, framework="np") as file:
                prefix = f"{self.names[1]}/{self.corpus}/{rows.start}"
                products = Products(*(file.get_tensor(f"{prefix}/{name}") for name in Products._fields))
            require_sha256({"sha256": self._digests[str(rows.start)]}, products._asdict())
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(self._path, error) from error
        return products


def require_addable(sums: Sequence[PairSums]) -> None:
    """Refuse to add sums of different pairs, sizes or tokens, or to count tokens twice.

    Raises:
        InputError: naming the two that do not go together.
    """
    if not sums:
        raise InputError("there are no sums to add; give at least one shard")
    for a, b in pairwise(sums):
        for name in ("names", "shape", "block_features"):
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


def save_sums(sums: Iterable[PairSums], path: Path | str, n_sums: int, n_blocks: int, threads: int = 1) -> None:
    """Write the sums of one shard as one safetensors file, a block of products at a time.

    Args:
        sums: of any pairs and corpora, each pair and corpus once. Each is freed before the next is asked for.
        path: the file to write.
        n_sums: the number of `sums`.
        n_blocks: the number of blocks of each.
        threads: the number of blocks computed at once.
    """
    headers = []
    with writing_tensors(path, HEADER_BYTES * (1 + n_sums * (1 + n_blocks))) as writer:
        for of_pair in sums:
            prefix = f"{of_pair.names[1]}/{of_pair.corpus}"
            sides = _named({name: getattr(of_pair, name) for name in SUMS_OF_ONE_SIDE})
            for name, values in sides.items():
                writer.add(f"{prefix}/{name}", values)
            tasks = (partial(_with_sha256, of_pair, rows) for rows in of_pair.blocks())
            digests = {}
            for rows, (products, digest) in zip(of_pair.blocks(), ahead(tasks, threads), strict=True):
                digests[str(rows.start)] = digest
                for name, values in products._asdict().items():
                    writer.add(f"{prefix}/{rows.start}/{name}", values)
            header = {
                "names": of_pair.names,
                "corpus": of_pair.corpus,
                "n_tokens": of_pair.n_tokens,
                "covered": of_pair.covered,
                "block_features": of_pair.block_features,
                "digests": digests,
            }
            headers.append({**header, "sha256": sha256_tensors(header, sides)})
        writer.header = {"sums": headers}


def load_sums(path: Path | str, partner: str) -> list[SavedSums]:
    """The sums of one pair that `save_sums` wrote, a corpus each.

    Args:
        path: the file.
        partner: the SAE on side b, `{model}.{sae}`; a random control's name includes its suffix.

    Raises:
        InputError: if the file is damaged or does not hold this partner.
    """
    try:
        with safe_open(path, framework="np") as file:
            headers = [header for header in decode_header(file.metadata())["sums"] if header["names"][1] == partner]
            # A damaged name in the header must not make a corpus disappear, so the arrays' own names decide.
            corpora = {key.split("/")[1] for key in file.keys() if key.startswith(f"{partner}/")}  # noqa: SIM118
            if not headers or {header["corpus"] for header in headers} != corpora:
                raise ValueError(f"its header and its arrays do not both hold sums with '{partner}'")
            return [_saved_sums(path, file.get_tensor, header) for header in headers]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def ahead(tasks: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """The results of tasks in order. At most as many results are computed ahead as there are threads."""
    tasks = iter(tasks)
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(task) for task in islice(tasks, threads)]
        while futures:
            result = futures.pop(0).result()
            futures += [pool.submit(task) for task in islice(tasks, 1)]
            yield result


def _saved_sums(path: Path | str, read: Callable[[str], np.ndarray], header: Mapping) -> SavedSums:
    """The sums of one pair and corpus, checked against their digest."""
    prefix = f"{header['names'][1]}/{header['corpus']}"
    sides = {
        name: (read(f"{prefix}/{name}_{SIDES[0]}"), read(f"{prefix}/{name}_{SIDES[1]}")) for name in SUMS_OF_ONE_SIDE
    }
    require_sha256(header, _named(sides))
    return SavedSums(path, header, sides)


def _named(sides: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """The sums of single features by the names they have in files."""
    return {
        f"{name}_{side}": values for name, of_both in sides.items() for side, values in zip(SIDES, of_both, strict=True)
    }


def _with_sha256(sums: PairSums, rows: range) -> tuple[Products, str]:
    products = sums.products(rows)
    return products, sha256_tensors({}, products._asdict())


def _of_both(
    sides: Sequence[scipy.sparse.csr_array], sums_of: Callable[[scipy.sparse.csr_array], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the latents of both sides."""
    return sums_of(sides[0]), sums_of(sides[1])


def _smallest(largest: int) -> type[np.integer]:
    """The integer format of 16 or 32 bits that holds numbers up to `largest`."""
    return np.uint16 if largest < 1 << 16 else np.int32


def _column_sums(latents: scipy.sparse.csr_array, values: Float[np.ndarray, " entry"]) -> Float[np.ndarray, " d_sae"]:
    sums = np.bincount(latents.indices, weights=values, minlength=latents.shape[1])
    return sums.astype(np.float64)  # without entries numpy returns integers


def _damaged(path: Path | str, error: object) -> InputError:
    return InputError(
        f"'{path}' must hold correlation sums, but is damaged or another file ({error}); delete it and run again"
    )


@njit(nogil=True, cache=True)
@no_type_check
def _sum_products(starts, tokens, values, b_starts, b_entries, d_sae_b, indptr, indices, products, together):
    """Fill the rows of `Products`."""
    row_products, row_together = np.zeros(d_sae_b), np.zeros(d_sae_b, dtype=np.int32)
    n = 0
    for row in range(len(starts) - 1):
        for entry in range(starts[row], starts[row + 1]):
            token, value = tokens[entry], np.float64(values[entry])
            for place in range(b_starts[token], b_starts[token + 1]):
                latent = b_entries[place].latent
                row_products[latent] += value * b_entries[place].value
                row_together[latent] += 1
        for latent in range(d_sae_b):
            if row_together[latent]:
                indices[n], products[n], together[n] = latent, row_products[latent], row_together[latent]
                row_products[latent], row_together[latent] = 0.0, 0
                n += 1
        indptr[row + 1] = n
