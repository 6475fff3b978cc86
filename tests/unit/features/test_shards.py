"""Feature shards: sparse rows on disk."""

import numpy as np
import pytest
import scipy.sparse
from safetensors.numpy import load_file, save_file

from saelineage.correlations.pearson import correlate
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, require_aligned, save_shard, shards_by_sae, shifted
from saelineage.files.atomic import encode_header
from saelineage.files.tensors import sha256_tensors

# Three latents; the first and last token are empty, and so is the second latent.
DENSE = np.array([[0, 0, 0], [1.5, 0, 2], [0, 0, 0.25], [0, 0, 0]])
NOT_WHOLE = r"features\.safetensors' is not a whole feature shard \(.+\); delete it and run again"


def test_a_round_trip_keeps_values_empty_rows_and_the_header(write_features):
    shard = write_features(DENSE, first_row=8, model="lua", sae="seed1", corpus="python", ids_sha256="ab", n_ctx=4)
    assert np.array_equal(shard.latents.toarray(), DENSE)
    assert shard.latents.dtype == np.float32
    assert shard.d_sae == 3
    assert shard.positions.tolist() == [8, 9, 10, 11]
    assert (shard.model, shard.sae, shard.corpus, shard.n_ctx) == ("lua", "seed1", "python", 4)
    assert shard.token_range == "ab rows 8 to 12"
    assert write_features(np.zeros((5, 2))).latents.shape == (5, 2)


def test_writing_twice_gives_equal_bytes(write_features):
    first, second = (write_features(DENSE, name).path.read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.fixture
def changed(write_features):
    """Write a shard with some tensors or header entries changed, and a matching digest."""

    def change(header: dict | None = None, **tensors: np.ndarray):
        shard = write_features(DENSE)
        named = {key: getattr(shard, key) for key in ("model", "sae", "corpus", "ids_sha256", "first_row", "stop_row")}
        named |= {"n_ctx": shard.n_ctx, "d_sae": 3} | (header or {})
        kept = {key: value for key, value in named.items() if value is not None}
        held = load_file(shard.path) | tensors
        save_file(held, shard.path, metadata=encode_header({**kept, "sha256": sha256_tensors(kept, held)}))
        return shard.path

    return change


@pytest.mark.parametrize(
    "tensors",
    [
        {"indices": np.array([0, 3, 2], dtype=np.int32)},
        {"indices": np.array([0, -1, 2], dtype=np.int32)},
        {"indices": np.array([2, 0, 2], dtype=np.int32)},
        {"indices": np.array([2, 2, 2], dtype=np.int32)},
        {"indptr": np.array([0, 0, 2, 3], dtype=np.int64)},
        {"indptr": np.array([0, 3, 2, 3, 3], dtype=np.int64)},
        {"values": np.ones(2, dtype=np.float32)},
        {"compared": np.ones(3, dtype=bool)},
    ],
    ids=["no such latent", "negative", "out of order", "twice", "too few", "falling", "missing values", "compared"],
)
def test_inconsistent_rows_are_refused_with_the_file_s_name(changed, tensors):
    assert np.array_equal(FeatureShard(changed()).latents.toarray(), DENSE)
    with pytest.raises(InputError, match=NOT_WHOLE):
        FeatureShard(changed(**tensors))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_values_that_are_not_activations_are_refused(changed, value):
    path = changed(values=np.array([1, value, 1], dtype=np.float32))
    with pytest.raises(InputError, match=rf"'{path}' .* {value}; look at the SAE 'm\.seed0'"):
        FeatureShard(path)
    if value:  # zeros in memory are dropped
        with pytest.raises(InputError, match=rf"'mine' .* {value}; look at the SAE"):
            FeatureShard.of_array(np.array([[1, value]]), "mine")


@pytest.mark.parametrize("header", [{"sae": None}, {"d_sae": "many"}, {"d_sae": 2}, {"d_sae": -1}], ids=str)
def test_headers_that_do_not_fit_are_refused(changed, header):
    with pytest.raises(InputError, match=NOT_WHOLE):
        FeatureShard(changed(header))


def test_cut_off_missing_and_other_files_are_refused(write_features, tmp_path):
    path = write_features(DENSE).path
    whole, tensors = path.read_bytes(), load_file(path)
    for n_bytes in (0, 7, 100, -1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=NOT_WHOLE):
            FeatureShard(path)
    save_file(tensors, path)
    with pytest.raises(InputError, match=NOT_WHOLE):
        FeatureShard(path)
    save_file(tensors, path, metadata=encode_header({"model": "m", "sae": "seed0"}))  # without a digest
    with pytest.raises(InputError, match=NOT_WHOLE):
        FeatureShard(path)
    path.unlink()
    with pytest.raises(InputError, match=NOT_WHOLE):
        FeatureShard(path)


def test_any_flipped_byte_is_refused_with_the_file_s_name(write_features):
    path = write_features(DENSE).path
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=NOT_WHOLE):
            FeatureShard(path)


def test_shards_are_grouped_by_sae_in_their_order_and_each_has_as_many():
    saes = [("base", "seed0"), ("lua", "from_base@0"), ("base", "seed1")]
    paths = ["1", "2", "3", "4", "5", "6"]
    assert shards_by_sae(paths, saes) == dict(zip(saes, (["1", "2"], ["3", "4"], ["5", "6"]), strict=True))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        shards_by_sae(paths[:4], saes)


