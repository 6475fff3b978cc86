"""The page of a finished run in a browser: a reader can use all of it, from the disk and without a mouse."""

import base64
import csv
import gzip
import io
import json
import re
import shutil
import xml.etree.ElementTree
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pandas as pd
import pytest

from saelineage.report.dashboards import VERDICTS
from tests.browser import chromium, open_page, require_chromium, to_uri, wait_until
from tests.loopback import serving
from tests.workflow.conftest import Checkout
from write_report import read_chunks

NUMBERS = {
    "r": "best_r",
    "no_change": "no_change_r",
    "density": "density",
    "score": "score",
    "importance": "importance",
}
"""Columns of the table, and their names in its CSV."""
UNSEEN = re.compile("[\0-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
EDGE = ("base", "left", "parent")
CHOSEN = """
(chosen) => Object.entries(chosen).every(
  ([name, value]) => document.querySelector(`#feature-controls [name=${name}]`)?.value === value)
"""
CONTROLS = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "image", "region"}
FOCUSED = """
() => {
  const focused = document.activeElement, style = getComputedStyle(focused);
  const place = focused.closest("section, nav, main, body");
  const job = focused.matches("svg .job") ? getComputedStyle(focused.querySelector(".box")) : null;
  return { name: focused.outerHTML.slice(0, 120), section: place.id || place.localName, body: focused === document.body,
           outline: job ? parseFloat(job.strokeWidth) > 3
                    : style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 };
}
"""


@pytest.fixture(scope="module")
def report(finished: Checkout) -> Path:
    """The folder of the finished run's report."""
    require_chromium()
    return finished.folder / "results" / "tiny" / "report"


@pytest.fixture(scope="module")
def browser(report: Path) -> Iterator:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser, report: Path) -> Iterator:
    """The page, opened from the disk; whatever a test does with it, there must be no errors and no requests."""
    with open_page(browser, to_uri(report / "index.html")) as opened:
        yield opened
        assert opened.seen == []


@pytest.fixture(scope="module")
def chunks(report: Path) -> dict:
    """The data next to the page, by the chunk's name without the hookpoint."""
    folders = sorted(path for path in (report / "data" / "mlp").iterdir() if path.is_dir())
    return {
        name.removeprefix("mlp/"): json.loads(gzip.decompress(base64.b64decode(data)))
        for name, data in read_chunks(folders).items()
    }


@pytest.fixture(scope="module")
def tables(report: Path, chunks: dict) -> list[dict]:
    """The features' table of each model, in the page's order."""
    facts = re.search(r'id="lineage-facts">(.*?)</script>', (report / "index.html").read_text(encoding="utf-8"))[1]
    return [chunks[f"{model}/table"] for model in json.loads(facts)["models"]]


@pytest.fixture(scope="module")
def features(tables: list[dict]) -> list[tuple[str, int]]:
    """Every feature, the most important on any edge first, which is the table's order."""
    every = [(table["model"], latent) for table in tables for latent in range(table["n"])]
    importance = [
        max(
            (edge["importance"][latent] for edge in table["edges"] if edge["importance"][latent] is not None),
            default=None,
        )
        for table in tables
        for latent in range(table["n"])
    ]
    order = sorted(range(len(every)), key=lambda row: (importance[row] is None, -(importance[row] or 0.0)))
    return [every[row] for row in order]


def show_table(page) -> None:
    page.evaluate("location.hash = '#/features'")
    page.wait_for_selector("#feature-rows tbody a", state="attached")


def open_feature(page, model: str, latent: int) -> None:
    page.evaluate(f"location.hash = '#/feature/{model}/{latent}'")
    wait_for_feature(page, model, latent)


def wait_for_feature(page, model: str, latent: int) -> None:
    found = "words => document.querySelector('#feature-page h3')?.firstChild.data === words"
    wait_until(page, found, f"{model} / {latent}")


def counted(page) -> tuple[int, int]:
    """The number of features listed and the number of all, as the page gives them."""
    words = page.locator("#feature-count").text_content().replace(",", "")
    return tuple(map(int, re.fullmatch(r"(\d+) of (\d+) features", words).groups()))


