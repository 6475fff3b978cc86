"""Planted truth in blocks: features of a parent and its child that share a trigger, in scenarios hard to judge.

A block has a trigger, a set of tokens, and features that each fire on a share of those tokens. A feature has a strength
in the parent and in the child, 0 where the model lacks it. Activations are the sum of directions times strengths, plus
a bias and noise, as in `planted_lineage`; they are made chunk by chunk from seeds.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from benchmarks.planted_lineage import LARGEST_BIAS, factors, perpendicular_pairs, stream, write_shard
from jaxtyping import Float

ACTIVATION_NOISE, ACTS_NOISE = 0.15, 0.05
"""Standard deviation of the log of each model's factor on a strength, and of the noise on each dimension."""
OUTLIER = 1000.0
"""Strength of features on an outlying token; 2 elsewhere on average."""
DICTIONARY, DENSITIES, FIRINGS, NOISE, KEPT = range(100, 105)
"""Streams of random numbers, as spawn keys of a seed; others than `planted_lineage`'s."""
PERSISTS, LOST, NEW, TURNED, PARTIAL = "persists", "lost", "new", "turned", "partial"
"""The truth about a feature. Neither kept nor lost are `turned`, the same tokens in another direction, and `partial`, a
part of the tokens."""


class Feature(NamedTuple):
    """A planted feature."""

    role: str
    """Name in tables."""
    parent: float = 1.0
    child: float = 1.0
    """Factors on its strength; 0 where the model lacks the feature."""
    within: float = 1.0
    """Share of its block's tokens on which it fires."""
    degrees: float = 0.0
    """Angle between its directions in parent and child."""
    other_tokens: bool = False
    """True if it fires on other tokens in the child."""
    outlying: bool = False
    """True if it fires with a strength of `OUTLIER` on a token of the probe, of the same number as its block."""
    kept_in_parent: float = 1.0
    kept_in_child: float = 1.0
    """Shares of its tokens on which it fires in each model; at least one of them is 1."""

    def truth(self, side: int) -> str:
        """The truth about it on a side where it fires."""
        if self.other_tokens or not (self.parent and self.child):
            return (LOST, NEW)[side]
        if min(self.kept_in_parent, self.kept_in_child) < 1:
            return PARTIAL
        return TURNED if self.degrees else PERSISTS


class Blocks(NamedTuple):
    """Some blocks of equal features."""

    n: int
    features: tuple[Feature, ...]
    densities: tuple[float, float] = (0.005, 0.05)
    """Range of the shares of tokens in a block's trigger; log-uniform."""
    zipf: bool = False
    """True if the density of those shares is p^-2 instead, as by Zipf's law."""
    tail: float | None = None
    """Index of the Pareto distribution of strengths; None for 1 + an exponential one."""


SCARCE, HALVES = "hierarchy, scarce", "hierarchy, halves"
"""The scenarios whose SAEs have no more latents per token than features fire on average."""


def single(feature: Feature, n: int, densities: tuple[float, float] = (0.005, 0.05)) -> Blocks:
    """Blocks of one feature."""
    return Blocks(n, (feature,), densities)


def _control(n_persist: int, n_others: int) -> tuple[Blocks, ...]:
    vanishes, appears = Feature("vanishes", child=0.0), Feature("appears", parent=0.0)
    return single(Feature("persists"), n_persist), single(vanishes, n_others), single(appears, n_others)


CONTROL, FEW = _control(36, 8), _control(12, 4)
RARE, DENSE = (0.0005, 0.002), (0.2, 0.4)
OFTEN, SELDOM = (0.15, 0.15), (0.005, 0.005)


def _groups(within: float) -> tuple[Blocks, ...]:
    stays = Feature("in a group, persists", within=within)
    goes = Feature("in a group, vanishes", child=0.0, within=within)
    comes = Feature("in a group, appears", parent=0.0, within=within)
    return (*FEW, Blocks(8, (stays, stays, goes)), Blocks(8, (stays, stays, comes)))


def _hierarchy() -> tuple[Blocks, ...]:
    general, stays = Feature("general"), Feature("specific, persists", within=0.35)
    goes = Feature("specific, vanishes", child=0.0, within=0.35)
    comes = Feature("specific, appears", parent=0.0, within=0.35)
    densities = (0.01, 0.05)
    return (*FEW, Blocks(8, (general, stays, goes), densities), Blocks(8, (general, stays, comes), densities))


