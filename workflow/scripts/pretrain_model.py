"""Train a language model from random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.training import new_mistral, save_model, train_on, weights_dtype
from saelineage.tokens import load_tokenizer, read_token_rows, special_ids

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def pretrain_model(
    settings: dict,
    n_ctx: int,
    paths_to_tokens: Mapping[str, str],
    tokenizer_folder: Path,
    folder: Path,
    checkpoints: Path,
    gpus: int,
) -> None:
    """Train and write a model folder."""
    d_vocab = load_tokenizer(tokenizer_folder).get_vocab_size()
    model = new_mistral(settings, d_vocab, n_ctx, special_ids(tokenizer_folder))
    nn.Module.to(model, weights_dtype(settings))  # transformers wraps the model's own `to` without its types
    train_on(model, read_token_rows(paths_to_tokens), settings, checkpoints, pick_device(gpus, may_round=True))
    save_model(model, tokenizer_folder, folder)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        with checkpoint_folder(snakemake) as checkpoints:
            pretrain_model(
                settings=snakemake.params.model,
                n_ctx=snakemake.params.n_ctx,
                paths_to_tokens=dict(zip(snakemake.params.model["corpora"], snakemake.input.tokens, strict=True)),
                tokenizer_folder=Path(snakemake.input.tokenizer).parent,
                folder=Path(snakemake.output.weights).parent,
                checkpoints=checkpoints,
                gpus=snakemake.resources.get("gpu", 0),
            )
