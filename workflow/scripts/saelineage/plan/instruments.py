"""Instruments: which SAE of a parent is compared with which SAE of its child. One table, `INSTRUMENTS`.

The schema's list of instruments, the table of docs/reading.md and the page's sentences are checked against this table.
"""

from typing import NamedTuple


class Instrument(NamedTuple):
    """One way of choosing the two SAEs of an edge."""

    child_sae: str
    """A phrase that completes "the child's SAE ..."."""
    no_change: str
    """A phrase for the comparison with an unchanged model."""
    stem: str | None = None
    """Names of SAEs are this and a seed. None if the child's SAE starts from the parent's."""
    budget: str = ""
    """End of the names of SAEs that start from the parent's: `@{n}` if they are trained on n tokens."""

    @property
    def is_anchored(self) -> bool:
        """True if the child's SAE starts from the parent's."""
        return self.stem is None


INSTRUMENTS = {
    "anchored": Instrument(
        "starts from the parent's, along the whole lineage; a merge's starts from the average of its parents'",
        "the parent treated as its own child, on its own tokens in another order",
    ),
    "independent": Instrument("is trained from a seed of its own", "two seeds of one model", stem="seed"),
    "frozen": Instrument(
        "is the root's, read on the child without training, so nothing can emerge",
        "the parent treated as its own child",
        budget="@0",
    ),
    "same_init": Instrument(
        "has the parent's initialisation and order of tokens, as in the original study",
        "the same initialisation with another order of tokens",
        stem="shared",
    ),
    "own_mixture": Instrument(
        "is trained from a seed of its own on the corpora of its model and the model's ancestors",
        "two seeds of one model",
        stem="own",
    ),
}


def instrument(name: str) -> Instrument:
    """Look up an instrument. `anchored@{n}` is `anchored` with SAEs trained on n tokens (`lineage.budgets`)."""
    base, at, n_tokens = name.partition("@")
    return INSTRUMENTS[base]._replace(budget=at + n_tokens) if at else INSTRUMENTS[base]


def shares_numbers(name: str) -> bool:
    """Whether an instrument's SAEs come from one another, so that a latent keeps its number."""
    return name == "frozen" or instrument(name).is_anchored
