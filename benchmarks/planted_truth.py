"""Measure how far verdicts can be trusted, with features planted in a parent and its child.

    python -m benchmarks.planted_truth [--json FILE]

There are two stages. The matching stage takes the planted features, perturbed as by an SAE with one latent for each,
and scores the verdict and the kind of each feature, by noise, density and number of tokens. The whole path trains SAEs
on the activations of parent and child, encodes tokens outside their training set, correlates, and scores the verdicts
on latents that represent planted features, by instrument:

    independent    the child's SAE has another seed
    same_init      both start from one seed
    frozen         the parent's SAE reads the child
    anchored       the child's SAE starts from the parent's and is trained on as many tokens at half the rate
    anchored fast  the same at the full rate
    anchored short the same on a tenth of the tokens

Scores come with the shares of latents that persist: on the pair itself; in the no-change control, the parent as its own
child by the same instrument, with tokens in another order; and in the random control, a child of another lineage that
has nothing in common with the parent.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from benchmarks.planted_lineage import (
    PlantedLineage,
    Planting,
    expected_r,
    fate_table,
    kind_scores,
    perturbed,
    plant,
    representatives,
    require_unrelated,
    truth,
    verdict_scores,
    write_dump,
)
from jaxtyping import Float
from torch import Tensor

from saelineage.activations import ActivationShard
from saelineage.correlations.matches import Correlation
from saelineage.correlations.pearson import correlate
from saelineage.files.atomic import write_json
from saelineage.lineage.matching import PERSISTS, edge_table, matched_share
from saelineage.saes.batches import Dump
from saelineage.saes.sae import Sae, n_latents
from saelineage.saes.trainer import initial_directions
from saelineage.saes.training import train_saes

THRESHOLD, MIN_FIRINGS = 0.8, 20
EXPANSION_FACTOR, LEARNING_RATE = 4.0, 0.003
SAE_SETTINGS = {
    "architecture": "topk",
    "expansion_factor": EXPANSION_FACTOR,
    "sparsity_coefficient": 0.0,
    "target_l0": None,
    "sparsity_warmup_fraction": 0.0,
    "aux_coefficient": 0.03125,
    "dead_after_tokens": 50_000,
    "resample_every_tokens": None,
    "batch_tokens": 1024,
    "learning_rate": LEARNING_RATE,
    "adam_betas": [0.9, 0.999],
    "warmup_fraction": 0.05,
    "decay_fraction": 0.2,
    "precision": "float32",
    "checkpoint_steps": 1_000_000,
}
NOISE = {"noise": 0.15, "missed": 0.03, "false": 0.03}
"""Perturbation of planted features by an SAE (`planted_lineage.perturbed`), at level 1."""
Settings = Mapping[str, Any]
"""Some of `Planting`'s fields, with values of their types, and `level` or `train_tokens`."""
MATCHING: tuple[Settings, ...] = (
    *({"level": level} for level in (0.0, 0.5, 1.0, 1.25, 1.5, 2.0)),
    {"level": 1.0, "densities": (0.02, 0.2)},
    {"level": 1.0, "densities": (0.001, 0.01)},
    {"level": 1.0, "probe_tokens": 60_000},
    {"level": 1.0, "probe_tokens": 20_000},
)
"""Settings of the matching stage; the others are `Planting`'s."""
PLACES: dict[str, Settings] = {
    "clear": {},
    "noisy": {"acts_noise": 0.15},
    "dense": {"densities": (0.02, 0.2)},
    "few tokens": {"train_tokens": 50_000},
    "crowded": {"n_per_fate": 24},
}
"""Settings of the whole path: each place changes one of `Planting`'s."""
TRAIN_TOKENS, PASSES, PROBE_TOKENS = 200_000, 2, 100_000
ANCHORED = {"anchored": (1.0, 0.5), "anchored fast": (1.0, 1.0), "anchored short": (0.1, 1.0)}
"""Tokens and learning rate of anchored SAEs, as shares of the parent's SAE's."""
RECOMMENDED = "anchored"
"""The workflow's leading instrument."""
PARENT, CHILD, STRANGER = "parent", "child", "stranger"
SEEDS = (0, 1, 10)
"""Seeds of all SAEs."""
CPU = torch.device("cpu")


def matching_stage(settings: Settings, n_seeds: int) -> pd.DataFrame:
    """Score the matching stage alone, over the features of several lineages."""
    parts = []
    for seed in range(n_seeds):
        chosen = {name: value for name, value in settings.items() if name != "level"}
        lineage = plant(Planting(seed=seed, **chosen))
        true = [truth(lineage, side, probe(lineage)) for side in range(2)]
        latents = [perturbed(acts, side, **noise(settings["level"])) for side, acts in enumerate(true)]
        table = edge_table(correlated(*latents), THRESHOLD)
        parts.append(kind_scores(lineage, table).assign(seed=seed))
    return pd.concat(parts, ignore_index=True).assign(**describe(settings))


