"""Acts on features: which are chosen, on which passages, and what is said of what both models then do."""

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer

from saelineage.behaviour.acts import (
    CLOSER,
    FURTHER,
    UNTOLD,
    Feature,
    act,
    does,
    features_of,
    n_new_tokens,
    new_features,
    of_one_length,
    random_features,
    summarise,
)
from saelineage.behaviour.edges import Reader
from saelineage.labels.annotations import Annotations
from saelineage.lineage.shares import share
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows
from tests.annotated import annotated, firings

HOOKPOINT = "model.layers.0.output"


def test_passages_of_one_length_are_batched_together_and_none_is_lost():
    feature = Feature(0, -1, 1.0, 2.0, np.array([3]), np.array([2.0]))
    acted = [(feature, number, peak) for number, peak in enumerate((3, 19, 4, 35, 51))]  # places 3, 3, 4, 3 and 3 of 16
    batches = list(of_one_length(acted, 16, 3))
    assert [[number for _, number, _ in batch] for batch in batches] == [[0, 1, 3], [4], [2]]


def test_the_first_new_features_are_those_for_sure_then_identified_ones_then_the_most_important():
    rows = {
        "side": ["parent"] + ["child"] * 5,
        "latent": [9, 0, 1, 2, 3, 4],
        "verdict": ["gone", "new", "new", "new", "inherited", "new"],
        "headline": [True, False, False, True, True, False],
        "identified": [True, False, True, True, True, False],
        "importance": [9.0, 5.0, 1.0, 0.5, 9.0, 6.0],
    }
    assert new_features(pd.DataFrame(rows), 3) == [2, 1, 4]
    assert new_features(pd.DataFrame(rows), 9) == [2, 1, 4, 0]


def test_the_random_feature_beside_each_is_not_new_and_fires_about_as_often():
    child = {
        "side": "child",
        "latent": range(6),
        "verdict": ["new", "new", "inherited", "drifted", "untestable", "new"],
        "density": [0.2, 0.011, 0.01, 0.3, 0.2, 0.2],
    }
    edge = pd.concat([pd.DataFrame(child).assign(side="parent"), pd.DataFrame(child)])
    assert random_features([0, 1, 5], edge, 0) == [3, 2, -1]  # two are not new, so the third has none


@pytest.fixture
def probe() -> Annotations:
    """Two rows of eight tokens in one corpus, of two documents and one; a continuation has four tokens."""
    rows = [[None, *"abc", None, *"xyz"], [None, *"defghij"]]
    return annotated({"words": rows})


def test_peaks_leave_room_for_a_continuation_and_the_largest_is_that_of_all_firings(probe):
    # Of the row's eight places the first four leave room for four more; token 5 has none.
    of_latent = {1: 2.0, 2: 3.0, 5: 9.0, 10: 1.0}
    (feature,) = features_of([0], [7], firings(probe, of_latent), probe)
    assert n_new_tokens(probe.n_ctx) == 4
    assert feature.peaks.tolist() == [2, 10]  # one per document, the strongest first
    assert feature.strengths.tolist() == [3.0, 1.0]
    assert (feature.latent, feature.random, feature.mean, feature.largest) == (0, 7, 3.75, 9.0)


def test_a_continuation_has_twelve_tokens_or_half_a_row():
    assert [n_new_tokens(n_ctx) for n_ctx in (8, 24, 128)] == [4, 12, 12]


def an_sae(d_in: int = 32) -> Sae:
    """Each latent fires on the positive part of a dimension and writes in its direction."""
    sae = Sae("relu", d_in, d_in)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d_in))
        sae.W_dec.copy_(torch.eye(d_in))
    return sae


@pytest.fixture
def acted(tiny, model):
    """Act on two features of a child that is its parent."""
    rows = {"words": TokenRows(tiny.tokens["words"]["probe"])}
    ids = np.asarray(rows["words"].ids)[:2]
    of_rows = [[None, *map(str, row[1:])] for row in ids.tolist()]
    features = [
        Feature(4, 9, 1.0, 2.0, np.array([3, 18]), np.array([2.0, 1.5])),
        Feature(1, -1, 1.0, 0.0, np.array([5]), np.array([0.5])),
    ]

    def run(chosen=features, **readers: Reader) -> pd.DataFrame:
        tokenizer = Tokenizer.from_file(str(tiny.tokenizer / "tokenizer.json"))
        return act(readers, an_sae(), HOOKPOINT, chosen, annotated({"words": of_rows}), range(300), tokenizer, 2)

    run.reader = Reader(model, rows)
    return run


