"""Losses of token rows, summed by document in float64, because tokens of one document are not independent."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelineage.correlations.bootstrap import documents_of
from saelineage.models.losses import token_losses
from saelineage.models.predictions import Predictions
from saelineage.tokens import TokenRows


def predicted_documents(rows: TokenRows) -> Int[np.ndarray, "row prediction"]:
    """The number of the document of each id but each row's first, which is not predicted.

    An EOS belongs to the document that it ends.
    """
    documents = np.maximum.accumulate(documents_of(rows)).clip(0)
    return documents.reshape(rows.ids.shape)[:, 1:]


def flat_losses(
    predictions: Predictions, ids: Int[Tensor, "row n_ctx"], predicted: Bool[Tensor, "row n_ctx"]
) -> Float[np.ndarray, " prediction"]:
    """The loss of each id but each row's first (`models.losses.token_losses`), one row after the other."""
    return token_losses(predictions, ids, predicted).cpu().numpy().ravel()


def add_by_document(
    sums: Float[np.ndarray, "kind document"],
    documents: Int[np.ndarray, "row place"],
    numbers: range,
    predicted: Bool[Tensor, "batch_row n_ctx"],
    losses: Sequence[Float[np.ndarray, " prediction"]],
) -> None:
    """Add some rows to the sums, in place: the number of predictions first, then each kind of loss.

    Args:
        sums: of the rows so far.
        documents: from `predicted_documents`.
        numbers: the rows.
        predicted: ids of these rows whose losses count.
        losses: of these rows, from `flat_losses`.
    """
    of_rows = documents[numbers.start : numbers.stop : numbers.step].ravel()
    kinds = (predicted[:, 1:].cpu().numpy().ravel(), *losses)
    sums += [np.bincount(of_rows, weights=kind, minlength=sums.shape[1]) for kind in kinds]
