"""Match the features of two SAEs as the original study did, over token types."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.correlations.token_types import (
    compare_token_types,
    save_token_type_matches,
    shards_of_tokens,
    token_types,
    type_means,
)
from saelineage.jobs.job import job
from saelineage.tokens import TokenRows, load_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def match_token_types_of_pair(
    paths_to_features_a: list[str],
    paths_to_features_b: list[str],
    paths_to_tokens: Mapping[str, str],
    tokenizer_folder: Path,
    settings: dict,
    threads: int,
    path_to_matches: str,
) -> None:
    """Write the matches over token types of all pairs.

    Args:
        paths_to_features_a, paths_to_features_b: the feature shards of each SAE, all corpora.
        paths_to_tokens: the token rows that they come from, by corpus.
        tokenizer_folder: the tokenizer of these rows.
        settings: `top_matches`, `keep_above`, `n_bins` and `block_features`, see `match_token_types`.
        threads: the number of threads.
        path_to_matches: the file to write.
    """
    tokens = {corpus: TokenRows(path) for corpus, path in paths_to_tokens.items()}
    tokenizer, types = load_tokenizer(tokenizer_folder), {}
    strings: list[str] = []
    for corpus, rows in tokens.items():
        types[corpus], strings = token_types(rows.ids, tokenizer)
    a, b = (
        type_means(shards_of_tokens(paths, tokens), types, len(strings))
        for paths in (paths_to_features_a, paths_to_features_b)
    )
    save_token_type_matches(compare_token_types(a, b, **settings, threads=threads), path_to_matches)


if __name__ == "__main__":
    with job(snakemake):
        match_token_types_of_pair(
            paths_to_features_a=list(snakemake.input.a),
            paths_to_features_b=list(snakemake.input.b),
            paths_to_tokens=dict(zip(snakemake.params.corpora, snakemake.input.tokens, strict=True)),
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            settings=snakemake.params.settings | {"keep_above": snakemake.params.threshold},
            threads=snakemake.threads,
            path_to_matches=snakemake.output.matches,
        )
