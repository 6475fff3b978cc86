"""Files that are asked for on Snakemake's command line, which no rule makes: say which there are.

Snakemake alone would say that there is no rule, and it learns its targets only after it has read the rules, so they are
read from its command line. The rules call this with Snakemake's `workflow`, which has no public type.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from saelineage.errors import InputError
from saelineage.plan.plan import Plan

DECIDES_RESULTS = False

MOST_NAMED = 24
"""Limit on the names that a message lists, so that it stays one that is read."""


def require_makeable(workflow: Any, run: Plan) -> None:
    """Refuse a target that is neither a rule, nor a file that a rule makes, nor there.

    Args:
        workflow: Snakemake's, with all its rules.
        run: the plan.

    Raises:
        InputError: on the first such target, with the names that there are in its place.
    """
    for target in asked_for(sys.argv) if workflow.is_main_process else []:
        is_made = workflow.is_rule(target) or any(rule.is_producer(target) for rule in workflow.rules)
        if not (is_made or os.path.exists(target)):
            known = [*run.everything(), *run.manifests(), *_beside(target, workflow)]
            raise InputError(no_rule(target, run.paths.folder, known))


def asked_for(argv: Sequence[str]) -> list[str]:
    """The targets of a command line, paths as Snakemake writes them; none of another program than Snakemake's own."""
    program = Path(argv[0])
    if program.name != "snakemake" and program.parts[-2:] != ("snakemake", "__main__.py"):
        return []
    from snakemake.cli import get_argument_parser  # Snakemake has it loaded then; elsewhere it loads pandas

    given = get_argument_parser().parse_args(argv[1:]).targets
    return [path if os.path.isabs(path) else os.path.relpath(path) for path in given]


def no_rule(target: str, folder: str, known: Iterable[str]) -> str:
    """A sentence on a target that no rule makes: up to where its path is right, and what there is instead.

    Args:
        target: path of a file, relative to the working directory.
        folder: of the run, `results/NAME`.
        known: paths of files of the run.
    """
    files = set(known)
    parts, n_folder = target.split("/"), folder.count("/") + 1
    if parts[:n_folder] != folder.split("/"):
        return (
            f"no rule makes '{target}': files of this run are under '{folder}/', and docs/artifacts.md lists them; "
            "correct the path, or name the config of another run with --configfile"
        )
    for depth in range(n_folder, len(parts)):
        start = "/".join(parts[:depth]) + "/"
        names = sorted({path.removeprefix(start).partition("/")[0] for path in files if path.startswith(start)})
        if parts[depth] not in names:
            return f"no rule makes '{target}': '{start}' has no '{parts[depth]}', but {_listed(parts[depth], names)}"
    names = sorted({path.removeprefix(f"{target}/").partition("/")[0] for path in files if path.startswith(target)})
    return f"no rule makes '{target}', which is a folder; ask for a file in it, below {_listed('', names)}"


def _listed(wrong: str, names: list[str]) -> str:
    near = get_close_matches(wrong, names, n=MOST_NAMED, cutoff=0.3)
    order = list(dict.fromkeys([*near, *names]))
    left = f" and {len(order) - MOST_NAMED} more" if len(order) > MOST_NAMED else ""
    listed = ", ".join(order[:MOST_NAMED]) or "nothing that a plain run makes"
    return f"{listed}{left}; correct the name, or add it to the config"


def _beside(target: str, workflow: Any) -> list[str]:
    """Files that rules make in the folder of a target, as far as their names hold no wildcard."""
    named = [(rule, os.path.basename(path)) for rule in workflow.rules for path in rule.output]
    beside = [(rule, os.path.join(os.path.dirname(target), name)) for rule, name in named if "{" not in name]
    return [path for rule, path in beside if rule.is_producer(path)]
