"""The page's view of every feature: related features, the table, the dashboards, and their packing."""

import json

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer

from saelineage.labels.annotations import Annotations
from saelineage.lineage.matching import UNTESTABLE
from saelineage.lineage.verdicts import VERDICTS as SIDE_VERDICTS
from saelineage.report.dashboards import (
    FEATURES_PER_CHUNK,
    N_BINS,
    PARTIAL,
    VERDICTS,
    Dashboards,
    Related,
    Shown,
    corpus_shares,
    feature_table,
    largest,
    logit_effects,
    packed,
    related_features,
    top_tokens,
    vocabulary_texts,
    with_importance,
)
from saelineage.tokens import train_tokenizer
from tests.annotated import annotated, dense, firings, unpacked
from tests.hostile import TEXTS

ROWS = {
    # Tokens 0 to 11: document 0 continues in the second row, where document 1 follows.
    "lua": [[None, "local", " x", " =", " 1", "\n"], [None, "local", None, "y", " x", "\n"]],
    # Tokens 12 to 17: documents 2 and 3.
    "english": [[None, "the", " x", None, "y", "!"]],
}
N_LUA, N_ENGLISH = 9, 4
"""Tokens of text."""


@pytest.fixture
def probe() -> Annotations:
    return annotated(ROWS)


# ---- features of other models


def of_model(model: str, n: int, **ways: list) -> pd.DataFrame:
    """Rows of `features.parquet` of a model whose features are found where `ways` says."""
    table = pd.DataFrame({"model": model, "sae": "seed0", "latent": range(n), "firings": 5, "density": 0.25})
    return table.assign(**ways)


def edge(side: str, match: list[int], r: list[float], verdict: list[str] | None = None) -> pd.DataFrame:
    """One side of an edge's table."""
    n = len(match)
    found = {"side": side, "latent": range(n), "verdict": verdict or ["gone"] * n, "kind": "", "match": match}
    unknown = {"change": "", "identified": False, "headline": False, "robust": False, "all_agree": False}
    return pd.DataFrame(found | unknown).assign(r=r, r_low=np.nan, r_high=np.nan, importance=np.arange(n) / 8)


@pytest.fixture
def features() -> pd.DataFrame:
    """base -> lua -> merged, and a model alone; two features of base are found in lua, one of them in merged too."""
    base = {"in_base": [0, 1, 2], "r_base": 1.0, "in_lua": [2, -1, 0], "r_lua": [0.9, np.nan, 0.875]}
    base |= {"in_merged": [1, -1, -1], "r_merged": [0.85, np.nan, np.nan], "in_alone": -1, "r_alone": np.nan}
    lua = {"in_base": [2, -1, 0], "r_base": [0.875, np.nan, 0.9], "in_lua": [0, 1, 2], "r_lua": 1.0}
    lua |= {"in_merged": [-1, -1, 1], "r_merged": [np.nan, np.nan, 0.85], "in_alone": -1, "r_alone": np.nan}
    merged = {"in_base": [-1, 0], "r_base": [np.nan, 0.85], "in_lua": [-1, 2], "r_lua": [np.nan, 0.85]}
    merged |= {"in_merged": [0, 1], "r_merged": 1.0, "in_alone": -1, "r_alone": np.nan}
    alone = {f"{kind}_{name}": -1 for name in ("base", "lua", "merged") for kind in ("in", "r")}
    alone |= {"in_alone": [0], "r_alone": 1.0}
    tables = [of_model("base", 3, **base), of_model("lua", 3, **lua), of_model("merged", 2, **merged)]
    return pd.concat([*tables, of_model("alone", 1, **alone)], ignore_index=True)


@pytest.fixture
def edges() -> dict:
    to_lua = [
        edge("parent", [2, 1, 0], [0.9, 0.25, 0.875], ["persists", "drifted", "persists"]),
        edge("child", [2, -1, 0], [0.875, np.nan, 0.9], ["inherited", "untestable", "inherited"]),
    ]
    to_merged = [
        edge("parent", [0, 1, 1], [0.5, 0.375, 0.85], ["gone", "gone", "persists"]),
        edge("child", [0, 2], [0.5, 0.85], ["new", "inherited"]),
    ]
    both = {("base", "lua"): to_lua, ("lua", "merged"): to_merged}
    return {pair: pd.concat(sides, ignore_index=True) for pair, sides in both.items()}


def plainly(related: list[Related]) -> dict:
    """Related features as lists, by model."""
    return {
        other.model: (other.sae, other.latents.tolist(), other.r.tolist(), other.found.tolist()) for other in related
    }


