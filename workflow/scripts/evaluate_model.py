"""Measure a language model on every corpus's validation split."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import write_json
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import evaluate, load_model, n_parameters, require_vocabulary, unigram_loss
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def evaluate_model(
    folder: Path,
    paths_to_train: list[str],
    paths_to_validation: list[str],
    batch_rows: int,
    path_to_metrics: str,
    gpus: int,
) -> None:
    """Write loss and accuracy per corpus, beside the loss of a unigram model of the same corpus."""
    train, validation = read_token_rows(paths_to_train), read_token_rows(paths_to_validation)
    model = load_model(folder).to(pick_device(gpus))
    require_vocabulary(model, validation, folder.name)
    d_vocab = model.config.vocab_size
    corpora = {
        corpus: evaluate(model, rows, batch_rows) | {"unigram_loss": unigram_loss(train[corpus], rows, d_vocab)}
        for corpus, rows in validation.items()
    }
    write_json(path_to_metrics, {"model": folder.name, "n_parameters": n_parameters(model), "corpora": corpora})


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        evaluate_model(
            folder=Path(snakemake.input.model[0]).parent,
            paths_to_train=snakemake.input.train,
            paths_to_validation=snakemake.input.validation,
            batch_rows=snakemake.params.batch_rows,
            path_to_metrics=snakemake.output.metrics,
            gpus=snakemake.resources.get("gpu", 0),
        )
