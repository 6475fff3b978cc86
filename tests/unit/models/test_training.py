"""Training language models: the order of rows, and trainings that are interrupted and resumed."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saelineage.errors import InputError
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.models import training
from saelineage.models.loading import evaluate, load_model
from saelineage.models.training import (
    LogToFile,
    Mixture,
    collate,
    last_whole_checkpoint,
    mixture_order,
    rows_to_train,
    save_model,
    train_on,
)
from saelineage.tokens import TokenRows, read_token_rows

TRAINING = {
    "corpora": {"words": 1.0},
    "n_tokens": 20 * 4 * 16,
    "epochs": None,
    "batch_rows": 4,
    "accumulate": 1,
    "gradient_checkpointing": False,
    "precision": "float32",
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "scheduler": "cosine",
    "weight_decay": 0.1,
    "adam_betas": [0.9, 0.999],
    "max_grad_norm": 1.0,
    "seed": 3,
    "save_steps": 5,
    "bf16": False,
}
"""20 steps of 4 rows of 16 tokens."""
SHORT = TRAINING | {"n_tokens": 5 * 4 * 16}


def training_rows(tiny) -> dict[str, TokenRows]:
    return read_token_rows({corpus: tiny.tokens[corpus]["train"] for corpus in ("words", "sums")})


def train(tiny, settings: dict, folder: Path, checkpoints: Path) -> bytes:
    """Continue the training of model `a`; returns the bytes of its weights file."""
    model = train_on(load_model(tiny.models["a"]), training_rows(tiny), settings, checkpoints, torch.device("cpu"))
    save_model(model, tiny.models["a"], folder)
    return (folder / "model.safetensors").read_bytes()


def picks(order: np.ndarray, corpus: int) -> list[int]:
    return order[order[:, 0] == corpus, 1].tolist()


def test_shares_that_do_not_divide_are_rounded_by_largest_remainder():
    # 10 rows x (0.55, 0.25, 0.2) = 5.5, 2.5, 2: one row is left over; of equal remainders the first corpus gets it.
    order = mixture_order([20, 20, 20], [0.55, 0.25, 0.2], 10, seed=0)
    assert [len(picks(order, corpus)) for corpus in range(3)] == [6, 2, 2]
    # Shares that do not sum to 1 still give the number of rows: 11 x (0.6, 0.5) / 1.1 = 6, 5.
    order = mixture_order([20, 20], [0.6, 0.5], 11, seed=0)
    assert [len(picks(order, corpus)) for corpus in range(2)] == [6, 5]
    # A share below one row may give none.
    assert picks(mixture_order([5, 5], [0.99, 0.01], 10, seed=0), 1) == []


def test_one_pass_reads_every_row_once():
    order = mixture_order([12, 4], [0.75, 0.25], 16, seed=5)
    assert sorted(picks(order, 0)) == list(range(12))
    assert sorted(picks(order, 1)) == list(range(4))
    assert 0 < order[:8, 0].sum() < 4  # corpora are mixed, not read one after the other


def test_a_corpus_too_short_for_its_share_is_repeated_in_a_new_order():
    thrice = set()
    for seed in range(5):
        counts = np.bincount(picks(mixture_order([8], [1.0], 20, seed), 0))
        # Two whole passes and half a third: four rows three times, four twice.
        assert sorted(counts) == [2, 2, 2, 2, 3, 3, 3, 3]
        thrice.add(tuple(np.flatnonzero(counts == 3)))
    assert len(thrice) > 1  # the third pass does not begin with the same rows each time


def test_the_order_follows_from_the_seed():
    order = mixture_order([50, 50], [0.5, 0.5], 60, seed=4)
    assert np.array_equal(order, mixture_order([50, 50], [0.5, 0.5], 60, seed=4))
    assert not np.array_equal(order, mixture_order([50, 50], [0.5, 0.5], 60, seed=5))


def test_a_mixture_hands_out_the_rows_of_its_order(tiny):
    rows = training_rows(tiny)
    mixture = Mixture(rows, {"words": 0.5, "sums": 0.5}, 10, seed=2)
    for index, (corpus, row) in enumerate(mixture.order):
        assert np.array_equal(mixture[index], rows[("words", "sums")[corpus]].ids[row])
    assert len(mixture) == 10


def test_batches_are_their_own_labels():
    batch = collate([np.array([0, 70], dtype=np.uint16), np.array([0, 65_535], dtype=np.uint16)])
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[0, 70], [0, 65_535]]


def test_training_lasts_whole_steps(write_tokens):
    rows = {"words": write_tokens([[0] * 10] * 20, "words"), "sums": write_tokens([[0] * 10] * 10, "sums")}
    settings = {"batch_rows": 4, "corpora": {"words": 0.5, "sums": 0.5}}
    for n_tokens, epochs, n_rows in [
        (100, None, 8),  # 100 tokens are 10 rows of 10: two steps of 4
        (80, None, 8),
        (None, 1, 28),  # 20 + 10 rows: seven steps of 4
        (None, 2.5, 72),  # 75 rows: eighteen steps
    ]:
        assert rows_to_train(settings | {"n_tokens": n_tokens, "epochs": epochs}, rows, n_ctx=10) == n_rows


def test_training_shorter_than_a_step_is_refused():
    settings = {"n_tokens": 39, "epochs": None, "batch_rows": 4, "corpora": {"words": 1.0}}
    with pytest.raises(InputError, match=r"batch_rows = 4, but .* 3 rows; raise it"):
        rows_to_train(settings, {}, n_ctx=10)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    """The folder of an undisturbed training of 20 steps, with its checkpoints at 15 and 20."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(tiny, TRAINING, folder, folder / "checkpoints")
    return folder


