"""Sentences of a report: what its tables mean, what to be careful of, and how numbers are written."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import NAType

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
"""Between a number and its unit, which stay on one line."""
READINGS = {
    BELOW: "below the floor: features are lost",
    AT_FLOOR: "at the floor: no loss beyond the instrument's own",
    NO_RATIO: "not comparable: its ratio to the floor has no interval",
    NO_FLOOR: "no floor was measured: train a second seed",
    NOTHING: "no feature is testable",
}
INSTRUMENTS = {
    "independent": "Each model's SAE is trained from a random seed of its own. Where nothing changed: SAEs from two "
    "seeds of the parent.",
    "anchored": "The child's SAE starts from the parent's and is trained on from there, on the child; a merge's starts "
    "from the average of its parents'. It may keep what the child no longer needs. Where nothing changed: the parent's "
    "SAE, trained on in the same way on the parent.",
    "frozen": "The SAE of the model without parents reads every model and is trained on none of them, so nothing can "
    "emerge. Where nothing changed: the SAE beside itself.",
    "same_init": "All models' SAEs start from the same random weights and see tokens in the same order. Where nothing "
    "changed: the same start on the parent, with tokens in another order.",
    "own_mixture": "As independent, each SAE trained only on the corpora that its model and the model's ancestors "
    "were trained on. Where nothing changed: SAEs from two seeds of the parent.",
}


def answer(summary: dict) -> list[str]:
    """The answer: each edge's share beside its floors, what they say together, and whether the instrument is fit."""
    if not summary["edges"]:
        return ["The lineage has no edge, so there is nothing to compare."]
    return [
        f"All shares here are those of this run's leading instrument, {summary['leading']}.",
        *[_edge_sentence(edge) for edge in summary["edges"]],
        _together([reading(edge) for edge in summary["edges"]]),
        instrument_check(summary),
    ]


def instrument_check(summary: dict) -> str:
    """Whether the leading instrument finds what is there, and nothing else: its lowest floor and its largest null."""
    leading = _leading(summary)
    floors = [(one["floor_share"], _arrow(one)) for one in leading if one["floor_share"] is not None]
    nulls = [(share, null, _arrow(one)) for one in leading for null, share in [largest_null(one["nulls"])] if null]
    floor, null = "No floor was measured", "no null was computed"
    if floors:
        share, edge = min(floors)
        asked = f"{percent(LEAST_FLOOR, 0)} or more is asked for"
        floor = f"Where nothing changed it finds {percent(share)} again at worst ({edge}; {asked})"
    if nulls:
        share, name, edge = max(nulls)
        asked = f"{percent(LARGEST_NULL, 0)} or less is asked for"
        null = f"where nothing can persist it finds {percent(share)} at most ({name}, {edge}; {asked})"
    fits = [is_fit(one) for one in leading]
    verdict = "fails its check" if False in fits else "could not be checked" if None in fits else "passes its check"
    return f"The instrument {verdict}. {floor}; {null}."


def instrument_warnings(summary: dict) -> list[str]:
    """What follows where the leading instrument fails its check, one sentence each."""
    leading = _leading(summary)
    low = [one for one in leading if one["floor_share"] is not None and one["floor_share"] < LEAST_FLOOR]
    high = [one for one in leading if (largest_null(one["nulls"])[1] or 0.0) > LARGEST_NULL]
    warnings = []
    if low:
        warnings.append(
            f"Under {summary['leading']} the floor is less than {percent(LEAST_FLOOR, 0)} on {len(low)} of "
            f"{len(leading)} edges: the instrument loses features by itself, so small losses cannot be seen, "
            "and an edge at the floor may have lost features all the same."
        )
    if high:
        warnings.append(
            f"Under {summary['leading']} a null is more than {percent(LARGEST_NULL, 0)} on {len(high)} of "
            f"{len(leading)} edges: as many features match without any descent, so shares may be too high by that much."
        )
    return warnings


def described(instruments: pd.DataFrame) -> dict[str, str]:
    """What each instrument of the run is, in words."""
    return {name: _description(name) for name in dict.fromkeys(instruments["instrument"])}


def pooled(saes: pd.DataFrame) -> list[dict]:
    """The rows of all corpora together, each with what it should be read with caution for."""
    rows = saes[saes["corpus"] == "pooled"].to_dict("records")
    return [
        row
        | {
            "high_fvu": row["fvu"] is not None and row["fvu"] > HIGH_FVU,
            "high_dead_fraction": row["dead_fraction"] > HIGH_DEAD_FRACTION,
        }
        for row in rows
    ]


