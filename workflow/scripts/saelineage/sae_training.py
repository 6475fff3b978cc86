"""Training SAEs from activation dumps.

A TopK step touches k of d_sae latents per token, so only the encoder's product is dense: decoding and all gradients are
sparse products, equal to the dense ones (tests compare them).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from saelineage.activations import ActivationShard
from saelineage.errors import InputError
from saelineage.logs import on_terminal
from saelineage.saes import Sae, n_latents

logger = logging.getLogger(__name__)

SCALE_TOKENS = 65_536
LOG_EVERY_STEPS = 25


class Dump:
    """The shards of a dump as one long array of tokens, memory-mapped, read in any order."""

    def __init__(self, paths: Sequence[Path | str]):
        """Open shards.

        Raises:
            InputError: if they were read at different hookpoints, or have different widths.
        """
        self.shards = [ActivationShard(path) for path in paths]
        kinds = {(shard.header["hookpoint"], shard.d_in) for shard in self.shards}
        if len(kinds) != 1:
            raise InputError(
                f"activation shards differ in (hookpoint, width): {sorted(kinds)}; delete the dump and run again"
            )
        self.d_in = self.shards[0].d_in
        self.starts = np.cumsum([0, *(shard.n_tokens for shard in self.shards)])
        self._acts = [shard.acts() for shard in self.shards]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """float32 activations of the tokens, in the order asked for."""
        found = torch.empty(len(tokens), self.d_in)
        shards = np.searchsorted(self.starts, tokens, side="right") - 1
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            found[mine] = self._acts[shard][tokens[mine] - self.starts[shard]].float()
        return found


def token_batches(n_tokens: int, wanted: int, batch_tokens: int, seed: int) -> Iterator[Int[np.ndarray, " token"]]:
    """Full batches of token numbers, `wanted` tokens in all: whole passes over all tokens, each in a new order."""
    random = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(wanted // batch_tokens):
        while len(waiting) < batch_tokens:
            waiting = np.concatenate([waiting, random.permutation(n_tokens)])
        yield waiting[:batch_tokens]
        waiting = waiting[batch_tokens:]


class Scaling(NamedTuple):
    """How raw activations are brought to unit variance per dimension on average."""

    mean: Float[Tensor, " d_in"]
    scale: float
    """acts are multiplied by this, so that E|acts - mean|^2 = d_in."""


def measure_scaling(acts: Float[Tensor, "token d_in"]) -> Scaling:
    """The mean of activations and the scale that gives their deviations a mean square of 1.

    Raises:
        InputError: if the activations do not vary.
    """
    acts = acts.double()
    mean = acts.mean(0)
    mean_square = float((acts - mean).square().mean())
    if mean_square == 0:
        raise InputError(
            "the activations at activations.hookpoint do not vary at all; look at the hookpoint and the model"
        )
    return Scaling(mean.float(), mean_square**-0.5)


def initialise(sae: Sae, mean: Float[Tensor, " d_in"], seed: int) -> None:
    """Random unit decoder directions, the encoder their transpose (arXiv 2406.04093, section 2.3), b_dec the mean."""
    directions = torch.randn(sae.d_sae, sae.d_in, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_dec.copy_(directions / directions.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(mean)


def fold_scale(sae: Sae, scale: float) -> None:
    """Change weights trained on scale x acts into weights that take acts, with equal latents."""
    with torch.no_grad():
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale)
        sae.b_dec.div_(scale)


class TopKStep(torch.autograd.Function):
    """Reconstructions of a TopK SAE, with sparse products wherever a latent is zero.

    Takes `W_enc_rows` [d_sae, d_in], the encoder's transpose, so that both weight gradients are products of one sparse
    matrix [d_sae, token] with a dense one.
    """

    @staticmethod
    def forward(ctx, acts, W_enc_rows, b_enc, W_dec, b_dec, k):
        """Returns recons [token, d_in], values [token, k] and indices [token, k]; only recons carries gradients."""
        centred = acts - b_dec
        values, indices = torch.addmm(b_enc, centred, W_enc_rows.T).topk(k, dim=1, sorted=False)
        values = values.relu()
        recons = _rows(values, indices, len(b_enc)) @ W_dec + b_dec
        ctx.save_for_backward(centred, W_enc_rows, W_dec, values, indices)
        ctx.mark_non_differentiable(values, indices)
        return recons, values, indices

    @staticmethod
    def backward(ctx, grad_recons, *_):
        """Gradients of the dense computation; the choice of the k latents is taken as fixed, as by autograd."""
        centred, W_enc_rows, W_dec, values, indices = ctx.saved_tensors
        d_sae = len(W_dec)
        grad_values = _sampled_product(grad_recons, W_dec, indices) * (values > 0)
        grad_W_dec = _columns(values, indices, d_sae) @ grad_recons
        grad_W_enc_rows = _columns(grad_values, indices, d_sae) @ centred
        grad_b_enc = torch.zeros(d_sae, dtype=values.dtype, device=values.device)
        grad_b_enc.index_add_(0, indices.flatten(), grad_values.flatten())
        grad_b_dec = grad_recons.sum(0) - grad_b_enc @ W_enc_rows
        grad_acts = _rows(grad_values, indices, d_sae) @ W_enc_rows if ctx.needs_input_grad[0] else None
        return grad_acts, grad_W_enc_rows, grad_b_enc, grad_W_dec, grad_b_dec, None


class StepFigures(NamedTuple):
    """What one optimizer step reports."""

    loss: Tensor
    fvu: Tensor
    l0: Tensor
    fired: Tensor
    """[d_sae], True for latents that fired in the batch."""


class SaeTrainer:
    """Adam on one SAE, in scaled activations.

    TopK: mean squared error plus the auxiliary loss of arXiv 2406.04093 (appendix A.2): dead latents reconstruct what
    is left over; decoder rows are kept at unit norm. ReLU: mean squared error plus l1_coefficient x sum over latents of
    activation x decoder norm (Anthropic, "Update on how we train SAEs", April 2024), which needs no constraint on the
    norms.
    """

    def __init__(self, sae: Sae, settings: Mapping, n_steps: int):
        """Take over an initialised SAE.

        Args:
            sae: its weights are moved into the trainer; `finish` moves them back.
            settings: one SAE's settings (`graph.sae_settings`).
            n_steps: how many steps there will be, which the learning-rate schedule needs.
        """
        self.sae, self.settings, self.n_steps = sae, settings, n_steps
        self.W_enc_rows = sae.W_enc.detach().T.contiguous().requires_grad_()
        parameters = [self.W_enc_rows, sae.b_enc, sae.W_dec, sae.b_dec]
        self.optimizer = torch.optim.Adam(
            parameters, lr=settings["learning_rate"], betas=tuple(settings["adam_betas"]), fused=True
        )
        self.silent_tokens = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.b_dec.device)
        self.step_number = 0

    def step(self, acts: Float[Tensor, "token d_in"]) -> StepFigures:
        """One optimizer step on a batch of scaled activations."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * self._schedule()
        self.optimizer.zero_grad()
        figures = self._topk(acts) if self.sae.architecture == "topk" else self._relu(acts)
        figures.loss.backward()
        self.optimizer.step()
        if self.sae.architecture == "topk":
            with torch.no_grad():
                self.sae.W_dec.div_(self.sae.W_dec.norm(dim=1, keepdim=True))
        self.silent_tokens = torch.where(figures.fired, 0, self.silent_tokens + len(acts))
        self.step_number += 1
        return figures

    def dead(self) -> Tensor:
        """[d_sae], True for latents that have not fired for `dead_after_tokens`."""
        return self.silent_tokens >= self.settings["dead_after_tokens"]

    def finish(self) -> Sae:
        """The trained SAE, still in scaled activations."""
        with torch.no_grad():
            self.sae.W_enc.copy_(self.W_enc_rows.T)
        return self.sae

    def _topk(self, acts: Tensor) -> StepFigures:
        sae = self.sae
        recons, values, indices = TopKStep.apply(acts, self.W_enc_rows, sae.b_enc, sae.W_dec, sae.b_dec, sae.k)
        error = acts - recons
        loss = error.square().mean()
        fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=acts.device)
        fired[indices[values > 0]] = True
        fvu = _batch_fvu(acts, error)
        return StepFigures(loss + self._auxiliary(acts, error.detach()), fvu, (values > 0).sum() / len(acts), fired)

    def _auxiliary(self, acts: Tensor, error: Tensor) -> Tensor:
        dead = self.dead().nonzero().flatten()
        if not len(dead) or not self.settings["aux_coefficient"]:
            return acts.new_zeros(())
        k = min(len(dead), max(1, self.sae.d_in // 2))
        pre_acts = (acts - self.sae.b_dec.detach()) @ self.W_enc_rows[dead].T + self.sae.b_enc[dead]
        values, indices = pre_acts.topk(k, dim=1)
        latent_acts = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
        return self.settings["aux_coefficient"] * (error - latent_acts @ self.sae.W_dec[dead]).square().mean()

    def _relu(self, acts: Tensor) -> StepFigures:
        sae = self.sae
        latent_acts = torch.relu((acts - sae.b_dec) @ self.W_enc_rows.T + sae.b_enc)
        error = acts - sae.decode(latent_acts)
        penalty = (latent_acts @ sae.W_dec.norm(dim=1)).mean()
        fired = (latent_acts > 0).any(0)
        loss = error.square().mean() + self.settings["l1_coefficient"] * penalty
        return StepFigures(loss, _batch_fvu(acts, error), (latent_acts > 0).sum() / len(acts), fired)

    def _schedule(self) -> float:
        """The learning rate's factor: a linear rise, a plateau, a linear fall to zero."""
        warmup = self.settings["warmup_fraction"] * self.n_steps
        decay = self.settings["decay_fraction"] * self.n_steps
        rising = (self.step_number + 1) / warmup if warmup else 1.0
        falling = (self.n_steps - self.step_number) / decay if decay else 1.0
        return min(1.0, rising, falling)


def train_sae(dump: Dump, settings: Mapping, device: torch.device) -> tuple[Sae, pd.DataFrame]:
    """Train one SAE on a dump.

    Args:
        dump: the activations.
        settings: one SAE's settings, with its `seed` (`graph.sae_settings`).
        device: where to train.

    Returns:
        The SAE, taking unscaled activations, and its training curve.

    Raises:
        InputError: if the dump is smaller than a batch.
    """
    wanted = settings["n_tokens"] or len(dump)
    n_steps = wanted // settings["batch_tokens"]
    if n_steps == 0:
        raise InputError(
            f"saes.batch_tokens ({settings['batch_tokens']}) must not exceed the {wanted} training tokens; lower it"
        )
    sae = Sae(settings["architecture"], dump.d_in, n_latents(dump.d_in, settings["expansion_factor"]), settings["k"])
    sample = np.random.default_rng(settings["seed"]).permutation(len(dump))[:SCALE_TOKENS]
    scaling = measure_scaling(dump[np.sort(sample)])
    initialise(sae, scaling.mean * scaling.scale, settings["seed"])
    trainer = SaeTrainer(sae.to(device), settings, n_steps)
    curve = []
    batches = token_batches(len(dump), wanted, settings["batch_tokens"], settings["seed"])
    with tqdm(batches, total=n_steps, unit="step", disable=not on_terminal()) as bar:
        for step, tokens in enumerate(bar, start=1):
            figures = trainer.step(dump[tokens].to(device) * scaling.scale)
            if step % LOG_EVERY_STEPS == 0 or step == n_steps:
                curve.append(_curve_point(step, settings["batch_tokens"], figures, trainer))
                bar.set_postfix(
                    {name: f"{value:.3g}" for name, value in curve[-1].items() if name not in ("step", "tokens")}
                )
    logger.info("trained %d steps of %d tokens: %s", n_steps, settings["batch_tokens"], curve[-1])
    sae = trainer.finish().cpu()
    fold_scale(sae, scaling.scale)
    return sae.eval(), pd.DataFrame(curve)


def _curve_point(step: int, batch_tokens: int, figures: StepFigures, trainer: SaeTrainer) -> dict:
    return {
        "step": step,
        "tokens": step * batch_tokens,
        "loss": float(figures.loss),
        "fvu": float(figures.fvu),
        "l0": float(figures.l0),
        "dead_fraction": float(trainer.dead().double().mean()),
    }


def _batch_fvu(acts: Tensor, error: Tensor) -> Tensor:
    """The fvu of one batch, against the batch's own mean: for the progress bar and curve only."""
    return (error.detach().square().sum() / (acts - acts.mean(0)).square().sum()).detach()


def _rows(values: Tensor, indices: Tensor, d_sae: int) -> Tensor:
    """[token, d_sae] compressed sparse rows with k entries each."""
    n_tokens, k = indices.shape
    indptr = torch.arange(0, n_tokens * k + 1, k, device=values.device)
    return torch.sparse_csr_tensor(
        indptr, indices.flatten(), values.flatten(), (n_tokens, d_sae), check_invariants=False
    )


def _columns(values: Tensor, indices: Tensor, d_sae: int) -> Tensor:
    """The transpose of `_rows`, [d_sae, token], as compressed sparse rows."""
    n_tokens, k = indices.shape
    order = torch.argsort(indices.flatten(), stable=True)
    counts = torch.bincount(indices.flatten(), minlength=d_sae)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    token = torch.div(order, k, rounding_mode="floor")
    return torch.sparse_csr_tensor(indptr, token, values.flatten()[order], (d_sae, n_tokens), check_invariants=False)


def _sampled_product(left: Tensor, right: Tensor, indices: Tensor) -> Tensor:
    """[token, k]: for each token and each of its latents j, left[token] . right[j]."""
    pattern = _rows(torch.zeros_like(indices, dtype=left.dtype), indices, len(right))
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values().view(indices.shape)
