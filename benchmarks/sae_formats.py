"""Compare SAEs imported from other libraries' files, and our SAEs opened by SAELens, with those libraries' results.

    python -m benchmarks.sae_formats [--json FILE]

Run it in a separate environment, with this project (`pip install -e .`) and benchmarks/requirements.txt.
"""

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from saelineage.foreign.sae_formats.registry import local_source
from saelineage.saes.imports import read_sae
from saelineage.saes.sae import PER_LATENT, Sae, save_sae

# The other libraries import torchvision if it is installed, and fail if its build does not match torch's, although they
# do not use it.
sys.modules["torchvision"] = None  # type: ignore[assignment]  # None makes imports fail, as Python documents

T = TypeVar("T", bound=nn.Module)
D_IN, D_SAE, K, N_TOKENS = 16, 64, 6, 512
THRESHOLD, FACTOR, N_HEADS = 0.7, 0.6, 4


class Peer(NamedTuple):
    """An SAE of another library."""

    library: str
    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    save: Callable[[Path], object]
    settings: Mapping[str, object] = {}
    """Keys of the `import` block that it needs."""


class Difference(NamedTuple):
    """Largest differences between two computations of one SAE."""

    direction: str
    library: str
    name: str
    latents: float
    recons: float
    l0: float


def randomise(sae: T) -> T:
    """Draw nonzero weights and biases, and positive thresholds."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            is_matrix = parameter.ndim == 2
            parameter.copy_(torch.randn(parameter.shape) * (D_IN**-0.5 if is_matrix else 0.3))
            if name.endswith("threshold"):
                parameter.abs_()
    return sae


def saelens_peers() -> Iterator[Peer]:
    """Yield every inference architecture of SAELens that we read."""
    from sae_lens import saes

    common: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    unsubtracted: dict[str, Any] = {"apply_b_dec_to_input": False}
    inference_classes: list[tuple[Any, Any, dict[str, Any]]] = [
        (saes.StandardSAE, saes.StandardSAEConfig, {}),
        (saes.StandardSAE, saes.StandardSAEConfig, unsubtracted),
        (saes.TopKSAE, saes.TopKSAEConfig, {"k": K}),
        (saes.TopKSAE, saes.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        (saes.TopKSAE, saes.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True} | unsubtracted),
        (saes.JumpReLUSAE, saes.JumpReLUSAEConfig, {}),
        (saes.JumpReLUSAE, saes.JumpReLUSAEConfig, unsubtracted),
        (saes.GatedSAE, saes.GatedSAEConfig, {}),
        (saes.GatedSAE, saes.GatedSAEConfig, unsubtracted),
    ]
    for sae_class, config_class, settings in inference_classes:
        sae = randomise(sae_class(config_class(**common, **settings)))
        name = ", ".join([sae_class.__name__, *(f"{key}={value}" for key, value in settings.items() if key != "k")])
        yield Peer("sae_lens", name, sae.encode, sae.decode, sae.save_model)
    yield scaled_peer()
    yield heads_peer()
    yield doubled_peer()


def saelens_checkpoints() -> Iterator[Peer]:
    """Yield SAELens's training classes, saved for inference and as checkpoints within a training and at its end."""
    from sae_lens import saes

    batch: dict[str, Any] = {"k": K}
    nested = batch | {"matryoshka_widths": [D_SAE // 4, D_SAE]}
    unscaled: dict[str, Any] = {"rescale_acts_by_decoder_norm": False}
    unsubtracted: dict[str, Any] = {"apply_b_dec_to_input": False}
    classes: list[tuple[Any, Any, dict[str, Any]]] = [
        (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig, batch),
        (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig, batch | unscaled),
        (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig, batch | unsubtracted),
        (saes.MatryoshkaBatchTopKTrainingSAE, saes.MatryoshkaBatchTopKTrainingSAEConfig, nested),
        (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig, batch),
        (saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig, {}),
        (saes.GatedTrainingSAE, saes.GatedTrainingSAEConfig, {}),
        (saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig, {}),
    ]
    for sae_class, config_class, settings in classes:
        sae = randomise(sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **settings)))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(THRESHOLD)
        given = {key: value for key, value in settings.items() if key not in nested}
        name = ", ".join([sae_class.__name__, *(f"{key}={value}" for key, value in given.items())])
        opened = for_inference(sae)
        yield Peer("sae_lens", f"{name} for inference", opened.encode, opened.decode, sae.save_inference_model)
        yield Peer("sae_lens", f"{name}, final checkpoint", opened.encode, opened.decode, sae.save_model)
        yield within_training(sae, f"{name}, earlier checkpoint")


