"""Judge all latents of SAEs in lineages of planted features that make verdicts fail.

Each scenario plants features in a parent and its child that read the same tokens. SAEs of both are trained on their
activations and compared by several instruments. Every testable latent counts: one that follows no planted feature and
is called lost or new is a false call, as on real activations.

    control            features that persist, vanish or appear, each firing on tokens of its own; part of every scenario
    groups .8, .95     of three features with one trigger, one vanishes or appears; each fires on that share of it
    hierarchy          specific features fire only where their general one does; some specific ones vanish or appear
    hierarchy, scarce  one specific feature of each general one, and SAEs with fewer latents per token, so that one
                       latent stands for both and the general one's is silent there (absorption)
    hierarchy, halves  the same, with specific features that fire on half of the general one's tokens
    zipf               densities between 0.2 % and 10 % of tokens, with a density of p^-2
    heavy tails        strengths with a Pareto tail of index 2.5
    dense              features that fire on 20 to 40 % of tokens
    rescaled           strengths in the child of 3, 2, 1/2, 1/4 and 1/10 of the parent's
    other trigger      the child's feature has the parent's direction, and fires on other tokens: one is lost, one new
    other direction    the child's feature fires on the same tokens, in a direction turned by 90 degrees
    partial            in one of the two models a feature fires on 3/4, 1/2 or 3/10 of its tokens in the other
    rare               features that fire on 0.05 to 0.2 % of tokens
    narrow             few features, and those of one model alone fire on 0.5 % of tokens; persisting ones on 15 %
    outlying token     unrelated features of parent and child fire on one token together, very strongly

An SAE keeps as many latents per token as features fire on average and one standard deviation more.

A latent follows the planted feature with which its r is largest, if r is at least `MIN_R`. It has changed if that
feature is in one of the two models alone, and is kept if the feature persists, or if it follows nothing: one that is
then called lost or new is a false call. Latents of features that are turned or partial are neither.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from benchmarks.lab import bootstrapped
from benchmarks.organisms import CPU, config_of
from benchmarks.organisms import SMALL as SMALL_ORGANISMS
from benchmarks.planted_blocks import (
    HALVES,
    LOST,
    NEW,
    SCARCE,
    SCENARIOS,
    block_acts,
    plant_blocks,
    true_strengths,
    write_blocks,
)
from benchmarks.planted_blocks import PERSISTS as TRULY_PERSISTS
from benchmarks.planted_lineage import require_unrelated
from benchmarks.planted_truth import LEARNING_RATE, SAE_SETTINGS, latents_of
from benchmarks.scores import Truth, lists_of, testable
from jaxtyping import Float, Int

from saelineage.correlations.pearson import correlate
from saelineage.features.shards import FeatureShard
from saelineage.lineage.edges import judge
from saelineage.lineage.evidence import Compared
from saelineage.lineage.matching import INHERITED, MERGED, PERSISTS, SIDES, SPLIT
from saelineage.lineage.readouts import FoldSums, folds, ridge_r2
from saelineage.lineage.verdicts import DRIFTED, Rules
from saelineage.plan.comparisons import names_in_pair
from saelineage.saes.batches import Dump
from saelineage.saes.sae import WEIGHTS_FILE, Sae, save_sae
from saelineage.saes.trainer import initial_directions
from saelineage.saes.training import train_saes

DEFAULTS = config_of(SMALL_ORGANISMS)
"""A config in which `correlations` and the rules of `lineage` are the schema's defaults."""
RULES = Rules.of(DEFAULTS["lineage"])
DOCUMENT_TOKENS = 100
MIN_R = 0.7
"""Smallest r of a latent with the planted feature that it follows."""
PARENT_SEEDS, CHILD_SEEDS = (0, 1, 2), (10, 11, 12)
"""Seeds of SAEs, three of each model. The first of each is compared with the other model."""
ANCHORED_RATE = 0.5
"""Learning rate of anchored SAEs, as a share of the parent's SAE's; they are trained on as many tokens."""
CHANGED = (LOST, NEW)
"""Per side, the truth about features that the other model lacks."""


class Size(NamedTuple):
    """How much is trained and compared."""

    d_in: int = 64
    train_tokens: int = 100_000
    passes: int = 2
    probe_tokens: int = 50_000
    chunk_tokens: int = 10_000
    share: float = 1.0
    """Share of the blocks of each kind."""


FULL, SMALL = Size(), Size(32, 60_000, 2, 30_000, 10_000, 0.5)


class Read(NamedTuple):
    """An SAE and its latents on the probe of one model."""

    name: str
    """`{side}.{sae}`"""
    sae: Sae
    latents: scipy.sparse.csr_array


