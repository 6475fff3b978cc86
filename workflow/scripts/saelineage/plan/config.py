"""The config file: read strictly, checked against the schema and against itself, defaults filled in.

Every mistake is reported before the first job, in one sentence that names the key.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from copy import deepcopy
from datetime import date
from math import isfinite
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from saelineage.errors import InputError
from saelineage.plan import comparisons, graph
from saelineage.plan.user_files import find_files, require_no_braces

SUM_TOLERANCE = 1e-6
NULLS = ("shifted", "rotated")
SHAPE_KEYS = ("n_layers", "d_model", "d_mlp", "n_heads", "n_kv_heads", "tie_embeddings")
MOST_CHARACTERS = 1 << 18
"""Of a config, in its file and with every alias (`*name`) written out; the largest here has 3,000."""
MOST_KEYS, MOST_LEVELS, MOST_IN_KEY, MOST_IN_TEXT, MOST_BITS = 10_000, 32, 256, 10_000, 63
MOST_JOBS = 50_000
"""That one key may ask for; Snakemake plans about 1,000 a second."""
MOST_COMBINATIONS = 5_000
"""Of models, seeds of SAEs and budgets, with which SAEs and their comparisons grow: more leave too many jobs, and to
count those alone takes long."""
MOST_IN_NAME = 200
"""Characters in the name of a pair of SAEs; a file system allows 255, some of which go to endings."""
SECRET = re.compile(
    r"(?<![\w-])(hf_[A-Za-z0-9]{30,}|sk-(proj|ant|svcacct|admin|or-v1)-\S{20,}|sk-[A-Za-z0-9]{32,}|gsk_[A-Za-z0-9]{20,}"
    r"|xai-[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|AIza[\w-]{30,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abps]-[\w-]{10,}|Bearer\s+\S{8,})|://[^/\s@]+:[^/\s@]+@"
)
"""What tokens of the hub and keys of well-known services look like, and passwords in addresses."""
SECRET_KEY = re.compile(
    r"(.*[_-])?(api|private|access|secret|subscription|auth)[_-]?key|(.*[_-])?(authorization|password|passwd|secret|cookie)"
    r"|((.*[_-])?(access|auth|hf|hub|api|bearer|secret|session|refresh|id|x)[_-]?)?token",
    re.IGNORECASE,
)
"""What settings and headers of requests are called that hold one; not `max_tokens`, and the config has no `token`."""


class StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, which plain loaders pass over in silence, and without merges that multiply."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise InputError(
                f"'{node.start_mark.name}': more than {MOST_KEYS} keys in one mapping, merged (<<) ones among them"
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        counts = Counter(key for key in keys if isinstance(key, Hashable))
        doubled = sorted(str(key) for key, count in counts.items() if count > 1)
        if doubled:
            line = node.start_mark.line + 1
            raise InputError(
                f"'{node.start_mark.name}': key '{doubled[0]}' stands twice in the mapping at line {line}; keep one"
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path | str) -> dict:
    """Read a YAML mapping, refusing duplicate keys.

    Raises:
        InputError: if the file is missing, too large, not YAML, not a mapping, or holds a key twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > MOST_CHARACTERS:
                raise InputError(f"config file '{path}' must have at most {MOST_CHARACTERS} bytes; split the run")
            value = yaml.load(file, Loader=StrictLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError as error:
        raise InputError(f"config file '{path}' does not exist; look at the name given to --configfile") from error
    except OSError as error:
        raise InputError(f"config file '{path}' cannot be read ({error.strerror}); correct the name") from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a date or number that there is none of
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"config file '{path}' must be YAML in UTF-8, but: {reason}") from error
    if not isinstance(value, dict):
        raise InputError(f"config file '{path}' must be a mapping of keys, not {type(value).__name__}")
    return value


def plain(value: object) -> object:
    """A copy of what YAML or JSON gave, every alias of it a copy of its own, that the checks after it can work with.

    Raises:
        InputError: if it is too large or too deep once its aliases are written out (they can double at every level, or
            go round in a circle), holds what is neither text, number, truth value nor null, a key that is no printable
            text, control characters, or what looks like a secret.
    """
    left = MOST_CHARACTERS

    def copy(value: object, key: str, level: int) -> object:
        nonlocal left
        left -= 1 + (len(value) if isinstance(value, str) else 0)
        if left < 0 or level > MOST_LEVELS:
            raise InputError(
                f"{key[:80]}: with its aliases (*name) written out a config must have at most {MOST_CHARACTERS} "
                f"characters in {MOST_LEVELS} levels; take out aliases that repeat others"
            )
        if isinstance(value, dict):
            for name in value:
                _require_key(name, value[name], key)
            return {name: copy(value[name], f"{key}.{name}".removeprefix("config."), level + 1) for name in value}
        if isinstance(value, list):
            return [copy(item, f"{key}.{place}", level + 1) for place, item in enumerate(value)]
        _require_plain(value, key)
        return value

    return copy(value, "config", 0)


