"""Planted truth: activations of a known dictionary through a known lineage, to test instruments and verdicts.

A planted parent and its child read the same tokens. Each planted feature has a direction, a set of tokens on which it
fires, and a fate from parent to child (`FATES`). Activations are the sum of directions times firing strengths, plus a
bias and noise. They are made chunk by chunk from seeds, so that memory is bounded and any chunk can be made again.

All random numbers here come from numpy's generators, with one stream per kind. SAEs start from torch's generators: an
SAE that started from the planted directions would find them without learning (`require_unrelated`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
from jaxtyping import Float, Int
from safetensors.numpy import save_file

from saelineage.correlations.pearson import correlate
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, encode_header, sha256_json
from saelineage.lineage.matching import (
    DISAPPEARS,
    EMERGES,
    MERGED,
    ONE_TO_ONE,
    SIDES,
    SPLIT,
    STUDY_VERDICTS,
    UNTESTABLE,
)

FATES = ("persists", "rotated", "split", "merged", "vanishes", "appears", "rare", "dead", "decoy", "straddled")
"""Fates of planted features from parent to child.

- `persists`: one direction, the same tokens.
- `rotated`: another direction nearby, the same tokens.
- `split`: two features of the child divide its tokens between them.
- `merged`: the reverse.
- `vanishes`, `appears`: in one of the two models only.
- `rare`: the child's feature fires on too few tokens to be compared.
- `dead`: fires in neither model.
- `decoy`: both models have a feature of equal density, but share only part of its tokens, so that r is between 0.35 and
  0.6.
- `straddled`: the child has two such decoys. Together they fire on all tokens of the parent's feature, but also on each
  other's and on as many others: it looks like a split but is not.
"""
EXPECTED_KINDS = (
    {
        "persists": ONE_TO_ONE,
        "rotated": ONE_TO_ONE,
        "split": SPLIT,
        "merged": MERGED,
        "vanishes": DISAPPEARS,
        "rare": DISAPPEARS,
        "decoy": DISAPPEARS,
        "straddled": DISAPPEARS,
        "dead": UNTESTABLE,
    },
    {
        "persists": ONE_TO_ONE,
        "rotated": ONE_TO_ONE,
        "split": SPLIT,
        "merged": MERGED,
        "appears": EMERGES,
        "decoy": EMERGES,
        "straddled": EMERGES,
        "rare": UNTESTABLE,
        "dead": UNTESTABLE,
    },
)
"""Per side (0 the parent, 1 the child), the right verdict or kind of each fate."""
MISSED = ""
"""In place of a verdict, where no latent represents a planted feature."""
SPLIT_SHARES = (0.5, 0.7)
"""Range of the larger part's share of a split or merged feature's tokens."""
DECOY_SHARES = (0.35, 0.6)
"""Range of the share of a decoy's tokens on which its counterpart fires too."""
STRADDLED_SHARES = (0.5, 0.6)
"""Range of the share of a straddled feature's tokens on which either decoy fires too."""
LARGEST_BIAS = 1.0
"""Largest absolute value of the bias."""
Represented = tuple[Int[np.ndarray, " feature_a"], Int[np.ndarray, " feature_b"]]
"""Per side, the latent that represents each planted feature, or -1 (`representatives`)."""
DICTIONARY, DENSITIES, FIRINGS, NOISE, PERTURBATION = range(5)
"""Streams of random numbers, as spawn keys of a seed."""


class Planting(NamedTuple):
    """Settings of a planted lineage."""

    seed: int = 0
    n_per_fate: int = 12
    d_in: int = 64
    densities: tuple[float, float] = (0.005, 0.05)
    """Range of log-uniform shares of tokens; a split or merged feature's is that of its parts together."""
    activation_noise: float = 0.15
    """Standard deviation of the log of each model's factor on a feature's firing strength on a token."""
    acts_noise: float = 0.05
    """Standard deviation of the noise on each dimension of the activations; a firing feature has a norm of 2."""
    rotation_degrees: float = 25.0
    """Angle between the directions of a rotated feature in parent and child."""
    split_degrees: float = 35.0
    """Angle between a split or merged feature's direction and each of its parts', to either side."""
    rare_firings: float = 5.0
    """Mean number of probe tokens on which a rare feature fires in the child."""
    probe_tokens: int = 200_000
    """Tokens on which features are compared."""
    chunk_tokens: int = 20_000
    """Tokens of a chunk."""


