"""Dashboards: the page's view of every feature of a model, with the related features of other models.

In the order of a run: `related_features` chooses a feature of every other model for each feature, `feature_table` is
the searchable table, `Dashboards` makes the dashboards, and `packed` turns either into a script. The page loads data as
scripts because a page opened from a disk may not fetch files.
"""

import base64
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer

from saelineage.labels.annotations import Annotations, text_of
from saelineage.labels.labels import describe, sentence
from saelineage.labels.passages import Firings, Peak, activations_in, choose_peaks, place_of, windows
from saelineage.lineage.matching import INHERITED, PERSISTS, SIDES, UNTESTABLE
from saelineage.lineage.verdicts import DRIFTED, GONE, NEW

FEATURES_PER_CHUNK = 128
N_BINS = 20
N_TOP_TOKENS = 4
N_LOGITS = 8
PARTIAL = "\ufffd"
"""A decoder's replacement for a part of a character."""
VERDICTS = (PERSISTS, INHERITED, DRIFTED, GONE, NEW, UNTESTABLE)
EdgeTables = Mapping[tuple[str, str], pd.DataFrame]


class Related(NamedTuple):
    """For every feature of a model, the related feature of another model."""

    model: str
    sae: str
    latents: Int[np.ndarray, " d_sae"]
    """The other model's latent, or -1."""
    r: Float[np.ndarray, " d_sae"]
    """The minimum Pearson r on the path to it."""
    found: Bool[np.ndarray, " d_sae"]
    """True if the feature persists or is inherited on every edge of the path; otherwise it is only the closest one."""


class Shown(NamedTuple):
    """The number of passages shown of each feature."""

    n_top: int
    """Strongest passages of each corpus."""
    quantiles: tuple[float, ...]
    """Quantiles of strength; one passage of each corpus is shown for each."""


def read_edges(paths: Iterable[Path | str], edges: Iterable[Sequence[str]]) -> dict[tuple[str, str], pd.DataFrame]:
    """Read the tables of edges by (parent, child)."""
    return {(parent, child): pd.read_parquet(path) for path, (parent, child) in zip(paths, edges, strict=True)}


def with_importance(edges: EdgeTables, importance: EdgeTables) -> dict[tuple[str, str], pd.DataFrame]:
    """Tables of edges with a column `importance`, NaN for untestable features.

    Args:
        edges: the table of each (parent, child).
        importance: `lineage/{hookpoint}/importance/{edge}.parquet` of the same edges.
    """
    keys = ["side", "latent"]
    return {
        edge: table.merge(importance[edge][[*keys, "importance"]], on=keys, how="left") for edge, table in edges.items()
    }


def related_features(model: str, features: pd.DataFrame, edges: EdgeTables) -> list[Related]:
    """Choose, for every feature of a model, its related feature in each other model.

    That is the feature reached by following matches from edge to edge. Where there is none, it is the closest feature
    on an edge between the two models, if there is such an edge.

    Args:
        model: the model whose features are looked up.
        features: `lineage/{hookpoint}/features.parquet`.
        edges: the table of each (parent, child).
    """
    rows = features[features["model"] == model]
    saes = sae_of_each_model(features)
    related = []
    for other in [name for name in saes if name != model]:
        latents, r = rows[f"in_{other}"].to_numpy(copy=True), rows[f"r_{other}"].to_numpy(dtype=float, copy=True)
        found = latents >= 0
        closest = _closest(model, other, edges)
        if closest is not None:
            latents, r = np.where(found, latents, closest["match"]), np.where(found, r, closest["r"])
        if (latents >= 0).any():
            related.append(Related(other, saes[other], latents, r, found))
    return related


def sae_of_each_model(features: pd.DataFrame) -> dict[str, str]:
    """The SAE whose features `lineage/{hookpoint}/features.parquet` lists, by model."""
    models = features.drop_duplicates("model")
    return dict(zip(models["model"], models["sae"], strict=True))


def _closest(model: str, other: str, edges: EdgeTables) -> pd.DataFrame | None:
    """The rows of a model's features on its edge with another model; None if there is no such edge."""
    for side, edge in zip(SIDES, [(model, other), (other, model)], strict=True):
        if edge in edges:
            return edges[edge][edges[edge]["side"] == side].reset_index(drop=True)
    return None


