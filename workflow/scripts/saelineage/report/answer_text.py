"""The answer as text that can be pasted into a message: `report/index.md`, beside the page."""

from collections.abc import Mapping, Sequence

from saelineage.lineage.importance import CHANGED
from saelineage.report.sentences import SPACE, answer, checks, number
from saelineage.report.style import visible

N_NAMED = 10
"""Features of each kind that are named for an edge."""


def answer_text(summary: dict, examples: Mapping, moved: Mapping[tuple[str, str], str], warnings: Sequence[str]) -> str:
    """The answer in Markdown: each edge, its most important new and lost features, controls and cautions.

    Args:
        summary: `lineage/{hookpoint}/summary.json`.
        examples: `report/examples/{hookpoint}.json`.
        moved: of each (parent, child), how far the child moved (`sentences.moved`).
        warnings: what cannot be read from the run.
    """
    changed = {(edge["parent"], edge["child"]): edge for edge in examples["changed"]}
    lines = [f"# {summary['run']}: what became of the features", ""]
    for edge, found in zip(summary["edges"], answer(summary), strict=True):
        key = (edge["parent"], edge["child"])
        lines += [f"**{found['edge']}**: {found['words']}", ""]
        lines += [f"{moved[key]}.", ""] if key in moved else []
        for verdict in reversed(CHANGED.values()):
            features = changed.get(key, {}).get(verdict, [])[:N_NAMED]
            lines += [f"Most important that are {verdict}:", "", *map(_line, features), ""] if features else []
    lines += ["## How far this can be read", "", *(f"- {sentence}" for sentence in [*checks(summary), *warnings])]
    return "\n".join(visible(line) for line in lines).replace(SPACE, " ") + "\n"


def _line(feature: Mapping) -> str:
    """A feature in a line."""
    own = feature["members"][0]
    how_sure = "sure" if feature["headline"] else "identified" if feature["identified"] else "not identified"
    match = "no match" if feature["match"] is None else f"best match r {number(feature['match_r'], 2)}"
    # code, because a label may hold any characters of the text
    label = f"`{own['label'].replace('`', chr(39))}`" if own["label"] else "follows no known property"
    return f"- {own['model']} / {own['latent']}: {label} ({how_sure}, {match})"
