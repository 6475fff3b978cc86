"""Products with latent activations, computed only at the entries [token, latent] that matter.

An SAE has five large products: encoding, decoding, and the gradients of the latents and of both weights. Because
latents are sparse, only encoding needs to be dense. Gradients equal the dense ones; tests compare them.

The entries that matter are found exactly, even from a product in bfloat16. Its rounding error is bounded (`screen`),
every entry that could matter within the bound is computed again, and the choice is made among those.

On a GPU the host must not wait for results, so arrays get sizes that are known beforehand (`Screen.fixed_sizes`).
"""

from functools import cached_property
from math import gcd
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUP = 16
"""Latents in a group. Searches for the largest latents rank the maxima of groups, which are fewer than the latents."""
DENSE_ABOVE = 0.6
"""Fraction of groups with a member above zero at which computing all entries becomes faster, one entry in 16 or so."""
RANKED_WHOLE = 4
"""Number of groups for each of the k largest latents, up to which ranking all latents is faster."""
CACHED_ROWS = 512
"""Rows of weights in a block that several passes work on; few enough to stay in the cache."""
CANDIDATES = 4
"""Candidates for each winner, if their number is fixed and they come from a product in bfloat16."""
SEARCHED_TOKENS = 512
"""Tokens in which entries are searched for at once, which bounds the memory."""
BF16_UNIT = 2.0**-8
"""Largest relative error of rounding to bfloat16."""


def row_starts(rows: Int[Tensor, " entry"], n_rows: int) -> Int[Tensor, " row_plus_1"]:
    """Offsets of each row's first entry among entries sorted by row, and the number of entries at the end."""
    return torch.searchsorted(rows, torch.arange(n_rows + 1, device=rows.device))


def row_blocks(n_rows: int, whole: bool) -> list[slice]:
    """Blocks of `CACHED_ROWS` rows; one block if `whole`, for GPUs, where each call costs more than it saves."""
    return [slice(None)] if whole else [slice(start, start + CACHED_ROWS) for start in range(0, n_rows, CACHED_ROWS)]


class Entries:
    """The latents to compute for each token, as compressed sparse rows.

    Attributes:
        indptr: [token + 1]; token i's entries are indptr[i] to indptr[i + 1].
        latents: [entry], the latent of each entry.
        d_sae: number of latents.
        n_unsure: number of tokens for which other entries might be the largest, within the error of a product in
            bfloat16; None if there are none.
    """

    def __init__(
        self,
        indptr: Int[Tensor, " token_plus_1"],
        latents: Int[Tensor, " entry"],
        d_sae: int,
        n_unsure: Int[Tensor, ""] | None = None,
    ):
        """Wrap compressed sparse rows."""
        self.indptr, self.latents, self.d_sae, self.n_unsure = indptr, latents, d_sae, n_unsure

    @classmethod
    def of_equal_rows(
        cls, latents: Int[Tensor, "token k"], d_sae: int, n_unsure: Int[Tensor, ""] | None = None
    ) -> "Entries":
        """Make entries with k latents for each token."""
        n_tokens, k = latents.shape
        return cls(torch.arange(0, n_tokens * k + 1, k, device=latents.device), latents.reshape(-1), d_sae, n_unsure)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.indptr) - 1

    def of_tokens(self, first: int, end: int) -> tuple["Entries", slice]:
        """The entries of the tokens from `first` to before `end`, and their place among all entries."""
        place = slice(int(self.indptr[first]), int(self.indptr[end]))
        return Entries(self.indptr[first : end + 1] - place.start, self.latents[place], self.d_sae), place

    @cached_property
    def tokens(self) -> Int[Tensor, " entry"]:
        """The token of each entry."""
        counts = self.indptr.diff()
        return torch.repeat_interleave(counts, output_size=len(self.latents))

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " entry"], Int[Tensor, " d_sae_plus_1"], Int[Tensor, " entry"]]:
        """The transpose: the entries' order by latent, the offsets of latents in it, and the tokens in it."""
        latents, order = torch.sort(self.latents, stable=True)
        return order, row_starts(latents, self.d_sae), self.tokens[order]

    def pre_activations(
        self,
        acts: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        bias: Float[Tensor, " d_sae"],
        computed: Float[Tensor, " entry"] | None = None,
    ) -> Float[Tensor, " entry"]:
        """(acts[token] - b_dec) . W_enc[latent] + bias[latent] at each entry; `computed` are these, if available."""
        return _PreActivations.apply(acts, W_enc, b_dec, bias, computed, self)

    def decode(
        self, values: Float[Tensor, " entry"], W_dec: Float[Tensor, "d_sae d_in"]
    ) -> Float[Tensor, "token d_in"]:
        """Sum over each token's entries of value x W_dec[latent]."""
        return _Decode.apply(values, W_dec, self)

    def per_latent(self, values: Float[Tensor, " d_sae"]) -> Float[Tensor, " entry"]:
        """The value of each entry's latent."""
        return values.index_select(0, self.latents)

    def fired(self, values: Float[Tensor, " entry"]) -> tuple[Tensor, Tensor]:
        """Mask [d_sae] of latents with an entry above zero, and the number of such entries."""
        above = values > 0
        counts = torch.zeros(self.d_sae, dtype=torch.int32, device=values.device)
        return counts.index_add_(0, self.latents, above.int()) > 0, above.sum()