def test_a_feature_that_is_not_found_is_related_to_the_closest_in_the_child(features, edges):
    before = features.copy(), edges["base", "lua"].copy()
    found = plainly(related_features("base", features, edges))
    assert list(found) == ["lua", "merged"]
    assert found["lua"] == ("seed0", [2, 1, 0], [0.9, 0.25, 0.875], [True, False, True])
    pd.testing.assert_frame_equal(features, before[0])  # unchanged
    pd.testing.assert_frame_equal(edges["base", "lua"], before[1])


def test_an_edge_is_also_read_from_the_child_s_side(features, edges):
    sae, latents, r, found = plainly(related_features("lua", features, edges))["base"]
    # Feature 1 is untestable: it is not found, and no feature is closest.
    assert (sae, latents, found) == ("seed0", [2, -1, 0], [True, False, True])
    assert r == pytest.approx([0.875, np.nan, 0.9], nan_ok=True)


def test_without_an_edge_between_the_models_only_found_features_are_related(features, edges):
    _, latents, r, found = plainly(related_features("base", features, edges))["merged"]
    assert (latents, found) == ([1, -1, -1], [True, False, False])
    assert r == pytest.approx([0.85, np.nan, np.nan], nan_ok=True)
    assert related_features("alone", features, edges) == []


# ---- numbers of each feature


def test_shares_of_corpora_are_those_of_densities_on_each(probe):
    # Latent 1 fires on 3 of lua's 9 tokens and on 2 of english's 4: 1/3 and 1/2 of 5/6 are 2/5 and 3/5.
    shares = corpus_shares(firings(probe, {}, {1: 1.0, 2: 9.0, 9: 1.0, 13: 0.5, 17: 0.5}, {14: 2.0}, {5: 3.0}), probe)
    assert list(shares) == ["lua", "english"]
    assert shares["lua"].tolist() == pytest.approx([np.nan, 2 / 5, 0, 1], nan_ok=True)
    assert shares["english"].tolist() == pytest.approx([np.nan, 3 / 5, 1, 0], nan_ok=True)


def test_shares_of_corpora_equal_those_of_dense_counts(probe):
    random = np.random.default_rng(0)
    text = np.flatnonzero(probe.pieces >= 0)
    latents = [dict.fromkeys(random.choice(text, n, replace=False).tolist(), 1.0) for n in (3, 0, 7, 1, 13)]
    acts = dense(probe, latents)
    densities = np.array([acts[:12].sum(0) / N_LUA, acts[12:].sum(0) / N_ENGLISH])
    shares = np.array(list(corpus_shares(firings(probe, *latents), probe).values()))
    fires = acts.any(axis=0)
    np.testing.assert_allclose(shares[:, fires], densities[:, fires] / densities[:, fires].sum(0))
    assert np.isnan(shares[:, ~fires]).all()


def test_top_tokens_have_the_largest_summed_activations_and_the_earlier_of_equals_comes_first(probe):
    # " x" at 2, 10 and 14: 1 + 1 + 1.5; "local" at 1: 3; "y" at 9 and 16: 2 + 2.
    uneven = {1: 3.0, 2: 1.0, 10: 1.0, 14: 1.5, 9: 2.0, 16: 2.0}
    equal = {17: 1.0, 13: 1.0, 9: 0.5, 16: 0.5, 4: 1.0}
    found = firings(probe, uneven, {}, equal)
    assert top_tokens(found, probe) == [["y", " x", "local"], [], [" 1", "y", "the", "!"]]
    assert top_tokens(found, probe, n=1) == [["y"], [], [" 1"]]


# ---- the table


LATENTS = [{1: 3.0, 2: 1.0, 13: 1.2345678}, {}, {9: 2.0}]


def labels(*rows: tuple) -> pd.DataFrame:
    """Winning labels, as `labels` types them."""
    columns = {"latent": np.int64, "kind": str, "label": str, "score": float, "precision": float, "recall": float}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns).assign(n_documents=9)


LABELS = labels((2, "token", "y", 0.98765, 1.0, np.nan), (0, "shape", "newline", -0.25, 0.5, 0.125))
NO_CHANGE = np.array([0.95049, np.nan, 0.5])
"""The best r of each feature when the model is unchanged."""


def table_of_base(probe, features, edges, **changes) -> dict:
    given = {"labels": LABELS, "explanations": None, "no_change": NO_CHANGE} | changes
    return feature_table("base", features, edges, firings(probe, *LATENTS), probe, **given)


