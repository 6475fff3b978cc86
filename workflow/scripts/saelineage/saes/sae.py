"""Sparse autoencoders: what they compute, and their folder on disk, which is SAELens's own format.

Architectures, by what they compute once trained (`sae_objectives` says how each is trained):
    `relu`: ReLU, Bricken et al., "Towards Monosemanticity" (2023); SAELens calls it `standard`.
    `topk`: Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), equation 1.
    `jumprelu`: Rajamanoharan et al., "Jumping Ahead" (arXiv 2407.14435), equation 4. BatchTopK and Matryoshka SAEs are
        this, with one threshold for all latents.
    `gated`: Rajamanoharan et al., "Improving dictionary learning with gated sparse autoencoders" (arXiv 2404.16014),
        equation 5.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, read_json, write_json
from saelineage.files.foreign import tensor_shapes

SAELENS_ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
PER_LATENT = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""The tensors [d_sae] of each architecture."""
SAELENS_VERSION = "6.54.12"  # the version whose format this is; its loader rewrites what claims to be older than 6
SAELENS_SETTINGS = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,  # topk only
}
"""What SAELens can do to activations on their way, and the SAEs here do not; the values are its defaults as well."""
WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
MOST_NORM = 1e38
"""What float32 can hold."""


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
        b_enc, threshold, b_gate, b_mag, r_mag: [d_sae], as `PER_LATENT` says.
        max_norm: tokens with longer activations were left out of training, and mean nothing to it.
    """

    def __init__(self, architecture: str, d_in: int, d_sae: int, k: int | None = None):
        """All weights zero; see `sae_training.train_saes` and `load_sae` for weights.

        Raises:
            InputError: if k is not between 1 and d_sae (topk).
        """
        super().__init__()
        if architecture == "topk":
            check_k(k, d_in, d_sae)
        self.architecture, self.d_in, self.d_sae = architecture, d_in, d_sae
        self.k = k if architecture == "topk" else None
        self.max_norm = math.inf
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        for name in PER_LATENT[architecture]:
            self.register_parameter(name, nn.Parameter(torch.zeros(d_sae)))

    def encode(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations, dense."""
        raw = (acts - self.b_dec) @ self.W_enc
        if self.architecture == "gated":
            return (raw * self.r_mag.exp() + self.b_mag).relu() * (raw + self.b_gate > 0)
        pre_acts = raw + self.b_enc
        if self.architecture == "topk":
            values, indices = pre_acts.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre_acts).scatter_(-1, indices, values.relu())
        return pre_acts.relu() * (pre_acts > self.threshold) if self.architecture == "jumprelu" else pre_acts.relu()

    def decode(self, latent_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstructions from latent activations."""
        return latent_acts @ self.W_dec + self.b_dec

    def decode_sparse(self, latents: "SparseLatents") -> Float[Tensor, "token d_in"]:
        """Reconstructions from sparse latent activations: a product for each entry, not for each latent."""
        shape = (len(latents.indptr) - 1, self.d_sae)
        rows = torch.sparse_csr_tensor(
            latents.indptr, latents.indices.long(), latents.values, shape, check_invariants=False
        )
        return rows @ self.W_dec + self.b_dec

    def forward(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstructions of activations."""
        return self.decode(self.encode(acts))

    @torch.inference_mode()
    def encode_sparse(self, acts: Float[Tensor, "token d_in"]) -> "SparseLatents":
        """Latent activations as compressed sparse rows, latents in ascending order within a token."""
        if self.architecture == "topk":
            pre_acts = (acts - self.b_dec) @ self.W_enc + self.b_enc
            kept = pre_acts.topk(self.k, dim=1, sorted=False).indices.sort(dim=1).values
            fires = (kept_acts := pre_acts.gather(1, kept)) > 0
            token, latent, values = fires.nonzero(as_tuple=True)[0], kept[fires], kept_acts[fires]
        else:
            latent_acts = self.encode(acts)
            token, latent = latent_acts.nonzero(as_tuple=True)
            values = latent_acts[token, latent]
        counts = torch.bincount(token, minlength=len(acts))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return SparseLatents(indptr, latent.int(), values)


class SparseLatents(NamedTuple):
    """Latent activations of consecutive tokens as compressed sparse rows."""

    indptr: Int[Tensor, " token_plus_1"]
    """Token i's entries are indptr[i] to indptr[i + 1]."""
    indices: Int[Tensor, " entry"]
    """The latent of each entry."""
    values: Float[Tensor, " entry"]
    """Its activation, > 0."""


def n_latents(d_in: int, expansion_factor: float) -> int:
    """d_sae for an input width."""
    return max(1, round(d_in * expansion_factor))


def check_k(k: int | None, d_in: int, d_sae: int) -> None:
    """Refuse a k that an SAE of this size cannot have.

    Raises:
        InputError: if k is not between 1 and d_sae.
    """
    if not 1 <= (k or 0) <= d_sae:
        raise InputError(
            f"saes.k must be between 1 and d_sae = {d_sae} (d_in {d_in} x expansion_factor), got {k}; lower it"
        )


def average(saes: Sequence[Sae]) -> Sae:
    """The SAE whose weights are the means of others', latent by latent.

    It means something where latents with equal numbers mean the same: in SAEs that started from one.

    Raises:
        InputError: if they differ in architecture, size or k.
    """
    kinds = {(sae.architecture, sae.d_in, sae.d_sae, sae.k) for sae in saes}
    if len(kinds) > 1:
        raise InputError(
            f"SAEs that are averaged must have one architecture, d_in, d_sae and k, but have {sorted(kinds, key=str)}; "
            "give the models under saes.models the same settings"
        )
    mean = deepcopy(saes[0])
    others = [dict(sae.named_parameters()) for sae in saes]
    with torch.no_grad():
        for name, weight in mean.named_parameters():
            weight.copy_(torch.stack([other[name] for other in others]).mean(0))
    return mean


def rotated(sae: Sae, seed: int) -> Sae:
    """The same SAE for activations rotated around its b_dec by a random rotation, drawn from `seed`.

    Reading it on activations as they are gives the latents that the SAE itself would have on rotated ones: a null, as
    in Gurnee et al., arXiv 2401.12181, section 3. The rotation is uniform over the orthogonal group (QR of a Gaussian
    matrix, with signs after Mezzadri 2007, Notices of the AMS 54, 592-604).
    """
    generator = torch.Generator().manual_seed(seed)
    d_in = len(sae.W_enc)
    gaussian = torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rotation = (q * r.diagonal().sign()).to(sae.W_enc.dtype)
    null = deepcopy(sae)
    with torch.no_grad():
        null.W_enc.copy_(rotation @ sae.W_enc)
        null.W_dec.copy_(sae.W_dec @ rotation.T)
    return null


def save_sae(sae: Sae, folder: Path | str, metadata: dict) -> None:
    """Write a SAELens folder: `sae_weights.safetensors` and `cfg.json`.

    Args:
        sae: float32 weights that take activations as the model makes them (any training scale folded in).
        folder: where to.
        metadata: provenance; SAELens keeps keys it does not know. The SAE's `max_norm` is written beside it, null for
            none.
    """
    max_norm = sae.max_norm if math.isfinite(sae.max_norm) else None
    with atomic_path(Path(folder, WEIGHTS_FILE)) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}, temporary)
    config = SAELENS_SETTINGS | {
        "architecture": SAELENS_ARCHITECTURES[sae.architecture],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "model_class_name": "AutoModelForCausalLM",
            "max_norm": max_norm,
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
        InputError: if the folder does not hold such an SAE, or its tensors do not have the shapes its config says.
    """
    path = Path(folder, CONFIG_FILE)
    config = read_json(path)
    require_settings(config, SAELENS_SETTINGS, path)
    return sae_of_saelens(config, read_tensors(Path(folder, WEIGHTS_FILE)), folder)


def require_settings(config: dict, settings: dict, path: Path | str) -> None:
    """Refuse a config in which one of these settings is there and differs.

    Raises:
        InputError: naming the first that does.
    """
    for key, value in settings.items():
        if config.get(key, value) != value:
            raise InputError(f"'{path}': {key} must be {value!r}, not {config[key]!r}, to be read here")


def read_tensors(path: Path | str, remedy: str = "delete it and run again") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: if it is not a whole one, too large for this machine, or holds what cannot be computed with.
    """
    tensor_shapes(path, remedy)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is not a whole safetensors file ({error}); {remedy}") from error
    require_numbers(tensors, path, remedy)
    return tensors


def require_numbers(tensors: Mapping[str, Tensor], where: Path | str, remedy: str) -> None:
    """Refuse complex numbers, single bits and floats of 8 bits or fewer, which PyTorch hardly computes with.

    Raises:
        InputError: naming the first tensor of such numbers.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (*FLOATS, *INTEGERS):
            raise InputError(
                f"'{where}': weights must be floats of 16 bits or more, but {name[:80]} is {tensor.dtype}; {remedy}"
            )


def require_finite(weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Refuse weights that are infinite or no numbers.

    Raises:
        InputError: naming the first tensor that holds one.
    """
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"'{where}': weights must be finite, but {name} is not; take another checkpoint")


