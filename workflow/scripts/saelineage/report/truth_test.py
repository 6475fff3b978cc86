"""What each instrument sees of true changes, which no run can tell: measured on models whose change is known.

`python -m benchmarks.truth` prints the counts as `fitness`; docs/benchmarks.md has them with their intervals.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Seen(NamedTuple):
    """Identified features of organisms that changed and are not called persisting (inherited), of how many."""

    lost: tuple[int, int]
    new: tuple[int, int]


MEASURED: Mapping[str, Seen] = MappingProxyType(
    {
        "anchored": Seen((73, 74), (15, 16)),
        "independent": Seen((72, 74), (16, 16)),
        "frozen": Seen((74, 74), (1, 16)),
    }
)
"""By instrument; those that are not here were not tried."""


def sensitivity(instrument: str) -> str:
    """The sentence that says what an instrument sees."""
    if instrument not in MEASURED:
        return "The controls show what the instrument leaves alone; what it detects was not measured."
    (lost, n_lost), (new, n_new) = MEASURED[instrument]
    return (
        "The controls show what the instrument leaves alone. What it detects was measured on models whose change is "
        f"known: of identified features, {lost} of {n_lost} that were lost and {new} of {n_new} that are new."
    )
