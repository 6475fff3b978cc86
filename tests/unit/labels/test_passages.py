"""Passages that show what a feature fires on, on rows of six tokens that are written out here."""

import numpy as np
import pytest

from saelineage.errors import InputError
from saelineage.labels.annotations import Annotations
from saelineage.labels.passages import (
    TOKENS_AFTER,
    TOKENS_BEFORE,
    Peak,
    activations_in,
    choose_peaks,
    place_of,
    read_firings,
    require_same_tokens,
    strongest,
    windows,
)
from tests.annotated import annotated, firings, write_shards

ROWS = {
    # Tokens 0 to 11: document 0 goes on in the second row, document 1 follows there.
    "lua": [[None, "a", "b", "c", "d", "e"], [None, "f", None, "g", "h", "i"]],
    # Tokens 12 to 17: documents 2 and 3.
    "english": [[None, "a", "b", None, "x", "y"]],
}
LATENTS = [{3: 9.0, 10: 4.0, 16: 2.0}, {}, {1: 0.5, 13: 0.25}]
EIGHT = {"lua": [[None, "a", None, "b", None, "c", None, "d", None, "e", None, "f", None, "g", None, "h"]]}
"""Documents 0 to 7, of one token each: 1, 3, 5, ... 15."""


@pytest.fixture
def probe() -> Annotations:
    return annotated(ROWS)


def test_shards_of_all_corpora_are_read_in_the_annotations_numbers(probe, tmp_path):
    paths = write_shards(tmp_path / "base/seed0", probe, LATENTS)
    for order in (paths, paths[::-1]):
        sae = read_firings(order, probe)
        assert sae.columns.shape == (18, 3)
        for latent, expected in enumerate(LATENTS):
            tokens, values = sae.of(latent)
            assert dict(zip(tokens.tolist(), values.tolist(), strict=True)) == expected
            assert tokens.tolist() == sorted(tokens)
        assert sae.largest.tolist() == [9.0, 0.0, 0.5]


def test_latents_that_are_not_asked_for_stay_empty(probe, tmp_path):
    sae = read_firings(write_shards(tmp_path / "base/seed0", probe, LATENTS), probe, [2])
    assert sae.columns.shape == (18, 3)
    assert sae.largest.tolist() == [0.0, 0.0, 0.5]
    assert sae.of(2)[0].tolist() == [1, 13]


def test_missing_shards_and_shards_of_unknown_corpora_are_refused(probe, tmp_path):
    with pytest.raises(InputError, match=r"at least one feature shard.*features/"):
        read_firings([], probe)
    paths = write_shards(tmp_path / "base/seed0", probe, LATENTS)
    with pytest.raises(InputError, match=r"english.*'lua'.*delete labels/probe"):
        read_firings(paths, annotated({"english": ROWS["english"]}))


def test_saes_read_on_other_tokens_are_refused_with_both_names(probe, tmp_path):
    whole = read_firings(write_shards(tmp_path / "base/seed0", probe, LATENTS), probe)
    part = read_firings(write_shards(tmp_path / "lua/seed0", probe, LATENTS)[:1], probe)
    require_same_tokens({"base.seed0": whole, "base.seed1": whole})
    with pytest.raises(InputError, match=r"base\.seed0 and lua\.seed0 .*delete both under features/"):
        require_same_tokens({"base.seed0": whole, "base.seed1": whole, "lua.seed0": part})


def test_the_strongest_firings_are_one_per_document(probe):
    tokens, values = np.array([1, 2, 9, 10, 13]), np.array([2.0, 8.0, 5.0, 4.0, 6.0])
    # Document 0 has 1 and 2, document 1 has 9 and 10, document 2 has 13.
    assert strongest(tokens, values, probe.documents, 5).tolist() == [2, 13, 9]
    assert strongest(tokens, values, probe.documents, 2).tolist() == [2, 13]
    # On a tie the earlier comes first.
    assert strongest(np.array([1, 2, 9, 13]), np.ones(4), probe.documents, 3).tolist() == [1, 9, 13]
    # Document 0 goes on in the next row.
    assert strongest(np.array([1, 7]), np.array([1.0, 2.0]), probe.documents, 2).tolist() == [7]
    assert strongest(*firings(probe, {}).of(0), probe.documents, 3).tolist() == []


def test_peaks_are_the_strongest_and_those_at_quantiles():
    probe = annotated(EIGHT)
    # By strength: 15 (1.0), 13 (2.0), ..., 5 (6.0), 3 (7.0), 1 (8.0).
    feature = firings(probe, {token: (17 - token) / 2 for token in range(1, 16, 2)}).of(0)
    # Of 8 firings a quantile q is number floor(7 q), the weakest is number 0.
    assert choose_peaks(*feature, probe, 2, (0.25, 0.5, 0.75)) == [
        Peak(1, "top"),
        Peak(3, "top"),
        Peak(13, "quantile 0.25"),
        Peak(9, "quantile 0.5"),
        Peak(5, "quantile 0.75"),
    ]


def test_a_quantile_whose_document_is_shown_is_passed_over():
    probe = annotated(EIGHT)
    feature = firings(probe, {1: 3.0, 3: 2.0, 5: 1.0}).of(0)
    # Both quantiles are number floor(0.5 * 2) = floor(0.6 * 2) = 1, token 3.
    assert choose_peaks(*feature, probe, 1, (0.5, 0.6)) == [Peak(1, "top"), Peak(3, "quantile 0.5")]
    assert choose_peaks(*feature, probe, 3, (0.5,)) == [Peak(1, "top"), Peak(3, "top"), Peak(5, "top")]


def test_quantiles_of_one_firing_add_nothing_and_of_none_there_are_none():
    probe = annotated(EIGHT)
    assert choose_peaks(*firings(probe, {5: 1.0}).of(0), probe, 3, (0.1, 0.9)) == [Peak(5, "top")]
    assert choose_peaks(*firings(probe, {}).of(0), probe, 3, (0.1, 0.9)) == []


def test_windows_end_with_row_and_document(probe):
    # 3 lies in the first row; 7 continues its document but not its row; EOS is at 8 and 15.
    assert windows([3, 7, 10, 14, 17], probe) == [
        *(range(1, 6), range(7, 8), range(9, 12), range(13, 15), range(16, 18))
    ]
    long_row = annotated({"lua": [[None, *map(str, range(63))]]})
    assert windows([30], long_row) == [range(30 - TOKENS_BEFORE, 30 + TOKENS_AFTER + 1)]


def test_activations_in_stretches_are_counted_from_their_first_token(probe):
    tokens, values = np.array([2, 3, 6, 9]), np.array([0.5, 1.0, 2.0, 4.0])
    shown = [range(3, 6), range(2, 7), range(7, 9), range(6, 10)]
    assert activations_in(shown, tokens, values) == [
        ([0], [1.0]),
        ([0, 1, 4], [0.5, 1.0, 2.0]),
        ([], []),
        ([0, 3], [2.0, 4.0]),
    ]
    assert activations_in([range(1, 4)], *firings(probe, {}).of(0)) == [([], [])]


def test_a_token_has_a_corpus_a_row_and_a_place(probe):
    places = {0: ("lua", 0, 0), 11: ("lua", 1, 5), 12: ("english", 0, 0), 17: ("english", 0, 5)}
    assert {token: place_of(probe, token) for token in places} == places
