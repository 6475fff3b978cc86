"""Latents of difference SAEs by direction: kinds by hand, floor and null, and counts on single corpora."""

import numpy as np
import pandas as pd
import pytest
import torch

from saelineage.crosscoders.differences import DifferenceSums
from saelineage.lineage.differences import closest, latent_table, summary_table
from saelineage.lineage.new_directions import directions
from saelineage.saes.metrics import Moments, SaeSums

EYE = torch.eye(6)
W_DEC = torch.stack([EYE[0], EYE[1], EYE[2], -EYE[3], EYE[4], EYE[5]])
DECODERS = {
    "parent": torch.stack([EYE[1], EYE[2], EYE[3]]),
    "child": torch.stack([EYE[0], EYE[1] + 0.1 * EYE[2], 2 * EYE[3]]),
}
KINDS = ["child_alone", "both", "parent_alone", "opposite", "neither", "neither"]
FIRINGS = {"lua": [30, 30, 0, 30, 30, 5], "english": [10, 0, 30, 0, 30, 0]}


def sums(firings: list[int], n: int = 40) -> DifferenceSums:
    """Sums over n tokens whose difference is a fourth of the child's variance, of which the SAE explains half."""
    of_sae = SaeSums(Moments(n, torch.zeros(6), 10.0), 5.0, np.array(firings))
    return DifferenceSums(of_sae, Moments(n, torch.zeros(6), 40.0), 10.0, 0.5)


@pytest.fixture
def by_corpus() -> dict[str, DifferenceSums]:
    return {corpus: sums(firings) for corpus, firings in FIRINGS.items()}


def test_a_direction_is_of_the_child_the_parent_both_turned_round_or_of_neither(by_corpus):
    table = latent_table(W_DEC, DECODERS, by_corpus, same_above=0.7)
    assert table["direction"].tolist() == KINDS
    assert table["closest_child"].tolist()[:2] == [0, 1]
    assert table["cosine_child"].tolist()[:2] == pytest.approx([1.0, 1 / np.sqrt(1.01)])
    assert table["opposite_parent"].tolist()[3] == pytest.approx(1.0)
    assert table["cosine_unchanged"].isna().all()


def test_firings_are_counted_over_all_corpora_and_on_each(by_corpus):
    table = latent_table(W_DEC, DECODERS, by_corpus | {"python": DifferenceSums()}, same_above=0.7)
    assert table["n_firings"].tolist() == [40, 30, 30, 30, 60, 5]
    assert table["density"].tolist()[0] == 0.5  # of 80 tokens
    assert table["firing_share_lua"].tolist() == [0.75, 1.0, 0.0, 1.0, 0.5, 1.0]
    assert table["firings_python"].tolist() == [0] * 6


def test_only_what_fires_often_enough_is_counted_by_direction(by_corpus):
    table = latent_table(W_DEC, DECODERS, by_corpus, same_above=0.7)
    summary = summary_table(table, by_corpus, 0.7, min_firings=20).set_index("corpus")
    counts = summary[["n_alive", "n_testable", "child_alone", "parent_alone", "both", "opposite", "neither"]]
    assert counts.loc["pooled"].tolist() == [6, 5, 1, 1, 1, 1, 1]
    assert counts.loc["lua"].tolist() == [5, 4, 1, 0, 1, 1, 1]
    assert counts.loc["english"].tolist() == [3, 2, 0, 1, 0, 0, 1]
    figures = summary.loc["pooled"]
    assert figures["child_alone_share"] == 0.2
    assert figures["child_alone_share_low"] < 0.2 < figures["child_alone_share_high"]
    assert (figures["n_tokens"], figures["difference_size"], figures["rounding_share"]) == (80, 0.25, 0.05)
    assert (figures["fvu"], figures["l0"]) == (0.5, 195 / 80)


def test_the_floor_has_the_parent_s_second_sae_in_the_child_s_place(by_corpus):
    second = torch.stack([EYE[1], EYE[4], EYE[5]])  # the parent's first one lacks the last two
    table = latent_table(W_DEC, DECODERS | {"unchanged": second}, by_corpus, same_above=0.7)
    figures = summary_table(table, by_corpus, 0.7, min_firings=20).iloc[0]
    assert figures["child_alone_share_floor"] == 0.2  # latent 4 of five; latent 5 is not testable
    without = latent_table(W_DEC, DECODERS, by_corpus, same_above=0.7)
    assert np.isnan(summary_table(without, by_corpus, 0.7, min_firings=20).iloc[0]["child_alone_share_floor"])


def test_the_null_has_as_many_random_directions_there():
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(5))
    decoders = {"parent": -torch.eye(3)[:1], "child": torch.eye(3)[:2]}
    table = latent_table(rows, decoders, {"lua": sums([30] * 400)}, same_above=0.7)
    # In three dimensions a cosine is uniform in [-1, 1]: 0.15 of random directions are within 0.7 of a given one.
    far = table[table["cosine_parent"] < 0.7]
    assert far["cosine_random"].ge(0.7).mean() == pytest.approx(0.3, abs=0.1)  # two caps, which may meet
    null = summary_table(table, {"lua": sums([30] * 400)}, 0.7, 20).iloc[0]["child_alone_share_null"]
    assert null == (table["cosine_random"].ge(0.7) & table["cosine_parent"].lt(0.7)).mean()


def test_a_latent_without_a_direction_is_close_to_none():
    cosine, latent = closest(torch.zeros(1, 3), torch.eye(3))
    assert np.isnan(cosine[0])
    assert latent[0] == -1
    columns = ("cosine_child", "cosine_parent", "opposite_child", "opposite_parent")
    assert directions(pd.DataFrame({column: [np.nan] for column in columns}), 0.7).tolist() == ["neither"]


def test_without_tokens_or_testable_latents_there_are_no_shares():
    table = latent_table(W_DEC, DECODERS, {"lua": DifferenceSums()}, same_above=0.7)
    figures = summary_table(table, {"lua": DifferenceSums()}, 0.7, min_firings=20).iloc[0]
    assert figures["n_testable"] == 0
    assert figures[["fvu", "l0", "difference_size", "rounding_share", "child_alone_share"]].isna().all()
