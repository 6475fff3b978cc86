"""How much changed comes first on the page, and says where it is too little for a verdict on losses."""

import numpy as np
import pytest

from saelineage.report.sentences import READINGS, SPACE, changes, moved
from saelineage.report.tables import HIDDEN, drift_table, intruder_table, reading, weight_table


def changed(drift: float | None = 0.5, kl: float = 0.25, unexplained: float | None = 0.125, **changes) -> dict:
    """What `measure_drift` writes of one corpus of an edge."""
    figures = {"kl": kl, "kl_reverse": 2 * kl, "n_predictions": 9, "drift": drift, "n_tokens": 8, "n_left_out": 1}
    figures |= {"fvu_parent": unexplained, "fvu_child": 0.0625, "unexplained": unexplained}
    return figures | {"visible": None if None in (drift, unexplained) else drift >= unexplained} | changes


def drift(*edges: tuple[str, str], **corpora: dict) -> dict:
    """`lineage/drift.json` of edges that changed alike; `pooled` may be among the corpora."""
    corpora = corpora or {"lua": changed()}
    weights = {"relative_change": 0.5, "n_weights": 6}
    layers = {"model.layers.0": weights, "lm_head": weights | {"relative_change": None}}
    entry = {"pooled": corpora.pop("pooled", changed()), "corpora": corpora}
    entry |= {"weights": {"all": weights, "layers": layers, "left_out": []}}
    return {"edges": [{"parent": parent, "child": child} | entry for parent, child in edges or [("base", "merged")]]}


def decomposed(parent: str = "base", child: str = "merged", **changes: object) -> dict:
    """What `decompose_changes` writes of an edge."""
    figures = {"n_matrices": 9, "relative_change": 0.25, "effective_rank_share": 0.5, "intruders": 3}
    figures |= {"subspace_energy": 0.125, "subspace_energy_if_random": 0.01, "with_intruders": 2}
    figures |= {"intruder_energy": 0.75, "intruder_energy_if_random": 0.0625, "left_out": []}
    return {"parent": parent, "child": child} | figures | changes


def test_edges_with_most_intruders_come_first_beside_their_new_features():
    def of_edge(parent: str, child: str, new: int, identified: bool = True) -> dict:
        counts = {"inherited": 5, "drifted": 1, "new": new, "untestable": 9, "headline": 1}
        return {
            "parent": parent,
            "child": child,
            "groups": {"identified": {"child": counts} if identified else None, "all": {"child": counts | {"new": 34}}},
        }

    edges = [("base", "lua"), ("base", "stories"), ("lua", "merged")]
    summary = {"edges": [of_edge(*edge, new=2, identified=edge[1] != "merged") for edge in edges]}
    found = [decomposed(*edge, intruders=n) for edge, n in zip(edges, (0, 7, 3), strict=True)]
    table = intruder_table(found, summary)
    assert table[["parent", "child", "intruders", "group", "new", "new_share_n"]].to_numpy().tolist() == [
        ["base", "stories", 7, "identified", 2, 8],
        ["lua", "merged", 3, "all", 34, 40],
        ["base", "lua", 0, "identified", 2, 8],
    ]
    assert table["new_share"].tolist() == [0.25, 0.85, 0.25]
    assert table["new_for_sure"].tolist() == [1, 1, 1]
    assert intruder_table([], summary).empty


def test_drift_has_a_row_for_each_corpus_and_one_over_all():
    table = drift_table(drift(("base", "left"), ("left", "merged"), lua=changed(0.25), english=changed(None)))
    assert table[["parent", "child", "corpus"]].to_numpy().tolist() == [
        [*edge, corpus] for edge in (("base", "left"), ("left", "merged")) for corpus in ("lua", "english", "pooled")
    ]
    assert table["drift"].tolist()[:3] == pytest.approx([0.25, np.nan, 0.5], nan_ok=True)
    assert table["visible"].tolist()[:3] == [True, None, True]
    assert table["kl_reverse"].tolist() == [0.5] * 6


