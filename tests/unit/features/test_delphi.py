"""Delphi's latent cache, by hand."""

import hashlib

import numpy as np
import pytest
import scipy.sparse
from safetensors.numpy import load_file

from export_latents import export_latents
from saelineage.errors import InputError
from saelineage.features.delphi import latent_ranges, save_cache
from saelineage.features.shards import save_shard
from saelineage.files.atomic import read_json, sha256_file, write_json
from saelineage.tokens import TokenRows

# Rows of 3 ids; BOS (0) is no text token.
IDS = {"words": [[0, 5, 6], [0, 7, 8]], "sums": [[0, 3, 2]]}
# The text tokens of each row, with two of four latents firing now and then.
LATENTS = {
    "words": [[0, 0.5, 0, 0], [0, 0, 0, 2.0], [0, 0, 0, 0], [1.5, 0, 0, 3.0]],
    "sums": [[0, 0.25, 0, 0], [0, 0, 0, 0]],
}
POSITIONS = {"words": [1, 2, 4, 5], "sums": [1, 2]}


@pytest.fixture
def probe(tmp_path):
    """Token rows of two corpora: their paths, in the config's order."""
    paths = []
    for corpus, ids in IDS.items():
        array = np.array(ids, dtype=np.uint16)
        paths.append(tmp_path / "tokens" / corpus / "probe.npy")
        paths[-1].parent.mkdir(parents=True)
        np.save(paths[-1], array)
        shape = {"n_rows": array.shape[0], "n_ctx": array.shape[1]}
        write_json(paths[-1].with_suffix(".json"), shape | {"ids_sha256": hashlib.sha256(array.tobytes()).hexdigest()})
    return list(map(str, paths))


@pytest.fixture
def shards(tmp_path, probe):
    """One feature shard per row: words 0, words 1, sums 0."""
    paths = []
    for corpus, path in zip(IDS, probe, strict=True):
        rows = TokenRows(path)
        for row in range(len(rows.ids)):
            dense = scipy.sparse.csr_array(np.array(LATENTS[corpus][2 * row : 2 * row + 2]))
            positions = np.array(POSITIONS[corpus][2 * row : 2 * row + 2])
            header = {"model": "lua", "sae": "seed0", "corpus": corpus, "d_sae": 4, "ids_sha256": rows.digest}
            paths.append(str(tmp_path / f"{corpus}-{row}.safetensors"))
            covered = {"first_row": row, "stop_row": row + 1, "n_ctx": 3}
            compared = np.ones(2, dtype=bool)
            save_shard(paths[-1], dense.indptr, dense.indices, dense.data, positions, compared, header | covered)
    return paths


def test_latents_are_split_into_nearly_equal_ranges_none_of_them_empty():
    assert latent_ranges(10, 4) == [range(0, 2), range(2, 5), range(5, 7), range(7, 10)]
    assert latent_ranges(2, 5) == [range(0, 1), range(1, 2)]


def test_a_cache_says_where_each_latent_fires_with_sequences_numbered_across_corpora(tmp_path, probe, shards):
    rows = {corpus: TokenRows(path) for corpus, path in zip(IDS, probe, strict=True)}
    paths = save_cache(shards, rows, tmp_path / "cache", n_splits=2)
    assert [path.name for path in paths] == ["0_1.safetensors", "2_3.safetensors"]
    first, last = map(load_file, paths)
    # Latents 0 and 1: words row 0 place 1, words row 1 place 2, and sums row 0, which is sequence 2.
    assert first["locations"].tolist() == [[0, 1, 1], [1, 2, 0], [2, 1, 1]]
    assert first["activations"].tolist() == [0.5, 1.5, 0.25]
    # Latents 2 and 3, counted from 2.
    assert last["locations"].tolist() == [[0, 2, 1], [1, 2, 1]]
    assert last["activations"].tolist() == [2.0, 3.0]
    for file in (first, last):
        assert file["tokens"].tolist() == [[0, 5, 6], [0, 7, 8], [0, 3, 2]]
        assert (file["locations"].dtype, file["activations"].dtype) == (np.uint16, np.float32)
    silent = load_file(save_cache(shards, rows, tmp_path / "cache", n_splits=4)[2])
    assert (silent["locations"].shape, silent["activations"].shape) == ((0, 3), (0,))


def test_the_folder_is_complete_and_holds_nothing_of_an_earlier_export(tmp_path, probe, shards):
    folder = tmp_path / "delphi"
    folder.mkdir()
    (folder / "0_99.safetensors").write_bytes(b"of a wider SAE")
    record = export_latents(shards, dict(zip(IDS, probe, strict=True)), tmp_path / "models" / "lua", folder)
    names = [f"{latent}_{latent}.safetensors" for latent in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "config.json"]
    assert record == {"splits": {name: sha256_file(folder / name) for name in names}}
    assert read_json(folder / "config.json") == {
        "model_name": str(tmp_path / "models" / "lua"),
        "n_splits": 4,
        "n_tokens": 9,
        "cache_ctx_len": 3,
        "ctx_len": 3,
    }


def test_features_of_other_tokens_are_refused(tmp_path, probe, shards):
    np.save(probe[0], np.zeros((2, 3), dtype=np.uint16))
    write_json(tmp_path / "tokens/words/probe.json", {"n_rows": 2, "n_ctx": 3, "ids_sha256": "1" * 8})
    with pytest.raises(InputError, match=r"words-0\.safetensors' .*; delete it and run again"):
        export_latents(shards, dict(zip(IDS, probe, strict=True)), tmp_path, tmp_path / "delphi")
