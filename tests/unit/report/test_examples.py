"""Examples: the features that are chosen, their passages and their numbers."""

import numpy as np
import pandas as pd
import pytest

from saelineage.labels.annotations import Annotations
from saelineage.report.dashboards import Related
from saelineage.report.examples import (
    Choice,
    Latent,
    changed_features,
    choose_passages,
    describe,
    named_features,
    pearson,
    persisting_features,
)
from tests.annotated import annotated, dense, firings

ROWS = [[None, "a", "b", "c", "d", "e"], [None, "f", None, "g", "h", "i"]]
"""Used twice: tokens 0 to 11 of one corpus and 12 to 23 of the other; a document continues in the second row."""
STRONG, WEAK = {3: 9.0, 10: 4.0, 22: 2.0}, {10: 2.0, 22: 2.0}


@pytest.fixture
def probe() -> Annotations:
    return annotated({"lua": ROWS, "english": ROWS})


def features(rows):
    """A `features.parquet` of one root `base` and two children from rows (in_a, r_a, in_b, r_b)."""
    table = pd.DataFrame(rows, columns=["in_a", "r_a", "in_b", "r_b"])
    base = {"model": "base", "sae": "seed0", "latent": range(len(table)), "density": 0.1}
    table = table.assign(**base, in_base=range(len(table)), r_base=1.0)
    others = pd.DataFrame({"model": ["a", "b"], "sae": ["seed0", "seed0"], "latent": [0, 0]})
    return pd.concat([table, others], ignore_index=True)


def test_features_found_in_most_models_come_first_then_those_with_the_largest_minimum_r():
    table = features([(1, 0.99, -1, np.nan), (2, 0.9, 3, 0.85), (4, 0.95, 5, 0.9), (-1, np.nan, -1, np.nan)])
    chosen = persisting_features(table, ["base"], ["base", "a", "b"], 4)
    assert [choice.members[0].latent for choice in chosen] == [2, 1, 0]
    assert chosen[0].note == {"n_models": 3, "least_r": 0.9, "density": 0.1}
    assert chosen[2].members == (Latent("base", "seed0", 0), Latent("a", "seed0", 1))


def test_features_that_share_a_match_or_have_none_are_not_chosen():
    table = features([(1, 0.9, 1, 0.9), (1, 0.85, 2, 0.85)])
    assert len(persisting_features(table, ["base"], ["base", "a", "b"], 2)) == 1
    assert persisting_features(features([(-1, np.nan, -1, np.nan)]), ["base"], ["base", "a", "b"], 3) == []
    without_edges = pd.DataFrame(columns=["model", "sae", "latent", "firings", "density", "origin"])
    assert persisting_features(without_edges, ["base"], ["base"], 3) == []


SAES = {"base": "seed0", "lua": "from_base"}


