"""The crosscoders of a run: the models that each reads, the pairs that it is asked about, and its settings."""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from saelineage.plan.comparisons import Comparisons
from saelineage.plan.graph import Edge, Graph
from saelineage.plan.sae_names import NOT_OF_ONE_SAE, stream_seed

CROSSCODER = "crosscoder"
"""Name of the instrument in `lineage.instruments`."""
ERROR_NORM = "error_norm"
"""The value of `crosscoder.loss` that is not the squared error."""
LINEAGE = "lineage"
"""Name of the group of all models."""
OF_EDGE = "edge"
"""Role of an edge's child; other roles are those of controls in its place."""


class CrosscoderName(NamedTuple):
    """One crosscoder: the group of models that it reads, and its seed."""

    group: str
    seed: str


class Asked(NamedTuple):
    """A pair of models that a crosscoder is asked about."""

    edge: str
    """The edge that the pair belongs to."""
    parent: str
    child: str
    """The edge's child, or a control in its place."""
    role: str


class Crosscoders:
    """The crosscoders by name; none unless `lineage.instruments` lists `crosscoder`."""

    def __init__(self, config: Mapping, graph: Graph, comparisons: Comparisons):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: with `crosscoder`, `saes` of one hookpoint, `lineage` and `corpora`, defaults filled in.
            graph: its models.
            comparisons: the controls of each edge.
        """
        self._config, self._graph, self._comparisons = config, graph, comparisons

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The models that are read together, by the name of their group: of all edges, or of each edge."""
        if CROSSCODER not in self._config["lineage"]["instruments"]:
            return {}
        asked = {str(edge): self._asked_on(edge) for edge in self._graph.edges}
        if self._config["crosscoder"]["over"] == LINEAGE:
            asked = {LINEAGE: [pair for pairs in asked.values() for pair in pairs]} if asked else {}
        return {
            group: [model for model in self._graph.ordered if any(model in (pair.parent, pair.child) for pair in pairs)]
            for group, pairs in asked.items()
        }

    @property
    def seeds(self) -> list[str]:
        """Names of the seeds."""
        return [f"seed{seed}" for seed in self._config["crosscoder"]["seeds"]]

    @property
    def names(self) -> list[CrosscoderName]:
        """All crosscoders."""
        return [CrosscoderName(group, seed) for group in self.groups for seed in self.seeds]

    @property
    def ablated(self) -> list[CrosscoderName]:
        """The crosscoders whose latents are ablated: all, if any rows are to be read for it."""
        return [name for name in self.names if self._config["crosscoder"]["ablated_rows"]]

    def asked(self, group: str) -> list[Asked]:
        """The pairs of models that a group's crosscoders are asked about: edges, and parents with controls."""
        edges = [edge for edge in self._graph.edges if group in (LINEAGE, str(edge))]
        return [pair for edge in edges for pair in self._asked_on(edge)]

    def on_edges(self, group: str) -> list[str]:
        """The models of a group that are parent or child of an edge, and not only controls."""
        ends = {model for pair in self.asked(group) if pair.role == OF_EDGE for model in (pair.parent, pair.child)}
        return [model for model in self.groups[group] if model in ends]

    def _asked_on(self, edge: Edge) -> list[Asked]:
        in_place = self._comparisons.in_place_of_child(edge)
        controls = [Asked(str(edge), edge.parent, model, role) for model, role in in_place.items()]
        return [Asked(str(edge), *edge, OF_EDGE), *controls]

    @property
    def first_of_edges(self) -> dict[str, CrosscoderName]:
        """The crosscoder whose verdicts stand beside those of SAEs: of each edge the one of the first seed."""
        of_all = LINEAGE in self.groups
        edges = [str(edge) for edge in self._graph.edges] if self.groups else []
        return {edge: CrosscoderName(LINEAGE if of_all else edge, self.seeds[0]) for edge in edges}

    def of_first_seed(self, name: CrosscoderName) -> list[CrosscoderName]:
        """The crosscoder of the same models from the first seed; none for that one itself."""
        return [] if name.seed == self.seeds[0] else [CrosscoderName(name.group, self.seeds[0])]

    @property
    def corpora(self) -> list[str]:
        """Corpora that a crosscoder is trained on."""
        return list(dict.fromkeys(corpus for name in self.names for corpus in self.settings(name)["corpora"]))

    def settings(self, name: CrosscoderName) -> dict:
        """The settings of a crosscoder: those of SAEs, overridden by `crosscoder.training`."""
        saes, training = self._config["saes"], self._config["crosscoder"]["training"]
        settings = {key: value for key, value in saes.items() if key not in NOT_OF_ONE_SAE}
        settings |= {"architecture": "batchtopk", "import": None} | training
        settings["corpora"] = settings["corpora"] or list(self._config["corpora"])
        seed = stream_seed(f"{CROSSCODER}/{name.group}", name.seed)
        if settings["shuffle_seed"] is None:
            settings["shuffle_seed"] = seed
        annealing = {key: self._config["crosscoder"][key] for key in ("k_start", "k_anneal_fraction")}
        error_norm = self._config["crosscoder"]["loss"] == ERROR_NORM
        return settings | annealing | {"error_norm": error_norm, "seed": seed}
