"""The directions of a difference SAE's latents, beside those that both models of the edge have.

A latent of a difference SAE (`crosscoders.differences`) writes a decoder row. It writes a direction of a model if the
closest decoder row of that model's SAE has a cosine of at least `same_above`:
    `child_alone`: of the child and not of the parent, so a direction that is new;
    `parent_alone`, `both`: of the parent alone, or of both, so one that is written more often or more strongly;
    `opposite`: of neither, but its opposite is of one of them, so one that is written less;
    `neither`: nor is that.
"""

import numpy as np
import pandas as pd

CHILD_ALONE = "child_alone"
DIRECTIONS = (CHILD_ALONE, "parent_alone", "both", "opposite", "neither")


def directions(table: pd.DataFrame, same_above: float) -> np.ndarray:
    """The kind of each latent's direction, one of `DIRECTIONS`.

    Args:
        table: columns `cosine_child`, `cosine_parent`, `opposite_child` and `opposite_parent`.
        same_above: cosine from which two directions count as the same.
    """
    child, parent = table["cosine_child"] >= same_above, table["cosine_parent"] >= same_above
    opposite = (table["opposite_child"] >= same_above) | (table["opposite_parent"] >= same_above)
    of_models = [child & ~parent, parent & ~child, child & parent, opposite]
    return np.select(of_models, list(DIRECTIONS[:-1]), DIRECTIONS[-1])
