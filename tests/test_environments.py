"""The conda environments pin the same versions as requirements.txt, and every rule names one."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if "==" in line)


def test_environments_together_pin_exactly_the_requirements():
    required = pins((ROOT / "requirements.txt").read_text().split())
    pinned = {}
    for path in ENVIRONMENTS:
        environment = pins(yaml.safe_load(path.read_text())["dependencies"][-1]["pip"])
        assert environment == {name: required[name] for name in environment}, path.name
        pinned |= environment
    assert pinned == required


def test_every_rule_names_an_environment_that_exists():
    for path in sorted((ROOT / "rules").glob("*.smk")):
        text = path.read_text()
        named = re.findall(r'"\.\./envs/(\w+)\.yaml"', text)
        assert len(named) == len(re.findall(r"^ *rule ", text, flags=re.MULTILINE)), path.name
        assert set(named) <= {environment.stem for environment in ENVIRONMENTS}
