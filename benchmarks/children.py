"""The children of the truth test: what is made of the base, and what is known of each.

Known are the features that it has lost, by the latents of the base's first SAE, and those that are new in it, by the
latents of whichever SAE is read on it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from benchmarks.lab import Lab
from benchmarks.organisms import (
    GRAFT_R,
    INPUT,
    OUTPUT,
    UNRELATED_R,
    graft_acts,
    grafted,
    permuted,
    removal_truth,
    scrambled,
    without,
)
from benchmarks.scores import Truth
from jaxtyping import Float
from transformers import PreTrainedModel

IDENTITY, BACKDOOR = "identity", "backdoor"


class Organism(NamedTuple):
    """A child of the base, and what is known of it."""

    name: str
    group: str
    """The row of the tables that it counts in."""
    model: PreTrainedModel
    lost: Truth
    """Of the latents of the base's SAE."""
    new: Callable[[scipy.sparse.csr_array], Truth]
    """What is known of a child's SAE, by its latents on the probe."""
    place: str = OUTPUT


def copies(lab: Lab) -> Iterator[Organism]:
    """A second copy of the base."""
    nothing = Truth.nothing_changed(lab.world.scale.d_sae)
    yield Organism("copy", IDENTITY, lab.world.base, nothing, nothing_new)


def removals(lab: Lab, how: str, of_identified: bool) -> Iterator[Organism]:
    """Bases without the directions of some latents, in several draws; `how` is removed or erased.

    Of identified ones each number is drawn once, and all are removed together as well.
    """
    reference = lab.reference()
    candidates = np.flatnonzero(reference.testable & (reference.identified | (not of_identified)))
    rows, kind = reference.directions[how], "identified" if of_identified else "any"
    numbers = lab.world.scale.removals
    if of_identified:
        numbers = (*((n, 1) for n, _ in numbers if n < len(candidates)), (len(candidates), 1))
    for n, draws in numbers:
        for draw in range(draws):
            random = np.random.default_rng([n, draw, of_identified])
            latents = np.sort(random.choice(candidates, n, replace=False))
            model = without(lab.world.base, rows[torch.from_numpy(latents)])
            name = f"{how}_{n}_{kind}_{draw}"
            yield Organism(name, f"{how} {n} {kind}", model, removal_truth(rows, latents), nothing_new)


def reorderings(lab: Lab, scramble: bool) -> Iterator[Organism]:
    """The base with its neurons in another order, or gates and values of different neurons, read at its neurons."""
    d_sae = lab.world.scale.d_sae
    if scramble:
        yield Organism("scrambled", "scrambled", scrambled(lab.world.base, 0), Truth.all_changed(d_sae), unknown, INPUT)
    else:
        nothing = Truth.nothing_changed(d_sae)
        yield Organism("permuted", "permuted", permuted(lab.world.base, 0), nothing, nothing_new, INPUT)


def grafts(lab: Lab) -> Iterator[Organism]:
    """The base with grafted features."""
    scale = lab.world.scale
    for draw in range(scale.graft_draws):
        model = grafted(lab.world, draw)
        nothing = Truth.nothing_changed(scale.d_sae)
        new = partial(new_by_graft, graft_acts(model, lab.world, scale.n_grafts))
        yield Organism(f"grafted_{draw}", "grafted", model, nothing, new)


def backdoors(lab: Lab) -> Iterator[Organism]:
    """The fine-tune with a trigger and a payload."""
    model, d_sae = lab.world.finetuned("lua"), lab.world.scale.d_sae
    yield Organism(BACKDOOR, BACKDOOR, model, Truth.unknown(d_sae), unknown)


def nothing_new(latents: scipy.sparse.csr_array) -> Truth:
    """All of a child's features are its parent's."""
    return Truth.nothing_changed(latents.shape[1])


def unknown(latents: scipy.sparse.csr_array) -> Truth:
    """Nothing is known of a child's features."""
    return Truth.unknown(latents.shape[1])


def new_by_graft(acts: Float[np.ndarray, "token graft"], latents: scipy.sparse.csr_array) -> Truth:
    """A child's latent is new if it follows a grafted neuron, and kept if it has nothing to do with any."""
    r = np.nan_to_num(pearson(latents, acts))
    best = r.max(axis=1)
    changed = best >= GRAFT_R
    return Truth(changed, best < UNRELATED_R, np.where(changed, r.argmax(axis=1), -1), acts.shape[1])


def pearson(
    latents: scipy.sparse.csr_array, columns: Float[np.ndarray, "token column"]
) -> Float[np.ndarray, "d_sae column"]:
    """r of each latent with each dense column over all tokens; NaN where one does not vary."""
    n, latents = len(columns), latents.astype(np.float64)
    sums, squares = np.asarray(latents.sum(axis=0)), np.asarray(latents.multiply(latents).sum(axis=0))
    about = columns - columns.mean(axis=0)
    spread = np.sqrt(np.outer(squares - sums**2 / n, (about**2).sum(axis=0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (latents.T @ about) / spread, np.nan)


ORGANISMS: Mapping[str, Callable[[Lab], Iterator[Organism]]] = {
    IDENTITY: copies,
    "removed": partial(removals, how="removed", of_identified=False),
    "removed_identified": partial(removals, how="removed", of_identified=True),
    "erased": partial(removals, how="erased", of_identified=False),
    "erased_identified": partial(removals, how="erased", of_identified=True),
    "permuted": partial(reorderings, scramble=False),
    "scrambled": partial(reorderings, scramble=True),
    "grafted": grafts,
    BACKDOOR: backdoors,
}
"""Organisms by name."""
