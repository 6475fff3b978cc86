"""Checks of a config that the schema cannot express, before the first job: keys against each other and against files.

Every mistake ends in one sentence with the key, the requirement, the value and the next step.
"""

import os
from collections.abc import Iterable, Mapping
from math import prod

from saelineage.errors import InputError
from saelineage.plan.comparisons import RANDOM_CONTROLS, pair_name
from saelineage.plan.crosscoders import CROSSCODER
from saelineage.plan.graph import CONTINUED, KEPT, POOLED, REVIVED, TWIN
from saelineage.plan.instruments import instrument
from saelineage.plan.merges import needs_choice, sweeps_behind
from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import ONE_SAE, SAME_IN_ONE_PASS, SaeName
from saelineage.plan.steps import require_before_end
from saelineage.plan.text_formats import MESSAGE_FORMATS, text_format
from saelineage.plan.user_files import find_files, require_content, require_no_braces

SUM_TOLERANCE = 1e-6
SHAPE_KEYS = ("n_layers", "d_model", "d_mlp", "n_heads", "n_kv_heads", "tie_embeddings")
MOST_JOBS = 50_000
"""Limit on the jobs that one key asks for. Snakemake plans about 1,000 a second."""
MOST_COMBINATIONS = 5_000
"""Limit on models x seeds x budgets x hookpoints. SAEs and comparisons grow with it, and take long to enumerate."""
MOST_IN_NAME, MOST_IN_LOG = 200, 235
"""Limits on the name of a pair of SAEs, alone and behind a hookpoint. File systems allow 255 with endings."""


def check(plan: Plan) -> None:
    """Refuse a config whose parts contradict each other.

    Raises:
        InputError: on the first mistake, with the key, the requirement and the value.
    """
    check_combinations(plan)
    check_hookpoints(plan)
    check_lineage(plan)
    check_adapters(plan)
    check_instruments(plan)
    check_corpora(plan)
    check_tokens(plan)
    check_training(plan)
    check_saes(plan)
    check_sweeps(plan)
    check_swept_settings(plan)
    check_size(plan)


def check_combinations(plan: Plan) -> None:
    """There are few enough models, seeds, budgets and hookpoints to enumerate their combinations."""
    factors = [len(plan.graph.models), len(plan.saes.seeds), 1 + len(plan.config["lineage"]["budgets"])]
    factors.append(len(plan.hookpoints))
    if prod(factors) > MOST_COMBINATIONS:
        raise InputError(
            f"saes.seeds: models x seeds x (1 + lineage.budgets) x hookpoints must be at most {MOST_COMBINATIONS}, but "
            f"{' x '.join(map(str, factors))} are {prod(factors)}; leave some out"
        )


def check_hookpoints(plan: Plan) -> None:
    """Each hookpoint is a place of its own, and settings are of hookpoints that there are."""
    names: dict[str, str] = {}
    for name, place in plan.hookpoints.items():
        if place in names:
            raise InputError(
                f"activations.hookpoints: each must be another place, but '{names[place]}' and '{name}' are both "
                f"'{place}'; leave one out"
            )
        names[place] = name
    for hookpoint in plan.config["saes"]["hookpoints"]:
        _require_listed(hookpoint, plan.hookpoints, "saes.hookpoints", "activations.hookpoints")


