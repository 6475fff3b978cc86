"""Texts, models, tokenizers and SAEs that the user brings, checked by their small files before the first job.

Jobs check again what they really open. Nothing here reads weights.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.hub import is_connection_error
from saelineage.files.links import links_followed
from saelineage.foreign.adapters import check_adapter_folder, other_base, read_adapter_config
from saelineage.foreign.chat_templates import chat_template, no_template
from saelineage.foreign.gguf import check_gguf
from saelineage.foreign.hub import cached_model_config, fetch_adapter_config, fetch_model_config, fetch_sae_config
from saelineage.foreign.models import (
    CONFIG_FILE,
    check_folder,
    d_model,
    equal_sources,
    hookpoint_problem,
    known_d_mlp,
    module_problem,
    read_config,
    require_same_function,
    vocab_size,
    weight_files,
)
from saelineage.foreign.places import (
    ATTN_IN,
    ATTN_OUT,
    MIDDLE,
    MLP_ACTS,
    MLP_GATES,
    MLP_IN,
    MLP_OUT,
    NORMED_ATTN_OUT,
    NORMED_MLP_OUT,
    RESIDUAL,
    has_parallel_blocks,
    norm_kind,
    norms_outputs,
)
from saelineage.foreign.sae_formats.registry import SaeSource, check_source, local_source
from saelineage.foreign.sae_inputs import Beside, RunInput
from saelineage.foreign.tokenizers import (
    TOKENIZER_SMALL_FILES,
    read_tokenizer,
    read_whole_tokenizer,
    require_readable,
    require_same_tokenizer,
)
from saelineage.plan.freezing import frozen_weights
from saelineage.plan.instruments import instrument
from saelineage.plan.lora import EXPERTS, Layers, choose_layers, filed_layers, pretrained_layers
from saelineage.plan.plan import Plan, needs_hub
from saelineage.plan.sae_names import SaeName
from saelineage.plan.sizes import shapes
from saelineage.plan.user_files import left_out

OF_RESIDUAL = {RESIDUAL, MIDDLE, ATTN_IN, ATTN_OUT, MLP_IN, MLP_OUT, NORMED_ATTN_OUT, NORMED_MLP_OUT}
"""Kinds of places that are as wide as the residual stream."""
OF_MLP = {MLP_ACTS, MLP_GATES}
"""Kinds of places that are as wide as the MLP's activations."""


def check_on_disk(plan: Plan, is_here: Callable[[str], bool]) -> list[str]:
    """Check models, tokenizers and SAEs in folders, and hookpoints of hub models whose config is in the hub's cache.

    Args:
        plan: the run.
        is_here: true for the manifest of what an earlier run of Snakemake already made, which is not checked again.

    Returns:
        What cannot be told for sure, a sentence each.

    Raises:
        InputError: on the first that cannot be used, or contradicts the run.
    """

    def is_left(model: str) -> bool:
        return not is_here(_manifest(plan, plan.paths.model_file, model=model))

    sentences = _unread_files(plan, is_here)
    read_run = cache(read_tokenizer)
    brought = plan.graph.of_kind("path", "hub")
    sentences += equal_sources({model: plan.graph.settings(model) for model in brought if any(map(is_left, brought))})
    for model in plan.graph.of_kind("path"):
        if is_left(model):
            sentences += _check_folder(plan, model, read_run)
    for model in brought:
        if not is_left(model):  # the hookpoint may be another one than when it was imported
            _check_imported(plan, model)
    for model in filter(is_left, plan.graph.of_kind("hub")):
        if (config := cached_model_config(plan.graph.settings(model))) is not None:
            _require_hookpoint(plan, model, config, [])
    for model in filter(is_left, plan.graph.of_kind("adapter")):
        if folder := plan.graph.settings(model).get("folder"):
            check_adapter_folder(folder)
            sentences += _compare_base(plan, model, read_adapter_config(folder))
    _require_template(plan)
    _require_widths(plan, is_left)
    for merge in filter(is_left, plan.graph.of_kind("merge")):
        sentences += _compare_parents(plan, merge)
    for model in plan.graph.finetuned(with_lora=True):
        if plan.graph.twin_of(model):
            continue  # its layers are those of its model
        warnings = _check_layers(plan, model)  # always, because the settings of a model that is here may have changed
        sentences += warnings if is_left(model) else []
    for model in plan.graph.of_kind("finetune"):
        _check_frozen(plan, model)
    for sae in plan.saes.imported:
        settings = plan.saes.settings(*sae)["import"]
        if "folder" in settings and not is_here(_manifest(plan, plan.paths.sae_file, **sae._asdict())):
            sentences += check_source(_local_sae(settings, sae), run_input(plan, sae.model), _sae_key(sae))
    return sentences


