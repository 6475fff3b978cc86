# Helpers of the rules: the config after its checks, paths that follow from the lineage graph, and what jobs ask for.
# Nothing heavy is imported here, for every job on a cluster reads this file again.

import os
import re
import sys

from snakemake.exceptions import WorkflowError

sys.path.append(os.path.join(workflow.basedir, "workflow", "scripts"))

from saelineage import graph
from saelineage.code_digest import code_digest
from saelineage.config import check_files, load_config, read_yaml
from saelineage.corpora_files import find_files
from saelineage.files import sha256_file, sha256_json
from saelineage.errors import InputError
from saelineage.machine import visible_gpus


def checked_config(given):
    """The config with defaults, after all checks; its files are read once more, for duplicate keys."""
    try:
        for path in workflow.configfiles:
            read_yaml(path)
        schema = read_yaml(os.path.join(workflow.basedir, "config", "config.schema.yaml"))
        return check_files(load_config(dict(given), schema))
    except InputError as error:
        raise WorkflowError(str(error)) from None


def any_of(names):
    """A wildcard constraint that matches these names alone, and nothing where there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def corpus_settings(wildcards):
    """The config block of one corpus."""
    return config["corpora"][wildcards.corpus]


def most_tokens(wildcards):
    """Tokens that a split is cut off at."""
    return config["tokens"]["max_tokens"][wildcards.split]


def corpus_files(wildcards):
    """The user's own files that a corpus is read from."""
    settings = config["corpora"][wildcards.corpus]
    return find_files(wildcards.corpus, settings, config["corpora_dir"]) if settings["source"] == "files" else []


def folder_files(folder):
    """The files of a model or tokenizer folder that decide what it is, so that a change to them is noticed."""
    names = sorted(os.listdir(folder))
    return [os.path.join(folder, name) for name in names if name.endswith((".json", ".safetensors", ".model"))]


def sae_files(wildcards):
    """The files of a folder that an SAE is taken over from."""
    folder = sae_settings(wildcards)["import"].get("folder")
    names = sorted(os.listdir(folder)) if folder else []
    return [os.path.join(folder, name) for name in names if name.endswith((".json", ".safetensors", ".pt"))]


def tokenizer_files(wildcards):
    """The files of a tokenizer taken from a folder."""
    return folder_files(config["tokenizer"]["path"]) if config["tokenizer"]["source"] == "path" else []


def imported_files(wildcards):
    """The files of a model taken from a folder."""
    return folder_files(model_settings(wildcards)["folder"]) if "folder" in model_settings(wildcards) else []


def tokenizer_corpora(wildcards):
    """Train splits that the tokenizer is trained on."""
    corpora = config["tokenizer"].get("corpora", [])
    return expand("results/{run}/corpora/{corpus}/train.parquet", run=wildcards.run, corpus=corpora)


def model_settings(wildcards):
    """The config block of one model, without the way it is made."""
    return config["models"][wildcards.model][graph.kind(config, wildcards.model)]


def model_files(wildcards, model):
    """What of another model's folder a job reads."""
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    return expand("results/{run}/models/{model}/{name}", run=wildcards.run, model=model, name=names)


def own_model_files(wildcards):
    """The folder of the job's own model."""
    return model_files(wildcards, wildcards.model)


def like_files(wildcards):
    """The folder of the model that a re-initialised one is like."""
    return model_files(wildcards, graph.like(config, wildcards.model))


def parent_files(wildcards):
    """The folder of the model that a fine-tune starts from."""
    return model_files(wildcards, graph.parents(config, wildcards.model)[0])


def merged_parent_files(wildcards):
    """The folders of the two models that are merged."""
    return [path for parent in graph.parents(config, wildcards.model) for path in model_files(wildcards, parent)]


def training_tokens(wildcards):
    """Token rows that a model is trained on."""
    return token_rows(wildcards, graph.training_corpora(config, wildcards.model), "train")


def token_rows(wildcards, corpora, split):
    """Token arrays of some corpora."""
    return expand("results/{run}/tokens/{corpus}/{split}.npy", run=wildcards.run, corpus=corpora, split=split)


def all_token_rows(split):
    """An input function: token arrays of all corpora."""

    def of_run(wildcards):
        return token_rows(wildcards, config["corpora"], split)

    return of_run


