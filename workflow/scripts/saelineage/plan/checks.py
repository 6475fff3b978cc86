"""Checks of a config against itself and against the files it names, before the first job.

Every mistake ends in one sentence that names the key, what must hold, and the next step.
"""

import os
from collections.abc import Iterable, Mapping

from saelineage.errors import InputError
from saelineage.plan.comparisons import NULLS, pair_name
from saelineage.plan.graph import POOLED
from saelineage.plan.instruments import instrument
from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import ONE_SAE, SAME_IN_ONE_PASS, SaeName
from saelineage.plan.user_files import find_files, require_no_braces

SUM_TOLERANCE = 1e-6
SHAPE_KEYS = ("n_layers", "d_model", "d_mlp", "n_heads", "n_kv_heads", "tie_embeddings")
MOST_JOBS = 50_000
"""Most jobs that one key may ask for. Snakemake plans about 1,000 a second."""
MOST_COMBINATIONS = 5_000
"""Most combinations of models, seeds and budgets: SAEs and comparisons grow with these, and counting takes long."""
MOST_IN_NAME = 200
"""Most characters in the name of a pair of SAEs. A file system allows 255, some of which go to endings."""


def check(plan: Plan) -> None:
    """Refuse a config whose parts contradict each other.

    Raises:
        InputError: on the first mistake, saying which key, what must hold and what was met.
    """
    check_combinations(plan)
    check_lineage(plan)
    check_instruments(plan)
    check_corpora(plan)
    check_tokens(plan)
    check_training(plan)
    check_saes(plan)
    check_sweeps(plan)
    check_size(plan)


def check_combinations(plan: Plan) -> None:
    """Few enough models, seeds and budgets to look at each combination."""
    models, seeds = len(plan.graph.models), len(plan.saes.seeds)
    budgets = len(plan.config["lineage"]["budgets"])
    if models * seeds * (1 + budgets) > MOST_COMBINATIONS:
        raise InputError(
            f"saes.seeds: models x seeds x (1 + lineage.budgets) must be at most {MOST_COMBINATIONS}, but "
            f"{models} x {seeds} x {1 + budgets} are {models * seeds * (1 + budgets)}; leave out some of them"
        )


def check_lineage(plan: Plan) -> None:
    """Parents exist, there is no cycle, and models that are merged have one shape."""
    models = plan.config["models"]
    for model in models:
        for parent in plan.graph.parents(model):
            key = f"models.{model}.{plan.graph.kind(model)}"
            _require_known(parent, models, f"{key}: parent", "models")
            if parent == model:
                raise InputError(f"{key}: a model cannot be its own parent; name another model")
    for model in plan.graph.of_kind("reinitialise"):
        like = plan.graph.settings(model)["like"]
        _require_known(like, models, f"models.{model}.reinitialise: like", "models")
        if plan.graph.kind(like) == "reinitialise":
            raise InputError(f"models.{model}.reinitialise: '{like}' is re-initialised itself; name a trained model")
    try:
        ordered = plan.graph.ordered
    except ValueError as error:
        raise InputError(f"models: {error}; the lineage must be acyclic, so change one of their parents") from error
    for model in plan.graph.of_kind("reinitialise"):
        like = plan.graph.settings(model)["like"]
        if model in plan.graph.ancestors(like):
            raise InputError(f"models.{model}.reinitialise: '{like}' descends from it; name another model")
    shapes: dict[str, dict | None] = {}
    for model in ordered:
        shapes[model] = _shape(plan, model, shapes)
        if plan.graph.kind(model) == "merge":
            _require_one_shape(model, plan.graph.parents(model), shapes)


def check_instruments(plan: Plan) -> None:
    """Controls are models, and merges have an SAE to start from where anything is anchored."""
    models, key = plan.config["models"], "lineage.controls"
    for null in NULLS:
        for model in models:
            if model == null:
                raise InputError(f"models: '{null}' is the name of a null; rename that model")
            if model.endswith(f"_{null}"):
                raise InputError(f"models: '{model}' ends as the name of a null does (_{null}); rename that model")
    for child, names in plan.config["lineage"]["controls"].items():
        _require_known(child, models, key, "models")
        if not plan.graph.parents(child):
            raise InputError(f"{key}: '{child}' has no parent that models could be compared with in its place")
        for name in names:
            _require_known(name, models, f"{key}.{child}", "models")
        if child in plan.graph.outside:
            raise InputError(f"{key}.{child}: '{child}' itself, or a model it descends from, is named; name others")
    if all(not instrument(name).is_anchored for name in plan.comparisons.instruments):
        return
    for merge in plan.comparisons.merges:
        line = plan.graph.ancestors(merge)
        roots = [model for model in line if not plan.graph.parents(model)]
        if len(roots) > 1:
            raise InputError(
                f"lineage.instruments: a merge's SAE starts from the average of its parents', which must descend from "
                f"one model's, but '{merge}' descends from {', '.join(roots)}; use independent alone"
            )