def test_changed_weights_have_a_row_for_each_layer_and_one_over_all():
    table = weight_table(drift())
    assert table["layer"].tolist() == ["all", "model.layers.0", "lm_head"]
    assert table["relative_change"].tolist() == pytest.approx([0.5, 0.5, np.nan], nan_ok=True)


def change(**corpora: dict) -> str:
    """The sentences on an edge's change, with ordinary spaces."""
    (sentence,) = changes(drift_table(drift(**corpora)))
    return sentence.replace(SPACE, " ")


def test_the_size_of_the_change_is_given_where_predictions_changed_most():
    assert change(lua=changed(0.123, 0.4123, 0.081), english=changed(0.5, 0.0123)) == (
        "From base to merged the model changed most on lua: KL 0.41 nats per token; activations moved by 12.3 % of "
        "their variance there, beside 8.1 % that the SAEs leave unexplained."
    )
    assert "activations moved by 57.0 times their variance" in change(lua=changed(57.0))
    assert "KL 0.00031 nats" in change(lua=changed(0.5, 0.000312))


def test_how_far_a_child_moved_is_a_line_for_the_answer():
    lines = moved(drift_table(drift(pooled=changed(0.02, 0.5, 0.25))))
    (line, *_) = (line.replace(SPACE, " ") for line in lines.values())
    assert line.startswith("KL 0.50 nats per token, activations moved 2.0 %, SAEs leave 25.0 % unexplained: no losses")
    lines = moved(drift_table(drift(pooled=changed(0.5, 0.5, 0.25))))
    assert next(iter(lines.values())).endswith("unexplained")
    unknown = moved(drift_table(drift(pooled=changed(unexplained=None))))
    assert next(iter(unknown.values())).endswith("was not measured")
    assert moved(drift_table({})) == {}


def test_there_is_no_verdict_on_losses_where_the_model_moved_by_less_than_its_saes_leave_unexplained():
    stories = changed(0.005, 0.1, 0.25)
    one = change(lua=changed(0.3, 0.9, 0.25), stories=stories, pooled=changed(0.3, 0.5, 0.25))
    assert "No verdict on losses is possible on stories (0.5 % moved, 25.0 % unexplained): there the model" in one
    assert one.endswith("Only features that are lost for sure can be named there.")
    every = change(lua=changed(0.044, 0.9, 0.25), stories=stories, pooled=changed(0.02, 0.5, 0.25))
    assert (
        "possible on lua (4.4 % moved, 25.0 % unexplained), stories (0.5 % moved, 25.0 % unexplained) and all " in every
    )
    alone = change(stories=stories, pooled=stories)  # one corpus is named once
    assert "possible on stories (0.5 % moved, 25.0 % unexplained): there" in alone


def test_equal_models_changed_in_nothing_and_their_differences_are_noise():
    same = changed(0.0, 0.0, 0.25)
    found = change(lua=same, pooled=same)
    assert found.startswith("From base to merged nothing changed: the two models predict the same")
    assert "No verdict on losses is possible on lua (0.0 % moved, 25.0 % unexplained)" in found


def test_what_was_not_measured_of_a_change_is_said():
    assert change(lua=changed(None)).endswith("nats per token. The activations of the two models cannot be compared.")
    assert change(lua=changed(unexplained=None)).endswith("How much of it the SAEs explain was not measured.")
    assert changes(drift_table({})) == []


def test_an_edge_that_moved_too_little_is_not_read_whatever_its_shares():
    lost = {"persist_share": 0.5, "no_change_share": 0.9, "relative_persistence_interval": [0.4, 0.6]}
    assert READINGS[reading(lost)] == "below the no-change control"
    assert reading(lost, visible=True) == reading(lost, visible=None) == reading(lost)
    assert reading(lost, visible=False) == HIDDEN
    assert "no verdict on losses" in READINGS[HIDDEN]
    assert reading(lost | {"persist_share": None}, visible=False) != HIDDEN  # nothing is testable anyway
