"""Names of SAEs, and what a name says: where training starts, from which seed, with which settings.

- `seed{n}` has a random stream of its own.
- `shared{n}` has one that all models share; `shared{n}_again` is that one with another order of tokens.
- `own{n}` is trained on the corpora of its model and the model's ancestors.
- `from_{model}` starts from that model's SAE, `from_{model}+{model}` from the average of two. After an `@` stands the
  number of tokens it is trained on, where that is not `saes.anchored.n_tokens`.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from saelineage.plan.graph import Graph

ONE_SAE = re.compile(r"(seed|shared|own)[0-9]|from_")
"""How keys of `saes.models.{model}` begin that are names of SAEs."""
SHARED = re.compile(r"shared(?P<seed>[0-9]+)(?P<again>_again)?$")
NOT_OF_ONE_SAE = ("seeds", "one_pass", "tensorboard", "models", "anchored")
"""Keys of the config's `saes` block that are no settings of a single SAE."""
SAME_IN_ONE_PASS = ("corpora", "n_tokens", "batch_tokens", "max_norm_ratio", "checkpoint_steps")
"""Settings that decide the batches, which all SAEs of a pass see."""


class SaeName(NamedTuple):
    """One SAE of one model; `{model}.{sae}` in names of pairs."""

    model: str
    sae: str

    def __str__(self) -> str:
        return f"{self.model}.{self.sae}"


class SaeNames:
    """The SAEs of a config by name, with their settings."""

    def __init__(self, config: Mapping, graph: Graph):
        """Compute nothing yet.

        Args:
            config: with `saes` and `corpora`, defaults filled in.
            graph: its models.
        """
        self._saes: Mapping = config["saes"]
        self._corpora = list(config["corpora"])
        self._graph = graph

    @property
    def seeds(self) -> list[int]:
        """The seeds that each model has an SAE for."""
        return list(self._saes["seeds"])

    @property
    def seed_names(self) -> list[str]:
        """Names of the SAEs that are trained from seeds of their own."""
        return [f"seed{seed}" for seed in self.seeds]

    def of_seeds(self, model: str) -> list[SaeName]:
        """The SAEs of one model that are trained from seeds of their own."""
        return [SaeName(model, name) for name in self.seed_names]

    @cached_property
    def imported(self) -> list[SaeName]:
        """The SAEs that somebody else trained."""
        candidates = [sae for model in self._graph.models for sae in self.of_seeds(model)]
        return [sae for sae in candidates if self.settings(*sae).get("import")]

    def anchor(self, model: str, budget: str = "") -> SaeName:
        """A model's SAE in the chain of SAEs that start from the parents'; a merge's from the average of its parents'.

        Args:
            model: its model; one without parents has the SAE of the first seed.
            budget: `@{n}` for SAEs trained on n tokens.
        """
        line = self._graph.parents(model)
        return SaeName(model, f"from_{'+'.join(line)}{budget}") if line else self.of_seeds(model)[0]

    def starts(self, sae: str) -> list[SaeName]:
        """The SAEs whose average an SAE's training starts from; none where it starts at random."""
        models, budget = started_from(sae)
        return [self.anchor(model, budget) for model in models]

    def settings(self, model: str, sae: str) -> dict:
        """The settings of one SAE: the stage's, overridden by the model's, by its way of starting, and by its own."""
        of_model = self._saes["models"].get(model, {})
        models, budget = started_from(sae)
        settings = {key: value for key, value in self._saes.items() if key not in NOT_OF_ONE_SAE}
        settings |= {key: value for key, value in of_model.items() if not ONE_SAE.match(key)}
        settings |= (self._saes["anchored"] if models else {}) | of_model.get(sae, {})
        if not sae.startswith("seed"):
            settings["import"] = None
        if budget:
            settings["n_tokens"] = int(budget.removeprefix("@"))
        by_mixture = sae.startswith("own")
        settings["corpora"] = self._graph.mixture(model) if by_mixture else settings["corpora"] or list(self._corpora)
        return settings | self._streams(model, sae, settings["shuffle_seed"])

    def _streams(self, model: str, sae: str, shuffle_seed: int | None) -> dict:
        """The seeds of an SAE's initialisation and of its order of tokens."""
        if shared := SHARED.match(sae):
            again = stream_seed(model, sae) if shared["again"] else shuffle_seed
            return {"seed": int(shared["seed"]), "shuffle_seed": again}
        if sae in self.seed_names and self._saes["one_pass"] and shuffle_seed is None:
            shuffle_seed = stream_seed(model, self.seed_names[0].removeprefix("seed"))
        return {"seed": stream_seed(model, sae.removeprefix("seed")), "shuffle_seed": shuffle_seed}


def started_from(sae: str) -> tuple[list[str], str]:
    """The models whose SAEs an SAE starts from by its name, and its budget (`@{n}`, or nothing)."""
    names, at, n_tokens = sae.removeprefix("from_").partition("@")
    return (names.split("+"), at + n_tokens) if sae.startswith("from_") else ([], "")


def stream_seed(model: str, stream: str) -> int:
    """A 32-bit seed that differs between models, so that no two start from one initialisation by accident."""
    return int.from_bytes(hashlib.sha256(f"{model}/{stream}".encode()).digest()[:4], "big")


def shard_names(n_shards: int) -> list[str]:
    """`00000-of-00002`, `00001-of-00002` ..."""
    return [f"{shard:05d}-of-{n_shards:05d}" for shard in range(n_shards)]
