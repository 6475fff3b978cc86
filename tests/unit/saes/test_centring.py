"""TransformerLens's center_writing_weights, applied to a GPT-2 by hand, and an SAE folded for the GPT-2 as it is."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from saelineage.activations import hooked, read_with_predictions
from saelineage.saes.folding import fold_centring
from saelineage.saes.sae import Sae

HOOKPOINTS = ("transformer.h.1.input", "transformer.h.1.output", "transformer.h.0.mlp.output")
IDS = torch.randint(0, 40, (3, 8), generator=torch.Generator().manual_seed(0))


def small_gpt2() -> GPT2LMHeadModel:
    """Random weights and biases, with a mean that centring removes."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2)).eval()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # untied, as TransformerLens has it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape) + 0.2)
    return model


@torch.no_grad()
def centre_writing_weights(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same model with everything that is written to the residual stream centred."""
    centred = deepcopy(model)
    blocks = centred.transformer.h
    writers = [module for block in blocks for module in (block.attn.c_proj, block.mlp.c_proj)]
    weights = [centred.transformer.wte.weight, centred.transformer.wpe.weight, *(w.weight for w in writers)]
    for weight in [*weights, *(writer.bias for writer in writers)]:
        weight.sub_(weight.mean(-1, keepdim=True))
    return centred


def random_sae() -> Sae:
    sae = Sae("topk", 16, 64, 5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return sae


def logits_with(model: GPT2LMHeadModel, hookpoint: str, acts: Tensor) -> Tensor:
    """The logits with other activations at a hookpoint."""
    with torch.no_grad(), hooked(model, hookpoint, lambda _: acts):
        return model(input_ids=IDS, use_cache=False).logits


def test_the_folded_sae_has_on_the_model_as_it_is_the_latents_of_the_original_on_the_centred_model():
    model = small_gpt2()
    centred_model, original, folded = centre_writing_weights(model), random_sae(), random_sae()
    fold_centring(folded)
    for hookpoint in HOOKPOINTS:
        acts, predictions = read_with_predictions(model, hookpoint, IDS)
        centred, same = read_with_predictions(centred_model, hookpoint, IDS)
        everywhere = torch.arange(IDS.numel())
        assert torch.allclose(predictions.at(everywhere), same.at(everywhere), atol=1e-3)
        assert not torch.allclose(acts, centred, atol=0.1)
        assert torch.allclose(folded.target(acts), centred, atol=1e-4)
        latents, right_latents = folded.encode(acts), original.encode(centred)
        assert torch.allclose(latents, right_latents, atol=1e-3)
        assert not torch.allclose(original.encode(acts), right_latents, atol=0.1)
        # Reconstructions are centred, which the model does not notice when they take the place of its activations.
        recons = folded.decode(latents)
        assert torch.allclose(
            logits_with(model, hookpoint, recons), logits_with(centred_model, hookpoint, recons), atol=1e-3
        )
