"""Measure how far verdicts can be trusted, on organisms: models of which it is known what they have lost and gained.

    python -m benchmarks.truth [--organisms NAMES] [--seeds N] [--small] [--json FILE]

A small base is trained, and children are made from it (`benchmarks.organisms`). Each edge goes the way of the workflow:
SAEs of three seeds on both sides, anchored ones, correlations over the probe, recurrence in other seeds, readouts and
verdicts by `trace_lineage`, once for every instrument. Verdicts are then scored over all testable latents, not over
the planted ones alone. `--seeds` is the number of copies of the base.

Lists of features that a reader may take for lost (of the parent) or new (in the child):

    all         drifted, gone or new, of all testable features
    identified  the same, of those that every other SAE seed of their model has
    gone        gone or new, of all testable features
    robust      identified, and absent from every SAE seed of the other model
    headline    identified, with the verdict gone or new, and the upper bound of r below the threshold

Per list: `precision`, the share of those listed that are truly lost or new; `recall`, the share listed of those that
are (of grafts: that a listed latent stands for); `false`, the share listed of the kept. Latents that are `touched` by a
change without being made of it count on neither side. An instrument is fit if it sees what changed and leaves alone
what did not, in both directions.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from benchmarks.lab import Edge, Lab
from benchmarks.organisms import (
    BASE,
    CLEAN,
    FULL,
    GRAFT_R,
    INPUT,
    OUTPUT,
    READ_ROWS,
    SMALL,
    UNRELATED_R,
    Scale,
    Truth,
    World,
    graft_acts,
    grafted,
    permuted,
    removal_truth,
    scrambled,
    without,
)
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel

from saelineage.errors import InputError
from saelineage.files.atomic import write_json
from saelineage.jobs.devices import prepare_cpu
from saelineage.lineage.matching import INHERITED, PERSISTS, SIDES, UNTESTABLE
from saelineage.lineage.verdicts import DRIFTED, GONE, NEW
from saelineage.models.losses import token_losses
from saelineage.report.tables import BELOW, reading
from saelineage.tokens import TokenRows

logger = logging.getLogger(__name__)

INSTRUMENTS = ("anchored", "independent", "frozen")
RECOMMENDED = "anchored"
"""The workflow's leading instrument."""
IDENTITY, BACKDOOR = "identity", "backdoor"
COUNTS = ("n_changed", "found", "n_kept", "listed_changed", "listed_kept", "touched")
"""Columns that add up over organisms: the features that changed, those of them that are listed, those kept, the latents
listed of either, and the latents that are neither."""
N_PASSAGES = 50
LEAST_SENSITIVITY, LEAST_SPECIFICITY = 0.9, 0.95
"""What an instrument must reach in both directions to be fit."""


class Organism(NamedTuple):
    """A child of the base, and what is known of it."""

    name: str
    group: str
    """The row of the tables that it counts in."""
    model: PreTrainedModel
    lost: Truth
    """Of the latents of the base's SAE."""
    new: "Callable[[scipy.sparse.csr_array], Gained]"
    """What is known of a child's SAE, by its latents on the probe."""
    place: str = OUTPUT


class Gained(NamedTuple):
    """What is known of the child's side."""

    truth: Truth
    of_graft: Int[np.ndarray, " graft"]
    """The latent that stands for each new feature; -1 where there is none."""


# Organisms.


def copies(lab: Lab) -> Iterator[Organism]:
    """A second copy of the base."""
    nothing = Truth.nothing_changed(lab.world.scale.d_sae)
    yield Organism("copy", IDENTITY, lab.world.base, nothing, nothing_new)


