"""Metrics of an SAE's quality, each defined once, from sums in float64 that add over batches and corpora.

acts: activations [token, d_in]; recons: reconstructions; latents: sparse latents of the same tokens. Tokens are text
tokens. BOS and EOS are neither measured nor replaced. Nor are outliers, tokens whose activations are longer than
`Sae.max_norm`, which were left out of the SAE's training.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelineage.activations import hooked
from saelineage.models.losses import LossSums, next_token_loss
from saelineage.models.predictions import predict
from saelineage.saes.sae import Sae, SparseLatents
from saelineage.tokens import TokenRows

DENSITY_BINS = np.linspace(-7, 0, 57)
"""Edges of the density histogram, in log10 of the share of tokens."""


@dataclass
class Moments:
    """Count, mean and summed squared deviation from the mean of vectors, merged as in Chan, Golub & LeVeque (1983)."""

    n: int = 0
    mean: Tensor | float = 0.0
    deviation: float = 0.0

    def add(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        n = self.n + other.n
        if n == 0:
            return Moments()
        shift = other.mean - self.mean
        between = float(torch.as_tensor(shift).square().sum()) * self.n * other.n / n
        return Moments(n, self.mean + shift * (other.n / n), self.deviation + other.deviation + between)

    @classmethod
    def of(cls, vectors: Float[Tensor, "token d_in"]) -> "Moments":
        """Compute the moments of some vectors."""
        if len(vectors) == 0:
            return cls()
        vectors = vectors.double()
        mean = vectors.mean(0)
        return cls(len(vectors), mean, float((vectors - mean).square().sum()))


@dataclass
class SaeSums:
    """The sums behind the metrics of one SAE on one set of tokens; `add` joins two sets."""

    moments: Moments = field(default_factory=Moments)
    residual: float = 0.0
    firings: np.ndarray | int = 0
    """[d_sae]: tokens on which each latent fires."""
    ce_clean: float = 0.0
    ce_spliced: float = 0.0
    ce_ablated: float = 0.0
    """With zeros in place of the activations."""
    ce_mean_ablated: float = 0.0
    """With the mean of the corpus's activations in their place."""
    n_predictions: int = 0
    n_left_out: int = 0
    """Text tokens that are outliers."""

    def add(self, other: "SaeSums") -> "SaeSums":
        """The sums over both sets."""
        return SaeSums(
            self.moments.add(other.moments),
            self.residual + other.residual,
            self.firings + other.firings,
            self.ce_clean + other.ce_clean,
            self.ce_spliced + other.ce_spliced,
            self.ce_ablated + other.ce_ablated,
            self.ce_mean_ablated + other.ce_mean_ablated,
            self.n_predictions + other.n_predictions,
            self.n_left_out + other.n_left_out,
        )


def reconstruction_sums(
    acts: Float[Tensor, "token d_in"], recons: Float[Tensor, "token d_in"], latents: SparseLatents, d_sae: int
) -> SaeSums:
    """The sums that need no language model; `acts` are what the SAE reconstructs (`Sae.target`)."""
    residual = float((acts.double() - recons.double()).square().sum())
    firings = torch.bincount(latents.indices, minlength=d_sae).cpu().numpy()
    return SaeSums(Moments.of(acts), residual, firings)


def fvu(sums: SaeSums) -> float | None:
    """Fraction of variance unexplained: sum |acts - recons|^2 / sum |acts - mean|^2, the mean over all tokens measured.

    0 is perfect and predicting the mean gives 1; None if the activations do not vary.
    """
    return sums.residual / sums.moments.deviation if sums.moments.deviation else None


def l0(sums: SaeSums) -> float:
    """Mean number of latents above zero per token."""
    return float(np.sum(sums.firings)) / sums.moments.n


def dead_fraction(sums: SaeSums) -> float:
    """Share of latents that fire on none of the tokens measured."""
    return float(np.mean(np.asarray(sums.firings) == 0))


