"""Sentences of the report: the answer, the warnings, and the format of numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import NAType

from saelineage.corpora.counts import few_documents
from saelineage.lineage.evidence import ALL, GROUPS, IDENTIFIED
from saelineage.lineage.twins import HEADLINE
from saelineage.lineage.verdicts import GONE, VERDICTS
from saelineage.plan.graph import POOLED, REVIVED
from saelineage.plan.instruments import INSTRUMENTS
from saelineage.report.tables import (
    AT_CONTROL,
    BELOW,
    HIDDEN,
    LARGEST_RANDOM,
    LEAST_NO_CHANGE,
    NO_CONTROL,
    NO_RATIO,
    NOTHING,
    largest_random,
    sees_new,
)
from saelineage.report.truth_test import sensitivity

HIGH_FVU, HIGH_DEAD_FRACTION, HIGH_FVU_SPREAD = 0.25, 0.3, 0.1
LEAST_AGREEMENT = 0.5
"""Rank correlation of effects from which matched features are said to do the same, and estimates to be of use."""
LEAST_P, LARGEST_P = 0.001, 0.05
"""Least p that is written out, and largest from which more features are said to return in one model than in another."""
MANY_TIMES = 10.0
"""Drift from which it is given as a multiple of the variance, not in percent."""
NOT_MEASURED = "not measured"
SPACE = "\u00a0"
"""Keeps a number and its unit on one line."""
READINGS = {
    BELOW: "below the no-change control",
    AT_CONTROL: "at the no-change control",
    NO_RATIO: "not comparable: its ratio to the no-change control has no interval",
    NO_CONTROL: "no control was measured: train a second seed",
    NOTHING: "no feature is testable",
    HIDDEN: "no verdict on losses: the model moved by less than its SAEs leave unexplained",
}
CAVEATS = {"anchored": "The child's SAE may keep features that the child no longer needs."}
"""Sentences that follow the description of an instrument."""


def answer(summary: dict) -> list[dict[str, str]]:
    """What became of the features of each edge (`edge`, in `words`), identified ones where they are known."""
    return [{"edge": _arrow(edge), "words": _edge_words(edge)} for edge in summary["edges"]]


def checks(summary: dict) -> list[str]:
    """How far the answer can be read: the leading instrument's controls, and what it sees of true changes."""
    if not summary["edges"]:
        return []
    return [*_unchanged(summary), *_random(summary), sensitivity(summary["leading"])]


def _unchanged(summary: dict) -> list[str]:
    """The lowest no-change control on identified features."""
    unchanged = [
        (row["groups"][IDENTIFIED]["no_change_share"], _arrow(row))
        for row in _leading(summary)
        if row["groups"][IDENTIFIED] and row["groups"][IDENTIFIED]["no_change_share"] is not None
    ]
    if not unchanged:
        return [f"Under {summary['leading']}, the no-change control on identified features was not measured."]
    share, edge = min(unchanged)
    return [
        f"If nothing changes: {summary['leading']} SAEs of the unchanged model keep at least {percent(share)} of "
        f"identified features ({edge}); {percent(LEAST_NO_CHANGE, 0)} are needed to read losses."
    ]


def _random(summary: dict) -> list[str]:
    """The largest random control, of all features and of identified ones."""
    rows = _leading(summary)
    random = [found for row in rows if (found := _largest_random(row, ALL))]
    if not random:
        return ["No random control was computed."]
    share, name, edge = max(random)
    of_all = (
        f"By chance: at most {percent(share)} of all features match in a random control ({name}, {edge}); "
        f"{percent(LARGEST_RANDOM, 0)} are allowed."
    )
    of_identified = [found for row in rows if (found := _largest_random(row, IDENTIFIED))]
    if not of_identified or max(of_identified)[0] == 0:
        return [of_all]
    share, name, edge = max(of_identified)
    return [
        f"{of_all} Of identified features it is up to {percent(share)} ({name}, {edge}): some fire on the same tokens "
        "in any model."
    ]


def _largest_random(comparison: Mapping, group: str) -> tuple[float, str, str] | None:
    """The largest share of a group of features in a random control, with the control and the edge."""
    shares = comparison["groups"][group]
    name, share = largest_random(shares["control_shares"]) if shares else (None, None)
    return None if name is None or share is None else (share, name, _arrow(comparison))


