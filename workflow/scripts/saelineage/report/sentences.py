"""Sentences of the report: the answer, the warnings, and the format of numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import NAType

from saelineage.plan.instruments import INSTRUMENTS
from saelineage.report.tables import (
    AT_FLOOR,
    BELOW,
    LARGEST_NULL,
    LEAST_FLOOR,
    NO_FLOOR,
    NO_RATIO,
    NOTHING,
    is_fit,
    largest_null,
    reading,
)

HIGH_FVU, HIGH_DEAD_FRACTION, HIGH_FVU_SPREAD = 0.25, 0.3, 0.1
NOT_MEASURED = "not measured"
SPACE = "\u00a0"
"""Keeps a number and its unit on one line."""
READINGS = {
    BELOW: "below the floor: features are lost",
    AT_FLOOR: "at the floor: no loss beyond the instrument's own",
    NO_RATIO: "not comparable: its ratio to the floor has no interval",
    NO_FLOOR: "no floor was measured: train a second seed",
    NOTHING: "no feature is testable",
}
CAVEATS = {"anchored": "The child's SAE may keep features that the child no longer needs."}
"""Sentences that follow the description of an instrument."""


def answer(summary: dict) -> list[str]:
    """The answer: each edge's share with its baselines, a summary of all edges, and the check of the instrument."""
    if not summary["edges"]:
        return ["The lineage has no edge, so there is nothing to compare."]
    return [
        f"All shares are those of this run's leading instrument, {summary['leading']}.",
        *[_edge_sentences(edge) for edge in summary["edges"]],
        _all_edges([reading(edge) for edge in summary["edges"]]),
        instrument_check(summary),
    ]


def instrument_check(summary: dict) -> str:
    """The check of the leading instrument: its lowest floor and its largest null against their bounds."""
    rows = _leading(summary)
    floors = [(row["floor_share"], _arrow(row)) for row in rows if row["floor_share"] is not None]
    nulls = [(share, null, _arrow(row)) for row in rows for null, share in [largest_null(row["nulls"])] if null]
    floor, null = "No floor was measured.", "No null was computed."
    if floors:
        share, edge = min(floors)
        floor = f"Its lowest floor is {percent(share)} ({edge}); it must be at least {percent(LEAST_FLOOR, 0)}."
    if nulls:
        share, name, edge = max(nulls)
        null = f"Its largest null is {percent(share)} ({name}, {edge}); it must be at most {percent(LARGEST_NULL, 0)}."
    checks = [is_fit(row) for row in rows]
    verdict = "fails its check" if False in checks else "could not be checked" if None in checks else "passes its check"
    return f"The instrument {verdict}. {floor} {null}"


def instrument_warnings(summary: dict) -> list[str]:
    """Consequences of a leading instrument that fails its check, one warning for each bound."""
    rows = _leading(summary)
    low = [row for row in rows if row["floor_share"] is not None and row["floor_share"] < LEAST_FLOOR]
    high = [row for row in rows if (largest_null(row["nulls"])[1] or 0.0) > LARGEST_NULL]
    warnings = []
    if low:
        warnings.append(
            f"Under {summary['leading']}, the floor is below {percent(LEAST_FLOOR, 0)} on {len(low)} of {len(rows)} "
            "edges. There the instrument itself loses features, so small losses cannot be seen, and an edge at its "
            "floor may still have lost features."
        )
    if high:
        warnings.append(
            f"Under {summary['leading']}, a null is above {percent(LARGEST_NULL, 0)} on {len(high)} of {len(rows)} "
            "edges. That many features match without descent, so shares may be too high by as much."
        )
    return warnings


def stabilised(budgets: pd.DataFrame) -> list[str]:
    """Say for each parent which part of the anchored no-change control is stabilisation, under the leading instrument.

    Args:
        budgets: from `tables.budget_table`.
    """
    leading = budgets[budgets["leading"].astype(bool) & budgets["kept_share"].notna() & budgets["reset_share"].notna()]
    return [_stabilised(row) for row in leading.drop_duplicates("parent").to_dict("records")]


def _stabilised(row: Mapping) -> str:
    kept, reset = (f"{percent(row[name])} of {count(row[f'{name}_n'])}" for name in ("kept_share", "reset_share"))
    seeds = "" if pd.isna(row["two_seed_share"]) else f" (two seeds agree on {percent(row['two_seed_share'])})"
    return (
        f"{row['parent']}, unchanged: {percent(row['no_change_share'])} of its features are found after training on. "
        f"With a share of the latents started afresh, {kept} features are found whose latent was kept, and {reset} "
        f"whose latent was reset. The last figure is what training finds by itself{seeds}. All that the no-change "
        "control has above it is stabilisation: latents that stay where they started."
    )


def described(instruments: pd.DataFrame) -> dict[str, str]:
    """A description of each instrument of the run."""
    return {name: _description(name) for name in dict.fromkeys(instruments["instrument"])}


def pooled(saes: pd.DataFrame) -> list[dict]:
    """The rows of all corpora together, with marks for a high fvu and a high dead fraction."""
    rows = saes[saes["corpus"] == "pooled"].to_dict("records")
    return [
        {str(key): value for key, value in row.items()}
        | {
            "high_fvu": row["fvu"] is not None and row["fvu"] > HIGH_FVU,
            "high_dead_fraction": row["dead_fraction"] > HIGH_DEAD_FRACTION,
        }
        for row in rows
    ]


def import_warnings(manifests: Mapping[str, Mapping]) -> list[str]:
    """What could not be told for sure when models and SAEs were imported, as their manifests record it."""
    return [warning for manifest in manifests.values() for warning in manifest.get("found", {}).get("warnings", [])]


