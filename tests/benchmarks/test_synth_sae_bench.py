"""The comparison with SynthSAEBench, but for what SAELens does in it (it is not installed here)."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.synth_sae_bench import (
    Size,
    batches,
    correlations,
    folder_of,
    gt_mcc,
    identified_shares,
    measure,
    ours,
    print_table,
    ratios,
    recurrence,
)

from saelineage.saes.sae import Sae, load_sae

SIZE = Size(6, 0, 8, 16, 1, 51_200, 4_096, 0.01, 10, batch_tokens=256)


class Independent:
    """True features along the axes, each of which fires on a sixth of the tokens with a strength from 1 to 2."""

    feature_dict = SimpleNamespace(feature_vectors=torch.eye(6, 8))

    def sample_with_features(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = (torch.rand(n, 6) < 1 / 6) * (1 + torch.rand(n, 6))
        return features @ self.feature_dict.feature_vectors, features


MODEL = Independent()


def test_gt_mcc_counts_each_direction_once_and_ignores_signs():
    directions = np.eye(3)
    assert gt_mcc(-2 * directions[[2, 0, 1]], directions) == pytest.approx(1)
    # Two latents of one direction: one has it, and the other an orthogonal one.
    assert gt_mcc(directions[[0, 0]], directions) == pytest.approx(0.5)
    # (3, 4) / 5 goes with the second axis at 0.8, because the first axis has a latent of its own.
    assert gt_mcc(np.array([[3.0, 4.0], [1.0, 0.0]]), np.eye(2)) == pytest.approx(0.9)


def test_batches_are_the_same_for_the_same_seed_and_cover_all_tokens():
    first, again, other = (list(batches(MODEL, 600, 256, seed)) for seed in (1, 1, 2))
    assert [len(acts) for acts, _ in first] == [256, 256, 88]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_correlations_over_batches_are_those_of_numpy():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(50, 2)), random.normal(size=(50, 3))
    b[:, 1] = 7.0  # does not vary
    tensors = [torch.from_numpy(side).split(20) for side in (a, b)]
    found = correlations(iter(zip(*tensors, strict=True))).numpy()
    expected = np.corrcoef(a.T, b[:, [0, 2]].T)[:2, 2:]
    assert found[:, [0, 2]] == pytest.approx(expected)
    assert found[:, 1].tolist() == [0, 0]


def test_true_shares_of_identified_latents_and_of_the_others():
    identified, true = torch.tensor([True, True, False, False, False]), torch.tensor([True, True, True, False, False])
    assert identified_shares(identified, true) == {
        "identified": {"n": 2, "true_share": 1.0},
        "others": {"n": 3, "true_share": pytest.approx(1 / 3)},
    }
    assert identified_shares(~identified & identified, true)["identified"] == {"n": 0, "true_share": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Sae]:
    """Our SAEs of two seeds."""
    folder: Path = tmp_path_factory.mktemp("saes")
    for seed in (0, 1):
        contender = ours(SIZE, seed, "cpu", MODEL)
        for acts, _ in batches(MODEL, SIZE.n_tokens, SIZE.batch_tokens, 5):
            contender.step(acts)
        contender.save(folder_of(folder, "ours", seed))
    return [load_sae(folder_of(folder, "ours", seed)) for seed in (0, 1)]


def test_an_sae_is_trained_saved_and_measured_on_separate_features(trained):
    found = measure(MODEL, {("ours", 0): trained[0]}, SIZE)["ours", 0]
    assert trained[0].architecture == "jumprelu"
    assert found["true_l0"] == pytest.approx(1, abs=0.05)
    assert found["l0"] == pytest.approx(1, abs=0.1)
    assert found["explained_variance"] > 0.9
    assert found["gt_mcc"] > 0.9


def test_latents_of_two_seeds_that_recur_are_true_features(trained):
    found = recurrence(MODEL, trained, SIZE)
    assert found["identified"]["n"] >= 4
    assert found["identified"]["true_share"] == 1
    assert found["identified"]["n"] + found["others"]["n"] == SIZE.d_sae
    assert found["agreement"] == found["identified"]["n"] / SIZE.d_sae


def test_ratios_are_of_means_over_seeds_and_the_table_shows_both_measurements(capsys: pytest.CaptureFixture):
    names = ("gt_mcc", "explained_variance", "f1", "uniqueness", "l0", "dead_share")
    rows = [
        {
            **{"library": library, "seed": seed, "tokens_per_s": 10.0, "here": dict.fromkeys(names[:2], value)},
            "there": dict.fromkeys(names, value),
        }
        for library, seed, value in (("SAELens", 0, 0.25), ("SAELens", 1, 0.75), ("ours", 0, 0.5), ("ours", 1, 0.75))
    ]
    assert ratios(rows)["gt_mcc"] == pytest.approx(0.625 / 0.5)
    assert ratios(rows)["tokens_per_s"] == 1
    groups = {"identified": {"n": 2, "true_share": 0.5}, "others": {"n": 0, "true_share": None}}
    of_library = {"pw_mcc": 0.4, "agreement": 0.25, **groups}
    print_table({"saes": rows, "largest_difference": {"gt_mcc": 0.0}, "ratios": {}, "recurrence": {"ours": of_library}})
    shown = capsys.readouterr().out
    assert (
        "ours, two seeds: PW-MCC 0.400, agreement 25.0%; a true feature at r >= 0.8: 50.0% of 2 identified, none"
        in shown
    )
    assert len([line for line in shown.splitlines() if "0.750000" in line]) == 4
