"""Examples: features shown token by token, with the passages on which they fire and their activations there.

`persisting_features`, `gone_features` and `named_features` choose them; `describe` makes a feature's part of
`examples.json`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from saelineage.correlations.matches import Correlation
from saelineage.labels.annotations import Annotations, text_of
from saelineage.labels.labels import describe as describe_label
from saelineage.labels.passages import Firings, activations_in, place_of, strongest, windows
from saelineage.lineage.verdicts import GONE
from saelineage.plan.sae_names import SaeName
from saelineage.report.dashboards import Related, sae_of_each_model


class Latent(NamedTuple):
    """One latent of one SAE."""

    model: str
    sae: str
    latent: int


class Choice(NamedTuple):
    """Features shown together, line by line on the same text; the text is chosen for the first."""

    members: tuple[Latent, ...]
    note: dict
    """The reasons for the choice, for `examples.json`."""


def persisting_features(
    features: pd.DataFrame, roots: Sequence[str], models: Sequence[str], n_features: int
) -> list[Choice]:
    """The features of the roots that are found in the most models, those with the largest minimum r first.

    A feature that shares a match with one already chosen is left out, because it would show the same thing again.

    Args:
        features: `lineage/{hookpoint}/features.parquet`.
        roots: models without parents.
        models: all models, parents before children.
        n_features: number of features to choose.
    """
    models = [model for model in models if f"in_{model}" in features]
    if not models:  # a lineage without edges
        return []
    table = features[features["model"].isin(roots)]
    is_found = table[[f"in_{model}" for model in models]].to_numpy() >= 0
    r = table[[f"r_{model}" for model in models]].to_numpy(dtype=float)
    least = np.where(is_found, r, np.inf).min(axis=1)
    order = np.lexsort((table["latent"], -least, -is_found.sum(axis=1)))
    saes = sae_of_each_model(features)
    chosen: list[Choice] = []
    shown: set[Latent] = set()
    for index in order:
        row = table.iloc[index]
        models_with = [model for model, found in zip(models, is_found[index], strict=True) if found]
        matches = [Latent(name, saes[name], int(row[f"in_{name}"])) for name in models_with if name != row["model"]]
        if len(chosen) == n_features or not matches:
            break
        if shown.isdisjoint(matches):
            shown.update(matches)
            first = Latent(row["model"], row["sae"], int(row["latent"]))
            note = {"n_models": len(matches) + 1, "least_r": float(least[index]), "density": float(row["density"])}
            chosen.append(Choice((first, *matches), note))
    return chosen


def gone_features(
    edge: tuple[str, str],
    saes: Mapping[str, str],
    table: pd.DataFrame,
    seeds: Correlation | None,
    threshold: float,
    n_features: int,
) -> list[Choice]:
    """The most important features of an edge's parent that are gone although another seed's SAE has them.

    Candidates are the features on the edge's list of lost features (`headline`). If it is empty, they are the features
    that are gone and that the parent's second SAE has (r at or above the threshold; all of them if there is no second
    SAE).

    Args:
        edge: parent and child.
        saes: the SAE of each model that verdicts rest on.
        table: the edge's verdicts, with `importance`.
        seeds: the correlation of the parent's SAE with another of its seeds.
        threshold: r at or above this is a match.
        n_features: number of features to choose.
    """
    parent, child = edge
    rows = table[(table["side"] == "parent") & (table["verdict"] == GONE) & (table["match"] >= 0)]
    rows = rows[rows["headline"]] if rows["headline"].any() else rows
    name = f"{parent}.{saes[parent]}"
    again, partner = _recurrence(seeds, name, rows["latent"].to_numpy())
    rows = rows.assign(again=again, partner=partner)
    if seeds is not None:
        rows = rows[rows["again"] >= threshold]
    rows = rows.sort_values(["importance", "latent"], ascending=[False, True], kind="stable")
    chosen = []
    for row in rows.head(n_features).to_dict("records"):
        members = [Latent(parent, saes[parent], int(row["latent"]))]
        if seeds is not None:
            model, sae = SaeName.parse(_other(seeds, name))
            members.append(Latent(model, sae, int(row["partner"])))
        members.append(Latent(child, saes[child], int(row["match"])))
        note = {
            "importance": float(row["importance"]),
            "r_child": float(row["r"]),
            "r_seed": None if seeds is None else float(row["again"]),
            "density": float(row["density"]),
        }
        chosen.append(Choice(tuple(members), note))
    return chosen


def named_features(
    concepts: Sequence[str], model: str, labels: pd.DataFrame, related: Sequence[Related], density: pd.Series
) -> list[Choice]:
    """For each concept, the feature of a model that follows it (or a part of it) best, with its related features.

    Args:
        concepts: names of concepts, such as `assignment`.
        model: the model.
        labels: `labels/{hookpoint}/{model}/{sae}.parquet` with the column `sae`.
        related: from `dashboards.related_features`.
        density: of the model's features, by latent.
    """
    chosen = []
    concept_rows = labels[(labels["kind"] == "concept") & labels["score"].notna()]
    for concept in concepts:
        rows = concept_rows[[label.partition(" ")[0] == concept for label in concept_rows["label"]]]
        if rows.empty:
            continue
        best = rows.iloc[int(rows["score"].to_numpy().argmax())]
        latent = int(best["latent"])
        winners = labels[(labels["latent"] == latent) & labels["wins"]].to_dict("records")
        others = [other for other in related if other.latents[latent] >= 0]
        members = [Latent(model, best["sae"], latent)]
        members += [Latent(other.model, other.sae, int(other.latents[latent])) for other in others]
        note = {"concept": concept, "part": best["label"], "density": float(density[latent])}
        note |= {name: float(best[name]) for name in ("score", "precision", "recall")}
        note["labels"] = [{"label": describe_label(winner), "score": _defined(winner["score"])} for winner in winners]
        note["found"] = [other.model for other in others if other.found[latent]]
        chosen.append(Choice(tuple(members), note))
    return chosen


def _defined(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)


def choose_passages(
    tokens: Int[np.ndarray, " firing"], values: Float[np.ndarray, " firing"], annotations: Annotations, n: int
) -> list[int]:
    """Choose n tokens of different documents on which a latent fires strongly.

    The first half are the strongest of all. Then come the strongest of the corpora not shown yet, then the next
    strongest.
    """
    peaks = strongest(tokens, values, annotations.documents, len(tokens)).tolist()
    corpus = {peak: place_of(annotations, peak)[0] for peak in peaks}
    picked = peaks[: (n + 1) // 2]
    for peak in peaks:
        if len(picked) < n and corpus[peak] not in {corpus[other] for other in picked}:
            picked.append(peak)
    return picked + [peak for peak in peaks if peak not in picked][: n - len(picked)]


def describe(
    choice: Choice, firings: Mapping[tuple[str, str], Firings], annotations: Annotations, n_passages: int
) -> dict:
    """One feature of `examples.json`: members, pairwise r, and passages with each member's activations.

    Args:
        choice: the features shown together.
        firings: by (model, SAE).
        annotations: of the probe.
        n_passages: number of passages.
    """
    columns = [firings[member.model, member.sae].of(member.latent) for member in choice.members]
    peaks = choose_passages(*columns[0], annotations, n_passages)
    stretches = windows(peaks, annotations)
    by_member = [activations_in(stretches, tokens, values) for tokens, values in columns]
    passages = []
    for index, stretch in enumerate(stretches):
        corpus, row, place = place_of(annotations, stretch.start)
        activations = [_spread(*by_passage[index], len(stretch)) for by_passage in by_member]
        passage = {"corpus": corpus, "row": row, "first": place, "tokens": text_of(annotations, stretch)}
        passages.append(passage | {"activations": activations})
    members = [
        member._asdict() | {"max_activation": round(float(values.max(initial=0.0)), 4)}
        for member, (_, values) in zip(choice.members, columns, strict=True)
    ]
    return choice.note | {"members": members, "r": _pairwise(columns, annotations), "passages": passages}


def _spread(places: Sequence[int], values: Sequence[float], n_tokens: int) -> list[float]:
    """Activations on all tokens of a passage, from those that are not zero."""
    activations = [0.0] * n_tokens
    for place, value in zip(places, values, strict=True):
        activations[place] = round(value, 4)
    return activations


def _pairwise(columns: Sequence[tuple[np.ndarray, np.ndarray]], annotations: Annotations) -> list[list[float | None]]:
    """Pairwise Pearson r over all probe tokens, zeros included; None if one of the two does not vary."""
    dense = np.zeros((len(columns), len(annotations.pieces)))
    for row, (tokens, values) in zip(dense, columns, strict=True):
        row[tokens] = values
    dense = dense[:, annotations.pieces >= 0]
    r = {pair: pearson(*(dense[side] for side in pair)) for pair in _pairs(len(columns))}
    return [[r[min(i, j), max(i, j)] for j in range(len(columns))] for i in range(len(columns))]


def pearson(a: Float[np.ndarray, " token"], b: Float[np.ndarray, " token"]) -> float | None:
    """Pearson r of two columns, in [-1, 1]; None if one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a @ a) * (b @ b))
    return None if spread == 0 else float(np.clip((a @ b) / spread, -1.0, 1.0))


def _pairs(n: int) -> Iterable[tuple[int, int]]:
    return combinations_with_replacement(range(n), 2)


def _recurrence(
    seeds: Correlation | None, name: str, latents: Int[np.ndarray, " latent"]
) -> tuple[np.ndarray, np.ndarray]:
    """Best r of latents with another seed's SAE, and their partners; NaN and -1 if there is no such SAE."""
    if seeds is None:
        return np.full(len(latents), np.nan), np.full(len(latents), -1)
    side = seeds.names.index(name)
    return seeds.pearson.best[side][latents, 0], seeds.pearson.partners[side][latents, 0]


def _other(seeds: Correlation, name: str) -> str:
    """The other SAE of a pair of seeds."""
    return seeds.names[1 - seeds.names.index(name)]
