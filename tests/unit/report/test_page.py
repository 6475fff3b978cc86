"""The page shows what was found with its controls and what was not measured, and lets no text become markup."""

import base64
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from saelineage.plan.paths import PAGE_SOURCES
from saelineage.report import page as report
from saelineage.report.dashboards import FEATURES_PER_CHUNK, VERDICTS, packed
from saelineage.report.figures import FIGURES
from saelineage.report.page import (
    PAGE,
    Results,
    Sources,
    csv_link,
    digests,
    facts,
    lines,
    render_making,
    render_page,
    versions,
)
from saelineage.report.style import UNSEEN, colours_of
from saelineage.report.tables import (
    TableInputs,
    ablation_table,
    by_corpus_table,
    drift_table,
    flow_table,
    intruder_table,
    make_tables,
    matching_table,
    score_table,
    source_table,
    timing_table,
    weight_table,
)
from saelineage.report.views import (
    ablations_view,
    flows_view,
    leading_groups,
    matchings_view,
    of_first_seed,
    overview,
    sources_view,
)
from tests.unit.report.test_changes import changed, decomposed, drift
from tests.unit.report.test_sentences import plain
from tests.unit.report.test_tables import a_control, a_share, comparison, measured_jobs, sae_metrics, summary

COLOURS = colours_of(["base", "merged"], [])
TEMPLATES = Path(report.__file__).parents[3] / "report"
EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """The tags, ids and scripts of a page."""

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


def config(*models: str) -> dict:
    """A config in which the last model is merged from the first."""
    made = {model: {"pretrain": {}} for model in models[:-1]}
    made |= {models[-1]: {"merge": {"parents": [models[0], models[0]]}}}
    return {"run": "tiny", "models": made, "lineage": {"ablated_rows": 16}}


def model_metrics(*models: str) -> list[dict]:
    numbers = {"loss": 2.0, "accuracy": 0.5, "unigram_loss": 3.0, "n_predictions": 10}
    return [{"model": model, "corpora": {"lua": numbers}} for model in models]


def examples(text="x", corpus="lua") -> dict:
    members = [
        {"model": model, "sae": "seed0", "latent": 3, "max_activation": 4.0, "label": text, "score": 0.25}
        for model in ("base", "merged")
    ]
    passage = {"corpus": corpus, "row": 0, "first": 1, "tokens": [text, "y"], "activations": [[4.0, 0.0], [2.0, 0.0]]}
    feature = {"members": members, "r": [[1.0, None], [None, 1.0]], "density": 0.1, "passages": [passage]}
    persisting = feature | {"n_models": 2, "least_r": 0.9}
    lost = feature | {
        **{"headline": True, "identified": True, "importance": 1.5, "effect": 2.5, "exact_effect": None},
        **{"contrast_corpus": corpus, "match": 3, "match_r": 0.3, "match_r_low": 0.2, "match_r_high": 0.4},
        **{"densities": {corpus: 0.125}, "match_densities": {corpus: 0.25}, "returns_in": "back"},
    }
    edges = [{"parent": "base", "child": "merged", "gone": [lost], "new": []}]
    scores = {"score": 0.75, "precision": 0.5, "recall": 0.25}
    parts = {"assignment": (f"assignment {text}", [corpus]), "exception": ("exception", [])}
    named = [
        feature
        | scores
        | {"concept": concept, "part": part, "found": models, "labels": [{"label": text, "score": None}]}
        for concept, (part, models) in parts.items()
    ]
    return {"n_models": 2, "named": named, "persisting": [persisting], "changed": edges}