def check_lineage(plan: Plan) -> None:
    """Parents exist, there is no cycle, and merged models have the same shape."""
    models = plan.config["models"]
    check_kept(plan)
    check_frozen(plan)
    check_trained_controls(plan)
    check_revived(plan)
    for model in models:
        for parent in plan.graph.parents(model):
            key = f"models.{model}.{plan.graph.kind(model)}"
            _require_listed(parent, models, f"{key}: parent", "models")
            if parent == model:
                raise InputError(f"{key}: '{model}' cannot be its own parent; name another model")
    for model in plan.graph.of_kind("merge"):
        if (base := plan.graph.merge(model)["base"]) is not None:
            _require_listed(base, models, f"models.{model}.merge.base", "models")
        for corpus in plan.graph.merge(model)["chosen_on"] or []:
            _require_listed(corpus, plan.config["corpora"], f"models.{model}.merge.chosen_on", "corpora")
    for model in plan.graph.of_kind("reinitialise"):
        like = plan.graph.settings(model)["like"]
        _require_listed(like, models, f"models.{model}.reinitialise: like", "models")
        if plan.graph.kind(like) == "reinitialise":
            raise InputError(
                f"models.{model}.reinitialise: like: '{like}' is also re-initialised; name a trained model"
            )
    try:
        ordered = plan.graph.ordered
    except ValueError as error:
        raise InputError(f"models: {error}; change the parent of one of them") from error
    for model in plan.graph.of_kind("reinitialise"):
        like = plan.graph.settings(model)["like"]
        if model in plan.graph.ancestors(like):
            raise InputError(f"models.{model}.reinitialise: like: '{like}' descends from '{model}'; name another model")
    shapes: dict[str, dict | None] = {}
    for model in ordered:
        shapes[model] = _shape(plan, model, shapes)
        if plan.graph.kind(model) == "merge":
            _require_earlier_base(plan, model)
            _require_one_shape(model, plan.graph.needed(model), shapes)
    check_edges_of_controls(plan)


def _require_earlier_base(plan: Plan, model: str) -> None:
    base = plan.graph.merge_base(model)
    if base is not None and model in [base, *plan.graph.ancestors(base)]:
        raise InputError(
            f"models.{model}.merge.base: must be a model that does not descend from the merge, but '{base}' does; name "
            "another one"
        )


