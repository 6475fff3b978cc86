"""Ablations: the change in a model's loss when some of its features are ablated.

At the hookpoint, acts become acts - sum over the group of latent_acts_i W_dec_i. The SAE's error stays in, so that
ablating nothing changes nothing (Marks et al., arXiv 2403.19647, keep it for the same reason). As in `saes.metrics`,
BOS, EOS and tokens whose activation norm exceeds `Sae.max_norm` are left as they are. Losses are summed in float64.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import adding, hooked, read_with_predictions
from saelineage.errors import InputError
from saelineage.lineage.matching import PERSISTS, SIDES, UNTESTABLE
from saelineage.lineage.verdicts import VERDICTS
from saelineage.models.losses import token_losses
from saelineage.models.predictions import predict
from saelineage.plan.graph import POOLED
from saelineage.saes.sae import Sae, SparseLatents
from saelineage.tokens import TokenRows

MIN_PAIRS = 3
"""A correlation over fewer pairs is not informative."""
N_DRAWS = 3
"""Random groups beside each group (`plan.sizes.CROSSCODER_GROUPS` counts with it)."""


class Batch(NamedTuple):
    """Token rows, as the model and its SAE see them."""

    ids: Int[Tensor, "row n_ctx"]
    predicted: Bool[Tensor, "row n_ctx"]
    """Ids whose losses count."""
    row: Int[Tensor, " token"]
    """The row, within the batch, of each token that the SAE reads."""
    place: Int[Tensor, " token"]
    """The place in the row of each of these tokens."""
    latents: SparseLatents
    losses: Float[Tensor, " row"]
    """Summed next-token loss of each row in nats, with nothing ablated."""


@torch.inference_mode()
def group_effects(
    model: PreTrainedModel,
    sae: Sae,
    hookpoint: str,
    rows: Mapping[str, TokenRows],
    groups: Mapping[str, Integer[np.ndarray, " latent"]],
    batch_rows: int,
    max_rows: int | None = None,
) -> pd.DataFrame:
    """Measure the change in a model's loss when the features of a group are ablated together, by corpus.

    Args:
        model, sae, hookpoint: the model, and the SAE trained on its activations at the hookpoint.
        rows: token rows by corpus.
        groups: latents by the name of their group; each latent counts once.
        batch_rows: rows in a forward pass.
        max_rows: rows of each corpus, at most (`TokenRows.spread`); None takes all.

    Returns:
        One row for each corpus, sorted, and group, in the order given, with columns

        - `group`, `corpus`, `n_latents`;
        - `loss`, nats per token with nothing ablated;
        - `loss_change`, the increase of the loss by ablation, above 0 where the group helps;
        - `loss_change_per_firing`, the summed change over `n_firings`, comparable between groups of different size, NaN
          where no latent fires;
        - `n_firings`, firings of the group's latents on these rows; a token on which two fire counts twice;
        - `n_tokens`, the tokens predicted, all but each row's first.
    """
    latents = {name: torch.from_numpy(np.unique(group)).to(model.device) for name, group in groups.items()}
    tables = []
    for corpus in sorted(rows):
        loss, n_tokens, changes, firings = 0.0, 0, np.zeros(len(latents)), np.zeros(len(latents), dtype=np.int64)
        for batch in _batches(model, sae, hookpoint, rows[corpus], batch_rows, max_rows):
            loss, n_tokens = loss + float(batch.losses.sum()), n_tokens + int(batch.predicted[:, 1:].sum())
            parts = [only(batch.latents, group) for group in latents.values()]
            changes += [_change_without(model, sae, hookpoint, batch, part) for part in parts]
            firings += [len(part.indices) for part in parts]
        columns = {
            "group": list(groups),
            "corpus": corpus,
            "n_latents": [len(group) for group in latents.values()],
            "loss": loss / n_tokens,
            "loss_change": changes / n_tokens,
            "loss_change_per_firing": _per_firing(changes, firings),
            "n_firings": firings,
            "n_tokens": n_tokens,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def feature_effects(
    model: PreTrainedModel,
    sae: Sae,
    hookpoint: str,
    rows: Mapping[str, TokenRows],
    latents: Integer[np.ndarray, " latent"],
    batch_rows: int,
    max_rows: int | None = None,
) -> pd.DataFrame:
    """Measure the change in a model's loss when features are ablated one at a time, by corpus.

    An effect is the change of the summed loss of the rows read, divided by the tokens on which the feature fires: nats
    per firing. It includes the losses of later tokens of a row. Only rows in which a feature fires are run without it,
    batched with rows for other features, so changes as small as the rounding of a row's loss in float32 (about 1e-6 of
    it) mean nothing.

    Args:
        model, sae, hookpoint, rows, batch_rows, max_rows: as for `group_effects`.
        latents: the features.

    Returns:
        One row for each corpus, sorted, and latent, in the order given: `latent`, `corpus`, `loss_change` (NaN where it
        never fires) and `n_firings`.
    """
    chosen = torch.tensor(latents, device=model.device)
    tables = []
    for corpus in sorted(rows):
        changes, firings = np.zeros(sae.d_sae), np.zeros(sae.d_sae, dtype=np.int64)
        for batch in _batches(model, sae, hookpoint, rows[corpus], batch_rows, max_rows):
            batch = batch._replace(latents=only(batch.latents, chosen))
            firings += torch.bincount(batch.latents.indices, minlength=sae.d_sae).cpu().numpy()
            for numbers, change in _single_changes(model, sae, hookpoint, batch, batch_rows):
                np.add.at(changes, numbers.cpu().numpy(), change.cpu().numpy())
        columns = {
            "latent": latents,
            "corpus": corpus,
            "loss_change": _per_firing(changes[latents], firings[latents]),
            "n_firings": firings[latents],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def only(latents: SparseLatents, group: Int[Tensor, " latent"]) -> SparseLatents:
    """Keep the activations of a group of latents alone, on the same tokens."""
    kept = torch.isin(latents.indices, group)
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    return SparseLatents(before[latents.indptr], latents.indices[kept], latents.values[kept])


def group_part(sae: Sae, latents: SparseLatents) -> Float[Tensor, "token d_in"]:
    """The contribution of latents to each token's reconstruction: sum of latent_acts_i W_dec_i, without the bias."""
    return sae.decode_sparse(latents) - sae.b_dec


