"""PW-MCC and the agreement of seeds, worked out by hand."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from compare_seeds import DEFINITIONS, compare_seeds, described, software
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import Correlation
from saelineage.files.atomic import sha256_file
from saelineage.lineage.shares import share
from saelineage.plan.comparisons import names_in_pair
from saelineage.plan.plan import Plan
from saelineage.saes.sae import Sae, save_sae
from tests.unit.plan.lineages import diamond

NAN = float("nan")


def sae(*rows: list[float]) -> Sae:
    """An SAE with these decoder rows."""
    made = Sae("relu", len(rows[0]), len(rows))
    with torch.no_grad():
        made.W_dec.copy_(torch.tensor(rows))
    return made


def correlation(name: str, r: list[list[float]]) -> Correlation:
    """A matrix of r; NaN rows and columns are untestable features."""
    matrix = np.array(r)
    finder = MatchFinder(matrix.shape, top_matches=2, keep_above=0.3, n_bins=4)
    finder.offer(0, matrix)
    return Correlation(
        names=names_in_pair(name),
        n_tokens={"words": 1000},
        firings=tuple(np.full((1, n), 50) for n in matrix.shape),
        testable=(~np.isnan(matrix).all(axis=1), ~np.isnan(matrix).all(axis=0)),
        pearson=finder.result(),
        by_corpus={},
        one_to_one=np.arange(len(matrix)),
        jaccard=None,
    )


SAES = {
    # Unit rows. seed0 and seed1 share one direction; the others are at cosine 0.6, or opposite.
    "base.seed0": sae([1.0, 0.0], [0.0, 1.0]),
    "base.seed1": sae([0.0, 2.0], [3.0, 4.0]),
    "base.seed2": sae([-1.0, 0.0], [0.0, -1.0]),
}
R = {
    # Best r of a's features 0.9 and 0.5, of b's 0.9 and 0.5: two of four at 0.8.
    "base.seed0__base.seed1": [[0.9, 0.1], [0.2, 0.5]],
    # One of a's is untestable. Of the three that are left 0.85, 0.85 and 0.1: two.
    "base.seed0__base.seed2": [[0.85, 0.1], [NAN, NAN]],
    # None of four.
    "base.seed1__base.seed2": [[0.1, 0.2], [0.3, 0.4]],
}


def measured(saes: Mapping[str, Sae] = SAES, r: Mapping[str, list] = R) -> dict:
    correlations = {name: correlation(name, matrix) for name, matrix in r.items()}
    return compare_seeds({"base": list(r)}, saes.__getitem__, correlations.__getitem__, 0.8)["base"]


def test_pw_mcc_is_the_mean_cosine_over_the_best_assignment():
    first, second, third = measured()["pairs"]
    # [0, 1] goes with [0, 2] at 1, and [1, 0] with [3, 4] / 5 at 0.6: the mean is 0.8. The other way: (0 + 0.8) / 2.
    assert (first["a"], first["b"]) == ("base.seed0", "base.seed1")
    assert (first["pw_mcc"], first["pw_mcc_n"]) == (pytest.approx(0.8), 2)
    # Opposite directions are different features: [1, 0] with [0, -1] and [0, 1] with [-1, 0], both 0.
    assert (second["pw_mcc"], second["pw_mcc_n"]) == (pytest.approx(0.0), 2)
    # [0, 1] with [-1, 0] at 0 and [0.6, 0.8] with [0, -1] at -0.8; the other way -1 and -0.6.
    assert (third["pw_mcc"], third["pw_mcc_n"]) == (pytest.approx(-0.4), 2)


def test_a_model_s_pw_mcc_is_the_mean_over_its_pairs():
    found = measured()
    assert found["pw_mcc"] == pytest.approx((0.8 + 0.0 - 0.4) / 3)
    assert found["n_pairs"] == 3


def test_agreement_is_the_share_of_testable_features_of_both_sides():
    found = measured()
    assert [(row["agreement"], row["agreement_n"]) for row in found["pairs"]] == [(0.5, 4), (2 / 3, 3), (0.0, 4)]
    assert found["pairs"][0]["agreement_interval"] == list(share(2, 4).interval)
    assert (found["agreement"], found["agreement_n"]) == (4 / 11, 11)
    assert found["agreement_interval"] == list(share(4, 11).interval)


def test_without_decoder_rows_or_with_too_many_pw_mcc_is_none(monkeypatch: pytest.MonkeyPatch):
    one = {"base.seed0__base.seed1": R["base.seed0__base.seed1"]}
    zero = measured(SAES | {"base.seed1": sae([0.0, 0.0], [0.0, 0.0])}, one)
    assert (zero["pairs"][0]["pw_mcc"], zero["pairs"][0]["pw_mcc_n"], zero["pw_mcc"]) == (None, 0, None)
    wide = measured(SAES | {"base.seed1": sae([0.0, 0.0, 1.0], [0.0, 1.0, 0.0])}, one)
    assert "different width: 2 and 3" in wide["pairs"][0]["left_out"]
    assert (wide["pw_mcc"], wide["agreement"]) == (None, 0.5)


def test_saes_are_named_by_the_digests_of_their_files(tmp_path: Path):
    save_sae(SAES["base.seed0"], tmp_path, {})
    assert described(tmp_path) == {
        **{"architecture": "relu", "d_in": 2, "d_sae": 2, "k": None},
        "sha256": {name: sha256_file(tmp_path / name) for name in ("cfg.json", "sae_weights.safetensors")},
    }
    assert software("abc")["versions"]["numpy"] == np.__version__
    assert "2505.20254" in DEFINITIONS["pw_mcc"]


def test_every_pair_of_seeds_is_planned_with_its_files():
    plan = Plan(diamond()).places["mlp"]
    pairs = plan.comparisons.seed_pair_names
    assert set(pairs) == set(plan.graph.lineage)
    for model, names in pairs.items():
        assert [{*names_in_pair(name)} for name in names] == [
            {f"{model}.{a}", f"{model}.{b}"} for a, b in pairwise(plan.saes.seed_names)
        ]
        for a, _ in map(names_in_pair, names):
            assert f"results/tiny/correlations/mlp/{a}/correlations.safetensors" in plan.paths.seed_correlations()
        assert f"results/tiny/saes/mlp/{model}/seed0/cfg.json" in plan.paths.seed_saes()
