"""Changes of weights: known shares of the parent's norm, by layer, with what cannot be compared left out by name."""

from copy import deepcopy

import pytest
import torch

from saelineage.models.change_sums import ChangeSums, change_sums, relative_change
from saelineage.models.weights import layer_of, weight_changes
from tests.vocabularies import small_model

LAYERS = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]


def ids(n: int) -> list[int]:
    return list(range(n))


def test_a_scaled_tensor_has_changed_by_its_factor_less_one():
    weight = torch.arange(1.0, 5.0).view(2, 2)
    assert relative_change(change_sums(weight, weight * 1.25)) == 0.25
    assert relative_change(change_sums(weight, weight * 0.0)) == 1.0
    assert relative_change(change_sums(weight, weight.clone())) == 0.0


def test_the_change_over_several_tensors_is_that_of_all_their_weights():
    # |(3, 4)| = 5 changes by 0 and |(0, 12)| = 12 by 5: sqrt(25) / sqrt(25 + 144).
    sums = change_sums(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]))
    sums = sums.plus(change_sums(torch.tensor([0.0, 12.0]), torch.tensor([3.0, 8.0])))
    assert relative_change(sums) == pytest.approx(5 / 13)
    assert sums == ChangeSums(25.0, 169.0, 4)


def test_nothing_is_undefined_but_a_change_from_zero():
    assert relative_change(change_sums(torch.zeros(3), torch.ones(3))) is None


def test_weights_are_grouped_by_the_outermost_number_in_their_name():
    assert layer_of("model.layers.11.mlp.experts.3.w1.weight") == "model.layers.11"
    assert layer_of("transformer.h.0.attn.c_attn.weight") == "transformer.h.0"
    assert layer_of("model.norm.weight") == "model.norm"


def test_one_changed_layer_is_the_only_one_that_changed():
    parent = small_model(300)
    child = deepcopy(parent)
    with torch.no_grad():
        for weight in child.model.layers[1].parameters():
            weight.mul_(2)
    found = weight_changes(parent, child, ids(300))
    assert list(found["layers"]) == LAYERS
    changes = {layer: figures["relative_change"] for layer, figures in found["layers"].items()}
    assert changes == dict.fromkeys(LAYERS, 0.0) | {"model.layers.1": 1.0}
    assert found["left_out"] == []
    assert found["all"]["n_weights"] == sum(weight.numel() for weight in parent.parameters())
    assert 0 < found["all"]["relative_change"] < 1


def test_equal_models_have_not_changed_at_all():
    parent = small_model(300)
    assert weight_changes(parent, deepcopy(parent), ids(300))["all"]["relative_change"] == 0.0


def test_embeddings_of_unequal_rows_are_compared_where_both_have_them():
    parent, child = small_model(300), small_model(320)  # one seed: the first 300 rows are equal
    found = weight_changes(parent, child, ids(290))
    assert found["layers"]["model.embed_tokens"] == {"relative_change": 0.0, "n_weights": 290 * 16}
    assert found["layers"]["lm_head"]["n_weights"] == 290 * 16
    assert found["left_out"] == []


def test_tied_embeddings_count_once_or_are_compared_with_both_of_an_untied_child():
    tied, untied = small_model(300, tie_word_embeddings=True), small_model(300)
    assert "lm_head" not in weight_changes(tied, deepcopy(tied), ids(300))["layers"]
    both = weight_changes(tied, untied, ids(300))
    assert both["layers"]["lm_head"]["n_weights"] == both["layers"]["model.embed_tokens"]["n_weights"] == 300 * 16


def test_weights_without_a_counterpart_are_named():
    found = weight_changes(small_model(300), small_model(300, attention_bias=True), ids(300))
    assert len(found["left_out"]) == 2 * 4  # a bias for each of four projections in two layers
    assert all(name.endswith("_proj.bias") for name in found["left_out"])
    assert found["all"]["n_weights"] == sum(weight.numel() for weight in small_model(300).parameters())
