"""Acts on features: what a child does without one of its new features or with more of it, and its parent with it.

Of each feature some passages are read up to the token on which it fires most, its *peak*, and continued: by the child
as it is, with the feature `removed` (held at 0 on every token), held at its `mean` activation where it fires or at
`twice` its largest from the peak on; by the parent as it is, with the feature `added` at the peak (its decoder
direction times its largest activation in the child), and with a `random` one, a feature of the child that is not new
and fires about as often, in whose direction a vector of the same length is added.

The parent does what the child does if its prediction at the peak comes closer to the child's with the feature added,
and closer than with the random one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from saelineage.behaviour.continuations import (
    Change,
    Continuations,
    Prompts,
    added,
    begun,
    continuations,
    held,
    prompts_of,
)
from saelineage.behaviour.edges import Reader
from saelineage.behaviour.steps import Past
from saelineage.correlations.bootstrap import ratio_interval
from saelineage.labels.annotations import Annotations, text_of
from saelineage.labels.passages import Firings, place_of, strongest, windows
from saelineage.lineage.ablations import matched_random
from saelineage.lineage.importance import reading_order
from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.shares import share
from saelineage.lineage.verdicts import NEW
from saelineage.saes.sae import Sae

N_PASSAGES = 3
"""Passages of a feature (`plan.sizes.ACTED_PASSES` counts with it)."""
N_NEW = 12
"""Tokens of a continuation, where rows are at least twice as long."""
N_NEXT = 5
"""Most likely next tokens that are listed."""
AS_IT_IS, REMOVED, MEAN, TWICE, ADDED, RANDOM = "as it is", "removed", "mean", "twice", "added", "random"
SETTINGS = {SIDES[1]: (AS_IT_IS, REMOVED, MEAN, TWICE), SIDES[0]: (AS_IT_IS, ADDED, RANDOM)}
"""What is done to each model of an edge."""
CLOSER, FURTHER, UNTOLD = "closer", "further", "cannot be told"
"""Whether the parent's predictions come closer to the child's."""
SHARES = ("same_next", "same_all")
FALLS = ("kl_fall", "kl_fall_beside_random")


class Feature(NamedTuple):
    """A feature of the child that is acted on."""

    latent: int
    random: int
    """The feature beside it, which is not new; -1 where there is none."""
    mean: float
    """Its mean activation on the probe, where it fires."""
    largest: float
    peaks: Int[np.ndarray, " passage"]
    """The probe's tokens on which it fires most, one per document."""
    strengths: Float[np.ndarray, " passage"]
    """Its activations there."""


Acted = tuple[Feature, int, int]
"""A feature, the number of one of its passages, and the peak, a token of the probe."""


