"""Divergences of two models' predictions equal those of the categorical distributions that their logits stand for."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from saelineage.models.divergences import DivergenceSums, divergence_sums, token_divergences
from saelineage.models.loading import load_model
from saelineage.tokens import TokenRows


def test_two_known_categoricals_have_their_divergence():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    # sum p log(p / q) = 0.5 log 2 + 0 - 0.25 log 2, the same in both directions.
    forward, reverse = token_divergences(p.log() + 7, q.log() - 3)  # constants change no softmax
    assert float(forward) == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert float(reverse) == pytest.approx(0.25 * math.log(2), rel=1e-6)


def test_the_two_directions_differ_by_which_model_is_believed():
    sure, unsure = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward, reverse = map(float, token_divergences(sure, unsure))
    assert forward == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert reverse == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-6)


def test_equal_logits_diverge_by_exactly_nothing():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 9
    assert [float(each.abs().max()) for each in token_divergences(logits, logits.clone())] == [0.0, 0.0]


def test_sums_add_and_means_are_per_prediction():
    sums = DivergenceSums(1.0, 3.0, 4).plus(DivergenceSums(2.0, 0.0, 2))
    assert sums.means() == {"kl": 0.5, "kl_reverse": 0.5, "n_predictions": 6}
    assert DivergenceSums().means() == {"kl": None, "kl_reverse": None, "n_predictions": 0}


@pytest.fixture
def pair(tiny):
    """The two tiny models, and rows that both read."""
    return tuple(load_model(tiny.models[name]) for name in "ab"), TokenRows(tiny.tokens["words"]["validation"])


def expected(models, ids: np.ndarray, kept: list[int]) -> torch.Tensor:
    """KL(a || b) after every token but the last of each row, over some ids, computed by PyTorch."""
    with torch.no_grad():
        log_p, log_q = (model(torch.from_numpy(ids)).logits[:, :-1, kept].double().log_softmax(-1) for model in models)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def test_models_are_compared_on_all_predictions_of_rows_that_are_spread(pair, tiny):
    models, rows = pair
    every = list(range(tiny.d_vocab))
    for max_rows, n_rows in ((5, 5), (10_000, len(rows.ids))):
        found = divergence_sums(models, (rows, rows), every, batch_rows=3, max_rows=max_rows)
        kl = expected(models, rows.read(rows.spread(max_rows)), every)
        assert found.n_predictions == kl.numel() == n_rows * (tiny.n_ctx - 1)
        assert found.forward == pytest.approx(float(kl.sum()), rel=1e-5)
    same = divergence_sums((models[0], deepcopy(models[0])), (rows, rows), every, batch_rows=3, max_rows=5)
    assert same == (0.0, 0.0, 5 * (tiny.n_ctx - 1))


def test_ids_that_are_not_shared_are_in_no_softmax_and_predictions_of_either_model_alone_do_not_count(pair, tiny):
    models, rows = pair
    unshared = int(rows.ids[0, 3])
    kept = [number for number in range(tiny.d_vocab) if number != unshared]
    reads = rows.read_with({unshared: 1})
    found = divergence_sums(models, (reads, reads), kept, batch_rows=4, max_rows=8)
    kl = expected(models, reads.read(reads.spread(8)), kept)
    counts = torch.from_numpy(reads.predicted(reads.spread(8))[:, 1:])
    assert 0 < found.n_predictions == int(counts.sum()) < counts.numel()
    assert found.forward == pytest.approx(float(kl[counts].sum()), rel=1e-5)
    one_sided = divergence_sums(models, (rows, reads), kept, batch_rows=4, max_rows=8)
    assert one_sided.n_predictions == found.n_predictions
