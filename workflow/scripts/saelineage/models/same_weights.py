"""Models that have the same weights under several names; apart from `loading`, which imports transformers."""

from collections.abc import Mapping, Sequence


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
