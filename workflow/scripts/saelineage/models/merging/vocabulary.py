"""The rows of embeddings that models with different tokens have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from saelineage.errors import InputError
from saelineage.foreign.models import named
from saelineage.foreign.tokenizers import read_tokenizer, vocabulary_of

REFUSE, PARENT, INTERSECT = "refuse", "parent", "intersect"
"""What to do with tokens that not all models have: refuse, keep those of the first parent, or leave them out."""


class SharedRows(NamedTuple):
    """The rows of embeddings that are merged, because all models have the same token there, or none."""

    shared: Bool[Tensor, " row"]
    """By row of the first parent's embeddings; the merged model has all of these, and the others are its own."""
    n_rows: tuple[int, ...]
    """Of each model's embeddings."""
    leader: int
    """Number of the parent whose config and tokenizer the merged model has."""
    only_leader: tuple[str, ...]
    """Tokens of the leader that not all models have."""
    left_out: tuple[str, ...]
    """Tokens of other models that the merged model has not."""

    def counts(self) -> dict[str, int | list[int]]:
        """Numbers of rows and tokens, for the record."""
        return {
            "rows": list(self.n_rows),
            "rows_merged": int(self.shared.sum()),
            "rows_of_parent": int((~self.shared).sum()),
            "tokens_of_parent": len(self.only_leader),
            "tokens_left_out": len(self.left_out),
        }

    def sentence(self, names: Sequence[str]) -> str:
        """Say what is merged."""
        counts, leader = self.counts(), names[self.leader]
        rows = ", ".join(f"'{name}' {n}" for name, n in zip(names, self.n_rows, strict=True))
        parts = [
            f"rows of the embeddings: {rows}; {counts['rows_merged']} are merged"
            + (f", and {counts['rows_of_parent']} are those of '{leader}'" if counts["rows_of_parent"] else "")
        ]
        if self.only_leader:
            parts.append(f"not all models have the tokens {named(map(repr, self.only_leader))} of '{leader}'")
        if self.left_out:
            parts.append(
                f"the merge has not the tokens that others have and '{leader}' has not ({len(self.left_out)}: "
                f"{named(map(repr, self.left_out))})"
            )
        return "; ".join(parts)


def shared_rows(folders: Sequence[Path], n_rows: Sequence[int], n_parents: int, vocabulary: str) -> SharedRows | None:
    """Find the rows of embeddings that all models have: rows of the same token, or of no token in any.

    Args:
        folders: of the parents, and of their base if it takes part, with their own tokenizers.
        n_rows: of their embeddings.
        n_parents: how many of them are parents; the first ones.
        vocabulary: what to do with tokens that not all have. Rows of no token, which only pad, are the first parent's.

    Returns:
        The rows; None if all models have the same tokens and rows.

    Raises:
        InputError: if tokens differ and `vocabulary` is `refuse`; or it is `intersect`, and the tokens that all have
            are not those of one of the parents.
    """
    tokenizers = [read_tokenizer(folder) for folder in folders]
    tokens = [vocabulary_of(each).tokens if each and all(tokenizers) else {} for each in tokenizers]
    numbers = {number for of in tokens for number in of}
    different = {number for number in numbers if len({of.get(number) for of in tokens}) > 1}
    if not different and len(set(n_rows)) == 1:
        return None
    names = [folder.name for folder in folders]
    if different and vocabulary == REFUSE:
        sizes = ", ".join(f"'{name}' has {len(of)}" for name, of in zip(names, tokens, strict=True))
        some = [of[number] for number in sorted(different) for of in tokens if number in of]
        raise InputError(
            f"models that are merged must have the same tokens, but {sizes}, and {len(different)} differ, such as "
            f"{named(map(repr, dict.fromkeys(some[:3])))}; set the merge's vocabulary: to 'parent' to merge the others "
            "and keep these as the first parent has them, or to 'intersect' to leave them out"
        )
    if different and vocabulary == INTERSECT:
        return _intersect(names, tokens, n_rows, n_parents, min(different))
    least = min(n_rows)
    shared = torch.tensor([number < least and number not in different for number in range(n_rows[0])])
    only = [tokens[0][number] for number in sorted(different & tokens[0].keys())]
    left_out = [of[number] for of in tokens[1:] for number in sorted(different & of.keys())]
    return SharedRows(shared, tuple(n_rows), 0, tuple(only), _without(left_out, only))


def _intersect(
    names: Sequence[str], tokens: Sequence[Mapping[int, str]], n_rows: Sequence[int], n_parents: int, n: int
) -> SharedRows:
    """The rows before the first token that not all models have."""
    n = min(n, *n_rows)
    leader = next((place for place in range(n_parents) if all(number < n for number in tokens[place])), None)
    if leader is None:
        raise InputError(
            f"vocabulary: 'intersect' must be used with a parent that has only tokens that all models have, but each "
            f"of {named(names[:n_parents])} has others from row {n} on; set it to 'parent'"
        )
    left_out = [of[number] for of in tokens for number in sorted(of) if number >= n]
    return SharedRows(torch.ones(n, dtype=torch.bool), tuple(n_rows), leader, (), _without(left_out, []))


def _without(tokens: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(token for token in dict.fromkeys(tokens) if token not in others)
