"""SAEs of the difference of two models' activations: what their folder says, and sums over the probe.

The input of such an SAE is child - parent on the same tokens (`dumps.DifferenceDump`), so its latents are what the edge
wrote anew, and what it took away. Everything else is that of any other SAE: training, format and metrics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelineage.crosscoders.dumps import DifferenceDump, open_in_step
from saelineage.crosscoders.latent_scaling import SIDES
from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from saelineage.foreign.saelens_names import difference_keys
from saelineage.saes.batches import SCALE_TOKENS, Dump
from saelineage.saes.metrics import Moments, SaeSums, reconstruction_sums
from saelineage.saes.sae import CONFIG_FILE, Sae

CHUNK_TOKENS = 4096
"""Tokens that are read at once."""


@dataclass
class DifferenceSums:
    """Sums over tokens, in float64; `add` joins two sets."""

    sae: SaeSums = field(default_factory=SaeSums)
    """Of the SAE on the differences."""
    child: Moments = field(default_factory=Moments)
    """Of the child's activations."""
    squares: float = 0.0
    """Summed |child - parent|^2."""
    rounding: float = 0.0
    """The part of `squares` that is expected of the rounding of both dumps."""

    def add(self, other: "DifferenceSums") -> "DifferenceSums":
        """The sums over both sets."""
        return DifferenceSums(
            self.sae.add(other.sae),
            self.child.add(other.child),
            self.squares + other.squares,
            self.rounding + other.rounding,
        )


def size(sums: DifferenceSums) -> float:
    """The difference beside the activations: sum |child - parent|^2 / sum |child - mean|^2, the mean over all tokens.

    It is 0 for equal models. NaN if the child's activations do not vary.
    """
    return sums.squares / sums.child.deviation if sums.child.deviation else math.nan


def rounding_share(sums: DifferenceSums) -> float:
    """The share of the squared difference that the number format of the dumps explains; NaN without a difference."""
    return sums.rounding / sums.squares if sums.squares else math.nan


def rounding_squares(acts: Float[Tensor, "token d_in"], number_format: torch.dtype) -> float:
    """The expected squared error of values that were rounded to a number format: step^2 / 12, summed in float64.

    The step is that of the format at each value. Zeros have no error.
    """
    limits = torch.finfo(number_format)
    exponents = torch.frexp(acts.double()).exponent - 1  # |acts| lies in [2^exponent, 2^(exponent + 1))
    smallest = round(math.log2(limits.smallest_normal))
    steps = limits.eps * exponents.clamp_min(smallest).double().exp2()
    return float((steps.square() * (acts != 0)).sum()) / 12


def require_difference(dump: DifferenceDump, parent: str, child: str) -> None:
    """Refuse two models whose activations are equal.

    Raises:
        InputError: if the first tokens' activations are all equal.
    """
    if not bool(dump[np.arange(min(len(dump), SCALE_TOKENS))].any()):
        raise InputError(
            f"the activations of '{child}' at {dump.headers[0]['hookpoint']} must differ from those of '{parent}' to "
            "train a difference SAE, but are equal; set difference_saes.seeds to [], or read a later hookpoint "
            "(activations.hookpoints)"
        )


def difference_metadata(
    dump: DifferenceDump, settings: Mapping, parent: str, child: str, source: Mapping
) -> dict[str, object]:
    """The metadata of a difference SAE's folder.

    Args:
        dump: of the training.
        settings: of the training.
        parent, child: the models.
        source: `name` and `revision` by which others open the child.
    """
    max_norms = {side: norm if math.isfinite(norm) else None for side, norm in dump.max_norms.items()}
    own = {
        "input": f"activations of {child} minus activations of {parent}, of the same tokens",
        "parent": parent,
        "child": child,
        "hookpoint": dump.headers[0]["hookpoint"],
        "settings": dict(settings),
        "max_norms": max_norms,
        "n_tokens_left_out": dump.n_left_out,
    }
    return difference_keys(dump.headers, source, parent) | {"saelineage": own}


def recorded_max_norms(folder: Path | str) -> dict[str, float]:
    """The norm above which the `parent`'s and the `child`'s activations were outliers, as a folder records it.

    Raises:
        InputError: if it records none, so is not the folder of a difference SAE.
    """
    path = Path(folder, CONFIG_FILE)
    max_norms = read_json(path).get("metadata", {}).get("saelineage", {}).get("max_norms")
    if not isinstance(max_norms, dict) or set(max_norms) != set(SIDES):
        raise InputError(
            f"'{path}': metadata.saelineage.max_norms must be of parent and child, as a difference SAE's is, got "
            f"{max_norms!r:.80}; delete the folder and run again"
        )
    return {side: math.inf if norm is None else float(norm) for side, norm in max_norms.items()}


def sums_by_corpus(
    sae: Sae,
    paths: Mapping[str, Mapping[str, Sequence[str]]],
    max_norms: Mapping[str, float],
    device: torch.device,
) -> dict[str, DifferenceSums]:
    """Encode the differences of two models' activations, and sum over the tokens of each corpus.

    Args:
        sae: of the differences, on the device.
        paths: activation shards by side (`parent`, `child`) and corpus.
        max_norms: norm above which each side's activations are outliers.
        device: the device to compute on.

    Raises:
        InputError: as for `open_in_step`.
    """
    dumps = open_in_step(
        {side: [path for of_corpus in paths[side].values() for path in of_corpus] for side in SIDES},
        max_norms=max_norms,
    )
    corpus_of_token = _corpus_of_tokens(dumps["child"], paths["child"])
    formats = {side: dump.shards[0].acts().dtype for side, dump in dumps.items()}
    encoder, found = sae.encoder(), {}
    for corpus in paths["child"]:
        tokens, sums = np.flatnonzero(corpus_of_token == corpus), DifferenceSums()
        for start in range(0, len(tokens), CHUNK_TOKENS):
            acts = {side: dump[tokens[start : start + CHUNK_TOKENS]].to(device) for side, dump in dumps.items()}
            difference = acts["child"] - acts["parent"]
            latents = encoder.encode(difference)
            of_sae = reconstruction_sums(difference, sae.decode_sparse(latents).detach(), latents, sae.d_sae)
            squares = float(difference.double().square().sum())
            rounding = sum(rounding_squares(acts[side], formats[side]) for side in SIDES)
            sums = sums.add(DifferenceSums(of_sae, Moments.of(acts["child"]), squares, rounding))
        found[corpus] = sums
    return found


def _corpus_of_tokens(dump: Dump, paths: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The corpus of each token that a dump keeps; its shards are those of one corpus after the other."""
    corpora = [corpus for corpus, of_corpus in paths.items() for _ in of_corpus]
    every = np.repeat(np.array(corpora, dtype=object), [shard.n_tokens for shard in dump.shards])
    return every if dump.kept is None else every[dump.kept]
