"""The page says what was found beside its floor and what was not measured, and lets no text become markup."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saelineage import report
from saelineage.report import (
    Results,
    answer,
    correlation_table,
    count,
    density_table,
    edge_table,
    flow_nodes,
    flow_table,
    interval,
    lines,
    made,
    merge_table,
    model_table,
    null_table,
    number,
    percent,
    reading,
    render_page,
    sae_table,
    sae_warnings,
    sweep_table,
    timing_table,
    training_table,
    versions,
)

TEMPLATES = Path(report.__file__).parents[2] / "report"
EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Every tag of a page, and the ids it uses."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.ids = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]


def edge(share=0.25, floor=0.5, parent="base", child="merged") -> dict:
    found = {"parent": parent, "child": child, "n_parent": 9, "n_child": 9}
    found |= {
        "persists": 2,
        "disappears": 6,
        "untestable_parent": 1,
        "inherited": 3,
        "emerges": 5,
        "untestable_child": 1,
    }
    values = {
        "persist_share": share,
        "seed_floor_share": floor,
        "inherited_share": 0.375,
        "child_seed_floor_share": floor,
    }
    found["null_shares"] = {
        "shifted": {"persist_share": 0.01, "persist_share_n": 8, "persist_share_interval": [0.0, 0.3]}
    }
    for name, value in values.items():
        bounds = None if value is None else [max(0.0, value - 0.1), min(1.0, value + 0.1)]
        found |= {name: value, f"{name}_n": 0 if value is None else 8, f"{name}_interval": bounds}
    return found


def summary(*edges: dict) -> dict:
    models = [edges[0]["parent"], edges[0]["child"]] if edges else ["base", "merged"]
    return {"run": "tiny", "threshold": 0.8, "models": models, "edges": list(edges)}


def config(parent="base", child="merged") -> dict:
    return {
        "run": "tiny",
        "corpora": {"lua": {}},
        "models": {parent: {"pretrain": {}}, child: {"merge": {"parents": [parent, parent], "t": 0.58}}},
        "sweeps": {"merged": {"model": child}},
    }


def model_metrics(*models: str) -> list[dict]:
    numbers = {"loss": 2.0, "accuracy": 0.5, "unigram_loss": 3.0, "n_predictions": 10}
    return [{"model": model, "corpora": {"lua": numbers}} for model in models]


def sae_metrics(model="base", fvu=0.2, dead_fraction=0.0) -> dict:
    numbers = {"fvu": fvu, "l0": 4.0, "dead_fraction": dead_fraction, "ce_recovered": None, "ce_difference": 0.1}
    numbers |= {"n_tokens": 100}
    histogram = {"log10_edges": [-4.0, -3.0, -2.0, -1.0, 0.0], "counts": [0, 0, 7, 0]}
    return {
        "model": model,
        "sae": "seed0",
        "pooled": numbers,
        "corpora": {"lua": numbers},
        "density_histogram": histogram,
    }


def examples(text="x", corpus="lua") -> dict:
    members = [{"model": model, "sae": "seed0", "latent": 3, "max_activation": 4.0} for model in ("base", "merged")]
    passage = {"corpus": corpus, "row": 0, "first": 1, "tokens": [text, "y"], "activations": [[4.0, 0.0], [2.0, 0.0]]}
    feature = {"members": members, "r": [[1.0, None], [None, 1.0]], "density": 0.1, "passages": [passage]}
    persisting = feature | {"n_models": 2, "least_r": 0.9}
    lost = feature | {"r_child": 0.3, "r_seed": None}
    edges = [{"parent": "base", "child": "merged", "features": [lost]}]
    return {"n_models": 2, "persisting": [persisting], "disappearing": edges}


def results(found: dict | None = None, shown: dict | None = None, **changes) -> Results:
    found = found or summary(edge())
    settings = config(*found["models"])
    sweep = pd.DataFrame({"t": [0.0, np.nan], "corpus": "lua", "loss": 2.0, "accuracy": 0.5, "n_predictions": 9})
    curve = pd.DataFrame({"step": [1], "tokens": [9], "loss": [1.0], "fvu": [0.5], "l0": [4.0], "dead_fraction": [0.0]})
    merge = {"t": 0.58, "tensors": {"lm_head.weight": {"cos": 0.9, "branch": "slerp"}}}
    tables = {
        "edges": edge_table(found),
        "nulls": null_table(found),
        "flows": flow_table(found),
        "models": model_table(settings, model_metrics(*found["models"])),
        "sweeps": sweep_table({"merged": sweep}),
        "saes": sae_table([sae_metrics()]),
        "densities": density_table([sae_metrics()]),
        "training": training_table({("base", "seed0"): curve}),
        "merges": merge_table({"merged": merge}),
        "correlations": correlation_table({"base__merged": np.array([0, 3, 2, 0])}),
    }
    made_of = {
        "config": settings,
        "summary": found,
        "tables": tables,
        "examples": shown or examples(),
        "timings": timing_table(benchmarks()),
        "manifests": [{"python": "3.11.7", "versions": {"numpy": "2.4.6"}}],
        "dag_svg": "<svg></svg>",
        "rulegraph_svg": "<svg></svg>",
    }
    return Results(**(made_of | changes))


def benchmarks() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "stage": ["saes", "saes", "models"],
            "s": [1.0, 2.0, 9.0],
            "cpu_time": [1.0, 1.0, 5.0],
            "max_rss": [10.0, 30.0, 20.0],
        }
    )


@cache
def clean() -> Tags:
    """The tags of a page without anything hostile."""
    return Tags(page(results()))


def page(found: Results) -> str:
    template = (TEMPLATES / "page.html.jinja").read_text(encoding="utf-8")
    return render_page(found, template, (TEMPLATES / "page.css").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    """Plotly's own 4.8 MB are left out, which keeps these tests fast."""
    monkeypatch.setattr(report, "get_plotlyjs", "window.Plotly = {};".__str__)


