"""Examples: which features are shown token by token, on which passages, and how strongly they fire there.

In the order of a page: `persisting_features` or `disappearing_features` choose, `read_activations` reads their columns,
`Probe.passages` finds text on which they fire most, `describe` puts a feature's part of `examples.json` together.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tokenizers import Tokenizer

from saelineage.errors import InputError
from saelineage.features import FeatureShard
from saelineage.matches import Correlation
from saelineage.tokens import TokenRows
from saelineage.verdicts import DISAPPEARS

TOKENS_BEFORE, TOKENS_AFTER = 18, 8
PARTIAL = "\ufffd"


class Latent(NamedTuple):
    """One latent of one SAE."""

    model: str
    sae: str
    latent: int


class Choice(NamedTuple):
    """Features shown together, line by line on the same text; the first decides which text."""

    members: tuple[Latent, ...]
    note: dict
    """What the choice rests on, for `examples.json`."""


class Passage(NamedTuple):
    """A stretch of one document around a token on which a feature fires."""

    corpus: str
    row: int
    first: int
    """Place of the first token in its row."""
    tokens: np.ndarray
    """Numbers of its tokens among all probe tokens."""
    ids: np.ndarray


def persisting_features(
    features: pd.DataFrame, roots: Sequence[str], models: Sequence[str], n_features: int
) -> list[Choice]:
    """The features of the roots that are found in the most models, those with the largest least r first.

    A feature whose matches are those of one already chosen is passed over, for it would show the same thing again.

    Args:
        features: `lineage/features.parquet`.
        roots: models without parents.
        models: all models, parents before children.
        n_features: how many to choose.
    """
    models = [model for model in models if f"in_{model}" in features]
    table = features[features["model"].isin(roots)]
    found = table[[f"in_{model}" for model in models]].to_numpy() >= 0
    r = table[[f"r_{model}" for model in models]].to_numpy(dtype=float)
    least = np.where(found, r, np.inf).min(axis=1)
    order = np.lexsort((table["latent"], -least, -found.sum(axis=1)))
    saes = features.drop_duplicates("model").set_index("model")["sae"]
    chosen, taken = [], set()
    for index in order:
        row = table.iloc[index]
        others = [model for model, here in zip(models, found[index], strict=True) if here and model != row["model"]]
        matches = [Latent(model, saes[model], int(row[f"in_{model}"])) for model in others]
        if len(chosen) == n_features or not matches:
            break
        if taken.isdisjoint(matches):
            taken.update(matches)
            own = Latent(row["model"], row["sae"], int(row["latent"]))
            note = {"n_models": len(matches) + 1, "least_r": float(least[index]), "density": float(row["density"])}
            chosen.append(Choice((own, *matches), note))
    return chosen


def disappearing_features(
    edge: tuple[str, str],
    saes: Mapping[str, str],
    table: pd.DataFrame,
    seeds: Correlation | None,
    threshold: float,
    n_features: int,
) -> list[Choice]:
    """Features of an edge's parent that disappear although they are frequent and come back under another seed.

    Of the disappearing features that the parent's second SAE finds as well (r at or above the threshold; all of them
    where there is no second SAE), the half that fires more often is kept, and those come first that lose most: r under
    the other seed minus r in the child.

    Args:
        edge: parent and child.
        saes: the SAE of each model that the edge was drawn with.
        table: the edge's verdicts.
        seeds: the correlation of the parent's SAE with another of its seeds.
        threshold: r at or above this is a match.
        n_features: how many to choose.
    """
    parent, child = edge
    rows = table[(table["side"] == "parent") & (table["verdict"] == DISAPPEARS) & (table["match"] >= 0)]
    again, partner = _recurrence(seeds, f"{parent}.{saes[parent]}", rows["latent"].to_numpy())
    rows = rows.assign(again=again, partner=partner)
    if seeds is not None:
        rows = rows[rows["again"] >= threshold]
    rows = rows[rows["firings"] >= rows["firings"].median()]
    lost = rows["again"].fillna(1.0) - rows["r"]
    rows = rows.assign(lost=lost).sort_values(["lost", "latent"], ascending=[False, True], kind="stable")
    chosen = []
    for row in rows.head(n_features).itertuples():
        members = [Latent(parent, saes[parent], int(row.latent))]
        if seeds is not None:
            members.append(Latent(*_other(seeds, f"{parent}.{saes[parent]}").split("."), int(row.partner)))
        members.append(Latent(child, saes[child], int(row.match)))
        note = {
            "r_child": float(row.r),
            "r_seed": None if seeds is None else float(row.again),
            "density": float(row.density),
        }
        chosen.append(Choice(tuple(members), note))
    return chosen


class Activations(NamedTuple):
    """Columns of one SAE's latents over all probe tokens."""

    tokens: tuple[tuple[str, str, int], ...]
    """Corpus, token range and number of tokens of each shard, in order."""
    columns: Float[np.ndarray, "token latent"]
    positions: tuple[np.ndarray, ...]
    """Per shard, where its tokens stand: row x n_ctx + place."""


