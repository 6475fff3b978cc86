"""The partners of an SAE and their shards."""

import numpy as np
import pytest

from saelineage.correlations.partners import Partner, partners_of


def test_every_partner_has_its_shards_next_to_those_of_side_a():
    partners = partners_of(["a0", "a1"], ["b0", "b1", "c0", "c1"], {"m.b": False, "m.c_shifted": True})
    assert partners == [
        Partner("m.b", False, [("a0", "b0"), ("a1", "b1")]),
        Partner("m.c_shifted", True, [("a0", "c0"), ("a1", "c1")]),
    ]


def test_shards_that_do_not_divide_among_the_partners_are_an_error():
    for shards_of_b in (["b0", "b1"], ["b0", "b1", "c0"], ["b0", "b1", "c0", "c1", "d0", "d1"]):
        with pytest.raises(ValueError, match="zip"):
            partners_of(["a0", "a1"], shards_of_b, {"m.b": False, "m.c": False})


def test_only_shards_of_a_shifted_null_are_shifted(write_features):
    # Two rows of two tokens, with an activation a token.
    latents = np.array([[1.0], [2], [3], [4]])
    a, b = (str(write_features(latents, name, model=name, n_ctx=2, stop_row=2).path) for name in "ab")
    for shift, expected in ((False, [1, 2, 3, 4]), (True, [3, 4, 1, 2])):
        ((shard_a, shard_b),) = Partner("b.seed0", shift, [(a, b)]).shards()
        assert shard_a.latents.toarray()[:, 0].tolist() == [1, 2, 3, 4]
        assert shard_b.latents.toarray()[:, 0].tolist() == expected
