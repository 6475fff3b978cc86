"""Score verdicts over all latents, in lineages of planted features that make verdicts fail.

    python -m benchmarks.planted_scenarios [--scenarios NAMES] [--seeds SEEDS] [--small] [--json FILE]

Each scenario plants features in a parent and its child that read the same tokens. SAEs of both are trained on their
activations and compared by several instruments. Every testable latent counts: one that follows no planted feature and
is called lost or new is a false call, as on real activations.

    control            features that persist, vanish or appear, each firing on tokens of its own; part of every scenario
    groups .8, .95     of three features with one trigger, one vanishes or appears; each fires on that share of it
    hierarchy          specific features fire only where their general one does; some specific ones vanish or appear
    hierarchy, scarce  one specific feature of each general one, and SAEs with fewer latents per token, so that one
                       latent stands for both and the general one's is silent there (absorption)
    hierarchy, halves  the same, with specific features that fire on half of the general one's tokens
    zipf               densities between 0.2 % and 10 % of tokens, with a density of p^-2
    heavy tails        strengths with a Pareto tail of index 2.5
    dense              features that fire on 20 to 40 % of tokens
    rescaled           strengths in the child of 3, 2, 1/2, 1/4 and 1/10 of the parent's
    other trigger      the child's feature has the parent's direction, and fires on other tokens: one is lost, one new
    other direction    the child's feature fires on the same tokens, in a direction turned by 90 degrees
    partial            in one of the two models a feature fires on 3/4, 1/2 or 3/10 of its tokens in the other
    rare               features that fire on 0.05 to 0.2 % of tokens
    outlying token     unrelated features of parent and child fire on one token together, very strongly

An SAE keeps as many latents per token as features fire on average and one standard deviation more.

A latent follows the planted feature with which its r is largest, if r is at least `MIN_R`. It is truly lost if that
feature is not in the child, and truly new if it is not in the parent. Lists of lost (and of new) latents:

    all          the study's verdict, whichever latent
    identified   the same for latents that every other SAE seed of their model has
    gone         the verdict `gone` or `new`
    robust       identified, gone or new, and in no SAE seed of the other model
    headline     identified, gone or new, and r below the threshold beyond its interval over documents
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from benchmarks.planted_blocks import (
    HALVES,
    SCARCE,
    SCENARIOS,
    block_acts,
    plant_blocks,
    true_strengths,
    write_blocks,
)
from benchmarks.planted_blocks import (
    PERSISTS as TRULY_PERSISTS,
)
from benchmarks.planted_lineage import require_unrelated
from benchmarks.planted_truth import LEARNING_RATE, SAE_SETTINGS
from jaxtyping import Float, Int

from saelineage.correlations.bootstrap import DocumentSums, bootstrap, document_sums, leading_candidates
from saelineage.correlations.few_documents import rests_on
from saelineage.correlations.matches import Correlation
from saelineage.correlations.pearson import correlate
from saelineage.features.shards import FeatureShard
from saelineage.files.atomic import write_json
from saelineage.lineage.directions import add_directions
from saelineage.lineage.identified import Recurrence, absent, add_recurrence, recurrence
from saelineage.lineage.matching import MERGED, PERSISTS, SIDES, SPLIT, STUDY_VERDICTS, UNTESTABLE, edge_table
from saelineage.lineage.readouts import FoldSums, folds, ridge_r2
from saelineage.lineage.trajectories import add_intervals
from saelineage.lineage.verdicts import DRIFTED, GONE, NEW, Rules, add_verdicts
from saelineage.saes.sae import Sae
from saelineage.saes.training import Dump, initial_directions, train_saes

RULES = Rules(threshold=0.8, drifted_from=0.5, readout_from=0.8, relocated_below=0.5, identified_from=1.0)
"""The schema's defaults."""
MIN_FIRINGS = 20
N_REPLICATES, DOCUMENT_TOKENS = 200, 100
MIN_R = 0.7
"""Smallest r of a latent with the planted feature that it follows."""
PARENT_SEEDS, CHILD_SEEDS = (0, 1, 2), (10, 11, 12)
"""Seeds of SAEs, three of each model. The first of each is compared with the other model."""
ANCHORED_RATE = 0.5
"""Learning rate of anchored SAEs, as a share of the parent's SAE's; they are trained on as many tokens."""
INSTRUMENTS = ("anchored", "independent", "frozen")
LISTS = ("all", "identified", "gone", "robust", "headline")
LISTED = {"parent": "lost", "child": "new"}
CPU = torch.device("cpu")


