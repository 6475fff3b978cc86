"""The page of a run: one HTML file with its tables, figures and data.

All text on the page is treated as hostile: it is escaped, and characters that are invisible or change the direction of
text are replaced by visible ones.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from saelineage.files.atomic import sha256_json
from saelineage.plan.instruments import shares_numbers
from saelineage.report.dashboards import FEATURES_PER_CHUNK, VERDICTS
from saelineage.report.drawing import Graph, arrange, jobs_svg
from saelineage.report.examples import LEAST_OF_CONCEPT
from saelineage.report.figures import FIGURES, Figure
from saelineage.report.sentences import (
    LEAST_AGREEMENT,
    READINGS,
    answer,
    changes,
    checks,
    count,
    document_warnings,
    import_warnings,
    instrument_warnings,
    interval,
    nats,
    number,
    over_trainings,
    p_value,
    percent,
    sae_warnings,
    signed,
)
from saelineage.report.style import Colours, colours_of, visible
from saelineage.report.tables import (
    EXPLANATIONS,
    LARGEST_RANDOM,
    LEAST_NO_CHANGE,
)
from saelineage.report.views import by_edge, examples_view, figure_views, merges_view, overview, views

PAGE, MAKING = "page.html.jinja", "making.html.jinja"

TRAJECTORY_WIDTH, TRAJECTORY_HEIGHT, TRAJECTORY_CARD, TRAJECTORY_MARGIN = 196.0, 112.0, 70.0, 8.0
"""Space for a model's card in the picture of a feature's trajectory, in pixels. The card itself is 54 high."""


class Results(NamedTuple):
    """Everything the page shows."""

    config: dict
    """Shown as it is, and nothing else."""
    corpora: Sequence[str]
    swept: Mapping[str, dict]
    """Of each sweep `chosen`, the swept settings of its merge, and `parents`."""
    summary: dict
    hookpoint: str
    """The hookpoint that the page is of."""
    pages: Mapping[str, str]
    """The page of every hookpoint, beside this one."""
    making: str
    """The page of how the run was made, beside this one."""
    tables: Mapping[str, pd.DataFrame]
    examples: dict
    timings: pd.DataFrame
    manifests: Mapping[str, dict]
    """By folder, relative to the run's."""
    jobs: Sequence[dict]
    """As `jobs.listing.collect` lists them."""
    rulegraph_svg: str
    same_weights: Sequence[str]
    """Sentences about models between which nothing differs."""
    chunks: Mapping[str, str]
    """Chunks of feature data embedded in the page, by name; the page loads all others from `data/`."""
    assumptions: Sequence[str] = ()
    """Sentences about what the config left open (`plan.compare`)."""
    vocabularies: Sequence[str] = ()
    """Sentences about models that have other tokens than the run's (`models.vocabulary_notes`)."""
    words: Mapping | None = None
    """What a service said of each edge (`describe_changes`); None where none was asked."""


class Sources(NamedTuple):
    """The files that the page is made from."""

    templates: Mapping[str, str]
    """Jinja templates by name. `PAGE` includes the others, which are sections of it."""
    stylesheet: str
    scripts: Mapping[str, str]
    """JavaScript by name: `elements`, `explorer`, `jobs`, `page`."""


def _environment(sources: Sources) -> Environment:
    """The templates, with this project's filters; what they show is escaped, and hidden characters made visible."""
    environment = Environment(
        loader=DictLoader(sources.templates),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_hidden_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "interval": interval,
        "lines": lines,
        "nats": nats,
        "p_value": p_value,
        "signed": signed,
    }
    return environment


