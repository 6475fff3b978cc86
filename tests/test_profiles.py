"""The profiles fit the rules: a rule renamed or given a GPU is noticed here, not by whoever has a cluster."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SLURM = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
DEFAULT = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text(encoding="utf-8"))
RULES = {
    name: body
    for path in sorted((ROOT / "rules").glob("*.smk"))
    for name, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), flags=re.MULTILINE | re.DOTALL)
}


def test_the_command_of_the_readme_finds_the_profile():
    assert (ROOT / "slurm").is_symlink()
    assert (ROOT / "slurm" / "config.yaml").samefile(ROOT / "profiles" / "slurm" / "config.yaml")


def test_the_profile_gives_a_gpu_to_the_rules_that_can_use_one_and_to_no_others():
    assert set(SLURM["set-resources"]) == {name for name, body in RULES.items() if "gpu=visible_gpus()" in body}
    assert all(resources == {"gpu": 1} for resources in SLURM["set-resources"].values())


def test_rules_that_can_use_a_gpu_are_those_whose_scripts_ask_for_the_device():
    scripts = {path.stem for path in (ROOT / "workflow" / "scripts").glob("*.py") if "gpus=" in path.read_text()}
    assert {script(name) for name in SLURM["set-resources"]} == scripts


def script(rule: str) -> str:
    """The script that a rule runs."""
    return re.search(r"workflow/scripts/(\w+)\.py", RULES[rule])[1]


def test_groups_name_rules_that_there_are_and_have_sizes():
    assert set(SLURM["groups"]) <= set(RULES)
    assert set(SLURM["groups"].values()) == set(SLURM["group-components"])
    assert not any("localrule: True" in RULES[rule] for rule in SLURM["groups"])


def test_what_starts_snakemake_runs_where_snakemake_does():
    starting = [name for name in RULES if starts_snakemake(script(name))]
    assert starting
    assert all("localrule: True" in RULES[rule] for rule in starting)


def starts_snakemake(name: str) -> bool:
    """Whether a script asks for the jobs of the run."""
    return "from saelineage.jobs.listing import" in (ROOT / "workflow" / "scripts" / f"{name}.py").read_text()


def test_the_default_profile_holds_nothing_that_would_overrule_a_cluster():
    # It is read after --profile, and wins key by key.
    assert not set(DEFAULT) & set(SLURM)
    assert DEFAULT["resources"] == {"gpu": 1}


def test_the_states_of_jobs_are_known_long_enough():
    # squeue forgets a job MinJobAge after its end. The plugin lets up to 180 s pass between two looks, and asks sacct
    # instead where MinJobAge is less than three times the first pause.
    looks = max(180, 3 * SLURM["slurm-init-seconds-before-status-checks"])
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (asked,) = map(int, re.findall(r"MinJobAge` must say (\d+) s or more", guide))
    assert SLURM["slurm-status-command"] == "squeue"
    assert looks < asked <= 300  # SLURM's default
