"""Models that are kept at some steps of a training."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from saelineage.plan.steps import require_before_end

FOLDER = "kept"
"""Folder among the checkpoints. The Trainer's own are `checkpoint-{step}`."""


class KeepSteps(TrainerCallback):
    """Saves the model after some optimizer steps, beside the checkpoints, and changes nothing in the training.

    A model appears under its step only when it is whole. It is there before any checkpoint of that step or a later one,
    so a training that resumes from one needs no earlier step again.
    """

    def __init__(self, steps: Sequence[int], name: str, checkpoints: Path, save: Callable[[Path], object]):
        """Keep what is to be done.

        Args:
            steps: in order.
            name: the trained model's name in the config.
            checkpoints: the folder of the Trainer's checkpoints.
            save: writes the model as it is into an empty folder.
        """
        self._steps, self._name, self._save = list(steps), name, save
        self._folder = checkpoints / FOLDER

    def folders(self) -> dict[str, Path]:
        """The folder of each step, by the step."""
        return {str(step): self._folder / str(step) for step in self._steps}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Refuse steps that the training does not have."""
        require_before_end(self._steps, state.max_steps, self._name)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save the model if this is one of the steps."""
        if state.global_step not in self._steps:
            return
        folder = self.folders()[str(state.global_step)]
        partial = folder.with_name(f"{folder.name}.partial")
        for earlier in (partial, folder):
            shutil.rmtree(earlier, ignore_errors=True)
        partial.mkdir(parents=True)
        self._save(partial)
        partial.rename(folder)