def test_the_loss_falls(tiny, undisturbed):
    validation = TokenRows(tiny.tokens["words"]["validation"])
    # ln 300 = 5.7 before; the sentences hold five animals and four places in a frame that does not change.
    assert evaluate(load_model(tiny.models["a"]), validation, 8)["loss"] > 5.5
    assert evaluate(load_model(undisturbed), validation, 8)["loss"] < 3.5


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory) -> bytes:
    """The weights of an undisturbed training of 5 steps."""
    folder = tmp_path_factory.mktemp("short")
    return train(tiny, SHORT, folder, folder / "checkpoints")


def test_two_trainings_are_equal_bytes_and_another_seed_is_not(tiny, short, tmp_path):
    assert train(tiny, SHORT, tmp_path / "second", tmp_path / "second.checkpoints") == short
    assert train(tiny, SHORT | {"seed": 4}, tmp_path / "third", tmp_path / "third.checkpoints") != short


class Killed(BaseException):
    """Ends a training in the middle of a step."""


class Kill(LogToFile):
    """Kills the training after 8 steps."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 8:
            raise Killed


def test_a_training_that_is_killed_and_started_again_ends_with_the_same_weights(
    tiny, undisturbed, tmp_path, caplog, monkeypatch
):
    checkpoints = tmp_path / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(training, "LogToFile", Kill)
        with pytest.raises(Killed):
            train(tiny, TRAINING, tmp_path / "killed", checkpoints)
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-5"]

    # A second kill, in the middle of writing the next checkpoint, leaves a folder without its last file.
    shutil.copytree(checkpoints / "checkpoint-5", checkpoints / "checkpoint-10")
    (checkpoints / "checkpoint-10" / "trainer_state.json").write_text('{"best_global')
    (checkpoints / "checkpoint-10" / "optimizer.pt").unlink()

    with caplog.at_level(logging.INFO):
        weights = train(tiny, TRAINING, tmp_path / "resumed", checkpoints)
    assert f"resuming from {checkpoints / 'checkpoint-5'}" in caplog.text
    assert weights == (undisturbed / "model.safetensors").read_bytes()


def test_a_training_killed_after_its_last_step_only_loads_its_weights(tiny, undisturbed, tmp_path):
    checkpoints = shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints")
    assert last_whole_checkpoint(checkpoints) == checkpoints / "checkpoint-20"
    assert train(tiny, TRAINING, tmp_path / "again", checkpoints) == (undisturbed / "model.safetensors").read_bytes()


def test_no_checkpoints_are_found_where_there_are_none(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) is None


def test_a_training_with_other_settings_does_not_resume_from_these_checkpoints(tiny, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def start(name: str, learning_rate: float) -> bytes:
        job = SimpleNamespace(
            params={"model": {"learning_rate": learning_rate}},
            input=[],
            threads=1,
            log=["results/demo/logs/models/lua.log"],
        )
        with checkpoint_folder(job) as checkpoints:
            weights = train(tiny, SHORT | {"learning_rate": learning_rate}, tmp_path / name, checkpoints)
            if name == "interrupted":
                raise KeyboardInterrupt
        return weights

    with pytest.raises(KeyboardInterrupt):
        start("interrupted", 0.005)
    assert start("restarted", SHORT["learning_rate"]) == short


def test_a_saved_folder_is_whole_and_loads_with_transformers(tiny, model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_model(model, tiny.tokenizer, tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not [name for name in names if name.startswith(".")]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.decode(tokenizer("The owl sat.").input_ids, skip_special_tokens=True) == "The owl sat."


def trained(tiny, settings: dict, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights of model `a` after a training."""
    model = load_model(tiny.models["a"], dtype)
    return train_on(model, training_rows(tiny), settings, folder, torch.device("cpu")).state_dict()


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def test_rows_read_in_two_parts_and_checkpointed_blocks_train_as_one_batch_does(tiny, tmp_path):
    alone = trained(tiny, SHORT, tmp_path / "alone")
    for name, change in {"parts": {"accumulate": 2}, "checkpointed": {"gradient_checkpointing": True}}.items():
        other = trained(tiny, SHORT | change, tmp_path / name)
        assert largest_difference(alone, other) < 1e-5
        assert largest_difference(other, load_model(tiny.models["a"]).state_dict()) > 1e-3


