"""Load a config as a plan that has passed every check."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from saelineage.plan.checks import check, check_files
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import read_yaml


def load_plan(given: Mapping, paths: Iterable[Path | str], path_to_schema: Path | str) -> Plan:
    """Make the plan of a config, after all checks.

    Args:
        given: the config as Snakemake merged it from the config files and `--config`.
        paths: the config files. They are read a second time, because Snakemake accepts duplicate keys.
        path_to_schema: `config.schema.yaml`.

    Raises:
        InputError: on the first mistake, with the key, the requirement and the value.
    """
    for path in paths:
        read_yaml(path)
    plan = Plan(load_config(given, read_schema(path_to_schema)))
    for of_hookpoint in plan.places.values():
        check(of_hookpoint)
        check_files(of_hookpoint)
    return plan