def _unread_files(plan: Plan, is_here: Callable[[str], bool]) -> list[str]:
    """Sentences on files that corpora leave out by default."""
    sentences = []
    for corpus, settings in plan.config["corpora"].items():
        if settings["source"] == "files" and not is_here(_manifest(plan, plan.paths.corpus_counts, corpus=corpus)):
            sentences.append(left_out(corpus, settings, plan.config["corpora_dir"]))
    return [sentence for sentence in sentences if sentence]


def check_on_hub(plan: Plan, is_here: Callable[[str], bool]) -> list[str]:
    """Check models and SAEs of the hub by their small files, if the hub answers.

    Args:
        plan: the run.
        is_here: true for the manifest of what is not to be imported now.

    Returns:
        What cannot be told for sure, a sentence each.

    Raises:
        InputError: on the first that cannot be used, or contradicts the run.
    """
    sentences: list[str] = []
    read_run = cache(read_tokenizer)
    try:
        for model in plan.graph.of_kind("hub"):
            if not is_here(_manifest(plan, plan.paths.model_file, model=model)):
                sentences += _check_hub_model(plan, model, read_run)
        for model in plan.graph.of_kind("adapter"):
            is_on_hub = "repo" in plan.graph.settings(model)
            if is_on_hub and not is_here(_manifest(plan, plan.paths.model_file, model=model)):
                described = fetch_adapter_config(plan.graph.settings(model), f"models.{model}")
                sentences += _compare_base(plan, model, described.config)
        for sae in plan.saes.imported:
            is_on_hub = "repo" in plan.saes.settings(*sae)["import"]
            if is_on_hub and not is_here(_manifest(plan, plan.paths.sae_file, **sae._asdict())):
                sentences += _check_hub_sae(plan, sae)
    except InputError as error:
        if not (isinstance(error.__cause__, Exception) and is_connection_error(error.__cause__)):
            raise
        sentences.append(f"what comes from the hub was not checked before the first job, because {error}")
    return sentences


def without_seeds(plan: Plan) -> str | None:
    """A sentence on trained SAEs of one seed, which cannot tell which features are identified; None if there are more.

    Where SAEs are imported one seed may be all there is; the page says what follows from it.
    """
    if len(plan.saes.seeds) > 1 or plan.saes.imported:
        return None
    return (
        f"saes.seeds is {list(plan.saes.seeds)}, so nothing will tell which features are identified, that is, found "
        "again from other seeds, and the verdicts will be over all features; give three seeds to know"
    )


def left_for_the_start(plan: Plan) -> str | None:
    """A sentence on what a dry run does not check, because it lies on the hub; None if nothing does."""
    saes = [sae for sae in plan.saes.imported if "folder" not in plan.saes.settings(*sae)["import"]]
    models = [model for model in plan.graph.of_kind("hub", "adapter") if "folder" not in plan.graph.settings(model)]
    parts = {
        "corpora": [name for name, block in plan.config["corpora"].items() if needs_hub(block)],
        "tokenizer": ["the tokenizer"] if needs_hub(plan.config["tokenizer"]) else [],
        "models": models,
        "SAEs": list(map(str, saes)),
    }
    named = [f"{kind} {', '.join(names)}" for kind, names in parts.items() if names and kind != "tokenizer"]
    if not named + parts["tokenizer"]:
        return None
    return (
        f"what comes from the hub ({'; '.join([*named, *parts['tokenizer']])}) is not checked in a dry run; models and "
        "SAEs are when the run starts, and corpora and the tokenizer in their jobs"
    )


