"""Readouts: linear regressions of the features of one model on the activations of another.

A feature that no latent of the other model's SAE follows is either not in that model or missed by its SAE. Its readout
tells the two apart: a ridge regression (Hoerl & Kennard 1970, Technometrics 12, 55-67) from raw activations to the
feature's activation on the same tokens. The same regression on its own model's activations gives the most that a linear
map can reach.

Tokens are divided into three folds: one to fit the weights, one to choose the penalty, one to measure. Of each fold
only sums over tokens are kept, in float64, so memory does not grow with the number of tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from saelineage.activations import ActivationShard
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.transfers import CPU, to_device

FIT, TUNE, TEST = 0, 1, 2
FOLD_OF_BLOCK = np.array([FIT, FIT, TUNE, TEST])
BLOCK_ROWS = 8
"""Token rows that stay together in a fold."""
PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Ridge penalties, in units of the mean eigenvalue of the activations' covariance."""
MIN_TEST_FIRINGS = 5
"""A quarter of the 20 firings below which no feature is compared, because the test fold is a quarter of the tokens."""
LEAST_VARIANCE = 1e-12
"""A variance below this share of the mean square is rounding: a difference of sums that agree in 12 digits."""
CHUNK_TOKENS = 2048
BLOCK_LATENTS = 1024


@dataclass
class FoldSums:
    """Sums over the tokens of one fold, or over parts of it, to which more tokens can be added.

    Attributes:
        n: number of tokens.
        x: [d_in] sums of the activations.
        xx: [d_in, d_in] sums of products of two activations.
        y, yy: [latent] sums of the features' activations, and of their squares.
        yx: [latent, d_in] sums of products of a feature's activation and the activations.
        firings: [latent] tokens on which each feature fires.
    """

    n: int
    x: Float[Tensor, " d_in"]
    xx: Float[Tensor, "d_in d_in"]
    y: Float[Tensor, " latent"]
    yy: Float[Tensor, " latent"]
    yx: Float[Tensor, "latent d_in"]
    firings: Int[Tensor, " latent"]

    @classmethod
    def zeros(cls, d_in: int, d_sae: int, device: torch.device = CPU) -> "FoldSums":
        """The sums over no tokens."""
        x, y = (torch.zeros(size, dtype=torch.float64, device=device) for size in (d_in, d_sae))
        return cls(0, x, x.new_zeros(d_in, d_in), y, y.clone(), x.new_zeros(d_sae, d_in), y.long())

    def add(self, acts: Float[Tensor, "token d_in"], latents: scipy.sparse.csr_array) -> None:
        """Add tokens in place: their activations, and their latents [token, d_sae] as sparse rows."""
        device, latents = self.x.device, latents.astype(np.float64)
        acts = to_device(acts, device).double()
        self.n += len(acts)
        self.x += acts.sum(0)
        self.xx.addmm_(acts.T, acts)
        self.y += torch.from_numpy(latents.sum(axis=0)).to(device)
        self.yy += torch.from_numpy(latents.multiply(latents).sum(axis=0)).to(device)
        self.yx += products(latents, acts)
        self.firings += torch.from_numpy(np.bincount(latents.indices, minlength=latents.shape[1])).to(device)

    def of_latents(self, part: slice) -> "FoldSums":
        """Select the sums of some of the features, without a copy."""
        return FoldSums(self.n, self.x, self.xx, self.y[part], self.yy[part], self.yx[part], self.firings[part])

    def about(self, x: Float[Tensor, " d_in"], y: Float[Tensor, " latent"]) -> "FoldSums":
        """Return the sums over the same tokens of deviations from `x` and `y`."""
        xx = self.xx - torch.outer(self.x, x) - torch.outer(x, self.x) + self.n * torch.outer(x, x)
        yy = self.yy - 2 * y * self.y + self.n * y.square()
        yx = self.yx - torch.outer(self.y, x) - torch.outer(y, self.x) + self.n * torch.outer(y, x)
        return FoldSums(self.n, self.x - self.n * x, xx, self.y - self.n * y, yy, yx, self.firings)

    def rotated(self, basis: Float[Tensor, "d_in d_in"]) -> "FoldSums":
        """Return the same sums with activations in another orthonormal basis, whose vectors are the columns."""
        xx, yx = basis.T @ self.xx @ basis, self.yx @ basis
        return FoldSums(self.n, self.x @ basis, xx, self.y, self.yy, yx, self.firings)

    def varies(self) -> Bool[Tensor, " latent"]:
        """Mark the features whose activation varies from token to token."""
        return self.total() > LEAST_VARIANCE * self.yy

    def total(self) -> Float[Tensor, " latent"]:
        """SST of each feature: the sum of its squared deviations from its mean over these tokens."""
        return self.yy - self.y.square() / self.n


