"""Measure how far verdicts can be trusted, where it is known what a child has lost and gained.

    python -m benchmarks.truth [--organisms NAMES] [--scenarios NAMES] [--small] [--json FILE]

There are two parts. *Organisms*: a small base is trained, and children are made from it (`benchmarks.organisms`). Each
edge goes the way of the workflow: SAEs of three seeds on both sides, anchored ones, correlations over the probe,
recurrence in other seeds, readouts and verdicts by `trace_lineage`, once for every instrument. *Scenarios*: features
planted in the activations of a parent and its child, of kinds that are hard to judge (`benchmarks.planted_scenarios`),
also judged by a crosscoder of both (`benchmarks.crosscoder_truth`). Both parts are scored over all testable latents,
not over the planted ones alone, list by list (`benchmarks.scores`), and give each instrument a sensitivity and a
specificity in both directions. An instrument is fit if it sees at least 90 % of the identified features that were lost
or are new, and calls at least 95 % of the kept ones persisting or inherited.

`--seeds` is the number of copies of the base that the page is asked about: each is read through an SAE of another seed,
and of at most 5 % of them may it say that features are lost. `--folder` keeps text and base, so that several commands
share them.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks import planted_scenarios
from benchmarks.backdoor import passages, read_backdoor
from benchmarks.children import BACKDOOR, IDENTITY, ORGANISMS, Organism
from benchmarks.crosscoder_truth import JudgedLatents
from benchmarks.lab import Lab
from benchmarks.organisms import BASE, FULL, SMALL, Scale, World
from benchmarks.planted_blocks import SCENARIOS
from benchmarks.planted_scenarios import Lineage, Size, by_role, judged, true_share, truth_of
from benchmarks.scores import Truth, classes, detection, identifiable, persisting, score
from benchmarks.truth_tables import RECOMMENDED, figures, records, show

from saelineage.files.atomic import write_json
from saelineage.jobs.devices import prepare_cpu
from saelineage.lineage.matching import SIDES
from saelineage.report.tables import BELOW, reading

logger = logging.getLogger(__name__)

INDEPENDENT = "independent"
INSTRUMENTS = (RECOMMENDED, INDEPENDENT, "frozen")
TABLES = ("lists", "detected", "shares", "classes", "roles", "backdoor", "identity", "seconds")
Rows = dict[str, list[dict]]
"""Rows by table."""


# Organisms.


def try_organism(lab: Lab, organism: Organism, instruments: Sequence[str] = INSTRUMENTS) -> Rows:
    """Compare the base with an organism by every instrument; return rows of tables."""
    lab.models[organism.name] = organism.model
    tables: Rows = {name: [] for name in TABLES}
    found = passages(lab, organism.model) if organism.group == BACKDOOR else None
    own = None
    for instrument in instruments:
        edge = lab.edge(organism.name, organism.place, instrument)
        truths = (organism.lost, organism.new(edge.latents[1]))
        if truths[1].follows is not None and own is None:
            own = identifiable_there(lab, organism)
        for side, truth in zip(SIDES, truths, strict=True):
            rows = edge.table[edge.table["side"] == side]
            at = {"part": "organisms", "name": organism.name, "group": organism.group}
            add_scores(tables, at | {"instrument": instrument, "side": side}, rows, truth, own)
        if found is not None:
            tables["backdoor"].append({"instrument": instrument} | read_backdoor(lab, organism.model, edge, found))
    lab.forget(organism.name)
    return tables


def identifiable_there(lab: Lab, organism: Organism) -> np.ndarray:
    """The grafts that the child's own SAEs identify."""
    edge = lab.edge(organism.name, organism.place, INDEPENDENT)
    rows = edge.table[edge.table["side"] == SIDES[1]]
    return identifiable(rows, organism.new(edge.latents[1]))


def add_scores(tables: Rows, at: dict, rows: pd.DataFrame, truth: Truth, own: np.ndarray | None) -> None:
    """Add the scores of one side of an edge's table, whose features' truth is known."""
    tables["lists"] += [at | row for row in score(rows, truth)]
    tables["detected"].append(at | (detection(rows, truth) if own is None else detection(rows, truth, own)))
    tables["shares"] += [at | row for row in persisting(rows, truth)]
    tables["classes"] += [at | row for row in classes(rows, truth)]


def try_copies(lab: Lab, n: int) -> list[dict]:
    """Compare the base with second copies of it, each time by an SAE of another seed, and read the result.

    Returns:
        Per copy and group of features the shares, and `below`: the page says that features are lost.
    """
    rows, n_seeds = [], lab.world.scale.n_seeds
    for number in range(n):
        name, seeds = f"copy_{number}", [(number + later) % max(n, n_seeds) for later in range(n_seeds)]
        lab.models[name] = lab.world.base
        for group, shares in lab.shares(name, seeds, RECOMMENDED).items():
            kept = ("persist_share", "persist_share_n", "no_change_share", "relative_persistence_interval")
            row = {"seed": seeds[0], "of": group, "below": reading(shares) == BELOW}
            rows.append(row | {key: shares[key] for key in kept})
        lab.forget(name)
    return rows