def check_kept(plan: Plan) -> None:
    """Models are kept from fine-tunes of this run, each at a step of its own that comes before the last one."""
    n_ctx = plan.config["tokens"]["n_ctx"]
    for model in plan.graph.of_kind(KEPT):
        key, block = f"models.{model}.{KEPT}", plan.graph.block(model)
        of, step = block["of"], block["step"]
        remedy = "name a fine-tune with all weights"
        _require_kind(plan, of, f"{key}: of", ("finetune",), "only these are trained here from another model", remedy)
        settings = plan.graph.block(of)
        if "lora" in settings:
            raise InputError(
                f"{key}: of: models can be kept only of trainings of all weights, but '{of}' has lora; leave out "
                "keep_steps or lora"
            )
        if plan.graph.kept_steps(of).count(step) > 1:
            raise InputError(f"{key}.step: there must be one model of each step, but two of step {step}; leave one out")
        if settings["n_tokens"] is not None:
            require_before_end([step], settings["n_tokens"] // n_ctx // settings["batch_rows"], of)


def check_frozen(plan: Plan) -> None:
    """A fine-tune trains an adapter, or leaves some weights as they are, but not both."""
    for model in plan.graph.of_kind("finetune"):
        if {"lora", "freeze"} <= plan.graph.block(model).keys():
            raise InputError(
                f"models.{model}.finetune: must have lora or freeze, not both, because lora leaves all weights of the "
                "parent as they are already; leave one of them out"
            )


def check_trained_controls(plan: Plan) -> None:
    """Twins and continued models name trainings of this run that they can repeat, and have seeds of their own."""
    for model in plan.graph.of_kind(TWIN):
        key, block = f"models.{model}.{TWIN}", plan.graph.block(model)
        remedy = "name a fine-tune (of a merge's parents, whose twins can be merged and listed under lineage.controls)"
        _require_kind(plan, block["of"], f"{key}: of", ("finetune",), "only that can be repeated from a seed", remedy)
        _require_other_seed(plan, block["of"], block["seed"], key)
        if steps := plan.graph.kept_steps(block["of"]):
            raise InputError(
                f"{key}: of: must name a fine-tune that is compared with its parent, but '{block['of']}' is compared "
                f"with its own step {steps[-1]}; leave keep_steps out there, or the twin"
            )
    for model in plan.graph.of_kind(CONTINUED):
        key, block = f"models.{model}.{CONTINUED}", plan.graph.block(model)
        parent, like = block["parent"], block["like"]
        remedy = f"fine-tune '{parent}' on a corpus like its own, and list that model under lineage.controls"
        kinds = ("pretrain", "finetune")
        _require_kind(plan, parent, f"{key}: parent", kinds, "only of these the mixture of corpora is known", remedy)
        remedy = f"name a child of '{parent}'"
        _require_kind(plan, like, f"{key}: like", ("finetune",), "it gives the settings of the training", remedy)
        if block["n_tokens"] is None and plan.graph.block(like)["n_tokens"] is None:
            raise InputError(
                f"{key}: like: must name a fine-tune of n_tokens, but '{like}' is trained for epochs, which mean "
                "another number on other corpora; give n_tokens here"
            )
        _require_other_seed(plan, parent, block["seed"], key)
        if block["n_tokens"] is None and (steps := plan.graph.kept_steps(like)):
            raise InputError(
                f"{key}: like: must name a fine-tune that is compared with '{parent}', but '{like}' has kept steps, "
                f"and only the first, {steps[0]}, is; give the n_tokens of that step here"
            )


def check_revived(plan: Plan) -> None:
    """Revived models start from a fine-tune whose parent's corpora are known, and have a continued one as control."""
    for model in plan.graph.of_kind(REVIVED):
        key, block = f"models.{model}.{REVIVED}", plan.graph.block(model)
        of = block["of"]
        remedy = "name a fine-tune of a model that is trained here"
        _require_kind(plan, of, f"{key}: of", ("finetune",), "only these are trained here from another model", remedy)
        parent = plan.graph.block(of)["parent"]
        kinds, why = ("pretrain", "finetune"), "only of these the corpora are known"
        _require_kind(plan, parent, f"{key}: of: the parent of '{of}'", kinds, why, remedy)
        if steps := plan.graph.kept_steps(of):
            raise InputError(
                f"{key}: of: must name a fine-tune that is compared with its parent, but '{of}' is compared with its "
                f"own step {steps[-1]}; leave keep_steps out there, or the revived model"
            )
        _require_other_seed(plan, parent, block["seed"], key)
        if plan.graph.continued_like(model) is None:
            control = f"{of}_continued: {{continued: {{parent: {of}, like: {of}, n_tokens: {block['n_tokens']}}}}}"
            raise InputError(
                f"{key}: must have a continued model of '{of}', like it and with as many tokens, beside it, because "
                f"some lost features return by any training, but there is none; add '{control}' under models"
            )


def check_edges_of_controls(plan: Plan) -> None:
    """Every twin is a control of some edge, every continued model too or of a revived one, and these are of edges."""
    used = {model for edge in plan.graph.edges for model in plan.graph.trained_controls(edge)}
    used |= {model for edge in plan.graph.edges for pair in plan.graph.revivals(edge).items() for model in pair}
    for model in plan.graph.of_kind(TWIN, CONTINUED, REVIVED):
        if model not in used:
            kind = plan.graph.kind(model)
            key, role = {
                TWIN: ("of", "a child in the lineage, whose edges '{model}' is a control of"),
                CONTINUED: ("parent", "a parent in the lineage, whose edges '{model}' is a control of"),
                REVIVED: ("of", "a child in the lineage, whose lost features can return"),
            }[kind]
            raise InputError(
                f"models.{model}.{kind}: {key}: must be {role.format(model=model)}, but "
                f"'{plan.graph.block(model)[key]}' is not; name another model or leave '{model}' out"
            )


def check_adapters(plan: Plan) -> None:
    """An adapter has one source."""
    for model in plan.graph.of_kind("adapter"):
        named = {key for key in ("folder", "repo", "revision") if key in plan.graph.settings(model)}
        if named not in ({"folder"}, {"repo", "revision"}):
            raise InputError(
                f"models.{model}.adapter: must name a folder, or a repo with its revision, got {sorted(named)}; keep "
                "one of the two"
            )


def check_instruments(plan: Plan) -> None:
    """Controls are models outside their child's lineage, and anchored merges have a common root."""
    models, key = plan.config["models"], "lineage.controls"
    for control in RANDOM_CONTROLS:
        for model in models:
            if model == control:
                raise InputError(f"models: '{control}' is the name of a random control; rename that model")
            if model.endswith(f"_{control}"):
                raise InputError(
                    f"models: '{model}' ends in the name of a random control (_{control}); rename that model"
                )
    for child, names in plan.config["lineage"]["controls"].items():
        _require_listed(child, models, key, "models")
        if not plan.graph.parents(child):
            raise InputError(f"{key}: '{child}' has no parent to compare its controls with; name a model with parents")
        for name in names:
            _require_listed(name, models, f"{key}.{child}", "models")
        if child in plan.graph.outside:
            raise InputError(
                f"{key}.{child}: a control cannot be '{child}' or a model that it descends from; name other models"
            )
    check_crosscoders(plan)
    check_difference_saes(plan)
    check_second_anchor(plan)
    check_stages(plan)
    if all(not instrument(name).is_anchored for name in plan.comparisons.instruments):
        return
    for merge in plan.comparisons.merges:
        line = plan.graph.ancestors(merge)
        roots = [model for model in line if not plan.graph.parents(model)]
        if len(roots) > 1:
            raise InputError(
                f"lineage.instruments: under an anchored instrument, a merge must descend from one root model, because "
                f"its SAE starts from the average of its parents', but '{merge}' descends from {', '.join(roots)}; "
                "use independent alone"
            )


def check_crosscoders(plan: Plan) -> None:
    """Crosscoders read the kept activations of several models at once, and do not lead."""
    listed = plan.config["lineage"]["instruments"]
    if listed[0] == CROSSCODER:
        raise InputError(
            "lineage.instruments: the first one leads and must compare two SAEs, but it is crosscoder; put another "
            "one, such as anchored, before it"
        )
    if CROSSCODER in listed and not plan.keeps_dumps:
        raise InputError(
            "activations.keep: must be true for crosscoder in lineage.instruments, because a crosscoder reads the "
            f"activations of several models at once, not {plan.config['activations']['keep']}; change one of the two"
        )


def check_difference_saes(plan: Plan) -> None:
    """Difference SAEs read the kept activations of two models at once, and are trained."""
    block = plan.config["difference_saes"]
    if block["seeds"] and not plan.keeps_dumps:
        raise InputError(
            "activations.keep: must be true for difference_saes.seeds, because a difference SAE reads the activations "
            f"of two models at once, not {plan.config['activations']['keep']}; set it to true or difference_saes.seeds "
            "to []"
        )
    if block["training"].get("import"):
        raise InputError(
            "difference_saes.training.import: must be null, because difference SAEs are trained here, not imported; "
            "remove it"
        )


def check_second_anchor(plan: Plan) -> None:
    """A second chain of anchored SAEs has a second seed, and a first chain to agree with."""
    if not plan.config["lineage"]["second_anchor"]:
        return
    if plan.comparisons.leading != "anchored" or len(plan.saes.seeds) < 2:
        raise InputError(
            "lineage.second_anchor: the leading instrument must be anchored, and there must be two seeds, but they are "
            f"{plan.comparisons.leading} and {plan.saes.seeds}; change lineage.instruments or saes.seeds, or set it to "
            "false"
        )


def check_stages(plan: Plan) -> None:
    """Two-step SAEs have the leading instrument's start, and text."""
    stages, key = plan.config["lineage"]["stages"], "lineage.stages"
    if not stages:
        return
    if plan.comparisons.leading != "anchored":
        raise InputError(
            f"{key}: the leading instrument must be anchored, because both steps start from its SAEs, not "
            f"{plan.comparisons.leading}; put anchored first in lineage.instruments, or set {key} to false"
        )
    staged = [edge.child for edge in plan.comparisons.staged_edges]
    for child, corpora in stages.items() if isinstance(stages, Mapping) else ():
        _require_listed(child, plan.config["models"], key, "models")
        for corpus in corpora:
            _require_listed(corpus, plan.config["corpora"], f"{key}.{child}", "corpora")
        if child not in staged:
            raise InputError(f"{key}: '{child}' must be a lineage model with one parent; name another model")
    if not staged:
        raise InputError(
            f"{key}: no model of the lineage with one parent is trained here, so its text is unknown; name the "
            f"children and the corpora of each, such as {key}: {{tuned: [my_text]}}"
        )


def check_corpora(plan: Plan) -> None:
    """Corpora that stages name are defined, shares sum to 1, and splits leave documents to train on."""
    corpora = plan.config["corpora"]
    if POOLED in corpora:
        raise InputError(f"corpora: '{POOLED}' is the name of all corpora together; rename that corpus")
    for corpus in plan.config["tokenizer"].get("corpora", []):
        _require_listed(corpus, corpora, "tokenizer.corpora", "corpora")
    for corpus in plan.config["labels"]["syntax"]:
        _require_listed(corpus, corpora, "labels.syntax", "corpora")
    check_conversations(plan)
    for model in plan.graph.of_kind("pretrain", "finetune"):
        key = f"models.{model}.{plan.graph.kind(model)}.corpora"
        shares = plan.graph.settings(model)["corpora"]
        for corpus in shares:
            _require_listed(corpus, corpora, key, "corpora")
        if abs(sum(shares.values()) - 1) > SUM_TOLERANCE:
            raise InputError(f"{key}: shares must sum to 1, but {shares} sum to {sum(shares.values()):g}; correct them")
    if plan.config["splits"]["validation"] + plan.config["splits"]["probe"] >= 1:
        raise InputError(
            "splits: the sum of validation and probe must be less than 1, to leave documents to train on; lower one"
        )


def check_conversations(plan: Plan) -> None:
    """Corpora of messages have a tokenizer that may have a chat template, and are not read as programs."""
    for corpus in plan.conversations:
        if plan.config["tokenizer"]["source"] == "train":
            raise InputError(
                f"corpora.{corpus}.messages_column: needs a tokenizer with a chat template, which one that is trained "
                "here (tokenizer.source: train) does not have; take the tokenizer of a chat model (source: path or hub)"
            )
        if corpus in plan.config["labels"]["syntax"]:
            raise InputError(
                f"labels.syntax.{corpus}: must hold programs, but '{corpus}' holds conversations; leave it out"
            )


def check_tokens(plan: Plan) -> None:
    """Limits on tokens allow at least one row, and one for each shard of a dump."""
    n_ctx, n_shards = plan.config["tokens"]["n_ctx"], plan.config["activations"]["n_shards"]
    for split, most in plan.config["tokens"]["max_tokens"].items():
        if most is not None and most < n_ctx:
            raise InputError(
                f"tokens.max_tokens.{split}: must be at least n_ctx ({n_ctx}), one row, not {most}; raise it"
            )
    check_buffer(plan)
    most = plan.config["activations"]["max_tokens"]
    if most is not None and most < n_shards * n_ctx:
        raise InputError(
            f"activations.max_tokens: must be at least n_shards x n_ctx ({n_shards} x {n_ctx}), one row per shard, not "
            f"{most}; raise it or lower n_shards"
        )


def check_buffer(plan: Plan) -> None:
    """The buffer of a stream holds a row."""
    n_ctx, n_tokens = plan.config["tokens"]["n_ctx"], plan.config["activations"]["buffer_tokens"]
    if plan.streams and n_tokens < n_ctx:
        raise InputError(
            f"activations.buffer_tokens: must be at least tokens.n_ctx ({n_ctx}), one row, not {n_tokens}; raise it"
        )


def check_training(plan: Plan) -> None:
    """Each training has one length, heads divide the width, and the hookpoint's layer exists."""
    n_ctx = plan.config["tokens"]["n_ctx"]
    for model in plan.graph.of_kind("pretrain", "finetune", CONTINUED):
        key = f"models.{model}.{plan.graph.kind(model)}"
        settings = plan.graph.settings(model)
        if (settings["n_tokens"] is None) == (settings["epochs"] is None):
            raise InputError(f"{key}: must have exactly one of n_tokens and epochs; give one of them")
        if settings["n_tokens"] is not None and settings["n_tokens"] < settings["batch_rows"] * n_ctx:
            raise InputError(
                f"{key}.n_tokens: must be at least batch_rows x n_ctx ({settings['batch_rows']} x {n_ctx}), one "
                f"optimizer step, not {settings['n_tokens']}; raise it"
            )
        if settings["batch_rows"] % settings["accumulate"]:
            raise InputError(
                f"{key}.accumulate: must divide batch_rows ({settings['batch_rows']}), but is "
                f"{settings['accumulate']}; take one of its divisors"
            )
    for model in plan.graph.of_kind("pretrain"):
        settings, key = plan.config["models"][model]["pretrain"], f"models.{model}.pretrain"
        if settings["d_model"] % (2 * settings["n_heads"]):
            raise InputError(
                f"{key}: d_model ({settings['d_model']}) must be divisible by 2 x n_heads ({settings['n_heads']}); "
                "change one of them"
            )
        if settings["n_heads"] % settings["n_kv_heads"]:
            raise InputError(
                f"{key}: n_heads ({settings['n_heads']}) must be divisible by n_kv_heads ({settings['n_kv_heads']}); "
                "change one of them"
            )
        layer = _hooked_layer(plan.place)
        if layer is not None and layer >= settings["n_layers"]:
            raise InputError(
                f"activations.hookpoint: '{plan.place}' needs layer {layer}, "
                f"but {key} has n_layers {settings['n_layers']}; name a layer from 0 to {settings['n_layers'] - 1}"
            )


def check_saes(plan: Plan) -> None:
    """Overrides name models, SAEs and corpora that exist, and settings that the SAE can have."""
    for model, overrides in plan.sae_settings["models"].items():
        _require_listed(model, plan.config["models"], "saes.models", "models")
        names = [sae.sae for sae in plan.comparisons.saes if sae.model == model]
        for key in overrides:
            if ONE_SAE.match(key):
                _require_listed(key, names, f"saes.models.{model}", "the SAEs of that model")
                if overrides[key].get("import") and key not in plan.saes.seed_names:
                    raise InputError(
                        f"saes.models.{model}.{key}: only SAEs of saes.seeds can be imported, because all others start "
                        "from a parent's SAE or share a seed; leave out `import`"
                    )
    if plan.config["saes"]["anchored"].get("import"):
        raise InputError("saes.anchored: SAEs that start from a parent's SAE cannot be imported; leave out `import`")
    for sae in plan.comparisons.saes:
        settings = plan.saes.settings(*sae)
        for corpus in settings["corpora"]:
            _require_listed(corpus, plan.config["corpora"], f"saes.corpora (for {sae})", "corpora")
        if settings["target_l0"] and not settings["sparsity_coefficient"]:
            raise InputError(
                f"saes.sparsity_coefficient (for {sae}): must be above 0 with a target_l0, because it is multiplied "
                f"until l0 is {settings['target_l0']:g}; leave it out, or give it a small value"
            )
        held, n_batch = plan.config["activations"]["buffer_tokens"], settings["batch_tokens"]
        if plan.streams and n_batch > held:
            raise InputError(
                f"activations.buffer_tokens: must be at least saes.batch_tokens ({n_batch} for {sae}), not {held}; "
                "raise it, or lower batch_tokens"
            )
    check_starts(plan)
    check_one_pass(plan)
    check_imports(plan)


def check_starts(plan: Plan) -> None:
    """An SAE has the architecture and size of the one it starts from, as far as the config tells."""
    imported = plan.saes.imported
    for sae in plan.comparisons.saes:
        settings = plan.saes.settings(*sae)
        for start in plan.saes.starts(sae):
            of_start = plan.saes.settings(*start)
            for key in ("architecture", "expansion_factor"):
                if start not in imported and settings[key] != of_start[key]:
                    raise InputError(
                        f"saes.{key} (for {sae}): must be {of_start[key]}, as in {start}, from which it starts, not "
                        f"{settings[key]}; set it for all SAEs (saes.{key}), not under saes.anchored or saes.models"
                    )


def check_one_pass(plan: Plan) -> None:
    """SAEs that are trained in one pass are not imported and see the same batches."""
    if not plan.config["saes"]["one_pass"]:
        return
    if imported := plan.saes.imported:
        raise InputError(f"saes.one_pass: trains all SAEs, but {imported[0]} has `import`; leave out one of the two")
    for model in plan.config["models"]:
        first, *others = [plan.saes.settings(*sae) for sae in plan.saes.of_seeds(model)]
        for key in SAME_IN_ONE_PASS:
            if any(settings[key] != first[key] for settings in others):
                raise InputError(
                    f"saes.{key}: must be the same for all SAEs of '{model}' with saes.one_pass, because they see the "
                    "same batches; set it for the model, or set one_pass to false"
                )


def check_imports(plan: Plan) -> None:
    """An imported SAE has one source, and no two seeds are the same SAE."""
    sources: dict[SaeName, dict] = {}
    for sae in plan.saes.imported:
        settings = plan.saes.settings(*sae)["import"]
        source = {key: settings[key] for key in ("folder", "repo", "revision", "subfolder", "file") if key in settings}
        if set(source) - {"file"} != {"folder"} and set(source) - {"subfolder", "file"} != {"repo", "revision"}:
            raise InputError(
                f"saes.import (for {sae}): must name a folder, or a repo with its revision (and a subfolder), "
                f"got {sorted(source)}; keep one of the two"
            )
        same = (first for first in sources if first.model == sae.model and sources[first] == source)
        if twin := next(same, None):
            raise InputError(
                f"saes.import: {twin} and {sae} would be the same SAE, whose agreement with itself says nothing; "
                "import another for one of them, train one (import: null), or leave one seed in saes.seeds"
            )
        sources[sae] = source


def check_sweeps(plan: Plan) -> None:
    """A sweep's model is a merge none of whose other settings is chosen or swept, and its corpora exist."""
    for sweep, settings in plan.config["sweeps"].items():
        _require_listed(settings["model"], plan.config["models"], f"sweeps.{sweep}.model", "models")
        if plan.graph.kind(settings["model"]) != "merge":
            raise InputError(
                f"sweeps.{sweep}.model: must be a merged model, but '{settings['model']}' is not; name a merge"
            )
        if needs_choice(plan.swept_merges(sweep)[0]):
            raise InputError(
                f"sweeps.{sweep}.over: must vary q too, because '{settings['model']}' leaves it to be chosen; add it, "
                "or give the merge a q"
            )
        for setting in sweeps_behind(plan.swept_merges(sweep)[0]):
            raise InputError(
                f"sweeps.{sweep}.over: must vary {setting} too, because '{settings['model']}' takes it from a sweep; "
                f"add it, or give {setting} a number"
            )
        for corpus in settings.get("corpora", []):
            _require_listed(corpus, plan.config["corpora"], f"sweeps.{sweep}.corpora", "corpora")


def check_swept_settings(plan: Plan) -> None:
    """Settings that take the best value of a sweep name a sweep of their own merge that varies them."""
    sweeps = plan.config["sweeps"]
    for model in plan.graph.of_kind("merge"):
        for setting, sweep in sweeps_behind(plan.graph.merge(model)).items():
            key = f"models.{model}.merge.{setting}.from_sweep"
            _require_listed(sweep, sweeps, key, "sweeps")
            taken = [name for name, of in sweeps_behind(plan.graph.merge(model)).items() if of == sweep]
            if sweeps[sweep]["model"] == model and set(taken) < set(sweeps[sweep]["over"]):
                raise InputError(
                    f"{key}: must be taken for all settings of the sweep ({', '.join(sweeps[sweep]['over'])}), because "
                    f"its best point has all of them, but only {', '.join(taken)} is; take the others from it too"
                )
            if sweeps[sweep]["model"] != model or setting not in sweeps[sweep]["over"]:
                varied = f"{', '.join(sweeps[sweep]['over'])} of '{sweeps[sweep]['model']}'"
                raise InputError(
                    f"{key}: must name a sweep that varies {setting} of '{model}', but '{sweep}' varies {varied}; "
                    "name another one"
                )


def check_size(plan: Plan) -> None:
    """Names of pairs fit into file names, and there are few enough jobs for Snakemake to plan."""
    longest = max(map(pair_name, plan.comparisons.pairs), key=len, default="")
    if len(longest) > MOST_IN_NAME:
        raise InputError(
            f"models: a pair of SAEs would be called '{longest}', which at {len(longest)} characters is too long for a "
            f"file name (at most {MOST_IN_NAME}); give the models shorter names"
        )
    name = f"{max(plan.hookpoints, key=len)}.{longest}"
    if len(name) > MOST_IN_LOG:
        raise InputError(
            f"activations.hookpoints: logs would be called '{name}', which at {len(name)} characters is too long for a "
            f"file name (at most {MOST_IN_LOG}); give hookpoints or models shorter names"
        )
    for key, n_jobs in _scattered_jobs(plan).items():
        if n_jobs > MOST_JOBS:
            shards = plan.config["activations"][key]
            raise InputError(
                f"activations.{key}: must make at most {MOST_JOBS} jobs, but {shards} shards of "
                f"{len(plan.config['models'])} models and their SAEs make {n_jobs}; lower it"
            )


def _scattered_jobs(plan: Plan) -> dict[str, int]:
    """Number of jobs that each key makes by asking for shards."""
    models, saes = len(plan.config["models"]), len(plan.comparisons.saes)
    of_hookpoint = saes + len({pair[0] for pair in plan.comparisons.pairs})
    of_key = {"n_shards": models, "n_probe_shards": models + len(plan.hookpoints) * of_hookpoint}
    return {key: n_jobs * plan.config["activations"][key] for key, n_jobs in of_key.items()}


def check_files(plan: Plan) -> None:
    """Refuse a config that names files or folders that do not exist or cannot be read.

    Raises:
        InputError: on the first, with its key and path.
    """
    for corpus, settings in plan.config["corpora"].items():
        if settings["source"] == "files":
            files = find_files(corpus, settings, plan.config["corpora_dir"])
            require_content(files, f"corpora.{corpus}.path")
            wrong = [path for path in files if text_format(path).kind not in MESSAGE_FORMATS]
            if settings.get("messages_column") and wrong:
                raise InputError(
                    f"corpora.{corpus}.messages_column: conversations must be in .json, .jsonl or .parquet files, but "
                    f"there is '{wrong[0]}'; convert it, or leave messages_column out"
                )
    folders = {
        f"models.{model}.path.folder": plan.config["models"][model]["path"]["folder"]
        for model in plan.graph.of_kind("path")
    }
    folders |= {
        f"models.{model}.adapter.folder": settings["folder"]
        for model in plan.graph.of_kind("adapter")
        if "folder" in (settings := plan.graph.settings(model))
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
    """The sizes of a model as far as the config tells: its own, or its parent's."""
    if plan.graph.kind(model) == "pretrain":
        return {key: plan.config["models"][model]["pretrain"][key] for key in SHAPE_KEYS}
    if plan.graph.kind(model) in ("finetune", "merge", "adapter", TWIN, CONTINUED, KEPT):
        return shapes[plan.graph.parents(model)[0]]
    return None


def _require_one_shape(model: str, parents: list[str], shapes: Mapping[str, dict | None]) -> None:
    of_parents = [(parent, shape) for parent in parents if (shape := shapes[parent]) is not None]
    for parent, shape in of_parents[1:]:
        first, expected = of_parents[0]
        differing = next((key for key in SHAPE_KEYS if shape[key] != expected[key]), None)
        if differing:
            raise InputError(
                f"models.{model}.merge: parents and base must have the same shape, but {differing} is "
                f"{expected[differing]} in '{first}' and {shape[differing]} in '{parent}'; merge models of one shape"
            )


def _hooked_layer(hookpoint: str) -> int | None:
    """The first number in a hookpoint's dotted name, which is the layer in Hugging Face models."""
    return next((int(part) for part in hookpoint.split(".") if part.isdigit()), None)


def _require_kind(plan: Plan, name: str, key: str, kinds: tuple[str, ...], reason: str, remedy: str) -> None:
    """Require a model that is made in one of some ways, for a reason."""
    _require_listed(name, plan.config["models"], key, "models")
    if (kind := plan.graph.kind(name)) not in kinds:
        raise InputError(
            f"{key}: must be made by {' or '.join(kinds)}, because {reason}, but '{name}' is made by {kind}; {remedy}"
        )


def _require_other_seed(plan: Plan, name: str, seed: int, key: str) -> None:
    if plan.graph.block(name)["seed"] == seed:
        raise InputError(f"{key}.seed: must differ from that of '{name}', which is {seed}; give another seed")


def _require_listed(name: str, names: Iterable[str], key: str, where: str) -> None:
    if name not in names:
        raise InputError(
            f"{key}: '{name}' is not among {where} ({', '.join(sorted(names))}); correct the name or add it there"
        )
