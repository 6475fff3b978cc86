"""Annotations and firings written by hand, and the data of a page's script read back."""

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse

from saelineage.features.shards import save_shard
from saelineage.labels.annotations import Annotations
from saelineage.labels.passages import Firings

Rows = Mapping[str, Sequence[Sequence[str | None]]]


def annotated(corpora: Rows) -> Annotations:
    """Annotate token rows by corpus, whose tokens are given as texts, without properties.

    None in the first place is BOS, anywhere else EOS, after which another document begins. A document continues in the
    next row of its corpus.
    """
    strings: dict[str, int] = {}
    starts, pieces, documents, document = {}, [], [], -1
    for corpus, rows in corpora.items():
        starts[corpus], document = len(pieces), document + 1
        for row in rows:
            for place, text in enumerate(row):
                pieces.append(-1 if text is None else strings.setdefault(text, len(strings)))
                documents.append(-1 if text is None else document)
                document += text is None and place > 0
    return Annotations(
        starts=starts,
        n_ctx=len(row),
        pieces=np.array(pieces, dtype=np.int32),
        strings=list(strings),
        documents=np.array(documents, dtype=np.int32),
        properties=[],
        matrix=scipy.sparse.csr_array((len(pieces), 0), dtype=bool),
    )


def dense(annotations: Annotations, latents: Sequence[Mapping[int, float]]) -> np.ndarray:
    """Activations [token, d_sae] of latents that each fire on some tokens, given by token number."""
    acts = np.zeros((len(annotations.pieces), len(latents)), dtype=np.float32)
    for latent, values in enumerate(latents):
        acts[list(values), latent] = list(values.values())
    return acts


def firings(annotations: Annotations, *latents: Mapping[int, float]) -> Firings:
    """Firings of latents that each fire on some tokens, given by token number."""
    return Firings(scipy.sparse.csc_array(dense(annotations, latents)), ("shard",))


def write_shards(folder: Path, annotations: Annotations, latents: Sequence[Mapping[int, float]]) -> list[str]:
    """Write the same as feature shards `{model}/{sae}/{corpus}/shard.safetensors` in a folder `{model}/{sae}`."""
    acts, bounds, paths = dense(annotations, latents), [*annotations.starts.values(), len(annotations.pieces)], []
    for corpus, start, stop in zip(annotations.starts, bounds, bounds[1:], strict=False):
        positions = np.flatnonzero(annotations.pieces[start:stop] >= 0)
        rows = scipy.sparse.csr_array(acts[start + positions])
        header = {"model": folder.parent.name, "sae": folder.name, "corpus": corpus, "ids_sha256": corpus}
        header |= {"d_sae": len(latents), "n_ctx": annotations.n_ctx, "first_row": 0}
        header |= {"stop_row": (stop - start) // annotations.n_ctx}
        paths.append(folder / corpus / "shard.safetensors")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        compared = np.ones(len(positions), dtype=bool)
        save_shard(paths[-1], rows.indptr, rows.indices, rows.data, positions, compared, header)
    return [str(path) for path in paths]


def unpacked(script: str) -> tuple[str, object]:
    """Read back the name and the value in a page's script (`dashboards.packed`)."""
    name, data = re.fullmatch(r'saelineage\.receive\("([^"]*)","([A-Za-z0-9+/=]*)"\)\n', script).groups()
    return name, json.loads(gzip.decompress(base64.b64decode(data)), parse_constant=_no_json)


def _no_json(constant: str) -> None:
    """Refuse NaN and infinities, which a browser does not read."""
    raise ValueError(f"{constant} is not JSON")