def edge(*rows: tuple, side: str = "child") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of verdicts and importance of one side, from verdict, r, r_high, match, importance, identified, sure."""
    names = ["verdict", "r", "r_high", "match", "importance", "identified", "headline"]
    table = pd.DataFrame(rows, columns=names).assign(side=side, latent=range(len(rows)))
    table = table.assign(r_low=table["r"] - 0.05)
    figures = {"effect": 2.0, "exact_effect": np.nan, "contrast_corpus": "lua", "density_lua": 0.25}
    return table.drop(columns="importance"), table.assign(**figures, match_density_lua=0.125)


def changed(*rows: tuple, side: str = "child", shares_numbers: bool = False, n: int = 5) -> list[Choice]:
    verdicts, importance = edge(*rows, side=side)
    return changed_features(("base", "lua"), side, SAES, verdicts, importance, 0.8, shares_numbers, n)


def test_new_features_that_are_sure_come_first_then_identified_ones_by_importance():
    found = changed(
        ("new", 0.1, 0.2, 5, 9.0, True, False),
        ("new", 0.1, 0.2, 6, 1.0, True, True),
        ("new", 0.3, 0.4, 7, 2.0, True, True),
        ("new", 0.1, 0.2, 8, 50.0, False, False),  # not identified
        ("new", 0.7, 0.81, 9, 50.0, True, False),  # other documents might find it
        ("inherited", 0.9, 0.95, 9, 50.0, True, False),
    )
    assert [choice.members[0].latent for choice in found] == [2, 1, 0]
    assert found[0].members == (Latent("lua", "from_base", 2), Latent("base", "seed0", 7))
    assert found[0].note == {
        **{"headline": True, "identified": True, "importance": 2.0, "effect": 2.0, "exact_effect": None},
        **{"contrast_corpus": "lua", "match": 7, "match_r": 0.3, "match_r_low": 0.25, "match_r_high": 0.4},
        **{"densities": {"lua": 0.25}, "match_densities": {"lua": 0.125}, "returns_in": None},
    }
    assert [choice.members[0].latent for choice in changed(("new", 0.1, 0.2, 6, 1.0, True, True), n=1)] == [0]


def test_lost_features_are_those_of_the_parent_beside_the_child():
    (choice,) = changed(("gone", 0.1, 0.2, 5, 9.0, True, True), side="parent")
    assert choice.members == (Latent("base", "seed0", 0), Latent("lua", "from_base", 5))


def test_lost_features_name_the_revived_models_in_which_they_return():
    verdicts, importance = edge(
        ("gone", 0.1, 0.2, 5, 9.0, True, True), ("gone", 0.1, 0.2, 6, 8.0, True, True), side="parent"
    )
    verdicts = verdicts.assign(returns_in=["back", ""])
    found = changed_features(("base", "lua"), "parent", SAES, verdicts, importance, 0.8, False, 5)
    assert [choice.note["returns_in"] for choice in found] == ["back", None]


def test_where_no_feature_is_identified_all_are_candidates_and_one_may_have_no_match():
    (choice,) = changed(("new", np.nan, np.nan, -1, 9.0, False, False))
    assert choice.members == (Latent("lua", "from_base", 0),)
    assert (choice.note["match"], choice.note["match_r"]) == (None, None)


def test_saes_that_share_numbers_show_the_latent_of_the_same_number_unless_it_is_the_match():
    rows = [("new", 0.1, 0.2, 5, 9.0, True, True), ("new", 0.1, 0.2, 1, 8.0, True, True)]
    first, second = changed(*rows, shares_numbers=True)
    assert first.members[1:] == (Latent("base", "seed0", 5), Latent("base", "seed0", 0))
    assert second.members[1:] == (Latent("base", "seed0", 1),)


def labels(*rows: tuple[int, str, str, float, bool]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["latent", "kind", "label", "score", "wins"])
    return table.assign(sae="seed0", precision=0.5, recall=0.25, n_documents=9)


def related(model: str, latents: list[int], found: list[bool]) -> Related:
    return Related(model, "seed1", np.array(latents), np.full(len(latents), 0.5), np.array(found))


DENSITY = pd.Series([0.1, 0.2, 0.3])


def test_the_feature_that_follows_a_concept_or_a_part_of_it_best_is_shown_with_its_related_features():
    table = labels(
        (0, "concept", "assignment", 0.5, False),
        (1, "concept", "assignment target", 0.75, False),
        (1, "concept", "exception", 0.9, False),
        (1, "token", "local", 0.85, True),
        (2, "token", "assignment", 0.95, True),  # the word, not the concept
        (2, "concept", "assignment =", np.nan, False),
    )
    others = [related("lua", [4, 5, 6], [True, False, True]), related("stories", [7, -1, -1], [True, False, False])]
    (chosen,) = named_features(["assignment"], "base", table, others, DENSITY)
    # It is not found in lua, where 5 is only the closest, and nothing of stories is related to it.
    assert chosen.members == (Latent("base", "seed0", 1), Latent("lua", "seed1", 5))
    assert chosen.note == {
        **{"concept": "assignment", "part": "assignment target", "density": 0.2},
        **{"score": 0.75, "precision": 0.5, "recall": 0.25},
        **{"labels": [{"label": "token 'local'", "score": 0.85}], "found": []},
    }


def test_a_named_feature_says_where_it_is_found_and_may_have_a_label_without_a_score():
    table = labels((0, "concept", "assignment", 0.5, False), (0, "token", "x", np.nan, True))
    others = [related("lua", [4, 5, 6], [True, False, True]), related("stories", [7, -1, -1], [False, False, False])]
    (chosen,) = named_features(["assignment"], "base", table, others, DENSITY)
    assert chosen.note["found"] == ["lua"]
    assert chosen.note["labels"] == [{"label": "token 'x'", "score": None}]
    assert chosen.members[1:] == (Latent("lua", "seed1", 4), Latent("stories", "seed1", 7))


def test_concepts_keep_their_order_and_those_that_nothing_follows_are_left_out():
    table = labels(
        (0, "concept", "assignment", 0.5, True),
        (2, "concept", "exception", 0.4, True),
        (2, "concept", "class", 0.39, True),  # too weakly to say so
        (1, "concept", "loop", np.nan, False),
    )
    found = named_features(["exception", "loop", "class", "assignment"], "base", table, [], DENSITY)
    assert [choice.note["concept"] for choice in found] == ["exception", "assignment"]
    assert named_features(["exception"], "base", labels(), [], DENSITY) == []


def test_passages_come_from_different_documents_and_first_from_corpora_not_shown_yet(probe):
    tokens, values = firings(probe, STRONG | {13: 1.0}).of(0)
    # The first half are the strongest of all; 22 is the strongest of the other corpus, though 10 is stronger.
    assert choose_passages(tokens, values, probe, 2) == [3, 22]
    assert choose_passages(tokens, values, probe, 3) == [3, 10, 22]
    assert choose_passages(tokens, values, probe, 4) == choose_passages(tokens, values, probe, 9) == [3, 10, 22, 13]


def test_a_latent_that_never_fires_has_no_passage(probe):
    own = firings(probe, {})
    assert choose_passages(*own.of(0), probe, 3) == []
    found = describe(Choice((Latent("base", "seed0", 0),), {}), {("base", "seed0"): own}, probe, {}, 3)
    assert (found["passages"], found["r"]) == ([], [[None]])
    assert found["members"][0]["max_activation"] == 0.0


LABELLED = labels((0, "token", "c", 0.5, True)).set_index("latent")
"""What the first latent follows."""


def test_a_feature_is_described_with_the_activations_of_every_member(probe):
    members = (Latent("base", "seed0", 0), Latent("lua", "seed1", 1))
    by_sae = {("base", "seed0"): firings(probe, STRONG), ("lua", "seed1"): firings(probe, {}, WEAK | {2: 1.23456})}
    found = describe(Choice(members, {"density": 0.1}), by_sae, probe, {"base": LABELLED}, 2)
    assert found["density"] == 0.1
    assert [member["max_activation"] for member in found["members"]] == [9.0, 2.0]
    assert found["members"][1] == {
        **{"model": "lua", "sae": "seed1", "latent": 1, "max_activation": 2.0, "label": None, "score": None}
    }
    assert (found["members"][0]["label"], found["members"][0]["score"]) == ("token 'c'", 0.5)
    assert found["passages"] == [
        {
            **{"corpus": "lua", "row": 0, "first": 1, "tokens": ["a", "b", "c", "d", "e"]},
            "activations": [[0, 0, 9.0, 0, 0], [0, 1.2346, 0, 0, 0]],
        },
        # The document begins after EOS, in the third place of its row.
        {
            **{"corpus": "english", "row": 1, "first": 3, "tokens": ["g", "h", "i"]},
            "activations": [[0, 2.0, 0], [0, 2.0, 0]],
        },
    ]


def test_r_is_that_of_numpy_over_all_tokens_of_text(probe):
    members = (Latent("base", "seed0", 0), Latent("base", "seed0", 1))
    own = firings(probe, STRONG, WEAK)
    found = describe(Choice(members, {}), {("base", "seed0"): own}, probe, {}, 1)["r"]
    # BOS and EOS are no text: 18 of 24 tokens are.
    text = dense(probe, [STRONG, WEAK])[probe.pieces >= 0]
    assert text.shape == (18, 2)
    np.testing.assert_allclose(np.array(found), np.corrcoef(text.T), rtol=1e-12)


def test_r_with_a_column_that_does_not_vary_is_undefined():
    assert pearson(np.ones(4), np.arange(4.0)) is None
