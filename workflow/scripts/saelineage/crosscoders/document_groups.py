"""Sums of latent scaling over groups of whole documents, from which intervals are resampled."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int

from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.crosscoders.latent_scaling import Couple, ScalingSums, scaling_sums
from saelineage.errors import InputError
from saelineage.features.encoding import latents_of_rows
from saelineage.features.shards import FeatureShard
from saelineage.saes.batches import Dump

CHUNK_TOKENS = 4096
"""Tokens that are read at once."""


class FvuSums:
    """Sums for the fraction of variance unexplained of each model's activations, in float64."""

    def __init__(self, models: Sequence[str], d_in: int):
        """Start without tokens."""
        self.n = 0
        self.residual = dict.fromkeys(models, 0.0)
        self.squares = dict.fromkeys(models, 0.0)
        self.total = {model: np.zeros(d_in) for model in models}

    def add(
        self, model: str, acts: Float[torch.Tensor, "token d_in"], recons: Float[torch.Tensor, "token d_in"]
    ) -> None:
        """Add a model's activations and their reconstructions."""
        acts = acts.double()
        self.residual[model] += float((acts - recons.double()).square().sum())
        self.squares[model] += float(acts.square().sum())
        self.total[model] += acts.sum(0).cpu().numpy()

    def fvu(self) -> dict[str, float]:
        """sum |acts - recons|^2 / sum |acts - mean|^2 of each model; NaN where activations do not vary."""
        found = {}
        for model, residual in self.residual.items():
            variance = self.squares[model] - float(self.total[model] @ self.total[model]) / max(1, self.n)
            found[model] = residual / variance if variance > 0 else float("nan")
        return found


def group_of_tokens(
    dump: Dump, documents: Mapping[str, Int[np.ndarray, " position"]], corpora: Sequence[str], n_groups: int
) -> Int[np.ndarray, " token"]:
    """The group of each token that a dump keeps. Documents of a corpus are dealt to the groups in turn.

    Args:
        dump: activations of the probe.
        documents: the document of each position, by corpus (`correlations.bootstrap.documents_of`).
        corpora: the corpus of each shard of the dump.
        n_groups: number of groups; with fewer documents some stay empty.

    Raises:
        InputError: if a shard holds positions that its corpus does not have.
    """
    numbers = []
    for shard, corpus in zip(dump.shards, corpora, strict=True):
        positions = shard.positions().numpy()
        if len(positions) and positions.max() >= len(documents[corpus]):
            raise InputError(f"'{shard.path}' must hold tokens of the probe of '{corpus}'; delete it and run again")
        numbers.append(documents[corpus][positions] % n_groups)
    every = np.concatenate(numbers)
    return every if dump.kept is None else every[dump.kept]


def kept_latents(paths: Sequence[Path | str], dump: Dump) -> scipy.sparse.csr_array:
    """The latents of the tokens that a dump keeps [token, d_sae].

    Args:
        paths: their feature shards, one for each shard of the dump.
        dump: activations of the same tokens.

    Raises:
        InputError: if a feature shard is of other tokens.
    """
    rows = []
    for path, of_dump in zip(paths, dump.shards, strict=True):
        shard = FeatureShard(path)
        if shard.ids_sha256 != of_dump.header["ids_sha256"] or not np.array_equal(shard.positions, of_dump.positions()):
            raise InputError(f"'{path}' must hold latents of the tokens in '{of_dump.path}'; delete it and run again")
        rows.append(shard.latents)
    every = scipy.sparse.vstack(rows, format="csr")
    return every if dump.kept is None else every[dump.kept]


def sums_by_group(
    crosscoder: Crosscoder,
    dumps: Mapping[str, Dump],
    latents: scipy.sparse.csr_array,
    groups: Int[np.ndarray, " token"],
    couples: Sequence[Couple],
    device: torch.device,
) -> tuple[list[ScalingSums], FvuSums]:
    """Sum over the tokens of each group that has any.

    Args:
        crosscoder: on the device.
        dumps: of its models, in step (`dumps.open_in_step`).
        latents: of the same tokens [token, d_sae].
        groups: the group of each token.
        couples: from `latent_scaling.couples_of`.
        device: the device to compute on.
    """
    fvu = FvuSums(crosscoder.models, crosscoder.d_in)
    by_group = []
    for group in np.unique(groups):
        tokens = np.flatnonzero(groups == group)
        sums: ScalingSums | None = None
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            acts = {model: dump[chunk].to(device) for model, dump in dumps.items()}
            of_tokens = latents_of_rows(latents[chunk], device)
            fvu.n += len(chunk)
            for model in crosscoder.models:
                fvu.add(model, acts[model], crosscoder.decode(of_tokens, model))
            of_chunk = scaling_sums(crosscoder, crosscoder.joint(acts), of_tokens, couples)
            sums = of_chunk if sums is None else sums.add(of_chunk)
        if sums is not None:
            by_group.append(sums)
    return by_group, fvu