def instrument_warnings(summary: dict) -> list[str]:
    """What cannot be read from this run: too few seeds, or an instrument that loses features or matches by chance."""
    rows, leading = _leading(summary), summary["leading"]
    warnings = []
    without = [row for row in rows if not row["groups"][IDENTIFIED]]
    if without:
        warnings.append(
            f"On {len(without)} of {len(rows)} edges it is not known which features are identified, because a model "
            "has SAEs of too few seeds. Most latents of one SAE are not found by another seed, and a verdict on them "
            "says what training did, not what the model has. Set saes.seeds to three."
        )
    low = [row for row in rows if row["groups"][IDENTIFIED] and not _keeps(row["groups"][IDENTIFIED])]
    if low:
        warnings.append(
            f"Under {leading}, fewer than {percent(LEAST_NO_CHANGE, 0)} of identified features persist where the model "
            f"is unchanged, on {len(low)} of {len(rows)} edges. There the instrument itself loses features. Train SAEs "
            "that start from a parent's on fewer tokens or at a lower rate (saes.anchored)."
        )
    if not sees_new(leading):
        warnings.append(f"{leading} cannot see new features: the child's SAE is not trained.")
    high = [row for row in rows if (largest_random(row["groups"][ALL]["control_shares"])[1] or 0.0) > LARGEST_RANDOM]
    if high:
        warnings.append(
            f"Under {leading}, a random control is above {percent(LARGEST_RANDOM, 0)} on {len(high)} of {len(rows)} "
            "edges. That many features match without descent, so shares may be too high by as much."
        )
    warnings += [
        f"The decoder directions of {_arrow(edge)} are unrelated even where features fire together, so the two models "
        "do not share a basis (permuted neurons do this). Whether a feature kept its direction was not checked."
        for edge in summary["edges"]
        if edge["shares_basis"] is False and edge["kinds"]["1:1"]
    ]
    warnings += [
        f"Features of {_arrow(edge)} that fire together differ in strength altogether, so the activations of the two "
        "models have no common scale. Which features are rescaled or partial was not checked."
        for edge in summary["edges"]
        if edge["shares_scale"] is False and edge["kinds"]["1:1"]
    ]
    return warnings


def agreement_of_effects(effects: pd.DataFrame) -> list[str]:
    """Say whether matched features do the same, by the median rank correlation over edges and corpora.

    Args:
        effects: from `tables.effect_table`.
    """
    known = effects.loc[effects["corpus"] != POOLED, "spearman"].dropna()
    if known.empty:
        return []
    median = known.median()
    conclusion = (
        "features that fire together mostly do the same here"
        if median >= LEAST_AGREEMENT
        else "that two features fire together does not tell that they do the same here"
    )
    return [f"The median rank correlation is {number(median, 2)} (n = {len(known)}): {conclusion}."]


def stabilised(budgets: pd.DataFrame) -> list[str]:
    """Say for each parent which part of the anchored no-change control is stabilisation, under the leading instrument.

    Args:
        budgets: from `tables.budget_table`.
    """
    measured = budgets["kept_share"].notna() & budgets["reset_share"].notna()
    leading = budgets[budgets["leading"].astype(bool) & measured].drop_duplicates(["parent", "group"])
    return [_stabilised(row) for row in leading.to_dict("records")]


def _stabilised(row: Mapping) -> str:
    kept, reset = (f"{percent(row[name])} of {count(row[f'{name}_n'])}" for name in ("kept_share", "reset_share"))
    unchanged, seeds = (percent(row[name]) for name in ("no_change_share", "two_seed_share"))
    control = "" if pd.isna(row["no_change_share"]) else f" In the no-change control {unchanged} are."
    agree = "" if pd.isna(row["two_seed_share"]) else f" (two seeds agree on {seeds})"
    return (
        f"Of {row['group']} features of {row['parent']}, unchanged, {kept} are found again whose latent was kept, and "
        f"{reset} whose latent was reset.{control} The share of reset latents is what training finds by itself{agree}; "
        "what the no-change control has above it is stabilisation."
    )


def over_trainings(summary: Mapping) -> list[str]:
    """Say for each edge with twins how much its persisting share depends on the seed of the child's training."""
    return [
        f"Over {count(found['n'])} trainings of {edge['child']} from different seeds, {percent(found['least'])} to "
        f"{percent(found['largest'])} of {group} features of {edge['parent']} are found{_mean_in(found['interval'])}."
        for edge in summary["edges"]
        for group in GROUPS
        if (found := edge.get("over_trainings", {}).get(group)) and found["n"] > 1
    ]


