"""Feature shards: sparse rows on disk."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from saelineage.errors import InputError
from saelineage.features import FeatureShard, require_aligned
from saelineage.files import encode_header

# Three latents; the first and last token are empty, and so is the second latent.
DENSE = np.array([[0, 0, 0], [1.5, 0, 2], [0, 0, 0.25], [0, 0, 0]])


def test_a_round_trip_keeps_empty_rows_and_columns(write_features):
    shard = write_features(DENSE)
    assert np.array_equal(shard.latents.toarray(), DENSE)
    assert shard.latents.dtype == np.float64
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
    """The shard's file with some tensors or header entries changed."""

    def change(header: dict | None = None, **tensors: np.ndarray):
        shard = write_features(DENSE)
        named = {key: getattr(shard, key) for key in ("model", "sae", "corpus", "ids_sha256", "first_row", "stop_row")}
        named |= {"n_ctx": shard.n_ctx, "d_sae": 3} | (header or {})
        kept = {key: value for key, value in named.items() if value is not None}
        save_file(load_file(shard.path) | tensors, shard.path, metadata=encode_header(kept))
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
    ],
    ids=["no such latent", "negative", "out of order", "twice", "too few", "falling", "too many", "missing values"],
)
def test_inconsistent_rows_are_refused_with_the_file_s_name(changed, tensors):
    with pytest.raises(InputError, match=r"features\.safetensors' is not a whole feature shard"):
        FeatureShard(changed(**tensors))


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_values_that_are_no_activations_are_refused(changed, value):
    with pytest.raises(InputError, match=r"not finite and above zero; look at the SAE 'm\.seed0'"):
        FeatureShard(changed(values=np.array([1, value, 1], dtype=np.float32)))


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


def test_files_that_are_not_there_or_say_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a whole feature shard"):
        FeatureShard(tmp_path / "nowhere.safetensors")
    save_file({"indptr": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="its header does not say what it holds"):
        FeatureShard(tmp_path / "other.safetensors")


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
