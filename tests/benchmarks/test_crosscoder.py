"""The crosscoder benchmark compares like with like."""

from argparse import Namespace

import pytest
from benchmarks.crosscoder import dense, ours, planted_batches, summarise

SMALL = Namespace(
    d_in=16, d_sae=64, k=4, batch_tokens=128, learning_rate=1e-3, precision="float32", device="cpu", models=3
)


def test_the_dense_crosscoder_takes_the_steps_of_ours():
    batches = planted_batches(SMALL, 3) * 2
    losses = [[step(acts) for acts in batches] for step in (ours(SMALL, 3), dense(SMALL, 3))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][4] < losses[0][0]  # the same batch after four steps


def test_a_summary_without_the_peer_has_no_ratio_to_it():
    figures = {
        "ours": {"tokens_per_s": 800.0, "tokens_per_cpu_s": 500.0, "losses": [2.0, 1.0]},
        "dense": {"tokens_per_s": 100.0, "tokens_per_cpu_s": 50.0, "losses": [2.0, 1.25]},
    }
    assert summarise(figures) == {
        "dense_ratio": 8.0,
        "dense_cpu_ratio": 10.0,
        "peer_ratio": None,
        "peer_cpu_ratio": None,
        "loss_difference": 0.2,
    }