def matched_random(
    group: Integer[np.ndarray, " latent"],
    pool: Integer[np.ndarray, " candidate"],
    density: Float[np.ndarray, " d_sae"],
    seed: int,
) -> Int[np.ndarray, " matched"]:
    """Draw a random group of equal density: for each latent of a group another latent that fires about as often.

    Latents of the group, in random order, each take the latent nearest in log density among those of the pool that are
    neither in the group nor taken, on a tie the lower one. Where the pool runs out, the random group is smaller.

    Args:
        group: the latents to be matched.
        pool: latents to choose from.
        density: share of tokens on which each latent fires, in (0, 1] for those of group and pool.
        seed: of the random order.

    Returns:
        The latents taken, ascending.

    Raises:
        InputError: if a latent of the group or of the pool never fires.
    """
    free = np.setdiff1d(pool, group)
    silent = [int(latent) for latent in np.union1d(group, free) if not density[latent] > 0]
    if silent:
        raise InputError(
            f"density must be above 0 to be matched, but latent {silent[0]} is {density[silent[0]]}; "
            "leave out latents that never fire"
        )
    log_free, taken = np.log(density[free]), np.zeros(len(free), dtype=bool)
    for latent in np.random.default_rng(seed).permutation(np.unique(group))[: len(free)]:
        distance = np.where(taken, np.inf, np.abs(log_free - np.log(density[latent])))
        taken[distance.argmin()] = True
    return free[taken].astype(np.int64)


def random_groups(
    group: Integer[np.ndarray, " latent"],
    pool: Integer[np.ndarray, " candidate"],
    firings: Float[np.ndarray, " d_sae"],
    seed: int,
    n_draws: int = N_DRAWS,
) -> tuple[Int[np.ndarray, " _drawn"], ...]:
    """Draw random groups of equal density (`matched_random`), each from what those before it have left.

    If the pool is too small for one whole group, there is one group of all of it, and none of an empty pool.

    Args:
        group, pool: the latents to be matched, and those to choose from.
        firings: tokens on which each latent fires.
        seed: of the random order.
        n_draws: groups to draw, at most.
    """
    draws: list[np.ndarray] = []
    while len(draws) < n_draws:
        drawn = matched_random(group, pool, firings, seed)
        if not len(drawn) or (draws and len(drawn) < len(group)):
            break
        draws.append(drawn)
        pool = np.setdiff1d(pool, drawn)
    return tuple(draws)


