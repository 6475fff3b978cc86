"""Cross-table: the verdicts of a crosscoder on the features of SAEs, beside their own.

A crosscoder has a dictionary of its own. A feature of an SAE takes the verdict of the crosscoder's latent that fires
with it: the best match by activations on the probe, at the threshold of all matches. Features without such a latent
have no verdict of the crosscoder.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from saelineage.correlations.matches import Correlation
from saelineage.lineage.exclusivity import EMERGES, ROTATED
from saelineage.lineage.exclusivity import VERDICTS as OF_CROSSCODER
from saelineage.lineage.matching import DISAPPEARS, PERSISTS, SIDES, UNTESTABLE, best_matches
from saelineage.lineage.verdicts import VERDICTS
from saelineage.plan.crosscoders import OF_EDGE
from saelineage.plan.sae_names import SaeName

UNMATCHED = "unmatched"
"""In place of a verdict, of features that no latent of the crosscoder fires with."""
FOUND, NOT_FOUND = (PERSISTS, ROTATED), (DISAPPEARS, EMERGES)
"""Verdicts of a crosscoder under which a feature is found in the edge's other model; and, per side, the one under which
it is not. The remaining one says that the feature's own model does not write it: no verdict on the edge."""


def matches_of_features(correlations: Iterable[Correlation]) -> pd.DataFrame:
    """Tabulate the latent of a crosscoder that each feature of some SAEs matches best.

    Args:
        correlations: of the crosscoder's latents (side 0) and an SAE's features (side 1).

    Returns:
        Columns `model`, `sae`, `latent` of the SAE; `match`, the crosscoder's latent (-1 where there is none); and `r`.
    """
    tables = []
    for correlation in correlations:
        model, sae = SaeName.parse(correlation.names[1])
        r, match = best_matches(correlation, 1)
        columns = {"model": model, "sae": sae, "latent": np.arange(len(r)), "match": match, "r": r}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def verdicts_on(edge: str, exclusivity: pd.DataFrame) -> pd.DataFrame:
    """The rows of a crosscoder's verdicts that are of an edge, not of a control in its child's place."""
    return exclusivity[(exclusivity["edge"] == edge) & (exclusivity["role"] == OF_EDGE)]


def crosscoder_verdicts(matches: pd.DataFrame, exclusivity: pd.DataFrame, threshold: float) -> np.ndarray:
    """The crosscoder's verdict on each feature of an SAE, for one edge.

    Args:
        matches: of the SAE, from `matches_of_features`.
        exclusivity: of the edge, the rows of `lineage/{hookpoint}/crosscoders/{group}.{seed}.parquet`.
        threshold: r at or above this is a match.

    Returns:
        One of `exclusivity.VERDICTS`, or `UNMATCHED`.
    """
    verdicts = exclusivity.set_index("latent")["verdict"]
    found = verdicts.reindex(matches["match"]).to_numpy(dtype=object)
    return np.where((matches["r"] >= threshold) & (matches["match"] >= 0), found, UNMATCHED)


def seed_counts(
    group: str, verdicts: Mapping[str, pd.DataFrame], matches: Mapping[str, pd.DataFrame], threshold: float
) -> list[dict]:
    """Count, by verdict, the latents of a group's first crosscoder that another seed's has too, with the same verdict.

    Args:
        group: name of the group of models.
        verdicts: of each seed's crosscoder, the first seed first, as in `crosscoders/{group}.{seed}.parquet`.
        matches: of each seed, `{group}.{seed}.matches.parquet`.
        threshold: r at or above this is a match.

    Returns:
        Rows `edge`, `seed` (the other one), `verdict`; `n` latents of the first crosscoder, of these `matched`, and of
        these with the `same` verdict.
    """
    first, *others = verdicts
    rows = []
    for seed in others:
        of_first = matches[seed][(matches[seed]["model"] == group) & (matches[seed]["sae"] == first)]
        for edge in dict.fromkeys(verdicts[first]["edge"]):
            own, of_edge = (verdicts_on(edge, verdicts[of]) for of in (first, seed))
            there = crosscoder_verdicts(of_first, of_edge, threshold)
            here = own.set_index("latent")["verdict"].reindex(of_first["latent"]).to_numpy()
            for verdict in OF_CROSSCODER:
                among = here == verdict
                matched, same = (int((among & is_so).sum()) for is_so in (there != UNMATCHED, there == verdict))
                row = {"edge": edge, "seed": seed, "verdict": verdict, "n": int(among.sum())}
                rows.append(row | {"matched": matched, "same": same})
    return rows


def is_found_by_crosscoder(verdicts: np.ndarray, side: int) -> np.ndarray:
    """Whether a crosscoder finds features of a side on the other side: `persists`, `disappears` or `untestable`."""
    conditions = [np.isin(verdicts, FOUND), verdicts == NOT_FOUND[side]]
    return np.select(conditions, [PERSISTS, DISAPPEARS], UNTESTABLE)


def cross_counts(table: pd.DataFrame) -> list[dict]:
    """Count an edge's features by their verdict and by that of the crosscoder.

    Args:
        table: of the edge, with `crosscoder`.

    Returns:
        Rows `side`, `group` (`identified`, `all`), `verdict`, and the number of features of each of the crosscoder's
        verdicts.
    """
    rows = []
    for side, verdicts in zip(SIDES, VERDICTS, strict=True):
        of_side = table[table["side"] == side]
        for group, among in (("identified", of_side[of_side["identified"]]), ("all", of_side)):
            for verdict in (*verdicts, UNTESTABLE):
                counts = among.loc[among["verdict"] == verdict, "crosscoder"].value_counts()
                by_crosscoder = {name: int(counts.get(name, 0)) for name in (*OF_CROSSCODER, UNMATCHED)}
                rows.append({"side": side, "group": group, "verdict": verdict, "crosscoder": by_crosscoder})
    return rows
