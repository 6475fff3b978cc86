"""What the page shows of behaviour: tables of `behaviour.acts`, `.patching` and `.contrasts`, arranged by edge."""

import json

import pandas as pd

from saelineage.lineage.matching import SIDES

PASSAGE = ("passage", "corpus", "row", "place", "before", "text")
"""Columns that a passage has in all settings."""
WORDS = dict(zip(reversed(SIDES), ("new", "lost"), strict=True))
"""What the features of each side are called."""


def acted_view(edges: pd.DataFrame, acts: pd.DataFrame, summary: pd.DataFrame, patches: pd.DataFrame) -> list[dict]:
    """Per edge, what was done in each setting, each feature with its passages, and the loss that is recovered.

    Args:
        edges: the report's table of edges.
        acts, summary, patches: the report's tables.

    Returns:
        Nothing in runs in which features are not acted on.
    """
    if not len(acts) + len(summary) + len(patches):
        return []
    view = []
    for names in edges[list(SIDES)].drop_duplicates().itertuples(index=False):
        parent, child = names
        own, own_summary, own_patches = (
            table[(table["parent"] == parent) & (table["child"] == child)] for table in (acts, summary, patches)
        )
        rows = own_summary.to_dict("records")
        view.append(
            {
                "edge": f"{parent} → {child}",
                "parent": parent,
                "child": child,
                "summary": rows,
                "added": next((row for row in rows if row["setting"] == "added"), None),
                "features": [_feature(table) for _, table in own.groupby("latent", sort=False)],
                "patches": own_patches.to_dict("records"),
            }
        )
    return view


def taught_view(edges: pd.DataFrame, enriched: pd.DataFrame, samples: pd.DataFrame, taught: pd.DataFrame) -> list[dict]:
    """Per edge, its enriched features, what its new and lost features follow, and samples.

    Args:
        edges: the report's table of edges.
        enriched, samples, taught: the report's tables.
    """
    view = []
    for parent, child in edges[list(SIDES)].drop_duplicates().itertuples(index=False):
        own_enriched, own_samples, own_taught = (
            table[(table["parent"] == parent) & (table["child"] == child)] for table in (enriched, samples, taught)
        )
        groups = [row | {"latents": row["latents"].split()} for row in own_taught.to_dict("records")]
        by_side = {words: [row for row in groups if row["side"] == side] for side, words in WORDS.items()}
        view.append(
            {
                "edge": f"{parent} → {child}",
                "child": child,
                "enriched": own_enriched.to_dict("records")[:1],
                "rows": own_enriched[own_enriched["enriched"].astype(bool)].to_dict("records"),
                "groups": [(words, rows) for words, rows in by_side.items() if rows],
                "samples": own_samples.to_dict("records"),
            }
        )
    return [edge for edge in view if edge["enriched"] or edge["groups"] or edge["samples"]]


def _feature(acts: pd.DataFrame) -> dict:
    """A feature with its passages, each with a row per setting."""
    passages = []
    for _, table in acts.groupby("passage", sort=False):
        rows = [row | {"next": json.loads(row["next"])} for row in table.to_dict("records")]
        passages.append({name: rows[0][name] for name in PASSAGE} | {"rows": rows})
    return {"latent": acts["latent"].iloc[0], "label": acts["label"].iloc[0], "passages": passages}
