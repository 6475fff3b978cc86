"""What a fine-tune taught, from its own samples: the child's features that fire more where it is contrasted.

Samples of one edge (`behaviour.sampling`) are read by the child's SAE, as the child reads them. A feature is *enriched*
if it fires in more of the contrast's samples than in as many samples of the child alone, and than in as many of the
child beside itself: the 95 % Wilson interval of the first share lies above those of both others. Samples are counted,
not tokens, because tokens of one sample depend on each other. With the parent in the child's place the contrast is the
child beside itself, draw by draw, so nothing is enriched.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, Integer
from tokenizers import Tokenizer

from saelineage.activations import read_activations
from saelineage.behaviour.continuations import prompts_of
from saelineage.behaviour.edges import Reader
from saelineage.behaviour.sampling import ALONE, CONTRAST, ITSELF, WAYS, sampled
from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.shares import share
from saelineage.lineage.verdicts import NEW
from saelineage.saes.sae import Sae

N_START = 8
"""Tokens of the beginning of a probe row, after its BOS, from which some samples start."""
OTHER_DRAWS = "other draws"
"""A second set of samples of the child alone, which shows how many features are enriched by chance."""
SETS = (*WAYS, OTHER_DRAWS)
OF_EDGE = ("verdict", "identified", "headline")


class Samples(NamedTuple):
    """Rows that were sampled in one way."""

    ids: Int[np.ndarray, "row place"]
    """Beginnings and what was sampled, as the child reads them."""
    n_start: int
    """Tokens of each beginning."""


class Firings(NamedTuple):
    """How often each latent fires in some samples."""

    n_samples: Int[np.ndarray, " d_sae"]
    """Samples in which it fires."""
    n_tokens: Int[np.ndarray, " d_sae"]
    """Tokens on which it fires."""
    n_read: int
    """Tokens read."""


def sample_sets(
    readers: Mapping[str, Reader], ids: Sequence[int], n_samples: int, n_new: int, seed: int
) -> dict[str, list[Samples]]:
    """Sample in every way, from the beginning token and from beginnings of probe rows.

    Args:
        readers: `parent` and `child`.
        ids: the ids, ascending, that may follow. Without EOS, so that all samples are as long.
        n_samples: samples of each set: half of them start from BOS alone, the others from the first `N_START` tokens of
            rows of the probe, the corpora in turn.
        n_new: tokens of a sample, at most what a row has room for.
        seed: of the draws.

    Returns:
        By name (`SETS`), the samples that start from BOS and the others.
    """
    child = readers[SIDES[1]]
    corpora = list(child.rows)
    n_ctx = child.rows[corpora[0]].info["n_ctx"]
    n_start = min(N_START, n_ctx // 2)
    n_new = min(n_new, n_ctx - 1 - n_start)
    n_short = n_samples - n_samples // 2
    sets: dict[str, list[Samples]] = {name: [] for name in SETS}
    for group, (n_rows, length) in enumerate(((n_short, 1), (n_samples - n_short, 1 + n_start))):
        names = [corpora[number % len(corpora)] for number in range(n_rows)]
        numbers = np.array(
            [number // len(corpora) % len(child.rows[name].ids) for number, name in enumerate(names)], dtype=np.int64
        )
        if not n_rows:
            continue
        starts = [_starts(readers[side], names, numbers, length) for side in reversed(SIDES)]
        for name in SETS:
            way, of_set = (ALONE, 2) if name == OTHER_DRAWS else (name, 0)
            models = child.model, readers[SIDES[0]].model
            new = sampled(*models, (starts[0], starts[1]), ids, n_new, way, _seed(seed, group + of_set))
            rows = np.concatenate([starts[0].cpu().numpy(), new], axis=1)
            sets[name].append(Samples(rows, length))
    return sets


def firings(reader: Reader, sae: Sae, hookpoint: str, samples: Sequence[Samples], batch_rows: int) -> Firings:
    """Read samples by the child and its SAE, and count the firings of each latent on what was sampled.

    Args:
        reader: the child.
        sae: of the child, on the model's device.
        hookpoint: where the SAE reads it.
        samples: the samples.
        batch_rows: rows in a forward pass.
    """
    encoder, device = sae.encoder(), reader.model.device
    in_samples, on_tokens, n_read = np.zeros(sae.d_sae, dtype=np.int64), np.zeros(sae.d_sae, dtype=np.int64), 0
    for part in samples:
        for start in range(0, len(part.ids), batch_rows):
            chosen = slice(start, start + batch_rows)
            acts = read_activations(reader.model, hookpoint, torch.from_numpy(part.ids[chosen]).to(device)).float()
            is_read = acts.norm(dim=-1) <= sae.max_norm
            is_read[:, : part.n_start] = False
            row, place = is_read.nonzero(as_tuple=True)
            latents = encoder.encode(acts[row, place])
            of_token = torch.repeat_interleave(row, latents.indptr.diff())
            keys = (of_token * sae.d_sae + latents.indices).unique() % sae.d_sae
            in_samples += np.bincount(keys.cpu().numpy(), minlength=sae.d_sae)
            on_tokens += np.bincount(latents.indices.cpu().numpy(), minlength=sae.d_sae)
            n_read += len(row)
    return Firings(in_samples, on_tokens, n_read)


def enrichment(counts: Mapping[str, Firings], edge: pd.DataFrame, n_samples: int) -> pd.DataFrame:
    """How much more often each testable feature of the child fires in the contrast's samples.

    Args:
        counts: firings in each of `SETS`.
        edge: an edge's table, after `verdicts.add_verdicts`.
        n_samples: samples of each set.

    Returns:
        One row per feature, first the enriched ones, of them first the new ones, then by how far the share of samples
        lies above the larger of the two others: `latent`, `verdict`, `identified`, `headline`, `enriched`; per set
        `samples_SET`, the share of samples in which it fires, with `_low` and `_high` (95 %, Wilson), and `tokens_SET`,
        the share of tokens; `n_samples`; and `by_chance`, enriched in `OTHER_DRAWS` beside the child alone.
    """
    of_child = edge[edge["side"] == SIDES[1]].sort_values("latent")
    table = of_child[["latent", *OF_EDGE]].reset_index(drop=True)
    for name in SETS:
        column, found = name.replace(" ", "_"), counts[name]
        low, high = np.array([share(int(count), n_samples).interval for count in found.n_samples]).T
        table[f"samples_{column}"] = found.n_samples / n_samples
        table[f"samples_{column}_low"], table[f"samples_{column}_high"] = low, high
        table[f"tokens_{column}"] = found.n_tokens / max(found.n_read, 1)
    above = np.maximum(table[f"samples_{ALONE}_high"], table[f"samples_{ITSELF}_high"])
    table["enriched"] = table[f"samples_{CONTRAST}_low"] > above
    table["by_chance"] = table["samples_other_draws_low"] > table[f"samples_{ALONE}_high"]
    table["n_samples"] = n_samples
    beside = np.maximum(table[f"samples_{ALONE}"], table[f"samples_{ITSELF}"])
    rises = table[f"samples_{CONTRAST}"] - beside
    order = pd.DataFrame({"enriched": ~table["enriched"], "new": table["verdict"] != NEW, "rises": -rises})
    table = table.loc[order.sort_values(["enriched", "new", "rises"], kind="stable").index]
    return table[table["verdict"] != UNTESTABLE].reset_index(drop=True)


def sample_table(sets: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer) -> pd.DataFrame:
    """The samples as text: `way`, `sample` (from 0), `start` (the text that it starts from) and `text`."""
    rows = []
    for name, parts in sets.items():
        every = [(part.n_start, ids) for part in parts for ids in part.ids.tolist()]
        for sample, (n_start, ids) in enumerate(every):
            start, text = (tokenizer.decode(of, skip_special_tokens=False) for of in (ids[1:n_start], ids[n_start:]))
            rows.append({"way": name, "sample": sample, "start": start, "text": text})
    return pd.DataFrame(rows, columns=["way", "sample", "start", "text"])


def _starts(
    reader: Reader, names: Sequence[str], numbers: Integer[np.ndarray, " row"], length: int
) -> Int[torch.Tensor, "row start"]:
    """The beginnings of rows as a model reads them, all of one length."""
    return prompts_of([reader.rows[name] for name in names], numbers, length, reader.model.device).ids


def _seed(seed: int, part: int) -> int:
    """A seed of one part of the draws."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
