"""The contents of a run: models, SAEs and the comparisons between them."""

from functools import cached_property

from saelineage.plan.comparisons import Comparisons, Pair
from saelineage.plan.graph import Graph
from saelineage.plan.sae_names import SaeNames


class Contents:
    """What a config describes, before any path or need.

    Attributes:
        config: the config with every default filled in, for rules that pass a block of it on.
        graph: the models and their edges.
        saes: the SAEs and their settings.
        comparisons: the pairs of SAEs that are compared.
    """

    def __init__(self, config: dict):
        """Compute nothing yet.

        Args:
            config: as `config.load_config` gives it.
        """
        self.config = config
        self.graph = Graph(config)
        self.saes = SaeNames(config, self.graph)
        self.comparisons = Comparisons(config, self.graph, self.saes)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config["run"]

    @property
    def has_explanations(self) -> bool:
        """True where features are explained by a language model."""
        return "explanations" in self.config["labels"]

    @property
    def module(self) -> str:
        """The module at which activations are read, without its side."""
        return self.config["activations"]["hookpoint"].rpartition(".")[0]

    @cached_property
    def root_seed_pairs(self) -> list[Pair]:
        """For each model without parents, its SAE that verdicts rest on and another of it, where it has one."""
        return [pair for model in self.graph.roots for pair in self.comparisons.other_pairs(model)[:1]]

    def subset(self, block: str, *keys: str) -> dict:
        """Some keys of a block of the config: the params of a rule that reads these and nothing else."""
        return {key: self.config[block][key] for key in keys}

    def swept_model(self, sweep: str) -> str:
        """The merged model of a sweep."""
        return self.config["sweeps"][sweep]["model"]
