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
from saelineage.models.predictions import Predictions
from saelineage.models.same_weights import same_weights
from saelineage.models.training import new_mistral, save_model
from saelineage.tokens import TokenRows
from tests.merges import merge


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
    loss, correct, n_predictions = next_token_loss(Predictions.of(logits), torch.tensor([[0, 1, 0]]))
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

    def refused(said: str = "; fetch it again") -> None:
        with pytest.raises(InputError, match=rf"{folder}.*{said}"):
            load_model(folder)
        (folder / "model.safetensors").write_bytes(whole)
        (folder / "config.json").write_bytes(config)

    (folder / "model.safetensors").write_bytes(whole[:1000])
    refused()
    save_file(weights | {"lm_head.weight": torch.zeros(7, 7)}, folder / "model.safetensors", {"format": "pt"})
    refused(r"holds tensors of other shapes \(1\): lm_head.weight has \(7, 7\), not \(300, 32\); use")
    for text, said in (
        ("{}", "its config.json has no model_type; correct it"),
        (
            '{"model_type": "no_such_architecture"}',
            "does not know model_type 'no_such_architecture' of its config.json;",
        ),
        ('{"model_type": "clip"}', "transformers has no causal language model of its architecture; take a model that"),
        ('{"model_type": "bert"}', "model_type 'bert' is an encoder"),
    ):
        (folder / "config.json").write_text(text)
        refused(said)
    load_model(folder)


def change_state(folder, change) -> None:
    """Save the weights again after a change of the mapping from names to tensors."""
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", {"format": "pt"})


def set_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_keep_the_file_s_number_format_whatever_the_config_says(folder, tmp_path):
    def lightly_tuned(state):
        return {name: tensor * (1 + 2**-12) for name, tensor in state.items()}  # lost in bfloat16, which has 8 bits

    change_state(folder, lightly_tuned)
    set_config(folder, dtype="bfloat16")
    expected = load_file(folder / "model.safetensors")
    for opened in (load_model(folder, dtype="auto"), load_model(folder)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())
    save_model(load_model(folder, dtype="auto"), folder, tmp_path / "imported")
    written = load_file(tmp_path / "imported" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    assert json.loads((tmp_path / "imported" / "config.json").read_text())["dtype"] == "float32"


def test_weights_in_several_number_formats_are_kept_in_one_that_rounds_none(folder):
    def mixed(state):
        return {
            name: tensor.bfloat16() if "mlp" in name else tensor.half() if "attn" in name else tensor
            for name, tensor in state.items()
        }

    change_state(folder, mixed)
    expected = load_file(folder / "model.safetensors")
    opened = load_model(folder, dtype="auto").state_dict()
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in opened.items())
    assert {tensor.dtype for tensor in opened.values()} == {torch.float32}


def test_weights_in_a_format_of_quantised_models_are_refused(folder):
    change_state(folder, lambda state: state | {"lm_head.weight": state["lm_head.weight"].to(torch.float8_e4m3fn)})
    with pytest.raises(InputError, match=r"quantised: lm_head\.weight \(F8_E4M3\); take the model"):
        load_model(folder, dtype="auto")
    change_state(folder, lambda state: state | {"lm_head.weight": torch.ones_like(state["lm_head.weight"].char())})
    with pytest.raises(InputError, match=r"quantised: lm_head\.weight \(I8\)"):
        load_model(folder, dtype="auto")


def test_lora_matrices_beside_base_weights_are_refused_and_not_dropped(folder):
    names = [f"model.layers.{layer}.self_attn.q_proj.lora_{side}.weight" for layer in range(2) for side in "AB"]
    change_state(folder, lambda state: state | {name: torch.ones(2, 2) for name in names})
    with pytest.raises(InputError) as raised:
        load_model(folder)
    assert f"does not have (4): {', '.join(names)}; use a complete checkpoint" in str(raised.value)
    assert "merge adapters into it (merge_and_unload)" in str(raised.value)


def test_layers_beyond_those_of_the_config_are_refused_and_not_dropped(folder):
    def with_a_third(state):
        return state | {name.replace(".1.", ".2."): tensor.clone() for name, tensor in state.items() if ".1." in name}

    change_state(folder, with_a_third)
    with pytest.raises(InputError, match=r"does not have \(9\): model\.layers\.2\.input_layernorm.* and 4 more; use a"):
        load_model(folder)


def test_tensors_for_images_beside_a_text_model_are_warned_of(folder, caplog):
    names = ["vision_model.patch_embedding.weight", "multi_modal_projector.bias"]
    change_state(folder, lambda state: state | {name: torch.ones(2) for name in names})
    load_model(folder)
    assert f"does not use (2): {', '.join(sorted(names))}" in caplog.text


def test_an_output_embedding_of_its_own_is_kept_where_the_config_says_tied(folder, tmp_path, caplog):
    set_config(folder, tie_word_embeddings=True)
    expected = load_file(folder / "model.safetensors")["lm_head.weight"]
    model = load_model(folder)
    assert torch.equal(model.lm_head.weight, expected)
    assert "holds an output embedding of its own, which is taken" in caplog.text
    save_model(model, folder, tmp_path / "imported")
    assert json.loads((tmp_path / "imported" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(load_model(tmp_path / "imported").lm_head.weight, expected)


def test_the_generation_config_goes_along(folder, tmp_path):
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.3, "top_k": 7}')
    save_model(load_model(folder), folder, tmp_path / "saved")
    merge([folder, folder], tmp_path / "merged")
    for name in ("saved", "merged"):
        kept = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert {key: kept[key] for key in ("do_sample", "temperature", "top_k")} == {"do_sample": True} | {
            "temperature": 0.3,
            "top_k": 7,
        }


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


def test_models_between_which_nothing_differs_are_named():
    digests = {"base": "x", "lua": "x", "stories": "y", "far": "x", "again": "z", "null": "z"}
    parents = {"lua": ["base"], "stories": ["base"]}
    assert same_weights(digests, parents) == [
        "'lua' has exactly the weights of its parent 'base': what was done to it changed nothing, and all differences "
        "between their features are noise",
        "'base', 'far' have exactly the same weights, so they are one model under several names",
        "'again', 'null' have exactly the same weights, so they are one model under several names",
    ]
    assert same_weights({"base": "x", "lua": "y"}, parents) == []
