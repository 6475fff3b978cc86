"""An edge's further controls: what training finds again, chains from another anchor, other trained models, seeds."""

from collections.abc import Mapping, Sequence
from math import isnan

import numpy as np
import pandas as pd

from saelineage.correlations.decoders import PairwiseMcc, load_decoder, seeds_pw_mcc
from saelineage.lineage import evidence
from saelineage.lineage.evidence import ALL, IDENTIFIED, Load, named
from saelineage.lineage.matching import SIDES
from saelineage.lineage.seeds import over_seeds
from saelineage.lineage.stabilisation import anchoring_agreement, stabilisation
from saelineage.lineage.twins import compare, found_in
from saelineage.lineage.verdicts import Rules
from saelineage.plan.comparisons import names_in_pair
from saelineage.saes.resets import reset_latents

SECOND_CHAIN = "anchored, from the second seed"
"""Name in `agreements` of the chain of anchored SAEs that begins with the root's second seed."""


def reset_control(comparison: Mapping, load: Load, rules: Rules) -> dict | None:
    """The shares of kept and reset latents where the model is unchanged, by group; None if there is no such control."""
    control = comparison["reset"]
    if control is None:
        return None
    correlation, marked = load(control["pair"]).correlation, evidence.identified(comparison, load, rules)
    reset = reset_latents(len(correlation.testable[1]), control["share"], control["seed"])
    groups = {IDENTIFIED: marked and marked[0], ALL: np.ones(len(correlation.testable[0]), dtype=bool)}
    shares = {
        group: None if among is None else stabilisation(correlation, reset, rules.threshold, among)
        for group, among in groups.items()
    }
    return {
        group: of_group and {name: named("share", found) for name, found in of_group.items()}
        for group, of_group in shares.items()
    }


def anchorings(plan: Mapping, load: Load, threshold: float) -> list[dict]:
    """Per edge, the agreement of the anchored chains from two seeds, as rows of `agreements`."""
    rows = []
    for comparison in plan["comparisons"]:
        second = plan["second_anchor"].get(f"{comparison['parent']}__{comparison['child']}")
        if second and comparison["instrument"] == plan["leading"]:
            names = (comparison["pair"], second["edge"], second["parents"])
            one, other, parents = (load(name).correlation for name in names)
            edge = {key: comparison[key] for key in ("parent", "child")} | {
                "side": SIDES[0],
                "instrument": SECOND_CHAIN,
                "group": "of both seeds",
            }
            figures = anchoring_agreement(one, other, parents, threshold)
            rows.append(edge | {name: None if isnan(value) else value for name, value in figures.items()})
    return rows


def beside_trained(table: pd.DataFrame, entry: Mapping, controls: Mapping, load: Load, rules: Rules) -> dict:
    """Compare an edge's losses and gains with those of its twins and continued models.

    Args:
        table: of the edge, with verdicts.
        entry: the edge, from `evidence.weigh`.
        controls: the pairs of such models, `Comparisons.trained_control_pairs` of every edge.
        load: gives a pair by its name.
        rules: the threshold, and which features are identified.

    Returns:
        Under `twins` and `continued`, the figures of `twins.compare` by model; and `over_trainings`.
    """
    names = names_in_pair(entry["pair"])
    compared = {
        kind: {
            model: compare(
                table,
                *(
                    found_in(load(pairs[side]).correlation, name, rules.threshold)
                    for side, name in zip(SIDES, names, strict=True)
                ),
            )
            for model, pairs in models.items()
        }
        for kind, models in controls[f"{entry['parent']}__{entry['child']}"].items()
    }
    return compared | {"over_trainings": over_trainings(entry["groups"], compared["twins"])}


def over_trainings(groups: Mapping[str, Mapping | None], twins: Mapping[str, Mapping[str, Mapping]]) -> dict:
    """The persisting share of an edge over trainings of its child from several seeds: the child's and its twins'.

    Args:
        groups: shares of the edge, by group of features; None where they were not measured.
        twins: figures of `twins.compare`, by twin.

    Returns:
        `seeds.over_seeds` as a mapping by group; empty without twins.
    """
    return {
        group: over_seeds([shares["persist_share"], *(of[group]["persist_share"] for of in twins.values())])._asdict()
        for group, shares in groups.items()
        if shares and twins
    }


def pw_mcc(comparisons: Sequence[Mapping], paths_to_weights: Mapping[str, str]) -> dict[str, PairwiseMcc]:
    """PW-MCC between the SAEs of several seeds of each model, from their decoders (arXiv 2505.20254)."""
    pairs = {model: names for comparison in comparisons for model, names in comparison["seeds"].items() if names}
    return {model: seeds_pw_mcc(pairs[model], lambda name: load_decoder(paths_to_weights[name])) for model in pairs}
