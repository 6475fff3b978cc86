"""Features: the sparse latents of one SAE on the probe tokens of one corpus, in shards.

A shard is a safetensors file with compressed sparse rows (`indptr` [token + 1], `indices` and `values` [entry]), the
`positions` [token] of its tokens, and a mask `compared` [token]. The mask leaves out tokens whose activations are
outliers, as the SAE's training does; their rows are empty. The header names the SAE, the corpus and the tokens.
"""

from collections.abc import Hashable, Sequence
from copy import copy
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Integer, Num
from safetensors import SafetensorError

from saelineage.errors import InputError
from saelineage.files.tensors import read_tensors, write_tensors

Name = TypeVar("Name", bound=Hashable)
TENSORS = ("indptr", "indices", "values", "positions", "compared")


class FeatureShard:
    """One shard in memory.

    Attributes:
        path: the file.
        model, sae, corpus: names of the model, its SAE and the corpus.
        ids_sha256, first_row, stop_row, n_ctx: the token rows it covers.
        latents: [token, d_sae] compressed sparse rows of float32 activations, all > 0.
        positions: [token] row x n_ctx + place in the row.
        compared: [token] False for tokens left out of comparisons because their activations are outliers.
    """

    def __init__(self, path: Path | str):
        """Read a shard.

        Raises:
            InputError: if the file is not a whole, consistent feature shard, or holds values that are not activations.
        """
        self.path = Path(path)
        try:
            header, tensors = read_tensors(path)
            indptr, indices, values, self.positions, self.compared = (tensors[name] for name in TENSORS)
            self.model, self.sae, self.corpus, self.ids_sha256 = (
                header[key] for key in ("model", "sae", "corpus", "ids_sha256")
            )
            self.first_row, self.stop_row, self.n_ctx, d_sae = (
                header[key] for key in ("first_row", "stop_row", "n_ctx", "d_sae")
            )
            self.latents = scipy.sparse.csr_array((values, indices, indptr), shape=(len(self.positions), d_sae))
            self.latents.check_format(full_check=True)
            if not self.latents.has_canonical_format:
                raise ValueError("latents are not in ascending order within each token")
            if len(self.compared) != len(self.positions):
                raise ValueError(f"compared covers {len(self.compared)} tokens, positions {len(self.positions)}")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"'{path}' is not a whole feature shard ({error}); delete it and run again") from error
        self._require_activations()

    @classmethod
    def of_array(
        cls, latents: Num[np.ndarray, "token d_sae"] | scipy.sparse.sparray | scipy.sparse.spmatrix, name: str
    ) -> "FeatureShard":
        """Make a shard of latents in memory, as float32.

        Args:
            latents: [token, d_sae], dense or sparse; they are copied.
            name: name of the model, used in error messages as well.

        Raises:
            InputError: if an activation is negative or not finite.
        """
        shard = cls.__new__(cls)
        shard.path, shard.model, shard.sae, shard.corpus, shard.ids_sha256 = Path(name), name, "sae", "corpus", ""
        # scipy's stubs convert concrete sparse classes only, not their base classes
        shard.latents = scipy.sparse.csr_array(latents, dtype=np.float32, copy=True)  # type: ignore[arg-type]
        shard.latents.sum_duplicates()
        shard.latents.eliminate_zeros()
        n_tokens = shard.latents.shape[0]
        shard.first_row, shard.stop_row, shard.n_ctx = 0, n_tokens, 1
        shard.positions, shard.compared = np.arange(n_tokens), np.ones(n_tokens, dtype=bool)
        shard._require_activations()
        return shard

    def _require_activations(self) -> None:
        values = self.latents.data
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if len(wrong):
            raise InputError(
                f"activations in '{self.path}' must be finite and above zero where features fire, but one is "
                f"{wrong[0]}; look at the SAE '{self.model}.{self.sae}'"
            )

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.latents.shape[1]

    @property
    def token_range(self) -> str:
        """The tokens covered, as one string to compare."""
        return f"{self.ids_sha256} rows {self.first_row} to {self.stop_row}"


