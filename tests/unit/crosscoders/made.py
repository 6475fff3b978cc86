"""Small crosscoders and dumps for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.files.atomic import encode_header
from saelineage.saes.batches import Scaling
from saelineage.saes.sae import Sae


def write_shard(path: Path, acts: Tensor, first_row: int = 0, not_shared: tuple[int, ...] = (), **header) -> Path:
    """An activation shard of one token a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    covered = {"ids_sha256": "0" * 8, "first_row": first_row, "stop_row": first_row + len(acts), "n_ctx": 1}
    norms = acts.float().norm(dim=1)
    norms[list(not_shared)] = torch.nan
    tensors = {"acts": acts.contiguous(), "norms": norms, "positions": torch.arange(len(acts)) + first_row}
    save_file(tensors, path, metadata=encode_header({"hookpoint": "layer.output", **covered, **header}))
    return path


def write_dumps(folder: Path, acts: Mapping[str, Tensor], n_shards: int = 2) -> dict[str, list[Path]]:
    """Shards of each model's activations."""
    paths: dict[str, list[Path]] = {}
    for model, of_model in acts.items():
        first_row = 0
        for number, part in enumerate(of_model.tensor_split(n_shards)):
            paths.setdefault(model, []).append(write_shard(folder / model / f"{number}.safetensors", part, first_row))
            first_row += len(part)
    return paths


def crosscoder_of(
    W_dec: np.ndarray | Tensor, architecture: str = "relu", k: int | None = None, seed: int = 0, **scalings: Scaling
) -> Crosscoder:
    """A crosscoder with these decoders [n_models, d_sae, d_in] and random other weights.

    Models are named a, b, c, ... and not scaled, unless `scalings` names them.
    """
    W_dec = torch.as_tensor(W_dec)
    n_models, d_sae, d_in = W_dec.shape
    random = torch.Generator().manual_seed(seed)
    sae = Sae(architecture, n_models * d_in, d_sae, k)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 2)
        if architecture == "jumprelu":
            sae.threshold.abs_()
        sae.W_dec.copy_(W_dec.transpose(0, 1).reshape(d_sae, -1))
    return Crosscoder(sae, scalings or {name: Scaling(torch.zeros(d_in), 1.0) for name in "abcd"[:n_models]})