def curves(found: dict) -> pd.DataFrame:
    """Two points of each curve of a summary."""
    rows = [
        {key: row[key] for key in ("parent", "child", "instrument")} | {"name": name, "threshold": r, "share": 1 - r}
        for row in found["instruments"]
        for name in ("edge", "no change", *row["controls"])
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


def verdicts() -> pd.DataFrame:
    """Verdicts on latents 0 and 1 of either side."""
    named = ["persists", "gone", "inherited", "new"]
    return pd.DataFrame({"side": ["parent"] * 2 + ["child"] * 2, "latent": [0, 1, 0, 1], "verdict": named})


def class_labels() -> pd.DataFrame:
    """Latent 0 fires on messages of the user, latent 1 on template tokens."""
    shares = {"template": [0.0, 0.75], "system": [0.0, 0.25], "user": [1.0, 0.0], "assistant": [0.0, 0.0]}
    rows = [(latent, name, share[latent]) for name, share in shares.items() for latent in range(2)]
    return pd.DataFrame(rows, columns=["latent", "label", "precision"])


def sourced(found: dict) -> dict:
    """A summary with the sources of its last model."""
    parent, merge = found["models"]
    shares = {name: a_share("share", 0.25) for name in (parent, "both", "new")}
    return found | {"sources": {merge: shares}}


def scored(models: list[str], sae: str = "seed0") -> dict[tuple[str, str], pd.DataFrame]:
    """Two scores of each model."""
    label = {"latent": [0, 1], "kind": "token", "label": ["cat", "<b>"], "n_documents": 9, "score": [0.5, 0.25]}
    return {(model, sae): pd.DataFrame(label) for model in models}


def importance() -> pd.DataFrame:
    """Latent 1 of the parent is gone, and latent 1 of the child new."""
    measured = {"effect": 2.5, "exact_effect": [np.nan, 2.25] * 2, "contrast_corpus": "lua", "density": 0.125}
    known = {"identified": False, "headline": False, "r": 0.5, "match": 0, "match_density": 0.25}
    return verdicts().assign(**known, **measured, importance=1.875)


def agreements() -> pd.DataFrame:
    rows = {"parent": ["base", "pooled"], "child": ["merged", "pooled"], "side": ["child", "pooled"]}
    return pd.DataFrame({**rows, "n": [1, 12], "pearson": [np.nan, 0.5], "spearman": [np.nan, 0.75]})


def passages(text: str = "end") -> pd.DataFrame:
    losses = {"loss_parent": 9.0, "loss_child": 1.0, "loss_sibling": 8.0, "sibling": "other", "gain": 7.0}
    place = {"corpus": "lua", "row": 3, "place": 4, "document": 5}
    words = {"before": f"{text} if ", "text": text, "after": f" then {text}", "latents": [np.array([1, 0])]}
    return pd.DataFrame(place | losses | words | {"strengths": [np.array([1.0, 0.5])]})


def passage_features() -> pd.DataFrame:
    known = {"latent": [0, 1], "verdict": ["inherited", "new"], "identified": False, "headline": False}
    return pd.DataFrame(known | {"n_there": 1, "n": 1, "base": 0.25, "lift": 4.0, "log10_p": -0.6})


def acts(text: str = "end") -> pd.DataFrame:
    """A new feature's only passage, continued by the child as it is, and by the parent with the feature added."""
    place = {"latent": 1, "passage": 0, "corpus": "lua", "row": 3, "place": 4, "strength": 2.5}
    words = {"before": f"{text} if ", "text": text, "next": [np.array([text, "x"])] * 2, "continuation": f" {text}"}
    settings = {"model": ["child", "parent"], "setting": ["as it is", "added"], "value": [np.nan, 2.5], "random": -1}
    compared = {"same_next": [True, False], "n_same": [12, 0], "n_new": 12, "kl": [0.0, 1.75]}
    return pd.DataFrame(place | words | settings | {"probabilities": [np.array([0.5, 0.25])] * 2} | compared)


def act_summary(does: str = "closer") -> pd.DataFrame:
    """What was done with the parent as it is, and with features added."""
    named = {"model": "parent", "setting": ["as it is", "added"], "n_features": 3, "n_passages": 9}
    bounded = {"same_next": 0.25, "same_all": 0.125, "kl": 1.5, "kl_fall": [np.nan, 0.75]}
    bounded |= {"kl_fall_beside_random": [np.nan, 0.625]}
    ends = {f"{name}{end}": value for name, value in bounded.items() for end in ("", "_low", "_high")}
    return pd.DataFrame(named | ends | {"does": [None, does]})


def patches() -> pd.DataFrame:
    """New features patched on a corpus with a clear gain, and on one without."""
    losses = {"loss_parent": 3.0, "loss_child": 2.0, "loss_patched": 2.5, "gain": 1.0, "gain_low": [0.5, -0.5]}
    counts = {"group": "new", "n_latents": 7, "n_tokens": 99, "n_documents": 9, "n_draws": 3, "n_latents_random": 7.0}
    shares = {name: [0.4375, np.nan] for name in ("recovered", "recovered_low", "recovered_high")}
    shares |= {f"recovered_random{end}": [0.0625, np.nan] for end in ("", "_least", "_largest")}
    return pd.DataFrame({"corpus": ["lua", "stories"]} | counts | losses | {"gain_high": 1.5} | shares)


def samples(text: str = "end") -> pd.DataFrame:
    """Two samples of each way."""
    ways = ["contrast", "alone", "itself", "other draws"]
    return pd.DataFrame({"way": np.repeat(ways, 2), "sample": [0, 1] * 4, "start": ["", text] * 4, "text": text})


def enriched(n_by_chance: int = 0) -> pd.DataFrame:
    """A new feature that is enriched, and an inherited one that is not."""
    named = {"latent": [1, 0], "verdict": ["new", "inherited"], "identified": True, "headline": False}
    shares = {
        f"samples_{way}{end}": [share, 0.25]
        for way, share in {"contrast": 0.875, "alone": 0.375, "itself": 0.5}.items()
        for end in ("", "_low", "_high")
    }
    marks = {"enriched": [True, False], "by_chance": [False, bool(n_by_chance)], "n_samples": 8}
    return pd.DataFrame(named | shares | {"tokens_contrast": 0.25, "tokens_alone": 0.125} | marks)


def exclusivity() -> pd.DataFrame:
    """The shares of a crosscoder's latents on one edge, and its floor."""
    pair = {"edge": "base__lua", "parent": "base", "fvu_parent": 0.2, "fvu_child": 0.25}
    counts = {"persists": 6, "rotated": 1, "emerges": 2, "disappears": 1, "untestable": 3}
    shares = {"persist_share": 0.75, "persist_share_n": 8, "inherited_share": 0.625, "inherited_share_n": 8}
    ends = {
        "persist_share_low": 0.5,
        "persist_share_high": 0.9,
        "inherited_share_low": 0.4,
        "inherited_share_high": 0.8,
    }
    edge = pair | counts | shares | ends | {"child": "lua", "role": "edge"}
    return pd.DataFrame([edge, edge | {"child": "base", "role": "the parent on other documents"}])


def latent_verdicts() -> pd.DataFrame:
    """The verdicts of a crosscoder with two latents."""
    edge = {"edge": "base__lua", "role": "edge", "latent": [0, 1]}
    return pd.DataFrame(edge | {"verdict": ["persists", "emerges"]})


def crosscoder_matches() -> pd.DataFrame:
    """The match of the first seed's second latent; its first has none."""
    of_first = {"model": "lineage", "sae": SEEDS[0], "latent": [0, 1]}
    return pd.DataFrame(of_first | {"match": [-1, 1], "r": [np.nan, 0.95]})


def exclusivity_curves() -> pd.DataFrame:
    """The curves over thresholds of a crosscoder's edge and floor."""
    counts = {"threshold": [0.02, 1.0], "parent_only": [0, 9], "child_only": [1, 8], "n_testable": 10}
    pair = {"edge": "base__lua", "parent": "base", "nu_error_below": 0.2, "nu_reconstruction_below": 0.5}
    sides = {"edge": "lua", "the parent on other documents": "base"}
    return pd.concat([pd.DataFrame(pair | counts | {"role": role, "child": child}) for role, child in sides.items()])


def decoder_norms() -> pd.DataFrame:
    """The norms of three latents in two models; the last one fires too seldom."""
    of_models = [("base", "lineage", [1.0, 2.0, 1.0]), ("lua", "lineage", [2.0, 0.0, 9.0])]
    rows = [
        {"model": model, "role": role, "latent": latent, "n_firings": 20 - latent, "norm": norm, "fires": latent < 2}
        for model, role, norms in of_models
        for latent, norm in enumerate(norms)
    ]
    return pd.DataFrame(rows)


def crosscoder_ablations() -> pd.DataFrame:
    """The losses of an edge's child without two latents that emerge, and without those that disappear, of none."""
    edge = {"edge": "base__lua", "parent": "base", "child": "lua", "side": "child", "corpus": "lua"}
    losses = {"n_tokens": 99, "loss": 3.0, "loss_reconstructed": 3.25, "n_draws": 3, "n_firings_random": 8.5}
    nan = np.nan
    of_verdict = {
        "verdict": ["emerges", "disappears"],
        "n_latents": [2, 0],
        "n_firings": [9, 0],
        "loss_without": [3.375, nan],
        "loss_change": [0.125, nan],
        "loss_change_low": [0.0625, nan],
        "loss_change_high": [0.1875, nan],
        "loss_change_per_firing": [1.375, nan],
        "loss_change_random": [0.0312, nan],
        "loss_change_random_least": [0.0123, nan],
        "loss_change_random_largest": [0.0456, nan],
        "loss_change_random_per_firing": [0.36, nan],
    }
    return pd.DataFrame(edge | losses | of_verdict)


def differences(child: str, role: str) -> pd.DataFrame:
    """The figures of one difference SAE, over all corpora and on one."""
    named = {"parent": "base", "child": child, "role": role, "seed": "seed0", "n_tokens": 100, "l0": 4.0}
    sizes = {"difference_size": 0.125, "rounding_share": 0.0625, "fvu": 0.375, "n_latents": 16, "n_alive": 9}
    counts = {"n_testable": 8, "child_alone": 4, "parent_alone": 1, "both": 1, "opposite": 2, "neither": 0}
    share = {"child_alone_share": 0.5, "child_alone_share_n": 8, "child_alone_share_low": 0.25}
    share |= {"child_alone_share_high": 0.75, "child_alone_share_floor": np.nan, "child_alone_share_null": 0.125}
    return pd.DataFrame([named | sizes | counts | share | {"corpus": corpus} for corpus in ("pooled", "lua")])


def inputs(found: dict) -> TableInputs:
    """What the stages saved for a summary."""
    curve = {"step": [1], "tokens": [9], "loss": [1.0], "fvu": [0.5], "l0": [4.0], "dead_fraction": [0.0]}
    sweep = pd.DataFrame({"model": [None, "base"], "t": [0.0, np.nan], "corpus": "lua", "loss": 2.0, "accuracy": 0.5})
    sweep = sweep.assign(n_predictions=9, barrier=[-0.1, np.nan], is_best=[True, False])
    edges = [f"{edge['parent']}__{edge['child']}" for edge in found["edges"]]
    return TableInputs(
        corpora=["lua"],
        made=dict.fromkeys(found["models"], "pretrained here") | {found["models"][-1]: "merged, t = 0.58"},
        summary=found,
        summaries={"mlp": found, "late": found},
        model_metrics=model_metrics(*found["models"]),
        sae_metrics=[sae_metrics()],
        training_curves={("base", "seed0"): pd.DataFrame(curve)},
        share_curves=curves(found),
        merged_models={merge: found["models"][:1] for merge in found["sources"]},
        merges={"merged": merge_record()},
        sweeps={"merged": sweep},
        followed={"merged": followed()},
        exclusivity={("lineage", seed): exclusivity() for seed in SEEDS},
        latent_verdicts={("lineage", seed): latent_verdicts() for seed in SEEDS},
        crosscoder_matches={("lineage", seed): crosscoder_matches() for seed in SEEDS},
        exclusivity_curves={("lineage", seed): exclusivity_curves() for seed in SEEDS},
        decoder_norms={("lineage", seed): decoder_norms() for seed in SEEDS},
        crosscoder_ablations={("lineage", seed): crosscoder_ablations() for seed in ("seed0", "seed1")},
        differences=[differences("lua", "edge"), differences("more", "continued")],
        swept=SWEPT,
        histograms={"base__merged": np.array([0, 3, 2, 0])},
        ablations={edge: ablations() for edge in edges},
        effects={edge: effects() for edge in edges},
        drift=drift(*edges_of(found)) if found["edges"] else {},
        matrix_changes=[decomposed(*edge) for edge in edges_of(found)],
        importance={edge: importance() for edge in edges},
        importance_agreement=agreements() if edges else None,
        passages={edge: passages() for edge in edges},
        passage_features={edge: passage_features() for edge in edges},
        acts={edge: acts() for edge in edges},
        act_summaries={edge: act_summary() for edge in edges},
        patches={edge: patches() for edge in edges},
        samples={edge: samples() for edge in edges},
        enriched={edge: enriched() for edge in edges},
        labels=scored(found["models"]),
        explanations={},
        verdicts={edge: verdicts() for edge in edges},
        lines=[list(edge) for edge in edges_of(found)[:1]],
        features=trajectories(found),
        line_verdicts={edge: verdicts().assign(identified=False) for edge in edges[:1]},
        class_labels={model: class_labels() for model in found["models"]},
        token_rows={("lua", split): token_rows(n) for split, n in (("train", 90), ("probe", 9))},
    )


SEEDS = ("seed0", "seed1")
SWEPT = {"merged": {"chosen": {"t": 0.58}, "parents": ["lua", "stories"]}}


def followed() -> pd.DataFrame:
    """A curve of the features that are found along a sweep."""
    shares = {"share": [1.0, 0.5], "share_n": 10, "share_low": [0.7, 0.2], "share_high": [1.0, 0.8]}
    return pd.DataFrame({"model": "lua", "kind": "all", "group": "all", "t": [0.0, 1.0]} | shares)


def merge_record() -> dict:
    """A `merge.json`."""
    tensors = {"lm_head.weight": {"cos": 0.9, "branch": "slerp"}}
    return {"method": "slerp", "parents": ["lua", "stories"], "t": 0.58, "tensors": tensors}


def trajectories(found: dict) -> pd.DataFrame:
    """Two features of each model, of which the first is found in every model."""
    models = np.repeat(found["models"], 2)
    return pd.DataFrame({"model": models, "latent": [0, 1] * len(found["models"])}).assign(
        **{f"in_{model}": [0, -1] * len(found["models"]) for model in found["models"]}
    )


def edges_of(found: dict) -> list[tuple[str, str]]:
    """The edges of a summary."""
    return [(edge["parent"], edge["child"]) for edge in found["edges"]]


def token_rows(n_documents: int) -> dict:
    """The sidecar of token rows."""
    counts = {"n_documents": n_documents, "largest_document_share": 0.68}
    return counts | {"n_tokens": 1280, "most_of_document": 26, "n_rows": 10}


def results(found: dict | None = None, shown: dict | None = None, **changes) -> Results:
    found = found or summary(comparison())
    settings = config(*found["models"])
    made_of = {
        "config": settings,
        "hookpoint": "mlp",
        "pages": {"mlp": "index.html", "late": "late.html"},
        "corpora": ["lua"],
        "swept": SWEPT,
        "summary": found,
        "tables": make_tables(inputs(found)),
        "examples": shown or examples(),
        "timings": timing_table(measured_jobs()),
        "manifests": {"models/base": {"python": "3.11.7", "versions": {"numpy": "2.4.6"}, "files": {}}},
        "making": "making.html",
        "jobs": [
            {"id": 0, "rule": "train", "name": "base", "needs": [], "stage": "models", "state": "fresh", "why": []}
        ],
        "rulegraph_svg": "<svg></svg>",
        "same_weights": [],
        "chunks": {},
    }
    return Results(**(made_of | changes))


def sources() -> Sources:
    texts = {Path(name).name: (TEMPLATES / name).read_text("utf-8") for name in PAGE_SOURCES}
    names = ("elements", "downloads", "explorer", "jobs", "page")
    scripts = {name: texts[f"{name}.js"] for name in names}
    templates = {name: text for name, text in texts.items() if name.endswith(".jinja")}
    return Sources(templates, texts["page.css"], scripts)


def page(found: Results) -> str:
    """The page without Plotly's own 4.8 MB."""
    with patch.object(report, "get_plotlyjs", "window.Plotly = {};".__str__):
        return render_page(found, sources())


@cache
def drawn() -> dict:
    """The pictures of ordinary results."""
    return report.draw(results())


@contextmanager
def drawn_before() -> Iterator[None]:
    """Give pages the pictures of ordinary results, because drawing takes two thirds of a page's time."""
    pictures = drawn()
    with patch.object(report, "draw", lambda _: pictures):
        yield


def text_page(found: Results) -> str:
    """The page, with the pictures of ordinary results."""
    with drawn_before():
        return page(found)


@cache
def clean() -> str:
    """The page of ordinary results."""
    return page(results())


def section(text: str, name: str) -> str:
    return text.partition(f'<section id="{name}">')[2].partition("</section>")[0]


# ---- views


def test_views_of_matchings_ablations_and_sources():
    by_types = comparison()
    by_types["matchings"]["token_type"] = by_types["matchings"]["best"]
    (edge,) = matchings_view(matching_table(summary(by_types, comparison(instrument="independent"))))
    assert [list(row["rules"]) for row in edge["rows"]] == [
        ["best", "mutual", "assignment", "token_type"],
        ["best", "mutual", "assignment"],
    ]
    (edge,) = ablations_view(ablation_table({"base__merged": ablations()}))
    (row,) = edge["rows"]
    figures = [row[kind]["lua"]["loss_change"] for kind in ("own", "random")]
    assert (row["group"], figures) == ("persists", [0.25, -0.125])
    names = ["left", "right", "both", "base", "new"]
    found = summary(sources={"merged": {name: a_share("share", 0.25) for name in names}})
    (merge,) = sources_view(source_table(found, {"merged": ["left", "right"]}))
    words = ["left alone", "right alone", "both parents", "base, but no parent", "none of these"]
    assert [row["words"] for row in merge["rows"]] == words


def test_persisting_and_inherited_features_flow_through_one_node():
    nodes, flows = flows_view(leading_groups(flow_table(summary(comparison()))), COLOURS)
    through = flows[flows["verdict"].isin(["persists", "inherited"])]
    assert through["target"].iloc[0] == through["source"].iloc[1]
    assert nodes.set_index("label").loc["persists 2 | inherited 3", ["column", "size"]].tolist() == [1.0, 3]


def test_drifted_features_of_the_parent_and_of_the_child_flow_through_nodes_of_their_own():
    nodes, flows = flows_view(leading_groups(flow_table(summary(comparison()))), COLOURS)
    drifted = flows[flows["verdict"] == "drifted"].set_index("side")
    assert drifted.loc["parent", "target"] != drifted.loc["child", "source"]
    assert nodes["label"].tolist().count("drifted 1") == 2


def test_flows_are_of_identified_features_where_those_are_known():
    found = summary(comparison(), comparison(parent="left", child="right", identified=None))
    table = leading_groups(flow_table(found))
    groups = table.groupby(["parent", "child"], sort=False)["group"].unique().map(list).to_dict()
    assert groups == {("base", "merged"): ["identified"], ("left", "right"): ["all"]}
    assert table["n_features"].tolist() == [2, 1, 1, 0, 3, 1, 2, 0, 2, 1, 5, 1, 3, 1, 4, 1]
    assert leading_groups(flow_table(summary())).empty
    link = json.loads(report.draw(results(found))["flows"]["json"])["data"][0]["link"]
    # The table of features, to which a flow leads, shows as many: each flow names its group.
    assert {tuple(row[1:3] + row[5:]) for row in link["customdata"]} == {
        ("base", "merged", "identified"),
        ("left", "right", "all"),
    }


def test_manifests_give_every_version_and_every_file():
    files = {"model.safetensors": {"bytes": 3, "sha256": "ab"}}
    old = {"python": "3.11.7", "versions": {"numpy": "2.4.5"}, "files": files}
    new = {"python": "3.11.7", "versions": {"numpy": "2.4.6"}, "files": {}}
    assert versions([new, old]) == {"numpy": "2.4.5, 2.4.6", "python": "3.11.7"}
    assert digests({"models/base": old, "lineage": new}) == [
        {"path": "models/base/model.safetensors", "bytes": 3, "sha256": "ab"}
    ]


def test_lines_keep_their_breaks_and_nothing_else():
    assert lines("a: <b>\n\x00") == "a: &lt;b&gt;\n␀"


def test_facts_give_the_place_of_every_model():
    found = facts(results(summary(comparison(parent="base", child="lua"))))
    assert (found["models"], found["edges"], found["corpora"]) == (["base", "lua"], [["base", "lua"]], ["lua"])
    assert (found["verdicts"], found["features_per_chunk"]) == (VERDICTS, FEATURES_PER_CHUNK)
    places, (width, height) = found["layout"]["places"], found["layout"]["size"]
    # A card is 176 wide and 54 high: the child's is below the parent's, and both are within the picture.
    assert places["lua"][1] >= places["base"][1] + 54
    assert all(88 <= x <= width - 88 and 0 <= y <= height - 54 for x, y in places.values())
    alone = facts(results(summary(models=["base"], saes={"base": "seed0"})))
    assert (alone["models"], alone["layout"]) == ([], {"places": {}, "size": [0.0, 0.0]})


# ---- the page


def test_the_page_loads_nothing_and_its_links_lead_to_ids_that_are_used_once():
    tags = Tags(clean())
    addresses = [attrs.get("href", attrs.get("src")) for _, attrs in tags.tags]
    outward = [address for address in addresses if address and not address.startswith(("#", "data:"))]
    inward = {address[1:] for address in addresses if address and address.startswith("#")}
    of_features = {address for address in inward if address.startswith("/feature")}  # the explorer opens these
    named = {address for address in of_features if address.startswith("/feature/")}
    assert named == {f"/feature/{name}" for name in ("base/1", "base/3", "merged/0", "merged/1", "merged/3")}
    assert "/features?on=base.merged.parent.persists&detail=identified" in of_features
    assert "/features?on=base.merged.child.new" in of_features
    inward -= of_features
    assert outward == ["making.html", "late.html"]  # how it was made, and the page of the other hookpoint
    assert inward <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))


