"""Effects of ablating features, against dense code and numbers worked by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from saelineage.activations import hooked, read_activations
from saelineage.errors import InputError
from saelineage.lineage.ablations import (
    agreement,
    edge_groups,
    feature_effects,
    group_effects,
    matched_effects,
    matched_random,
    only,
    top_matches,
)
from saelineage.models.loading import evaluate
from saelineage.models.losses import next_token_loss
from saelineage.models.predictions import predict
from saelineage.saes.metrics import SaeSums, measure, measure_clean
from saelineage.saes.sae import Sae, SparseLatents
from saelineage.tokens import TokenRows

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_IN, D_SAE = 48, 60
NONE = np.array([], dtype=np.int64)


@pytest.fixture
def rows(tiny):
    return {corpus: TokenRows(tiny.tokens[corpus]["validation"]) for corpus in ("words", "sums")}


@pytest.fixture
def sae() -> Sae:
    """Latents of random directions, with activations larger than the model's."""
    random = torch.Generator().manual_seed(0)
    sae = Sae("topk", D_IN, D_SAE, 5)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=random) * 100)
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=random))
        sae.b_dec.copy_(torch.randn(D_IN, generator=random) / 100)
        sae.W_enc[:, 0], sae.b_enc[0] = 0, -1.0  # never fires
        sae.W_enc[:, 1], sae.b_enc[1], sae.W_dec[1] = 0, 1e3, 0  # always fires, to no effect
    return sae


def identity() -> Sae:
    """Two latents for each input, one for each sign: exact."""
    sae, eye = Sae("relu", D_IN, 2 * D_IN), torch.eye(D_IN)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
    return sae


def dense_latents(model, sae: Sae, rows: TokenRows) -> torch.Tensor:
    """[row, n_ctx, d_sae], zero at BOS and EOS and where activations are too long."""
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    text = torch.from_numpy(rows.text_mask(range(len(ids))))
    with torch.inference_mode():
        acts = read_activations(model, HOOKPOINT, ids)
        return sae.encode(acts) * (text & (acts.norm(dim=-1) <= sae.max_norm)).unsqueeze(-1)


def measured(model, sae: Sae, rows: TokenRows) -> SaeSums:
    """The sums of an SAE's metrics."""
    return measure(model, {"": sae}, HOOKPOINT, rows, 8, measure_clean(model, {HOOKPOINT: [sae.max_norm]}, rows, 8))[""]


def change_by_hand(model, sae: Sae, rows: TokenRows, group: list[int]) -> float:
    """The change of the summed loss by dense code when latents are ablated."""
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    part = dense_latents(model, sae, rows)[..., group] @ sae.W_dec[group]
    with torch.inference_mode():
        clean = next_token_loss(predict(model, ids), ids).loss
        with hooked(model, HOOKPOINT, lambda acts: acts - part):
            return next_token_loss(predict(model, ids), ids).loss - clean


def test_ablating_nothing_changes_nothing_at_all(model, sae, rows):
    table = group_effects(model, sae, HOOKPOINT, rows, {"none": NONE, "idle": np.array([1])}, 8).set_index("group")
    assert table["loss_change"].tolist() == [0.0] * 4
    assert table["n_latents"].tolist() == [0, 1] * 2
    assert table.loc["none", "loss_change_per_firing"].isna().all()
    assert table.loc["none", "n_firings"].tolist() == [0, 0]
    # Latent 1 is ablated in a second pass of the model, but its decoder row is zero.
    assert (table.loc["idle", "n_firings"] > 0).all()
    assert table.loc["idle", "loss_change_per_firing"].tolist() == [0.0, 0.0]


def test_effects_of_groups_equal_those_of_the_dense_code(model, sae, rows):
    groups = {"few": np.array([7, 3, 7]), "many": np.arange(40)}  # a latent named twice is ablated once
    table = group_effects(model, sae, HOOKPOINT, rows, groups, 8)
    assert table[["corpus", "group"]].to_numpy().tolist() == [
        ["sums", "few"],
        ["sums", "many"],
        ["words", "few"],
        ["words", "many"],
    ]
    for row in table.itertuples():
        of_corpus, group = rows[row.corpus], sorted(set(groups[row.group].tolist()))
        n_tokens = len(of_corpus.ids) * (of_corpus.ids.shape[1] - 1)
        change = change_by_hand(model, sae, of_corpus, group)
        n_firings = int((dense_latents(model, sae, of_corpus)[..., group] > 0).sum())
        assert (row.n_latents, row.n_tokens, row.n_firings) == (len(group), n_tokens, n_firings)
        assert row.loss == pytest.approx(evaluate(model, of_corpus, 1000)["loss"], rel=1e-6)
        assert abs(change) > 0.1
        assert row.loss_change == pytest.approx(change / n_tokens, rel=1e-3)
        assert row.loss_change_per_firing == pytest.approx(change / n_firings, rel=1e-3)


