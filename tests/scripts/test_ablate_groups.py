"""Measuring what the features of an edge do, as the rule does."""

import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablate_groups import Edge, ablate_groups
from saelineage.lineage.ablations import group_effects
from saelineage.models.loading import load_model, open_model
from saelineage.saes.sae import Sae, load_sae, save_sae
from saelineage.tokens import read_token_rows

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_MLP, D_SAE = 48, 12


def write_sae(folder: Path, seed: int) -> Path:
    """An SAE of random weights, all of whose latents fire on some token."""
    random = torch.Generator().manual_seed(seed)
    sae = Sae("relu", D_MLP, D_SAE)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=random) * 100)
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=random))
    save_sae(sae, folder, {})
    return folder


def edge_table() -> pd.DataFrame:
    """The first five features of either side have a match."""
    sides = []
    for side, yes, no in (("parent", "persists", "gone"), ("child", "inherited", "new")):
        columns = {
            "side": side,
            "latent": np.arange(D_SAE),
            "verdict": [yes] * 5 + [no] * (D_SAE - 5),
            "identified": False,
            "r": np.linspace(0.99, 0.2, D_SAE),
            "match": np.arange(D_SAE)[::-1],
            "density": np.linspace(0.1, 0.5, D_SAE),
        }
        sides.append(pd.DataFrame(columns))
    return pd.concat(sides, ignore_index=True)


@pytest.fixture
def ablate(tiny, tmp_path):
    """Ablate an edge between the two tiny models; gives the paths of the tables."""
    saes = {side: write_sae(tmp_path / f"saes/{side}/seed0", seed) for seed, side in enumerate(("parent", "child"))}
    edge_table().to_parquet(tmp_path / "edge.parquet")

    def run(folder: str, n_matches: int = 3, seed: int = 0) -> list[Path]:
        paths = [tmp_path / folder / name for name in ("groups.parquet", "features.parquet", "agreement.parquet")]
        ablate_groups(
            edges=[Edge({"parent": "a", "child": "b"}, str(tmp_path / "edge.parquet"), *map(str, paths))],
            model_folders=tiny.models,
            sae_folders={"a": saes["parent"], "b": saes["child"]},
            paths_to_rows={corpus: str(tiny.tokens[corpus]["validation"]) for corpus in ("words", "sums")},
            hookpoint=HOOKPOINT,
            max_rows=4,
            n_matches=n_matches,
            batch_rows=3,
            seed=seed,
            device=torch.device("cpu"),
        )
        return paths

    run.saes = saes
    return run


def test_groups_of_both_sides_are_taken_out_of_their_own_model(ablate, tiny):
    found = pd.read_parquet(ablate("out")[0])
    names = ["persists", "drifted", "gone", "persists_random", "drifted_random", "gone_random"]
    child_names = ["inherited", "drifted", "new", "inherited_random", "drifted_random", "new_random"]
    assert found["side"].tolist() == ["parent"] * 12 + ["child"] * 12
    assert found["group"].tolist() == names * 2 + child_names * 2
    assert found["corpus"].tolist() == (["sums"] * 6 + ["words"] * 6) * 2
    # Five features have a match and seven have none, so seven have but five to be compared with.
    assert found["n_latents"].tolist() == [5, 0, 7, 5, 0, 5] * 4
    rows = read_token_rows({"words": tiny.tokens["words"]["validation"]})
    for side, name, group in (("parent", "a", "gone"), ("child", "b", "new")):
        model, sae = load_model(tiny.models[name]), load_sae(ablate.saes[side])
        expected = group_effects(model, sae, HOOKPOINT, rows, {group: np.arange(5, D_SAE)}, 3, max_rows=4)
        own = found[(found["side"] == side) & (found["group"] == group) & (found["corpus"] == "words")]
        pd.testing.assert_frame_equal(own.drop(columns="side").reset_index(drop=True), expected)


def test_the_best_matches_are_taken_out_one_at_a_time(ablate):
    found = pd.read_parquet(ablate("out")[1])
    assert found["corpus"].tolist() == ["sums"] * 3 + ["words"] * 3
    assert found["parent"].tolist() == [0, 1, 2] * 2
    assert found["child"].tolist() == [11, 10, 9] * 2
    assert (found[["n_firings_parent", "n_firings_child"]] > 0).all(axis=None)
    assert np.isfinite(found[["loss_change_parent", "loss_change_child"]]).all(axis=None)


def test_an_edge_of_which_no_matches_are_wanted_has_an_empty_table_of_features(ablate):
    found = pd.read_parquet(ablate("out", n_matches=0)[1])
    assert len(found) == 0
    assert {"corpus", "parent", "child", "r", "loss_change_parent", "loss_change_child"} <= set(found.columns)


def test_equal_inputs_give_equal_bytes(ablate):
    first, second = ablate("first"), ablate("second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_effects_of_matched_features_are_correlated_by_corpus_and_over_all(ablate):
    _, features, agreement = map(pd.read_parquet, ablate("out"))
    assert agreement["corpus"].tolist() == ["sums", "words", "pooled"]
    fires = features[["loss_change_parent", "loss_change_child"]].notna().all(axis=1)
    assert agreement["n"].tolist() == [
        *(int(fires[features["corpus"] == corpus].sum()) for corpus in ("sums", "words")),
        int(fires.sum()),
    ]
    own = features[fires]
    expected = np.corrcoef(own["loss_change_parent"], own["loss_change_child"])[0, 1]
    assert agreement["pearson"].tolist()[2] == pytest.approx(expected)


def test_one_model_is_in_memory_at_a_time(ablate, monkeypatch):
    opened: list[weakref.ref] = []

    def opening(*args):
        assert [model for model in opened if model() is not None] == []
        model = open_model(*args)
        opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr("ablate_groups.open_model", opening)
    ablate("once")
    assert len(opened) == 2
