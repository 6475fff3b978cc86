"""Encoding: the latent activations of tokens, exactly, at a fraction of the cost of the dense computation.

Of a token's latents few fire. As in training, one dense product finds the entries [token, latent] that could matter,
in bfloat16 or 16-bit integers where these are faster than float32, and those are computed again in float32
(`saes.sparse_products`). The latents chosen are those of the dense computation, and their activations differ from its
by the rounding of sums alone. Where two pre-activations differ by no more than that, either may be chosen.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelineage.saes.number_formats import fastest_format, product_buffer, round_weights
from saelineage.saes.sparse_products import AllEntries, Screen, all_above_zero, screen, top_of_each_token

ENCODED_VALUES = 1 << 24
"""Latents x tokens that are encoded at once, which bounds the memory of wide SAEs (`plan.sizes` counts with it)."""


class SparseLatents(NamedTuple):
    """Latent activations of consecutive tokens, as compressed sparse rows."""

    indptr: Int[Tensor, " token_plus_1"]
    """Token i's entries are indptr[i] to indptr[i + 1]."""
    indices: Int[Tensor, " entry"]
    """The latent of each entry, in ascending order within a token."""
    values: Float[Tensor, " entry"]
    """Its activation, > 0."""

    def matrix(self, d_sae: int) -> Float[Tensor, "token d_sae"]:
        """The same as a sparse tensor."""
        shape = (len(self.indptr) - 1, d_sae)
        return torch.sparse_csr_tensor(self.indptr, self.indices.long(), self.values, shape, check_invariants=False)


def encode_dense(
    acts: Float[Tensor, "*batch d_in"], architecture: str, weights: Mapping[str, Tensor], k: int | None
) -> Float[Tensor, "*batch d_sae"]:
    """Latent activations of every latent, by the formulas of `saes.sae.Sae`."""
    raw = (acts - weights["b_dec"]) @ weights["W_enc"]
    if architecture == "gated":
        return (raw * weights["r_mag"].exp() + weights["b_mag"]).relu() * (raw + weights["b_gate"] > 0)
    pre_acts = raw + weights["b_enc"]
    if architecture == "topk":
        assert k is not None  # every topk SAE has one
        values, indices = pre_acts.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(pre_acts).scatter_(-1, indices, values.relu())
    return pre_acts.relu() * (pre_acts > weights["threshold"]) if architecture == "jumprelu" else pre_acts.relu()


class Encoder:
    """Encodes activations with one SAE, some tokens at a time, in buffers that it keeps.

    A gated SAE has two pre-activations for each latent, so its latents are computed densely.
    """

    def __init__(
        self, architecture: str, weights: Mapping[str, Tensor], k: int | None = None, number_format: str | None = None
    ):
        """Prepare the weights, on whose device activations must lie.

        Args:
            architecture, weights, k: as in `saes.sae.Sae`.
            number_format: of the dense product: `float32`, `bfloat16` or `int16`; the fastest one by default.
        """
        self.architecture, self.k = architecture, k
        self._weights = {name: weight.detach() for name, weight in weights.items()}
        W_enc = self._weights["W_enc"]
        self._rows, self._rounded = W_enc.T, None
        self._format = number_format or fastest_format(W_enc.shape[0], W_enc.shape[1], W_enc.device)
        if architecture != "gated" and self._format != "float32":
            self._rows = W_enc.T.contiguous()  # rows of latents, which are computed again one by one
            self._rounded = round_weights(self._rows, self._format)
        self._buffer = product_buffer(0, len(self._rows), self._format, W_enc.device)

    @torch.inference_mode()
    def encode(self, acts: Float[Tensor, "token d_in"]) -> SparseLatents:
        """Latent activations as compressed sparse rows.

        Few tokens are encoded at a time, the fewer the wider the SAE is.
        """
        chunks = acts.float().split(max(1, ENCODED_VALUES // len(self._rows)))
        counts, latents, values = zip(*map(self._encode_chunk, chunks), strict=True)
        of_token = torch.cat(counts)
        indptr = torch.cat([of_token.new_zeros(1), of_token.cumsum(0)])
        return SparseLatents(indptr, torch.cat(latents), torch.cat(values))

    def _encode_chunk(
        self, acts: Float[Tensor, "token d_in"]
    ) -> tuple[Int[Tensor, " token"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
        """The number of active latents of each token, the latents, and their activations."""
        if self.architecture == "gated" or not len(acts):
            return _entries_of(encode_dense(acts, self.architecture, self._weights, self.k))
        if self.k is None:
            return self._all_above_threshold(acts)
        entries, values = top_of_each_token(self._screen(acts, self._weights["b_enc"]), self.k)
        latents, order = entries.latents.view(-1, self.k).sort(dim=1)
        values = values.view(-1, self.k).gather(1, order)
        fires = values > 0
        return fires.sum(1), latents[fires].int(), values[fires]

    def _all_above_threshold(
        self, acts: Float[Tensor, "token d_in"]
    ) -> tuple[Int[Tensor, " token"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
        """As `_encode_chunk`, for ReLU and JumpReLU."""
        bias, above = self._weights["b_enc"], self._weights.get("threshold")
        if self._rounded is None:
            screened = self._screen(acts, bias)
            if above is not None:
                screened.pre_acts.mul_(screened.pre_acts > above)
        else:
            above = above.clamp_min(0) if above is not None else None
            screened = self._screen(acts, bias if above is None else bias - above)
        entries, values = all_above_zero(screened)
        if isinstance(entries, AllEntries) or values is None:  # so many that all are computed
            dense = encode_dense(acts, self.architecture, self._weights, self.k) if self._rounded else screened.pre_acts
            return _entries_of(dense)
        if self._rounded and above is not None:
            values = values + above[entries.latents]
        order = (entries.tokens * entries.d_sae + entries.latents).argsort()
        return entries.indptr.diff(), entries.latents[order].int(), values[order]

    def _screen(self, acts: Float[Tensor, "token d_in"], bias: Float[Tensor, " d_sae"]) -> Screen:
        """Pre-activations, in the buffer."""
        if len(self._buffer) < len(acts):
            self._buffer = product_buffer(len(acts), len(self._rows), self._format, acts.device)
        return screen(acts, self._rows, self._weights["b_dec"], bias, self._rounded, self._buffer)


def _entries_of(
    latent_acts: Float[Tensor, "token d_sae"],
) -> tuple[Int[Tensor, " token"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
    """The entries above zero of dense latent activations."""
    token, latent = (latent_acts > 0).nonzero(as_tuple=True)
    return torch.bincount(token, minlength=len(latent_acts)), latent.int(), latent_acts[token, latent]