def _check_folder(plan: Plan, model: str, read_run: Callable[[Path], dict | None]) -> list[str]:
    settings = plan.graph.settings(model)
    folder = settings["folder"]
    with links_followed(folder, settings["follow_links"]):
        if "gguf" in settings:
            check_gguf(settings, f"models.{model}.path")
            sentences = []
        else:
            sentences = check_folder(folder, plan.config["tokens"]["n_ctx"])
            held = [name for path in weight_files(folder) for name in shapes(path)]
            _require_hookpoint(plan, model, read_config(folder), held)
        return sentences + _compare_tokenizer(plan, model, Path(folder), read_run)


def _check_imported(plan: Plan, model: str) -> None:
    """Refuse a hookpoint that a model in the run's own folder does not have, by its config."""
    folder = Path(plan.paths.fix(plan.paths.model_file, model=model)).parent
    if Path(folder, CONFIG_FILE).exists():
        _require_hookpoint(plan, model, read_config(folder), [])


def _check_hub_model(plan: Plan, model: str, read_run: Callable[[Path], dict | None]) -> list[str]:
    settings = plan.graph.settings(model)
    described = fetch_model_config(settings, f"models.{model}", TOKENIZER_SMALL_FILES, plan.config["tokens"]["n_ctx"])
    _require_hookpoint(plan, model, read_config(described.folder), [])
    return _compare_tokenizer(plan, model, described.folder, read_run)


def _require_hookpoint(plan: Plan, model: str, config: dict, tensors: list[str]) -> None:
    """Refuse a hookpoint that a model cannot have, by its config and, where they are here, the names of its weights."""
    hookpoint = plan.place
    if problem := hookpoint_problem(config, hookpoint) or module_problem(tensors, hookpoint):
        raise InputError(
            f"activations.hookpoint: all models of a run are read at one place, '{hookpoint}', which '{model}' does "
            f"not have: {problem}; choose another hookpoint, or models of one architecture"
        )


def _require_widths(plan: Plan, is_left: Callable[[str], bool]) -> None:
    """Refuse edges whose models are not equally wide, if the child's SAE starts from the parent's."""
    anchored = [name for name in plan.comparisons.instruments if instrument(name).is_anchored]
    for edge in plan.graph.edges if anchored else []:
        if not any(map(is_left, edge)):
            continue
        widths = [run_input(plan, model).d_in for model in edge]
        if None not in widths and widths[0] != widths[1]:
            raise InputError(
                f"lineage.instruments: {anchored[0]} starts the SAE of '{edge.child}' from that of '{edge.parent}', so "
                f"both models must be equally wide at '{plan.place}', but have "
                f"{widths[1]} and {widths[0]} dimensions; compare a model with its own fine-tune, or set "
                "lineage.instruments to [independent]"
            )


def _check_hub_sae(plan: Plan, sae: SaeName) -> list[str]:
    described = fetch_sae_config(plan.saes.settings(*sae)["import"], _sae_key(sae))
    return check_source(described.source, run_input(plan, sae.model), _sae_key(sae))


def _compare_tokenizer(plan: Plan, model: str, folder: Path, read_run: Callable[[Path], dict | None]) -> list[str]:
    """Compare a model's tokenizer and the size of its embedding with the run's tokenizer, if that lies on disk too."""
    if plan.config["tokenizer"]["source"] != "path":
        return []
    run_folder = Path(plan.config["tokenizer"]["path"])
    sentences, run = require_same_tokenizer(folder, run_folder, model, read_run), read_run(run_folder)
    if run is None:
        return sentences
    config = {} if "gguf" in plan.graph.settings(model) else read_config(folder)  # a GGUF's lies in the file
    template = chat_template(run_folder) if plan.conversations else None
    unshared = plan.config["tokens"]["unshared"]
    return sentences + require_readable(
        run, read_whole_tokenizer(folder), vocab_size(config), template, unshared, model
    )


def _compare_base(plan: Plan, model: str, config: dict) -> list[str]:
    """Compare the model that an adapter says it belongs to with its parent."""
    parent = plan.graph.settings(model)["parent"]
    return [f"models.{model}: {line}" for line in other_base(config, plan.graph.known_as(parent), parent)]


def _require_template(plan: Plan) -> None:
    """Refuse a tokenizer on disk without a chat template in a run with conversations."""
    settings = plan.config["tokenizer"]
    if plan.conversations and settings["source"] == "path" and chat_template(settings["path"]) is None:
        raise InputError(no_template(settings["path"]))


