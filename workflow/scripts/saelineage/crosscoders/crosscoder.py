"""Crosscoders: one dictionary for several models, with a decoder for each, and its folder on disk.

A latent reads all models and is written into each ("Sparse Crosscoders for Cross-Layer Features and Model Diffing",
Anthropic, 2024). It is a latent of an SAE of the models' activations side by side, [token, n_models x d_in]: an encoder
row that reads all of them, a decoder row with a part for each, and a squared error that is summed over models. So a
crosscoder holds such an SAE (`saes.sae.Sae`), trained and encoded by the code of every SAE, and the mean and scale of
each model's activations.

A folder holds `crosscoder.safetensors` and `crosscoder.json`. Tensors:
    W_enc [n_models, d_in, d_sae], W_dec [n_models, d_sae, d_in], b_dec [n_models, d_in]; b_enc and, under `jumprelu`,
    threshold [d_sae]: all for centred and scaled activations (acts - mean) x scale;
    mean [n_models, d_in], scale [n_models].
Config:
    format (1); architecture (`relu`, `topk`, `jumprelu`; a trained BatchTopK crosscoder is the last); models, their
    names in the order of the tensors; d_in, d_sae; k, of topk alone, else null; max_norms, the norm above which each
    model's activations counted as outliers, null if none did; metadata, provenance in keys of whoever saved it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, read_json, write_json
from saelineage.saes.batches import Scaling
from saelineage.saes.encoding import Encoder, SparseLatents
from saelineage.saes.sae import Sae, is_size, read_tensors, require_finite, sae_of

WEIGHTS_FILE, CONFIG_FILE = "crosscoder.safetensors", "crosscoder.json"
FORMAT = 1
"""Version of the format."""
ARCHITECTURES = ("relu", "topk", "jumprelu")
REMEDY = "delete the folder and run again"


class Crosscoder:
    """A trained crosscoder.

    Attributes:
        sae: the SAE of the models' centred and scaled activations, side by side.
        models: names of the models, in the order of their activations.
        scalings: mean and scale of each model's activations.
        max_norms: norm above which each model's activations count as outliers; training leaves their tokens out.
        d_in: width of one model's activations.
    """

    def __init__(self, sae: Sae, scalings: Mapping[str, Scaling], max_norms: Mapping[str, float] | None = None):
        """Combine an SAE of the models' activations side by side with their scalings, which name the models.

        Raises:
            InputError: if the SAE's input is not as wide as the models' activations together.
        """
        self.sae, self.scalings = sae, dict(scalings)
        self.models = list(self.scalings)
        self.max_norms = dict(max_norms or dict.fromkeys(self.models, math.inf))
        widths = {len(scaling.mean) for scaling in self.scalings.values()}
        if len(widths) != 1 or len(self.models) * max(widths) != sae.d_in:
            raise InputError(
                f"a crosscoder's SAE must be as wide as the activations of {self.models} together, but it is "
                f"{sae.d_in} wide and they are {sorted(widths)} each; use the dumps that it was trained on"
            )
        self.d_in = widths.pop()

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.d_sae

    @property
    def W_enc(self) -> Float[Tensor, "n_models d_in d_sae"]:
        """Encoder weights of each model's centred and scaled activations."""
        return self.sae.W_enc.detach().view(len(self.models), self.d_in, self.d_sae)

    @property
    def W_dec(self) -> Float[Tensor, "n_models d_sae d_in"]:
        """Decoder directions in each model's centred and scaled activations."""
        return self.sae.W_dec.detach().view(self.d_sae, len(self.models), self.d_in).transpose(0, 1)

    @property
    def b_dec(self) -> Float[Tensor, "n_models d_in"]:
        """Decoder biases in each model's centred and scaled activations."""
        return self.sae.b_dec.detach().view(len(self.models), self.d_in)

    def joint(self, acts: Mapping[str, Float[Tensor, "token d_in"]]) -> Float[Tensor, "token joint"]:
        """The models' activations of the same tokens, centred, scaled, and side by side.

        Raises:
            InputError: if a model's activations are missing, or there are those of others.
        """
        if set(acts) != set(self.models):
            raise InputError(f"a crosscoder of {self.models} reads the activations of these, got {sorted(acts)}")
        parts = [
            (acts[model].float() - scaling.mean.to(acts[model].device)) * scaling.scale
            for model, scaling in self.scalings.items()
        ]
        return torch.cat(parts, 1)

    def encoder(self) -> Encoder:
        """The fast way from `joint` activations to sparse latent activations; keep it for many calls."""
        return self.sae.encoder()

    def encode(self, acts: Mapping[str, Float[Tensor, "token d_in"]]) -> SparseLatents:
        """Latent activations of tokens, from every model's unscaled activations."""
        return self.encoder().encode(self.joint(acts))

    def decode(self, latents: SparseLatents, model: str) -> Float[Tensor, "token d_in"]:
        """Reconstructions of one model's unscaled activations."""
        number, scaling = self.models.index(model), self.scalings[model]
        recons = latents.matrix(self.d_sae) @ self.W_dec[number] + self.b_dec[number]
        return recons / scaling.scale + scaling.mean.to(recons.device)


