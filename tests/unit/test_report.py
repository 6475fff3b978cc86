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
    ablations_view,
    answer,
    count,
    described,
    flow_nodes,
    instrument_check,
    instrument_warnings,
    interval,
    lines,
    matchings_view,
    number,
    percent,
    render_page,
    sae_warnings,
    signed,
    sources_view,
    versions,
)
from saelineage.report_tables import (
    ablation_table,
    absence_table,
    agreement_table,
    correlation_table,
    curve_table,
    density_table,
    edge_table,
    effect_table,
    flow_table,
    instrument_table,
    matching_table,
    merge_table,
    model_table,
    null_table,
    sae_table,
    source_table,
    sweep_table,
    timing_table,
    training_table,
)
from tests.unit.test_report_tables import (
    a_null,
    a_share,
    benchmarks,
    comparison,
    sae_metrics,
    summary,
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


def examples(text="x", corpus="lua") -> dict:
    members = [{"model": model, "sae": "seed0", "latent": 3, "max_activation": 4.0} for model in ("base", "merged")]
    passage = {"corpus": corpus, "row": 0, "first": 1, "tokens": [text, "y"], "activations": [[4.0, 0.0], [2.0, 0.0]]}
    feature = {"members": members, "r": [[1.0, None], [None, 1.0]], "density": 0.1, "passages": [passage]}
    persisting = feature | {"n_models": 2, "least_r": 0.9}
    lost = feature | {"r_child": 0.3, "r_seed": None}
    edges = [{"parent": "base", "child": "merged", "features": [lost]}]
    return {"n_models": 2, "persisting": [persisting], "disappearing": edges}


def curves(found: dict) -> pd.DataFrame:
    """Two points of each curve of a summary."""
    rows = [
        {key: one[key] for key in ("parent", "child", "instrument")} | {"name": name, "threshold": r, "share": 1 - r}
        for one in found["instruments"]
        for name in ("edge", "floor", *one["nulls"])
        for r in (0.0, 1.0)
    ]
    return pd.DataFrame(rows).assign(n=8) if rows else pd.DataFrame()


def effects() -> pd.DataFrame:
    return pd.DataFrame(
        {"corpus": ["lua", "pooled"], "n": [1, 4], "pearson": [np.nan, 0.5], "spearman": [np.nan, 0.25]}
    )


def ablations(side: str = "parent", group: str = "persists") -> pd.DataFrame:
    groups = pd.DataFrame({"group": [group, f"{group}_random"], "n_latents": [2, 1], "loss_change": [0.25, -0.125]})
    groups = groups.assign(side=side, corpus="lua", loss=3.0, n_firings=9, n_tokens=99)
    return groups.assign(loss_change_per_firing=groups["loss_change"] / 9)


def sourced(found: dict) -> dict:
    """A summary with the sources of its last model."""
    parent, merge = found["models"]
    shares = {name: a_share("share", 0.25) for name in (parent, "both", "new")}
    return found | {"sources": {merge: shares}}


def results(found: dict | None = None, shown: dict | None = None, **changes) -> Results:
    found = found or summary(comparison())
    settings = config(*found["models"])
    sweep = pd.DataFrame({"t": [0.0, np.nan], "corpus": "lua", "loss": 2.0, "accuracy": 0.5, "n_predictions": 9})
    curve = pd.DataFrame({"step": [1], "tokens": [9], "loss": [1.0], "fvu": [0.5], "l0": [4.0], "dead_fraction": [0.0]})
    merge = {"t": 0.58, "tensors": {"lm_head.weight": {"cos": 0.9, "branch": "slerp"}}}
    edges = [f"{edge['parent']}__{edge['child']}" for edge in found["edges"]]
    tables = {
        "edges": edge_table(found),
        "instruments": instrument_table(found),
        "nulls": null_table(found),
        "matchings": matching_table(found),
        "curves": curve_table(curves(found), found),
        "agreements": agreement_table(found),
        "sources": source_table(found, {merge: {"parents": found["models"][:1]} for merge in found["sources"]}),
        "absences": absence_table(found),
        "ablations": ablation_table({edge: ablations() for edge in edges}),
        "effects": effect_table({edge: effects() for edge in edges}),
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


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return text.replace("\u00a0", " ")


def sentences(*found: dict, **changes) -> list[str]:
    """The answer, with ordinary spaces."""
    return [plain(sentence) for sentence in answer(summary(*found, **changes))]


def test_the_answer_names_share_floor_and_seed_floor_of_every_edge():
    found = sentences(comparison(0.25, 0.5))
    assert found[0] == "All shares here are those of this run's leading instrument, anchored."
    assert found[1] == (
        "From base to merged 25.0 % [15.0 to 35.0 %] of 8 testable features persist; where nothing changed "
        "50.0 % [40.0 to 60.0 %] do, and two independent SAEs of base agree on 37.5 % [27.5 to 47.5 %]."
    )


def test_independent_saes_have_one_floor():
    found = sentences(comparison(0.25, 0.5, instrument="independent"), lead="independent")
    assert found[1].endswith("where nothing changed, between two independent SAEs of base, 50.0 % [40.0 to 60.0 %] do.")


def test_the_answer_is_that_of_the_leading_instrument_alone():
    found = sentences(comparison(0.25), comparison(0.875, instrument="independent"))
    assert not any("87.5 %" in sentence for sentence in found)


def test_the_answer_counts_the_edges_below_at_and_without_a_floor():
    below, at_floor = comparison(relative=[0.4, 0.6]), comparison(relative=[0.9, 1.1])
    found = sentences(below, below, at_floor, comparison(floor=None))
    assert found[-2] == (
        "Of 4 edges, 2 lie below the floor, where features are lost; 1 lies at the floor, with no loss beyond the "
        "instrument's own; 1 lies where no floor can be held against the share."
    )


def test_an_answer_without_a_second_seed_says_so():
    found = sentences(comparison(0.25, None))
    assert found[1].endswith("testable features persist; no floor was measured for base.")
    assert found[-2].startswith("Without a second SAE seed there is no floor")


def test_a_floor_without_a_second_seed_still_stands():
    found = sentences(comparison(0.25, 0.5, seed_floor=None))
    assert found[1].endswith("where nothing changed 50.0 % [40.0 to 60.0 %] do, and base has no two independent SAEs.")


def test_an_edge_without_testable_features_has_a_sentence():
    assert sentences(comparison(None))[1] == "From base to merged no feature is testable."


def test_a_lineage_without_edges_has_an_answer():
    assert answer(summary()) == ["The lineage has no edge, so there is nothing to compare."]


def test_the_check_names_the_lowest_floor_and_the_largest_null():
    high = comparison(0.5, 0.96, nulls={"shifted": a_null(0.01), "reinitialised (r)": a_null(0.04)})
    low = comparison(0.5, 0.95, parent="left", nulls={"shifted": a_null(0.02), "stand-in (twin)": a_null(0.5)})
    assert plain(instrument_check(summary(high, low))) == (
        "The instrument passes its check. Where nothing changed it finds 95.0 % again at worst (left → merged; 95 % or "
        "more is asked for); where nothing can persist it finds 4.0 % at most (reinitialised (r), base → merged; "
        "5 % or less is asked for)."
    )
    assert instrument_warnings(summary(high, low)) == []


def test_the_check_fails_with_one_edge():
    good, poor = comparison(0.5, 0.96), comparison(0.5, 0.94)
    assert instrument_check(summary(good, poor)).startswith("The instrument fails its check.")
    assert "on 1 of 2 edges: the instrument loses features" in instrument_warnings(summary(good, poor))[0]


def test_a_null_above_its_bound_is_warned_of():
    found = summary(comparison(0.5, 0.96, nulls={"shifted": a_null(0.06)}))
    assert instrument_check(found).startswith("The instrument fails its check.")
    assert [text.split(":")[1].strip() for text in instrument_warnings(found)] == [
        "as many features match without any descent, so shares may be too high by that much."
    ]


def test_a_check_without_floor_or_null_was_not_made():
    found = instrument_check(summary(comparison(0.5, None, nulls={})))
    assert found == "The instrument could not be checked. No floor was measured; no null was computed."


def test_another_instrument_is_not_what_is_checked():
    found = summary(comparison(0.5, 0.96), comparison(0.5, 0.1, instrument="independent"))
    assert instrument_check(found).startswith("The instrument passes its check.")


def test_every_instrument_has_words():
    names = ["frozen", "anchored@20480", "anchored to left alone"]
    found = described(pd.DataFrame({"instrument": names}))
    assert list(found) == names
    assert "trained on 20,480 tokens" in found["anchored@20480"]


def test_rules_that_were_not_applied_are_missing_from_their_row():
    by_types = comparison()
    by_types["matchings"]["token_type"] = by_types["matchings"]["best"]
    (edge,) = matchings_view(matching_table(summary(by_types, comparison(instrument="independent"))))
    assert [list(row["rules"]) for row in edge["rows"]] == [
        ["best", "mutual", "assignment", "token_type"],
        ["best", "mutual", "assignment"],
    ]


def test_a_group_stands_beside_its_random_one():
    (edge,) = ablations_view(ablation_table({"base__merged": ablations()}))
    (row,) = edge["rows"]
    assert (row["group"], row["own"]["lua"]["loss_change"], row["random"]["lua"]["loss_change"]) == (
        *("persists", 0.25, -0.125),
    )


def test_sources_are_named_by_where_features_are_found():
    names = ["left", "right", "both", "base", "new"]
    found = summary(sources={"merged": {name: a_share("share", 0.25) for name in names}})
    (merge,) = sources_view(source_table(found, {"merged": {"parents": ["left", "right"]}}))
    assert [row["words"] for row in merge["rows"]] == [
        *("left alone", "right alone", "both parents", "base, but neither parent", "none of these")
    ]


def test_persisting_and_inherited_features_flow_through_one_node():
    nodes, flows = flow_nodes(flow_table(summary(comparison())))
    through = flows[flows["verdict"].isin(["persists", "inherited"])]
    assert through["target"].iloc[0] == through["source"].iloc[1]
    assert "persists 2 | inherited 3" in nodes["label"].tolist()
    assert nodes.set_index("label").loc["persists 2 | inherited 3", ["column", "size"]].tolist() == [1.0, 3]


SEED0 = {"a": "seed0", "b": "seed0", "base": "seed0"}


def test_poor_dead_and_unequal_saes_are_warned_of():
    saes = sae_table([sae_metrics("a", fvu=0.1), sae_metrics("b", fvu=0.3, dead_fraction=0.5)])
    warnings = sae_warnings(saes, SEED0)
    assert [text.split()[0] for text in warnings] == ["b.seed0", "50.0", "The"]


def test_good_saes_are_not_warned_of():
    assert sae_warnings(sae_table([sae_metrics("a"), sae_metrics("b")]), SEED0) == []


def test_saes_that_no_verdict_rests_on_are_not_warned_of():
    assert sae_warnings(sae_table([sae_metrics("a", fvu=0.9)]), {"a": "from_base", "b": "seed0"}) == []


def test_an_fvu_that_is_undefined_is_not_measured():
    assert sae_warnings(sae_table([sae_metrics(fvu=None)]), SEED0) == []
    assert "not measured" in page(results())  # ce_recovered is None


def test_versions_that_differ_between_jobs_are_all_named():
    found = [{"python": "3.11.7", "versions": {"numpy": v}} for v in ("2.4.6", "2.4.5")]
    assert versions(found) == {"numpy": "2.4.5, 2.4.6", "python": "3.11.7"}


def test_numbers_are_written_plainly():
    assert (number(0.12345), number(None), number(float("nan"))) == ("0.123", "not measured", "not measured")
    assert (count(2048), count(None)) == ("2,048", "not measured")
    assert (percent(0.0205), percent(None)) == ("2.1\u00a0%", "not measured")
    assert (interval([0.0152, 0.0276]), interval(None)) == ("1.5 to 2.8\u00a0%", "")
    assert interval((float("nan"), float("nan"))) == ""
    assert (signed(0.25, 2), signed(-0.25, 2), signed(float("nan"))) == ("+0.25", "-0.25", "not measured")
    assert count(pd.NA) == "not measured"


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
    found = page(results(summary(comparison(0.25, None))))
    assert "no floor was measured: train a second seed" in found
    assert 'class="number none">not measured' in found


def test_a_run_without_edges_sweeps_and_merges_has_a_page():
    found = results(
        summary(), {"n_models": 1, "persisting": [], "disappearing": []}, timings=timing_table(pd.DataFrame())
    )
    for name in ("sweeps", "merges", "correlations"):
        found.tables[name] = found.tables[name].head(0)
    text = page(found)
    assert "This run sweeps no merge coefficient." in text
    assert "This run merges no models." in text
    assert "Not measured in this run: set lineage.ablations to true." in text


def test_the_page_shows_every_instrument_beside_its_floor_and_null():
    agreed = {"parent": "base", "child": "merged", "instrument": "independent", "n": 8, "share": 0.75, "kappa": 0.5}
    other = comparison(0.1, 0.85, instrument="independent", nulls={"rotated": a_null(0.03)})
    text = plain(page(results(summary(comparison(), other, agreements=[agreed]))))
    row = text[text.index('<th scope="row">independent</th>') :].split("</tr>")[0]
    assert all(
        shown in row for shown in ("10.0 %", "85.0 %", "3.0 %<small>rotated", "κ 0.50<small>75.0 % same verdict")
    )


def test_the_page_draws_the_curves_of_the_leading_instrument():
    other = comparison(instrument="independent", nulls={"rotated": a_null()})
    drawn = report.draw(results(summary(comparison(), other)))["curves"]
    assert drawn.count('"mode":"lines"') == 3  # its edge, floor and null
    assert "rotated" not in drawn


def test_the_arrows_of_the_lineage_show_share_and_floor():
    drawn = plain(report.draw(results(summary(comparison(0.25, 0.5))))["lineage"])
    assert ">25.0 % persist<" in drawn
    assert ">floor 50.0 %<" in drawn


def test_the_page_shows_where_a_merge_has_its_features_from():
    text = page(results(sourced(summary(comparison()))))
    assert "Where the features of merged come from" in text
    assert "base alone" in text


def test_what_no_other_sae_could_confirm_is_not_called_none():
    found = results()
    found.summary["edges"][0] |= {"robustly_disappears": None, "robustly_emerges": None}
    found.tables["absences"] = absence_table(found.summary)
    section = page(found).partition('id="losses"')[2].partition("</table>")[0]
    assert section.count("not measured") == 2


def test_the_page_says_what_taking_features_out_does():
    section = page(results()).partition("What taking features out does")[2].partition("</section>")[0]
    assert "+0.2500" in section
    assert "-0.1250" in section


def test_markup_in_passages_stays_text():
    text = f"""{EVIL}</script></style></span></pre>" onmouseover="alert(1)' <!-- {{{{ 7 * 7 }}}} {{% raw %}}"""
    found = Tags(page(results(shown=examples(text=text, corpus=text))))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in clean().tags]
    assert [set(attrs) for _, attrs in found.tags] == [set(attrs) for _, attrs in clean().tags]


def test_markup_in_names_and_labels_stays_text():
    names = {"parent": f"{EVIL}</script>", "child": "</svg>"}
    nulls = {f"stand-in ({EVIL})": a_null(), EVIL: a_null()}
    kind = {"shifted": a_null(), "rotated": a_null()}
    found = page(results(sourced(summary(comparison(nulls=nulls, **names)))))
    assert EVIL not in found
    assert len(Tags(found).tags) == len(Tags(page(results(sourced(summary(comparison(nulls=kind)))))).tags)


def test_characters_that_hide_or_turn_text_are_shown():
    hidden = "\x00\x1b\x9f\u202e\u2066\u200f\u2028"
    found = page(results(summary(comparison(child=f"a{hidden}b")), examples(text=f"a{hidden}b")))
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