def check_corpora(plan: Plan) -> None:
    """Corpora that stages name are defined, shares sum to 1, and files are where they are said to be."""
    corpora = plan.config["corpora"]
    if POOLED in corpora:
        raise InputError(f"corpora: '{POOLED}' is the name of all corpora together; rename that corpus")
    for corpus in plan.config["tokenizer"].get("corpora", []):
        _require_known(corpus, corpora, "tokenizer.corpora", "corpora")
    for corpus in plan.config["labels"]["syntax"]:
        _require_known(corpus, corpora, "labels.syntax", "corpora")
    for model in plan.graph.of_kind("pretrain", "finetune"):
        key = f"models.{model}.{plan.graph.kind(model)}.corpora"
        shares = plan.graph.settings(model)["corpora"]
        for corpus in shares:
            _require_known(corpus, corpora, key, "corpora")
        if abs(sum(shares.values()) - 1) > SUM_TOLERANCE:
            raise InputError(f"{key}: shares must sum to 1, but {shares} sum to {sum(shares.values()):g}")
    if plan.config["splits"]["validation"] + plan.config["splits"]["probe"] >= 1:
        raise InputError("splits: validation and probe must leave documents to train on; make their sum less than 1")


def check_tokens(plan: Plan) -> None:
    """Limits on tokens leave at least one row, and one for every shard of a dump."""
    n_ctx, n_shards = plan.config["tokens"]["n_ctx"], plan.config["activations"]["n_shards"]
    for split, most in plan.config["tokens"]["max_tokens"].items():
        if most is not None and most < n_ctx:
            raise InputError(f"tokens.max_tokens.{split}: must hold a row of n_ctx ({n_ctx}) tokens; {most} does not")
    most = plan.config["activations"]["max_tokens"]
    if most is not None and most < n_shards * n_ctx:
        raise InputError(
            f"activations.max_tokens: must hold a row of n_ctx ({n_ctx}) tokens for each of n_shards ({n_shards}); "
            f"{most} does not"
        )


def check_training(plan: Plan) -> None:
    """Each training says how long it lasts, once; heads divide the width; the hookpoint's layer exists."""
    for model in plan.graph.of_kind("pretrain", "finetune"):
        key = f"models.{model}.{plan.graph.kind(model)}"
        settings = plan.graph.settings(model)
        if (settings["n_tokens"] is None) == (settings["epochs"] is None):
            raise InputError(f"{key}: give one of n_tokens and epochs, to say how long the training lasts")
        if (
            settings["n_tokens"] is not None
            and settings["n_tokens"] < settings["batch_rows"] * plan.config["tokens"]["n_ctx"]
        ):
            raise InputError(
                f"{key}.n_tokens: must fill one step of batch_rows x n_ctx tokens; {settings['n_tokens']} does not"
            )
    for model in plan.graph.of_kind("pretrain"):
        settings, key = plan.config["models"][model]["pretrain"], f"models.{model}.pretrain"
        if settings["d_model"] % (2 * settings["n_heads"]):
            raise InputError(
                f"{key}: d_model ({settings['d_model']}) must be divisible by 2 x n_heads ({settings['n_heads']})"
            )
        if settings["n_heads"] % settings["n_kv_heads"]:
            raise InputError(
                f"{key}: n_heads ({settings['n_heads']}) must be divisible by n_kv_heads ({settings['n_kv_heads']})"
            )
        layer = _hooked_layer(plan.config["activations"]["hookpoint"])
        if layer is not None and layer >= settings["n_layers"]:
            raise InputError(
                f"activations.hookpoint: '{plan.config['activations']['hookpoint']}' needs layer {layer}, "
                f"but {key} has n_layers {settings['n_layers']}; name a layer from 0 to {settings['n_layers'] - 1}"
            )


