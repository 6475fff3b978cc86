"""Opening language models from any source and measuring them on token rows."""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.utils import logging as transformers_logging

from saelineage.errors import InputError
from saelineage.files.foreign import mappings, named_numbers, read_foreign_json, require_inside, tensor_shapes
from saelineage.files.hub import hub_download, hub_repo
from saelineage.models.losses import next_token_loss
from saelineage.tokens import TokenRows

COUNT_ROWS = 8_192
REMEDY = "fetch it again, or save it again with save_pretrained"
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
REPEATED = re.compile(r"(n|num)_(.*_)?(layers?|blocks?|stages?|labels)(_.*)?(?<!size)(?<!dim)|(.*_)?(layers|depths?)")
"""Keys of a config.json that count objects which the config or its model makes one by one; not widths, such as
shared_expert_intermediate_size."""
MOST_REPEATED = 1000
"""A larger count under one of these keys needs at least as many tensors in the weights files."""
MODULES_PER_TENSOR = 8
"""Modules and parameters allowed for each tensor in the weights files; some modules have no weights of their own."""
MOST_MODULES = 20_000
"""Modules and parameters allowed however few tensors there are."""
MOST_UNSAVED = 1 << 28
"""Numbers allowed beyond the weights files, for what a model computes when it is made, such as masks and positions."""


class ModelSource(NamedTuple):
    """The location of a model's files."""

    folder: Path
    commit: str | None
    """Commit of the hub repository they come from; None for a local folder."""
    files: list[Path]
    """The downloaded files."""


def find_model(settings: Mapping, key: str) -> ModelSource:
    """Find the model that a config block names; only config and safetensors are downloaded from the hub.

    Args:
        settings: the block, with a folder, or a repo and its revision.
        key: the block's place in the config, for error messages.

    Raises:
        InputError: if the hub does not have the model, or not as safetensors.
    """
    if "folder" in settings:
        return ModelSource(Path(settings["folder"]), None, [])
    repo = hub_repo(settings["repo"], settings["revision"], "model", key)

    def fetch(name: str) -> Path:
        return hub_download(settings["repo"], repo.commit, name, key)

    weights = next((name for name in (WEIGHTS_FILE, INDEX_FILE) if name in repo.files), None)
    if weights is None:
        raise InputError(f"{key}: {no_safetensors(repr(settings['repo']))}")
    files = [fetch(CONFIG_FILE), fetch(weights)]
    folder = files[0].parent
    files += [fetch(path.name) for path in weight_files(folder) if path not in files]
    return ModelSource(folder, repo.commit, files)


def load_model(source: Path | str, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """Open a causal language model from a folder, in evaluation mode, from safetensors only.

    Args:
        source: a folder, which need not be trusted (`check_model_folder`).
        dtype: number format of the weights in memory; "auto" keeps the file's. The default, float32, makes measurements
            independent of the file's format.

    Raises:
        InputError: if the folder holds no such model, weights are missing or not finite, or the model needs code of its
            own.
    """
    quiet_off_terminal()
    check_model_folder(source)
    try:
        loaded: object = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged or foreign files make transformers raise almost anything
        raise _refusal_of(source, error) from error
    assert isinstance(loaded, tuple)  # a pair, because of output_loading_info
    model, info = loaded
    if info["missing_keys"]:  # transformers would draw them at random
        raise InputError(
            f"'{source}' lacks weights of its architecture: {', '.join(sorted(info['missing_keys'])[:5])}; "
            "use a complete checkpoint of a causal language model"
        )
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"'{source}': weights must be finite, but {name} is not; use another checkpoint")
    return model.eval()


