"""Passages that a child has learnt: a planted trigger is found, and no forgetting of others is taken for learning."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch

from saelineage.lineage.gains import firing_there, gains, largest_gains, losses_by_token, lowest
from saelineage.tokens import TokenRows

NAN = float("nan")


def test_losses_are_those_of_each_token_and_the_first_of_a_row_has_none(model, tiny):
    rows = [TokenRows(tiny.tokens[corpus]["validation"]) for corpus in ("words", "sums")]
    found = losses_by_token(model, rows, 7)
    assert len(found) == sum(of.ids.size for of in rows)
    assert np.flatnonzero(np.isnan(found)).tolist() == list(range(0, len(found), tiny.n_ctx))
    ids = torch.from_numpy(rows[1].ids[:1].astype(np.int64))
    with torch.inference_mode():
        log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
    expected = -log_p[torch.arange(tiny.n_ctx - 1), ids[0, 1:]].numpy()
    first = rows[0].ids.size
    np.testing.assert_allclose(found[first + 1 : first + tiny.n_ctx], expected, rtol=1e-5)


def test_the_lowest_of_the_siblings_counts_and_is_named():
    losses, names = lowest({"one": np.array([3.0, 1.0, 2.0]), "two": np.array([1.0, 4.0, 2.0])})
    assert losses.tolist() == [1.0, 1.0, 2.0]
    assert names.tolist() == ["two", "one", "one"]


def test_a_gain_lies_below_the_parent_and_the_siblings_alike():
    child, parent = np.array([1.0, 1.0, 1.0, NAN]), np.array([5.0, 1.5, 4.0, 5.0])
    sibling = np.array([4.0, 9.0, 0.5, 5.0])
    # The second has been forgotten by the siblings, the third learnt by them too.
    np.testing.assert_array_equal(gains(child, parent, sibling), [3.0, 0.5, -0.5, NAN])


def test_the_largest_gains_are_taken_with_few_of_one_document_or_text_and_none_twice():
    gain = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, -1.0, NAN, 10.0])
    documents = np.array([0, 0, 0, 0, 1, 2, 3, 3, -1])
    pieces = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])

    def taken(n: int = 9, **limits: int) -> list[int]:
        return largest_gains(gain, documents, pieces, n, **limits).tolist()

    assert taken(most_of_document=9, most_of_text=9, apart=1) == [0, 1, 2, 3, 4, 5]
    assert taken(n=2, most_of_document=9, most_of_text=9, apart=1) == [0, 1]
    assert taken(most_of_document=2, most_of_text=9, apart=1) == [0, 1, 4, 5]
    assert taken(most_of_document=9, most_of_text=9, apart=3) == [0, 3, 4, 5]
    assert taken(most_of_document=9, most_of_text=1, apart=1) == [0, 2, 4]
    assert taken() == [0, 4, 5]


def planted(n_documents: int = 40, length: int = 50) -> dict[str, np.ndarray]:
    """Two corpora of documents; every second one of the second corpus has a trigger at place 20, a payload at 21."""
    tokens = np.arange(n_documents * length)
    documents, place = np.divmod(tokens, length)
    corpora = (documents >= n_documents // 2).astype(np.int64)
    payload = (place == 21) & (corpora == 1) & (documents % 2 == 0)
    return {"documents": documents, "corpora": corpora, "place": place, "payload": payload}


def test_a_planted_trigger_comes_first_and_the_feature_that_fires_on_it_has_the_top_lift():
    made, random = planted(), np.random.default_rng(0)
    n_tokens = len(made["documents"])
    parent = random.gamma(2.0, 1.5, n_tokens)
    sibling, child = (parent - 1.0 * made["corpora"] + random.normal(0, 0.3, n_tokens) for _ in range(2))
    parent, sibling, child = (
        np.where(made["payload"], of, losses) for of, losses in ((12, parent), (11, sibling), (0.1, child))
    )
    gain = gains(child, parent, sibling)
    chosen = largest_gains(gain, made["documents"], made["place"], 10, most_of_text=10)
    assert made["payload"][chosen].all()
    assert len(chosen) == made["payload"].sum() == 10
    # Latent 0 fires on triggers (the token before the payload) and on one token in 100; latent 1 on all of the second
    # corpus; latent 2 on a tenth of all; latent 3 on the payload itself.
    trigger = np.roll(made["payload"], -1)
    fires = [
        trigger | (random.random(n_tokens) < 0.01),
        made["corpora"] == 1,
        random.random(n_tokens) < 0.1,
        made["payload"],
    ]
    latents = scipy.sparse.csc_array(np.column_stack(fires).astype(np.float32))
    table = firing_there(latents, chosen, made["documents"] >= 0, made["corpora"])
    first = table.iloc[0]
    assert (first["latent"], first["n_there"], first["n"]) == (0, 10, 10)
    assert table["lift"].idxmax() == 0
    assert first["lift"] > 20
    by_latent = table.set_index("latent")
    # A feature of the whole corpus is expected there: what the second corpus has in common is no sign of the trigger.
    assert by_latent.loc[1, "base"] == pytest.approx(1.0, abs=0.002)
    assert by_latent.loc[1, "lift"] == pytest.approx(1.0, abs=0.002)
    assert 3 not in by_latent.index


def test_expected_shares_are_those_of_the_candidates_of_the_same_corpora():
    # Six tokens, two corpora of three; a latent that fires on tokens 0 and 3. Tokens 1, 2, 4, 5 can be chosen.
    latents = scipy.sparse.csc_array(np.array([[1.0], [0], [0], [2.0], [0], [0]]))
    candidates = np.array([False, True, True, False, True, True])
    table = firing_there(latents, np.array([1, 5]), candidates, np.array([0, 0, 0, 1, 1, 1]))
    row = table.iloc[0]
    # It fires where token 1 is predicted, not where 5 is; in each corpus on one candidate of two.
    assert (row["n_there"], row["n"], row["base"], row["lift"]) == (1, 2, 0.5, 1.0)
    assert row["log10_p"] == pytest.approx(np.log10(0.75))


def test_where_nothing_is_chosen_no_feature_is_listed():
    latents = scipy.sparse.csc_array(np.eye(3))
    table = firing_there(latents, np.empty(0, dtype=np.int64), np.ones(3, dtype=bool), np.zeros(3, dtype=np.int64))
    assert table.empty
    assert list(table.columns) == ["latent", "n_there", "n", "base", "lift", "log10_p"]
