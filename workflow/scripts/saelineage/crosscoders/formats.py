"""Crosscoders in the files of others: science-of-finetuning/crosscoder_learning and `cc_weights.pt`.

What these compute differently is folded into the weights, so that latents equal those of their libraries up to rounding
in float32. Neither subtracts the decoder's bias before it encodes. `cc_weights.pt` is the file of
ckkissane/crosscoder-model-diff-replication, whose ReLU crosscoder reads activations that were scaled while they were
read; the scales are not in the file.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelineage.crosscoders.crosscoder import Crosscoder, joint_sae
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, write_json
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.batches import Scaling
from saelineage.saes.folding import fold_decoder_bias
from saelineage.saes.formats.layouts import renamed
from saelineage.saes.formats.pickles import unpickled
from saelineage.saes.sae import read_tensors, require_finite

EXPORTED_WEIGHTS, EXPORTED_CONFIG = "ae.pt", "config.json"
CC_WEIGHTS = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
LEARNING = {
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight",
    "b_enc": "encoder.bias",
    "b_dec": "decoder.bias",
}
COMPILED = "_orig_mod."
"""Before the names in a file of a compiled crosscoder."""
MEAN, STD, SCALE, TARGET = "activation_mean", "activation_std", "activation_global_scale", "target_rms"
BY_NORMS, BY_ROWS, BY_NOTHING = 1, 2, 4
"""`code_normalization_id`: a BatchTopK latent counts times the sum of its decoders' norms, times the norm of all its
decoders together, or as it is. Others cannot be imported."""


def read_crosscoder(path: Path, models: Sequence[str], scales: Mapping[str, float] | None = None) -> Crosscoder:
    """Read a crosscoder from a weights file, which is `.pt` or `.safetensors`.

    Args:
        path: the file.
        models: names of its models, in its order.
        scales: factors on each model's activations that its training applied and the file does not hold.

    Raises:
        InputError: if the file holds no crosscoder of so many models, or its computation cannot be folded.
    """
    tensors = read_tensors(path, REMEDY) if path.suffix == ".safetensors" else unpickled(path)
    tensors = {name.removeprefix(COMPILED): tensor for name, tensor in tensors.items()}
    is_learning = LEARNING["W_enc"] in tensors
    weights, others = renamed(
        tensors,
        LEARNING if is_learning else CC_WEIGHTS,
        ("k", "threshold", "code_normalization_id", MEAN, STD, SCALE, TARGET) if is_learning else (),
        "a crosscoder",
        path,
        REMEDY,
    )
    shapes = [tuple(weights[name].shape) for name in ("W_enc", "W_dec")]
    if any(len(shape) != 3 or 0 in shape for shape in shapes) or shapes[0][0] != len(models):
        raise InputError(
            f"'{path}': encoder and decoder must be arrays of three dimensions for the {len(models)} models "
            f"{list(models)}, not of shapes {shapes}; name the models that it was trained on"
        )
    if not is_learning:
        weights["W_dec"] = weights["W_dec"].transpose(0, 1)
    architecture = "relu"
    if "threshold" in others:
        architecture = "jumprelu"
        weights["threshold"] = _thresholds(others, weights["W_dec"], path)
    sae = joint_sae(architecture, weights, None, shapes[0], path, REMEDY)
    fold_decoder_bias(sae)
    require_finite(dict(sae.named_parameters()), path)
    return Crosscoder(sae, _scalings(models, others, sae.d_in // len(models), scales, path))


def _thresholds(
    others: Mapping[str, Tensor], W_dec: Float[Tensor, "n_models d_sae d_in"], path: Path
) -> Float[Tensor, " d_sae"]:
    """Each latent's threshold, of a BatchTopK crosscoder whose one threshold is for latents times a norm.

    A latent whose norm is 0 never fires.

    Raises:
        InputError: if the threshold was never set, or the norm is of a kind that weights alone do not give.
    """
    threshold, number = others["threshold"], others.get("code_normalization_id", torch.tensor(BY_NORMS))
    kind = int(number) if number.numel() == 1 else None
    if threshold.numel() != 1 or not threshold.item() >= 0:
        raise InputError(
            f"'{path}': threshold must be one number, 0 or more, but is {str(threshold.tolist())[:80]} (-1 means that "
            "it was never set); train it past threshold_start_step"
        )
    if kind not in (BY_NORMS, BY_ROWS, BY_NOTHING):
        raise InputError(
            f"'{path}': code_normalization_id must be {BY_NORMS} (CROSSCODER), {BY_ROWS} (SAE) or {BY_NOTHING} (NONE), "
            f"but is {kind}; use another crosscoder"
        )
    of_models = W_dec.double().norm(dim=2)
    if kind == BY_NORMS:
        norms = of_models.sum(0)
    else:
        norms = of_models.norm(dim=0) if kind == BY_ROWS else torch.ones(W_dec.shape[1], dtype=torch.float64)
    never = torch.full_like(norms, torch.finfo(torch.float32).max)
    return torch.where(norms > 0, threshold.double() / norms, never).clamp(max=never).float()


def _scalings(
    models: Sequence[str], others: Mapping[str, Tensor], d_in: int, scales: Mapping[str, float] | None, path: Path
) -> dict[str, Scaling]:
    """Mean and scale of each model's activations: those in the file, or none and the given scales."""
    mean, scale = others.get(MEAN), others.get(SCALE)
    if mean is None or scale is None or bool(mean.isnan().any()):
        return {model: Scaling(torch.zeros(d_in), (scales or {}).get(model, 1.0)) for model in models}
    if mean.shape != (len(models), d_in) or scale.shape != (len(models),):
        raise InputError(
            f"'{path}': {MEAN} and {SCALE} must be [{len(models)}, {d_in}] and [{len(models)}], not of shapes "
            f"{tuple(mean.shape)} and {tuple(scale.shape)}; {REMEDY}"
        )
    require_finite({MEAN: mean, SCALE: scale}, path)
    return {
        model: Scaling(of_model.float(), float(factor))
        for model, of_model, factor in zip(models, mean, scale, strict=True)
    }


