"""The page says what was found beside its floor and what was not measured, and lets no text become markup."""

import base64
import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saelineage.report import page as report
from saelineage.report.dashboards import FEATURES_PER_CHUNK, VERDICTS, packed
from saelineage.report.figures import UNSEEN
from saelineage.report.page import (
    Results,
    Sources,
    ablations_view,
    csv_link,
    digests,
    facts,
    flow_nodes,
    lines,
    matchings_view,
    render_page,
    sources_view,
    versions,
)
from saelineage.report.tables import (
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
    score_table,
    source_table,
    sweep_table,
    timing_table,
    training_table,
)
from tests.unit.report.test_sentences import plain
from tests.unit.report.test_tables import (
    a_null,
    a_share,
    benchmarks,
    comparison,
    sae_metrics,
    summary,
)

TEMPLATES = Path(report.__file__).parents[3] / "report"
EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Every tag of a page, the ids it uses, and what its scripts hold."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.ids, self.scripts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def values(self) -> list:
        """The JSON that the page's scripts read."""
        scripts = [attrs for tag, attrs in self.tags if tag == "script"]
        return [
            json.loads(text, parse_constant=undefined)
            for attrs, text in zip(scripts, self.scripts, strict=True)
            if attrs.get("type") == "application/json"
        ]


def undefined(constant: str) -> None:
    """NaN and infinities, which a browser does not read."""
    raise ValueError(f"{constant} is no JSON")


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
    scores = {"score": 0.75, "precision": 0.5, "recall": 0.25}
    parts = {"assignment": (f"assignment {text}", [corpus]), "exception": ("exception", [])}
    named = [
        feature
        | scores
        | {"concept": concept, "part": part, "found": models, "labels": [{"label": text, "score": None}]}
        for concept, (part, models) in parts.items()
    ]
    return {"n_models": 2, "named": named, "persisting": [persisting], "disappearing": edges}


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
        "scores": score_table(
            {(model, "seed0"): pd.DataFrame({"score": [0.5, 0.25]}) for model in found["models"]}, {}
        ),
    }
    made_of = {
        "config": settings,
        "summary": found,
        "tables": tables,
        "examples": shown or examples(),
        "timings": timing_table(benchmarks()),
        "manifests": {"models/base": {"python": "3.11.7", "versions": {"numpy": "2.4.6"}, "files": {}}},
        "jobs": [
            {"id": 0, "rule": "train", "name": "base", "needs": [], "stage": "models", "state": "fresh", "why": []}
        ],
        "rulegraph_svg": "<svg></svg>",
        "chunks": {},
    }
    return Results(**(made_of | changes))


@cache
def clean() -> Tags:
    """The tags of a page without anything hostile."""
    return Tags(page(results()))


def page(found: Results) -> str:
    template, stylesheet = ((TEMPLATES / name).read_text("utf-8") for name in ("page.html.jinja", "page.css"))
    scripts = {name: (TEMPLATES / f"{name}.js").read_text("utf-8") for name in ("elements", "explorer", "jobs", "page")}
    return render_page(found, Sources(template, stylesheet, scripts))


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    """Plotly's own 4.8 MB are left out, which keeps these tests fast."""
    monkeypatch.setattr(report, "get_plotlyjs", "window.Plotly = {};".__str__)


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


def test_versions_that_differ_between_jobs_are_all_named():
    found = [{"python": "3.11.7", "versions": {"numpy": v}} for v in ("2.4.6", "2.4.5")]
    assert versions(found) == {"numpy": "2.4.5, 2.4.6", "python": "3.11.7"}


def test_lines_keep_their_breaks_and_nothing_else():
    assert lines("a: <b>\n\x00") == "a: &lt;b&gt;\n␀"


def test_the_page_loads_nothing_and_uses_every_id_once():
    tags = clean()
    links = [attrs.get("href", attrs.get("src", "")) for _, attrs in tags.tags]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert len(tags.ids) == len(set(tags.ids))


def test_every_entry_of_the_contents_leads_somewhere():
    tags = clean()
    links = [attrs["href"] for tag, attrs in tags.tags if tag == "a" and not attrs["href"].startswith("data:")]
    assert {link[1:] for link in links} <= set(tags.ids)


def test_equal_results_are_equal_pages():
    assert page(results()) == page(results())


def test_floors_that_were_not_measured_are_named_so():
    found = page(results(summary(comparison(0.25, None))))
    assert "no floor was measured: train a second seed" in found
    assert 'class="number none">not measured' in found


def test_a_run_without_edges_sweeps_and_merges_has_a_page():
    found = results(
        summary(),
        {"n_models": 1, "named": [], "persisting": [], "disappearing": []},
        timings=timing_table(pd.DataFrame()),
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
    drawn = report.draw(results(summary(comparison(), other)))["curves"]["json"]
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
    nulls = {f"control ({EVIL})": a_null(), EVIL: a_null()}
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


def hostile() -> Results:
    """Results with text that would end a script in every place that a script is made from."""
    names = {"parent": f"</script>{EVIL}", "child": "<!--<script>"}
    found = results(sourced(summary(comparison(**names))))
    found.tables["scores"] = score_table(
        {(model, EVIL): pd.DataFrame({"score": [0.5]}) for model in found.summary["models"]}, {}
    )
    return found


def test_no_text_ends_the_script_it_stands_in():
    found, ordinary = Tags(page(hostile())), Tags(page(results(sourced(summary(comparison())))))
    assert len(found.scripts) == len(ordinary.scripts)
    assert found.scripts[-5:] == ordinary.scripts[-5:]  # elements, explorer, jobs, Plotly, page
    data = found.scripts[:-5]
    assert len(data) > 5
    assert not any("<" in script for script in data)


def test_what_scripts_read_is_json_and_holds_text_as_it_is():
    *figures, known = Tags(page(hostile())).values()
    assert known["models"] == [f"</script>{EVIL}", "<!--<script>"]
    assert all({"data", "layout"} <= set(figure) for figure in figures)


def test_undefined_numbers_are_null_in_figures():
    found = results()
    found.tables["saes"]["fvu"] = np.nan
    assert Tags(page(found)).values()  # refuses NaN


def test_plotly_s_own_script_is_one_element(monkeypatch):
    monkeypatch.undo()
    found = Tags(page(results()))
    assert len(found.scripts) == len(clean().scripts)
    assert len(found.scripts[-2]) > 1_000_000
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in clean().tags]