def test_ablating_an_exact_sae_is_the_same_as_zero_activations(model, rows):
    table = group_effects(model, identity(), HOOKPOINT, rows, {"all": np.arange(2 * D_IN)}, 8).set_index("corpus")
    for corpus, of_corpus in rows.items():
        sums = measured(model, identity(), of_corpus)
        change = (sums.ce_ablated - sums.ce_clean) / sums.n_predictions
        assert table["loss_change"][corpus] == pytest.approx(change, rel=1e-9)
        assert abs(change) > 1e-4


def test_tokens_of_outlying_norm_are_left_as_they_are(model, rows):
    words = rows["words"]
    acts = read_activations(model, HOOKPOINT, torch.from_numpy(words.ids.astype(np.int64)))
    sae = identity()
    sae.max_norm = float(acts.norm(dim=-1).median())
    sums = measured(model, sae, words)
    assert sums.n_left_out > 0
    table = group_effects(model, sae, HOOKPOINT, {"words": words}, {"all": np.arange(2 * D_IN)}, 8)
    change = (sums.ce_ablated - sums.ce_clean) / sums.n_predictions
    assert table["loss_change"].tolist() == pytest.approx([change], rel=1e-9)


@pytest.mark.parametrize("effects", [group_effects, feature_effects])
def test_batches_change_nothing_and_a_limit_reads_rows_that_are_spread(model, sae, rows, write_tokens, effects):
    words = rows["words"]
    short = write_tokens(words.read(words.spread(3)).tolist())
    short.info |= {key: words.info[key] for key in ("bos_id", "eos_id")}
    chosen = np.arange(4) if effects is feature_effects else {"group": np.arange(4)}
    small, large = (effects(model, sae, HOOKPOINT, {"words": words}, chosen, n) for n in (3, 1000))
    pd.testing.assert_frame_equal(small, large, rtol=1e-4, atol=1e-5)
    limited = effects(model, sae, HOOKPOINT, {"words": words}, chosen, 2, max_rows=3)
    pd.testing.assert_frame_equal(limited, effects(model, sae, HOOKPOINT, {"words": short}, chosen, 2))
    assert limited["n_firings"].sum() < large["n_firings"].sum()


def test_the_effect_of_a_feature_is_that_of_a_group_of_one_per_firing(model, sae, rows):
    latents = np.array([9, 0, 4, 33])
    table = feature_effects(model, sae, HOOKPOINT, rows, latents, 8)
    groups = {str(latent): latents[i : i + 1] for i, latent in enumerate(latents)}
    apart = group_effects(model, sae, HOOKPOINT, rows, groups, 8)
    assert table["latent"].tolist() == [9, 0, 4, 33] * 2
    assert table["corpus"].tolist() == ["sums"] * 4 + ["words"] * 4
    assert table["n_firings"].tolist() == apart["n_firings"].tolist()
    by_groups = apart["loss_change_per_firing"].to_numpy()
    assert table["loss_change"].to_numpy() == pytest.approx(by_groups, rel=1e-3, abs=1e-5, nan_ok=True)
    assert np.nanmax(np.abs(by_groups)) > 1e-2


def test_a_feature_that_never_fires_has_no_effect(model, sae, rows):
    table = feature_effects(model, sae, HOOKPOINT, rows, np.array([0, 1]), 8)
    assert table["loss_change"].isna().tolist() == [True, False] * 2
    assert table["n_firings"].tolist()[::2] == [0, 0]
    # A decoder row of zeros changes a row's loss by no more than its rounding in another batch.
    assert table["loss_change"].tolist()[1::2] == pytest.approx([0, 0], abs=1e-5)
    empty = feature_effects(model, sae, HOOKPOINT, rows, NONE, 8)
    assert (empty.columns.tolist(), len(empty)) == (["latent", "corpus", "loss_change", "n_firings"], 0)


