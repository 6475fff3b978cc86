"""Token types: the correlation of Horn & Elliott (arXiv 2410.12391), as a control for ours (`pearson`).

Its unit is not the token but the token type, which is the decoded string. A feature's activations where it fires are
averaged per type. Pearson r is then taken over the types on which both features fire, and two types suffice (their
code: nilq/feature-dynamics, `evaluation/autoencoder/correlation.py`). It has faults, which are reproduced here:

- Zeros are ignored. A feature that is silent where the other one fires does not lower r, so two features that hardly
  ever fire together may correlate perfectly.
- Few types give large r. Over n types, r sqrt((n - 2) / (1 - r^2)) of independent normal features follows Student's t
  with n - 2 degrees of freedom, so the chance of r >= 0.8 is 0.5 at n = 2 (where r is 1 or -1), 0.205 at n = 3, 0.052
  at n = 5 and 0.0027 at n = 10. With 16,384 candidates that is 45 false matches per feature at n = 10. Hence
  `TokenTypeMatches.n_types_of_best`.
- A type is a string, so all tokens that are parts of a character are one type ("\N{REPLACEMENT CHARACTER}"). With
  decoders that strip the space in front of a text, words with and without a space are one type, too.
- A type counts once, however many tokens its mean is over.

Two accidents of the original are no part of the measure and not reproduced: it draws some rows of a table of
activations for each model at random, and it loses the types that pandas reads as missing values ("null", "NA", "nan").
Here all compared tokens of the probe are used.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Integer
from numba import njit
from safetensors import SafetensorError
from tokenizers import Tokenizer

from saelineage.correlations.assignments import one_to_one
from saelineage.correlations.match_finder import MatchFinder, parts
from saelineage.correlations.matches import SIDES, Correlation, Matches, match_tensors, matches_of_tensors
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.files.tensors import read_tensors, write_tensors
from saelineage.tokens import TokenRows

MEASURE = "token_type"
"""Its name in files."""
MIN_TYPES = 2
"""Fewest types on which both features must fire, in the original."""
MIN_SPREAD = 1e-13
"""Smallest norm of deviations, as a share of the mean, that is not rounding. `scipy.stats.pearsonr` warns below it."""


class Settings(TypedDict, total=False):
    """The settings of `match_token_types`."""

    min_types: int
    top_matches: int
    keep_above: float
    n_bins: int
    block_features: int
    threads: int


class TypeMeans(NamedTuple):
    """The mean activations of one SAE's features per token type."""

    name: str
    """The SAE, `{model}.{sae}`."""
    covered: tuple[tuple[str, str], ...]
    """The tokens that the means are over: corpus and token range of every shard, sorted."""
    means: scipy.sparse.csr_array
    """[type, d_sae] in float64, over the tokens of the type on which the feature fires.

    All entries are above 0. There is none where the feature never fires.
    """


class TokenTypeMatches(NamedTuple):
    """The part that is kept of the correlations over token types between two SAEs' features."""

    names: tuple[str, str]
    matches: Matches
    """Pearson r over the types on which both fire."""
    one_to_one: Int[np.ndarray, " d_sae_a"]
    """Each feature's partner in the assignment with the largest sum of r among the pairs kept, or -1."""
    n_types_of_best: tuple[Int[np.ndarray, " d_sae_a"], Int[np.ndarray, " d_sae_b"]]
    """Per side, the number of types behind each feature's best r; -1 where it has none."""


def types_of_vocabulary(tokenizer: Tokenizer) -> tuple[Int[np.ndarray, " d_vocab"], list[str]]:
    """The type of each id (-1 where there is no such id), and the types' strings.

    Ids that decode to equal strings are one type, special tokens included. Types are numbered in the order of their
    lowest ids, so they depend on the tokenizer alone and not on the corpus.
    """
    vocabulary = sorted(tokenizer.get_vocab().values())
    numbers: dict[str, int] = {}
    types = np.full(vocabulary[-1] + 1, -1)
    for token in vocabulary:
        text = tokenizer.decode([token], skip_special_tokens=False)
        types[token] = numbers.setdefault(text, len(numbers))
    return types, list(numbers)