def sae_warnings(saes: pd.DataFrame, leading: Mapping[str, str]) -> list[str]:
    """What about the SAEs should make one careful, one sentence each.

    Args:
        saes: from `sae_table`.
        leading: of each model, the SAE that verdicts rest on; of others nothing is said.
    """
    rows = [row for row in pooled(saes) if leading.get(row["model"]) == row["sae"]]
    warnings = [
        f"{row['model']}.{row['sae']} leaves {percent(row['fvu'])} of the variance unexplained (more than "
        f"{percent(HIGH_FVU)}): a feature it misses looks like one that disappeared."
        for row in rows
        if row["high_fvu"]
    ]
    warnings += [
        f"{percent(row['dead_fraction'])} of the latents of {row['model']}.{row['sae']} never fire (more than "
        f"{percent(HIGH_DEAD_FRACTION)})."
        for row in rows
        if row["high_dead_fraction"]
    ]
    known = [row for row in rows if row["fvu"] is not None and not np.isnan(row["fvu"])]
    if known:
        best, worst = min(known, key=_fvu), max(known, key=_fvu)
        if worst["fvu"] - best["fvu"] > HIGH_FVU_SPREAD:
            warnings.append(
                f"The SAEs are not equally good: fvu is {number(best['fvu'])} for {best['model']}.{best['sae']} and "
                f"{number(worst['fvu'])} for {worst['model']}.{worst['sae']}, so shares that rest on them differ for "
                "that too."
            )
    return warnings


def number(value: float | int | None, digits: int = 3) -> str:
    """A number with a fixed number of digits after the point."""
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
    """An interval of shares, in percent; nothing where there is none."""
    if bounds is None or pd.isna(bounds[0]):
        return ""
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}{SPACE}%"


def _share(edge: Mapping, name: str) -> str:
    """A share with its interval, for a sentence."""
    bounds = edge[f"{name}_interval"]
    return percent(edge[name]) + (f" [{interval(bounds)}]" if bounds else "")


def _edge_sentence(edge: Mapping) -> str:
    """An edge's share, and beside it the same where nothing changed, and between independent SAEs of the parent."""
    way = f"From {edge['parent']} to {edge['child']}"
    if edge["persist_share"] is None:
        return f"{way} no feature is testable."
    share = f"{way} {_share(edge, 'persist_share')} of {count(edge['persist_share_n'])} testable features persist"
    return f"{share}; {_floors(edge)}."


def _floors(edge: Mapping) -> str:
    """What an edge's share is to be held against, in words."""
    floor, seeds, parent = _share(edge, "floor_share"), _share(edge, "seed_floor_share"), edge["parent"]
    if edge["floor_share"] is None:
        return f"no floor was measured for {parent}"
    if edge["instrument"] == "independent":
        return f"where nothing changed, between two independent SAEs of {parent}, {floor} do"
    if edge["seed_floor_share"] is None:
        return f"where nothing changed {floor} do, and {parent} has no two independent SAEs"
    return f"where nothing changed {floor} do, and two independent SAEs of {parent} agree on {seeds}"


def _together(readings: Sequence[str]) -> str:
    """What the edges say together."""
    n, below, at_floor = len(readings), readings.count(BELOW), readings.count(AT_FLOOR)
    if readings.count(NO_FLOOR) == n:
        return "Without a second SAE seed there is no floor: the shares cannot be told from the noise of SAE training."
    counts = {
        "below the floor, where features are lost": below,
        "at the floor, with no loss beyond the instrument's own": at_floor,
        "where no floor can be held against the share": n - below - at_floor,
    }
    parts = [f"{found} {'lies' if found == 1 else 'lie'} {where}" for where, found in counts.items() if found]
    return f"Of {n} {'edge' if n == 1 else 'edges'}, {'; '.join(parts)}."


def _leading(summary: dict) -> list[dict]:
    """What the leading instrument says of each edge."""
    return [one for one in summary["instruments"] if one["instrument"] == summary["leading"]]


def _arrow(edge: Mapping) -> str:
    return f"{edge['parent']} → {edge['child']}"


def _description(instrument: str) -> str:
    """An instrument in words, those of several budgets and of one parent alone among them."""
    name, at, n_tokens = instrument.partition("@")
    if at:
        return f"As {name}, the child's SAE trained on {count(int(n_tokens))} tokens."
    if instrument.startswith("anchored to "):
        return "As anchored, the merge's SAE started from this parent's alone."
    return INSTRUMENTS[instrument]


def _fvu(row: Mapping) -> float:
    return row["fvu"]
