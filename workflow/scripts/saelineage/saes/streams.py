"""Training SAEs while their model is read, without a dump: all hookpoints off one forward pass, from a buffer.

A pass reads all rows once, in an order of its own. It is cut into buffers of equal numbers of rows. A buffer's tokens
are shuffled, and all SAEs are trained on all of them, in lockstep, before the next one is read. So the order of tokens
within a pass is a permutation of them, in which tokens that are far apart can lie in the same buffer only if their rows
do. What a buffer holds follows from its number, so that a checkpoint needs only that, and the tokens that were left
over from the buffer before because they did not fill a batch.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelineage.activations import norm_limit, read_all, stored
from saelineage.errors import InputError
from saelineage.precision import DTYPES
from saelineage.saes.batches import SCALE_TOKENS, Scaling, centred, measure_scaling, on_device
from saelineage.saes.sae import Sae
from saelineage.saes.training import (
    THRESHOLD_BATCHES,
    Trained,
    Training,
    Watch,
    ignore,
    part,
    progress,
    read_state,
    untrained,
    write_state,
)
from saelineage.tokens import TokenRows

logger = logging.getLogger(__name__)

COUNT_ROWS = 8_192
"""Rows whose masks are held at once."""


class Buffer(NamedTuple):
    """Shuffled tokens."""

    acts: dict[str, Float[Tensor, "token _d_in"]]
    """By hookpoint, in the format of a dump."""
    norms: dict[str, Float[Tensor, " token"]]
    """By hookpoint; NaN for tokens that the model does not share."""


class Stream:
    """The activations of a model on some token rows, a buffer at a time.

    Attributes:
        n_tokens: tokens of a pass, without those that the model does not share.
        n_buffers: buffers of a pass. A buffer's memory is used again for the next one.
    """

    def __init__(
        self,
        model: nn.Module,
        hookpoints: Mapping[str, str],
        rows: Sequence[TokenRows],
        max_tokens: int | None,
        buffer_tokens: int,
        batch_rows: int,
        dtype: str,
        seed: int,
    ):
        """Count the tokens.

        Args:
            model: the language model.
            hookpoints: places in it, by name.
            rows: token rows of some corpora, of one n_ctx.
            max_tokens: limit on the tokens of each corpus, as for a dump.
            buffer_tokens: most tokens in a buffer.
            batch_rows: rows in a forward pass.
            dtype: number format of the buffer.
            seed: seed of the order.

        Raises:
            InputError: if there are no tokens, or a row has more than a buffer.
        """
        self._model, self._hookpoints, self._rows = model, dict(hookpoints), list(rows)
        self._batch_rows, self._dtype, self._seed = batch_rows, dtype, seed
        within = [of_corpus.shard(0, 1, max_tokens) for of_corpus in rows]
        self._corpus = np.repeat(np.arange(len(rows)), [len(numbers) for numbers in within])
        self._number = np.concatenate([np.arange(numbers.start, numbers.stop) for numbers in within])
        self.n_tokens = sum(map(_n_compared, rows, within))
        n_ctx = rows[0].info["n_ctx"]
        if not self.n_tokens:
            raise InputError("the activations hold no tokens; look at saes.corpora and the train splits")
        if buffer_tokens < n_ctx:
            raise InputError(
                f"activations.buffer_tokens: must be at least tokens.n_ctx ({n_ctx}), one row, not {buffer_tokens}; "
                "raise it"
            )
        self._held_rows = buffer_tokens // n_ctx
        self.n_buffers = math.ceil(len(self._number) / self._held_rows)
        self._held: dict[str, Tensor] = {}  # one buffer's memory, used again for the next

    def places(self, number: int) -> Int[np.ndarray, "row 2"]:
        """Corpus and row of the rows of a buffer, in the order in which they are read.

        Args:
            number: of the buffer, over all passes.
        """
        pass_number, part_number = divmod(number, self.n_buffers)
        order = np.random.default_rng([self._seed, pass_number]).permutation(len(self._number))
        rows = np.array_split(order, self.n_buffers)[part_number]
        return np.stack([self._corpus[rows], self._number[rows]], axis=1)

    def shuffled(self, number: int, n_tokens: int) -> Int[np.ndarray, " token"]:
        """The place in a buffer of each of its tokens, in the order in which they are read."""
        return np.random.default_rng([self._seed, *divmod(number, self.n_buffers), 1]).permutation(n_tokens)

    @torch.inference_mode()
    def buffer(self, number: int) -> Buffer:
        """Read a buffer, in place of the one before.

        Raises:
            InputError: if an activation is not finite, or overflows in the buffer's number format.
        """
        places = self.places(number)
        masks = np.concatenate([self._rows[corpus].text_mask(range(row, row + 1)) for corpus, row in places])
        to = torch.from_numpy(self.shuffled(number, int(masks.sum())))
        stops = np.cumsum(masks.sum(1))
        device, names = next(self._model.parameters()).device, list(self._hookpoints)
        buffer = Buffer({}, {})
        for first in range(0, len(places), self._batch_rows):
            batch = slice(first, first + self._batch_rows)
            ids = np.concatenate([self._rows[corpus].read(range(row, row + 1)) for corpus, row in places[batch]])
            shared = np.concatenate([self._rows[corpus].shared(range(row, row + 1)) for corpus, row in places[batch]])
            mask = torch.from_numpy(masks[batch])
            is_shared = torch.from_numpy(shared[masks[batch]])
            stop = int(stops[min(first + self._batch_rows, len(places)) - 1])
            to_batch = to[stop - int(mask.sum()) : stop]
            read = read_all(self._model, list(self._hookpoints.values()), torch.from_numpy(ids).to(device))
            for name, acts in zip(names, read, strict=True):
                kept = stored(acts[mask.to(device)], self._dtype, f"hookpoint '{name}'", self._hookpoints[name])
                if name not in buffer.acts:
                    buffer.acts[name] = self._room(name, kept.shape[1])[: len(to)]
                    buffer.norms[name] = torch.empty(len(to))
                buffer.acts[name][to_batch] = kept
                buffer.norms[name][to_batch] = kept.float().norm(dim=1).masked_fill(~is_shared, torch.nan)
        return buffer

    def _room(self, hookpoint: str, d_in: int) -> Float[Tensor, "token d_in"]:
        """The memory for a hookpoint's part of a buffer."""
        if hookpoint not in self._held:
            n_most = min(self._held_rows, len(self._number)) * self._rows[0].info["n_ctx"]
            self._held[hookpoint] = torch.empty(n_most, d_in, dtype=DTYPES[self._dtype])
        return self._held[hookpoint]


