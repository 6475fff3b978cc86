"""The tables and figures of the truth test."""

import json
from collections.abc import Mapping

import pandas as pd
from benchmarks.scores import fitness, summed

from saelineage.lineage.matching import SIDES
from saelineage.lineage.shares import share

RECOMMENDED = "anchored"
"""The workflow's leading instrument."""
TOLD = "identity|removed|erased|grafted"
"""Organisms that say what an instrument sees and spares. Permuted and scrambled neurons are left out: all features of
one are kept and none of the other, but instruments that start from the parent's SAE presume that neurons stay."""


def figures(tables: Mapping[str, pd.DataFrame]) -> dict:
    """The figures with goals, each with its n, of the recommended instrument, and of every instrument and list.

    Returns:
        Figures over everything that was tried; `by_instrument`, the same for each, and `by_part`; `by_list`, the
        counts and ratios of each list; `fitness`, by part and instrument; and `identity_below_control`. None stands
        where nothing was tried that could tell.
    """
    lists = tables["lists"]
    by_instrument = of_instruments(lists, tables["backdoor"])
    parts = lists.groupby("part", sort=False)
    return by_instrument.get(RECOMMENDED, {}) | {
        "instrument": RECOMMENDED,
        "by_instrument": by_instrument,
        "by_part": {str(part): of_instruments(rows, tables["backdoor"]) for part, rows in parts},
        "by_list": records(summed(lists, ["part", "group", "side", "instrument", "list"])),
        "fitness": records(fitnesses(tables["detected"])),
        "identity_below_control": below_control(tables["identity"]),
    }


def of_instruments(lists: pd.DataFrame, backdoor: pd.DataFrame) -> dict[str, dict]:
    """The figures of each instrument."""
    return {str(name): figures_of(rows, backdoor) for name, rows in lists.groupby("instrument", sort=False)}


def figures_of(lists: pd.DataFrame, backdoor: pd.DataFrame) -> dict:
    """The figures with goals of one instrument, each with its n.

    Args:
        lists: rows of the table `lists` of one instrument.
        backdoor: the table of that name.
    """
    told = lists[can_tell(lists)]
    lost, emerged = (told[told["side"] == side] for side in SIDES)
    removed, erased = (lost[lost["group"].str.match(group)] for group in ("removed", "erased"))
    found = {
        "false_loss_identified": ratio(lost, "identified", "listed_kept", "n_kept"),
        "recall_removed": ratio(removed, "all", "listed_changed", "n_changed"),
        "recall_removed_identified": ratio(removed, "identified", "listed_changed", "n_changed"),
        "recall_erased_headline": ratio(erased, "headline", "listed_changed", "n_changed"),
        "precision_lost": precision(lost, "headline"),
        "precision_emerged": precision(emerged, "headline"),
        "precision_robust": precision(told, "robust"),
        "recall_emerged": ratio(emerged, "headline", "planted_listed", "n_planted"),
    }
    result: dict = {}
    for name, (value, n) in found.items():
        result |= {name: value, f"{name}_n": n}
    of_backdoor = records(backdoor[backdoor["instrument"] == lists["instrument"].iloc[0]]) if len(backdoor) else []
    row = of_backdoor[0] if of_backdoor else {}
    return result | {"backdoor_rank": whole(row.get("rank")), "backdoor_rank_n": whole(row.get("n_new"))}


def whole(value: float | None) -> int | None:
    """A whole number, which a table with gaps holds as a float."""
    return None if value is None else int(value)


def ratio(lists: pd.DataFrame, name: str, count: str, of: str) -> tuple[float | None, int]:
    """A share over one list, and its n."""
    rows = lists[lists["list"] == name]
    value, n, _ = share(int(rows[count].sum()), int(rows[of].sum()))
    return value, n


def precision(lists: pd.DataFrame, name: str) -> tuple[float | None, int]:
    """The share of those on a list that are truly lost or new, and the length of the list."""
    rows = lists[lists["list"] == name]
    right, wrong = int(rows["listed_changed"].sum()), int(rows["listed_kept"].sum())
    value, n, _ = share(right, right + wrong)
    return value, n


def fitnesses(detected: pd.DataFrame) -> pd.DataFrame:
    """`scores.fitness` by part and instrument, of the organisms and scenarios that can tell."""
    return fitness(detected[can_tell(detected)], ["part", "instrument"])


def can_tell(rows: pd.DataFrame) -> pd.Series:
    """Rows of the scenarios and of the organisms that say what an instrument sees and spares."""
    return rows["group"].str.match(TOLD) | (rows["part"] == "scenarios")


def below_control(identity: pd.DataFrame) -> dict[str, float]:
    """The share of copies of the base of which the page says that features are lost, by group of features."""
    return (
        {}
        if identity.empty
        else {str(of): float(share) for of, share in identity.groupby("of")["below"].mean().items()}
    )


def records(table: pd.DataFrame) -> list[dict]:
    """Rows as JSON has them, which knows no NaN."""
    return json.loads(table.to_json(orient="records"))


def show(tables: Mapping[str, pd.DataFrame]) -> None:
    """Print the tables."""
    lists = summed(tables["lists"], ["side", "part", "group", "instrument", "list"])
    for side in SIDES:
        _print(f"{side}'s side", lists[lists["side"] == side].drop(columns="side"))
    shares = tables["shares"].groupby(["side", "group", "instrument", "of"], sort=False)
    _print("called persisting or inherited", shares[["n", "persisting", "expected"]].sum().reset_index())
    if len(tables["roles"]):
        roles = tables["roles"].groupby(["group", "instrument", "side", "role"], sort=False)
        _print("planted features by role", roles.sum(numeric_only=True).reset_index())
    for name in ("identity", "backdoor", "seconds"):
        if len(tables[name]):
            _print(name, tables[name])
    _print("sensitivity and specificity, of identified features", fitnesses(tables["detected"]))


def _print(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}\n{table.round(3).to_string(index=False)}", flush=True)