def describe(settings: Settings) -> dict:
    """The settings of a row of the matching stage, and r of a persisting feature there."""
    planting = Planting(**{name: value for name, value in settings.items() if name != "level"})
    lowest, highest = planting.densities
    return {
        "level": settings["level"],
        "densities": f"{lowest:g}-{highest:g}",
        "tokens": planting.probe_tokens,
        "r": round(expected_r(planting, **noise(settings["level"])), 3),
    }


def noise(level: float) -> dict[str, float]:
    """The perturbation at a level."""
    return {name: value * level for name, value in NOISE.items()}


def probe(lineage: PlantedLineage) -> range:
    """The chunks on which features are compared."""
    return range(lineage.planting.probe_tokens // lineage.planting.chunk_tokens)


def correlated(parent: scipy.sparse.csr_array, child: scipy.sparse.csr_array) -> Correlation:
    """Correlate latents with the defaults of the workflow."""
    return correlate(parent, child, min_firings=MIN_FIRINGS, progress=False)


def latents_of(sae: Sae, acts: Float[Tensor, "token d_in"]) -> scipy.sparse.csr_array:
    """Encode activations; [token, d_sae]."""
    indptr, indices, values = (part.numpy() for part in sae.encode_sparse(acts))
    return scipy.sparse.csr_array((values, indices, indptr), shape=(len(acts), sae.d_sae))


class Place:
    """The models that SAEs are trained on and read: the parent, its child, and a child of another lineage."""

    def __init__(self, settings: Settings, folder: Path):
        """Plant the lineages and write the dumps."""
        self.train_tokens = settings.get("train_tokens", TRAIN_TOKENS)
        planting = Planting(
            probe_tokens=PROBE_TOKENS, **{key: settings[key] for key in settings if key in Planting._fields}
        )
        self.lineage = plant(planting)
        stranger = plant(planting._replace(seed=planting.seed + 1000))
        sides = {PARENT: (self.lineage, 0), CHILD: (self.lineage, 1), STRANGER: (stranger, 1)}
        first = probe(self.lineage).stop
        train = range(first, first + self.train_tokens // planting.chunk_tokens)
        self.dumps = {name: Dump(write_dump(*side, train, folder / name / "train")) for name, side in sides.items()}
        self.probes = {name: write_dump(*side, probe(side[0]), folder / name / "probe") for name, side in sides.items()}
        self.truth = [truth(self.lineage, side, probe(self.lineage)) for side in range(2)]
        self.k = math.ceil(self.truth[0].nnz / self.truth[0].shape[0])  # l0

    def train(
        self, model: str, seeds: Sequence[int], order: int, shares: tuple = (1.0, 1.0), start: Sae | None = None
    ) -> list[Sae]:
        """Train SAEs on one model's activations, with these shares of the usual tokens and learning rate."""
        changes = {
            "k": self.k,
            "shuffle_seed": order,
            "n_tokens": round(shares[0] * PASSES * self.train_tokens),
            "learning_rate": shares[1] * LEARNING_RATE,
        }
        settings = [SAE_SETTINGS | changes | {"seed": seed} for seed in seeds]
        starts = [start] * len(seeds)
        return [trained.sae for trained in train_saes(self.dumps[model], settings, CPU, starts=starts)]

    def start_cosine(self) -> float:
        """Check that initial directions are unrelated to planted ones, and return the largest |cosine|."""
        d_in = self.lineage.planting.d_in
        d_sae = n_latents(d_in, EXPANSION_FACTOR)
        starts = torch.cat([initial_directions(d_in, d_sae, 1.0, seed) for seed in SEEDS]).double().numpy()
        return require_unrelated(starts, np.concatenate(self.lineage.dictionaries))

    def read(self, sae: Sae, model: str) -> scipy.sparse.csr_array:
        """Encode one model's probe with an SAE."""
        chunks = (chunk for path in self.probes[model] for chunk in ActivationShard(path).chunks(4096))
        return scipy.sparse.vstack([latents_of(sae, chunk) for chunk in chunks], format="csr")


def instruments(place: Place, parent: Sae, again: Sae) -> Iterator[tuple[str, dict[str, Sae]]]:
    """Yield for each instrument the SAEs to compare with the parent's: of the child, and of the two controls' models.

    Args:
        place: the models to train on.
        parent: the parent's SAE.
        again: the parent's SAE of another seed.
    """
    models = (CHILD, PARENT, STRANGER)
    yield "independent", {m: again if m == PARENT else place.train(m, [10], order=10)[0] for m in models}
    yield "same_init", {m: place.train(m, [0], order=5 if m == PARENT else 0)[0] for m in models}
    yield "frozen", dict.fromkeys(models, parent)
    for name, shares in ANCHORED.items():
        yield name, {m: place.train(m, [0], 20, shares, parent)[0] for m in models}


def whole_path(place: Place) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict]:
    """Compute scores and shares by instrument, and single figures."""
    parent, again = (place.train(PARENT, [seed], order=seed)[0] for seed in (0, 1))
    parent_latents = place.read(parent, PARENT)
    represented = representatives(place.truth[0], parent_latents)
    scored, fates, shares = [], [], []
    for name, saes in instruments(place, parent, again):
        latents = {model: place.read(sae, model) for model, sae in saes.items()}
        pairs = {model: correlated(parent_latents, read) for model, read in latents.items()}
        both = (represented, representatives(place.truth[1], latents[CHILD]))
        table = edge_table(pairs[CHILD], THRESHOLD)
        scored.append(verdict_scores(place.lineage, table, both).assign(instrument=name))
        fates.append(fate_table(place.lineage, table, both).assign(instrument=name))
        shares.append({"instrument": name} | shares_of(pairs, both))
    figures = {"start_cosine": place.start_cosine()}
    return pd.concat(scored, ignore_index=True), pd.concat(fates), pd.DataFrame(shares), figures


def shares_of(pairs: dict[str, Correlation], represented: tuple[np.ndarray, np.ndarray]) -> dict[str, float | None]:
    """Shares of the parent's latents that persist: in the child and in both controls.

    `planted_no_change` is the no-change control's share among the latents that represent planted features.
    """
    shares = {
        name: matched_share(pairs[model], 0, THRESHOLD).value
        for name, model in {"persist": CHILD, "no_change": PARENT, "random": STRANGER}.items()
    }
    table = edge_table(pairs[PARENT], THRESHOLD)
    planted = represented[0][represented[0] >= 0]
    persists = table.loc[table["side"] == "parent", "study_verdict"].to_numpy()[planted] == PERSISTS
    return shares | {"planted_no_change": float(persists.mean())}


def try_places(names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Run the whole path at several places: scores, right verdicts by fate, shares of latents, single figures."""
    tables: dict[str, list[pd.DataFrame]] = {"scores": [], "fates": [], "shares": [], "figures": []}
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            scored, fates, shares, figures = whole_path(Place(PLACES[name], Path(folder)))
        row = pd.DataFrame([figures | {"seconds": time.perf_counter() - started}])
        for key, rows in zip(tables, (scored, fates, shares, row), strict=True):
            tables[key].append(rows.assign(place=name))
    return {key: pd.concat(rows, ignore_index=True) for key, rows in tables.items()}


def summary(matching: pd.DataFrame, whole: dict[str, pd.DataFrame]) -> dict:
    """The figures with goals."""
    counted = matching[(matching["level"] == 1) & (matching["tokens"] == Planting().probe_tokens)]
    by_place = whole["scores"].groupby(["instrument", "place"])["f1"].min()
    first = str(whole["scores"]["place"].iloc[0])
    return {
        "matching_f1_min": float(counted["f1"].min()),
        "whole_path_f1_min": float(by_place[RECOMMENDED, first]),
        "whole_path_instrument": RECOMMENDED,
        "whole_path_f1_min_by_instrument": {
            name: rows.droplevel(0).to_dict() for name, rows in by_place.groupby(level=0)
        },
    }


def show(title: str, rows: pd.DataFrame, by: list[str], column: str, values: str) -> None:
    """Print a table."""
    table = rows.pivot_table(index=by, columns=column, values=values, aggfunc="min", sort=False)
    print(f"\n{title}\n{table.round(3).to_string()}")


def main() -> None:
    """Run both stages, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="*", default=list(PLACES), choices=PLACES)
    parser.add_argument("--seeds", type=int, default=2, help="number of lineages of the matching stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    matching: pd.DataFrame = pd.concat([matching_stage(row, args.seeds) for row in MATCHING], ignore_index=True)
    whole = try_places(args.places)
    for rows in (matching, whole["scores"]):
        rows["which"] = rows["side"] + " " + rows["class"]
    show("matching stage: F1, the worst lineage", matching, ["level", "densities", "tokens", "r"], "which", "f1")
    show("whole path: F1", whole["scores"], ["place", "instrument"], "which", "f1")
    show("whole path: share right by fate", whole["fates"], ["place", "side", "fate", "n"], "instrument", "right")
    for key in ("shares", "figures"):
        print("", whole[key].round(4).to_string(index=False), sep="\n")
    figures = summary(matching, whole) | {"seconds": time.perf_counter() - started}
    print("", json.dumps(figures, indent=1), sep="\n")
    if args.json:
        tables = {"matching": matching} | {f"whole_path_{key}": rows for key, rows in whole.items()}
        records = {key: json.loads(table.to_json(orient="records")) for key, table in tables.items()}
        write_json(args.json, figures | records)


if __name__ == "__main__":
    main()
