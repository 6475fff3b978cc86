"""Delphi's latent cache: latents as EleutherAI's delphi stores them, so that its explainers and scorers run on ours.

A folder per module, with a safetensors file for each range of latents, `{first}_{last}.safetensors`: `locations`
[entry, 3] (sequence, place in it, latent - first), `activations` [entry] and `tokens` [sequence, n_ctx]; and a
`config.json`.
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
"""Files that the latents are dealt to, as many as delphi's own default; one of them and one shard bound the memory."""


class Entries(NamedTuple):
    """Activations of some latents, in order of sequence and place."""

    locations: Integer[np.ndarray, "entry 3"]
    """Sequence, place in it, and latent, counted from the first of these latents."""
    activations: Float[np.ndarray, " entry"]


def latent_ranges(d_sae: int, n_splits: int) -> list[range]:
    """Nearly equal parts of all latents; none is empty."""
    bounds = np.linspace(0, d_sae, min(n_splits, d_sae) + 1).astype(int).tolist()
    return [range(start, stop) for start, stop in pairwise(bounds)]


def first_sequences(rows: Mapping[str, TokenRows]) -> dict[str, int]:
    """The number of each corpus's first row, when all are counted through."""
    starts = np.cumsum([0, *(len(found.ids) for found in rows.values())]).tolist()
    return dict(zip(rows, starts, strict=False))


def entries(shard: FeatureShard, latents: range, first_sequence: int) -> Entries:
    """The activations of some latents in one shard, whose corpus begins at sequence `first_sequence`."""
    found = shard.latents[:, latents.start : latents.stop].tocoo()
    row, place = np.divmod(shard.positions[found.row], shard.n_ctx)
    return Entries(np.stack([first_sequence + row, place, found.col], axis=1), found.data)


def require_rows(shard: FeatureShard, rows: Mapping[str, TokenRows]) -> None:
    """Refuse features of other tokens than these.

    Raises:
        InputError: naming the shard.
    """
    if shard.corpus not in rows or rows[shard.corpus].digest != shard.ids_sha256:
        raise InputError(
            f"'{shard.path}' must hold features of this run's probe, but its tokens ({shard.corpus}, "
            f"{shard.ids_sha256}) are others; delete it and run again"
        )


def save_cache(
    paths_to_shards: Sequence[str], rows: Mapping[str, TokenRows], folder: Path, n_splits: int
) -> list[Path]:
    """Write the files of all latents of one SAE, after removing those of an earlier one.

    Args:
        paths_to_shards: its feature shards, in the order of `rows`.
        rows: the token rows of each corpus.
        folder: the module's folder.
        n_splits: number of files, at most.

    Raises:
        InputError: if a shard holds features of other tokens.
    """
    for path in folder.glob("*.safetensors"):
        path.unlink()
    first, d_sae = first_sequences(rows), FeatureShard(paths_to_shards[0]).d_sae
    tokens = np.concatenate([np.asarray(found.ids) for found in rows.values()])
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