def edge_groups(edge: pd.DataFrame, side: str, seed: int) -> dict[str, Int[np.ndarray, " latent"]]:
    """Group the features of one side of an edge by verdict, and draw for each group a random one of equal density.

    Args:
        edge: an edge's table, after `verdicts.add_verdicts`.
        side: `parent` or `child`.
        seed: of the random groups.

    Returns:
        Latents by the side's verdicts, first those of the identified features (`identified_{verdict}`), then of all;
        and by the same names with `_random`: as many of the other testable features of that side as `matched_random`
        can match.
    """
    testable = edge[(edge["side"] == side) & (edge["verdict"] != UNTESTABLE)]
    density = np.zeros(int(edge["latent"].max()) + 1)
    pool = testable["latent"].to_numpy(dtype=np.int64)
    density[pool] = testable["density"]
    identified = testable["identified"].to_numpy(dtype=bool)
    of_verdict = {verdict: (testable["verdict"] == verdict).to_numpy() for verdict in VERDICTS[SIDES.index(side)]}
    groups = {f"identified_{verdict}": pool[rows & identified] for verdict, rows in of_verdict.items()}
    groups = {name: latents for name, latents in groups.items() if identified.any()}
    groups |= {verdict: pool[rows] for verdict, rows in of_verdict.items()}
    return groups | {f"{name}_random": matched_random(group, pool, density, seed) for name, group in groups.items()}


def top_matches(edge: pd.DataFrame, n_matches: int) -> pd.DataFrame:
    """Select the parent's persisting features, identified ones with the largest r first, and the child's that match.

    A feature of the child that is the match of several counts once, with the largest r.

    Returns:
        At most `n_matches` rows, identified features first, then largest r, on a tie the parent's lower latent:
        `parent`, `child`, `r`.
    """
    persisting = edge[(edge["side"] == SIDES[0]) & (edge["verdict"] == PERSISTS)]
    ranked = (
        persisting.sort_values(["identified", "r", "latent"], ascending=[False, False, True])
        .drop_duplicates("match")
        .head(n_matches)
    )
    columns = {"latent": "parent", "match": "child", "r": "r"}
    return ranked[list(columns)].rename(columns=columns).reset_index(drop=True)


def matched_effects(pairs: pd.DataFrame, parent_effects: pd.DataFrame, child_effects: pd.DataFrame) -> pd.DataFrame:
    """Put the effects of matched features side by side.

    Args:
        pairs: from `top_matches`.
        parent_effects, child_effects: from `feature_effects`, of the same corpora.

    Returns:
        One row for each corpus and pair: `corpus`, `parent`, `child`, `r`, and `loss_change` and `n_firings` of each
        side with the suffix `_parent` or `_child`.
    """
    parent, child = (
        table.rename(columns={"latent": side, "loss_change": f"loss_change_{side}", "n_firings": f"n_firings_{side}"})
        for side, table in {"parent": parent_effects, "child": child_effects}.items()
    )
    matched = pairs.merge(parent, on="parent").merge(child, on=["child", "corpus"])
    effects = [f"{column}_{side}" for column in ("loss_change", "n_firings") for side in SIDES]
    return matched.sort_values("corpus", kind="stable", ignore_index=True)[["corpus", *pairs.columns, *effects]]


def agreement(
    parent_effects: Float[np.ndarray, " pair"], child_effects: Float[np.ndarray, " pair"]
) -> dict[str, int | float]:
    """Correlate the effects of matched features over pairs.

    Returns:
        `n`, the pairs in which both effects are defined; `pearson` and `spearman`, in [-1, 1], NaN for fewer than
        `MIN_PAIRS` pairs or where one side's effects are all equal.
    """
    defined = np.isfinite(parent_effects) & np.isfinite(child_effects)
    a, b = parent_effects[defined], child_effects[defined]
    if len(a) < MIN_PAIRS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"n": len(a), "pearson": np.nan, "spearman": np.nan}
    pearson, spearman = scipy.stats.pearsonr(a, b).statistic, scipy.stats.spearmanr(a, b).statistic
    return {"n": len(a), "pearson": float(pearson), "spearman": float(spearman)}