def _require_key(name: object, value: object, key: str) -> None:
    if not isinstance(name, str) or not name.isprintable() or len(name) > MOST_IN_KEY:
        shown = repr(name[:60]) if isinstance(name, str) else f"{type(name).__name__}; put it in quotes"
        raise InputError(f"{key}: keys must be printable text of at most {MOST_IN_KEY} characters, not {shown}")
    if SECRET_KEY.fullmatch(name) and value is not None:
        _refuse_secret(f"{key}.{name}".removeprefix("config."))
    if SECRET.search(name):
        _refuse_secret(key)


def _require_plain(value: object, key: str) -> None:
    """Refuse a single value that no key can have."""
    if isinstance(value, str):
        if SECRET.search(value):
            _refuse_secret(key)
        if len(value) > MOST_IN_TEXT:
            raise InputError(f"{key}: text must have at most {MOST_IN_TEXT} characters, not {len(value)}; shorten it")
        bad = next((one for one in value if unicodedata.category(one) in ("Cc", "Cs") and not one.isspace()), None)
        if bad is not None:
            raise InputError(f"{key}: text must be without control characters, but holds {bad!a}; take it out")
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise InputError(f"{key}: whole numbers must be below 2^{MOST_BITS} in size; correct it")
    elif not isinstance(value, int | float | None):
        shown = f" ({value})" if isinstance(value, date) else ""
        raise InputError(
            f"{key}: must be text, a number, true, false or null, not {type(value).__name__}{shown}; put it in quotes"
        )


def _refuse_secret(key: str) -> None:
    raise InputError(
        f"{key}: holds what looks like a token, key or password, and a config is written into logs and manifests; take "
        "it out, have it revoked, and set HF_TOKEN or OPENAI_API_KEY in the environment instead"
    )


def is_integer(_checker: TypeChecker, value: object) -> bool:
    """Whether a value is a whole number that Python can count with; JSON Schema would take 128.0 for one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(_checker: TypeChecker, value: object) -> bool:
    """Whether a value is a finite number; NaN would pass every limit, for no comparison with it holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": is_integer, "number": is_number}),
)


def check_config(given: Mapping, paths: Iterable[Path | str], path_to_schema: Path | str) -> dict:
    """The config that Snakemake read, with every default filled in, after all checks.

    Args:
        given: what Snakemake made of the config files and `--config`.
        paths: the config files, which are read once more: Snakemake passes over keys that stand twice.
        path_to_schema: `config.schema.yaml`.

    Raises:
        InputError: on the first mistake.
    """
    for path in paths:
        read_yaml(path)
    return check_files(load_config(given, read_yaml(path_to_schema)))


def load_config(config: Mapping, schema: dict) -> dict:
    """The config with every default filled in, after all checks.

    Args:
        config: what the user wrote.
        schema: the parsed `config.schema.yaml`.

    Raises:
        InputError: on the first mistake, saying which key, what must hold and what was met.
    """
    filled = plain(dict(config))
    validator = Validator(schema)
    errors = sorted(validator.iter_errors(filled), key=_relevance)
    if errors:
        raise InputError(_sentence(errors[0]))
    fill_defaults(filled, schema, validator)
    check_combinations(filled)
    check_lineage(filled)
    check_instruments(filled)
    check_corpora(filled)
    check_tokens(filled)
    check_training(filled)
    check_saes(filled)
    check_sweeps(filled)
    check_size(filled)
    return filled