def test_the_table_has_a_column_of_each_number_rounded_to_a_few_digits(probe, features, edges):
    found = table_of_base(probe, features, edges)
    assert (found["model"], found["sae"], found["n"]) == ("base", "seed0", 3)
    assert found["density"] == [0.25] * 3
    assert found["firings"] == [5] * 3
    assert found["largest"] == [3.0, 0.0, 2.0]
    assert found["no_change"] == [0.95, None, 0.5]
    # Latent 0 fires on 2 of 9 and 1 of 4: (2/9) / (2/9 + 1/4) = 8/17 = 0.4706.
    assert found["shares"] == {"lua": [0.47, None, 1.0], "english": [0.53, None, 0.0]}


def test_the_table_refers_to_top_tokens_and_labels_by_index(probe, features, edges):
    found = table_of_base(probe, features, edges)
    texts = [[found["strings"][token] for token in tokens] for tokens in found["tokens"]]
    assert texts == [["local", "the", " x"], [], ["y"]]
    assert len(set(found["strings"])) == len(found["strings"])
    assert (found["labels"], found["label"]) == (["newline", "token 'y'"], [0, None, 1])
    assert found["meanings"] == [
        "A line ends within the token.",
        "The token is 'y', whitespace around it left aside.",
    ]
    assert (found["kinds"], found["kind"]) == (["shape", "token"], [0, None, 1])
    assert found["score"] == [-0.25, None, 0.988]
    assert found["precision"] == [0.5, None, 1.0]
    assert found["recall"] == [0.125, None, None]
    without = table_of_base(probe, features, edges, labels=labels())
    assert (without["labels"], without["label"], without["kind"]) == ([], [None] * 3, [None] * 3)
    assert without["score"] == without["precision"] == without["recall"] == [None] * 3


def test_the_table_holds_the_model_s_side_of_each_of_its_edges(probe, features, edges):
    (side,) = table_of_base(probe, features, edges)["edges"]
    assert (side["parent"], side["child"], side["side"]) == ("base", "lua", "parent")
    assert [VERDICTS[verdict] for verdict in side["verdict"]] == ["persists", "drifted", "persists"]
    assert (side["match"], side["r"], side["r_low"]) == ([2, 1, 0], [0.9, 0.25, 0.875], [None] * 3)
    assert side["details"] == ["", "", ""]
    assert side["importance"] == [0.0, 0.125, 0.25]
    lua = feature_table("lua", features, edges, firings(probe, {}, {}, {}), probe, labels(), None, np.full(3, np.nan))
    assert [(side["parent"], side["side"]) for side in lua["edges"]] == [("base", "child"), ("lua", "parent")]
    assert lua["edges"][0]["r"] == [0.875, None, 0.9]


def test_importance_is_joined_by_side_and_latent_and_untestable_features_have_none(edges):
    table = edges["base", "lua"].drop(columns="importance")
    importance = pd.DataFrame({"side": ["child", "parent"], "latent": [1, 2], "importance": [0.5, -1.0]})
    joined = with_importance({("base", "lua"): table}, {("base", "lua"): importance})["base", "lua"]
    assert joined[table.columns].equals(table.reset_index(drop=True))
    np.testing.assert_array_equal(joined["importance"], [np.nan, np.nan, -1.0, np.nan, 0.5, np.nan])


def test_details_of_a_verdict_are_its_kind_its_change_and_what_is_known_of_it(probe, features, edges):
    table = edges["base", "lua"]
    table["kind"] = ["split", "", "1:1", "merged", "", ""]
    table["change"] = ["", "", "relocated", "", "", ""]
    table["identified"] = [False, True, True, True, True, True]
    table["headline"] = table["robust"] = [False, True, False, False, False, False]
    (side,) = table_of_base(probe, features, edges)["edges"]
    assert side["details"] == ["split", "identified, sure, robust", "relocated, identified"]
    table["kind"] = ["1:1", "merged", "1:1", "", "", ""]  # of the second, the verdict is not that of the merge
    (side,) = table_of_base(probe, features, edges)["edges"]
    assert side["details"] == ["", "identified, sure, robust", "relocated, identified"]


def test_every_verdict_has_a_number_on_the_page():
    of_sides = {verdict for verdicts in SIDE_VERDICTS for verdict in verdicts}
    assert set(VERDICTS) == of_sides | {UNTESTABLE}
    assert len(VERDICTS) == len(set(VERDICTS)) == 6


def test_explanations_are_listed_for_features_that_have_one(probe, features, edges):
    told = {"latent": [0, 1, 2], "explanation": ["names", None, "</script>"], "score": [0.12345, np.nan, np.nan]}
    found = table_of_base(probe, features, edges, explanations=pd.DataFrame(told))
    assert found["explained"] == [[0, "names", 0.123], [2, "</script>", None]]
    assert table_of_base(probe, features, edges)["explained"] == []