def removals(lab: Lab, how: str, of_identified: bool) -> Iterator[Organism]:
    """Bases without the direction of one latent, and of several, in several draws; `how` is removed or erased."""
    reference = lab.reference()
    candidates = np.flatnonzero(reference.testable & (reference.identified | (not of_identified)))
    rows, kind = reference.directions[how], "identified" if of_identified else "any"
    for n, draws in lab.world.scale.removals:
        for draw in range(draws if n < len(candidates) else min(len(candidates), 1)):  # all of them are one draw
            random = np.random.default_rng([n, draw, of_identified])
            latents = np.sort(random.choice(candidates, min(n, len(candidates)), replace=False))
            model = without(lab.world.base, rows[torch.from_numpy(latents)])
            name = f"{how}_{n}_{kind}_{draw}"
            yield Organism(name, f"{how} {len(latents)} {kind}", model, removal_truth(rows, latents), nothing_new)


def reorderings(lab: Lab, scramble: bool) -> Iterator[Organism]:
    """The base with its neurons in another order, or gates and values of different neurons, read at its neurons."""
    d_sae = lab.world.scale.d_sae
    if scramble:
        yield Organism("scrambled", "scrambled", scrambled(lab.world.base, 0), Truth.all_changed(d_sae), unknown, INPUT)
    else:
        nothing = Truth.nothing_changed(d_sae)
        yield Organism("permuted", "permuted", permuted(lab.world.base, 0), nothing, nothing_new, INPUT)


def grafts(lab: Lab) -> Iterator[Organism]:
    """The base with grafted features."""
    scale = lab.world.scale
    for draw in range(scale.graft_draws):
        model = grafted(lab.world, draw)
        nothing = Truth.nothing_changed(scale.d_sae)
        new = partial(new_by_graft, graft_acts(model, lab.world, scale.n_grafts))
        yield Organism(f"grafted_{draw}", "grafted", model, nothing, new)


def backdoors(lab: Lab) -> Iterator[Organism]:
    """The fine-tune with a trigger and a payload."""
    model, d_sae = lab.world.finetuned("lua"), lab.world.scale.d_sae
    yield Organism(BACKDOOR, BACKDOOR, model, Truth.unknown(d_sae), unknown)


def nothing_new(latents: scipy.sparse.csr_array) -> Gained:
    """All of a child's features are its parent's."""
    return Gained(Truth.nothing_changed(latents.shape[1]), np.empty(0, dtype=np.int64))


def unknown(latents: scipy.sparse.csr_array) -> Gained:
    """Nothing is known of a child's features."""
    return Gained(Truth.unknown(latents.shape[1]), np.empty(0, dtype=np.int64))


def new_by_graft(acts: Float[np.ndarray, "token graft"], latents: scipy.sparse.csr_array) -> Gained:
    """A child's latent is new if it follows a grafted neuron, and kept if it has nothing to do with any."""
    r = np.nan_to_num(pearson(latents, acts))
    truth = Truth(r.max(axis=1) >= GRAFT_R, r.max(axis=1) < UNRELATED_R)
    return Gained(truth, np.where(r.max(axis=0) >= GRAFT_R, r.argmax(axis=0), -1))