def test_a_parent_that_is_the_child_does_the_same_until_a_feature_is_added(acted):
    found = acted(parent=acted.reader, child=acted.reader)
    child, parent = ["as it is", "removed", "mean", "twice"], ["as it is", "added", "random"]
    assert found["setting"].tolist() == (child + parent) * 2 + child + parent[:2]
    assert found["latent"].tolist() == [4] * 14 + [1] * 6
    as_it_is = found[found["setting"] == "as it is"]
    assert (as_it_is["kl"] == 0).all()
    assert as_it_is["same_next"].all()
    assert (as_it_is["n_same"] == as_it_is["n_new"]).all()
    changed = found[found["setting"].isin(["twice", "added", "random"]) & (found["latent"] == 4)]
    assert (changed["kl"] > 0).all()
    # The second feature's largest activation is 0, so that adding it adds nothing.
    assert found.loc[(found["latent"] == 1) & (found["setting"] == "added"), "kl"].item() == 0
    assert found.groupby("setting")["value"].first().to_dict() == pytest.approx(
        {"removed": 0.0, "mean": 1.0, "twice": 4.0, "added": 2.0, "random": 2.0, "as it is": np.nan}, nan_ok=True
    )
    assert (found.loc[found["setting"] == "random", "random"] == 9).all()


def test_passages_are_read_to_the_peak_and_next_tokens_are_the_most_likely(acted, model, tiny):
    found = acted(child=acted.reader)
    first = found.iloc[0]
    assert (first["corpus"], first["row"], first["place"], first["strength"]) == ("words", 0, 3, 2.0)
    ids = torch.from_numpy(acted.reader.rows["words"].read(range(1)))[:, :4]
    assert (first["before"], first["text"]) == ("".join(map(str, ids[0, 1:3].tolist())), str(int(ids[0, 3])))
    with torch.inference_mode():
        likely = model(input_ids=ids).logits[0, -1].softmax(-1).topk(5)
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer / "tokenizer.json"))
    assert first["next"] == [tokenizer.decode([token], skip_special_tokens=False) for token in likely.indices.tolist()]
    assert first["probabilities"] == pytest.approx(likely.values.tolist(), rel=1e-4)
    assert set(found["model"]) == {"child"}


def test_without_new_features_there_are_no_rows(acted):
    empty = acted([], child=acted.reader)
    assert len(empty) == 0
    assert len(summarise(empty, 10, 0)) == 0


def acts(as_it_is: list[float], with_feature: list[float], with_random: list[float]) -> pd.DataFrame:
    """One passage of each feature."""
    parts = []
    for setting, kls in (("as it is", as_it_is), ("added", with_feature), ("random", with_random)):
        named = {"latent": range(len(kls)), "passage": 0, "model": "parent", "setting": setting, "kl": kls}
        parts.append(pd.DataFrame(named | {"same_next": [kl < 1 for kl in kls], "n_same": 4, "n_new": 4}))
    child = parts[0].assign(model="child", kl=0.0, same_next=True)
    return pd.concat([child, *parts], ignore_index=True)


def test_the_summary_holds_means_over_passages_and_falls_from_the_parent_as_it_is():
    found = summarise(acts([2.0, 3.0, 4.0, 3.0], [0.5, 1.0, 2.5, 1.0], [2.0, 3.0, 4.5, 2.5]), 100, 0)
    assert found[["model", "setting"]].to_numpy().tolist() == [
        *[["child", "as it is"], ["parent", "as it is"], ["parent", "added"], ["parent", "random"]]
    ]
    added = found.set_index("setting").loc["added"]
    assert (added["n_features"], added["n_passages"], added["same_next"], added["same_all"]) == (4, 4, 0.25, 1.0)
    # Wilson: of one of four.
    assert (added["same_next_low"], added["same_next_high"]) == share(1, 4).interval
    assert added["kl"] == 1.25
    # Falls of 1.5, 2, 1.5, 2, and beside random ones of 1.5, 2, 2, 1.5.
    assert (added["kl_fall"], added["kl_fall_beside_random"]) == (1.75, 1.75)
    assert 1 < added["kl_fall_low"] < 1.75 < added["kl_fall_high"]
    assert added["does"] == CLOSER
    assert found.loc[found["setting"] == "random", "kl_fall"].item() == 0.0


def test_closer_is_said_only_if_random_features_do_less():
    as_it_is = [3.0] * 4
    assert summarise(acts(as_it_is, [1.0] * 4, [1.0] * 4), 50, 0)["does"].tolist()[2] == UNTOLD
    assert summarise(acts(as_it_is, [4.0] * 4, [3.0] * 4), 50, 0)["does"].tolist()[2] == FURTHER
    assert does((np.nan, np.nan), (np.nan, np.nan)) == UNTOLD  # of one feature there is no interval
