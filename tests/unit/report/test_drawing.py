"""The graph of jobs: jobs are joined by what they need, reduced, laid out and drawn."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from saelineage.report.drawing import Graph, arrange, job_graph, jobs_svg, rule_graph, rules_svg, without_shortcuts

SVG = "{http://www.w3.org/2000/svg}"


def job(number: int, rule: str, name: str = "", needs: tuple[int, ...] = (), stage: str = "models", **more) -> dict:
    return {"id": number, "rule": rule, "name": name, "needs": list(needs), "stage": stage, **more}


JOBS = [
    job(0, "read", "lua", stage="corpora"),
    job(1, "train", "lua", needs=(0,)),
    job(2, "train", "stories", needs=(0,)),
    job(3, "measure", "lua", needs=(1, 2)),
]
STATES = [
    job(0, "read", "lua", state="fresh", why=[]),
    job(1, "train", needs=(0,), state="stale", why=["its code <b>"]),
]


def chain_with_shortcut() -> Graph:
    return Graph([("a",), ("b",), ("c",)], [(0, 1), (1, 2), (0, 2)])


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(SVG + tag))  # noqa: S314


def texts(svg: str) -> list[str]:
    return [element.text for element in elements(svg, "text")]


def boxes(svg: str) -> dict[str, dict[str, str]]:
    return {group.get("data-job"): group.attrib for group in elements(svg, "g") if "data-job" in group.attrib}


def test_arrows_lead_from_a_job_to_those_that_need_it():
    assert job_graph(JOBS).arrows == [(0, 1), (0, 2), (1, 3), (2, 3)]
    rules, counts = rule_graph(job_graph(JOBS))
    assert dict(zip((label[0] for label in rules.labels), counts, strict=True)) == {"read": 1, "train": 2, "measure": 1}
    assert rules.arrows == [(0, 1), (1, 2)]


def test_an_arrow_that_a_longer_path_implies_is_left_out():
    assert without_shortcuts(chain_with_shortcut()).arrows == [(0, 1), (1, 2)]


def test_nodes_are_in_layers_and_long_arrows_bend_at_each_layer_they_cross():
    layout = arrange(chain_with_shortcut(), 10.0)
    assert layout.rank == [0, 1, 2]
    assert len(layout.bends[0, 2]) == 1
    labels = [(str(number),) for number in range(8)]
    layout = arrange(Graph(labels, [(0, number) for number in range(1, 8)]), 10.0)
    places = sorted(layout.place[1:])
    assert min(b - a for a, b in pairwise(places)) >= 10 - 1e-6  # no overlap


def test_a_cycle_is_refused_but_rules_whose_jobs_alternate_are_drawn():
    with pytest.raises(ValueError, match="cycle"):
        arrange(Graph([("a",), ("b",)], [(0, 1), (1, 0)]), 10.0)
    alternating = [job(0, "train"), job(1, "merge", needs=(0,)), job(2, "train", needs=(1,))]
    assert texts(rules_svg(alternating))[1:] == ["train", "2 jobs", "merge", "1 job"]


def test_a_picture_of_a_plan_has_every_job_and_no_buttons():
    svg = jobs_svg(JOBS)
    assert texts(svg) == ["corpora", "models", "read", "lua", "train", "lua", "train", "stories", "measure", "lua"]
    assert boxes(svg) == {str(number): {"data-job": str(number)} for number in range(4)}
    assert ElementTree.fromstring(svg).get("role") == "img"  # noqa: S314
    assert svg == jobs_svg(JOBS)


def test_a_job_with_a_state_is_a_button_that_shows_it_in_words_class_and_sign():
    svg = jobs_svg(STATES)
    assert boxes(svg)["1"] == {
        "data-job": "1",
        "class": "job stale",
        "tabindex": "0",
        "role": "button",
        "aria-label": "train: stale: would run again",
    }
    assert ElementTree.fromstring(svg).get("role") == "group"  # noqa: S314
    signs = [element.get("d") for element in elements(svg, "path") if element.get("class") == "badge"]
    assert len(signs) == 4  # two in the legend, two on boxes
    assert signs[:2] == signs[2:]
    assert signs[0] != signs[1]
    assert texts(svg)[1:3] == ["up to date (1)", "stale: would run again (1)"]
    hints = [element.text for element in elements(svg, "title")]
    assert hints[1] == "train: stale: would run again\nits code <b>"


def test_markup_in_a_name_stays_text():
    hostile = '</svg><script>alert(1)</script>" onclick="x'
    svg = jobs_svg([job(0, "a", hostile, state="missing", why=[hostile])])
    assert "<script" not in svg
    assert boxes(svg)["0"].keys() == {"data-job", "class", "tabindex", "role", "aria-label"}


def test_more_jobs_than_can_be_drawn_are_a_sentence():
    svg = jobs_svg([job(number, "a") for number in range(1001)])
    assert [text[:9] for text in texts(svg)] == ["1001 jobs"]
    assert boxes(svg) == {}