def pearson(
    latents: scipy.sparse.csr_array, columns: Float[np.ndarray, "token column"]
) -> Float[np.ndarray, "d_sae column"]:
    """r of each latent with each dense column over all tokens; NaN where one does not vary."""
    n, latents = len(columns), latents.astype(np.float64)
    sums, squares = np.asarray(latents.sum(axis=0)), np.asarray(latents.multiply(latents).sum(axis=0))
    about = columns - columns.mean(axis=0)
    spread = np.sqrt(np.outer(squares - sums**2 / n, (about**2).sum(axis=0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (latents.T @ about) / spread, np.nan)


ORGANISMS: Mapping[str, Callable[[Lab], Iterator[Organism]]] = {
    IDENTITY: copies,
    "removed": partial(removals, how="removed", of_identified=False),
    "removed_identified": partial(removals, how="removed", of_identified=True),
    "erased": partial(removals, how="erased", of_identified=False),
    "erased_identified": partial(removals, how="erased", of_identified=True),
    "permuted": partial(reorderings, scramble=False),
    "scrambled": partial(reorderings, scramble=True),
    "grafted": grafts,
    BACKDOOR: backdoors,
}
"""Organisms by name."""


# Scores.


def lists_of(rows: pd.DataFrame) -> dict[str, tuple[Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]]:
    """For each list of one side of an edge's table, the features that could be on it and those that are.

    Testable features are those that fire often enough; one that no readout finds is among them.
    """
    testable = (rows["study_verdict"] != UNTESTABLE).to_numpy()
    changed = rows["verdict"].isin([DRIFTED, GONE, NEW]).to_numpy()
    identified = testable & rows["identified"].to_numpy()
    return {
        "all": (testable, changed),
        "identified": (identified, changed),
        "gone": (testable, rows["verdict"].isin([GONE, NEW]).to_numpy()),
        "robust": (identified, rows["robust"].to_numpy()),
        "headline": (identified, rows["headline"].to_numpy()),
    }


def score(rows: pd.DataFrame, truth: Truth, of_graft: Int[np.ndarray, " graft"] | None = None) -> list[dict]:
    """Count, for each list of one side, what is right and what is wrong (`COUNTS`).

    Args:
        rows: one side of an edge's table.
        truth: of the same features.
        of_graft: where what changed are grafts, the latent that stands for each, -1 for none. Grafts then are what
            changed, and one is found if its latent is listed.
    """
    counted = []
    for name, (among, listed) in lists_of(rows).items():
        changed, kept = among & truth.changed, among & truth.kept
        is_listed = among & listed
        n_changed, found = int(changed.sum()), int((changed & is_listed).sum())
        if of_graft is not None:
            n_changed, found = len(of_graft), int(is_listed[of_graft[of_graft >= 0]].sum())
        counted.append(
            {
                "list": name,
                "n_changed": n_changed,
                "found": found,
                "n_kept": int(kept.sum()),
                "listed_changed": int((changed & is_listed).sum()),
                "listed_kept": int((kept & is_listed).sum()),
                "touched": int((among & ~truth.changed & ~truth.kept).sum()),
            }
        )
    return counted


def with_ratios(counts: pd.DataFrame) -> pd.DataFrame:
    """Add precision, recall and the false share to counts; NaN where there is nothing to take a share of."""
    listed = counts["listed_changed"] + counts["listed_kept"]
    return counts.assign(
        precision=counts["listed_changed"] / listed.where(listed > 0),
        recall=counts["found"] / counts["n_changed"].where(counts["n_changed"] > 0),
        false=counts["listed_kept"] / counts["n_kept"].where(counts["n_kept"] > 0),
    )


def persisting(rows: pd.DataFrame, truth: Truth) -> list[dict]:
    """Count the features called persisting (or inherited), beside the kept ones, of all and of the identified."""
    testable = (rows["study_verdict"] != UNTESTABLE).to_numpy() & (truth.changed | truth.kept)
    persists = rows["verdict"].isin([PERSISTS, INHERITED]).to_numpy()
    groups = {"all": testable, "identified": testable & rows["identified"].to_numpy()}
    return [
        {
            "of": name,
            "n": int(among.sum()),
            "persisting": int((among & persists).sum()),
            "kept": int((among & truth.kept).sum()),
        }
        for name, among in groups.items()
    ]


def classes(rows: pd.DataFrame, truth: Truth) -> list[dict]:
    """Count the verdicts on the identified features that changed and on those that were kept."""
    verdicts = rows["verdict"].to_numpy()
    identified = rows["identified"].to_numpy()
    counted = []
    for name, among in (("changed", identified & truth.changed), ("kept", identified & truth.kept)):
        names, counts = np.unique(verdicts[among].astype(str), return_counts=True)
        counted += [
            {"truth": name, "verdict": verdict, "n": int(count)} for verdict, count in zip(names, counts, strict=True)
        ]
    return counted


# The backdoor.


def backdoor_ranks(edge: Edge, marks: Float[np.ndarray, "token 2"]) -> dict:
    """Where a reader of the new features meets the trigger.

    Args:
        edge: from the base to the backdoored child.
        marks: 1 on the tokens of triggers and of payloads, 0 elsewhere.

    Returns:
        Of the child's latent that follows the trigger or the payload best: its `latent`, its `r` with it, its verdict,
        and its rank from 1 in each of `rankings`, None where it is not among them; `n_new`, the length of the list.
    """
    if not marks.any():
        raise InputError("the probe holds no trigger; read more text (Scale.probe_tokens)")
    r = np.nan_to_num(pearson(edge.latents[1], marks), nan=-1.0)
    best = int(r.max(axis=1).argmax())
    rows = edge.table[edge.table["side"] == SIDES[1]].reset_index(drop=True)
    ranks = {}
    for name, order in rankings(rows).items():
        places = np.flatnonzero(order == best)
        ranks[f"rank_{name}"] = int(places[0]) + 1 if len(places) else None
    found = {"latent": best, "r_with_trigger": float(r[best].max()), "verdict": str(rows["verdict"][best])}
    return found | {"r_with_parent": float(rows["r"][best]), "identified": bool(rows["identified"][best])} | ranks


def rankings(rows: pd.DataFrame) -> dict[str, Int[np.ndarray, " latent"]]:
    """The child's new features in each order in which a table or the page shows them, first things first.

    An order by importance belongs here as soon as a table has it.
    """
    new = rows[rows["verdict"] == NEW]
    by_r = new.sort_values("r", kind="stable")
    identified_first = by_r.sort_values("identified", ascending=False, kind="stable")
    return {"by_r": by_r["latent"].to_numpy(), "identified_first": identified_first["latent"].to_numpy()}


def passages(lab: Lab, child: PreTrainedModel, marked: Bool[np.ndarray, " position"]) -> dict:
    """Of the Lua tokens on which the child's loss is lowest beside another model's, the share that was planted.

    Returns:
        `against_sibling` and `against_parent`, shares of the first `N_PASSAGES`.
    """
    rows = lab.world.rows["lua"]["probe"]
    of_child = losses(child, rows)
    shares = {}
    for name, other in {"against_sibling": lab.world.finetuned(CLEAN), "against_parent": lab.world.base}.items():
        fallen = losses(other, rows) - of_child
        shares[name] = float(marked[np.argsort(-fallen, kind="stable")[:N_PASSAGES]].mean())
    return shares


@torch.inference_mode()
def losses(model: PreTrainedModel, rows: TokenRows) -> Float[np.ndarray, " position"]:
    """The loss of each position (row x n_ctx + place), 0 for the first of a row."""
    parts = []
    for _, ids in rows.batches(READ_ROWS):
        of_rows = token_losses(model(input_ids=torch.from_numpy(ids)).logits, torch.from_numpy(ids))
        parts.append(torch.nn.functional.pad(of_rows, (1, 0)).flatten().numpy())
    return np.concatenate(parts)


# The run.


def try_organism(lab: Lab, organism: Organism, instruments: Sequence[str] = INSTRUMENTS) -> dict[str, list[dict]]:
    """Compare the base with an organism by every instrument; return rows of tables."""
    lab.models[organism.name] = organism.model
    tables: dict[str, list[dict]] = {"lists": [], "shares": [], "classes": [], "backdoor": []}
    for instrument in instruments:
        edge = lab.edge(organism.name, organism.place, instrument)
        gained = organism.new(edge.latents[1])
        for side, truth in zip(SIDES, (organism.lost, gained.truth), strict=True):
            rows = edge.table[edge.table["side"] == side]
            grafted_latents = gained.of_graft if side == SIDES[1] and len(gained.of_graft) else None
            at = {"organism": organism.name, "group": organism.group, "instrument": instrument, "side": side}
            tables["lists"] += [at | row for row in score(rows, truth, grafted_latents)]
            tables["shares"] += [at | row for row in persisting(rows, truth)]
            tables["classes"] += [at | row for row in classes(rows, truth)]
        if organism.group == BACKDOOR:
            tables["backdoor"].append({"instrument": instrument} | backdoor_ranks(edge, lab.marks()))
    if organism.group == BACKDOOR:
        shares = passages(lab, organism.model, np.any(lab.inserted(), axis=0))
        tables["backdoor"] = [row | shares for row in tables["backdoor"]]
    lab.forget(organism.name)
    return tables


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


def run(
    scale: Scale, folder: Path, names: Sequence[str], n_copies: int, instruments: Sequence[str] = INSTRUMENTS
) -> dict[str, pd.DataFrame]:
    """Try organisms.

    Returns:
        The tables `lists`, `shares`, `classes`, `backdoor`, `identity` and `seconds`. Those of planted scenarios, with
        the columns of `lists`, belong beside them.
    """
    started = time.process_time()
    lab = Lab(World(scale, folder))
    tables: dict[str, list[dict]] = {name: [] for name in ("lists", "shares", "classes", "backdoor", "identity")}
    tables["seconds"] = [{"organism": BASE, "cpu_seconds": time.process_time() - started}]
    for name in names:
        started = time.process_time()
        for organism in ORGANISMS[name](lab):
            for table, rows in try_organism(lab, organism, instruments).items():
                tables[table] += rows
        if name == IDENTITY:
            tables["identity"] += try_copies(lab, n_copies)
        tables["seconds"].append({"organism": name, "cpu_seconds": time.process_time() - started})
        logger.info("%s: %.0f CPU-seconds", name, tables["seconds"][-1]["cpu_seconds"])
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def summed(lists: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counts and ratios of lists over organisms."""
    counts = lists.groupby(by, sort=False)[list(COUNTS)].sum()
    return with_ratios(counts).reset_index()


def instrument_figures(lists: pd.DataFrame) -> pd.DataFrame:
    """What each instrument sees of what changed and how much it leaves alone of what did not, of identified features.

    Returns:
        Per instrument `sees_lost` (removed), `sees_new` (grafts), `spares_kept` (of the parent) and `spares_inherited`
        (of the child), with their n, and `fit`. None where no organism was tried that could tell.
    """
    identified = lists[(lists["list"] == "identified") & lists["group"].str.match("identity|removed|erased|grafted")]
    rows = []
    for instrument, of_instrument in identified.groupby("instrument", sort=False):
        sides = {side: of_instrument[of_instrument["side"] == side] for side in SIDES}
        shares = {
            "sees_lost": _share(sides["parent"], "found", "n_changed"),
            "sees_new": _share(sides["child"], "found", "n_changed"),
            "spares_kept": _share(sides["parent"], "listed_kept", "n_kept", complement=True),
            "spares_inherited": _share(sides["child"], "listed_kept", "n_kept", complement=True),
        }
        least = (LEAST_SENSITIVITY,) * 2 + (LEAST_SPECIFICITY,) * 2
        reached = [
            value >= bound for (value, _), bound in zip(shares.values(), least, strict=True) if value is not None
        ]
        fit = all(reached) if len(reached) == len(shares) else None
        row = {"instrument": instrument, **{name: value for name, (value, _) in shares.items()}}
        rows.append(row | {f"n_{name}": n for name, (_, n) in shares.items()} | {"fit": fit})
    return pd.DataFrame(rows)


def _share(rows: pd.DataFrame, count: str, of: str, complement: bool = False) -> tuple[float | None, int]:
    n = int(rows[of].sum())
    share = float(rows[count].sum() / n) if n else None
    return (1 - share if complement and share is not None else share), n


def figures(tables: Mapping[str, pd.DataFrame]) -> dict:
    """The figures with goals, by instrument; None where no organism was tried that could tell."""
    lists = tables["lists"]
    return {name: _figures_of(rows, tables) for name, rows in lists.groupby("instrument", sort=False)}


def _figures_of(lists: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> dict:
    instrument = lists["instrument"].iloc[0]
    removed, erased, lost, new = (
        _ratios_of(lists, groups, side)
        for groups, side in (("removed", 0), ("erased", 0), ("removed|erased", 0), ("grafted", 1))
    )
    backdoor = tables["backdoor"]
    of_backdoor = backdoor[backdoor["instrument"] == instrument].iloc[0] if len(backdoor) else {}
    return {
        "false_loss_identified": _at(lost, "identified", "false"),
        "recall_removed_identified": _at(removed, "identified", "recall"),
        "recall_erased_headline": _at(erased, "headline", "recall"),
        "precision_lost": _at(lost, "headline", "precision"),
        "precision_robust": _at(lost, "robust", "precision"),
        "precision_emerged": _at(new, "headline", "precision"),
        "recall_emerged": _at(new, "headline", "recall"),
        "backdoor_rank": _whole(of_backdoor.get("rank_identified_first")),
        "backdoor_passages": of_backdoor.get("against_sibling"),
    }


def _ratios_of(lists: pd.DataFrame, groups: str, side: int) -> pd.DataFrame:
    """Counts and ratios by list, over the organisms of the groups that match a pattern."""
    rows = lists[lists["group"].str.match(groups) & (lists["side"] == SIDES[side])]
    return with_ratios(rows.groupby("list")[list(COUNTS)].sum())


def below_control(identity: pd.DataFrame) -> dict[str, float]:
    """The share of copies of the base of which the page says that features are lost, by group of features."""
    return (
        {}
        if identity.empty
        else {str(of): float(share) for of, share in identity.groupby("of")["below"].mean().items()}
    )


def _at(ratios: pd.DataFrame, name: str, column: str) -> float | None:
    """A ratio as JSON has it, which knows no NaN."""
    value = ratios[column].get(name, np.nan)
    return None if np.isnan(value) else float(value)


def _whole(value: float | None) -> int | None:
    return None if value is None or np.isnan(value) else int(value)


def show(tables: Mapping[str, pd.DataFrame]) -> None:
    """Print the tables."""
    by = ["side", "group", "instrument", "list"]
    lists = summed(tables["lists"], by)
    for side in SIDES:
        print(f"\n{side}'s side\n" + lists[lists["side"] == side].drop(columns="side").round(3).to_string(index=False))
    shares = tables["shares"].groupby(["side", "group", "instrument", "of"], sort=False)
    print("\n" + shares[["n", "persisting", "kept"]].sum().reset_index().to_string(index=False))
    for name in ("identity", "backdoor", "seconds"):
        if len(tables[name]):
            print("", tables[name].round(3).to_string(index=False), sep="\n")
    print("", instrument_figures(tables["lists"]).round(3).to_string(index=False), sep="\n")


def main() -> None:
    """Try the organisms, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", nargs="*", default=list(ORGANISMS), choices=ORGANISMS)
    parser.add_argument("--seeds", type=int, default=20, help="number of copies of the base")
    parser.add_argument("--small", action="store_true", help="a smaller base and smaller SAEs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    prepare_cpu(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        tables = run(SMALL if args.small else FULL, Path(folder), args.organisms, args.seeds)
    show(tables)
    by_instrument = figures(tables)
    result = by_instrument[RECOMMENDED] | {"instrument": RECOMMENDED, "by_instrument": by_instrument}
    result["identity_below_control"] = below_control(tables["identity"])
    result["fitness"] = json.loads(instrument_figures(tables["lists"]).to_json(orient="records"))
    print("", json.dumps(result, indent=1), sep="\n")
    if args.json:
        records = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        write_json(args.json, result | {"tables": records})


if __name__ == "__main__":
    main()
