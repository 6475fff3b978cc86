"""Matches: the part that is kept of all similarities between two SAEs' features, by any measure, and its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError

from saelineage.errors import InputError
from saelineage.files.tensors import read_group
from saelineage.plan.graph import POOLED

SIDES = ("a", "b")
SUMS = ("totals", "squares")
"""Fields of a correlation with sums of single features, which it need not have."""
MIN_VARIANCE = 1e-9
"""Smallest variance of a feature that varies, as a share of its mean square. The error of r is 1e-14 over the share."""


class Matches(NamedTuple):
    """The part that is kept of the similarities of all pairs."""

    best: tuple[Float[np.ndarray, "d_sae_a rank"], Float[np.ndarray, "d_sae_b rank"]]
    """Per side, each feature's largest similarities in descending order; NaN beyond the last defined one."""
    partners: tuple[Int[np.ndarray, "d_sae_a rank"], Int[np.ndarray, "d_sae_b rank"]]
    """The latent of the other side behind each `best`, the lower first among equals; -1 where there is none."""
    kept: scipy.sparse.csr_array
    """[d_sae_a, d_sae_b]: every similarity at or above `keep_above`, in float64."""
    histogram: Int[np.ndarray, " bin"]
    """All defined similarities, in equal bins from -1 to 1; the last bin holds 1 itself."""
    n_undefined: int
    """Pairs whose similarity is NaN."""


class Combined(NamedTuple):
    """Features divided into parts on the other side, from `parts.combined_r`."""

    r: tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]]
    """Per side, the multiple correlation of each feature with its parts, in [0, 1]; NaN with fewer than two parts."""
    whole_of: tuple[Int[np.ndarray, " d_sae_a"], Int[np.ndarray, " d_sae_b"]]
    """Per side, the latent of the other side that each feature is a part of, or -1."""


class Correlation(NamedTuple):
    """The correlation of two SAEs' features."""

    names: tuple[str, str]
    n_tokens: dict[str, int]
    """Aligned tokens, by corpus."""
    firings: tuple[Int[np.ndarray, "corpus d_sae_a"], Int[np.ndarray, "corpus d_sae_b"]]
    """Tokens on which each feature fires, by corpus in the order of `n_tokens`."""
    testable: tuple[Bool[np.ndarray, " d_sae_a"], Bool[np.ndarray, " d_sae_b"]]
    """Features that vary and fire often enough over all corpora to be compared."""
    pearson: Matches
    """Pearson r over all corpora together."""
    by_corpus: dict[str, Matches]
    """Pearson r over single corpora; empty unless asked for."""
    one_to_one: Int[np.ndarray, " d_sae_a"]
    """Each feature's partner in the assignment with the largest sum of pooled r among the pairs kept, or -1."""
    jaccard: Matches | None = None
    """Tokens on which both fire / tokens on which either fires, over all corpora, in [0, 1]; None unless asked for."""
    combined: Combined | None = None
    """Features divided into parts on the other side, over all corpora together; None if they were not looked for."""
    totals: tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]] | None = None
    """Per side, the sum of each feature's activations over all tokens; None if they were not summed."""
    squares: tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]] | None = None
    """Per side, the sum of their squares, as `totals`."""

    @property
    def corpora(self) -> list[str]:
        """The corpora, sorted."""
        return list(self.n_tokens)

    def density(self, side: int) -> Float[np.ndarray, " d_sae"]:
        """The share of all tokens on which each feature of a side fires."""
        return self.firings[side].sum(axis=0) / sum(self.n_tokens.values())


def match_tensors(matches: Matches, measure: str) -> dict[str, np.ndarray]:
    """Matches by some measure as named arrays for a safetensors file."""
    tensors = {
        "histogram": matches.histogram,
        "n_undefined": np.array(matches.n_undefined),
        "kept/indptr": matches.kept.indptr.astype(np.int64),
        "kept/indices": matches.kept.indices.astype(np.int32),
        "kept/values": matches.kept.data,
    }
    for index, side in enumerate(SIDES):
        tensors |= {f"best_{side}": matches.best[index], f"partners_{side}": matches.partners[index]}
    return {f"{measure}/{name}": tensor for name, tensor in tensors.items()}


