"""Sparse autoencoders: encoding, decoding, and their folder on disk, which is in SAELens's format.

Architectures, named by the computation of the trained SAE (`saes.objectives` holds how each is trained):
    `relu`: ReLU, Bricken et al., "Towards Monosemanticity" (2023); SAELens calls it `standard`.
    `topk`: Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), equation 1.
    `jumprelu`: Rajamanoharan et al., "Jumping Ahead" (arXiv 2407.14435), equation 4. Trained BatchTopK and Matryoshka
        SAEs are this, with one threshold for all latents.
    `gated`: Rajamanoharan et al., "Improving dictionary learning with gated sparse autoencoders" (arXiv 2404.16014),
        equation 5.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TypeGuard

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, read_json, write_json
from saelineage.files.foreign import tensor_shapes
from saelineage.foreign.sae_formats.architectures import SAELENS_NAMES, require_architecture, require_settings
from saelineage.saes.encoding import Encoder, SparseLatents, encode_dense

PER_LATENT = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""The tensors [d_sae] of each architecture."""
SAELENS_VERSION = "6.54.12"  # the version of the format; its loader converts configs that claim to be older than 6
SAELENS_SETTINGS = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,  # topk only
}
"""SAELens's options to transform activations. The SAEs here have none; these values, its defaults, switch them off."""
WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
MOST_NORM = 1e38
"""Largest norm that float32 can hold."""
CHECKED_VALUES = 1 << 22
"""Weights that are checked for infinities at once, which bounds the memory."""


