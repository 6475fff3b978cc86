"""Language models: opening them from any source and measuring them on token rows."""

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
REMEDY = "fetch it again, or save it anew with save_pretrained"
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
REPEATED = re.compile(r"(n|num)_(.*_)?(layers?|blocks?|stages?|labels)(_.*)?(?<!size)(?<!dim)|(.*_)?(layers|depths?)")
"""Keys of a config.json that count what is made one by one when the config or its model is; not those that are widths,
such as shared_expert_intermediate_size."""
MOST_REPEATED = 1000
"""More than this of anything there must be at least as many tensors for."""
MODULES_PER_TENSOR = 8
MOST_MODULES = 20_000
"""More modules and parameters than this there must be tensors for; some modules have no weights of their own."""
MOST_UNSAVED = 1 << 28
"""Numbers that a model works out when it is made, such as masks and positions."""


class ModelSource(NamedTuple):
    """Where a model's files lie."""

    folder: Path
    commit: str | None
    """Commit of the hub repository they were taken from."""
    files: list[Path]
    """What was downloaded."""


def find_model(settings: Mapping, key: str) -> ModelSource:
    """Find the model that a config block names; from the hub only its config and safetensors are downloaded.

    Args:
        settings: the block, with a folder, or a repo and its revision.
        key: its place in the config, for error messages.

    Raises:
        InputError: if the hub does not have it, or not as safetensors.
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
        source: a folder, which may be a stranger's (`check_model_folder`).
        dtype: number format of the weights in memory; "auto" keeps the file's. Measuring is done in float32 by default,
            whatever the file holds.

    Raises:
        InputError: if it is no such model, lacks some of its weights, has weights that are not finite, or needs code of
            its own to run.
    """
    quiet_off_terminal()
    check_model_folder(source)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # over damaged or foreign files transformers raises almost anything
        raise _broken_off(source, error) from error
    if loaded["missing_keys"]:  # transformers would draw them at random
        raise InputError(
            f"'{source}' lacks weights of its architecture: {', '.join(sorted(loaded['missing_keys'])[:5])}; "
            "take a complete checkpoint of a causal language model"
        )
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"'{source}': weights must be finite, but {name} is not; take another checkpoint")
    return model.eval()


def check_model_folder(folder: Path | str) -> None:
    """Look into a model's folder before anything is allocated.

    transformers takes on trust what a config.json says of sizes, and follows names of other files and of kernels that
    run code. That a model is larger than its weights file is found out with a model that has shapes and no numbers.

    Raises:
        InputError: if config and weights do not fit together, the weights are no safetensors in this very folder (or
            links to such, but in the Hugging Face cache), are quantised, or do not fit into memory, or the config names
            code or weights from elsewhere.
    """
    require_inside(folder, (".json", ".safetensors"))
    if Path(folder, ADAPTER_FILE).exists():  # where PEFT is installed, transformers would open the model it names
        raise _unopenable(
            folder, f"{ADAPTER_FILE} says that it is an adapter to another model (merge_and_unload first)"
        )
    config = _checked_config(Path(folder, CONFIG_FILE), folder)
    shapes = {name: shape for path in weight_files(folder) for name, shape in tensor_shapes(path, REMEDY).items()}
    for key, number in named_numbers(config):
        if REPEATED.fullmatch(key) and number > max(MOST_REPEATED, len(shapes)):
            raise _unopenable(folder, f"{CONFIG_FILE} says {key}: {number}, but there are {len(shapes)} tensors")
    n_there = sum(math.prod(shape) for shape in shapes.values())
    n_needed = _n_numbers(folder, max(MOST_MODULES, MODULES_PER_TENSOR * len(shapes)))
    if n_needed > 2 * n_there + MOST_UNSAVED:  # twice, for what is tied in the file may not be in the model
        raise _unopenable(folder, f"{CONFIG_FILE} describes {n_needed} numbers, but the weights files hold {n_there}")


def weight_files(folder: Path | str) -> list[Path]:
    """The safetensors files of a model's folder: the one, or those that its index names.

    Raises:
        InputError: if there are none, or the index names anything but files of this folder.
    """
    if Path(folder, WEIGHTS_FILE).exists():
        return [Path(folder, WEIGHTS_FILE)]
    if not Path(folder, INDEX_FILE).exists():
        raise InputError(no_safetensors(f"'{folder}'"))
    index = read_foreign_json(Path(folder, INDEX_FILE), REMEDY).get("weight_map")
    names = list(index.values()) if isinstance(index, dict) else []
    wrong = [name for name in names if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name)]
    if wrong or not names:
        shown = f"{wrong[0]!r:.80}" if wrong else "nothing"
        raise _unopenable(folder, f"weight_map in {INDEX_FILE} must name safetensors files of this folder, not {shown}")
    return [Path(folder, name) for name in sorted(set(names))]


def no_safetensors(where: str) -> str:
    """What to say of a model that has no weights as safetensors."""
    return (
        f"{where} cannot be opened as a causal model from safetensors: it holds neither {WEIGHTS_FILE} nor "
        f"{INDEX_FILE} (pickles, as in .bin files, can hold code, and are not read); take a revision that has them, or "
        "convert it where you trust it (AutoModelForCausalLM.from_pretrained, then save_pretrained)"
    )


def _checked_config(path: Path, folder: Path | str) -> dict:
    config = read_foreign_json(path, REMEDY)
    for part in mappings(config):  # transformers may take the part that describes the text alone
        if part.get("quantization_config"):
            raise _unopenable(folder, f"{CONFIG_FILE} says that its weights are quantised (quantization_config)")
        named = part.get("transformers_weights")
        if named not in (None, WEIGHTS_FILE):  # that file would be opened, and not what is checked here
            raise _unopenable(folder, f"{CONFIG_FILE} names other weights (transformers_weights: {named!r:.80})")
        implementations = [part.get(key) for key in ("attn_implementation", "_attn_implementation")]
        foreign = next((name for name in implementations if name is not None and "/" in str(name)), None)
        if foreign is not None:
            raise _unopenable(folder, f"{CONFIG_FILE} names code from elsewhere (attn_implementation: {foreign!r:.80})")
    return config


def _n_numbers(folder: Path | str, most_modules: int) -> int:
    """Weights and buffers of the model that a config.json describes, tied ones once; none of them is allocated."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"), _at_most_modules(most_modules):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _broken_off(folder, error) from error
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


@contextmanager
def _at_most_modules(most: int) -> Iterator[None]:
    """Break off when more modules and parameters are made than there can be weights for."""
    n_made = 0

    def count(_inside: nn.Module, _name: str, _made: nn.Module | nn.Parameter | None) -> None:
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


def _broken_off(source: Path | str, error: Exception) -> InputError:
    """What transformers broke off over, with the kind of exception where its text alone would say little."""
    text = " ".join(str(error).split())
    if "custom code" in text:  # and how it could be run
        return InputError(
            f"'{source}' needs code of its own to run, and code from elsewhere is never run here; take a model whose "
            "architecture transformers has"
        )
    return _unopenable(source, f"{type(error).__name__}: {text}"[:300] if len(text) < 40 else text[:300])


def reinitialised(folder: Path | str, seed: int) -> PreTrainedModel:
    """A model of the architecture in a folder, with the weights that its class starts from, drawn from `seed`."""
    quiet_off_terminal()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    set_seed(seed)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()


def quiet_off_terminal() -> None:
    """No progress bars of transformers where nobody would see them move."""
    if not sys.stderr.isatty():
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
