"""Opening language models and measuring them."""

import json
import shutil
from math import log

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelineage.errors import InputError
from saelineage.models.loading import (
    evaluate,
    load_model,
    n_parameters,
    reinitialised,
    require_vocabulary,
    unigram_loss,
)
from saelineage.models.losses import next_token_loss
from saelineage.models.training import new_mistral
from saelineage.tokens import TokenRows


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny.models["a"], tmp_path / "copy")


@pytest.fixture
def rows(tiny):
    return TokenRows(tiny.tokens["words"]["validation"])


def test_next_token_loss_of_two_predictions_by_hand():
    # Softmax of (0, ln 3) is (1/4, 3/4). Id 1 after 0 has 3/4, correct. Id 0 after 1 has 1/4, wrong. The last logits
    # predict nothing.
    logits = torch.tensor([[[0.0, log(3)], [0.0, log(3)], [50.0, 0.0]]])
    loss, correct, n_predictions = next_token_loss(logits, torch.tensor([[0, 1, 0]]))
    assert loss == pytest.approx(log(4 / 3) + log(4))
    assert (correct, n_predictions) == (1, 2)


def test_evaluate_equals_a_sum_over_single_predictions(model, rows):
    losses, right = [], []
    for ids in np.asarray(rows.ids).astype(int):
        with torch.no_grad():
            log_p = model(input_ids=torch.from_numpy(ids[None])).logits[0].double().log_softmax(-1)
        for pos in range(1, len(ids)):
            losses.append(-float(log_p[pos - 1, ids[pos]]))
            right.append(int(log_p[pos - 1].argmax()) == ids[pos])
    for batch_rows in (1, 7, 1000):
        measured = evaluate(model, rows, batch_rows)
        assert measured["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
        assert measured["accuracy"] == np.mean(right)
        assert measured["n_predictions"] == len(rows.ids) * (rows.info["n_ctx"] - 1)


def test_unigram_loss_by_hand(write_tokens):
    # Ids after BOS: 2 three times, 3 twice, 4 once. With 1 added, the 5 ids have counts 1, 1, 4, 3, 2 of 11.
    train = write_tokens([[0, 2, 2, 3], [0, 4, 2, 3]], "train")
    # Predicted: 2, 4, 1, 2, 2, 3
    validation = write_tokens([[0, 2, 4, 1], [0, 2, 2, 3]], "validation")
    expected = -(3 * log(4 / 11) + log(2 / 11) + log(1 / 11) + log(3 / 11)) / 6
    assert unigram_loss(train, validation, d_vocab=5) == pytest.approx(expected)


def test_ids_beyond_the_embedding_are_refused(model, tiny, write_tokens):
    require_vocabulary(model, {"words": write_tokens([[0, tiny.d_vocab - 1]])}, "mine")
    too_high = {"words": write_tokens([[0, tiny.d_vocab]], "high")}
    with pytest.raises(InputError, match=r"'mine' .* id 300; set tokenizer:"):
        require_vocabulary(model, too_high, "mine")


def test_models_are_measured_in_float32_unless_asked_for_their_own_format(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert load_model(folder).lm_head.weight.dtype == torch.float32
    assert load_model(folder, dtype="auto").lm_head.weight.dtype == torch.float16


def test_loaded_models_are_in_evaluation_mode_with_the_file_s_weights(tiny):
    model = load_model(tiny.models["a"])
    stored = load_file(tiny.models["a"] / "model.safetensors")
    assert not model.training
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_weights_as_pickles_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"copy' .*save_pretrained"):
        load_model(folder)


def test_missing_weights_are_refused_and_not_drawn_at_random(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"copy' .*model\.layers\.1\.mlp\.up_proj\.weight; use a complete checkpoint"):
        load_model(folder)


def test_damaged_or_unfit_files_are_refused(folder):
    whole, config = ((folder / name).read_bytes() for name in ("model.safetensors", "config.json"))
    weights = load_file(folder / "model.safetensors")

    def refused() -> None:
        with pytest.raises(InputError, match=rf"{folder}.*; fetch it again"):
            load_model(folder)
        (folder / "model.safetensors").write_bytes(whole)
        (folder / "config.json").write_bytes(config)

    (folder / "model.safetensors").write_bytes(whole[:1000])
    refused()
    save_file(weights | {"lm_head.weight": torch.zeros(7, 7)}, folder / "model.safetensors", {"format": "pt"})
    refused()
    for text in ("{}", '{"model_type": "no_such_architecture"}'):
        (folder / "config.json").write_text(text)
        refused()
    load_model(folder)


def test_tied_embeddings_are_counted_once(tiny):
    counts = [
        n_parameters(
            new_mistral(tiny.settings | {"seed": 0, "tie_embeddings": tied}, tiny.d_vocab, 8, {"bos": 0, "eos": 1})
        )
        for tied in (False, True)
    ]
    assert counts[0] - counts[1] == tiny.d_vocab * tiny.settings["d_model"]


def test_a_re_initialised_model_has_the_shapes_and_none_of_the_weights(tiny, model, rows):
    null = reinitialised(tiny.models["a"], seed=1)
    assert {name: tensor.shape for name, tensor in null.named_parameters()} == {
        name: tensor.shape for name, tensor in model.named_parameters()
    }
    assert evaluate(null, rows, 8)["loss"] == pytest.approx(log(tiny.d_vocab), abs=0.3)
    for name, tensor in null.named_parameters():
        if tensor.ndim == 2:
            assert not torch.allclose(tensor, model.get_parameter(name), atol=1e-3)
    again = reinitialised(tiny.models["a"], seed=1)
    assert all(torch.equal(a, b) for a, b in zip(null.parameters(), again.parameters(), strict=True))
