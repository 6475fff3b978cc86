"""Edges: the table of one edge, with the verdicts on the features of both its models and what they rest on."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saelineage.correlations.decoders import load_decoder
from saelineage.lineage.directions import add_directions
from saelineage.lineage.evidence import Load
from saelineage.lineage.identified import Recurrence, absent, add_recurrence, recurrence
from saelineage.lineage.matching import SIDES, edge_table
from saelineage.lineage.stages import add_stages
from saelineage.lineage.trajectories import add_intervals, add_readouts
from saelineage.lineage.verdicts import Rules, add_verdicts
from saelineage.plan.comparisons import names_in_pair


def judge(
    comparison: Mapping,
    absence: Mapping[str, list[str]],
    load: Load,
    readouts: pd.DataFrame | None,
    paths_to_weights: Sequence[str],
    rules: Rules,
) -> pd.DataFrame:
    """Make the table of one edge: the matches of both sides' features, what is known of them, and the verdicts.

    Args:
        comparison: of the leading instrument.
        absence: per side, the pairs of its SAE with all SAEs of the other model.
        load: gives a pair by its name.
        readouts: of the edge, if there are any.
        paths_to_weights: the weights of the two SAEs.
        rules: the bounds of verdicts.
    """
    compared = load(comparison["pair"])
    table = add_intervals(edge_table(compared.correlation, rules.threshold), compared.replicates)
    of_parent, of_child = (
        _of_seeds(name, comparison["recurs"][side], absence[side], load, rules)
        for side, name in zip(SIDES, names_in_pair(comparison["pair"]), strict=True)
    )
    table = add_readouts(add_recurrence(table, of_parent, of_child, rules.identified_from), readouts)
    table = add_directions(table, compared.correlation, [load_decoder(path) for path in paths_to_weights])
    return add_verdicts(table.assign(rests_on=np.concatenate(compared.rests_on)), rules)


def _of_seeds(name: str, recurs: list[str], absence: list[str], load: Load, rules: Rules) -> Recurrence:
    """What other seeds say of the features of one SAE; its recurrence is NaN if its model has no other seeds."""
    missing = absent([load(pair).correlation for pair in absence], name, rules.threshold)
    if not recurs:
        return Recurrence(np.full(len(missing), np.nan), missing)
    return Recurrence(recurrence([load(pair).correlation for pair in recurs], name, rules.threshold), missing)


def add_steps(table: pd.DataFrame, lines: Mapping | None, load: Load, threshold: float) -> pd.DataFrame:
    """Add to an edge's table what moved the parent's features, if it has two-step SAEs."""
    if lines is None:
        return table
    correlations = {order: [load(pair).correlation for pair in pairs] for order, pairs in lines.items()}
    return add_stages(table, correlations, threshold)