def test_the_latents_of_a_group_are_kept_with_their_tokens():
    # Three tokens: latents 2 and 5; none; latents 1, 2 and 6.
    latents = SparseLatents(
        torch.tensor([0, 2, 2, 5]),
        torch.tensor([2, 5, 1, 2, 6], dtype=torch.int32),
        torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
    )
    kept = only(latents, torch.tensor([6, 2]))
    assert kept.indptr.tolist() == [0, 1, 1, 3]
    assert kept.indices.tolist() == [2, 2, 6]
    assert kept.values.tolist() == pytest.approx([0.1, 0.4, 0.5])


def test_random_matches_are_nearest_in_log_density():
    # From 0.1 it is ln 5 to 0.02 and ln 3 to 0.3, though 0.02 is nearer by difference; latent 0 does not match itself.
    density = np.array([0.1, 0.02, 0.3, 0.9])
    assert matched_random(np.array([0]), np.arange(4), density, seed=0).tolist() == [2]


def test_each_random_match_is_taken_once_and_never_from_the_group():
    density = np.array([0.1, 0.1, 0.1, 0.11, 0.2, 0.9])
    for seed in range(5):
        assert matched_random(np.array([0, 1, 2]), np.arange(6), density, seed).tolist() == [3, 4, 5]
        assert matched_random(np.array([0, 1]), np.arange(6), density, seed).tolist() == [2, 3]


def test_random_matches_depend_on_the_seed_alone_where_latents_compete():
    # Latents 0 and 1 are both nearest to 2; the second takes 3 (from 0.1) or 4 (from 0.12): ln 0.1/0.07 < ln 0.2/0.1.
    density = np.array([0.1, 0.12, 0.11, 0.07, 0.17])
    group, pool = np.array([0, 1]), np.array([2, 3, 4])
    assert {tuple(matched_random(group, pool, density, seed).tolist()) for seed in range(20)} == {(2, 3), (2, 4)}
    shuffled = [matched_random(np.array([1, 0]), pool[::-1].copy(), density, seed).tolist() for seed in range(20)]
    assert shuffled == [matched_random(group, pool, density, seed).tolist() for seed in range(20)]


def test_a_pool_that_runs_out_gives_a_smaller_group():
    density = np.full(5, 0.1)
    assert matched_random(np.array([0, 1, 2]), np.array([3, 4]), density, 0).tolist() == [3, 4]
    assert matched_random(np.array([0, 1, 2]), np.array([1]), density, 0).tolist() == []
    assert matched_random(NONE, np.arange(5), density, 0).tolist() == []


def test_latents_that_never_fire_cannot_be_matched():
    with pytest.raises(InputError, match=r"latent 2 is 0\.0; leave out"):
        matched_random(np.array([0]), np.array([1, 2]), np.array([0.1, 0.1, 0.0]), seed=0)


@pytest.fixture
def edge() -> pd.DataFrame:
    """Five features of a parent and four of a child."""
    parent = pd.DataFrame(
        {
            "latent": range(5),
            "verdict": ["persists", "gone", "untestable", "persists", "persists"],
            "identified": [True, True, False, False, False],
            "r": [0.8, 0.1, np.nan, 0.9, 0.95],
            "match": [2, 0, -1, 2, 1],
            "density": [0.2, 0.1, 0.0, 0.11, 0.5],
        }
    )
    child = pd.DataFrame(
        {
            "latent": range(4),
            "verdict": ["new", "inherited", "drifted", "new"],
            "identified": False,
            "r": [0.1, 0.95, 0.9, 0.2],
            "match": [1, 4, 3, 0],
            "density": [0.1, 0.4, 0.2, 0.35],
        }
    )
    return pd.concat([parent.assign(side="parent"), child.assign(side="child")], ignore_index=True)