class PlantedLineage(NamedTuple):
    """A planted parent (side 0) and child (side 1)."""

    planting: Planting
    densities: Float[np.ndarray, " item"]
    """Share of tokens with an event of each item; an item is one or two features of each side."""
    features: tuple[pd.DataFrame, pd.DataFrame]
    """Per side, one row per planted feature: its `fate`, its `item`, `low` and `high`, and `degrees`.

    Each event of an item draws a number from [0, 1), and a feature fires where the number is in [low, high). The
    feature's direction is the item's, turned by `degrees`.
    """
    dictionaries: tuple[Float[np.ndarray, "feature_a d_in"], Float[np.ndarray, "feature_b d_in"]]
    """Per side, the unit directions of its features."""
    bias: Float[np.ndarray, " d_in"]


def plant(planting: Planting) -> PlantedLineage:
    """Draw a lineage, `n_per_fate` items of each fate.

    Raises:
        InputError: if densities are not 0 < lowest <= highest <= 0.5.
    """
    lowest, highest = planting.densities
    if not 0 < lowest <= highest <= 0.5:
        raise InputError(f"densities must be 0 < lowest <= highest <= 0.5, got {planting.densities}; choose others")
    fates = [str(fate) for fate in np.repeat(FATES, planting.n_per_fate)]
    random = stream(planting.seed, DENSITIES)
    densities = np.exp(random.uniform(np.log(lowest), np.log(highest), len(fates)))
    shares = _shares(random, fates, densities, planting)
    densities /= [_own_share(fate, share) for fate, share in zip(fates, shares.tolist(), strict=True)]
    random = stream(planting.seed, DICTIONARY)
    axes = perpendicular_pairs(random, len(fates), planting.d_in)
    parent, child = (_features(fates, shares, side, planting) for side in range(2))
    return PlantedLineage(
        planting=planting,
        densities=densities,
        features=(parent, child),
        dictionaries=(_turned(axes, parent), _turned(axes, child)),
        bias=random.uniform(-LARGEST_BIAS, LARGEST_BIAS, planting.d_in),
    )


