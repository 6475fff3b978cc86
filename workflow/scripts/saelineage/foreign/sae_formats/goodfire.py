"""Goodfire's SAEs, and qresearch's of DeepSeek R1 under the same names: ReLU, a pickle without a config.

File `{model}-SAE-l{n}.pt` or `.pth`.
"""

from collections.abc import Mapping

from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.names import search
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_inputs import SaeInput

D_MODEL = {"Llama-3.3-70B-Instruct": 8192, "Llama-3.1-8B-Instruct": 4096, "DeepSeek-R1-Distill-Llama-8B": 4096}


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    file = search(r"^(.{1,80})-SAE-l(\d{1,4})(\.pth?)?$", source.names)
    hook = f"blocks.{int(file[2])}.hook_resid_post" if file else None
    model = file[1] if file else None
    is_here = source.local_weights is not None  # then the tensors say how large it is
    return SaeInput(
        source.where,
        (read_hook_name(hook),) if hook else (),
        d_in=D_MODEL.get(model or "") if not is_here else None,
        model_name=model,
        is_transformer_lens=hook is not None,
        original={"hook_name": hook, "model_name": model},
    )
