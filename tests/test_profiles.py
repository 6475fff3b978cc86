"""The profiles match the rules, so that renaming a rule or giving it a GPU is noticed without a cluster."""

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


def test_the_command_in_the_readme_finds_the_profile():
    assert (ROOT / "slurm").is_symlink()
    assert (ROOT / "slurm" / "config.yaml").samefile(ROOT / "profiles" / "slurm" / "config.yaml")


def test_the_profile_gives_a_gpu_to_exactly_the_rules_that_can_use_one():
    assert set(SLURM["set-resources"]) == {name for name, body in RULES.items() if "gpu=visible_gpus()" in body}
    assert all(resources == {"gpu": 1} for resources in SLURM["set-resources"].values())


def test_the_rules_that_can_use_a_gpu_are_those_whose_scripts_ask_for_it():
    scripts = {path.stem for path in (ROOT / "workflow" / "scripts").glob("*.py") if "pick_device(" in path.read_text()}
    assert {script(name) for name in SLURM["set-resources"]} == scripts


def script(rule: str) -> str:
    """The script that a rule runs."""
    (name,) = re.findall(r"workflow/scripts/(\w+)\.py", RULES[rule])
    return name


def test_groups_have_sizes_and_name_rules_that_exist_and_are_submitted():
    assert set(SLURM["groups"]) <= set(RULES)
    assert set(SLURM["groups"].values()) == set(SLURM["group-components"])
    assert not any("localrule: True" in RULES[rule] for rule in SLURM["groups"])


def test_rules_that_start_snakemake_run_on_the_machine_of_snakemake():
    starting = [name for name in RULES if starts_snakemake(script(name))]
    assert starting
    assert all("localrule: True" in RULES[rule] for rule in starting)


def starts_snakemake(name: str) -> bool:
    """True if a script asks Snakemake for the jobs of the run."""
    return "from saelineage.jobs.listing import" in (ROOT / "workflow" / "scripts" / f"{name}.py").read_text()


def test_the_default_profile_overrides_nothing_of_a_cluster_profile():
    # It is read after --profile, and its keys win.
    assert not set(DEFAULT) & set(SLURM)
    assert DEFAULT["resources"] == {"gpu": 1}


def test_the_guide_demands_that_slurm_remembers_jobs_longer_than_snakemake_takes_to_ask():
    # squeue forgets a job MinJobAge seconds after its end. The plugin polls every 180 s or more often, and asks sacct
    # instead if MinJobAge is less than three times the first pause.
    longest_pause = max(180, 3 * SLURM["slurm-init-seconds-before-status-checks"])
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (min_job_age,) = map(int, re.findall(r"MinJobAge` must say \D*(\d+) s", guide))
    assert SLURM["slurm-status-command"] == "squeue"
    assert longest_pause < min_job_age <= 300  # SLURM's default
