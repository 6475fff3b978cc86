# Helpers of the rules: the config after its checks, paths that follow from the lineage graph, and what jobs ask for.
# Nothing heavy is imported here, for every job on a cluster reads this file again.

import os
import re
import sys
from types import SimpleNamespace

from snakemake.exceptions import WorkflowError

sys.path.append(os.path.join(workflow.basedir, "workflow", "scripts"))

from saelineage.plan import comparisons
from saelineage.plan import graph
from saelineage.jobs import locks
from saelineage.plan import sizes as sizes
from saelineage.jobs.code_digest import code_digest
from saelineage.plan.config import check_config, read_yaml
from saelineage.plan.user_files import find_files
from saelineage.files.atomic import sha256_file, sha256_json
from saelineage.errors import InputError
from saelineage.jobs.manifests import check_changes
from saelineage.jobs.gpus import visible_gpus


def require_yaml(path):
    """Refuse a file that cannot be read before Snakemake reads it, which ends in a traceback."""
    try:
        read_yaml(path)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def checked_config(given):
    """The config with defaults, after all checks; its files are read once more, for duplicate keys."""
    try:
        path_to_schema = os.path.join(workflow.basedir, "config", "config.schema.yaml")
        return check_config(given, workflow.configfiles, path_to_schema)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def enter_run():
    """Say whose jobs this process starts; the process that was asked for also clears up behind one that was killed."""
    locks.announce(config["run"])
    if workflow.is_main_process and (found := locks.remove_stale(config["run"])):
        print(f"note: {found}", file=sys.stderr)


def hold_run():
    """Keep other Snakemakes from this run while this one works on it; `--nolock` only looks on."""
    if workflow.is_main_process and workflow.execution_settings.lock:
        try:
            locks.claim(config["run"], jobs_are_local=workflow.local_exec)
        except InputError as error:
            raise WorkflowError(str(error)) from None


def all_manifests():
    """The manifest of everything that a run keeps, which `all` asks for: of a file that is gone, Snakemake would
    otherwise take no notice as long as what was made from it is there."""
    saes, splits = comparisons.all_saes(config), ["train", "validation", "probe"]
    trained = dict.fromkeys(sae.model for sae in comparisons.trained_saes(config))
    read = dict.fromkeys(sae.model for sae in saes)
    shown = [graph.SaeName(*pair) for pair in comparisons.leading_saes(config).items()]
    encoded = dict.fromkeys(sae for sae in [*shown, *compared_saes()] if not sae.sae.endswith("_shifted"))
    edges, lineage, parts = edge_names(), config["lineage"], config["activations"]
    train_shards, probe_shards = (graph.shard_names(parts[key]) for key in ("n_shards", "n_probe_shards"))
    wildcards = SimpleNamespace(run=config["run"])
    made = [
        expand("corpora/{corpus}/", corpus=config["corpora"]),
        "tokenizer/",
        expand("tokens/{corpus}/{split}.", corpus=config["corpora"], split=splits),
        expand("models/{model}/{part}", model=config["models"], part=["", "metrics."]),
        expand("activations/{model}/{c}/train/shard-{s}.", model=trained, c=sae_corpora(), s=train_shards),
        expand("activations/{model}/{c}/probe/shard-{s}.", model=read, c=config["corpora"], s=probe_shards),
        expand("saes/{s.model}/{s.sae}/", s=saes),
        expand("saes/{s.model}/{s.sae}/metrics.", s=comparisons.measured_saes(config)),
        expand("features/{e.model}/{e.sae}/{c}/shard-{s}.", e=encoded, c=config["corpora"], s=probe_shards),
        expand("correlations/{pair}/", pair=map(comparisons.pair_name, comparisons.all_pairs(config))),
        "lineage/",
        expand("lineage/readouts/{edge}.", edge=edges if lineage["readouts"] else []),
        expand("lineage/ablations/{edge}.", edge=edges if lineage["ablations"] else []),
        "labels/probe.",
        expand("sweeps/{sweep}.", sweep=config["sweeps"]),
        ["report/examples.", "report/dag.", "report/"],
        expand("report/data/{model}.", model=compared_models()),
    ]
    beside = [*all_token_types(wildcards), *all_labels(wildcards), *all_explanations(wildcards)]
    paths = [f"results/{config['run']}/{name}" for part in made for name in ([part] if isinstance(part, str) else part)]
    paths += [f"{os.path.splitext(path)[0]}." for path in beside]
    return [f"{path}manifest.json" for path in paths]


