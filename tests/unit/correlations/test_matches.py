"""What is kept of the similarities of all pairs, and its file."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from safetensors.numpy import load_file, save_file

from saelineage.correlations.match_finder import MatchFinder, parts
from saelineage.correlations.matches import (
    Combined,
    Correlation,
    Matches,
    correlation_group,
    load_correlation,
    match_tensors,
    matches_of_tensors,
    most_arrays,
)
from saelineage.errors import InputError
from saelineage.files.tensors import writing_groups
from tests.unit.correlations.groups import save_correlation

# Row 0 is equally like columns 1 and 2, column 1 equally like rows 0 and 1; row 2 is undefined.
TOY = np.array([[0.2, 0.7, 0.7, -1.0], [1.0, 0.7, 0.3, 0.1], [np.nan, np.nan, np.nan, np.nan]])
SETTINGS = {"top_matches": 2, "keep_above": 0.3, "n_bins": 4}


def found_in(similarities: np.ndarray, block_rows: int = 1000, **changes: float) -> Matches:
    finder = MatchFinder(similarities.shape, **SETTINGS | changes)
    for first in range(0, len(similarities), block_rows):
        finder.offer(first, similarities[first : first + block_rows])
    return finder.result()


def assert_same(one: Matches, other: Matches) -> None:
    """Equal to the last bit."""
    assert one.kept.shape == other.kept.shape
    mine, theirs = match_tensors(one, "r"), match_tensors(other, "r")
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype, name
        assert np.array_equal(array, theirs[name], equal_nan=array.dtype.kind == "f"), name


def test_best_matches_by_hand():
    found = found_in(TOY)
    assert found.partners[0].tolist() == [[1, 2], [0, 1], [-1, -1]]
    assert np.array_equal(found.best[0], [[0.7, 0.7], [1.0, 0.7], [np.nan, np.nan]], equal_nan=True)
    assert found.partners[1].tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert found.best[1].tolist() == [[1.0, 0.2], [0.7, 0.7], [0.7, 0.3], [0.1, -1.0]]


def test_where_there_are_less_partners_than_asked_for_the_rest_is_empty():
    found = found_in(TOY, top_matches=6)
    assert found.partners[0][0].tolist() == [1, 2, 0, 3, -1, -1]
    assert np.isnan(found.best[0][0, 4:]).all()
    assert found.partners[1][3].tolist() == [1, 0, -1, -1, -1, -1]


@pytest.mark.parametrize(("block_rows", "threads"), [(1000, 1), (7, 3)])
def test_of_equal_similarities_the_lower_latents_come_first(block_rows, threads):
    # Four values only, so that ties are everywhere; a stable descending sort has the lower index first.
    similarities = np.random.default_rng(0).integers(0, 4, (20, 30)) / 4
    found = found_in(similarities, block_rows, top_matches=9, threads=threads)
    assert np.array_equal(found.partners[0], np.argsort(-similarities, axis=1, kind="stable")[:, :9])
    assert np.array_equal(found.partners[1], np.argsort(-similarities.T, axis=1, kind="stable")[:, :9])


def test_similarities_at_or_above_the_floor_are_kept_and_no_others():
    kept = found_in(TOY, keep_above=0.3).kept
    assert kept.toarray().tolist() == [[0, 0.7, 0.7, 0], [1, 0.7, 0.3, 0], [0, 0, 0, 0]]
    assert kept.nnz == 5
    above = np.nextafter(0.3, 1)
    assert found_in(TOY, keep_above=above).kept.nnz == 4
    assert found_in(TOY, keep_above=1.0).kept.toarray().tolist() == [[0] * 4, [1, 0, 0, 0], [0] * 4]


def test_nothing_above_the_floor_is_an_empty_matrix():
    kept = found_in(TOY[:1], keep_above=0.9).kept
    assert (kept.shape, kept.nnz) == ((1, 4), 0)


def test_the_histogram_counts_by_hand():
    # Bins from -1, -0.5, 0 and 0.5: one (-1), none, three (0.2, 0.3, 0.1), four (three 0.7, and 1 itself).
    found = found_in(TOY)
    assert found.histogram.tolist() == [1, 0, 3, 4]
    assert found.n_undefined == 4


@pytest.mark.parametrize("n_bins", [1, 7, 200])
def test_the_histogram_is_numpy_s_even_for_values_on_the_edges_of_bins(n_bins):
    edges = np.linspace(-1, 1, n_bins + 1)
    beside = [
        np.nextafter(edges, -2),
        edges,
        np.nextafter(edges, 2),
        np.random.default_rng(0).uniform(-1, 1, n_bins + 1),
    ]
    values = np.clip(np.stack(beside), -1, 1)
    found = found_in(values, n_bins=n_bins)
    assert np.array_equal(found.histogram, np.histogram(values, bins=n_bins, range=(-1, 1))[0])
    assert np.array_equal(found.histogram, np.histogram(values, bins=edges)[0])


@pytest.fixture(scope="module")
def similarities() -> np.ndarray:
    """Some with ties, some undefined."""
    random = np.random.default_rng(1)
    found = random.uniform(-1, 1, (40, 23)).round(1)
    found[random.random(found.shape) < 0.1] = np.nan
    found[:, 5] = np.nan
    return found


@pytest.mark.parametrize(("block_rows", "threads"), [(1, 1), (3, 2), (16, 64)])
def test_neither_blocks_nor_threads_change_a_bit(similarities, block_rows, threads):
    assert_same(found_in(similarities, block_rows, threads=threads), found_in(similarities))


def test_pairs_without_a_similarity_are_counted_and_not_matched(similarities):
    found = found_in(similarities)
    assert found.n_undefined == np.isnan(similarities).sum()
    assert found.histogram.sum() == similarities.size - found.n_undefined
    assert (found.partners[1][5] == -1).all()
    assert not (found.partners[0] == 5).any()
    assert np.array_equal(found.best[0][:, 0], np.nanmax(similarities, axis=1))


def test_parts_cover_everything_once_and_none_is_empty():
    for n, threads in ((10, 3), (3, 10), (1, 1), (0, 4), (16, 16)):
        ranges = parts(n, threads)
        assert [place for start, stop in ranges for place in range(start, stop)] == list(range(n))
        assert len(ranges) == min(n, threads)
        lengths = [stop - start for start, stop in ranges]
        assert max(lengths, default=0) - min(lengths, default=0) <= 1


def test_matches_survive_the_round_trip_through_named_arrays(similarities):
    matches = found_in(similarities)
    assert_same(matches_of_tensors(match_tensors(matches, "r"), "r"), matches)


def correlation(*corpora: str) -> Correlation:
    """A correlation with every optional part but splits. Matches of each kind differ a little."""
    by_corpus = {corpus: found_in(TOY / (2 + place)) for place, corpus in enumerate(corpora)}
    pooled = found_in(TOY) if len(corpora) > 1 else by_corpus[corpora[0]]
    return Correlation(
        names=("a.seed0", "b.seed0"),
        n_tokens={corpus: 10 + place for place, corpus in enumerate(corpora)},
        firings=(np.arange(3 * len(corpora)).reshape(-1, 3), np.arange(4 * len(corpora)).reshape(-1, 4)),
        testable=(np.array([True, True, False]), np.ones(4, dtype=bool)),
        pearson=pooled,
        by_corpus=by_corpus,
        one_to_one=np.array([1, 0, -1]),
        jaccard=found_in(np.abs(TOY)),
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("corpora", [("words",), ("jaccard", "lua", "words")], ids=len)
def test_a_correlation_survives_a_round_trip(tmp_path, corpora):
    found = correlation(*corpora)
    loaded = load_correlation(save_correlation(found, tmp_path / "correlations.safetensors"), "b.seed0")
    assert (loaded.names, loaded.n_tokens, loaded.corpora) == (found.names, found.n_tokens, list(corpora))
    for part in ("firings", "testable"):
        for mine, theirs in zip(getattr(loaded, part), getattr(found, part), strict=True):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
    assert np.array_equal(loaded.one_to_one, found.one_to_one)
    assert_same(loaded.pearson, found.pearson)
    assert_same(loaded.jaccard, found.jaccard)
    assert loaded.combined is None
    assert list(loaded.by_corpus) == list(corpora)
    for corpus in corpora:
        assert_same(loaded.by_corpus[corpus], found.by_corpus[corpus])


def test_without_r_by_corpus_and_the_jaccard_index_none_is_read(tmp_path):
    found = correlation("lua", "words")._replace(by_corpus={}, jaccard=None)
    loaded = load_correlation(save_correlation(found, tmp_path / "correlations.safetensors"), "b.seed0")
    assert (loaded.by_corpus, loaded.jaccard, loaded.corpora) == ({}, None, ["lua", "words"])
    assert_same(loaded.pearson, found.pearson)


def test_splits_and_merges_survive_a_round_trip(tmp_path):
    nan = float("nan")
    r, whole_of = (np.array([0.9, nan, nan]), np.full(4, nan)), (np.full(3, -1), np.array([0, -1, -1, 0]))
    found = correlation("words")._replace(combined=Combined(r, whole_of))
    loaded = load_correlation(save_correlation(found, tmp_path / "correlations.safetensors"), "b.seed0").combined
    assert loaded is not None
    for mine, theirs in zip((*loaded.r, *loaded.whole_of), (*r, *whole_of), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_equal_correlations_are_equal_bytes(tmp_path):
    first, second = (save_correlation(correlation("lua", "words"), tmp_path / name) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_density_is_the_share_of_all_tokens():
    # Two corpora of 10 and 11 tokens; feature 2 of side a fires 2 and 5 times.
    assert correlation("lua", "words").density(0)[2] == pytest.approx(7 / 21)


@pytest.fixture
def saved(tmp_path):
    return save_correlation(correlation("lua", "words"), tmp_path / "correlations.safetensors")


def refused(path: Path, partner: str = "b.seed0") -> str:
    """The message about a file that cannot be read."""
    with pytest.raises(InputError, match=rf"{path.name}' .*'{partner}'.*delete it and run again") as caught:
        load_correlation(path, partner)
    return str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for n_bytes in (0, 7, 100, -1):
        saved.write_bytes(whole[:n_bytes])
        refused(saved)


def test_any_damaged_byte_is_refused(saved):
    whole = saved.read_bytes()
    room = int.from_bytes(whole[:8], "little")
    used = len(whole[: 8 + room].rstrip())
    for place in [*range(0, used, 31), *range(8 + room, len(whole), 7), len(whole) - 1]:
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refused(saved)


def test_other_files_and_partners_are_refused(saved, tmp_path):
    assert "c.seed0" in refused(saved, "c.seed0")
    save_file(load_file(saved), saved)
    refused(saved)
    refused(tmp_path / "nowhere")


def test_what_is_kept_is_a_sparse_array_in_order(similarities):
    kept = found_in(similarities, 7, threads=3).kept
    assert isinstance(kept, scipy.sparse.csr_array)
    assert kept.has_canonical_format
    assert np.array_equal(kept.toarray(), np.where(np.nan_to_num(similarities) >= 0.3, similarities, 0))


def test_many_corpora_with_every_measure_fit_into_the_file(tmp_path: Path):
    corpora = [f"corpus-{number:02}-" + "x" * 40 for number in range(20)]
    combined = Combined(r=(np.zeros(3), np.zeros(4)), whole_of=(np.zeros(3, dtype=int), np.zeros(4, dtype=int)))
    sums = dict.fromkeys(("totals", "squares"), (np.zeros(3), np.zeros(4)))
    written = correlation(*corpora)._replace(names=("a.seed0", "m" * 150 + ".seed0"), combined=combined, **sums)
    header, arrays = correlation_group(written)
    assert len(arrays) == most_arrays(len(corpora))
    with writing_groups(tmp_path / "groups", 1, most_arrays(len(corpora))) as groups:
        groups.add(written.names[1], header, arrays)
    loaded = load_correlation(tmp_path / "groups", written.names[1])
    assert list(loaded.by_corpus) == corpora


def test_sums_of_features_are_kept_if_there_are_any(tmp_path: Path):
    written = correlation("words")._replace(totals=(np.arange(3.0), np.arange(4.0)))
    loaded = load_correlation(save_correlation(written, tmp_path / "file"), written.names[1])
    assert [of_side.tolist() for of_side in loaded.totals] == [[0, 1, 2], [0, 1, 2, 3]]
    assert loaded.squares is None
