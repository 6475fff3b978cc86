"""Patching: how much of what a child predicts better than its parent its new features bring into the parent.

On the same tokens, the latents of the child's SAE are read on the child's activations x_c and on the parent's x_p. A
group of latents is patched by setting each in the parent to what it is in the child:

    x_p + sum over the group of (latent_acts_i(x_c) - latent_acts_i(x_p)) W_dec_i.

With no latent that is x_p, and with all of them and the SAE's errors on both, x_c itself (`EVERYTHING`). The loss
recovered is (L_parent - L_patched) / (L_parent - L_child): 0 with no latent, and 1 with everything if nothing behind
the hookpoint differs and nothing passes it by. It is not given where L_parent - L_child is not clearly above 0. As in
`lineage.ablations`, a group changes text alone, and no token whose norm exceeds `Sae.max_norm`. Sums are in float64.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import adding, hooked, read_with_predictions
from saelineage.behaviour.edges import Reader
from saelineage.correlations.bootstrap import ratio_interval
from saelineage.lineage.ablations import group_part, only, random_groups
from saelineage.lineage.document_losses import add_by_document, flat_losses, predicted_documents
from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.verdicts import NEW
from saelineage.models.predictions import predict
from saelineage.saes.encoding import SparseLatents
from saelineage.saes.sae import Sae

NEW_FOR_SURE, EVERYTHING = "new for sure", "everything"
COLUMNS = (
    *("corpus", "group", "n_latents", "n_tokens", "n_documents", "loss_parent", "loss_child", "loss_patched"),
    *("gain", "gain_low", "gain_high", "recovered", "recovered_low", "recovered_high"),
    *("n_draws", "n_latents_random", "recovered_random", "recovered_random_least", "recovered_random_largest"),
)


class PatchedGroup(NamedTuple):
    """Latents of the child that are patched into the parent."""

    name: str
    """`new`, `new for sure`; or `everything`, the child's whole activations."""
    latents: Int[np.ndarray, " latent"]
    draws: tuple[Int[np.ndarray, " _drawn"], ...]
    """Random groups of features that are not new, no latent in two of them."""


class Batch(NamedTuple):
    """Token rows as both models see them."""

    numbers: range
    """The rows."""
    ids: Int[Tensor, "row n_ctx"]
    """As the parent reads them."""
    predicted: Bool[Tensor, "row n_ctx"]
    """Ids whose losses count, for both."""
    acts: Float[Tensor, "row n_ctx d_in"]
    """Of the child."""
    row: Int[Tensor, " token"]
    """The row, within the batch, of each token that is patched."""
    place: Int[Tensor, " token"]
    """The place in the row of each of these tokens."""
    latents: Sequence[SparseLatents]
    """Of the child's SAE on these tokens: read on the parent, and on the child."""
    losses: Sequence[Float[np.ndarray, " prediction"]]
    """Of the parent and of the child, of each id but each row's first."""


class Patched(NamedTuple):
    """Sums over the predictions of each document of a corpus that were read, in nats."""

    n_tokens: Float[np.ndarray, " document"]
    parent: Float[np.ndarray, " document"]
    child: Float[np.ndarray, " document"]
    patched: Float[np.ndarray, "group document"]
    """Of the parent with each group."""


def patched_groups(edge: pd.DataFrame, seed: int) -> list[PatchedGroup]:
    """The groups of the child's features to patch: those that are new, those that are for sure, and everything.

    Args:
        edge: an edge's table, after `verdicts.add_verdicts`.
        seed: of the random groups (`random_groups`), which fire about as often.
    """
    of_child = edge[edge["side"] == SIDES[1]].sort_values("latent")
    density, is_new = of_child["density"].to_numpy(dtype=np.float64), (of_child["verdict"] == NEW).to_numpy()
    pool = np.flatnonzero(~is_new & (of_child["verdict"] != UNTESTABLE).to_numpy())
    named = {NEW: is_new, NEW_FOR_SURE: is_new & of_child["headline"].to_numpy(dtype=bool)}
    groups = [
        PatchedGroup(name, latents, random_groups(latents, pool, density, seed))
        for name, latents in ((name, np.flatnonzero(of)) for name, of in named.items())
    ]
    return [*groups, PatchedGroup(EVERYTHING, np.arange(len(of_child)), ())]


