"""Training language models: what is read in which order, and that an interrupted training ends where it would have."""

import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saelineage.errors import InputError
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.models.loading import evaluate, load_model
from saelineage.models.training import (
    Mixture,
    collate,
    last_whole_checkpoint,
    mixture_order,
    rows_to_train,
    save_model,
    train_on,
)
from saelineage.tokens import TokenRows, read_token_rows


@pytest.fixture
def rows(tiny) -> dict[str, TokenRows]:
    return read_token_rows(tiny.tokens[corpus]["train"] for corpus in ("words", "sums"))


CPU = torch.device("cpu")


@pytest.fixture
def trained(tiny, rows, training_settings, tmp_path):
    """Train model `a` on with some settings changed; returns the weights file."""

    def train(name: str, checkpoints: Path | None = None, **changes: object) -> Path:
        settings = training_settings | changes
        model = train_on(
            load_model(tiny.models["a"]), rows, settings, checkpoints or tmp_path / f"{name}.checkpoints", CPU
        )
        save_model(model, tiny.models["a"], tmp_path / name)
        return tmp_path / name / "model.safetensors"

    return train


def picks(order: np.ndarray, corpus: int) -> list[int]:
    return order[order[:, 0] == corpus, 1].tolist()


def test_each_corpus_gives_its_share_of_the_rows():
    order = mixture_order([100, 100], [0.75, 0.25], 40, seed=0)
    assert (len(picks(order, 0)), len(picks(order, 1))) == (30, 10)


def test_shares_that_do_not_divide_are_rounded_by_largest_remainder():
    # 10 rows x (0.55, 0.25, 0.2) = 5.5, 2.5, 2: one row is left over; of equal remainders the first corpus gets it.
    order = mixture_order([20, 20, 20], [0.55, 0.25, 0.2], 10, seed=0)
    assert [len(picks(order, corpus)) for corpus in range(3)] == [6, 2, 2]


def test_shares_a_hair_above_one_still_give_the_rows_asked_for():
    # The config takes shares that sum to 1 within 1e-6; of 2,000,000 rows that is 1,000,001.6 and 1,000,000.
    order = mixture_order([10, 10], [0.5000008, 0.5], 2_000_000, seed=0)
    assert len(order) == 2_000_000


def test_one_pass_reads_every_row_once():
    order = mixture_order([12, 4], [0.75, 0.25], 16, seed=5)
    assert sorted(picks(order, 0)) == list(range(12))
    assert sorted(picks(order, 1)) == list(range(4))


def test_a_corpus_too_short_for_its_share_is_repeated_in_a_new_order():
    thrice = set()
    for seed in range(5):
        counts = np.bincount(picks(mixture_order([8], [1.0], 20, seed), 0))
        # Two whole passes and half a third: four rows three times, four twice.
        assert sorted(counts) == [2, 2, 2, 2, 3, 3, 3, 3]
        thrice.add(tuple(np.flatnonzero(counts == 3)))
    assert len(thrice) > 1  # the third pass does not begin with the same rows each time


def test_a_corpus_without_a_row_in_the_mixture_is_left_out():
    assert picks(mixture_order([5, 5], [0.99, 0.01], 10, seed=0), 1) == []


def test_the_order_follows_from_the_seed():
    order = mixture_order([50, 50], [0.5, 0.5], 60, seed=4)
    assert np.array_equal(order, mixture_order([50, 50], [0.5, 0.5], 60, seed=4))
    assert not np.array_equal(order, mixture_order([50, 50], [0.5, 0.5], 60, seed=5))


def test_corpora_are_mixed_and_not_read_one_after_the_other():
    order = mixture_order([50, 50], [0.5, 0.5], 100, seed=0)
    assert 0 < order[:50, 0].sum() < 50


def test_a_mixture_hands_out_the_rows_of_its_order(rows):
    mixture = Mixture(rows, {"words": 0.5, "sums": 0.5}, 10, seed=2)
    for index, (corpus, row) in enumerate(mixture.order):
        assert np.array_equal(mixture[index], rows[("words", "sums")[corpus]].ids[row])
    assert len(mixture) == 10


def test_batches_are_their_own_labels():
    batch = collate([np.array([0, 70], dtype=np.uint16), np.array([0, 65_535], dtype=np.uint16)])
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[0, 70], [0, 65_535]]


