"""The settings that jobs get as params: the block of the config that a job uses, and nothing else."""

from saelineage.plan.contents import Contents
from saelineage.plan.paths import Wildcards, is_shifted


class Params:
    """Functions of a job's wildcards."""

    def __init__(self, contents: Contents):
        """Compute nothing yet."""
        self._contents = contents

    def corpus(self, wildcards: Wildcards) -> dict:
        """The block of one corpus."""
        return self._contents.config["corpora"][wildcards.corpus]

    def max_tokens(self, wildcards: Wildcards) -> int | None:
        """Tokens that a split is cut off at."""
        return self._contents.config["tokens"]["max_tokens"][wildcards.split]

    def model(self, wildcards: Wildcards) -> dict:
        """The block that says how a model is made."""
        return self._contents.graph.settings(wildcards.model)

    def model_seed(self, wildcards: Wildcards) -> int:
        """The seed of a re-initialised model."""
        return self.model(wildcards)["seed"]

    def sae(self, wildcards: Wildcards) -> dict[str, dict]:
        """The settings of the SAE that is trained, by its name."""
        return {wildcards.sae: self._contents.saes.settings(wildcards.model, wildcards.sae)}

    def saes(self, wildcards: Wildcards) -> dict[str, dict]:
        """The settings of all SAEs of a model that are trained off one pass, by their names."""
        return {name: self._contents.saes.settings(wildcards.model, name) for name in self._contents.saes.seed_names}

    def sae_import(self, wildcards: Wildcards) -> dict:
        """Where an SAE is taken over from."""
        return self._contents.saes.settings(wildcards.model, wildcards.sae)["import"]

    def max_norm_ratio(self, wildcards: Wildcards) -> float | None:
        """Outlier cut-off of an SAE, as a multiple of the median norm of activations."""
        return self._contents.saes.settings(wildcards.model, wildcards.sae)["max_norm_ratio"]

    def shift(self, wildcards: Wildcards) -> bool:
        """True where side b of a pair is a null of shifted documents."""
        return is_shifted(wildcards.b)

    def sweep_coefficients(self, wildcards: Wildcards) -> list[float]:
        """The coefficients of a sweep."""
        return self._contents.config["sweeps"][wildcards.sweep]["t"]

    def sweep_dtype(self, wildcards: Wildcards) -> str | None:
        """The number format of the swept merge."""
        return self._contents.graph.settings(self._contents.swept_model(wildcards.sweep))["dtype"]

    def sweep_method(self, wildcards: Wildcards) -> str:
        """The method of the swept merge."""
        return self._contents.graph.settings(self._contents.swept_model(wildcards.sweep))["method"]
