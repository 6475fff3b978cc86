"""Training language models with the Hugging Face Trainer: pretraining, fine-tuning, resuming."""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_files, write_text
from saelineage.foreign.models import CONFIG_FILE
from saelineage.models.loading import quiet_off_terminal
from saelineage.models.losses import token_losses
from saelineage.models.optimizers import MasterAdamW
from saelineage.models.predictions import BLOCK_LOGITS, predict
from saelineage.precision import native_bf16, widest
from saelineage.tokens import TokenRows

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 20
ROUNDED = "bfloat16"
"""The value of `precision` with which weights are in bfloat16."""
NOT_PREDICTED = -100
"""The label that losses leave out."""
WHOLE = "1000TB"  # larger than any model, so that its weights are one safetensors file


class Mixture(torch.utils.data.Dataset):
    """Token rows of several corpora in one fixed, shuffled order.

    Each corpus contributes its share of the rows. A corpus too short for its share is repeated, in a new order each
    time.
    """

    def __init__(self, rows: Mapping[str, TokenRows], shares: Mapping[str, float], n_rows: int, seed: int):
        """Draw `n_rows` rows, `shares[corpus]` of them from `rows[corpus]`."""
        self.rows = [rows[corpus] for corpus in shares]
        self.order = mixture_order([len(of.ids) for of in self.rows], list(shares.values()), n_rows, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of a row; those that are not to be predicted as -1 - id, which `collate` undoes."""
        corpus, row = self.order[index]
        rows = self.rows[corpus]
        if rows.classes is None:
            return rows.ids[row]
        ids = rows.ids[row].astype(np.int64)
        return np.where(rows.predicted(range(row, row + 1))[0], ids, -1 - ids)


def mixture_order(lengths: list[int], shares: list[float], n_rows: int, seed: int) -> Int[np.ndarray, "row 2"]:
    """Draw the pairs (corpus, row) of a mixture, in training order.

    Each corpus is passed over, each time in a new order, until its share is full. Then all corpora are shuffled
    together.
    """
    random = np.random.default_rng(seed)
    picks = []
    for corpus, (length, n_picks) in enumerate(zip(lengths, _apportion(shares, n_rows), strict=True)):
        passes = [random.permutation(length) for _ in range(-(-n_picks // length))]
        rows = np.concatenate([*passes, np.empty(0, dtype=np.int64)])[:n_picks]
        picks.append(np.stack([np.full(n_picks, corpus), rows], axis=1))
    order = np.concatenate(picks)
    return order[random.permutation(len(order))]


def rows_to_train(settings: Mapping, rows: Mapping[str, TokenRows], n_ctx: int) -> int:
    """Number of rows to train on, from `n_tokens` or `epochs`, rounded down to whole optimizer steps.

    Raises:
        InputError: if it is less than one step.
    """
    if settings["n_tokens"] is not None:
        n_rows = settings["n_tokens"] // n_ctx
    else:
        n_rows = round(settings["epochs"] * sum(len(rows[corpus].ids) for corpus in settings["corpora"]))
    n_steps = n_rows // settings["batch_rows"]
    if n_steps == 0:
        raise InputError(
            f"training must last at least one step of batch_rows = {settings['batch_rows']}, but n_tokens or epochs "
            f"gives {n_rows} rows; raise it"
        )
    return n_steps * settings["batch_rows"]


def new_mistral(settings: Mapping, d_vocab: int, n_ctx: int, special: Mapping[str, int]) -> MistralForCausalLM:
    """Make a Mistral model whose random weights follow from `settings['seed']`."""
    set_seed(settings["seed"])
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=d_vocab,
            hidden_size=settings["d_model"],
            intermediate_size=settings["d_mlp"],
            num_hidden_layers=settings["n_layers"],
            num_attention_heads=settings["n_heads"],
            num_key_value_heads=settings["n_kv_heads"],
            max_position_embeddings=n_ctx,
            rms_norm_eps=settings["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": settings["rope_theta"]},
            tie_word_embeddings=settings["tie_embeddings"],
            sliding_window=None,
            bos_token_id=special["bos"],
            eos_token_id=special["eos"],
            use_cache=True,
        )
    )


def weights_dtype(settings: Mapping) -> torch.dtype:
    """The number format of the weights that a `training` block of the config trains."""
    return torch.bfloat16 if settings["precision"] == ROUNDED else torch.float32


def train(
    model: torch.nn.Module,
    mixture: Mixture,
    settings: Mapping,
    checkpoints: Path,
    device: torch.device,
    callbacks: Sequence[TrainerCallback] = (),
) -> torch.nn.Module:
    """Train a model on a mixture once, in its order; an interrupted training resumes from its last checkpoint.

    Args:
        model: a language model, or one of peft's, of which the adapter alone is trained; changed in place.
        mixture: the rows.
        settings: the `training` block of the config.
        checkpoints: folder for the Trainer's checkpoints, outside the job's outputs.
        device: device to train on. The Trainer uses every visible GPU, so a CUDA device must be the only one visible
            (`jobs.devices.pick_device`).
        callbacks: what else is done at its steps.
    """
    n_steps = len(mixture) // settings["batch_rows"]
    is_rounded = settings["precision"] == ROUNDED
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=n_steps,
        per_device_train_batch_size=settings["batch_rows"] // settings["accumulate"],
        gradient_accumulation_steps=settings["accumulate"],
        activation_checkpointing=settings["gradient_checkpointing"],
        train_sampling_strategy="sequential",  # the mixture is already in its order
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["scheduler"],
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["adam_betas"][0],
        adam_beta2=settings["adam_betas"][1],
        max_grad_norm=settings["max_grad_norm"],
        seed=settings["seed"],
        bf16=not is_rounded and (native_bf16(device) if settings["bf16"] == "auto" else settings["bf16"]),
        use_cpu=device.type == "cpu",
        save_strategy="steps",
        save_steps=settings["save_steps"],
        save_total_limit=2,
        logging_steps=LOG_EVERY_STEPS,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
    )
    quiet_off_terminal()
    adamw = {"lr": arguments.learning_rate, "betas": tuple(settings["adam_betas"]), "eps": arguments.adam_epsilon}
    trainer = BlockTrainer(
        model=model,
        args=arguments,
        train_dataset=mixture,
        data_collator=collate,
        callbacks=[LogToFile(), *callbacks],
        optimizer_cls_and_kwargs=(MasterAdamW, adamw) if is_rounded else None,
    )
    trainer.remove_callback(PrinterCallback)
    last = last_whole_checkpoint(checkpoints)
    if last:
        logger.info("resuming from %s", last)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return model.eval()


def last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """Find the latest complete checkpoint; None if there is none.

    A kill can leave an incomplete one. The Trainer writes `trainer_state.json` last.
    """
    folders = [path for path in checkpoints.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError):
            logger.warning("%s is incomplete and is skipped", path)
        else:
            return path
    return None


def train_on(
    model: torch.nn.Module,
    rows: Mapping[str, TokenRows],
    settings: Mapping,
    checkpoints: Path,
    device: torch.device,
    callbacks: Sequence[TrainerCallback] = (),
) -> torch.nn.Module:
    """Train a model on token rows according to its config block (see `Mixture` and `train`)."""
    n_ctx = next(iter(rows.values())).info["n_ctx"]
    n_rows = rows_to_train(settings, rows, n_ctx)
    mixture = Mixture(rows, settings["corpora"], n_rows, settings["seed"])
    return train(model, mixture, settings, checkpoints, device, callbacks)


def save_model(
    model: PreTrainedModel, tokenizer_folder: Path, folder: Path, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a Hugging Face folder: the model as one safetensors file, and the tokenizer of another folder.

    Each file gets its final name only when it is whole.

    Args:
        model: the model.
        tokenizer_folder: the folder with the tokenizer.
        folder: the folder to write.
        state: what to write instead of the model's own state; config.json then names the widest of its formats.
    """
    quiet_off_terminal()
    with atomic_files(folder) as temporary:
        model.save_pretrained(temporary, max_shard_size=WHOLE, state_dict=state)
        if state is not None:
            _set_format(temporary / CONFIG_FILE, widest(state.values()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        write_text(folder / name, (tokenizer_folder / name).read_text(encoding="utf-8"))


def _set_format(path: Path, dtype: torch.dtype) -> None:
    """Name another number format in a config.json of transformers."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class BlockTrainer(Trainer):
    """A Trainer that makes the logits of a large batch a block of positions at a time."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The summed loss of a batch, divided by `num_items_in_batch`, by default the number of its predictions.

        A batch whose logits are few goes the usual way, with the same bytes as without this class.
        """
        given: Any = model  # of transformers, or of peft around one
        base = given.get_base_model() if hasattr(given, "get_base_model") else given
        config = base.config.get_text_config()
        n_logits = inputs["input_ids"].numel() * config.vocab_size
        if n_logits <= BLOCK_LOGITS or getattr(config, "output_router_logits", False):
            usual: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return usual
        ids, counts = inputs["input_ids"], inputs["labels"] != NOT_PREDICTED
        with self.accelerator.autocast():
            losses = token_losses(predict(base, ids), ids, counts)
        return (losses.sum() / (num_items_in_batch or counts[:, 1:].sum())).float()


class LogToFile(TrainerCallback):
    """Sends the Trainer's figures to the job's log, because its own printer writes to the console."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Write one line per report.

        Raises:
            InputError: if the loss is no longer finite.
        """
        loss = (logs or {}).get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            raise InputError(
                f"the loss must stay finite, but is {loss} at step {state.global_step} of {state.max_steps}; lower the "
                "learning_rate, or look for rows in which nothing is predicted"
            )
        figures = ", ".join(f"{name} {value}" for name, value in sorted((logs or {}).items()))
        logger.info("step %d of %d: %s", state.global_step, state.max_steps, figures)


def collate(rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Make a batch for a causal model: the ids are also the labels, because the model shifts them itself.

    A negative id, -1 - id, is read but not predicted.
    """
    ids = torch.from_numpy(np.stack(rows).astype(np.int64))
    return {"input_ids": torch.where(ids < 0, -1 - ids, ids), "labels": torch.where(ids < 0, NOT_PREDICTED, ids)}


def _apportion(shares: list[float], total: int) -> list[int]:
    """Split `total` by shares into whole numbers that sum to it (largest remainder method)."""
    exact = [share * total / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
