"""SAEs of SAELens."""

from pathlib import Path

from saelineage.foreign.sae_formats.saelens import read_config
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.folding import fold_decoder_bias, fold_decoder_norms
from saelineage.saes.sae import Sae, read_tensors, sae_of_saelens


def read(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read an SAE of SAELens, versions 3 to 6."""
    config = read_config(path_to_config)
    tensors = read_tensors(path_to_weights, REMEDY)
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]  # older versions wrote it even if there was no scaling
    sae = sae_of_saelens(config, tensors, path_to_config.parent)
    if not config.get("apply_b_dec_to_input", True):
        fold_decoder_bias(sae)
    if sae.architecture == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        fold_decoder_norms(sae)
    return sae, sae.k
