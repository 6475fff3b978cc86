"""The lineage graph as the config describes it: models, their parents and their SAEs.

Plain functions over a validated config (see `config.load_config`); nothing here reads a file.
"""

import hashlib
import re
from typing import NamedTuple

ONE_SAE = re.compile(r"(seed|shared|own)[0-9]|from_")
"""How keys of `saes.models.{model}` begin that are names of SAEs."""
SHARED = re.compile(r"shared(?P<seed>[0-9]+)(?P<again>_again)?$")
NOT_OF_ONE_SAE = ("seeds", "one_pass", "tensorboard", "models", "anchored")
POOLED = "pooled"
"""What all corpora together are called, so that no corpus can be."""
SAME_IN_ONE_PASS = ("corpora", "n_tokens", "batch_tokens", "max_norm_ratio", "checkpoint_steps")
"""Settings that decide the batches, which all SAEs of a pass see."""


class Edge(NamedTuple):
    """A parent and a child of the lineage."""

    parent: str
    child: str


class SaeName(NamedTuple):
    """One SAE of one model; written `{model}.{sae}` in paths."""

    model: str
    sae: str

    def __str__(self) -> str:
        return f"{self.model}.{self.sae}"


def kind(config: dict, model: str) -> str:
    """How a model is made: pretrain, finetune, merge, hub, path or reinitialise."""
    return next(iter(config["models"][model]))


def parents(config: dict, model: str) -> list[str]:
    """The models that `model` descends from, in the config's order."""
    settings = config["models"][model][kind(config, model)]
    return [settings["parent"]] if "parent" in settings else list(settings.get("parents", []))


def like(config: dict, model: str) -> str | None:
    """The model whose architecture and tokenizer a re-initialised one has."""
    return config["models"][model][kind(config, model)].get("like")


def outside_models(config: dict) -> list[str]:
    """Models that stand in a child's place, to say what else than descent makes features alike; no part of the lineage.

    Those re-initialised, those that descend from them, and those that `lineage.controls` names.
    """
    named = {model for models in config["lineage"]["controls"].values() for model in models}
    outside = named | set(models_of_kind(config, "reinitialise"))
    return [model for model in config["models"] if outside & {model, *ancestors(config, model)}]


def edges(config: dict) -> list[Edge]:
    """Every parent-child pair of the lineage, parents before children."""
    outside = outside_models(config)
    children = [model for model in ordered_models(config) if model not in outside]
    return [Edge(parent, child) for child in children for parent in parents(config, child)]


def lineage_models(config: dict) -> list[str]:
    """The models of the lineage, parents before children."""
    outside = outside_models(config)
    return [model for model in ordered_models(config) if model not in outside]


def ordered_models(config: dict) -> list[str]:
    """Models with every parent before its children, otherwise in the config's order.

    Raises:
        ValueError: if the parents form a cycle, naming its members.
    """
    ordered, waiting = [], list(config["models"])
    while waiting:
        ready = [model for model in waiting if all(parent in ordered for parent in parents(config, model))]
        if not ready:
            raise ValueError(f"models {sorted(waiting)} descend from each other in a circle")
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered


def models_of_kind(config: dict, *kinds: str) -> list[str]:
    """Names of the models made in one of these ways."""
    return [model for model in config["models"] if kind(config, model) in kinds]


def ancestors(config: dict, model: str) -> list[str]:
    """`model`'s parents, their parents and so on, nearest first."""
    found, waiting = [], parents(config, model)
    while waiting:
        nearest = waiting.pop(0)
        if nearest not in found:
            found.append(nearest)
            waiting.extend(parents(config, nearest))
    return found


def common_ancestor(config: dict, model: str) -> str | None:
    """The nearest model that all of `model`'s parents are or descend from, or None."""
    lines = [[parent, *ancestors(config, parent)] for parent in parents(config, model)]
    return next((name for name in lines[0] if all(name in line for line in lines)), None) if lines else None


def training_corpora(config: dict, model: str) -> list[str]:
    """Corpora a model was trained on last; for a merge those of its parents; empty where unknown."""
    found, seen, waiting = {}, set(), [model]
    while waiting:
        name = waiting.pop(0)
        if name not in seen:  # merges of merges meet the same models over and over
            seen.add(name)
            settings = config["models"][name][kind(config, name)]
            found |= dict.fromkeys(settings.get("corpora", []))
            waiting = ([] if "corpora" in settings else parents(config, name)) + waiting
    return list(found)


