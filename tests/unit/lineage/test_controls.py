"""What the lineage says of the SAEs of several seeds."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.correlations.decoders import chance_mcc
from saelineage.lineage.controls import over_trainings, pw_mcc
from saelineage.report.tables import seed_mccs

ROWS = {"seed0": [[1.0, 0.0], [0.0, 1.0]], "seed1": [[0.0, 2.0], [3.0, 4.0]], "seed2": [[-1.0, 0.0], [0.0, -1.0]]}
"""Decoder rows. PW-MCC is (1 + 0.6) / 2 between the first two, and 0 between the first and the last."""


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Weights of an SAE of each seed, by name."""
    paths = {f"base.{seed}": str(tmp_path / f"{seed}.safetensors") for seed in ROWS}
    for path, rows in zip(paths.values(), ROWS.values(), strict=True):
        save_file({"W_dec": np.array(rows, dtype=np.float32)}, path)
    return paths


def test_pw_mcc_of_each_model_is_the_mean_over_its_pairs_of_seeds(weights):
    pairs = ["base.seed0__base.seed1", "base.seed0__base.seed2"]
    comparison = {"parent": "base", "child": "lua", "seeds": {"base": pairs, "lua": []}}
    found = pw_mcc([comparison, comparison], weights)
    chance = chance_mcc(2, 2, 2)
    assert found == {"base": {"pw_mcc": pytest.approx(0.4), "chance": chance, "n_pairs": 2, "left_out": None}}
    # Beside the parent's agreement; the child has one seed alone.
    assert seed_mccs({"pw_mcc": found}, comparison) == {
        **{"two_seed_pw_mcc": pytest.approx(0.4), "two_seed_pw_mcc_chance": chance},
        **{"child_two_seed_pw_mcc": None, "child_two_seed_pw_mcc_chance": None},
    }


def test_shares_over_trainings_are_those_of_the_child_and_its_twins():
    groups = {"identified": None, "all": {"persist_share": 0.5}}
    twins = {name: {"all": {"persist_share": share}} for name, share in (("again", 0.4), ("once_more", 0.6))}
    found = over_trainings(groups, twins)
    assert found.keys() == {"all"}
    assert [found["all"][key] for key in ("n", "mean", "least", "largest")] == [3, pytest.approx(0.5), 0.4, 0.6]
    assert found["all"]["interval"] == pytest.approx((0.5 - 0.2484138, 0.5 + 0.2484138), abs=1e-6)
    assert over_trainings(groups, {}) == {}
