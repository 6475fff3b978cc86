"""Time the page of a run with 65,536 features: to write, to open, to search, to sort, to scroll.

    python -m benchmarks.report [--page results/demo/report/index.html] [--json FILE]

Four models of one lineage are drawn at random: their features' firings on some 100,000 tokens of four corpora
(densities log-normal, so that a few features fire often and most rarely), verdicts, matches and labels. The functions
of the workflow write the page, and Chromium opens it from disk. Times are those that a reader sees: from a key to the
frame with the new rows.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
from benchmarks.peak_memory import PeakMemory
from tests.browser import chromium, open_page, wait_until

from saelineage.files.atomic import write_text
from saelineage.labels.annotations import Annotations
from saelineage.labels.passages import Firings
from saelineage.lineage.evidence import GROUPS
from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.trajectories import counts
from saelineage.lineage.verdicts import VERDICTS
from saelineage.plan.paths import PAGE_SOURCES
from saelineage.report import tables as report_tables
from saelineage.report.dashboards import (
    FEATURES_PER_CHUNK,
    Dashboards,
    Shown,
    feature_table,
    logit_effects,
    packed,
    related_features,
)
from saelineage.report.page import Results, render_page
from write_report import read_sources

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
HOOKPOINT = "mlp"
LINEAGE: dict[str, list[str]] = {"base": [], "left": ["base"], "right": ["base"], "merged": ["left", "right"]}
EDGES = [(parent, child) for child, parents in LINEAGE.items() for parent in parents]
CORPORA = ("stories", "articles", "python", "lua")
N_CTX, N_STRINGS, L0, D_IN = 256, 6000, 32, 128
DENSITY_SIGMA, FOUND_SHARE, UNTESTABLE_SHARE = 1.5, 0.7, 0.1
N_REPEATS, SCROLLED_ROWS, ROW_HEIGHT, ROWS_A_FRAME = 20, 5000, 38, 20
COLUMNS = ("feature", "verdicts", "r", "no_change", "density", "corpora", "tokens", "label", "score")
LENGTHS = (1, 2, 3, 5, 8)
"""Lengths of the words searched for, in characters."""

LISTS = ("sae_metrics", "differences", "matrix_changes", "lines")
FRAMES = ("share_curves", "features")
"""Fields of `TableInputs` that are lists and tables; the others are mappings."""

WATCH = """
() => {
  // Times from an event, as the browser dates it, to the frame that shows what it changed in the table.
  window.times = [];
  let from = null;
  const begin = (event) => (from = event.timeStamp);
  for (const name of ["keydown", "pointerup"]) document.addEventListener(name, begin, true);
  const channel = new MessageChannel();
  channel.port1.onmessage = () => { if (from !== null) window.times.push(performance.now() - from); from = null; };
  new MutationObserver(() => requestAnimationFrame(() => channel.port2.postMessage(0)))
    .observe(document.querySelector("#feature-rows tbody"), { childList: true });
}
"""
FILTER = """
([name, value]) => new Promise((done) => {
  const control = document.querySelector(`#feature-controls [name=${name}]`), from = performance.now();
  control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - from)));
})
"""
SCROLL = """
([rows, height, step]) => new Promise((done) => {
  const view = document.getElementById("feature-rows"), frames = [];
  let last = null;
  view.scrollTop = 0;
  requestAnimationFrame(function go(now) {
    if (last !== null) frames.push(now - last);
    last = now;
    view.scrollTop += step * height;
    const end = Math.min(rows * height, view.scrollHeight - view.clientHeight - 1);
    view.scrollTop < end ? requestAnimationFrame(go) : done(frames);
  });
})
"""
OPEN = """
([model, latent]) => new Promise((done) => {
  const page = document.getElementById("feature-page"), from = performance.now();
  new MutationObserver((_, observer) => {
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - from)));
  }).observe(page, { childList: true });
  location.hash = `#/feature/${model}/${latent}`;
})
"""


# ---- drawing


def draw_annotations(n_tokens: int, random: np.random.Generator) -> Annotations:
    """Draw words with a frequency that falls with their rank; each row is BOS and a document."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = {" " + "".join(random.choice(letters, random.integers(2, 9))) for _ in range(2 * N_STRINGS)}
    strings = sorted(words)[:N_STRINGS]
    random.shuffle(strings)
    n_rows = n_tokens // N_CTX // len(CORPORA) * len(CORPORA)
    pieces = (random.zipf(1.3, (n_rows, N_CTX)) - 1) % N_STRINGS
    documents = np.repeat(np.arange(n_rows)[:, None], N_CTX, axis=1)
    pieces[:, 0], documents[:, 0] = -1, -1
    starts = {corpus: index * n_rows // len(CORPORA) * N_CTX for index, corpus in enumerate(CORPORA)}
    nothing = scipy.sparse.csr_array((n_rows * N_CTX, 0), dtype=bool)
    return Annotations(starts, N_CTX, pieces.ravel(), strings, documents.ravel(), [], nothing)


def draw_firings(n_tokens: int, d_sae: int, random: np.random.Generator) -> Firings:
    """Draw about L0 latents on every token but BOS."""
    ends = np.cumsum(np.exp(random.normal(0, DENSITY_SIGMA, d_sae)))
    latents = np.searchsorted(ends / ends[-1], random.random(n_tokens * L0)).clip(max=d_sae - 1)
    tokens = np.repeat(np.arange(n_tokens), L0)
    fires = tokens % N_CTX > 0
    values = random.gamma(2.0, 1.0, len(tokens)).astype(np.float32)
    shape = (n_tokens, d_sae)
    columns = scipy.sparse.coo_array((values[fires], (tokens[fires], latents[fires])), shape=shape).tocsc()
    columns.sort_indices()
    return Firings(columns, ("probe",))


def draw_side(side: str, d_sae: int, random: np.random.Generator) -> pd.DataFrame:
    """Draw one side of an edge's table."""
    testable, matched = random.random(d_sae) >= UNTESTABLE_SHARE, random.random(d_sae) < FOUND_SHARE
    yes, *others = VERDICTS[SIDES.index(side)]
    r = np.where(matched, random.uniform(0.8, 1.0, d_sae), random.uniform(0.1, 0.8, d_sae))
    lost = testable & ~matched
    other = random.choice(others, d_sae)
    return pd.DataFrame(
        {
            "side": side,
            "verdict": np.where(testable, np.where(matched, yes, other), UNTESTABLE),
            "match": np.where(testable, random.permutation(d_sae), -1),
            "r": np.where(testable, r, np.nan),
            "r_low": np.where(testable, r - 0.02, np.nan),
            "r_high": np.where(testable, r + 0.02, np.nan),
            "kind": random.choice(["1:1", "split", "merged"], d_sae, p=[0.9, 0.05, 0.05]),
            "change": "",
            "identified": random.random(d_sae) < 0.3,
            "headline": lost & (random.random(d_sae) < 0.3),
            "robust": lost & (random.random(d_sae) < 0.1),
            "importance": np.where(testable, random.exponential(1.0, d_sae), np.nan),
            "all_agree": random.random(d_sae) < 0.2,
        }
    )


def draw_features(firings: dict[str, Firings], random: np.random.Generator) -> pd.DataFrame:
    """Draw `lineage/features.parquet`: the latents of each feature in all models."""
    tables = []
    for model, of_model in firings.items():
        n_tokens, d_sae = of_model.columns.shape
        n_firings = np.diff(of_model.columns.indptr)
        table = {"model": model, "sae": "seed0", "latent": np.arange(d_sae), "firings": n_firings}
        table["density"] = n_firings / n_tokens
        for target in firings:
            matched = random.random(d_sae) < FOUND_SHARE
            table[f"in_{target}"] = np.where(matched, random.permutation(d_sae), -1)
            table[f"r_{target}"] = np.where(matched, random.uniform(0.8, 1.0, d_sae), np.nan)
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def draw_labels(d_sae: int, strings: list[str], random: np.random.Generator) -> pd.DataFrame:
    """Draw a label for most features."""
    latents = np.flatnonzero(random.random(d_sae) < 0.8)
    words = [f"token '{strings[index]}'" for index in random.integers(0, N_STRINGS, len(latents))]
    scores = {name: random.random(len(latents)) for name in ("score", "precision", "recall")}
    return pd.DataFrame({"latent": latents, "kind": "token", "label": words, "n_documents": 9, **scores})


def draw_run(args: argparse.Namespace) -> SimpleNamespace:
    """Draw everything that a page is made from."""
    random = np.random.default_rng(args.seed)
    annotations, d_sae = draw_annotations(args.tokens, random), args.features_per_model
    firings = {model: draw_firings(len(annotations.pieces), d_sae, random) for model in LINEAGE}
    edges = {edge: pd.concat([draw_side(side, d_sae, random) for side in ("parent", "child")]) for edge in EDGES}
    labels = {model: draw_labels(d_sae, annotations.strings, random) for model in LINEAGE}
    features = draw_features(firings, random)
    return SimpleNamespace(annotations=annotations, firings=firings, edges=edges, labels=labels, features=features)


# ---- writing


def write_model(run: SimpleNamespace, model: str, folder: Path, random: np.random.Generator) -> None:
    """Write the files of `write_dashboards` for a model."""
    edges, firings = {edge: table for edge, table in run.edges.items() if model in edge}, run.firings[model]
    d_sae = firings.columns.shape[1]
    no_change = random.uniform(0.5, 1.0, d_sae)
    labels, decoder = run.labels[model], random.normal(size=(d_sae, D_IN))
    explained = labels[["latent", "score"]].assign(explanation="fires on " + labels["label"] + " in running text")
    table = feature_table(model, run.features, edges, firings, run.annotations, labels, explained, no_change)
    write_text(folder / "table.js", packed(f"{HOOKPOINT}/{model}/table", table))
    boards = Dashboards(firings, run.annotations, Shown(2, (0.75, 0.25)))
    for related in related_features(model, run.features, edges):
        boards.add(related, run.firings[related.model])
    to_norm, unembedding = np.eye(D_IN), random.normal(size=(N_STRINGS, D_IN))
    for first in range(0, d_sae, FEATURES_PER_CHUNK):
        effects = logit_effects(
            decoder[first : first + FEATURES_PER_CHUNK], to_norm, unembedding, run.annotations.strings
        )
        write_text(folder / f"{first:06d}.js", packed(f"{HOOKPOINT}/{model}/{first:06d}", boards.chunk(first, effects)))


def summary_of(run: SimpleNamespace) -> dict:
    """Make a run's summary that holds only the numbers of features."""
    names = ("persist_share", "inherited_share", "no_change_share", "two_seed_share", "child_two_seed_share")
    unknown: dict[str, object] = {
        f"{name}{part}": None for name in (*names, "relative_persistence") for part in ("", "_n", "_interval")
    }
    edges = []
    for (parent, child), table in run.edges.items():
        of_side = {side: table[table["side"] == side] for side in SIDES}
        groups = {
            group: unknown | {"control_shares": {}, "corpora": {}} | counts(of_side, only_identified=group == GROUPS[0])
            for group in GROUPS
        }
        edges.append({"parent": parent, "child": child, "instrument": "independent", "groups": groups, **unknown})
        edges[-1] |= {"kinds": {"1:1": 0, "split": 0, "merged": 0}, "shares_basis": True, "shares_scale": True}
        edges[-1] |= dict.fromkeys(("relocated", "rescaled", "partial"), 0)
        edges[-1]["study"] = dict.fromkeys(("persists", "disappears", "inherited", "emerges"), 0)
    summary = {"run": "benchmark", "threshold": 0.8, "identified_from": 1.0, "relocated_below": 0.5, "edges": edges}
    summary |= {"models": list(LINEAGE), "leading": "independent", "saes": dict.fromkeys(LINEAGE, "seed0")}
    return summary | {"instruments": [], "agreements": [], "crosscoder": [], "sources": {}}


def tables_of(summary: dict) -> dict[str, pd.DataFrame]:
    """Make every table of the page, most of them empty."""
    losses = {"loss": 2.0, "accuracy": 0.5, "unigram_loss": 5.0, "n_predictions": 1000}
    metrics = [{"model": model, "corpora": dict.fromkeys(CORPORA, losses)} for model in LINEAGE]
    empty: dict[str, Any] = {name: {} for name in report_tables.TableInputs._fields}
    empty |= {name: [] for name in LISTS} | {name: pd.DataFrame() for name in FRAMES}
    made = {"corpora": list(CORPORA), "made": dict.fromkeys(LINEAGE, "pretrained here"), "model_metrics": metrics}
    found = empty | made | {"summary": summary, "importance_agreement": None}
    return report_tables.make_tables(report_tables.TableInputs(**found))


def write_page(run: SimpleNamespace, path: Path) -> None:
    """Write a page with all scripts and the table of features; its other sections are empty."""
    summary = summary_of(run)
    results = Results(
        config={
            "models": {name: {"parents": parents} for name, parents in LINEAGE.items()},
            "lineage": {"ablated_rows": 16},
        },
        hookpoint=HOOKPOINT,
        pages={HOOKPOINT: "index.html"},
        making="making.html",
        corpora=list(CORPORA),
        swept={},
        summary=summary,
        tables=tables_of(summary),
        examples={"named": [], "persisting": [], "changed": [], "n_models": len(LINEAGE)},
        timings=pd.DataFrame(),
        manifests={},
        jobs=[{"id": 0, "rule": "write_report", "name": "", "stage": "report", "needs": []}],
        rulegraph_svg="<svg></svg>",
        same_weights=[],
        chunks={},
    )
    sources = read_sources([str(ROOT / "workflow" / "report" / name) for name in PAGE_SOURCES])
    write_text(path, render_page(results, sources))


def written(run: SimpleNamespace, folder: Path, seed: int) -> dict:
    """Write the whole report; return seconds, peak memory, bytes and number of files."""
    random = np.random.default_rng(seed)
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    for model in LINEAGE:
        write_model(run, model, folder / "data" / HOOKPOINT / model, random)
    ended = time.perf_counter()
    write_page(run, folder / "index.html")
    files = list((folder / "data").rglob("*.js"))
    return {
        "write_s": ended - start,
        "write_peak_gib": memory.stop() / 2**30,
        "page_mb": (folder / "index.html").stat().st_size / 1e6,
        "tables_mb": sum(path.stat().st_size for path in files if path.name == "table.js") / 1e6,
        "data_mb": sum(path.stat().st_size for path in files) / 1e6,
        "n_files": len(files) + 1,
    }


# ---- reading


def first_paint(url: str) -> dict:
    """Median ms of three from opening the page in a fresh browser to the first frame with text."""
    times = []
    for _ in range(3):
        with chromium() as browser, open_page(browser, url) as page:
            wait_until(page, "() => performance.getEntriesByName('first-contentful-paint').length")
            times.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    return {"first_paint_ms": statistics.median(times)}


def summed_up(name: str, times: list[float]) -> dict:
    """Median and maximum of some times, in ms."""
    return {f"{name}_ms": statistics.median(times), f"{name}_worst_ms": max(times)}


def searched(page: "Page", run: SimpleNamespace, seed: int) -> dict:
    """Time from key to rows by the number of letters typed, of words of the probe."""
    random = np.random.default_rng(seed)
    field = page.locator("#feature-controls [name=q]")
    words = [text.strip() for text in run.annotations.strings if len(text.strip()) >= max(LENGTHS)]
    times: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for word in random.choice(words, N_REPEATS):
        field.fill("")
        for length, letter in enumerate(str(word)[: max(LENGTHS)], 1):
            times.get(length, []).append(timed(page, partial(field.press, letter)))
    return dict(itertools.chain.from_iterable(summed_up(f"search_{n}", ms).items() for n, ms in times.items()))


def timed(page: "Page", action: Callable[[], None]) -> float:
    """Time from an event to the frame with new rows, in ms."""
    page.evaluate("window.times = []")
    action()
    wait_until(page, "() => window.times.length")
    return page.evaluate("window.times[0]")


def sorted_by(page: "Page") -> Iterator[tuple[str, float]]:
    """Time from a click on a column's name to rows in another order, the slower of both directions."""
    page.locator("#feature-controls [name=q]").fill("")
    for column in COLUMNS:
        button = page.locator(f"#feature-rows th[data-column={column}] button")
        yield column, max(timed(page, button.click) for _ in range(2))


def filtered(page: "Page") -> dict:
    """Time from a choice to rows, for every filter."""
    choices = {"model": "left", "on": "base.left.parent.gone", "corpus": "lua", "kind": "token", "detail": "identified"}
    times = {name: page.evaluate(FILTER, [name, value]) for name, value in choices.items()}
    for name in choices:
        page.evaluate(FILTER, [name, ""])
    return {f"filter_{name}_ms": value for name, value in times.items()}


def read(run: SimpleNamespace, url: str, seed: int) -> dict:
    """Measure every wait of a reader."""
    random = np.random.default_rng(seed)
    with chromium() as browser, open_page(browser, url) as page:
        start = time.perf_counter()
        page.evaluate("location.hash = '#/features'")
        page.wait_for_selector("#feature-rows tbody a", state="attached")
        row = {"table_ms": 1e3 * (time.perf_counter() - start)}
        page.evaluate(WATCH)
        row |= searched(page, run, seed)
        row |= {f"sort_{column}_ms": ms for column, ms in sorted_by(page)} | filtered(page)
        page.evaluate(FILTER, ["sort", "feature"])
        row["scroll_longest_frame_ms"] = max(page.evaluate(SCROLL, [SCROLLED_ROWS, ROW_HEIGHT, ROWS_A_FRAME]))
        d_sae = run.firings["base"].columns.shape[1]
        chosen = [(str(random.choice(list(LINEAGE))), int(random.integers(d_sae))) for _ in range(N_REPEATS)]
        row |= summed_up("open_feature", [page.evaluate(OPEN, list(feature)) for feature in chosen])
        row["page_memory_mb"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    return row


def main() -> None:
    """Write a report, read it, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features-per-model", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=102_400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where to keep the report; a report that is already there is only read"
    )
    parser.add_argument("--page", type=Path, help="another page whose first paint is measured too")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    run = draw_run(args)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        row = {} if (folder / "index.html").exists() else written(run, folder, args.seed)
        url = (folder / "index.html").resolve().as_uri()
        row |= first_paint(url) | read(run, url, args.seed)
    if args.page:
        row["other_page_first_paint_ms"] = first_paint(args.page.resolve().as_uri())["first_paint_ms"]
    for key, value in row.items():
        print(f"{key:28}{value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