def test_features_of_other_tokens_are_refused_with_both_names(write_features):
    a = write_features(DENSE, "first")
    require_aligned(a, write_features(DENSE[:, :2], "second", model="lua", sae="seed1"))
    moved = write_features(DENSE, "second")
    moved.positions = moved.positions[::-1]
    foreign = [write_features(DENSE, "second", **header) for header in ({"corpus": "sums"}, {"ids_sha256": "1" * 8})]
    for b in (moved, *foreign, write_features(DENSE, "second", first_row=4)):
        with pytest.raises(InputError, match=r"first\.safetensors' \(words, .*second\.safetensors' \(.*; delete both"):
            require_aligned(a, b)


def test_latents_in_memory_become_a_shard():
    for kind in (np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_array, scipy.sparse.csc_matrix):
        shard = FeatureShard.of_array(kind(DENSE), "mine")
        assert np.array_equal(shard.latents.toarray(), DENSE)
        assert shard.latents.dtype == np.float32
        assert (shard.model, shard.d_sae, shard.first_row, shard.stop_row) == ("mine", 3, 0, 4)
        assert shard.compared.tolist() == [True] * 4
    assert FeatureShard.of_array(np.array([[0, 2], [3, 0]]), "mine").latents.toarray().tolist() == [[0, 2], [3, 0]]


def test_latents_in_memory_are_copied_into_canonical_form():
    # Row 0 holds latents 2 and 0 out of order, row 1 an explicit zero, row 2 latent 1 twice.
    data, indices, indptr = [2.0, 1, 0, 3, 4], [2, 0, 1, 1, 1], [0, 2, 3, 5]
    latents = scipy.sparse.csr_array((np.float32(data), np.int32(indices), np.int32(indptr)), shape=(3, 3))
    shard = FeatureShard.of_array(latents, "mine")
    assert shard.latents.toarray().tolist() == [[1, 0, 2], [0, 0, 0], [0, 7, 0]]
    assert shard.latents.nnz == 3
    assert (latents.data.tolist(), latents.indices.tolist(), latents.indptr.tolist()) == (data, indices, indptr)


def full_rows(n_rows: int, n_ctx: int, d_sae: int, write_features, first_row: int = 0) -> FeatureShard:
    random = np.random.default_rng(n_rows)
    dense = np.where(random.random((n_rows * n_ctx, d_sae)) < 0.4, random.random((n_rows * n_ctx, d_sae)), 0)
    shard = write_features(dense, n_ctx=n_ctx, first_row=first_row, stop_row=first_row + n_rows)
    shard.positions = first_row * n_ctx + np.arange(n_rows * n_ctx)
    return shard


@pytest.mark.parametrize(("n_rows", "first_row"), [(2, 0), (3, 5), (8, 0)])
def test_shifting_moves_rows_by_half_a_shard_and_leaves_the_shard_alone(write_features, n_rows, first_row):
    shard = full_rows(n_rows, 4, 3, write_features, first_row)
    before = shard.latents.toarray()
    null = shifted(shard)
    # Row r shows row r + n // 2, counted on from the start behind the last.
    expected = np.roll(before.reshape(n_rows, 4, 3), -(n_rows // 2), axis=0)
    assert np.array_equal(null.latents.toarray().reshape(n_rows, 4, 3), expected)
    assert null.compared.all()
    assert np.array_equal(null.positions, shard.positions)
    require_aligned(shard, null)
    assert (null.model, null.sae, shard.sae) == ("m", "seed0_shifted", "seed0")
    assert np.array_equal(shard.latents.toarray(), before)


def test_tokens_that_the_other_row_does_not_have_are_not_compared(tmp_path):
    # Rows 0 and 1 of four places; place 0 is left out in both (BOS), place 3 in row 1 (EOS). Values are positions.
    positions = np.array([1, 2, 3, 5, 6])
    header = {"model": "m", "sae": "seed0", "corpus": "words", "ids_sha256": "0" * 8, "n_ctx": 4}
    header |= {"d_sae": 1, "first_row": 0, "stop_row": 2}
    values, compared = positions.astype(float), np.array([True, True, True, False, True])
    save_shard(tmp_path / "shard", np.arange(6), np.zeros(5, dtype=int), values, positions, compared, header)
    null = shifted(FeatureShard(tmp_path / "shard"))
    # 1 sees 5 (masked), 2 sees 6, 3 would see 7 (missing), 5 sees 1, 6 sees 2.
    assert null.compared.tolist() == [False, True, False, True, True]
    assert null.latents.toarray()[null.compared, 0].tolist() == [6, 1, 2]
    assert null.positions.tolist() == positions.tolist()


def test_a_shard_of_one_row_cannot_be_shifted(write_features):
    shard = full_rows(1, 4, 3, write_features)
    with pytest.raises(InputError, match=r"features\.safetensors' has 1; lower activations\.n_probe_shards"):
        shifted(shard)


def test_features_and_their_shifted_selves_are_uncorrelated(write_features):
    # 4000 independent tokens: the mean of 20 r, each of standard deviation 1 / sqrt(4000) = 0.016, is within 0.016.
    shard = full_rows(1000, 4, 20, write_features)
    settings = {"min_firings": 1, "top_matches": 20, "keep_above": 0.05, "progress": False}
    correlation = correlate(shard.latents, shifted(shard).latents, **settings).pearson
    with_self = correlation.best[0][np.arange(20)[:, None] == correlation.partners[0]]
    assert len(with_self) == 20
    assert abs(with_self.mean()) < 0.016
    assert np.abs(with_self).max() < 0.08
