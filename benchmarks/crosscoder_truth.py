"""Judge a planted lineage by crosscoders of both models, in the form of the tables of SAEs.

The latents of one crosscoder stand in for the features of both models: those of the parent are the latents that the
parent writes, alone or with the child, and those of the child likewise. A latent is identified if crosscoders of all
other seeds have it. Latent scaling decides (`lineage.exclusivity`); the bins of relative decoder norms are the
instrument that it is compared with.
"""

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from benchmarks.organisms import CPU
from benchmarks.planted_scenarios import PARENT_SEEDS, RULES, Lineage
from benchmarks.planted_truth import LEARNING_RATE, SAE_SETTINGS

from saelineage.correlations.pearson import correlate
from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.crosscoders.dumps import JointDump
from saelineage.crosscoders.latent_scaling import decoder_products, measure_scaling_sums, pair_table
from saelineage.crosscoders.training import train_crosscoders
from saelineage.lineage.exclusivity import DISAPPEARS, EMERGES, ROTATED, add_exclusivity
from saelineage.lineage.matching import INHERITED, PERSISTS, SIDES, UNTESTABLE
from saelineage.lineage.verdicts import GONE, NEW

BY_SCALING, BY_NORMS = "crosscoder", "crosscoder, norm bins"
"""Names of the instruments."""
K_ANNEAL_FRACTION, K_START = 0.1, 64
BATCH_TOKENS = 4096
AS_OF_SIDE = (
    {PERSISTS: PERSISTS, ROTATED: PERSISTS, DISAPPEARS: GONE},
    {PERSISTS: INHERITED, ROTATED: INHERITED, EMERGES: NEW},
)
"""Per side, a crosscoder's verdicts on the latents that this model writes, as verdicts on its features."""


class JudgedLatents:
    """The latents of a lineage's crosscoder, and the verdicts on them.

    Attributes:
        latents: [token, d_sae] on the probe.
        tables: one side's table by instrument and side.
    """

    def __init__(self, lineage: Lineage):
        """Train crosscoders of all seeds, and ask the first one."""
        paths = {name: [shard.path for shard in dump.shards] for name, dump in zip(SIDES, lineage.dumps, strict=True)}
        settings = [
            SAE_SETTINGS
            | {"architecture": "batchtopk", "k": lineage.k, "k_start": K_START, "k_anneal_fraction": K_ANNEAL_FRACTION}
            | {"seed": seed, "shuffle_seed": seed, "learning_rate": LEARNING_RATE}
            | {"n_tokens": lineage.size.passes * lineage.size.train_tokens}
            for seed in PARENT_SEEDS
        ]
        crosscoders = [trained.crosscoder for trained in train_crosscoders(JointDump(paths), settings, CPU)]
        acts = {name: torch.from_numpy(lineage.acts[side]) for side, name in enumerate(SIDES)}
        self.latents, *others = (read(crosscoder, acts) for crosscoder in crosscoders)
        joint = crosscoders[0].joint(acts)
        sums = measure_scaling_sums(crosscoders[0], joint.split(BATCH_TOKENS), [(SIDES[0], SIDES[1])])
        table = add_exclusivity(pair_table(sums, decoder_products(crosscoders[0], sums.couples), *SIDES))
        is_found = [has_match(self.latents, other) for other in others]
        identified = np.all(is_found, axis=0)
        self.tables = {
            (name, side): as_features(table, column, identified, side)
            for name, column in ((BY_SCALING, "verdict"), (BY_NORMS, "by_norms"))
            for side in range(2)
        }


def read(crosscoder: Crosscoder, acts: dict[str, torch.Tensor]) -> scipy.sparse.csr_array:
    """Encode the probe; [token, d_sae]."""
    indptr, indices, values = (part.numpy() for part in crosscoder.encode(acts))
    n_tokens = len(next(iter(acts.values())))
    return scipy.sparse.csr_array((values, indices, indptr), shape=(n_tokens, crosscoder.d_sae))


def has_match(latents: scipy.sparse.csr_array, others: scipy.sparse.csr_array) -> np.ndarray:
    """Mark latents that another crosscoder has too."""
    found = correlate(latents, others, top_matches=1, keep_above=1.0, progress=False)
    return np.nan_to_num(found.pearson.best[0][:, 0], nan=-1.0) >= RULES.threshold


def as_features(table: pd.DataFrame, column: str, identified: np.ndarray, side: int) -> pd.DataFrame:
    """A crosscoder's verdicts as those on the features of one side, in the columns that scores need.

    Bins of norms leave some latents without a verdict; these are taken to persist.
    """
    decided = table[column].replace("", PERSISTS).where(table["verdict"] != UNTESTABLE, UNTESTABLE)
    verdict = decided.map(AS_OF_SIDE[side]).fillna(UNTESTABLE)
    is_listed = verdict.isin([GONE, NEW])
    return pd.DataFrame(
        {
            "side": SIDES[side],
            "latent": table["latent"],
            "verdict": verdict,
            "study_verdict": verdict,
            "kind": "",
            "identified": identified & (verdict != UNTESTABLE).to_numpy(),
            "robust": is_listed & identified,
            "headline": is_listed & identified,
        }
    )
