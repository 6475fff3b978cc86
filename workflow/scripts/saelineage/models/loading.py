"""Opening language models from any source and measuring them on token rows."""

import hashlib
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from jaxtyping import Int
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, set_seed
from transformers.utils import logging as transformers_logging

from saelineage.errors import InputError
from saelineage.files.atomic import sha256_file
from saelineage.files.foreign import named_numbers, require_inside, tensor_shapes
from saelineage.files.hub import hub_download
from saelineage.foreign.hub import fetch_model_config
from saelineage.foreign.models import (
    ADAPTER_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    REMEDY,
    adapter_notes,
    check_config,
    named,
    read_config,
    unopenable,
    weight_files,
)
from saelineage.models.losses import LossSums, next_token_loss
from saelineage.models.predictions import predict
from saelineage.precision import AUTO, opened_dtype
from saelineage.tokens import TOKENIZER_FILES, TokenRows

logger = logging.getLogger(__name__)

COUNT_ROWS = 8_192
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
COMPUTED = re.compile(
    r"(^|\.)(attn|attention|self_attn)\.(bias|masked_bias|causal_mask)$|inv_freq$|(^|\.)position_ids$"
)
"""Names of masks and positions that earlier versions of transformers saved although every model computes them."""
OTHER_SENSES = re.compile(r"(^|[._])(vision|visual|image|audio|speech|multi_modal|multimodal|mm)([._]|$)")
"""Names of the parts of a multimodal model that work on images and sound."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats of safetensors files that hold weights as they are."""
BLOCK_WEIGHTS = 1 << 20
"""Weights that are checked at a time, because a check of an embedding takes more memory than the embedding."""
MOST_REASON = 300
"""Characters of an error of transformers that are passed on."""


class ModelSource(NamedTuple):
    """The location of a model's files."""

    folder: Path
    commit: str | None
    """Commit of the hub repository they come from; None for a local folder."""
    files: list[Path]
    """The downloaded files."""

    def facts(self) -> dict[str, object]:
        """What a manifest records of a hub repository: its commit and the digests of its files."""
        if self.commit is None:
            return {}
        return {"commit": self.commit, "files": {path.name: sha256_file(path) for path in self.files}}


def find_model(settings: Mapping, key: str, n_ctx: int | None = None) -> ModelSource:
    """Find the model that a config block names; only configs, tokenizer and safetensors are downloaded from the hub.

    Args:
        settings: the block, with a folder, or a repo and its revision.
        key: the block's place in the config, for error messages.
        n_ctx: tokens of a row; None leaves out the check of positions.

    Raises:
        InputError: if the hub does not have the model, or not as safetensors; or its config.json already shows that it
            cannot be used (`check_config`), before its weights are downloaded.
    """
    if "folder" in settings:
        return ModelSource(Path(settings["folder"]), None, [])
    described = fetch_model_config(settings, key, (GENERATION_FILE, *TOKENIZER_FILES), n_ctx)
    commit, files = described.repo.commit, described.files
    files.append(hub_download(settings["repo"], commit, described.weights, key))
    others = [path.name for path in weight_files(described.folder) if path not in files]
    files += [hub_download(settings["repo"], commit, name, key) for name in others]
    return ModelSource(described.folder, commit, files)


def open_model(folder: Path | str, device: torch.device, model_dtype: str = AUTO) -> PreTrainedModel:
    """Open a model of the run on a device, to be measured or read.

    Args:
        folder: its folder.
        device: the device to compute on.
        model_dtype: as in the config (`precision.opened_dtype`).
    """
    model = load_model(folder, partial(opened_dtype, model_dtype, device=device))
    logger.info("'%s' is opened in %s", folder, model.dtype)
    return on_device(model, device)


def load_model(
    source: Path | str, dtype: torch.dtype | Callable[[torch.dtype], torch.dtype] | str = torch.float32
) -> PreTrainedModel:
    """Open a causal language model from a folder, in evaluation mode, from safetensors only.

    Args:
        source: a folder, which need not be trusted (`check_model_folder`).
        dtype: number format of the weights in memory; "auto" is the file's (`file_dtype`), whatever the config says; a
            function chooses by that of the file.

    Raises:
        InputError: if the folder holds no such model; weights are missing, left over or not finite; or the model needs
            code of its own.
    """
    quiet_off_terminal()
    empty = check_model_folder(source)
    if not isinstance(dtype, torch.dtype):
        stored, stated = file_dtype(empty, source), getattr(empty.config, "dtype", None)
        if stated not in (None, stored):
            logger.info("'%s' holds weights in %s, not in %s as its %s says", source, stored, stated, CONFIG_FILE)
        dtype = stored if isinstance(dtype, str) else dtype(stored)
    try:
        with _without_adapter(source) as folder:
            loaded: object = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # damaged or foreign files make transformers raise almost anything
        raise refusal_of(source, error) from error
    assert isinstance(loaded, tuple)  # because of output_loading_info
    model, info = loaded
    return whole(model, info, f"'{source}'")