def fill_defaults(instance: object, schema: dict, validator: Validator, overrides: bool = False) -> None:
    """Put the schema's `default:` values where the config is silent, in place.

    Under `overrides: true` silence means that another block's setting holds; blocks within are given whole.
    """
    if not isinstance(instance, dict):
        return
    overrides = overrides or schema.get("overrides", False)
    if "$ref" in schema:
        fill_defaults(instance, _resolve(schema["$ref"], validator.schema), validator, overrides)
    for part in schema.get("allOf", []):
        if "if" not in part:
            fill_defaults(instance, part, validator, overrides)
        elif validator.evolve(schema=part["if"]).is_valid(instance):
            fill_defaults(instance, part["then"], validator, overrides)
    named = schema.get("properties", {})
    for key, subschema in named.items():
        found = with_reference(subschema, validator.schema)
        if key not in instance and "default" in found and not overrides:
            instance[key] = deepcopy(found["default"])
        if key in instance:
            fill_defaults(instance[key], subschema, validator)
    for pattern, subschema in schema.get("patternProperties", {}).items():
        for key in instance:
            if re.search(pattern, key):
                fill_defaults(instance[key], subschema, validator)
    if isinstance(schema.get("additionalProperties"), dict):
        for key in instance.keys() - named.keys():
            fill_defaults(instance[key], schema["additionalProperties"], validator)


def check_combinations(config: dict) -> None:
    """Few enough models, seeds and budgets to look at each combination."""
    models, seeds, budgets = len(config["models"]), len(config["saes"]["seeds"]), len(config["lineage"]["budgets"])
    if models * seeds * (1 + budgets) > MOST_COMBINATIONS:
        raise InputError(
            f"saes.seeds: models x seeds x (1 + lineage.budgets) must be at most {MOST_COMBINATIONS}, but "
            f"{models} x {seeds} x {1 + budgets} are {models * seeds * (1 + budgets)}; leave out some of them"
        )


def check_lineage(config: dict) -> None:
    """Parents exist, there is no cycle, and models that are merged have one shape."""
    models = config["models"]
    for model in models:
        for parent in graph.parents(config, model):
            key = f"models.{model}.{graph.kind(config, model)}"
            _require_known(parent, models, f"{key}: parent", "models")
            if parent == model:
                raise InputError(f"{key}: a model cannot be its own parent; name another model")
    for model in graph.models_of_kind(config, "reinitialise"):
        like = graph.like(config, model)
        _require_known(like, models, f"models.{model}.reinitialise: like", "models")
        if graph.kind(config, like) == "reinitialise":
            raise InputError(f"models.{model}.reinitialise: '{like}' is re-initialised itself; name a trained model")
    try:
        ordered = graph.ordered_models(config)
    except ValueError as error:
        raise InputError(f"models: {error}; the lineage must be acyclic, so change one of their parents") from error
    for model in graph.models_of_kind(config, "reinitialise"):
        like = graph.like(config, model)
        if model in graph.ancestors(config, like):
            raise InputError(f"models.{model}.reinitialise: '{like}' descends from it; name another model")
    shapes = {}
    for model in ordered:
        shapes[model] = _shape(config, model, shapes)
        if graph.kind(config, model) == "merge":
            _require_one_shape(model, graph.parents(config, model), shapes)


def check_instruments(config: dict) -> None:
    """Controls are models, and merges have an SAE to start from where anything is anchored."""
    models, key = config["models"], "lineage.controls"
    for null in NULLS:
        for model in models:
            if model == null:
                raise InputError(f"models: '{null}' is what a null is called; rename that model")
            if model.endswith(f"_{null}"):
                raise InputError(f"models: '{model}' ends as the name of a null does (_{null}); rename that model")
    for child, names in config["lineage"]["controls"].items():
        _require_known(child, models, key, "models")
        if not graph.parents(config, child):
            raise InputError(f"{key}: '{child}' has no parent that models could be compared with in its place")
        for name in names:
            _require_known(name, models, f"{key}.{child}", "models")
        if child in graph.outside_models(config):
            raise InputError(f"{key}.{child}: '{child}' itself, or a model it descends from, is named; name others")
    if all(comparisons.budget(instrument) is None for instrument in comparisons.instruments(config)):
        return
    for merge in comparisons.merges(config):
        line = graph.ancestors(config, merge)
        roots = [model for model in line if not graph.parents(config, model)]
        if len(roots) > 1:
            raise InputError(
                f"lineage.instruments: a merge's SAE starts from the average of its parents', which must descend from "
                f"one model's, but '{merge}' descends from {', '.join(roots)}; use independent alone"
            )


