"""What is enriched in a child's samples: nothing if it is its parent, and only what both baselines lack."""

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer

from saelineage.behaviour.contrasts import (
    N_START,
    SETS,
    Firings,
    Samples,
    enrichment,
    firings,
    sample_sets,
    sample_table,
)
from saelineage.behaviour.edges import Reader
from saelineage.lineage.shares import share
from saelineage.models.loading import load_model
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

HOOKPOINT, D_MODEL = "model.layers.0.output", 32


def an_sae(bias: float = -0.02) -> Sae:
    """Each latent fires where a dimension is above a bound."""
    sae = Sae("relu", D_MODEL, D_MODEL)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D_MODEL))
        sae.W_dec.copy_(torch.eye(D_MODEL))
        sae.b_enc.fill_(bias)
    return sae


def edge(verdicts: list[str]) -> pd.DataFrame:
    child = {"side": "child", "latent": range(len(verdicts)), "verdict": verdicts, "identified": True}
    return pd.DataFrame(child | {"headline": False})


@pytest.fixture(scope="module")
def readers(tiny) -> dict[str, Reader]:
    rows = {corpus: TokenRows(tiny.tokens[corpus]["probe"]) for corpus in ("words", "sums")}
    return {side: Reader(load_model(tiny.models[name]), rows) for side, name in (("parent", "a"), ("child", "b"))}


def test_half_of_the_samples_start_from_bos_and_all_are_as_long(readers):
    sets = sample_sets(readers, range(2, 300), 7, 99, 0)
    assert list(sets) == list(SETS)
    for short, long in sets.values():
        assert (short.ids.shape, short.n_start, long.ids.shape, long.n_start) == ((4, 8), 1, (3, 16), 1 + N_START)
        # Corpora in turn, then their next rows; a row of 16 has room for seven new tokens.
        expected = [readers["child"].rows[name].read(range(1))[0, :9].tolist() for name in ("words", "sums")]
        assert long.ids[:2, :9].tolist() == expected
        assert long.ids[2, :9].tolist() == readers["child"].rows["words"].read(range(1, 2))[0, :9].tolist()
    alone, others = sets["alone"][0].ids, sets["other draws"][0].ids
    assert (alone != others).any()


def test_a_child_that_is_its_parent_has_no_enriched_feature(readers):
    same = dict.fromkeys(("parent", "child"), readers["child"])
    sets = sample_sets(same, range(2, 300), 40, 5, 0)
    assert all((a.ids == b.ids).all() for a, b in zip(sets["contrast"], sets["itself"], strict=True))
    counts = {name: firings(readers["child"], an_sae(), HOOKPOINT, of_set, 16) for name, of_set in sets.items()}
    found = enrichment(counts, edge(["new"] * D_MODEL), 40)
    assert found["samples_contrast"].between(0.1, 0.9).any()
    assert not found["enriched"].any()


def test_firings_are_counted_on_what_was_sampled_by_sample_and_by_token(readers):
    ids = readers["child"].rows["words"].read(range(3))[:, :6]
    found = firings(readers["child"], an_sae(), HOOKPOINT, [Samples(ids, 2)], 2)
    model, sae = readers["child"].model, an_sae()
    with torch.inference_mode():
        acts = model.model(input_ids=torch.from_numpy(ids), output_hidden_states=True).hidden_states[1]
        fires = (sae.encode(acts)[:, 2:] > 0).numpy()
    assert found.n_read == 12
    assert found.n_tokens.tolist() == fires.sum(axis=(0, 1)).tolist()
    assert found.n_samples.tolist() == fires.any(axis=1).sum(axis=0).tolist()


def test_a_feature_is_enriched_if_its_interval_lies_above_both_others_and_new_ones_come_first():
    n = {"contrast": [90, 90, 90, 60, 90], "alone": [50, 50, 85, 50, 50], "itself": [50, 85, 50, 50, 40]}
    n |= {"other draws": [50, 80, 85, 50, 50]}
    counts = {
        name: Firings(np.array(of_set), 3 * np.array(of_set), 600 if name != "itself" else 0)
        for name, of_set in n.items()
    }
    found = enrichment(counts, edge(["inherited", "new", "new", "new", "new"]), 100)
    # The second and third are not above one of the others; the fourth's interval reaches into theirs.
    assert found["latent"].tolist() == [4, 0, 3, 1, 2]
    assert found["enriched"].tolist() == [True, True, False, False, False]
    assert found.set_index("latent")["by_chance"].tolist() == [False, False, False, True, False]
    first = found.iloc[0]
    assert (first["samples_contrast"], first["tokens_contrast"], first["n_samples"]) == (0.9, 0.45, 100)
    assert (first["samples_contrast_low"], first["samples_contrast_high"]) == share(90, 100).interval


def test_untestable_features_are_left_out():
    counts = {name: Firings(np.array([3, 3]), np.array([3, 3]), 9) for name in SETS}
    assert enrichment(counts, edge(["untestable", "new"]), 4)["latent"].tolist() == [1]


def test_samples_are_text_behind_what_they_start_from(readers, tiny):
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer / "tokenizer.json"))
    sets = sample_sets(readers, range(2, 300), 3, 4, 0)
    found = sample_table(sets, tokenizer)
    assert found["way"].tolist() == [name for name in SETS for _ in range(3)]
    assert found["sample"].tolist() == [0, 1, 2] * 4
    assert found["start"].tolist()[:2] == ["", ""]
    long = sets["contrast"][1].ids[0].tolist()
    assert found.loc[2, "start"] == tokenizer.decode(long[1:9], skip_special_tokens=False)
    assert found.loc[2, "text"] == tokenizer.decode(long[9:], skip_special_tokens=False)