def check_saes(plan: Plan) -> None:
    """Overrides name models and seeds that exist, corpora that exist, and a k that the SAE has latents for."""
    for model, overrides in plan.config["saes"]["models"].items():
        _require_known(model, plan.config["models"], "saes.models", "models")
        names = [sae.sae for sae in plan.comparisons.saes if sae.model == model]
        for key in overrides:
            if ONE_SAE.match(key):
                _require_known(key, names, f"saes.models.{model}", "the SAEs of that model")
                if overrides[key].get("import") and key not in plan.saes.seed_names:
                    raise InputError(
                        f"saes.models.{model}.{key}: only SAEs of saes.seeds can be imported, because others start "
                        "from a parent's or share a seed; leave out `import`"
                    )
    if plan.config["saes"]["anchored"].get("import"):
        raise InputError("saes.anchored: SAEs that start from a parent's are trained, so leave out `import` there")
    for sae in plan.comparisons.saes:
        settings = plan.saes.settings(*sae)
        for corpus in settings["corpora"]:
            _require_known(corpus, plan.config["corpora"], f"saes.corpora (for {sae})", "corpora")
        if settings["target_l0"] and not settings["sparsity_coefficient"]:
            raise InputError(
                f"saes.sparsity_coefficient (for {sae}) must be above 0 with a target_l0, because it is multiplied "
                f"until l0 is {settings['target_l0']:g}; leave it out, or give it a small value"
            )
    check_starts(plan)
    check_one_pass(plan)
    check_imports(plan)


def check_starts(plan: Plan) -> None:
    """An SAE is of the kind and size of the one it starts from, as far as the config tells."""
    imported = plan.saes.imported
    for sae in plan.comparisons.saes:
        settings = plan.saes.settings(*sae)
        for start in plan.saes.starts(sae.sae):
            of_start = plan.saes.settings(*start)
            for key in ("architecture", "expansion_factor"):
                if start not in imported and settings[key] != of_start[key]:
                    raise InputError(
                        f"saes.{key} of {sae} is {settings[key]}, but it starts from {start}, which has "
                        f"{of_start[key]}; set it for all SAEs (saes.{key}), not under saes.anchored or saes.models"
                    )


def check_one_pass(plan: Plan) -> None:
    """SAEs that are trained off one pass see the same batches."""
    if not plan.config["saes"]["one_pass"]:
        return
    if imported := plan.saes.imported:
        raise InputError(f"saes.one_pass trains all SAEs, but {imported[0]} has `import`; leave out one of the two")
    for model in plan.config["models"]:
        first, *others = [plan.saes.settings(*sae) for sae in plan.saes.of_seeds(model)]
        for key in SAME_IN_ONE_PASS:
            if any(other[key] != first[key] for other in others):
                raise InputError(
                    f"saes.{key} must be the same for all SAEs of '{model}' with saes.one_pass, because they see the "
                    "same batches; set it for the model, or one_pass to false"
                )


def check_imports(plan: Plan) -> None:
    """An imported SAE comes from one place, and is not compared with itself for a noise floor."""
    sources: dict[SaeName, dict] = {}
    for sae in plan.saes.imported:
        settings = plan.saes.settings(*sae)["import"]
        source = {key: settings[key] for key in ("folder", "repo", "revision", "subfolder") if key in settings}
        if set(source) != {"folder"} and set(source) - {"subfolder"} != {"repo", "revision"}:
            raise InputError(
                f"saes.import (for {sae}): must name a folder, or a repo with its revision (and a subfolder), "
                f"got {sorted(source)}; keep one of the two"
            )
        twin = next((other for other in sources if other.model == sae.model and sources[other] == source), None)
        if twin:
            raise InputError(
                f"saes.import: {twin} and {sae} would be one SAE, whose agreement with itself is no noise floor; "
                "import another for one of them, train one (import: null), or leave one seed in saes.seeds"
            )
        sources[sae] = source