class Sae(nn.Module):
    """A trained sparse autoencoder with SAELens's names and shapes.

    raw = (acts - b_dec) W_enc, recons = latent_acts W_dec + b_dec, and latent_acts by architecture:
        relu: ReLU(raw + b_enc).
        topk: the k largest values of raw + b_enc of each token, those above zero.
        jumprelu: ReLU(raw + b_enc) where raw + b_enc > threshold, else zero.
        gated: ReLU(raw exp(r_mag) + b_mag) where raw + b_gate > 0, else zero.

    Attributes:
        W_enc: [d_in, d_sae].
        W_dec: [d_sae, d_in].
        b_dec: [d_in].
        b_enc, threshold, b_gate, b_mag, r_mag: [d_sae]; each architecture has those in `PER_LATENT`.
        k: latents kept per token; None unless the architecture is topk.
        max_norm: norm above which activations count as outliers; training leaves their tokens out.
        centred: True if reconstructions are of activations minus their mean over dimensions, as TransformerLens can
            make them. The encoder takes activations as they are.
    """

    b_enc: nn.Parameter
    threshold: nn.Parameter
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def __init__(self, architecture: str, d_in: int, d_sae: int, k: int | None = None):
        """Make an SAE whose weights are zero; `saes.training.train_saes` and `load_sae` give others.

        Raises:
            InputError: if the architecture is topk and k is not between 1 and d_sae.
        """
        super().__init__()
        if architecture == "topk":
            check_k(k, d_in, d_sae)
        self.architecture, self.d_in, self.d_sae = architecture, d_in, d_sae
        self.k = k if architecture == "topk" else None
        self.max_norm, self.centred = math.inf, False
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        for name in PER_LATENT[architecture]:
            self.register_parameter(name, nn.Parameter(torch.zeros(d_sae)))

    def encode(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Dense latent activations."""
        return encode_dense(acts, self.architecture, dict(self.named_parameters()), self.k)

    def decode(self, latent_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstructions from dense latent activations."""
        return latent_acts @ self.W_dec + self.b_dec

    def decode_sparse(self, latents: SparseLatents) -> Float[Tensor, "token d_in"]:
        """Reconstructions from sparse latent activations, computed from the entries alone."""
        return latents.matrix(self.d_sae) @ self.W_dec + self.b_dec

    def forward(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstructions of activations."""
        return self.decode(self.encode(acts))

    def target(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The values that reconstructions approximate: acts, minus their mean over dimensions if `centred`."""
        return acts - acts.mean(-1, keepdim=True) if self.centred else acts

    def encoder(self) -> Encoder:
        """The fast way to sparse latent activations, with the weights as they are now."""
        return Encoder(self.architecture, dict(self.named_parameters()), self.k)

    def encode_sparse(self, acts: Float[Tensor, "token d_in"]) -> SparseLatents:
        """Latent activations as compressed sparse rows; for many calls keep an `encoder`."""
        return self.encoder().encode(acts)


def n_latents(d_in: int, expansion_factor: float) -> int:
    """Number of latents for an input width: d_in x expansion_factor, rounded, at least 1."""
    return max(1, round(d_in * expansion_factor))


def check_k(k: int | None, d_in: int, d_sae: int) -> None:
    """Refuse a k that does not fit the size of an SAE.

    Raises:
        InputError: if k is not between 1 and d_sae.
    """
    if not 1 <= (k or 0) <= d_sae:
        raise InputError(
            f"saes.k must be between 1 and d_sae = {d_sae} (d_in {d_in} x expansion_factor), got {k}; lower it"
        )


def average(saes: Sequence[Sae]) -> Sae:
    """Average the weights of SAEs, latent by latent.

    Meaningful only for SAEs whose latents correspond by number, which they do if the SAEs started from the same one.

    Raises:
        InputError: if the SAEs differ in architecture, size or k, or not all are of centred activations.
    """
    kinds = {(sae.architecture, sae.d_in, sae.d_sae, sae.k, sae.centred) for sae in saes}
    if len(kinds) > 1:
        raise InputError(
            "averaged SAEs must have the same architecture, d_in, d_sae, k and centring, but have "
            f"{sorted(kinds, key=str)}; give the models under saes.models the same settings"
        )
    mean = deepcopy(saes[0])
    all_weights = [dict(sae.named_parameters()) for sae in saes]
    with torch.no_grad():
        for name, weight in mean.named_parameters():
            weight.copy_(torch.stack([weights[name] for weights in all_weights]).mean(0))
    return mean


def rotated(sae: Sae, seed: int) -> Sae:
    """Make a random control: an SAE whose latents are those of `sae` on activations rotated around its b_dec.

    As in Gurnee et al., arXiv 2401.12181, section 3. The rotation is drawn from `seed`, uniformly over the orthogonal
    group (QR of a Gaussian matrix, with signs after Mezzadri 2007, Notices of the AMS 54, 592-604).
    """
    generator = torch.Generator().manual_seed(seed)
    d_in = len(sae.W_enc)
    gaussian = torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rotation = (q * r.diagonal().sign()).to(sae.W_enc.dtype)
    shared = {id(weight): weight for weight in (sae.W_enc, sae.W_dec)}  # because copies of wide ones are large
    control = deepcopy(sae, shared)
    with torch.no_grad():
        control.W_enc = nn.Parameter(rotation @ sae.W_enc)
        control.W_dec = nn.Parameter(sae.W_dec @ rotation.T)
    return control


def save_sae(sae: Sae, folder: Path | str, metadata: dict) -> None:
    """Write a SAELens folder: `sae_weights.safetensors` and `cfg.json`.

    Args:
        sae: an SAE for unscaled activations, in float32.
        folder: the folder to write.
        metadata: provenance, in keys of our own, which SAELens keeps. `max_norm` is added to it, null if infinite, and
            `centred` if it is true.
    """
    max_norm = sae.max_norm if math.isfinite(sae.max_norm) else None
    with atomic_path(Path(folder, WEIGHTS_FILE)) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}, temporary)
    config = SAELENS_SETTINGS | {
        "architecture": SAELENS_NAMES[sae.architecture],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "model_class_name": "AutoModelForCausalLM",
            "max_norm": max_norm,
            **({"centred": True} if sae.centred else {}),
            **metadata,
        },
    }
    if sae.architecture == "topk":
        config["k"] = sae.k
    else:
        del config["rescale_acts_by_decoder_norm"]
    write_json(Path(folder, CONFIG_FILE), config)


def load_sae(folder: Path | str) -> Sae:
    """Read a SAELens folder of one of the architectures here.

    Raises:
        InputError: if the folder does not hold such an SAE, or its tensors do not have the shapes in its config.
    """
    path = Path(folder, CONFIG_FILE)
    config = read_json(path)
    require_settings(config, SAELENS_SETTINGS, path)
    return sae_of_saelens(config, read_tensors(Path(folder, WEIGHTS_FILE)), folder)