def true_activations(lineage: PlantedLineage, chunk: int) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Draw the firing strengths of planted features on the tokens of a chunk, in parent and child [token, feature].

    An event's strength is 1 + a number drawn from the exponential distribution of mean 1. Each side multiplies it by
    another log-normal factor of mean 1, so that r of a persisting feature is near exp(-activation_noise^2).
    """
    planting = lineage.planting
    random = stream(planting.seed, FIRINGS, chunk)
    happens = random.random((planting.chunk_tokens, len(lineage.densities)), dtype=np.float32) < lineage.densities
    item, token = happens.T.nonzero()
    place = random.random(len(item))
    strength = 1 + random.exponential(size=len(item))
    starts = np.searchsorted(item, np.arange(len(lineage.densities) + 1))
    sides = []
    for features in lineage.features:
        strength_there = strength * factors(random, len(item), planting.activation_noise)
        events, feature = _events_of(features, starts, place)
        shape = (planting.chunk_tokens, len(features))
        sides.append(scipy.sparse.csr_array((strength_there[events], (token[events], feature)), shape=shape))
    return sides[0], sides[1]


def truth(lineage: PlantedLineage, side: int, chunks: range) -> scipy.sparse.csr_array:
    """True activations of one side over several chunks [token, feature]."""
    return scipy.sparse.vstack([true_activations(lineage, chunk)[side] for chunk in chunks], format="csr")


def planted_acts(lineage: PlantedLineage, side: int, chunk: int) -> Float[np.ndarray, "token d_in"]:
    """Make one side's activations on the tokens of a chunk: true activations times directions, plus bias and noise.

    They are float32. Noise is Gaussian and independent between sides.
    """
    planting = lineage.planting
    acts = true_activations(lineage, chunk)[side] @ lineage.dictionaries[side] + lineage.bias
    noise = stream(planting.seed, NOISE, side, chunk).normal(size=acts.shape)
    return (acts + planting.acts_noise * noise).astype(np.float32)


def write_dump(lineage: PlantedLineage, side: int, chunks: range, folder: Path | str) -> list[Path]:
    """Write activations of one side as shards that `activations.ActivationShard` reads, one for each chunk.

    Returns:
        The paths, `shard-{chunk}.safetensors`, in float16 as dumps are by default.
    """
    planting = lineage.planting
    paths = [Path(folder, f"shard-{chunk:05d}.safetensors") for chunk in chunks]
    for chunk, path in zip(chunks, paths, strict=True):
        acts = planted_acts(lineage, side, chunk)
        write_shard(acts, path, chunk * planting.chunk_tokens, sha256_json(planting._asdict()))
    return paths


def write_shard(acts: Float[np.ndarray, "token d_in"], path: Path, first_row: int, ids_sha256: str) -> None:
    """Write activations as a shard that `activations.ActivationShard` reads, in float16 as dumps are by default.

    Args:
        acts: the activations of tokens that follow one another, one in a row.
        path: the file to write.
        first_row: number of the first token.
        ids_sha256: a name of all tokens of the dump.
    """
    header = {
        "hookpoint": "planted.output",
        "ids_sha256": ids_sha256,
        "first_row": first_row,
        "stop_row": first_row + len(acts),
        "n_ctx": 1,
    }
    tensors = {
        "acts": acts.astype(np.float16),
        "norms": np.linalg.norm(acts, axis=1),
        "positions": first_row + np.arange(len(acts)),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=encode_header(header))


def perturbed(
    true: scipy.sparse.csr_array, seed: int, *, noise: float, missed: float, false: float
) -> scipy.sparse.csr_array:
    """Perturb true activations like an SAE that has one latent for each feature.

    Args:
        true: [token, feature].
        seed: of all random numbers.
        noise: standard deviation of the log of a factor on each activation, whose mean is 1.
        missed: share of firings that are left out.
        false: number of false firings per true one, on random tokens and of the same strengths.

    Returns:
        [token, feature].
    """
    random = stream(seed, PERTURBATION)
    rows = true.tocoo()
    kept = random.random(rows.nnz) >= missed
    drawn = np.flatnonzero(random.random(rows.nnz) < false)
    token = np.concatenate([rows.row[kept], random.integers(0, true.shape[0], len(drawn))])
    feature = np.concatenate([rows.col[kept], rows.col[drawn]])
    values = np.concatenate([rows.data[kept], rows.data[drawn]])
    values = values * factors(random, len(values), noise)
    return scipy.sparse.coo_array((values, (token, feature)), shape=true.shape).tocsr()


def expected_r(planting: Planting, noise: float, missed: float, false: float) -> float:
    """Pearson r of a persisting feature where parent and child are `perturbed` alike, as density goes to 0.

    A side's activation is strength x factor where it fires and is not missed. Factors are log-normal, of mean 1 and
    mean square exp(sigma^2). With S = E(strength^2) and p the density, the covariance is p S (1 - missed)^2, and the
    variance is p S exp(activation_noise^2 + noise^2) (1 - missed + false). Neglected terms are of order p.
    """
    spread = np.exp(planting.activation_noise**2 + noise**2)
    return float((1 - missed) ** 2 / (1 - missed + false) / spread)


def representatives(
    true: scipy.sparse.csr_array, latents: scipy.sparse.csr_array, min_r: float = 0.7
) -> Int[np.ndarray, " feature"]:
    """For each planted feature, the latent whose activations have the largest r with it, at least `min_r`, or -1."""
    correlation = correlate(true, latents, min_firings=1, top_matches=1, keep_above=1.0, progress=False)
    best = np.nan_to_num(correlation.pearson.best[0][:, 0], nan=-1.0)
    return np.where(best >= min_r, correlation.pearson.partners[0][:, 0], -1)


def kind_scores(lineage: PlantedLineage, table: pd.DataFrame) -> pd.DataFrame:
    """Score verdicts and kinds where latent i of each side represents planted feature i.

    Args:
        lineage: the truth.
        table: from `matching.edge_table`, of true activations, perturbed or not.

    Returns:
        `scores` of both sides, in column `side`; classes are `EXPECTED_KINDS`.
    """
    by_side = []
    for side, name in enumerate(SIDES):
        rows = table[table["side"] == name]
        kinds = rows["kind"].where(rows["kind"] != "", rows["study_verdict"])
        by_side.append(scores(_expected_kinds(lineage, side), list(kinds)).assign(side=name))
    return pd.concat(by_side, ignore_index=True)


def verdict_scores(lineage: PlantedLineage, table: pd.DataFrame, represented: Represented) -> pd.DataFrame:
    """Score the verdicts on the latents that represent planted features.

    Args:
        lineage: the truth.
        table: from `matching.edge_table`, of the latents of a parent's and a child's SAE.
        represented: per side, from `representatives`. A planted feature that no latent represents counts as missed.

    Returns:
        `scores` of both sides, in column `side`; classes are verdicts, whatever the kind. Planted features that should
        be `untestable` are left out, because no latent can represent a feature that does not fire.
    """
    by_side = []
    for side, name in enumerate(SIDES):
        given = _given_verdicts(table, side, represented[side])
        by_side.append(scores(expected_verdicts(lineage, side), given, leave_out=[UNTESTABLE]).assign(side=name))
    return pd.concat(by_side, ignore_index=True)


def fate_table(lineage: PlantedLineage, table: pd.DataFrame, represented: Represented) -> pd.DataFrame:
    """Count by fate the planted features that are represented and those with the right verdict.

    Args:
        lineage, table, represented: as for `verdict_scores`.

    Returns:
        Columns `side`, `fate`, `n`, `represented` and `right`, the latter two as shares of n; planted features that
        should be `untestable` are left out.
    """
    by_side = []
    for side, name in enumerate(SIDES):
        expected = np.array(expected_verdicts(lineage, side))
        rows = pd.DataFrame({"fate": lineage.features[side]["fate"], "represented": represented[side] >= 0})
        rows = rows.assign(side=name, right=expected == np.array(_given_verdicts(table, side, represented[side])))
        by_side.append(rows[expected != UNTESTABLE])
    by_fate = pd.concat(by_side).groupby(["side", "fate"], sort=True)
    shares = by_fate[["represented", "right"]].mean()
    return shares.assign(n=by_fate.size()).reset_index()[["side", "fate", "n", "represented", "right"]]


def expected_verdicts(lineage: PlantedLineage, side: int) -> list[str]:
    """The right verdict on each planted feature of a side, whatever its kind."""
    matched = STUDY_VERDICTS[side][0]
    return [matched if kind in (ONE_TO_ONE, SPLIT, MERGED) else kind for kind in _expected_kinds(lineage, side)]


def scores(expected: Sequence[str], given: Sequence[str], leave_out: Sequence[str] = ()) -> pd.DataFrame:
    """Compute precision, recall and F1 of each expected class.

    Args:
        expected, given: the class of each planted feature.
        leave_out: expected classes whose features are not counted.

    Returns:
        Columns `class`, `n` (features of the class), `precision` (NaN where no feature is given the class), `recall`
        and `f1` = 2 TP / (2 TP + FP + FN), all in [0, 1].
    """
    pairs = [pair for pair in zip(expected, given, strict=True) if pair[0] not in leave_out]
    rows = []
    for name in sorted({true_class for true_class, _ in pairs}):
        right = pairs.count((name, name))
        n, n_given = (sum(pair[place] == name for pair in pairs) for place in range(2))
        rows.append((name, n, right / n_given if n_given else np.nan, right / n, 2 * right / (n + n_given)))
    return pd.DataFrame(rows, columns=["class", "n", "precision", "recall", "f1"])


def chance_cosine(n_pairs: int, d_in: int, probability: float = 1e-6) -> float:
    """Bound that the largest |cosine| of `n_pairs` pairs of unrelated directions exceeds with at most `probability`.

    The squared cosine of a fixed and a uniform random direction follows a beta distribution with parameters 1/2 and
    (d_in - 1) / 2; the bound is Bonferroni's.
    """
    return float(np.sqrt(scipy.stats.beta.isf(probability / n_pairs, 0.5, (d_in - 1) / 2)))


def require_unrelated(
    directions: Float[np.ndarray, "latent d_in"], dictionary: Float[np.ndarray, "feature d_in"]
) -> float:
    """Check that an SAE's initial directions are unrelated to the planted dictionary.

    Returns:
        The largest |cosine| between them.

    Raises:
        ValueError: if it is larger than chance allows (`chance_cosine`), so that the SAE would start from the answer.
    """
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    largest = float(np.abs(unit @ dictionary.T).max())
    limit = chance_cosine(len(directions) * len(dictionary), dictionary.shape[1])
    if largest > limit:
        raise ValueError(
            f"an SAE must not start from planted directions, but the largest |cosine| is {largest:.3f} where chance "
            f"allows {limit:.3f}; draw one of the two from another stream"
        )
    return largest


def stream(seed: int, *key: int) -> np.random.Generator:
    """Make the generator of one stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def factors(random: np.random.Generator, n: int, sigma: float) -> Float[np.ndarray, " event"]:
    """Draw log-normal factors of mean 1."""
    return np.exp(random.normal(-(sigma**2) / 2, sigma, n))


