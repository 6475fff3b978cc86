"""The order in which dumps are made and used, where they are not kept: one model at a time.

A dump job takes all of the resource `dumps`, and a training one unit, so that neither begins while the other runs; and
a training that is ready goes before any dump. So a dump begins when no training is running or ready, that is, when all
SAEs of the models before are trained and their dumps deleted. Dumps come in the order of the lineage, because SAEs
start from those of parents.
"""

from saelineage.plan.contents import Contents
from saelineage.plan.paths import Wildcards

RESOURCE = "dumps"
ALL = 100
"""Units of the resource that there are."""


class Turns:
    """Priorities and shares of the resource. All are 0 if dumps are kept."""

    def __init__(self, contents: Contents):
        """Compute nothing yet."""
        self._contents = contents

    @property
    def _are_taken(self) -> bool:
        return self._contents.config["activations"]["keep"] is False

    @property
    def of_dump(self) -> int:
        """Units that a dump takes."""
        return ALL if self._are_taken else 0

    @property
    def of_training(self) -> int:
        """Units that a training takes."""
        return 1 if self._are_taken else 0

    def dump_priority(self, wildcards: Wildcards) -> int:
        """The priority of a model's dump: the higher the earlier the model is in the lineage."""
        ordered = self._contents.graph.ordered
        return len(ordered) - ordered.index(wildcards.model) if self._are_taken else 0

    @property
    def training_priority(self) -> int:
        """The priority of trainings: above that of any dump."""
        return len(self._contents.graph.models) + 1 if self._are_taken else 0
