"""Gains: tokens on which a child predicts better than its parent and its siblings, and the features that fire there.

Tokens are numbered through all corpora: row x n_ctx + place in the row, one corpus after the other. A token is
predicted where the one before it is read, so a feature fires *there* if it fires on the token before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import nn

from saelineage.models.losses import token_losses
from saelineage.models.predictions import predict
from saelineage.tokens import TokenRows

MOST_OF_DOCUMENT = 2
"""Passages from one document."""
MOST_OF_TEXT = 3
"""Passages on the same token, because a single token that a child has learnt could fill the list."""
APART = 27
"""Least distance of two passages of one document in tokens: the width of the text that is shown of each."""
LEAST_LOG10_P = -300.0
"""Chances below 1 in 1e300 are given as that."""


@torch.inference_mode()
def losses_by_token(model: nn.Module, rows: Sequence[TokenRows], batch_rows: int) -> Float[np.ndarray, " token"]:
    """The loss of each token of the rows of some corpora in nats; NaN for the first of a row and where none counts.

    Args:
        model: the model.
        rows: of each corpus, as the model reads them (`vocabularies.share_rows`).
        batch_rows: rows in a forward pass.
    """
    parts = [np.empty(0)]
    device = next(model.parameters()).device
    for of_corpus in rows:
        for numbers, array in of_corpus.batches(batch_rows):
            ids, predicted = torch.from_numpy(array).to(device), of_corpus.predicted(numbers)
            losses = np.full(predicted.shape, np.nan)
            losses[:, 1:] = token_losses(predict(model, ids), ids).cpu().numpy()
            parts.append(np.where(predicted, losses, np.nan).ravel())
    return np.concatenate(parts)


def lowest(losses: Mapping[str, Float[np.ndarray, " token"]]) -> tuple[Float[np.ndarray, " token"], np.ndarray]:
    """The lowest of several models' losses on each token, and the name of the model that has it, on a tie the first.

    NaN where one of them is.
    """
    stacked = np.stack(list(losses.values()))
    return stacked.min(axis=0), np.array(list(losses), dtype=object)[stacked.argmin(axis=0)]


def gains(
    child: Float[np.ndarray, " token"], parent: Float[np.ndarray, " token"], sibling: Float[np.ndarray, " token"]
) -> Float[np.ndarray, " token"]:
    """How far the child's loss lies below both its parent's and its siblings' lowest, in nats; NaN where one has none.

    Below the siblings' alone it may lie because they have forgotten something, below the parent's because any training
    would have taught it.
    """
    return np.minimum(parent, sibling) - child


def largest_gains(
    gain: Float[np.ndarray, " token"],
    documents: Int[np.ndarray, " token"],
    pieces: Int[np.ndarray, " token"],
    n: int,
    most_of_document: int = MOST_OF_DOCUMENT,
    most_of_text: int = MOST_OF_TEXT,
    apart: int = APART,
) -> Int[np.ndarray, " passage"]:
    """The tokens with the largest gains above 0, largest first, on a tie the earlier.

    Args:
        gain: of each token; NaN is never chosen.
        documents: number of each token's document, -1 for tokens that are no text, which are never chosen.
        pieces: number of each token's text.
        n: at most so many.
        most_of_document, most_of_text: at most so many of one document, and of one text.
        apart: the least distance of two of one document.
    """
    candidates = np.flatnonzero((gain > 0) & (documents >= 0))
    chosen: list[int] = []
    of_document: dict[int, list[int]] = {}
    of_text: Counter[int] = Counter()
    for token in candidates[np.argsort(-gain[candidates], kind="stable")].tolist():
        if len(chosen) == n:
            break
        others, text = of_document.setdefault(int(documents[token]), []), int(pieces[token])
        is_free = len(others) < most_of_document and of_text[text] < most_of_text
        if is_free and all(abs(token - other) >= apart for other in others):
            others.append(token)
            of_text[text] += 1
            chosen.append(token)
    return np.array(chosen, dtype=np.int64)


def firing_there(
    latents: scipy.sparse.csc_array,
    chosen: Integer[np.ndarray, " passage"],
    candidates: Bool[np.ndarray, " token"],
    corpora: Int[np.ndarray, " token"],
) -> pd.DataFrame:
    """How often each latent fires where chosen tokens are predicted, beside what is expected by their corpora.

    Args:
        latents: activations [token, d_sae], above 0 where they are stored.
        chosen: the chosen tokens, which are among the candidates.
        candidates: marks the tokens that could have been chosen.
        corpora: number of each token's corpus.

    Returns:
        One row for each latent that fires at one of them, the least likely by chance first, on a tie the lower latent:
        `latent`; `n_there` of `n`; `base`, the expected share: of as many random candidates of the same corpora;
        `lift`, n_there / n / base; `log10_p`, the chance of so many or more if each had the chance `base`, which is not
        corrected for the number of latents.
    """
    n, fires = len(chosen), latents.astype(bool).astype(np.float64)
    where = np.flatnonzero(candidates)
    kinds, kind = np.unique(corpora[where], return_inverse=True)
    indicator = scipy.sparse.coo_array(
        (np.ones(len(where)), (np.maximum(where - 1, 0), kind)), shape=(len(candidates), max(1, len(kinds)))
    )
    by_corpus = (fires.T @ indicator.tocsc()).toarray() / np.maximum(np.bincount(kind, minlength=max(1, len(kinds))), 1)
    there = np.asarray(fires.tocsr()[chosen - 1].sum(axis=0), dtype=np.int64).ravel()
    drawn = np.searchsorted(kinds, corpora[chosen])
    latent = np.flatnonzero(there)
    base = by_corpus[latent][:, drawn].mean(axis=1) if n else np.empty(0)
    with np.errstate(divide="ignore"):
        log10_p = scipy.stats.binom.logsf(there[latent] - 1, n, base) / np.log(10)
    table = pd.DataFrame(
        {
            "latent": latent,
            "n_there": there[latent],
            "n": n,
            "base": base,
            "lift": there[latent] / max(n, 1) / base,
            "log10_p": np.maximum(log10_p, LEAST_LOG10_P),
        }
    )
    return table.sort_values(["log10_p", "latent"], kind="stable", ignore_index=True)
