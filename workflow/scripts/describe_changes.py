"""Have a language-model service tell what training changed on each edge, from the page's cards."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import read_json, write_json
from saelineage.jobs.job import job
from saelineage.labels.completions import Answers
from saelineage.labels.explanations import asker
from saelineage.report.words import words

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def describe_changes(path_to_examples: str, settings: dict, answers_folder: Path, path_to_words: str) -> dict:
    """Write a JSON file: `edges`, each with `parent`, `child`, and `words.Words` under `claims` and `n_left_out`.

    Edges on which nothing is new or gone, or of which the service said nothing usable, are left out.

    Args:
        path_to_examples: `report/examples/{hookpoint}.json`.
        settings: the config's `labels.explanations`.
        answers_folder: the folder where the service's answers are kept.
        path_to_words: the file to write.

    Returns:
        The addresses and models that the answers came from.
    """
    answers = Answers(answers_folder, settings["timeout_s"], settings["retries"])
    edges = []
    for of_edge in read_json(path_to_examples)["changed"]:
        said = words(of_edge, asker(answers, settings))
        edge = {side: of_edge[side] for side in ("parent", "child")}
        logger.info("%s to %s: %s", *edge.values(), f"{len(said.claims)} claims" if said else "nothing said")
        edges += [edge | said._asdict()] if said else []
    answered_by = sorted(map(list, answers.origins))
    write_json(path_to_words, {"answered_by": answered_by, "edges": edges})
    return {"answered_by": answered_by}


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= describe_changes(
            path_to_examples=snakemake.input.examples,
            settings=snakemake.params.settings,
            answers_folder=Path(snakemake.params.answers),
            path_to_words=snakemake.output.words,
        )