def test_groups_of_a_side_are_its_verdicts_and_their_random_matches(edge):
    parent = {name: group.tolist() for name, group in edge_groups(edge, "parent", seed=0).items()}
    assert parent == {
        "identified_persists": [0],
        "identified_drifted": [],
        "identified_gone": [1],
        "persists": [0, 3, 4],
        "drifted": [],
        "gone": [1],
        # nearest in density: 0.2 is nearest to 0.11 in its logarithm, 0.1 too
        "identified_persists_random": [3],
        "identified_drifted_random": [],
        "identified_gone_random": [3],
        "persists_random": [1],
        "drifted_random": [],
        "gone_random": [3],
    }
    # Without identified features there are no groups of them.
    child = {name: group.tolist() for name, group in edge_groups(edge, "child", seed=0).items()}
    assert {name: group for name, group in child.items() if not name.endswith("_random")} == {
        "inherited": [1],
        "drifted": [2],
        "new": [0, 3],
    }
    assert [child[f"{name}_random"] for name in ("inherited", "drifted", "new")] == [[3], [3], [1, 2]]
    edge["verdict"] = "untestable"
    assert [len(group) for group in edge_groups(edge, "parent", seed=0).values()] == [0] * 6


def test_top_matches_are_identified_or_have_the_largest_r_and_each_feature_counts_once(edge):
    # Parent features 0 and 3 both match the child's 2; 0 is identified.
    assert top_matches(edge, 10).to_dict("list") == {"parent": [0, 4], "child": [2, 1], "r": [0.8, 0.95]}
    edge["identified"] = False
    # Parent features 0 and 3 both match the child's 2; 3 does so better.
    assert top_matches(edge, 10).to_dict("list") == {"parent": [4, 3], "child": [1, 2], "r": [0.95, 0.9]}
    assert top_matches(edge, 1)["parent"].tolist() == [4]


def test_effects_of_matched_features_are_side_by_side():
    pairs = pd.DataFrame({"parent": [4, 3], "child": [1, 2], "r": [0.95, 0.9]})

    def effects(latents: list[int], changes: list[float]) -> pd.DataFrame:
        corpora = ["sums", "sums", "words", "words"]
        return pd.DataFrame({"latent": latents, "corpus": corpora, "loss_change": changes, "n_firings": [5, 6, 7, 8]})

    # The child's come in another order.
    matched = matched_effects(
        pairs, effects([4, 3, 4, 3], [0.1, 0.2, 0.3, 0.4]), effects([2, 1, 2, 1], [1.0, 2.0, 3.0, 4.0])
    )
    assert matched.to_dict("list") == {
        "corpus": ["sums", "sums", "words", "words"],
        "parent": [4, 3, 4, 3],
        "child": [1, 2, 1, 2],
        "r": [0.95, 0.9, 0.95, 0.9],
        "loss_change_parent": [0.1, 0.2, 0.3, 0.4],
        "loss_change_child": [2.0, 1.0, 4.0, 3.0],
        "n_firings_parent": [5, 6, 7, 8],
        "n_firings_child": [6, 5, 8, 7],
    }


def test_agreement_by_hand():
    # Deviations -3, -1, 1, 3 and -1, -3, 1, 3: r = (3 + 3 + 1 + 9) / 20. Ranks 1 2 3 4 and 2 1 3 4 give the same.
    figures = agreement(np.array([1.0, 3.0, 5.0, 7.0]), np.array([2.0, 0.0, 4.0, 6.0]))
    assert figures == {"n": 4, "pearson": pytest.approx(0.8), "spearman": pytest.approx(0.8)}
    # Cubes of -1, 0, 1, 2: the ranks agree in full. Deviations -1.5 ... 1.5 and -3, -2, -1, 6: 14 / sqrt(5 x 50).
    figures = agreement(np.array([-1.0, 0.0, 1.0, 2.0]), np.array([-1.0, 0.0, 1.0, 8.0]))
    assert figures == {"n": 4, "pearson": pytest.approx(14 / 250**0.5), "spearman": pytest.approx(1)}


def test_agreement_is_undefined_for_two_pairs_or_equal_effects():
    nan = np.nan
    for a, b, n in (
        ([1.0, 2.0], [1.0, 2.0], 2),
        ([1.0, 2.0, nan, 3.0], [1.0, 2.0, 3.0, nan], 2),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], 3),
    ):
        figures = agreement(np.array(a), np.array(b))
        assert figures == {
            "n": n,
            "pearson": pytest.approx(nan, nan_ok=True),
            "spearman": pytest.approx(nan, nan_ok=True),
        }
