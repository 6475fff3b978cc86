"""No benchmark: write docs/config.md, every key of a config, from config/config.schema.yaml.

    python -m benchmarks.config_page [--write]

Without `--write` it prints the page. A test compares the page with the schema.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saelineage.plan.config import read_schema, with_reference

ROOT = Path(__file__).resolve().parent.parent
SCHEMA, PAGE = ROOT / "config" / "config.schema.yaml", ROOT / "docs" / "config.md"
SHARED = {
    "sae": "Settings of an SAE",
    "import": "Import of an SAE",
    "training": "Training of a model",
}
"""Blocks that stand in several places, by their names under `$defs`. Each has one section, to which the places link."""
NAMES = {"corpora": "CORPUS", "models": "MODEL", "hookpoints": "HOOKPOINT", "sweeps": "SWEEP"}
"""Words for keys that the user chooses, by the block that holds them."""
UNBOUNDED = 10**12
"""From here on a bound only keeps out numbers that no run can have."""
HEAD = """# Every key of a config

Made from [config/config.schema.yaml](../config/config.schema.yaml) by `python -m benchmarks.config_page --write`.
Unknown keys are refused. Keys without a default are required where it says so, or have none. Words in capitals stand
for names of your own. `A.B` is key `B` in block `A`, and `A.*` stands for all keys of a section below.
[lineages.md](lineages.md) has whole configs.
"""


class Row(NamedTuple):
    """One key."""

    key: str
    type: str
    default: str
    meaning: str


def page(root: dict) -> str:
    """The page of a schema."""
    blocks = {key: with_reference(schema, root) for key, schema in root["properties"].items()}
    single = [key for key, schema in blocks.items() if _is_single(schema)]
    rows = [_row(key, blocks[key], key in root["required"]) for key in single]
    parts = [HEAD, "## At the top\n", _table(rows)]
    for key in [key for key in blocks if key not in single]:
        parts += _section(key, blocks[key], root)
    for name, title in SHARED.items():
        schema = root["$defs"][name]
        paragraph = [] if name == "training" else _paragraph(schema)  # it says no more than the title
        parts += [f"## {title}\n", *paragraph, _table(list(_rows(schema, root, "")))]
    return "\n".join(parts)


def _is_single(schema: dict) -> bool:
    """True of a key with a value of its own, rather than a block of keys."""
    return not (schema.keys() & {"properties", "allOf"} or isinstance(schema.get("additionalProperties"), dict))


def _section(key: str, schema: dict, root: dict) -> list[str]:
    """The section of a block, with one below it for each way of giving it."""
    parts = [f"## {key}\n", *_paragraph(schema)]
    inner, prefix = schema, f"{key}."
    if "properties" not in schema and isinstance(schema.get("additionalProperties"), dict):
        inner, prefix = with_reference(schema["additionalProperties"], root), f"{key}.{_chosen(key)}."
    ways = [part for part in inner.get("allOf", []) if "if" in part]
    if inner.get("maxProperties") == 1:
        for way, of_way in inner["properties"].items():
            below = with_reference(of_way, root)
            parts += [f"### {prefix}{way}\n", *_paragraph(below), _table(list(_rows(below, root, "")))]
    elif ways:
        for way in ways:
            source, below = way["if"]["properties"]["source"]["const"], with_reference(way["then"], root)
            rows = [row for row in _rows(below, root, "") if row.key != "`source`"]
            parts += [f"### {prefix.rstrip('.')} with `source: {source}`\n", _table(rows)]
    else:
        parts.append(_table(list(_rows(inner, root, prefix))))
    return parts


def _paragraph(schema: dict) -> list[str]:
    return [f"{schema['description']}\n"] if "description" in schema else []


def _chosen(key: str) -> str:
    """The word for the keys that the user chooses in a block."""
    return NAMES.get(key, "NAME")


def _rows(schema: dict, root: dict, prefix: str) -> Iterator[Row]:
    """The keys of a block, those of blocks within it after them."""
    for part in schema.get("allOf", []):
        if shared := _shared(part):
            yield Row(f"`{prefix}*`", "", "", f"All keys of {_link(shared)}.")
        elif "if" not in part:
            yield from _rows(with_reference(part, root), root, prefix)
    for key, given in schema.get("properties", {}).items():
        inner = with_reference(given, root)
        row = _row(f"{prefix}{key}", inner, key in schema.get("required", []))
        shared = _shared(given)
        yield row._replace(meaning=f"{row.meaning} Its keys are those of {_link(shared)}.") if shared else row
        if not shared:
            yield from _rows(inner, root, f"{prefix}{key}.")
            if isinstance(inner.get("additionalProperties"), dict):
                yield from _rows(
                    with_reference(inner["additionalProperties"], root), root, f"{prefix}{key}.{_chosen(key)}."
                )


def _shared(schema: dict) -> str | None:
    """The shared block that a subschema refers to."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return name if name in SHARED else None


def _link(shared: str) -> str:
    title = SHARED[shared]
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _row(key: str, schema: dict, is_required: bool) -> Row:
    default = f"`{_written(schema['default'])}`" if "default" in schema else "required" if is_required else ""
    return Row(f"`{key}`", _type(schema), default, schema.get("description", ""))


def _type(schema: dict) -> str:
    """The values that a key may have."""
    if "enum" in schema:
        return ", ".join(f"`{_written(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{_written(schema['const'])}`"
    given = schema.get("type", "object")
    types = [kind for kind in ([given] if isinstance(given, str) else given) if kind != "null"]
    words = {"object": "block", "array": "list", "string": "text", "boolean": "true or false"}
    text = " or ".join(words.get(kind, kind) for kind in types)
    if "array" in types and "enum" in schema.get("items", {}):
        text = f"list of {', '.join(f'`{value}`' for value in schema['items']['enum'])}"
    text += _bounds(schema)
    return f"{text}, or null" if "null" in given and isinstance(given, list) else text


def _bounds(schema: dict) -> str:
    """The bounds of a number, or of a list's length."""
    fewest, most = schema.get("minItems"), schema.get("maxItems")
    if fewest and most:
        return f" of {fewest}" if fewest == most else f" of {fewest} to {most:,}"
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "exclusiveMaximum": "and below {}",
        "minItems": "of {} or more",
        "maxItems": "of at most {}",
    }
    given = [(word, schema[key]) for key, word in words.items() if key in schema]
    return "".join(f" {word.format(_number(value))}" for word, value in given if value < UNBOUNDED)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _written(value: object) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: list[Row]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| key | values | default | meaning |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    text = page(read_schema(SCHEMA))
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
