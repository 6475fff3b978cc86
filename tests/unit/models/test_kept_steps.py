"""Models kept at steps of a training, and the archive that they leave the job in."""

from pathlib import Path

import pytest
import torch

from finetune_model import finetune_model
from keep_step import keep_step
from saelineage.errors import InputError
from saelineage.files.archives import take_folder, write_archive
from saelineage.models import kept_steps
from tests.unit.models.test_training import TRAINING

SETTINGS = TRAINING | {"parent": "a", "n_tokens": 8 * 4 * 16, "save_steps": 3}
"""8 steps of 4 rows of 16 tokens, with checkpoints at 3 and 6."""


def finetune(tiny, folder: Path, **settings: object) -> Path:
    """Train model `a` on; returns the folder, in which the model, steps.tar and the checkpoints are."""
    folder.mkdir(exist_ok=True)
    finetune_model(
        settings=SETTINGS | settings,
        paths_to_tokens={"words": str(tiny.tokens["words"]["train"])},
        parent_folder=tiny.models["a"],
        folder=folder,
        checkpoints=folder / "checkpoints",
        gpus=0,
        name="lua",
        path_to_steps=str(folder / "steps.tar") if "keep_steps" in settings else None,
    )
    return folder


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory) -> Path:
    return finetune(tiny, tmp_path_factory.mktemp("kept"), keep_steps=[2, 5])


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def taken(kept: Path, step: int, folder: Path) -> Path:
    folder.mkdir()
    keep_step(str(kept / "steps.tar"), step, folder)
    return folder


def test_keeping_models_changes_nothing_in_the_trained_one(tiny, kept, tmp_path):
    assert weights(kept) == weights(finetune(tiny, tmp_path / "alone"))


def test_a_kept_model_is_the_one_that_training_had_after_that_step(tiny, kept, tmp_path):
    folder = taken(kept, 5, tmp_path / "five")
    # The Trainer's own checkpoint of that step, in a training that makes one there.
    other = finetune(tiny, tmp_path / "other", save_steps=5)
    assert weights(folder) == weights(other / "checkpoints" / "checkpoint-5")
    assert weights(folder) not in (weights(kept), weights(taken(kept, 2, tmp_path / "two")))
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("last", [1, 4, 7])
def test_an_interrupted_training_leaves_equal_bytes_of_all_models(tiny, kept, tmp_path, monkeypatch, last):
    # Killed after step 1 (nothing saved), 4 (step 2 and a checkpoint) or 7 (both steps and two checkpoints).
    class Killed(kept_steps.KeepSteps):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == last:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("finetune_model.KeepSteps", Killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny, tmp_path / "killed", keep_steps=[2, 5])
    again = finetune(tiny, tmp_path / "killed", keep_steps=[2, 5])
    assert weights(again) == weights(kept)
    assert (again / "steps.tar").read_bytes() == (kept / "steps.tar").read_bytes()


def test_a_step_beyond_a_training_of_epochs_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    n_rows = len(finetune_rows(tiny))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *arguments: pytest.fail("a step was made"))
    with pytest.raises(InputError, match=rf"keep_steps: must be below {n_rows // 4}, the number of steps"):
        finetune(tiny, tmp_path / "long", n_tokens=None, epochs=1, keep_steps=[n_rows // 4])


def finetune_rows(tiny):
    from saelineage.tokens import TokenRows

    return TokenRows(tiny.tokens["words"]["train"]).ids


def test_an_archive_has_equal_bytes_for_equal_files_and_gives_them_back(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name / "5"
        folder.mkdir(parents=True)
        for file in ("b", "a") if name == "one" else ("a", "b"):
            (folder / file).write_bytes(file.encode() * 700)
        write_archive({"5": folder}, tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    (tmp_path / "out").mkdir()
    assert take_folder(tmp_path / "one.tar", "5", tmp_path / "out") == ["a", "b"]
    assert (tmp_path / "out" / "b").read_bytes() == b"b" * 700
    with pytest.raises(InputError, match="must hold the folder '50', but does not"):
        take_folder(tmp_path / "one.tar", "50", tmp_path / "out")
