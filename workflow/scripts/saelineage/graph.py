"""The lineage graph as the config describes it: models, their parents, their SAEs, and which of them are compared.

Plain functions over a validated config (see `config.load_config`); nothing here reads a file.
"""

import hashlib
from itertools import combinations
from typing import NamedTuple

OVERRIDES_OF_ONE_SAE = "seed"
NOT_OF_ONE_SAE = ("seeds", "seed_per_model", "one_pass", "tensorboard", "models")
POOLED = "pooled"
"""What all corpora together are called, so that no corpus can be."""
SAME_IN_ONE_PASS = ("corpora", "n_tokens", "batch_tokens", "max_norm_ratio", "checkpoint_steps")
"""Settings that decide the batches, which all SAEs of a pass see."""


class Edge(NamedTuple):
    """A parent and a child of the lineage."""

    parent: str
    child: str


class Sae(NamedTuple):
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


def edges(config: dict) -> list[Edge]:
    """Every parent-child pair, parents before children."""
    return [Edge(parent, child) for child in ordered_models(config) for parent in parents(config, child)]


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
    settings = config["models"][model][kind(config, model)]
    if "corpora" in settings:
        return list(settings["corpora"])
    found = [corpus for parent in parents(config, model) for corpus in training_corpora(config, parent)]
    return list(dict.fromkeys(found))


def sae_names(config: dict) -> list[str]:
    """Names of the SAEs that every model has, the one that is compared along the lineage first."""
    return [f"seed{seed}" for seed in config["saes"]["seeds"]]


def saes(config: dict, model: str) -> list[Sae]:
    """The SAEs of one model, the one that is compared along the lineage first."""
    return [Sae(model, name) for name in sae_names(config)]


def all_saes(config: dict) -> list[Sae]:
    """The SAEs of all models."""
    return [sae for model in config["models"] for sae in saes(config, model)]


def sae_settings(config: dict, model: str, sae: str) -> dict:
    """The settings of one SAE: the stage's, overridden by the model's, overridden by its own."""
    stage = {key: value for key, value in config["saes"].items() if key not in NOT_OF_ONE_SAE}
    of_model = config["saes"]["models"].get(model, {})
    of_sae = of_model.get(sae, {})
    settings = (
        stage | {key: value for key, value in of_model.items() if not key.startswith(OVERRIDES_OF_ONE_SAE)} | of_sae
    )
    seed = int(sae.removeprefix("seed"))
    settings["corpora"] = settings["corpora"] or list(config["corpora"])
    settings["seed"] = _own_seed(config, model, seed)
    if config["saes"]["one_pass"] and settings["shuffle_seed"] is None:
        settings["shuffle_seed"] = _own_seed(config, model, config["saes"]["seeds"][0])
    return settings


def imported_saes(config: dict) -> list[Sae]:
    """The SAEs that somebody else trained."""
    return [sae for sae in all_saes(config) if sae_settings(config, *sae).get("import")]


def trained_saes(config: dict) -> list[Sae]:
    """The SAEs that are trained here."""
    imported = imported_saes(config)
    return [sae for sae in all_saes(config) if sae not in imported]


def _own_seed(config: dict, model: str, seed: int) -> int:
    return stream_seed(model, seed) if config["saes"]["seed_per_model"] else seed


def stream_seed(model: str, seed: int) -> int:
    """A 32-bit seed that differs between models, so that no two start from one initialisation by accident."""
    return int.from_bytes(hashlib.sha256(f"{model}/{seed}".encode()).digest()[:4], "big")


def edge_pair(config: dict, edge: Edge) -> tuple[Sae, Sae]:
    """The two SAEs that an edge's verdicts rest on: the first seed of each model."""
    return saes(config, edge.parent)[0], saes(config, edge.child)[0]


def seed_pairs(config: dict, model: str) -> list[tuple[Sae, Sae]]:
    """Every pair of seeds of one model: the noise floor."""
    return list(combinations(saes(config, model), 2))


def null_pairs(config: dict, edge: Edge) -> dict[str, tuple[Sae, Sae]]:
    """What an edge's parent is compared with where nothing can persist, by the null's name.

    The child's features of other documents (`shifted`) or read on rotated activations (`rotated`), and the features of
    the models re-initialised like the parent.
    """
    parent, child = edge_pair(config, edge)
    pairs = {null: (parent, Sae(child.model, f"{child.sae}_{null}")) for null in config["correlations"]["nulls"]}
    for model in models_of_kind(config, "reinitialise"):
        if config["models"][model]["reinitialise"]["like"] == edge.parent:
            pairs[f"reinitialised ({model})"] = (parent, saes(config, model)[0])
    return pairs


def all_pairs(config: dict) -> list[tuple[Sae, Sae]]:
    """Every pair of SAEs that is correlated: edges, seeds, nulls."""
    pairs = [edge_pair(config, edge) for edge in edges(config)]
    pairs += [pair for model in config["models"] for pair in seed_pairs(config, model)]
    return pairs + [pair for edge in edges(config) for pair in null_pairs(config, edge).values()]


def job_shape(config: dict) -> dict:
    """What decides which jobs a run has and how they hang together; everything else only changes what they do."""
    return {
        "corpora": list(config["corpora"]),
        "tokenizer": config["tokenizer"].get("corpora", []),
        "models": {
            model: [kind(config, model), like(config, model), parents(config, model), training_corpora(config, model)]
            for model in config["models"]
        },
        "saes": {str(sae): sae_settings(config, *sae)["corpora"] for sae in trained_saes(config)},
        "one_pass": config["saes"]["one_pass"],
        "imported_saes": [str(sae) for sae in imported_saes(config)],
        "shards": [config["activations"]["n_shards"], config["activations"]["n_probe_shards"]],
        "nulls": config["correlations"]["nulls"],
        "sweeps": {sweep: [settings["model"], settings.get("corpora")] for sweep, settings in config["sweeps"].items()},
    }


def shard_names(n_shards: int) -> list[str]:
    """`00000-of-00002`, `00001-of-00002` ..."""
    return [f"{shard:05d}-of-{n_shards:05d}" for shard in range(n_shards)]