def test_equal_results_are_equal_pages():
    assert page(results()) == clean()


def test_every_figure_of_the_registry_has_its_place_and_its_label_on_the_page():
    placed = {attrs["id"]: attrs["aria-label"] for _, attrs in Tags(clean()).tags if attrs.get("class") == "figure"}
    names = {
        name.format(sweep="merged", line="merged", group="lineage"): figure.label for name, figure in FIGURES.items()
    }
    expected = {f"plot-{name}": label for name, label in names.items() if label}
    del expected["plot-budgets"]  # the run has one budget
    assert placed == expected
    assert "Nothing to draw." not in clean()


def test_budgets_are_drawn_where_there_are_several():
    found = results()
    more = found.tables["budgets"].assign(n_tokens=99_999)
    found.tables["budgets"] = pd.concat([found.tables["budgets"], more])
    assert 'id="plot-budgets"' in page(found)


def test_every_table_can_be_downloaded_from_the_page():
    links = {attrs["download"]: attrs["href"] for _, attrs in Tags(clean()).tags if "download" in attrs}
    assert links == {f"{name}.csv": csv_link(table) for name, table in results().tables.items()}
    table = pd.DataFrame({"model": [EVIL, 'a,"b"\n\u202e'], "share": [0.1, np.nan]})
    kind, data = csv_link(table).split(",")
    assert kind == "data:text/csv;base64"
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(base64.b64decode(data, validate=True))), table)


