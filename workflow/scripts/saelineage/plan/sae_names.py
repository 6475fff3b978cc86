"""Names of SAEs. The name of an SAE decides its initialisation, its seed and its settings.

- `seed{n}`: a random stream of its own.
- `shared{n}`: a random stream that all models share. `shared{n}_again`: the same but for the order of tokens.
- `own{n}`: trained on the corpora of its model and the model's ancestors.
- `from_{model}`: starts from that model's SAE. `from_{model}+{model}`: starts from the average of two.
- `from_{model}@{n}`: trained on n tokens instead of `saes.anchored.n_tokens`.
- `second_{model}`: as `from_{model}`, in a chain that begins with the root's second seed (`lineage.second_anchor`).
- `reset_{model}`: as `from_{model}`, but a share of the latents starts afresh (`lineage.reset_share`).

Two-step SAEs of an edge (`lineage.stages`) are trained like anchored ones, on one change at a time:

- `data_{child}`, of the parent: starts from the parent's, trained on the child's text. `data+model_{parent}`, of the
  child: starts from that one, trained on the child's activations of the same text.
- `model_{parent}`, of the child: starts from the parent's, trained on the parent's text. `model+data_{parent}`, of the
  child: starts from that one, trained on the child's text.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from saelineage.plan.graph import Graph

ONE_SAE = re.compile(r"(seed|shared|own)[0-9]|(from|second|reset|data|model|data\+model|model\+data)_")
"""Beginning of the keys of `saes.models.{model}` that are names of SAEs."""
STAGE = re.compile(r"(?P<legs>data|model|data\+model|model\+data)_(?P<other>.+)$")
SHARED = re.compile(r"shared(?P<seed>[0-9]+)(?P<again>_again)?$")
NOT_OF_ONE_SAE = ("seeds", "one_pass", "tensorboard", "models", "hookpoints", "anchored", "anchored_rate")
"""Keys of the config's `saes` block that are not settings of a single SAE."""
SAME_IN_ONE_PASS = ("corpora", "n_tokens", "batch_tokens", "max_norm_ratio", "checkpoint_steps")
"""Settings that decide the batches. All SAEs of one pass see the same batches."""
KEPT = ("architecture", "expansion_factor", "k", "matryoshka_fractions", "target_l0", "sparsity_coefficient")
"""Settings that an SAE has from the one that it starts from, unless the config gives the SAE or its model others."""
FROM_START = ("architecture", "k", "target_l0")
"""Those of them that only the files of an imported SAE tell."""


class SaeName(NamedTuple):
    """One SAE of one model; `{model}.{sae}` in names of pairs."""

    model: str
    sae: str

    def __str__(self) -> str:
        return f"{self.model}.{self.sae}"

    @classmethod
    def parse(cls, name: str) -> "SaeName":
        """The SAE of a name `{model}.{sae}`. Names of models hold no dots."""
        model, _, sae = name.partition(".")
        return cls(model, sae)


