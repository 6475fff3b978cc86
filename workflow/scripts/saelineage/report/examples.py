"""Examples: which features are shown token by token, on which passages, and how strongly they fire there.

`persisting_features`, `disappearing_features` and `named_features` choose; `describe` puts a feature's part of
`examples.json` together.
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
from saelineage.lineage.verdicts import DISAPPEARS
from saelineage.report.dashboards import Related


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
    if not models:  # a lineage without edges
        return []
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


def named_features(
    concepts: Sequence[str], model: str, labels: pd.DataFrame, related: Sequence[Related], density: pd.Series
) -> list[Choice]:
    """For each concept the feature of a model that follows it, or a part of it, best, beside its matches elsewhere.

    Args:
        concepts: names of concepts, such as `assignment`.
        model: whose features.
        labels: `labels/{model}/{sae}.parquet` with the column `sae`.
        related: from `dashboards.related_features`.
        density: of the model's features, by latent.
    """
    chosen = []
    concept_rows = labels[(labels["kind"] == "concept") & labels["score"].notna()]
    for concept in concepts:
        rows = concept_rows[[label.partition(" ")[0] == concept for label in concept_rows["label"]]]
        if rows.empty:
            continue
        best = rows.loc[rows["score"].idxmax()]
        latent = int(best["latent"])
        winners = labels[(labels["latent"] == latent) & labels["wins"]].to_dict("records")
        others = [other for other in related if other.latents[latent] >= 0]
        members = [Latent(model, best["sae"], latent)]
        members += [Latent(other.model, other.sae, int(other.latents[latent])) for other in others]
        note = {"concept": concept, "part": best["label"], "density": float(density[latent])}
        note |= {name: float(best[name]) for name in ("score", "precision", "recall")}
        note["labels"] = [{"label": describe_label(own), "score": _defined(own["score"])} for own in winners]
        note["found"] = [other.model for other in others if other.found[latent]]
        chosen.append(Choice(tuple(members), note))
    return chosen


def _defined(value: float) -> float | None:
    """A number for JSON, which knows no NaN."""
    return None if np.isnan(value) else float(value)


def choose_passages(
    tokens: Int[np.ndarray, " firing"], values: Float[np.ndarray, " firing"], annotations: Annotations, n: int
) -> list[int]:
    """Tokens of different documents on which a latent fires strongly.

    The first half are the strongest of all; then come the strongest of corpora not seen yet, then the next strongest.
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
        n_passages: how many.
    """
    own = [firings[member.model, member.sae].of(member.latent) for member in choice.members]
    peaks = choose_passages(*own[0], annotations, n_passages)
    stretches = windows(peaks, annotations)
    by_member = [activations_in(stretches, *columns) for columns in own]
    passages = []
    for index, stretch in enumerate(stretches):
        corpus, row, place = place_of(annotations, stretch.start)
        activations = [_spread(found[index], len(stretch)) for found in by_member]
        passage = {"corpus": corpus, "row": row, "first": place, "tokens": text_of(annotations, stretch)}
        passages.append(passage | {"activations": activations})
    members = [
        member._asdict() | {"max_activation": round(float(values.max(initial=0.0)), 4)}
        for member, (_, values) in zip(choice.members, own, strict=True)
    ]
    return choice.note | {"members": members, "r": _pairwise(own, annotations), "passages": passages}


def _spread(found: tuple[list[int], list[float]], n_tokens: int) -> list[float]:
    """Activations on all tokens of a passage, from those on which there are any."""
    activations = [0.0] * n_tokens
    for place, value in zip(*found, strict=True):
        activations[place] = round(value, 4)
    return activations


def _pairwise(columns: Sequence[tuple[np.ndarray, np.ndarray]], annotations: Annotations) -> list[list[float | None]]:
    """Pairwise Pearson r over all probe tokens, zeros included; None where one does not vary."""
    dense = np.zeros((len(columns), len(annotations.pieces)))
    for row, (tokens, values) in zip(dense, columns, strict=True):
        row[tokens] = values
    dense = dense[:, annotations.pieces >= 0]
    r = {pair: pearson(*(dense[side] for side in pair)) for pair in _pairs(len(columns))}
    return [[r[min(i, j), max(i, j)] for j in range(len(columns))] for i in range(len(columns))]


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
