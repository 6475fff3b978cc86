"""Ablations of a crosscoder's latents: a model's loss without those that one of an edge's two models writes alone.

At the hookpoint, the activations of compared tokens become the crosscoder's reconstruction of that model, with all
latents and then without a group of them; other tokens keep their own. The whole reconstruction is what a group is
compared with, because it has an error of its own that no latent explains. So this is about what the crosscoder says of
the model: if latents that emerge are used by the child, its loss rises without them by more than without *random*
latents, as many persisting ones that fire about as often. A model that lacks them has decoder directions for them too,
which may make up for what other latents write into it (docs/decisions/0038), so both models are asked. Losses are
summed in float64.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import hooked
from saelineage.correlations.bootstrap import ratio_interval
from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.errors import InputError
from saelineage.features.encoding import latents_of_rows
from saelineage.features.shards import FeatureShard
from saelineage.lineage.ablations import only, random_groups
from saelineage.lineage.document_losses import add_by_document, flat_losses, predicted_documents
from saelineage.lineage.exclusivity import DISAPPEARS, EMERGES
from saelineage.lineage.matching import PERSISTS, SIDES
from saelineage.models.predictions import predict
from saelineage.plan.crosscoders import OF_EDGE
from saelineage.saes.encoding import SparseLatents
from saelineage.tokens import TokenRows

ABLATED = (EMERGES, DISAPPEARS)
"""Verdicts whose latents are ablated, in both models of an edge."""
NAMED = ("edge", "parent", "child", "side", "verdict")
"""What names a group."""


class LatentGroup(NamedTuple):
    """The latents of one verdict on an edge, which are ablated in one of its models."""

    edge: str
    parent: str
    child: str
    side: str
    """`parent` or `child`: the model whose loss is measured."""
    verdict: str
    latents: Int[np.ndarray, " latent"]
    draws: tuple[Int[np.ndarray, " _drawn"], ...]
    """Random groups of persisting latents, no latent in two of them."""


class Batch(NamedTuple):
    """Token rows, and a crosscoder's latents of them."""

    numbers: range
    """The rows."""
    ids: Int[Tensor, "row n_ctx"]
    predicted: Bool[Tensor, "row n_ctx"]
    """Ids whose losses count."""
    row: Int[Tensor, " token"]
    """The row, within the batch, of each compared token."""
    place: Int[Tensor, " token"]
    """The place in the row of each of these tokens."""
    latents: SparseLatents


class DocumentLosses(NamedTuple):
    """Sums over the predictions of each document of a corpus, in nats."""

    n_tokens: Float[np.ndarray, " document"]
    """Predictions that count."""
    own: Float[np.ndarray, " document"]
    """With the model's own activations."""
    reconstructed: Float[np.ndarray, " document"]
    """With the crosscoder's reconstructions of them."""
    without: Float[np.ndarray, "group document"]
    """With these, but for the latents of a group."""
    n_firings: Int[np.ndarray, " group"]
    """Firings of a group's latents on compared tokens; a token on which two fire counts twice."""

    def of(self, groups: slice) -> "DocumentLosses":
        """The same of some of the groups."""
        return self._replace(without=self.without[groups], n_firings=self.n_firings[groups])


def latent_groups(latents: pd.DataFrame, model: str, seed: int) -> list[LatentGroup]:
    """The groups to ablate in a model: on each of its edges the latents that emerge, and those that disappear.

    Args:
        latents: a crosscoder's verdicts by latent and pair (`lineage.crosscoder_shares.measure_pairs`).
        model: name of the model.
        seed: of the random groups.
    """
    groups = []
    for edge, table in latents[latents["role"] == OF_EDGE].groupby("edge", sort=False):
        parent, child = (str(table[side].iloc[0]) for side in SIDES)
        table = table.sort_values("latent")
        firings, of_verdict = table["n_firings"].to_numpy(np.float64), table["verdict"].to_numpy()
        pool = np.flatnonzero(of_verdict == PERSISTS)
        for side in (side for side, name in zip(SIDES, (parent, child), strict=True) if name == model):
            for verdict in ABLATED:
                group = np.flatnonzero(of_verdict == verdict)
                draws = random_groups(group, pool, firings, seed)
                groups.append(LatentGroup(str(edge), parent, child, side, verdict, group, draws))
    return groups


