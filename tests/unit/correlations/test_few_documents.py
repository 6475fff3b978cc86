"""Correlations that rest on few documents: effective numbers of documents, by hand and in a planted case."""

import numpy as np
import pytest

from saelineage.correlations.bootstrap import DocumentSums, document_sums, leading_candidates
from saelineage.correlations.few_documents import (
    LEAST_DOCUMENTS,
    load_rests_on,
    rests_on,
    rests_on_few,
    rests_on_tensors,
)
from saelineage.correlations.pearson import correlate
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.files.tensors import writing_groups


def sums_of(a: np.ndarray, b: np.ndarray, documents: np.ndarray) -> DocumentSums:
    shards = FeatureShard.of_array(a, "a"), FeatureShard.of_array(b, "b")
    none = [np.full((acts.shape[1], 1), -1) for acts in (a, b)]
    return document_sums([shards], (none[0], none[1]), {shards[0].corpus: documents})


def test_equal_parts_count_as_many_documents_as_there_are_and_one_large_part_as_one():
    documents = np.array([0, 0, 1, 2, 3])
    # Squares by document: (8, 4, 4, 0) -> 16^2 / (64 + 16 + 16) = 8/3; four times 9 -> 4; 0; (1, 0, 0, 0) -> 1.
    a = np.array([[2, 3, 0, 1], [2, 0, 0, 0], [2, 3, 0, 0], [2, 3, 0, 0], [0, 3, 0, 0]], dtype=float)
    of_a, of_b = rests_on(sums_of(a, a[:, :1], documents))
    assert of_a == pytest.approx([8 / 3, 4, np.nan, 1], nan_ok=True)
    assert of_b == pytest.approx([8 / 3])


def test_numbers_of_documents_are_read_as_they_were_written_and_a_missing_partner_is_named(tmp_path):
    acts = np.array([[2, 3], [2, 0], [0, 3]], dtype=float)
    sums, path = sums_of(acts, acts[:, :1], np.arange(3)), tmp_path / "replicates.safetensors"
    with writing_groups(path, 1, 2) as groups:
        groups.add("b.sae", {}, rests_on_tensors(sums))
    for read, written in zip(load_rests_on(path, "b.sae"), rests_on(sums), strict=True):
        assert np.array_equal(read, written)
    with pytest.raises(InputError, match=r"must hold the effective numbers of documents with 'c\.sae'"):
        load_rests_on(path, "c.sae")


def test_a_feature_that_rests_on_few_documents_is_marked_and_one_that_never_fires_is_not():
    assert rests_on_few(np.array([1.0, 4.9, 5.0, np.nan]), 5.0).tolist() == [True, True, False, False]
    assert LEAST_DOCUMENTS == 5.0


def test_unrelated_features_that_share_one_outlying_token_correlate_and_rest_on_one_document():
    random = np.random.default_rng(0)
    # Each fires on 2 % of 20,000 tokens, in 200 documents, with 1 + an exponential number: the sum of squares is 2,000.
    fires = random.random((20_000, 2)) < 0.02
    acts = np.where(fires, 1 + random.exponential(size=fires.shape), 0.0)
    documents = np.arange(20_000) // 100
    assert correlate(acts[:, :1], acts[:, 1:], progress=False).pearson.best[0][0, 0] < 0.1
    assert min(rests_on(sums_of(acts[:, :1], acts[:, 1:], documents))) > 50
    acts[7] = 500  # 500^2 = 250,000, so 0.992 of the squares
    correlation = correlate(acts[:, :1], acts[:, 1:], progress=False)
    assert correlation.pearson.best[0][0, 0] > 0.98
    shards = [(FeatureShard.of_array(acts[:, :1], "a"), FeatureShard.of_array(acts[:, 1:], "b"))]
    by_document = document_sums(shards, leading_candidates(correlation), {shards[0][0].corpus: documents})
    assert all(1 <= number < 1.05 for number in np.concatenate(rests_on(by_document)))
    # (p c)^2 of the squares at least, with p the share of the products and c the cosine
    products = by_document.products.toarray()[0]
    cosine = products.sum() / np.sqrt(np.prod([side.sum() for side in by_document.squares]))
    least = (products.max() / products.sum() * cosine) ** 2
    assert all(side.toarray().max() / side.sum() >= least for side in by_document.squares)