class SaeNames:
    """The SAEs of a config by name, with their settings."""

    def __init__(self, config: Mapping, graph: Graph):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: with `saes` and `corpora`, defaults filled in.
            graph: its models.
        """
        self._saes: Mapping = config["saes"]
        self._lineage: Mapping = config["lineage"]
        self._corpora = list(config["corpora"])
        self._graph = graph

        self._kept: dict[SaeName, dict] = {}

    @property
    def seeds(self) -> list[int]:
        """The seeds; each model has an SAE for each."""
        return list(self._saes["seeds"])

    @property
    def seed_names(self) -> list[str]:
        """Names of the SAEs that have a random stream of their own."""
        return [f"seed{seed}" for seed in self.seeds]

    def of_seeds(self, model: str) -> list[SaeName]:
        """The SAEs of one model that have a random stream of their own."""
        return [SaeName(model, name) for name in self.seed_names]

    @cached_property
    def imported(self) -> list[SaeName]:
        """The SAEs that are imported instead of trained."""
        candidates = [sae for model in self._graph.models for sae in self.of_seeds(model)]
        return [sae for sae in candidates if self.settings(*sae).get("import")]

    def anchor(self, model: str, budget: str = "") -> SaeName:
        """A model's SAE in the chain in which each SAE starts from the parent's, or from the average of two parents'.

        Args:
            model: the model. A root model has the SAE of the first seed.
            budget: `@{n}` for SAEs trained on n tokens.
        """
        line = self._graph.parents(model)
        return SaeName(model, f"from_{'+'.join(line)}{budget}") if line else self.of_seeds(model)[0]

    def second_anchor(self, model: str) -> SaeName:
        """A model's SAE in the chain that begins with the root's second seed."""
        line = self._graph.parents(model)
        return SaeName(model, f"second_{'+'.join(line)}") if line else self.of_seeds(model)[1]

    def starts(self, sae: SaeName) -> list[SaeName]:
        """The SAEs that an SAE starts from (their average), or none if it starts at random."""
        if stage := STAGE.match(sae.sae):
            return [self._stage_start(sae.model, stage["legs"], stage["other"])]
        models, budget = started_from(sae.sae)
        if sae.sae.startswith("second_"):
            return [self.second_anchor(model) for model in models]
        return [self.anchor(model, budget) for model in models]

    def _stage_start(self, model: str, legs: str, other: str) -> SaeName:
        """The SAE that a two-step SAE starts from: the parent's, or that of the first leg."""
        of_legs = {
            "data": self.anchor(model),
            "model": self.anchor(other),
            "data+model": SaeName(other, f"data_{model}"),
            "model+data": SaeName(model, f"model_{other}"),
        }
        return of_legs[legs]

    def stage_corpora(self, child: str) -> list[str]:
        """The text of a model in two-step SAEs: what `lineage.stages` says, or what it was trained on if known."""
        stages = self._lineage["stages"]
        given = stages.get(child) if isinstance(stages, Mapping) else None
        return list(given) if given else self._graph.training_corpora(child)

    def _stage_text(self, model: str, legs: str, other: str) -> list[str]:
        """The corpora that a two-step SAE is trained on: the child's text, or the parent's before the step `data`."""
        if legs == "model":
            return self._graph.mixture(other)
        return self.stage_corpora(other if legs == "data" else model)

    def settings(self, model: str, sae: str) -> dict:
        """The settings of one SAE: the stage's, overridden by the model's, then `saes.anchored`, then the SAE's own.

        An SAE that starts from another has the architecture and sparsity of that one in place of the stage's, and
        `anchored_rate` times the learning rate unless it is given one. If the SAE that it starts from is imported, only
        its files tell architecture and sparsity: `from_start` then lists the keys that training takes from it.
        """
        of_model = self._of_model(model)
        name, stage = SaeName(model, sae), STAGE.match(sae)
        budget = started_from(sae)[1]
        overrides = {key: value for key, value in of_model.items() if not ONE_SAE.match(key)}
        is_anchored = bool(self.starts(name))
        own = (self._saes["anchored"] if is_anchored else {}) | of_model.get(sae, {})
        overrides |= own
        settings = {key: value for key, value in self._saes.items() if key not in NOT_OF_ONE_SAE}
        settings |= self._kept_by(name, overrides) | overrides
        if is_anchored and "learning_rate" not in own:
            settings["learning_rate"] *= self._saes["anchored_rate"]
        if not sae.startswith("seed"):
            settings["import"] = None
        if budget:
            settings["n_tokens"] = int(budget.removeprefix("@"))
        if sae.startswith("reset_"):
            settings["reset_share"] = self._lineage["reset_share"]
        by_mixture = sae.startswith("own")
        settings["corpora"] = self._graph.mixture(model) if by_mixture else settings["corpora"] or list(self._corpora)
        if stage:
            settings["corpora"] = self._stage_text(model, stage["legs"], stage["other"])
        return settings | self._streams(model, sae, settings["shuffle_seed"])

    def _of_model(self, model: str) -> Mapping:
        """The overrides of a model; a twin has those of the model that it repeats too, apart from imports."""
        own, of = self._saes["models"].get(model, {}), self._graph.twin_of(model)
        repeated = self._saes["models"].get(of, {}) if of else {}
        return _without_import(repeated) | own

    def _kept_by(self, sae: SaeName, overrides: Mapping) -> dict:
        """The settings that an SAE has from the one that it starts from; none if it starts at random."""
        starts = self.starts(sae)
        if not starts:
            return {}
        first = starts[0]
        if first not in self._kept:  # chains are as long as the lineage is deep
            of_start = self.settings(*first)
            from_start = FROM_START if first in self.imported else of_start.get("from_start", ())
            self._kept[first] = {key: of_start[key] for key in KEPT if key in of_start}
            self._kept[first]["from_start"] = list(from_start)
        kept = dict(self._kept[first])
        given = {*overrides, *(["target_l0"] if "sparsity_coefficient" in overrides else [])}
        kept["from_start"] = [key for key in kept["from_start"] if key not in given]
        if not kept["from_start"]:
            del kept["from_start"]
        return kept

    def _streams(self, model: str, sae: str, shuffle_seed: int | None) -> dict:
        """The seeds of an SAE's initialisation and of its order of tokens."""
        if shared := SHARED.match(sae):
            again = stream_seed(model, sae) if shared["again"] else shuffle_seed
            return {"seed": int(shared["seed"]), "shuffle_seed": again}
        if sae in self.seed_names and self._saes["one_pass"] and shuffle_seed is None:
            shuffle_seed = stream_seed(model, self.seed_names[0].removeprefix("seed"))
        return {"seed": stream_seed(model, sae.removeprefix("seed")), "shuffle_seed": shuffle_seed}


def _without_import(overrides: Mapping) -> dict:
    """A model's overrides without `import`, on the model or on one of its SAEs."""
    inner = {key: _without_import(value) if ONE_SAE.match(key) else value for key, value in overrides.items()}
    return {key: value for key, value in inner.items() if key != "import"}


def started_from(sae: str) -> tuple[list[str], str]:
    """The models whose SAEs an SAE starts from, and its budget (`@{n}` or empty), both read off its name."""
    kind, _, rest = sae.partition("_")
    names, at, n_tokens = rest.partition("@")
    return (names.split("+"), at + n_tokens) if kind in ("from", "second", "reset") else ([], "")


def stream_seed(model: str, stream: str) -> int:
    """A 32-bit seed that differs between models, so that no two share an initialisation by accident."""
    return int.from_bytes(hashlib.sha256(f"{model}/{stream}".encode()).digest()[:4], "big")


def shard_names(n_shards: int) -> list[str]:
    """Names of shards: `00000-of-00002`, `00001-of-00002` ..."""
    return [f"{shard:05d}-of-{n_shards:05d}" for shard in range(n_shards)]
