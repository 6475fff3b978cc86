"""The conda environments pin what requirements.txt pins, and every rule names one."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_pins_what_requirements_pin(path: Path):
    required = pins((ROOT / "requirements.txt").read_text().split())
    found = pins(yaml.safe_load(path.read_text())["dependencies"][-1]["pip"])
    assert found
    assert found == {name: required[name] for name in found}


def test_every_required_package_is_in_some_environment():
    required = pins((ROOT / "requirements.txt").read_text().split())
    found = {
        name for path in ENVIRONMENTS for name in pins(yaml.safe_load(path.read_text())["dependencies"][-1]["pip"])
    }
    assert set(required) == found


def test_every_rule_but_all_names_an_environment_that_exists():
    for path in sorted((ROOT / "rules").glob("*.smk")):
        text = path.read_text()
        named = re.findall(r'"\.\./envs/(\w+)\.yaml"', text)
        assert len(named) == len(re.findall(r"^ *rule ", text, flags=re.MULTILINE))
        assert set(named) <= {environment.stem for environment in ENVIRONMENTS}