def test_a_script_that_names_its_own_end_does_not_end_there():
    template = "<script>{{ scripts.page }}</script>"
    found = render_page(results(), Sources(template, "", {"page": "const a = '</script>' + 1 < 2;"}))
    assert Tags(found).scripts == [r"const a = '<\/script>' + 1 < 2;"]


def test_facts_say_where_every_model_stands():
    found = facts(results(summary(comparison(parent="base", child="lua"))))
    assert (found["models"], found["edges"], found["corpora"]) == (["base", "lua"], [["base", "lua"]], ["lua"])
    assert (found["verdicts"], found["features_per_chunk"]) == (VERDICTS, FEATURES_PER_CHUNK)
    places, (width, height) = found["layout"]["places"], found["layout"]["size"]
    assert list(places) == ["base", "lua"]
    # A card is 176 wide and 54 high: the child's stands below the parent's, and both within the picture.
    assert places["lua"][1] >= places["base"][1] + 54
    assert all(88 <= x <= width - 88 and 0 <= y <= height - 54 for x, y in places.values())


def test_facts_of_a_lineage_without_edges_have_no_model_whose_features_could_be_compared():
    found = facts(results(summary(models=["base"], saes={"base": "seed0"})))
    assert (found["models"], found["layout"]) == ([], {"places": {}, "size": [0.0, 0.0]})


def test_a_table_s_link_holds_all_of_it():
    table = pd.DataFrame({"model": [EVIL, 'a,"b"\n\u202e'], "share": [0.1, np.nan]})
    link = csv_link(table)
    kind, data = link.split(",")
    assert kind == "data:text/csv;base64"
    found = pd.read_csv(io.BytesIO(base64.b64decode(data, validate=True)))
    pd.testing.assert_frame_equal(found, table)


def test_every_table_can_be_taken_away_from_the_page():
    found = results()
    links = {attrs["download"]: attrs["href"] for tag, attrs in Tags(page(found)).tags if "download" in attrs}
    assert links == {f"{name}.csv": csv_link(table) for name, table in found.tables.items()}


def test_the_page_names_the_features_that_follow_assignments_and_exceptions():
    text = plain(page(results(shown=examples(text="target", corpus="lua"))))
    persisting, disappearing = (text.partition(f'<section id="{name}">')[2] for name in ("persisting", "disappearing"))
    assert "“assignment target” correlates with its activations at r = 0.75 (precision 50 %, recall 25 %)" in persisting
    assert "It is found in lua." in persisting.partition("<h3>The most persistent features</h3>")[0]
    assert "“exception” correlates with its activations" in disappearing
    assert "It is found in no other model" in disappearing


def test_a_page_without_named_features_and_labels_is_whole():
    found = results(shown=examples() | {"named": []})
    found.tables["scores"] = score_table({(model, "seed0"): pd.DataFrame({"score": []}) for model in ("base", "x")}, {})
    text = page(found)
    assert text.count("name the corpora of programs in labels.syntax") == 2
    assert "correlates with its activations at" not in text
    assert "median nan" not in text
    found.tables["scores"] = score_table({}, {})
    section = page(found).partition('<section id="scores">')[2].partition("</section>")[0]
    assert "Nothing to draw." in section


def test_the_page_says_where_explanations_were_not_asked_for():
    found = results()
    assert "Written explanations" in page(found)
    scored = {("base", "seed0"): pd.DataFrame({"score": [0.5]})}
    found.tables["scores"] = score_table(scored, scored)
    text = page(found)
    assert "Written explanations" not in text
    assert "simulated from a written explanation" in text


def test_features_are_in_the_page_where_it_is_to_be_a_single_file():
    script = packed("base/table", {"a": 1})
    _, name, _, data, _ = script.split('"')
    found, beside = Tags(page(results(chunks={name: data}))), clean()
    assert found.ids[-1] == "chunk base/table"
    assert "chunk base/table" not in beside.ids
    assert data in found.scripts
    assert len(found.scripts) == len(beside.scripts) + 1


def test_every_recorded_file_is_listed_with_its_digest():
    manifests = {
        "models/base": {"files": {"model.safetensors": {"bytes": 3, "sha256": "ab"}}},
        "lineage": {"files": {"edges/a__b.parquet": {"bytes": 4, "sha256": "cd"}}},
    }
    assert digests(manifests) == [
        {"path": "models/base/model.safetensors", "bytes": 3, "sha256": "ab"},
        {"path": "lineage/edges/a__b.parquet", "bytes": 4, "sha256": "cd"},
    ]


def test_the_page_s_scripts_make_the_same_characters_visible():
    script = (TEMPLATES / "elements.js").read_text(encoding="utf-8")
    own = re.compile(re.search(r"UNSEEN = /(\[.+\])/gu;", script)[1])
    characters = [chr(code) for code in range(0x11000)]
    assert [one for one in characters if own.match(one)] == [one for one in characters if UNSEEN.match(one)]


def test_what_is_undefined_was_not_measured():
    assert "not measured" in page(results())  # ce_recovered is None