@pytest.mark.parametrize(
    ("n_tokens", "epochs", "expected"),
    [
        (100, None, 8),  # 100 tokens are 10 rows of 10: two steps of 4
        (80, None, 8),
        (None, 1, 28),  # 20 + 10 rows: seven steps of 4
        (None, 2.5, 72),  # 75 rows: eighteen steps
    ],
)
def test_training_lasts_whole_steps(n_tokens, epochs, expected, write_tokens):
    rows = {"words": write_tokens([[0] * 10] * 20, "words"), "sums": write_tokens([[0] * 10] * 10, "sums")}
    shares = {"words": 0.5, "sums": 0.5}
    settings = {"n_tokens": n_tokens, "epochs": epochs, "batch_rows": 4, "corpora": shares}
    assert rows_to_train(settings, rows, n_ctx=10) == expected


def test_training_shorter_than_a_step_is_refused():
    settings = {"n_tokens": 39, "epochs": None, "batch_rows": 4, "corpora": {"words": 1.0}}
    with pytest.raises(InputError, match="lasts 3 rows, less than one step of batch_rows = 4"):
        rows_to_train(settings, {}, n_ctx=10)


def test_the_loss_falls(tiny, trained):
    validation = TokenRows(tiny.tokens["words"]["validation"])
    before = evaluate(load_model(tiny.models["a"]), validation, 8)["loss"]
    after = evaluate(load_model(trained("after").parent), validation, 8)["loss"]
    # ln 300 = 5.7 before; the sentences hold five animals and four places in a frame that does not change.
    assert before > 5.5
    assert after < 3.5


def test_two_trainings_are_equal_bytes_and_another_seed_is_not(trained):
    first = trained("first").read_bytes()
    assert trained("second").read_bytes() == first
    assert trained("third", seed=4).read_bytes() != first


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import saelineage.models.training as training
from saelineage.models.loading import load_model
from saelineage.tokens import read_token_rows

class Kill(training.LogToFile):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

training.LogToFile = Kill
model, tokens, settings, checkpoints = sys.argv[1], sys.argv[2], eval(sys.argv[3]), Path(sys.argv[4])
training.train_on(load_model(model), read_token_rows([tokens]), settings, checkpoints, torch.device("cpu"))
"""


def test_a_training_that_is_killed_and_started_again_ends_with_the_same_weights(
    tiny, trained, training_settings, tmp_path, caplog
):
    checkpoints = tmp_path / "checkpoints"
    arguments = [str(tiny.models["a"]), str(tiny.tokens["words"]["train"]), repr(training_settings), str(checkpoints)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-5"]

    # A second kill, in the middle of writing the next checkpoint, leaves a folder without its last file.
    shutil.copytree(checkpoints / "checkpoint-5", checkpoints / "checkpoint-10")
    (checkpoints / "checkpoint-10" / "trainer_state.json").write_text('{"best_global')
    (checkpoints / "checkpoint-10" / "optimizer.pt").unlink()

    with caplog.at_level(logging.INFO):
        resumed = trained("resumed", checkpoints)
    assert f"resuming from {checkpoints / 'checkpoint-5'}" in caplog.text
    assert resumed.read_bytes() == trained("undisturbed").read_bytes()


def test_a_training_killed_after_its_last_step_only_loads_its_weights(trained, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    first = trained("first", checkpoints).read_bytes()
    assert last_whole_checkpoint(checkpoints) == checkpoints / "checkpoint-20"
    assert trained("second", checkpoints).read_bytes() == first


def test_no_checkpoints_are_found_where_there_are_none(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) is None


def test_a_training_with_other_settings_does_not_go_on_from_these_checkpoints(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def start(name: str, learning_rate: float) -> bytes:
        job = SimpleNamespace(
            params={"model": {"learning_rate": learning_rate}},
            input=[],
            threads=1,
            wildcards=SimpleNamespace(run="demo"),
        )
        with checkpoint_folder(job, "models", "lua") as checkpoints:
            weights = trained(name, checkpoints, learning_rate=learning_rate)
            if name == "interrupted":
                raise KeyboardInterrupt
        return weights.read_bytes()

    with pytest.raises(KeyboardInterrupt):
        start("interrupted", 0.01)
    assert start("other", 0.005) == trained("fresh", learning_rate=0.005).read_bytes()


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