def _pairs(within: float) -> tuple[Blocks, ...]:
    specific = (
        Feature("specific, persists", within=within),
        Feature("specific, vanishes", child=0.0, within=within),
        Feature("specific, appears", parent=0.0, within=within),
    )
    return (*FEW, *(Blocks(8, (Feature("general"), feature), (0.01, 0.05)) for feature in specific))


SCENARIOS: Mapping[str, tuple[Blocks, ...]] = MappingProxyType(
    {
        "control": CONTROL,
        "groups .8": _groups(0.8),
        "groups .95": _groups(0.95),
        "hierarchy": _hierarchy(),
        SCARCE: _pairs(0.35),
        HALVES: _pairs(0.5),
        "zipf": tuple(blocks._replace(densities=(0.002, 0.1), zipf=True) for blocks in CONTROL),
        "heavy tails": tuple(blocks._replace(tail=2.5) for blocks in CONTROL),
        "dense": (
            *CONTROL,
            single(Feature("dense, persists"), 4, DENSE),
            single(Feature("dense, vanishes", child=0.0), 3, DENSE),
            single(Feature("dense, appears", parent=0.0), 3, DENSE),
        ),
        "rescaled": (
            *CONTROL,
            *(single(Feature(f"rescaled x {factor:g}", child=factor), 4) for factor in (3.0, 2.0, 0.5, 0.25, 0.1)),
        ),
        "other trigger": (*CONTROL, single(Feature("other trigger", other_tokens=True), 8)),
        "other direction": (*CONTROL, single(Feature("other direction", degrees=90.0), 8)),
        "partial": (
            *CONTROL,
            *(single(Feature(f"partial, child on {kept:g}", kept_in_child=kept), 4) for kept in (0.75, 0.5, 0.3)),
            *(single(Feature(f"partial, parent on {kept:g}", kept_in_parent=kept), 4) for kept in (0.75, 0.5, 0.3)),
        ),
        "rare": (
            *CONTROL,
            single(Feature("rare, persists"), 8, RARE),
            single(Feature("rare, vanishes", child=0.0), 8, RARE),
            single(Feature("rare, appears", parent=0.0), 8, RARE),
        ),
        "narrow": (
            single(Feature("persists"), 16, OFTEN),
            single(Feature("vanishes", child=0.0), 4, SELDOM),
            single(Feature("appears", parent=0.0), 4, SELDOM),
        ),
        "outlying token": (
            *CONTROL,
            single(Feature("vanishes, outlying token", child=0.0, outlying=True), 8),
            single(Feature("appears, outlying token", parent=0.0, outlying=True), 8),
        ),
    }
)


class PlantedBlocks(NamedTuple):
    """A planted parent (side 0) and child (side 1)."""

    seed: int
    densities: Float[np.ndarray, " block"]
    tails: Float[np.ndarray, " block"]
    """Pareto index of the strengths; NaN for exponential ones."""
    features: pd.DataFrame
    """One row per feature: `block`, `number` of the block among its equals, and the fields of `Feature`."""
    dictionaries: tuple[Float[np.ndarray, "feature d_in"], Float[np.ndarray, "feature d_in"]]
    """Per side, the unit directions of all features."""
    bias: Float[np.ndarray, " d_in"]

    def rows(self) -> list[Feature]:
        """The features in order."""
        return [Feature(*row) for row in self.features[list(Feature._fields)].itertuples(index=False)]


def plant_blocks(scenario: tuple[Blocks, ...], seed: int, d_in: int, share: float = 1.0) -> PlantedBlocks:
    """Draw a lineage.

    Args:
        scenario: the blocks.
        seed: of all random numbers.
        d_in: width of the activations.
        share: share of the number of blocks of each kind, one at least.
    """
    random = stream(seed, DENSITIES)
    rows: list[dict] = []
    densities: list[float] = []
    tails: list[float] = []
    for blocks in scenario:
        for number in range(max(1, round(blocks.n * share))):
            rows += [{"block": len(densities), "number": number, **item._asdict()} for item in blocks.features]
            densities.append(_density(random, blocks))
            tails.append(np.nan if blocks.tail is None else blocks.tail)
    features = pd.DataFrame(rows)
    random = stream(seed, DICTIONARY)
    first, second = perpendicular_pairs(random, len(features), d_in)
    angle = np.radians(features["degrees"].to_numpy())[:, None]
    return PlantedBlocks(
        seed=seed,
        densities=np.array(densities),
        tails=np.array(tails),
        features=features,
        dictionaries=(first, np.cos(angle) * first + np.sin(angle) * second),
        bias=random.uniform(-LARGEST_BIAS, LARGEST_BIAS, d_in),
    )