def sae_corpora():
    """Corpora that any SAE is trained on, in the config's order; all where none is trained and nothing is dumped."""
    trained = graph.trained_saes(config)
    trained_on = {corpus for sae in trained for corpus in graph.sae_settings(config, *sae)["corpora"]}
    return [corpus for corpus in config["corpora"] if corpus in trained_on or not trained]


def sae_token_rows(wildcards):
    """Token arrays of the train splits that SAEs are trained on."""
    return token_rows(wildcards, sae_corpora(), "train")


def sae_dump(wildcards):
    """Shards of the train-split activations that an SAE is trained on."""
    return expand(
        "results/{run}/activations/{model}/{corpus}/train/shard-{shard}.safetensors",
        run=wildcards.run,
        model=wildcards.model,
        corpus=graph.sae_settings(config, wildcards.model, wildcards.get("sae", graph.sae_names(config)[0]))["corpora"],
        shard=graph.shard_names(config["activations"]["n_shards"]),
    )


def sae_settings(wildcards):
    """The settings of one SAE, overrides applied."""
    return graph.sae_settings(config, wildcards.model, wildcards.sae)


def own_sae_settings(wildcards):
    """The settings of the SAE that is trained, by its name."""
    return {wildcards.sae: sae_settings(wildcards)}


def all_sae_settings(wildcards):
    """The settings of all SAEs of a model, by their names."""
    return {sae: graph.sae_settings(config, wildcards.model, sae) for sae in graph.sae_names(config)}


def import_settings(wildcards):
    """Where an SAE is taken over from."""
    return sae_settings(wildcards)["import"]


def max_norm_ratio(wildcards):
    """How many times the median norm activations may have that mean something to an SAE."""
    return sae_settings(wildcards)["max_norm_ratio"]


def probe_dump(wildcards):
    """All shards of a model's activations on the probe."""
    return expand(
        "results/{run}/activations/{model}/{corpus}/probe/shard-{shard}.safetensors",
        run=wildcards.run,
        model=wildcards.model,
        corpus=config["corpora"],
        shard=graph.shard_names(config["activations"]["n_probe_shards"]),
    )


def models_followed_by(saes):
    """A constraint on {model} in .../{model}/{sae}/... that lets only these pairs match."""
    return "|".join(f"{re.escape(model)}(?=/{re.escape(sae)}/)" for model, sae in saes) or "(?!)"


def trained_alone():
    """A constraint on {model}: those whose SAE is trained by a job of its own."""
    return models_followed_by([] if config["saes"]["one_pass"] else graph.trained_saes(config))


def trained_together():
    """A constraint on {model}: those whose SAEs are trained by one job."""
    return any_of(config["models"] if config["saes"]["one_pass"] else [])


def own_features(wildcards):
    """All feature shards of one SAE, corpus after corpus."""
    return expand(
        "results/{run}/features/{model}/{sae}/{corpus}/shard-{shard}.safetensors",
        run=wildcards.run,
        model=wildcards.model,
        sae=wildcards.sae,
        corpus=config["corpora"],
        shard=graph.shard_names(config["activations"]["n_probe_shards"]),
    )


def hooked_module():
    """The module at which activations are read, without its side."""
    return config["activations"]["hookpoint"].rpartition(".")[0]


def pair_features(side):
    """An input function: feature shards of one SAE of a pair, all corpora, of one shard number."""

    def of_pair(wildcards):
        model, sae = getattr(wildcards, side).removesuffix("_shifted").split(".")
        path = "results/{run}/features/{model}/{sae}/{corpus}/shard-{shard}.safetensors"
        return expand(path, run=wildcards.run, model=model, sae=sae, corpus=config["corpora"], shard=wildcards.shard)

    return of_pair


def is_shifted(wildcards):
    """Whether side b is a null of shifted documents."""
    return wildcards.b.endswith("_shifted")


def pair_sums(wildcards):
    """Raw sums of a pair, all shards."""
    path = "results/{run}/correlations/{a}__{b}/sums-{shard}.safetensors"
    shards = graph.shard_names(config["activations"]["n_probe_shards"])
    return expand(path, run=wildcards.run, a=wildcards.a, b=wildcards.b, shard=shards)


def all_correlations(wildcards):
    """The correlation of every pair: edges, seed pairs, nulls."""
    path = "results/{run}/correlations/{pair}/correlation.safetensors"
    return expand(path, run=wildcards.run, pair=[f"{a}__{b}" for a, b in graph.all_pairs(config)])