def test_the_page_of_one_of_several_hookpoints_links_to_the_others_before_all_else():
    page = clean()
    assert '<strong aria-current="page">mlp</strong>' in page
    assert '<a href="late.html">late</a>' in page
    assert page.index('href="late.html"') < page.index('id="answer"')
    found = summary(comparison())
    tables = make_tables(inputs(found)._replace(summaries={"mlp": found}))
    alone = text_page(results(pages={"mlp": "index.html"}, tables=tables))
    assert 'id="hookpoints"' not in alone
    assert "late.html" not in alone


def test_a_run_without_edges_sweeps_merges_and_training_has_a_page():
    found = results(
        summary(),
        {"n_models": 1, "named": [], "persisting": [], "changed": []},
        timings=timing_table([]),
        pages={"mlp": "index.html"},
    )
    for name in ("sweeps", "merges", "correlations", "training"):
        found.tables[name] = found.tables[name].head(0)
    text = page(found)
    assert text.count("Nothing to draw.") == 4  # curves, flows, training, correlations
    assert 'id="merging"' not in text
    assert "and merged?" not in text
    assert "This run merges no models." in render_making(found, sources(), "index.html")
    assert "set lineage.ablations to true" in text
    assert text.count("in text of the programs that labels.syntax names") == 2


def rows_of(text: str, edge: str) -> list[str]:
    """The rows of an edge in the first table of a section."""
    return text.partition("<table")[2].partition(f">{edge}</th>")[2].partition("</tbody>")[0].split("</tr>")[:-1]


