"""The SAEs that one SAE's features are correlated with, and their shards."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from saelineage.features.shards import FeatureShard, shifted


class Partner(NamedTuple):
    """An SAE that the features of side a are correlated with."""

    name: str
    """`{model}.{sae}`; a random control's name includes its suffix."""
    shift: bool
    """True for the random control whose documents are shifted against those of side a."""
    paths: list[tuple[str, str]]
    """Pairs of feature shards of the same tokens, of side a and of this SAE."""

    def shards(self) -> Iterator[tuple[FeatureShard, FeatureShard]]:
        """Load the shards of both sides, one pair at a time."""
        for path_to_a, path_to_b in self.paths:
            yield FeatureShard(path_to_a), self._own(path_to_b)

    def _own(self, path: str) -> FeatureShard:
        """Load a shard of this SAE."""
        return shifted(FeatureShard(path)) if self.shift else FeatureShard(path)


def partners_of(a: Sequence[str], b: Sequence[str], shifts: Mapping[str, bool]) -> list[Partner]:
    """The partners of an SAE.

    Args:
        a: feature shards of the SAE.
        b: feature shards of all partners, one partner after the other, each in the order of `a`.
        shifts: `Partner.shift` by the partners' names, in the order of `b`.
    """
    starts = range(0, len(b), len(a))
    return [
        Partner(name, shift, list(zip(a, b[start : start + len(a)], strict=True)))
        for (name, shift), start in zip(shifts.items(), starts, strict=True)
    ]
