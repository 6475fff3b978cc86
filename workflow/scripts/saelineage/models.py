"""Language models: opening them from any source and measuring them on token rows."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Int
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.utils import logging as transformers_logging

from saelineage.errors import InputError
from saelineage.logs import on_terminal
from saelineage.losses import next_token_loss
from saelineage.tokens import TokenRows

COUNT_ROWS = 8_192
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
"""What transformers raises over damaged or foreign files."""


def load_model(
    source: Path | str, revision: str | None = None, dtype: torch.dtype | str = torch.float32
) -> PreTrainedModel:
    """Open a causal language model from a folder or the hub, in evaluation mode, from safetensors only.

    Args:
        source: a folder, or a hub repository.
        revision: commit of the hub repository.
        dtype: number format of the weights in memory; "auto" keeps the file's. Measuring is done in float32 by default,
            whatever the file holds.

    Raises:
        InputError: if it is no such model, lacks some of its weights, or needs code of its own to run.
    """
    quiet_off_terminal()
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"'{source}' cannot be opened as a causal model from safetensors: {reason}") from error
    if loaded["missing_keys"]:  # transformers would draw them at random
        raise InputError(
            f"'{source}' lacks weights of its architecture: {', '.join(sorted(loaded['missing_keys'])[:5])}; "
            "take a complete checkpoint of a causal language model"
        )
    return model.eval()


def reinitialised(folder: Path | str, seed: int) -> PreTrainedModel:
    """A model of the architecture in a folder, with the weights that its class starts from, drawn from `seed`."""
    quiet_off_terminal()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    set_seed(seed)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()


def quiet_off_terminal() -> None:
    """No progress bars of transformers where nobody would see them move."""
    if not on_terminal():
        transformers_logging.disable_progress_bar()


@torch.inference_mode()
def evaluate(model: PreTrainedModel, rows: TokenRows, batch_rows: int) -> dict:
    """Mean next-token loss in nats and accuracy in [0, 1] over all positions but each row's first.

    Returns:
        `loss`, `accuracy` and `n_predictions` they rest on.
    """
    loss, correct, n_predictions = 0.0, 0, 0
    for _, batch in rows.batches(batch_rows):
        ids = torch.from_numpy(batch).to(model.device)
        sums = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)
        loss, correct, n_predictions = loss + sums[0], correct + sums[1], n_predictions + sums[2]
    return {"loss": loss / n_predictions, "accuracy": correct / n_predictions, "n_predictions": n_predictions}


def unigram_loss(train: TokenRows, validation: TokenRows, d_vocab: int) -> float:
    """Loss in nats of predicting each validation token from its frequency in the train split, one added to each count.

    As in `evaluate`, the first id of a row (BOS) is neither counted nor predicted.
    """
    counts = _counts(train, d_vocab)
    log_probabilities = np.log((counts + 1) / (counts + 1).sum())
    predicted = _counts(validation, d_vocab)
    return float(-(predicted @ log_probabilities) / predicted.sum())


def require_vocabulary(model: PreTrainedModel, rows: Mapping[str, TokenRows], source: str) -> None:
    """Refuse a model whose embedding has no row for some id of the run's tokenizer.

    Raises:
        InputError: naming the model and the sizes.
    """
    d_vocab = model.get_input_embeddings().weight.shape[0]
    highest = max(int(np.asarray(found.ids).max()) for found in rows.values())
    if highest >= d_vocab:
        raise InputError(
            f"model '{source}' knows ids 0 to {d_vocab - 1}, but the run's tokens hold id {highest}; "
            "set tokenizer: to the tokenizer this model was trained with"
        )


def n_parameters(model: PreTrainedModel) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _counts(rows: TokenRows, d_vocab: int) -> Int[np.ndarray, " d_vocab"]:
    """How often each id stands in a place that is predicted, a block of rows at a time."""
    counts = np.zeros(d_vocab, dtype=np.int64)
    for _, ids in rows.batches(COUNT_ROWS):
        counts += np.bincount(ids[:, 1:].ravel(), minlength=d_vocab)
    return counts
