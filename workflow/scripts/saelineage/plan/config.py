"""The config: checked against the schema, with every default filled in."""

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from saelineage.errors import InputError
from saelineage.plan.published_saes import name_sources
from saelineage.plan.short_places import write_out_places
from saelineage.plan.steps import expand_steps
from saelineage.plan.strict_yaml import plain


def is_integer(_checker: TypeChecker, value: object) -> bool:
    """True of an int. JSON Schema would also accept 128.0."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(_checker: TypeChecker, value: object) -> bool:
    """True of a finite number. NaN would pass every limit, because no comparison with it is true."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


PATH_KEYS = ("corpora_dir", "folder", "path")
"""Keys whose text is the path of a file or folder, in whatever block."""
MOST_NEAR = 3
"""Limit on the known keys that are named for unknown ones."""
MOST_IN_NAME = 64
"""`maxLength` of a name in the schema."""

StrictValidator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": is_integer, "number": is_number}),
)


def read_schema(path: Path | str) -> dict:
    """Read the project's schema, with libyaml, because every start of Snakemake reads it."""
    return yaml.load(Path(path).read_bytes(), Loader=yaml.CSafeLoader)


def load_config(config: Mapping, schema: dict) -> dict:
    """Check a config against the schema, expand its short forms, fill in every default, and look up published SAEs.

    Short forms are `~` in paths, short names of hookpoints, and several steps of one model.

    Args:
        config: as the user wrote it.
        schema: the parsed `config.schema.yaml`.

    Raises:
        InputError: on the first mistake, with the key, the requirement and the value.
    """
    filled = plain(config)
    errors = sorted(StrictValidator(schema).iter_errors(filled), key=_relevance)
    if errors:
        raise InputError(_sentence(errors[0], schema))
    name_hookpoint(filled)
    expand_steps(filled)
    fill_defaults(filled, schema, schema)
    expand_homes(filled)
    name_sources(filled)
    write_out_places(filled)
    return filled


def name_hookpoint(config: dict) -> None:
    """Turn `activations.hookpoint` into `activations.hookpoints` with the place as its name, in place.

    Raises:
        InputError: if both are given.
    """
    activations = config.get("activations", {})
    if "hookpoint" in activations and "hookpoints" in activations:
        raise InputError(
            "activations: either hookpoint (one place) or hookpoints (places by name) can be given, not both; "
            "put the one place into hookpoints"
        )
    if "hookpoint" in activations:
        place = activations.pop("hookpoint")
        activations["hookpoints"] = {place: place}


def fill_defaults(instance: object, schema: dict, root: dict, overrides: bool = False) -> None:
    """Set keys that the config leaves out to the schema's `default:`, in place.

    Under `overrides: true` nothing is filled in, because a missing key means that another block's setting holds. Blocks
    within it are given whole, so they do get their defaults.

    Args:
        instance: a part of the config.
        schema: the subschema of that part.
        root: the whole schema, which `$ref` refers to.
        overrides: True under `overrides: true`.
    """
    if not isinstance(instance, dict):
        return
    overrides = overrides or schema.get("overrides", False)
    if "$ref" in schema:
        fill_defaults(instance, _resolve(schema["$ref"], root), root, overrides)
    for part in schema.get("allOf", []):
        if "if" not in part:
            fill_defaults(instance, part, root, overrides)
        elif StrictValidator(root).evolve(schema=part["if"]).is_valid(instance):
            fill_defaults(instance, part["then"], root, overrides)
    named = schema.get("properties", {})
    for key, subschema in named.items():
        resolved = with_reference(subschema, root)
        if key not in instance and "default" in resolved and not overrides:
            instance[key] = deepcopy(resolved["default"])
        if key in instance:
            fill_defaults(instance[key], subschema, root)
    for pattern, subschema in schema.get("patternProperties", {}).items():
        for key in instance:
            if re.search(pattern, key):
                fill_defaults(instance[key], subschema, root)
    if isinstance(schema.get("additionalProperties"), dict):
        for key in instance.keys() - named.keys():
            fill_defaults(instance[key], schema["additionalProperties"], root)


def expand_homes(block: object) -> None:
    """Replace a leading `~` or `~user` in the paths of a config, in place; no shell does it in YAML."""
    if isinstance(block, list):
        for item in block:
            expand_homes(item)
    if isinstance(block, dict):
        for key, value in block.items():
            if key in PATH_KEYS and isinstance(value, str):
                block[key] = os.path.expanduser(value)
            if key != "request":  # fields for a service, none of them a path here
                expand_homes(value)


def _resolve(reference: str, root: dict) -> dict:
    """The subschema that a `$ref` points to."""
    subschema = root
    for part in reference.removeprefix("#/").split("/"):
        subschema = subschema[part]
    return subschema


def with_reference(schema: dict, root: dict) -> dict:
    """A subschema merged with the one its `$ref` points to; its own keys win."""
    return (with_reference(_resolve(schema["$ref"], root), root) if "$ref" in schema else {}) | schema


def _relevance(error: ValidationError) -> tuple:
    """Sort deep errors first, and unknown keys last, because a wrong value makes its whole block look unevaluated."""
    return (error.validator == "unevaluatedProperties", -len(error.absolute_path), str(list(error.absolute_path)))


