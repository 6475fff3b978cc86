"""Difference SAEs from dumps to tables: planted changes are found and named, and training resumes to equal bytes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from measure_difference_sae import measure_difference_sae
from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from saelineage.saes.sae import Sae, load_sae, save_sae
from saelineage.saes.training import Training, read_state
from tests.unit.crosscoders.made import write_dumps
from train_difference_sae import train_difference_sae

D_IN, N_SHARED = 24, 12
STRONGER, GONE, NEW = 0, 12, 13
"""Planted features: the first is written twice as strongly by the child; the last two are of one model alone."""
NAMES = {"parent": "base", "child": "tuned", "role": "edge", "seed": "seed0"}


def planted(n_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """Directions [feature, d_in], activations [token, feature] of planted features, and those of both models."""
    directions = np.random.default_rng(500).normal(size=(N_SHARED + 2, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    features = (random.random((n_tokens, N_SHARED + 2)) < 0.1) * random.uniform(0.5, 1.5, (n_tokens, N_SHARED + 2))
    strengths = np.ones((2, N_SHARED + 2))
    strengths[0, NEW], strengths[1, GONE], strengths[1, STRONGER] = 0.0, 0.0, 2.0
    acts = {
        side: torch.from_numpy((features * strength) @ directions).float()
        for side, strength in zip(("parent", "child"), strengths, strict=True)
    }
    return directions, features, acts


def sae_of(folder: Path, directions: np.ndarray) -> Path:
    """The folder of an SAE that writes these directions."""
    sae = Sae("relu", D_IN, len(directions))
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(directions))
    save_sae(sae, folder, {})
    return folder


def train(folder: Path, paths: dict, settings: dict, checkpoint: Path) -> None:
    train_difference_sae(
        parent="base",
        child="tuned",
        paths_to_parent=paths["parent"],
        paths_to_child=paths["child"],
        settings=settings,
        source={"name": "models/tuned"},
        folder=folder,
        checkpoint=checkpoint,
        gpus=0,
    )


@pytest.fixture
def settings(sae_settings: dict) -> dict:
    return sae_settings | {"expansion_factor": 0.5, "k": 2, "n_tokens": 60_000, "dead_after_tokens": 5000}


def test_planted_changes_of_the_child_are_found_and_named(tmp_path: Path, settings: dict):
    train(tmp_path / "sae", write_dumps(tmp_path / "train", planted(20_000, 1)[2]), settings, tmp_path / "state")
    directions, features, acts = planted(5000, 2)
    probe = write_dumps(tmp_path / "probe", acts, n_shards=2)
    measure_difference_sae(
        folder=tmp_path / "sae",
        names=NAMES,
        paths_to_shards={side: {"lua": [str(of[0])], "english": [str(of[1])]} for side, of in probe.items()},
        compared={
            "parent": sae_of(tmp_path / "of_parent", np.delete(directions, NEW, 0)),
            "child": sae_of(tmp_path / "of_child", np.delete(directions, GONE, 0)),
        },
        same_above=0.7,
        min_firings=20,
        path_to_latents=str(tmp_path / "latents.parquet"),
        path_to_summary=str(tmp_path / "summary.parquet"),
        gpus=0,
        threads=1,
    )
    latents, summary = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("latents", "summary"))
    dense = load_sae(tmp_path / "sae").encode(acts["child"] - acts["parent"]).detach().numpy()
    kinds = {}
    for feature in (STRONGER, GONE, NEW):
        with np.errstate(invalid="ignore"):
            r = np.nan_to_num([np.corrcoef(latent, features[:, feature])[0, 1] for latent in dense.T])
        assert r.max() > 0.9
        kinds[feature] = latents["direction"][r.argmax()]
    assert kinds == {STRONGER: "both", GONE: "opposite", NEW: "child_alone"}
    assert summary["corpus"].tolist() == ["pooled", "lua", "english"]
    assert summary["fvu"].max() < 0.1
    difference, child = (acts["child"] - acts["parent"]).double(), acts["child"].double()
    expected = difference.square().sum() / (child - child.mean(0)).square().sum()
    assert summary["difference_size"][0] == pytest.approx(float(expected), rel=1e-6)
    assert latents.iloc[0][list(NAMES)].to_dict() == summary.iloc[0][list(NAMES)].to_dict() == NAMES


def test_the_folder_is_that_of_an_sae_and_a_second_training_has_the_same_bytes(tmp_path: Path, settings: dict):
    paths = write_dumps(tmp_path / "train", planted(4000, 1)[2])
    for name in ("one", "two"):
        train(tmp_path / name, paths, settings | {"n_tokens": 4000}, tmp_path / f"{name}.state")
    for file in ("sae_weights.safetensors", "cfg.json", "training.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    metadata = read_json(tmp_path / "one" / "cfg.json")["metadata"]
    assert metadata["saelineage"]["input"] == "activations of tuned minus activations of base, of the same tokens"
    assert metadata["hook_name"] is None


def test_an_interrupted_training_resumes_to_equal_bytes(tmp_path: Path, settings: dict, monkeypatch):
    paths = write_dumps(tmp_path / "train", planted(4000, 1)[2])
    short = settings | {"n_tokens": 4000, "checkpoint_steps": 5}  # 15 steps
    train(tmp_path / "whole", paths, short, tmp_path / "whole.state")
    step = Training.step

    def stopping(training: Training, acts: torch.Tensor) -> None:
        if training.step_number == 12:
            raise InterruptedError
        step(training, acts)

    monkeypatch.setattr(Training, "step", stopping)
    with pytest.raises(InterruptedError):
        train(tmp_path / "resumed", paths, short, tmp_path / "state")
    monkeypatch.setattr(Training, "step", step)
    assert read_state(tmp_path / "state")[1]["trainers"]
    train(tmp_path / "resumed", paths, short, tmp_path / "state")
    for file in ("sae_weights.safetensors", "training.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()


def test_models_with_equal_activations_are_refused(tmp_path: Path, settings: dict):
    acts = planted(1000, 1)[2]
    paths = write_dumps(tmp_path / "train", {"parent": acts["parent"], "child": acts["parent"]})
    with pytest.raises(InputError, match=r"'tuned' at layer\.output must differ from those of 'base'"):
        train(tmp_path / "sae", paths, settings, tmp_path / "state")
