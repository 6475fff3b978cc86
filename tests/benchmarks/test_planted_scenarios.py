"""Planted blocks of features fire as their scenario says, and lists of lost and new latents are scored over all."""

import numpy as np
import pandas as pd
import pytest
from benchmarks.planted_blocks import (
    OUTLIER,
    SCENARIOS,
    Blocks,
    Feature,
    PlantedBlocks,
    plant_blocks,
    single,
    true_strengths,
)
from benchmarks.planted_scenarios import by_role, list_scores, persisting_shares, scenario_tables

TOKENS = 20_000


def planted(name: str) -> tuple[PlantedBlocks, list[np.ndarray]]:
    """A scenario, and the strengths of its features on 20,000 tokens, in parent and child."""
    lineage = plant_blocks(SCENARIOS[name], seed=3, d_in=16)
    return lineage, [side.toarray() for side in true_strengths(lineage, 0, TOKENS)]


def columns(lineage: PlantedBlocks, role: str) -> np.ndarray:
    return np.flatnonzero(lineage.features["role"] == role)


def test_a_feature_is_lost_new_turned_or_persists():
    assert [Feature("").truth(side) for side in range(2)] == ["persists", "persists"]
    assert Feature("", child=0.0).truth(0) == "lost"
    assert Feature("", parent=0.0).truth(1) == "new"
    assert [Feature("", other_tokens=True).truth(side) for side in range(2)] == ["lost", "new"]
    assert Feature("", child=0.1).truth(0) == "persists"
    assert Feature("", degrees=90.0).truth(0) == "turned"


def test_features_that_vanish_or_appear_fire_on_one_side_only():
    lineage, (parent, child) = planted("control")
    for role, there, missing in (("vanishes", parent, child), ("appears", child, parent)):
        assert (there[:, columns(lineage, role)] > 0).sum(axis=0).min() >= 50
        assert not missing[:, columns(lineage, role)].any()
    stays = columns(lineage, "persists")
    assert np.array_equal(parent[:, stays] > 0, child[:, stays] > 0)


def test_features_of_a_group_fire_together_on_their_share_of_the_trigger():
    for name, within in (("groups .8", 0.8), ("groups .95", 0.95)):
        lineage, (parent, _) = planted(name)
        for block in range(lineage.features["block"].max() + 1):
            rows = lineage.features[(lineage.features["block"] == block) & (lineage.features["parent"] > 0)]
            if len(rows) > 1:
                first, second = (parent[:, rows.index[:2]] > 0).T
                # Of 100 tokens or more a share has a standard deviation of 0.04 at most.
                assert (first & second).sum() / first.sum() == pytest.approx(within, abs=0.12)


def test_specific_features_fire_where_their_general_one_does():
    lineage, (parent, _) = planted("hierarchy")
    for number in columns(lineage, "general"):
        block = lineage.features["block"][number]
        specific = lineage.features.index[(lineage.features["block"] == block) & (lineage.features["within"] < 1)]
        assert not ((parent[:, specific] > 0) & (parent[:, [number]] == 0)).any()
        stays = specific[lineage.features["role"][specific] == "specific, persists"]
        shares = (parent[:, stays] > 0).sum(axis=0) / (parent[:, number] > 0).sum()
        assert shares == pytest.approx(np.full(len(stays), 0.35), abs=0.12)


def test_densities_follow_zipf_s_law_between_their_bounds():
    lineage = plant_blocks((single(Feature(""), 20_000)._replace(densities=(0.01, 0.1), zipf=True),), seed=0, d_in=2)
    # With a density of p^-2 the share below p is (1 - 0.01 / p) / 0.9: 0.556 below 0.02, 0.889 below 0.05.
    shares = [(lineage.densities < bound).mean() for bound in (0.01, 0.02, 0.05, 0.1)]
    assert shares == pytest.approx([0, 0.5556, 0.8889, 1], abs=0.012)


def test_strengths_have_a_mean_of_two_and_a_pareto_tail_where_they_are_to():
    mild, heavy = (Blocks(1, (Feature("", within=1.0),), (0.5, 0.5), tail=tail) for tail in (None, 2.5))
    lineage = plant_blocks((mild, heavy), seed=0, d_in=2)
    strengths = np.concatenate([true_strengths(lineage, chunk, TOKENS)[0].toarray() for chunk in range(5)])
    mild_ones, heavy_ones = (column[column > 0] for column in strengths.T)  # 50,000 each
    assert [mild_ones.mean(), heavy_ones.mean()] == pytest.approx([2, 2], abs=0.05)
    # P(> x) = (1.2 / x)^2.5 of the heavy ones, times E(factor^2.5) = exp(0.15^2 (2.5^2 - 2.5) / 2): 0.0030 above 12.5.
    assert (heavy_ones > 12.5).mean() == pytest.approx(0.0030, abs=0.0008)
    assert (mild_ones > 12.5).mean() < 0.0003  # e^-11.5 without the factors