def listed(page) -> list[dict]:
    """All features that are listed, in order, from the page's CSV. The rows in view must begin in the same way."""
    with page.expect_download() as waited:
        page.locator("#feature-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(waited.value.path()).read_text(encoding="utf-8"))))
    shown = page.locator("#feature-rows tbody th a").all_text_contents()
    assert shown[:8] == [f"{row['model']} / {row['latent']}" for row in rows][:8]
    assert len(rows) == counted(page)[0]
    return rows


def names(rows: list[dict]) -> list[tuple[str, int]]:
    return [(row["model"], int(row["latent"])) for row in rows]


def filter_by(page, name: str, value: str) -> None:
    page.locator(f"#feature-controls select[name={name}]").select_option(value)


def where(tables: list[dict], holds) -> set[tuple[str, int]]:
    """The features for which a condition on their table and latent holds."""
    return {(table["model"], latent) for table in tables for latent in range(table["n"]) if holds(table, latent)}


# ---- the whole page


def test_no_view_of_the_page_reports_an_error_or_asks_for_anything_outside(browser, report, tables):
    for scheme in ("light", "dark"):
        with open_page(browser, to_uri(report / "index.html"), color_scheme=scheme) as page:
            page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
            for link in page.locator("nav a[href^='#']").all():
                link.click()
            show_table(page)
            for table in tables:
                open_feature(page, table["model"], 0)
            assert page.seen == []


def test_every_figure_is_drawn_and_the_svg_button_gives_a_picture(page, tmp_path: Path):
    is_drawn = "(figure) => figure.querySelector('svg.main-svg *')"
    wait_until(page, f"() => [...document.querySelectorAll('.figure')].every({is_drawn})")
    assert page.locator(".figure").count() >= 8
    with page.expect_download() as waited:
        page.locator("button[data-svg]").first.click()
    root = xml.etree.ElementTree.fromstring(Path(waited.value.path()).read_text(encoding="utf-8"))  # noqa: S314
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join(root.itertext())
    assert "base" in words
    assert "merged" in words


def test_every_csv_link_gives_the_table_next_to_the_page(page, report: Path):
    links = {link.get_attribute("download"): link for link in page.locator("a[download$='.csv']").all()}
    tables = {path.name for path in (report / "tables" / "mlp").glob("*.csv")}
    assert links.keys() == tables - {"hookpoints.csv", "steps.csv", "survival.csv"}  # one hookpoint, and no long chain
    for name, link in links.items():
        data = link.get_attribute("href").removeprefix("data:text/csv;base64,")
        assert base64.b64decode(data, validate=True) == (report / "tables" / "mlp" / name).read_bytes()
    with page.expect_download() as waited:
        links["edges.csv"].evaluate("(link) => link.click()")
    assert waited.value.suggested_filename == "edges.csv"
    assert Path(waited.value.path()).read_bytes() == (report / "tables" / "mlp" / "edges.csv").read_bytes()


def test_print_unfolds_everything_and_has_no_navigation(page):
    assert page.locator("details:not([open])").count() > 0
    page.emulate_media(media="print")
    page.pdf()
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("nav").is_visible()


def test_the_page_is_never_wider_than_the_window(browser, report: Path, tables):
    for width in (1400, 900, 400):
        with open_page(browser, to_uri(report / "index.html"), viewport={"width": width, "height": 800}) as page:
            page.wait_for_selector(".figure svg.main-svg", state="attached")
            page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
            show_table(page)
            excess = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(excess) <= 0, width
            open_feature(page, tables[-1]["model"], busiest(tables[-1]))
            assert page.evaluate(excess) <= 0, width
            assert page.seen == []


def test_controls_pictures_and_regions_have_names(page, tables):
    show_table(page)
    page.wait_for_selector("#plot-flows svg.main-svg[aria-hidden]", state="attached")
    listing = unnamed(page)
    open_feature(page, tables[0]["model"], busiest(tables[0]))
    assert (listing, unnamed(page)) == ([], [])


def unnamed(page) -> list[str]:
    """Roles of the controls, pictures and regions that a screen reader gets without a name."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in tree if not node.get("ignored") and "role" in node]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in shown]
    assert {"button", "link", "region", "image"} <= {role for role, _ in roles}
    return [role for role, name in roles if role in CONTROLS and not name]


def test_the_tab_key_reaches_every_section_with_a_visible_focus(page):
    show_table(page)
    page.locator("#feature-controls [name=q]").fill("no feature holds this")
    page.locator("a.skip").focus()
    stops = []
    for _ in range(700):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUSED))
        if stops[-1]["body"]:
            break
    assert [stop["name"] for stop in stops if not stop["outline"] and not stop["body"]] == []
    with_controls = page.evaluate(
        "() => [...document.querySelectorAll('section[id]')].filter((section) => section.querySelector('a[href], "
        'button, summary, [tabindex="0"]\')).map((section) => section.id)'
    )
    assert {stop["section"] for stop in stops} >= {"nav", *with_controls}
    targets = page.evaluate("() => [...document.querySelectorAll('nav a')].map((link) => link.hash.slice(1))")
    assert len(targets) > 10
    headed = "#{0} > h2, section#{0} > h3"
    assert [name for name in targets if name and page.locator(headed.format(name)).count() == 0] == []


# ---- the table of features


def test_all_features_are_listed_in_order_and_a_search_leaves_those_with_all_its_words(page, tables, features):
    show_table(page)
    assert counted(page) == (len(features), len(features))
    assert names(listed(page)) == features
    field = page.locator("#feature-controls [name=q]")
    field.press_sequentially("MERGED 12")
    expected = [
        (model, latent) for model, latent in features if model == "merged" and "12" in text_of(tables, model, latent)
    ]
    assert 0 < len(expected) < len(features)
    assert names(listed(page)) == expected
    field.fill("no feature holds these words")
    assert counted(page)[0] == 0
    assert page.locator("#feature-rows tbody a").count() == 0
    field.fill("")
    assert counted(page)[0] == len(features)


def text_of(tables: list[dict], model: str, latent: int) -> str:
    """The text of a feature that is searched."""
    table = next(table for table in tables if table["model"] == model)
    label = "" if table["label"][latent] is None else table["labels"][table["label"][latent]]
    tokens = " ".join(table["strings"][token] for token in table["tokens"][latent])
    explained = {row[0]: row[1] for row in table["explained"]}
    return f"{model} / {latent} {label} {tokens} {explained.get(latent, '')}".lower()


def test_a_search_takes_verdicts_as_people_write_them(page, tables, features):
    show_table(page)
    field = page.locator("#feature-controls [name=q]")

    def holds(table: dict, latent: int, verdict: str, role: str, model: str) -> bool:
        return any(VERDICTS[edge["verdict"][latent]] == verdict and edge[role] == model for edge in table["edges"])

    for words, asked in (
        ("new in left", ("new", "child", "left")),
        ("gone from base", ("gone", "parent", "base")),
        ("inherited IN merged", ("inherited", "child", "merged")),
        ("inherited in left", ("inherited", "child", "left")),  # one of which is identified
    ):
        field.fill(words)
        expected = where(tables, lambda table, latent, asked=asked: holds(table, latent, *asked))
        assert expected
        shown = names(listed(page))
        assert set(shown) == expected
        sureness = [how_sure(tables, feature, *asked) for feature in shown]
        assert sureness == sorted(sureness)
    assert len(set(sureness)) > 1
    field.fill("new in nobody")  # no model: these are words
    assert counted(page)[0] == 0


def how_sure(tables: list[dict], feature: tuple[str, int], verdict: str, role: str, model: str) -> int:
    """0 of features whose verdict there is sure, 1 of others that are identified, 2 of the rest."""
    name, latent = feature
    (table,) = (table for table in tables if table["model"] == name)
    sides = [edge for edge in table["edges"] if VERDICTS[edge["verdict"][latent]] == verdict and edge[role] == model]
    known = {word for edge in sides for word in edge["details"][latent].split(", ")}
    return 0 if "sure" in known else 1 if "identified" in known else 2


def test_bars_of_the_answer_lead_to_as_many_features_as_they_count(page):
    parts = page.locator(".overview .bar a").all()
    assert len(parts) >= 4
    for part in parts[:4]:
        n = int(part.text_content().replace(",", ""))
        part.click()
        wait_until(page, "() => document.querySelector('#feature-controls [name=on]')?.value")
        assert counted(page)[0] == n
        page.evaluate("location.hash = '#answer'")


def test_a_card_opens_its_feature(page):
    link = page.locator(".card .card-head a").first
    model, latent = link.text_content().split(" / ")
    link.click()
    wait_for_feature(page, model, int(latent))


def test_columns_of_numbers_are_sorted_both_ways_with_missing_ones_last(page, features):
    show_table(page)
    for column, name in NUMBERS.items():
        head = page.locator(f"#feature-rows th[data-column={column}]")
        for direction in ("descending", "ascending"):  # numbers begin with the largest
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == direction
            rows = listed(page)
            values = [float(row[name]) for row in rows if row[name] != "NaN"]
            assert values == sorted(values, reverse=direction == "descending")
            assert all(row[name] == "NaN" for row in rows[len(values) :])
            assert sorted(names(rows)) == sorted(features)


def test_columns_of_text_are_sorted_both_ways_with_missing_ones_last(page, tables, features):
    show_table(page)
    by_model = {table["model"]: table for table in tables}
    for column in ("verdicts", "corpora", "tokens", "label"):
        head = page.locator(f"#feature-rows th[data-column={column}]")
        for direction in ("ascending", "descending"):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == direction
            shown = names(listed(page))
            cells = [cell(by_model[model], latent, column) for model, latent in shown]
            texts = [text.encode("utf-16-be", "surrogatepass") for text in cells if text is not None]
            assert texts == sorted(texts, reverse=direction == "descending")
            assert None not in cells[: len(texts)]
            assert sorted(shown) == sorted(features)
    head = page.locator("#feature-rows th[data-column=feature]")
    head.locator("button").click()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    by_number = [(table["model"], latent) for table in tables for latent in range(table["n"])]
    assert names(listed(page)) == by_number[::-1]


def cell(table: dict, latent: int, column: str) -> str | None:
    """The text that a column is sorted by; None if there is none."""
    if column == "verdicts":
        return " ".join(VERDICTS[edge["verdict"][latent]] for edge in table["edges"])
    if column == "tokens":
        return " ".join(table["strings"][token] for token in table["tokens"][latent]) or None
    if column == "label":
        return None if table["label"][latent] is None else table["labels"][table["label"][latent]]
    shares = {corpus: shares[latent] for corpus, shares in table["shares"].items()}
    return None if None in shares.values() else max(shares, key=shares.get)


def test_each_filter_leaves_the_features_it_asks_for(page, tables, features):
    show_table(page)

    def left_by(name: str, value: str) -> set[tuple[str, int]]:
        filter_by(page, name, value)
        shown = set(names(listed(page)))
        filter_by(page, name, "")
        return shown

    def has_kind(table: dict, latent: int, kind: str) -> bool:
        return table["kind"][latent] is not None and table["kinds"][table["kind"][latent]] == kind

    def has_detail(table: dict, latent: int, detail: str) -> bool:
        return any(detail in edge["details"][latent].split(", ") for edge in table["edges"])

    assert left_by("model", "left") == {feature for feature in features if feature[0] == "left"}
    on_lua = where(tables, lambda table, latent: (table["shares"]["lua"][latent] or 0) >= 0.5)
    assert on_lua
    assert left_by("corpus", "lua") == on_lua
    kinds = sorted({kind for table in tables for kind in table["kinds"]})
    assert kinds
    for kind in kinds:
        assert left_by("kind", kind) == where(tables, partial(has_kind, kind=kind))
    for detail in ("identified", "sure", "robust", "relocated", "split", "merged"):
        assert left_by("detail", detail) == where(tables, partial(has_detail, detail=detail))


def test_filters_are_combined(page, tables):
    show_table(page)
    filter_by(page, "model", "base")
    filter_by(page, "on", "base.left.parent.gone")
    filter_by(page, "corpus", "lua")

    def holds(table: dict, latent: int) -> bool:
        sides = [edge for edge in table["edges"] if (edge["parent"], edge["child"], edge["side"]) == EDGE]
        return (
            any(VERDICTS[edge["verdict"][latent]] == "gone" for edge in sides)
            and (table["shares"]["lua"][latent] or 0) >= 0.5
        )

    assert set(names(listed(page))) == where(tables, holds)


def test_every_flow_leads_to_as_many_features_as_it_counts(page, report: Path):
    flows = pd.read_csv(report / "tables" / "mlp" / "flows.csv")
    assert len(flows) == 64  # 4 edges with 2 groups of 2 sides of 4 verdicts
    for flow in flows.itertuples():
        on = f"{flow.parent}.{flow.child}.{flow.side}.{flow.verdict}"
        chosen = {"on": on, "detail": "" if flow.group == "all" else flow.group}
        page.evaluate("chosen => saelineage.choose(chosen)", chosen)
        wait_until(page, CHOSEN, chosen)
        assert counted(page)[0] == flow.n_features, chosen


def test_a_click_on_a_flow_lists_its_features(page):
    link = page.locator("#plot-flows .sankey-link").first
    link.wait_for(state="attached")
    words = link.evaluate("(path) => path.__data__.link.customdata")
    link.dispatch_event("click")
    wait_until(page, "() => document.querySelector('#feature-controls [name=on]')?.value")
    *edge, group = words[1:]
    assert group == "identified"  # the run has two seeds
    assert page.locator("#feature-controls [name=on]").input_value() == ".".join(edge)
    assert page.locator("#feature-controls [name=detail]").input_value() == group
    assert counted(page)[0] == link.evaluate("(path) => path.__data__.link.value")


PLACES_OF_FLOWS = """
() => [...document.querySelectorAll("#plot-flows .sankey-node")].map((node) => {
  const [label, bar] = [".node-label", ".node-rect"].map((name) => node.querySelector(name).getBoundingClientRect());
  return [label.bottom, bar.top];
})
"""


def test_labels_of_flows_stand_above_their_bars(page):
    page.wait_for_selector("#plot-flows .sankey-node", state="attached")
    places = page.evaluate(PLACES_OF_FLOWS)
    assert places
    assert all(bottom <= top for bottom, top in places)


def test_the_tab_key_walks_through_rows_that_were_not_yet_drawn(page, features):
    show_table(page)
    page.locator("#feature-rows tbody a").first.focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        page.wait_for_timeout(20)  # rows are drawn with the next frame
    assert page.evaluate("document.activeElement.textContent") == "{} / {}".format(*features[60])


# ---- one feature


def busiest(table: dict) -> int:
    return max(range(table["n"]), key=lambda latent: table["firings"][latent])


def dashboard(chunks: dict, model: str, latent: int) -> tuple[dict, list[str]]:
    """A feature's dashboard, and the texts that it refers to by index."""
    chunk = chunks[f"{model}/{latent // 128 * 128:06d}"]
    return chunk["features"][latent % 128], chunk["strings"]


def test_a_feature_opens_by_a_click_and_by_the_keyboard(page, features):
    show_table(page)
    page.locator("#feature-rows tbody a").nth(3).click()
    wait_for_feature(page, *features[3])
    assert not page.locator("#feature-list").is_visible()
    page.go_back()
    page.wait_for_selector("#feature-list", state="visible")
    page.locator("#feature-rows tbody a").nth(4).focus()
    page.keyboard.press("Enter")
    wait_for_feature(page, *features[4])
    assert page.evaluate("document.activeElement.localName") == "h3"


def reading_order(own: dict, table: dict, latent: int) -> list[int]:
    """Passages as the page orders them: the three strongest, then by corpus, the largest share first."""
    peaks = [max([0.0, *values]) for _, values in own["activations"]]
    places = range(len(peaks))
    strongest = sorted(places, key=lambda index: (-peaks[index], index))[:3]
    corpora = sorted(table["shares"], key=lambda corpus: -(table["shares"][corpus][latent] or 0.0))
    others = [index for index in places if index not in strongest]
    return strongest + sorted(others, key=lambda index: (corpora.index(own["passages"][index]["corpus"]), index))


def test_a_feature_shows_its_text_with_its_activations_and_those_of_related_features(page, tables, chunks):
    model, latent = tables[0]["model"], busiest(tables[0])
    own, _ = dashboard(chunks, model, latent)
    open_feature(page, model, latent)
    passages = page.locator("#feature-page .passage")
    assert passages.count() == len(own["passages"]) > 0
    assert len(own["others"]) > 0
    for place_on_page, index in enumerate(reading_order(own, tables[0], latent)):
        passage, lines = own["passages"][index], passages.nth(place_on_page).locator(".line")
        assert lines.count() == 1 + len(own["others"])
        for line, of in zip(lines.all(), [own, *own["others"]], strict=True):
            places, values = of["activations"][index]
            titles = line.locator(".t").evaluate_all("(tokens) => tokens.map((token) => token.title)")
            expected = dict(zip(places, values, strict=True))
            assert [float(title) if title else None for title in titles] == [
                expected.get(place) for place in range(len(passage["tokens"]))
            ]
        links = [link.get_attribute("href") for link in passages.nth(place_on_page).locator(".who a").all()]
        assert links == [f"#/feature/{other['model']}/{other['latent']}" for other in own["others"]]


def test_a_feature_shows_its_histogram_and_its_effects_on_the_logits(page, tables, chunks):
    model, latent = tables[0]["model"], busiest(tables[0])
    own, _ = dashboard(chunks, model, latent)
    open_feature(page, model, latent)
    titles = page.locator("#feature-page .histogram rect title").all_text_contents()
    assert [int(title.replace(",", "").split()[0]) for title in titles] == own["histogram"]
    assert sum(own["histogram"]) == tables[0]["firings"][latent]
    effects = page.locator("#feature-page .logits .number").all_text_contents()
    assert [float(effect) for effect in effects] == [e for name in ("raised", "lowered") for _, e in own.get(name, [])]
    assert "raised" in own


def test_the_trajectory_leads_on_to_the_same_feature_in_other_models(page, tables, chunks):
    model, latent = tables[0]["model"], busiest(tables[0])
    own, _ = dashboard(chunks, model, latent)
    open_feature(page, model, latent)
    assert page.locator("#feature-page .trajectory .name").count() == len(tables)
    for other in own["others"]:
        page.locator(f"#feature-page .trajectory a[href='#/feature/{other['model']}/{other['latent']}']").click()
        wait_for_feature(page, other["model"], other["latent"])
        page.go_back()
        wait_for_feature(page, model, latent)


def test_the_back_button_returns_to_the_table_as_it_was(page):
    show_table(page)
    page.locator("#feature-controls [name=q]").fill("left")
    page.locator("#feature-rows th[data-column=density] button").click()
    before = names(listed(page))
    page.locator("#feature-rows").evaluate("(view) => (view.scrollTop = 760)")
    page.wait_for_timeout(100)
    page.locator("#feature-rows tbody a").nth(14).evaluate("(link) => link.click()")
    page.wait_for_selector("#feature-page", state="visible")
    page.go_back()
    page.wait_for_selector("#feature-list", state="visible")
    assert page.locator("#feature-controls [name=q]").input_value() == "left"
    assert page.locator("#feature-rows th[data-column=density]").get_attribute("aria-sort") == "descending"
    assert page.locator("#feature-rows").evaluate("(view) => view.scrollTop") == 760
    page.locator("#feature-rows").evaluate("(view) => (view.scrollTop = 0)")
    page.wait_for_timeout(100)
    assert names(listed(page)) == before


def test_previous_and_next_follow_the_order_of_the_list(page):
    show_table(page)
    page.locator("#feature-rows th[data-column=density] button").click()
    first, second = names(listed(page))[:2]
    page.locator("#feature-rows tbody a").first.click()
    wait_for_feature(page, *first)
    assert page.get_by_text("← previous").get_attribute("href") is None
    page.get_by_text("next →").click()
    wait_for_feature(page, *second)
    page.get_by_text("← previous").click()
    wait_for_feature(page, *first)
    page.get_by_text("↑ all features").click()
    page.wait_for_selector("#feature-list", state="visible")
    assert names(listed(page))[:2] == [first, second]


def test_links_to_a_feature_and_to_the_table_open_them_as_they_were(browser, report: Path):
    with open_page(browser, to_uri(report / "index.html") + "#/feature/merged/3") as page:
        wait_for_feature(page, "merged", 3)
        assert page.locator("#feature-page").is_visible()
        assert page.seen == []
    with open_page(browser, to_uri(report / "index.html") + "#/features?q=%252B&model=left&sort=r&down=1") as page:
        wait_until(page, "() => document.querySelector('#feature-controls [name=model]')?.value === 'left'")
        assert page.locator("#feature-controls [name=q]").input_value() == "%2B"
        assert page.locator("#feature-rows th[data-column=r]").get_attribute("aria-sort") == "descending"


def test_an_address_without_a_feature_says_so(page):
    for address in ("base/99999", "nobody/0", "base/x", "%", "base/0/0"):
        open_feature(page, "base", 1)
        page.evaluate("address => (location.hash = '#/feature/' + address)", address)
        page.wait_for_selector("#feature-list", state="visible")
        assert "no feature" in page.locator("#feature-count").text_content()
        assert not page.locator("#feature-page").is_visible()


# ---- other places


def test_a_page_without_its_data_says_what_is_missing_and_shows_the_rest(browser, report: Path, tmp_path: Path):
    shutil.copy(report / "index.html", tmp_path)
    with open_page(browser, to_uri(tmp_path / "index.html")) as page:
        page.evaluate("location.hash = '#/features'")
        wait_until(page, "() => document.getElementById('feature-count').textContent.includes('/table.js')")
        assert "report/" in page.locator("#feature-count").text_content()
        page.wait_for_selector("#plot-flows svg.main-svg", state="attached")
        assert [words for words in page.seen if "ERR_FILE_NOT_FOUND" not in words] == []


def test_a_missing_chunk_is_named_instead_of_its_feature(browser, report: Path, tmp_path: Path):
    shutil.copytree(report, tmp_path / "report")
    (tmp_path / "report/data/mlp/left/000000.js").unlink()
    with open_page(browser, to_uri(tmp_path / "report/index.html") + "#/feature/left/3") as page:
        wait_until(page, "() => document.getElementById('feature-count').textContent.includes('left/000000.js')")
        assert page.locator("#feature-list").is_visible()
        assert [words for words in page.seen if "ERR_FILE_NOT_FOUND" not in words] == []


def test_a_page_in_a_single_file_works_alone(browser, finished: Checkout, features, tmp_path: Path):
    checkout = Checkout(tmp_path / "checkout", finished.folder)
    checkout.config.write_text(checkout.config.read_text() + "report: {single_file: true}\n")
    # Of the triggers only params: nothing but the setting has changed.
    done = checkout.snakemake(
        "--cores",
        "1",
        "--rerun-triggers",
        "params",
        "--allowed-rules",
        "write_report",
        "--",
        "results/tiny/report/index.html",
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    alone = tmp_path / "alone.html"
    shutil.move(checkout.folder / "results/tiny/report/index.html", alone)
    shutil.rmtree(checkout.folder)
    with open_page(browser, to_uri(alone) + "#/feature/merged/3") as page:
        wait_for_feature(page, "merged", 3)
        show_table(page)
        assert names(listed(page)) == features
        assert page.seen == []


def test_a_page_from_a_server_works_as_from_the_disk(browser, report: Path, features):
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with (
        serving(partial(quiet, directory=report)) as address,
        open_page(browser, f"{address}/index.html#/feature/merged/3") as page,
    ):
        wait_for_feature(page, "merged", 3)
        show_table(page)
        assert names(listed(page)) == features
        assert page.seen == []


# ---- hostile text


def hostile_features(chunks: dict) -> Iterator[tuple[str, int, dict, list[str]]]:
    """Features of one model with a passage of hostile text: markup, NUL, direction marks."""
    for name, chunk in sorted(chunks.items()):
        model, first = name.split("/")
        if model != "base" or first == "table":
            continue
        for latent, own in enumerate(chunk["features"], int(first)):
            for passage in own["passages"]:
                text = "".join(chunk["strings"][token] for token in passage["tokens"])
                if "<script" in text or "onerror" in text or "\0" in text or "\u202e" in text:
                    yield model, latent, own, chunk["strings"]
                    break


def test_hostile_text_stays_text_in_the_pages_of_features(page, chunks):
    found = list(hostile_features(chunks))
    assert len(found) >= 3
    texts = set()
    for model, latent, own, strings in found[:12]:
        open_feature(page, model, latent)
        lines = page.locator("#feature-page .passage").evaluate_all(
            "(passages) => passages.map((passage) => passage.querySelector('.text').textContent)"
        )
        for line, passage in zip(lines, own["passages"], strict=True):
            texts.add("".join(strings[token] for token in passage["tokens"]))
            assert UNSEEN.search(line) is None, line
        made = page.locator("#feature-page .passage *").evaluate_all("(parts) => parts.map((part) => part.localName)")
        assert set(made) <= {"p", "div", "span", "a"}
        assert page.locator("#feature-page :is(script, img, iframe, base, extra)").count() == 0
    shown = "".join(texts)
    assert "<script" in shown or "onerror" in shown
    assert UNSEEN.search(shown) is not None


def test_hostile_text_can_be_searched_and_stays_text(page):
    show_table(page)
    page.locator("#feature-controls [name=q]").fill("<img src=x onerror=alert(1)>")
    assert counted(page)[0] == 0
    page.locator("#feature-controls [name=q]").fill("<")
    assert page.locator("#feature-rows :is(script, img, iframe, base, extra)").count() == 0
    texts = "".join(page.locator("#feature-rows .token").all_text_contents())
    assert UNSEEN.search(texts) is None
