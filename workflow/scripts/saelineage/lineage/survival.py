"""Features along a line of models: the model at which each is born, and the one at which it is lost."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import pandas as pd
from jaxtyping import Int

from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.shares import share
from saelineage.lineage.verdicts import NEW


def survival(
    line: Sequence[str],
    features: pd.DataFrame,
    edges: Mapping[tuple[str, str], pd.DataFrame],
    unchanged: Sequence[float | None],
    only_identified: bool,
) -> list[dict]:
    """Count how many of the features born at each model are still found at each later one.

    Args:
        line: models, each the child of the one before alone.
        features: from `trajectories.feature_table`, whose column `in_M` says where a feature is found by going from
            match to match.
        edges: the table of each (parent, child).
        unchanged: for each step of the line, the share that is found if nothing changes; None where there is none.
        only_identified: count the features that are identified in the model at which they are born.

    Returns:
        For each model but the last in which features are born, and each later one: `born`, `model`; `share`, `share_n`,
        `share_low`, `share_high`, the share that is found there; `no_longer_found`, the number that is found at
        the model before and not there; `unchanged_least` and `unchanged_most`, bounds of the share that would be found
        if no step changed anything: the product of `unchanged` over the steps between, as if each step missed features
        anew, and its minimum, as if all missed the same. None if one is missing.
    """
    rows = []
    for place, model in enumerate(line[:-1]):
        latents = born_at(model, line, edges, only_identified)
        if not len(latents):
            continue
        own = features[features["model"] == model].set_index("latent").loc[latents]
        before = len(latents)
        for step, later in enumerate(line[place + 1 :], start=place + 1):
            n_found = int((own[f"in_{later}"] >= 0).sum())
            found = share(n_found, len(latents))
            low, high = found.interval or (None, None)
            rows.append(
                {"born": model, "model": later, "no_longer_found": before - n_found}
                | {"share": found.value, "share_n": found.n, "share_low": low, "share_high": high}
                | _unchanged(unchanged[place:step])
            )
            before = n_found
    return rows


def _unchanged(shares: Sequence[float | None]) -> dict[str, float | None]:
    """Bounds of the share that is found after some steps of which each finds a share."""
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return {"unchanged_least": None, "unchanged_most": None}
    return {"unchanged_least": prod(known), "unchanged_most": min(known)}


def born_at(
    model: str, line: Sequence[str], edges: Mapping[tuple[str, str], pd.DataFrame], only_identified: bool
) -> Int[np.ndarray, " feature"]:
    """The latents of the features that are new at a model; at the line's first, of all that are testable."""
    place = line.index(model)
    if place == 0:
        table = edges[line[0], line[1]]
        chosen = (table["side"] == SIDES[0]) & (table["verdict"] != UNTESTABLE)
    else:
        table = edges[line[place - 1], model]
        chosen = (table["side"] == SIDES[1]) & (table["verdict"] == NEW)
    if only_identified:
        chosen &= table["identified"]
    return table.loc[chosen, "latent"].to_numpy()