def token_types(
    ids: Integer[np.ndarray, "row n_ctx"], tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, " position"], list[str]]:
    """The type at each position (row x n_ctx + place in the row), and the strings of all types.

    Args:
        ids: token rows of one corpus.
        tokenizer: the tokenizer that made the rows. With one tokenizer, types are the same in all corpora.

    Raises:
        InputError: if the tokenizer does not have one of the ids.
    """
    of_id, strings = types_of_vocabulary(tokenizer)
    unknown = np.setdiff1d(ids, np.flatnonzero(of_id >= 0))
    if len(unknown):
        raise InputError(
            f"token ids must be the tokenizer's, but {unknown[0]} is none of its {(of_id >= 0).sum()}; give the "
            "tokenizer that made the tokens"
        )
    return of_id[ids.reshape(-1)], strings


def shards_of_tokens(paths: Iterable[Path | str], tokens: Mapping[str, TokenRows]) -> Iterator[FeatureShard]:
    """Read feature shards one after the other.

    Args:
        paths: the files.
        tokens: the token rows of each corpus.

    Raises:
        InputError: if a shard's features are not those of the corpus's tokens.
    """
    for path in paths:
        shard = FeatureShard(path)
        digest = tokens[shard.corpus].digest if shard.corpus in tokens else "not given"
        if shard.ids_sha256 != digest:
            raise InputError(
                f"'{path}' must hold features of the tokens of '{shard.corpus}' ({digest}), but was made from others "
                f"({shard.ids_sha256}); delete it and run again"
            )
        yield shard


def type_means(
    shards: Iterable[FeatureShard], types: Mapping[str, Int[np.ndarray, " position"]], n_types: int
) -> TypeMeans:
    """Average activations per token type: over all compared tokens of the type on which the feature fires.

    All corpora are pooled. Sums are float64, added in the order of the shards, which are read one at a time. Shards
    whose documents are shifted (`shards.shifted`) keep the types of their places, so this is a random control too.

    Args:
        shards: the shards of one SAE.
        types: the types of each corpus, from `token_types`.
        n_types: the number of types.

    Raises:
        InputError: if there are no shards, or they are of several SAEs, of a corpus or of positions without types, or
            of the same tokens.
    """
    saes: list[tuple[str, int]] = []
    covered: list[tuple[str, str]] = []
    sums: scipy.sparse.csr_array | None = None
    counts: scipy.sparse.csr_array | None = None
    for shard in shards:
        saes.append((f"{shard.model}.{shard.sae}", shard.d_sae))
        covered.append((shard.corpus, shard.token_range))
        _require_one_sae(shard, saes, covered)
        members = _tokens_of_types(shard, types, n_types)
        latents = shard.latents[shard.compared]
        fires = scipy.sparse.csr_array((np.ones(latents.nnz), latents.indices, latents.indptr), latents.shape)
        sums = members @ latents if sums is None else sums + members @ latents
        counts = members @ fires if counts is None else counts + members @ fires
    if sums is None or counts is None:
        raise InputError("means per token type need at least one feature shard, but there is none; give the SAE's")
    sums.sort_indices()
    counts.sort_indices()
    means = scipy.sparse.csr_array((sums.data / counts.data, sums.indices, sums.indptr), shape=sums.shape)
    return TypeMeans(saes[0][0], tuple(sorted(covered)), means)


def match_token_types(
    a: TypeMeans,
    b: TypeMeans,
    *,
    min_types: int = MIN_TYPES,
    top_matches: int = 8,
    keep_above: float = 0.3,
    n_bins: int = 200,
    block_features: int = 1024,
    threads: int = 1,
) -> Matches:
    """Pearson r of all pairs over the types on which both features fire, a block of features of a at a time.

    r is in [-1, 1]. It is NaN over fewer than `min_types` types, or if one of the two does not vary over them. Sums of
    squares and products are over deviations from the means of the pair, in a second pass over the types, so that
    nothing cancels.

    Args:
        a, b: means over the same tokens.
        min_types: at least 2. At 2, as in the original, r is 1 or -1 for every pair with just two types.
        top_matches, keep_above, n_bins: see `match_finder.MatchFinder`. Many pairs have a large r: between two SAEs
            with 16,384 random features, a third of all pairs were kept at 0.3, which is a file of 1 GB.
        block_features: features of a whose r are computed at a time.
        threads: the number of threads, which changes no bit of the result.

    Raises:
        InputError: if `min_types` is below 2, or the means are not over the same types and tokens.
    """
    _require_comparable(a, b, min_types)
    by_feature = a.means.T.tocsr()
    finder = MatchFinder(
        (a.means.shape[1], b.means.shape[1]),
        top_matches=top_matches,
        keep_above=keep_above,
        n_bins=n_bins,
        threads=threads,
    )
    for first in range(0, by_feature.shape[0], block_features):
        finder.offer(first, _pearson(by_feature[first : first + block_features], b.means, min_types, threads))
    return finder.result()