def manifests_of_whole_run(wildcards):
    """What `all` asks for beside results, if no file is damaged or another run's, of which Snakemake takes no notice.

    Other targets are made all the same: what a job reads, it checks itself, and `verify` reads everything. While
    another Snakemake works on the run there are files whose manifests are not written yet.
    """
    found = check_changes(f"results/{config['run']}") if locks.is_free(config["run"]) else []
    if found:
        more = [f"... and {len(found) - 5} more, which `snakemake --cores 2 verify` names"] if len(found) > 5 else []
        problems = "\n".join([*map(str, found[:5]), *more])
        # of other exceptions Snakemake makes a traceback
        sys.exit(f"error: files of results/{config['run']} are damaged; delete them and run again:\n{problems}")
    return all_manifests()


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
    trained = comparisons.trained_saes(config)
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


def sae_starts(wildcards):
    """The folders of the SAEs that an SAE's training starts from."""
    return sae_folders(wildcards, graph.starts(config, wildcards.sae))


def sae_folders(wildcards, saes):
    """What of some SAEs' folders a job reads."""
    path = "results/{run}/saes/{s.model}/{s.sae}/{name}"
    return expand(path, run=wildcards.run, s=saes, name=["cfg.json", "sae_weights.safetensors"])


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
    """All shards of the job's own model's activations on the probe."""
    return probe_shards(wildcards, wildcards.model)


def probe_shards(wildcards, model):
    """All shards of a model's activations on the probe, corpus after corpus."""
    return expand(
        "results/{run}/activations/{model}/{corpus}/probe/shard-{shard}.safetensors",
        run=wildcards.run,
        model=model,
        corpus=config["corpora"],
        shard=graph.shard_names(config["activations"]["n_probe_shards"]),
    )


def models_followed_by(saes):
    """A constraint on {model} in .../{model}/{sae}/... that lets only these pairs match."""
    return "|".join(f"{re.escape(model)}(?=/{re.escape(sae)}/)" for model, sae in saes) or "(?!)"


def trained_alone():
    """A constraint on {model}: those whose SAE is trained by a job of its own."""
    elsewhere = graph.sae_names(config) if config["saes"]["one_pass"] else []
    return models_followed_by(sae for sae in comparisons.trained_saes(config) if sae.sae not in elsewhere)


def trained_together():
    """A constraint on {model}: those whose SAEs are trained by one job."""
    return any_of(config["models"] if config["saes"]["one_pass"] else [])


def sae_features(wildcards, model, sae):
    """All feature shards of one SAE, corpus after corpus."""
    return expand(
        "results/{run}/features/{model}/{sae}/{corpus}/shard-{shard}.safetensors",
        run=wildcards.run,
        model=model,
        sae=sae,
        corpus=config["corpora"],
        shard=graph.shard_names(config["activations"]["n_probe_shards"]),
    )


def own_features(wildcards):
    """All feature shards of the job's own SAE."""
    return sae_features(wildcards, wildcards.model, wildcards.sae)


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


def all_pair_features(side):
    """An input function: feature shards of one SAE of a pair, all corpora and shards, in one order for both sides."""

    def of_pair(wildcards):
        return sae_features(wildcards, *getattr(wildcards, side).removesuffix("_shifted").split("."))

    return of_pair


def is_shifted(wildcards):
    """Whether side b is a null of shifted documents."""
    return wildcards.b.endswith("_shifted")


def pair_sums(wildcards):
    """Raw sums of a pair, all shards."""
    path = "results/{run}/correlations/{a}__{b}/sums-{shard}.safetensors"
    shards = graph.shard_names(config["activations"]["n_probe_shards"])
    return expand(path, run=wildcards.run, a=wildcards.a, b=wildcards.b, shard=shards)


def compared_saes():
    """What features are compared with, nulls among them."""
    return [sae for pair in comparisons.all_pairs(config) for sae in pair]


def correlation_of(wildcards, pairs):
    """The correlations of some pairs, by their names."""
    return expand("results/{run}/correlations/{pair}/correlation.safetensors", run=wildcards.run, pair=pairs)


def all_correlations(wildcards):
    """The correlation of every pair: edges, floors, nulls and other controls."""
    return correlation_of(wildcards, map(comparisons.pair_name, comparisons.all_pairs(config)))


def all_token_types(wildcards):
    """For each comparison and its floor, what the original study's protocol matches, where that is asked for."""
    rows = comparisons.plan(config)["comparisons"] if config["lineage"]["token_type"] else []
    pairs = dict.fromkeys(pair for row in rows for pair in (row["pair"], *row["floors"]))
    return expand("results/{run}/correlations/{pair}/token_types.safetensors", run=wildcards.run, pair=pairs)


