"""The graph of jobs as a picture: what Snakemake prints is read, reduced, laid out and drawn."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from saelineage.dag import Graph, arrange, jobs_svg, read_dot, rule_graph, rules_svg, without_shortcuts

DOT = r"""digraph snakemake_dag {
    graph[bgcolor=white, margin=0];
	0[label = "all", color = "0.00 0.6 0.85", style="rounded"];
	1[label = "train\nmodel: lua", color = "0.1 0.6 0.85", style="rounded"];
	2[label = "train\nmodel: stories", color = "0.1 0.6 0.85", style="rounded"];
	3[label = "read\ncorpus: lua\nrun: demo", color = "0.2 0.6 0.85", style="rounded"];
	4[label = "measure", color = "0.2 0.6 0.85", style="rounded"];
	4 -> 0
	2 -> 0
	1 -> 4
	3 -> 1
	3 -> 2
}
"""
STAGES = {"read": "corpora", "train": "models", "measure": "models"}


def chain_with_shortcut() -> Graph:
    return Graph([("a",), ("b",), ("c",)], [(0, 1), (1, 2), (0, 2)])


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def test_what_snakemake_prints_is_read_as_labels_and_arrows():
    graph = read_dot(DOT)
    assert graph.labels[3] == ("read", "corpus: lua", "run: demo")
    assert graph.arrows == [(1, 4), (2, 0), (3, 1), (3, 2), (4, 0)]


def test_text_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="no graph of jobs"):
        read_dot("Job-DAG is too large")


def test_an_arrow_that_a_longer_way_implies_is_left_out():
    assert without_shortcuts(chain_with_shortcut()).arrows == [(0, 1), (1, 2)]


def test_a_node_stands_one_layer_after_the_latest_it_needs():
    assert arrange(chain_with_shortcut(), 10.0).rank == [0, 1, 2]


def test_an_arrow_over_a_layer_bends_there_once():
    assert len(arrange(chain_with_shortcut(), 10.0).bends[0, 2]) == 1


def test_no_two_nodes_of_a_layer_overlap():
    labels = [(str(number),) for number in range(8)]
    found = arrange(Graph(labels, [(0, number) for number in range(1, 8)]), 10.0)
    places = sorted(found.place[1:])
    assert min(b - a for a, b in pairwise(places)) >= 10 - 1e-6


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="circle"):
        arrange(Graph([("a",), ("b",)], [(0, 1), (1, 0)]), 10.0)


def test_rules_are_counted_and_their_arrows_are_those_of_their_jobs():
    rules, counts = rule_graph(read_dot(DOT))
    assert dict(zip((label[0] for label in rules.labels), counts, strict=True)) == {
        "all": 1,
        "train": 2,
        "read": 1,
        "measure": 1,
    }


def test_rules_whose_jobs_alternate_are_drawn_all_the_same():
    alternating = Graph([("train",), ("merge",), ("train",)], [(0, 1), (1, 2)])
    assert "train" in rules_svg(alternating, {})


def test_every_job_is_drawn_with_what_tells_it_apart():
    found = texts(jobs_svg(read_dot(DOT), STAGES))
    assert {"lua", "stories · lua", "corpora", "models"} <= set(found)
    assert found.count("train") == 2


def test_a_job_without_a_label_of_its_own_has_that_of_the_job_before():
    graph = Graph([("train", "model: lua"), ("measure",)], [(0, 1)])
    assert texts(jobs_svg(graph, {})) == ["train", "lua", "measure", "lua"]


def test_a_job_after_two_that_disagree_has_no_label():
    graph = Graph([("train", "model: lua"), ("train", "model: base"), ("merge",)], [(0, 2), (1, 2)])
    assert texts(jobs_svg(graph, {})) == ["train", "lua", "train", "base", "merge"]


def test_labels_of_needed_jobs_go_before_what_was_handed_to_them():
    labels = [("read", "corpus: a"), ("read", "corpus: b"), ("learn",), ("cut",)]
    graph = Graph(labels, [(0, 2), (1, 2), (0, 3), (2, 3)])
    assert texts(jobs_svg(graph, {}))[-2:] == ["cut", "a"]


def test_equal_graphs_are_equal_pictures():
    assert jobs_svg(read_dot(DOT), STAGES) == jobs_svg(read_dot(DOT), STAGES)
    assert rules_svg(read_dot(DOT), STAGES) == rules_svg(read_dot(DOT), STAGES)


def test_markup_in_a_label_stays_text():
    svg = jobs_svg(Graph([("a", "x: </svg><script>alert(1)</script>")], []), {})
    assert "<script" not in svg
    ElementTree.fromstring(svg)  # noqa: S314


def test_too_many_jobs_are_counted_instead_of_drawn():
    assert "2000 jobs are too many" in jobs_svg(Graph([("a",)] * 2000, []), {})
