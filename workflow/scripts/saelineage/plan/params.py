"""The settings that jobs get as params: the part of the config that the job uses, so that no other edit reruns it."""

from collections.abc import Iterable

from saelineage.plan.comparisons import Pair, pair_name
from saelineage.plan.contents import Contents
from saelineage.plan.crosscoders import CrosscoderName
from saelineage.plan.paths import Wildcards, is_shifted
from saelineage.plan.sae_names import SaeName


def partner_names(pairs: Iterable[Pair]) -> list[str]:
    """Names of the SAEs on side b of some pairs."""
    return [str(b) for _, b in pairs]


def _pair(wildcards: Wildcards) -> str:
    """The name of the two models of a job."""
    return f"{wildcards.parent}__{wildcards.child}"


class Params:
    """Functions of a job's wildcards."""

    def __init__(self, contents: Contents):
        """Keep the contents of the run, from which settings are looked up."""
        self._contents = contents

    def corpus(self, wildcards: Wildcards) -> dict:
        """The settings of a corpus."""
        return self._contents.config["corpora"][wildcards.corpus]

    def max_tokens(self, wildcards: Wildcards) -> int | None:
        """Most tokens of a split; None for all."""
        return self._contents.config["tokens"]["max_tokens"][wildcards.split]

    def max_document_share(self, wildcards: Wildcards) -> float | None:
        """Most of a split's tokens that one document may give; None for train splits, which take documents whole."""
        return None if wildcards.split == "train" else self._contents.config["tokens"]["max_document_share"]

    def model(self, wildcards: Wildcards) -> dict:
        """The settings by which a model is made, with the steps at which others are kept of it, if there are any."""
        graph = self._contents.graph
        steps = graph.kept_steps(wildcards.model)
        return graph.settings(wildcards.model) | ({"keep_steps": steps} if steps else {})

    def merge(self, wildcards: Wildcards) -> dict:
        """The settings of a merge."""
        return self._contents.graph.merge(wildcards.model)

    def chosen_on(self, wildcards: Wildcards) -> list[str]:
        """The corpora by which settings of a merge are chosen."""
        return self._contents.chosen_on(wildcards.model)

    def kept_step(self, wildcards: Wildcards) -> int:
        """The step of its training at which a model is kept."""
        return self._contents.graph.block(wildcards.model)["step"]

    def parent_names(self, wildcards: Wildcards) -> list[str]:
        """What the parent of a model with an adapter is called."""
        return self._contents.graph.known_as(self.model(wildcards)["parent"])

    def adapter_base(self, wildcards: Wildcards) -> dict:
        """What the config of an adapter says of the model that it belongs to: its name, and its revision on the hub."""
        graph, parent = self._contents.graph, self.model(wildcards)["parent"]
        settings = graph.settings(parent) if graph.kind(parent) in ("hub", "path") else {}
        name = settings.get("repo") or settings.get("folder") or parent
        return {"base_model_name_or_path": name, "revision": settings.get("revision")}

    def edges_of_model(self, wildcards: Wildcards) -> list[list[str]]:
        """Parent and child of every edge from or to a model."""
        return [list(edge) for edge in self._contents.graph.edges_of(wildcards.model)]

    def model_seed(self, wildcards: Wildcards) -> int:
        """The seed of a re-initialised model."""
        return self.model(wildcards)["seed"]

    def hookpoint(self, wildcards: Wildcards) -> str:
        """The place of a hookpoint in the model."""
        return self._contents.hookpoints[wildcards.hookpoint]

    def sae(self, wildcards: Wildcards) -> dict[str, dict]:
        """The settings of one SAE that is trained, by its name."""
        return {wildcards.sae: self._contents.saes.settings(wildcards.model, wildcards.sae)}

    def saes(self, wildcards: Wildcards) -> dict[str, dict]:
        """The settings of all SAEs of a model that are trained in one pass, by their names."""
        return {name: self._contents.saes.settings(wildcards.model, name) for name in self._contents.saes.seed_names}

    def measured_saes(self, wildcards: Wildcards) -> list[str]:
        """Names of a model's SAEs whose quality is measured."""
        return [sae.sae for sae in self._contents.comparisons.measured_saes if sae.model == wildcards.model]

    def crosscoder(self, wildcards: Wildcards) -> dict:
        """The models of a crosscoder and its settings."""
        crosscoders, name = self._contents.crosscoders, CrosscoderName(wildcards.group, wildcards.seed)
        return {"models": crosscoders.groups[name.group], "settings": crosscoders.settings(name)}

    def crosscoder_models(self, wildcards: Wildcards) -> list[str]:
        """The models of a crosscoder."""
        return self._contents.crosscoders.groups[wildcards.group]

    def crosscoder_pairs(self, wildcards: Wildcards) -> list[dict]:
        """The pairs of models that a crosscoder is asked about."""
        return [pair._asdict() for pair in self._contents.crosscoders.asked(wildcards.group)]

    def matched(self, wildcards: Wildcards) -> list[str]:
        """Names of what a crosscoder's latents are matched with: SAEs, and the crosscoder from the first seed."""
        first = self._contents.crosscoders.of_first_seed(CrosscoderName(wildcards.group, wildcards.seed))
        return [*map(str, self._contents.compared_with(wildcards.group)), *(".".join(name) for name in first)]

    def ablated_models(self, wildcards: Wildcards) -> list[str]:
        """The models of a crosscoder that have an edge."""
        return self._contents.crosscoders.on_edges(wildcards.group)

    def exclusivity_rules(self, wildcards: Wildcards) -> dict:
        """The bounds of a crosscoder's verdicts."""
        bounds = self._contents.subset("crosscoder", "nu_error_below", "nu_reconstruction_below", "rotated_below")
        return bounds | self._contents.subset("correlations", "min_firings")

    def difference_sae(self, wildcards: Wildcards) -> dict:
        """The settings of a difference SAE."""
        return self._contents.difference_saes.settings(_pair(wildcards), wildcards.seed)

    def difference_role(self, wildcards: Wildcards) -> str:
        """The role of the two models of a difference SAE."""
        return self._contents.difference_saes.differences[_pair(wildcards)].role

    def sae_import(self, wildcards: Wildcards) -> dict:
        """The source of an imported SAE, and its limits."""
        return self._contents.saes.settings(wildcards.model, wildcards.sae)["import"]

    def max_norm_ratio(self, wildcards: Wildcards) -> float | None:
        """Outlier cut-off of an SAE, as a multiple of the median norm of activations."""
        return self._contents.saes.settings(wildcards.model, wildcards.sae)["max_norm_ratio"]

    def shift(self, wildcards: Wildcards) -> bool:
        """True if side b of a pair is a random control of shifted documents."""
        return is_shifted(wildcards.b)

    def partners(self, wildcards: Wildcards) -> dict[str, bool]:
        """The SAEs that an SAE is correlated with, by name; True for random controls of shifted documents."""
        return {str(sae): is_shifted(sae.sae) for sae in self._contents.comparisons.partners[wildcards.a]}

    def resampled_partners(self, wildcards: Wildcards) -> list[str]:
        """Those of an SAE's partners with which there are intervals over documents."""
        a, comparisons = SaeName.parse(wildcards.a), self._contents.comparisons
        return [str(b) for b in comparisons.partners[wildcards.a] if pair_name((a, b)) in comparisons.resampled]

    def no_change_partners(self, wildcards: Wildcards) -> list[str]:
        """The SAEs on side b of the pairs behind `Paths.own_no_change`, in the same order."""
        return partner_names(self._contents.comparisons.leading_no_change_pairs(wildcards.model))

    def sweep_corpora(self, wildcards: Wildcards) -> list[str]:
        """The corpora of a sweep."""
        return self._contents.sweep_corpora(wildcards.sweep)

    def swept_merges(self, wildcards: Wildcards) -> list[dict]:
        """The settings of each merge of a sweep."""
        return self._contents.swept_merges(wildcards.sweep)

    def followed_parents(self, wildcards: Wildcards) -> list[str]:
        """The models whose features are followed through a sweep."""
        return self._contents.followed_parents(wildcards.sweep)

    def parents_with_edges(self, wildcards: Wildcards) -> list[str]:
        """Those with an edge to the merge."""
        return self._contents.parents_with_edges(wildcards.sweep)

    def followed_origins(self, wildcards: Wildcards) -> list[list[str]]:
        """The edges to the followed parents from their own parents, as two names."""
        return list(map(list, self._contents.followed_origins(wildcards.sweep)))

    def sweep_criterion(self, wildcards: Wildcards) -> str:
        """What makes a point of a sweep the best one."""
        return self._contents.config["sweeps"][wildcards.sweep]["best_by"]

    def sweep_over(self, wildcards: Wildcards) -> list[str]:
        """The settings that a sweep varies."""
        return list(self._contents.config["sweeps"][wildcards.sweep]["over"])