def all_readouts(wildcards):
    """The readouts of all edges, where they are asked for."""
    edges = edge_names() if config["lineage"]["readouts"] else []
    return expand("results/{run}/lineage/readouts/{edge}.parquet", run=wildcards.run, edge=edges)


def all_ablations(suffix=""):
    """An input function: a file of the ablations of each edge, where they are asked for."""

    def of_run(wildcards):
        edges = edge_names() if config["lineage"]["ablations"] else []
        path = "results/{run}/lineage/ablations/{edge}{suffix}.parquet"
        return expand(path, run=wildcards.run, edge=edges, suffix=suffix)

    return of_run


def edge_dump(side):
    """An input function: activations on the probe of one model of an edge, all corpora and shards."""

    def of_edge(wildcards):
        return probe_shards(wildcards, getattr(wildcards, side))

    return of_edge


def edge_features(wildcards):
    """Feature shards of the parent's SAE that an edge's verdicts rest on, in the order of `edge_dump`."""
    return sae_features(wildcards, wildcards.parent, comparisons.leading_saes(config)[wildcards.parent])


def edge_model(side):
    """An input function: the folder of one model of an edge."""

    def of_edge(wildcards):
        return model_files(wildcards, getattr(wildcards, side))

    return of_edge


def edge_sae(side):
    """An input function: the folder of one of the SAEs that an edge's verdicts rest on."""

    def of_edge(wildcards):
        model = getattr(wildcards, side)
        return sae_folders(wildcards, [graph.SaeName(model, comparisons.leading_saes(config)[model])])

    return of_edge


def edge_names():
    """Names of the edges' tables: {parent}__{child}."""
    return [f"{edge.parent}__{edge.child}" for edge in graph.edges(config)]


def swept_model(wildcards):
    """The merged model of a sweep."""
    return config["sweeps"][wildcards.sweep]["model"]


def swept_coefficients(wildcards):
    """The coefficients of a sweep."""
    return config["sweeps"][wildcards.sweep]["t"]


def swept_setting(name):
    """An input function: a setting of the swept merge itself."""

    def of_sweep(wildcards):
        return config["models"][swept_model(wildcards)]["merge"][name]

    return of_sweep


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
    """Models of the lineage without parents."""
    return [model for model in graph.lineage_models(config) if not graph.parents(config, model)]


def compared_models():
    """Models of the lineage with a parent or a child, whose features the page can show."""
    edges = graph.edges(config)
    return [model for model in graph.lineage_models(config) if any(model in edge for edge in edges)]


def root_edge_tables(wildcards):
    """Verdicts of every edge that starts at a model without parents."""
    edges = [f"{edge.parent}__{edge.child}" for edge in graph.edges(config) if edge.parent in root_models()]
    return expand("results/{run}/lineage/edges/{edge}.parquet", run=wildcards.run, edge=edges)


def root_seed_pairs():
    """For each model without parents, its SAE that verdicts rest on and another of it, where it has one."""
    return [pair for model in root_models() for pair in comparisons.other_pairs(config, model)[:1]]


def root_seed_correlations(wildcards):
    """The correlations of `root_seed_pairs`."""
    return correlation_of(wildcards, map(comparisons.pair_name, root_seed_pairs()))


def lineage_features(wildcards):
    """Feature shards of the SAEs that verdicts rest on, all in one order of corpora and shards."""
    return [path for item in comparisons.leading_saes(config).items() for path in sae_features(wildcards, *item)]


def shown_features(wildcards):
    """Feature shards of the SAEs that examples are taken from, in the order of `lineage_features`."""
    others = [path for _, second in root_seed_pairs() for path in sae_features(wildcards, *second)]
    return lineage_features(wildcards) + others


def leading_labels(wildcards, model, suffix=""):
    """The labels of a model's SAE that verdicts rest on."""
    path = "results/{run}/labels/{model}/{sae}{suffix}.parquet"
    return expand(path, run=wildcards.run, model=model, sae=comparisons.leading_saes(config)[model], suffix=suffix)


def own_labels(wildcards):
    """The labels of the features of the job's own model."""
    return leading_labels(wildcards, wildcards.model)


def all_explanations(wildcards):
    """The written explanations of the features of every lineage model, where they are asked for."""
    asked = graph.lineage_models(config) if "explanations" in config["labels"] else []
    return [path for model in asked for path in leading_labels(wildcards, model, ".explanations")]