def sae_of_saelens(config: dict, tensors: dict[str, Tensor], folder: Path | str) -> Sae:
    """An SAE with the architecture and sizes of a SAELens config, whatever its other settings.

    Raises:
        InputError: naming `folder`, if there is no such architecture here, or the tensors are not those of the config.
    """
    names = {saelens: ours for ours, saelens in SAELENS_ARCHITECTURES.items()}
    if config.get("architecture") not in list(names):
        raise InputError(
            f"'{folder}/{CONFIG_FILE}': architecture must be one of {sorted(names)}, not {config.get('architecture')!r}"
        )
    sizes = [config.get(key) for key in ("d_in", "d_sae", "k")[: 3 if config["architecture"] == "topk" else 2]]
    if not all(is_size(size) for size in sizes):
        raise InputError(f"'{folder}/{CONFIG_FILE}': d_in, d_sae and k must be whole numbers above 0, got {sizes}")
    sae = sae_of(names[config["architecture"]], *sizes, tensors=tensors, where=folder)
    metadata = config.get("metadata")
    max_norm = metadata.get("max_norm") if isinstance(metadata, dict) else None
    if max_norm is not None and not (type(max_norm) in (int, float) and 0 < max_norm < MOST_NORM):
        raise InputError(
            f"'{folder}/{CONFIG_FILE}': metadata.max_norm must be a number above 0, not {max_norm!r:.80}; correct it"
        )
    sae.max_norm = math.inf if max_norm is None else float(max_norm)
    return sae