def _sentence(error: ValidationError, root: dict) -> str:
    """Describe a schema error in one sentence: the key, the requirement, the value, and what to do.

    Args:
        error: of the validation.
        root: the whole schema.
    """
    key = ".".join(str(part) for part in error.absolute_path) or "config"
    instance: object = error.instance
    schema = error.schema if isinstance(error.schema, dict) else {}
    value = repr(instance)
    value = value if len(value) < 80 else f"{value[:77]}..."
    if error.validator in ("additionalProperties", "unevaluatedProperties") and isinstance(instance, dict):
        names = [name for name in instance if f"'{name}'" in error.message.split(" were ")[0].split(" was ")[0]]
        near = _near(names, schema, root)
        meant = f"; did you mean {' or '.join(near)}?" if near else ";"
        return f"{key}: unknown key {', '.join(map(repr, names))}{meant} config/config.schema.yaml lists every key"
    if error.validator == "required":
        return f"{key}: {error.message}; add it (config/config.schema.yaml says what it means)"
    is_count = error.validator in ("minProperties", "maxProperties")
    if is_count and isinstance(instance, dict) and "pretrain" in schema.get("properties", {}):
        ways = ", ".join(schema["properties"])
        return f"{key}: must be made in exactly one way ({ways}), got {sorted(instance)}; keep one"
    hint = ""
    if isinstance(instance, str) and error.validator == "type" and _is_number(instance):
        hint = f" (YAML reads {instance} as text; write {_plain(float(instance))!r})"
    elif isinstance(instance, str) and error.validator == "type" and instance.startswith(("{", "[")):
        hint = " (it is text, because YAML cannot read it; close every bracket and quote)"
    elif isinstance(instance, float) and instance.is_integer():
        hint = f" (write {int(instance)})"
    if isinstance(instance, str) and error.validator == "pattern" and error.validator_value == _name_pattern(root):
        return (
            f"{key}: names must be of lower-case letters and digits with single _ or - between them, because they "
            f"become parts of paths, not {value}; {_as_name(instance)}"
        )
    if error.validator == "enum" and list(error.absolute_path)[-2:] == ["merge", "method"]:
        near = get_close_matches(str(instance), schema["enum"], n=1)
        return (
            f"{key}: must be one of {', '.join(schema['enum'])}, not {value}; "
            f"{f'did you mean {near[0]}? ' if near else ''}merge with mergekit by any other method and import its "
            "folder: {path: {folder: FOLDER, parents: [MODEL, MODEL]}}"
        )
    description = _description(error, root)
    meaning = f"; correct it; meaning of the key: {description}" if description else "; correct it"
    if error.validator == "pattern":
        return f"{key}: {value} does not match {error.validator_value}{meaning}"
    return f"{key}: {error.message if len(error.message) < 200 else f'{value} breaks {error.validator}'}{hint}{meaning}"


def _name_pattern(root: dict) -> str:
    """The pattern of names of runs, corpora, models and sweeps."""
    return root["$defs"]["name"]["pattern"]


def _as_name(text: str) -> str:
    """What to write instead of a name that is not allowed."""
    name = "-".join(re.findall("[a-z0-9]+", text.lower()))[:MOST_IN_NAME].strip("-")
    return f"write {name!r}" if name else "give it another one"


def _description(error: ValidationError, root: dict) -> str | None:
    """The description of the key that an error is about, on whichever side of a `$ref` it stands."""
    schema: Any = root
    description, steps = None, list(error.absolute_schema_path)  # without the steps through `$ref`
    for before, step in zip([None, *steps], steps, strict=False):
        while isinstance(schema, dict) and step not in schema and "$ref" in schema:
            schema = _resolve(schema["$ref"], root)
        schema = schema[step]
        if before in ("properties", "patternProperties"):
            description = None
        if isinstance(schema, dict):
            description = schema.get("description", description)
    return description


def _near(names: list[str], schema: Mapping, root: dict) -> list[str]:
    """The keys that are like unknown ones, or of the same name in a block of this one (`saes.seeds` for `seeds`)."""
    own = _keys(schema, root)
    places = {key: [key] for key in sorted(own)}
    for block, subschema in schema.get("properties", {}).items():
        for key in sorted(_keys(subschema, root) - own):
            places.setdefault(key, []).append(f"{block}.{key}")
    near = [place for name in names for key in get_close_matches(name, places, n=1) for place in places[key]]
    return list(dict.fromkeys(near))[:MOST_NEAR]


def _keys(schema: Mapping, root: dict) -> set[str]:
    """The names of keys that a block may have."""
    if "$ref" in schema:
        return _keys(_resolve(schema["$ref"], root), root) | schema.get("properties", {}).keys()
    parts = [*schema.get("allOf", []), *(schema[part] for part in ("then", "else") if part in schema)]
    return set(schema.get("properties", {})).union(*(_keys(part, root) for part in parts))


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _plain(number: float) -> float | int:
    """A whole number as an int: most keys hold ints, and any number may be written as one."""
    return int(number) if number.is_integer() else number