def edge_names():
    """Names of the edges' tables: {parent}__{child}."""
    return [f"{parent}__{child}" for parent, child in graph.edges(config)]


def edge_pairs():
    """For each edge, the pair of SAEs that its verdicts rest on."""
    return {
        f"{edge.parent}__{edge.child}": "__".join(map(str, graph.edge_pair(config, edge)))
        for edge in graph.edges(config)
    }


def null_pairs():
    """For each edge, the pair of each of its nulls."""
    return {
        f"{edge.parent}__{edge.child}": {
            null: "__".join(map(str, pair)) for null, pair in graph.null_pairs(config, edge).items()
        }
        for edge in graph.edges(config)
    }


def seed_pairs():
    """For each model, the pairs of its SAEs of different seeds."""
    return {model: [f"{a}__{b}" for a, b in graph.seed_pairs(config, model)] for model in config["models"]}


def swept_model(wildcards):
    """The merged model of a sweep."""
    return config["sweeps"][wildcards.sweep]["model"]


def swept_coefficients(wildcards):
    """The coefficients of a sweep."""
    return config["sweeps"][wildcards.sweep]["t"]


def swept_dtype(wildcards):
    """Number format of the merged weights, as in the merge itself."""
    return config["models"][swept_model(wildcards)]["merge"]["dtype"]


def swept_parent_files(wildcards):
    """The folders of the two models that a sweep merges."""
    return [path for parent in graph.parents(config, swept_model(wildcards)) for path in model_files(wildcards, parent)]


def swept_base_metrics(wildcards):
    """Metrics of the model that both parents descend from, where there is one."""
    base = graph.common_ancestor(config, swept_model(wildcards))
    return expand("results/{run}/models/{base}/metrics.json", run=wildcards.run, base=[base] if base else [])


def swept_token_rows(wildcards):
    """Validation rows that a sweep is measured on: those of its config, of the parents' fine-tunes, or all."""
    corpora = config["sweeps"][wildcards.sweep].get("corpora") or graph.training_corpora(config, swept_model(wildcards))
    return token_rows(wildcards, corpora or list(config["corpora"]), "validation")


# The report.


def root_models():
    """Models without parents, those that are nulls aside."""
    nulls = graph.models_of_kind(config, "reinitialise")
    return [model for model in graph.ordered_models(config) if not graph.parents(config, model) and model not in nulls]


def root_edge_tables(wildcards):
    """Verdicts of every edge that starts at a model without parents."""
    edges = [f"{edge.parent}__{edge.child}" for edge in graph.edges(config) if edge.parent in root_models()]
    return expand("results/{run}/lineage/edges/{edge}.parquet", run=wildcards.run, edge=edges)


def root_seed_correlations(wildcards):
    """For each model without parents that has two SAEs, the correlation of its first with its second."""
    pairs = ["__".join(map(str, pair)) for model in root_models() for pair in graph.seed_pairs(config, model)[:1]]
    return expand("results/{run}/correlations/{pair}/correlation.safetensors", run=wildcards.run, pair=pairs)


def shown_features(wildcards):
    """Feature shards of the SAEs that examples are taken from, all in one order of corpora and shards."""
    nulls = graph.models_of_kind(config, "reinitialise")
    shown = [graph.saes(config, model)[0] for model in config["models"] if model not in nulls]
    shown += [pair[1] for model in root_models() for pair in graph.seed_pairs(config, model)[:1]]
    return expand(
        "results/{run}/features/{s.model}/{s.sae}/{corpus}/shard-{shard}.safetensors",
        run=wildcards.run,
        s=shown,
        corpus=config["corpora"],
        shard=graph.shard_names(config["activations"]["n_probe_shards"]),
    )


def edge_correlations(wildcards):
    """The correlation behind each edge, in the order of `edge_names`."""
    path = "results/{run}/correlations/{pair}/correlation.safetensors"
    return expand(path, run=wildcards.run, pair=edge_pairs().values())


def report_file(name):
    """A file of the page's own, as seen from the working directory."""
    return os.path.relpath(os.path.join(workflow.basedir, "workflow", "report", name))


def rules_digest():
    """A digest of the Snakefile and all rules, which decide what the graph of jobs looks like."""
    folder = os.path.join(workflow.basedir, "rules")
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".smk")]
    return sha256_json([sha256_file(path) for path in [os.path.join(workflow.basedir, "Snakefile"), *paths]])