def save_crosscoder(crosscoder: Crosscoder, folder: Path | str, metadata: Mapping | None = None) -> None:
    """Write a crosscoder's folder.

    Args:
        crosscoder: in float32.
        folder: the folder to write.
        metadata: provenance, for the config.
    """
    sae, scalings = crosscoder.sae, crosscoder.scalings.values()
    per_latent = {name: tensor for name, tensor in sae.state_dict().items() if name in ("b_enc", "threshold")}
    tensors = per_latent | {
        "W_enc": crosscoder.W_enc,
        "W_dec": crosscoder.W_dec,
        "b_dec": crosscoder.b_dec,
        "mean": torch.stack([scaling.mean for scaling in scalings]),
        "scale": torch.tensor([scaling.scale for scaling in scalings], dtype=torch.float64),
    }
    with atomic_path(Path(folder, WEIGHTS_FILE)) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    max_norms = [crosscoder.max_norms[model] for model in crosscoder.models]
    config = {
        "format": FORMAT,
        "architecture": sae.architecture,
        "models": crosscoder.models,
        "d_in": crosscoder.d_in,
        "d_sae": crosscoder.d_sae,
        "k": sae.k,
        "max_norms": [norm if math.isfinite(norm) else None for norm in max_norms],
        "metadata": dict(metadata or {}),
    }
    write_json(Path(folder, CONFIG_FILE), config)


def load_crosscoder(folder: Path | str) -> Crosscoder:
    """Read a crosscoder's folder; its latents equal those of the crosscoder that was saved.

    Raises:
        InputError: if the folder does not hold a crosscoder, or its tensors do not have the shapes in its config.
    """
    path = Path(folder, CONFIG_FILE)
    config = read_json(path, REMEDY)
    models = _models(config, path)
    tensors = read_tensors(Path(folder, WEIGHTS_FILE), REMEDY)
    mean, scale = tensors.pop("mean", None), tensors.pop("scale", None)
    n_models, d_in = len(models), config["d_in"]
    if mean is None or scale is None or mean.shape != (n_models, d_in) or scale.shape != (n_models,):
        raise InputError(
            f"'{folder}': a crosscoder must have a mean [{n_models}, {d_in}] and a scale [{n_models}] of its models' "
            f"activations; {REMEDY}"
        )
    require_finite({"mean": mean, "scale": scale}, folder)
    sae = joint_sae(config["architecture"], tensors, config["k"], (n_models, d_in, config["d_sae"]), folder)
    scalings = {
        model: Scaling(of_model.float(), float(factor))
        for model, of_model, factor in zip(models, mean, scale, strict=True)
    }
    max_norms = [math.inf if norm is None else float(norm) for norm in config["max_norms"]]
    return Crosscoder(sae, scalings, dict(zip(models, max_norms, strict=True)))


def joint_sae(
    architecture: str,
    tensors: dict[str, Tensor],
    k: int | None,
    sizes: Sequence[int],
    where: Path | str,
    remedy: str = REMEDY,
) -> Sae:
    """Make the SAE of the models' activations side by side from a crosscoder's weights.

    Args:
        architecture, k: as in `saes.sae.Sae`.
        tensors: `W_enc` [n_models, d_in, d_sae], `W_dec` [n_models, d_sae, d_in], `b_dec` [n_models, d_in], and those
            of each latent.
        sizes: n_models, d_in and d_sae.
        where: the source of the weights, for error messages.
        remedy: the next step, for error messages.

    Raises:
        InputError: if shapes differ from the sizes, or a weight is not finite.
    """
    n_models, d_in, d_sae = sizes
    expected = {"W_enc": (n_models, d_in, d_sae), "W_dec": (n_models, d_sae, d_in), "b_dec": (n_models, d_in)}
    shapes = {name: tuple(tensors[name].shape) if name in tensors else None for name in expected}
    if shapes != expected:
        raise InputError(f"'{where}': a crosscoder of this size must have tensors {expected}, not {shapes}; {remedy}")
    weights = tensors | {
        "W_enc": tensors["W_enc"].reshape(n_models * d_in, d_sae),
        "W_dec": tensors["W_dec"].transpose(0, 1).reshape(d_sae, n_models * d_in),
        "b_dec": tensors["b_dec"].reshape(n_models * d_in),
    }
    return sae_of(architecture, n_models * d_in, d_sae, k, tensors=weights, where=where)


def _models(config: Mapping, path: Path) -> list[str]:
    """The names of the models in a config whose values are checked."""
    models, max_norms = config.get("models"), config.get("max_norms")
    faults = {
        "format": config.get("format") != FORMAT,
        "architecture": config.get("architecture") not in ARCHITECTURES,
        "d_in": not is_size(config.get("d_in")),
        "d_sae": not is_size(config.get("d_sae")),
        "k": config.get("k") is not None and not is_size(config["k"]),
        "models": not _is_list(models, str) or len(set(models or [])) != len(models or []),
        "max_norms": not _is_list(max_norms, float, int, type(None)) or len(max_norms or []) != len(models or []),
    }
    if wrong := [key for key, is_wrong in faults.items() if is_wrong]:
        raise InputError(
            f"'{path}': {wrong[0]} must be as in a crosscoder's config, not {config.get(wrong[0])!r:.80}; {REMEDY}"
        )
    assert models  # checked above
    return list(models)


def _is_list(value: object, *types: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(entry) in types for entry in value)
