"""The activations of several models on the same tokens, read in step.

Each model has a dump, cut into the same shards. Shards are memory-mapped and rows are read when they are needed, so
that memory holds a batch of each model and no dump. A token that one model leaves out is left out of all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelineage.activations import require_same_tokens
from saelineage.errors import InputError
from saelineage.saes.batches import SCALE_TOKENS, Dump, Scaling, TokenActs, measure_scaling

SCALE_SEED = 0
"""Seed of the tokens on which each model's mean and scale are measured."""


def open_in_step(
    paths: Mapping[str, Sequence[Path | str]],
    max_norm_ratio: float | None = None,
    max_norms: Mapping[str, float] | None = None,
) -> dict[str, Dump]:
    """Open the dumps of several models, reduced to the tokens that all of them keep.

    Args:
        paths: the shards of each model, in one order.
        max_norm_ratio: outlier cut-off of each model, as a multiple of its median norm; None for none.
        max_norms: norm of each model above which its activations are outliers (`Crosscoder.max_norms`); None for none.

    Raises:
        InputError: if the shards are not of the same tokens, the models differ in width, or no token is left.
    """
    if len({len(of_model) for of_model in paths.values()}) != 1:
        counts = {model: len(of_model) for model, of_model in paths.items()}
        raise InputError(f"models that are read in step must have equally many activation shards, got {counts}; rerun")
    dumps = {model: Dump(of_model, max_norm_ratio) for model, of_model in paths.items()}
    _require_in_step(dumps)
    for model, max_norm in (max_norms or {}).items():
        norms = torch.cat([shard.norms() for shard in dumps[model].shards])
        dumps[model].keep(np.flatnonzero((norms <= max_norm).numpy()))
    kept = [dump.kept for dump in dumps.values() if dump.kept is not None]
    if kept:
        common = reduce(np.intersect1d, kept)
        for dump in dumps.values():
            dump.keep(common)
        if not len(common):
            raise InputError(
                f"no token is shared by all of {list(dumps)} and an outlier for none; raise saes.max_norm_ratio or "
                "use models that share more of their vocabulary"
            )
    return dumps


def _require_in_step(dumps: Mapping[str, Dump]) -> None:
    """Refuse dumps of other tokens or another width than the first one's."""
    first, *others = dumps.values()
    for other in others:
        for shards in zip(first.shards, other.shards, strict=True):
            require_same_tokens(*shards)
    widths = {model: dump.d_in for model, dump in dumps.items()}
    if len(set(widths.values())) != 1:
        raise InputError(
            f"models that are read in step must have activations of one width, got {widths}; use models of one shape"
        )


def batches_in_step(dumps: Mapping[str, Dump], batch_tokens: int) -> Iterator[dict[str, Float[Tensor, "_token d_in"]]]:
    """Yield each model's unscaled activations of the same tokens, in the order of the files.

    `crosscoder.joint` of these is what a crosscoder encodes.
    """
    n_tokens = len(next(iter(dumps.values())))
    for start in range(0, n_tokens, batch_tokens):
        tokens = np.arange(start, min(start + batch_tokens, n_tokens))
        yield {model: dump[tokens] for model, dump in dumps.items()}


class JointDump(TokenActs):
    """The activations of several models side by side, [token, n_models x width], each centred and scaled.

    Each model's activations have a mean of 0 and a mean square of 1 per dimension. Otherwise the ratio of a latent's
    decoder norms would read how large a model's activations are.

    Attributes:
        dumps: by model.
        scalings: mean and scale of each model's activations.
        max_norms: norm above which each model's activations count as outliers.
        width: width of one model's activations; `d_in` is the number of models times it.
    """

    def __init__(self, paths: Mapping[str, Sequence[Path | str]], max_norm_ratio: float | None = None):
        """Open the dumps and measure each model's mean and scale, on the same tokens.

        Args:
            paths: the shards of each model, in one order.
            max_norm_ratio: outlier cut-off of each model, as a multiple of its median norm; None keeps all tokens.

        Raises:
            InputError: as for `open_in_step`, or if the activations of a model do not vary.
        """
        self.dumps = open_in_step(paths, max_norm_ratio)
        dump = next(iter(self.dumps.values()))
        self.width, self.n_left_out = dump.d_in, dump.n_left_out
        self.d_in, self.centred, self.max_norm = len(self.dumps) * dump.d_in, False, math.inf
        self.max_norms = {model: of_model.max_norm for model, of_model in self.dumps.items()}
        sample = np.sort(np.random.default_rng(SCALE_SEED).permutation(len(dump))[:SCALE_TOKENS])
        self.scalings: dict[str, Scaling] = {
            model: measure_scaling(of_model[sample]) for model, of_model in self.dumps.items()
        }

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of their activations."""
        return list(self.dumps)

    def __len__(self) -> int:
        return len(next(iter(self.dumps.values())))

    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """Centred and scaled float32 activations of the tokens, in the given order."""
        joint = torch.empty(len(tokens), len(self.dumps), self.width)
        for number, (model, dump) in enumerate(self.dumps.items()):
            scaling = self.scalings[model]
            torch.sub(dump[tokens], scaling.mean, out=joint[:, number]).mul_(scaling.scale)
        return joint.flatten(1)


class DifferenceDump(TokenActs):
    """The activations of a child minus those of its parent, of the same tokens: what the edge wrote.

    An SAE of them (`saes.training.train_saes`) is in the formats of every other SAE.

    Attributes:
        headers: of the child's shards.
        max_norms: norm above which each model's own activations count as outliers, `parent`'s and `child`'s.
    """

    def __init__(self, parent: Sequence[Path | str], child: Sequence[Path | str], max_norm_ratio: float | None = None):
        """Open the dumps.

        Args:
            parent, child: shards of each, in one order.
            max_norm_ratio: outlier cut-off of each model's own activations; None keeps all tokens.

        Raises:
            InputError: as for `open_in_step`.
        """
        dumps = open_in_step({"parent": parent, "child": child}, max_norm_ratio)
        self._parent, self._child = dumps["parent"], dumps["child"]
        self.headers = [shard.header for shard in self._child.shards]
        self.max_norms = {side: dump.max_norm for side, dump in dumps.items()}
        self.d_in, self.n_left_out = self._child.d_in, self._child.n_left_out
        self.centred, self.max_norm = False, math.inf

    def __len__(self) -> int:
        return len(self._child)

    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """float32 differences of the tokens, in the given order."""
        return self._child[tokens] - self._parent[tokens]
