"""Annotating the probe and labelling features, as the rules do."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import scipy.sparse

from annotate_probe import annotate_probe
from label_features import label_features
from saelineage.corpora.documents import SCHEMA, read_split
from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.files.atomic import decode_header
from saelineage.labels.annotations import load_annotations, text_of
from saelineage.tokens import TokenRows, write_rows, write_sidecar

PROGRAM = "local sum = {n} + 1\nif sum == {n} then error('{n}') end\n"


@pytest.fixture
def probe(tiny, tmp_path) -> dict[str, list[str]]:
    """Two corpora on disk: their token rows and their documents."""
    texts = {
        "words": [f"The cat = the dog {number}.\n" * 3 for number in range(24)],
        "sums": [PROGRAM.format(n=number) * 2 for number in range(24)],
    }
    paths: dict[str, list[str]] = {"rows": [], "documents": []}
    for corpus, documents in texts.items():
        path = tmp_path / "corpora" / corpus / "probe.parquet"
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays([["0"] * 24, documents], schema=SCHEMA), path)
        rows = tmp_path / "tokens" / corpus / "probe.npy"
        rows.parent.mkdir(parents=True)
        write_sidecar(rows, write_rows(read_split(path), tiny.tokenizer, tiny.n_ctx, None, rows))
        paths["rows"].append(str(rows))
        paths["documents"].append(str(path))
    return paths


def of_corpora(paths: list[str]) -> dict[str, str]:
    return dict(zip(("words", "sums"), paths, strict=True))


@pytest.fixture
def annotated(tiny, probe, tmp_path) -> Path:
    """The annotations of the two corpora."""
    path = tmp_path / "labels" / "probe.safetensors"
    annotate_probe(
        of_corpora(probe["rows"]), of_corpora(probe["documents"]), tiny.tokenizer, {"sums": "lua"}, str(path)
    )
    return path


def write_shard(path_to_rows: str, fires: np.ndarray, folder: Path) -> str:
    """A feature shard of one latent, over all text of a corpus."""
    rows = TokenRows(path_to_rows)
    corpus = Path(path_to_rows).parent.name
    (positions,) = np.nonzero(rows.text_mask(range(len(rows.ids))).ravel())
    latents = scipy.sparse.csr_array(fires[positions][:, None].astype(np.float32))
    header = {"model": "base", "sae": "seed0", "corpus": corpus, "d_sae": 1, "ids_sha256": rows.digest}
    header |= {"first_row": 0, "stop_row": len(rows.ids), "n_ctx": rows.info["n_ctx"]}
    path = folder / f"{corpus}.safetensors"
    compared = np.ones(len(positions), dtype=bool)
    save_shard(path, latents.indptr, latents.indices, latents.data, positions, compared, header)
    return str(path)


def test_a_feature_that_fires_on_assignments_is_labelled_so(probe, annotated, tmp_path):
    found = load_annotations(annotated)
    column = found.matrix[:, [found.properties.index(("concept", "assignment ="))]].toarray()[:, 0]
    assert set(text_of(found, np.flatnonzero(column))) <= {" =", "="}
    starts = [*found.starts.values(), len(found.pieces)]
    parts = [column[i:j] for i, j in pairwise(starts)]
    shards = [write_shard(path, part, tmp_path) for path, part in zip(probe["rows"], parts, strict=True)]
    label_features(shards, str(annotated), 5, str(tmp_path / "labels.parquet"))
    labels = pd.read_parquet(tmp_path / "labels.parquet").set_index("label")
    best = labels.loc["assignment ="]
    assert (best["score"], best["precision"], best["recall"]) == (pytest.approx(1), 1.0, 1.0)
    # The text `words` has = as well, which is no assignment there; so the token alone tells less.
    assert labels.loc["="]["score"] < 0.9
    assert labels.loc["="]["precision"] == 1.0
    # Among equally good ones the first kind wins.
    assert labels[labels["wins"]].index.tolist() == ["lua: = in assignment_statement"]


def test_the_file_says_which_tokens_it_is_of(probe, annotated):
    from safetensors import safe_open

    with safe_open(annotated, framework="np") as file:
        header = decode_header(file.metadata())
    digests = {Path(path).parent.name: TokenRows(path).digest for path in probe["rows"]}
    assert header["ids_sha256"] == digests


def test_documents_of_another_corpus_are_refused(tiny, probe, tmp_path):
    swapped = [probe["documents"][1], probe["documents"][0]]
    with pytest.raises(InputError, match="document 0 of 'words' gives other ids"):
        annotate_probe(of_corpora(probe["rows"]), of_corpora(swapped), tiny.tokenizer, {}, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