def matches_of_tensors(tensors: Mapping[str, np.ndarray], measure: str) -> Matches:
    """The matches that `match_tensors` turned into named arrays."""
    best, partners = (_both_sides(tensors, f"{measure}/{name}") for name in ("best", "partners"))
    values, indices, indptr = (tensors[f"{measure}/kept/{name}"] for name in ("values", "indices", "indptr"))
    kept = scipy.sparse.csr_array((values, indices, indptr), shape=(len(best[0]), len(best[1])))
    return Matches(best, partners, kept, tensors[f"{measure}/histogram"], int(tensors[f"{measure}/n_undefined"]))


def most_arrays(n_corpora: int) -> int:
    """The number of arrays in a `correlation_group` with every measure: r, r by corpus and the Jaccard index."""
    n_single, n_of_matches = 13, 9
    return n_single + n_of_matches * (2 + n_corpora)


def correlation_group(correlation: Correlation) -> tuple[dict, dict[str, np.ndarray]]:
    """A correlation as the header and arrays of a group of a safetensors file (docs/artifacts.md lists them)."""
    tensors = {"one_to_one": correlation.one_to_one}
    measures = {f"pearson/{POOLED}": correlation.pearson}
    measures |= {f"pearson/{corpus}": matches for corpus, matches in correlation.by_corpus.items()}
    measures |= {"jaccard": correlation.jaccard} if correlation.jaccard else {}
    for name, matches in measures.items():
        tensors |= match_tensors(matches, name)
    for index, side in enumerate(SIDES):
        tensors |= {f"firings_{side}": correlation.firings[index], f"testable_{side}": correlation.testable[index]}
        if correlation.combined is not None:
            r, whole_of = correlation.combined.r[index], correlation.combined.whole_of[index]
            tensors |= {f"combined_{side}": r, f"whole_of_{side}": whole_of}
        for name in SUMS:
            of_sides = getattr(correlation, name)
            tensors |= {} if of_sides is None else {f"{name}_{side}": of_sides[index]}
    return {"names": correlation.names, "n_tokens": correlation.n_tokens}, tensors


def load_correlation(path: Path | str, partner: str) -> Correlation:
    """Read the correlation with one partner from the file of an SAE's correlations.

    Args:
        path: `correlations/{hookpoint}/{a}/correlations.safetensors`.
        partner: the SAE on side b, `{model}.{sae}`; a random control's name includes its suffix.

    Raises:
        InputError: if the file is damaged or does not hold this partner.
    """
    try:
        header, tensors = read_group(path, partner)
        corpora = sorted(header["n_tokens"])
        has_jaccard = "jaccard/histogram" in tensors
        singles = [corpus for corpus in corpora if f"pearson/{corpus}/histogram" in tensors]
        a, b = header["names"]
        return Correlation(
            names=(a, b),
            n_tokens={corpus: header["n_tokens"][corpus] for corpus in corpora},
            firings=_both_sides(tensors, "firings"),
            testable=_both_sides(tensors, "testable"),
            pearson=matches_of_tensors(tensors, f"pearson/{POOLED}"),
            by_corpus={corpus: matches_of_tensors(tensors, f"pearson/{corpus}") for corpus in singles},
            one_to_one=tensors["one_to_one"],
            jaccard=matches_of_tensors(tensors, "jaccard") if has_jaccard else None,
            combined=_combined(tensors),
            **{name: _both_sides(tensors, name) for name in SUMS if f"{name}_a" in tensors},
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' must hold the correlation with '{partner}', but is damaged or another file ({error}); "
            "delete it and run again"
        ) from error


def _combined(tensors: Mapping[str, np.ndarray]) -> Combined | None:
    """The splits and merges of a correlation, if its file holds any."""
    if "combined_a" not in tensors:
        return None
    return Combined(_both_sides(tensors, "combined"), _both_sides(tensors, "whole_of"))


def _both_sides(tensors: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `{name}_a` and `{name}_b`."""
    a, b = (tensors[f"{name}_{side}"] for side in SIDES)
    return a, b
