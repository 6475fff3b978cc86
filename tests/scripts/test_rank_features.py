"""Ranking the features of an edge, as the rule does."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rank_features import Edge, rank_features
from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import logit_map
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import Correlation
from saelineage.lineage.ablations import agreement, feature_effects
from saelineage.models.loading import load_model
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows
from tests.scripts.test_ablate_groups import D_SAE, HOOKPOINT, edge_table, write_sae
from tests.unit.correlations.groups import save_correlation

CORPORA = ("words", "sums")
FIRINGS = np.array([[10, 60], [30, 20]]).repeat(D_SAE // 2, axis=1)
"""Of sums and words: the first half of the latents fires more on words, the second half on sums."""


def correlation() -> Correlation:
    finder = MatchFinder((D_SAE, D_SAE), top_matches=2, keep_above=0.3, n_bins=4)
    finder.offer(0, np.full((D_SAE, D_SAE), 0.1))
    return Correlation(
        names=("a.seed0", "b.seed0"),
        n_tokens={"sums": 100, "words": 200},
        firings=(FIRINGS, FIRINGS[:, ::-1].copy()),
        testable=(np.ones(D_SAE, dtype=bool),) * 2,
        pearson=finder.result(),
        by_corpus={},
        one_to_one=np.arange(D_SAE),
    )


@pytest.fixture
def rank(tiny, tmp_path):
    """Rank the features of an edge between the two tiny models; gives the paths of the two tables."""
    saes = {name: write_sae(tmp_path / f"saes/{name}/seed0", seed) for seed, name in enumerate("ab")}
    table = edge_table().assign(headline=False)
    table.loc[table["latent"] == D_SAE - 1, "verdict"] = "untestable"
    table.to_parquet(tmp_path / "edge.parquet")
    save_correlation(correlation(), tmp_path / "correlations.safetensors")

    def run(folder: str, n_exact: int = 2) -> tuple[Path, Path]:
        paths = tmp_path / folder / "a__b.parquet", tmp_path / folder / "agreement.parquet"
        files = (str(tmp_path / "edge.parquet"), (str(tmp_path / "correlations.safetensors"), "b.seed0"))
        rank_features(
            edges=[Edge({"parent": "a", "child": "b"}, *files, str(paths[0]))],
            model_folders=tiny.models,
            sae_folders=saes,
            paths_to_rows={corpus: str(tiny.tokens[corpus]["validation"]) for corpus in CORPORA},
            hookpoint=HOOKPOINT,
            max_rows=4,
            n_exact=n_exact,
            batch_rows=3,
            path_to_agreement=str(paths[1]),
            device=torch.device("cpu"),
        )
        return paths

    run.saes = saes
    return run


def test_every_testable_feature_of_both_sides_has_an_importance_and_is_shown_where_it_fires_most(rank):
    table = pd.read_parquet(rank("out")[0])
    assert table["side"].tolist() == ["parent"] * (D_SAE - 1) + ["child"] * (D_SAE - 1)
    assert np.isfinite(table["importance"]).all()
    # Of the parent's, words show the first half (0.15 of its tokens against 0.1), sums the second half (0.6).
    shown = table["contrast_corpus"].tolist()
    assert shown == ["words"] * 6 + ["sums"] * 5 + ["sums"] * 6 + ["words"] * 5
    assert table["density"].tolist()[:7] == [0.15] * 6 + [0.6]
    gone = table[table["verdict"] == "gone"].sort_values("rank")
    assert gone["importance"].is_monotonic_decreasing


def test_the_first_lost_and_new_features_are_also_ablated_one_by_one(rank, tiny):
    path, path_to_agreement = rank("out")
    table, found = pd.read_parquet(path), pd.read_parquet(path_to_agreement)
    for side, verdict, name in (("parent", "gone", "a"), ("child", "new", "b")):
        of_side = table[table["side"] == side]
        measured = of_side[of_side["exact_effect"].notna()]
        assert (measured["verdict"] == verdict).all()
        assert sorted(measured["rank"]) == [1, 2]
        for row in measured.itertuples():
            rows = read_token_rows({row.contrast_corpus: tiny.tokens[row.contrast_corpus]["validation"]})
            model, sae = load_model(tiny.models[name]), load_sae(rank.saes[name])
            (effect,) = feature_effects(model, sae, HOOKPOINT, rows, np.array([row.latent]), 3, 4).to_dict("records")
            summed = effect["loss_change"] * effect["n_firings"]
            assert row.exact_effect == pytest.approx(1000 * summed / (4 * (tiny.n_ctx - 1)), rel=1e-6)
            assert row.n_firings == effect["n_firings"]
    assert found["side"].tolist() == ["parent", "child", "pooled"]
    assert found["n"].tolist() == [2, 2, 4]
    pooled = agreement(table["effect"].to_numpy(), table["exact_effect"].to_numpy())
    assert found["spearman"].iloc[-1] == pytest.approx(pooled["spearman"])


def test_effects_on_the_logits_are_compared_with_those_of_the_match(rank, tiny):
    table = pd.read_parquet(rank("out")[0])
    effects = []
    for name in "ab":
        path = logit_map(load_model(tiny.models[name]), HOOKPOINT)
        logits = load_sae(rank.saes[name]).W_dec.detach() @ path.to_norm @ path.unembedding.T
        effects.append((logits - logits.mean(1, keepdim=True)).double())
    for row in table.itertuples():
        own, other = effects if row.side == "parent" else effects[::-1]
        expected = np.nan if row.match < 0 else torch.cosine_similarity(own[row.latent], other[row.match], dim=0)
        assert row.logit_cosine == pytest.approx(float(expected), abs=1e-5, nan_ok=True)
    assert table["logit_cosine"].notna().any()


def test_without_a_linear_path_to_the_logits_none_are_compared(rank, monkeypatch):
    def no_path(*_arguments: object) -> None:
        raise NoSimilarityError("no path")

    monkeypatch.setattr("rank_features.logit_map", no_path)
    assert pd.read_parquet(rank("out")[0])["logit_cosine"].isna().all()


def test_without_measured_effects_all_are_estimated(rank):
    path, path_to_agreement = rank("out", n_exact=0)
    assert pd.read_parquet(path)["exact_effect"].isna().all()
    assert pd.read_parquet(path_to_agreement)["n"].tolist() == [0, 0, 0]


def test_equal_inputs_give_equal_bytes(rank):
    assert [path.read_bytes() for path in rank("first")] == [path.read_bytes() for path in rank("second")]