@torch.inference_mode()
def crosscoder_effects(
    model: PreTrainedModel,
    name: str,
    crosscoder: Crosscoder,
    hookpoint: str,
    rows: Mapping[str, TokenRows],
    paths_to_latents: Mapping[str, Sequence[Path | str]],
    groups: Sequence[LatentGroup],
    batch_rows: int,
    max_rows: int,
    n_replicates: int,
    seed: int,
) -> pd.DataFrame:
    """Measure a model's loss with its activations reconstructed, with and without groups of latents, by corpus.

    Args:
        model, name: the model, and its name in the crosscoder.
        crosscoder: on the model's device.
        hookpoint: where the crosscoder reads the model.
        rows: token rows of the probe by corpus.
        paths_to_latents: the crosscoder's latents of these rows by corpus, as feature shards.
        groups: from `latent_groups`.
        batch_rows: rows in a forward pass.
        max_rows: rows of each corpus, at most (`TokenRows.spread`).
        n_replicates, seed: replicates of the documents, for intervals.

    Returns:
        One row for each group, in the order given, and corpus, sorted, with columns

        - `edge`, `parent`, `child`, `side`, `verdict`, `corpus`;
        - `n_latents`; `n_firings` on these rows; `n_tokens`, the tokens predicted;
        - `loss`, `loss_reconstructed` and `loss_without` the group, nats per token;
        - `loss_change`, loss_without - loss_reconstructed, above 0 where the group helps, with `_low` and `_high`, its
          95 % interval over documents (`ratio_interval`), NaN where there is none;
        - `loss_change_per_firing`, the summed change over n_firings, NaN where no latent fires;
        - of the random groups `n_draws`, `n_firings_random` (the mean), `loss_change_random` (the mean) with `_least`
          and `_largest`, and `loss_change_random_per_firing`, over all of them.
        A group without latents has no loss without it: NaN.
    """
    ablated = [latents for group in groups for latents in (group.latents, *group.draws)]
    stops = np.cumsum([1 + len(group.draws) for group in groups])
    tables: list[list[dict]] = [[] for _ in groups]
    for corpus in sorted(rows):
        documents = predicted_documents(rows[corpus])
        limits = (crosscoder.d_sae, batch_rows, max_rows)
        batches = _batches(rows[corpus], paths_to_latents[corpus], *limits, model.device)
        losses = _losses(model, name, crosscoder, hookpoint, batches, documents, ablated)
        for table, group, stop in zip(tables, groups, stops, strict=True):
            named = {key: getattr(group, key) for key in NAMED} | {"corpus": corpus}
            of_group = losses.of(slice(stop - 1 - len(group.draws), stop))
            table.append(named | _figures(of_group, group, n_replicates, seed))
    return pd.DataFrame([row for table in tables for row in table])