@torch.inference_mode()
def recovered(
    readers: Mapping[str, Reader],
    sae: Sae,
    hookpoint: str,
    groups: Sequence[PatchedGroup],
    batch_rows: int,
    max_rows: int,
    n_replicates: int,
    seed: int,
) -> pd.DataFrame:
    """Measure the loss that each group of the child's latents recovers in the parent, by corpus.

    Args:
        readers: `parent` and `child`.
        sae: of the child, on the models' device.
        hookpoint: where the SAE reads the child.
        groups: from `patched_groups`.
        batch_rows: rows in a forward pass.
        max_rows: rows of each corpus, at most (`TokenRows.spread`).
        n_replicates, seed: replicates of the documents, for 95 % intervals (`ratio_interval`).

    Returns:
        One row for each corpus, sorted, and group, in the order given, with `COLUMNS`:

        - `corpus`, `group`, `n_latents`, `n_tokens` predicted, `n_documents`;
        - `loss_parent`, `loss_child` and `loss_patched`, nats per token;
        - `gain`, loss_parent - loss_child, with `_low` and `_high`;
        - `recovered`, the share of the gain, with its interval; NaN where `gain_low` is not above 0;
        - of the random groups `n_draws`, `n_latents_random` (the mean), and `recovered_random` (the mean) with `_least`
          and `_largest`.
        A group without latents has no loss: NaN.
    """
    rows = []
    for corpus in sorted(readers[SIDES[0]].rows) if groups else []:
        of_corpus = _sums(readers, sae, hookpoint, corpus, groups, batch_rows, max_rows)
        start = 0
        for group in groups:
            stop = start + 1 + len(group.draws)
            of_group = of_corpus._replace(patched=of_corpus.patched[start:stop])
            rows.append({"corpus": corpus} | _figures(of_group, group, n_replicates, seed))
            start = stop
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sums(
    readers: Mapping[str, Reader],
    sae: Sae,
    hookpoint: str,
    corpus: str,
    groups: Sequence[PatchedGroup],
    batch_rows: int,
    max_rows: int,
) -> Patched:
    """The sums of a corpus, in which each group stands before its random ones. Documents that were not read are left
    out."""
    parent = readers[SIDES[0]].model
    documents = predicted_documents(readers[SIDES[0]].rows[corpus])
    patches = [(group.name == EVERYTHING, latents) for group in groups for latents in (group.latents, *group.draws)]
    sums = np.zeros((3 + len(patches), documents.max() + 1))
    for batch in _batches(readers, sae, hookpoint, corpus, batch_rows, max_rows):
        patched = [
            _patched_losses(parent, sae, hookpoint, batch, None if is_everything else latents)
            for is_everything, latents in patches
        ]
        add_by_document(sums, documents, batch.numbers, batch.predicted, [*batch.losses, *patched])
    sums = sums[:, sums[0] > 0]
    return Patched(sums[0], sums[1], sums[2], sums[3:])


def _batches(
    readers: Mapping[str, Reader], sae: Sae, hookpoint: str, corpus: str, batch_rows: int, max_rows: int
) -> Iterator[Batch]:
    """Run rows of a corpus by both models as they are."""
    encoder, rows = sae.encoder(), [readers[side].rows[corpus] for side in SIDES]
    models = [readers[side].model for side in SIDES]
    device = models[0].device
    for numbers, array in rows[0].batches(batch_rows, rows[0].spread(max_rows)):
        predicted = torch.from_numpy(rows[0].predicted(numbers) & rows[1].predicted(numbers)).to(device)
        is_text = torch.from_numpy(rows[0].compared(numbers) & rows[1].compared(numbers)).to(device)
        ids = [torch.from_numpy(of).to(device) for of in (array, rows[1].read(numbers))]
        acts, losses = [], []
        for model, of_model in zip(models, ids, strict=True):
            own, predictions = read_with_predictions(model, hookpoint, of_model)
            acts.append(own)
            losses.append(flat_losses(predictions, of_model, predicted))
            is_text &= own.norm(dim=-1) <= sae.max_norm
        row, place = is_text.nonzero(as_tuple=True)
        latents = [encoder.encode(own[row, place]) for own in acts]
        yield Batch(numbers, ids[0], predicted, acts[1], row, place, latents, losses)


def _patched_losses(
    parent: PreTrainedModel, sae: Sae, hookpoint: str, batch: Batch, group: Integer[np.ndarray, " latent"] | None
) -> Float[np.ndarray, " prediction"]:
    """The parent's losses with a group of latents as they are in the child; None is everything."""
    if group is None:
        change = _replaced_by(batch.acts)
    else:
        chosen = torch.from_numpy(group).to(batch.ids.device)
        of_parent, of_child = (only(of_model, chosen) for of_model in batch.latents)
        if not len(of_parent.indices) + len(of_child.indices):
            return batch.losses[0]
        change = adding(batch.row, batch.place, group_part(sae, of_child) - group_part(sae, of_parent))
    with hooked(parent, hookpoint, change):
        return flat_losses(predict(parent, batch.ids), batch.ids, batch.predicted)


def _replaced_by(other: Float[Tensor, "row n_ctx d_in"]) -> Callable[[Tensor], Tensor]:
    """A change for `hooked` that puts another model's activations in place of a model's own."""
    return lambda acts: other.to(acts.dtype)


def _figures(sums: Patched, group: PatchedGroup, n_replicates: int, seed: int) -> dict:
    """The figures of a group on a corpus."""
    n_tokens, gains = sums.n_tokens.sum(), sums.parent - sums.child
    low, high = ratio_interval(gains, sums.n_tokens, n_replicates, seed)
    is_gain = low > 0
    shares = [float(fell.sum() / gains.sum()) if is_gain else np.nan for fell in sums.parent - sums.patched]
    figures = {
        "group": group.name,
        "n_latents": len(group.latents),
        "n_tokens": int(n_tokens),
        "n_documents": len(sums.n_tokens),
        "loss_parent": sums.parent.sum() / n_tokens,
        "loss_child": sums.child.sum() / n_tokens,
        "loss_patched": np.nan,
        "gain": gains.sum() / n_tokens,
        "gain_low": low,
        "gain_high": high,
        **dict.fromkeys(("recovered", "recovered_low", "recovered_high"), np.nan),
        "n_draws": len(group.draws),
        "n_latents_random": np.mean([len(draw) for draw in group.draws]) if group.draws else np.nan,
        "recovered_random": np.mean(shares[1:]) if group.draws else np.nan,
        "recovered_random_least": min(shares[1:], default=np.nan),
        "recovered_random_largest": max(shares[1:], default=np.nan),
    }
    if len(group.latents):
        figures["loss_patched"] = sums.patched[0].sum() / n_tokens
        if is_gain:
            ends = ratio_interval(sums.parent - sums.patched[0], gains, n_replicates, seed)
            figures |= dict(zip(("recovered", "recovered_low", "recovered_high"), (shares[0], *ends), strict=True))
    return figures
