"""The SAEs that one job trains while it reads their model (`activations.keep: stream`), and the order of its tokens.

A model's SAEs are trained by one job, a *part*, for each

- depth: SAEs that start from another SAE of the same model are trained after it, from a second reading;
- order of tokens: `shared` SAEs have one order for all models, their `_again` another, and `shuffle_seed` names one;
- set of corpora.

A part's name says these, as far as they are not the usual ones: `1`, `2`, `1-shared`, `1-on-lua`.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from saelineage.plan.contents import Contents
from saelineage.plan.paths import Wildcards
from saelineage.plan.sae_names import SHARED, SaeName, stream_seed

LONGEST = 80
"""Most characters in a part's name; longer ones end in a digest."""


class Part(NamedTuple):
    """What the SAEs of one job have in common."""

    depth: int
    order: str
    corpora: tuple[str, ...]
    """None stand for all."""

    def __str__(self) -> str:
        pieces = [
            str(self.depth),
            *filter(None, [self.order]),
            *(["on", "+".join(self.corpora)] if self.corpora else []),
        ]
        name = "-".join(pieces)
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest}"

    def seed(self, model: str) -> int:
        """The seed of the order of tokens."""
        if self.order.startswith(SHUFFLED):
            return int(self.order.removeprefix(SHUFFLED))
        return stream_seed("" if self.order == "shared" else model, f"stream/{self}")


SHUFFLED = "shuffled-"
"""Beginning of the names of orders by `shuffle_seed`."""


class Streams:
    """The parts of all models."""

    def __init__(self, places: Mapping[str, Contents]):
        """Compute nothing yet.

        Args:
            places: the contents of the run at each hookpoint.
        """
        self._places = places
        self._depths: dict[tuple[str, SaeName], int] = {}  # a line of starts can be as long as the lineage is deep

    def part(self, hookpoint: str, sae: SaeName) -> Part:
        """The part that trains an SAE."""
        contents = self._places[hookpoint]
        settings = contents.saes.settings(*sae)
        chosen = tuple(name for name in contents.config["corpora"] if name in settings["corpora"])
        is_all = len(chosen) == len(contents.config["corpora"])
        return Part(self._depth(hookpoint, sae), _order(sae, settings), () if is_all else chosen)

    def _depth(self, hookpoint: str, sae: SaeName) -> int:
        """1, and 1 more for each start of the same model in the line of starts.

        It never falls along that line, so that no two parts wait for each other.
        """
        if (hookpoint, sae) not in self._depths:
            starts = self._places[hookpoint].saes.starts(sae)
            depths = [self._depth(hookpoint, start) + (start.model == sae.model) for start in starts]
            self._depths[hookpoint, sae] = max(depths, default=1)
        return self._depths[hookpoint, sae]

    @cached_property
    def _members(self) -> dict[tuple[str, str], dict[str, list[SaeName]]]:
        members: dict[tuple[str, str], dict[str, list[SaeName]]] = {}
        for hookpoint, contents in self._places.items():
            for sae in contents.comparisons.trained_saes:
                of_part = members.setdefault((sae.model, str(self.part(hookpoint, sae))), {})
                of_part.setdefault(hookpoint, []).append(sae)
        return members

    @property
    def names(self) -> list[str]:
        """The names of all parts."""
        return list(dict.fromkeys(part for _, part in self._members))

    def members(self, wildcards: Wildcards) -> dict[str, list[SaeName]]:
        """The SAEs of a part by hookpoint."""
        return self._members[wildcards.model, wildcards.part]

    def settings(self, wildcards: Wildcards) -> dict[str, dict[str, dict]]:
        """The settings of the SAEs of a part, by hookpoint and name."""
        return {
            hookpoint: {sae.sae: self._places[hookpoint].saes.settings(*sae) for sae in saes}
            for hookpoint, saes in self.members(wildcards).items()
        }

    def starts(self, wildcards: Wildcards) -> dict[str, dict[str, list[SaeName]]]:
        """The SAEs from which those of a part start, by hookpoint and name."""
        return {
            hookpoint: {sae.sae: self._places[hookpoint].saes.starts(sae) for sae in saes}
            for hookpoint, saes in self.members(wildcards).items()
        }

    def hookpoints(self, wildcards: Wildcards) -> dict[str, str]:
        """The places that a part reads, by the names of the hookpoints."""
        return {hookpoint: self._places[hookpoint].place for hookpoint in self.members(wildcards)}

    def corpora(self, wildcards: Wildcards) -> list[str]:
        """The corpora that a part reads."""
        hookpoint, (first, *_) = next(iter(self.members(wildcards).items()))
        return list(self.part(hookpoint, first).corpora) or list(self._places[hookpoint].config["corpora"])

    def seed(self, wildcards: Wildcards) -> int:
        """The seed of the order of a part's tokens."""
        hookpoint, (first, *_) = next(iter(self.members(wildcards).items()))
        return self.part(hookpoint, first).seed(wildcards.model)


def _order(sae: SaeName, settings: Mapping) -> str:
    """The order of an SAE's tokens; empty for that of its part."""
    if shared := SHARED.match(sae.sae):
        return "again" if shared["again"] else "shared"
    return "" if settings["shuffle_seed"] is None else f"{SHUFFLED}{settings['shuffle_seed']}"