def check_model_folder(folder: Path | str) -> None:
    """Check a model's folder before anything is allocated.

    transformers trusts the sizes in a config.json, and follows names of other files and of kernels that run code. A
    model on the meta device, which has shapes and no numbers, shows whether it is larger than its weights files.

    Raises:
        InputError: if config and weights do not fit together; the weights are not safetensors in this folder, are links
            (other than the Hugging Face cache's own), are quantised, or do not fit into memory; or the config names
            code or weights from elsewhere.
    """
    require_inside(folder, (".json", ".safetensors"))
    if Path(folder, ADAPTER_FILE).exists():  # where PEFT is installed, transformers would open the model it names
        raise _unopenable(
            folder, f"{ADAPTER_FILE} says that it is an adapter to another model (call merge_and_unload first)"
        )
    config = _checked_config(Path(folder, CONFIG_FILE), folder)
    shapes = {name: shape for path in weight_files(folder) for name, shape in tensor_shapes(path, REMEDY).items()}
    for key, number in named_numbers(config):
        if REPEATED.fullmatch(key) and number > max(MOST_REPEATED, len(shapes)):
            raise _unopenable(folder, f"{CONFIG_FILE} says {key}: {number}, but there are {len(shapes)} tensors")
    n_held = sum(math.prod(shape) for shape in shapes.values())
    n_needed = _n_numbers(folder, max(MOST_MODULES, MODULES_PER_TENSOR * len(shapes)))
    if n_needed > 2 * n_held + MOST_UNSAVED:  # twice, because weights tied in the file may be untied in the model
        raise _unopenable(folder, f"{CONFIG_FILE} describes {n_needed} numbers, but the weights files hold {n_held}")


def weight_files(folder: Path | str) -> list[Path]:
    """List the safetensors files of a model's folder: the single one, or those that its index names.

    Raises:
        InputError: if there are none, or the index names anything but safetensors files of this folder.
    """
    if Path(folder, WEIGHTS_FILE).exists():
        return [Path(folder, WEIGHTS_FILE)]
    if not Path(folder, INDEX_FILE).exists():
        raise InputError(no_safetensors(f"'{folder}'"))
    index = read_foreign_json(Path(folder, INDEX_FILE), REMEDY).get("weight_map")
    names = list(index.values()) if isinstance(index, dict) else []
    unsafe_names = [name for name in names if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name)]
    if unsafe_names or not names:
        shown = f"{unsafe_names[0]!r:.80}" if unsafe_names else "nothing"
        raise _unopenable(folder, f"weight_map in {INDEX_FILE} must name safetensors files of this folder, not {shown}")
    return [Path(folder, name) for name in sorted(set(names))]


def no_safetensors(where: str) -> str:
    """Error message for a model without safetensors."""
    return (
        f"{where} cannot be opened as a causal model from safetensors: it holds neither {WEIGHTS_FILE} nor "
        f"{INDEX_FILE} (pickles, as in .bin files, can hold code, and are not read); take a revision that has them, or "
        "convert it where you trust it (AutoModelForCausalLM.from_pretrained, then save_pretrained)"
    )


def _checked_config(path: Path, folder: Path | str) -> dict:
    config = read_foreign_json(path, REMEDY)
    for part in mappings(config):  # transformers may use a nested part, the one that describes the text model
        if part.get("quantization_config"):
            raise _unopenable(folder, f"{CONFIG_FILE} says that its weights are quantised (quantization_config)")
        weights = part.get("transformers_weights")
        if weights not in (None, WEIGHTS_FILE):  # transformers would open that file instead of those checked here
            raise _unopenable(folder, f"{CONFIG_FILE} names other weights (transformers_weights: {weights!r:.80})")
        implementations = [part.get(key) for key in ("attn_implementation", "_attn_implementation")]
        kernel = next((name for name in implementations if name is not None and "/" in str(name)), None)
        if kernel is not None:
            raise _unopenable(folder, f"{CONFIG_FILE} names code from elsewhere (attn_implementation: {kernel!r:.80})")
    return config


