"""What the page shows of acts on features: tables of `behaviour.acts` and `behaviour.patching`, arranged by edge."""

import json

import pandas as pd

from saelineage.lineage.matching import SIDES

PASSAGE = ("passage", "corpus", "row", "place", "before", "text")
"""Columns that a passage has in all settings."""


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


def _feature(acts: pd.DataFrame) -> dict:
    """A feature with its passages, each with a row per setting."""
    passages = []
    for _, table in acts.groupby("passage", sort=False):
        rows = [row | {"next": json.loads(row["next"])} for row in table.to_dict("records")]
        passages.append({name: rows[0][name] for name in PASSAGE} | {"rows": rows})
    return {"latent": acts["latent"].iloc[0], "label": acts["label"].iloc[0], "passages": passages}
