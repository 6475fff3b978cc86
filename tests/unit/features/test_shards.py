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


def test_a_round_trip_keeps_empty_rows_and_columns(write_features):
    shard = write_features(DENSE)
    assert np.array_equal(shard.latents.toarray(), DENSE)
    assert shard.latents.dtype == np.float32
    assert shard.d_sae == 3
    assert shard.positions.tolist() == [0, 1, 2, 3]


def test_a_shard_of_nothing_but_empty_rows_keeps_its_shape(write_features):
    assert write_features(np.zeros((5, 2))).latents.shape == (5, 2)


def test_the_header_says_whose_features_on_which_tokens(write_features):
    shard = write_features(DENSE, first_row=8, model="lua", sae="seed1", corpus="python", ids_sha256="ab", n_ctx=4)
    assert (shard.model, shard.sae, shard.corpus, shard.n_ctx) == ("lua", "seed1", "python", 4)
    covered = shard.token_range
    assert covered == "ab rows 8 to 12"


def test_writing_twice_gives_equal_bytes(write_features):
    first, second = (write_features(DENSE, name).path.read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.fixture
def changed(write_features):
    """The shard's file written with some tensors or header entries changed, digest and all."""

    def change(header: dict | None = None, **tensors: np.ndarray):
        shard = write_features(DENSE)
        named = {key: getattr(shard, key) for key in ("model", "sae", "corpus", "ids_sha256", "first_row", "stop_row")}
        named |= {"n_ctx": shard.n_ctx, "d_sae": 3} | (header or {})
        kept = {key: value for key, value in named.items() if value is not None}
        held = load_file(shard.path) | tensors
        save_file(held, shard.path, metadata=encode_header({**kept, "sha256": sha256_tensors(kept, held)}))
        return shard.path

    return change


def test_an_unchanged_file_is_read(changed):
    assert np.array_equal(FeatureShard(changed()).latents.toarray(), DENSE)


@pytest.mark.parametrize(
    "tensors",
    [
        {"indices": np.array([0, 3, 2], dtype=np.int32)},
        {"indices": np.array([0, -1, 2], dtype=np.int32)},
        {"indices": np.array([2, 0, 2], dtype=np.int32)},
        {"indices": np.array([2, 2, 2], dtype=np.int32)},
        {"indptr": np.array([0, 0, 2, 3], dtype=np.int64)},
        {"indptr": np.array([0, 3, 2, 3, 3], dtype=np.int64)},
        {"indptr": np.array([0, 0, 2, 3, 9], dtype=np.int64)},
        {"values": np.ones(2, dtype=np.float32)},
        {"positions": np.arange(5)},
        {"compared": np.ones(3, dtype=bool)},
    ],
    ids=[
        "no such latent",
        "negative",
        "out of order",
        "twice",
        "too few",
        "falling",
        "too many",
        "missing values",
        "more positions",
        "less compared",
    ],
)
def test_inconsistent_rows_are_refused_with_the_file_s_name(changed, tensors):
    with pytest.raises(InputError, match=r"features\.safetensors' is not a whole feature shard"):
        FeatureShard(changed(**tensors))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_values_that_are_no_activations_are_refused(changed, value):
    path = changed(values=np.array([1, value, 1], dtype=np.float32))
    wanted = rf"in '{path}' must be finite and above zero where features fire, but one is {value}; look .* 'm\.seed0'"
    with pytest.raises(InputError, match=wanted):
        FeatureShard(path)


@pytest.mark.parametrize("header", [{"sae": None}, {"d_sae": "many"}, {"d_sae": 2}, {"d_sae": -1}], ids=str)
def test_headers_that_do_not_fit_are_refused(changed, header):
    with pytest.raises(InputError, match=r"features\.safetensors' is not a whole feature shard"):
        FeatureShard(changed(header))


@pytest.mark.parametrize("n_bytes", [0, 7, 100, -1])
def test_cut_off_shards_are_refused(write_features, n_bytes):
    path = write_features(DENSE).path
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"features\.safetensors' is not a whole feature shard"):
        FeatureShard(path)


def test_any_flipped_byte_is_refused_with_the_file_s_name(write_features):
    path = write_features(DENSE).path
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"features\.safetensors' is not a whole feature shard \(.+\); delete it"):
            FeatureShard(path)


def test_a_flipped_byte_is_told_as_such(write_features):
    path = write_features(DENSE).path
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 128
    path.write_bytes(whole)
    with pytest.raises(
        InputError, match=r"shard \(its bytes are not those that were written\); delete it and run again"
    ):
        FeatureShard(path)


def test_shards_written_before_there_were_digests_are_refused(write_features):
    path = write_features(DENSE).path
    save_file(load_file(path), path, metadata=encode_header({"model": "m", "sae": "seed0"}))
    with pytest.raises(InputError, match=r"features\.safetensors' is not a whole feature shard \('sha256'\)"):
        FeatureShard(path)


