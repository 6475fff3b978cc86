"""Comparing the matrices of a model with those of its parents, as the rule does."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from decompose_changes import decompose_changes
from saelineage.models.matrix_changes import MatrixChange

PER_MODEL = 2 + 2 * 7
"""Input and output embedding, and in each of two layers four matrices of the attention and three of the MLP."""


def decompose(tiny: SimpleNamespace, folder: Path, *models: str) -> tuple[pd.DataFrame, list[dict]]:
    """The matrices and edges of a model, the last one, and its parents."""
    paths, config = [tiny.models[model] / "model.safetensors" for model in models], tiny.models["a"] / "config.json"
    outputs = str(folder / "changes.parquet"), str(folder / "changes.json")
    decompose_changes(str(config), paths, *outputs, torch.device("cpu"))
    return pd.read_parquet(outputs[0]), json.loads(Path(outputs[1]).read_text())["edges"]


def test_a_merge_has_rows_for_each_parent_and_undefined_shares_are_missing(tiny: SimpleNamespace, tmp_path: Path):
    table, edges = decompose(tiny, tmp_path, "a", "b", "b")
    assert list(table.columns) == ["parent", "child", "matrix", *MatrixChange._fields]
    assert table["parent"].tolist() == ["a"] * PER_MODEL + ["b"] * PER_MODEL
    other, same = (table[table["parent"] == parent] for parent in "ab")
    assert same["difference"].eq(0).all()
    assert same[["subspace_energy", "subspace_energy_if_random"]].isna().all(axis=None)
    assert (edges[1]["relative_change"], edges[1]["subspace_energy"], edges[1]["intruders"]) == (0, None, 0)
    size = np.sqrt(other["difference"].sum() / other["square"].sum())
    assert (edges[0]["n_matrices"], edges[0]["left_out"]) == (PER_MODEL, [])
    assert np.isclose(edges[0]["relative_change"], size)
    assert np.isclose(size, np.sqrt(2), atol=0.1)  # of two independent draws
    # Unrelated models: nearly all leading directions are new, and along them lies what lies in random ones.
    assert edges[0]["intruders"] > 100
    assert edges[0]["intruder_energy"] < edges[0]["intruder_energy_if_random"]


def test_equal_inputs_give_equal_bytes(tiny: SimpleNamespace, tmp_path: Path):
    first, second = ([*decompose(tiny, tmp_path, "a", "b")][1] and read(tmp_path) for _ in range(2))
    assert first == second


def read(folder: Path) -> list[bytes]:
    """Both files."""
    return [(folder / name).read_bytes() for name in ("changes.parquet", "changes.json")]