def _compare_parents(plan: Plan, merge: str) -> list[str]:
    """Compare the configs of a merge's parents and base, as far as they lie on disk."""
    configs = {model: config for model in plan.graph.needed(merge) if (config := model_config(plan, model))}
    (first, config), *others = configs.items() if configs else [("", {})]
    return [
        line for name, other in others for line in require_same_function(config, other, (first, name), complete=False)
    ]


def model_config(plan: Plan, model: str) -> dict | None:
    """The config.json that a model will have, if it lies on disk: its own, or that of the model it is made from."""
    settings, kind = plan.graph.settings(model), plan.graph.kind(model)
    if "gguf" in settings:
        return None  # it lies in the file
    if kind == "path":
        return read_config(settings["folder"])
    sources = plan.graph.parents(model) or [like for like in [plan.graph.like(model)] if like]
    return model_config(plan, sources[0]) if sources else None


def known_layers(plan: Plan, model: str) -> Layers | None:
    """The layers that a model will have, if they are known: its own, or those of the model it is made from."""
    settings, kind = plan.graph.settings(model), plan.graph.kind(model)
    if kind == "pretrain":
        return pretrained_layers(settings)
    if kind == "hub" or "gguf" in settings:
        return None
    if kind == "path":
        with links_followed(settings["folder"], settings["follow_links"]):
            held = {name: shape for path in weight_files(settings["folder"]) for name, shape in shapes(path).items()}
            return filed_layers(read_config(settings["folder"]), held)
    return known_layers(plan, plan.graph.like(model) or plan.graph.parents(model)[0])


def run_input(plan: Plan, model: str) -> RunInput:
    """The activations of a model that an SAE is imported for, as far as they are known before the first job."""
    settings, config = plan.graph.settings(model), model_config(plan, model)
    run = RunInput(
        plan.place,
        plan.config["tokens"]["n_ctx"],
        model,
        tuple(settings[key] for key in ("repo", "folder") if key in settings),
        beside=_trained_beside(plan),
        revision=settings.get("revision"),
    )
    if config is None:
        return run
    run = run._replace(norm=norm_kind(config), norms_outputs=norms_outputs(config))
    run = run._replace(parallel=has_parallel_blocks(config))
    kinds = {place.kind for place in run.reading.places}
    width = d_model(config) if kinds & OF_RESIDUAL else known_d_mlp(config) if kinds & OF_MLP else None
    return run._replace(d_in=width)


def _trained_beside(plan: Plan) -> Beside | None:
    """The SAEs that are trained from random weights, with the sizes of the first; None if there are none."""
    trained = [sae for sae in plan.comparisons.trained_saes if not plan.saes.starts(sae)]
    if not trained:
        return None
    settings = plan.saes.settings(*trained[0])
    k = settings["k"] if "topk" in settings["architecture"] else None
    return Beside(tuple(map(str, trained)), settings["expansion_factor"], k)


def _check_layers(plan: Plan, model: str) -> list[str]:
    """Check the `lora` block of a fine-tune, if the layers of its parent are known."""
    layers = known_layers(plan, model)
    lora = plan.graph.settings(model)["lora"]
    return choose_layers(lora, layers, f"models.{model}.{plan.graph.kind(model)}.lora").warnings if layers else []


def _check_frozen(plan: Plan, model: str) -> None:
    """Check the `freeze` block of a fine-tune, if there is one and the layers of its parent are known."""
    freeze = plan.graph.freeze(model)
    layers = known_layers(plan, model) if freeze else None
    if layers and EXPERTS not in layers.others.values():  # these matrices are not listed
        matrices = {f"{name}.weight": shape for name, shape in layers.linear.items()}
        frozen_weights(matrices, freeze, f"models.{model}.finetune.freeze")


def _manifest(plan: Plan, pattern: str, **names: str) -> str:
    """The manifest of the folder of an imported model or SAE."""
    (path,) = plan.paths.fill(plan.paths.folder_manifest(pattern), **names)
    return path


def _local_sae(settings: dict, sae: SaeName) -> SaeSource:
    try:
        return local_source(settings)
    except InputError as error:
        raise InputError(f"{_sae_key(sae)}: {error}") from error


def _sae_key(sae: SaeName) -> str:
    return f"saes.import (for {sae})"