def open_state(
    config: PretrainedConfig, state: Mapping[str, Tensor], source: str, dtype: torch.dtype | str = torch.float32
) -> PreTrainedModel:
    """Open a model from tensors under the names that files have, as `load_model` opens one from a file.

    Names in files are not always those in memory: transformers renames and joins tensors when it opens a model.

    Args:
        config: of the model.
        state: all its tensors.
        source: the model, for error messages.
        dtype: number format in memory; "auto" is the config's.

    Raises:
        InputError: if tensors are missing, left over, of other shapes or not finite.
    """
    quiet_off_terminal()
    empty = empty_model(config, max(MOST_MODULES, MODULES_PER_TENSOR * len(state)))
    loaded: object = type(empty).from_pretrained(
        None,
        config=empty.config,
        state_dict=dict(state),
        dtype=dtype,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    assert isinstance(loaded, tuple)
    model, info = loaded
    return whole(model, info, source)


def check_model_folder(folder: Path | str) -> PreTrainedModel:
    """Check a model's folder before anything is allocated.

    transformers trusts the sizes in a config.json, and follows names of other files and of kernels that run code. A
    model on the meta device, which has shapes and no numbers, shows whether it is larger than its weights files.

    Returns:
        The model on the meta device.

    Raises:
        InputError: if config and weights do not fit together; the weights are not safetensors in this folder, are links
            (other than the Hugging Face cache's own), are quantised, or do not fit into memory; the model is not
            causal; or the config names code or weights from elsewhere.
    """
    require_inside(folder, (".json", ".safetensors"))
    files, config = weight_files(folder), read_config(folder)
    check_config(config, f"'{folder}'")
    for note in adapter_notes(folder):
        logger.warning("%s", note)
    shapes = {name: shape for path in files for name, shape in tensor_shapes(path, REMEDY).items()}
    for key, number in named_numbers(config):
        if REPEATED.fullmatch(key) and number > max(MOST_REPEATED, len(shapes)):
            raise unopenable(folder, f"{CONFIG_FILE} says {key}: {number}, but there are {len(shapes)} tensors")
    n_held = sum(math.prod(shape) for shape in shapes.values())
    try:
        full = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        empty = empty_model(full, max(MOST_MODULES, MODULES_PER_TENSOR * len(shapes)))
    except Exception as error:
        raise refusal_of(folder, error) from error
    n_needed = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    if n_needed > 2 * n_held + MOST_UNSAVED:  # twice, because weights tied in the file may be untied in the model
        raise unopenable(folder, f"{CONFIG_FILE} describes {n_needed} numbers, but the weights files hold {n_held}")
    return empty


def file_dtype(empty: PreTrainedModel, folder: Path | str) -> torch.dtype:
    """The number format that holds every weight of a folder's files without rounding.

    Args:
        empty: the model, whose class says which tensors of old files it ignores.
        folder: its folder.

    Raises:
        InputError: if weights are in a format of quantised models.
    """
    formats: dict[str, str] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="np") as file:
            formats |= {name: file.get_slice(name).get_dtype() for name in file.offset_keys()}
    ignored = [re.compile(pattern) for pattern in empty._keys_to_ignore_on_load_unexpected or ()]
    weights = [name for name in _without_computed(empty, formats) if not any(each.search(name) for each in ignored)]
    used = {name: formats[name] for name in weights}
    parameters = {name for name, _ in empty.named_parameters()}
    if rounded := [
        name
        for name, kind in used.items()
        if kind not in FLOATS and (name in parameters or kind.startswith(("F4", "F6", "F8")))
    ]:
        raise unopenable(
            folder,
            f"tensors are quantised: {named(rounded)} ({used[rounded[0]]})",
            "take the model that it was made from, or dequantise it and save_pretrained the result",
        )
    floats = {FLOATS[kind] for kind in used.values() if kind in FLOATS}
    return reduce(torch.promote_types, sorted(floats, key=str)) if floats else torch.float32


def empty_model(config: PretrainedConfig, most_modules: int) -> PreTrainedModel:
    """Make the model that a config describes on the meta device, which has shapes and no numbers.

    Raises:
        ValueError: if it has more than `most_modules` modules and parameters.
    """
    with torch.device("meta"), at_most_modules(most_modules):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def whole(model: PreTrainedModel, info: Mapping, source: str) -> PreTrainedModel:
    """Return an opened model in evaluation mode if its tensors were the right ones.

    Args:
        model: the model.
        info: names of the tensors that did not fit, from transformers.
        source: the model, for error messages.

    Raises:
        InputError: if tensors are missing, left over, of other shapes or not finite.
    """
    left_over, problems = _without_other_senses(model, _without_computed(model, info["unexpected_keys"]), source), []
    if missing := info["missing_keys"]:  # transformers would draw them at random
        problems.append(f"lacks weights of its architecture ({len(missing)}): {named(missing)}")
    if left_over:  # transformers would drop them
        problems.append(f"holds tensors that its architecture does not have ({len(left_over)}): {named(left_over)}")
    if mismatched := info["mismatched_keys"]:
        shapes = [f"{name} has {tuple(held)}, not {tuple(needed)}" for name, held, needed in mismatched]
        problems.append(f"holds tensors of other shapes ({len(shapes)}): {named(shapes)}")
    if problems:
        raise InputError(
            f"{source} {', and '.join(problems)}; use a complete checkpoint of a causal language model with the "
            f"{CONFIG_FILE} that belongs to it, and merge adapters into it (merge_and_unload)"
        )
    for name, weight in model.named_parameters():
        if not all(bool(torch.isfinite(part).all()) for part in weight.detach().flatten().split(BLOCK_WEIGHTS)):
            raise InputError(f"{source}: weights must be finite, but {name} is not; use another checkpoint")
    _settle_ties(model, source)
    return model.eval()