def _shares(
    random: np.random.Generator, fates: Sequence[str], densities: Float[np.ndarray, " item"], planting: Planting
) -> Float[np.ndarray, " item"]:
    """Draw the share of each item that `_spans` needs for its fate."""
    parts = random.uniform(*SPLIT_SHARES, len(fates))
    decoys = random.uniform(*DECOY_SHARES, len(fates))
    straddled = random.uniform(*STRADDLED_SHARES, len(fates))
    rare = np.minimum(planting.rare_firings / (densities * planting.probe_tokens), 1.0)
    chosen = {"decoy": decoys, "straddled": straddled, "rare": rare}
    return np.select([np.isin(fates, [fate]) for fate in chosen], list(chosen.values()), parts)


def _features(fates: Sequence[str], shares: Float[np.ndarray, " item"], side: int, planting: Planting) -> pd.DataFrame:
    """Tabulate the features of one side, in order of items."""
    rows = [
        (fate, item, *span)
        for item, fate in enumerate(fates)
        for span in _spans(fate, float(shares[item]), planting)[side]
    ]
    return pd.DataFrame(rows, columns=["fate", "item", "low", "high", "degrees"])


def _spans(fate: str, share: float, planting: Planting) -> tuple[list, list]:
    """Per side, the (low, high, degrees) of an item's features.

    Args:
        fate: of the item.
        share: the share of a split or merged feature's events that its first part has; of a rare one's that the child
            has; of a decoy's or straddled feature's that each counterpart has in common with it.
        planting: settings.
    """
    whole, none, length = (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), _own_share(fate, share)
    parts = [(0.0, share, planting.split_degrees), (share, 1.0, -planting.split_degrees)]
    inside = (1 - share) * length  # where a straddled feature begins
    return {
        "persists": ([whole], [whole]),
        "rotated": ([whole], [(0.0, 1.0, planting.rotation_degrees)]),
        "split": ([whole], parts),
        "merged": (parts, [whole]),
        "vanishes": ([whole], []),
        "appears": ([], [whole]),
        "rare": ([whole], [(0.0, share, 0.0)]),
        "dead": ([none], [none]),
        "decoy": ([(0.0, length, 0.0)], [(1 - length, 1.0, 90.0)]),
        "straddled": ([(inside, 1 - inside, 0.0)], [(0.0, length, 60.0), (1 - length, 1.0, 120.0)]),
    }[fate]


