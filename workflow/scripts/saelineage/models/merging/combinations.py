"""Methods that multiply each parent's whole tensor by a number: linear, spherical, Karcher mean, task arithmetic.

Each function returns these numbers. What spherical methods need of the tensors are their products with each other.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saelineage.errors import InputError

LERP_ABOVE_COS = 0.9995
"""Absolute cosine above which two tensors count as parallel, and `slerp` interpolates linearly."""
MOST_STEPS, LEAST_STEP = 100, 1e-12
"""Bounds of the iteration to the Karcher mean: steps, and the length of a step on the unit sphere."""
LEAST_MEAN = 1e-9
"""Length of the mean of unit vectors below which they point in opposite directions, and have no spherical mean."""

Gram = Float[np.ndarray, "parent parent"]


def cosine(gram: Gram) -> float | None:
    """Cosine between the first two tensors, in [-1, 1]; None where one of them is zero."""
    norms = math.sqrt(gram[0, 0] * gram[1, 1])
    return None if norms == 0 else max(-1.0, min(1.0, float(gram[0, 1]) / norms))


def linear(weights: Sequence[float]) -> list[float]:
    """A mean weighted by `weights`, which are divided by their sum ("Model soups", arXiv 2203.05482).

    Raises:
        InputError: if the weights add up to zero.
    """
    total = math.fsum(weights)
    if total == 0:
        raise InputError(f"weights of a mean must not add up to zero, but they are {list(weights)}; change one of them")
    return [weight / total for weight in weights]


def slerp(gram: Gram, t: float) -> tuple[list[float], str]:
    """The arc between the directions of two tensors, at `t` in [0, 1].

    With theta the angle between the two, a has the factor sin((1 - t) theta) / sin(theta) and b has sin(t theta) /
    sin(theta). Where |cos theta| > 0.9995, or one tensor is zero, they are 1 - t and t. The formula and this switch are
    mergekit's (github.com/arcee-ai/mergekit), after Shoemake, "Animating Rotation with Quaternion Curves" (1985), 3.3.

    Returns:
        The factors, and the branch taken: `slerp` or `lerp`.
    """
    cos = cosine(gram)
    if t in (0, 1) or cos is None or abs(cos) > LERP_ABOVE_COS:
        return [1 - t, t], "lerp"
    theta = math.acos(cos)
    return [math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)], "slerp"


def karcher(gram: Gram, weights: Sequence[float], norms: str = "parents") -> list[float]:
    """The Karcher mean of the tensors' directions, which for two tensors lies on the arc of `slerp`.

    For two tensors it is `slerp`. In general it is the point of the unit sphere whose summed squared arc lengths to the
    directions are least (Karcher 1977), found by steps along the mean of the directions seen from the present point. It
    lies in the span of the directions, so it is computed as a combination of them, from their products alone. Tensors
    of zeros have no direction and are left out.

    Args:
        gram: products of the tensors with each other.
        weights: of the tensors, not negative; they are divided by their sum.
        norms: `parents` gives each tensor the factor of its direction, as slerp does. `mean` gives the result the
            weighted mean of the tensors' norms, as mergekit does.

    Raises:
        InputError: if the directions are antipodal, so that no mean is nearer to them than others.
    """
    lengths = np.sqrt(np.diag(gram))
    shares = np.asarray(linear(weights))
    if len(shares) == 2 and norms == "parents" and cosine(gram) != -1:
        return slerp(gram, float(shares[1]))[0]
    used = np.flatnonzero(lengths > 0)
    if len(used) == 0 or not shares[used].sum():
        return [0.0] * len(shares)
    cosines = gram[np.ix_(used, used)] / np.outer(lengths[used], lengths[used])
    of_used = shares[used] / shares[used].sum()
    factors = _sphere_mean(np.clip(cosines, -1, 1), of_used)
    scale = float(shares @ lengths) / lengths[used] if norms == "mean" else np.ones(len(used))
    result = np.zeros(len(shares))
    result[used] = factors * scale
    return [float(factor) for factor in result]


def _sphere_mean(cosines: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Factors of unit vectors whose combination is their Karcher mean."""
    length = math.sqrt(max(0.0, shares @ cosines @ shares))
    if length < LEAST_MEAN or cosines.min() < LEAST_MEAN - 1:
        raise InputError(
            "parents of a spherical mean must not point in opposite directions, but those of a tensor do, so that no "
            "mean is nearer to them than others; use method: linear, or other weights"
        )
    mean = shares / length
    for _ in range(MOST_STEPS):
        dots = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(dots)
        sines = np.sin(angles)
        stretch = np.divide(angles, sines, out=np.ones_like(angles), where=sines > LEAST_STEP)
        step = shares * stretch
        step = step - (step @ dots) * mean  # along the sphere
        size = math.sqrt(max(0.0, step @ cosines @ step))
        if size < LEAST_STEP:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / math.sqrt(mean @ cosines @ mean)
    return mean


def task_arithmetic(weights: Sequence[float], scale: float) -> tuple[list[float], float]:
    """base + scale x sum of weight x (parent - base) (arXiv 2212.04089); weights are not divided by their sum.

    Returns:
        The factors of the parents, and that of the base.
    """
    factors = [scale * weight for weight in weights]
    return factors, 1 - math.fsum(factors)