def is_size(value: object) -> bool:
    """Whether a value from a file can be the number of anything in an SAE."""
    return type(value) is int and 0 < value <= 2**30


def sae_of(
    architecture: str, d_in: int, d_sae: int, k: int | None = None, *, tensors: dict[str, Tensor], where: Path | str
) -> Sae:
    """An SAE with these weights, in float32 and for measuring.

    Args:
        architecture, d_in, d_sae, k: what it must be, as its config says.
        tensors: its weights under the names of `Sae`, in any number format.
        where: what they were read from, for error messages.

    Raises:
        InputError: naming `where`, if k is none for so many latents, or weights are missing, too many, of another shape
            or not finite.
    """
    if architecture == "topk" and not 1 <= (k or 0) <= d_sae:
        raise InputError(f"'{where}': k must be between 1 and d_sae = {d_sae}, its config says {k}; correct it")
    with torch.device("meta"):  # nothing is allocated for what the config claims
        sae = Sae(architecture, d_in, d_sae, k)
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise InputError(
            f"'{where}': its config needs tensors {expected}, the weights file holds {str(found)[:500]}; correct either"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise InputError(f"'{where}': weights must be floats of 16 bits or more, but {name} is {tensor.dtype}")
    weights = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    require_finite(weights, where)  # as float32, which not every float64 fits into
    sae.load_state_dict(weights, assign=True)
    return sae.eval()
