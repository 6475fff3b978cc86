"""Passages: which stretches of text show what a feature fires on, and how strongly SAEs fire there."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Integer

from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.labels.annotations import Annotations, numbers_of, window

TOKENS_BEFORE, TOKENS_AFTER = 18, 8


class Firings(NamedTuple):
    """Where one SAE's latents fire on the probe, and how strongly, latent after latent."""

    columns: scipy.sparse.csc_array
    """[token, d_sae] float32; tokens numbered as `Annotations` numbers them."""
    token_ranges: tuple[str, ...]
    """What each shard covers, to be compared with another SAE's."""

    def of(self, latent: int) -> tuple[Int[np.ndarray, " firing"], Float[np.ndarray, " firing"]]:
        """The tokens on which a latent fires, ascending, and its activations there."""
        inside = slice(*self.columns.indptr[latent : latent + 2])
        return self.columns.indices[inside], self.columns.data[inside]

    @property
    def largest(self) -> Float[np.ndarray, " d_sae"]:
        """Each latent's largest activation on the probe; 0 where it never fires."""
        return self.columns.max(axis=0).toarray().ravel()


class Peak(NamedTuple):
    """A token on which a feature fires, and why it is shown."""

    token: int
    why: str
    """`top`, or `quantile 0.5` for a firing in the middle of all by strength."""


def read_firings(
    paths: Iterable[Path | str], annotations: Annotations, latents: Sequence[int] | None = None
) -> Firings:
    """Read an SAE's features, all corpora and shards; memory grows with the entries of the latents asked for.

    Args:
        paths: its feature shards.
        annotations: of the probe.
        latents: the only ones to read, others stay empty; None reads all.

    Raises:
        InputError: if there are no shards.
    """
    rows, columns, values, ranges, d_sae = [], [], [], [], 0
    for path in paths:
        shard = FeatureShard(path)
        entries = shard.latents.tocoo()
        kept = slice(None) if latents is None else np.isin(entries.col, list(latents))
        rows.append(numbers_of(annotations, shard.corpus, shard.positions)[entries.row[kept]])
        columns.append(entries.col[kept])
        values.append(entries.data[kept])
        ranges.append(f"{shard.corpus} {shard.token_range}")
        d_sae = shard.d_sae
    if not ranges:
        raise InputError("firings need at least one feature shard, found none; look at the probe under features/")
    where = (np.concatenate(rows), np.concatenate(columns))
    found = scipy.sparse.coo_array((np.concatenate(values), where), shape=(len(annotations.pieces), d_sae)).tocsc()
    found.sort_indices()
    return Firings(found, tuple(ranges))


def require_same_tokens(firings: dict[str, Firings]) -> None:
    """Refuse to show SAEs beside each other that were read on different tokens.

    Raises:
        InputError: naming two of them.
    """
    (first, own), *others = firings.items()
    for name, found in others:
        if found.token_ranges != own.token_ranges:
            raise InputError(
                f"features of {first} and {name} must be of the same tokens, but their shards differ; "
                "delete both under features/ and run again"
            )


def strongest(
    tokens: Integer[np.ndarray, " firing"],
    values: Float[np.ndarray, " firing"],
    documents: Int[np.ndarray, " token"],
    n: int,
) -> Int[np.ndarray, " peak"]:
    """Where a feature fires most strongly, strongest first, at most one token of a document; of equals the earlier."""
    order = np.argsort(-values, kind="stable")
    first = np.unique(documents[tokens[order]], return_index=True)[1]
    return tokens[order[np.sort(first)[:n]]]


def choose_peaks(
    tokens: Integer[np.ndarray, " firing"],
    values: Float[np.ndarray, " firing"],
    annotations: Annotations,
    n_top: int,
    quantiles: Sequence[float],
) -> list[Peak]:
    """Firings that show what a feature responds to in one corpus: the strongest, and some at quantiles of strength.

    No document is shown twice. A quantile q is that of the corpus's firings: 0.5 is a firing of middling strength.

    Args:
        tokens, values: the feature's firings in the corpus.
        annotations: of the probe.
        n_top: how many of the strongest.
        quantiles: in (0, 1).
    """
    picked = [Peak(int(token), "top") for token in strongest(tokens, values, annotations.documents, n_top)]
    order = np.argsort(values, kind="stable")
    shown = {int(annotations.documents[peak.token]) for peak in picked}
    for quantile in quantiles:
        if len(order) == 0:
            break
        token = int(tokens[order[int(quantile * (len(order) - 1))]])
        document = int(annotations.documents[token])
        if document not in shown:
            shown.add(document)
            picked.append(Peak(token, f"quantile {quantile:g}"))
    return picked


def windows(tokens: Iterable[int], annotations: Annotations) -> list[range]:
    """The text shown around each token, within its row and its document."""
    return [window(annotations, int(token), TOKENS_BEFORE, TOKENS_AFTER) for token in tokens]


def activations_in(
    shown: Sequence[range], tokens: Integer[np.ndarray, " firing"], values: Float[np.ndarray, " firing"]
) -> list[tuple[list[int], list[float]]]:
    """Of each stretch of text the places on which a feature fires, counted from its first token, and how strongly."""
    starts = np.searchsorted(tokens, [stretch.start for stretch in shown])
    stops = np.searchsorted(tokens, [stretch.stop for stretch in shown])
    return [
        ((tokens[low:high] - stretch.start).tolist(), values[low:high].tolist())
        for stretch, low, high in zip(shown, starts, stops, strict=True)
    ]


def place_of(annotations: Annotations, token: int) -> tuple[str, int, int]:
    """The corpus, row and place in the row of a token."""
    corpus = max((start, name) for name, start in annotations.starts.items() if start <= token)[1]
    return corpus, *divmod(token - annotations.starts[corpus], annotations.n_ctx)
