"""Counts of documents, and what they mean for intervals over documents."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

FEW_DOCUMENTS = 20
"""Documents of a corpus in the probe below which the page warns of its intervals.

With 20 documents, intervals over documents hold r, and the share that 20 others give, in at least 91 % of drawings
(benchmarks/interval_coverage.py).
"""


def document_counts(lengths: Int[np.ndarray, " document"], n_ids: int | None = None) -> dict[str, int | float]:
    """Count the documents in token rows.

    Args:
        lengths: ids of each document, without EOS.
        n_ids: ids of the stream `document EOS document EOS ...` that are in the rows; None if all are.

    Returns:
        `n_documents`, those with an id in the rows; and `largest_document_share`, the share of all their ids that the
        longest of them holds, in [0, 1].
    """
    stops = np.cumsum(lengths + 1) - 1
    if n_ids is not None:
        lengths = np.minimum(stops, n_ids) - np.minimum(stops - lengths, n_ids)
    total = int(lengths.sum())
    return {
        "n_documents": int((lengths > 0).sum()),
        "largest_document_share": float(lengths.max(initial=0) / total) if total else 0.0,
    }


def few_documents(corpus: str, counts: Mapping) -> str | None:
    """A warning that a corpus has few documents in the probe; None if it has enough.

    Args:
        corpus: its name.
        counts: of `document_counts`.
    """
    n = counts["n_documents"]
    if n >= FEW_DOCUMENTS:
        return None
    return (
        f"Intervals over documents rest on {n} {'document' if n == 1 else 'documents'} of '{corpus}', the largest with "
        f"{100 * counts['largest_document_share']:.0f} % of its probe tokens (there should be at least "
        f"{FEW_DOCUMENTS}). Add documents, raise splits.probe, or set corpora.{corpus}.separator for one large .txt."
    )
