"""The answer as text: what changed, the features to read first, and how far it can be read."""

from saelineage.report.answer_text import answer_text
from tests.unit.report.test_tables import comparison, summary


def feature(latent: int, label: str | None, **changes: object) -> dict:
    own = {"model": "merged", "latent": latent, "label": label}
    return {"members": [own], "headline": True, "identified": True, "match": 4, "match_r": 0.25} | changes


def test_the_answer_names_the_first_features_of_each_edge_and_the_controls():
    new = [feature(number, "token 'local'") for number in range(11)]
    gone = [feature(20, None, headline=False, match=None, match_r=None)]
    examples = {"changed": [{"parent": "base", "child": "merged", "new": new, "gone": gone}]}
    text = answer_text(summary(comparison()), examples, {("base", "merged"): "KL 0.5 nats"}, ["Beware."])
    lines = text.splitlines()
    assert lines[0] == "# tiny: what became of the features"
    assert "**base → merged**: of 4 identified features of base" in text
    assert "KL 0.5 nats." in lines
    assert [line for line in lines if line.startswith("- merged / ")][:1] == [
        "- merged / 0: `token 'local'` (sure, best match r 0.25)"
    ]
    assert sum(line.startswith("- merged / ") for line in lines) == 11  # ten new ones, one gone
    assert "- merged / 20: follows no known property (identified, no match)" in lines
    assert lines[-1] == "- Beware."
    assert text.index("that are new") < text.index("that are gone") < text.index("If nothing changes")


def test_labels_cannot_break_the_text():
    hostile = feature(1, "`](javascript:alert)\n# `\u202e")
    examples = {"changed": [{"parent": "base", "child": "merged", "new": [hostile], "gone": []}]}
    (line,) = (
        line for line in answer_text(summary(comparison()), examples, {}, []).splitlines() if "merged / 1" in line
    )
    assert line == "- merged / 1: `'](javascript:alert)↵# '\\u202e` (sure, best match r 0.25)"


def test_a_run_without_edges_has_an_answer():
    assert answer_text(summary(), {"changed": []}, {}, []).endswith("## How far this can be read\n\n")
