"""The linear path from a hookpoint to the logits. tests/unit/test_architectures.py tries it on many architectures."""

import copy

import pytest
import torch
from torch import nn

from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import logit_map, norm_parts

DOWN_PROJ = "model.layers.1.mlp.down_proj.input"


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d_model", [3, 6])
def test_a_layer_norm_subtracts_the_mean_and_an_rms_norm_does_not(d_model):
    gain, bias = torch.linspace(-1, 2, d_model), torch.arange(d_model).float()
    layer_norm, rms_norm = nn.LayerNorm(d_model), nn.RMSNorm(d_model)
    with torch.no_grad():
        for norm in (layer_norm, rms_norm):
            norm.weight.copy_(gain)
        layer_norm.bias.copy_(bias)  # it is no part of the effect of a direction
    for norm, is_centred in ((layer_norm, True), (rms_norm, False)):
        found = norm_parts(norm, d_model)
        assert found[1] == is_centred
        torch.testing.assert_close(found[0], gain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "hookpoint", ["model.layers.1.output", "model.layers.1.mlp.output", "model.layers.1.mlp.down_proj.input"]
)
@torch.no_grad()
def test_a_logit_map_is_what_the_model_does_in_its_last_block(model, hookpoint):
    """Logits of the model with a feature added, times the final norm's scale, differ by the map's effect."""
    gained = copy.deepcopy(model)
    gained.model.norm.weight.copy_(torch.linspace(0.5, 2, 32))
    path = logit_map(gained, hookpoint)
    acts, feature = drawn(3, path.to_norm.shape[0], seed=1), drawn(1, path.to_norm.shape[0], seed=2)

    def scaled_logits(value: torch.Tensor) -> torch.Tensor:
        residual = gained.model.layers[1].mlp.down_proj(value) if "down_proj" in hookpoint else value
        scale = residual.square().mean(dim=1, keepdim=True).add(1e-6).sqrt()
        return gained.lm_head(gained.model.norm(residual)) * scale

    effect = feature @ path.to_norm @ path.unembedding.T
    torch.testing.assert_close(
        scaled_logits(acts + feature) - scaled_logits(acts), effect.expand(3, -1), rtol=1e-3, atol=1e-5
    )


def test_other_hookpoints_have_no_known_linear_path_to_the_logits(model):
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj", "lm_head", "model.norm"):
        with pytest.raises(NoSimilarityError, match="no linear path"):
            logit_map(model, f"{module}.output")


def test_a_model_without_an_unembedding_or_a_final_norm_has_no_logit_map(model):
    headless, other, none = (copy.deepcopy(model) for _ in range(3))
    headless.lm_head = nn.Identity()
    with pytest.raises(NoSimilarityError, match="no linear unembedding"):
        logit_map(headless, DOWN_PROJ)
    other.model.norm = nn.Softmax(dim=-1)
    with pytest.raises(NoSimilarityError, match="must be an RMSNorm or a LayerNorm, not Softmax"):
        logit_map(other, DOWN_PROJ)
    none.model.norm = nn.Identity()
    with pytest.raises(NoSimilarityError, match="no norm between its last block and the unembedding"):
        logit_map(none, DOWN_PROJ)