def export_crosscoder(crosscoder: Crosscoder, folder: Path | str) -> None:
    """Write a crosscoder for crosscoder_learning, whose `BatchTopKCrossCoder.from_pretrained` opens FOLDER/ae.pt.

    A `relu` crosscoder is for `CrossCoder.from_pretrained`. Latents count as they are there (`code_normalization`
    NONE), so latents equal those here. config.json names the class.

    Raises:
        InputError: for TopK crosscoders, and those whose latents have different thresholds, which it does not know.
    """
    sae, n_models = crosscoder.sae, len(crosscoder.models)
    thresholds = sae.threshold.detach() if sae.architecture == "jumprelu" else torch.zeros(1)
    if sae.architecture == "topk" or bool((thresholds != thresholds[0]).any()):
        raise InputError(
            "only BatchTopK and ReLU crosscoders with one threshold for all latents can be exported, but this is "
            f"'{sae.architecture}' with thresholds {float(thresholds.min()):.3g} to {float(thresholds.max()):.3g}; "
            "train it with architecture batchtopk"
        )
    bias = sae.b_enc.detach().double() - sae.b_dec.detach().double() @ sae.W_enc.detach().double()
    scale = torch.tensor([scaling.scale for scaling in crosscoder.scalings.values()], dtype=torch.float32)
    tensors = {
        "encoder.weight": crosscoder.W_enc,
        "encoder.bias": bias.float(),
        "decoder.weight": crosscoder.W_dec,
        "decoder.bias": crosscoder.b_dec,
        "code_normalization_id": torch.tensor(BY_NOTHING),
        MEAN: torch.stack([scaling.mean for scaling in crosscoder.scalings.values()]),
        STD: (1 / scale)[:, None].expand(n_models, crosscoder.d_in),  # with the target below it gives the scale
        SCALE: scale,
        TARGET: torch.tensor(math.sqrt(crosscoder.d_in)),
    }
    name = "CrossCoder"
    if sae.architecture == "jumprelu":
        # k matters in its training alone
        name, tensors = "BatchTopKCrossCoder", tensors | {"threshold": thresholds[0], "k": torch.tensor(1)}
    with atomic_path(Path(folder, EXPORTED_WEIGHTS)) as temporary, open(temporary, "wb") as file:
        torch.save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, file)
    trainer = {
        "dict_class": name,
        "activation_dim": crosscoder.d_in,
        "dict_size": crosscoder.d_sae,
        "num_layers": n_models,
        "code_normalization": "NONE",
    }
    write_json(Path(folder, EXPORTED_CONFIG), {"trainer": trainer, "models": crosscoder.models})
