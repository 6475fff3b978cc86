"""The difference SAEs of a run: the pairs of models whose difference each reads, and its settings."""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from saelineage.plan.comparisons import Comparisons
from saelineage.plan.crosscoders import OF_EDGE
from saelineage.plan.graph import CONTINUED, Edge, Graph
from saelineage.plan.sae_names import NOT_OF_ONE_SAE, SaeName, stream_seed


class Difference(NamedTuple):
    """Two models whose difference, child - parent, SAEs are trained on."""

    parent: str
    child: str
    """The child of an edge, or the parent trained further on its own corpora (`continued`)."""
    role: str
    """`edge` or `continued`."""

    def __str__(self) -> str:
        return f"{self.parent}__{self.child}"


class DifferenceSaes:
    """The difference SAEs by pair of models and seed; none unless `difference_saes.seeds` has any."""

    def __init__(self, config: Mapping, graph: Graph, comparisons: Comparisons):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: with `difference_saes`, `saes` of one hookpoint and `corpora`, defaults filled in.
            graph: its models.
            comparisons: the leading SAEs of each edge, and those of continued models.
        """
        self._config, self._graph, self._comparisons = config, graph, comparisons

    @property
    def seeds(self) -> list[str]:
        """Names of the seeds."""
        return [f"seed{seed}" for seed in self._config["difference_saes"]["seeds"]]

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The pairs of models by their names: of every edge, and of every parent and its continued models."""
        if not self.seeds:
            return {}
        of_edges = [Difference(*edge, OF_EDGE) for edge in self._graph.edges]
        continued = [
            Difference(edge.parent, model, CONTINUED) for edge in self._graph.edges for model in self._continued(edge)
        ]
        return {str(difference): difference for difference in [*of_edges, *continued]}

    @property
    def models(self) -> list[str]:
        """All models of the pairs."""
        differences = self.differences.values()
        return list(dict.fromkeys(model for pair in differences for model in (pair.parent, pair.child)))

    @property
    def corpora(self) -> list[str]:
        """The corpora that the SAEs are trained on; none without SAEs."""
        return self._training()["corpora"] if self.differences else []

    def compared(self, name: str) -> dict[str, SaeName]:
        """The SAEs to whose directions those of a pair of models are compared.

        Returns:
            `parent` and `child`, the SAEs that verdicts rest on; `unchanged`, a second SAE of the parent, made as its
            no-change control, where there is one.
        """
        difference = self.differences[name]
        parent, child = self._compared(difference)
        unchanged = self._comparisons.no_change_pairs(self._comparisons.leading, difference.parent)
        second = {"unchanged": unchanged[0][1]} if unchanged else {}
        return {"parent": parent, "child": child} | second

    def settings(self, name: str, seed: str) -> dict:
        """The settings of an SAE: those of SAEs at its hookpoint, overridden by `difference_saes.training`."""
        settings, stream = self._training(), stream_seed(f"difference/{name}", seed)
        if settings["shuffle_seed"] is None:
            settings["shuffle_seed"] = stream
        return settings | {"seed": stream}

    def _training(self) -> dict:
        settings = {key: value for key, value in self._config["saes"].items() if key not in NOT_OF_ONE_SAE}
        settings |= {**self._config["difference_saes"]["training"], "import": None}
        settings["corpora"] = settings["corpora"] or list(self._config["corpora"])
        return settings

    def _continued(self, edge: Edge) -> dict[str, dict[str, tuple[SaeName, SaeName]]]:
        return self._comparisons.trained_control_pairs(edge)["continued"]

    def _compared(self, difference: Difference) -> tuple[SaeName, SaeName]:
        """The SAEs of both models of a pair that verdicts, or those of a continued model, rest on."""
        if difference.role == OF_EDGE:
            return self._comparisons.edge_pair(self._comparisons.leading, Edge(difference.parent, difference.child))
        edge = next(edge for edge in self._graph.edges if edge.parent == difference.parent)
        return self._continued(edge)[difference.child]["parent"]
