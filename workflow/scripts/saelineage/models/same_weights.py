"""Models that have the same weights under several names; apart from `loading`, which imports transformers."""

import logging
from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)


def same_weights(digests: Mapping[str, str], parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences to warn with about models between which nothing differs.

    Args:
        digests: `loading.weights_sha256` of every model.
        parents: the models that each descends from, if any.
    """
    sentences = []
    models_of: dict[str, list[str]] = {}
    for model, digest in digests.items():
        models_of.setdefault(digest, []).append(model)
    for models in models_of.values():
        related = [(child, parent) for child in models for parent in parents.get(child, []) if parent in models]
        sentences += [
            f"'{child}' has exactly the weights of its parent '{parent}': what was done to it changed nothing, and all "
            "differences between their features are noise"
            for child, parent in related
        ]
        others = [model for model in models if not any(model == child for child, _ in related)]
        if len(others) > 1:
            names = ", ".join(f"'{model}'" for model in others)
            sentences.append(f"{names} have exactly the same weights, so they are one model under several names")
    return sentences


def same_as_other(name: str, digest: str, others: Mapping[str, str]) -> str | None:
    """A sentence to warn with if an imported model has the file of weights of another one.

    The same numbers in another format are another file; `same_weights`, for the page, compares the numbers.

    Args:
        name: the model's name.
        digest: sha256 of its file of weights.
        others: those of other models, by name.
    """
    same = next((model for model, of_model in others.items() if of_model == digest), None)
    if same is None:
        return None
    return (
        f"'{name}' has exactly the weights of '{same}': they are one model under two names, an edge between them is an "
        "identity, and whatever is lost or new from one to the other is noise; check their sources (a repository can "
        "hold one file under several revisions), or leave one of them out"
    )


def unchanged(before: str, after: str, parent: str, cause: str) -> dict[str, str]:
    """Facts for the manifest of a model made from another's weights: `same_weights_as` if nothing changed.

    That is also warned of.

    Args:
        before, after: `loading.weights_sha256` of the parent and of the model.
        parent: the parent's name.
        cause: what did nothing, for the warning.
    """
    if before != after:
        return {}
    logger.warning("the model has exactly the weights of its parent '%s': %s", parent, cause)
    return {"same_weights_as": parent}
