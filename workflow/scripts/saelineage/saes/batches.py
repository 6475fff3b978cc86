"""The tokens that SAEs are trained on: the shards of a dump, batches of them, and their mean and scale."""

import math
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelineage.activations import ActivationShard, norm_limit
from saelineage.errors import InputError

SCALE_TOKENS = 16_384
"""Tokens on which mean and scale are measured."""
SUMMED_TOKENS = 256
"""Tokens whose float64 copies are held at once."""
AHEAD = 2
"""Batches that wait for a GPU."""
PAUSE_SECONDS = 0.1
"""Pause before another look whether the batches that a thread makes are still wanted."""
WORDS = {2: torch.int16, 4: torch.int32}
"""Integers as wide as a number format, because NumPy has no bfloat16."""


class TokenActs(ABC):
    """Activations of tokens that are read in any order.

    Attributes:
        d_in: width of the activations.
        centred: True if the mean over dimensions is subtracted from each token's activations (`Sae.centred`).
        max_norm: norm above which activations count as outliers. Their tokens are left out, because outliers are few
            and alike, and would dominate the loss.
        n_left_out: number of tokens left out.
    """

    d_in: int
    centred: bool
    max_norm: float
    n_left_out: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of tokens, without those left out."""

    @abstractmethod
    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """float32 activations of the tokens, in the given order."""

    def batches(
        self, n_drawn: int, batch_tokens: int, seed: int, first: int = 0
    ) -> Iterator[Float[Tensor, "token d_in"]]:
        """Yield float32 activations of the tokens that `token_batches` yields."""
        for tokens in token_batches(len(self), n_drawn, batch_tokens, seed, first):
            yield self[tokens]


class Dump(TokenActs):
    """The shards of a dump as one memory-mapped array of tokens.

    Attributes:
        shards: the shards.
        kept: numbers of the tokens that are kept, ascending; None if all are.
    """

    def __init__(self, paths: Sequence[Path | str], max_norm_ratio: float | None = None, centred: bool = False):
        """Open shards.

        Args:
            paths: the shards.
            max_norm_ratio: outlier cut-off, as a multiple of the median norm; None keeps all tokens.
            centred: subtract the mean over dimensions, for training from an SAE of such activations.

        Raises:
            InputError: if the shards differ in hookpoint or width, or hold no tokens.
        """
        self.shards = [ActivationShard(path) for path in paths]
        kinds = {(shard.header["hookpoint"], shard.d_in) for shard in self.shards}
        if len(kinds) != 1:
            raise InputError(
                f"activation shards differ in (hookpoint, width): {sorted(kinds)}; delete the dump and run again"
            )
        self.d_in, self.centred = self.shards[0].d_in, centred
        self._starts = np.cumsum([0, *(shard.n_tokens for shard in self.shards)])
        if not self._starts[-1]:
            raise InputError("the activations hold no tokens; look at saes.corpora and the train splits")
        acts = [shard.acts() for shard in self.shards]
        self._dtypes = [of_shard.dtype for of_shard in acts]
        self._words = [of_shard.view(WORDS[of_shard.itemsize]).numpy() for of_shard in acts]
        self.max_norm, self.n_left_out = math.inf, 0
        self.kept: Int[np.ndarray, " kept"] | None = None
        norms = np.concatenate([shard.norms().numpy() for shard in self.shards])
        if max_norm_ratio is not None or np.isnan(norms).any():  # NaN: tokens that the model does not share
            self.max_norm = math.inf if max_norm_ratio is None else norm_limit(norms, max_norm_ratio)
            self.keep(np.flatnonzero(norms <= self.max_norm))

    def keep(self, tokens: Int[np.ndarray, " kept"]) -> None:
        """Leave out all tokens but these.

        Args:
            tokens: numbers among all tokens of the shards, ascending.
        """
        self.kept, self.n_left_out = tokens, int(self._starts[-1]) - len(tokens)

    def __len__(self) -> int:
        return int(self._starts[-1]) - self.n_left_out

    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """float32 activations of the tokens, in the given order."""
        if self.kept is not None:
            tokens = self.kept[tokens]
        shards = np.searchsorted(self._starts, tokens, side="right") - 1
        acts = torch.empty(len(tokens), self.d_in)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            # NumPy gathers rows of a file in less than half of torch's time.
            rows = torch.from_numpy(self._words[shard][tokens[places] - self._starts[shard]]).view(self._dtypes[shard])
            acts.numpy()[places] = rows.float().numpy()
        return centred(acts) if self.centred else acts


def centred(acts: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
    """Activations without the mean over dimensions of each token."""
    return acts - acts.mean(1, keepdim=True)


def on_device(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield batches on a device. For a GPU a thread makes them ahead, in pinned memory, from which copies overlap."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    for batch in ahead((batch.pin_memory() for batch in batches), AHEAD):
        yield batch.to(device, non_blocking=True)


def ahead(items: Iterable[Tensor], n_waiting: int) -> Iterator[Tensor]:
    """Yield what an iterable yields, in its order, while a thread makes the next ones.

    An error of the iterable is raised where its item would have come. The thread ends with this generator.

    Args:
        items: read by the thread alone.
        n_waiting: most items that wait.
    """
    waiting: queue.Queue[Tensor | BaseException | None] = queue.Queue(n_waiting)
    is_over = threading.Event()

    def put(item: Tensor | BaseException | None) -> None:
        while not is_over.is_set():
            try:
                return waiting.put(item, timeout=PAUSE_SECONDS)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if is_over.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_over.set()
        thread.join()


def token_batches(
    n_tokens: int, n_drawn: int, batch_tokens: int, seed: int, first: int = 0
) -> Iterator[Int[np.ndarray, " token"]]:
    """Yield full batches of token numbers from consecutive passes over all tokens, each pass in a new order.

    Args:
        n_tokens: number of tokens in a pass.
        n_drawn: number of tokens to yield; those that do not fill a batch are dropped.
        batch_tokens: tokens in a batch.
        seed: seed of the orders.
        first: number of batches to skip.
    """
    random = np.random.default_rng(seed)
    upcoming = np.empty(0, dtype=np.int64)
    for number in range(n_drawn // batch_tokens):
        while len(upcoming) < batch_tokens:
            upcoming = np.concatenate([upcoming, random.permutation(n_tokens)])
        if number >= first:
            yield upcoming[:batch_tokens]
        upcoming = upcoming[batch_tokens:]


class Scaling(NamedTuple):
    """Mean and scale of activations; scaled ones have a variance of 1 per dimension on average."""

    mean: Float[Tensor, " d_in"]
    scale: float
    """Factor on acts, so that E|scale x (acts - mean)|^2 = d_in."""


def measure_scaling(acts: Float[Tensor, "token d_in"]) -> Scaling:
    """Measure the mean of activations and the scale that gives deviations from it a mean square of 1.

    Raises:
        InputError: if there are no activations, or they do not vary.
    """
    if not len(acts):
        raise InputError(
            "there must be activations of tokens that the model shares with the run's tokenizer, but there are none to "
            "start with; look at the text, or raise activations.buffer_tokens"
        )
    chunks = acts.split(SUMMED_TOKENS)  # because float64 copies of all activations could be large
    mean = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0) / len(acts)
    mean_square = sum(float((chunk.double() - mean).square().sum()) for chunk in chunks) / acts.numel()
    if mean_square == 0:
        raise InputError(
            "the activations at activations.hookpoint do not vary at all; look at the hookpoint and the model"
        )
    return Scaling(mean.float(), mean_square**-0.5)
