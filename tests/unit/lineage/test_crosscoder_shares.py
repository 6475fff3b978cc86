"""Shares of a crosscoder's latents by verdict: counts by hand, intervals, and the floor."""

import numpy as np
import pytest

from saelineage.crosscoders.latent_scaling import ScalingSums, couples_of
from saelineage.lineage.crosscoder_shares import OTHER_HALF, measure_pairs, shares_of, weighted
from saelineage.lineage.exclusivity import VERDICTS, ExclusivityRules
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
    latents, shares = measure_pairs(group_sums(8), crosscoder_of(W_DEC), PAIRS, RULES, 20, seed=0)
    assert latents["verdict"].tolist() == ["persists", "emerges", "disappears"]
    row = shares[shares["role"] == "edge"].iloc[0]
    assert row[list(VERDICTS)].tolist() == [1, 0, 1, 1, 0]
    # Of two latents that the parent writes one persists, and of two that the child writes one is inherited.
    for name in ("persist", "inherited"):
        assert row[[f"{name}_share{end}" for end in ("", "_n", "_low", "_high")]].tolist() == [0.5, 2, 0.5, 0.5]


def test_the_floor_is_the_parent_beside_itself_on_other_groups():
    groups = group_sums(8)
    _, shares = measure_pairs(groups, crosscoder_of(W_DEC), PAIRS, RULES, 5, seed=0)
    floor = shares[shares["role"] == OTHER_HALF].iloc[0]
    assert (floor["parent"], floor["child"]) == ("a", "a")
    assert (floor["persists"], floor["disappears"], floor["untestable"]) == (
        2,
        0,
        1,
    )  # the parent never writes latent 1
    assert np.isnan(floor["persist_share_low"])
    # Where every second group holds nothing of latent 0 although it fires there, the halves disagree.
    empty = group_sums(1)[0]
    empty.on_error, empty.on_recons = -2 * np.ones_like(empty.on_error), np.zeros_like(empty.on_recons)
    _, shares = measure_pairs([groups[0], empty] * 4, crosscoder_of(W_DEC), PAIRS, RULES, 5, seed=0)
    assert shares[shares["role"] == OTHER_HALF].iloc[0]["disappears"] >= 1


def test_weights_count_groups_again():
    groups = group_sums(3)
    assert weighted(groups, [2, 0, 1]).n_firings.tolist() == [6, 6, 6]
    assert weighted(groups, [2, 0, 1]).n_tokens == 18


def test_shares_of_no_latents_are_undefined():
    shares = shares_of(dict.fromkeys(VERDICTS, 0) | {"untestable": 5, "emerges": 3})
    assert np.isnan(shares["persist"])
    assert shares["inherited"] == pytest.approx(0)
