"""One partner for each feature."""

import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from saelineage.correlations.assignments import mutual_best, one_to_one
from saelineage.correlations.match_finder import MatchFinder


def matches(similarities: np.ndarray):
    finder = MatchFinder(similarities.shape, top_matches=2, keep_above=0.1, n_bins=10)
    finder.offer(0, similarities)
    return finder.result()


def test_best_partners_are_mutual_only_where_each_is_the_other_s_best():
    # 0 and 1 both like column 0 best, which likes 1; 2 likes column 2, which likes it; 3 has no similarity at all.
    found = matches(np.array([[0.6, 0.5, 0.0], [0.9, 0.2, 0.1], [0.0, 0.1, 0.3], [np.nan, np.nan, np.nan]]))
    assert mutual_best(found).tolist() == [-1, 0, 2, -1]


def test_the_assignment_has_the_largest_sum_not_the_largest_single_similarity():
    # Greedily 0.9 + 0.1 = 1.0; the best sum is 0.8 + 0.7 = 1.5.
    kept = scipy.sparse.csr_array(np.array([[0.9, 0.8], [0.7, 0.1]]))
    assert one_to_one(kept).tolist() == [1, 0]


def test_features_without_a_pair_stay_alone_and_no_two_share_a_partner():
    kept = scipy.sparse.csr_array(np.array([[0.5, 0, 0], [0.9, 0, 0], [0, 0, 0], [0, 0.2, 0.3]]))
    assert one_to_one(kept).tolist() == [-1, 0, -1, 2]


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(12, 12), (7, 15), (15, 7)])
def test_the_sum_is_that_of_the_dense_assignment(shape, density):
    random = np.random.default_rng(shape[0])
    dense = np.where(random.random(shape) < density, random.uniform(0.1, 1, shape), 0)
    partners = one_to_one(scipy.sparse.csr_array(dense))
    assigned = np.flatnonzero(partners >= 0)
    assert len(set(partners[assigned])) == len(assigned)
    assert (dense[assigned, partners[assigned]] > 0).all()
    rows, columns = linear_sum_assignment(dense, maximize=True)
    assert dense[assigned, partners[assigned]].sum() == pytest.approx(dense[rows, columns].sum())
