"""Sparse autoencoders: what they compute, and their folder on disk, which is SAELens's own format.

Architectures, by what they compute once trained (`sae_objectives` says how each is trained):
    `relu`: ReLU, Bricken et al., "Towards Monosemanticity" (2023); SAELens calls it `standard`.
    `topk`: Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), equation 1.
    `jumprelu`: Rajamanoharan et al., "Jumping Ahead" (arXiv 2407.14435), equation 4. BatchTopK and Matryoshka SAEs are this, with
        one threshold for all latents.
    `gated`: Rajamanoharan et al., "Improving dictionary learning with gated sparse autoencoders" (arXiv 2404.16014), equation 5.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saelineage.errors import InputError
from saelineage.files import atomic_path, read_json, write_json

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


def save_sae(sae: Sae, folder: Path | str, metadata: dict) -> None:
    """Write a SAELens folder: `sae_weights.safetensors` and `cfg.json`.

    Args:
        sae: float32 weights that take activations as the model makes them (any training scale folded in).
        folder: where to.
        metadata: provenance; SAELens keeps keys it does not know.
    """
    with atomic_path(Path(folder, WEIGHTS_FILE)) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}, temporary)
    config = SAELENS_SETTINGS | {
        "architecture": SAELENS_ARCHITECTURES[sae.architecture],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "metadata": {"sae_lens_version": SAELENS_VERSION, "model_class_name": "AutoModelForCausalLM", **metadata},
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
    config = read_json(Path(folder, CONFIG_FILE))
    names = {saelens: ours for ours, saelens in SAELENS_ARCHITECTURES.items()}
    if config.get("architecture") not in list(names):
        raise InputError(
            f"'{folder}/{CONFIG_FILE}': architecture must be one of {sorted(names)}, not {config.get('architecture')!r}"
        )
    for key, value in SAELENS_SETTINGS.items():
        if config.get(key, value) != value:
            raise InputError(f"'{folder}/{CONFIG_FILE}': {key} must be {value!r}, not {config[key]!r}, to be read here")
    sizes = [config.get(key) for key in ("d_in", "d_sae", "k")[: 3 if config["architecture"] == "topk" else 2]]
    if not all(type(size) is int and 0 < size <= 2**30 for size in sizes):
        raise InputError(f"'{folder}/{CONFIG_FILE}': d_in, d_sae and k must be whole numbers above 0, got {sizes}")
    try:
        tensors = load_file(Path(folder, WEIGHTS_FILE))
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{folder}/{WEIGHTS_FILE}' is not a whole safetensors file ({error}); delete it and run again"
        ) from error
    with torch.device("meta"):  # nothing is allocated for what the config claims
        sae = Sae(names[config["architecture"]], *sizes)
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise InputError(f"'{folder}': its config needs tensors {expected}, the weights file holds {found}")
    sae.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return sae.eval()