def mixture(config: dict, model: str) -> list[str]:
    """The corpora that a model and its ancestors were trained on, as in the original study; all where none is known."""
    line = [model, *ancestors(config, model)]
    known = {corpus for name in line for corpus in training_corpora(config, name)}
    return [corpus for corpus in config["corpora"] if corpus in known or not known]


def sae_names(config: dict) -> list[str]:
    """Names of the SAEs that are trained from seeds of their own."""
    return [f"seed{seed}" for seed in config["saes"]["seeds"]]


def saes(config: dict, model: str) -> list[SaeName]:
    """The SAEs of one model that are trained from seeds of their own."""
    return [SaeName(model, name) for name in sae_names(config)]


def started_from(sae: str) -> tuple[list[str], str]:
    """The models whose SAEs one named `from_{model}`, `from_{model}+{model}` ... starts from, and what follows an @.

    After the @ stands the number of tokens it is trained on, where that is not `saes.anchored.n_tokens`.
    """
    names, at, n_tokens = sae.removeprefix("from_").partition("@")
    return (names.split("+"), at + n_tokens) if sae.startswith("from_") else ([], "")


def anchor(config: dict, model: str, budget: str = "") -> SaeName:
    """The SAE of a model in a chain of SAEs that start from the parents', merges from the average of their parents'."""
    line = parents(config, model)
    return SaeName(model, f"from_{'+'.join(line)}{budget}") if line else saes(config, model)[0]


def starts(config: dict, sae: str) -> list[SaeName]:
    """The SAEs whose average an SAE's training starts from; none where it starts at random."""
    names, budget = started_from(sae)
    return [anchor(config, name, budget) for name in names]


def sae_settings(config: dict, model: str, sae: str) -> dict:
    """The settings of one SAE: the stage's, overridden by the model's, by what it starts from, and by its own.

    Kinds of names: `seed{n}` has a random stream of its own; `shared{n}` one that all models share, and
    `shared{n}_again` that one with another order of tokens; `own{n}` is trained on the model's own mixture;
    `from_{model}` starts from that model's SAE (`started_from`).
    """
    stage = {key: value for key, value in config["saes"].items() if key not in NOT_OF_ONE_SAE}
    of_model = config["saes"]["models"].get(model, {})
    names, budget = started_from(sae)
    settings = stage | {key: value for key, value in of_model.items() if not ONE_SAE.match(key)}
    settings |= (config["saes"]["anchored"] if names else {}) | of_model.get(sae, {})
    if not sae.startswith("seed"):
        settings["import"] = None
    if budget:
        settings["n_tokens"] = int(budget.removeprefix("@"))
    own = sae.startswith("own")
    settings["corpora"] = mixture(config, model) if own else settings["corpora"] or list(config["corpora"])
    return settings | _streams(config, model, sae, settings)


def _streams(config: dict, model: str, sae: str, settings: dict) -> dict:
    """The seeds of an SAE's initialisation and of its order of tokens."""
    shuffle_seed = settings["shuffle_seed"]
    if shared := SHARED.match(sae):
        again = stream_seed(model, sae) if shared["again"] else shuffle_seed
        return {"seed": int(shared["seed"]), "shuffle_seed": again}
    if sae in sae_names(config) and config["saes"]["one_pass"] and shuffle_seed is None:
        shuffle_seed = stream_seed(model, sae_names(config)[0].removeprefix("seed"))
    return {"seed": stream_seed(model, sae.removeprefix("seed")), "shuffle_seed": shuffle_seed}


def imported_saes(config: dict) -> list[SaeName]:
    """The SAEs that somebody else trained."""
    found = [sae for model in config["models"] for sae in saes(config, model)]
    return [sae for sae in found if sae_settings(config, *sae).get("import")]


def stream_seed(model: str, stream: str) -> int:
    """A 32-bit seed that differs between models, so that no two start from one initialisation by accident."""
    return int.from_bytes(hashlib.sha256(f"{model}/{stream}".encode()).digest()[:4], "big")


def shard_names(n_shards: int) -> list[str]:
    """`00000-of-00002`, `00001-of-00002` ..."""
    return [f"{shard:05d}-of-{n_shards:05d}" for shard in range(n_shards)]
