"""Commands in messages can be copied: they name the config and the Snakefile that the user named."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.jobs import commands
from saelineage.jobs.commands import announce_options, command, require_quotable
from saelineage.jobs.manifests import Check, Problem
from verify_run import advice


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, in a process that knows no options yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(commands.OPTIONS, "")
    return tmp_path


def test_the_default_config_needs_no_options(folder: Path):
    announce_options(folder / "Snakefile", [], [])
    assert command("--unlock") == "snakemake --unlock"
    assert command() == "snakemake"


def test_a_command_repeats_the_config_after_its_targets(folder: Path):
    # --configfile and --config take every word after them, so a target there would be read as a config.
    announce_options(folder / "Snakefile", [folder / "my runs/tiny.yaml", "/else/b.yaml"], ["saes={k: 8}", "run=x"])
    said = command("--cores", "2", "verify")
    assert said == (
        "snakemake --cores 2 verify --configfile 'my runs/tiny.yaml' /else/b.yaml --config 'saes={k: 8}' run=x"
    )
    assert shlex.split(said)[4:7] == ["--configfile", "my runs/tiny.yaml", "/else/b.yaml"]


def test_a_workflow_that_lies_elsewhere_is_named(folder: Path):
    announce_options("/opt/saelineage/Snakefile", [folder / "tiny.yaml"], [])
    assert command("--unlock") == "snakemake --unlock --snakefile /opt/saelineage/Snakefile --configfile tiny.yaml"
    folder.joinpath("Snakefile").symlink_to("/opt/saelineage/Snakefile")
    announce_options("/opt/saelineage/Snakefile", [], [])
    assert command() == "snakemake"


def test_jobs_learn_the_options_from_their_environment(folder: Path):
    announce_options(folder / "Snakefile", ["tiny.yaml"], [])
    assert os.environ[commands.OPTIONS] == "--configfile tiny.yaml"


def test_verify_says_how_to_make_again_what_is_damaged():
    announce_options("Snakefile", ["tiny.yaml"], [])
    kept, asked = "results/tiny/a/manifest.json", "results/tiny/b/manifest.json"
    damaged = [Problem("'a' is missing", ["results/tiny/a/a", kept])]
    plain = "delete the files named here and run again: snakemake --cores 2 --configfile tiny.yaml"
    assert advice(Check(damaged, [], 2, 9), {kept}) == [f"'a' is missing: rm -f results/tiny/a/a {kept}", plain]
    damaged += [Problem("'b' is missing", [asked])]
    *_, last = advice(Check(damaged, [], 2, 9), {kept})
    assert last.splitlines() == [
        plain,
        "a plain run does not make files that are made on request, so ask for these: "
        f"snakemake --cores 2 {asked} --configfile tiny.yaml",
    ]


@pytest.mark.parametrize("letter", [*" \t\n\u00a0\u2003\x1b", *"|&;<>()$`\\\"'*?[]{}~#!^"])
def test_a_python_that_snakemake_cannot_start_is_refused_with_a_remedy(letter: str):
    path = f"/home/me/a{letter}b/bin/python"
    with pytest.raises(InputError, match="must be at a path without spaces and without characters that mean") as raised:
        require_quotable(path)
    assert f"it is at '{path}'; make the virtual environment elsewhere, such as ~/" in str(raised.value)


@pytest.mark.parametrize(
    "home", ["/home/me", "/home/josé", "/home/jose\u0301", "/Users/李", "/home/Ольга", "/a@b%c+d=e:f,g"]
)
def test_a_usual_python_is_accepted_whatever_the_letters_of_its_home(home: str):
    path = f"{home}/.venv-3.11/bin/python3.11"
    require_quotable(path)
    said = subprocess.run(["/bin/sh", "-c", f"echo {path}"], capture_output=True, check=True)
    assert said.stdout.decode() == f"{path}\n"