def test_verdicts_have_a_row_for_identified_features_and_one_for_all():
    found = results(summary(comparison(0.25, 0.5), comparison(parent="left", identified=None)))
    answered, text = (plain(section(text_page(found), name)) for name in ("answer", "verdicts"))
    assert "base → merged</strong>: of 4 identified features of base, 2 persist, 1 has drifted" in answered
    identified, everything = rows_of(text, "base → merged")
    numbers = [re.findall(r'class="number(?: group)?">([\d,]+)</td>', row) for row in (identified, everything)]
    # persist, drifted, gone, lost for sure, untestable; inherited, drifted, new, new for sure, untestable
    assert numbers == [list("2111031220"), list("2151131421")]
    assert '<th scope="row">identified<small>below the no-change control</small>' in identified
    assert '<th scope="row">all<small>' in everything
    assert all(part in identified for part in ("50.0 %<small>40.0 to 60.0 %<br>of 4", "96.0 %<small>", "by definition"))
    assert all(part in everything for part in ("25.0 %<small>15.0 to 35.0 %<br>of 8", "1.0 %<small>shifted", "37.5 %"))
    (alone,) = rows_of(text, "left → merged")
    assert '<th scope="row">all<small>' in alone


def test_the_page_says_when_a_feature_is_identified():
    assert "when every other SAE seed of its model has a match for it" in section(clean(), "verdicts")
    half = text_page(results(summary(comparison(), identified_from=0.5)))
    assert "when at least 50 % of the other SAE seeds of its model has a match" in plain(section(half, "verdicts"))
    assert "at least 50 % of the other SAE seeds of their model has too" in plain(section(half, "answer"))


def test_warnings_are_on_the_page():
    assert "</span> The decoder directions" not in clean()
    found = summary(comparison(), comparison(parent="left", identified=None))
    found["edges"][0]["shares_basis"] = False
    page = text_page(results(found))
    assert re.search(r"[2-9] cautions apply", section(page, "answer"))
    text = section(page, "verdicts")
    assert "caution</span> The decoder directions of base → merged are unrelated" in text
    assert "caution</span> On 1 of 2 edges it is not known which features are identified" in text


def test_the_page_shows_every_instrument_with_its_controls():
    edge = {"parent": "base", "child": "merged", "side": "parent"}
    agreed = edge | {"instrument": "independent", "n": 8, "share": 0.75, "kappa": 0.5}
    other = comparison(0.1, 0.85, instrument="independent", controls={"rotated": a_control(0.03)})
    found = results(summary(comparison(), other, agreements=[agreed | {"group": "all"}]))
    text = plain(section(text_page(found), "instruments"))
    identified, everything = rows_of(text, "base → merged")[2:]
    assert '<th scope="row">independent</th><td>identified</td>' in identified
    assert '<th scope="row">independent</th><td>all</td>' in everything
    parts = ("10.0 %", "85.0 %", "3.0 %<small>rotated", "<td>yes</td>", "κ 0.50<small>75.0 % same verdict")
    assert all(part in everything for part in parts)
    curves = report.draw(found)["curves"]["json"]
    assert curves.count('"mode":"lines"') == 3  # the leading instrument's edge, no-change and random control
    assert "rotated" not in curves


def test_the_size_of_the_change_stands_beside_the_answer_and_by_corpus():
    found = results()
    hidden = changed(0.005, 0.25, 0.25)
    found.tables["drift"] = drift_table(drift(lua=changed(0.5, 0.75), stories=hidden))
    found.tables["weights"] = weight_table(drift())
    text = plain(text_page(found))
    answered, change = section(text, "answer"), section(text, "change")
    assert "nats per token, activations moved 50.0 %" in answered  # over all corpora
    first = change.partition("<p>")[2]
    assert first.startswith("From base to merged the model changed most on lua: KL 0.75 nats per token")
    assert "No verdict on losses is possible on stories" in change
    rows = change.split("</tr>")
    (row,) = (row for row in rows if ">stories<" in row)
    assert re.findall(r">([^<>]+)</t[dh]>", row) == [
        "stories",
        "0.25 nats",
        "0.50 nats",
        "0.5 %",
        "25.0 %",
        "6.2 %",
        "not possible",
    ]
    assert sum(">possible<" in row for row in rows) == 2  # lua and all corpora
    assert "50.00 %" in next(row for row in rows if ">model.layers.0<" in row)
    assert "not measured" in next(row for row in rows if ">lm_head<" in row)


