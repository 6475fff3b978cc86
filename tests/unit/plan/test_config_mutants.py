"""Configs with something wrong in them end in one sentence or in a plan (`benchmarks/config_fuzz.py` tries more)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.plan.checks import check
from saelineage.plan.config import load_config
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import read_yaml
from tests.config_mutants import BASE, RANDOM, Mutant, good, mutants, thought_up

ROOT = Path(__file__).resolve().parents[3]
FUZZ = ROOT / "benchmarks" / "config_fuzz.py"
N_RANDOM = 40
PLANNED = {
    *("as it is", "byte order mark", "sexagesimal", "60 generations", "45 generations of merges", "20 seeds"),
    "names of 64 characters",
}
"""What was thought up and is good after all."""
BEFORE_US = {"binary", "UTF-16", "Latin-1", "no date", "5,000 digits", "5,000 brackets"}
CIRCLES = {"a circle", "a circle of models"}
"""Over what Snakemake's own reader breaks off, with a traceback of its own (docs/decisions/0018-hostile-input.md); over
circles when it copies what it read."""
SNAKEMAKES = "Snakemake's traceback"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Kind, what was done and outcome of each, from a process in which types are not checked at every call."""
    path = tmp_path_factory.mktemp("fuzz") / "outcomes.json"
    n = str(len(thought_up()) + N_RANDOM)
    command = [sys.executable, str(FUZZ), "--n", n, "--seed", "1", "--commands", "0", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def expected(mutant: Mutant) -> str:
    if mutant.what in CIRCLES:
        return SNAKEMAKES
    if mutant.what in BEFORE_US and mutant.kind in ("not a config", "encoding", "YAML", "bombs"):
        return "error" if (mutant.kind, mutant.what) == ("YAML", "binary") else SNAKEMAKES
    return "plans" if mutant.what in PLANNED else "error"


def test_every_thought_up_config_ends_as_it_should(outcomes: list[list[str]]):
    found = {(kind, what): outcome for kind, what, outcome in outcomes[: len(thought_up())]}
    assert len(found) == len(thought_up())
    assert found == {(mutant.kind, mutant.what): expected(mutant) for mutant in thought_up()}


def test_our_own_reader_says_in_one_sentence_what_snakemake_s_breaks_off_over(tmp_path: Path):
    broken = [mutant for mutant in thought_up() if expected(mutant) == SNAKEMAKES and mutant.what not in CIRCLES]
    assert len(broken) == len(BEFORE_US)
    for mutant in broken:
        (tmp_path / "config.yaml").write_bytes(mutant.content)
        with pytest.raises(InputError, match="must be YAML in UTF-8, but: "):
            read_yaml(tmp_path / "config.yaml")


def test_every_random_config_ends_in_an_error_or_a_plan(outcomes: list[list[str]]):
    found = outcomes[len(thought_up()) :]
    assert len(found) == N_RANDOM
    allowed = {"bytes": ("error", "plans", SNAKEMAKES)}
    assert [entry for entry in found if entry[2] not in allowed.get(entry[0], ("error", "plans"))] == []
    assert {kind for kind, *_ in found} == {kind.removesuffix(", again") for kind in RANDOM}
    assert sum(outcome == "plans" for *_, outcome in found) < N_RANDOM / 4  # most changes do harm


@pytest.mark.parametrize("what", sorted(CIRCLES))
def test_our_own_checks_refuse_circles_that_snakemake_does_not_come_through(tmp_path: Path, what: str):
    path = tmp_path / "config.yaml"
    path.write_bytes(next(mutant.content for mutant in thought_up() if mutant.what == what))
    with pytest.raises(InputError, match="with its aliases"):
        load_config(read_yaml(path), {})


@pytest.mark.parametrize("place", ["kind: english", "run: fuzz", "dtype: float16", "model: words", 'glob: "*.txt"'])
def test_what_looks_like_a_secret_is_not_repeated(tmp_path: Path, place: str):
    secret = "hf_" + "aB3" * 11
    path = tmp_path / "config.yaml"
    path.write_text(BASE.replace(place, f"{place.partition(':')[0]}: {secret}", 1))
    assert secret in path.read_text()
    with pytest.raises(InputError, match="looks like a token, key or password") as raised:
        load_config(read_yaml(path), read_yaml(ROOT / "config" / "config.schema.yaml"))
    assert secret not in str(raised.value)


def test_names_that_only_begin_like_secrets_are_no_secrets():
    config = good()
    config["corpora"]["own"]["glob"] = "sk-learn-experiments-2024/hf_models/*.txt"
    config["labels"]["explanations"]["request"] = {"max_tokens": 100, "stop": "task-sk-1"}
    assert load_config(config, read_yaml(ROOT / "config" / "config.schema.yaml"))["run"] == "fuzz"


def test_equal_seeds_make_equal_mutants():
    n = len(thought_up()) + 20
    assert mutants(n, 3) == mutants(n, 3) != mutants(n, 4)
