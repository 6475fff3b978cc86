"""Lost features that return in a child trained on its parent's corpora, beside the two controls."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.revivals import figures, only_revived, revivals, sign_test
from saelineage.lineage.shares import share
from saelineage.lineage.twins import Found

VERDICTS = {"P": "persists", "D": "drifted", "R": "drifted", "G": "gone", "H": "gone", "U": "untestable"}
"""`R` is found in another direction; `H` is gone for sure."""
FOUND_IN_CHILD = "PR"


def edge(parent: str, n_child: int = 0) -> pd.DataFrame:
    """An edge's table with a letter for each feature of the parent."""
    child = pd.DataFrame(
        {
            "side": "child",
            "latent": range(n_child),
            "study_verdict": "emerges",
            "verdict": "new",
            "headline": True,
        }
    )
    of_parent = pd.DataFrame(
        {
            "side": "parent",
            "latent": range(len(parent)),
            "study_verdict": ["persists" if letter in FOUND_IN_CHILD else "disappears" for letter in parent],
            "verdict": [VERDICTS[letter] for letter in parent],
            "headline": [letter == "H" for letter in parent],
        }
    )
    return pd.concat([of_parent, child], ignore_index=True)


def found(marks: str) -> Found:
    """`+` is found, `-` is not, `?` is untestable."""
    marked = np.array(list(marks))
    return Found(marked != "?", marked == "+")


TABLE = edge("PPRDGGHHH")
FOUND = {"revived": found("+++++-+++"), "continued": found("+-+-+-+--"), "unchanged": found("-++-+--?-")}


def rows_of(group: str, kind: str) -> dict:
    (row,) = (row for row in figures(TABLE, FOUND) if (row["group"], row["kind"]) == (group, kind))
    return row


def test_returned_is_the_share_of_lost_features_that_are_testable_everywhere_and_found_there():
    # Gone are five; the fourth of them cannot be told in the unchanged child, which leaves four.
    returned = {kind: rows_of("gone", kind)["returned"] for kind in FOUND}
    assert returned == {"revived": 3 / 4, "continued": 2 / 4, "unchanged": 1 / 4}
    row = rows_of("gone", "revived")
    assert (row["returned_n"], row["returned_interval"]) == (4, list(share(3, 4).interval))
    # For sure are two of them, of which the revived model has both, and the continued one has one.
    assert [rows_of("headline", kind)["returned"] for kind in FOUND] == [1.0, 0.5, 0.0]


def test_what_is_found_in_the_child_cannot_return():
    row = rows_of("drifted", "revived")
    assert (row["returned"], row["returned_n"], row["latents"]) == (1.0, 1, [3])


def test_kept_is_the_share_of_persisting_features_that_is_found_there_too():
    kept = {kind: (rows_of("gone", kind)["kept"], rows_of("gone", kind)["kept_n"]) for kind in FOUND}
    assert kept == {"revived": (1.0, 2), "continued": (0.5, 2), "unchanged": (0.5, 2)}


def test_the_revived_model_is_paired_with_the_continued_one():
    row = rows_of("gone", "revived")
    assert (row["beyond"], row["short"], row["p"]) == (1, 0, 1.0)
    assert row["latents"] == [8]  # latent 7 is untestable in a control, and the others are found in one
    assert "p" not in rows_of("gone", "continued")


def test_only_features_that_no_control_has_are_of_the_revived_model_alone():
    assert only_revived(FOUND).tolist() == [False, False, False, True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (3, 1, 10 / 16), (4, 4, 1.0)]
)
def test_the_sign_test_is_the_exact_binomial_one(one: int, other: int, p: float):
    assert sign_test(one, other) == p


def test_the_sign_test_takes_thousands_of_features():
    assert 0 < sign_test(2000, 1800) < 0.01


def test_a_table_names_the_revived_models_in_which_a_lost_feature_returns(monkeypatch: pytest.MonkeyPatch):
    of_pairs = {"r1": "++--+", "c1": "+-+--", "u": "+----", "r2": "++--+", "c2": "+----"}
    pairs = {
        "back": {"revived": "r1", "continued": "c1", "unchanged": "u"},
        "longer": {"revived": "r2", "continued": "c2", "unchanged": "u"},
    }
    module = "saelineage.lineage.revivals.found_in"
    monkeypatch.setattr(module, lambda correlation, name, threshold: found(of_pairs[correlation]))
    table, rows = revivals(
        edge("PGGDD", n_child=2), "base.seed0", pairs, lambda pair: type("Pair", (), {"correlation": pair}), 0.7
    )
    assert table["returns_in"].tolist() == ["", "back, longer", "", "", "back, longer", "", ""]
    assert {row["model"] for row in rows} == {"back", "longer"}
    assert len(rows) == 2 * 3 * 3