def test_intruders_are_shown_beside_what_a_random_change_has_and_the_new_features():
    found = results()
    (row,) = (row for row in section(plain(text_page(found)), "change").split("</tr>") if "2 of 9" in row)
    cells = ["base → merged", "25.00 %", "50.0 %", "12.5 %", "random: 1.0 %", "3", "2 of 9", "75.0 %"]
    assert re.findall(r">\s*([^<>\s][^<>]*)<", row)[:9] == [*cells, "random: at most 6.2 %"]
    assert "2 identified" in row
    found.tables["intruders"] = intruder_table([decomposed(intruders=0, with_intruders=0)], found.summary)
    assert ">none<" in section(text_page(found), "change")
    found.tables["intruders"] = intruder_table([], found.summary)
    assert "set lineage.weights to true" in section(text_page(found), "change")


def test_trained_controls_are_shown_but_not_as_the_largest_random_control():
    controls = {"shifted": a_control(0.01), "control (twin)": a_control(0.4)}
    text = plain(text_page(results(summary(comparison(controls=controls)))))
    assert "<small>shifted" in section(text, "verdicts")
    assert "<small>control (twin)" not in text
    row = text[text.index("<td>control (twin)</td>") :].split("</tr>")[0]
    assert "40.00 %" in row


def test_figures_that_were_not_measured_are_named_so():
    text = text_page(results(summary(comparison(0.25, None, two_seeds=None, identified=None))))
    assert "no control was measured: train a second seed" in text
    assert section(text, "verdicts").partition("<table")[2].count('class="number none">not measured') == 2
    assert "not known" in section(text, "instruments")  # whether it is fit
    assert "not measured" in section(clean(), "saes")  # ce_recovered is None


def test_the_page_shows_the_ways_in_which_features_are_found_and_the_study_s_verdicts():
    found = summary(comparison(), comparison(parent="left"))
    found["edges"][1] |= {"relocated": 9, "rescaled": 8, "partial": 7}
    text = section(text_page(results(found)), "losses")
    rows = [re.findall(r'class="number(?: group)?">(\d+)</td>', row) for row in text.split("</tr>")]
    # 1:1, split, merged; relocated, rescaled, partial; robustly lost and new; persist, disappear, inherited, emerge
    assert rows[2:4] == [list("110000102635"), list("110987102635")]
    assert "cosine below 0.50" in text


def test_the_page_shows_shares_by_corpus_where_there_are_several():
    found = results(summary(comparison(parent="base")))
    found.tables["by_corpus"] = by_corpus_table(found.summary, drift(lua=changed(), stories=changed(0.005, 0.25, 0.25)))
    text = section(text_page(found), "losses")
    rows = [row for row in text[text.index(">By corpus<") :].split("</tr>") if '<th scope="row">' in row]
    assert [re.findall(r'<th scope="row">([^<]+)</th>', row)[0] for row in rows[:3]] == ["stories", "lua", "empty"]
    assert "not possible" in rows[0]
    assert ">possible<" in rows[1]
    assert rows[2].count("not measured") == 2
    found.tables["by_corpus"] = found.tables["by_corpus"].iloc[:0]
    assert ">By corpus<" not in text_page(found)


def test_chat_classes_are_shown_of_the_model_they_are_counted_in():
    text = section(clean(), "losses")
    row = r"<tr><th scope=\"row\">base → merged</th><td>{}</td><td>{}</td><td class=\"number\">1</td><td>template</td>"
    assert re.search(row.format("base", "gone"), text)
    assert re.search(row.format("merged", "new"), text)


def test_the_arrows_of_the_lineage_show_the_share_of_identified_features_and_its_control():
    lineage = plain(report.draw(results(summary(comparison(0.25, 0.5))))["lineage"])
    assert re.search(r">50.0 % \[\d+, \d+\] found<", lineage)
    assert ">unchanged 96 %<" in lineage
    lineage = plain(report.draw(results(summary(comparison(0.25, 0.5, identified=None))))["lineage"])
    assert re.search(r">25.0 % \[\d+, \d+\] found<", lineage)
    assert ">unchanged 50 %<" in lineage
    assert lineage.count('class="edge"') == 1


def test_the_page_shows_ablations_sources_and_named_features():
    text = plain(text_page(results(sourced(summary(comparison())), examples(text="target", corpus="lua"))))
    losses = section(text, "losses")
    assert "+0.2500" in losses
    assert "-0.1250" in losses
    assert "base alone" in section(text, "merging")
    persisting = section(text, "persisting")
    assert "“assignment target” correlates with its activations at r = 0.75 (precision 50 %, recall 25 %)" in persisting
    assert "It is found in lua." in persisting
    assert "“exception” correlates with its activations" in persisting
    assert "It is found in no other model" in persisting


def test_a_card_tells_what_a_lost_feature_follows_what_it_does_and_what_is_closest():
    text = plain(section(text_page(results(shown=examples(text="target"))), "changed"))
    (card,) = text.split('<article class="card">')[1:]
    assert '<a href="#/feature/base/3">base / 3</a> <strong>target</strong> <small>r 0.25</small>' in card
    assert '<span class="badge sure">sure</span>' in card
    assert "on lua rises by about 2.50 nats per 1,000 tokens." in card  # estimated; a measured one has no "about"
    assert 'Closest in merged: <a href="#/feature/merged/3">3</a> (target), r 0.30.' in card
    assert "It returns in back, and in no control." in card
    assert re.findall(r'<td class="number">([^<]+)</td>', card) == ["12.50 %", "25.00 %"]
    assert ">merged / 3<small>closest</small>" in card
    assert "No identified feature is new with its whole interval" in text
    assert re.search(r'<a href="#/features\?on=base.merged.parent.gone">All 5 that are gone</a>', text)


def test_bars_of_the_answer_have_the_number_of_every_verdict_and_lead_to_its_features():
    (edge,) = overview(results().tables)
    parent, child = edge["bars"]
    assert [(part["verdict"], part["n"]) for part in parent["parts"]] == [
        *(("persists", 2), ("drifted", 1), ("gone", 1))
    ]
    assert (parent["model"], parent["group"], child["model"]) == ("base", "identified", "merged")
    assert child["parts"][-1]["address"] == "#/features?on=base.merged.child.new&detail=identified"


def test_the_page_of_how_a_run_was_made_holds_its_jobs_and_links_to_the_page():
    text = render_making(results(), sources(), "index.html")
    assert '<a href="index.html">' in text
    found = Tags(text)
    assert json.loads(found.scripts[0]) == list(results().jobs)
    assert not any("<" in script for script in found.scripts[:1])


