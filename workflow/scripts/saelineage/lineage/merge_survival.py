"""Features of parents along a sweep of merges: whether the merged model still has each, at each point.

A parent's SAE is read on the merged model as it is, so a feature that is still there fires on the same tokens. r is the
Pearson correlation of a latent's activations on the parent and on the merge, over all compared tokens of the probe.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import nn

from saelineage.activations import read_activations, stored
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, require_aligned
from saelineage.saes.encoding import Encoder
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows
from saelineage.transfers import to_device


class PairedSums:
    """Sums over tokens of each latent's activations on two models, in float64."""

    def __init__(self, d_sae: int):
        """Start without tokens."""
        self.n = 0
        self.before, self.after, self.before_squared, self.after_squared, self.product = np.zeros((5, d_sae))

    def add(self, before: scipy.sparse.csr_array, after: scipy.sparse.csr_array) -> None:
        """Add tokens [token, d_sae]."""
        before, after = before.astype(np.float64), after.astype(np.float64)
        self.n += before.shape[0]
        self.before += before.sum(axis=0)
        self.after += after.sum(axis=0)
        self.before_squared += before.multiply(before).sum(axis=0)
        self.after_squared += after.multiply(after).sum(axis=0)
        self.product += before.multiply(after).sum(axis=0)

    def r(self) -> Float[np.ndarray, " d_sae"]:
        """Pearson correlation of each latent; NaN for one that does not vary on one of the models."""
        covariance = self.n * self.product - self.before * self.after
        variances = [
            self.n * squared - total**2
            for squared, total in ((self.before_squared, self.before), (self.after_squared, self.after))
        ]
        varies = (self.before_squared > 0) & (self.after_squared > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = covariance / np.sqrt(variances[0] * variances[1])
        return np.where(varies, np.clip(r, -1, 1), np.nan)


def followed(
    model: nn.Module,
    hookpoint: str,
    rows: Mapping[str, TokenRows],
    shards: Mapping[str, Sequence[FeatureShard]],
    saes: Mapping[str, Sae],
    dtype: str,
    batch_rows: int,
) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Correlate each parent's features with what its SAE finds in a merged model.

    Args:
        model: the merged model.
        hookpoint: the place of the activations.
        rows: token rows of the probe by corpus, as the merged model reads them.
        shards: features of each parent, of all corpora.
        saes: the SAE of each parent.
        dtype: number format in which activations are dumped, so that an unchanged model has equal ones.
        batch_rows: rows in a forward pass.

    Returns:
        r of each latent, by parent.

    Raises:
        InputError: if features were made from other tokens, or activations do not fit into `dtype`.
    """
    encoders = {parent: sae.encoder() for parent, sae in saes.items()}
    sums = {parent: PairedSums(sae.d_sae) for parent, sae in saes.items()}
    device = next(model.parameters()).device
    first, *others = shards.values()
    for place, shard in enumerate(first):
        of_corpus = rows[shard.corpus]
        _require_tokens(shard, of_corpus)
        for other in others:
            require_aligned(shard, other[place])
        start = 0
        for numbers, ids in of_corpus.batches(batch_rows, range(shard.first_row, shard.stop_row)):
            mask = of_corpus.text_mask(numbers)
            acts = read_activations(model, hookpoint, torch.from_numpy(ids).to(device))
            text = stored(acts[torch.from_numpy(mask).to(acts.device)], dtype, "the merge", hookpoint).float()
            shared = torch.from_numpy(of_corpus.shared(numbers)[mask])
            tokens = slice(start, start + len(text))
            start = tokens.stop
            for parent, sae in saes.items():
                of_parent = shards[parent][place]
                inside = shared & (text.norm(dim=1) <= sae.max_norm) & torch.from_numpy(of_parent.compared[tokens])
                after = _encoded(encoders[parent], text[inside], sae)
                sums[parent].add(of_parent.latents[tokens][inside.numpy()], after)
    return {parent: of.r() for parent, of in sums.items()}


def _require_tokens(shard: FeatureShard, rows: TokenRows) -> None:
    if shard.ids_sha256 != rows.digest:
        raise InputError(
            f"features must be those of the probe's tokens, but '{shard.path}' was made from others; delete it and run "
            "again"
        )


def _encoded(encoder: Encoder, acts: torch.Tensor, sae: Sae) -> scipy.sparse.csr_array:
    latents = encoder.encode(to_device(acts, sae.b_dec.device))
    parts = (latents.values.cpu().numpy(), latents.indices.cpu().numpy(), latents.indptr.cpu().numpy())
    return scipy.sparse.csr_array(parts, shape=(len(acts), sae.d_sae))