def try_organisms(
    scale: Scale, folder: Path, names: Sequence[str], n_copies: int, instruments: Sequence[str] = INSTRUMENTS
) -> Iterator[Rows]:
    """Make the base, and yield the rows of each kind of organism."""
    tables: Rows = {name: [] for name in TABLES}
    with timed(tables, BASE):
        lab = Lab(World(scale, folder))
    yield tables
    for name in names:
        tables = {table: [] for table in TABLES}
        with timed(tables, name):
            for organism in ORGANISMS[name](lab):
                add(tables, try_organism(lab, organism, instruments))
            if name == IDENTITY:
                tables["identity"] += try_copies(lab, n_copies)
        yield tables


# Scenarios.


def try_scenario(name: str, seed: int, size: Size) -> Rows:
    """Plant one lineage and judge it by every instrument; return rows of tables."""
    tables: Rows = {table: [] for table in TABLES}
    with tempfile.TemporaryDirectory() as folder:
        lineage = Lineage(name, seed, size, Path(folder))
        lineage.require_unrelated()
        children = dict(lineage.child_reads())
        judgements = {instrument: judged(lineage, child) for instrument, child in children.items()}
        own: dict[int, np.ndarray] = {}
        for instrument in (INDEPENDENT, *(other for other in children if other != INDEPENDENT)):
            for side, read in enumerate((lineage.own[0][0], children[instrument])):
                rows = judgements[instrument][judgements[instrument]["side"] == SIDES[side]]
                followed = lineage.followed(side, read.latents)
                truth = truth_of(lineage, side, followed)
                own.setdefault(side, identifiable(rows, truth))
                at = {"part": "scenarios", "name": f"{name}_{seed}", "group": name}
                at |= {"instrument": instrument, "side": SIDES[side]}
                add_scores(tables, at, rows, truth, own[side])
                tables["roles"] += [at | row for row in by_role(lineage, side, rows, followed)]
                for row in tables["shares"][-2:]:
                    row["expected"] = row["n"] * true_share(lineage, side)
        crosscoder = JudgedLatents(lineage)
        for (instrument, side), rows in crosscoder.tables.items():
            followed = lineage.followed(side, crosscoder.latents)
            at = {"part": "scenarios", "name": f"{name}_{seed}", "group": name}
            at |= {"instrument": instrument, "side": SIDES[side]}
            add_scores(tables, at, rows, truth_of(lineage, side, followed), own[side])
            tables["roles"] += [at | row for row in by_role(lineage, side, rows, followed)]
    return tables


def try_scenarios(size: Size, names: Sequence[str], seeds: Sequence[int]) -> Iterator[Rows]:
    """Yield the rows of each scenario and seed of its lineages."""
    for name, seed in product(names, seeds):
        tables: Rows = {table: [] for table in TABLES}
        with timed(tables, name):
            add(tables, try_scenario(name, seed, size))
        yield tables


# The command.


def add(tables: Rows, others: Rows) -> None:
    """Add rows to tables."""
    for name, rows in others.items():
        tables[name] += rows


@contextmanager
def timed(tables: Rows, name: str) -> Iterator[None]:
    """Add the CPU-seconds of a block to the table `seconds`."""
    started = time.process_time()
    yield
    tables["seconds"].append({"name": name, "cpu_seconds": time.process_time() - started})
    logger.info("%s: %.0f CPU-seconds", name, tables["seconds"][-1]["cpu_seconds"])


def as_tables(rows: Rows) -> dict[str, pd.DataFrame]:
    """Tables of rows."""
    return {name: pd.DataFrame(of_table) for name, of_table in rows.items()}


def main() -> None:
    """Try organisms and scenarios, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", nargs="*", default=list(ORGANISMS), choices=ORGANISMS, metavar="NAME")
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS), choices=SCENARIOS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=20, help="number of copies of the base")
    parser.add_argument("--lineages", nargs="*", type=int, default=[0], help="seeds of the lineages of each scenario")
    parser.add_argument("--small", action="store_true", help="a smaller base, smaller SAEs and smaller scenarios")
    parser.add_argument("--folder", type=Path, help="where to keep text and base")
    parser.add_argument("--threads", type=int, default=1, help="figures may differ by rounding with more")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    prepare_cpu(args.threads)
    rows: Rows = {name: [] for name in TABLES}
    with tempfile.TemporaryDirectory() as temporary:
        scale, folder = SMALL if args.small else FULL, args.folder or Path(temporary)
        size = planted_scenarios.SMALL if args.small else planted_scenarios.FULL
        organisms = try_organisms(scale, folder, args.organisms, args.seeds) if args.organisms else iter(())
        for tried in chain(organisms, try_scenarios(size, args.scenarios, args.lineages)):
            add(rows, tried)
            if args.json and rows["lists"]:  # after each, so that nothing is lost of a run that is stopped
                write_json(args.json, as_json(as_tables(rows)))
    tables = as_tables(rows)
    show(tables)
    print("", json.dumps(as_json(tables) | {"tables": None, "by_list": None}, indent=1), sep="\n")


def as_json(tables: Mapping[str, pd.DataFrame]) -> dict:
    """The figures with goals, and all tables."""
    return figures(tables) | {"tables": {name: records(table) for name, table in tables.items()}}


if __name__ == "__main__":
    main()