def test_files_that_are_not_there_or_say_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a whole feature shard"):
        FeatureShard(tmp_path / "nowhere.safetensors")
    save_file({"indptr": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="its header does not say what it holds"):
        FeatureShard(tmp_path / "other.safetensors")


def test_paths_of_shards_are_told_apart_by_their_saes_and_keep_their_order():
    base, lua, seed1 = "results/demo/features/base/seed0", "features/lua/from_base@0", "features/base/seed1"
    paths = [f"{base}/python/shard-1.safetensors", f"{lua}/lua/s", f"{base}/lua/shard-0.safetensors", f"{seed1}/lua/s"]
    assert shards_by_sae(paths) == {
        ("base", "seed0"): [paths[0], paths[2]],
        ("lua", "from_base@0"): [paths[1]],
        ("base", "seed1"): [paths[3]],
    }
    assert shards_by_sae([]) == {}


@pytest.mark.parametrize("other", [{"corpus": "sums"}, {"ids_sha256": "1" * 8}, {"first_row": 4}], ids=str)
def test_features_of_other_tokens_are_refused_with_both_names(write_features, other):
    a, b = write_features(DENSE, "first"), write_features(DENSE, "second", **other)
    with pytest.raises(InputError, match=r"first\.safetensors' \(words, .*second\.safetensors' \("):
        require_aligned(a, b)


def test_features_of_other_positions_are_refused(write_features):
    a, b = write_features(DENSE, "first"), write_features(DENSE, "second")
    b.positions = b.positions[::-1]
    with pytest.raises(InputError, match="must come from the same tokens"):
        require_aligned(a, b)


def test_features_of_other_saes_on_the_same_tokens_are_aligned(write_features):
    require_aligned(write_features(DENSE, "first"), write_features(DENSE[:, :2], "second", model="lua", sae="seed1"))


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        np.asfortranarray,
        scipy.sparse.csr_array,
        scipy.sparse.csc_array,
        scipy.sparse.coo_array,
        scipy.sparse.csr_matrix,
    ],
    ids=lambda kind: kind.__name__,
)
def test_latents_at_hand_become_a_shard(kind):
    shard = FeatureShard.of_array(kind(DENSE), "mine")
    assert np.array_equal(shard.latents.toarray(), DENSE)
    assert shard.latents.dtype == np.float32
    assert (shard.model, shard.d_sae, shard.first_row, shard.stop_row) == ("mine", 3, 0, 4)
    assert shard.compared.tolist() == [True] * 4


def test_whole_numbers_are_activations_too():
    assert FeatureShard.of_array(np.array([[0, 2], [3, 0]]), "mine").latents.toarray().tolist() == [[0, 2], [3, 0]]


def test_latents_at_hand_stay_as_they_were():
    # Row 0 holds latents 2 and 0 out of order, row 1 an explicit zero, row 2 latent 1 twice.
    data, indices, indptr = [2.0, 1, 0, 3, 4], [2, 0, 1, 1, 1], [0, 2, 3, 5]
    latents = scipy.sparse.csr_array((np.float32(data), np.int32(indices), np.int32(indptr)), shape=(3, 3))
    shard = FeatureShard.of_array(latents, "mine")
    assert shard.latents.toarray().tolist() == [[1, 0, 2], [0, 0, 0], [0, 7, 0]]
    assert shard.latents.nnz == 3
    assert (latents.data.tolist(), latents.indices.tolist(), latents.indptr.tolist()) == (data, indices, indptr)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_latents_at_hand_that_are_no_activations_are_refused(value):
    with pytest.raises(InputError, match=f"activations in 'mine' must be finite and above zero .*, but one is {value}"):
        FeatureShard.of_array(np.array([[1, value]]), "mine")


def full_rows(n_rows: int, n_ctx: int, d_sae: int, write_features, first_row: int = 0) -> FeatureShard:
    random = np.random.default_rng(n_rows)
    dense = np.where(random.random((n_rows * n_ctx, d_sae)) < 0.4, random.random((n_rows * n_ctx, d_sae)), 0)
    shard = write_features(dense, n_ctx=n_ctx, first_row=first_row, stop_row=first_row + n_rows)
    shard.positions = first_row * n_ctx + np.arange(n_rows * n_ctx)
    return shard


@pytest.mark.parametrize("n_rows", [2, 3, 8])
@pytest.mark.parametrize("first_row", [0, 5])
def test_shifting_moves_whole_rows_half_of_them_on(write_features, n_rows, first_row):
    shard = full_rows(n_rows, 4, 3, write_features, first_row)
    null = shifted(shard)
    by_row = shard.latents.toarray().reshape(n_rows, 4, 3)
    # Row r shows row r + n // 2, from the start again behind the last.
    assert np.array_equal(null.latents.toarray().reshape(n_rows, 4, 3), np.roll(by_row, -(n_rows // 2), axis=0))
    assert null.compared.all()
    assert np.array_equal(null.positions, shard.positions)
    require_aligned(shard, null)


def test_shifting_keeps_each_feature_s_values(write_features):
    shard = full_rows(7, 4, 5, write_features)
    values, others = (np.sort(one.latents.toarray(), axis=0) for one in (shard, shifted(shard)))
    assert np.array_equal(values, others)


def test_shifting_leaves_the_shard_itself_alone(write_features):
    shard = full_rows(4, 4, 3, write_features)
    before = shard.latents.toarray()
    null = shifted(shard)
    assert (null.model, null.sae, shard.sae) == ("m", "seed0_shifted", "seed0")
    assert np.array_equal(shard.latents.toarray(), before)
    assert shard.compared.all()


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
    with pytest.raises(InputError, match=r"two token rows or more, but '.*features\.safetensors' has 1; lower activa"):
        shifted(shard)


def test_features_and_their_shifted_selves_have_nothing_in_common(write_features):
    # 4000 independent tokens: the mean of 20 r, each of standard deviation 1 / sqrt(4000) = 0.016, is within 0.016.
    shard = full_rows(1000, 4, 20, write_features)
    settings = {"min_firings": 1, "top_matches": 20, "keep_above": 0.05, "progress": False}
    found = correlate(shard.latents, shifted(shard).latents, **settings).pearson
    own = found.best[0][np.arange(20)[:, None] == found.partners[0]]
    assert len(own) == 20
    assert abs(own.mean()) < 0.016
    assert np.abs(own).max() < 0.08