@pytest.mark.parametrize(
    ("share", "floor", "expected"),
    [
        (0.05, 0.05, report.AT_FLOOR),
        (0.04, 0.05, report.AT_FLOOR),
        (0.5, 0.4, report.OVERLAPS),  # intervals 0.4 to 0.6 and 0.3 to 0.5
        (0.9, 0.2, report.ABOVE),
        (0.9, None, report.NO_FLOOR),
        (None, 0.2, report.NOTHING),
    ],
)
def test_an_edge_is_read_against_its_floor(share, floor, expected):
    assert reading(edge(share, floor)) == expected


def test_the_answer_names_share_and_floor_of_every_edge():
    sentences = answer(summary(edge(0.25, 0.5)))
    assert sentences[0] == (
        "From base to merged 25.0 % [15.0 to 35.0 %] of 8 testable features persist; "
        "two SAE seeds of base agree on 50.0 % [40.0 to 60.0 %]."
    )
    assert "say nothing about" in sentences[-1]


def test_the_answer_counts_the_edges_above_their_floor():
    found = answer(summary(edge(0.9, 0.2), edge(0.1, 0.2)))[-1]
    assert found.startswith("Of 2 edges, 1 lie at or below the floor")
    assert found.endswith("1 lie above it.")


def test_an_answer_without_a_second_seed_says_so():
    sentences = answer(summary(edge(0.25, None)))
    assert "no seed floor was measured for base" in sentences[0]
    assert sentences[-1].startswith("Without a second SAE seed there is no floor")


def test_a_lineage_without_edges_has_an_answer():
    assert answer(summary()) == ["The lineage has no edge, so there is nothing to compare."]


def test_flows_hold_every_class_of_both_sides():
    table = flow_table(summary(edge()))
    assert table["n_features"].tolist() == [2, 6, 1, 3, 5, 1]
    assert table["verdict"].tolist() == ["persists", "disappears", "untestable", "inherited", "emerges", "untestable"]


def test_persisting_and_inherited_features_flow_through_one_node():
    nodes, flows = flow_nodes(flow_table(summary(edge())))
    through = flows[flows["verdict"].isin(["persists", "inherited"])]
    assert through["target"].iloc[0] == through["source"].iloc[1]
    assert "persists 2 | inherited 3" in nodes["label"].tolist()
    assert nodes.set_index("label").loc["persists 2 | inherited 3", ["column", "size"]].tolist() == [1.0, 3]


def test_models_are_described_by_how_they_were_made():
    assert made(config(), "merged") == "merged from base and base, t = 0.58"
    assert made({"models": {"theirs": {"hub": {}}}}, "theirs") == "imported from the hub"


def test_poor_dead_and_unequal_saes_are_warned_of():
    saes = sae_table([sae_metrics("a", fvu=0.1), sae_metrics("b", fvu=0.3, dead_fraction=0.5)])
    warnings = sae_warnings(saes)
    assert [text.split(" ")[0] for text in warnings] == ["b.seed0", "50.0", "The"]


def test_good_saes_are_not_warned_of():
    assert sae_warnings(sae_table([sae_metrics("a"), sae_metrics("b")])) == []


