"""A target that no rule makes is refused with the names that there are in its place."""

import pytest

from saelineage.jobs.targets import MOST_NAMED, asked_for, no_rule

RUN = "results/demo"
KNOWN = [f"{RUN}/saes/mlp/lua/{sae}/cfg.json" for sae in ("seed0", "seed1", "from_lua")] + [f"{RUN}/corpora/a.parquet"]


@pytest.mark.parametrize(
    ("target", "place", "names"),
    [
        ("saes/mlp/lua/seed7/cfg.json", "results/demo/saes/mlp/lua/", ["seed0", "seed1", "from_lua"]),
        ("saes/mlp/lau/seed0/cfg.json", "results/demo/saes/mlp/", ["lua"]),
        ("saes/mlp/lua/seed0/config.json", "results/demo/saes/mlp/lua/seed0/", ["cfg.json"]),
        ("sae/mlp/lua/seed0/cfg.json", "results/demo/", ["saes", "corpora"]),
        ("saes/mlp/lua", "which is a folder", ["seed0", "seed1", "from_lua"]),
    ],
)
def test_the_names_at_the_first_wrong_step_of_the_path_are_listed(target: str, place: str, names: list[str]):
    said = no_rule(f"{RUN}/{target}", RUN, KNOWN)
    assert f"'{RUN}/{target}'" in said
    assert place in said
    assert [name for name in names if name not in said.partition(place)[2]] == []
    assert "correct the name" in said


@pytest.mark.parametrize(
    "target", ["saes/lua/seed7", "results/other/saes/mlp/lua/seed0/cfg.json", "/results/demo/saes"]
)
def test_outside_the_run_s_folder_the_folder_is_named(target: str):
    said = no_rule(target, RUN, KNOWN)
    assert "'results/demo/'" in said
    assert "--configfile" in said


def test_close_names_come_first_and_long_lists_are_cut():
    known = [f"{RUN}/features/model{n:02}/x" for n in range(40)] + [f"{RUN}/features/zzz/x"]
    said = no_rule(f"{RUN}/features/zz/x", RUN, known)
    assert "but zzz, model00, " in said
    assert f" and {41 - MOST_NAMED} more" in said


@pytest.mark.parametrize("program", ["/venv/bin/snakemake", "/venv/lib/snakemake/__main__.py"])
def test_targets_are_read_from_snakemake_s_command_line_alone(program: str):
    arguments = ["--cores", "2", "verify", "./results//demo/x", "/far/y", "--config", "a=b", "--configfile", "c.yaml"]
    assert asked_for([program, *arguments]) == ["verify", "results/demo/x", "/far/y"]
    assert asked_for([program, "-n"]) == []
    assert asked_for(["/usr/bin/pytest", *arguments]) == []