def feature_table(
    model: str,
    features: pd.DataFrame,
    edges: EdgeTables,
    firings: Firings,
    annotations: Annotations,
    labels: pd.DataFrame,
    explanations: pd.DataFrame | None,
    no_change: Float[np.ndarray, " d_sae"],
    published: str | None = None,
) -> dict:
    """The page's table of a model's features, column by column, as plain data.

    Args:
        model: the model.
        features: `lineage/{hookpoint}/features.parquet`.
        edges: the table of each (parent, child), `with_importance`.
        firings: of the model's SAE on the probe.
        annotations: of the probe.
        labels: a row per labelled feature: `latent`, `kind`, `label`, `score`, `precision`, `recall`, `n_documents`.
        explanations: a row per explained feature: `latent`, `explanation`, `score`; None if there are none.
        no_change: each feature's best r when the model is unchanged; NaN if not measured.
        published: where an imported SAE's latents are published, under the same numbers (`neuronpedia_address`).
    """
    features = features[features["model"] == model]
    shares = corpus_shares(firings, annotations)
    strings, tokens = _interned(top_tokens(firings, annotations))
    labels = labels.set_index("latent").reindex(features["latent"])
    rows = labels.to_dict("records")
    kinds, kind = _interned(labels["kind"])
    texts, text = _interned([describe(row) if isinstance(row["label"], str) else None for row in rows])
    meanings = {describe(row): sentence(row) for row in rows if isinstance(row["label"], str)}
    return {
        "model": model,
        "sae": features["sae"].iloc[0],
        "n": len(features),
        "published": published,
        "density": _numbers(features["density"], 3),
        "largest": _numbers(firings.largest, 3),
        "firings": features["firings"].tolist(),
        "no_change": _numbers(no_change, 3),
        "shares": {corpus: _numbers(share, 2) for corpus, share in shares.items()},
        "strings": strings,
        "tokens": tokens,
        "labels": texts,
        "meanings": [meanings[text] for text in texts],
        "label": text,
        "kinds": kinds,
        "kind": kind,
        **{name: _numbers(labels[name], 3) for name in ("score", "precision", "recall")},
        "explained": [] if explanations is None else _explained(explanations),
        "edges": [_edge_columns(model, edge, table) for edge, table in edges.items() if model in edge],
    }


def _explained(explanations: pd.DataFrame) -> list[list]:
    """Latent, explanation and score of each feature with an explanation."""
    rows = explanations.dropna(subset=["explanation"])
    return [
        [int(latent), text, _number(score, 3)]
        for latent, text, score in zip(rows["latent"], rows["explanation"], rows["score"], strict=True)
    ]


def _edge_columns(model: str, edge: tuple[str, str], table: pd.DataFrame) -> dict:
    """An edge's verdicts on the features of one of its models."""
    side = SIDES[edge.index(model)]
    rows = table[table["side"] == side]
    return {
        "parent": edge[0],
        "child": edge[1],
        "side": side,
        "verdict": [VERDICTS.index(verdict) for verdict in rows["verdict"]],
        "match": rows["match"].tolist(),
        **{name: _numbers(rows[name], 3) for name in ("r", "r_low", "r_high", "importance")},
        "details": [
            _details(*row)
            for row in zip(
                rows["kind"].where(rows["verdict"].isin([PERSISTS, INHERITED]), ""),
                *(rows[name] for name in ("change", "identified", "headline", "robust")),
                rows["all_agree"].fillna(False),  # missing where no other way can tell
                strict=True,
            )
        ],
    }


def _details(kind: str, change: str, is_identified: bool, is_sure: bool, is_robust: bool, do_all_agree: bool) -> str:
    """Details of a verdict: split or merged, its change, and what else is known of it."""
    flags = {"identified": is_identified, "sure": is_sure, "robust": is_robust, "all agree": do_all_agree}
    parts = [kind if kind in ("split", "merged") else "", change, *(name for name, holds in flags.items() if holds)]
    return ", ".join(part for part in parts if part)