def sae_warnings(saes: pd.DataFrame, leading: Mapping[str, str]) -> list[str]:
    """Warnings about the SAEs that verdicts rest on.

    Args:
        saes: from `sae_table`.
        leading: the SAE of each model that verdicts rest on; there are no warnings about others.
    """
    rows = [row for row in pooled(saes) if leading.get(row["model"]) == row["sae"]]
    warnings = [
        f"{row['model']}.{row['sae']} leaves {percent(row['fvu'])} of the variance unexplained (more than "
        f"{percent(HIGH_FVU)}). A feature that it misses looks like one that disappeared."
        for row in rows
        if row["high_fvu"]
    ]
    warnings += [
        f"{percent(row['dead_fraction'])} of the latents of {row['model']}.{row['sae']} never fire (more than "
        f"{percent(HIGH_DEAD_FRACTION)})."
        for row in rows
        if row["high_dead_fraction"]
    ]
    measured = [row for row in rows if row["fvu"] is not None and not np.isnan(row["fvu"])]
    if measured:
        best, worst = min(measured, key=_fvu), max(measured, key=_fvu)
        if worst["fvu"] - best["fvu"] > HIGH_FVU_SPREAD:
            warnings.append(
                f"The SAEs are not equally good: fvu is {number(best['fvu'])} for {best['model']}.{best['sae']} and "
                f"{number(worst['fvu'])} for {worst['model']}.{worst['sae']}. Shares that rest on them differ for this "
                "reason too."
            )
    return warnings


def number(value: float | int | None, digits: int = 3) -> str:
    """A number with a fixed number of decimal places."""
    return NOT_MEASURED if pd.isna(value) else f"{value:.{digits}f}"


def signed(value: float | int | None, digits: int = 3) -> str:
    """A change: a number with its sign."""
    return NOT_MEASURED if pd.isna(value) else f"{value:+.{digits}f}"


def count(value: float | int | NAType | None) -> str:
    """A whole number with commas between thousands."""
    return NOT_MEASURED if pd.isna(value) else f"{value:,.0f}"


def percent(value: float | int | None, digits: int = 1) -> str:
    """A share in percent."""
    return NOT_MEASURED if pd.isna(value) else f"{100 * value:.{digits}f}{SPACE}%"


def interval(bounds: Sequence[float | None] | None) -> str:
    """An interval of shares, in percent; empty if there is none."""
    low, high = bounds or (None, None)
    if low is None or high is None or pd.isna(low):
        return ""
    return f"{100 * low:.1f} to {100 * high:.1f}{SPACE}%"


def _share(edge: Mapping, name: str) -> str:
    """A share with its interval."""
    bounds = edge[f"{name}_interval"]
    return percent(edge[name]) + (f" [{interval(bounds)}]" if bounds else "")


def _edge_sentences(edge: Mapping) -> str:
    """The edge's persisting share with its baselines."""
    start = f"From {edge['parent']} to {edge['child']}"
    if edge["persist_share"] is None:
        return f"{start}, no feature is testable."
    share = f"{start}, {_share(edge, 'persist_share')} of {count(edge['persist_share_n'])} testable features persist."
    return f"{share} {_baselines(edge)}"


def _baselines(edge: Mapping) -> str:
    """The floors that an edge's share is compared with."""
    floor, seed_floor, parent = _share(edge, "floor_share"), _share(edge, "seed_floor_share"), edge["parent"]
    if edge["floor_share"] is None:
        return f"No floor was measured for {parent}."
    if edge["instrument"] == "independent":
        return f"Baseline: {floor} persist between two independent SAEs of {parent} (floor)."
    unchanged = f"{floor} persist when the model is unchanged (floor)"
    if edge["seed_floor_share"] is None:
        return f"Baseline: {unchanged}; {parent} has only one independent SAE, so it has no seed floor."
    return f"Baselines: {unchanged}; {seed_floor} persist between two independent SAEs of {parent} (seed floor)."


def _all_edges(readings: Sequence[str]) -> str:
    """The number of edges with each reading."""
    n, below, at_floor = len(readings), readings.count(BELOW), readings.count(AT_FLOOR)
    if readings.count(NO_FLOOR) == n:
        return "Without a second SAE seed there is no floor: lost features cannot be told from noise of SAE training."
    left = n - below - at_floor
    parts = [
        f"{below} {_are(below)} below the floor (features are lost)",
        f"{at_floor} {_are(at_floor)} at the floor (no loss beyond the instrument's own)",
        f"{left} cannot be compared with a floor",
    ]
    shown = [part for part, n_edges in zip(parts, (below, at_floor, left), strict=True) if n_edges]
    return f"Of {n} {'edge' if n == 1 else 'edges'}, {'; '.join(shown)}."


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _leading(summary: dict) -> list[dict]:
    """The comparisons of the leading instrument, one for each edge."""
    return [row for row in summary["instruments"] if row["instrument"] == summary["leading"]]


def _arrow(edge: Mapping) -> str:
    return f"{edge['parent']} → {edge['child']}"


def _description(name: str) -> str:
    """A description of an instrument; its name may add a budget or a single parent."""
    base, at, n_tokens = name.partition("@")
    if at:
        return f"As {base}, but the child's SAE is trained on {count(int(n_tokens))} tokens."
    if name.startswith("anchored to "):
        return "As anchored, but the merge's SAE starts from this parent's alone."
    chosen = INSTRUMENTS[name]
    caveat = f" {CAVEATS[name]}" if name in CAVEATS else ""
    return f"The child's SAE {chosen.child_sae}. Floor: {chosen.floor}.{caveat}"


def _fvu(row: Mapping) -> float:
    return row["fvu"]