class Lineage:
    """A planted lineage with SAEs of both models, and the planted strengths and latents on the probe."""

    def __init__(self, scenario: str, seed: int, size: Size, folder: Path):
        """Plant, write the activations and train the SAEs."""
        self.planted, self.size = plant_blocks(SCENARIOS[scenario], seed, size.d_in, size.share), size
        self.folder = folder
        n_probe = size.probe_tokens // size.chunk_tokens
        train = range(n_probe, n_probe + size.train_tokens // size.chunk_tokens)
        self.dumps = [Dump(paths) for paths in write_blocks(self.planted, train, size.chunk_tokens, folder)]
        chunks = [true_strengths(self.planted, chunk, size.chunk_tokens) for chunk in range(n_probe)]
        self.truth = [scipy.sparse.vstack([chunk[side] for chunk in chunks], format="csr") for side in range(2)]
        self.acts = [
            np.concatenate([block_acts(self.planted, side, *numbered) for numbered in enumerate(of_side)])
            for side, of_side in enumerate(zip(*chunks, strict=True))
        ]
        l0 = self.truth[0].nnz / self.truth[0].shape[0]
        spread = math.sqrt(l0)  # the standard deviation of a Poisson number
        self.k = max(1, round(l0)) if scenario in (SCARCE, HALVES) else math.ceil(l0 + spread)
        self.reads: dict[str, Read] = {}
        self._compared: dict[str, Compared] = {}
        self.own = [
            [self.read(side, f"seed{seed}", self.train(side, seed)) for seed in seeds]
            for side, seeds in enumerate((PARENT_SEEDS, CHILD_SEEDS))
        ]

    def train(self, side: int, seed: int, start: Sae | None = None) -> Sae:
        """Train an SAE of a model; a start makes it anchored."""
        changes = {
            "k": self.k,
            "seed": seed,
            "shuffle_seed": seed,
            "n_tokens": self.size.passes * self.size.train_tokens,
            "learning_rate": LEARNING_RATE * (ANCHORED_RATE if start else 1.0),
        }
        return train_saes(self.dumps[side], [SAE_SETTINGS | changes], CPU, starts=[start])[0].sae

    def read(self, side: int, sae_name: str, sae: Sae) -> Read:
        """Encode a model's probe, and write the SAE."""
        read = Read(f"{SIDES[side]}.{sae_name}", sae, latents_of(sae, torch.from_numpy(self.acts[side])))
        save_sae(sae, self.folder / read.name, {})
        self.reads[read.name] = read
        return read

    def require_unrelated(self) -> float:
        """Check that SAEs do not start from planted directions; returns the largest |cosine|."""
        d_sae, seeds = self.own[0][0].sae.d_sae, PARENT_SEEDS + CHILD_SEEDS
        starts = torch.cat([initial_directions(self.size.d_in, d_sae, 1.0, seed) for seed in seeds]).double().numpy()
        return require_unrelated(starts, np.concatenate(self.planted.dictionaries))

    def child_reads(self) -> Iterator[tuple[str, Read]]:
        """Yield for each instrument the SAE to compare with the parent's first one, read on the child."""
        parent = self.own[0][0].sae
        yield "anchored", self.read(1, "anchored", self.train(1, PARENT_SEEDS[0] + 20, parent))
        yield "independent", self.own[1][0]
        yield "frozen", self.read(1, "frozen", parent)

    def compared(self, pair: str) -> Compared:
        """The correlation of two SAEs by the workflow's defaults; of an edge's pair also over documents."""
        if pair not in self._compared:
            a, b = (self.reads[name] for name in names_in_pair(pair))
            settings = DEFAULTS["correlations"]
            kept = {name: settings[name] for name in ("min_firings", "top_matches", "keep_above", "n_bins")}
            correlation = correlate(a.latents, b.latents, **kept, progress=False)._replace(names=(a.name, b.name))
            n_replicates = DEFAULTS["lineage"]["n_replicates"] if self.is_edge(a, b) else 0
            shards = FeatureShard.of_array(a.latents, a.name), FeatureShard.of_array(b.latents, b.name)
            documents = {shards[0].corpus: np.arange(len(self.acts[0])) // DOCUMENT_TOKENS}
            measured = bootstrapped(correlation, [shards], documents, n_replicates)
            self._compared[pair] = Compared(correlation, *measured, None)
        return self._compared[pair]

    def is_edge(self, a: Read, b: Read) -> bool:
        """True of two SAEs that an instrument compares: the parent's first one, and not just another seed."""
        return a is self.own[0][0] and not any(b is seed for seed in self.own[0][1:] + self.own[1][1:])

    def followed(self, side: int, latents: scipy.sparse.csr_array) -> Int[np.ndarray, " latent"]:
        """The planted feature that each latent follows, or -1."""
        correlation = correlate(self.truth[side], latents, min_firings=1, top_matches=1, keep_above=1.0, progress=False)
        best = np.nan_to_num(correlation.pearson.best[1][:, 0], nan=-1.0)
        return np.where(best >= MIN_R, correlation.pearson.partners[1][:, 0], -1)


def pair_of(a: Read, b: Read) -> str:
    """The name of a pair of SAEs."""
    return f"{a.name}__{b.name}"


def judged(lineage: Lineage, child: Read) -> pd.DataFrame:
    """Judge the latents of the parent's first SAE and of an SAE of the child, as the workflow does."""
    reads = (lineage.own[0][0], child)
    recurs, absence, readouts = {}, {}, []
    for side, name in enumerate(SIDES):
        own = reads[side]
        recurs[name] = [pair_of(own, other) for other in lineage.own[side] if other is not own]
        absence[name] = [pair_of(*((own, other) if side == 0 else (other, own))) for other in lineage.own[1 - side]]
        r2 = {
            "r2_other": readout(lineage.acts[1 - side], own.latents),
            "r2_own": readout(lineage.acts[side], own.latents),
        }
        readouts.append(pd.DataFrame(r2))
    comparison = {"pair": pair_of(*reads), "recurs": recurs}
    weights = [str(lineage.folder / read.name / WEIGHTS_FILE) for read in reads]
    return judge(comparison, absence, lineage.compared, pd.concat(readouts), weights, RULES)


def readout(acts: Float[np.ndarray, "token d_in"], latents: scipy.sparse.csr_array) -> Float[np.ndarray, " latent"]:
    """R^2 of a linear readout of each latent from activations, on held-out tokens (`readouts.ridge_r2`)."""
    fold_of = folds(np.arange(len(acts)), 1)
    sums = [FoldSums.zeros(acts.shape[1], latents.shape[1]) for _ in range(3)]
    for fold, of_fold in enumerate(sums):
        of_fold.add(torch.from_numpy(acts[fold_of == fold]), latents[fold_of == fold])
    return ridge_r2(sums[0], sums[1], sums[2])[0]


def truth_of(lineage: Lineage, side: int, followed: Int[np.ndarray, " latent"]) -> Truth:
    """What is known of the latents of a side, by the planted feature that each follows."""
    names = np.array([*(feature.truth(side) for feature in lineage.planted.rows()), ""])  # -1 is the last
    fires = lineage.truth[side].sum(axis=0) > 0
    changed = names[followed] == CHANGED[side]
    n_planted = int(((names[:-1] == CHANGED[side]) & fires).sum())
    kept = np.isin(names[followed], [TRULY_PERSISTS, ""])
    return Truth(changed, kept, np.where(changed, followed, -1), n_planted)


def true_share(lineage: Lineage, side: int) -> float:
    """The share of a model's planted features that the other model has as well, in the same direction."""
    truths = [
        feature.truth(side)
        for feature, total in zip(lineage.planted.rows(), lineage.truth[side].sum(axis=0), strict=True)
        if total > 0
    ]
    return truths.count(TRULY_PERSISTS) / len(truths)


def by_role(lineage: Lineage, side: int, rows: pd.DataFrame, followed: Int[np.ndarray, " latent"]) -> list[dict]:
    """Count what becomes of the planted features of a side, by their role.

    Returns:
        Per role `n`, and of these the features that a testable latent follows (`represented`), an identified one
        (`identifiable`), and one that is in each list, is found (`found`), is found by a split or merge (`in_parts`) or
        has drifted (`drifted`).
    """
    follows = testable(rows) & (followed >= 0)
    marks = {
        "represented": follows,
        "identifiable": rows["identified"].to_numpy(),
        **{name: among & listed for name, (among, listed) in lists_of(rows).items()},
        "found": rows["verdict"].isin([PERSISTS, INHERITED]).to_numpy(),
        "in_parts": rows["kind"].isin([SPLIT, MERGED]).to_numpy(),
        "drifted": (rows["verdict"] == DRIFTED).to_numpy(),
    }
    features = lineage.planted.features.assign(fires=lineage.truth[side].sum(axis=0) > 0)
    counted = []
    for role, of_role in features[features["fires"]].groupby("role", sort=False):
        numbers = of_role.index.to_numpy()
        counts = {name: len(np.intersect1d(followed[follows & mark], numbers)) for name, mark in marks.items()}
        counted.append({"role": role, "n": len(numbers)} | counts)
    return counted
