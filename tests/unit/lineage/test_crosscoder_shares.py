"""Shares of a crosscoder's latents by verdict: counts by hand, intervals, and the floor."""

import numpy as np
import pandas as pd
import pytest

from saelineage.crosscoders.latent_scaling import ScalingSums, couples_of, decoder_products
from saelineage.lineage.crosscoder_shares import decoder_norms, floor_table, measure_pairs, shares_of, weighted
from saelineage.lineage.exclusivity import OTHER_HALF, VERDICTS, ExclusivityRules
from tests.unit.crosscoders.made import crosscoder_of

PAIRS = [{"edge": "a__b", "parent": "a", "child": "b", "role": "edge"}]
RULES = ExclusivityRules(min_firings=4)
W_DEC = np.zeros((2, 3, 2), np.float32)
W_DEC[:, 0] = [1, 0]  # both write latent 0
W_DEC[1, 1] = [0, 1]  # the child alone writes latent 1
W_DEC[0, 2] = [0, 1]  # the parent alone writes latent 2


def group_sums(n_groups: int) -> list[ScalingSums]:
    """Groups in which every latent fires twice with 1, and decoders write what the models hold: no error is left."""
    couples = couples_of([("a", "b")])
    products = np.zeros((len(couples), 3))
    decoders = {"a": W_DEC[0], "b": W_DEC[1]}
    for number, couple in enumerate(couples):
        products[number] = 2 * (decoders[couple.model] * decoders[couple.direction]).sum(axis=1)
    one = ScalingSums(couples, 6, np.full(3, 2), np.full(3, 2.0), np.zeros_like(products), products)
    return [one] * n_groups


def test_latents_are_counted_by_who_writes_them():
    latents, shares, curves = measure_pairs(group_sums(8), crosscoder_of(W_DEC), PAIRS, RULES, 20, seed=0)
    assert latents["verdict"].tolist() == ["persists", "emerges", "disappears"]
    row = shares[shares["role"] == "edge"].iloc[0]
    assert row[list(VERDICTS)].tolist() == [1, 0, 1, 1, 0]
    # Of two latents that the parent writes one persists, and of two that the child writes one is inherited.
    for name in ("persist", "inherited"):
        assert row[[f"{name}_share{end}" for end in ("", "_n", "_low", "_high")]].tolist() == [0.5, 2, 0.5, 0.5]
    # One of three latents at every threshold for each writer: nu is 0 where a model does not write, and else 1.
    curve = curves[(curves["role"] == "edge") & (curves["threshold"] < 1)]
    assert (len(curve), {*curve["parent_only"]}, {*curve["child_only"]}, {*curve["n_testable"]}) == (49, {1}, {1}, {3})
    assert {*curve["nu_error_below"]} == {RULES.nu_error_below}


def test_norms_are_given_for_every_model_with_those_of_edges_first():
    crosscoder = crosscoder_of(np.concatenate([W_DEC[:1], 3 * W_DEC[:1], W_DEC[1:]]))
    pairs = [PAIRS[0] | {"child": "c"}, PAIRS[0] | {"child": "b", "role": "reinitialised"}]
    latents = pd.DataFrame(
        [{**pair, "latent": latent, "n_firings": n} for pair in pairs for latent, n in enumerate((9, 3, 4))]
    )
    norms = decoder_norms(crosscoder, latents, min_firings=4)
    assert list(dict.fromkeys(zip(norms["model"], norms["role"], strict=True))) == [
        ("a", "lineage"),
        ("c", "lineage"),
        ("b", "reinitialised"),
    ]
    assert norms["norm"].tolist() == [1, 0, 1, 1, 1, 0, 3, 0, 3]
    assert norms["norm"].dtype == np.float64
    assert norms["fires"].tolist() == [True, False, True] * 3


def test_the_floor_is_the_parent_beside_itself_on_other_groups():
    groups = group_sums(8)
    _, shares, curves = measure_pairs(groups, crosscoder_of(W_DEC), PAIRS, RULES, 5, seed=0)
    floor = shares[shares["role"] == OTHER_HALF].iloc[0]
    assert (floor["parent"], floor["child"]) == ("a", "a")
    assert floor[list(VERDICTS)].tolist() == [2, 0, 0, 0, 1]  # the parent never writes latent 1
    assert np.isnan(floor["persist_share_low"])
    assert set(curves["n_testable"][curves["role"] == OTHER_HALF]) == {2}


def test_latents_of_one_half_of_the_documents_are_counted_on_the_floor_by_half():
    # In every second group nothing of latent 0 is written although it fires there; latent 2 is so in the other groups.
    def without(latent: int) -> ScalingSums:
        (sums,) = group_sums(1)
        couple = sums.couples.index(("a", "a"))
        sums.on_error[couple, latent], sums.on_recons[couple, latent] = -2, 0
        return sums

    groups = [without(2), without(0)] * 4
    floor = floor_table(groups, decoder_products(crosscoder_of(W_DEC), groups[0].couples), "a")
    assert floor["nu_error"].tolist()[::2] == floor["nu_reconstruction"].tolist()[::2] == [0, 0]
    assert floor["writer"].tolist()[::2] == ["parent", "child"]
    _, shares, _ = measure_pairs(groups, crosscoder_of(W_DEC), PAIRS, RULES, 5, seed=0)
    floor = shares[shares["role"] == OTHER_HALF].iloc[0]
    assert floor[["emerges", "disappears"]].tolist() == [1, 1]


def test_weights_count_groups_again():
    groups = group_sums(3)
    assert weighted(groups, [2, 0, 1]).n_firings.tolist() == [6, 6, 6]
    assert weighted(groups, [2, 0, 1]).n_tokens == 18


def test_shares_of_no_latents_are_undefined():
    shares = shares_of(dict.fromkeys(VERDICTS, 0) | {"untestable": 5, "emerges": 3})
    assert np.isnan(shares["persist"])
    assert shares["inherited"] == pytest.approx(0)
