"""Qwen-Scope: TopK SAEs of Qwen 3 and 3.5, a pickle per layer without a config.

Repository `Qwen/SAE-Res-{model}-W{w}K-L0_{k}`, file `layer{n}.sae.pt`.
"""

from collections.abc import Mapping

from saelineage.errors import InputError
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.names import search
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import whole_number
from saelineage.foreign.sae_inputs import SaeInput

REPOSITORY = r"SAE-Res-(.{1,80}?)-W(\d{1,5})K-L0_(\d{1,4})(?!\d)"
D_MODEL = {
    "Qwen3-1.7B-Base": 2048,
    "Qwen3-8B-Base": 4096,
    "Qwen3-30B-A3B-Base": 2048,
    "Qwen3.5-2B-Base": 2048,
    "Qwen3.5-9B-Base": 4096,
    "Qwen3.5-27B": 5120,
    "Qwen3.5-35B-A3B-Base": 2048,
}


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    """What the names say.

    Raises:
        InputError: if neither they nor `import.k` say how many latents are kept, or they differ.
    """
    repository = search(REPOSITORY, source.names)
    file = search(r"^layer(\d{1,4})\.", source.names[-1:])
    hook = f"blocks.{int(file[1])}.hook_resid_post" if file else None
    model = f"Qwen/{repository[1]}" if repository else None
    is_here = source.local_weights is not None  # then the tensors say how large it is
    return SaeInput(
        source.where,
        (read_hook_name(hook),) if hook else (),
        d_in=D_MODEL.get(repository[1]) if repository and not is_here else None,
        d_sae=int(repository[2]) * 1024 if repository and not is_here else None,
        k=kept_latents(source),
        model_name=model,
        is_transformer_lens=hook is not None,
        original={"hook_name": hook, "model_name": model},
    )


def kept_latents(source: SaeSource) -> int:
    """Latents kept per token, from the names or the `import` block.

    Raises:
        InputError: if neither says so, or they differ.
    """
    repository, given = search(REPOSITORY, source.names), whole_number(source.settings.get("k"))
    named = int(repository[3]) if repository else None
    if not named and given is None:
        raise InputError(
            f"'{source.where}': only the published name of its folder (SAE-Res-MODEL-W32K-L0_50) says how many latents "
            "are kept per token (L0_50); set import.k"
        )
    if named is not None and given not in (None, named):
        raise InputError(
            f"'{source.where}': its name says that {named} latents are kept, but import.k is {given}; leave k out"
        )
    return named or given or 0