def corpus_shares(firings: Firings, annotations: Annotations) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Each feature's density on each corpus as a share of the sum of its densities; NaN if it never fires."""
    bounds = [*annotations.starts.values(), len(annotations.pieces)]
    densities = []
    for start, stop in pairwise(bounds):
        inside = (firings.columns.indices >= start) & (firings.columns.indices < stop)
        counts = np.add.reduceat(np.append(inside, 0).astype(np.int64), firings.columns.indptr[:-1])
        counts[np.diff(firings.columns.indptr) == 0] = 0
        n_tokens = int((annotations.pieces[start:stop] >= 0).sum())
        densities.append(counts / max(n_tokens, 1))
    total = np.sum(densities, axis=0)
    return {
        corpus: np.divide(density, total, out=np.full(len(total), np.nan), where=total > 0)
        for corpus, density in zip(annotations.starts, densities, strict=True)
    }


def top_tokens(firings: Firings, annotations: Annotations, n: int = N_TOP_TOKENS) -> list[list[str]]:
    """The tokens (as texts) with the largest summed activations of each feature, largest first."""
    where = np.flatnonzero(annotations.pieces >= 0)
    shape = (len(annotations.pieces), len(annotations.strings))
    ones = np.ones(len(where))
    texts = scipy.sparse.coo_array((ones, (where, annotations.pieces[where])), shape=shape).tocsr()
    sums = (firings.columns.T.astype(np.float64) @ texts).tocsr()
    tokens = []
    for start, stop in pairwise(sums.indptr):
        order = np.lexsort((sums.indices[start:stop], -sums.data[start:stop]))[:n]
        tokens.append([annotations.strings[index] for index in sums.indices[start:stop][order]])
    return tokens


class Board(NamedTuple):
    """The dashboard of one feature, without other models' features."""

    peaks: list[Peak]
    stretches: list[range]
    """The text shown around each peak."""
    histogram: list[int]
    activations: list[list]
    """Per stretch, the places where the feature fires and its activations there."""


class Dashboards:
    """The dashboards of one model's features. Other models' features are added one SAE at a time."""

    def __init__(self, firings: Firings, annotations: Annotations, shown: Shown):
        """Choose the passages of every feature.

        Args:
            firings: of the model's SAE on the probe.
            annotations: of the probe.
            shown: the number of passages.
        """
        self._annotations = annotations
        self._boards: list[Board] = []
        bounds = [*annotations.starts.values(), len(annotations.pieces)]
        for latent in range(firings.columns.shape[1]):
            tokens, values = firings.of(latent)
            peaks = _peaks(tokens, values, bounds, annotations, shown)
            stretches = windows((peak.token for peak in peaks), annotations)
            activations = self._activations(stretches, tokens, values)
            self._boards.append(Board(peaks, stretches, _histogram(values), activations))
        self._others: list[list[dict]] = [[] for _ in self._boards]

    def add(self, related: Related, firings: Firings) -> None:
        """Add the related features of another model, on the same text."""
        largest = firings.largest
        for latent in np.flatnonzero(related.latents >= 0).tolist():
            other = int(related.latents[latent])
            entry = {
                "model": related.model,
                "latent": other,
                "r": _number(related.r[latent], 3),
                "found": bool(related.found[latent]),
                "largest": _number(largest[other], 3),
                "activations": self._activations(self._boards[latent].stretches, *firings.of(other)),
            }
            self._others[latent].append(entry)

    def chunk(self, first: int, effects: Sequence[dict] | None) -> dict:
        """The dashboards of `FEATURES_PER_CHUNK` features from `first` on, as plain data.

        Args:
            first: their first latent.
            effects: of these features, from `logit_effects`; None if there are none.
        """
        numbers = range(first, min(first + FEATURES_PER_CHUNK, len(self._boards)))
        strings: dict[str, int] = {}
        features = [self._dashboard(latent, strings) for latent in numbers]
        if effects is not None:
            features = [feature | effect for feature, effect in zip(features, effects, strict=True)]
        return {"strings": list(strings), "features": features}

    def __len__(self) -> int:
        """The number of features."""
        return len(self._boards)

    def _dashboard(self, latent: int, strings: dict[str, int]) -> dict:
        """A feature's dashboard. New token texts are added to `strings`; passages refer to texts by their numbers."""
        peaks, stretches, histogram, activations = self._boards[latent]
        passages = [self._passage(peak, stretch, strings) for peak, stretch in zip(peaks, stretches, strict=True)]
        return {
            "histogram": histogram,
            "passages": passages,
            "activations": activations,
            "others": self._others[latent],
        }

    def _passage(self, peak: Peak, stretch: range, strings: dict[str, int]) -> dict:
        corpus, row, place = place_of(self._annotations, stretch.start)
        texts = text_of(self._annotations, stretch)
        tokens = [strings.setdefault(text, len(strings)) for text in texts]
        return {"corpus": corpus, "row": row, "place": place, "why": peak.why, "tokens": tokens}

    def _activations(self, stretches: Sequence[range], tokens: np.ndarray, values: np.ndarray) -> list[list]:
        """Per passage, the places where a feature fires and its activations there."""
        return [
            [places, [_number(value, 3) for value in strengths]]
            for places, strengths in activations_in(stretches, tokens, values)
        ]


