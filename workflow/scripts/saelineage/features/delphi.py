"""Latents in the cache format of EleutherAI's delphi, so that its explainers and scorers can read them.

A cache is a folder per module. It holds a `config.json` and, for each range of latents, a safetensors file
`{first}_{last}.safetensors` with `locations` [entry, 3] (sequence, place in it, latent - first), `activations` [entry]
and `tokens` [sequence, n_ctx].
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.files.atomic import atomic_path
from saelineage.tokens import TokenRows

N_SPLITS = 5
"""Number of files that the latents are split into, delphi's default. Memory holds one file and one shard at a time."""


class Entries(NamedTuple):
    """Activations of a range of latents, in order of sequence and place."""

    locations: Integer[np.ndarray, "entry 3"]
    """Sequence, place in it, and latent, counted from the first of the range."""
    activations: Float[np.ndarray, " entry"]


def latent_ranges(d_sae: int, n_splits: int) -> list[range]:
    """Split all latents into nearly equal ranges, none of them empty."""
    bounds = np.linspace(0, d_sae, min(n_splits, d_sae) + 1).astype(int).tolist()
    return [range(start, stop) for start, stop in pairwise(bounds)]


def first_sequences(rows: Mapping[str, TokenRows]) -> dict[str, int]:
    """Number of each corpus's first row when the rows of all corpora are numbered consecutively."""
    starts = np.cumsum([0, *(len(corpus_rows.ids) for corpus_rows in rows.values())]).tolist()
    return dict(zip(rows, starts, strict=False))


def entries(shard: FeatureShard, latents: range, first_sequence: int) -> Entries:
    """The activations of a range of latents in one shard, whose corpus begins at sequence `first_sequence`."""
    acts = shard.latents[:, latents.start : latents.stop].tocoo()
    row, place = np.divmod(shard.positions[acts.row], shard.n_ctx)
    return Entries(np.stack([first_sequence + row, place, acts.col], axis=1), acts.data)


def require_rows(shard: FeatureShard, rows: Mapping[str, TokenRows]) -> None:
    """Refuse a shard whose tokens are not those of `rows`.

    Raises:
        InputError: naming the shard.
    """
    if shard.corpus not in rows or rows[shard.corpus].digest != shard.ids_sha256:
        raise InputError(
            f"'{shard.path}' must hold features of this run's probe, but holds those of other tokens ({shard.corpus}, "
            f"{shard.ids_sha256}); delete it and run again"
        )


def save_cache(
    paths_to_shards: Sequence[str], rows: Mapping[str, TokenRows], folder: Path, n_splits: int
) -> list[Path]:
    """Write the files with one SAE's latents, after removing those of an earlier export.

    Args:
        paths_to_shards: the SAE's feature shards, in the order of `rows`.
        rows: the token rows of each corpus.
        folder: the module's folder.
        n_splits: largest number of files.

    Returns:
        The paths of the files.

    Raises:
        InputError: if a shard holds features of other tokens.
    """
    for path in folder.glob("*.safetensors"):
        path.unlink()
    first, d_sae = first_sequences(rows), FeatureShard(paths_to_shards[0]).d_sae
    tokens = np.concatenate([np.asarray(corpus_rows.ids) for corpus_rows in rows.values()])
    paths = []
    for latents in latent_ranges(d_sae, n_splits):
        parts = []
        for shard in _opened(paths_to_shards, rows):
            parts.append(entries(shard, latents, first[shard.corpus]))
        locations = np.concatenate([part.locations for part in parts])
        tensors = {
            "locations": locations.astype(np.uint16 if locations.max(initial=0) < 2**16 else np.uint32),
            "activations": np.concatenate([part.activations for part in parts]).astype(np.float32),
            "tokens": tokens,
        }
        paths.append(folder / f"{latents.start}_{latents.stop - 1}.safetensors")
        with atomic_path(paths[-1]) as temporary:
            save_file(tensors, temporary)
    return paths


def _opened(paths: Sequence[str], rows: Mapping[str, TokenRows]) -> Iterator[FeatureShard]:
    for path in paths:
        shard = FeatureShard(path)
        require_rows(shard, rows)
        yield shard
