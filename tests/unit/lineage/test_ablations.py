"""Effects of taking features out, against the dense code and numbers worked by hand."""

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
from saelineage.saes.metrics import measure
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
    """Latents of random directions, whose activations stand out of the model's."""
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


def change_by_hand(model, sae: Sae, rows: TokenRows, group: list[int]) -> float:
    """The summed loss that dense code gains when latents are taken out."""
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    part = dense_latents(model, sae, rows)[..., group] @ sae.W_dec[group]
    with torch.inference_mode():
        clean = next_token_loss(model(input_ids=ids).logits, ids)[0]
        with hooked(model, HOOKPOINT, lambda acts: acts - part):
            return next_token_loss(model(input_ids=ids).logits, ids)[0] - clean


def test_taking_nothing_out_changes_nothing_at_all(model, sae, rows):
    found = group_effects(model, sae, HOOKPOINT, rows, {"none": NONE, "idle": np.array([1])}, 8).set_index("group")
    assert found["loss_change"].tolist() == [0.0] * 4
    assert found["n_latents"].tolist() == [0, 1] * 2
    assert found.loc["none", "loss_change_per_firing"].isna().all()
    assert found.loc["none", "n_firings"].tolist() == [0, 0]
    # Latent 1 was taken out of a model that ran again, and its decoder row is zero.
    assert (found.loc["idle", "n_firings"] > 0).all()
    assert found.loc["idle", "loss_change_per_firing"].tolist() == [0.0, 0.0]


def test_effects_of_groups_equal_those_of_the_dense_code(model, sae, rows):
    groups = {"few": np.array([7, 3]), "many": np.arange(40)}
    found = group_effects(model, sae, HOOKPOINT, rows, groups, 8)
    assert found[["corpus", "group"]].to_numpy().tolist() == [
        ["sums", "few"],
        ["sums", "many"],
        ["words", "few"],
        ["words", "many"],
    ]
    for row in found.itertuples():
        own, group = rows[row.corpus], groups[row.group].tolist()
        n_tokens = len(own.ids) * (own.ids.shape[1] - 1)
        change = change_by_hand(model, sae, own, group)
        n_firings = int((dense_latents(model, sae, own)[..., group] > 0).sum())
        assert (row.n_latents, row.n_tokens, row.n_firings) == (len(group), n_tokens, n_firings)
        assert row.loss == pytest.approx(evaluate(model, own, 1000)["loss"], rel=1e-6)
        assert abs(change) > 0.1
        assert row.loss_change == pytest.approx(change / n_tokens, rel=1e-3)
        assert row.loss_change_per_firing == pytest.approx(change / n_firings, rel=1e-3)


def test_to_take_an_exact_sae_out_is_to_put_zeros_in_place(model, rows):
    found = group_effects(model, identity(), HOOKPOINT, rows, {"all": np.arange(2 * D_IN)}, 8).set_index("corpus")
    for corpus, own in rows.items():
        sums = measure(model, identity(), HOOKPOINT, own, 8)
        change = (sums.ce_ablated - sums.ce_clean) / sums.n_predictions
        assert found["loss_change"][corpus] == pytest.approx(change, rel=1e-9)
        assert abs(change) > 1e-4


def test_tokens_too_long_for_the_sae_are_left_as_they_are(model, rows):
    own = rows["words"]
    acts = read_activations(model, HOOKPOINT, torch.from_numpy(own.ids.astype(np.int64)))
    sae = identity()
    sae.max_norm = float(acts.norm(dim=-1).median())
    sums = measure(model, sae, HOOKPOINT, own, 8)
    assert sums.n_left_out > 0
    found = group_effects(model, sae, HOOKPOINT, {"words": own}, {"all": np.arange(2 * D_IN)}, 8)
    change = (sums.ce_ablated - sums.ce_clean) / sums.n_predictions
    assert found["loss_change"].tolist() == pytest.approx([change], rel=1e-9)


def test_a_latent_named_twice_is_taken_out_once(model, sae, rows):
    groups = {"once": np.array([3, 7]), "twice": np.array([7, 3, 7])}
    found = group_effects(model, sae, HOOKPOINT, rows, groups, 8).set_index("group")
    once, twice = (found.loc[name].reset_index(drop=True) for name in groups)
    pd.testing.assert_frame_equal(once, twice)