def check_corpora(config: dict) -> None:
    """Corpora that stages name are defined, shares sum to 1, and files are where they are said to be."""
    corpora = config["corpora"]
    if graph.POOLED in corpora:
        raise InputError(f"corpora: '{graph.POOLED}' is what all corpora together are called; rename that corpus")
    for corpus in config["tokenizer"].get("corpora", []):
        _require_known(corpus, corpora, "tokenizer.corpora", "corpora")
    for corpus in config["labels"]["syntax"]:
        _require_known(corpus, corpora, "labels.syntax", "corpora")
    for model in graph.models_of_kind(config, "pretrain", "finetune"):
        key = f"models.{model}.{graph.kind(config, model)}.corpora"
        shares = config["models"][model][graph.kind(config, model)]["corpora"]
        for corpus in shares:
            _require_known(corpus, corpora, key, "corpora")
        if abs(sum(shares.values()) - 1) > SUM_TOLERANCE:
            raise InputError(f"{key}: shares must sum to 1, but {shares} sum to {sum(shares.values()):g}")
    if config["splits"]["validation"] + config["splits"]["probe"] >= 1:
        raise InputError("splits: validation and probe must leave documents to train on; make their sum less than 1")


def check_tokens(config: dict) -> None:
    """Limits on tokens leave at least one row, and one for every shard of a dump."""
    n_ctx, n_shards = config["tokens"]["n_ctx"], config["activations"]["n_shards"]
    for split, most in config["tokens"]["max_tokens"].items():
        if most is not None and most < n_ctx:
            raise InputError(f"tokens.max_tokens.{split}: must hold a row of n_ctx ({n_ctx}) tokens; {most} does not")
    most = config["activations"]["max_tokens"]
    if most is not None and most < n_shards * n_ctx:
        raise InputError(
            f"activations.max_tokens: must hold a row of n_ctx ({n_ctx}) tokens for each of n_shards ({n_shards}); "
            f"{most} does not"
        )


def check_training(config: dict) -> None:
    """Each training says how long it lasts, once; heads divide the width; the hookpoint's layer exists."""
    for model in graph.models_of_kind(config, "pretrain", "finetune"):
        key = f"models.{model}.{graph.kind(config, model)}"
        settings = config["models"][model][graph.kind(config, model)]
        if (settings["n_tokens"] is None) == (settings["epochs"] is None):
            raise InputError(f"{key}: give one of n_tokens and epochs, to say how long the training lasts")
        if (
            settings["n_tokens"] is not None
            and settings["n_tokens"] < settings["batch_rows"] * config["tokens"]["n_ctx"]
        ):
            raise InputError(
                f"{key}.n_tokens: must fill one step of batch_rows x n_ctx tokens; {settings['n_tokens']} does not"
            )
    for model in graph.models_of_kind(config, "pretrain"):
        settings, key = config["models"][model]["pretrain"], f"models.{model}.pretrain"
        if settings["d_model"] % (2 * settings["n_heads"]):
            raise InputError(
                f"{key}: d_model ({settings['d_model']}) must be divisible by 2 x n_heads ({settings['n_heads']})"
            )
        if settings["n_heads"] % settings["n_kv_heads"]:
            raise InputError(
                f"{key}: n_heads ({settings['n_heads']}) must be divisible by n_kv_heads ({settings['n_kv_heads']})"
            )
        layer = _hooked_layer(config["activations"]["hookpoint"])
        if layer is not None and layer >= settings["n_layers"]:
            raise InputError(
                f"activations.hookpoint: '{config['activations']['hookpoint']}' needs layer {layer}, "
                f"but {key} has n_layers {settings['n_layers']}; name a layer from 0 to {settings['n_layers'] - 1}"
            )


def check_saes(config: dict) -> None:
    """Overrides name models and seeds that exist, corpora that exist, and a k that the SAE has latents for."""
    for model, overrides in config["saes"]["models"].items():
        _require_known(model, config["models"], "saes.models", "models")
        names = [sae.sae for sae in comparisons.all_saes(config) if sae.model == model]
        for key in overrides:
            if graph.ONE_SAE.match(key):
                _require_known(key, names, f"saes.models.{model}", "the SAEs of that model")
                if overrides[key].get("import") and key not in graph.sae_names(config):
                    raise InputError(
                        f"saes.models.{model}.{key}: only SAEs of saes.seeds can be imported, for others start from a "
                        "parent's or share a seed; leave out `import`"
                    )
    if config["saes"]["anchored"].get("import"):
        raise InputError("saes.anchored: SAEs that start from a parent's are trained, so leave out `import` there")
    for sae in comparisons.all_saes(config):
        settings = graph.sae_settings(config, *sae)
        for corpus in settings["corpora"]:
            _require_known(corpus, config["corpora"], f"saes.corpora (for {sae})", "corpora")
        if settings["target_l0"] and not settings["sparsity_coefficient"]:
            raise InputError(
                f"saes.sparsity_coefficient (for {sae}) must be above 0 with a target_l0, for it is multiplied until "
                f"l0 is {settings['target_l0']:g}; leave it out, or give it a small value"
            )
    check_starts(config)
    check_one_pass(config)
    check_imports(config)


