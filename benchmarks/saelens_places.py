"""Compare the latents that SAELens finds with an SAE's metadata alone with those of this project, on the same tokens.

    python -m benchmarks.saelens_places results/RUN [--rows 64] [--json FILE]

SAELens opens every SAE of the run and the model that its metadata names, and reads the hook that it names with its
`run_with_cache`. TransformerLens opens no models but those that it lists, so for its hooks the run's model is converted
by TransformerLens's own functions. Run it where Snakemake ran (models have paths relative to that), in a separate
environment with this project (`pip install -e .`) and benchmarks/requirements.txt.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelineage.activations import read_activations
from saelineage.models.loading import load_model
from saelineage.saes.sae import load_sae

# SAELens imports torchvision if it is installed, and fails if its build does not match torch's.
sys.modules["torchvision"] = None  # type: ignore[assignment]  # None makes imports fail, as Python documents


class Comparison(NamedTuple):
    """One SAE, read by both."""

    sae: str
    model_class: str
    hook_name: str | None
    n_tokens: int
    acts: float | None
    """Largest difference of the activations; None where the metadata names no place."""
    largest_act: float
    latents: float | None
    """Largest difference of the latents."""
    largest_latent: float
    same_active: float | None
    """Share of (token, latent) that fire for one that fire for both."""


@torch.no_grad()
def compare(run: Path, folder: Path, n_rows: int) -> Comparison:
    """Encode the first training rows of every corpus with both."""
    import sae_lens
    from sae_lens.load_model import load_model as load_in_saelens

    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    ids = torch.from_numpy(
        np.concatenate([np.load(path)[:n_rows] for path in sorted(run.glob("tokens/*/train.npy"))]).astype(np.int64)
    )
    kept = ~torch.isin(ids, torch.tensor(metadata.get("exclude_special_tokens") or []))
    kept[:, 0] = False
    hookpoint = metadata["saelineage"]["hookpoint"]
    acts = read_activations(load_model(run / "models" / folder.parent.name), hookpoint, ids)[kept]
    latents = load_sae(folder).encode(acts)
    name = f"{folder.parent.name}.{folder.name}"
    largest = float(acts.abs().max()), float(latents.max())
    hook = metadata["hook_name"]
    if hook is None:
        return Comparison(name, "", None, int(kept.sum()), None, largest[0], None, largest[1], None)
    sae = sae_lens.SAE.load_from_disk(str(folder))
    described: Any = sae.cfg.metadata
    if described.model_class_name == "HookedTransformer":
        model = in_transformer_lens(described.model_name)
    else:
        kwargs = described.model_from_pretrained_kwargs
        model = load_in_saelens(described.model_class_name, described.model_name, "cpu", kwargs)
    cache = model.run_with_cache(ids, names_filter=[described.hook_name])[1]
    theirs: Tensor = cache[described.hook_name].flatten(2)[kept]
    their_latents = sae.encode(theirs)
    both, either = ((latents > 0) & (their_latents > 0)).sum(), ((latents > 0) | (their_latents > 0)).sum()
    return Comparison(
        name,
        described.model_class_name,
        hook,
        int(kept.sum()),
        float((theirs - acts).abs().max()),
        largest[0],
        float((their_latents - latents).abs().max()),
        largest[1],
        float(both / either),
    )


def in_transformer_lens(folder: str) -> Any:
    """A model in a folder as TransformerLens's class, without changes to its weights."""
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    hf_model = load_model(folder)
    rope = getattr(hf_model.config, "rope_parameters", None)
    if rope and not hasattr(hf_model.config, "rope_theta"):  # where TransformerLens 2 looks for it
        setattr(type(hf_model.config), "rope_theta", rope["rope_theta"])  # noqa: B010
    config = loading.get_pretrained_model_config(str(Path(folder).resolve()), device="cpu", fold_ln=False)
    model = HookedTransformer(config)
    state = loading.get_pretrained_state_dict(folder, config, hf_model)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def main() -> None:
    """Print a row per SAE, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--rows", type=int, default=64, help="rows of each corpus")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        compare(arguments.run, path.parent, arguments.rows)
        for path in sorted(arguments.run.glob("saes/*/*/*/cfg.json"))
    ]
    columns = ("tokens", "d acts", "of", "d latents", "of", "same")
    print(f"{'SAE':24} {'model class':22} {'hook name':36}" + "".join(f" {column:>9}" for column in columns))
    for row in rows:
        numbers = ((row.acts, row.largest_act), (row.latents, row.largest_latent))
        shown = "".join(f" {'' if value is None else f'{value:.2e}':>9} {largest:9.3g}" for value, largest in numbers)
        same = "" if row.same_active is None else f"{row.same_active:.6f}"
        print(f"{row.sae:24} {row.model_class:22} {row.hook_name or '(none)':36} {row.n_tokens:9}{shown} {same:>9}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