def n_new_tokens(n_ctx: int) -> int:
    """Tokens of a continuation: `N_NEW`, and at most half a row."""
    return min(N_NEW, n_ctx // 2)


def new_features(importance: pd.DataFrame, n: int) -> list[int]:
    """The first new features of an edge's child, in the order in which to read them.

    Args:
        importance: of both sides, from `importance.importance_table`.
        n: how many.
    """
    return reading_order(importance[importance["side"] == SIDES[1]])["latent"].head(n).tolist()


def random_features(latents: Sequence[int], edge: pd.DataFrame, seed: int) -> list[int]:
    """For each latent of the child another one that is not new and fires about as often; -1 where none is left.

    Args:
        latents: new features of the child.
        edge: an edge's table, after `verdicts.add_verdicts`.
        seed: as in `matched_random`.
    """
    of_child = edge[(edge["side"] == SIDES[1]) & (edge["verdict"] != UNTESTABLE)]
    density = np.zeros(int(edge["latent"].max()) + 1)
    density[of_child["latent"]] = of_child["density"]
    pool, matched = of_child.loc[of_child["verdict"] != NEW, "latent"].to_numpy(dtype=np.int64), []
    for latent in latents:
        drawn = matched_random(np.array([latent]), pool, density, seed)
        pool = np.setdiff1d(pool, drawn)
        matched.append(int(drawn[0]) if len(drawn) else -1)
    return matched


def features_of(
    latents: Sequence[int], randoms: Sequence[int], firings: Firings, annotations: Annotations
) -> list[Feature]:
    """What acting on features needs to know of each; peaks leave room in their row for a continuation.

    Args:
        latents, randoms: from `new_features` and `random_features`.
        firings: of the child's SAE on the probe.
        annotations: of the probe.
    """
    features, latest = [], annotations.n_ctx - n_new_tokens(annotations.n_ctx) - 1
    for latent, random in zip(latents, randoms, strict=True):
        tokens, values = firings.of(latent)
        has_room = tokens % annotations.n_ctx <= latest  # corpora hold whole rows
        peaks = strongest(tokens[has_room], values[has_room], annotations.documents, N_PASSAGES)
        mean = float(values.mean(dtype=np.float64)) if len(values) else 0.0
        strengths = values[np.searchsorted(tokens, peaks)]
        features.append(Feature(latent, random, mean, float(values.max(initial=0.0)), peaks, strengths))
    return features


@torch.inference_mode()
def act(
    readers: Mapping[str, Reader],
    sae: Sae,
    hookpoint: str,
    features: Sequence[Feature],
    annotations: Annotations,
    ids: Sequence[int],
    tokenizer: Tokenizer,
    batch_rows: int,
) -> pd.DataFrame:
    """Continue the passages of some features by both models of an edge, in every one of `SETTINGS`.

    Args:
        readers: `parent` and `child`; without `parent` its settings are left out.
        sae: of the child, on the models' device.
        hookpoint: where the SAE reads the child.
        features: from `features_of`.
        annotations: of the probe.
        ids: the ids, ascending, that both models share; others never follow.
        tokenizer: the run's.
        batch_rows: rows in a forward pass.

    Returns:
        One row per feature, passage and setting:

        - `latent`, `passage` (from 0), `corpus`, `row`, `place`, `strength` (the activation at the peak), `before` and
          `text`, the text up to the peak and at it;
        - `model` (`parent`, `child`), `setting`, `value`, what the feature is held at, or the factor of its direction
          that is added (NaN for the models as they are), `random`, the latent added in its place (-1 where none is);
        - `next`, the `N_NEXT` most likely tokens, `probabilities`; `continuation`; `same_next`, whether its first
          token is the child's, `n_same`, how many of its first tokens are the child's, of `n_new`; and `kl`, the
          divergence of its next-token distribution from the child's, KL(child || this), in nats.
    """
    allowed = torch.tensor(list(ids), device=readers[SIDES[1]].model.device)
    acted = [(feature, passage, int(peak)) for feature in features for passage, peak in enumerate(feature.peaks)]
    tables = []
    for batch in of_one_length(acted, annotations.n_ctx, batch_rows):
        passages = pd.DataFrame([_passage(annotations, *item) for item in batch])
        of_batch = [feature for feature, _, _ in batch]
        tables += _continued(readers, sae, hookpoint, of_batch, passages, annotations.n_ctx, allowed, tokenizer)
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    place = {feature.latent: number for number, feature in enumerate(features)}
    keys = pd.DataFrame({"feature": table["latent"].map(place), "passage": table["passage"]})
    in_order = keys.sort_values(["feature", "passage"], kind="stable").index
    return table.loc[in_order, list(COLUMNS)].reset_index(drop=True)


COLUMNS = (
    *("latent", "passage", "corpus", "row", "place", "strength", "before", "text"),
    *("model", "setting", "value", "random", "next", "probabilities", "continuation"),
    *("same_next", "n_same", "n_new", "kl"),
)


def summarise(acts: pd.DataFrame, n_replicates: int, seed: int) -> pd.DataFrame:
    """What was done in each setting, over all features and passages of an edge.

    Args:
        acts: from `act`.
        n_replicates, seed: replicates of the features, for 95 % intervals.

    Returns:
        One row for each model and setting, with columns

        - `model`, `setting`, `n_features`, `n_passages`;
        - `same_next`, the share of passages whose next token is the child's, and `same_all`, of those whose whole
          continuation is, with `_low` and `_high` (Wilson, with the features as draws);
        - `kl`, the mean divergence from the child's prediction, with its interval;
        - `kl_fall`, of the parent with a feature added, how far that lies below the parent's as it is, with its
          interval; and `kl_fall_beside_random`, how far below that with the random feature, on the same passages;
        - `does`, of `added`: `closer` if both are above 0 with their intervals, `further` if the first is below 0 with
          its interval, else `cannot be told`.
    """
    rows = []
    for side in reversed(SIDES):
        kls = {setting: _kls(acts, side, setting) for setting in SETTINGS[side]}
        for setting in SETTINGS[side]:
            own = acts[(acts["model"] == side) & (acts["setting"] == setting)]
            if not len(own):
                continue
            is_same = {"same_next": own["same_next"], "same_all": own["n_same"] == own["n_new"]}
            figures: dict[str, Any] = {"model": side, "setting": setting, "n_features": own["latent"].nunique()}
            figures |= {"n_passages": len(own)}
            for name in SHARES:
                figures |= _share(name, is_same[name], own["latent"])
            figures |= _mean("kl", own["kl"], own["latent"], n_replicates, seed, (0.0, np.inf))
            if side == SIDES[0] and setting != AS_IT_IS:
                figures |= _fall(FALLS[0], kls[AS_IT_IS], kls[setting], n_replicates, seed)
            if setting == ADDED:
                figures |= _fall(FALLS[1], kls[RANDOM], kls[setting], n_replicates, seed)
                fall, beside_random = ((figures[f"{name}_low"], figures[f"{name}_high"]) for name in FALLS)
                figures["does"] = does(fall, beside_random)
            rows.append(figures)
    bounded = [*SHARES, "kl", *FALLS]
    columns = [column for name in bounded for column in (name, f"{name}_low", f"{name}_high")]
    return pd.DataFrame(rows, columns=["model", "setting", "n_features", "n_passages", *columns, "does"])


def does(fall: tuple[float, float], beside_random: tuple[float, float]) -> str:
    """Whether the parent comes closer to the child with its features added (`summarise`).

    Args:
        fall, beside_random: the ends of the intervals of `kl_fall` and `kl_fall_beside_random`; NaN without one.
    """
    if fall[0] > 0 and beside_random[0] > 0:
        return CLOSER
    return FURTHER if fall[1] < 0 else UNTOLD


def of_one_length(acted: Sequence[Acted], n_ctx: int, batch_rows: int) -> Iterator[list[Acted]]:
    """Batches of passages whose peaks have the same place in their row."""
    by_place = sorted(acted, key=lambda item: item[2] % n_ctx)
    for _, items in groupby(by_place, key=lambda item: item[2] % n_ctx):
        group = list(items)
        yield from (group[start : start + batch_rows] for start in range(0, len(group), batch_rows))


def _continued(
    readers: Mapping[str, Reader],
    sae: Sae,
    hookpoint: str,
    features: Sequence[Feature],
    passages: pd.DataFrame,
    n_ctx: int,
    allowed: Int[Tensor, " id"],
    tokenizer: Tokenizer,
) -> list[pd.DataFrame]:
    """Continue a batch of passages, of one feature each, in every setting; the child as it is comes first.

    Only `removed` changes tokens before the peak. In all other settings the model reads these once.
    """
    tables, of_child = [], None
    for side in (side for side in reversed(SIDES) if side in readers):
        reader = readers[side]
        prompts = _prompts(reader, passages)
        past = begun(reader.model, prompts)
        for setting in SETTINGS[side]:
            chosen, change, values = _change(setting, sae, prompts, features)
            if not len(chosen):
                continue
            part = Prompts(*(of[chosen] for of in prompts))
            before = Past() if setting == REMOVED or len(chosen) < len(features) else past
            found = continuations(reader.model, part, allowed, n_new_tokens(n_ctx), before, hookpoint, change)
            of_child = found if of_child is None else of_child
            compared = _compared(found, of_child, chosen, allowed, tokenizer, _eos(reader))
            named = passages.iloc[chosen.tolist()].reset_index(drop=True)
            randoms = named["random"] if setting == RANDOM else -1
            named = named.assign(model=side, setting=setting, value=values, random=randoms)
            tables.append(pd.concat([named, compared], axis=1))
    return tables


def _passage(annotations: Annotations, feature: Feature, passage: int, peak: int) -> dict:
    """Where a passage is, and its text up to the peak."""
    corpus, row, place = place_of(annotations, peak)
    shown = windows([peak], annotations)[0]
    return {
        "latent": feature.latent,
        "passage": passage,
        "corpus": corpus,
        "row": row,
        "place": place,
        "strength": float(feature.strengths[passage]),
        "random": feature.random,
        "before": "".join(text_of(annotations, range(shown.start, peak))),
        "text": text_of(annotations, [peak])[0],
    }


def _prompts(reader: Reader, passages: pd.DataFrame) -> Prompts:
    """The passages from the beginning of their row to the peak, as one model reads them."""
    rows = [reader.rows[corpus] for corpus in passages["corpus"]]
    length = int(passages["place"].iloc[0]) + 1
    return prompts_of(rows, passages["row"].to_numpy(dtype=np.int64), length, reader.model.device)


def _change(
    setting: str, sae: Sae, prompts: Prompts, features: Sequence[Feature]
) -> tuple[Int[Tensor, " chosen"], Change | None, Float[np.ndarray, " chosen"]]:
    """The prompts of a setting, what is done to their activations, and by how much."""
    device, every = prompts.ids.device, torch.arange(len(features), device=prompts.ids.device)
    latents = torch.tensor([feature.latent for feature in features], device=device)
    largest = torch.tensor([feature.largest for feature in features], device=device)
    if setting == AS_IT_IS:
        return every, None, np.full(len(features), np.nan)
    if setting in (ADDED, RANDOM):
        randoms = torch.tensor([feature.random for feature in features], device=device)
        chosen = every[randoms >= 0] if setting == RANDOM else every
        vectors = largest[:, None] * sae.W_dec[latents]
        if setting == RANDOM:
            units = torch.nn.functional.normalize(sae.W_dec[randoms[chosen]], dim=1)
            vectors = vectors.norm(dim=1)[chosen, None] * units
        return chosen, added(prompts, vectors), largest[chosen].cpu().numpy().astype(np.float64)
    means = torch.tensor([feature.mean for feature in features], device=device)
    values = {REMOVED: torch.zeros_like(largest), MEAN: means, TWICE: 2 * largest}[setting]
    first = 0 if setting == REMOVED else prompts.last
    return every, held(sae, prompts, latents, values, first), values.cpu().numpy().astype(np.float64)


def _eos(reader: Reader) -> int:
    """The id that ends a document."""
    return next(iter(reader.rows.values())).info["eos_id"]


def _compared(
    found: Continuations,
    of_child: Continuations,
    chosen: Int[Tensor, " chosen"],
    allowed: Int[Tensor, " id"],
    tokenizer: Tokenizer,
    eos: int,
) -> pd.DataFrame:
    """What follows, beside what follows by the child as it is."""
    expected = of_child.log_probs[chosen]
    kl = (expected.exp() * (expected - found.log_probs)).sum(-1)
    is_same = (found.ids == of_child.ids[chosen]).long()
    top = found.log_probs.topk(min(N_NEXT, len(allowed)), dim=-1)
    following = [[_text(tokenizer, [token]) for token in row] for row in allowed[top.indices].tolist()]
    return pd.DataFrame(
        {
            "next": following,
            "probabilities": top.values.exp().tolist(),
            "continuation": [
                _text(tokenizer, row[: row.index(eos)] if eos in row else row) for row in found.ids.tolist()
            ],
            "same_next": is_same[:, 0].bool().tolist(),
            "n_same": is_same.cumprod(dim=1).sum(1).tolist(),
            "n_new": found.ids.shape[1],
            "kl": kl.clamp(min=0.0).tolist(),
        }
    )


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of some tokens, control tokens with their names."""
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def _kls(acts: pd.DataFrame, side: str, setting: str) -> pd.Series:
    """The divergence of a model in one setting, by feature and passage."""
    own = acts[(acts["model"] == side) & (acts["setting"] == setting)]
    return own.set_index(["latent", "passage"])["kl"]


def _share(name: str, holds: pd.Series, latents: pd.Series) -> dict[str, float]:
    """The share of passages for which something holds, with Wilson's interval for a draw per feature."""
    n_features = latents.nunique()
    low, high = share(float(holds.mean() * n_features), n_features).interval or (np.nan, np.nan)
    return {name: float(holds.mean()), f"{name}_low": low, f"{name}_high": high}


def _fall(name: str, before: pd.Series, after: pd.Series, n_replicates: int, seed: int) -> dict[str, float]:
    """The mean of how far divergences fell, over the passages that both have."""
    fell = (before - after).dropna()
    return _mean(name, fell, fell.index.to_frame(index=False)["latent"], n_replicates, seed, (-np.inf, np.inf))


def _mean(
    name: str, values: pd.Series, latents: pd.Series, n_replicates: int, seed: int, bounds: tuple[float, float]
) -> dict[str, float]:
    """The mean of values over passages, with an interval over the features that they belong to."""
    of_feature = pd.Series(values.to_numpy(dtype=np.float64)).groupby(latents.to_numpy())
    sums, counts = of_feature.sum().to_numpy(), of_feature.count().to_numpy().astype(np.float64)
    low, high = ratio_interval(sums, counts, n_replicates, seed, bounds)
    mean = sums.sum() / counts.sum() if counts.sum() else np.nan
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
