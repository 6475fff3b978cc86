"""Directions of features and of their matches."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.lineage.directions import decoder_directions, match_cosines


def test_cosines_are_those_of_a_feature_and_its_match(tmp_path: Path):
    save_file({"W_dec": np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=np.float32)}, tmp_path / "a")
    save_file({"W_dec": np.array([[3.0, 4.0], [0.0, -1.0]], dtype=np.float32)}, tmp_path / "b")
    own, other = decoder_directions(tmp_path / "a"), decoder_directions(tmp_path / "b")
    # (2, 0) and (3, 4): 0.6. (0, 3) and (0, -1): -1. A row of zeros has no direction.
    np.testing.assert_allclose(match_cosines(own, other, np.array([0, 1, 0])), [0.6, -1.0, np.nan], atol=1e-7)
    assert np.isnan(match_cosines(own, other, np.array([-1, -1, -1]))).all()


def test_models_of_different_widths_have_no_cosines():
    assert np.isnan(match_cosines(np.ones((2, 3)), np.ones((2, 4)), np.array([0, 1]))).all()
    assert match_cosines(np.eye(2), np.eye(2), np.array([0, 0])) == pytest.approx([1.0, 0.0])