def test_scores_of_labels_and_of_explanations_are_told_apart():
    assert "labels.explanations" in section(clean(), "scores")
    found = results()
    found.tables["scores"] = score_table(scored(["base"]), scored(["base"]))
    text = section(text_page(found), "scores")
    assert "labels.explanations" not in text
    assert "simulated from a written explanation" in text
    found.tables["scores"] = score_table({("base", "seed0"): pd.DataFrame({"score": []})}, {})
    assert "median nan" not in report.draw(found)["scores"]["json"]


def test_features_are_in_the_page_if_it_is_a_single_file():
    _, name, _, data, _ = packed("base/table", {"a": 1}).split('"')
    single, ordinary = Tags(text_page(results(chunks={name: data}))), Tags(clean())
    assert single.ids[-1] == "chunk base/table"
    assert "chunk base/table" not in ordinary.ids
    assert data in single.scripts
    assert len(single.scripts) == len(ordinary.scripts) + 1


def test_few_documents_of_the_probe_are_counted_and_warned_of():
    shown = page(results())
    assert "Intervals over documents rest on 9 documents of &#39;lua&#39;, the largest with 68 % of its probe" in shown
    assert "rest on 90 documents" not in shown
    assert re.search(r'<th scope="row">lua</th><td class="number">9</td><td class="number">1,280</td>', shown)


# ---- hostile text


def test_markup_in_passages_stays_text():
    text = f"""{EVIL}</script></style></span></pre>" onmouseover="alert(1)' <!-- {{{{ 7 * 7 }}}} {{% raw %}}"""
    found, ordinary = Tags(text_page(results(shown=examples(text=text, corpus=text)))), Tags(clean())
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in ordinary.tags]
    assert [set(attrs) for _, attrs in found.tags] == [set(attrs) for _, attrs in ordinary.tags]


def test_markup_in_names_labels_and_config_stays_text_and_ends_no_script():
    names = {"parent": f"{EVIL}</script>", "child": "<!--<script>"}
    controls = {f"control ({EVIL})": a_control(), EVIL: a_control()}
    shown = examples()
    shown["changed"][0] |= names
    hostile = results(sourced(summary(comparison(controls=controls, **names))), shown)
    hostile.tables["scores"] = score_table(scored(hostile.summary["models"], sae=EVIL), {})
    hostile.config["run"] = EVIL
    kind = {"shifted": a_control(), "rotated": a_control()}
    text, ordinary = page(hostile), Tags(page(results(sourced(summary(comparison(controls=kind))))))
    found = Tags(text)
    assert EVIL not in text
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in ordinary.tags]
    assert found.scripts[-5:] == ordinary.scripts[-5:]  # elements, downloads, explorer, Plotly, page
    data = found.scripts[:-5]
    assert len(data) > 5
    assert not any("<" in script for script in data)
    *figures, known = found.values()
    assert known["models"] == list(names.values())
    assert all({"data", "layout"} <= set(figure) for figure in figures)


def test_characters_that_hide_or_turn_text_are_shown():
    hidden = "\x00\x1b\x9f\u202e\u2066\u200f\u2028"
    found = page(results(summary(comparison(child=f"a{hidden}b")), examples(text=f"a{hidden}b\ud800", corpus="\udfff")))
    assert not set(hidden) & set(found)
    assert b"\\ud800" in found.encode("utf-8")


def test_undefined_numbers_are_null_in_figures():
    found = results()
    found.tables["saes"]["fvu"] = np.nan
    figure = report.draw(found)["saes"]["json"]
    json.loads(figure, parse_constant=undefined)


def test_scripts_cannot_end_their_own_elements():
    found = render_page(results(), sources())
    assert [tag for tag, _ in Tags(found).tags] == [tag for tag, _ in Tags(clean()).tags]
    assert len(Tags(found).scripts[-2]) > 1_000_000  # Plotly's
    template = "<script>{{ scripts.page }}</script>"
    with drawn_before():
        found = render_page(results(), Sources({PAGE: template}, "", {"page": "const a = '</script>' + 1 < 2;"}))
    assert Tags(found).scripts == [r"const a = '<\/script>' + 1 < 2;"]


def test_the_page_s_scripts_make_the_same_characters_visible():
    script = (TEMPLATES / "elements.js").read_text(encoding="utf-8")
    unseen = re.compile(re.search(r"UNSEEN = /(\[.+\])/gu;", script)[1])
    characters = [chr(code) for code in range(0x11000)]
    assert [char for char in characters if unseen.match(char)] == [char for char in characters if UNSEEN.match(char)]


def test_lost_and_new_features_are_listed_with_their_importance_and_the_agreement_of_estimates():
    words = text_page(results())
    assert "New features: the first 1" in words
    assert "rank correlation of 0.75 (n = 12)" in words
    assert "+1.875" in words


def test_passages_show_the_token_in_its_text_with_the_features_that_fire_there_and_escape_it():
    found = inputs(summary(comparison()))
    (edge,) = found.passages
    hostile = "</td><script>alert(1)</script>\u202e"
    tables = make_tables(found._replace(passages={edge: passages(hostile)}))
    words = text_page(results(tables=tables))
    assert "<script>alert(1)" not in words
    assert "\u202e" not in words
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in words
    assert "Passages: 1" in words
    assert "1 of 1" in words


def test_what_features_do_is_shown_with_its_conclusion_and_what_models_write_stays_text():
    found = inputs(summary(comparison()))
    (edge,) = found.acts
    for does, said in {
        "closer": "The parent comes closer",
        "further": "does not do what the child does",
        "cannot be told": "Not shown",
    }.items():
        given = found._replace(acts={edge: acts(EVIL)}, act_summaries={edge: act_summary(does)})
        shown = section(text_page(results(tables=make_tables(given))), "act")
        assert said in shown
    assert EVIL not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6  # before and at the peak, next and goes on, twice
    assert "falls by 0.75 nats (0.75 to 0.75), beside random ones by 0.62 (0.62 to 0.62)" in plain(shown)
    assert '#/feature/merged/1"' in shown
    assert shown.count("no clear gain") == 1
    assert "44" in shown


def test_features_that_are_not_acted_on_have_an_empty_section():
    none = {"acts": {}, "act_summaries": {}, "patches": {}}
    shown = section(text_page(results(tables=make_tables(inputs(summary(comparison()))._replace(**none)))), "act")
    assert "features are not acted on (report.act)" in shown
    assert "acts.csv" in shown


