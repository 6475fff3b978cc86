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
from benchmarks.planted_scenarios import Lineage, Size, by_role, true_share, truth_of

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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A lineage of which nothing is asked but what was planted."""
    size = Size(d_in=16, train_tokens=4_000, passes=1, probe_tokens=10_000, chunk_tokens=2_000, share=0.25)
    return Lineage("other direction", 0, size, tmp_path_factory.mktemp("lineage"))


def test_latents_are_lost_new_kept_or_neither_by_the_feature_that_they_follow(tiny):
    roles = tiny.planted.features["role"].tolist()
    first = {role: roles.index(role) for role in ("persists", "vanishes", "appears", "other direction")}
    followed = np.array([first["persists"], first["vanishes"], first["vanishes"], first["other direction"], -1])
    parent = truth_of(tiny, 0, followed)
    assert parent.changed.tolist() == [False, True, True, False, False]
    assert parent.kept.tolist() == [True, False, False, False, True]  # a turned one is neither
    assert parent.follows.tolist() == [-1, first["vanishes"], first["vanishes"], -1, -1]
    assert parent.n_planted == roles.count("vanishes")
    assert truth_of(tiny, 1, np.array([first["appears"], -1])).changed.tolist() == [True, False]
    kept, lost = roles.count("persists"), roles.count("vanishes")
    assert true_share(tiny, 0) == kept / (kept + lost + roles.count("other direction"))


def test_every_role_is_counted_by_features_not_by_latents(tiny):
    roles = tiny.planted.features["role"].tolist()
    two = [number for number, role in enumerate(roles) if role == "vanishes"][:2]
    rows = pd.DataFrame(
        {
            "study_verdict": ["disappears", "disappears", "persists"],
            "verdict": ["gone", "gone", "persists"],
            "identified": [True, False, False],
            "robust": [True, False, False],
            "headline": [True, False, False],
            "kind": ["", "", "split"],
        }
    )
    counts = {row["role"]: row for row in by_role(tiny, 0, rows, np.array([two[0], two[0], two[1]]))}
    lost = counts["vanishes"]
    assert (lost["represented"], lost["identifiable"], lost["gone"], lost["headline"]) == (2, 1, 1, 1)
    assert (lost["found"], lost["in_parts"], lost["drifted"]) == (1, 1, 0)
    assert "appears" not in counts  # the parent lacks them
