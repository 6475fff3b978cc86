"""Opening language models from GGUF files, with their weights dequantised to float32."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel

from saelineage.foreign.models import unopenable
from saelineage.models.loading import (
    MOST_MODULES,
    MOST_UNSAVED,
    at_most_modules,
    empty_model,
    quiet_off_terminal,
    refusal_of,
    whole,
)

WEIGHTS_PER_BYTE = 8
"""Most weights that a byte of a GGUF file holds, at one bit each."""
REMEDY = "take the safetensors that it was made from"


def load_gguf(path: Path) -> PreTrainedModel:
    """Open a model from a GGUF file that was checked (`foreign.gguf.check_gguf`), in evaluation mode.

    Raises:
        InputError: if transformers cannot open it, it describes a larger model than its size allows, or weights are
            missing, left over or not finite.
    """
    quiet_off_terminal()
    try:
        with at_most_modules(MOST_MODULES):
            config = AutoConfig.from_pretrained(
                path.parent, gguf_file=path.name, trust_remote_code=False, local_files_only=True
            )
            empty = empty_model(config, MOST_MODULES)
            n_needed = sum(tensor.numel() for tensor in empty.parameters())
            if n_needed > WEIGHTS_PER_BYTE * path.stat().st_size + MOST_UNSAVED:
                raise unopenable(path, f"it describes {n_needed} numbers, more than a file of its size holds", REMEDY)
            loaded: object = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # damaged or foreign files make transformers raise almost anything
        raise refusal_of(path, error) from error
    assert isinstance(loaded, tuple)  # because of output_loading_info
    model, info = loaded
    return whole(model, info, f"'{path}'")