def read_tensors(path: Path | str, remedy: str = "delete it and run again") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        InputError: if the file is not whole or too large for this machine, or PyTorch cannot compute with a tensor.
    """
    tensor_shapes(path, remedy)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is not a whole safetensors file ({error}); {remedy}") from error
    require_numbers(tensors, path, remedy)
    return tensors


def recorded_l0(folder: Path | str) -> float | None:
    """Mean number of active latents per token that an SAE's folder records; None if it does not.

    Imported SAEs have one, and so do SAEs whose training starts from one of these.
    """
    l0 = read_json(Path(folder, CONFIG_FILE)).get("metadata", {}).get("l0")
    return float(l0) if isinstance(l0, int | float) else None


def require_numbers(tensors: Mapping[str, Tensor], where: Path | str, remedy: str) -> None:
    """Refuse complex numbers, single bits and floats of 8 bits or fewer, with which PyTorch can compute little.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (*FLOATS, *INTEGERS):
            raise InputError(
                f"'{where}': weights must be floats of 16 bits or more, but {name[:80]} is {tensor.dtype}; {remedy}"
            )


def require_finite(weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Refuse weights that are infinite or NaN.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, weight in weights.items():
        if not all(bool(torch.isfinite(part).all()) for part in weight.flatten().split(CHECKED_VALUES)):
            raise InputError(f"'{where}': weights must be finite, but {name} is not; use another checkpoint")


def sae_of_saelens(config: dict, tensors: dict[str, Tensor], folder: Path | str) -> Sae:
    """Make an SAE with the architecture and sizes of a SAELens config; its other settings are ignored.

    Raises:
        InputError: naming `folder`, if the architecture is none of those here, or the tensors do not fit the config.
    """
    require_architecture(config, f"{folder}/{CONFIG_FILE}")
    names = {saelens: ours for ours, saelens in SAELENS_NAMES.items()}
    keys = ("d_in", "d_sae", "k") if config["architecture"] == "topk" else ("d_in", "d_sae")
    sizes = [size for key in keys if is_size(size := config.get(key))]
    if len(sizes) < len(keys):
        raise InputError(
            f"'{folder}/{CONFIG_FILE}': d_in, d_sae and k must be whole numbers above 0, got "
            f"{[config.get(key) for key in keys]}; correct them"
        )
    sae = sae_of(names[config["architecture"]], *sizes, tensors=tensors, where=folder)
    metadata = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    max_norm = metadata.get("max_norm")
    if max_norm is not None and not (type(max_norm) in (int, float) and 0 < max_norm < MOST_NORM):
        raise InputError(
            f"'{folder}/{CONFIG_FILE}': metadata.max_norm must be a number above 0, not {max_norm!r:.80}; correct it"
        )
    sae.max_norm = math.inf if max_norm is None else float(max_norm)
    sae.centred = metadata.get("centred") is True
    return sae


def is_size(value: object) -> TypeGuard[int]:
    """True for a value from a file that can be a size of an SAE: an integer from 1 to 2^30."""
    return type(value) is int and 0 < value <= 2**30


def sae_of(
    architecture: str, d_in: int, d_sae: int, k: int | None = None, *, tensors: dict[str, Tensor], where: Path | str
) -> Sae:
    """Make an SAE with these weights, in float32 and evaluation mode.

    Args:
        architecture, d_in, d_sae, k: as in the SAE's config.
        tensors: weights under the names of `Sae`, in any number format.
        where: the source of the weights, for error messages.

    Raises:
        InputError: naming `where`, if k does not fit d_sae, or the weights have other names or shapes than expected or
            are not finite.
    """
    if architecture == "topk" and not 1 <= (k or 0) <= d_sae:
        raise InputError(f"'{where}': k must be between 1 and d_sae = {d_sae}, its config says {k}; correct it")
    with torch.device("meta"):  # allocates nothing, because the config's sizes are not trusted
        sae = Sae(architecture, d_in, d_sae, k)
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != shapes:
        raise InputError(
            f"'{where}': its config needs tensors {expected}, the weights file holds {str(shapes)[:500]}; correct one"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise InputError(
                f"'{where}': weights must be floats of 16 bits or more, but {name} is {tensor.dtype}; convert them"
            )
    weights = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    require_finite(weights, where)  # after the conversion, because a float64 may overflow in float32
    sae.load_state_dict(weights, assign=True)
    return sae.eval()
