"""Labels on tokens and features worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.labels.annotations import CONCEPTS, RULES, Annotations
from saelineage.labels.labels import COLUMNS, Sums, describe, label, sentence

PROPERTIES = [
    ("shape", "digits"),
    ("token", "def"),
    ("token", "end"),
    ("concept", "assignment"),
    ("concept", "exception"),
]


def annotations(
    columns: np.ndarray, properties: list[tuple[str, str]] = PROPERTIES, per_document: int = 4
) -> Annotations:
    """Annotations of one corpus `words`, rows of one token: [token, property] 0 or 1."""
    n_tokens = len(columns)
    return Annotations(
        starts={"words": 0},
        n_ctx=1,
        pieces=np.zeros(n_tokens, dtype=np.int32),
        strings=["x"],
        documents=(np.arange(n_tokens) // per_document).astype(np.int32),
        properties=properties,
        matrix=scipy.sparse.csr_array(columns.astype(bool)),
    )


@pytest.fixture
def random() -> tuple[np.ndarray, np.ndarray]:
    """160 tokens of 5 properties, and 6 features that follow none."""
    drawn = np.random.default_rng(0)
    return drawn.random((160, 5)) < 0.3, np.where(drawn.random((160, 6)) < 0.4, drawn.random((160, 6)), 0)


def row_of(table: pd.DataFrame, latent: int, name: str) -> pd.Series:
    """The row of a feature and a property."""
    rows = table[(table["latent"] == latent) & (table["label"] == name)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_score_precision_and_recall_are_those_of_the_odd_documents(write_features):
    # Documents of four tokens; the feature fires on `def`, with one false alarm and one miss in the odd document.
    #               document 0    document 1
    has = np.array([1, 0, 0, 1, 1, 0, 0, 1])
    acts = np.array([2, 0, 0, 2, 2, 2, 0, 0])
    table = label(
        [write_features(acts[:, None].astype(float)).path],
        annotations(has[:, None], [("token", "def")]),
        min_firings=2,
    )
    # Odd: n = 4, sum a = 4, sum a^2 = 8, sum p = 2, sum ap = 2: r = (8 - 8) / sqrt((32 - 16)(8 - 4)) = 0.
    expected = {"latent": 0, "kind": "token", "label": "def", "score": 0.0, "precision": 0.5, "recall": 0.5}
    assert table.to_dict("records") == [expected | {"n_firings": 2, "n_documents": 1, "wins": True}]


def test_the_score_is_pearson_r_with_zeros(write_features, random):
    has, acts = random
    odd = np.arange(160) // 4 % 2 == 1
    table = label([write_features(acts).path], annotations(has), min_firings=5)
    for row in table.itertuples():
        holds, active = has[odd, [name for _, name in PROPERTIES].index(row.label)], acts[odd, row.latent]
        assert row.score == pytest.approx(np.corrcoef(holds, active.astype(np.float32))[0, 1], abs=1e-12)
        assert row.precision == pytest.approx((holds & (active > 0)).sum() / (active > 0).sum())
        assert row.recall == pytest.approx((holds & (active > 0)).sum() / holds.sum())
        assert row.n_firings == (active > 0).sum()
        assert row.n_documents == len(set(np.arange(160)[odd][active > 0] // 4))
    assert set(table["latent"]) == set(range(6))


def test_the_best_property_of_each_kind_is_chosen_on_the_even_documents(write_features, random):
    has, acts = random
    even = np.arange(160) // 4 % 2 == 0
    table = label([write_features(acts).path], annotations(has), min_firings=5)
    for latent in range(6):
        r = [np.corrcoef(has[even, number], acts[even, latent])[0, 1] for number in range(5)]
        rows = table[table["latent"] == latent]
        tokens = rows[rows["kind"] == "token"]["label"].tolist()
        assert tokens == ([PROPERTIES[1 + int(np.argmax(r[1:3]))][1]] if max(r[1:3]) > 0 else [])
        assert rows[rows["wins"]]["label"].tolist() == ([PROPERTIES[int(np.argmax(r))][1]] if max(r) > 0 else [])


def test_a_property_that_is_best_by_chance_scores_low_on_the_other_half(write_features):
    # 400 random properties, a random feature: the best of them looks good on the half that chose it, and only there.
    drawn = np.random.default_rng(1)
    has, acts = drawn.random((800, 400)) < 0.2, np.where(drawn.random((800, 1)) < 0.2, 1.0, 0.0)
    properties = [("token", str(number)) for number in range(400)]
    row = label([write_features(acts).path], annotations(has, properties)).iloc[0]
    even = np.arange(800) // 4 % 2 == 0
    assert np.corrcoef(has[even, int(row["label"])], acts[even, 0])[0, 1] > 0.1
    assert abs(row["score"]) < 0.1


def test_no_document_is_in_both_halves(write_features, random):
    has, acts = random
    whole = label([write_features(acts).path], annotations(has), min_firings=5)
    scaled = acts.copy()
    scaled[np.arange(160) // 4 % 2 == 0] *= 3  # r does not see a factor, so the choice stays
    again = label([write_features(scaled).path], annotations(has), min_firings=5)
    pd.testing.assert_frame_equal(whole, again)


def test_neither_shards_nor_blocks_of_latents_change_the_table(write_features, random):
    has, acts = random
    whole = label([write_features(acts, "whole").path], annotations(has), min_firings=5)
    parts = [write_features(acts[first : first + 50], f"part{first}", first).path for first in range(0, 160, 50)]
    for block_latents in (1, 4, 6):
        in_blocks = label(parts, annotations(has), min_firings=5, block_latents=block_latents)
        pd.testing.assert_frame_equal(in_blocks, whole, rtol=1e-12)


def test_tokens_that_are_not_compared_do_not_count(tmp_path, write_features, random):
    has, acts = random
    compared = np.ones(160, dtype=bool)
    compared[40:80] = False
    rows = scipy.sparse.csr_array(acts * compared[:, None])
    header = {"model": "m", "sae": "seed0", "corpus": "words", "ids_sha256": "0", "n_ctx": 1}
    header |= {"d_sae": 6, "first_row": 0, "stop_row": 160}
    path = tmp_path / "some.safetensors"
    save_shard(path, rows.indptr, rows.indices, rows.data, np.arange(160), compared, header)
    table = label([path], annotations(has), min_firings=5)
    odd = (np.arange(160) // 4 % 2 == 1) & compared
    for row in table.itertuples():
        holds = has[odd, [name for _, name in PROPERTIES].index(row.label)]
        assert row.score == pytest.approx(np.corrcoef(holds, acts[odd, row.latent].astype(np.float32))[0, 1], abs=1e-12)


def test_a_feature_that_fires_too_rarely_in_either_half_is_not_described(write_features):
    has = np.tile([1, 0, 0, 1], 20)[:, None]
    acts = np.tile(has, 3).astype(float)
    acts[5:, 1] = 0.0  # twice in the even half, once in the odd one
    acts[np.arange(80) // 4 % 2 == 0, 2] = 0.0
    acts[0, 2] = 1.0  # once in the even half
    table = label([write_features(acts).path], annotations(has, [("token", "def")]), min_firings=2)
    assert table["latent"].tolist() == [0]


def test_where_nothing_is_described_the_table_is_empty_and_typed(write_features):
    table = label([write_features(np.zeros((8, 3))).path], annotations(np.ones((8, 5))))
    assert len(table) == 0
    assert list(table.columns) == list(COLUMNS)
    assert table["score"].dtype == np.float64
    assert table["latent"].dtype == np.int64


def test_concepts_are_always_scored_and_are_undefined_where_they_do_not_occur(write_features):
    has = np.zeros((16, 5))
    has[:, 1] = np.tile([1, 0, 0, 0], 4)  # def
    has[[0, 8], 3] = 1  # an assignment in even documents alone
    acts = has[:, [1]] + 0.0
    table = label([write_features(acts).path], annotations(has), min_firings=2)
    assert table["label"].tolist() == ["def", "assignment", "exception"]
    assert np.isnan(table["score"]).tolist() == [False, True, True]
    assert np.isnan(table["recall"]).tolist() == [False, True, True]
    assert table["precision"].tolist() == [1.0, 0.0, 0.0]
    assert table["wins"].tolist() == [True, False, False]


def test_a_property_that_speaks_against_a_feature_is_no_label(write_features):
    has = np.tile([1, 0, 0, 0], 4)[:, None]
    table = label([write_features(1.0 - has).path], annotations(has, [("token", "def")]), min_firings=2)
    assert len(table) == 0


def test_a_feature_that_does_not_vary_follows_nothing(write_features):
    has = np.tile([1, 0, 0, 0], 4)[:, None]
    properties = [("concept", "assignment")]
    table = label([write_features(np.full((16, 1), 0.3)).path], annotations(has, properties), min_firings=2)
    assert np.isnan(table["score"]).all()
    assert not table["wins"].any()


def test_of_equally_good_properties_the_first_wins(write_features):
    has = np.tile([[1, 1], [0, 0]], (8, 1))
    properties = [("token", "def"), ("concept", "assignment")]
    table = label([write_features(has[:, [0]].astype(float)).path], annotations(has, properties), min_firings=2)
    assert table["score"].tolist() == [1.0, 1.0]
    assert table["wins"].tolist() == [True, False]


def test_sums_are_taken_in_float64():
    # In float32 the sum of squares of a thousand values near 1,000 is off by more than their variance.
    drawn = np.random.default_rng(2)
    acts = (1000 + drawn.random((1000, 1))).astype(np.float32)
    has = drawn.random((1000, 1)) < 0.5
    sums = Sums(1, 1, count_together=False)
    for part in (slice(0, 300), slice(300, 1000)):
        sums.add(*map(scipy.sparse.csr_array, (acts[part], has[part])), np.arange(1000)[part])
    expected = np.corrcoef(acts[:, 0].astype(np.float64), has[:, 0])[0, 1]
    assert sums.scores()[0, 0] == pytest.approx(expected, abs=1e-8)


def test_shards_of_several_saes_no_shards_and_other_tokens_are_refused(write_features):
    shard = write_features(np.ones((8, 2)), "shard")
    another = write_features(np.ones((8, 2)), "another", sae="seed1")
    with pytest.raises(InputError, match=r"another.safetensors' must be of the SAE 'm.seed0' with 2 latents"):
        label([shard.path, another.path], annotations(np.ones((8, 5))))
    with pytest.raises(InputError, match="at least one feature shard"):
        label([], annotations(np.ones((8, 5))))
    with pytest.raises(InputError, match="4 annotated tokens of corpus 'words', got position 7"):
        label([shard.path], annotations(np.ones((4, 5))))


def test_rows_are_described_in_words():
    for kind, name, words in [
        ("token", "def", "token 'def'"),
        ("after", "local", "after 'local'"),
        ("syntax", "lua: identifier in variable_list", "lua: identifier in variable_list"),
        ("shape", "digits", "digits"),
        ("corpus", "python", "corpus python"),
        ("concept", "assignment =", "assignment ="),
    ]:
        row = {"kind": kind, "label": name, "n_documents": 5}
        assert describe(row) == words
        assert describe(pd.Series(row | {"score": 0.5})) == words


def test_a_label_from_few_documents_says_how_many():
    row = {"kind": "token", "label": "def"}
    few = [describe(row | {"n_documents": n}) for n in (1, 4, 5)]
    assert few == ["token 'def' (1 document)", "token 'def' (4 documents)", "token 'def'"]


def test_a_document_that_goes_on_from_shard_to_shard_counts_once():
    # The first latent fires in documents 0, 1 (in all three calls) and 2; the second in 1 alone, the third in none.
    has = scipy.sparse.csr_array(np.ones((2, 1), dtype=bool))
    sums = Sums(1, 3, count_together=False)
    for documents, acts in (
        ([0, 1], [[1, 0, 0], [1, 0, 0]]),
        ([1, 1], [[1, 1, 0], [0, 0, 0]]),
        ([1, 2], [[1, 1, 0], [1, 0, 0]]),
    ):
        sums.add(scipy.sparse.csr_array(np.array(acts, dtype=np.float32)), has, np.array(documents))
    assert sums.in_documents.tolist() == [3, 1, 0]


def test_every_property_has_a_sentence():
    names = [*RULES, *(("concept", name) for name in CONCEPTS)]
    for kind, name in names:
        assert sentence({"kind": kind, "label": name}).endswith(".")
    assert sentence({"kind": "token", "label": "def"}) == "The token is 'def', whitespace around it left aside."
    assert sentence({"kind": "after", "label": "def"}).startswith("The token before, in the same document and row, is")
    assert "stands below" in sentence({"kind": "syntax", "label": "python: inside call"})
    assert sentence({"kind": "corpus", "label": "lua"}) == "The token is of the corpus lua."