def read_activations(paths: Iterable[Path | str], latents: Sequence[int]) -> Activations:
    """The activations of a few latents, one shard in memory at a time."""
    tokens, columns, positions = [], [], []
    for path in paths:
        shard = FeatureShard(path)
        tokens.append((shard.corpus, shard.token_range, len(shard.positions)))
        columns.append(shard.latents[:, list(latents)].toarray().astype(np.float32))
        positions.append(shard.positions)
    return Activations(tuple(tokens), np.concatenate(columns), tuple(positions))


class Probe:
    """The probe's tokens as the feature shards order them, with the activations of the latents shown."""

    def __init__(self, shards: Mapping[tuple[str, str], Sequence[str]], latents: Iterable[Latent], rows: Mapping):
        """Read what the examples need.

        Args:
            shards: feature shards of each (model, SAE), in one order of corpora and shards.
            latents: the latents shown.
            rows: the probe's token rows by corpus.

        Raises:
            InputError: if two SAEs were read on different tokens.
        """
        self.rows: Mapping[str, TokenRows] = rows
        self._columns: dict[Latent, np.ndarray] = {}
        wanted = sorted(set(latents))
        first = None
        for key in sorted({(latent.model, latent.sae) for latent in wanted}):
            own = [latent for latent in wanted if (latent.model, latent.sae) == key]
            read = read_activations(shards[key], [latent.latent for latent in own])
            first = first or (key, read)
            if read.tokens != first[1].tokens:
                raise InputError(
                    f"features of {'.'.join(first[0])} and {'.'.join(key)} must be of the same tokens, but their "
                    "shards differ; delete both under features/ and run again"
                )
            self._columns |= {latent: read.columns[:, index] for index, latent in enumerate(own)}
        if first is not None:
            self._place_tokens(first[1])

    def _place_tokens(self, read: Activations) -> None:
        """Note corpus, row, place and document of every token."""
        lengths = [n for _, _, n in read.tokens]
        self._starts = np.cumsum([0, *lengths])
        self._corpora = [corpus for corpus, _, _ in read.tokens]
        self._positions = np.concatenate(read.positions)
        self._shard = np.repeat(np.arange(len(lengths)), lengths)
        documents = []
        for corpus, positions in zip(self._corpora, read.positions, strict=True):
            rows = self.rows[corpus]
            ends = np.flatnonzero(np.asarray(rows.ids).ravel() == rows.info["eos_id"])
            documents.append(np.searchsorted(ends, positions))
        self._document = np.concatenate(documents)
        names = list(dict.fromkeys(self._corpora))
        self._corpus = np.array([names.index(corpus) for corpus in self._corpora])[self._shard]

    def activation(self, latent: Latent) -> Float[np.ndarray, " token"]:
        """The activations of one latent over all probe tokens."""
        return self._columns[latent]

    def pearson(self, members: Sequence[Latent]) -> list[list[float | None]]:
        """Pairwise Pearson r over all probe tokens, zeros included; None where one does not vary."""
        columns = [self.activation(member).astype(np.float64) for member in members]
        r = {pair: pearson(*(columns[side] for side in pair)) for pair in _pairs(len(columns))}
        return [[r[min(i, j), max(i, j)] for j in range(len(columns))] for i in range(len(columns))]

    def passages(self, latent: Latent, n_passages: int) -> list[Passage]:
        """Passages from different documents around a latent's strongest firings.

        The first half are the strongest of all; then come the strongest of corpora not seen yet, then the next
        strongest.
        """
        activation = self.activation(latent)
        order = np.argsort(-activation, kind="stable")[: np.count_nonzero(activation > 0)]
        document = (
            self._corpus[order].astype(np.int64) * (int(self._document.max(initial=0)) + 1) + self._document[order]
        )
        peaks = order[np.sort(np.unique(document, return_index=True)[1])]
        picked = list(peaks[: (n_passages + 1) // 2])
        for peak in peaks:
            if len(picked) < n_passages and self._corpus[peak] not in self._corpus[picked]:
                picked.append(peak)
        picked += [peak for peak in peaks if peak not in picked][: n_passages - len(picked)]
        return [self._passage(int(peak)) for peak in picked]

    def _passage(self, peak: int) -> Passage:
        """The text around a token, within its row and its document."""
        shard = self._shard[peak]
        corpus = self._corpora[shard]
        n_ctx = self.rows[corpus].info["n_ctx"]
        row = int(self._positions[peak]) // n_ctx
        begin, end = self._starts[shard], self._starts[shard + 1]
        near = np.arange(max(begin, peak - TOKENS_BEFORE), min(end, peak + TOKENS_AFTER + 1))
        inside = (self._positions[near] // n_ctx == row) & (self._document[near] == self._document[peak])
        near = near[inside]
        places = self._positions[near] % n_ctx
        return Passage(corpus, row, int(places[0]), near, np.asarray(self.rows[corpus].ids[row])[places])


def describe(choice: Choice, probe: Probe, tokenizer: Tokenizer, n_passages: int) -> dict:
    """One feature of `examples.json`: members, pairwise r, and passages with each member's activations."""
    passages = [
        {
            "corpus": passage.corpus,
            "row": passage.row,
            "first": passage.first,
            "tokens": decode_pieces(tokenizer, passage.ids.tolist()),
            "activations": [_rounded(probe.activation(member)[passage.tokens]) for member in choice.members],
        }
        for passage in probe.passages(choice.members[0], n_passages)
    ]
    members = [
        member._asdict() | {"max_activation": _rounded(probe.activation(member).max(initial=0.0)[None])[0]}
        for member in choice.members
    ]
    return choice.note | {"members": members, "r": probe.pearson(choice.members), "passages": passages}


def decode_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that the pieces joined are the text of all.

    Where several tokens make up one character it stands at the last of them, and the others are empty.
    """
    pieces, written = [], ""
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:stop]), skip_special_tokens=False)
        if stop < len(ids):
            text = text.rstrip(PARTIAL)
        if not text.startswith(written):  # some decoders rewrite what came before
            pieces.append(tokenizer.decode([ids[stop - 1]], skip_special_tokens=False))
            written = tokenizer.decode(list(ids[:stop]), skip_special_tokens=False)
            continue
        pieces.append(text[len(written) :])
        written = text
    return pieces


def pearson(a: Float[np.ndarray, " token"], b: Float[np.ndarray, " token"]) -> float | None:
    """Pearson r of two columns, in [-1, 1]; None where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a @ a) * (b @ b))
    return None if spread == 0 else float(np.clip((a @ b) / spread, -1.0, 1.0))


def _pairs(n: int) -> Iterable[tuple[int, int]]:
    return combinations_with_replacement(range(n), 2)


def _recurrence(
    seeds: Correlation | None, name: str, latents: Int[np.ndarray, " latent"]
) -> tuple[np.ndarray, np.ndarray]:
    """Best r, and its partner, of some latents with another seed's SAE; NaN and -1 where there is none."""
    if seeds is None:
        return np.full(len(latents), np.nan), np.full(len(latents), -1)
    side = seeds.names.index(name)
    return seeds.pearson.best[side][latents, 0], seeds.pearson.partners[side][latents, 0]


def _other(seeds: Correlation, name: str) -> str:
    """The other SAE of a pair of seeds."""
    return seeds.names[1 - seeds.names.index(name)]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