def _n_numbers(folder: Path | str, most_modules: int) -> int:
    """Count the numbers in the model that a config.json describes, tied ones once, without allocating them."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"), _at_most_modules(most_modules):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _refusal_of(folder, error) from error
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


@contextmanager
def _at_most_modules(most: int) -> Iterator[None]:
    """Raise ValueError when the block makes more than `most` modules and parameters."""
    n_made = 0

    def count(_parent: nn.Module, _name: str, _made: nn.Module | nn.Parameter | None) -> None:
        nonlocal n_made
        n_made += 1
        if n_made > most:
            raise ValueError(f"{CONFIG_FILE} describes more than {most} modules, too many for its weights files")

    with ExitStack() as stack:
        for register in (register_module_module_registration_hook, register_module_parameter_registration_hook):
            stack.callback(register(count).remove)
        yield


def _unopenable(source: Path | str, reason: str) -> InputError:
    return InputError(f"'{source}' cannot be opened as a causal model from safetensors: {reason.rstrip('.')}; {REMEDY}")


def _refusal_of(source: Path | str, error: Exception) -> InputError:
    """Turn an error of transformers into one InputError; where its text is short, the exception's type is added."""
    text = " ".join(str(error).split())
    if "custom code" in text:  # the text also says how to run it, which must not be advised
        return InputError(
            f"'{source}' needs code of its own to run, and code from elsewhere is never run here; take a model whose "
            "architecture transformers has"
        )
    return _unopenable(source, f"{type(error).__name__}: {text}"[:300] if len(text) < 40 else text[:300])


def reinitialised(folder: Path | str, seed: int) -> PreTrainedModel:
    """Make an untrained model of the architecture in a folder, with its class's initial weights, drawn from `seed`."""
    quiet_off_terminal()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    set_seed(seed)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()


def quiet_off_terminal() -> None:
    """Switch off the progress bars of transformers unless standard error is a terminal."""
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


@torch.inference_mode()
def evaluate(model: PreTrainedModel, rows: TokenRows, batch_rows: int) -> dict:
    """Mean next-token loss in nats and accuracy in [0, 1] over all positions but the first of each row.

    Returns:
        `loss`, `accuracy`, and `n_predictions`, the number of predictions averaged over.
    """
    loss, correct, n_predictions = 0.0, 0, 0
    for _, batch in rows.batches(batch_rows):
        ids = torch.from_numpy(batch).to(model.device)
        sums = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)
        loss, correct, n_predictions = loss + sums[0], correct + sums[1], n_predictions + sums[2]
    return {"loss": loss / n_predictions, "accuracy": correct / n_predictions, "n_predictions": n_predictions}


def unigram_loss(train: TokenRows, validation: TokenRows, d_vocab: int) -> float:
    """Mean loss in nats when each validation token is predicted by its frequency in the train split.

    One is added to each count. As in `evaluate`, the first id of a row (BOS) is neither counted nor predicted.
    """
    train_counts = _counts(train, d_vocab)
    log_probabilities = np.log((train_counts + 1) / (train_counts + 1).sum())
    validation_counts = _counts(validation, d_vocab)
    return float(-(validation_counts @ log_probabilities) / validation_counts.sum())


def require_vocabulary(model: PreTrainedModel, rows: Mapping[str, TokenRows], source: str) -> None:
    """Refuse a model whose embedding has no row for some id in the run's tokens.

    Raises:
        InputError: naming the model and the sizes.
    """
    d_vocab = len(model.get_input_embeddings().get_parameter("weight"))
    highest = max(int(np.asarray(corpus_rows.ids).max()) for corpus_rows in rows.values())
    if highest >= d_vocab:
        raise InputError(
            f"model '{source}' knows ids 0 to {d_vocab - 1}, but the run's tokens hold id {highest}; "
            "set tokenizer: to the tokenizer this model was trained with"
        )


def n_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _counts(rows: TokenRows, d_vocab: int) -> Int[np.ndarray, " d_vocab"]:
    """Count each id over all positions but the first of each row, a block of rows at a time."""
    counts = np.zeros(d_vocab, dtype=np.int64)
    for _, ids in rows.batches(COUNT_ROWS):
        counts += np.bincount(ids[:, 1:].ravel(), minlength=d_vocab)
    return counts
