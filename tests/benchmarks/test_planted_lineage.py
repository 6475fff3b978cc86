"""Planted truth: features fire as their fates say, and scores measure how many verdicts are right."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from benchmarks.planted_lineage import (
    FATES,
    PlantedLineage,
    Planting,
    chance_cosine,
    expected_r,
    expected_verdicts,
    fate_table,
    kind_scores,
    perturbed,
    plant,
    planted_acts,
    representatives,
    require_unrelated,
    scores,
    true_activations,
    truth,
    verdict_scores,
    write_dump,
)

from saelineage.activations import ActivationShard
from saelineage.correlations.pearson import correlate
from saelineage.errors import InputError
from saelineage.lineage.matching import edge_table
from saelineage.saes.batches import Dump
from saelineage.saes.sae import Sae
from saelineage.saes.trainer import initial_directions
from saelineage.saes.training import train_saes

SMALL = Planting(n_per_fate=4, d_in=32, densities=(0.02, 0.05), probe_tokens=20_000, chunk_tokens=10_000)


@pytest.fixture(scope="module")
def lineage() -> PlantedLineage:
    return plant(SMALL)


@pytest.fixture(scope="module")
def true(lineage) -> list[scipy.sparse.csr_array]:
    """True activations of both sides on the probe, 20,000 tokens."""
    return [truth(lineage, side, range(2)) for side in range(2)]


@pytest.fixture(scope="module")
def acts_of(lineage, true):
    """The activations of one fate's features on one side [token, feature]."""

    def select(side: int, fate: str) -> np.ndarray:
        return true[side][:, np.flatnonzero(lineage.features[side]["fate"] == fate)].toarray()

    return select


def directions(lineage: PlantedLineage, side: int, fate: str) -> np.ndarray:
    return lineage.dictionaries[side][lineage.features[side]["fate"] == fate]


def table_of(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array) -> pd.DataFrame:
    return edge_table(correlate(a, b, progress=False), 0.8)