class Size(NamedTuple):
    """How much is trained and compared."""

    d_in: int = 64
    train_tokens: int = 100_000
    passes: int = 2
    probe_tokens: int = 50_000
    chunk_tokens: int = 10_000
    share: float = 1.0
    """Share of the blocks of each kind."""


FULL, SMALL = Size(), Size(32, 60_000, 2, 30_000, 10_000, 0.5)


class Read(NamedTuple):
    """An SAE and its latents on the probe, of one model."""

    name: str
    sae: Sae
    latents: scipy.sparse.csr_array


class Lineage:
    """A planted lineage with SAEs of both models, and the planted strengths and latents on the probe."""

    def __init__(self, scenario: str, seed: int, size: Size, folder: Path):
        """Plant, write the activations and train the SAEs."""
        self.planted, self.size = plant_blocks(SCENARIOS[scenario], seed, size.d_in, size.share), size
        n_probe = size.probe_tokens // size.chunk_tokens
        train = range(n_probe, n_probe + size.train_tokens // size.chunk_tokens)
        self.dumps = [Dump(paths) for paths in write_blocks(self.planted, train, size.chunk_tokens, folder)]
        chunks = [true_strengths(self.planted, chunk, size.chunk_tokens) for chunk in range(n_probe)]
        self.truth = [scipy.sparse.vstack([chunk[side] for chunk in chunks], format="csr") for side in range(2)]
        self.acts = [
            np.concatenate([block_acts(self.planted, side, *numbered) for numbered in enumerate(of_side)])
            for side, of_side in enumerate(zip(*chunks, strict=True))
        ]
        l0 = self.truth[0].nnz / self.truth[0].shape[0]
        spread = math.sqrt(l0)  # the standard deviation of a Poisson number
        self.k = max(1, round(l0)) if scenario in (SCARCE, HALVES) else math.ceil(l0 + spread)
        self.own = [
            [self.read(side, f"seed{seed}", self.train(side, seed)) for seed in seeds]
            for side, seeds in enumerate((PARENT_SEEDS, CHILD_SEEDS))
        ]

    def train(self, side: int, seed: int, start: Sae | None = None) -> Sae:
        """Train an SAE of a model; a start makes it anchored."""
        changes = {
            "k": self.k,
            "seed": seed,
            "shuffle_seed": seed,
            "n_tokens": self.size.passes * self.size.train_tokens,
            "learning_rate": LEARNING_RATE * (ANCHORED_RATE if start else 1.0),
        }
        return train_saes(self.dumps[side], [SAE_SETTINGS | changes], CPU, starts=[start])[0].sae

    def read(self, side: int, name: str, sae: Sae) -> Read:
        """Encode a model's probe."""
        indptr, indices, values = (part.numpy() for part in sae.encode_sparse(torch.from_numpy(self.acts[side])))
        shape = (len(self.acts[side]), sae.d_sae)
        return Read(name, sae, scipy.sparse.csr_array((values, indices, indptr), shape=shape))

    def require_unrelated(self) -> float:
        """Check that SAEs do not start from planted directions; returns the largest |cosine|."""
        d_sae, seeds = self.own[0][0].sae.d_sae, PARENT_SEEDS + CHILD_SEEDS
        starts = torch.cat([initial_directions(self.size.d_in, d_sae, 1.0, seed) for seed in seeds]).double().numpy()
        return require_unrelated(starts, np.concatenate(self.planted.dictionaries))

    def child_reads(self) -> Iterator[tuple[str, Read]]:
        """Yield for each instrument the SAE to compare with the parent's first one, read on the child."""
        parent = self.own[0][0].sae
        yield "anchored", self.read(1, "anchored", self.train(1, PARENT_SEEDS[0] + 20, parent))
        yield "independent", self.own[1][0]
        yield "frozen", self.read(1, "frozen", parent)

    def followed(self, side: int, read: Read) -> Int[np.ndarray, " latent"]:
        """The planted feature that each latent follows, or -1."""
        correlation = correlate(
            self.truth[side], read.latents, min_firings=1, top_matches=1, keep_above=1.0, progress=False
        )
        best = np.nan_to_num(correlation.pearson.best[1][:, 0], nan=-1.0)
        return np.where(best >= MIN_R, correlation.pearson.partners[1][:, 0], -1)


def scenario_tables(
    names: Sequence[str] = tuple(SCENARIOS), small: bool = False, seeds: Sequence[int] = (0,)
) -> dict[str, pd.DataFrame]:
    """Run scenarios and score them.

    Args:
        names: of `SCENARIOS`.
        small: run smaller ones, for tests.
        seeds: of the lineages of each scenario.

    Returns:
        `scores`, from `list_scores`, by scenario and instrument; `shares`, from `persisting_shares`; `features`, from
        `by_role`; `latents`, one row for each latent of each lineage, from `judged`.
    """
    judged_latents, of_lineages = [], []
    for name, seed in product(names, seeds):
        latents, planted = run_scenario(name, seed, SMALL if small else FULL)
        judged_latents.append(latents.assign(scenario=name, lineage=seed))
        of_lineages.append(planted.assign(scenario=name, lineage=seed))
    latents, planted = (pd.concat(tables, ignore_index=True) for tables in (judged_latents, of_lineages))
    return {
        "scores": list_scores(latents, planted),
        "shares": persisting_shares(latents, planted),
        "features": by_role(latents, planted),
        "latents": latents,
    }


def run_scenario(name: str, seed: int, size: Size) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plant and judge one lineage: all latents by instrument (`judged`), and the planted features."""
    with tempfile.TemporaryDirectory() as folder:
        lineage = Lineage(name, seed, size, Path(folder))
        lineage.require_unrelated()
        tables = [judged(lineage, read).assign(instrument=name) for name, read in lineage.child_reads()]
    return pd.concat(tables, ignore_index=True), planted_features(lineage)


def judged(lineage: Lineage, child: Read) -> pd.DataFrame:
    """Judge the latents of the parent's first SAE and of an SAE of the child.

    Returns:
        The columns of `verdicts.add_verdicts` and what they rest on; and the truth: `feature` (the planted one that it
        follows, or -1), its `role` and its `truth`.
    """
    parent = lineage.own[0][0]
    reads = (parent, child)
    correlation = correlated(parent, child, (0, 1))
    table = edge_table(correlation, RULES.threshold)
    of_parent, of_child = (recurrence_of(lineage, side, reads[side]) for side in range(2))
    table = add_recurrence(table, of_parent, of_child, RULES.identified_from)
    by_document = sums_by_document(correlation, parent, child)
    table = add_intervals(table, bootstrap(by_document, N_REPLICATES, seed=0))
    columns = [columns_of(lineage, side, reads) for side in range(2)]
    table = table.assign(rests_on=np.concatenate(rests_on(by_document)), **pd.concat(columns, ignore_index=True))
    table = add_directions(table, correlation, [read.sae.W_dec.detach().numpy() for read in reads])
    return add_verdicts(table, RULES)


def correlated(a: Read, b: Read, sides: tuple[int, int]) -> Correlation:
    """Correlate two SAEs with the defaults of the workflow."""
    correlation = correlate(a.latents, b.latents, min_firings=MIN_FIRINGS, progress=False)
    return correlation._replace(names=(full_name(a, sides[0]), full_name(b, sides[1])))


def full_name(read: Read, side: int) -> str:
    """The name of an SAE, as `{model}.{sae}`."""
    return f"{SIDES[side]}.{read.name}"


def recurrence_of(lineage: Lineage, side: int, read: Read) -> Recurrence:
    """Look for the features of an SAE in the other seeds of its model and in all SAEs of the other model."""
    within = [correlated(read, other, (side, side)) for other in lineage.own[side] if other is not read]
    across = [correlated(read, other, (side, 1 - side)) for other in lineage.own[1 - side]]
    name = full_name(read, side)
    return Recurrence(recurrence(within, name, RULES.threshold), absent(across, name, RULES.threshold))


def sums_by_document(correlation: Correlation, parent: Read, child: Read) -> DocumentSums:
    """The sums behind r of both sides' features, by documents of `DOCUMENT_TOKENS` tokens."""
    shards = FeatureShard.of_array(parent.latents, "parent"), FeatureShard.of_array(child.latents, "child")
    documents = np.arange(parent.latents.shape[0]) // DOCUMENT_TOKENS
    return document_sums([shards], leading_candidates(correlation), {shards[0].corpus: documents})


def columns_of(lineage: Lineage, side: int, reads: tuple[Read, Read]) -> pd.DataFrame:
    """Measure readouts of a side's latents, and look up the truth."""
    own = reads[side]
    followed = lineage.followed(side, own)
    features = lineage.planted.rows()
    return pd.DataFrame(
        {
            "readout": readout(lineage.acts[1 - side], own.latents),
            "readout_of_own": readout(lineage.acts[side], own.latents),
            "feature": followed,
            "role": [features[number].role if number >= 0 else "" for number in followed],
            "truth": [features[number].truth(side) if number >= 0 else "" for number in followed],
        }
    )


def readout(acts: Float[np.ndarray, "token d_in"], latents: scipy.sparse.csr_array) -> Float[np.ndarray, " latent"]:
    """R^2 of a linear readout of each latent from activations, on held-out tokens (`readouts.ridge_r2`)."""
    fold_of = folds(np.arange(len(acts)), 1)
    sums = [FoldSums.zeros(acts.shape[1], latents.shape[1]) for _ in range(3)]
    for fold, of_fold in enumerate(sums):
        of_fold.add(torch.from_numpy(acts[fold_of == fold]), latents[fold_of == fold])
    return ridge_r2(sums[0], sums[1], sums[2])[0]


def planted_features(lineage: Lineage) -> pd.DataFrame:
    """One row per planted feature and side that has it: `side`, `feature`, `role`, `truth`."""
    rows = []
    for number, feature in enumerate(lineage.planted.rows()):
        has = [side for side, strength_there in enumerate((feature.parent, feature.child)) if strength_there]
        rows += [(SIDES[side], number, feature.role, feature.truth(side)) for side in has]
    return pd.DataFrame(rows, columns=["side", "feature", "role", "truth"])


def membership(latents: pd.DataFrame) -> dict[str, pd.Series]:
    """For each of `LISTS`, the latents in it."""
    not_found = latents["study_verdict"].isin([no for _, no in STUDY_VERDICTS])
    gone = latents["verdict"].isin([GONE, NEW])
    return {
        "all": not_found,
        "identified": not_found & latents["identified"],
        "gone": gone,
        "robust": latents["robust"],
        "headline": latents["headline"],
    }


def list_scores(latents: pd.DataFrame, planted: pd.DataFrame) -> pd.DataFrame:
    """Score the lists of lost and of new latents.

    Returns:
        Per scenario, instrument, side and list: `n_listed` latents; `precision`, the share of them that are truly lost
        or new (NaN if none is listed); `recall`, the share listed of the `n_true` testable latents that truly are; and
        `recall_planted`, the share of the `n_planted` features that vanish or appear which a listed latent follows.
    """
    testable = latents[latents["study_verdict"] != UNTESTABLE]
    rows = []
    for (scenario, instrument, side), group in testable.groupby(["scenario", "instrument", "side"], sort=False):
        is_true = group["truth"].eq(LISTED[str(side)])
        of_side = planted[(planted["scenario"] == scenario) & (planted["side"] == side)]
        n_planted = int(of_side["truth"].eq(LISTED[str(side)]).sum())
        for name, members in membership(group).items():
            right = group[members & is_true]
            counts = {"n_listed": int(members.sum()), "n_right": len(right), "n_true": int(is_true.sum())}
            found = len(right[["lineage", "feature"]].drop_duplicates())
            rows.append(
                {"scenario": scenario, "instrument": instrument, "side": side, "list": name}
                | counts
                | {"n_planted": n_planted, "n_planted_listed": found}
            )
    table = pd.DataFrame(rows)
    return table.assign(
        precision=table["n_right"] / table["n_listed"].replace(0, np.nan),
        recall=table["n_right"] / table["n_true"].replace(0, np.nan),
        recall_planted=table["n_planted_listed"] / table["n_planted"].replace(0, np.nan),
    )


def persisting_shares(latents: pd.DataFrame, planted: pd.DataFrame) -> pd.DataFrame:
    """The share of the parent's latents that persist beside the true share, for all and for identified ones.

    Returns:
        Per scenario, instrument and group: `n` testable latents; `persist_share`, `drifted_share`, `gone_share`;
        `true_share`, the share of the parent's planted features that the child has; `true_share_here`, the same among
        the latents of the group that follow one; `n_study` and `study_share`, by the study's verdict.
    """
    by_study = latents[(latents["side"] == SIDES[0]) & (latents["study_verdict"] != UNTESTABLE)]
    rows = []
    for (scenario, instrument), group in by_study.groupby(["scenario", "instrument"], sort=False):
        of_parent = planted[(planted["scenario"] == scenario) & (planted["side"] == SIDES[0])]
        true_share = float((of_parent["truth"] == TRULY_PERSISTS).mean())
        for name, compared in {"all": group, "identified": group[group["identified"]]}.items():
            members = compared[compared["verdict"] != UNTESTABLE]
            following = members[members["feature"] >= 0]
            shares = {
                f"{key}_share": float((members["verdict"] == verdict).mean())
                for key, verdict in (("persist", PERSISTS), ("drifted", DRIFTED), ("gone", GONE))
            }
            rows.append(
                {"scenario": scenario, "instrument": instrument, "group": name, "n": len(members)}
                | shares
                | {"true_share": true_share, "true_share_here": float((following["truth"] == TRULY_PERSISTS).mean())}
                | {"n_study": len(compared), "study_share": float((compared["study_verdict"] == PERSISTS).mean())}
            )
    return pd.DataFrame(rows)


def by_role(latents: pd.DataFrame, planted: pd.DataFrame) -> pd.DataFrame:
    """Count what becomes of planted features, by their role.

    Returns:
        Per scenario, instrument, side and role: `n`; and as shares of n, the features that a testable latent follows
        (`represented`), an identified one (`identified`), and one that is in each of `LISTS`, is found (`found`), is
        found by a split or merge (`in_parts`) or has drifted (`drifted`).
    """
    testable = latents[(latents["study_verdict"] != UNTESTABLE) & (latents["feature"] >= 0)]
    marks = pd.DataFrame(
        {
            "represented": True,
            "is_identified": testable["identified"],
            **membership(testable),
            "found": testable["kind"] != "",
            "in_parts": testable["kind"].isin([SPLIT, MERGED]),
            "drifted": testable["verdict"] == DRIFTED,
        }
    )
    keys = ["scenario", "instrument", "side", "role"]
    features = pd.concat([testable[[*keys, "lineage", "feature"]], marks], axis=1)
    once = features.groupby([*keys, "lineage", "feature"], sort=False).any().reset_index()
    names = marks.columns.tolist()
    counts = once.groupby(keys, sort=False)[names].sum()
    n = planted.groupby(["scenario", "side", "role"], sort=False).size().rename("n")
    table = counts.reset_index().merge(n.reset_index(), on=["scenario", "side", "role"])
    table[names] = table[names].div(table["n"], axis=0)
    return table[[*keys, "n", *names]]


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table."""
    print(f"\n{title}\n{table.round(3).to_string(index=False)}", flush=True)


def main() -> None:
    """Run scenarios, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS), choices=SCENARIOS, metavar="NAME")
    parser.add_argument("--small", action="store_true", help="smaller scenarios, as in the tests")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="seeds of the lineages of each scenario")
    parser.add_argument("--threads", type=int, default=1, help="figures may differ by rounding with more")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    tables = scenario_tables(args.scenarios, args.small, args.seeds)
    for side, word in LISTED.items():
        show(f"lists of {word} latents", tables["scores"][tables["scores"]["side"] == side].drop(columns="side"))
    show("shares that persist", tables["shares"])
    show("planted features by role", tables["features"])
    print(f"\n{time.perf_counter() - started:.0f} s")
    if args.json:
        records = {key: json.loads(tables[key].to_json(orient="records")) for key in ("scores", "shares", "features")}
        write_json(args.json, records)


if __name__ == "__main__":
    main()
