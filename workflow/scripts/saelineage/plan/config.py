"""The config: checked against the schema, with every default filled in."""

import re
from collections.abc import Mapping
from copy import deepcopy
from math import isfinite
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from saelineage.errors import InputError
from saelineage.plan.strict_yaml import plain


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


def read_schema(path: Path | str) -> dict:
    """The project's schema, read by libyaml, because every start of Snakemake reads it."""
    return yaml.load(Path(path).read_bytes(), Loader=yaml.CSafeLoader)


def load_config(config: Mapping, schema: dict) -> dict:
    """The config with every default filled in, after all checks against the schema.

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
