"""Examples: features shown token by token, with the passages on which they fire and their activations there.

`persisting_features`, `changed_features` and `named_features` choose them; `describe` makes a feature's part of
`examples.json`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from saelineage.labels.annotations import Annotations, text_of
from saelineage.labels.labels import describe as describe_label
from saelineage.labels.passages import Firings, activations_in, place_of, strongest, windows
from saelineage.lineage.importance import reading_order
from saelineage.lineage.matching import SIDES
from saelineage.report.dashboards import Related, sae_of_each_model

LEAST_OF_CONCEPT = 0.4
"""Pearson r with a concept below which a feature is not said to follow it."""


class Latent(NamedTuple):
    """One latent of one SAE."""

    model: str
    sae: str
    latent: int


class Choice(NamedTuple):
    """Features shown together, line by line on the same text; the text is chosen for the first."""

    members: tuple[Latent, ...]
    note: dict
    """The reasons for the choice, and what else is said of the first, for `examples.json`."""


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


def changed_features(
    edge: tuple[str, str],
    side: str,
    saes: Mapping[str, str],
    verdicts: pd.DataFrame,
    importance: pd.DataFrame,
    threshold: float,
    shares_numbers: bool,
    n_features: int,
) -> list[Choice]:
    """The features of one side of an edge that are lost or new, the most important first, each with its closest match.

    Features whose interval of r reaches the threshold are left out, because other documents might find them. Where it
    is known which features are identified, the others are left out too.

    Args:
        edge: parent and child.
        side: `parent` for lost features, `child` for new ones.
        saes: the SAE of each model that verdicts rest on.
        verdicts: the edge's table.
        importance: `lineage/{hookpoint}/importance/{edge}.parquet`.
        threshold: r at or above this is a match.
        shares_numbers: whether the two SAEs come from one, so that a latent's number means something in both. Then the
            other model's latent of the same number is shown too, if it is not the match.
        n_features: number of features to choose.
    """
    model, other = edge if side == SIDES[0] else edge[::-1]
    own = verdicts[verdicts["side"] == side].set_index("latent")
    by_latent = own.to_dict("index")
    rows = reading_order(importance[importance["side"] == side])
    if own["identified"].any():
        rows = rows[rows["identified"]]
    reaches = own["r_high"].reindex(rows["latent"]).to_numpy(dtype=float) >= threshold
    chosen = []
    for row in rows[~reaches].head(n_features).to_dict("records"):
        latent, match = int(row["latent"]), int(row["match"])
        members = [Latent(model, saes[model], latent)]
        members += [Latent(other, saes[other], match)] if match >= 0 else []
        members += [Latent(other, saes[other], latent)] if shares_numbers and match != latent else []
        chosen.append(Choice(tuple(members), _change_note(row, by_latent[latent], match)))
    return chosen


def _change_note(row: Mapping, verdict: Mapping, match: int) -> dict:
    """What a card says of a lost or new feature, from its rows of the tables of importance and verdicts."""
    corpora = [name.removeprefix("density_") for name in row if name.startswith("density_")]
    numbers = {name: _defined(row[name]) for name in ("importance", "effect", "exact_effect")}
    return {
        **{name: bool(row[name]) for name in ("headline", "identified")},
        **numbers,
        "contrast_corpus": row["contrast_corpus"],
        "returns_in": verdict.get("returns_in") or None,
        "match": match if match >= 0 else None,
        **{f"match_{name}": _defined(verdict[name]) for name in ("r", "r_low", "r_high")},
        "densities": {corpus: _defined(row[f"density_{corpus}"]) for corpus in corpora},
        "match_densities": {corpus: _defined(row[f"match_density_{corpus}"]) for corpus in corpora},
    }


def named_features(
    concepts: Sequence[str], model: str, labels: pd.DataFrame, related: Sequence[Related], density: pd.Series
) -> list[Choice]:
    """For each concept, the feature of a model that follows it (or a part of it) best, with its related features.

    A concept that no feature follows at r >= `LEAST_OF_CONCEPT` has none.

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
        if rows.empty or rows["score"].max() < LEAST_OF_CONCEPT:
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


def _label(labels: Mapping[str, pd.DataFrame], member: Latent) -> dict:
    """What a latent follows, and the correlation with it; None where it follows nothing known."""
    of_model = labels.get(member.model)
    if of_model is None or member.latent not in of_model.index:
        return {"label": None, "score": None}
    row = of_model.loc[[member.latent]].to_dict("records")[0]
    return {"label": describe_label(row), "score": _defined(row["score"])}


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
    choice: Choice,
    firings: Mapping[tuple[str, str], Firings],
    annotations: Annotations,
    labels: Mapping[str, pd.DataFrame],
    n_passages: int,
) -> dict:
    """One feature of `examples.json`: members, pairwise r, and passages with each member's activations.

    Args:
        choice: the features shown together.
        firings: by (model, SAE).
        annotations: of the probe.
        labels: by model the winning labels of the SAE that verdicts rest on, by latent.
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
        member._asdict()
        | {
            "max_activation": round(float(values.max(initial=0.0)), 4),
            **_label(labels, member),
        }
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