class AllEntries:
    """The same operations with every latent computed for every token, which is faster when many latents fire."""

    def __init__(self, d_sae: int):
        """Keep the number of latents."""
        self.d_sae = d_sae

    def pre_activations(
        self,
        acts: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        bias: Float[Tensor, " d_sae"],
    ) -> Float[Tensor, "token d_sae"]:
        """(acts - b_dec) . W_enc[latent] + bias[latent] for every token and latent."""
        return (acts - b_dec) @ W_enc.T + bias

    def decode(
        self, values: Float[Tensor, "token d_sae"], W_dec: Float[Tensor, "d_sae d_in"]
    ) -> Float[Tensor, "token d_in"]:
        """Matrix product of values and W_dec."""
        return values @ W_dec

    def per_latent(self, values: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """The values themselves, which broadcast over tokens."""
        return values

    def fired(self, values: Float[Tensor, "token d_sae"]) -> tuple[Tensor, Tensor]:
        """Mask [d_sae] of latents that are above zero anywhere, and the number of values above zero."""
        above = values > 0
        return above.any(0), above.sum()


class Screen(NamedTuple):
    """Dense pre-activations, exact enough to find the entries that matter."""

    pre_acts: Float[Tensor, "token d_sae"]
    slack: Float[Tensor, " token"] | None
    """None if `pre_acts` are exact up to the rounding of float32. Otherwise the error of an entry of value v is at most
    slack[token] + 2 BF16_UNIT |v|."""
    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    """acts, W_enc, b_dec and bias, from which `pre_acts` were computed."""
    fixed_sizes: bool = False
    """True if the number of candidates must not depend on their values, because finding it out stops a GPU. Entries of
    no activation then fill up the arrays, and winners that bfloat16 hides are counted (`Entries.n_unsure`)."""

    def values_at(self, entries: Entries) -> Float[Tensor, " entry"]:
        """Exact pre-activations at entries, computed again unless `pre_acts` are exact."""
        if self.slack is None:
            return self.pre_acts[entries.tokens, entries.latents]
        return entries.pre_activations(*self.inputs)


class RoundedProduct(NamedTuple):
    """centred @ W_enc.T, computed from rounded numbers."""

    values: Float[Tensor, "token d_sae"]
    """Rounded to bfloat16."""
    slack: Float[Tensor, " token"]
    """How far off they are before that."""
    largest: Float[Tensor, " token"]
    """Bound of their size: |x| |w| (Cauchy-Schwarz)."""


@runtime_checkable
class RoundedWeights(Protocol):
    """Encoder weights in a number format in which products are faster than in float32."""

    def product(
        self, centred: Float[Tensor, "token d_in"], buffer: Float[Tensor, "buffered_token d_sae"] | None
    ) -> RoundedProduct:
        """The product, in `buffer` if there is one.

        For rounded x' and w', |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'| (Cauchy-Schwarz).
        """
        ...


class Bfloat16Weights:
    """Encoder weights in bfloat16."""

    def __init__(self, W_enc: Float[Tensor, "d_sae d_in"], whole: bool = False):
        """Round the weights; `whole` as in `row_blocks`."""
        self._whole = whole
        self._rows, norms, errors = _rounded(W_enc, whole)
        self._norm, self._error = norms.max(), errors.max()

    def product(
        self, centred: Float[Tensor, "token d_in"], buffer: Float[Tensor, "buffered_token d_sae"] | None
    ) -> RoundedProduct:
        """See `RoundedWeights`."""
        rounded, norms, errors = _rounded(centred, self._whole)
        out = None if buffer is None else buffer[: len(rounded)]
        # 1.02 covers the difference of |x'| and |x|, and the rounding of the sums in float32
        slack = 1.02 * (errors * self._norm + norms * self._error)
        return RoundedProduct(torch.mm(rounded, self._rows.T, out=out), slack, 1.02 * norms * self._norm)


def screen(
    acts: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    bias: Float[Tensor, " d_sae"],
    rounded: RoundedWeights | None = None,
    buffer: Float[Tensor, "buffered_token d_sae"] | None = None,
    fixed_sizes: bool = False,
) -> Screen:
    """Compute the one dense product of a step.

    Args:
        acts, W_enc, b_dec, bias: as in `Entries.pre_activations`.
        rounded: `W_enc` rounded, for a product of rounded numbers, whose result is rounded twice more.
        buffer: its first rows receive the result; it has the product's number format.
        fixed_sizes: see `Screen`.
    """
    centred, inputs = acts - b_dec, (acts, W_enc, b_dec, bias)
    if rounded is None:
        pre_acts = torch.mm(centred, W_enc.T, out=None if buffer is None else buffer[: len(centred)])
        return Screen(pre_acts.add_(bias), None, inputs, fixed_sizes)
    pre_acts, slack, largest = rounded.product(centred, buffer)
    # Rounding product, bias and sum is off by a unit of each. Product and bias differ by at most the exact sum, so the
    # smaller of them bounds both: one latent with a huge bias, which never fires, makes no candidates of the others.
    slack = slack + 2 * BF16_UNIT * torch.minimum(bias.abs().max(), largest)
    return Screen(pre_acts.add_(bias.bfloat16()), slack, inputs, fixed_sizes)


def top_of_each_token(screened: Screen, k: int) -> tuple[Entries, Float[Tensor, " entry"]]:
    """Choose each token's k largest pre-activations (TopK)."""
    pre_acts, slack = screened.pre_acts, screened.slack
    d_sae = pre_acts.shape[1]
    maxima = group_maxima(pre_acts)
    by_group = k * RANKED_WHOLE < maxima.shape[1]
    if slack is None:
        values, latents = _largest_of_each_token(pre_acts, maxima, k)
        return Entries.of_equal_rows(latents, d_sae), values.flatten()
    if screened.fixed_sizes:
        return _top_of_fixed_candidates(screened, slack, maxima, k)
    # the k-th largest maximum is at most the k-th largest value, because each group's maximum is a value
    least = _least_of_largest(maxima if by_group else pre_acts, k).to(slack.dtype)
    bound = least - 2 * (slack + 2 * BF16_UNIT * least)
    candidates = entries_above(pre_acts, _just_below(bound), maxima)
    exact = screened.values_at(candidates)
    columns = torch.arange(len(exact), device=exact.device) - candidates.indptr[candidates.tokens]
    padded = exact.new_full((candidates.n_tokens, max(k, int(candidates.indptr.diff().max()))), -torch.inf)
    padded[candidates.tokens, columns] = exact
    latent_of = torch.zeros(padded.shape, dtype=candidates.latents.dtype, device=exact.device)
    latent_of[candidates.tokens, columns] = candidates.latents
    values, places = padded.topk(k, dim=1, sorted=False)
    return Entries.of_equal_rows(latent_of.gather(1, places), d_sae), values.clamp_min(0).flatten()


def top_of_all_tokens(screened: Screen, n: int) -> tuple[Entries, Float[Tensor, " entry"]]:
    """Choose the n largest pre-activations of all tokens together, of those above zero (BatchTopK)."""
    maxima = group_maxima(screened.pre_acts)
    if screened.fixed_sizes:
        return _top_of_all_fixed_candidates(screened, maxima, n)
    enough = n <= maxima.numel()
    least = maxima.flatten().topk(n, sorted=False).values.amin() if enough else maxima.new_zeros(())
    least = least.to(screened.inputs[0].dtype).clamp_min(0)
    slack = 0.0 if screened.slack is None else screened.slack.max() + 2 * BF16_UNIT * least
    candidates = entries_above(screened.pre_acts, _just_below(least - 2 * slack).expand(len(maxima)), maxima)
    values = screened.values_at(candidates)
    kept = values.topk(min(n, len(values)), sorted=False).indices.sort().values
    kept = kept[values[kept] > 0]
    return _subset(candidates, kept), values[kept]


def all_above_zero(screened: Screen) -> tuple[Entries | AllEntries, Float[Tensor, " entry"] | None]:
    """Choose all pre-activations above zero (ReLU, JumpReLU, gated); all entries if too many are above zero.

    A GPU is asked for one number, that of the entries.
    """
    if screened.fixed_sizes:
        return _all_above_zero_at_once(screened)
    maxima = group_maxima(screened.pre_acts)
    if int((maxima > 0).sum()) > DENSE_ABOVE * maxima.numel():
        return AllEntries(screened.pre_acts.shape[1]), None
    bound = screened.pre_acts.new_zeros(len(maxima)) if screened.slack is None else -screened.slack
    candidates = entries_above(screened.pre_acts, bound, maxima)
    values = screened.values_at(candidates)
    if screened.slack is None:
        return candidates, values
    kept = (values > 0).nonzero().flatten()
    return _subset(candidates, kept), values[kept]


def _top_of_fixed_candidates(
    screened: Screen, slack: Float[Tensor, " token"], maxima: Float[Tensor, "token group"], k: int
) -> tuple[Entries, Float[Tensor, " entry"]]:
    """Each token's k largest among its `CANDIDATES` x k largest in bfloat16, computed again."""
    d_sae = screened.pre_acts.shape[1]
    n = min(d_sae, CANDIDATES * k)
    screened_values, candidates = _largest_of_each_token(screened.pre_acts, maxima, n)
    exact = screened.values_at(Entries.of_equal_rows(candidates, d_sae)).view(candidates.shape)
    values, places = exact.topk(k, dim=1, sorted=False)
    least = screened_values.amin(1).to(slack.dtype)
    unsure = values.amin(1).clamp_min(0) < least + slack + 2 * BF16_UNIT * least.abs()
    n_unsure = unsure.sum() if n < d_sae else torch.zeros_like(unsure, dtype=torch.int64).sum()
    return Entries.of_equal_rows(candidates.gather(1, places), d_sae, n_unsure), values.flatten()


def _top_of_all_fixed_candidates(
    screened: Screen, maxima: Float[Tensor, "token group"], n: int
) -> tuple[Entries, Float[Tensor, " entry"]]:
    """The n largest of all tokens among the `CANDIDATES` x n largest in bfloat16, or the n largest in float32."""
    pre_acts, slack = screened.pre_acts, screened.slack
    n_tokens, n_groups = maxima.shape
    n_candidates = min(pre_acts.numel(), n if slack is None else CANDIDATES * n)
    numbers = maxima.flatten().topk(min(n_candidates, maxima.numel()), sorted=False).indices
    tokens, groups = numbers // n_groups, numbers % n_groups
    members = _members(pre_acts, tokens, groups)
    largest, places = members.flatten().topk(n_candidates, sorted=False)
    pairs, member = places // members.shape[1], places % members.shape[1]
    flat = (tokens[pairs] * pre_acts.shape[1] + member * n_groups + groups[pairs]).sort().values
    candidates = _of_flat(flat, n_tokens, pre_acts.shape[1])
    values = screened.values_at(candidates)
    if slack is None:
        return candidates, values
    values, kept = values.topk(min(n, n_candidates), sorted=False)
    order = kept.argsort()
    least = largest.amin().to(values.dtype)
    missing = values.amin().clamp_min(0) < least + slack.max() + 2 * BF16_UNIT * least.abs()
    n_unsure = n_tokens * (missing if n_candidates < pre_acts.numel() else torch.zeros_like(missing)).long()
    return _of_flat(flat[kept[order]], n_tokens, pre_acts.shape[1], n_unsure), values[order]


def _all_above_zero_at_once(screened: Screen) -> tuple[Entries | AllEntries, Float[Tensor, " entry"] | None]:
    """All entries that might be above zero; the others among them have no activation and change nothing."""
    pre_acts, slack = screened.pre_acts, screened.slack
    bound = pre_acts.new_zeros(len(pre_acts)) if slack is None else (-1.01 * slack).to(pre_acts.dtype)
    mask = pre_acts > bound[:, None]
    n = int(mask.sum())
    if n > DENSE_ABOVE * pre_acts.numel() / GROUP:
        return AllEntries(pre_acts.shape[1]), None
    tokens, latents = torch.nonzero_static(mask, size=n).unbind(1)
    entries = Entries(row_starts(tokens.contiguous(), len(pre_acts)), latents.contiguous(), pre_acts.shape[1])
    return entries, screened.values_at(entries)


def _of_flat(numbers: Int[Tensor, " entry"], n_tokens: int, d_sae: int, n_unsure: Tensor | None = None) -> Entries:
    """Entries from ascending numbers token x d_sae + latent."""
    return Entries(row_starts(numbers // d_sae, n_tokens), numbers % d_sae, d_sae, n_unsure)


def entries_above(
    pre_acts: Float[Tensor, "token d_sae"],
    bound: Float[Tensor, " token"],
    maxima: Float[Tensor, "token group"],
) -> Entries:
    """Find the entries whose pre-activation is above their token's bound, with the help of `group_maxima`."""
    rounded = bound.to(pre_acts.dtype)
    bound = torch.where(rounded.to(bound.dtype) > bound, _just_below(rounded), rounded)
    counts, latents = [], []
    for first in range(0, len(pre_acts), SEARCHED_TOKENS):
        place = slice(first, first + SEARCHED_TOKENS)
        values, bounds = pre_acts[place], bound[place]
        tokens, groups = (maxima[place] > bounds[:, None]).nonzero(as_tuple=True)
        pairs, members = (_members(values, tokens, groups) > bounds[tokens, None]).nonzero(as_tuple=True)
        counts.append(row_starts(tokens[pairs], len(values)).diff())
        latents.append(members * maxima.shape[1] + groups[pairs])
    starts = torch.cat([counts[0].new_zeros(1), torch.cat(counts).cumsum(0)])
    return Entries(starts, torch.cat(latents), pre_acts.shape[1])


def _least_of_largest(values: Float[Tensor, "row value"], k: int) -> Float[Tensor, " row"]:
    """Each row's k-th largest bfloat16 number, or 0 if that is below zero.

    Numbers above zero sort like their bits, and ranking integers takes two thirds of the time.
    """
    bits = values.view(torch.int16).topk(k, dim=1, sorted=False).values.amin(1)
    return bits.clamp_min(0).view(torch.bfloat16)


def _largest_of_each_token(
    pre_acts: Float[Tensor, "token d_sae"], maxima: Float[Tensor, "token group"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest values of each row and their latents, by the faster way."""
    by_group = k * RANKED_WHOLE < maxima.shape[1]
    return _largest_by_group(pre_acts, maxima, k) if by_group else pre_acts.topk(k, dim=1, sorted=False)


def _largest_by_group(
    pre_acts: Float[Tensor, "token d_sae"], maxima: Float[Tensor, "token group"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest values of each row and their latents.

    They lie in the k groups with the largest maxima, so only the maxima and the members of those groups are ranked.
    """
    n_tokens, n_groups = maxima.shape
    groups = maxima.topk(k, dim=1, sorted=False).indices
    tokens = torch.arange(n_tokens, device=pre_acts.device)[:, None]
    members = _members(pre_acts, tokens, groups).flatten(1)
    values, places = members.topk(k, dim=1, sorted=False)
    group = members.shape[1] // k
    return values, places % group * n_groups + groups.gather(1, places // group)


def group_maxima(pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token group"]:
    """Maxima of groups of `GROUP` latents; group g holds latents g, g + n_groups, g + 2 n_groups, ..."""
    return _by_group(pre_acts).amax(1)


def _members(
    pre_acts: Float[Tensor, "token d_sae"], tokens: Int[Tensor, "..."], groups: Int[Tensor, "..."]
) -> Float[Tensor, "... member"]:
    """All values of the given groups of the given tokens."""
    return _by_group(pre_acts)[tokens, :, groups]


def _by_group(pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token member group"]:
    n_tokens, d_sae = pre_acts.shape
    return pre_acts.view(n_tokens, gcd(d_sae, GROUP), -1)


def _rounded(
    rows: Float[Tensor, "row d_in"], whole: bool
) -> tuple[Tensor, Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Rows in bfloat16, their norms, and the norms of the rounding errors; `whole` as in `row_blocks`."""
    rounded = torch.empty_like(rows, dtype=torch.bfloat16)
    norms, errors = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    for block in row_blocks(len(rows), whole):
        rounded[block] = rows[block]
        norms[block] = norm_bounds(rows[block])
        errors[block] = norm_bounds(rows[block] - rounded[block])
    return rounded, norms, errors


def norm_bounds(rows: Float[Tensor, "row d_in"]) -> Float[Tensor, " row"]:
    """Norms of rows, at least. Squares too small for float32 get lost in them, so the most that can be lost is added.

    A norm of more than 1.8e19 is infinite, because its square is.
    """
    return rows.norm(dim=1).add_((torch.finfo(torch.float32).tiny * rows.shape[1]) ** 0.5)


def _just_below(values: Tensor) -> Tensor:
    """The next smaller numbers, so that comparing with > includes the values themselves."""
    return torch.nextafter(values, values.new_full((), -torch.inf))


def _subset(entries: Entries, kept: Int[Tensor, " kept"]) -> Entries:
    """Select entries by number, in ascending order."""
    return Entries(row_starts(entries.tokens[kept], entries.n_tokens), entries.latents[kept], entries.d_sae)


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, acts, W_enc, b_dec, bias, computed, entries):
        centred = acts - b_dec
        ctx.save_for_backward(centred, W_enc)
        ctx.entries = entries
        if computed is not None:
            return computed.clone()
        return sampled_products(centred, W_enc, entries) + bias[entries.latents]

    @staticmethod
    def backward(ctx, grad):
        centred, W_enc = ctx.saved_tensors
        entries = ctx.entries
        order, starts, tokens = entries.by_latent
        grad_W_enc = _weighted_sums(centred, tokens, starts, grad[order])
        grad_bias = grad.new_zeros(entries.d_sae).index_add_(0, entries.latents, grad)
        grad_acts = None
        if ctx.needs_input_grad[0]:
            grad_acts = _weighted_sums(W_enc, entries.latents, entries.indptr, grad)
        # the gradient of (acts - b_dec), summed over tokens without computing it
        grad_b_dec = -(grad_bias @ W_enc) if ctx.needs_input_grad[2] else None
        return grad_acts, grad_W_enc, grad_b_dec, grad_bias, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec, entries):
        ctx.save_for_backward(values, W_dec)
        ctx.entries = entries
        return _weighted_sums(W_dec, entries.latents, entries.indptr, values)

    @staticmethod
    def backward(ctx, grad):
        values, W_dec = ctx.saved_tensors
        entries = ctx.entries
        grad_values = sampled_products(grad, W_dec, entries) if ctx.needs_input_grad[0] else None
        grad_W_dec = None
        if ctx.needs_input_grad[1]:
            order, starts, tokens = entries.by_latent
            grad_W_dec = _weighted_sums(grad, tokens, starts, values[order])
        return grad_values, grad_W_dec, None


def _weighted_sums(
    rows: Float[Tensor, "row d_in"],
    indices: Int[Tensor, " entry"],
    indptr: Int[Tensor, " sum_plus_1"],
    weights: Float[Tensor, " entry"],
) -> Float[Tensor, "sum d_in"]:
    """For each i, the sum over entries e from indptr[i] to indptr[i + 1] of weights[e] x rows[indices[e]]."""
    return torch.nn.functional.embedding_bag(
        indices, rows, indptr, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def sampled_products(
    left: Float[Tensor, "token d_in"], right: Float[Tensor, "d_sae d_in"], entries: Entries
) -> Float[Tensor, " entry"]:
    """left[token] . right[latent] at each entry.

    Computed by latent, so that `right`, which is larger, is read once and in order.
    """
    if not len(entries.latents):
        return left.new_zeros(0)
    order, starts, tokens = entries.by_latent
    shape = (entries.d_sae, entries.n_tokens)
    pattern = torch.sparse_csr_tensor(starts, tokens, left.new_zeros(len(tokens)), shape, check_invariants=False)
    products = torch.sparse.sampled_addmm(pattern, right, left.T, beta=0.0).values()
    return torch.empty_like(products).index_copy_(0, order, products)