def products(latents: scipy.sparse.csr_array, acts: Float[Tensor, "token d_in"]) -> Float[Tensor, "latent d_in"]:
    """latents.T @ acts, on the device of the activations.

    On a GPU each latent's entries lie together, so that sums need no atomic additions, whose order is not fixed.
    """
    if acts.device.type == "cpu":
        return torch.from_numpy(latents.T @ acts.numpy())
    return products_by_latent(latents, acts)


def products_by_latent(
    latents: scipy.sparse.csr_array, acts: Float[Tensor, "token d_in"]
) -> Float[Tensor, "latent d_in"]:
    """The products by torch: the rows of a sparse matrix [latent, token] times the activations."""
    if not latents.nnz:
        return acts.new_zeros(latents.shape[1], acts.shape[1])
    columns = latents.tocsc()
    starts, tokens, values = (
        torch.from_numpy(array).to(acts.device) for array in (columns.indptr, columns.indices, columns.data)
    )
    shape = (columns.shape[1], columns.shape[0])
    rows = torch.sparse_csr_tensor(starts, tokens, values, shape, check_invariants=False)
    return rows @ acts


def folds(positions: Integer[np.ndarray, " token"], n_ctx: int) -> Int[np.ndarray, " token"]:
    """Assign tokens to folds: of every 32 token rows the first 16 to fit, the next 8 to tune, the last 8 to test.

    Neighbouring rows hold parts of the same documents, so blocks of rows stay together. A document is in two folds only
    where it crosses the edge of a block.

    Args:
        positions: row x n_ctx + place in the row.
        n_ctx: tokens in a row.
    """
    return FOLD_OF_BLOCK[positions // n_ctx // BLOCK_ROWS % len(FOLD_OF_BLOCK)]


def read_out(
    own_acts: Sequence[Path | str],
    other_acts: Sequence[Path | str],
    features: Sequence[Path | str],
    min_test_firings: int = MIN_TEST_FIRINGS,
    device: torch.device = CPU,
) -> pd.DataFrame:
    """Measure how well each feature of an SAE is read out of another model's and of its own model's activations.

    Args:
        own_acts, other_acts: activation shards of the SAE's model and of the other one on the probe.
        features: feature shards of the SAE, of the same tokens and in the same order. Tokens that are not `compared`
            there are left out.
        min_test_firings: least number of tokens of the test fold on which a feature must fire.
        device: the device to compute on, in float64.

    Returns:
        One row per latent, with columns

        - `latent`;
        - `r2_other` and `r2_own`, R^2 on the test fold: at most 1, below 0 where the mean of that fold is a better
          guess, NaN where a feature does not vary in each fold or fires too seldom;
        - `n_test_firings`;
        - `penalty_other` and `penalty_own`, the penalties chosen (see `ridge_r2`), NaN where R^2 is.

    Raises:
        InputError: if shards are not of the same tokens, or there are too few token rows for three folds.
    """
    columns = {}
    for of, paths in {"other": other_acts, "own": own_acts}.items():  # in turn, to save memory
        sums = fold_sums(paths, features, device)
        columns[f"r2_{of}"], columns[f"penalty_{of}"] = ridge_r2(*sums, min_test_firings=min_test_firings)
        columns["n_test_firings"] = sums[TEST].firings.cpu().numpy()
    table = pd.DataFrame({"latent": np.arange(len(columns["r2_other"])), **columns})
    return table[["latent", "r2_other", "r2_own", "n_test_firings", "penalty_other", "penalty_own"]]


def fold_sums(
    acts: Sequence[Path | str], features: Sequence[Path | str], device: torch.device = CPU
) -> tuple[FoldSums, FoldSums, FoldSums]:
    """Sum over activation shards and the feature shards of the same tokens, for each of the three folds.

    Raises:
        InputError: if there is not one feature shard for each activation shard, two are not of the same tokens, or a
            fold is left without tokens.
    """
    if len(acts) != len(features) or not features:
        raise InputError(
            f"readouts need one feature shard for each activation shard, got {len(features)} and {len(acts)}; "
            "list both in the same order"
        )
    sums: list[FoldSums] = []
    for path_to_acts, path_to_features in zip(acts, features, strict=True):
        act_shard, feature_shard = ActivationShard(path_to_acts), FeatureShard(path_to_features)
        require_same_tokens(act_shard, feature_shard)
        sums = sums or [FoldSums.zeros(act_shard.d_in, feature_shard.d_sae, device) for _ in (FIT, TUNE, TEST)]
        for fold, chunk, latents in _parts(act_shard, feature_shard):
            sums[fold].add(chunk, latents)
    n_tokens = [of_fold.n for of_fold in sums]
    if not all(n_tokens):
        raise InputError(
            f"readouts need probe tokens in each of three folds, but got {n_tokens} to fit, tune and test on; "
            f"give the probe split {BLOCK_ROWS * len(FOLD_OF_BLOCK)} token rows or more"
        )
    return sums[FIT], sums[TUNE], sums[TEST]


def require_same_tokens(acts: ActivationShard, features: FeatureShard) -> None:
    """Refuse activations and features of different tokens.

    Raises:
        InputError: if they differ, naming both shards.
    """
    header = acts.header
    of_acts = f"{header['ids_sha256']} rows {header['first_row']} to {header['stop_row']}"
    if of_acts != features.token_range or not np.array_equal(acts.positions().numpy(), features.positions):
        raise InputError(
            f"activations and features must come from the same tokens, but '{acts.path}' ({of_acts}) and "
            f"'{features.path}' ({features.token_range}) do not; delete both and rerun"
        )


def ridge_r2(
    fit: FoldSums,
    tune: FoldSums,
    test: FoldSums,
    penalties: Iterable[float] = PENALTIES,
    min_test_firings: int = MIN_TEST_FIRINGS,
) -> tuple[Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
    """R^2 of a ridge regression of each feature on activations, on tokens that it was neither fitted nor tuned on.

    Let C be the covariance of activations over the fold `fit`, m its mean eigenvalue, and c the covariance of
    activations and a feature. The weights are w = (C + penalty m I)^-1 c, and the guess is mean_y + w . (x - mean_x).
    One eigendecomposition of C serves all penalties. Each feature takes the penalty with the least SSE on `tune`, on a
    tie the first. With X and y the deviations in a fold from the means of `fit`,

        SSE = y'y - 2 w . X'y + w . X'X w,    R^2 = 1 - SSE / SST,

    where SST is the sum of squared deviations from the mean of the fold `test` itself.

    Returns:
        R^2 and the penalty, both NaN where a feature does not vary in some fold, or fires on fewer than
        `min_test_firings` tokens of `test`.

    Raises:
        InputError: if the activations do not vary.
    """
    sound = fit.varies() & tune.varies() & test.varies() & (test.firings >= min_test_firings)
    sst, means, square = test.total(), (fit.x / fit.n, fit.y / fit.n), fit.xx.trace()
    fit, tune, test = (fold.about(*means) for fold in (fit, tune, test))
    if not fit.xx.trace() > LEAST_VARIANCE * square:
        raise InputError("activations must vary to be read out, but all tokens have the same; check their shards")
    eigenvalues, basis = torch.linalg.eigh(fit.xx / fit.n)
    grid = torch.tensor(list(penalties), dtype=torch.float64, device=eigenvalues.device)
    inverses = 1 / (eigenvalues.clamp(min=0) + eigenvalues.mean() * grid.unsqueeze(1))
    sse, chosen = _tuned_sse(fit.yx @ basis / fit.n, inverses, tune.rotated(basis), test.rotated(basis))
    r2, penalty = (torch.where(sound, values, torch.nan).cpu().numpy() for values in (1 - sse / sst, grid[chosen]))
    return r2, penalty


def _parts(shard: ActivationShard, features: FeatureShard) -> Iterator[tuple[int, Tensor, scipy.sparse.csr_array]]:
    """Split the compared tokens of a shard, chunk by chunk, into their folds: fold, activations and latents."""
    compared = features.compared & ~np.isnan(shard.norms().numpy())
    fold_of = np.where(compared, folds(features.positions, features.n_ctx), -1)
    for start, chunk in zip(range(0, shard.n_tokens, CHUNK_TOKENS), shard.chunks(CHUNK_TOKENS), strict=True):
        for fold in (FIT, TUNE, TEST):
            inside = np.flatnonzero(fold_of[start : start + CHUNK_TOKENS] == fold)
            if len(inside):
                yield fold, chunk[torch.from_numpy(inside)], features.latents[start + inside]


def _tuned_sse(
    covariances: Float[Tensor, "latent d_in"], inverses: Float[Tensor, "penalty d_in"], tune: FoldSums, test: FoldSums
) -> tuple[Float[Tensor, " latent"], Int[Tensor, " latent"]]:
    """SSE on `test` under the penalty that does best on `tune`, and that penalty's index; features go in blocks."""
    sse, chosen = torch.zeros_like(test.yy), torch.zeros_like(test.firings)
    for start in range(0, len(sse), BLOCK_LATENTS):
        part = slice(start, start + BLOCK_LATENTS)
        on_tune = [_sse(covariances[part] * inverse, tune.of_latents(part)) for inverse in inverses]
        chosen[part] = torch.stack(on_tune).argmin(0)
        sse[part] = _sse(covariances[part] * inverses[chosen[part]], test.of_latents(part))
    return sse, chosen


def _sse(weights: Float[Tensor, "latent d_in"], fold: FoldSums) -> Float[Tensor, " latent"]:
    """Sum of squared errors of each feature's readout, from a fold's deviations from the means of the fit."""
    return fold.yy - 2 * (weights * fold.yx).sum(1) + ((weights @ fold.xx) * weights).sum(1)
