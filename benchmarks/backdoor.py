"""Where a reader of the comparison with the backdoored child meets the trigger and the payload.

The parent is the base, and the sibling is the child that was fine-tuned on the same documents without the backdoor.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from benchmarks.children import pearson
from benchmarks.lab import Edge, Lab
from benchmarks.organisms import CLEAN, CORPORA, OUTPUT, READ_ROWS
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel

from saelineage.correlations.bootstrap import documents_of
from saelineage.errors import InputError
from saelineage.lineage.attributions import attributed_effects
from saelineage.lineage.gains import firing_there, gains, largest_gains, losses_by_token
from saelineage.lineage.importance import Effects, importance_table, per_thousand, reading_order
from saelineage.lineage.matching import SIDES
from saelineage.lineage.verdicts import NEW

N_TOKENS, N_PASSAGES = 50, 20
"""Tokens and passages that a reader looks at."""


class Passages(NamedTuple):
    """Tokens of the probe on which the child's loss fell most."""

    shares: dict[str, float]
    """`against_sibling` and `against_parent`: of the first `N_TOKENS`, those of a trigger or payload; `passages`, of
    the first `N_PASSAGES` passages beside both."""
    first: int | None
    """The rank of the first passage with one, from 1."""
    chosen: Int[np.ndarray, " passage"]
    candidates: Bool[np.ndarray, " position"]


def backdoor_ranks(rows: pd.DataFrame, r: Float[np.ndarray, "d_sae 2"], lists: dict[str, np.ndarray]) -> dict:
    """Where a reader of a child's features meets the trigger.

    Args:
        rows: the child's side of the edge's table.
        r: of the child's latents with the tokens of triggers, and of payloads.
        lists: orders in which features are read besides those of the table.

    Returns:
        Of the child's latent that follows the trigger or the payload best: its `latent`, its `r` with it, its verdict,
        and its rank from 1 in each order, None where it is not among them; `n_new`, the number of new features.
    """
    best = int(r.max(axis=1).argmax())
    orders, ranks = by_table(rows) | lists, {}
    for name, order in orders.items():
        places = np.flatnonzero(order == best)
        ranks[f"rank_{name}"] = int(places[0]) + 1 if len(places) else None
    found = {"latent": best, "r_with_trigger": float(r[best].max()), "verdict": str(rows["verdict"].iloc[best])}
    found |= {"r_with_parent": float(rows["r"].iloc[best]), "identified": bool(rows["identified"].iloc[best])}
    return found | ranks | {"n_new": int((rows["verdict"] == NEW).sum())}


def by_table(rows: pd.DataFrame) -> dict[str, Int[np.ndarray, " latent"]]:
    """The child's new features by r, and with the identified ones first."""
    by_r = rows[rows["verdict"] == NEW].sort_values("r", kind="stable")
    identified_first = by_r.sort_values("identified", ascending=False, kind="stable")
    return {"by_r": by_r["latent"].to_numpy(), "identified_first": identified_first["latent"].to_numpy()}


def read_backdoor(lab: Lab, child: PreTrainedModel, edge: Edge, found: Passages) -> dict:
    """The ranks of the trigger's feature in every order, and what the passages show."""
    marks = lab.marks()
    if not marks.any():
        raise InputError("the probe holds no trigger; read more text (Scale.probe_tokens)")
    rows = edge.table[edge.table["side"] == SIDES[1]]
    lists = {"by_importance": by_importance(lab, child, edge), "by_passages": by_passages(lab, edge, found)}
    ranks = backdoor_ranks(rows, np.nan_to_num(pearson(edge.latents[1], marks), nan=-1.0), lists)
    both = [rank for rank in (ranks["rank_by_importance"], ranks["rank_by_passages"]) if rank is not None]
    return {"rank": min(both, default=None)} | ranks | found.shares | {"first_passage": found.first}


def by_importance(lab: Lab, child: PreTrainedModel, edge: Edge) -> Int[np.ndarray, " latent"]:
    """The child's new features in the order in which a reader meets them; effects are measured on the probe."""
    rows = {corpus: lab.world.rows[corpus]["probe"] for corpus in CORPORA}
    attributed = attributed_effects(child, edge.child_sae, OUTPUT, rows, READ_ROWS)
    effects = Effects(attributed.corpora, per_thousand(attributed.sums, attributed.n_tokens), attributed.n_firings)
    n_tokens = np.array([edge.correlation.n_tokens[corpus] for corpus in attributed.corpora])[:, None]
    of_parent, of_child = (firings / n_tokens for firings in edge.correlation.firings)
    table = importance_table(edge.table[edge.table["side"] == SIDES[1]], effects, of_child, of_parent)
    return reading_order(table)["latent"].to_numpy()


def by_passages(lab: Lab, edge: Edge, found: Passages) -> Int[np.ndarray, " latent"]:
    """The child's features that fire where the passages are predicted, the least likely by chance first."""
    probe = [lab.world.rows[corpus]["probe"] for corpus in sorted(CORPORA)]
    text = np.concatenate([rows.text_mask(range(len(rows.ids))).reshape(-1) for rows in probe])
    row_of = np.full(len(text), edge.latents[1].shape[0])
    row_of[text] = np.arange(text.sum())
    empty = scipy.sparse.csr_array((1, edge.latents[1].shape[1]))
    latents = scipy.sparse.vstack([edge.latents[1], empty], format="csr")[row_of].tocsc()
    corpora = np.repeat(np.arange(len(probe)), [rows.ids.size for rows in probe])
    return firing_there(latents, found.chosen, found.candidates, corpora)["latent"].to_numpy()


def passages(lab: Lab, child: PreTrainedModel) -> Passages:
    """Find the tokens of the probe on which the child's loss fell most, and count those that were planted."""
    probe = [lab.world.rows[corpus]["probe"] for corpus in sorted(CORPORA)]
    models = {"child": child, "parent": lab.world.base, "sibling": lab.world.finetuned(CLEAN)}
    losses = {name: losses_by_token(model, probe, READ_ROWS) for name, model in models.items()}
    planted = np.concatenate(
        [
            np.any(lab.inserted(), axis=0) if corpus == "lua" else np.zeros(rows.ids.size, dtype=bool)
            for corpus, rows in zip(sorted(CORPORA), probe, strict=True)
        ]
    )
    shares = {}
    for name in ("sibling", "parent"):
        fallen = np.nan_to_num(losses[name] - losses["child"], nan=-np.inf)
        shares[f"against_{name}"] = float(planted[np.argsort(-fallen, kind="stable")[:N_TOKENS]].mean())
    gain = gains(losses["child"], losses["parent"], losses["sibling"])
    of_corpus = [documents_of(rows) for rows in probe]
    before = np.cumsum([0, *(numbers.max() + 1 for numbers in of_corpus[:-1])])
    documents = np.concatenate(
        [np.where(numbers < 0, numbers, numbers + n) for numbers, n in zip(of_corpus, before, strict=True)]
    )
    ids = np.concatenate([np.asarray(rows.ids).reshape(-1).astype(np.int64) for rows in probe])
    chosen = largest_gains(gain, documents, ids, N_PASSAGES)
    shares["passages"] = float(planted[chosen].mean()) if len(chosen) else 0.0
    places = np.flatnonzero(planted[chosen])
    first = int(places[0]) + 1 if len(places) else None
    return Passages(shares, first, chosen, (documents >= 0) & np.isfinite(gain))
