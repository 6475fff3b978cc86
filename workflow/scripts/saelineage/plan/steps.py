"""Short forms of several models that are steps of one training, expanded into a chain of ordinary models.

`hub: {repo, revisions}` and `path: {folders}` become a model for each, the child of the one before. `finetune:
{keep_steps}` becomes the fine-tune and a model kept at each step (`kept`). Everything after this knows ordinary models
only, and their names can be used in any block.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import NamedTuple

from saelineage.errors import InputError

SEVERAL = {"hub": ("revision", "revisions"), "path": ("folder", "folders")}
"""Kinds of models that can be given as several steps: the key of one, and that of several."""
NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
LONGEST_NAME, MOST_MODELS = 64, 200
"""The schema's limits on names and on their number."""


class Step(NamedTuple):
    """A model of the expanded config."""

    name: str
    block: Mapping
    key: str
    """The key and value that it comes from, for messages."""


def expand_steps(config: dict) -> None:
    """Replace short forms in `models` by the models that they stand for, in place. An expanded config stays as it is.

    Raises:
        InputError: if two models get one name, or a model names neither or both of one place and several.
    """
    steps = [step for name, block in config["models"].items() for step in _steps(name, block)]
    names: dict[str, str] = {}
    for step in steps:
        if step.name in names:
            raise InputError(
                f"{step.key}: every model must have a name of its own, but this is '{step.name}', as is "
                f"{names[step.name]}; rename one, or leave one out"
            )
        names[step.name] = step.key
    if len(steps) > MOST_MODELS:
        raise InputError(
            f"models: there must be at most {MOST_MODELS}, but with all revisions, folders and keep_steps there are "
            f"{len(steps)}; leave some out"
        )
    config["models"] = {step.name: step.block for step in steps}


def require_before_end(steps: Iterable[int], n_steps: int, model: str) -> None:
    """Refuse to keep a model at a step that is not before the last one, which is the trained model itself.

    Args:
        steps: the steps to keep.
        n_steps: of the training.
        model: the name of the trained model.
    """
    beyond = [step for step in steps if step >= n_steps]
    if beyond:
        raise InputError(
            f"models.{model}.finetune.keep_steps: must be below {n_steps}, the number of steps, because '{model}' is "
            f"the model of the last one, but {beyond[0]} is not; lower it, or train for longer"
        )


def _steps(name: str, block: Mapping) -> list[Step]:
    """The models that one block stands for."""
    ((kind, settings),) = block.items()
    key = f"models.{name}.{kind}"
    if kind in SEVERAL:
        one, several = SEVERAL[kind]
        if (one in settings) == (several in settings):
            raise InputError(
                f"{key}: must name one {one}, or several under {several}, got {sorted(settings)}; give one of the two"
            )
        if several in settings:
            return _chain(name, kind, settings)
    if kind == "finetune" and "keep_steps" in settings:
        return _kept(name, settings, f"{key}.keep_steps")
    return [Step(name, block, f"models.{name}")]


def _chain(name: str, kind: str, settings: Mapping) -> list[Step]:
    """A model for each revision or folder, the child of the one before; the first has the parents that are given."""
    one, several = SEVERAL[kind]
    shared = {key: value for key, value in settings.items() if key != several}
    steps: list[Step] = []
    for value in settings[several]:
        key = f"models.{name}.{kind}.{several}: '{value:.80}'"
        step = _name(name, PurePath(value).name if kind == "path" else value, key)
        parents = {"parents": [steps[-1].name]} if steps else {}
        steps.append(Step(step, {kind: shared | {one: value} | parents}, key))
    return steps


def _kept(name: str, settings: Mapping, key: str) -> list[Step]:
    """A model for each step that is kept, and the fine-tune itself."""
    kept = [
        Step(_name(name, f"step{step}", key), {"kept": {"of": name, "step": step}}, f"{key}: {step}")
        for step in sorted(settings["keep_steps"])
    ]
    finetune = {key: value for key, value in settings.items() if key != "keep_steps"}
    return [*kept, Step(name, {"finetune": finetune}, f"models.{name}")]


def _name(model: str, step: str, key: str) -> str:
    """The name of a step: the model's, and what tells the step, as far as names may hold it."""
    told = NOT_IN_NAMES.sub("-", step.lower()).strip("-")
    name = f"{model}_{told}"
    if not told or len(name) > LONGEST_NAME:
        raise InputError(
            f"{key}: must give a name of letters and digits, at most {LONGEST_NAME} characters with the model's, but "
            f"gives '{name}'; give a model of its own instead, with the one before under parents"
        )
    return name