def ce_recovered(sums: SaeSums) -> float | None:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean), where ablation puts zeros at the hookpoint.

    1 is perfect and 0 is no better than zeros; None if ablation changes nothing. Zeros are far from any activations and
    so ruin a model that a constant would hardly harm; the stricter `ce_recovered_from_mean` compares with that.
    """
    return _recovered(sums, sums.ce_ablated)


def ce_recovered_from_mean(sums: SaeSums) -> float | None:
    """(CE_mean_ablated - CE_spliced) / (CE_mean_ablated - CE_clean); ablation puts the corpus's mean at the hookpoint.

    1 is perfect; 0 is no better than a constant, which tells nothing of the token, and below 0 is worse than that. None
    if ablation changes nothing. It saturates near 1, so read it with `ce_difference`.
    """
    return _recovered(sums, sums.ce_mean_ablated)


def ce_difference(sums: SaeSums) -> float:
    """CE_spliced - CE_clean in nats per prediction: the loss added by running the model through the SAE."""
    return (sums.ce_spliced - sums.ce_clean) / sums.n_predictions


def density_histogram(sums: SaeSums) -> dict[str, list]:
    """Histogram of latents by log10 of the share of tokens that they fire on.

    Latents that never fire are in no bin (see `dead_fraction`). Those below the lowest edge are in the lowest bin.
    """
    firings = np.asarray(sums.firings)
    densities = np.log10(firings[firings > 0] / sums.moments.n)
    counts, _ = np.histogram(np.maximum(densities, DENSITY_BINS[0]), bins=DENSITY_BINS)
    return {"log10_edges": DENSITY_BINS.tolist(), "counts": counts.tolist()}


def report(sums: SaeSums) -> dict:
    """All metrics of one set of tokens, with the numbers of tokens and predictions they were measured on."""
    return {
        "fvu": fvu(sums),
        "l0": l0(sums),
        "dead_fraction": dead_fraction(sums),
        "ce_clean": sums.ce_clean / sums.n_predictions,
        "ce_spliced": sums.ce_spliced / sums.n_predictions,
        "ce_ablated": sums.ce_ablated / sums.n_predictions,
        "ce_mean_ablated": sums.ce_mean_ablated / sums.n_predictions,
        "ce_recovered": ce_recovered(sums),
        "ce_recovered_from_mean": ce_recovered_from_mean(sums),
        "ce_difference": ce_difference(sums),
        "n_tokens": sums.moments.n,
        "n_predictions": sums.n_predictions,
        "n_left_out": sums.n_left_out,
    }


class Clean(NamedTuple):
    """An unchanged model on one corpus."""

    losses: LossSums
    means: Mapping[tuple[str, float], Float[Tensor, " d_in"]]
    """The mean of the activations that an SAE reads, by its hookpoint and its `max_norm`."""


@torch.inference_mode()
def measure_clean(model: nn.Module, limits: Mapping[str, Collection[float]], rows: TokenRows, batch_rows: int) -> Clean:
    """Run a model over token rows once, for all hookpoints and SAEs.

    Args:
        model: the model.
        limits: the `max_norm` of the SAEs at each hookpoint.
        rows: the token rows.
        batch_rows: rows in a forward pass.
    """
    losses = LossSums()
    sums: dict[tuple[str, float], Tensor] = {}
    n_tokens: Counter[tuple[str, float]] = Counter()

    def adding(hookpoint: str, is_text: Tensor) -> Callable[[Tensor], None]:
        def add(acts: Tensor) -> None:
            acts = acts.float()
            for max_norm in sorted(set(limits[hookpoint])):
                read = acts[is_text & (acts.norm(dim=-1) <= max_norm)].double()
                sums[hookpoint, max_norm] = sums.get((hookpoint, max_norm), 0.0) + read.sum(0)
                n_tokens[hookpoint, max_norm] += len(read)

        return add

    for batch in _batches(model, rows, batch_rows):
        with ExitStack() as stack:
            for hookpoint in limits:
                stack.enter_context(hooked(model, hookpoint, adding(hookpoint, batch.is_text)))
            predictions = predict(model, batch.ids)
        losses = losses.plus(next_token_loss(predictions, batch.ids, batch.predicted))
    return Clean(losses, {key: total / max(1, n_tokens[key]) for key, total in sums.items()})


@torch.inference_mode()
def measure(
    model: nn.Module, saes: Mapping[str, Sae], hookpoint: str, rows: TokenRows, batch_rows: int, clean: Clean
) -> dict[str, SaeSums]:
    """Run a model over token rows with each SAE's reconstructions spliced in, with zeros, and with the mean.

    The last two run once for all SAEs with the same `max_norm`.

    Args:
        model, hookpoint, rows, batch_rows: the model, where SAEs read it, and the token rows.
        saes: the SAEs by name.
        clean: the unchanged model on the same rows.
    """
    sums = {name: SaeSums() for name in saes}
    limits = sorted({sae.max_norm for sae in saes.values()})
    ablated, mean_ablated = dict.fromkeys(limits, 0.0), dict.fromkeys(limits, 0.0)
    for batch in _batches(model, rows, batch_rows):
        for name, sae in saes.items():
            found: list[SaeSums] = []
            spliced = _loss_with(model, hookpoint, batch, sae.max_norm, _splicing(sae, batch, found))
            found[0].ce_spliced = spliced
            sums[name] = sums[name].add(found[0])
        for max_norm in limits:
            mean = clean.means[hookpoint, max_norm].float()
            ablated[max_norm] += _loss_with(model, hookpoint, batch, max_norm, torch.zeros_like)
            mean_ablated[max_norm] += _loss_with(model, hookpoint, batch, max_norm, mean.expand_as)
    for name, sae in saes.items():
        sums[name].ce_clean, sums[name].n_predictions = clean.losses.loss, clean.losses.n_predictions
        sums[name].ce_ablated, sums[name].ce_mean_ablated = ablated[sae.max_norm], mean_ablated[sae.max_norm]
    return sums


def measure_corpora(
    model: nn.Module,
    saes: Mapping[str, Sae],
    hookpoint: str,
    rows: Mapping[str, TokenRows],
    batch_rows: int,
    clean: Mapping[str, Clean],
) -> dict[str, dict]:
    """Compute the metrics of a model's SAEs on each corpus and on all (`pooled`), and pooled density histograms.

    Args:
        model, saes, hookpoint, batch_rows: as for `measure`.
        rows, clean: by corpus.
    """
    by_corpus = {
        corpus: measure(model, saes, hookpoint, rows[corpus], batch_rows, clean[corpus]) for corpus in sorted(rows)
    }
    return {name: _summary({corpus: sums[name] for corpus, sums in by_corpus.items()}) for name in saes}


class _Batch(NamedTuple):
    """Some token rows on the model's device."""

    ids: Int[Tensor, "row n_ctx"]
    is_text: Bool[Tensor, "row n_ctx"]
    predicted: Bool[Tensor, "row n_ctx"]