def own_explanations(wildcards):
    """The written explanations of the features of the job's own model, where they are asked for."""
    asked = "explanations" in config["labels"]
    return leading_labels(wildcards, wildcards.model, ".explanations") if asked else []


def all_labels(wildcards):
    """The labels of the features of every model of the lineage, in order."""
    return [path for model in graph.lineage_models(config) for path in leading_labels(wildcards, model)]


def root_labels(wildcards):
    """The labels of the features of models without parents."""
    return [path for model in root_models() for path in leading_labels(wildcards, model)]


def own_edge_tables(wildcards):
    """Verdicts of every edge from or to the job's own model."""
    edges = [f"{edge.parent}__{edge.child}" for edge in graph.edges(config) if wildcards.model in edge]
    return expand("results/{run}/lineage/edges/{edge}.parquet", run=wildcards.run, edge=edges)


def own_floors(wildcards):
    """Correlations of the job's own model's SAE with what it is where nothing changed."""
    pairs = comparisons.no_change_pairs(config, wildcards.model)
    return correlation_of(wildcards, map(comparisons.pair_name, pairs))


def own_leading_sae(wildcards):
    """The folder of the SAE of the job's own model that verdicts rest on."""
    return sae_folders(wildcards, [graph.SaeName(wildcards.model, comparisons.leading_saes(config)[wildcards.model])])


def edge_correlations(wildcards):
    """The correlation behind each edge, in the order of `edge_names`."""
    leading = comparisons.instruments(config)[0]
    pairs = [comparisons.edge_pair(config, leading, edge) for edge in graph.edges(config)]
    return correlation_of(wildcards, map(comparisons.pair_name, pairs))


def page_sources():
    """The files that the page is made from, as seen from the working directory."""
    folder = os.path.join(workflow.basedir, "workflow", "report")
    names = ["page.html.jinja", "page.css", "jobs.css", "elements.js", "explorer.js", "jobs.js", "page.js"]
    return [os.path.relpath(os.path.join(folder, name)) for name in names]


def rules_digest():
    """A digest of the Snakefile and all rules, which decide what the graph of jobs looks like."""
    folder = os.path.join(workflow.basedir, "rules")
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".smk")]
    return sha256_json([sha256_file(path) for path in [os.path.join(workflow.basedir, "Snakefile"), *paths]])


# What jobs ask for on a cluster (docs/cluster.md). A need is an input function that gives bytes and operations; where
# it looks at files that are not there yet, Snakemake asks again when they are.


def memory(need):
    """An input function: MB of memory, more at each attempt."""

    def of_job(wildcards, input, attempt):
        return sizes.memory_mb(need(wildcards, input).n_bytes, attempt)

    return of_job


def runtime(need):
    """An input function: minutes, more at each attempt."""

    def of_job(wildcards, input, attempt, threads):
        return sizes.runtime_minutes(need(wildcards, input).flop, threads, attempt)

    return of_job


def needs_hub(blocks):
    """Whether something of the config is fetched from the hub, so that jobs of its kind run where Snakemake does."""
    return any(block.get("source") == "hub" or "hub" in block or block.get("repo") for block in blocks)


def sae_imports():
    """Where SAEs are taken over from."""
    return [graph.sae_settings(config, *sae)["import"] for sae in graph.imported_saes(config)]


def batch_tokens():
    """Tokens of a forward pass."""
    return config["batch_rows"] * config["tokens"]["n_ctx"]


def n_tokens(paths):
    """Tokens in some arrays of token rows, at most: two bytes each."""
    return sizes.all_bytes(path for path in paths if path.endswith(".npy")) // 2


def model_of(paths):
    """The size of the model that some files of one folder belong to."""
    return sizes.model_size(os.path.dirname(paths[0]))


def training_need(model, settings, tokens):
    """Training a language model."""
    trained = settings["n_tokens"] or round(settings["epochs"] * n_tokens(tokens))
    held = sizes.training_bytes(model, settings["batch_rows"] * config["tokens"]["n_ctx"])
    return sizes.Need(held, sizes.training_flop(model, trained))


def pretraining(wildcards, input):
    """Need of `pretrain_model`."""
    settings = model_settings(wildcards)
    model = sizes.pretrained_size(settings, config["tokenizer"].get("vocab_size", sizes.LARGE_VOCABULARY))
    return training_need(model, settings, input.tokens)


def finetuning(wildcards, input):
    """Need of `finetune_model`."""
    return training_need(model_of(input.parent), model_settings(wildcards), input.tokens)


