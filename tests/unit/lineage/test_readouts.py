"""Linear readouts of features against direct regressions and numbers worked by hand."""

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors.torch import save_file

from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.files.atomic import encode_header
from saelineage.lineage import readouts
from saelineage.lineage.readouts import FIT, TEST, TUNE, FoldSums, fold_sums, folds, read_out, ridge_r2

N_CTX = 4


def sums_of(acts: np.ndarray, latents: np.ndarray) -> FoldSums:
    """The sums over these tokens."""
    sums = FoldSums.zeros(acts.shape[1], latents.shape[1])
    sums.add(torch.from_numpy(acts), scipy.sparse.csr_array(latents))
    return sums


def three_folds(acts: np.ndarray, latents: np.ndarray) -> list[FoldSums]:
    """A half, a quarter and a quarter of the tokens, in this order."""
    n = len(acts)
    return [sums_of(acts[part], latents[part]) for part in np.split(np.arange(n), [n // 2, n * 3 // 4])]


def direct_errors(
    acts: np.ndarray, latent: np.ndarray, fit: slice, part: slice, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """A ridge regression written as in a textbook: residuals on a part, and the part's deviations from its mean."""
    x, y = acts[fit] - acts[fit].mean(0), latent[fit] - latent[fit].mean()
    covariance = x.T @ x / len(x)
    scale = np.trace(covariance) / len(covariance)
    weights = np.linalg.solve(covariance + penalty * scale * np.eye(len(covariance)), x.T @ y / len(x))
    guesses = latent[fit].mean() + (acts[part] - acts[fit].mean(0)) @ weights
    return latent[part] - guesses, latent[part] - latent[part].mean()


def drawn(n: int = 400, d_in: int = 5, d_sae: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Activations that are correlated and far from zero, and rectified noisy functions of them."""
    random = np.random.default_rng(0)
    acts = random.normal(size=(n, d_in)) @ random.normal(size=(d_in, d_in)) + 7
    noise = random.normal(size=(n, d_sae)) * 3
    return acts, np.maximum((acts - 7) @ random.normal(size=(d_in, d_sae)) + noise, 0)


@pytest.fixture
def write_pair(tmp_path):
    """Write a shard of activations and one of features of the same tokens; gives both paths."""

    def write(
        acts: np.ndarray,
        latents: np.ndarray,
        name: str = "0",
        first_row: int = 0,
        compared=None,
        digest="0",
        shared=None,
    ):
        n, positions = len(acts), first_row * N_CTX + np.arange(len(acts))
        tokens = {"ids_sha256": digest, "first_row": first_row, "stop_row": first_row + n // N_CTX, "n_ctx": N_CTX}
        paths = tmp_path / f"acts-{name}.safetensors", tmp_path / f"features-{name}.safetensors"
        stored = torch.from_numpy(acts)
        norms = stored.float().norm(dim=1)
        norms = norms if shared is None else norms.masked_fill(~torch.from_numpy(shared), torch.nan)
        tensors = {"acts": stored, "norms": norms, "positions": torch.from_numpy(positions)}
        save_file(tensors, paths[0], metadata=encode_header({"hookpoint": "layer.output"} | tokens))
        rows = scipy.sparse.csr_array(latents)
        header = {"model": "m", "sae": "seed0", "corpus": "words", "d_sae": latents.shape[1]} | tokens
        compared = np.ones(n, dtype=bool) if compared is None else compared
        save_shard(paths[1], rows.indptr, rows.indices, rows.data, positions, compared, header)
        return paths

    return write


def test_blocks_of_eight_rows_go_to_the_folds_in_turn():
    # With 2 tokens in a row, rows 0 to 15 are 32 tokens to fit on, rows 16 to 23 are 16 to tune on, and so on.
    assert folds(np.arange(80), 2).tolist() == [FIT] * 32 + [TUNE] * 16 + [TEST] * 16 + [FIT] * 16
    # A token is in the fold of its row whichever tokens are masked out.
    assert folds(np.array([63, 64, 95, 96, 127, 128]), 4).tolist() == [FIT, TUNE, TUNE, TEST, TEST, FIT]


def test_a_readout_by_hand():
    # Fit: mean x 1, mean y 2, C = 1, c = 2, so with a penalty of 1 x C, w = 2 / (1 + 1) and the guess is 2 + (x - 1).
    # Test: guesses 1, 3, 5 for 1, 2, 6. SSE = 0 + 1 + 1, SST = 4 + 1 + 9 about 3, R^2 = 1 - 2 / 14.
    fit = sums_of(np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]]))
    test = sums_of(np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [6.0]]))
    r2, penalty = ridge_r2(fit, fit, test, penalties=[1.0], min_test_firings=1)
    assert r2.tolist() == pytest.approx([6 / 7])
    assert penalty.tolist() == [1]


def test_readouts_equal_direct_ridge_regressions():
    acts, latents = drawn()
    for penalty in (1e-3, 0.5):
        r2, _ = ridge_r2(*three_folds(acts, latents), penalties=[penalty])
        for latent in range(3):
            errors, deviations = direct_errors(acts, latents[:, latent], slice(0, 200), slice(300, 400), penalty)
            assert r2[latent] == pytest.approx(1 - (errors**2).sum() / (deviations**2).sum(), rel=1e-9)


def test_without_a_penalty_readouts_are_least_squares():
    acts, latents = drawn()
    r2, _ = ridge_r2(*three_folds(acts, latents), penalties=[0.0])
    with_one = np.column_stack([acts, np.ones(len(acts))])
    weights = np.linalg.lstsq(with_one[:200], latents[:200])[0]
    errors, deviations = latents[300:] - with_one[300:] @ weights, latents[300:] - latents[300:].mean(0)
    assert r2 == pytest.approx(1 - (errors**2).sum(0) / (deviations**2).sum(0), rel=1e-9)


def test_each_feature_takes_the_penalty_that_does_best_on_the_fold_to_tune_on():
    acts, latents = drawn(n=60)
    latents[:, 2] = np.random.default_rng(1).random(60)  # unrelated: the larger the penalty the better
    latents[:, 1] = acts[:, 0] + 20  # exact: the smaller the penalty the better
    grid = [1e-4, 0.1, 0.4, 1.0, 100.0]
    r2, penalty = ridge_r2(*three_folds(acts, latents), penalties=grid)
    for latent in range(3):
        tuned = [direct_errors(acts, latents[:, latent], slice(0, 30), slice(30, 45), p)[0] for p in grid]
        best = grid[int(np.argmin([(errors**2).sum() for errors in tuned]))]
        errors, deviations = direct_errors(acts, latents[:, latent], slice(0, 30), slice(45, 60), best)
        assert (penalty[latent], r2[latent]) == (best, pytest.approx(1 - (errors**2).sum() / (deviations**2).sum()))
    assert (penalty[1], penalty[2]) == (grid[0], grid[-1])


def test_a_linear_function_of_the_child_is_read_from_it_and_not_from_an_unrelated_parent(write_pair):
    random = np.random.default_rng(0)
    child, parent = random.normal(size=(2, 1280, 4)).astype(np.float32)
    linear = 9 + child @ np.array([1.0, -1.0, 0.5, 0.0])
    unrelated = random.random(1280)
    latents = np.column_stack([linear, unrelated]).astype(np.float32)
    child_acts, features = write_pair(child, latents)
    parent_acts, _ = write_pair(parent, latents, "parent")
    table = read_out([parent_acts], [child_acts], [features])
    assert table.columns.tolist() == [
        "latent",
        "r2_other",
        "r2_own",
        "n_test_firings",
        "penalty_other",
        "penalty_own",
    ]
    assert table["latent"].tolist() == [0, 1]
    assert table["r2_other"][0] == pytest.approx(1, abs=1e-9)
    assert table[["r2_other", "r2_own"]].to_numpy()[[1, 0, 1], [0, 1, 1]] == pytest.approx(0, abs=0.05)
    assert table["n_test_firings"].tolist() == [1280 // 4] * 2
    # An exact readout takes the least penalty.
    assert table["penalty_other"][0] == min(readouts.PENALTIES)


def test_activations_far_from_zero_are_read_equally_well():
    acts, latents = drawn()
    near, far = (ridge_r2(*three_folds(acts + shift, latents))[0] for shift in (0.0, 1e4))
    assert far == pytest.approx(near, rel=1e-6)


def test_features_without_variance_or_firings_have_no_readout():
    acts, _ = drawn(n=80, d_in=2)
    latents = np.zeros((80, 7))
    latents[::3, 0] = 1.0  # fires in every fold
    latents[:, 2] = 0.1  # constant
    latents[40::3, 3] = 1.0  # not in the fold to fit on
    latents[:60:3, 4] = 1.0  # not in the fold to test on
    latents[:62:3, 5] = 1.0  # on one token of the fold to test on
    latents[::3, 6] = 1.0
    latents[40:60, 6] = 0.0  # not in the fold to tune on
    r2, penalty = ridge_r2(*three_folds(acts, latents), min_test_firings=2)
    assert np.flatnonzero(np.isfinite(r2)).tolist() == np.flatnonzero(np.isfinite(penalty)).tolist() == [0]
    r2, _ = ridge_r2(*three_folds(acts, latents), min_test_firings=1)
    assert np.flatnonzero(np.isfinite(r2)).tolist() == [0, 5]


def test_rounding_is_not_variance():
    # Sums of squares of such numbers differ from n times the mean's square in their last digits.
    acts, _ = drawn(n=400, d_in=2)
    constant = np.tile(np.random.default_rng(0).random(30), (400, 1))
    assert np.isnan(ridge_r2(*three_folds(acts, constant))[0]).all()
    with pytest.raises(InputError, match="activations must vary"):
        ridge_r2(*three_folds(np.full((400, 2), 0.1), drawn()[1]))


def test_sums_over_shards_and_chunks_are_those_over_all_tokens(write_pair, monkeypatch):
    acts, latents = (array.astype(np.float32) for array in drawn(n=64 * N_CTX))
    whole = fold_sums(*([path] for path in write_pair(acts, latents)))
    cut = 21 * N_CTX
    shards = [write_pair(acts[:cut], latents[:cut], "1"), write_pair(acts[cut:], latents[cut:], "2", first_row=21)]
    monkeypatch.setattr(readouts, "CHUNK_TOKENS", 50)
    parts = fold_sums(*zip(*shards, strict=True))
    fold = folds(np.arange(len(acts)), N_CTX)
    for number in (FIT, TUNE, TEST):
        x, y = acts[fold == number].astype(float), latents[fold == number].astype(float)
        for sums in (whole[number], parts[number]):
            assert sums.n == len(x)
            assert sums.firings.tolist() == (y > 0).sum(0).tolist()
            expected = {"x": x.sum(0), "xx": x.T @ x, "y": y.sum(0), "yy": (y**2).sum(0), "yx": y.T @ x}
            for name, value in expected.items():
                assert getattr(sums, name).numpy() == pytest.approx(value, rel=1e-12)


def test_blocks_of_features_change_nothing(monkeypatch):
    whole = ridge_r2(*three_folds(*drawn()))
    monkeypatch.setattr(readouts, "BLOCK_LATENTS", 2)
    blocks = ridge_r2(*three_folds(*drawn()))
    assert blocks[0] == pytest.approx(whole[0], rel=1e-12)
    assert blocks[1].tolist() == whole[1].tolist()


def test_tokens_of_float16_are_summed_in_float64(write_pair):
    # 2049 is not a float16, and 3 x 2048^2 is beyond its range.
    acts = np.full((32 * N_CTX, 1), 2048, dtype=np.float16)
    acts[::2] = 1
    test = fold_sums(*([path] for path in write_pair(acts, np.ones((32 * N_CTX, 1), dtype=np.float32))))[TEST]
    assert (test.x.item(), test.xx.item()) == (16 * 2049, 16 * (1 + 2048**2))


def test_tokens_that_are_not_compared_are_left_out(write_pair):
    acts, latents = (array.astype(np.float32) for array in drawn(n=64 * N_CTX))
    compared = np.arange(len(acts)) % 7 > 0
    fires = latents > 0
    acts[~compared] *= 1e3
    path_to_acts, features = write_pair(acts, latents, compared=compared)
    table = read_out([path_to_acts], [path_to_acts], [features])
    fold = folds(np.arange(len(acts)), N_CTX)
    inside = [np.flatnonzero((fold == number) & compared) for number in (FIT, TUNE, TEST)]
    r2, _ = ridge_r2(*(sums_of(acts[part], latents[part]) for part in inside))
    assert table["r2_other"].to_numpy() == pytest.approx(r2, rel=1e-9)
    assert table["n_test_firings"].tolist() == fires[inside[TEST]].sum(0).tolist()
    assert (table["n_test_firings"] < fires[fold == TEST].sum(0)).all()


def test_tokens_that_the_child_does_not_share_are_left_out_of_its_readout(write_pair):
    acts, latents = (array.astype(np.float32) for array in drawn(n=64 * N_CTX))
    shared = np.arange(len(acts)) % 7 > 0
    parent, features = write_pair(acts, latents)
    child, _ = write_pair(np.where(shared[:, None], acts, 1e3).astype(np.float32), latents, "child", shared=shared)
    table = read_out([parent], [child], [features])
    fold = folds(np.arange(len(acts)), N_CTX)
    inside = [np.flatnonzero((fold == number) & shared) for number in (FIT, TUNE, TEST)]
    r2, _ = ridge_r2(*(sums_of(acts[part], latents[part]) for part in inside))
    assert table["r2_other"].to_numpy() == pytest.approx(r2, rel=1e-9)


def test_activations_and_features_of_different_tokens_are_refused(write_pair, tmp_path):
    acts, latents = (array.astype(np.float32) for array in drawn(n=32 * N_CTX))
    path_to_acts, features = write_pair(acts, latents)
    for change in ({"digest": "1"}, {"first_row": 32}):
        _, changed = write_pair(acts, latents, "changed", **change)
        with pytest.raises(InputError, match=r"acts-0.safetensors.*features-changed.safetensors.*delete both"):
            read_out([path_to_acts], [path_to_acts], [changed])
    header = {"ids_sha256": "0", "first_row": 0, "stop_row": 32, "n_ctx": N_CTX}
    tensors = {"acts": torch.from_numpy(acts), "positions": torch.arange(len(acts)).flip(0)}
    save_file(tensors, tmp_path / "flipped.safetensors", metadata=encode_header(header))
    with pytest.raises(InputError, match=r"flipped.safetensors.*features-0.safetensors"):
        read_out([path_to_acts], [tmp_path / "flipped.safetensors"], [features])


def test_lists_of_different_lengths_and_too_few_rows_are_refused(write_pair):
    acts, latents = (array.astype(np.float32) for array in drawn(n=32 * N_CTX))
    path_to_acts, features = write_pair(acts, latents)
    with pytest.raises(InputError, match="got 1 and 2"):
        fold_sums([path_to_acts, path_to_acts], [features])
    with pytest.raises(InputError, match="got 0 and 0"):
        fold_sums([], [])
    short = write_pair(acts[: 24 * N_CTX], latents[: 24 * N_CTX], "short")
    with pytest.raises(InputError, match=r"\[64, 32, 0\] to fit, tune and test on; .* 32 token rows"):
        fold_sums(*([path] for path in short))


def test_products_with_latents_are_the_same_by_torch():
    acts, latents = drawn()
    sparse = scipy.sparse.csr_array(latents)
    expected = latents.T @ acts
    for found in (
        readouts.products(sparse, torch.from_numpy(acts)),
        readouts.products_by_latent(sparse, torch.from_numpy(acts)),
    ):
        assert found.numpy() == pytest.approx(expected, rel=1e-12)
    nothing = scipy.sparse.csr_array(latents.shape)
    assert not readouts.products_by_latent(nothing, torch.from_numpy(acts)).any()
