"""What the training behind an edge changed, in words: claims by a language-model service, each with its features.

The service reads the cards of the page, the features that are new in a child and those of its parent that are gone,
with their labels and a passage each. It answers with claims. A claim must name features that it was shown; others are
left out, and counted. Nothing checks that a claim is true, and the page says so.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from saelineage.labels.completions import whole_characters
from saelineage.labels.explanations import DATA_NOTE, Messages, ask_twice, levels, messages, quoted, without_thoughts
from saelineage.lineage.importance import CHANGED

MOST_CLAIMS, LONGEST_CLAIM = 6, 300
TASK = (
    "You tell a researcher what training changed in a language model. A child model was trained from its parent. You "
    "are given features of the child that its parent does not have (new), and features of the parent that the child "
    "does not have (gone), the most important first. Of each you see its name, what it follows by statistics (which "
    "may be wrong, or unknown), and a passage in which it fires: the tokens as JSON strings, and after each of those "
    "on which it fires, from 1 to 9, how strongly. "
    f"{DATA_NOTE}\n"
    f"Say in one to {MOST_CLAIMS} short sentences of plain words what the child learnt, and what it lost. Each "
    "sentence must rest on features of the list. Say no more than they show; features that have nothing in common "
    'need no sentence. Answer with a JSON list alone: [{"claim": "...", "features": ["child/12", "child/34"]}, ...].'
)


class Words(NamedTuple):
    """What a service said of an edge."""

    claims: list[dict]
    """Each with `claim`, at most `LONGEST_CLAIM` characters, and `features`, lists of a model and a latent."""
    n_left_out: int
    """Claims that named no feature, or one that was not shown, or that came after `MOST_CLAIMS` others."""


def words(of_edge: Mapping, ask: Callable[[Messages, int], str]) -> Words | None:
    """Have the changes of an edge told.

    Args:
        of_edge: of `changed` in `examples.json`: `parent`, `child`, and the cards of `new` and `gone` features.
        ask: gives the answer to messages, at the first or a second attempt.

    Returns:
        None where nothing is new or gone, so that nothing is asked, or where the service gave no usable answer.
    """
    shown = {_name(feature): feature["members"][0] for kind in CHANGED.values() for feature in of_edge[kind]}
    if not shown:
        return None
    given = ask_twice(words_messages(of_edge), ask, parse_claims)
    if given is None:
        return None
    kept = [claim for claim in given if claim["features"] and set(claim["features"]) <= shown.keys()]
    places = {name: [first["model"], first["latent"]] for name, first in shown.items()}
    claims = [claim | {"features": [places[name] for name in claim["features"]]} for claim in kept[:MOST_CLAIMS]]
    return Words(claims, len(given) - len(claims))


def words_messages(of_edge: Mapping) -> Messages:
    """Write the prompt: the new and the gone features of an edge, each with its label and passage."""
    parts = [f"Child: {of_edge['child']}. Parent: {of_edge['parent']}."]
    for kind in reversed(CHANGED.values()):
        features = [_feature_text(feature) for feature in of_edge[kind]]
        parts.append(f"{kind.capitalize()} features: {len(features)}.")
        parts += features
    return messages(TASK, "\n\n".join(parts))


def parse_claims(answer: str) -> list[dict] | None:
    """Read the claims of an answer; None if it holds no list of objects with a `claim` and its `features`."""
    text = without_thoughts(answer)
    try:
        given = json.loads(text[text.find("[") : text.rfind("]") + 1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, list) or not all(map(_is_claim, given)):
        return None
    return [
        {
            "claim": whole_characters(entry["claim"]).strip()[:LONGEST_CLAIM].rstrip(),
            "features": list(dict.fromkeys(entry["features"])),
        }
        for entry in given
    ]


def _is_claim(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    claim, features = entry.get("claim"), entry.get("features")
    named = isinstance(features, list) and all(isinstance(name, str) for name in features)
    return isinstance(claim, str) and bool(claim.strip()) and named


def _feature_text(feature: Mapping) -> str:
    """A feature in the prompt: its name and label, then its passage."""
    label = feature["members"][0]["label"]
    lines = [f"{_name(feature)} follows {quoted(label) if label else 'nothing known'}:"]
    for passage in feature["passages"]:
        lines.append(" ".join(_marked(passage["tokens"], passage["activations"][0])))
    return "\n".join(lines)


def _marked(tokens: Sequence[str], activations: Sequence[float]) -> list[str]:
    """The tokens of a passage as JSON strings, with the level of those on which the feature fires."""
    largest = max([*activations, 0.0]) or 1.0
    scale = levels(np.array(activations, dtype=np.float64), largest)
    return [f"{quoted(token)} {level}" if level else quoted(token) for token, level in zip(tokens, scale, strict=True)]


def _name(feature: Mapping) -> str:
    """`{model}/{latent}` of the feature that a card is about."""
    first = feature["members"][0]
    return f"{first['model']}/{first['latent']}"