def test_an_fvu_that_is_undefined_is_not_measured():
    assert sae_warnings(sae_table([sae_metrics(fvu=None)])) == []
    assert "not measured" in page(results())  # ce_recovered is None


def test_densities_are_cut_to_the_bins_in_use():
    assert density_table([sae_metrics()])["log10_density"].tolist() == [-3.0, -2.0, -1.0]


def test_time_is_summed_and_memory_is_the_largest():
    table = timing_table(benchmarks()).set_index("stage")
    assert table.index.tolist() == ["models", "saes", "all stages"]
    assert table.loc["saes"].tolist() == [2, 3.0, 2.0, 30.0]
    assert table.loc["all stages"].tolist() == [3, 12.0, 7.0, 30.0]


def test_no_benchmarks_are_an_empty_table():
    assert timing_table(pd.DataFrame()).empty


def test_versions_that_differ_between_jobs_are_all_named():
    found = [{"python": "3.11.7", "versions": {"numpy": v}} for v in ("2.4.6", "2.4.5")]
    assert versions(found) == {"numpy": "2.4.5, 2.4.6", "python": "3.11.7"}


def test_numbers_are_written_plainly():
    assert (number(0.12345), number(None), number(float("nan"))) == ("0.123", "not measured", "not measured")
    assert (count(2048), count(None)) == ("2,048", "not measured")
    assert (percent(0.0205), percent(None)) == ("2.1 %", "not measured")
    assert (interval([0.0152, 0.0276]), interval(None)) == ("1.5 to 2.8 %", "")


def test_lines_keep_their_breaks_and_nothing_else():
    assert lines("a: <b>\n\x00") == "a: &lt;b&gt;\n␀"


def test_the_page_loads_nothing_and_uses_every_id_once():
    tags = clean()
    links = [attrs.get("href", attrs.get("src", "")) for _, attrs in tags.tags]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert len(tags.ids) == len(set(tags.ids))


def test_every_entry_of_the_contents_leads_somewhere():
    tags = clean()
    entries = {attrs["href"][1:] for tag, attrs in tags.tags if tag == "a"}
    assert entries <= set(tags.ids)


def test_equal_results_are_equal_pages():
    assert page(results()) == page(results())


def test_floors_that_were_not_measured_are_named_so():
    found = page(results(summary(edge(0.25, None))))
    assert "no floor was measured: train a second seed" in found
    assert 'class="number none">not measured' in found


def test_a_run_without_edges_sweeps_and_merges_has_a_page():
    empty = results().tables
    tables = dict(empty) | {name: empty[name].head(0) for name in ("sweeps", "merges", "correlations")}
    tables |= {"edges": edge_table(summary()), "nulls": null_table(summary()), "flows": flow_table(summary())}
    shown = {"n_models": 1, "persisting": [], "disappearing": []}
    found = page(results(summary(), shown, tables=tables, timings=timing_table(pd.DataFrame())))
    assert "This run sweeps no merge coefficient." in found
    assert "This run merges no models." in found


def test_markup_in_passages_stays_text():
    text = f"""{EVIL}</script></style></span></pre>" onmouseover="alert(1)' <!-- {{{{ 7 * 7 }}}} {{% raw %}}"""
    found = Tags(page(results(shown=examples(text=text, corpus=text))))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in clean().tags]
    assert [set(attrs) for _, attrs in found.tags] == [set(attrs) for _, attrs in clean().tags]


def test_markup_in_names_and_labels_stays_text():
    found = page(results(summary(edge(parent=f"{EVIL}</script>", child="</svg>"))))
    assert EVIL not in found
    assert len(Tags(found).tags) == len(clean().tags)


def test_characters_that_hide_or_turn_text_are_shown():
    hidden = "\x00\x1b\x9f\u202e\u2066\u200f\u2028"
    found = page(results(summary(edge(child=f"a{hidden}b")), examples(text=f"a{hidden}b")))
    assert not set(hidden) & set(found)


def test_half_a_surrogate_is_written_as_an_escape():
    found = page(results(shown=examples(text="\ud800", corpus="\udfff")))
    assert b"\\ud800" in found.encode("utf-8")


def test_the_config_is_shown_and_its_markup_is_text():
    found = page(results(config=config() | {"run": EVIL}))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in found
    assert EVIL not in found


def test_a_run_whose_saes_are_all_imported_has_no_training_curves():
    found = results()
    found.tables["training"] = training_table({})
    assert "Nothing to draw." in page(found)
    assert "Nothing to draw." not in page(results())