def _batches(
    rows: TokenRows, paths: Sequence[Path | str], d_sae: int, batch_rows: int, max_rows: int, device: torch.device
) -> Iterator[Batch]:
    """Rows of a corpus with their latents, of which one shard is in memory at a time."""
    n_ctx, read = rows.info["n_ctx"], rows.spread(max_rows)

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    for path in paths:
        shard = FeatureShard(path)
        if (shard.ids_sha256, shard.n_ctx, shard.d_sae) != (rows.digest, n_ctx, d_sae):
            raise InputError(
                f"'{path}' must hold the crosscoder's {d_sae} latents of the tokens in '{rows.path}', but holds "
                f"{shard.d_sae} of {shard.token_range}; delete it and run again"
            )
        within = read[bisect_left(read, shard.first_row) : bisect_left(read, shard.stop_row)]
        for numbers, ids in rows.batches(batch_rows, within):
            start, stop = np.searchsorted(shard.positions, [numbers.start * n_ctx, (numbers[-1] + 1) * n_ctx])
            compared = start + np.flatnonzero(shard.compared[start:stop])
            compared = compared[np.isin(shard.positions[compared] // n_ctx, numbers)]
            row, place = np.divmod(shard.positions[compared] - numbers.start * n_ctx, n_ctx)
            row //= numbers.step
            yield Batch(
                numbers,
                on_device(ids),
                on_device(rows.predicted(numbers)),
                on_device(row),
                on_device(place),
                latents_of_rows(shard.latents[compared], device),
            )


def _losses(
    model: PreTrainedModel,
    name: str,
    crosscoder: Crosscoder,
    hookpoint: str,
    batches: Iterable[Batch],
    documents: Int[np.ndarray, "row prediction"],
    ablated: Sequence[Integer[np.ndarray, " _latent"]],
) -> DocumentLosses:
    """Run a model with its own activations, with their reconstructions, and with these without each of some groups.

    No pass is spent on a group of which no latent fires in a batch.
    """
    everything = np.arange(crosscoder.d_sae)
    groups = [torch.from_numpy(group).to(model.device) for group in ablated]
    others = [torch.from_numpy(np.setdiff1d(everything, group)).to(model.device) for group in ablated]
    sums = np.zeros((3 + len(groups), documents.max() + 1))
    n_firings = np.zeros(len(groups), dtype=np.int64)
    for batch in batches:
        firings = [int(torch.isin(batch.latents.indices, group).sum()) for group in groups]
        own = _losses_of(model, hookpoint, batch)
        whole = _losses_of(model, hookpoint, batch, crosscoder.decode(batch.latents, name))
        parts = [
            _losses_of(model, hookpoint, batch, crosscoder.decode(only(batch.latents, kept), name)) if fired else whole
            for kept, fired in zip(others, firings, strict=True)
        ]
        n_firings += firings
        add_by_document(sums, documents, batch.numbers, batch.predicted, [own, whole, *parts])
    return DocumentLosses(sums[0], sums[1], sums[2], sums[3:], n_firings)


def _losses_of(
    model: PreTrainedModel, hookpoint: str, batch: Batch, recons: Float[Tensor, "token d_in"] | None = None
) -> Float[np.ndarray, " prediction"]:
    """The loss of each id but each row's first, with reconstructions in place of the activations of compared tokens."""

    def put(acts: Tensor) -> Tensor | None:
        if recons is None:
            return None
        changed = acts.clone()
        changed[batch.row, batch.place] = recons.to(acts.dtype)
        return changed

    with hooked(model, hookpoint, put):
        return flat_losses(predict(model, batch.ids), batch.ids, batch.predicted)


def _figures(losses: DocumentLosses, group: LatentGroup, n_replicates: int, seed: int) -> dict:
    """The figures of a group on a corpus, from the losses without it and without its random groups."""
    n_tokens, (n_firings, *firings_random) = losses.n_tokens.sum(), losses.n_firings.tolist()
    changes = losses.without - losses.reconstructed
    change, *random = (changes.sum(1) / n_tokens).tolist()
    figures = {
        "n_latents": len(group.latents),
        "n_firings": n_firings,
        "n_tokens": int(n_tokens),
        "loss": losses.own.sum() / n_tokens,
        "loss_reconstructed": losses.reconstructed.sum() / n_tokens,
        **dict.fromkeys(("loss_without", "loss_change", "loss_change_low", "loss_change_high"), np.nan),
        "loss_change_per_firing": change * n_tokens / n_firings if n_firings else np.nan,
        "n_draws": len(random),
        "n_firings_random": np.mean(firings_random) if random else np.nan,
        "loss_change_random": np.mean(random) if random else np.nan,
        "loss_change_random_least": min(random, default=np.nan),
        "loss_change_random_largest": max(random, default=np.nan),
        "loss_change_random_per_firing": (
            sum(random) * n_tokens / sum(firings_random) if sum(firings_random) else np.nan
        ),
    }
    if len(group.latents):
        read = losses.n_tokens > 0
        low, high = ratio_interval(changes[0][read], losses.n_tokens[read], n_replicates, seed)
        figures |= {"loss_without": losses.without[0].sum() / n_tokens, "loss_change": change}
        figures |= {"loss_change_low": low, "loss_change_high": high}
    return figures
