"""The documents match the project."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import yaml
from benchmarks.config_page import PAGE, page

from saelineage.lineage.crosstable import UNMATCHED
from saelineage.lineage.exclusivity import VERDICTS as OF_CROSSCODERS
from saelineage.lineage.twins import HEADLINE
from saelineage.lineage.verdicts import CHANGES, UNTESTABLE, VERDICTS
from saelineage.plan.comparisons import RANDOM_CONTROLS
from saelineage.plan.config import with_reference
from saelineage.plan.crosscoders import CROSSCODER
from saelineage.plan.graph import CONTINUED, REVIVED, TWIN
from saelineage.plan.instruments import INSTRUMENTS
from saelineage.plan.paths import Paths
from saelineage.plan.strict_yaml import read_yaml
from saelineage.report.registry import TABLES

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "workflow" / "scripts" / "saelineage"
SCHEMA = read_yaml(ROOT / "config" / "config.schema.yaml")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH_IN_TEXT = re.compile(r"(?<![\w./{*-])(?:[\w.-]+/)+[\w.-]*\w\.(?:py|smk|md|yaml|toml|ipynb|jinja|txt)(?![\w*{])")
"""A path with a folder and the ending of a file of the project; files of a run have other endings."""
PLACEHOLDERS = {".x", ".receive"}
"""From `import saelineage.x`, and a function of the page's scripts."""


def keys(schema: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every key that the schema names, with its subschema."""
    schema = with_reference(schema, SCHEMA)
    for part in schema.get("allOf", []):
        yield from keys(part.get("then", part), path)
    for name, subschema in schema.get("properties", {}).items():
        resolved = with_reference(subschema, SCHEMA)
        yield f"{path}.{name}".lstrip("."), resolved
        yield from keys(resolved, f"{path}.{name}")
    for group in ("additionalProperties", "items"):
        if isinstance(schema.get(group), dict):
            yield from keys(schema[group], f"{path}.*")
    for subschema in schema.get("patternProperties", {}).values():
        yield from keys(subschema, f"{path}.*")


def test_every_config_key_has_a_sentence():
    silent = [path for path, subschema in keys(SCHEMA) if not subschema.get("description", "").endswith(".")]
    assert [path for path in silent if not path.endswith(".source")] == []


def test_the_page_of_config_keys_is_that_of_the_schema_and_has_every_key():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(SCHEMA), "the schema has changed: run python -m benchmarks.config_page --write"
    rows = re.findall(r"^\| `(\S+)` \|", text, flags=re.MULTILINE)
    sections = re.findall(r"^##+ (.+)$", text, flags=re.MULTILINE)
    listed = {name.split(" ")[0].rpartition(".")[2] for name in [*rows, *sections]}
    assert {path.rpartition(".")[2] for path, _ in keys(SCHEMA)} - listed == {"source"}  # it stands in titles
    links = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert links <= {title.lower().replace(" ", "-") for title in sections}


def test_the_readme_has_exactly_two_set_up_commands_of_one_line():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^# install and \w+.*\n(.+)\n```", text, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt ")
        assert " -e . && " in command  # with the pins, because pyproject.toml has none of its own


def test_the_page_on_reading_and_the_schema_list_every_instrument():
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` .*\|$", text, flags=re.MULTILINE)) == {*INSTRUMENTS, CROSSCODER}
    listed = SCHEMA["properties"]["lineage"]["properties"]["instruments"]["items"]["enum"]
    assert sorted(listed) == sorted([*INSTRUMENTS, CROSSCODER])


def test_the_glossary_has_every_verdict_change_control_and_instrument():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = {*chain.from_iterable(VERDICTS), UNTESTABLE, *CHANGES, *RANDOM_CONTROLS, *INSTRUMENTS}
    terms |= {TWIN, CONTINUED, REVIVED, CROSSCODER, *OF_CROSSCODERS, UNMATCHED, HEADLINE, "robust"}
    named = text.replace("emerge*", "emerges").replace("disappear*", "disappears")
    assert [term for term in sorted(terms) if not re.search(rf"\b{term}\b", named)] == []


def test_every_file_and_name_that_the_documents_mention_exists():
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    missing = {path.name: [*missing_files(text, path.parent), *missing_names(text)] for path, text in texts.items()}
    assert {name: names for name, names in missing.items() if names} == {}


def missing_files(text: str, folder: Path) -> list[str]:
    """Links to files, and paths in the text, that exist neither relative to the document nor to the project."""
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    files = re.sub(r"\]\([^)]+\)|https?://\S+|`[\w./{}-]*results/[^`]*`", "", text)
    places = (folder, ROOT, LIBRARY)
    mentioned = [*filter(None, links), *PATH_IN_TEXT.findall(files)]
    return [name for name in mentioned if not any((place / name).exists() for place in places)]


def missing_names(text: str) -> list[str]:
    """Dotted names of the library that are neither a module nor defined in one."""
    missing = []
    for name in set(re.findall(r"\bsaelineage((?:\.\w+)+)", text)) - PLACEHOLDERS:
        parts = name.strip(".").split(".")
        modules = [LIBRARY.joinpath(*parts[:n]) for n in range(len(parts), 0, -1)]
        module = next((path for path in modules if path.with_suffix(".py").exists() or path.is_dir()), None)
        rest = parts[len(module.relative_to(LIBRARY).parts) :] if module else parts
        if module is None or (rest and not defines(module.with_suffix(".py"), rest[0])):
            missing.append(name)
    return missing


def defines(module: Path, name: str) -> bool:
    """Whether a module defines a name at its top level."""
    pattern = rf"^(?:def|class) {name}\b|^{name}\b.*="
    return module.exists() and re.search(pattern, module.read_text(encoding="utf-8"), flags=re.MULTILINE) is not None


def test_a_missing_file_and_a_missing_name_are_found():
    text = "See `docs/nowhere.md`, [this](rules/none.smk), `saes/sae.py`, `saelineage.saes.sae.Sae`, saelineage.runs."
    assert missing_files(text, ROOT) == ["rules/none.smk", "docs/nowhere.md"]
    assert missing_names(text) == [".runs"]


def test_every_file_of_a_run_is_in_the_list_of_artifacts():
    listed = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    patterns = {name: value for name, value in vars(Paths).items() if str(value).startswith("results/")}
    assert len(patterns) > 30
    files = [pattern.rpartition("/")[2] for pattern in patterns.values()]
    names = [as_listed(file) for file in files if not file.endswith("manifest.json")]  # described once for all
    names += [f"{table}.csv" for table in TABLES]
    assert [name for name in names if name not in listed] == []


def as_listed(name: str) -> str:
    """The name of a file in `Paths`, as the list of artifacts writes it."""
    name = name.replace("{edge}", "{parent}__{child}").replace("{kind}", "").replace(".{ending}", ".json")
    name = {"{name}": "config.json", "{page}.html": "{hookpoint}.html"}.get(name, name)
    return re.sub(r"^(train|validation|probe)\.", "{split}.", name)


def test_every_rule_says_what_it_does_and_is_logged():
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert rule.split("\n")[1].strip() == '"""', rule.split("\n")[0]
            assert "    log:\n" in rule
            assert "    script:\n" in rule


def test_the_citation_names_this_version_and_the_study():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (study,) = citation["references"]
    assert study["identifiers"][0]["value"] == "arXiv:2410.12391"