def test_the_table_is_json_and_equal_when_made_twice(probe, features, edges):
    table = table_of_base(probe, features, edges)
    assert unpacked(packed("base/table", table)) == ("base/table", table_of_base(probe, features, edges))


# ---- dashboards


SHOWN = Shown(2, (0.5,))


def test_a_dashboard_has_passages_of_every_corpus_with_their_activations(probe):
    board, never_fires = chunk_of(Dashboards(firings(probe, {3: 9.0, 10: 4.0, 11: 1.0, 16: 2.0}, {}), probe, SHOWN))
    assert board["passages"] == [
        {"corpus": "lua", "row": 0, "place": 1, "why": "top", "text": ["local", " x", " =", " 1", "\n"]},
        {"corpus": "lua", "row": 1, "place": 3, "why": "top", "text": ["y", " x", "\n"]},
        {"corpus": "english", "row": 0, "place": 4, "why": "top", "text": ["y", "!"]},
    ]
    assert board["activations"] == [[[2], [9.0]], [[1, 2], [4.0, 1.0]], [[0], [2.0]]]
    # Bins are 9 / 20 = 0.45 wide: 1 lies in bin 2, 2 in bin 4, 4 in bin 8, 9 itself in the last.
    assert {index: n for index, n in enumerate(board["histogram"]) if n} == {2: 1, 4: 1, 8: 1, N_BINS - 1: 1}
    assert board["others"] == []
    assert never_fires == {"histogram": [0] * N_BINS, "passages": [], "activations": [], "others": []}


def chunk_of(boards: Dashboards, first: int = 0) -> list[dict]:
    """The dashboards of a chunk without effects, with passages as text."""
    chunk = json.loads(json.dumps(boards.chunk(first, None), allow_nan=False))
    for feature in chunk["features"]:
        for passage in feature["passages"]:
            passage["text"] = [chunk["strings"][token] for token in passage.pop("tokens")]
    return chunk["features"]


def test_other_models_read_the_same_text(probe):
    boards = Dashboards(firings(probe, {3: 9.0, 16: 2.0}, {1: 1.0}, {1: 1.0}), probe, SHOWN)
    other = firings(probe, {2: 0.12345, 3: 0.5, 9: 8.0}, {17: 1.0})
    latents, r = np.array([0, -1, 1]), np.array([0.98765, np.nan, 0.25])
    boards.add(Related("lua", "seed0", latents, r, np.array([True, False, False])), other)
    boards.add(Related("base", "seed0", np.array([-1, 0, -1]), r, np.array([False, True, False])), other)
    first, second, third = chunk_of(boards)
    # The first feature's text is tokens 1 to 5 and 16 to 17.
    assert first["others"] == [
        {
            **{"model": "lua", "latent": 0, "r": 0.988, "found": True, "largest": 8.0},
            "activations": [[[1, 2], [0.123, 0.5]], [[], []]],
        }
    ]
    assert [other["model"] for other in second["others"]] == ["base"]
    assert third["others"] == [
        {"model": "lua", "latent": 1, "r": 0.25, "found": False, "largest": 1.0, "activations": [[[], []]]}
    ]


def test_features_beyond_one_chunk_are_in_a_second_chunk(probe):
    d_sae = FEATURES_PER_CHUNK + 2
    boards = Dashboards(firings(probe, *[{1: float(latent + 1)} for latent in range(d_sae)]), probe, SHOWN)
    assert len(boards) == d_sae
    chunks = [chunk_of(boards, first) for first in range(0, d_sae, FEATURES_PER_CHUNK)]
    assert [len(chunk) for chunk in chunks] == [FEATURES_PER_CHUNK, 2]
    # Feature number n fires with n + 1, and stands in chunk n // 128 at place n % 128.
    for latent in (0, 127, 128, 129):
        chunk, place = divmod(latent, FEATURES_PER_CHUNK)
        assert chunks[chunk][place]["activations"] == [[[0], [latent + 1.0]]]


def test_effects_are_given_with_their_features(probe):
    boards = Dashboards(firings(probe, {}, {}), probe, SHOWN)
    effects = [{"raised": [["a", 1.0]], "lowered": []}, {"raised": [["b", 2.0]], "lowered": []}]
    assert [feature["raised"] for feature in boards.chunk(0, effects)["features"]] == [[["a", 1.0]], [["b", 2.0]]]
    assert "raised" not in boards.chunk(0, None)["features"][0]


# ---- effects on the logits