def for_inference(sae: Any) -> Any:
    """Save an SAE of a training class for inference with SAELens, and open it."""
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder)


def within_training(sae: Any, name: str) -> Peer:
    """A checkpoint whose factor lies beside it, and what SAELens's end of training makes of that."""
    sae = copy.deepcopy(sae)
    sae.cfg.normalize_activations = "expected_average_only_in"
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(FACTOR)
    opened = for_inference(folded)

    def save(folder: Path) -> None:
        from sae_lens.training.activation_scaler import ActivationScaler

        sae.save_model(folder)
        ActivationScaler(FACTOR).save(str(folder / "activation_scaler.json"))

    return Peer("sae_lens", name, opened.encode, opened.decode, save)


def scaled_peer() -> Peer:
    """An SAE whose factor is in SAELens's registry and not in its files."""
    from sae_lens import saes

    config = saes.StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="expected_average_only_in")
    sae = randomise(saes.StandardSAE(config))
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(FACTOR)
    settings = {"norm_scaling_factor": FACTOR}
    return Peer("sae_lens", "StandardSAE, norm_scaling_factor", folded.encode, folded.decode, sae.save_model, settings)


def heads_peer() -> Peer:
    """An SAE of heads, which SAELens gives as [token, head, d_head]."""
    from sae_lens import saes
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    config = saes.StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, reshape_activations="hook_z", metadata=metadata)
    sae = randomise(saes.StandardSAE(config))
    return Peer(
        "sae_lens",
        "StandardSAE, reshape_activations=hook_z",
        lambda acts: sae.encode(acts.unflatten(-1, (N_HEADS, -1))),
        lambda latents: sae.decode(latents).flatten(-2),
        sae.save_model,
    )


def doubled_peer() -> Peer:
    """An SAE with latents of both signs, saved as our refusal of it says."""
    from sae_lens import saes

    sae = randomise(saes.AbsTopKSAE(saes.AbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)))
    doubled = saes.TopKSAE(saes.TopKSAEConfig(d_in=D_IN, d_sae=2 * D_SAE, k=K))
    doubled.W_enc.data = torch.cat([sae.W_enc, -sae.W_enc], 1)
    doubled.b_enc.data = torch.cat([sae.b_enc, -sae.b_enc])
    doubled.W_dec.data = torch.cat([sae.W_dec, -sae.W_dec])
    doubled.b_dec.data = sae.b_dec.data

    def encode(acts: Tensor) -> Tensor:
        signed = sae.encode(acts)
        return torch.cat([signed.relu(), (-signed).relu()], 1)

    def decode(latents: Tensor) -> Tensor:
        return sae.decode(latents[:, :D_SAE] - latents[:, D_SAE:])

    return Peer("sae_lens", "AbsTopKSAE as TopKSAE of twice the latents", encode, decode, doubled.save_model)