def test_what_training_taught_is_shown_with_what_chance_gives_and_samples_stay_text():
    found = inputs(summary(comparison()))
    (edge,) = found.samples
    given = found._replace(samples={edge: samples(EVIL)})
    shown = section(text_page(results(tables=make_tables(given))), "taught")
    assert "1 of 2 features are enriched, 1 of them new (of 1)" in shown
    assert "two sets of samples of the child alone, it is 0." in shown
    assert "show no feature that this training taught" not in shown
    assert EVIL not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6  # two of two ways, one of each with a start
    assert shown.count('#/feature/merged/1"') == 2  # enriched, and among what new features follow
    assert shown.count('#/feature/base/1"') == 1  # among what lost ones follow
    by_chance = found._replace(enriched={edge: enriched(n_by_chance=1)})
    shown = section(text_page(results(tables=make_tables(by_chance))), "taught")
    assert "show no feature that this training taught" in shown


def test_what_a_service_says_of_an_edge_stays_text_and_links_to_the_features_that_it_names():
    claims = [{"claim": EVIL, "features": [["merged", 1], ["base", 2]]}]
    told = {"parent": "base", "child": "merged", "claims": claims, "n_left_out": 3}
    origins = [["https://service/v1/chat/completions", "small-2024"]]
    shown = section(text_page(results(words={"answered_by": origins, "edges": [told]})), "taught")
    assert EVIL not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert re.search('<small>.*#/feature/merged/1".*#/feature/base/2".*</small>', shown)
    assert "Written by small-2024 from the cards" in shown
    assert "3 more claims were left out" in shown
    assert "Written by" not in section(text_page(results()), "taught")


def test_lost_features_that_return_are_listed_beside_both_controls():
    edge = {"parent": "base", "child": "merged", "model": "back"}
    shares = {
        "kept": 0.9,
        "kept_n": 100,
        "kept_interval": [0.8, 0.95],
        "returned_n": 40,
        "returned_interval": [0.1, 0.9],
    }
    paired = {"beyond": 18, "short": 2, "p": 0.0004, "latents": list(range(3, 13))}
    rows = [
        edge | {"group": group, "kind": kind, "returned": returned} | shares | (paired if kind == "revived" else {})
        for group in ("headline", "gone")
        for kind, returned in (("revived", 0.5), ("continued", 0.1), ("unchanged", 0.05))
    ]
    found = summary(comparison()) | {"revivals": rows}
    shown = section(text_page(results(found)), "losses")
    assert shown.count("kept 90.0") == 6
    assert shown.count("&lt; 0.001") == 3  # in the sentence and in both rows
    assert [place for place in range(2, 14) if f'#/feature/base/{place}"' in shown] == list(range(3, 11))
    assert "and 2 more" in shown
    assert "when the child is trained on its parent" not in section(clean(), "losses")


def test_without_samples_the_page_says_what_features_follow_and_without_edges_nothing():
    found = inputs(summary(comparison()))._replace(samples={}, enriched={})
    shown = section(text_page(results(tables=make_tables(found))), "taught")
    assert "What new features follow" in shown
    assert "are enriched," not in shown
    assert "nothing is sampled (behaviour.samples)" not in shown
    none = found._replace(importance={})
    assert "nothing is sampled (behaviour.samples)" in section(text_page(results(tables=make_tables(none))), "taught")


def test_an_edge_without_passages_says_so():
    found = inputs(summary(comparison()))
    (edge,) = found.passages
    none = {"passages": {edge: passages()[:0]}, "passage_features": {edge: passage_features()[:0]}}
    words = text_page(results(tables=make_tables(found._replace(**none))))
    assert "No passages: no other model was trained from the same parent" in words


def test_crosscoders_stand_beside_their_floor_with_every_seed():
    text = clean()
    rows = text[text.index("One dictionary for all models") :].split("</table>")[0].split("<tr>")[2:]
    assert [("other documents" in row, re.findall(r"seed\d", row)) for row in rows] == [
        (False, ["seed0"]),
        (False, ["seed1"]),
        (True, ["seed0"]),
        (True, ["seed1"]),
    ]
    assert "75" in rows[0]
    assert "0.250" in rows[0]


def test_pictures_of_crosscoders_are_of_the_first_seed_of_each_group():
    names = {"group": ["lineage", "lineage", "a__b"], "seed": ["seed1", "seed0", "seed0"]}
    assert of_first_seed(pd.DataFrame(names)).index.tolist() == [0, 2]
    assert {"crosscoder-verdicts", "crosscoder-curves", "crosscoder-norms-lineage"} <= set(drawn())
    assert 'id="plot-crosscoder-norms-lineage"' in clean()


def test_a_run_without_crosscoders_has_no_pictures_of_them_but_their_empty_tables():
    found = inputs(summary(comparison()))
    of_crosscoders = ("exclusivity", "exclusivity_curves", "decoder_norms", "latent_verdicts", "crosscoder_matches")
    tables = make_tables(found._replace(**{name: {} for name in of_crosscoders}))
    text = page(results(tables=tables))
    assert "One dictionary for all models" not in text
    assert "plot-crosscoder" not in text.partition("<body>")[2]
    assert "crosscoder_norms.csv" in text


def test_losses_without_latents_of_crosscoders_stand_beside_random_ones():
    (table,) = re.findall(
        r'aria-label="Change in loss without latents of crosscoders">(.*?)</table>', clean(), re.DOTALL
    )
    rows = table.split("<tr>")[3:]
    # rows of a verdict lie together, whatever the seed
    assert [re.findall(r"(disappears|emerges|seed\d)", row) for row in rows] == [
        ["emerges", "seed0"],
        ["emerges", "seed1"],
        ["disappears", "seed0"],
        ["disappears", "seed1"],
    ]
    assert rows[2].count("no latent") == 2
    for words in ("3.250<small>own 3.000", "+0.1250<small>+0.0625 to +0.1875<br>9 firings", "+0.0312<small>+0.0123 to"):
        assert words in rows[0]


def test_a_crosscoder_whose_latents_were_not_ablated_says_so():
    found = inputs(summary(comparison()))._replace(crosscoder_ablations={})
    text = text_page(results(tables=make_tables(found)))
    assert "not measured: set crosscoder.ablated_rows above 0" in text


def test_what_an_edge_wrote_stands_beside_its_floor_and_the_continued_parent():
    text = clean()
    rows = text[text.index("What each edge wrote anew") :].split("</table>")[0].split("<tr>")[2:]
    assert [re.findall(r"base → (\w+)", row) for row in rows] == [["lua"], ["more"]]  # pooled rows alone
    assert ["continued" in row for row in rows] == [False, True]
    assert "12.5\xa0%" in rows[0]
    assert "rounding 6.25\xa0%" in rows[0]
    assert "no floor" in rows[0]
    assert "0.375" in rows[0]
