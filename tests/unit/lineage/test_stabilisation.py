"""The no-change control of latents that were kept, and of those that started afresh."""

import numpy as np
import pytest

from saelineage.lineage.shares import Share, share
from saelineage.lineage.stabilisation import anchoring_agreement, stabilisation
from saelineage.saes.resets import reset_latents
from tests.unit.lineage.pairs import NAN, correlation, diagonal

NAMES = ("base.seed0", "base.reset_base")


def test_kept_and_reset_latents_have_shares_of_their_own():
    # The parent's features 0 and 1 were kept, and one of them is found; of 2 and 3, which were reset, one.
    control = correlation(diagonal(0.9, 0.5, 0.85, 0.2), NAMES)
    shares = stabilisation(control, np.array([2, 3]), 0.8)
    assert shares == {"kept": share(1, 2), "reset": share(1, 2)}


def test_a_reset_feature_counts_as_found_wherever_its_match_is():
    r = diagonal(0.9, 0.2, 0.2, 0.2)
    r[3][0] = 0.85  # feature 3 is found in latent 0
    assert stabilisation(correlation(r, NAMES), np.array([2, 3]), 0.8)["reset"] == share(1, 2)


def test_untestable_features_and_those_that_do_not_count_are_in_neither_share():
    control = correlation(diagonal(0.9, NAN, 0.85, 0.2), NAMES)
    assert stabilisation(control, np.array([2, 3]), 0.8)["kept"] == share(1, 1)
    among = np.array([False, True, True, False])
    shares = stabilisation(control, np.array([2, 3]), 0.8, among)
    assert shares == {"kept": Share(None, 0, None), "reset": share(1, 1)}


@pytest.mark.parametrize(("d_sae", "part", "n"), [(8, 0.5, 4), (7, 0.5, 4), (10, 0.01, 0), (100, 0.25, 25)])
def test_a_share_of_the_latents_is_reset_and_equal_seeds_draw_equal_ones(d_sae, part, n):
    latents = reset_latents(d_sae, part, seed=3)
    assert len(latents) == len(set(latents.tolist())) == n
    assert all(0 <= latent < d_sae for latent in latents)
    assert (latents == reset_latents(d_sae, part, seed=3)).all()
    assert (np.diff(latents) > 0).all()
    assert n in (0, 100) or n > 4 or (reset_latents(100, 0.5, 3) != reset_latents(100, 0.5, 4)).any()


def test_two_chains_agree_on_the_features_that_both_of_the_parent_s_saes_have():
    # Features 0, 1 and 2 of the parent's SAEs match; 1 is latent 2 of the second, and 2 is its latent 1.
    r = diagonal(0.9, 0.1, 0.1, 0.5)
    r[1][2] = r[2][1] = 0.85
    parents = correlation(r, ("base.seed0", "base.seed1"))
    first = correlation(diagonal(0.9, 0.5, 0.9, 0.9), ("base.seed0", "lua.from_base"))
    second = correlation(diagonal(0.9, 0.5, 0.2, 0.9), ("base.seed1", "lua.second_base"))
    # Found are 0 and 2 in the first chain; 0 alone in the second, for it lost latents 1 and 2.
    figures = anchoring_agreement(first, second, parents, 0.8)
    assert figures == {"n": 3, "share": pytest.approx(2 / 3), "kappa": pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))}


def test_where_the_parent_s_saes_share_no_feature_nothing_can_agree():
    edge = correlation(diagonal(0.9, 0.9, 0.9, 0.9), ("base.seed0", "lua.from_base"))
    parents = correlation(diagonal(0.5, 0.5, 0.5, NAN), ("base.seed0", "base.seed1"))
    figures = anchoring_agreement(edge, edge, parents, 0.8)
    assert figures["n"] == 0
    assert np.isnan([figures["share"], figures["kappa"]]).all()