def dictionary_learning_peers() -> Iterator[Peer]:
    """Yield every dictionary class of dictionary-learning, as `load_dictionary` opens it."""
    from dictionary_learning import dictionary, utils
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    groups = [D_SAE // 4, D_SAE - D_SAE // 4]
    made: list[Any] = [
        dictionary.AutoEncoder(D_IN, D_SAE),
        dictionary.AutoEncoderNew(D_IN, D_SAE),
        dictionary.GatedAutoEncoder(D_IN, D_SAE),
        dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        top_k.AutoEncoderTopK(D_IN, D_SAE, K),
        batch_top_k.BatchTopKSAE(D_IN, D_SAE, K),
        matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, groups),
    ]
    for sae in made:
        randomise(sae)
        name, buffers = type(sae).__name__, dict(sae.named_buffers())
        if "threshold" in buffers:
            sae.threshold.fill_(THRESHOLD)
        config = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE} | ({"k": K} if "k" in buffers else {})

        def save(folder: Path, sae: nn.Module = sae, config: dict = config) -> None:
            torch.save(sae.state_dict(), folder / "ae.pt")
            (folder / "config.json").write_text(json.dumps({"trainer": config}))

        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            opened, _ = utils.load_dictionary(folder, "cpu")
        yield Peer("dictionary_learning", name, opened.encode, opened.decode, save)


def sparsify_peers() -> Iterator[Peer]:
    """Yield sparse coders of sparsify."""
    from sparsify import SparseCoder, SparseCoderConfig

    variants: list[dict[str, Any]] = [{"num_latents": D_SAE}, {"expansion_factor": D_SAE // D_IN, "multi_topk": True}]
    for settings in variants:
        sae = randomise(SparseCoder(D_IN, SparseCoderConfig(k=K, **settings)))

        def encode(acts: Tensor, sae: SparseCoder = sae) -> Tensor:
            values, indices, _ = sae.encode(acts)
            return torch.zeros(len(acts), D_SAE).scatter_(1, indices, values)

        def decode(latents: Tensor, sae: SparseCoder = sae) -> Tensor:
            return sae.decode(*latents.topk(K))

        name = ", ".join(["SparseCoder", *(f"{key}={value}" for key, value in settings.items())])
        yield Peer("sparsify", name, encode, decode, sae.save_to_disk)


def imported(peer: Peer, acts: Tensor) -> Difference:
    """Save an SAE with its library, import it, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        peer.save(Path(folder))
        sae = read_sae(local_source({"folder": folder, "format": "auto", **peer.settings})).sae
    return difference("imported", peer, sae.encode(acts), sae(acts), acts)


def exported(architecture: str, acts: Tensor) -> Difference:
    """Save one of our SAEs, open it with SAELens, and compare."""
    from sae_lens import SAE

    sae = randomise(Sae(architecture, D_IN, D_SAE, K))
    assert set(PER_LATENT[architecture]) < set(sae.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        save_sae(sae, folder, {})
        opened = SAE.load_from_disk(folder)
    peer = Peer("sae_lens", architecture, opened.encode, opened.decode, opened.save_model)
    return difference("exported", peer, sae.encode(acts), sae(acts), acts)


def difference(direction: str, peer: Peer, latents: Tensor, recons: Tensor, acts: Tensor) -> Difference:
    """Compute the largest differences between our latents and reconstructions and the library's."""
    theirs = peer.encode(acts)
    return Difference(
        direction,
        peer.library,
        peer.name,
        float((latents - theirs).abs().max()),
        float((recons - peer.decode(theirs)).abs().max()),
        float((theirs > 0).float().sum(1).mean()),
    )


@torch.no_grad()
def main() -> None:
    """Print a row per SAE, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    acts = torch.randn(N_TOKENS, D_IN) + 0.5
    peers = [*saelens_peers(), *saelens_checkpoints(), *dictionary_learning_peers(), *sparsify_peers()]
    rows = [imported(peer, acts) for peer in peers] + [exported(architecture, acts) for architecture in PER_LATENT]
    print(f"{'':9} {'library':20} {'SAE':70} {'latents':>9} {'recons':>9} {'l0':>6}")
    for row in rows:
        print(f"{row.direction:9} {row.library:20} {row.name:70} {row.latents:9.1e} {row.recons:9.1e} {row.l0:6.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