def check_starts(config: dict) -> None:
    """An SAE is of the kind and size of the one it starts from, as far as the config tells."""
    imported = graph.imported_saes(config)
    for sae in comparisons.all_saes(config):
        settings = graph.sae_settings(config, *sae)
        for start in graph.starts(config, sae.sae):
            of_start = graph.sae_settings(config, *start)
            for key in ("architecture", "expansion_factor"):
                if start not in imported and settings[key] != of_start[key]:
                    raise InputError(
                        f"saes.{key} of {sae} is {settings[key]}, but it starts from {start}, which has "
                        f"{of_start[key]}; set it for all SAEs (saes.{key}), not under saes.anchored or saes.models"
                    )


def check_one_pass(config: dict) -> None:
    """SAEs that are trained off one pass see the same batches."""
    if not config["saes"]["one_pass"]:
        return
    if imported := graph.imported_saes(config):
        raise InputError(f"saes.one_pass trains all SAEs, but {imported[0]} has `import`; leave out one of the two")
    for model in config["models"]:
        first, *others = [graph.sae_settings(config, *sae) for sae in graph.saes(config, model)]
        for key in graph.SAME_IN_ONE_PASS:
            if any(other[key] != first[key] for other in others):
                raise InputError(
                    f"saes.{key} must be the same for all SAEs of '{model}' with saes.one_pass, for they see the same "
                    "batches; set it for the model, or one_pass to false"
                )


def check_imports(config: dict) -> None:
    """An imported SAE comes from one place, and is not compared with itself for a noise floor."""
    sources = {}
    for sae in graph.imported_saes(config):
        settings = graph.sae_settings(config, *sae)["import"]
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


def check_sweeps(config: dict) -> None:
    """A sweep's model is a merge, and its corpora exist."""
    for sweep, settings in config["sweeps"].items():
        _require_known(settings["model"], config["models"], f"sweeps.{sweep}.model", "models")
        if graph.kind(config, settings["model"]) != "merge":
            raise InputError(
                f"sweeps.{sweep}.model: must be a merged model, but '{settings['model']}' is not; name a merge"
            )
        for corpus in settings.get("corpora", []):
            _require_known(corpus, config["corpora"], f"sweeps.{sweep}.corpora", "corpora")


def check_size(config: dict) -> None:
    """Names fit into file names, and Snakemake can hold the jobs in mind."""
    longest = max(map(comparisons.pair_name, comparisons.all_pairs(config)), key=len, default="")
    if len(longest) > MOST_IN_NAME:
        raise InputError(
            f"models: a pair of SAEs would be called '{longest}', which at {len(longest)} characters is too long for a "
            f"file name (at most {MOST_IN_NAME}); give the models shorter names"
        )
    for key, n_jobs in _scattered_jobs(config).items():
        if n_jobs > MOST_JOBS:
            raise InputError(
                f"activations.{key}: must leave at most {MOST_JOBS} jobs, but {config['activations'][key]} shards of "
                f"{len(config['corpora'])} corpora and {len(config['models'])} models are {n_jobs}; lower it"
            )


def _scattered_jobs(config: dict) -> dict[str, int]:
    """Jobs that there are one of for each shard, by the key that says how many shards."""
    each = len(config["corpora"]) * len(config["models"])
    probe = each + len(config["corpora"]) * len(comparisons.all_saes(config)) + len(comparisons.all_pairs(config))
    of_key = {"n_shards": each, "n_probe_shards": probe}
    return {key: n_jobs * config["activations"][key] for key, n_jobs in of_key.items()}


