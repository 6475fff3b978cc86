"""Every path of a run: patterns for a rule's outputs, and functions of wildcards for its inputs."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Protocol, runtime_checkable

from saelineage.foreign.sae_formats.registry import local_source
from saelineage.plan.comparisons import RANDOM_CONTROLS, Pair, names_in_pair
from saelineage.plan.contents import Contents
from saelineage.plan.crosscoders import CrosscoderName
from saelineage.plan.graph import Edge
from saelineage.plan.merges import sweeps_behind
from saelineage.plan.sae_names import SaeName, shard_names
from saelineage.plan.user_files import find_files

SECTIONS = (
    *("macros", "act", "answer", "change", "changed", "correlations", "features", "flows", "hookpoints", "important"),
    *("instruments", "learnt", "lineage", "losses", "merging", "persisting", "provenance", "saes", "scores"),
    *("steps", "taught", "verdicts"),
)
PAGE_SOURCES = (
    *("page.html.jinja", "making.html.jinja", *(f"sections/{name}.jinja" for name in SECTIONS)),
    *("page.css", "jobs.css", "elements.js", "downloads.js", "explorer.js", "jobs.js", "page.js"),
)
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
SAE_FILES = ("cfg.json", "sae_weights.safetensors")
SPLITS = ("train", "validation", "probe")


@runtime_checkable
class Wildcards(Protocol):
    """The wildcards of a job, as Snakemake gives them."""

    def __getattr__(self, name: str) -> str: ...


InputFunction = Callable[[Wildcards], list[str]]


class Paths:
    """Paths relative to the working directory, as Snakemake has them.

    Attributes are patterns with wildcards. Those of an instance have the name of the run in place of `{run}`: Snakemake
    looks a file's rule up by the constant beginning of its patterns, so planning is faster the longer that is. Methods
    that take `wildcards` are input functions. Where a job reads several corpora and shards, all shards of a corpus come
    before the next corpus.
    """

    documents = "results/{run}/corpora/{corpus}/{split}.parquet"
    corpus_counts = "results/{run}/corpora/{corpus}/counts.json"
    tokenizer = "results/{run}/tokenizer/tokenizer.json"
    tokenizer_config = "results/{run}/tokenizer/tokenizer_config.json"
    token_rows = "results/{run}/tokens/{corpus}/{split}.npy"
    token_classes = "results/{run}/tokens/{corpus}/{split}.classes.npy"
    token_sidecar = "results/{run}/tokens/{corpus}/{split}.json"
    model_file = "results/{run}/models/{model}/{name}"
    merge = "results/{run}/models/{model}/merge.json"
    choice = "results/{run}/models/{model}/choice.json"
    model_weights = "results/{run}/models/{model}/model.safetensors"
    kept_steps = "results/{run}/models/{model}/steps.tar"
    adapter_config = "results/{run}/models/{model}/adapter/adapter_config.json"
    adapter_weights = "results/{run}/models/{model}/adapter/adapter_model.safetensors"
    model_metrics = "results/{run}/models/{model}/metrics.json"
    matrix_changes = "results/{run}/models/{model}/changes.{ending}"
    token_losses = "results/{run}/models/{model}/losses.safetensors"
    dump = "results/{run}/activations/{hookpoint}/{model}/{corpus}/{split}/shard-{shard}.safetensors"
    sae_file = "results/{run}/saes/{hookpoint}/{model}/{sae}/{name}"
    sae_weights = "results/{run}/saes/{hookpoint}/{model}/{sae}/sae_weights.safetensors"
    sae_config = "results/{run}/saes/{hookpoint}/{model}/{sae}/cfg.json"
    sae_curve = "results/{run}/saes/{hookpoint}/{model}/{sae}/training.csv"
    sae_bundle = "results/{run}/streams/{model}/{part}.tar"
    sae_metrics = "results/{run}/saes/{hookpoint}/{model}/metrics.json"
    features = "results/{run}/features/{hookpoint}/{model}/{sae}/{corpus}/shard-{shard}.safetensors"
    rotated_features = "results/{run}/features/{hookpoint}/{model}/{sae}_rotated/{corpus}/shard-{shard}.safetensors"
    delphi = "results/{run}/delphi/{hookpoint}/{model}/{sae}/{module}/config.json"
    correlations = "results/{run}/correlations/{hookpoint}/{a}/correlations.safetensors"
    replicates = "results/{run}/correlations/{hookpoint}/{a}/replicates.safetensors"
    token_types = "results/{run}/correlations/{hookpoint}/{a}__{b}/token_types.safetensors"
    dense = "results/{run}/correlations/{hookpoint}/{a}__{b}/dense.npy"
    similarities = "results/{run}/correlations/{hookpoint}/{model_a}.{sae_a}__{model_b}.{sae_b}/similarities.{ending}"
    crosscoder_weights = "results/{run}/crosscoders/{hookpoint}/{group}/{seed}/crosscoder.safetensors"
    crosscoder_config = "results/{run}/crosscoders/{hookpoint}/{group}/{seed}/crosscoder.json"
    crosscoder_curve = "results/{run}/crosscoders/{hookpoint}/{group}/{seed}/training.csv"
    crosscoder_latents = (
        "results/{run}/crosscoders/{hookpoint}/{group}/{seed}/latents/{corpus}/shard-{shard}.safetensors"
    )
    crosscoder_matches = "results/{run}/lineage/{hookpoint}/crosscoders/{group}.{seed}.matches.parquet"
    exclusivity = "results/{run}/lineage/{hookpoint}/crosscoders/{group}.{seed}.parquet"
    exclusivity_shares = "results/{run}/lineage/{hookpoint}/crosscoders/{group}.{seed}.shares.parquet"
    exclusivity_curves = "results/{run}/lineage/{hookpoint}/crosscoders/{group}.{seed}.curves.parquet"
    decoder_norms = "results/{run}/lineage/{hookpoint}/crosscoders/{group}.{seed}.norms.parquet"
    crosscoder_ablations = "results/{run}/lineage/{hookpoint}/crosscoders/{group}.{seed}.ablations.parquet"
    difference_weights = "results/{run}/difference_saes/{hookpoint}/{parent}__{child}/{seed}/sae_weights.safetensors"
    difference_config = "results/{run}/difference_saes/{hookpoint}/{parent}__{child}/{seed}/cfg.json"
    difference_curve = "results/{run}/difference_saes/{hookpoint}/{parent}__{child}/{seed}/training.csv"
    differences = "results/{run}/lineage/{hookpoint}/differences/{parent}__{child}.{seed}.parquet"
    difference_summary = "results/{run}/lineage/{hookpoint}/differences/{parent}__{child}.{seed}.summary.parquet"
    readouts = "results/{run}/lineage/{hookpoint}/readouts/{parent}__{child}.parquet"
    drift = "results/{run}/lineage/{hookpoint}/drift.json"
    ablations = "results/{run}/lineage/{hookpoint}/ablations/{edge}{kind}.parquet"
    ablations_manifest = "results/{run}/lineage/{hookpoint}/ablations/manifest.json"
    importance = "results/{run}/lineage/{hookpoint}/importance/{edge}.parquet"
    importance_agreement = "results/{run}/lineage/{hookpoint}/importance/agreement.parquet"
    passages = "results/{run}/lineage/{hookpoint}/passages/{edge}{kind}.parquet"
    passages_manifest = "results/{run}/lineage/{hookpoint}/passages/manifest.json"
    acts = "results/{run}/behaviour/{hookpoint}/{parent}__{child}.parquet"
    act_summary = "results/{run}/behaviour/{hookpoint}/{parent}__{child}.summary.parquet"
    patches = "results/{run}/behaviour/{hookpoint}/{parent}__{child}.patches.parquet"
    samples = "results/{run}/behaviour/{hookpoint}/{parent}__{child}.samples.parquet"
    enriched = "results/{run}/behaviour/{hookpoint}/{parent}__{child}.enriched.parquet"
    edge_table = "results/{run}/lineage/{hookpoint}/edges/{edge}.parquet"
    lineage_features = "results/{run}/lineage/{hookpoint}/features.parquet"
    share_curves = "results/{run}/lineage/{hookpoint}/curves.parquet"
    sources = "results/{run}/lineage/{hookpoint}/sources.parquet"
    summary = "results/{run}/lineage/{hookpoint}/summary.json"
    seeds = "results/{run}/lineage/{hookpoint}/seeds.json"
    annotations = "results/{run}/labels/probe.safetensors"
    labels = "results/{run}/labels/{hookpoint}/{model}/{sae}.parquet"
    explanations = "results/{run}/labels/{hookpoint}/{model}/{sae}.explanations.parquet"
    answers = "results/{run}/checkpoints/explanations"
    sweep = "results/{run}/sweeps/{sweep}.parquet"
    followed = "results/{run}/lineage/{hookpoint}/sweeps/{sweep}.parquet"
    followed_curves = "results/{run}/lineage/{hookpoint}/sweeps/{sweep}.curves.parquet"
    found = "results/{run}/lineage/{hookpoint}/sweeps/{sweep}.found.parquet"
    examples = "results/{run}/report/examples/{hookpoint}.json"
    words = "results/{run}/report/words/{hookpoint}.json"
    dashboards = "results/{run}/report/data/{hookpoint}/{model}"
    dashboards_manifest = "results/{run}/report/data/{hookpoint}/{model}.manifest.json"
    dag = "results/{run}/report/dag.svg"
    rulegraph = "results/{run}/report/rulegraph.svg"
    page = "results/{run}/report/{page}.html"
    making = "results/{run}/report/making.html"
    report_table = "results/{run}/report/tables/{hookpoint}/{table}.csv"

    def __init__(self, contents: Contents, hookpoint: str | None = None):
        """Fill the name of the run in, and that of a hookpoint.

        Args:
            contents: of the run.
            hookpoint: the hookpoint whose paths these are; None leaves `{hookpoint}` as it is, in lists as well:
                Snakemake fills a job's wildcards into its inputs.
        """
        self._contents, self._hookpoint = contents, hookpoint
        for name, pattern in vars(type(self)).items():
            if isinstance(pattern, str) and pattern.startswith("results/"):
                filled = pattern.replace("{run}", contents.name)
                setattr(self, name, filled.replace("{hookpoint}", hookpoint) if hookpoint else filled)

    @property
    def folder(self) -> str:
        """The folder of the run."""
        return f"results/{self._contents.name}"

    # Building blocks.

    def fill(self, pattern: str, **values: str | Iterable[str]) -> list[str]:
        """A pattern with every combination of values, the last name fastest.

        Args:
            pattern: one of the patterns here.
            **values: one value or several for each wildcard; without one, `{hookpoint}` stays as it is.
        """
        values = {"hookpoint": "{hookpoint}"} | values
        lists = [[value] if isinstance(value, str) else list(value) for value in values.values()]
        filled = (dict(zip(values, combination, strict=True)) for combination in product(*lists))
        return [pattern.format(**names) for names in filled]

    def over(self, pattern: str, **values: Iterable[str]) -> list[str]:
        """A pattern for a rule's output: every combination of values, with the other wildcards left as they are."""
        left = {name: f"{{{name}}}" for name in re.findall(r"{(\w+)}", pattern) if name not in values}
        combinations = product(*values.values())
        return [pattern.format(**left, **dict(zip(values, names, strict=True))) for names in combinations]

    def fix(self, pattern: str, **values: str) -> str:
        """A pattern for a rule's output with some wildcards filled in."""
        return self.over(pattern, **{name: [value] for name, value in values.items()})[0]

    @staticmethod
    def side(pattern: str, side: str) -> str:
        """A pattern with the wildcards of side `a` or `b` of a pair, such as `{model_a}` for `{model}`."""
        return pattern.replace("{model}", f"{{model_{side}}}").replace("{sae}", f"{{sae_{side}}}")

    def model_output(self) -> dict[str, str]:
        """The files that every job that makes a model writes, by their names in a rule."""
        names = dict(zip(("config", "weights", "tokenizer", "tokenizer_config"), MODEL_FILES, strict=True))
        files = {name: self.fix(self.model_file, name=file) for name, file in names.items()}
        return files | {"manifest": self.folder_manifest(self.model_file)}

    def log(self, name: str) -> str:
        """The log of a job, `{stage}/{what}`."""
        return f"{self.folder}/logs/{name}.log"

    @staticmethod
    def manifest(path: str) -> str:
        """The manifest of a file that has one to itself: beside it, with the same stem."""
        return f"{os.path.splitext(path)[0]}.manifest.json"

    @staticmethod
    def folder_manifest(path: str) -> str:
        """The manifest of the folder that a file lies in."""
        return f"{os.path.dirname(path)}/manifest.json"

    # Corpora and tokens.

    @property
    def corpora(self) -> list[str]:
        """The corpora, in the config's order."""
        return list(self._contents.config["corpora"])

    def corpus_files(self, wildcards: Wildcards) -> list[str]:
        """The user's files that a corpus is read from."""
        settings = self._contents.config["corpora"][wildcards.corpus]
        if settings["source"] != "files":
            return []
        return find_files(wildcards.corpus, settings, self._contents.config["corpora_dir"])

    def tokenizer_corpora(self) -> list[str]:
        """Train splits that the tokenizer is trained on."""
        return self.fill(self.documents, corpus=self._contents.config["tokenizer"].get("corpora", []), split="train")

    def tokenizer_files(self) -> list[str]:
        """The files of a tokenizer taken from a folder."""
        settings = self._contents.config["tokenizer"]
        return folder_files(settings["path"], MODEL_ENDINGS) if settings["source"] == "path" else []

    def rows(self, split: str) -> list[str]:
        """Token rows of all corpora."""
        return self.fill(self.token_rows, corpus=self.corpora, split=split)

    def all_token_sidecars(self) -> list[str]:
        """The sidecars of the token rows of all corpora and splits."""
        return self.fill(self.token_sidecar, corpus=self.corpora, split=SPLITS)

    def training_rows(self, wildcards: Wildcards) -> list[str]:
        """Token rows that a model is trained on."""
        corpora = self._contents.graph.training_corpora(wildcards.model)
        return self.fill(self.token_rows, corpus=corpora, split="train")

    # Models.

    def model(self, model: str) -> list[str]:
        """The files of a model's folder that jobs read."""
        return self.fill(self.model_file, model=model, name=MODEL_FILES)

    def own_model(self, wildcards: Wildcards) -> list[str]:
        """The folder of the job's model."""
        return self.model(wildcards.model)

    def parents(self, wildcards: Wildcards) -> list[str]:
        """The folders of the models that a model is made from: its parents, or the model it is like."""
        graph = self._contents.graph
        like = graph.like(wildcards.model)
        return [path for name in ([like] if like else graph.made_from(wildcards.model)) for path in self.model(name)]

    def merge_base(self, wildcards: Wildcards) -> list[str]:
        """The folder of the model that a merge takes differences from, where it does."""
        base = self._contents.graph.merge_base(wildcards.model)
        return self.model(base) if base else []

    def merge_choice(self, wildcards: Wildcards) -> list[str]:
        """The settings of a merge that are chosen, where there are any."""
        return self.fill(self.choice, model=wildcards.model if self._contents.chosen_on(wildcards.model) else [])

    def chosen_on(self, wildcards: Wildcards) -> list[str]:
        """The validation rows by which they are chosen."""
        return self.fill(self.token_rows, corpus=self._contents.chosen_on(wildcards.model), split="validation")

    def changed_weights(self, wildcards: Wildcards) -> list[str]:
        """The weights of the models that a model of the lineage descends from, and its own behind them."""
        models = [*self._contents.graph.parents(wildcards.model), wildcards.model]
        return self.fill(self.model_weights, model=models)

    def all_matrix_changes(self) -> list[str]:
        """The figures on the changed matrices of each model's edges from its parents, where they are asked for."""
        models = self._contents.graph.children if self._contents.config["lineage"]["weights"] else []
        return self.fill(self.matrix_changes, model=models, ending="json")

    def training_kept_from(self, wildcards: Wildcards) -> list[str]:
        """The archive of the training that a model is kept from, and its manifest, which is removed with it."""
        (archive,) = self.fill(self.kept_steps, model=self._contents.graph.block(wildcards.model)["of"])
        return [archive, self.manifest(archive)]

    def imported_model(self, wildcards: Wildcards) -> list[str]:
        """The files of a model taken from a folder."""
        settings = self._contents.graph.settings(wildcards.model)
        named = [os.path.join(settings["folder"], settings["gguf"])] if "gguf" in settings else []
        return folder_files(settings["folder"], MODEL_ENDINGS) + named if "folder" in settings else []

    # Activations and SAEs.

    @property
    def train_shards(self) -> list[str]:
        """Names of the shards of a dump of a train split."""
        return shard_names(self._contents.config["activations"]["n_shards"])

    @property
    def probe_shards(self) -> list[str]:
        """Names of the shards of the probe."""
        return shard_names(self._contents.config["activations"]["n_probe_shards"])

    def sae_rows(self) -> list[str]:
        """Token rows of the train splits that SAEs are trained on."""
        return self.fill(self.token_rows, corpus=self._contents.trained_corpora, split="train")

    def sae_dump(self, wildcards: Wildcards) -> list[str]:
        """The dump that an SAE is trained on; without the wildcard `sae`, that of all SAEs of one pass."""
        sae = getattr(wildcards, "sae", self._contents.saes.seed_names[0])
        corpora = self._contents.saes.settings(wildcards.model, sae)["corpora"]
        return self.fill(self.dump, model=wildcards.model, corpus=corpora, split="train", shard=self.train_shards)

    def sae_dump_manifests(self, wildcards: Wildcards) -> list[str]:
        """The manifests of `sae_dump`."""
        return list(map(self.manifest, self.sae_dump(wildcards)))

    def probe_dump(self, model: str) -> list[str]:
        """All shards of a model's activations on the probe."""
        return self.fill(self.dump, model=model, corpus=self.corpora, split="probe", shard=self.probe_shards)

    def own_probe_dump(self, wildcards: Wildcards) -> list[str]:
        """The probe dump of the job's model."""
        return self.probe_dump(wildcards.model)

    def sae(self, sae: SaeName) -> list[str]:
        """The files of an SAE's folder that jobs read."""
        return self.fill(self.sae_file, model=sae.model, sae=sae.sae, name=SAE_FILES)

    def measured_saes(self, wildcards: Wildcards) -> list[str]:
        """The folders of a model's SAEs whose quality is measured."""
        measured = self._contents.comparisons.measured_saes
        return [path for sae in measured if sae.model == wildcards.model for path in self.sae(sae)]

    def sae_starts(self, wildcards: Wildcards) -> list[str]:
        """The folders of the SAEs that an SAE's training starts from."""
        starts = self._contents.saes.starts(SaeName(wildcards.model, wildcards.sae))
        return [path for start in starts for path in self.sae(start)]

    def opened_as(self, wildcards: Wildcards) -> dict[str, str]:
        """The `name` by which others open a job's model, and a repository's `revision`: the run's folder if made here.

        A GGUF file and an adapter become a model in the run's folder only.
        """
        return self._opened_as(wildcards.model)

    def child_opened_as(self, wildcards: Wildcards) -> dict[str, str]:
        """The same of the child of a job's edge."""
        return self._opened_as(wildcards.child)

    def _opened_as(self, model: str) -> dict[str, str]:
        settings, kind = self._contents.graph.settings(model), self._contents.graph.kind(model)
        if kind == "hub":
            return {"name": settings["repo"], "revision": settings["revision"]}
        if kind == "path" and "gguf" not in settings:
            return {"name": settings["folder"]}
        return {"name": self.fill(self.model_file, model=model, name="config.json")[0].rpartition("/")[0]}

    def imported_sae(self, wildcards: Wildcards) -> list[str]:
        """The files of a folder that an SAE is taken over from."""
        settings = self._contents.saes.settings(wildcards.model, wildcards.sae)["import"]
        return [str(path) for path in local_source(settings).files] if "folder" in settings else []

    def of_saes(self, pattern: str, saes: Iterable[SaeName]) -> list[str]:
        """A file of each of some SAEs."""
        return [path for sae in saes for path in self.fill(pattern, **sae._asdict())]

    # Crosscoders.

    def crosscoder_dumps(self, wildcards: Wildcards) -> list[str]:
        """The train dumps of a crosscoder's models, one model after the other."""
        crosscoders = self._contents.crosscoders
        corpora = crosscoders.settings(CrosscoderName(wildcards.group, wildcards.seed))["corpora"]
        places = {"corpus": corpora, "split": "train", "shard": self.train_shards}
        return [
            path
            for model in crosscoders.groups[wildcards.group]
            for path in self.fill(self.dump, model=model, **places)
        ]

    def crosscoder_probes(self, wildcards: Wildcards) -> list[str]:
        """Their probe dumps, one model after the other."""
        return [path for model in self._contents.crosscoders.groups[wildcards.group] for path in self.probe_dump(model)]

    def crosscoder_acts(self, wildcards: Wildcards) -> list[str]:
        """One shard of the probe of a crosscoder's models, all corpora of a model before the next model."""
        models = self._contents.crosscoders.groups[wildcards.group]
        return self.fill(self.dump, model=models, corpus=self.corpora, split="probe", shard=wildcards.shard)

    def own_crosscoder_latents(self, wildcards: Wildcards) -> list[str]:
        """All shards of a crosscoder's latents."""
        return self._latents_of(CrosscoderName(wildcards.group, wildcards.seed))

    def matched_features(self, wildcards: Wildcards) -> list[str]:
        """All shards of what a crosscoder's latents are matched with: features of SAEs, the first seed's latents."""
        first = self._contents.crosscoders.of_first_seed(CrosscoderName(wildcards.group, wildcards.seed))
        return [
            *(path for sae in self._contents.compared_with(wildcards.group) for path in self.sae_features(sae)),
            *(path for name in first for path in self._latents_of(name)),
        ]

    def _latents_of(self, name: CrosscoderName) -> list[str]:
        """All shards of a crosscoder's latents."""
        return self.fill(self.crosscoder_latents, **name._asdict(), corpus=self.corpora, shard=self.probe_shards)

    def verdicts_of_crosscoders(self, pattern: str) -> list[str]:
        """A file of each edge's first crosscoder."""
        names = self._contents.crosscoders.first_of_edges.values()
        return [path for name in names for path in self.fill(pattern, **name._asdict())]

    def ablated_models(self, wildcards: Wildcards) -> list[str]:
        """The folders of a crosscoder's models that have an edge."""
        return [path for model in self._contents.crosscoders.on_edges(wildcards.group) for path in self.model(model)]

    def all_crosscoder_ablations(self) -> list[str]:
        """The ablations of each crosscoder, where they are asked for."""
        ablated = self._contents.crosscoders.ablated
        return [path for name in ablated for path in self.fill(self.crosscoder_ablations, **name._asdict())]

    def of_crosscoders(self, pattern: str) -> list[str]:
        """A file of each crosscoder."""
        return [path for name in self._contents.crosscoders.names for path in self.fill(pattern, **name._asdict())]

    # Difference SAEs.

    def difference_dump(self, side: str) -> InputFunction:
        """The train dump of one of the two models of a difference SAE."""

        def of_job(wildcards: Wildcards) -> list[str]:
            places = {"corpus": self._contents.difference_saes.corpora, "split": "train", "shard": self.train_shards}
            return self.fill(self.dump, model=getattr(wildcards, side), **places)

        return of_job

    def compared_with_difference(self, role: str) -> InputFunction:
        """The folder of an SAE whose directions a difference SAE's are compared with (`DifferenceSaes.compared`)."""

        def of_job(wildcards: Wildcards) -> list[str]:
            compared = self._contents.difference_saes.compared(f"{wildcards.parent}__{wildcards.child}")
            return self.sae(compared[role]) if role in compared else []

        return of_job

    def of_differences(self, pattern: str) -> list[str]:
        """A file of each difference SAE."""
        saes = self._contents.difference_saes
        return [
            path
            for pair in saes.differences.values()
            for path in self.fill(pattern, parent=pair.parent, child=pair.child, seed=saes.seeds)
        ]

    # Features and correlations.

    def sae_features(self, sae: SaeName) -> list[str]:
        """All feature shards of an SAE."""
        return self.fill(self.features, model=sae.model, sae=sae.sae, corpus=self.corpora, shard=self.probe_shards)

    def own_features(self, wildcards: Wildcards) -> list[str]:
        """All feature shards of the job's SAE."""
        return self.sae_features(SaeName(wildcards.model, wildcards.sae))

    def side_features(self, side: str) -> InputFunction:
        """All feature shards of one SAE of a pair, in one order for both sides."""
        return lambda wildcards: self.sae_features(side_sae(wildcards, side))

    def partner_features(self, wildcards: Wildcards) -> list[str]:
        """All feature shards of all partners of an SAE, one partner after the other."""
        partners = map(with_features, self._contents.comparisons.partners[wildcards.a])
        return [path for sae in partners for path in self.sae_features(sae)]

    def of_pairs(self, pattern: str, pairs: Iterable[Pair]) -> list[str]:
        """A file of each of some pairs of SAEs."""
        return [path for a, b in pairs for path in self.fill(pattern, a=str(a), b=str(b))]

    def correlations_of(self, pairs: Iterable[Pair]) -> list[str]:
        """For each of some pairs of SAEs the file that holds their correlation; a file may come several times."""
        return [path for a, _ in pairs for path in self.fill(self.correlations, a=str(a))]

    def all_correlations(self, pattern: str) -> list[str]:
        """The files of correlations, or of replicates, of all SAEs that have partners."""
        return self.fill(pattern, a=self._contents.comparisons.partners)

    def seed_saes(self) -> list[str]:
        """The folders of the SAEs of models that have SAEs of several seeds."""
        comparisons = self._contents.comparisons
        return [
            path
            for model in comparisons.seed_pair_names
            for sae in self._contents.saes.of_seeds(model)
            for path in self.sae(sae)
        ]

    def seed_correlations(self) -> list[str]:
        """The correlations of every pair of seeds."""
        names = [name for pairs in self._contents.comparisons.seed_pair_names.values() for name in pairs]
        return self.fill(self.correlations, a=list(dict.fromkeys(names_in_pair(name)[0] for name in names)))

    def all_token_types(self) -> list[str]:
        """The matches of the study's protocol, for `Contents.token_type_pairs`."""
        return self.of_pairs(self.token_types, self._contents.token_type_pairs)

    # Lineage.

    @property
    def edges(self) -> list[str]:
        """Names of the edges, `{parent}__{child}`."""
        return list(map(str, self._contents.graph.edges))

    def edge_dump(self, side: str) -> InputFunction:
        """The probe dump of one model of an edge."""
        return lambda wildcards: self.probe_dump(getattr(wildcards, side))

    def edge_features(self, side: str) -> InputFunction:
        """Feature shards of the SAE of one end of an edge that its verdicts rest on."""
        return lambda wildcards: self.sae_features(self._contents.comparisons.leading_sae(getattr(wildcards, side)))

    def edge_model(self, side: str) -> InputFunction:
        """The folder of one model of an edge."""
        return lambda wildcards: self.model(getattr(wildcards, side))

    def child_sae(self, wildcards: Wildcards) -> list[str]:
        """The folder of the child's SAE that an edge's verdicts rest on."""
        return self.sae(self._contents.comparisons.leading_sae(wildcards.child))

    def of_acts(self, pattern: str) -> list[str]:
        """A file of what each edge's new features do, where they are acted on."""
        edges = self._contents.graph.edges if self._contents.config["report"]["act"] else []
        return [path for edge in edges for path in self.fill(pattern, **edge._asdict())]

    def of_contrasts(self, pattern: str) -> list[str]:
        """A file of the contrast of each edge's models, where there are samples."""
        edges = self._contents.graph.edges if self._contents.config["behaviour"]["samples"] else []
        return [path for edge in edges for path in self.fill(pattern, **edge._asdict())]

    def traced_weights(self) -> list[str]:
        """The weights of `Contents.traced_saes`, in their order."""
        return [path for sae in self._contents.traced_saes for path in self.sae(sae) if path.endswith(".safetensors")]

    def all_readouts(self) -> list[str]:
        """The readouts of all edges, where they are asked for."""
        edges = self._contents.graph.edges if self._contents.config["lineage"]["readouts"] else []
        return [path for edge in edges for path in self.fill(self.readouts, **edge._asdict())]

    def all_ablations(self, kind: str = "") -> list[str]:
        """A file of the ablations of each edge, where they are asked for."""
        edges = self.edges if self._contents.config["lineage"]["ablations"] else []
        return self.fill(self.ablations, edge=edges, kind=kind)

    def connected_models(self) -> list[str]:
        """The folders of the models of the lineage that have a parent or a child."""
        return [path for model in self._contents.graph.connected for path in self.model(model)]

    def connected_saes(self) -> list[str]:
        """The folders of the SAEs of these models that verdicts rest on."""
        saes = map(self._contents.comparisons.leading_sae, self._contents.graph.connected)
        return [path for sae in saes for path in self.sae(sae)]

    def connected_dumps(self) -> list[str]:
        """The probe dumps of these models, one model after the other."""
        return [path for model in self._contents.graph.connected for path in self.probe_dump(model)]

    def all_drift(self) -> list[str]:
        """The drift of all edges, where there are any."""
        return self.fill(self.drift) if self.edges else []

    def all_importance(self) -> list[str]:
        """The importance of the features of each edge."""
        return self.fill(self.importance, edge=self.edges)

    def agreement_of_importance(self) -> list[str]:
        """How far estimated and measured effects agree, where there are edges."""
        return self.fill(self.importance_agreement) if self.edges else []

    def all_passages(self, kind: str = "") -> list[str]:
        """A file of the passages of each edge."""
        return self.fill(self.passages, edge=self.edges, kind=kind)

    def losses_with_siblings(self) -> list[str]:
        """The losses of the models that children are compared with on single tokens, and of these children."""
        return self.fill(self.token_losses, model=self._contents.graph.beside_siblings)

    def connected_features(self) -> list[str]:
        """Feature shards of the SAEs of models with a parent or a child that verdicts rest on."""
        saes = map(self._contents.comparisons.leading_sae, self._contents.graph.connected)
        return [path for sae in saes for path in self.sae_features(sae)]

    def edge_correlations(self) -> list[str]:
        """The correlation behind each edge, in the order of `edges`."""
        return self.correlations_of(self._contents.edge_pairs)

    # Labels.

    def leading_labels(self, models: Iterable[str], pattern: str) -> list[str]:
        """A table of labels of the SAE of each model that verdicts rest on."""
        return self.of_saes(pattern, map(self._contents.comparisons.leading_sae, models))

    def own_labels(self, wildcards: Wildcards) -> list[str]:
        """The labels of the features of the job's model."""
        return self.leading_labels([wildcards.model], self.labels)

    def all_labels(self) -> list[str]:
        """The labels of the features of every model of the lineage, in order."""
        return self.leading_labels(self._contents.graph.lineage, self.labels)

    def own_explanations(self, wildcards: Wildcards) -> list[str]:
        """The written explanations of the features of the job's model, where they are asked for."""
        return self.leading_labels([wildcards.model] if self._contents.has_explanations else [], self.explanations)

    def all_words(self) -> list[str]:
        """What a service says of each edge, where explanations are asked for and there are edges."""
        return self.fill(self.words) if self._contents.has_explanations and self._contents.graph.edges else []

    def all_explanations(self) -> list[str]:
        """The written explanations of the features of every lineage model, where they are asked for."""
        models = self._contents.graph.lineage if self._contents.has_explanations else []
        return self.leading_labels(models, self.explanations)

    # Sweeps.

    def sweeps_behind(self, wildcards: Wildcards) -> list[str]:
        """The sweeps whose best settings a merge takes."""
        found = sweeps_behind(self._contents.graph.merge(wildcards.model))
        return self.fill(self.sweep, sweep=list(dict.fromkeys(found.values())))

    def swept_parents(self, wildcards: Wildcards) -> list[str]:
        """The folders of the models that a sweep merges."""
        parents = self._contents.graph.parents(self._contents.swept_model(wildcards.sweep))
        return [path for parent in parents for path in self.model(parent)]

    def swept_base(self, wildcards: Wildcards) -> list[str]:
        """The folder of the model that the merges of a sweep take differences from, where they do."""
        base = self._contents.graph.merge_base(self._contents.swept_model(wildcards.sweep))
        return self.model(base) if base else []

    def swept_beside(self, wildcards: Wildcards) -> list[str]:
        """The folders of the models that a sweep is shown beside: the parents, and the model that they descend from."""
        return [path for model in self._contents.beside_sweep(wildcards.sweep) for path in self.model(model)]

    def swept_rows(self, wildcards: Wildcards) -> list[str]:
        """Validation rows that a sweep is measured on."""
        return self.fill(self.token_rows, corpus=self._contents.sweep_corpora(wildcards.sweep), split="validation")

    def followed_saes(self, wildcards: Wildcards) -> list[str]:
        """The SAEs whose features are followed through a sweep, one parent after the other."""
        leading = map(self._contents.comparisons.leading_sae, self._contents.followed_parents(wildcards.sweep))
        return [path for sae in leading for path in self.sae(sae)]

    def followed_features(self, wildcards: Wildcards) -> list[str]:
        """Their features on the probe."""
        leading = map(self._contents.comparisons.leading_sae, self._contents.followed_parents(wildcards.sweep))
        return [path for sae in leading for path in self.sae_features(sae)]

    def followed_edges(self, wildcards: Wildcards) -> list[str]:
        """Verdicts on the edges from the followed parents to the merge, where the lineage has them."""
        model = self._contents.swept_model(wildcards.sweep)
        edges = [str(Edge(parent, model)) for parent in self._contents.parents_with_edges(wildcards.sweep)]
        return self.fill(self.edge_table, edge=edges)

    def followed_origins(self, wildcards: Wildcards) -> list[str]:
        """Verdicts on the edges to the followed parents from their own parents."""
        return self.fill(self.edge_table, edge=map(str, self._contents.followed_origins(wildcards.sweep)))

    def followed_labels(self, wildcards: Wildcards) -> list[str]:
        """Labels of the features of these parents."""
        return self.leading_labels(self._contents.parents_with_edges(wildcards.sweep), self.labels)

    def all_followed(self) -> list[str]:
        """The features that are followed through each sweep, and how many of them are found."""
        patterns = (self.followed, self.followed_curves)
        return [path for pattern in patterns for path in self.fill(pattern, sweep=self._contents.followed_sweeps)]

    # Report.

    def all_verdicts(self) -> list[str]:
        """Verdicts of every edge."""
        return self.fill(self.edge_table, edge=self.edges)

    def class_verdicts(self) -> list[str]:
        """Verdicts of every edge, for the table of token classes, in runs with conversations."""
        return self.fill(self.edge_table, edge=self.edges if self._contents.conversations else [])

    def own_edges(self, wildcards: Wildcards) -> list[str]:
        """Verdicts of every edge from or to the job's model."""
        return self.fill(self.edge_table, edge=map(str, self._contents.graph.edges_of(wildcards.model)))

    def own_importance(self, wildcards: Wildcards) -> list[str]:
        """The importance of the features of every edge from or to the job's model."""
        return self.fill(self.importance, edge=map(str, self._contents.graph.edges_of(wildcards.model)))

    def own_no_change(self, wildcards: Wildcards) -> list[str]:
        """The no-change control of the SAE of the job's model, under the leading instrument."""
        return self.correlations_of(self._contents.comparisons.leading_no_change_pairs(wildcards.model))

    def leading_features(self) -> list[str]:
        """Feature shards of the SAEs that verdicts rest on, all in one order of corpora and shards."""
        return [path for sae in self._contents.leading_saes for path in self.sae_features(sae)]

    def own_leading_sae(self, wildcards: Wildcards) -> list[str]:
        """The folder of the SAE of the job's model that verdicts rest on."""
        return self.sae(self._contents.comparisons.leading_sae(wildcards.model))

    @property
    def own_page(self) -> str:
        """The page of the hookpoint whose paths these are: `index.html` for the first one."""
        is_first = self._hookpoint == next(iter(self._contents.hookpoints))
        return self.fill(self.page, page="index" if is_first else str(self._hookpoint))[0]

    @property
    def own_answer(self) -> str:
        """The answer as text, beside the page."""
        return self.own_page.removesuffix(".html") + ".md"

    def page_inputs(self) -> dict[str, list[str]]:
        """The files that a page shows, by the names under which `write_report` reads them."""
        contents, comparisons = self._contents, self._contents.comparisons
        models = contents.graph.models
        return {
            "summary": self.fill(self.summary),
            "model_metrics": self.fill(self.model_metrics, model=models),
            "sae_metrics": self.fill(self.sae_metrics, model=models),
            "curves": self.of_saes(self.sae_curve, comparisons.trained_saes),
            "sweeps": self.fill(self.sweep, sweep=contents.config["sweeps"]),
            "followed": self.fill(self.followed_curves, sweep=contents.followed_sweeps),
            "merges": self.fill(self.merge, model=contents.graph.of_kind("merge")),
            "correlations": self.edge_correlations(),
            "share_curves": self.fill(self.share_curves),
            "ablations": self.all_ablations(),
            "effects": self.all_ablations(".agreement"),
            "drift": self.all_drift(),
            "exclusivity": self.of_crosscoders(self.exclusivity_shares),
            "latent_verdicts": self.of_crosscoders(self.exclusivity),
            "crosscoder_matches": self.of_crosscoders(self.crosscoder_matches),
            "exclusivity_curves": self.of_crosscoders(self.exclusivity_curves),
            "decoder_norms": self.of_crosscoders(self.decoder_norms),
            "crosscoder_ablations": self.all_crosscoder_ablations(),
            "differences": self.of_differences(self.difference_summary),
            "matrix_changes": self.all_matrix_changes(),
            "importance": self.all_importance(),
            "importance_agreement": self.agreement_of_importance(),
            "passages": self.all_passages(),
            "passage_features": self.all_passages(".features"),
            "acts": self.of_acts(self.acts),
            "act_summaries": self.of_acts(self.act_summary),
            "patches": self.of_acts(self.patches),
            "samples": self.of_contrasts(self.samples),
            "enriched": self.of_contrasts(self.enriched),
            "examples": self.fill(self.examples),
            "words": self.all_words(),
            "rulegraph": self.fill(self.rulegraph),
            "manifests": [
                *self.fill(self.folder_manifest(self.summary)),
                *self.fill(self.folder_manifest(self.model_metrics), model=models),
                *self.of_saes(self.folder_manifest(self.sae_config), comparisons.saes),
            ],
            "data": self.fill(self.dashboards_manifest, model=contents.graph.connected),
            "labels": self.all_labels(),
            "explanations": self.all_explanations(),
            "verdicts": self.class_verdicts(),
            "features": self.fill(self.lineage_features) if contents.graph.lines else [],
            "line_verdicts": self.fill(self.edge_table, edge=map(str, contents.graph.line_edges)),
            "token_rows": self.all_token_sidecars(),
        }

    def page_sources(self, project: str) -> list[str]:
        """The files that the page is made from, relative to the working directory.

        Args:
            project: the folder of the Snakefile.
        """
        return [os.path.relpath(os.path.join(project, "workflow", "report", name)) for name in PAGE_SOURCES]

    # The whole run.

    def everything(self) -> list[str]:
        """What `rule all` asks for beside manifests."""
        return [
            self.own_page,
            *self.fill(self.summary),
            *self.fill(self.sweep, sweep=self._contents.config["sweeps"]),
            *self.fill(self.model_metrics, model=self._contents.graph.models),
            *self.fill(self.sae_metrics, model=self._contents.graph.models),
        ]

    def manifests(self) -> list[str]:
        """The manifest of everything that a run keeps.

        `all` asks for these, because Snakemake takes no notice of a missing file as long as what was made from it is
        there.
        """
        return [path for stage in self._manifests_by_stage().values() for path in stage]

    def _manifests_by_stage(self) -> Mapping[str, list[str]]:
        contents, comparisons = self._contents, self._contents.comparisons
        trained = list(dict.fromkeys(sae.model for sae in comparisons.trained_saes))
        read = list(dict.fromkeys(sae.model for sae in comparisons.saes))
        encoded = dict.fromkeys(
            sae for sae in [*contents.leading_saes, *comparisons.compared_saes] if not is_shifted(sae.sae)
        )
        readouts = self.all_readouts()
        ablations = self.fill(self.ablations_manifest) if self.all_ablations() else []
        passages = self.fill(self.passages_manifest) if self.edges else []
        splits = {"corpus": self.corpora, "split": SPLITS}
        in_crosscoders = [model for models in contents.crosscoders.groups.values() for model in models]
        dumped = [*trained, *in_crosscoders, *contents.difference_saes.models]
        dumped = list(dict.fromkeys(dumped)) if contents.keeps_dumps else []
        dumps = {"corpus": contents.trained_corpora, "split": "train", "shard": self.train_shards}
        probes = {"corpus": self.corpora, "split": "probe", "shard": self.probe_shards}

        def beside(paths: Iterable[str]) -> list[str]:
            return [self.manifest(path) for path in paths]

        def of_folders(paths: Iterable[str]) -> list[str]:
            return [self.folder_manifest(path) for path in paths]

        return {
            "corpora": of_folders(self.fill(self.corpus_counts, corpus=self.corpora)),
            "tokens": [*of_folders(self.fill(self.tokenizer)), *beside(self.fill(self.token_rows, **splits))],
            "models": [
                *of_folders(self.fill(self.model_metrics, model=contents.graph.models)),
                *beside(self.fill(self.model_metrics, model=contents.graph.models)),
                *beside(self.losses_with_siblings()),
                *beside(self.all_matrix_changes()),
            ],
            "activations": [
                *beside(self.fill(self.dump, model=dumped, **dumps)),
                *beside(self.fill(self.dump, model=read, **probes)),
            ],
            "saes": [
                *of_folders(self.of_saes(self.sae_config, comparisons.saes)),
                *beside(self.fill(self.sae_metrics, model=contents.graph.models)),
            ],
            "crosscoders": [
                *of_folders(self.of_crosscoders(self.crosscoder_config)),
                *beside(path for name in contents.crosscoders.names for path in self._latents_of(name)),
            ],
            "difference_saes": of_folders(self.of_differences(self.difference_config)),
            "features": beside(path for sae in encoded for path in self.sae_features(sae)),
            "correlations": [
                *of_folders(self.all_correlations(self.correlations)),
                *beside(self.all_token_types()),
            ],
            "lineage": [
                *of_folders(self.fill(self.summary)),
                *beside(readouts),
                *beside(self.all_drift()),
                *beside(self.of_crosscoders(self.exclusivity)),
                *beside(self.of_crosscoders(self.crosscoder_matches)),
                *beside(self.all_crosscoder_ablations()),
                *beside(self.of_differences(self.differences)),
                *ablations,
                *of_folders(self.agreement_of_importance()),
                *passages,
                *beside(self.all_followed()),
            ],
            "behaviour": [*beside(self.of_acts(self.acts)), *beside(self.of_contrasts(self.samples))],
            "labels": [
                *beside(self.fill(self.annotations)),
                *beside(self.all_labels()),
                *beside(self.all_explanations()),
            ],
            "sweeps": beside(self.fill(self.sweep, sweep=contents.config["sweeps"])),
            "report": [
                *beside(self.fill(self.examples)),
                *beside(self.all_words()),
                *beside(self.fill(self.dag)),
                self.folder_manifest(self.own_page),
                *self.fill(self.dashboards_manifest, model=contents.graph.connected),
            ],
        }


MODEL_ENDINGS = (".json", ".safetensors", ".model", ".jinja")
"""Endings of the files of a model's or tokenizer's folder that decide what it is."""


def folder_files(folder: str, endings: tuple[str, ...]) -> list[str]:
    """The files of a user's folder with these endings, sorted, so that a change to them is noticed."""
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(endings)]


def side_sae(wildcards: Wildcards, side: str) -> SaeName:
    """The SAE on side `a` or `b` of a pair, whose features a job reads."""
    return with_features(SaeName.parse(getattr(wildcards, side)))


def with_features(sae: SaeName) -> SaeName:
    """The SAE whose features stand for it: of a control of shifted documents, the SAE that is shifted."""
    return SaeName(sae.model, sae.sae.removesuffix(f"_{RANDOM_CONTROLS[0]}"))


def is_shifted(sae: str) -> bool:
    """True of the name of a control whose documents are shifted: it has no features of its own."""
    return sae.endswith(f"_{RANDOM_CONTROLS[0]}")