def test_directions_turn_strengths_are_rescaled_and_triggers_move():
    lineage, _ = planted("other direction")
    turned = columns(lineage, "other direction")
    assert (lineage.dictionaries[0] * lineage.dictionaries[1]).sum(axis=1)[turned] == pytest.approx(np.zeros(8))
    lineage, (parent, child) = planted("rescaled")
    for factor in (3, 2, 0.5, 0.25, 0.1):
        numbers = columns(lineage, f"rescaled x {factor:g}")
        assert (child[:, numbers].sum() / parent[:, numbers].sum()) == pytest.approx(factor, rel=0.05)
    lineage, (parent, child) = planted("other trigger")
    moved = columns(lineage, "other trigger")
    assert np.array_equal(lineage.dictionaries[0][moved], lineage.dictionaries[1][moved])
    both = (parent[:, moved] > 0) & (child[:, moved] > 0)
    assert both.sum() < 0.1 * (parent[:, moved] > 0).sum()  # densities are 0.05 at most


def test_an_outlying_token_is_shared_by_features_of_equal_number():
    lineage, (parent, child) = planted("outlying token")
    for acts, role in ((parent, "vanishes, outlying token"), (child, "appears, outlying token")):
        assert acts[:, columns(lineage, role)].argmax(axis=0).tolist() == list(range(8))
        assert acts[:8].max() == OUTLIER
    assert not true_strengths(lineage, 1, TOKENS)[0].max() > OUTLIER / 10


def latents_of(side: str, rows: list[tuple]) -> pd.DataFrame:
    """Latents of one lineage: feature, truth, study's verdict, verdict, identified, robust, headline."""
    names = ["feature", "truth", "study_verdict", "verdict", "identified", "robust", "headline"]
    table = pd.DataFrame(rows, columns=names).assign(side=side, scenario="one", lineage=0, instrument="anchored")
    return table.assign(role=table["truth"], kind=np.where(table["study_verdict"] == "persists", "1:1", ""))


def test_a_latent_of_no_feature_costs_precision_where_it_is_called_lost():
    latents = latents_of(
        "parent",
        [
            (0, "lost", "disappears", "gone", True, True, True),
            (0, "lost", "disappears", "gone", False, False, False),
            (1, "lost", "persists", "persists", True, False, False),
            (2, "persists", "persists", "persists", True, False, False),
            (3, "persists", "disappears", "drifted", True, False, False),
            (-1, "", "disappears", "gone", False, False, False),
            (-1, "", "untestable", "untestable", False, False, False),
        ],
    )
    features = [("parent", number, truth) for number, truth in enumerate(["lost", "lost", "persists", "persists"])]
    planted = pd.DataFrame(features, columns=["side", "feature", "truth"])
    planted = planted.assign(scenario="one", lineage=0, role=planted["truth"])
    scored = list_scores(latents, planted).set_index("list")
    assert scored["n_listed"].to_dict() == {"all": 4, "identified": 2, "gone": 3, "robust": 1, "headline": 1}
    assert scored["precision"].to_dict() == {
        "all": 2 / 4,
        "identified": 1 / 2,
        "gone": pytest.approx(2 / 3),
        "robust": 1,
        "headline": 1,
    }
    assert scored["recall"].tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert scored["recall_planted"].tolist() == [0.5] * 5  # one of the two features that vanish
    shares = persisting_shares(latents, planted).set_index("group")
    assert shares.loc["all", ["n", "persist_share", "drifted_share", "gone_share"]].tolist() == pytest.approx(
        [6, 2 / 6, 1 / 6, 3 / 6]
    )
    assert shares.loc["identified", ["n", "persist_share", "true_share", "true_share_here"]].tolist() == [
        4,
        0.5,
        0.5,
        0.5,
    ]
    roles = by_role(latents, planted).set_index("role")
    assert roles.loc["lost", ["n", "represented", "found", "headline"]].tolist() == [2, 1, 0.5, 0.5]
    assert roles.loc["persists", ["n", "represented", "found", "drifted"]].tolist() == [2, 1, 0.5, 0.5]


def test_the_reduced_control_finds_what_vanishes_and_appears_and_lists_nothing_else():
    tables = scenario_tables(["control"], small=True)
    scores = tables["scores"].set_index(["instrument", "side", "list"])
    for instrument in ("anchored", "independent"):
        for side in ("parent", "child"):
            headline = scores.loc[instrument, side, "headline"]
            assert headline["precision"] == 1
            assert headline["recall_planted"] == 1
        shares = tables["shares"].set_index(["instrument", "group"]).loc[instrument, "identified"]
        assert shares["persist_share"] == pytest.approx(shares["true_share"], abs=0.05)
    # Latents that follow no planted feature are called lost by the study's verdict.
    assert scores.loc["anchored", "parent", "all"]["precision"] < 0.9
