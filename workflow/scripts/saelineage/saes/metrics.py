"""Metrics of an SAE's quality, each defined once, from sums in float64 that add over batches and corpora.

acts: activations [token, d_in]; recons: reconstructions; latents: sparse latents of the same tokens. Tokens are text
tokens. BOS and EOS are neither measured nor replaced. Nor are outliers, tokens whose activations are longer than
`Sae.max_norm`, which were left out of the SAE's training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelineage.activations import hooked, read_with_logits
from saelineage.models.losses import next_token_loss
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

    1 is perfect and 0 is no better than zeros; None if ablation changes nothing. It saturates near 1, so read it with
    `ce_difference`.
    """
    loss = sums.ce_ablated - sums.ce_clean
    return (sums.ce_ablated - sums.ce_spliced) / loss if loss else None


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
        "ce_recovered": ce_recovered(sums),
        "ce_difference": ce_difference(sums),
        "n_tokens": sums.moments.n,
        "n_predictions": sums.n_predictions,
        "n_left_out": sums.n_left_out,
    }


@torch.inference_mode()
def measure(
    model: nn.Module, saes: Mapping[str, Sae], hookpoint: str, rows: TokenRows, batch_rows: int
) -> dict[str, SaeSums]:
    """Run a model over token rows unchanged, with each SAE's reconstructions spliced in, and with zeros spliced in.

    The unchanged model runs once for all SAEs, the one with zeros once for all SAEs with the same `max_norm`.
    """
    device = next(model.parameters()).device
    sums = {name: SaeSums() for name in saes}
    for numbers, batch in rows.batches(batch_rows):
        ids = torch.from_numpy(batch).to(device)
        is_text = torch.from_numpy(rows.compared(numbers)).to(device)
        predicted = torch.from_numpy(rows.predicted(numbers)).to(device)
        all_acts, logits = read_with_logits(model, hookpoint, ids)
        norms = all_acts.norm(dim=-1)
        clean, _, n_predictions = next_token_loss(logits, ids, predicted)
        ablated: dict[float, float] = {}
        for name, sae in saes.items():
            mask = is_text & (norms <= sae.max_norm)
            acts = all_acts[mask]
            if sae.max_norm not in ablated:
                ablated[sae.max_norm] = _loss_with(model, hookpoint, ids, predicted, mask, torch.zeros_like(acts))
            latents = sae.encode_sparse(acts)
            recons = sae.decode_sparse(latents)
            batch_sums = reconstruction_sums(sae.target(acts), recons, latents, sae.d_sae)
            batch_sums.n_left_out = int(is_text.sum() - mask.sum())
            batch_sums.ce_clean, batch_sums.n_predictions = clean, n_predictions
            batch_sums.ce_spliced = _loss_with(model, hookpoint, ids, predicted, mask, recons)
            batch_sums.ce_ablated = ablated[sae.max_norm]
            sums[name] = sums[name].add(batch_sums)
    return sums


def measure_corpora(
    model: nn.Module, saes: Mapping[str, Sae], hookpoint: str, rows: Mapping[str, TokenRows], batch_rows: int
) -> dict[str, dict]:
    """Compute the metrics of a model's SAEs on each corpus and on all (`pooled`), and pooled density histograms."""
    by_corpus = {corpus: measure(model, saes, hookpoint, rows[corpus], batch_rows) for corpus in sorted(rows)}
    return {name: _summary({corpus: sums[name] for corpus, sums in by_corpus.items()}) for name in saes}


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


def _loss_with(
    model: nn.Module, hookpoint: str, ids: Tensor, predicted: Tensor, mask: Tensor, replacement: Tensor
) -> float:
    """Summed next-token loss with `replacement` at the text tokens."""

    def replace(acts: Tensor) -> Tensor:
        changed = acts.clone()
        changed[mask] = replacement.to(acts.dtype)
        return changed

    with hooked(model, hookpoint, replace):
        return next_token_loss(model(input_ids=ids, use_cache=False).logits, ids, predicted)[0]