def revived(revivals: pd.DataFrame) -> list[str]:
    """Say for each revived model whether more of what was lost returns in it than in its continued control.

    Of features that are gone for sure, or of all that are gone where none is.

    Args:
        revivals: `tables.revival_table`.
    """
    sentences = []
    for _, rows in revivals.groupby(["parent", "child", "model"], sort=False):
        groups = {name: of_group.to_dict("records") for name, of_group in rows.groupby("group")}
        sure = groups[HEADLINE][0]["returned_n"] > 0
        sentences.append(_revived(groups[HEADLINE if sure else GONE], " for sure" if sure else ""))
    return sentences


def _revived(rows: Sequence[Mapping], surely: str) -> str:
    """The rows of one revived model and group of features in words."""
    of_kind = {row["kind"]: row for row in rows}
    one = of_kind[REVIVED]
    parent, child, model = (one[key] for key in ("parent", "child", "model"))
    if not one["returned_n"]:
        return f"{child} lacks no testable feature of {parent}, so none can return in {model}."
    controls = {kind: row["returned"] for kind, row in of_kind.items() if kind != REVIVED}
    beside = _listed([f"{percent(returned)} in the {kind} {child}" for kind, returned in controls.items()])
    told = "It cannot be told whether more return"
    if one["p"] <= LARGEST_P:
        told = "More return" if one["beyond"] > one["short"] else "Fewer return"
    return (
        f"Of {count(one['returned_n'])} features of {parent} that are gone in {child}{surely}, "
        f"{percent(one['returned'])} are found again in {model}, {beside}. {told} than by training further on "
        f"{child}'s own corpora, in these two trainings: {count(one['beyond'])} are found in {model} and not in the "
        f"continued model, {count(one['short'])} the other way round (sign test over features, p {p_value(one['p'])})."
    )


def _mean_in(interval: Sequence[float] | None) -> str:
    """The interval of a mean, or why there is none."""
    if interval is None:
        return "; two are too few for an interval"
    return f" (95 % interval of the mean: {percent(interval[0])} to {percent(interval[1])})"


def _keeps(shares: Mapping) -> bool:
    """True unless the instrument is known to lose identified features of an unchanged model."""
    return shares["no_change_share"] is None or shares["no_change_share"] >= LEAST_NO_CHANGE


def moved(drift: pd.DataFrame) -> dict[tuple[str, str], str]:
    """How far each child moved from its parent, in a line: over all corpora, beside what the SAEs leave unexplained."""
    pooled = drift[(drift["corpus"] == POOLED) & drift["drift"].notna()]
    return {
        (row["parent"], row["child"]): f"KL {nats(row['kl'])} per token, activations moved {percent(row['drift'])}, "
        f"{_left_unexplained(row)}"
        for row in pooled.to_dict("records")
    }


def _left_unexplained(row: Mapping) -> str:
    """What SAEs leave unexplained, and what follows where that is more than the model moved."""
    if pd.isna(row["unexplained"]):
        return "what SAEs leave unexplained was not measured"
    hidden = pd.notna(row["visible"]) and not row["visible"]
    return f"SAEs leave {percent(row['unexplained'])} unexplained{': no losses can be read' if hidden else ''}"


def _times(drift: float) -> str:
    """A squared distance as a share of the variance, or as a multiple of it."""
    return f"{percent(drift)} of their variance" if drift < MANY_TIMES else f"{drift:.1f} times their variance"


def changes(drift: pd.DataFrame) -> list[str]:
    """How much changed on each edge, and where that is too little for a verdict on losses.

    Args:
        drift: from `drift_table`.
    """
    return [
        " ".join([_change(str(parent), str(child), rows), *_no_verdict(rows)])
        for (parent, child), rows in drift.groupby(["parent", "child"], sort=False)
    ]