def _batches(model: nn.Module, rows: TokenRows, batch_rows: int) -> Iterator[_Batch]:
    device = next(model.parameters()).device
    for numbers, ids in rows.batches(batch_rows):
        yield _Batch(
            *(torch.from_numpy(each).to(device) for each in (ids, rows.compared(numbers), rows.predicted(numbers)))
        )


def _recovered(sums: SaeSums, ce_ablated: float) -> float | None:
    """The share of the loss added by an ablation that splicing the SAE in does not add."""
    added = ce_ablated - sums.ce_clean
    return (ce_ablated - sums.ce_spliced) / added if added else None


def _summary(by_corpus: Mapping[str, SaeSums]) -> dict:
    """All metrics of one SAE."""
    pooled = SaeSums()
    for sums in by_corpus.values():
        pooled = pooled.add(sums)
    return {
        "pooled": report(pooled),
        "corpora": {corpus: report(sums) for corpus, sums in by_corpus.items()},
        "density_histogram": density_histogram(pooled),
    }


def _splicing(sae: Sae, batch: _Batch, found: list[SaeSums]) -> Callable[[Tensor], Tensor]:
    """A function from the activations that an SAE reads to their reconstructions, which adds its sums to a list."""

    def reconstruct(acts: Tensor) -> Tensor:
        latents = sae.encode_sparse(acts)
        recons = sae.decode_sparse(latents)
        sums = reconstruction_sums(sae.target(acts), recons, latents, sae.d_sae)
        sums.n_left_out = int(batch.is_text.sum()) - len(acts)
        found.append(sums)
        return recons

    return reconstruct


def _loss_with(
    model: nn.Module, hookpoint: str, batch: _Batch, max_norm: float, replacement: Callable[[Tensor], Tensor]
) -> float:
    """Summed next-token loss with the activations of text tokens, but for outliers, replaced by a function of them."""
    replaced: list[Tensor] = []

    def replace(acts: Tensor) -> Tensor:
        if not replaced:
            read = acts.float()
            mask = batch.is_text & (read.norm(dim=-1) <= max_norm)
            replaced.extend([mask, replacement(read[mask])])
        changed = acts.clone()  # a module that runs more than once gives the same each time
        changed[replaced[0]] = replaced[1].to(acts.dtype)
        return changed

    with hooked(model, hookpoint, replace):
        predictions = predict(model, batch.ids)
    return next_token_loss(predictions, batch.ids, batch.predicted).loss
