"""OpenAI's SAEs of GPT-2 small (https://github.com/openai/sparse_autoencoder): a pickle per layer without a config.

Folder `{location}[_v4|_v5_32k|_v5_128k]/autoencoders`, file `{n}.pt`. Versions 1 and 4 are ReLU; version 5 is TopK on
inputs that are normalised token by token.
"""

from collections.abc import Mapping

from saelineage.errors import InputError
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.names import search
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_inputs import SaeInput

HOOKS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}
"""TransformerLens's hooks of the locations."""
NORMED = (
    "it was trained on activations minus their mean, divided by their standard deviation, token by token, and weights "
    "cannot hold a division that differs between tokens; import one without (OpenAI's versions 1 and 4 at mlp_post_act "
    "and resid_delta_mlp, or SAELens's release gpt2-small-res-jb; its gpt2-small-*-v5-* are these SAEs again, with "
    "normalize_activations: layer_norm)"
)
MODEL = "gpt2-small"


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    """What the names say.

    Raises:
        InputError: if they say that the SAE's inputs were normalised.
    """
    folder = search(rf"^({'|'.join(HOOKS)})(_v\d.{{0,20}})?$", source.names)
    if folder and (folder[2] or "").startswith("_v5"):
        raise InputError(f"'{source.where}' cannot be imported, because {NORMED}")
    file = search(r"^(\d{1,2})\.pt$", source.names[-1:])
    hook = f"blocks.{int(file[1])}.{HOOKS[folder[1]]}" if file and folder else None
    return SaeInput(
        source.where,
        (read_hook_name(hook),) if hook else (),
        d_sae=32_768 if folder and source.local_weights is None else None,
        model_name=MODEL,
        context_size=64,
        model_settings={"center_writing_weights": False},
        is_transformer_lens=hook is not None,
        original={"hook_name": hook, "model_name": MODEL},
    )