def logit_effects(
    decoder: Float[np.ndarray, "latent d_in"],
    to_norm: Float[np.ndarray, "d_in d_model"],
    unembedding: Float[np.ndarray, "d_vocab d_model"],
    texts: Sequence[str],
    n: int = N_LOGITS,
) -> list[dict]:
    """The tokens whose logits each feature raises and lowers most on the direct path, per unit of activation.

    The path is that of `logit_maps.LogitMap`. The mean over the vocabulary is subtracted, because softmax does not
    depend on it. The final norm's scale of each token is left out, so only the order and the ratios mean something.

    Args:
        decoder: rows of W_dec.
        to_norm, unembedding: of the model.
        texts: of the vocabulary.
        n: tokens on either side.
    """
    effects = decoder @ to_norm @ unembedding.T
    effects -= effects.mean(axis=1, keepdims=True)
    last = effects.shape[1] - 1
    return [
        {
            name: [[texts[token], _number(float(logits[token]), 3)] for token in tokens.tolist()]
            for name, tokens in (
                ("raised", largest(logits, n)),
                ("lowered", last - largest(-logits[::-1], n)),  # on a tie the other way round
            )
        }
        for logits in effects
    ]


def largest(values: Float[np.ndarray, " any"], n: int) -> Int[np.ndarray, " place"]:
    """The places of the n largest values, the largest first, on a tie the lower place first.

    Values are divided at the n-th largest, not sorted: a vocabulary has up to 262,144 tokens.
    """
    bound = np.partition(values, max(0, len(values) - n))[max(0, len(values) - n)]
    (places,) = np.nonzero(values >= bound)
    return places[np.argsort(-values[places], kind="stable")][:n]


def vocabulary_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each of some ids; the token's name for ids that have no text alone, such as parts of a character."""
    texts = []
    for token in ids:
        text = tokenizer.decode([token], skip_special_tokens=False)
        texts.append(text if text and PARTIAL not in text else tokenizer.id_to_token(token) or f"id {token}")
    return texts


def _peaks(
    tokens: np.ndarray, values: np.ndarray, bounds: Sequence[int], annotations: Annotations, shown: Shown
) -> list[Peak]:
    """The peaks shown of a feature, corpus by corpus."""
    parts = np.searchsorted(tokens, bounds)
    peaks = []
    for low, high in pairwise(parts):
        peaks += choose_peaks(tokens[low:high], values[low:high], annotations, shown.n_top, shown.quantiles)
    return peaks


def _histogram(values: Float[np.ndarray, " firing"]) -> list[int]:
    """The number of firings in each of `N_BINS` equal bins from 0 to the largest activation."""
    return np.histogram(values, bins=N_BINS, range=(0.0, float(values.max(initial=0.0)) or 1.0))[0].tolist()


def packed(name: str, value: object) -> str:
    """A script that hands a value to the page: `saelineage.receive(name, base64 of gzip of JSON)`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return f'saelineage.receive("{name}","{base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()}")\n'


def _interned(values: Iterable) -> tuple[list[str], list]:
    """The distinct texts in order, and the values (or lists of values) as indices into them; None stays None."""
    strings: dict[str, int] = {}

    def number(value: object) -> object:
        if isinstance(value, list):
            return [number(part) for part in value]
        return strings.setdefault(value, len(strings)) if isinstance(value, str) else None

    numbers = [number(value) for value in values]
    return list(strings), numbers


def _numbers(values: Sequence[float] | np.ndarray | pd.Series, digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values]


def _number(value: float | np.floating, digits: int) -> float | None:
    """A number rounded to significant digits, so that JSON is short; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.{digits}g}")
