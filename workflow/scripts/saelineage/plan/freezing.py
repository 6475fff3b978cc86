"""Half fine-tuning: the weights that a `freeze` block leaves as they are, told from the names and shapes of a model's.

The plan asks before the first job, and for the memory of a training. The job asks again of the model that it opens.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from saelineage.errors import InputError

END = re.compile(r"(\.weight|[._]bias)$")
VECTORS = "vectors"
"""The category of norms and other parts of a block without matrices."""


class Part(NamedTuple):
    """A part of a numbered block: a matrix with its bias, or a norm."""

    blocks: str
    """The list of blocks, such as model.layers."""
    number: str
    """The block's number there."""
    kind: str
    """Its name in the block, such as self_attn.q_proj."""


class Category(NamedTuple):
    """Parts that are drawn from together, in each of the blocks that have the same ones."""

    blocks: str
    name: str
    """The module that they are in, such as self_attn; `VECTORS` for those without matrices."""
    kinds: tuple[str, ...]


def frozen_weights(shapes: Mapping[str, Sequence[int]], freeze: Mapping | None, key: str) -> list[str]:
    """Draw the weights of a model's blocks that are frozen, as in half fine-tuning (Hui et al., arXiv 2404.18466).

    Parts of a block in one module are a category: the matrices of attention (q_proj, k_proj, ...), those of the MLP,
    and all norms together. In each category the share is frozen in every block, and the share of the blocks for every
    kind (q_proj), both as nearly as whole numbers allow; their sum over all blocks is rounded to the nearest, halves
    up. Weights outside blocks (embeddings, the last norm, the output embedding) are trained. A bias goes with its
    matrix. The draw follows from the seed and from names alone, in whatever order these come.

    Args:
        shapes: of all weights, by name.
        freeze: the `freeze` block of the config; None trains all weights.
        key: the block's place in the config, for messages.

    Returns:
        Names, sorted.

    Raises:
        InputError: if a share above zero leaves every matrix to be trained.
    """
    if not freeze or freeze["share"] == 0:
        return []
    parts = _parts(shapes)
    categories = _categories(parts, shapes)
    frozen: set[str] = set()
    for category, numbers in categories.items():
        n_frozen = math.floor(freeze["share"] * len(numbers) * len(category.kinds) + 0.5)
        for part in _dealt(category, numbers, n_frozen, freeze["seed"]):
            frozen.update(parts[part])
    if not any(len(shapes[name]) > 1 for name in frozen):
        n_matrices = sum(len(each.kinds) * len(of) for each, of in categories.items() if each.name != VECTORS)
        raise InputError(
            f"{key}.share: must freeze at least one matrix, but {freeze['share']} freezes none of the {n_matrices} in "
            "the parent's blocks; raise it, or leave out freeze to train all weights"
        )
    return sorted(frozen)


def _parts(names: Iterable[str]) -> dict[Part, list[str]]:
    """The parts of all blocks, with the names of their weights; the first number in a name is the block's."""
    parts: dict[Part, list[str]] = {}
    for name in sorted(names):
        words = name.split(".")
        place = next((place for place, word in enumerate(words[:-1]) if word.isdecimal()), None)
        if place is not None:
            kind = END.sub("", ".".join(words[place + 1 :]))
            parts.setdefault(Part(".".join(words[:place]), words[place], kind), []).append(name)
    return parts


def _categories(parts: Mapping[Part, Sequence[str]], shapes: Mapping[str, Sequence[int]]) -> dict[Category, list[str]]:
    """The categories of all blocks, with the numbers of the blocks that have them."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for part, names in parts.items():
        is_vector = all(len(shapes[name]) < 2 for name in names)
        module = VECTORS if is_vector else part.kind.rpartition(".")[0]
        kinds.setdefault((part.blocks, module, part.number), []).append(part.kind)
    categories: dict[Category, list[str]] = {}
    for (blocks, module, number), of_block in kinds.items():
        categories.setdefault(Category(blocks, module, tuple(sorted(of_block))), []).append(number)
    return categories


def _dealt(category: Category, numbers: Sequence[str], n_frozen: int, seed: int) -> list[Part]:
    """Deal kinds to blocks like cards, from decks that hold every kind once, until `n_frozen` are dealt.

    So no block gets a kind twice, and blocks, like kinds, get equally many, give or take one.
    """
    draw = f"{seed} {category.blocks} {category.name} {' '.join(category.kinds)}"
    n_each, n_with_one_more = divmod(n_frozen, len(numbers))
    dealt: list[Part] = []
    deck: list[str] = []
    for place, number in enumerate(_shuffled(numbers, f"{draw} blocks")):
        hand: list[str] = []
        while len(hand) < n_each + (place < n_with_one_more):
            if not deck:
                deck = _shuffled(category.kinds, f"{draw} from {len(dealt) + len(hand)}", last=hand)
            hand.append(deck.pop(0))
        dealt += [Part(category.blocks, number, kind) for kind in hand]
    return dealt


def _shuffled(names: Iterable[str], draw: str, last: Collection[str] = ()) -> list[str]:
    """Names in a random order that follows from `draw` and the names; those in `last` come after all others."""
    return sorted(names, key=lambda name: (name in last, sha256(f"{draw} {name}".encode()).digest()))