def save_shard(
    path: Path | str,
    indptr: Integer[np.ndarray, " token_plus_1"],
    indices: Integer[np.ndarray, " entry"],
    values: Float[np.ndarray, " entry"],
    positions: Integer[np.ndarray, " token"],
    compared: Bool[np.ndarray, " token"],
    header: dict[str, str | int],
) -> None:
    """Write one shard.

    Args:
        path: the file to write.
        indptr, indices, values: compressed sparse rows.
        positions: row x n_ctx + place in the row, of each token.
        compared: False for tokens to leave out of comparisons.
        header: model, sae, corpus, d_sae, ids_sha256, first_row, stop_row, n_ctx.
    """
    tensors: dict[str, np.ndarray] = {
        "indptr": indptr.astype(np.int64),
        "indices": indices.astype(np.int32),
        "values": values.astype(np.float32),
        "positions": positions.astype(np.int64),
        "compared": compared,
    }
    write_tensors(path, header, tensors)


def shards_by_sae(paths: Sequence[str], saes: Sequence[Name]) -> dict[Name, list[str]]:
    """Group the feature shards of some SAEs, of which each has as many, by the SAE's name.

    Args:
        paths: all shards of the first SAE, then all of the second, and so on.
        saes: the name of each SAE, such as (model, SAE), or its model alone.
    """
    n_each = len(paths) // len(saes)
    starts = range(0, len(paths), n_each)
    return {sae: list(paths[start : start + n_each]) for sae, start in zip(saes, starts, strict=True)}


def most_frequent_corpus(shards: Sequence[FeatureShard]) -> np.ndarray:
    """The corpus of which each latent fires on the largest share of tokens; empty for one that never fires.

    Args:
        shards: all shards of one SAE.
    """
    counts: dict[str, np.ndarray] = {}
    tokens: dict[str, int] = {}
    for shard in shards:
        fired = np.bincount(shard.latents.indices, minlength=shard.d_sae)
        counts[shard.corpus] = counts.get(shard.corpus, np.zeros(shard.d_sae, int)) + fired
        tokens[shard.corpus] = tokens.get(shard.corpus, 0) + int(shard.compared.sum())
    names = np.array([*counts, ""])
    shares = np.stack([counts[corpus] / max(1, tokens[corpus]) for corpus in counts])
    return names[np.where(shares.max(axis=0) > 0, shares.argmax(axis=0), len(counts))]


def require_aligned(a: FeatureShard, b: FeatureShard) -> None:
    """Refuse to compare features of different tokens.

    Raises:
        InputError: naming both shards.
    """
    if (a.corpus, a.token_range) != (b.corpus, b.token_range) or not np.array_equal(a.positions, b.positions):
        raise InputError(
            f"features must come from the same tokens, but '{a.path}' ({a.corpus}, {a.token_range}) and "
            f"'{b.path}' ({b.corpus}, {b.token_range}) do not; delete both and run again"
        )


def shifted(shard: FeatureShard) -> FeatureShard:
    """Make a random control: each token gets the features of the row half a shard further on, of other documents.

    Each feature keeps its statistics, also by place in the row, but no feature stays aligned with the tokens. A token
    is not compared if its place is masked out in the other row.

    Raises:
        InputError: if the shard holds fewer than two token rows.
    """
    n_rows = shard.stop_row - shard.first_row
    if n_rows < 2:
        raise InputError(
            f"documents can be shifted only if a shard has two token rows or more, but '{shard.path}' has {n_rows}; "
            "lower activations.n_probe_shards or take 'shifted' out of correlations.random_controls"
        )
    rows, places = np.divmod(shard.positions, shard.n_ctx)
    shifted_rows = (rows - shard.first_row + n_rows // 2) % n_rows + shard.first_row
    shifted_positions = shifted_rows * shard.n_ctx + places
    tokens = np.searchsorted(shard.positions, shifted_positions).clip(max=len(shard.positions) - 1)
    control = copy(shard)
    control.sae = f"{shard.sae}_shifted"
    control.latents = shard.latents[tokens]
    control.compared = shard.compared[tokens] & (shard.positions[tokens] == shifted_positions)
    return control
