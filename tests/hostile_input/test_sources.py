"""What no file of the project may do with foreign files."""

import re
from pathlib import Path

import pytest

import saelineage

SCRIPTS = Path(saelineage.__file__).parents[1]
SOURCES = {str(path.relative_to(SCRIPTS)): path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.rglob("*.py"))}


@pytest.mark.parametrize(
    "forbidden",
    [
        r"pickle\.loads?\(",
        r"allow_pickle\s*=\s*True",
        r"trust_remote_code\s*=\s*True",
        r"weights_only\s*=\s*False",
        r"torch\.load\((?!.*weights_only=True)",
        r"\bnp\.load\(",
        r"yaml\.(unsafe_load|full_load)",
        r"(?<![\w.])(eval|exec)\(",
        r"extractall\(|shell=True|os\.system\(",
    ],
)
def test_nothing_foreign_is_run(forbidden: str):
    assert [name for name, text in SOURCES.items() if re.search(forbidden, text)] == []


def test_transformers_is_told_to_run_no_code_wherever_it_opens_anything():
    calls = [
        (name, call)
        for name, text in SOURCES.items()
        for call in re.findall(r"\.from_(?:pretrained|config)\((?:[^()]|\([^()]*\))*\)", text)
    ]
    assert len(calls) >= 4
    assert [(name, call) for name, call in calls if "trust_remote_code=False" not in call] == []
