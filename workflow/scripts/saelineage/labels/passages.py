"""Passages: stretches of text that show what a feature fires on, and the activations of SAEs there."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Integer

from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.labels.annotations import Annotations, numbers_of, window

TOKENS_BEFORE, TOKENS_AFTER = 24, 12


class Firings(NamedTuple):
    """All activations of one SAE on the probe, latent by latent."""

    columns: scipy.sparse.csc_array
    """[token, d_sae] float32; tokens numbered as `Annotations` numbers them."""
    token_ranges: tuple[str, ...]
    """The token range of each shard, to be compared with another SAE's."""

    def of(self, latent: int) -> tuple[Int[np.ndarray, " firing"], Float[np.ndarray, " firing"]]:
        """The tokens on which a latent fires, ascending, and its activations there."""
        inside = slice(*self.columns.indptr[latent : latent + 2])
        return self.columns.indices[inside], self.columns.data[inside]

    @property
    def largest(self) -> Float[np.ndarray, " d_sae"]:
        """Each latent's largest activation on the probe; 0 where it never fires."""
        return self.columns.max(axis=0).toarray().ravel()


class Peak(NamedTuple):
    """A token on which a feature fires, and the reason for showing it."""

    token: int
    why: str
    """`top`, or for example `quantile 0.5` for the firing of median strength."""


def read_firings(
    paths: Iterable[Path | str], annotations: Annotations, latents: Sequence[int] | None = None
) -> Firings:
    """Read an SAE's features, all corpora and shards; memory grows with the entries of the latents asked for.

    Args:
        paths: the SAE's feature shards.
        annotations: of the probe.
        latents: latents to read, the others stay empty; None reads all.

    Raises:
        InputError: if there are no shards.
    """
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    ranges: list[str] = []
    d_sae = 0
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
        raise InputError("firings need at least one feature shard, got none; look for the probe's under features/")
    where, shape = (np.concatenate(rows), np.concatenate(columns)), (len(annotations.pieces), d_sae)
    activations = scipy.sparse.coo_array((np.concatenate(values), where), shape=shape).tocsc()
    activations.sort_indices()
    return Firings(activations, tuple(ranges))


def require_same_tokens(firings: dict[str, Firings]) -> None:
    """Refuse to show together SAEs that were read on different tokens.

    Raises:
        InputError: if token ranges differ, naming two SAEs.
    """
    (first, first_firings), *others = firings.items()
    for name, further_firings in others:
        if further_firings.token_ranges != first_firings.token_ranges:
            raise InputError(
                f"features of {first} and {name} must be of the same tokens, but their shards differ; "
                "delete both under features/ and rerun"
            )


def strongest(
    tokens: Integer[np.ndarray, " firing"],
    values: Float[np.ndarray, " firing"],
    documents: Int[np.ndarray, " token"],
    n: int,
) -> Int[np.ndarray, " peak"]:
    """The tokens with a feature's strongest firings, strongest first, one per document, on a tie the earlier."""
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
    """Choose firings that show what a feature responds to in one corpus: the strongest, and some at quantiles.

    No document is shown twice. Quantiles are those of strength among the corpus's firings: 0.5 is the median.

    Args:
        tokens, values: the feature's firings in the corpus.
        annotations: of the probe.
        n_top: number of strongest firings.
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
    """The stretch of text shown around each token, within its row and its document."""
    return [window(annotations, int(token), TOKENS_BEFORE, TOKENS_AFTER) for token in tokens]


def activations_in(
    shown: Sequence[range], tokens: Integer[np.ndarray, " firing"], values: Float[np.ndarray, " firing"]
) -> list[tuple[list[int], list[float]]]:
    """For each stretch of text, the places where a feature fires, counted from its first token, and activations."""
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
