"""The documents say what is there."""

import re
from collections.abc import Iterator
from pathlib import Path

from saelineage.plan.config import load_config, read_yaml, with_reference

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = read_yaml(ROOT / "config" / "config.schema.yaml")


def keys(schema: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every key that the schema names, with its subschema."""
    schema = with_reference(schema, SCHEMA)
    for part in schema.get("allOf", []):
        yield from keys(part.get("then", part), path)
    for name, subschema in schema.get("properties", {}).items():
        found = with_reference(subschema, SCHEMA)
        yield f"{path}.{name}".lstrip("."), found
        yield from keys(found, f"{path}.{name}")
    for group in ("additionalProperties", "items"):
        if isinstance(schema.get(group), dict):
            yield from keys(schema[group], f"{path}.*")
    for subschema in schema.get("patternProperties", {}).values():
        yield from keys(subschema, f"{path}.*")


def test_every_config_key_has_a_sentence():
    silent = [path for path, subschema in keys(SCHEMA) if not subschema.get("description", "").endswith(".")]
    assert [path for path in silent if not path.endswith(".source")] == []


def test_every_config_that_is_shipped_is_valid():
    for path in sorted((ROOT / "config").glob("*.yaml")):
        if path.name != "config.schema.yaml":
            assert load_config(read_yaml(path), SCHEMA)["run"]


def test_a_filled_config_is_valid_again_and_unchanged():
    filled = load_config(read_yaml(ROOT / "config" / "config.yaml"), SCHEMA)
    assert load_config(filled, SCHEMA) == filled


def test_the_readme_has_exactly_two_set_up_commands_of_one_line():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^# install and \w+.*\n(.+)\n```", text, flags=re.MULTILINE)
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)


def test_every_file_a_rule_writes_is_in_the_list_of_artifacts():
    listed = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "rules").glob("*.smk")):
        outputs = re.findall(
            r"^    output:\n(.*?)^    (?:log|wildcard)", path.read_text(), flags=re.MULTILINE | re.DOTALL
        )
        for name in re.findall(r'"results/\S*/([^/"]+)"', "\n".join(outputs)):
            if not name.endswith("manifest.json"):
                assert as_listed(name) in listed, (path.name, name)


def as_listed(name: str) -> str:
    """A file's name in a rule, as the list of artifacts writes it."""
    name = name.replace("{{", "{").replace("}}", "}").replace("{edge}", "{parent}__{child}")
    return re.sub("^(train|validation|probe)[.]", "{split}.", name)


def test_every_rule_says_what_it_does_and_is_logged():
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert rule.split("\n")[1].strip() == '"""', rule.split("\n")[0]
            assert "    log:\n" in rule
            assert "    script:\n" in rule
