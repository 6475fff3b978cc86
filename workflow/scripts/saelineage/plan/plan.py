"""The plan of a run: the one object that knows what a run consists of."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TypeVar

from saelineage.plan.comparisons import pair_name
from saelineage.plan.contents import Contents
from saelineage.plan.needs import Needs
from saelineage.plan.params import Params
from saelineage.plan.paths import InputFunction, Paths, Wildcards
from saelineage.plan.sae_names import SaeName
from saelineage.plan.streams import Streams
from saelineage.plan.turns import Turns

T = TypeVar("T")


class Plan(Contents):
    """The contents of a run with its paths, params and needs.

    A run has the same models, SAEs and comparisons at every hookpoint, so one plan describes them all, with
    `{hookpoint}` left open in its paths. What depends on the hookpoint (its place in the model, and the settings and
    imports of its SAEs) is asked of the plan of that hookpoint (`places`).

    Attributes:
        paths: every path.
        params: the settings that jobs get.
        needs: the memory and time that jobs ask for.
        turns: the order in which dumps are made and used.
    """

    def __init__(self, config: dict, hookpoint: str | None = None):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: as `config.load_config` gives it.
            hookpoint: the hookpoint that this is the plan of; None for all together.
        """
        super().__init__(config, hookpoint)
        self.paths = Paths(self, hookpoint)
        self.params = Params(self)
        self.needs = Needs(self)
        self.turns = Turns(self)

    @cached_property
    def parts(self) -> Streams:
        """The SAEs that jobs train together while they read a model."""
        return Streams(self.places)

    @cached_property
    def places(self) -> dict[str, "Plan"]:
        """The plan of each hookpoint."""
        return {hookpoint: Plan(self.config, hookpoint) for hookpoint in self.hookpoints}

    def placed(self, function: Callable[["Plan"], Callable[..., T]]) -> Callable[..., T]:
        """A function of a job's wildcards that is asked of the plan of the job's hookpoint.

        Args:
            function: takes it from a plan, as in `lambda plan: plan.params.sae`.
        """

        def of_job(wildcards: Wildcards, *arguments: object) -> T:  # Snakemake passes what the signature names
            return function(self.places[wildcards.hookpoint])(wildcards, *arguments)

        return of_job

    def at_each(self, function: Callable[["Plan"], InputFunction]) -> InputFunction:
        """An input function that joins those of the plans of all hookpoints, one hookpoint after the other."""
        return lambda wildcards: [path for plan in self.places.values() for path in function(plan)(wildcards)]

    def everything(self) -> list[str]:
        """What `rule all` asks for beside manifests."""
        return list(dict.fromkeys(path for plan in self.places.values() for path in plan.paths.everything()))

    def manifests(self) -> list[str]:
        """The manifest of everything that a run keeps, at all hookpoints."""
        return list(dict.fromkeys(path for plan in self.places.values() for path in plan.paths.manifests()))

    def pages(self) -> dict[str, dict]:
        """For each hookpoint the page, the files that it shows, and the SAEs trained there, as JSON-able data."""
        return {
            hookpoint: {
                "page": plan.paths.own_page,
                "answer": plan.paths.own_answer,
                "files": plan.paths.page_inputs(),
                "trained": [list(sae) for sae in plan.comparisons.trained_saes],
            }
            for hookpoint, plan in self.places.items()
        }

    def page_files(self) -> list[str]:
        """All files that the pages show."""
        pages = self.pages().values()
        return list(dict.fromkeys(path for page in pages for paths in page["files"].values() for path in paths))

    # Jobs that train SAEs while they read a model (activations.keep: stream).

    def stream_rows(self, wildcards: Wildcards) -> list[str]:
        """Token rows that a part's SAEs are trained on."""
        return self.paths.fill(self.paths.token_rows, corpus=self.parts.corpora(wildcards), split="train")

    def stream_starts(self, wildcards: Wildcards) -> list[str]:
        """The folders of the SAEs that a part's SAEs start from."""
        starts = {
            path: None
            for hookpoint, of_hookpoint in self.parts.starts(wildcards).items()
            for saes in of_hookpoint.values()
            for start in saes
            for path in self.places[hookpoint].paths.sae(start)
        }
        return list(starts)

    def stream_start_folders(self, wildcards: Wildcards) -> dict[str, dict[str, list[str]]]:
        """The same by hookpoint and SAE, as folders."""
        return {
            hookpoint: {
                sae: sorted(os.path.dirname(self.places[hookpoint].paths.sae(start)[0]) for start in starts)
                for sae, starts in of_hookpoint.items()
            }
            for hookpoint, of_hookpoint in self.parts.starts(wildcards).items()
        }

    def stream_reading(self, wildcards: Wildcards) -> dict:
        """How a part's job reads its model."""
        activations, config = self.config["activations"], self.config
        return {
            **{key: activations[key] for key in ("max_tokens", "buffer_tokens", "dtype")},
            "batch_rows": config["batch_rows"],
            "seed": self.parts.seed(wildcards),
            "unshared": config["tokens"]["unshared"],
            "model_dtype": config["model_dtype"],
        }

    def own_bundle(self, wildcards: Wildcards) -> list[str]:
        """The archive that an SAE is taken out of."""
        part = str(self.parts.part(wildcards.hookpoint, SaeName(wildcards.model, wildcards.sae)))
        return self.paths.fill(self.paths.sae_bundle, model=wildcards.model, part=part)

    def own_bundle_manifest(self, wildcards: Wildcards) -> list[str]:
        """Its manifest."""
        return list(map(self.paths.manifest, self.own_bundle(wildcards)))

    # Constraints on wildcards.

    def trained_alone(self) -> str:
        """A constraint on {hookpoint} in .../{hookpoint}/{model}/{sae}/...: SAEs that have a training job each."""
        together = self.saes.seed_names if self.config["saes"]["one_pass"] else []
        places = {} if self.streams else self.places
        return followed_by(
            {
                hookpoint: [sae for sae in plan.comparisons.trained_saes if sae.sae not in together]
                for hookpoint, plan in places.items()
            }
        )

    def streamed(self) -> str:
        """A constraint on {hookpoint} in .../{hookpoint}/{model}/{sae}/...: SAEs trained while models are read."""
        places = self.places if self.streams else {}
        return followed_by({hookpoint: plan.comparisons.trained_saes for hookpoint, plan in places.items()})

    def part_names(self) -> str:
        """A constraint on {part}: the groups of a model's SAEs that one job trains."""
        return any_of(self.parts.names if self.streams else [])

    def imported(self) -> str:
        """A constraint on {hookpoint} in .../{hookpoint}/{model}/{sae}/...: SAEs that are imported."""
        return followed_by({hookpoint: plan.saes.imported for hookpoint, plan in self.places.items()})

    def exported(self) -> str:
        """A constraint on {hookpoint} in .../{hookpoint}/{model}/{sae}/{module}/...: each with its own module."""
        modules = zip(self.hookpoints, self.modules, strict=True)
        return "|".join(f"{re.escape(name)}(?=/[^/]+/[^/]+/{re.escape(module)}/)" for name, module in modules)

    def trained_together(self) -> str:
        """A constraint on {model}: models whose SAEs are all trained by one job."""
        return any_of(self.graph.models if self.config["saes"]["one_pass"] and not self.streams else [])

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
        return any(
            needs_hub(plan.saes.settings(*sae)["import"]) for plan in self.places.values() for sae in plan.saes.imported
        )

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
            "saes": {
                hookpoint: {str(sae): plan.saes.settings(*sae)["corpora"] for sae in plan.comparisons.trained_saes}
                for hookpoint, plan in self.places.items()
            },
            "pairs": [pair_name(pair) for pair in self.comparisons.pairs],
            "one_pass": config["saes"]["one_pass"],
            "streams": self.parts.names if self.streams else [],
            "imported_saes": {hookpoint: list(map(str, plan.saes.imported)) for hookpoint, plan in self.places.items()},
            "crosscoders": [list(map(list, self.crosscoders.names)), self.crosscoders.corpora],
            "difference_saes": [list(self.difference_saes.differences), self.difference_saes.seeds],
            "shards": [config["activations"]["n_shards"], config["activations"]["n_probe_shards"]],
            "lineage": self.subset("lineage", "token_type", "readouts", "ablations", "weights"),
            "behaviour": [bool(config["report"]["act"]), bool(config["behaviour"]["samples"])],
            "sweeps": {name: [sweep["model"], sweep.get("corpora")] for name, sweep in config["sweeps"].items()},
        }


def any_of(names: Iterable[object]) -> str:
    """A wildcard constraint that matches exactly these names, or nothing if there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def followed_by(saes: Mapping[str, Iterable[SaeName]]) -> str:
    """A constraint on {hookpoint} in .../{hookpoint}/{model}/{sae}/... that matches exactly these SAEs."""
    return (
        "|".join(
            f"{re.escape(hookpoint)}(?=/{re.escape(model)}/{re.escape(sae)}/)"
            for hookpoint, of_hookpoint in saes.items()
            for model, sae in of_hookpoint
        )
        or "(?!)"
    )


def needs_hub(block: dict) -> bool:
    """True if the thing that a block describes is fetched from the hub."""
    return block.get("source") == "hub" or bool(block.get("repo"))
