"""Short names of hookpoints (`resid_post.12`), replaced by the modules that they stand for in the run's models.

Each job reads the config again, so this reads nothing large: the config.json of the first model that has one.
"""

import os
from collections.abc import Mapping

from saelineage.errors import InputError
from saelineage.foreign.hub import peek_model_config
from saelineage.foreign.models import read_config
from saelineage.foreign.usual_places import SHORT, usual_place


def write_out_places(config: dict) -> None:
    """Replace short names in `activations.hookpoints` of a whole config, in place.

    Raises:
        InputError: if there is a short name, and no model whose config.json is known before the first job, its folder
            is missing, or it has no such place.
    """
    hookpoints = config["activations"]["hookpoints"]
    short = [name for name, place in hookpoints.items() if SHORT.fullmatch(place)]
    if not short:
        return
    model, described = _first_described(config["models"], hookpoints[short[0]])
    for name in short:
        hookpoints[name] = usual_place(hookpoints[name], described, model)


def _first_described(models: Mapping[str, Mapping], place: str) -> tuple[str, dict]:
    """The first model whose config.json is known, by name. All models of a run are read at the same modules."""
    for model, made in models.items():
        if settings := made.get("pretrain"):
            return model, {"model_type": "mistral", "num_hidden_layers": settings["n_layers"]}
        if (settings := made.get("path")) and "gguf" not in settings:
            if not os.path.isdir(settings["folder"]):
                raise InputError(f"models.{model}.path: '{settings['folder']}' is not a folder; correct the path")
            return model, read_config(settings["folder"])
        if settings := made.get("hub"):
            return model, peek_model_config(settings, f"models.{model}.hub")
    raise InputError(
        f"activations.hookpoints: '{place}' can be told only where a model comes from pretrain, path (not gguf) or "
        "hub, but none does; write it as MODULE.output or MODULE.input, with a name that print(model) shows"
    )