def _n_compared(rows: TokenRows, within: range) -> int:
    """The number of tokens in some rows whose activations count."""
    blocks = [within[start : start + COUNT_ROWS] for start in range(0, len(within), COUNT_ROWS)]
    return sum(int(rows.compared(block).sum()) for block in blocks)


class Group:
    """SAEs of one hookpoint that see the same batches of a stream.

    Attributes:
        hookpoint: the name of the hookpoint.
        saes: names of the SAEs.
        n_left_out: number of tokens left out so far, outliers and those that the model does not share.
    """

    def __init__(
        self,
        hookpoint: str,
        settings: Mapping[str, Mapping],
        starts: Mapping[str, Sae | None],
        device: torch.device,
        watch: Watch = ignore,
    ):
        """Keep the settings.

        Args:
            hookpoint: the name of the hookpoint.
            settings: the settings of each SAE, by name; all of one `batch_key`.
            starts: an SAE for each to start from, or None.
            device: device to train on.
            watch: called with the number of an SAE and each point of its curve.
        """
        self.hookpoint, self.saes = hookpoint, list(settings)
        self._settings, self._starts = list(settings.values()), [starts[name] for name in settings]
        self._device, self._watch = device, watch
        first = self._starts[0]
        self._is_centred = first is not None and first.centred
        self.max_norm, self.n_left_out, self.n_tokens = math.inf, 0, 0
        self._training: Training | None = None
        self._thresholds: list[float | None] | None = None
        self._carried = torch.empty(0)
        self._first_step = self._left_out_before = 0

    @property
    def is_done(self) -> bool:
        """True if the SAEs are trained, or are not to be."""
        return self._training is None or self._thresholds is not None

    @property
    def n_seen(self) -> int:
        """Tokens that the SAEs have been trained on."""
        return self._training.step_number * self._training.batch_tokens if self._training else 0

    def begin(self, buffer: Buffer, n_tokens: int) -> None:
        """Measure mean, scale and outlier cut-off on the first buffer, and set up the training.

        Args:
            buffer: the first buffer.
            n_tokens: tokens of a pass, on which SAEs are trained whose `n_tokens` is None.

        Raises:
            InputError: if there are too few tokens, or they do not vary.
        """
        norms, acts = buffer.norms[self.hookpoint], buffer.acts[self.hookpoint]
        ratio = self._settings[0]["max_norm_ratio"]
        self.max_norm = math.inf if ratio is None else norm_limit(norms.numpy(), ratio)
        given = self._settings[0]["n_tokens"]
        self.n_tokens = n_tokens if given is None else given
        self._carried = torch.empty_like(acts[:0])
        if self.n_tokens == 0 and None not in self._starts:
            return
        sample = acts[self._kept(buffer)[:SCALE_TOKENS]].float()
        self._set_up(measure_scaling(centred(sample) if self._is_centred else sample))

    def _set_up(self, scaling: Scaling) -> None:
        self._training = Training(self._settings, self.n_tokens, scaling, self._device, self._starts, self._watch)

    def _kept(self, buffer: Buffer) -> Int[Tensor, " token"]:
        """The tokens of a buffer that are trained on, in its order."""
        return (buffer.norms[self.hookpoint] <= self.max_norm).nonzero().flatten()

    def steps(self, buffer: Buffer) -> Iterator[None]:
        """Make the steps that a buffer has tokens for, one at each `next`; those already made are left out.

        After the last of all `advance` is called.
        """
        assert self._training is not None
        training, kept = self._training, self._kept(buffer)
        n_batches = (len(self._carried) + len(kept)) // training.batch_tokens
        self.n_left_out = self._left_out_before + len(buffer.norms[self.hookpoint]) - len(kept)
        n_due = min(n_batches, training.n_steps - self._first_step)
        due = range(training.step_number - self._first_step, n_due)
        for batch in on_device(self._batches(buffer, kept, due), self._device):
            training.step(batch)
            if training.is_done:
                measured = self._batches(buffer, kept, range(min(n_batches, THRESHOLD_BATCHES)))
                self._thresholds = training.thresholds(on_device(measured, self._device))
            yield

    def advance(self, buffer: Buffer) -> None:
        """Carry the tokens of a buffer that did not fill a batch to the next one; nothing if training is over."""
        if self._training is None or self.is_done:
            return
        kept, n_batch = self._kept(buffer), self._training.batch_tokens
        n_tokens = len(self._carried) + len(kept)
        self._carried = self._tokens(buffer, kept, n_tokens - n_tokens % n_batch, n_tokens)
        self._first_step, self._left_out_before = self._training.step_number, self.n_left_out

    def _tokens(self, buffer: Buffer, kept: Tensor, start: int, stop: int) -> Tensor:
        """Some of the tokens that were carried here and those of a buffer."""
        n_carried = len(self._carried)
        chosen = kept[max(0, start - n_carried) : max(0, stop - n_carried)]
        return torch.cat([self._carried[start:stop], buffer.acts[self.hookpoint][chosen]])

    def _batches(self, buffer: Buffer, kept: Tensor, numbers: range) -> Iterator[Float[Tensor, "token d_in"]]:
        """Yield batches of these tokens as they are trained on."""
        assert self._training is not None
        n_batch = self._training.batch_tokens
        for number in numbers:
            acts = self._tokens(buffer, kept, number * n_batch, (number + 1) * n_batch).float()
            yield centred(acts) if self._is_centred else acts

    def finished(self) -> dict[str, Trained]:
        """The trained SAEs by name."""
        if self._training is None:
            of_saes = [untrained(start, self.max_norm) for start in self._starts if start is not None]
        else:
            assert self._thresholds is not None
            of_saes = self._training.finished(self._thresholds, self.max_norm, self._is_centred)
        return dict(zip(self.saes, of_saes, strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """The state from which training can resume: tensors, and values for JSON."""
        rest: dict[str, object] = {
            "max_norm": None if math.isinf(self.max_norm) else self.max_norm,
            "n_tokens": self.n_tokens,
            "n_left_out": self.n_left_out,
            "left_out_before": self._left_out_before,
            "first_step": self._first_step,
            "thresholds": self._thresholds,
        }
        tensors = {"carried": self._carried}
        if self._training is not None:
            of_training, values = self._training.state()
            rest |= {"scale": self._training.scaling.scale, "training": values}
            tensors |= {"mean": self._training.scaling.mean}
            tensors |= {f"training.{name}": tensor for name, tensor in of_training.items()}
        return tensors, rest

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping) -> None:
        """Take over the state that `state` returned."""
        self.max_norm = math.inf if rest["max_norm"] is None else rest["max_norm"]
        self.n_tokens, self.n_left_out = rest["n_tokens"], rest["n_left_out"]
        self._left_out_before, self._first_step = rest["left_out_before"], rest["first_step"]
        self._thresholds, self._carried = rest["thresholds"], tensors["carried"]
        if "training" in rest:
            self._set_up(Scaling(tensors["mean"], rest["scale"]))
            assert self._training is not None
            self._training.restore(part(tensors, "training."), rest["training"])


def batch_key(settings: Mapping, start: Sae | None) -> tuple:
    """What decides the batches of an SAE, within one hookpoint of one stream."""
    keys = ("n_tokens", "batch_tokens", "max_norm_ratio")
    return *(settings[key] for key in keys), start is None, start is not None and start.centred


def train_streams(
    stream: Stream, groups: Sequence[Group], checkpoint: Path | None = None, checkpoint_steps: int = 1000
) -> None:
    """Train groups of SAEs in lockstep, off one reading of a model; an interrupted training resumes.

    Args:
        stream: the activations.
        groups: the SAEs; afterwards all are done.
        checkpoint: file for the state of the training; None keeps none.
        checkpoint_steps: steps between two checkpoints.

    Raises:
        InputError: if there are too few tokens, or a loss is no longer finite.
    """
    number, n_rounds = _restore(checkpoint, groups) if checkpoint and checkpoint.exists() else (0, 0)
    buffer = stream.buffer(number)
    if not n_rounds:
        for group in groups:
            group.begin(buffer, stream.n_tokens)
    with progress(max(group.n_tokens for group in groups), max(group.n_seen for group in groups)) as bar:
        while left := [group for group in groups if not group.is_done]:
            for _ in _rounds([group.steps(buffer) for group in left]):
                n_rounds += 1
                bar.update(max(group.n_seen for group in groups) - bar.n)
                if checkpoint and n_rounds % checkpoint_steps == 0:
                    _save(checkpoint, groups, number, n_rounds)
            if all(group.is_done for group in left):
                continue
            for group in left:
                group.advance(buffer)
            number += 1
            buffer = stream.buffer(number)


def _rounds(steps: Sequence[Iterator[None]]) -> Iterator[None]:
    """Yield after every round, in which each group makes a step; groups that have none left drop out."""
    left = list(steps)
    while left:
        left = [of_group for of_group in left if next(of_group, "ended") is None]
        if left:
            yield


def _save(path: Path, groups: Sequence[Group], number: int, n_rounds: int) -> None:
    """Write the state of all groups, and the number of the buffer that they are trained on."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, object] = {"buffer": number, "n_rounds": n_rounds}
    values = []
    for place, group in enumerate(groups):
        of_group, of_rest = group.state()
        tensors |= {f"{place}.{name}": tensor for name, tensor in of_group.items()}
        values.append(of_rest)
    write_state(path, tensors, rest | {"groups": values})


def _restore(path: Path, groups: Sequence[Group]) -> tuple[int, int]:
    """Restore the state of all groups; returns the number of their buffer, and of the rounds made."""
    tensors, rest = read_state(path)
    for place, (group, values) in enumerate(zip(groups, rest["groups"], strict=True)):
        group.restore(part(tensors, f"{place}."), values)
    logger.info("resuming in buffer %d, from '%s'", rest["buffer"], path)
    return rest["buffer"], rest["n_rounds"]