def render_making(results: Results, sources: Sources, page: str) -> str:
    """Render the page of how a run was made: its jobs, their time and memory, and merged weights.

    Args:
        results, sources: see there.
        page: the run's page, beside this one.
    """
    text = (
        _environment(sources)
        .get_template(MAKING)
        .render(
            run=results.summary["run"],
            page=page,
            n_jobs=len(results.jobs),
            jobs_svg=Markup(jobs_svg(results.jobs)),  # noqa: S704 - escaped by drawing.py
            jobs_data=_json(list(results.jobs)),
            rulegraph_svg=Markup(results.rulegraph_svg),  # noqa: S704
            timings=results.timings.to_dict("records"),
            merges=merges_view(results.tables["merges"]),
            stylesheet=Markup(sources.stylesheet),  # noqa: S704
            scripts={name: _script(text) for name, text in sources.scripts.items()},
        )
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def render_page(results: Results, sources: Sources) -> str:
    """Render the page as one HTML text that loads nothing from other hosts. Equal results give equal text."""
    page = (
        _environment(sources)
        .get_template(PAGE)
        .render(
            making=results.making,
            run=results.summary["run"],
            hookpoint=results.hookpoint,
            pages=results.pages,
            **{key: results.summary[key] for key in ("threshold", "identified_from", "relocated_below")},
            models=results.summary["models"],
            leading=results.summary["leading"],
            edges=by_edge(results.tables["edges"].assign(reading=results.tables["edges"]["reading"].map(READINGS))),
            changes=changes(results.tables["drift"]),
            answer=answer(results.summary),
            checks=checks(results.summary),
            overview=overview(results.tables),
            assumptions=list(results.assumptions),
            bounds={"least_no_change": LEAST_NO_CHANGE, "largest_random": LARGEST_RANDOM},
            trainings=over_trainings(results.summary),
            corpora=list(results.corpora),
            tables={name: table.to_dict("records") for name, table in results.tables.items()},
            pictures=draw(results),
            warnings=page_warnings(results),
            examples=examples_view(results.examples, results.tables["flows"]),
            least_of_concept=LEAST_OF_CONCEPT,
            least_agreement=LEAST_AGREEMENT,
            ablated_rows=results.config["lineage"]["ablated_rows"],
            **views(results.tables),
            versions=versions(results.manifests.values()),
            digests=digests(results.manifests),
            config_yaml=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True, width=100),
            config_sha256=sha256_json(results.config),
            facts=_json(facts(results)),
            csv_links={name: csv_link(table) for name, table in results.tables.items()},
            words=results.words,
            explained=bool((results.tables["scores"]["source"] == EXPLANATIONS).any()),
            chunks=results.chunks,
            stylesheet=Markup(sources.stylesheet),  # noqa: S704
            scripts={name: _script(text) for name, text in sources.scripts.items()},
            plotlyjs=_script(get_plotlyjs()),
        )
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def page_warnings(results: Results) -> list[str]:
    """What the reader has to be careful with."""
    return [
        *instrument_warnings(results.summary),
        *sae_warnings(results.tables["saes"], results.summary["saes"]),
        *document_warnings(results.tables["documents"]),
        *results.same_weights,
        *results.vocabularies,
        *import_warnings(results.manifests),
    ]


def facts(results: Results) -> dict:
    """The models, the edges and the layout of the lineage, for the page's table of features."""
    edges = [[edge["parent"], edge["child"]] for edge in results.summary["edges"]]
    models = [model for model in results.summary["models"] if any(model in edge for edge in edges)]
    return {
        "hookpoint": results.hookpoint,
        "models": models,
        "edges": edges,
        "layout": _layout(models, edges),
        "corpora": list(results.corpora),
        "colours": page_colours(results)._asdict(),
        "shares_numbers": shares_numbers(results.summary["leading"]),
        "verdicts": VERDICTS,
        "features_per_chunk": FEATURES_PER_CHUNK,
    }


def _layout(models: Sequence[str], edges: Sequence[Sequence[str]]) -> dict:
    """The top centre of each model's card, parents above children, and the size of the picture, in pixels."""
    if not models:
        return {"places": {}, "size": [0.0, 0.0]}
    number = {model: index for index, model in enumerate(models)}
    graph = Graph([(model,) for model in models], [(number[parent], number[child]) for parent, child in edges])
    layout = arrange(graph, TRAJECTORY_WIDTH)
    places = {
        model: [place, TRAJECTORY_MARGIN + TRAJECTORY_HEIGHT * rank]
        for model, place, rank in zip(models, layout.place, layout.rank, strict=True)
    }
    return {"places": places, "size": [layout.extent, TRAJECTORY_HEIGHT * max(layout.rank) + TRAJECTORY_CARD]}


def draw(results: Results) -> dict[str, Markup | dict]:
    """Draw every figure that has something to show: Plotly figures as height, JSON and label, others as SVG."""
    colours = page_colours(results)
    drawn = figure_views(results.tables, results.summary["models"], results.swept, colours)
    tables = {**results.tables, **drawn}
    given = {"threshold": results.summary["threshold"], "colours": colours}
    pictures: dict[str, Markup | dict] = {}
    for name, figure in FIGURES.items():
        rows = tables[figure.inputs[0]]
        arguments = [given[key] if key in given else tables[key] for key in figure.inputs[1:]]
        if figure.by:
            for value, part in rows.groupby(figure.by, sort=False):
                pictures[name.format(**{figure.by: value})] = _picture(figure, part, *arguments)
        elif len(rows):
            pictures[name] = _picture(figure, rows, *arguments)
    return pictures


def page_colours(results: Results) -> Colours:
    """The colours of the models of the lineage, and of the corpora."""
    return colours_of(results.summary["models"], results.corpora)


def digests(manifests: Mapping[str, dict]) -> list[dict]:
    """The path, size and sha256 of every file that a manifest lists."""
    return [
        {"path": f"{folder}/{name}", **entry}
        for folder, manifest in manifests.items()
        for name, entry in manifest["files"].items()
    ]


def versions(manifests: Iterable[dict]) -> dict[str, str]:
    """The versions that the jobs recorded, by package; several if jobs differ."""
    recorded: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in [("python", manifest["python"]), *manifest["versions"].items()]:
            recorded.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(values)) for name, values in sorted(recorded.items())}


def lines(text: str) -> Markup:
    """Escape a text and keep its line breaks."""
    return Markup("\n").join(escape(visible(line)) for line in text.split("\n"))


def _without_hidden_text(value: object) -> object:
    """Make hidden characters visible in a text that Jinja is about to put on the page."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _picture(figure: Figure, *arguments: pd.DataFrame | float | Colours) -> Markup | dict:
    """A figure as the template needs it."""
    drawn = figure.draw(*arguments)
    if isinstance(drawn, str):
        return Markup(drawn)  # noqa: S704 - escaped by figures.py
    return {"height": drawn.layout.height, "json": _json(json.loads(drawn.to_json())), "label": figure.label}


def _json(value: object) -> Markup:
    """JSON for a script element. No text in it can end the element."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", r"\u003c"))  # noqa: S704


def _script(text: str) -> Markup:
    """JavaScript for a script element."""
    return Markup(text.replace("</script", r"<\/script"))  # noqa: S704


def csv_link(table: pd.DataFrame) -> str:
    """A link that holds a whole table as CSV."""
    return f"data:text/csv;base64,{base64.b64encode(table.to_csv(index=False).encode()).decode()}"
