"""Configs with mistakes end in one sentence or in a plan (`benchmarks/config_fuzz.py` tries more of them)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.strict_yaml import read_yaml
from tests.config_mutants import BASE, RANDOM, Mutant, hand_made, mutants

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = read_schema(ROOT / "config" / "config.schema.yaml")
N_RANDOM = 20
PLANNED = {
    *("as it is", "byte order mark", "sexagesimal", "60 generations", "45 generations of merges", "20 seeds"),
    "names of 64 characters",
}
"""Hand-made configs that are good after all."""
UNREADABLE = {"binary", "UTF-16", "Latin-1", "impossible date", "5,000 digits", "5,000 brackets"}
"""Files for which Snakemake's own reader prints a traceback (docs/decisions/0018-hostile-input.md)."""
CIRCLES = {"a circle", "a circle of models"}
"""Files whose content Snakemake cannot copy, with a traceback too."""
SNAKEMAKES = "Snakemake's traceback"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Kind, mistake and outcome of each mutant, from a process that does not check types at every call."""
    path = tmp_path_factory.mktemp("fuzz") / "outcomes.json"
    n = str(len(hand_made()) + N_RANDOM)
    command = [sys.executable, "-m", "benchmarks.config_fuzz", "--n", n, "--seed", "1", "--commands", "0"]
    process = subprocess.run([*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text())["configs"]


def expected(mutant: Mutant) -> str:
    if mutant.what in CIRCLES:
        return SNAKEMAKES
    if mutant.what in UNREADABLE and mutant.kind in ("not a config", "encoding", "YAML", "bombs"):
        return "error" if (mutant.kind, mutant.what) == ("YAML", "binary") else SNAKEMAKES
    return "plans" if mutant.what in PLANNED else "error"


def test_every_hand_made_config_ends_as_expected(outcomes: list[list[str]]):
    ends = {(kind, what): outcome for kind, what, outcome in outcomes[: len(hand_made())]}
    assert len(ends) == len(hand_made())
    assert ends == {(mutant.kind, mutant.what): expected(mutant) for mutant in hand_made()}


def test_every_random_config_ends_in_an_error_or_a_plan(outcomes: list[list[str]]):
    ends = outcomes[len(hand_made()) :]
    assert len(ends) == N_RANDOM
    allowed = {"bytes": ("error", "plans", SNAKEMAKES)}
    assert [end for end in ends if end[2] not in allowed.get(end[0], ("error", "plans"))] == []
    assert {kind for kind, *_ in ends} == {kind.removesuffix(", again") for kind in RANDOM}
    assert sum(outcome == "plans" for *_, outcome in ends) < N_RANDOM / 2  # most changes do harm


def test_our_own_reader_explains_in_one_sentence_files_that_snakemake_s_cannot_read(tmp_path: Path):
    unreadable = [mutant for mutant in hand_made() if expected(mutant) == SNAKEMAKES and mutant.what not in CIRCLES]
    assert len(unreadable) == len(UNREADABLE)
    for mutant in unreadable:
        (tmp_path / "config.yaml").write_bytes(mutant.content)
        with pytest.raises(InputError, match="must be YAML in UTF-8, but: "):
            read_yaml(tmp_path / "config.yaml")


def test_circles_are_refused(tmp_path: Path):
    circles = [mutant for mutant in hand_made() if mutant.what in CIRCLES]
    assert len(circles) == len(CIRCLES)
    for mutant in circles:
        (tmp_path / "config.yaml").write_bytes(mutant.content)
        with pytest.raises(InputError, match="with its aliases"):
            load_config(read_yaml(tmp_path / "config.yaml"), {})


def test_a_secret_in_a_config_file_is_refused_and_not_repeated(tmp_path: Path):
    secret = "hf_" + "aB3" * 11
    for line in ("kind: english", "run: fuzz", "dtype: float16", "model: words", 'glob: "*.txt"'):
        path = tmp_path / "config.yaml"
        path.write_text(BASE.replace(line, f"{line.partition(':')[0]}: {secret}", 1))
        assert secret in path.read_text()
        with pytest.raises(InputError, match="looks like a token, key or password") as raised:
            load_config(read_yaml(path), SCHEMA)
        assert secret not in str(raised.value)


def test_equal_seeds_make_equal_mutants():
    n = len(hand_made()) + 10
    assert mutants(n, 3) == mutants(n, 3) != mutants(n, 4)