def agreements(matched: pd.DataFrame) -> pd.DataFrame:
    """Apply `agreement` to each corpus and, under `pooled`, to the pairs of all corpora.

    Args:
        matched: from `matched_effects`.

    Returns:
        Columns `corpus`, `n`, `pearson`, `spearman`.
    """
    groups = dict(iter(matched.groupby("corpus"))) | {POOLED: matched}
    sides = ("loss_change_parent", "loss_change_child")
    rows = [
        {"corpus": corpus, **agreement(*(rows[side].to_numpy(dtype=np.float64) for side in sides))}
        for corpus, rows in groups.items()
    ]
    return pd.DataFrame(rows, columns=["corpus", "n", "pearson", "spearman"])


def _batches(
    model: PreTrainedModel, sae: Sae, hookpoint: str, rows: TokenRows, batch_rows: int, max_rows: int | None
) -> Iterator[Batch]:
    """Run rows of a corpus with nothing ablated."""
    encoder = sae.encoder()
    for numbers, array in rows.batches(batch_rows, rows.spread(max_rows)):
        ids = torch.from_numpy(array).to(model.device)
        acts, predictions = read_with_predictions(model, hookpoint, ids)
        is_text = torch.from_numpy(rows.compared(numbers)).to(model.device)
        predicted = torch.from_numpy(rows.predicted(numbers)).to(model.device)
        row, place = (is_text & (acts.norm(dim=-1) <= sae.max_norm)).nonzero(as_tuple=True)
        losses = token_losses(predictions, ids, predicted).sum(1)
        yield Batch(ids, predicted, row, place, encoder.encode(acts[row, place]), losses)


def _change_without(model: PreTrainedModel, sae: Sae, hookpoint: str, batch: Batch, latents: SparseLatents) -> float:
    """The change of a batch's summed loss when these latents are ablated; no pass is spent where none fires."""
    if not len(latents.indices):
        return 0.0
    part = group_part(sae, latents)
    losses = _losses_without(model, hookpoint, batch.ids, batch.predicted, batch.row, batch.place, part)
    return float((losses - batch.losses).sum())


def _single_changes(
    model: PreTrainedModel, sae: Sae, hookpoint: str, batch: Batch, batch_rows: int
) -> Iterator[tuple[Int[Tensor, " pair"], Float[Tensor, " pair"]]]:
    """Changes of single rows' summed losses when single latents are ablated: the latents, and the changes.

    Each pair of a row and a latent that fires in it is one row of a forward pass.
    """
    indptr, latent, values = batch.latents
    token = torch.repeat_interleave(torch.arange(len(indptr) - 1, device=indptr.device), indptr.diff())
    keys, pair = (batch.row[token] * sae.d_sae + latent).unique(return_inverse=True)
    rows, latents = keys // sae.d_sae, keys % sae.d_sae
    for start in range(0, len(keys), batch_rows):
        chosen, inside = slice(start, start + batch_rows), (pair >= start) & (pair < start + batch_rows)
        part = values[inside].unsqueeze(1) * sae.W_dec[latent[inside]]
        ids, predicted, place = batch.ids[rows[chosen]], batch.predicted[rows[chosen]], batch.place[token[inside]]
        losses = _losses_without(model, hookpoint, ids, predicted, pair[inside] - start, place, part)
        yield latents[chosen], losses - batch.losses[rows[chosen]]


def _losses_without(
    model: PreTrainedModel,
    hookpoint: str,
    ids: Int[Tensor, "row n_ctx"],
    predicted: Bool[Tensor, "row n_ctx"],
    row: Int[Tensor, " token"],
    place: Int[Tensor, " token"],
    part: Float[Tensor, "token d_in"],
) -> Float[Tensor, " row"]:
    """Each row's summed next-token loss with `part` subtracted from the activations of distinct tokens."""
    with hooked(model, hookpoint, adding(row, place, -part)):
        return token_losses(predict(model, ids), ids, predicted).sum(1)


def _per_firing(changes: Float[np.ndarray, " any"], firings: Integer[np.ndarray, " any"]) -> Float[np.ndarray, " any"]:
    """Summed changes over firings, NaN where there are no firings."""
    return np.divide(changes, firings, out=np.full(len(changes), np.nan), where=firings > 0)