def _own_share(fate: str, share: float) -> float:
    """The share s of an item's events on which each of its features fires, such that a share q (`share`) is common.

    A decoy's two features have 2 s - 1 of all events in common, which is q = (2 s - 1) / s of each one's events, so
    s = 1 / (2 - q). A straddled feature has (1 - q) s of the events before it and as many after it, together
    s + 2 (1 - q) s = 1, so s = 1 / (3 - 2 q).
    """
    return {"decoy": 1 / (2 - share), "straddled": 1 / (3 - 2 * share)}.get(fate, 1.0)


def perpendicular_pairs(random: np.random.Generator, n: int, d_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two perpendicular unit vectors for each of n items [item, d_in]."""
    first, second = random.normal(size=(2, n, d_in))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second -= (first * second).sum(axis=1, keepdims=True) * first
    return first, second / np.linalg.norm(second, axis=1, keepdims=True)


def _turned(axes: tuple[np.ndarray, np.ndarray], features: pd.DataFrame) -> Float[np.ndarray, "feature d_in"]:
    """The directions of features: their items' first axis, turned towards the second by `degrees`."""
    angle = np.radians(features["degrees"].to_numpy())[:, None]
    first, second = (axis[features["item"]] for axis in axes)
    return np.cos(angle) * first + np.sin(angle) * second


def _events_of(
    features: pd.DataFrame, starts: Int[np.ndarray, " item_plus_1"], place: Float[np.ndarray, " event"]
) -> tuple[np.ndarray, np.ndarray]:
    """The events on which a side's features fire, feature by feature, and the feature of each event."""
    events = []
    spans = (features[name].to_numpy() for name in ("item", "low", "high"))
    for item, low, high in zip(*spans, strict=True):
        of_item = np.arange(starts[item], starts[item + 1])
        events.append(of_item[(low <= place[of_item]) & (place[of_item] < high)])
    return np.concatenate(events), np.repeat(np.arange(len(features)), [len(of_feature) for of_feature in events])


def _expected_kinds(lineage: PlantedLineage, side: int) -> list[str]:
    """The right kind of each planted feature of a side where it has one, else its right verdict."""
    return [EXPECTED_KINDS[side][fate] for fate in lineage.features[side]["fate"]]


def _given_verdicts(table: pd.DataFrame, side: int, latents: Int[np.ndarray, " feature"]) -> list[str]:
    """The verdict on the latent that represents each planted feature of a side; `MISSED` where there is none (-1)."""
    verdict = table.loc[table["side"] == SIDES[side], "study_verdict"].to_numpy()
    return [str(verdict[latent]) if latent >= 0 else MISSED for latent in latents]
