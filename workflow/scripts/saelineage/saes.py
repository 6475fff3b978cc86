"""Sparse autoencoders: what they compute, and their folder on disk, which is SAELens's own format.

Architectures:
    `topk`: Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), equation 1.
    `relu`: ReLU with an L1 penalty, Bricken et al., "Towards Monosemanticity" (2023); SAELens calls it `standard`.
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

SAELENS_ARCHITECTURES = {"topk": "topk", "relu": "standard"}
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
    """A sparse autoencoder with SAELens's names and shapes.

    latent_acts = activation((acts - b_dec) W_enc + b_enc), recons = latent_acts W_dec + b_dec,
    where the activation is ReLU, followed for `topk` by keeping the k largest values of each token.

    Attributes:
        W_enc: [d_in, d_sae].
        b_enc: [d_sae].
        W_dec: [d_sae, d_in].
        b_dec: [d_in].
    """

    def __init__(self, architecture: str, d_in: int, d_sae: int, k: int | None = None):
        """All weights zero; see `sae_training.initialise` and `load_sae` for weights.

        Raises:
            InputError: if k is not between 1 and d_sae (topk).
        """
        super().__init__()
        if architecture == "topk" and not 1 <= (k or 0) <= d_sae:
            raise InputError(
                f"saes.k must be between 1 and d_sae = {d_sae} (d_in {d_in} x expansion_factor), got {k}; lower it"
            )
        self.architecture, self.d_in, self.d_sae = architecture, d_in, d_sae
        self.k = k if architecture == "topk" else None
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def encode(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations, dense."""
        pre_acts = self.pre_activations(acts)
        if self.architecture == "relu":
            return pre_acts.relu()
        values, indices = pre_acts.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre_acts).scatter_(-1, indices, values.relu())

    def pre_activations(self, acts: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """What the activation function is applied to."""
        return (acts - self.b_dec) @ self.W_enc + self.b_enc

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
        pre_acts = self.pre_activations(acts)
        if self.architecture == "relu":
            token, latent = (pre_acts > 0).nonzero(as_tuple=True)
            values = pre_acts[token, latent]
        else:
            kept = pre_acts.topk(self.k, dim=1, sorted=False).indices.sort(dim=1).values
            fires = (kept_acts := pre_acts.gather(1, kept)) > 0
            token, latent, values = fires.nonzero(as_tuple=True)[0], kept[fires], kept_acts[fires]
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