def compare_token_types(a: TypeMeans, b: TypeMeans, **settings: Unpack[Settings]) -> TokenTypeMatches:
    """Compare two SAEs under the original's protocol.

    Args:
        a, b: means over the same tokens.
        **settings: see `match_token_types`. `keep_above` must be above 0, because `assignments.one_to_one` needs
            positive similarities.

    Raises:
        InputError: as in `match_token_types`.
    """
    matches = match_token_types(a, b, **settings)
    best = [partners[:, 0] for partners in matches.partners]
    n_types = (types_together(a, b, best[0]), types_together(b, a, best[1]))
    return TokenTypeMatches((a.name, b.name), matches, one_to_one(matches.kept), n_types)


def types_together(of: TypeMeans, others: TypeMeans, partners: Int[np.ndarray, " d_sae"]) -> Int[np.ndarray, " d_sae"]:
    """The number of types on which each feature and its partner both fire; -1 where the partner is -1.

    Args:
        of: means of the features.
        others: means of the partners.
        partners: a feature of `others` for each feature of `of`.
    """
    (matched,) = np.nonzero(partners >= 0)
    fires = of.means.tocsc()[:, matched].astype(bool)
    partner_fires = others.means.tocsc()[:, partners[matched]].astype(bool)
    n_types = np.full(len(partners), -1)
    n_types[matched] = fires.multiply(partner_fires).astype(np.int64).sum(axis=0)
    return n_types


def as_correlation(token_types: TokenTypeMatches, correlation: Correlation) -> Correlation:
    """Put matches over token types in the place of Pearson r, so that verdicts can be drawn from them.

    `pearson` and `one_to_one` are those over token types. `testable` are the features with any defined r, because the
    original asks for no more. Everything else (`by_corpus`, `jaccard`, `firings`) stays as it is. The original knows no
    splits and merges, so `combined` is None.

    Raises:
        InputError: if the two are not of the same SAEs.
    """
    best_a, best_b = token_types.matches.best
    widths = (len(best_a), len(best_b))
    if (token_types.names, widths) != (correlation.names, tuple(len(testable) for testable in correlation.testable)):
        raise InputError(
            f"matches over token types and the correlation must be of the same SAEs, but are of "
            f"{token_types.names} and {correlation.names}; give two files of one pair"
        )
    return correlation._replace(
        pearson=token_types.matches,
        one_to_one=token_types.one_to_one,
        testable=(~np.isnan(best_a[:, 0]), ~np.isnan(best_b[:, 0])),
        combined=None,
    )


def save_token_type_matches(token_types: TokenTypeMatches, path: Path | str) -> None:
    """Write matches as one safetensors file; the tensors of `matches.match_tensors` are under `token_type`."""
    tensors = match_tensors(token_types.matches, MEASURE) | {"one_to_one": token_types.one_to_one}
    tensors |= {f"n_types_of_best_{side}": n for side, n in zip(SIDES, token_types.n_types_of_best, strict=True)}
    write_tensors(path, {"names": token_types.names}, tensors)


