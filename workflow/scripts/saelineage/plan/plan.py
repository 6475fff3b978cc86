"""The plan of a run: the one object that knows what a run consists of."""

import re
from collections.abc import Iterable

from saelineage.plan.comparisons import pair_name
from saelineage.plan.contents import Contents
from saelineage.plan.needs import Needs
from saelineage.plan.params import Params
from saelineage.plan.paths import Paths
from saelineage.plan.sae_names import SaeName


class Plan(Contents):
    """The contents of a run with its paths, params and needs.

    Attributes:
        paths: every path.
        params: the settings that jobs get.
        needs: the memory and time that jobs ask for.
    """

    def __init__(self, config: dict):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: as `config.load_config` gives it.
        """
        super().__init__(config)
        self.paths = Paths(self)
        self.params = Params(self)
        self.needs = Needs(self)

    # Constraints on wildcards.

    def trained_alone(self) -> str:
        """A constraint on {model} in .../{model}/{sae}/...: SAEs that each have a training job of their own."""
        together = self.saes.seed_names if self.config["saes"]["one_pass"] else []
        return models_followed_by(sae for sae in self.comparisons.trained_saes if sae.sae not in together)

    def trained_together(self) -> str:
        """A constraint on {model}: models whose SAEs are all trained by one job."""
        return any_of(self.graph.models if self.config["saes"]["one_pass"] else [])

    # Jobs that need the network run on the machine of Snakemake itself, because compute nodes often have none.

    def fetches_corpora(self) -> bool:
        """True if any corpus comes from the hub."""
        return any(map(needs_hub, self.config["corpora"].values()))

    def fetches_tokenizer(self) -> bool:
        """True if the tokenizer comes from the hub."""
        return needs_hub(self.config["tokenizer"])

    def fetches_models(self) -> bool:
        """True if any model comes from the hub."""
        return any("hub" in block for block in self.config["models"].values())

    def fetches_adapters(self) -> bool:
        """True if any adapter comes from the hub."""
        return any(needs_hub(self.graph.settings(model)) for model in self.graph.of_kind("adapter"))

    def fetches_saes(self) -> bool:
        """True if any SAE comes from the hub."""
        return any(needs_hub(self.saes.settings(*sae)["import"]) for sae in self.saes.imported)

    def job_shape(self) -> dict:
        """Everything that decides which jobs a run has and how they depend on each other, as JSON-able data."""
        config, graph = self.config, self.graph
        return {
            "corpora": list(config["corpora"]),
            "tokenizer": config["tokenizer"].get("corpora", []),
            "models": {
                model: [graph.kind(model), graph.like(model), graph.parents(model), graph.training_corpora(model)]
                for model in graph.models
            },
            "saes": {str(sae): self.saes.settings(*sae)["corpora"] for sae in self.comparisons.trained_saes},
            "pairs": [pair_name(pair) for pair in self.comparisons.pairs],
            "one_pass": config["saes"]["one_pass"],
            "imported_saes": [str(sae) for sae in self.saes.imported],
            "shards": [config["activations"]["n_shards"], config["activations"]["n_probe_shards"]],
            "lineage": self.subset("lineage", "token_type", "readouts", "ablations"),
            "sweeps": {name: [sweep["model"], sweep.get("corpora")] for name, sweep in config["sweeps"].items()},
        }


def any_of(names: Iterable[object]) -> str:
    """A wildcard constraint that matches exactly these names, or nothing if there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def models_followed_by(saes: Iterable[SaeName]) -> str:
    """A constraint on {model} in .../{model}/{sae}/... that matches exactly these SAEs."""
    return "|".join(f"{re.escape(model)}(?=/{re.escape(sae)}/)" for model, sae in saes) or "(?!)"


def needs_hub(block: dict) -> bool:
    """True if the thing that a block describes is fetched from the hub."""
    return block.get("source") == "hub" or bool(block.get("repo"))