@pytest.mark.parametrize("effects", [group_effects, feature_effects])
def test_the_number_of_rows_in_a_batch_changes_nothing(model, sae, rows, effects):
    chosen = np.arange(8) if effects is feature_effects else {"group": np.arange(8)}
    one, many = (effects(model, sae, HOOKPOINT, rows, chosen, n) for n in (3, 1000))
    pd.testing.assert_frame_equal(one, many, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("effects", [group_effects, feature_effects])
def test_only_the_first_rows_are_read_where_a_limit_is_set(model, sae, rows, write_tokens, effects):
    own = rows["words"]
    short = write_tokens(own.ids[:3].tolist())
    short.info |= {key: own.info[key] for key in ("bos_id", "eos_id")}
    chosen = np.arange(8) if effects is feature_effects else {"group": np.arange(8)}
    limited = effects(model, sae, HOOKPOINT, {"words": own}, chosen, 2, max_rows=3)
    pd.testing.assert_frame_equal(limited, effects(model, sae, HOOKPOINT, {"words": short}, chosen, 2))
    assert limited["n_firings"].sum() < effects(model, sae, HOOKPOINT, {"words": own}, chosen, 2)["n_firings"].sum()


def test_the_effect_of_a_feature_is_that_of_a_group_of_one_per_firing(model, sae, rows):
    latents = np.array([9, 0, 4, 33])
    found = feature_effects(model, sae, HOOKPOINT, rows, latents, 8)
    groups = {str(latent): latents[i : i + 1] for i, latent in enumerate(latents)}
    apart = group_effects(model, sae, HOOKPOINT, rows, groups, 8)
    assert found["latent"].tolist() == [9, 0, 4, 33] * 2
    assert found["corpus"].tolist() == ["sums"] * 4 + ["words"] * 4
    assert found["n_firings"].tolist() == apart["n_firings"].tolist()
    by_groups = apart["loss_change_per_firing"].to_numpy()
    assert found["loss_change"].to_numpy() == pytest.approx(by_groups, rel=1e-3, abs=1e-5, nan_ok=True)
    assert np.nanmax(np.abs(by_groups)) > 1e-2


def test_a_feature_that_never_fires_has_no_effect_to_speak_of(model, sae, rows):
    found = feature_effects(model, sae, HOOKPOINT, rows, np.array([0, 1]), 8)
    assert found["loss_change"].isna().tolist() == [True, False] * 2
    assert found["n_firings"].tolist()[::2] == [0, 0]
    # A decoder row of zeros changes a row's loss by no more than its rounding in another batch.
    assert found["loss_change"].tolist()[1::2] == pytest.approx([0, 0], abs=1e-5)


def test_no_features_have_an_empty_table(model, sae, rows):
    found = feature_effects(model, sae, HOOKPOINT, rows, NONE, 8)
    assert (found.columns.tolist(), len(found)) == (["latent", "corpus", "loss_change", "n_firings"], 0)


def test_the_latents_of_a_group_are_kept_with_their_tokens():
    # Three tokens: latents 2 and 5; none; latents 1, 2 and 6.
    latents = SparseLatents(
        torch.tensor([0, 2, 2, 5]),
        torch.tensor([2, 5, 1, 2, 6], dtype=torch.int32),
        torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
    )
    found = only(latents, torch.tensor([6, 2]))
    assert found.indptr.tolist() == [0, 1, 1, 3]
    assert found.indices.tolist() == [2, 2, 6]
    assert found.values.tolist() == pytest.approx([0.1, 0.4, 0.5])


def test_controls_are_nearest_in_log_density():
    # From 0.1 it is ln 5 to 0.02 and ln 3 to 0.3, though 0.02 is nearer by difference; latent 0 itself is no control.
    density = np.array([0.1, 0.02, 0.3, 0.9])
    assert matched_random(np.array([0]), np.arange(4), density, seed=0).tolist() == [2]


def test_each_control_is_taken_once_and_never_from_the_group():
    density = np.array([0.1, 0.1, 0.1, 0.11, 0.2, 0.9])
    for seed in range(5):
        assert matched_random(np.array([0, 1, 2]), np.arange(6), density, seed).tolist() == [3, 4, 5]
        assert matched_random(np.array([0, 1]), np.arange(6), density, seed).tolist() == [2, 3]


def test_controls_depend_on_the_seed_alone_where_latents_compete():
    # Latents 0 and 1 both want 2; who comes second takes 3 (from 0.1) or 4 (from 0.12): ln 0.1/0.07 < ln 0.2/0.1.
    density = np.array([0.1, 0.12, 0.11, 0.07, 0.17])
    group, pool = np.array([0, 1]), np.array([2, 3, 4])
    found = {tuple(matched_random(group, pool, density, seed).tolist()) for seed in range(20)}
    assert found == {(2, 3), (2, 4)}
    shuffled = [matched_random(np.array([1, 0]), pool[::-1].copy(), density, seed).tolist() for seed in range(20)]
    assert shuffled == [matched_random(group, pool, density, seed).tolist() for seed in range(20)]


def test_a_pool_that_runs_out_gives_a_smaller_control():
    density = np.full(5, 0.1)
    assert matched_random(np.array([0, 1, 2]), np.array([3, 4]), density, 0).tolist() == [3, 4]
    assert matched_random(np.array([0, 1, 2]), np.array([1]), density, 0).tolist() == []
    assert matched_random(NONE, np.arange(5), density, 0).tolist() == []


def test_latents_that_never_fire_have_no_equals_in_density():
    with pytest.raises(InputError, match=r"latent 2 is 0\.0"):
        matched_random(np.array([0]), np.array([1, 2]), np.array([0.1, 0.1, 0.0]), seed=0)


@pytest.fixture
def edge() -> pd.DataFrame:
    """Five features of a parent and four of a child."""
    parent = pd.DataFrame(
        {
            "latent": range(5),
            "verdict": ["persists", "disappears", "untestable", "persists", "persists"],
            "r": [0.8, 0.1, np.nan, 0.9, 0.95],
            "match": [2, 0, -1, 2, 1],
            "density": [0.2, 0.1, 0.0, 0.11, 0.5],
        }
    )
    child = pd.DataFrame(
        {
            "latent": range(4),
            "verdict": ["emerges", "inherited", "inherited", "emerges"],
            "r": [0.1, 0.95, 0.9, 0.2],
            "match": [1, 4, 3, 0],
            "density": [0.1, 0.4, 0.2, 0.35],
        }
    )
    return pd.concat([parent.assign(side="parent"), child.assign(side="child")], ignore_index=True)


def test_groups_of_a_side_are_its_verdicts_and_their_controls(edge):
    parent = {name: group.tolist() for name, group in edge_groups(edge, "parent", seed=0).items()}
    assert parent == {
        "persists": [0, 3, 4],
        "disappears": [1],
        "persists_random": [1],
        "disappears_random": [3],
    }
    child = {name: group.tolist() for name, group in edge_groups(edge, "child", seed=0).items()}
    assert child == {
        "inherited": [1, 2],
        "emerges": [0, 3],
        "inherited_random": [0, 3],
        "emerges_random": [1, 2],
    }


def test_a_side_without_testable_features_has_empty_groups(edge):
    edge["verdict"] = "untestable"
    groups = edge_groups(edge, "parent", seed=0)
    assert [len(group) for group in groups.values()] == [0, 0, 0, 0]


def test_top_matches_have_the_largest_r_and_each_feature_once(edge):
    # Parent features 0 and 3 both match the child's 2; 3 does so better.
    assert top_matches(edge, 10).to_dict("list") == {"parent": [4, 3], "child": [1, 2], "r": [0.95, 0.9]}
    assert top_matches(edge, 1)["parent"].tolist() == [4]


def test_effects_of_matched_features_stand_side_by_side():
    pairs = pd.DataFrame({"parent": [4, 3], "child": [1, 2], "r": [0.95, 0.9]})

    def effects(latents: list[int], changes: list[float]) -> pd.DataFrame:
        corpora = ["sums", "sums", "words", "words"]
        return pd.DataFrame({"latent": latents, "corpus": corpora, "loss_change": changes, "n_firings": [5, 6, 7, 8]})

    # The child's come in another order.
    found = matched_effects(
        pairs, effects([4, 3, 4, 3], [0.1, 0.2, 0.3, 0.4]), effects([2, 1, 2, 1], [1.0, 2.0, 3.0, 4.0])
    )
    assert found.to_dict("list") == {
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
    found = agreement(np.array([1.0, 3.0, 5.0, 7.0]), np.array([2.0, 0.0, 4.0, 6.0]))
    assert found == {"n": 4, "pearson": pytest.approx(0.8), "spearman": pytest.approx(0.8)}


def test_agreement_of_ranks_is_not_that_of_values():
    # Cubes of -1, 0, 1, 2: the ranks agree in full. Deviations -1.5 ... 1.5 and -3, -2, -1, 6: 14 / sqrt(5 x 50).
    found = agreement(np.array([-1.0, 0.0, 1.0, 2.0]), np.array([-1.0, 0.0, 1.0, 8.0]))
    assert found == {"n": 4, "pearson": pytest.approx(14 / 250**0.5), "spearman": pytest.approx(1)}


def test_agreement_is_undefined_for_two_pairs_or_equal_effects():
    nan = np.nan
    for a, b, n in (
        ([1.0, 2.0], [1.0, 2.0], 2),
        ([1.0, 2.0, nan, 3.0], [1.0, 2.0, 3.0, nan], 2),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], 3),
    ):
        found = agreement(np.array(a), np.array(b))
        assert found == {
            "n": n,
            "pearson": pytest.approx(nan, nan_ok=True),
            "spearman": pytest.approx(nan, nan_ok=True),
        }