def check_sweeps(plan: Plan) -> None:
    """A sweep's model is a merge, and its corpora exist."""
    for sweep, settings in plan.config["sweeps"].items():
        _require_known(settings["model"], plan.config["models"], f"sweeps.{sweep}.model", "models")
        if plan.graph.kind(settings["model"]) != "merge":
            raise InputError(
                f"sweeps.{sweep}.model: must be a merged model, but '{settings['model']}' is not; name a merge"
            )
        for corpus in settings.get("corpora", []):
            _require_known(corpus, plan.config["corpora"], f"sweeps.{sweep}.corpora", "corpora")


def check_size(plan: Plan) -> None:
    """Names fit into file names, and Snakemake can hold the jobs in mind."""
    longest = max(map(pair_name, plan.comparisons.pairs), key=len, default="")
    if len(longest) > MOST_IN_NAME:
        raise InputError(
            f"models: a pair of SAEs would be called '{longest}', which at {len(longest)} characters is too long for a "
            f"file name (at most {MOST_IN_NAME}); give the models shorter names"
        )
    for key, n_jobs in _scattered_jobs(plan).items():
        if n_jobs > MOST_JOBS:
            shards = plan.config["activations"][key]
            raise InputError(
                f"activations.{key}: must leave at most {MOST_JOBS} jobs, but {shards} shards of "
                f"{len(plan.config['corpora'])} corpora and {len(plan.config['models'])} models are {n_jobs}; lower it"
            )


def _scattered_jobs(plan: Plan) -> dict[str, int]:
    """Jobs that there are one of for each shard, by the key that says how many shards."""
    each = len(plan.config["corpora"]) * len(plan.config["models"])
    probe = each + len(plan.config["corpora"]) * len(plan.comparisons.saes) + len(plan.comparisons.pairs)
    of_key = {"n_shards": each, "n_probe_shards": probe}
    return {key: n_jobs * plan.config["activations"][key] for key, n_jobs in of_key.items()}


def check_files(plan: Plan) -> None:
    """Every file and folder that the config names is where it says.

    Raises:
        InputError: naming the key of the first that is not.
    """
    for corpus, settings in plan.config["corpora"].items():
        if settings["source"] == "files":
            find_files(corpus, settings, plan.config["corpora_dir"])
    folders = {
        f"models.{model}.path.folder": plan.config["models"][model]["path"]["folder"]
        for model in plan.graph.of_kind("path")
    }
    folders |= {
        f"saes.import.folder (for {sae})": plan.saes.settings(*sae)["import"].get("folder", ".")
        for sae in plan.saes.imported
    }
    if plan.config["tokenizer"]["source"] == "path":
        folders["tokenizer.path"] = plan.config["tokenizer"]["path"]
    for key, folder in folders.items():
        try:
            require_no_braces([os.path.join(folder, name) for name in sorted(os.listdir(folder))] or [folder], key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{key}: '{folder}' is not a folder; correct the path") from error
        except OSError as error:
            raise InputError(f"{key}: '{folder[:200]}' cannot be read ({error.strerror}); correct the path") from error


def _shape(plan: Plan, model: str, shapes: Mapping[str, dict | None]) -> dict | None:
    """The sizes of a model as far as the config tells: its own, or those it takes over from its parent."""
    if plan.graph.kind(model) == "pretrain":
        return {key: plan.config["models"][model]["pretrain"][key] for key in SHAPE_KEYS}
    if plan.graph.kind(model) in ("finetune", "merge"):
        return shapes[plan.graph.parents(model)[0]]
    return None


def _require_one_shape(model: str, parents: list[str], shapes: Mapping[str, dict | None]) -> None:
    of_parents = [(parent, shape) for parent in parents if (shape := shapes[parent]) is not None]
    for parent, shape in of_parents[1:]:
        first, expected = of_parents[0]
        differing = next((key for key in SHAPE_KEYS if shape[key] != expected[key]), None)
        if differing:
            raise InputError(
                f"models.{model}.merge: parents must have one shape, but {differing} is {expected[differing]} "
                f"in '{first}' and {shape[differing]} in '{parent}'; merge models of one base"
            )


def _hooked_layer(hookpoint: str) -> int | None:
    """The first number in a hookpoint's dotted name: the layer, in every Hugging Face model."""
    return next((int(part) for part in hookpoint.split(".") if part.isdigit()), None)


def _require_known(name: str, names: Iterable[str], key: str, where: str) -> None:
    if name not in names:
        raise InputError(
            f"{key}: '{name}' is not among {where} ({', '.join(sorted(names))}); correct the name or add it there"
        )