@pytest.fixture
def path() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A decoder of 3 latents on 5 dimensions, the path to a residual stream of 4, and an unembedding of 7 tokens."""
    random = np.random.default_rng(0)
    return random.normal(size=(3, 5)), random.normal(size=(5, 4)), random.normal(size=(7, 4))


VOCABULARY = list("abcdefg")


def test_effects_are_those_on_the_logits_less_their_mean(path):
    decoder, to_norm, unembedding = path
    found = logit_effects(decoder, to_norm, unembedding, VOCABULARY, n=2)
    for latent, own in enumerate(found):
        logits = {
            text: sum(decoder[latent, i] * to_norm[i, j] * unembedding[token, j] for i in range(5) for j in range(4))
            for token, text in enumerate(VOCABULARY)
        }
        mean = sum(logits.values()) / 7
        order = sorted(logits, key=logits.get)
        expected = {"raised": order[:-3:-1], "lowered": order[:2]}
        for name, texts in expected.items():
            assert [text for text, _ in own[name]] == texts
            assert [effect for _, effect in own[name]] == pytest.approx(
                [logits[text] - mean for text in texts], rel=5e-3
            )
    moved = unembedding + np.array([3.0, -1.0, 0.5, 2.0])  # the same for all tokens
    assert logit_effects(decoder, to_norm, moved, VOCABULARY, n=2) == found


def test_the_largest_of_many_values_are_those_of_a_stable_sort():
    drawn = np.random.default_rng(0).integers(0, 50, size=400).astype(np.float32)  # with many ties
    for n in (1, 10, 399, 400, 500):
        assert largest(drawn, n).tolist() == np.argsort(-drawn, kind="stable")[:n].tolist()


def test_effects_have_three_digits_and_of_equal_ones_the_first_token_ranks_first():
    # One latent along the only axis: logits 0, 1, 5 less their mean 2 are -2, -1, 3; a third of them is rounded.
    unembedding = np.array([[0.0], [1.0], [5.0]])
    (found,) = logit_effects(np.array([[1 / 3]]), np.eye(1), unembedding, ["a", "b", "c"], n=1)
    assert found == {"raised": [["c", 1.0]], "lowered": [["a", -0.667]]}
    (found,) = logit_effects(np.zeros((1, 2)), np.eye(2), np.ones((3, 2)), ["a", "b", "c"], n=2)
    assert [text for text, _ in found["raised"]] == ["a", "b"]
    assert [effect for _, effect in found["raised"] + found["lowered"]] == [0.0] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes, special tokens, and a few pieces of English."""
    return train_tokenizer(["some text to learn from, and some more of it"] * 3, 270)


def test_every_token_of_a_vocabulary_has_a_text_and_parts_of_characters_a_name(tokenizer):
    n = tokenizer.get_vocab_size()
    texts = vocabulary_texts(tokenizer, range(n + 1))
    assert texts[:2] == [tokenizer.id_to_token(0), tokenizer.id_to_token(1)]
    assert texts[-1] == f"id {n}"
    assert all(texts)
    assert not any(PARTIAL in text for text in texts)
    ids = tokenizer.encode("some more\n", add_special_tokens=False).ids
    assert "".join(texts[token] for token in ids) == "some more\n"
    parts = tokenizer.encode("é", add_special_tokens=False).ids
    assert [texts[part] for part in parts] == [tokenizer.id_to_token(part) for part in parts]


# ---- packing


def test_a_value_is_packed_as_a_script_and_read_back(monkeypatch):
    value = {"strings": ["a", "é😀"], "numbers": [0.1, None, -3], "none": []}
    script = packed("base/000128", value)
    assert unpacked(script) == ("base/000128", value)
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert packed("base/000128", value) == script  # the same bytes at another time
    with pytest.raises(ValueError, match="not JSON compliant"):
        packed("base/table", [float("nan")])


def test_hostile_tokens_reach_the_page_unchanged_and_end_no_script(features, edges):
    for text in [*TEXTS.values(), "\ud800"]:
        probe = annotated({"lua": [[None, text, "b"]]})
        script = packed("base/000000", Dashboards(firings(probe, {1: 1.0}), probe, SHOWN).chunk(0, None))
        assert "<" not in script
        _, chunk = unpacked(script)
        assert [chunk["strings"][token] for token in chunk["features"][0]["passages"][0]["tokens"]] == [text, "b"]
        own = firings(probe, {1: 1.0}, {}, {})
        table = feature_table("base", features, edges, own, probe, labels(), None, np.full(3, np.nan))
        assert unpacked(packed("base/table", table))[1]["strings"] == [text]