def true_strengths(
    lineage: PlantedBlocks, chunk: int, chunk_tokens: int
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Draw the strengths of all features on the tokens of a chunk, in parent and child [token, feature].

    Each side multiplies a strength by another log-normal factor of mean 1, so that r of a persisting feature is near
    exp(-ACTIVATION_NOISE^2).
    """
    random = stream(lineage.seed, FIRINGS, chunk)
    features, shape = lineage.features, (chunk_tokens, len(lineage.densities))
    block = features["block"].to_numpy()
    happens = random.random(shape, dtype=np.float32) < lineage.densities
    elsewhere = random.random(shape, dtype=np.float32) < lineage.densities
    within = random.random((chunk_tokens, len(features)), dtype=np.float32) < features["within"].to_numpy()
    drawn = _strengths(random, lineage.tails[block], chunk_tokens)
    here = happens[:, block] & within
    there = np.where(features["other_tokens"], elsewhere[:, block] & within, here)
    kept = stream(lineage.seed, KEPT, chunk).random((chunk_tokens, len(features)), dtype=np.float32)
    sides = []
    for name, fires in (("parent", here), ("child", there)):
        fires = fires & (kept < features[f"kept_in_{name}"].to_numpy())
        strengths = np.where(fires, drawn, 0.0) * factors(random, drawn.size, ACTIVATION_NOISE).reshape(drawn.shape)
        if chunk == 0:
            outlying = np.flatnonzero(features["outlying"])
            strengths[features["number"].to_numpy()[outlying], outlying] = OUTLIER
        sides.append(scipy.sparse.csr_array(strengths * features[name].to_numpy()))
    return sides[0], sides[1]


def block_acts(
    lineage: PlantedBlocks, side: int, chunk: int, true: scipy.sparse.csr_array
) -> Float[np.ndarray, "token d_in"]:
    """Activations of a side on the tokens of a chunk, from its true strengths, in float32."""
    acts = true @ lineage.dictionaries[side] + lineage.bias
    noise = stream(lineage.seed, NOISE, side, chunk).normal(size=acts.shape)
    return (acts + ACTS_NOISE * noise).astype(np.float32)


def write_blocks(lineage: PlantedBlocks, chunks: range, chunk_tokens: int, folder: Path) -> tuple[list, list]:
    """Write the activations of both sides, a shard for each chunk; returns the paths of each side."""
    paths: tuple[list[Path], list[Path]] = [], []
    for chunk in chunks:
        for side, true in enumerate(true_strengths(lineage, chunk, chunk_tokens)):
            path = folder / str(side) / f"shard-{chunk:05d}.safetensors"
            write_shard(block_acts(lineage, side, chunk, true), path, chunk * chunk_tokens, f"seed {lineage.seed}")
            paths[side].append(path)
    return paths


def _density(random: np.random.Generator, blocks: Blocks) -> float:
    """Draw the share of tokens of a block's trigger; p^-2 is that of lowest / (1 - u (1 - lowest / highest))."""
    lowest, highest = blocks.densities
    uniform = random.random()
    if blocks.zipf:
        return lowest / (1 - uniform * (1 - lowest / highest))
    return lowest * (highest / lowest) ** uniform


def _strengths(
    random: np.random.Generator, tails: Float[np.ndarray, " feature"], n: int
) -> Float[np.ndarray, "token feature"]:
    """Draw strengths: 1 + an exponential number of mean 1, or Pareto's, scaled to the same mean of 2."""
    exponential = random.standard_exponential((n, len(tails)))
    heavy = np.isfinite(tails)
    index = np.where(heavy, tails, 2.0)
    pareto = (
        np.exp(exponential / index) * 2 * (index - 1) / index
    )  # exp(E / a) is Pareto with index a, mean a / (a - 1)
    return np.where(heavy, pareto, 1 + exponential)