def test_logits_in_blocks_train_as_all_at_once_do(tiny, tmp_path, monkeypatch):
    alone = trained(tiny, SHORT | {"accumulate": 2}, tmp_path / "alone")
    monkeypatch.setattr(training, "BLOCK_LOGITS", 1000)
    monkeypatch.setattr("saelineage.models.predictions.BLOCK_LOGITS", 1000)  # 3 positions of 300 logits
    in_blocks = trained(tiny, SHORT | {"accumulate": 2}, tmp_path / "blocks")
    assert largest_difference(alone, in_blocks) < 1e-5


def test_a_training_in_bfloat16_follows_that_in_float32_and_resumes_to_equal_bytes(tiny, tmp_path, monkeypatch):
    settings = TRAINING | {"precision": "bfloat16"}
    rounded = trained(tiny, settings, tmp_path / "rounded", torch.bfloat16)
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}
    full = trained(tiny, TRAINING, tmp_path / "full")
    moved = largest_difference(full, load_model(tiny.models["a"]).state_dict())
    assert largest_difference(rounded, full) < 0.5 * moved
    killed = training.LogToFile.on_log

    def kill(self, args, state, control, logs=None, **kwargs):
        if state.global_step >= 11:
            raise KeyboardInterrupt
        killed(self, args, state, control, logs, **kwargs)

    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 11)
    monkeypatch.setattr(training.LogToFile, "on_log", kill)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny, settings, tmp_path / "again", torch.bfloat16)
    monkeypatch.undo()
    assert last_whole_checkpoint(tmp_path / "again").name == "checkpoint-10"
    again = trained(tiny, settings, tmp_path / "again", torch.bfloat16)
    assert all(torch.equal(again[name], rounded[name]) for name in rounded)
