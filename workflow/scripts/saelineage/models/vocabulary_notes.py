"""Sentences on models that have other tokens than the run's; apart from `vocabularies`, which imports transformers."""

from collections.abc import Mapping

MOST_NAMED = 5


def vocabulary_notes(facts: Mapping[str, Mapping]) -> list[str]:
    """Say which rows and tokens of which models are left out, with their numbers.

    Args:
        facts: of each model, as `vocabularies.SharedRows` has them.
    """
    n_rows = {model: of["n_rows"] for model, of in facts.items()}
    notes = []
    if len(set(n_rows.values())) > 1:
        sizes = ", ".join(f"'{model}' {number:,}" for model, number in n_rows.items())
        n_ids = max(of["n_ids"] for of in facts.values())
        notes.append(
            f"The models' embeddings have different numbers of rows ({sizes}). The {n_ids:,} ids of the run's "
            "tokenizer are compared, as far as a model has them; losses are over the logits of these alone."
        )
    for model, of in facts.items():
        if of["unshared"]:
            tokens = [repr(token) for token in of["unshared"]]
            more = f" and {len(tokens) - MOST_NAMED} more" if len(tokens) > MOST_NAMED else ""
            counts = ", ".join(f"{number:,} in {split}" for split, number in of["left_out"].items())
            notes.append(
                f"'{model}' does not share {len(tokens)} of the run's tokens ({', '.join(tokens[:MOST_NAMED])}{more}). "
                f"It reads {of['read_instead']!r} in their place, and these places are left out of its SAEs, losses "
                f"and comparisons ({counts})."
            )
    return notes
