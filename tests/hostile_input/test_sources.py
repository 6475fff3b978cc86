"""Calls that no file of the project may contain, because they could run third-party code."""

import re
from pathlib import Path

import saelineage

SCRIPTS = Path(saelineage.__file__).parents[1]
SOURCES = {str(path.relative_to(SCRIPTS)): path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.rglob("*.py"))}
FORBIDDEN = [
    r"pickle\.loads?\(",
    r"allow_pickle\s*=\s*True",
    r"trust_remote_code\s*=\s*True",
    r"weights_only\s*=\s*False",
    r"torch\.load\((?!.*weights_only=True)",
    r"\bnp\.load\((?!.*allow_pickle=False)",
    r"yaml\.(unsafe_load|full_load)",
    r"(?<![\w.])(eval|exec)\(",
    r"extractall\(|shell=True|os\.system\(",
]


def test_no_source_file_runs_third_party_code():
    calls = [(pattern, name) for pattern in FORBIDDEN for name, text in SOURCES.items() if re.search(pattern, text)]
    assert calls == []


def test_transformers_runs_no_third_party_code_wherever_it_opens_anything():
    calls = [
        (name, call)
        for name, text in SOURCES.items()
        for call in re.findall(r"\.from_(?:pretrained|config)\((?:[^()]|\([^()]*\))*\)", text)
    ]
    assert len(calls) >= 4
    assert [(name, call) for name, call in calls if "trust_remote_code=False" not in call] == []