def check_files(config: dict) -> dict:
    """The config again, once every file and folder it names is found where it says.

    Raises:
        InputError: naming the key of the first that is not.
    """
    for corpus, settings in config["corpora"].items():
        if settings["source"] == "files":
            find_files(corpus, settings, config["corpora_dir"])
    folders = {
        f"models.{model}.path.folder": config["models"][model]["path"]["folder"]
        for model in graph.models_of_kind(config, "path")
    }
    folders |= {
        f"saes.import.folder (for {sae})": graph.sae_settings(config, *sae)["import"].get("folder", ".")
        for sae in graph.imported_saes(config)
    }
    if config["tokenizer"]["source"] == "path":
        folders["tokenizer.path"] = config["tokenizer"]["path"]
    for key, folder in folders.items():
        try:
            require_no_braces([os.path.join(folder, name) for name in sorted(os.listdir(folder))] or [folder], key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{key}: '{folder}' is not a folder; correct the path") from error
        except OSError as error:
            raise InputError(f"{key}: '{folder[:200]}' cannot be read ({error.strerror}); correct the path") from error
    return config


def _shape(config: dict, model: str, shapes: dict) -> dict | None:
    """The sizes of a model as far as the config tells: its own, or those it takes over from its parent."""
    if graph.kind(config, model) == "pretrain":
        return {key: config["models"][model]["pretrain"][key] for key in SHAPE_KEYS}
    if graph.kind(config, model) in ("finetune", "merge"):
        return shapes[graph.parents(config, model)[0]]
    return None


def _require_one_shape(model: str, parents: list[str], shapes: dict) -> None:
    known = [(parent, shapes[parent]) for parent in parents if shapes[parent] is not None]
    for parent, shape in known[1:]:
        first, expected = known[0]
        differing = next((key for key in SHAPE_KEYS if shape[key] != expected[key]), None)
        if differing:
            raise InputError(
                f"models.{model}.merge: parents must have one shape, but {differing} is {expected[differing]} "
                f"in '{first}' and {shape[differing]} in '{parent}'; merge models of one base"
            )


def _hooked_layer(hookpoint: str) -> int | None:
    """The first number in a hookpoint's dotted name: the layer, in every Hugging Face model."""
    return next((int(part) for part in hookpoint.split(".") if part.isdigit()), None)


def _require_known(name: str, known: Iterable[str], key: str, where: str) -> None:
    if name not in known:
        raise InputError(
            f"{key}: '{name}' is not among {where} ({', '.join(sorted(known))}); correct the name or add it there"
        )


def _resolve(reference: str, root: dict) -> dict:
    found = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def with_reference(schema: dict, root: dict) -> dict:
    """A subschema with what its `$ref` says beneath what it says itself."""
    return (with_reference(_resolve(schema["$ref"], root), root) if "$ref" in schema else {}) | schema


def _relevance(error: ValidationError) -> tuple:
    """Unknown keys come last, for a wrong value makes its whole block look unevaluated; of the rest deep ones first."""
    return (error.validator == "unevaluatedProperties", -len(error.absolute_path), str(list(error.absolute_path)))


def _sentence(error: ValidationError) -> str:
    """One sentence for a schema error: the key, what must hold, the value met."""
    key = ".".join(str(part) for part in error.absolute_path) or "config"
    value = repr(error.instance)
    value = value if len(value) < 80 else f"{value[:77]}..."
    if error.validator in ("additionalProperties", "unevaluatedProperties"):
        names = [name for name in error.instance if f"'{name}'" in error.message.split(" were ")[0].split(" was ")[0]]
        return f"{key}: unknown key {', '.join(map(repr, names))}; config/config.schema.yaml lists the keys there are"
    if error.validator == "required":
        return f"{key}: {error.message}; config/config.schema.yaml says what it means"
    if error.validator in ("minProperties", "maxProperties") and "pretrain" in error.schema.get("properties", {}):
        ways = ", ".join(error.schema["properties"])
        return f"{key}: must be made in exactly one way ({ways}), got {sorted(error.instance)}"
    hint = ""
    if isinstance(error.instance, str) and error.validator == "type" and _is_number(error.instance):
        hint = f" (YAML reads {error.instance} as text; write {_plain(float(error.instance))!r})"
    elif isinstance(error.instance, float) and error.instance.is_integer():
        hint = f" (write {int(error.instance)})"
    meaning = f"; it is: {error.schema['description']}" if "description" in error.schema else ""
    if error.validator == "pattern":
        return f"{key}: {value} does not match {error.validator_value}{meaning}"
    return f"{key}: {error.message if len(error.message) < 200 else f'{value} breaks {error.validator}'}{hint}{meaning}"


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _plain(number: float) -> float | int:
    """A whole number as an integer, for integers are what most keys hold and any number may be written as one."""
    return int(number) if number.is_integer() else number