def merging(wildcards, input):
    """Need of jobs that hold all their inputs, and as much again."""
    return sizes.Need(2 * sizes.all_bytes(input))


def measuring_model(wildcards, input):
    """Need of `evaluate_model`."""
    model = model_of(input.model)
    held = sizes.forward_bytes(model, batch_tokens())
    return sizes.Need(held, sizes.forward_flop(model, n_tokens(input.validation)))


def dumping(shards, most):
    """A need: reading one of some shards of all corpora, of each of which at most so many tokens are read."""

    def of_job(wildcards, input):
        model, read = model_of(input.model), [min(n_tokens([path]), most or n_tokens([path])) for path in input.tokens]
        shard = sizes.DumpSize(max(read, default=0) // shards, model.d_in(config["activations"]["hookpoint"]))
        held = sizes.dump_bytes(model, batch_tokens(), shard, config["activations"]["dtype"])
        return sizes.Need(held, sizes.forward_flop(model, sum(read) // shards))

    return of_job


def training_saes(settings_of_job):
    """A need: training SAEs with these settings, by their names."""

    def of_job(wildcards, input):
        settings, dump = list(settings_of_job(wildcards).values()), sizes.dump_size(input.shards)
        sae = sizes.SaeSize(dump.d_in, round(dump.d_in * max(one["expansion_factor"] for one in settings)))
        held = sizes.sae_training_bytes(sae, max(one["batch_tokens"] for one in settings), len(settings))
        trained = sum(one["n_tokens"] or dump.n_tokens for one in settings)
        return sizes.Need(held, sizes.sae_training_flop(sae, trained))

    return of_job


def measuring_sae(wildcards, input):
    """Need of `evaluate_sae`."""
    model, sae = measuring_model(wildcards, input), sizes.sae_size(os.path.dirname(input.weights))
    flop = sizes.encoding_flop(sae, n_tokens(input.validation))
    return sizes.Need(model.n_bytes + sizes.encoding_bytes(sae, 0), model.flop * 4 + flop)


def encoding(wildcards, input):
    """Need of `encode_features`."""
    sae, dump = sizes.sae_size(os.path.dirname(input.weights)), sizes.dump_size(input.activations)
    held = sizes.encoding_bytes(sae, sizes.most_bytes(input.activations))
    return sizes.Need(held, sizes.encoding_flop(sae, dump.n_tokens))


def correlating(wildcards, input):
    """Need of jobs that sum products, or correlate features, of two SAEs."""
    d_sae = sizes.feature_width([*input.a[:1], *input.b[:1]])
    shards, entries = sizes.most_bytes(input.a) + sizes.most_bytes(input.b), sizes.all_bytes(input.a) // 8
    held = sizes.correlation_bytes(d_sae, config["correlations"]["block_features"], shards)
    return sizes.Need(held, sizes.correlation_flop(d_sae, entries, sizes.MANY_ACTIVE))


def reading_out(wildcards, input):
    """Need of `read_out_features`."""
    dump, d_sae = sizes.dump_size(input.child_acts), sizes.feature_width(input.features[:1])
    held = sizes.readout_bytes(dump, d_sae, sizes.most_bytes(input.child_acts))
    return sizes.Need(held, sizes.readout_flop(dump, d_sae))


def ablating(wildcards, input):
    """Need of `ablate_groups`: two models and their SAEs, measured again for each group and feature."""
    model, sae = model_of(input.parent_model), sizes.sae_size(os.path.dirname(input.parent_sae[0]))
    settings = config["lineage"]
    tokens = settings["ablated_rows"] * config["tokens"]["n_ctx"] * len(config["corpora"])
    times = 2 * (sizes.ABLATED_GROUPS + settings["ablated_features"])
    flop = times * (sizes.forward_flop(model, tokens) + 2 * sizes.encoding_flop(sae, tokens))
    return sizes.Need(2 * (sizes.forward_bytes(model, batch_tokens()) + sizes.encoding_bytes(sae, 0)), flop)


def sweeping(wildcards, input):
    """Need of `sweep_merge`: both parents and the merge, measured once for each coefficient."""
    model = model_of(input.parents)
    flop = len(swept_coefficients(wildcards)) * sizes.forward_flop(model, n_tokens(input.validation))
    return sizes.Need(3 * sizes.forward_bytes(model, batch_tokens()), flop)


def reading_all(wildcards, input):
    """Need of jobs that read all their inputs into tables several times their size."""
    return sizes.Need(4 * sizes.all_bytes(input))
