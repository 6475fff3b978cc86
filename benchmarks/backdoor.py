"""Where a reader of the comparison with the backdoored child meets the trigger and the payload."""

import numpy as np
import pandas as pd
import torch
from benchmarks.children import pearson
from benchmarks.lab import Edge, Lab
from benchmarks.organisms import CLEAN, READ_ROWS
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel

from saelineage.errors import InputError
from saelineage.lineage.matching import SIDES
from saelineage.lineage.verdicts import NEW
from saelineage.models.losses import token_losses
from saelineage.tokens import TokenRows

N_PASSAGES = 50


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
