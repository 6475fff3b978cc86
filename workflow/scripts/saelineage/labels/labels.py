"""Labels: the property of tokens that a feature follows, in words and with a score, without a language model.

The score is Pearson r over tokens, zeros included, between a feature's activations and the property's 0 or 1. It is
also the measure for explanations (Horn & Elliott, arXiv 2410.12391, Figure 6, where simulated activations take the
property's place). The best of a thousand properties looks good by chance, so documents are divided into two halves:
those of even number choose the property, those of odd number score it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Float, Int, Num

from saelineage.correlations.matches import MIN_VARIANCE
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.labels.annotations import CLASS_SENTENCES, CONCEPTS, KINDS, RULES, Annotations, numbers_of

BLOCK_LATENTS = 4096
FEW_DOCUMENTS = 5
"""A label that was scored on firings in fewer documents is shown with their number."""
ALL_SHOWN = ("concept", "class")
"""Kinds of which a feature has a row for every property, whether it follows it or not."""
COLUMNS = {
    "latent": np.int64,
    "kind": str,
    "label": str,
    "score": np.float64,
    "precision": np.float64,
    "recall": np.float64,
    "n_firings": np.int64,
    "n_documents": np.int64,
    "wins": np.bool_,
}


class Sums:
    """Sums over the tokens of one half of the documents; sums of several shards add up.

    Attributes:
        n_tokens: number of tokens.
        holds: [property] tokens that have the property.
        totals, squares: [latent] sums of activations and of their squares.
        firings: [latent] tokens on which the latent fires.
        in_documents: [latent] documents in which the latent fires.
        products: [property, latent] sum of activations over the tokens that have the property.
        together: [property, latent] tokens that have the property and on which the latent fires; None if not counted.
    """

    def __init__(self, n_properties: int, n_latents: int, count_together: bool):
        """Start with no tokens."""
        self.n_tokens = 0
        self.holds = np.zeros(n_properties, dtype=np.int64)
        self.totals, self.squares = np.zeros(n_latents), np.zeros(n_latents)
        self.firings = np.zeros(n_latents, dtype=np.int64)
        self.in_documents = np.zeros(n_latents, dtype=np.int64)
        self._last_document, self._in_last = -1, np.zeros(n_latents, dtype=bool)
        self.products = np.zeros((n_properties, n_latents))
        self.together = np.zeros((n_properties, n_latents), dtype=np.int32) if count_together else None

    def add(
        self,
        latents: scipy.sparse.csr_array,
        properties: scipy.sparse.csr_array,
        documents: Int[np.ndarray, " token"],
    ) -> None:
        """Add tokens: their activations [token, latent], their properties [token, property] as 0 or 1, their documents.

        Numbers of documents never fall, in one call and from call to call.
        """
        acts = latents.astype(np.float64)
        tokens_of = properties.T.tocsr().astype(np.float64)
        self.n_tokens += acts.shape[0]
        self.holds += np.bincount(properties.indices, minlength=len(self.holds))
        self.totals += np.bincount(acts.indices, acts.data, minlength=len(self.totals))
        self.squares += np.bincount(acts.indices, acts.data**2, minlength=len(self.totals))
        self.firings += np.bincount(acts.indices, minlength=len(self.totals))
        self._count_documents(latents, documents)
        _add(tokens_of @ acts, self.products)
        if self.together is not None:
            acts.data[:] = 1
            _add(tokens_of @ acts, self.together)

    def _count_documents(self, latents: scipy.sparse.csr_array, documents: Int[np.ndarray, " token"]) -> None:
        """Count the documents in which each latent fires; one that goes on from the call before counts once."""
        if not len(documents):
            return
        numbers, place = np.unique(documents, return_inverse=True)
        ones = np.ones(len(documents), dtype=np.int32)
        of_document = scipy.sparse.csr_array((ones, (place, np.arange(len(documents)))))
        fires = (of_document @ (latents > 0).astype(np.int32)).astype(bool)
        self.in_documents += np.bincount(fires.indices, minlength=len(self.in_documents))
        if numbers[0] == self._last_document:
            self.in_documents -= self._in_last & fires[[0]].toarray()[0]
        goes_on = numbers[0] == self._last_document and len(numbers) == 1
        in_last = fires[[-1]].toarray()[0]
        self._last_document, self._in_last = numbers[-1], in_last | self._in_last if goes_on else in_last

    def scores(self) -> Float[np.ndarray, "property latent"]:
        """Compute Pearson r of every property and latent, in [-1, 1]; NaN where one of the two does not vary."""
        n = self.n_tokens
        variance = n * self.squares - self.totals**2
        varies = variance > MIN_VARIANCE * n * self.squares
        spread = np.sqrt(np.where(varies, variance, np.nan))
        of_property = (n * self.holds - self.holds**2).astype(np.float64)
        spread_of_property = np.sqrt(np.where(of_property > 0, of_property, np.nan))
        r = n * self.products
        r -= np.outer(self.holds.astype(np.float64), self.totals)
        r /= spread_of_property[:, None]
        r /= spread
        return np.clip(r, -1.0, 1.0, out=r)


def label(
    paths: Sequence[Path | str], annotations: Annotations, min_firings: int = 10, block_latents: int = BLOCK_LATENTS
) -> pd.DataFrame:
    """Find the best property of every kind for every feature of one SAE.

    Only compared tokens count (`FeatureShard.compared`). Documents are numbered through all corpora, so that every
    corpus gives half of its documents to either half, and no document is in both.

    Args:
        paths: feature shards of one SAE, all corpora; one is in memory at a time.
        annotations: of the same tokens.
        min_firings: a feature that fires on fewer tokens of either half gets no label.
        block_latents: latents processed together; bounds memory (some 50 bytes x properties x latents), changes no
            result. The shards are read once for each block.

    Returns:
        Rows in ascending order of latents, with columns

        - `latent`;
        - `kind` and `label`: the best property of its kind on the even half, where any correlates above 0; of kinds
          `concept` and `class` all properties;
        - `score`: Pearson r on the odd half;
        - `precision`: share of the tokens on which the feature fires that have the property, on the odd half;
        - `recall`: share of the tokens with the property on which the feature fires, on the odd half; NaN where no
          token has the property;
        - `n_firings`, `n_documents`: tokens and documents of the odd half on which the feature fires;
        - `wins`: true for the best of all properties on the even half, at most one per feature.

    Raises:
        InputError: if there are no shards, or they are of several SAEs or of tokens without annotations.
    """
    if not paths:
        raise InputError("labels need at least one feature shard, got none; give the shards of an SAE")
    n_latents = FeatureShard(paths[0]).d_sae
    tables = []
    for first in range(0, n_latents, block_latents):
        latents = range(first, min(first + block_latents, n_latents))
        chosen_on, scored_on = _sums(paths, annotations, latents)
        tables.append(_table(latents, chosen_on, scored_on, annotations.properties, min_firings))
    return pd.concat(tables, ignore_index=True)


def describe(row: Mapping | pd.Series) -> str:
    """Describe a row of the table in a few words: "token 'def'", "lua: identifier in variable_list".

    A label that rests on few documents has their number behind it: "token 'def' (2 documents)".
    """
    n, words = int(row["n_documents"]), _words(row["kind"], row["label"])
    return words if n >= FEW_DOCUMENTS else f"{words} ({n} document{'s' * (n != 1)})"


def descriptions(labels: pd.DataFrame) -> dict[int, str]:
    """What each feature follows, by latent.

    Args:
        labels: one row per labelled feature: those that win.
    """
    return {int(row["latent"]): describe(row) for row in labels.to_dict("records")}


def _words(kind: str, name: str) -> str:
    """The words for a property."""
    if kind in ("token", "after"):
        return f"{kind} '{name}'"
    if kind == "class":
        return f"{name} token"
    return f"corpus {name}" if kind == "corpus" else name


def sentence(row: Mapping | pd.Series) -> str:
    """Explain the property of a row in a sentence."""
    kind, name = row["kind"], row["label"]
    if (kind, name) in RULES:
        return RULES[kind, name].sentence
    if kind == "concept":
        return CONCEPTS[name]
    if kind == "class":
        return CLASS_SENTENCES[name]
    if kind == "syntax":
        language, _, place = name.partition(": ")
        where = "stands below" if place.startswith("inside ") else "is in"
        return f"The token {where} such a node of tree-sitter's tree of {language.capitalize()}: {place}."
    if kind == "corpus":
        return f"The token is of the corpus {name}."
    before = "token" if kind == "token" else "token before, in the same document and row,"
    return f"The {before} is '{name}', whitespace around it left aside."


def _sums(paths: Sequence[Path | str], annotations: Annotations, latents: range) -> tuple[Sums, Sums]:
    """Sum some latents over the documents of even and of odd number."""
    n_properties = len(annotations.properties)
    even = Sums(n_properties, len(latents), count_together=False)
    odd = Sums(n_properties, len(latents), count_together=True)
    for shard in _shards_of_one_sae(paths):
        tokens = numbers_of(annotations, shard.corpus, shard.positions)
        parity = annotations.documents[tokens] % 2
        for half, sums in enumerate((even, odd)):
            inside = shard.compared & (parity == half)
            acts = shard.latents[inside, latents.start : latents.stop]
            sums.add(acts, annotations.matrix[tokens[inside]], annotations.documents[tokens[inside]])
    return even, odd


def _shards_of_one_sae(paths: Sequence[Path | str]) -> Iterator[FeatureShard]:
    """Read shards one after the other, and refuse those of several SAEs."""
    first = None
    for path in paths:
        shard = FeatureShard(path)
        first = first or (shard.model, shard.sae, shard.d_sae)
        if (shard.model, shard.sae, shard.d_sae) != first:
            raise InputError(
                f"'{path}' must be of the SAE '{first[0]}.{first[1]}' with {first[2]} latents like the shards before "
                f"it, but is of '{shard.model}.{shard.sae}' with {shard.d_sae}; give the shards of one SAE"
            )
        yield shard


def _table(
    latents: range, chosen_on: Sums, scored_on: Sums, properties: Sequence[tuple[str, str]], min_firings: int
) -> pd.DataFrame:
    """The rows of some latents."""
    chosen = chosen_on.scores()
    chosen[np.isnan(chosen)] = -np.inf
    described = (chosen_on.firings >= min_firings) & (scored_on.firings >= min_firings)
    number, latent = _candidates(chosen, described, properties)
    if scored_on.together is None:
        raise ValueError("precision needs the tokens on which latents fire together with properties; count them")
    together, holds = scored_on.together[number, latent], scored_on.holds[number].astype(np.float64)
    columns = {
        "latent": latents.start + latent,
        "kind": [properties[index][0] for index in number],
        "label": [properties[index][1] for index in number],
        "score": scored_on.scores()[number, latent],
        "precision": together / scored_on.firings[latent],
        "recall": together / np.where(holds > 0, holds, np.nan),
        "n_firings": scored_on.firings[latent],
        "n_documents": scored_on.in_documents[latent],
        "wins": (number == chosen.argmax(axis=0)[latent]) & (chosen[number, latent] > 0),  # on a tie the first
    }
    return pd.DataFrame(columns).astype(COLUMNS)


def _candidates(
    chosen: Float[np.ndarray, "property latent"],
    described: Bool[np.ndarray, " latent"],
    properties: Sequence[tuple[str, str]],
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Property and latent of each row of the table, by ascending latent, then property."""
    kinds = np.array([kind for kind, _ in properties])
    pairs = []
    for kind in KINDS:
        (of_kind,) = np.nonzero(kinds == kind)
        if kind in ALL_SHOWN:
            pairs.append(np.stack(np.meshgrid(of_kind, np.flatnonzero(described), indexing="ij")).reshape(2, -1))
        elif len(of_kind):
            best = of_kind[chosen[of_kind].argmax(axis=0)]
            (labelled,) = np.nonzero(described & (chosen[best, np.arange(len(best))] > 0))
            pairs.append(np.stack([best[labelled], labelled]))
    number, latent = np.concatenate(pairs, axis=1)
    order = np.lexsort((number, latent))
    return number[order], latent[order]


def _add(products: scipy.sparse.csr_array, sums: Num[np.ndarray, "property latent"]) -> None:
    """Add sparse rows to dense ones, in place."""
    rows = np.repeat(np.arange(products.shape[0]), np.diff(products.indptr))
    sums[rows, products.indices] += products.data.astype(sums.dtype)  # a product has no entry twice
