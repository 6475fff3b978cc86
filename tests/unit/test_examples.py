"""Which features are shown, on which text, with which numbers."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from saelineage.errors import InputError
from saelineage.examples import (
    Choice,
    Latent,
    Probe,
    decode_pieces,
    describe,
    disappearing_features,
    pearson,
    persisting_features,
)
from saelineage.features import save_shard
from saelineage.matches import Correlation, Matches
from saelineage.tokens import TokenRows, train_tokenizer, write_sidecar

N_CTX = 6
# Two rows of one corpus: BOS 0, then text; EOS 1 ends the first document in the middle of row 1.
IDS = np.array([[0, 5, 6, 7, 8, 9], [0, 5, 1, 6, 7, 8]], dtype=np.uint16)
POSITIONS = np.array([1, 2, 3, 4, 5, 7, 9, 10, 11])


def write_features(path, model, corpus, columns):
    latents = scipy.sparse.csr_array(np.array(columns, dtype=float).T)
    header = {"model": model, "sae": "seed0", "corpus": corpus, "d_sae": latents.shape[1], "ids_sha256": corpus}
    header |= {"first_row": 0, "stop_row": 2, "n_ctx": N_CTX}
    compared = np.ones(len(POSITIONS), dtype=bool)
    save_shard(path, latents.indptr, latents.indices, latents.data, POSITIONS, compared, header)
    return str(path)


@pytest.fixture
def rows(tmp_path):
    for corpus in ("lua", "english"):
        folder = tmp_path / "tokens" / corpus
        folder.mkdir(parents=True)
        np.save(folder / "probe.npy", IDS)
        write_sidecar(folder / "probe.npy", {"n_rows": 2, "n_ctx": N_CTX, "bos_id": 0, "eos_id": 1})
    return {corpus: TokenRows(tmp_path / "tokens" / corpus / "probe.npy") for corpus in ("lua", "english")}


@pytest.fixture
def probe(tmp_path, rows):
    strong, weak = [0, 0, 9, 0, 0, 0, 0, 4, 0], [0, 0, 0, 0, 0, 0, 0, 2, 0]
    shards = {
        ("base", "seed0"): [
            write_features(tmp_path / "a.safetensors", "base", "lua", [strong, weak]),
            write_features(tmp_path / "b.safetensors", "base", "english", [weak, weak]),
        ]
    }
    return Probe(shards, [Latent("base", "seed0", 0), Latent("base", "seed0", 1)], rows)


def features(found):
    """A `features.parquet` of one root `base` and two children from rows (in_a, r_a, in_b, r_b)."""
    table = pd.DataFrame(found, columns=["in_a", "r_a", "in_b", "r_b"])
    own = {"model": "base", "sae": "seed0", "latent": range(len(table)), "density": 0.1}
    table = table.assign(**own, in_base=range(len(table)), r_base=1.0)
    others = pd.DataFrame({"model": ["a", "b"], "sae": ["seed0", "seed0"], "latent": [0, 0]})
    return pd.concat([table, others], ignore_index=True)


def test_features_found_in_most_models_come_first_then_those_with_the_largest_least_r():
    table = features([(1, 0.99, -1, np.nan), (2, 0.9, 3, 0.85), (4, 0.95, 5, 0.9), (-1, np.nan, -1, np.nan)])
    chosen = persisting_features(table, ["base"], ["base", "a", "b"], 4)
    assert [choice.members[0].latent for choice in chosen] == [2, 1, 0]
    assert chosen[0].note == {"n_models": 3, "least_r": 0.9, "density": 0.1}
    assert chosen[2].members == (Latent("base", "seed0", 0), Latent("a", "seed0", 1))


def test_a_feature_with_a_match_already_shown_is_passed_over():
    table = features([(1, 0.9, 1, 0.9), (1, 0.85, 2, 0.85)])
    assert len(persisting_features(table, ["base"], ["base", "a", "b"], 2)) == 1


def test_no_feature_is_chosen_where_none_persists():
    assert persisting_features(features([(-1, np.nan, -1, np.nan)]), ["base"], ["base", "a", "b"], 3) == []


def edge(rows):
    return pd.DataFrame(rows, columns=["verdict", "r", "match", "firings"]).assign(
        side="parent", latent=range(len(rows)), density=0.1
    )


def seeds(r):
    both = (np.array(r)[:, None], np.array(r)[:, None])
    partners = np.arange(len(r))[:, None] + 10
    pearson = Matches(both, (partners, partners), scipy.sparse.csr_array((1, 1)), np.zeros(1, dtype=np.int64), 0)
    return Correlation(("base.seed0", "base.seed1"), {}, ((), ()), ((), ()), pearson, {}, (), pearson)


def test_disappearing_features_recur_under_another_seed_fire_often_and_lose_most():
    table = edge(
        [
            ("disappears", 0.1, 5, 90),  # does not recur
            ("disappears", 0.7, 6, 90),  # loses 0.2
            ("disappears", 0.3, 7, 90),  # loses 0.6
            ("disappears", 0.1, 8, 20),  # fires rarely
            ("persists", 0.9, 9, 90),
        ]
    )
    found = disappearing_features(
        ("base", "a"), {"base": "seed0", "a": "seed0"}, table, seeds([0.2, 0.9, 0.9, 0.9, 0.9]), 0.8, 5
    )
    assert [choice.members[0].latent for choice in found] == [2, 1]
    assert found[0].members[1:] == (Latent("base", "seed1", 12), Latent("a", "seed0", 7))
    assert found[0].note == {"r_child": 0.3, "r_seed": 0.9, "density": 0.1}


def test_without_a_second_seed_the_least_matched_come_first():
    table = edge([("disappears", 0.7, 6, 90), ("disappears", 0.3, 7, 90)])
    found = disappearing_features(("base", "a"), {"base": "seed0", "a": "seed0"}, table, None, 0.8, 1)
    assert found[0].members == (Latent("base", "seed0", 1), Latent("a", "seed0", 7))
    assert found[0].note["r_seed"] is None


def test_nothing_disappears_where_everything_persists():
    table = edge([("persists", 0.9, 6, 90)])
    assert disappearing_features(("base", "a"), {"base": "seed0", "a": "seed0"}, table, None, 0.8, 1) == []


def test_passages_come_from_different_documents_and_corpora(probe):
    found = probe.passages(Latent("base", "seed0", 0), 3)
    assert [(passage.corpus, passage.row) for passage in found] == [("lua", 0), ("lua", 1), ("english", 1)]


def test_another_corpus_goes_before_a_stronger_passage_of_the_same(probe):
    # the first half of two is the strongest of all; the second is the strongest of a corpus not seen yet
    assert [passage.corpus for passage in probe.passages(Latent("base", "seed0", 0), 2)] == ["lua", "english"]


def test_a_passage_ends_with_its_row_and_its_document(probe):
    first, second, _ = probe.passages(Latent("base", "seed0", 0), 3)
    assert (first.first, first.ids.tolist()) == (1, [5, 6, 7, 8, 9])
    assert (second.first, second.ids.tolist()) == (3, [6, 7, 8])
    assert probe.activation(Latent("base", "seed0", 0))[second.tokens].tolist() == [0, 4, 0]


def test_a_latent_that_never_fires_has_no_passage(tmp_path, rows):
    path = write_features(tmp_path / "a.safetensors", "base", "lua", [[0] * 9, [1] * 9])
    probe = Probe({("base", "seed0"): [path]}, [Latent("base", "seed0", 0)], rows)
    assert probe.passages(Latent("base", "seed0", 0), 3) == []


def test_features_of_other_tokens_are_refused(tmp_path, rows):
    shards = {
        ("base", "seed0"): [write_features(tmp_path / "a.safetensors", "base", "lua", [[1] * 9])],
        ("other", "seed0"): [write_features(tmp_path / "b.safetensors", "other", "english", [[1] * 9])],
    }
    with pytest.raises(InputError, match=r"base\.seed0 and other\.seed0 must be of the same tokens"):
        Probe(shards, [Latent("base", "seed0", 0), Latent("other", "seed0", 0)], rows)


def test_r_is_that_of_numpy_over_all_tokens(probe):
    members = [Latent("base", "seed0", 0), Latent("base", "seed0", 1)]
    expected = np.corrcoef([probe.activation(member) for member in members])
    np.testing.assert_allclose(probe.pearson(members), expected, rtol=1e-12)


def test_r_with_a_column_that_does_not_vary_is_undefined():
    assert pearson(np.ones(4), np.arange(4.0)) is None


def test_a_feature_is_described_with_the_activations_of_every_member(probe):
    tokenizer = train_tokenizer(["some text to learn from, and some more of it"] * 3, 270)
    members = (Latent("base", "seed0", 0), Latent("base", "seed0", 1))
    found = describe(Choice(members, {"density": 0.1}), probe, tokenizer, 1)
    assert [member["max_activation"] for member in found["members"]] == [9.0, 2.0]
    assert found["passages"][0]["activations"] == [[0, 0, 9, 0, 0], [0, 0, 0, 0, 0]]
    assert len(found["passages"][0]["tokens"]) == 5


@pytest.mark.parametrize("text", ["naïve 🎉 日本", "plain text", "\x00\u202e\n\ttab", "ends in 🎉"])
def test_pieces_joined_are_the_text(text):
    tokenizer = train_tokenizer(["some text to learn from"] * 3, 262)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = decode_pieces(tokenizer, ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids)


def test_a_character_of_several_tokens_stands_at_the_last():
    tokenizer = train_tokenizer(["some text to learn from"] * 3, 262)
    ids = tokenizer.encode("é", add_special_tokens=False).ids
    assert decode_pieces(tokenizer, ids) == ["", "é"]


def test_half_a_character_at_the_end_is_a_replacement_character():
    tokenizer = train_tokenizer(["some text to learn from"] * 3, 262)
    ids = tokenizer.encode("aé", add_special_tokens=False).ids
    assert decode_pieces(tokenizer, ids[:-1]) == ["a", "\ufffd"]