def _without_computed(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Leave out the names of tensors that the model computes, and old files hold nevertheless: masks and positions."""
    computed = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    return [name for name in names if name not in computed and not COMPUTED.search(name)]


def _without_other_senses(model: PreTrainedModel, names: list[str], source: str) -> list[str]:
    """Leave out tensors for images and sound, with a warning, if the model is the text part of a multimodal one."""
    if any(OTHER_SENSES.search(name) for name, _ in model.named_modules()):
        return names
    others = [name for name in names if OTHER_SENSES.search(name)]
    if others:
        logger.warning(
            "%s holds tensors for images or sound, which its causal language model does not use (%d): %s",
            source,
            len(others),
            named(others),
        )
    return [name for name in names if name not in others]


def _settle_ties(model: PreTrainedModel, source: str) -> None:
    """Make the config say that input and output embeddings are not tied where the files hold two different ones."""
    if not model._tied_weights_keys or not getattr(model.config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.get_parameter("weight") is embedding.get_parameter("weight"):
        return
    logger.warning(
        "%s says tie_word_embeddings in its %s, but holds an output embedding of its own, which is taken",
        source,
        CONFIG_FILE,
    )
    untie(model.config)


def untie(config: PretrainedConfig) -> None:
    """Make a config, and its text part, say that input and output embeddings are not tied."""
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = False


@contextmanager
def _without_adapter(folder: Path | str) -> Iterator[Path | str]:
    """Yield a folder without the adapter beside full weights, which transformers applies where PEFT is installed."""
    if not Path(folder, ADAPTER_FILE).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as links:
        for path in Path(folder).iterdir():
            if path.name != ADAPTER_FILE:
                os.symlink(path.resolve(), Path(links, path.name))
        yield links


@contextmanager
def at_most_modules(most: int) -> Iterator[None]:
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


def refusal_of(source: Path | str, error: Exception) -> InputError:
    """Turn an error of transformers into one InputError; where its text is short, the exception's type is added."""
    text = " ".join(str(error).split())
    if "custom code" in text:  # the text also says how to run it, which must not be advised
        return InputError(
            f"'{source}' needs code of its own to run, and code from elsewhere is never run here; take a model whose "
            "architecture transformers has"
        )
    if "Unrecognized configuration class" in text:  # the text goes on with the names of all classes
        return unopenable(
            source,
            "transformers has no causal language model of its architecture",
            "take a model that predicts the next token",
        )
    if "does not recognize this architecture" in text or "Unrecognized model in" in text:
        kind = read_config(source).get("model_type")
        unknown = f"transformers {transformers.__version__} does not know model_type {kind!r:.80} of its {CONFIG_FILE}"
        return unopenable(
            source,
            f"its {CONFIG_FILE} has no model_type" if kind is None else unknown,
            "correct it, or take a model whose architecture transformers has",
        )
    return unopenable(source, _shortened(text if len(text) >= 40 else f"{type(error).__name__}: {text}"))


def _shortened(text: str) -> str:
    """The beginning of a long text, up to the end of a word."""
    return text if len(text) <= MOST_REASON else f"{text[:MOST_REASON].rpartition(' ')[0] or text[:MOST_REASON]} ..."


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model. (transformers wraps `to` without its types, so this is the method of torch.)"""
    return nn.Module.to(model, device)


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

    What fills the row of a conversation up is not counted.

    Returns:
        `loss`, `accuracy`, and `n_predictions`, the number of predictions averaged over.
    """
    sums = LossSums()
    for numbers, batch in rows.batches(batch_rows):
        ids = torch.from_numpy(batch).to(model.device)
        predicted = torch.from_numpy(rows.predicted(numbers)).to(model.device)
        sums = sums.plus(next_token_loss(predict(model, ids), ids, predicted))
    return sums.means()


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


def weights_sha256(model: PreTrainedModel) -> str:
    """Digest of a model's weights as float32, independent of the number format and of ties in its file.

    Equal digests of two models of one architecture mean that nothing distinguishes them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()


def n_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _counts(rows: TokenRows, d_vocab: int) -> Int[np.ndarray, " d_vocab"]:
    """Count each id over all positions but the first of each row, a block of rows at a time."""
    counts = np.zeros(d_vocab, dtype=np.int64)
    for numbers, ids in rows.batches(COUNT_ROWS):
        counts += np.bincount(ids[:, 1:][rows.predicted(numbers)[:, 1:]], minlength=d_vocab)
    return counts