def _change(parent: str, child: str, rows: pd.DataFrame) -> str:
    """The change of an edge on the corpus on which predictions changed most."""
    if (rows[["kl", "drift"]] == 0).all(axis=None):
        return (
            f"From {parent} to {child} nothing changed: the two models predict the same and have the same activations. "
            "All differences between their features are noise."
        )
    of_corpora = rows[rows["corpus"] != POOLED]
    most = of_corpora.sort_values("kl", ascending=False, kind="stable").iloc[0]
    start = f"From {parent} to {child} the model changed most on {most['corpus']}: KL {nats(most['kl'])} per token"
    if pd.isna(most["drift"]):
        return f"{start}. The activations of the two models cannot be compared."
    far = f"{start}; activations moved by {_times(most['drift'])} there"
    if pd.isna(most["unexplained"]):
        return f"{far}. How much of it the SAEs explain was not measured."
    return f"{far}, beside {percent(most['unexplained'])} that the SAEs leave unexplained."


def _no_verdict(rows: pd.DataFrame) -> list[str]:
    """Where the activations moved by less than the SAEs leave unexplained, and what follows."""
    hidden = rows[rows["visible"].eq(False)]
    if hidden.empty:
        return []
    if len(rows) == 2:  # one corpus, which is also all of them
        hidden = hidden.head(1)
    places = [
        f"{'all corpora together' if row['corpus'] == POOLED else row['corpus']} ({percent(row['drift'])} moved, "
        f"{percent(row['unexplained'])} unexplained)"
        for _, row in hidden.iterrows()
    ]
    return [
        f"No verdict on losses is possible on {_listed(places)}: there the model moved by less than its SAEs leave "
        "unexplained, so features can seem lost that it still has. Only features that are lost for sure can be named "
        "there."
    ]


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


def document_warnings(documents: pd.DataFrame) -> list[str]:
    """Corpora with few documents in the probe, whose intervals over documents rest on these few.

    Args:
        documents: from `document_table`.
    """
    probe = documents[documents["split"] == "probe"].to_dict("records")
    notes = [few_documents(row["corpus"], {str(key): value for key, value in row.items()}) for row in probe]
    return [note for note in notes if note]


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
    if value is None or pd.isna(value):
        return NOT_MEASURED
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(value: float | int | None, digits: int = 3) -> str:
    """A change: a number with its sign."""
    return NOT_MEASURED if pd.isna(value) else f"{value:+.{digits}f}"


def p_value(value: float, *, signed: bool = True) -> str:
    """The p of a test: `= 0.031` (in a table without the sign), or `< 0.001`."""
    return "< 0.001" if value < LEAST_P else f"{'= ' if signed else ''}{value:.3f}"


def nats(value: float | None) -> str:
    """A divergence, with two digits that count, because many are far below 1."""
    return NOT_MEASURED if pd.isna(value) else f"{value:#.2g}{SPACE}nats"


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


def _edge_words(edge: Mapping) -> str:
    """What became of the features of an edge."""
    identified, everything = (edge["groups"][group] for group in GROUPS)
    shares, group = (identified, IDENTIFIED) if identified else (everything, "testable")
    n_parent, n_child = shares["persist_share_n"], shares["inherited_share_n"]
    if everything["persist_share"] is None:
        return "no feature is testable."
    lost, new = shares["parent"]["headline"], shares["child"]["headline"]
    of_child = shares["child"]["new"]
    words = (
        f"of {count(n_parent)} {group} features of {edge['parent']}, {_outcomes(n_parent, shares['parent'])}; of "
        f"{count(n_child)} {group} features of {edge['child']}, {count(of_child)} {_are(of_child)} new"
    )
    if not identified:
        return f"{words}. Which of them are identified is not known."
    losses = f"{count(lost)} {'loss' if lost == 1 else 'losses'}"
    return f"{words}. {losses} and {count(new)} new {'one' if new == 1 else 'ones'} are sure."


def _outcomes(n: int, counts: Mapping) -> str:
    """The verdicts on the parent's features in words."""
    persists = f"{count(counts['persists'])} {'persists' if counts['persists'] == 1 else 'persist'}"
    drifted = f"{count(counts['drifted'])} {'has' if counts['drifted'] == 1 else 'have'} drifted but can be read out"
    gone = f"{count(counts['gone'])} {_are(counts['gone'])} gone"
    left = n - sum(counts[verdict] for verdict in VERDICTS[0])
    return _listed([persists, drifted, gone, *([f"{count(left)} cannot be told"] if left else [])])


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _listed(parts: Sequence[str]) -> str:
    """A list in words."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


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
    return f"The child's SAE {chosen.child_sae}. No-change control: {chosen.no_change}.{caveat}"


def _fvu(row: Mapping) -> float:
    return row["fvu"]