def load_token_type_matches(path: Path | str) -> TokenTypeMatches:
    """Read a file from `save_token_type_matches`.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        header, tensors = read_tensors(path)
        a, b = header["names"]
        n_types_a, n_types_b = (tensors[f"n_types_of_best_{side}"] for side in SIDES)
        return TokenTypeMatches(
            names=(a, b),
            matches=matches_of_tensors(tensors, MEASURE),
            one_to_one=tensors["one_to_one"],
            n_types_of_best=(n_types_a, n_types_b),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' must hold matches over token types, but is damaged or another file ({error}); "
            "delete it and run again"
        ) from error


def _require_one_sae(shard: FeatureShard, saes: list[tuple[str, int]], covered: list[tuple[str, str]]) -> None:
    """Refuse the last shard if it is not of the SAE of those before it, or of tokens that they cover."""
    if saes[-1] != saes[0]:
        raise InputError(
            f"'{shard.path}' must be of the SAE '{saes[0][0]}' with {saes[0][1]} latents, like the shards before it, "
            f"but is of '{saes[-1][0]}' with {saes[-1][1]}; give the shards of one SAE"
        )
    if covered[-1] in covered[:-1]:
        raise InputError(
            f"'{shard.path}' must not cover tokens that another shard covers ({shard.corpus}, {shard.token_range}); "
            "give every shard once"
        )


def _tokens_of_types(
    shard: FeatureShard, types: Mapping[str, Int[np.ndarray, " position"]], n_types: int
) -> scipy.sparse.csr_array:
    """[type, token]: 1 where a compared token is of the type; in float64, so that sums over rows are, too."""
    n_positions = len(types.get(shard.corpus, ()))
    positions = shard.positions[shard.compared]
    if shard.stop_row * shard.n_ctx > n_positions:
        raise InputError(
            f"every token must have a type, but '{shard.path}' reaches position {shard.stop_row * shard.n_ctx - 1} of "
            f"'{shard.corpus}', where the types of {n_positions} positions are known; give the token rows that the "
            "features come from"
        )
    of_token = types[shard.corpus][positions] if len(positions) else np.zeros(0, dtype=np.int64)
    ones = (np.ones(len(of_token)), of_token, np.arange(len(of_token) + 1))
    return scipy.sparse.csr_array(ones, shape=(len(of_token), n_types)).T.tocsr()


def _require_comparable(a: TypeMeans, b: TypeMeans, min_types: int) -> None:
    """Refuse means over different types or tokens, and r over fewer than two types."""
    if min_types < MIN_TYPES:
        raise InputError(f"min_types must be at least {MIN_TYPES}, because r needs two, but is {min_types}; raise it")
    if (a.means.shape[0], a.covered) != (b.means.shape[0], b.covered):
        raise InputError(
            f"means per token type must be over the same types and tokens, but those of '{a.name}' are over "
            f"{a.means.shape[0]} types and {len(a.covered)} shards and those of '{b.name}' over {b.means.shape[0]} and "
            f"{len(b.covered)}, and not all of them are the same; give the same shards of both SAEs"
        )


def _pearson(
    by_feature: scipy.sparse.csr_array, b: scipy.sparse.csr_array, min_types: int, threads: int
) -> Float[np.ndarray, "row d_sae_b"]:
    """r of some features [row, type] with all features [type, d_sae_b]."""
    out = np.empty((by_feature.shape[0], b.shape[1]))

    def work(part: tuple[int, int]) -> None:
        starts = by_feature.indptr[part[0] : part[1] + 1]
        rows = (starts, by_feature.indices, by_feature.data)
        _pearson_rows(*rows, b.indptr, b.indices, b.data, min_types, MIN_SPREAD, out[slice(*part)])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts(len(out), threads)))
    return out


@njit(nogil=True, cache=True)
@no_type_check
def _pearson_rows(starts, types, values, b_starts, b_latents, b_values, min_types, min_spread, out):
    """Make both passes over the types of each row. A column's sums are adjacent, so that they are fetched together."""
    sums = np.empty((out.shape[1], 6))  # n, the means of a and b; then sums of squared deviations and their product
    for row in range(out.shape[0]):
        sums[:] = 0.0
        for entry in range(starts[row], starts[row + 1]):
            for place in range(b_starts[types[entry]], b_starts[types[entry] + 1]):
                column = b_latents[place]
                sums[column, 0] += 1.0
                sums[column, 1] += values[entry]
                sums[column, 2] += b_values[place]
        for column in range(out.shape[1]):
            if sums[column, 0] > 0.0:
                sums[column, 1] /= sums[column, 0]
                sums[column, 2] /= sums[column, 0]
        for entry in range(starts[row], starts[row + 1]):
            for place in range(b_starts[types[entry]], b_starts[types[entry] + 1]):
                column = b_latents[place]
                of_a, of_b = values[entry] - sums[column, 1], b_values[place] - sums[column, 2]
                sums[column, 3] += of_a * of_a
                sums[column, 4] += of_b * of_b
                sums[column, 5] += of_a * of_b
        for column in range(out.shape[1]):
            n, mean_a, mean_b, squares_a, squares_b, products = sums[column]
            varies = np.sqrt(squares_a) > min_spread * mean_a and np.sqrt(squares_b) > min_spread * mean_b
            if n >= min_types and varies:
                r = products / (np.sqrt(squares_a) * np.sqrt(squares_b))
                out[row, column] = min(1.0, max(-1.0, r))
            else:
                out[row, column] = np.nan
