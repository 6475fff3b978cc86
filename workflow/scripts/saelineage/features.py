"""Features: the sparse latents of one SAE over the probe tokens of one corpus, in shards.

A shard is a safetensors file with compressed sparse rows (`indptr` [token + 1], `indices` and `values` [entry]), the
`positions` [token] of its tokens, and which of them are `compared` [token]: not those whose activations are so long
that they were left out of the SAE's training, whose rows are empty. Its header names the SAE, the corpus and the
tokens.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Integer
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.files import atomic_path, decode_header, encode_header


class FeatureShard:
    """One shard, read.

    Attributes:
        path: its file.
        model, sae, corpus: whose latents, on what.
        ids_sha256, first_row, stop_row, n_ctx: the token rows it covers.
        latents: [token, d_sae] compressed sparse rows of float64 activations, all > 0.
        positions: [token] row x n_ctx + place in the row.
        compared: [token] False for tokens that mean nothing to the SAE.
    """

    def __init__(self, path: Path | str):
        """Read a shard.

        Raises:
            InputError: if the file is not a whole, consistent feature shard.
        """
        self.path = Path(path)
        try:
            with safe_open(path, framework="np") as file:
                header = decode_header(file.metadata())
                indptr, indices, values, self.positions, self.compared = (
                    file.get_tensor(name) for name in ("indptr", "indices", "values", "positions", "compared")
                )
            self.model, self.sae, self.corpus, self.ids_sha256 = (
                header[key] for key in ("model", "sae", "corpus", "ids_sha256")
            )
            self.first_row, self.stop_row, self.n_ctx, d_sae = (
                header[key] for key in ("first_row", "stop_row", "n_ctx", "d_sae")
            )
            self.latents = scipy.sparse.csr_array(
                (values.astype(np.float64), indices, indptr), shape=(len(self.positions), d_sae)
            )
            self.latents.check_format(full_check=True)
            if not self.latents.has_canonical_format:
                raise ValueError("latents do not ascend within each token")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"'{path}' is not a whole feature shard ({error}); delete it and run again") from error
        if not (np.isfinite(values) & (values > 0)).all():
            raise InputError(
                f"'{path}' holds activations that are not finite and above zero; "
                f"look at the SAE '{self.model}.{self.sae}'"
            )

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.latents.shape[1]

    @property
    def token_range(self) -> str:
        """The tokens covered, as one comparable string."""
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
        path: where to.
        indptr, indices, values: compressed sparse rows.
        positions: where each token stands.
        compared: whether each token is to be compared.
        header: model, sae, corpus, d_sae, ids_sha256, first_row, stop_row, n_ctx.
    """
    tensors = {
        "indptr": indptr.astype(np.int64),
        "indices": indices.astype(np.int32),
        "values": values.astype(np.float32),
        "positions": positions.astype(np.int64),
        "compared": compared,
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=encode_header(header))


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