def r_of_each(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """r of each feature with the feature of equal number on the other side."""
    return np.array([np.corrcoef(parent, child)[0, 1] for parent, child in zip(a.T, b.T, strict=True)])


def test_each_fate_has_the_items_asked_for_and_two_features_for_a_split_or_merged_one(lineage):
    counts = [features["fate"].value_counts().reindex(FATES, fill_value=0).to_dict() for features in lineage.features]
    assert counts[0] == dict.fromkeys(FATES, 4) | {"merged": 8, "appears": 0}
    assert counts[1] == dict.fromkeys(FATES, 4) | {"split": 8, "straddled": 8, "vanishes": 0}


def test_a_chunk_can_be_made_again_and_no_other_chunk_or_seed_gives_it(lineage):
    def chunk(planted: PlantedLineage, number: int) -> np.ndarray:
        return np.concatenate([side.toarray() for side in true_activations(planted, number)], axis=1)

    first = chunk(lineage, 0)
    assert np.array_equal(first, chunk(plant(SMALL), 0))
    assert not np.array_equal(first, chunk(lineage, 1))
    assert not np.array_equal(first, chunk(plant(SMALL._replace(seed=1)), 0))
    assert np.array_equal(planted_acts(lineage, 1, 3), planted_acts(lineage, 1, 3))
    assert not np.array_equal(planted_acts(lineage, 1, 3), planted_acts(lineage, 1, 4))


def test_invalid_densities_are_refused():
    for densities in ((0.0, 0.1), (0.2, 0.1), (0.1, 0.6)):
        with pytest.raises(InputError, match=r"0 < lowest <= highest <= 0\.5"):
            plant(SMALL._replace(densities=densities))


def test_features_fire_as_often_as_their_items_say(lineage, acts_of):
    for fate in ("persists", "vanishes"):
        item = lineage.features[0].query("fate == @fate")["item"]
        # 20,000 tokens: the share of a feature of density 0.05 has a standard deviation of 0.0015.
        assert np.allclose((acts_of(0, fate) > 0).mean(axis=0), lineage.densities[item], atol=0.008)
    assert lineage.densities.min() > 0.02 - 1e-12


def test_persisting_features_fire_on_the_same_tokens_with_a_factor_of_each_side(acts_of):
    for fate in ("persists", "rotated"):
        parent, child = acts_of(0, fate), acts_of(1, fate)
        assert np.array_equal(parent > 0, child > 0)
        # exp(-0.15^2) = 0.978, where features are rare.
        assert r_of_each(parent, child) == pytest.approx(np.full(4, 0.978), abs=0.01)


def test_parts_divide_the_tokens_of_their_whole(lineage, acts_of):
    for fate, whole, parts in (("split", 0, 1), ("merged", 1, 0)):
        fires = acts_of(parts, fate) > 0
        first, second = fires[:, ::2], fires[:, 1::2]  # an item's features are neighbours
        assert not (first & second).any()
        assert np.array_equal(first | second, acts_of(whole, fate) > 0)
        features = lineage.features[parts]
        planted = features.loc[features["fate"] == fate, "high"].to_numpy()[::2]
        assert ((planted >= 0.5) & (planted <= 0.7)).all()
        # Of 400 tokens or more a share has a standard deviation of 0.025 at most.
        assert np.allclose(first.sum(axis=0) / (first | second).sum(axis=0), planted, atol=0.1)


def test_decoys_fire_on_some_of_the_same_tokens_about_equally_often(acts_of):
    parent, child = acts_of(0, "decoy"), acts_of(1, "decoy")
    r = r_of_each(parent, child)
    assert ((r > 0.28) & (r < 0.65)).all()
    assert np.allclose((parent > 0).sum(axis=0) / (child > 0).sum(axis=0), 1, atol=0.2)


def test_straddling_features_cover_the_straddled_one_and_fire_as_often_elsewhere(acts_of):
    parent, children = acts_of(0, "straddled") > 0, acts_of(1, "straddled") > 0
    first, second = children[:, ::2], children[:, 1::2]
    assert not (parent & ~(first | second)).any()
    assert (first & second & parent).sum() > 0
    for child in (first, second):
        # Each has 0.5 to 0.6 of the parent's tokens, which are 400 or more, and is as frequent.
        assert np.allclose((child & parent).sum(axis=0) / parent.sum(axis=0), 0.55, atol=0.1)
        assert np.allclose(child.sum(axis=0) / parent.sum(axis=0), 1, atol=0.2)


def test_rare_features_of_the_child_fire_on_a_few_of_the_parent_s_tokens_and_dead_ones_never(acts_of):
    parent, child = acts_of(0, "rare") > 0, acts_of(1, "rare") > 0
    assert not (child & ~parent).any()
    assert 0 < child.sum() < 4 * 20  # 5 each on average
    assert (child.sum(axis=0) < 20).all()
    assert not acts_of(0, "dead").any()
    assert not acts_of(1, "dead").any()


def test_directions_are_unit_vectors_turned_as_the_fate_says(lineage):
    for dictionary in lineage.dictionaries:
        assert np.linalg.norm(dictionary, axis=1) == pytest.approx(np.ones(len(dictionary)))
    degrees = {"persists": 0.0, "rotated": 25.0, "rare": 0.0, "decoy": 90.0}
    for fate, angle in degrees.items():
        cosine = (directions(lineage, 0, fate) * directions(lineage, 1, fate)).sum(axis=1)
        assert cosine == pytest.approx(np.full(4, np.cos(np.radians(angle))), abs=1e-12)
    whole, parts = directions(lineage, 0, "split"), directions(lineage, 1, "split")
    assert (np.repeat(whole, 2, axis=0) * parts).sum(axis=1) == pytest.approx(np.full(8, np.cos(np.radians(35))))
    # 35 degrees to either side are 70 degrees from each other.
    assert (parts[::2] * parts[1::2]).sum(axis=1) == pytest.approx(np.full(4, np.cos(np.radians(70))))


def test_activations_are_true_activations_times_directions_plus_bias_and_noise(lineage):
    sums = [true_activations(lineage, 5)[side] @ lineage.dictionaries[side] + lineage.bias for side in range(2)]
    exact = plant(SMALL._replace(acts_noise=0.0))
    noise = []
    for side in range(2):
        assert np.allclose(planted_acts(exact, side, 5), sums[side], atol=1e-5)
        noise.append((planted_acts(lineage, side, 5) - sums[side]).ravel())
        # 320,000 numbers: the standard deviation is known to 0.0001.
        assert noise[side].std() == pytest.approx(0.05, abs=0.0005)
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.01


def test_a_dump_holds_the_activations_of_its_chunks_in_half_precision(lineage, tmp_path):
    paths = write_dump(lineage, 1, range(1, 3), tmp_path)
    shards = [ActivationShard(path) for path in paths]
    for chunk, shard in enumerate(shards, start=1):
        acts = planted_acts(lineage, 1, chunk)
        assert shard.acts().dtype == torch.float16
        assert np.allclose(shard.acts().float().numpy(), acts, rtol=1e-3, atol=1e-3)
        assert np.allclose(shard.norms().numpy(), np.linalg.norm(acts, axis=1))
        assert shard.positions().tolist() == list(range(10_000 * chunk, 10_000 * (chunk + 1)))
    assert [shard.header["stop_row"] for shard in shards] == [20_000, 30_000]
    assert (len(Dump(paths)), Dump(paths).d_in) == (20_000, 32)


def test_firings_are_missed_and_added_at_the_rates_asked_for(true):
    same = perturbed(true[0], 0, noise=0.0, missed=0.0, false=0.0)
    assert (same != true[0]).nnz == 0
    n = true[0].nnz  # about 25,000; 0.2 of it has a standard deviation of 0.0025
    missed = perturbed(true[0], 1, noise=0.0, missed=0.2, false=0.0)
    assert missed.nnz / n == pytest.approx(0.8, abs=0.015)
    assert (missed > true[0]).nnz == 0
    added = perturbed(true[0], 1, noise=0.0, missed=0.0, false=0.2)
    assert added.sum() / true[0].sum() == pytest.approx(1.2, abs=0.015)
    assert (added < true[0]).nnz == 0


def test_r_of_perturbed_features_is_as_expected(acts_of):
    sides = [scipy.sparse.csr_array(np.hstack([acts_of(s, f) for f in ("persists", "rotated")])) for s in range(2)]
    for changes in ({"noise": 0.4}, {"missed": 0.2}, {"false": 0.3}, {"noise": 0.2, "false": 0.1}):
        rates = {"noise": 0.0, "missed": 0.0, "false": 0.0} | changes
        latents = [perturbed(acts, seed, **rates).toarray() for seed, acts in enumerate(sides)]
        # Densities of 0.02 to 0.05 take up to half as much from r.
        assert r_of_each(*latents).mean() == pytest.approx(expected_r(SMALL, **rates), abs=0.025)
    # 0.8^2 / (1 - 0.2 + 0.2) = 0.64, and nothing else varies.
    planting = SMALL._replace(activation_noise=0.0)
    assert expected_r(planting, noise=0.0, missed=0.2, false=0.2) == pytest.approx(0.64)
    assert expected_r(SMALL, noise=0.2, missed=0.0, false=0.0) == pytest.approx(np.exp(-(0.15**2 + 0.2**2)))


@pytest.mark.parametrize("changes", [{"densities": (0.005, 0.05)}, {"densities": (0.02, 0.2)}, {"seed": 3}])
def test_verdicts_and_kinds_of_moderately_perturbed_features_are_right(changes):
    planted = plant(SMALL._replace(**changes))
    latents = [
        perturbed(truth(planted, side, range(2)), side, noise=0.15, missed=0.03, false=0.03) for side in range(2)
    ]
    scored = kind_scores(planted, table_of(*latents))
    assert scored.groupby("side")["class"].apply(list).to_dict() == {
        "child": ["1:1", "emerges", "merged", "split", "untestable"],
        "parent": ["1:1", "disappears", "merged", "split", "untestable"],
    }
    assert scored["f1"].min() == 1.0


def test_wrong_kinds_lower_the_scores(lineage, true):
    table = table_of(*true)
    wrong = table["kind"].isin(["split", "merged"]) & (table["side"] == "parent")
    table.loc[wrong, ["kind", "study_verdict"]] = ["", "disappears"]
    scored = kind_scores(lineage, table).set_index(["side", "class"])
    # Of the parent's 16 vanish, go rare, are decoys or straddled; 4 split and 8 merged ones are now taken for such.
    assert scored.loc[("parent", "disappears"), ["n", "precision", "recall"]].tolist() == [
        16,
        pytest.approx(16 / 28),
        1,
    ]
    assert scored.loc[("parent", "split"), "recall"] == 0
    assert scored.loc[("child", "split"), "f1"] == 1


def test_scores_by_hand():
    scored = scores(["a", "a", "a", "b", "b", "c"], ["a", "a", "b", "b", "", "b"]).set_index("class")
    # a: 2 of 3 found, and no other feature called so; b: 1 of 2 found, of 3 called so; c: no feature called so.
    assert scored["n"].to_dict() == {"a": 3, "b": 2, "c": 1}
    assert scored["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert scored["precision"].tolist() == pytest.approx([1, 1 / 3, np.nan], nan_ok=True)
    # 2 TP / (2 TP + FP + FN): 4 / (4 + 0 + 1); 2 / (2 + 2 + 1); 0.
    assert scored["f1"].tolist() == pytest.approx([4 / 5, 2 / 5, 0])
    scored = scores(["a", "b"], ["a", "a"], leave_out=["b"])
    assert scored.to_dict("records") == [{"class": "a", "n": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}]


def test_a_latent_represents_the_planted_feature_that_it_follows(true):
    planted = true[0][:, :6]
    noise = scipy.sparse.random_array((20_000, 3), density=0.03, rng=np.random.default_rng(0), format="csr")
    latents = scipy.sparse.hstack([noise, planted[:, [4, 2, 0]]], format="csr")
    assert representatives(planted, latents).tolist() == [5, -1, 4, -1, 3, -1]


def test_planted_features_that_no_latent_represents_are_missed(lineage, true):
    table = table_of(*true)
    represented = tuple(np.arange(acts.shape[1]) for acts in true)
    scored = verdict_scores(lineage, table, represented).set_index(["side", "class"])
    assert scored["f1"].tolist() == [1.0] * 4
    assert scored["n"].to_dict() == {
        ("parent", "disappears"): 16,  # 4 vanish, 4 go rare, 4 are decoys, 4 straddled
        ("parent", "persists"): 20,  # 4 persist, 4 are rotated, 4 split, 8 merged
        ("child", "emerges"): 16,  # 4 appear, 4 are decoys, 8 straddle
        ("child", "inherited"): 20,
    }
    without = np.where(lineage.features[0]["fate"] == "rotated", -1, represented[0])
    scored = verdict_scores(lineage, table, (without, represented[1])).set_index(["side", "class"])
    # 16 of 20 are found, and no other feature is called so.
    assert scored.loc[("parent", "persists"), ["precision", "recall"]].tolist() == [1.0, 0.8]
    assert scored.loc[("parent", "disappears"), "f1"] == 1


def test_expected_verdicts_follow_from_the_fate(lineage):
    for side, matched in enumerate(("persists", "inherited")):
        fates = lineage.features[side]["fate"]
        verdicts = np.array(expected_verdicts(lineage, side))
        assert set(verdicts[fates.isin(["persists", "rotated", "split", "merged"])]) == {matched}
        assert set(verdicts[fates == "dead"]) == {"untestable"}
    assert set(np.array(expected_verdicts(lineage, 0))[lineage.features[0]["fate"] == "rare"]) == {"disappears"}


def test_a_chance_cosine_is_uniform_in_three_dimensions_and_smaller_in_more():
    # Archimedes: a cap of height 1 - c has the share (1 - c) / 2 of a sphere, two caps have 1 - c.
    assert chance_cosine(1, 3, 0.2) == pytest.approx(0.8)
    assert chance_cosine(10, 3, 0.2) == pytest.approx(0.98)
    limits = [chance_cosine(10_000, d_in) for d_in in (16, 64, 256)]
    assert all(more > less for more, less in pairwise(limits))


def test_an_sae_does_not_start_from_planted_directions(lineage):
    dictionary = lineage.dictionaries[0]
    for seed in range(5):
        starts = initial_directions(32, 96, 0.1, seed).double().numpy()
        assert require_unrelated(starts, dictionary) < 0.9
    with pytest.raises(ValueError, match="must not start from planted directions"):
        require_unrelated(np.vstack([starts, 0.1 * dictionary[7]]), dictionary)


def test_fates_are_counted_separately(lineage, true):
    table = table_of(*true)
    everything = [np.arange(acts.shape[1]) for acts in true]
    without = np.where(lineage.features[1]["fate"] == "split", -1, everything[1])
    fates = fate_table(lineage, table, (everything[0], without)).set_index(["side", "fate"])
    assert fates.loc[("parent", "split"), ["n", "represented", "right"]].tolist() == [4, 1, 1]
    assert fates.loc[("child", "split"), ["n", "represented", "right"]].tolist() == [8, 0, 0]
    assert fates["right"].sum() == len(fates) - 1
    assert set(fates.loc["parent"].index) == set(FATES) - {"dead", "appears"}
    assert set(fates.loc["child"].index) == set(FATES) - {"dead", "rare", "vanishes"}


def test_the_whole_path_from_activations_to_verdicts(tmp_path, sae_settings):
    planted = plant(SMALL._replace(densities=(0.02, 0.04), n_per_fate=3))
    settings = sae_settings | {"expansion_factor": 4.0, "k": 2, "n_tokens": 40_000, "batch_tokens": 512}
    saes = [train(write_dump(planted, side, range(2, 4), tmp_path / str(side)), settings, side) for side in range(2)]
    latents = [encoded(sae, planted, side) for side, sae in enumerate(saes)]
    represented = tuple(representatives(truth(planted, side, range(2)), latents[side]) for side in range(2))
    right = fate_table(planted, table_of(*latents), represented).set_index(["side", "fate"])["right"]
    for side, fates in {
        "parent": ["persists", "rotated", "vanishes", "rare", "decoy"],
        "child": ["persists", "rotated", "appears", "decoy"],
    }.items():
        assert right[side][fates].mean() > 0.8


def train(paths: list[Path], settings: dict, seed: int) -> Sae:
    return train_saes(Dump(paths), [settings | {"seed": seed}], torch.device("cpu"))[0].sae


def encoded(sae: Sae, lineage: PlantedLineage, side: int) -> scipy.sparse.csr_array:
    """An SAE's latents on the probe."""
    acts = np.concatenate([planted_acts(lineage, side, chunk) for chunk in range(2)])
    indptr, indices, values = (tensor.numpy() for tensor in sae.encode_sparse(torch.from_numpy(acts)))
    return scipy.sparse.csr_array((values, indices, indptr), shape=(len(acts), sae.d_sae))
