"""Compare speed and memory of merging two language models with mergekit.

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
    python -m benchmarks.merges --peer mergekit/bin/python [--json FILE] [--megabytes 1000 --rounds 3]

Run it from the project's folder in an environment with this project (`pip install -e .`). It makes a random Llama in
float32 and two fine-tunes of it, of a gigabyte each, under --folder, unless they are there. mergekit's command and this
project merge the two by each method, and one of them is copied, in turns, each in a process of its own with the same
number of threads. The files to read are in the page cache from the start.

- `cpu_s`: CPU-seconds of a process and its children. `clock_s`: seconds until it has ended and its files are on the
  disk; this project syncs its files itself, those of mergekit and the copy are synced for them. Of all rounds the
  smallest.
- `peak_own_gb`: the largest private memory of all rounds, from the kernel's counter of anonymous pages. This is what is
  compared. `peak_rss_gb` also counts the pages of mapped files that are in memory. Those are in the page cache, the
  kernel drops them when memory is scarce, and their number says how much there was.
- `vs_mergekit`: mergekit's time over ours, above 1 where ours is faster. `memory_ratio`: our `peak_own_gb` over
  mergekit's. `vs_copy`: our `clock_s` over the copy's. `max_difference`: between the numbers of the two merged models.

mergekit holds what it has merged until a shard of 5 GB is full; `--peer-options=--out-shard-size=200M` makes it write
earlier.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.peak_memory import PeakMemory

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[1]
METHODS = ("linear", "slerp", "ties")
T, DENSITY = 0.4, 0.2
MODELS = ("base", "a", "b")
WEIGHT_SIZE, CHANGE_SIZE = 0.02, 0.005
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


def merge(method: str, folder: Path, merged: Path) -> None:
    """Merge with this project: a and b, and for TIES their base, that lie in a folder."""
    from saelineage.models.merging.merge import merge_folders
    from saelineage.plan.merges import merge_settings

    own: dict[str, dict] = {
        "ties": {"density": DENSITY, "trim": "tensor"},
        "linear": {"weights": [1 - T, T]},
        "slerp": {"t": T},
    }
    block: dict = {
        "method": method,
        "parents": ["a", "b"],
        "base": None,
        "lines": None,
        "vocabulary": "refuse",
        "chosen_on": None,
    }
    settings = merge_settings(block | {"dtype": None} | own[method], "merge")
    base = folder / "base" if method == "ties" else None
    merge_folders(settings, [folder / "a", folder / "b"], base, merged)


def mergekit_config(method: str, folder: Path) -> dict:
    """The same for mergekit."""
    models = [{"model": str(folder / name), "parameters": {}} for name in ("a", "b")]
    config = {"merge_method": method, "dtype": "float32", "models": models, "parameters": {}}
    if method == "slerp":
        return config | {"base_model": str(folder / "a"), "parameters": {"t": T}}
    weights = (1 - T, T) if method == "linear" else (1.0, 1.0)
    for model, weight in zip(models, weights, strict=True):
        model["parameters"] = {"weight": weight} if method == "linear" else {"weight": weight, "density": DENSITY}
    return config if method == "linear" else config | {"base_model": str(folder / "base")}


def llama_shapes(megabytes: float) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """Config and tensors of a Llama in float32 of about this size."""
    d_model = max(64, round(16 * (megabytes / 1000) ** (1 / 3)) * 64)
    d_mlp, d_vocab = d_model * 11 // 4, 16 * d_model
    attention = {f"self_attn.{name}_proj": (d_model, d_model) for name in "qkvo"}
    mlp = {"mlp.gate_proj": (d_mlp, d_model), "mlp.up_proj": (d_mlp, d_model), "mlp.down_proj": (d_model, d_mlp)}
    norms = {name: (d_model,) for name in ("input_layernorm", "post_attention_layernorm")}
    layer: dict[str, tuple[int, ...]] = {**attention, **mlp, **norms}
    of_a_layer = 4 * d_model**2 + 3 * d_model * d_mlp
    n_layers = max(1, round((megabytes * 1e6 / 4 - 2 * d_vocab * d_model) / of_a_layer))
    shapes: dict[str, tuple[int, ...]] = {name: (d_vocab, d_model) for name in ("lm_head", "model.embed_tokens")}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(n_layers) for name, shape in layer.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": d_model,
        "intermediate_size": d_mlp,
        "vocab_size": d_vocab,
        "num_hidden_layers": n_layers,
        "num_attention_heads": d_model // 64,
        "num_key_value_heads": d_model // 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    return config, {f"{name}.weight": shape for name, shape in {**shapes, "model.norm": (d_model,)}.items()}


def make_models(folder: Path, megabytes: float, shard_megabytes: int) -> None:
    """Write the base and its fine-tunes, those that are not there."""
    config, shapes = llama_shapes(megabytes)
    for number, name in enumerate(MODELS):
        if (folder / name).exists():
            continue
        temporary = folder / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_model(temporary, config, drawn(shapes, number), shard_megabytes)
        temporary.rename(folder / name)


def drawn(shapes: Mapping[str, tuple[int, ...]], number: int) -> "dict[str, Tensor]":
    """The base's weights, to which those of a fine-tune, which has its number as the seed, add something."""
    import torch

    def normal(seed: int, place: int, shape: tuple[int, ...], size: float) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + place)) * size

    tensors = {name: normal(0, place, shape, WEIGHT_SIZE) for place, (name, shape) in enumerate(shapes.items())}
    if number:
        for place, (name, shape) in enumerate(shapes.items()):
            tensors[name] += normal(number, place, shape, CHANGE_SIZE)
    return tensors


def write_model(folder: Path, config: dict, tensors: "dict[str, Tensor]", shard_megabytes: int) -> None:
    """Write a folder as transformers does."""
    from huggingface_hub import save_torch_state_dict

    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_torch_state_dict(tensors, folder, max_shard_size=shard_megabytes * 10**6)


class Contender(NamedTuple):
    """A command in the comparison."""

    command: list[str]
    output: Path
    """The folder that it writes."""


def contenders(args: argparse.Namespace, folder: Path) -> dict[str, Contender]:
    """The commands by their names, in their order."""
    copied = folder / "copied"
    found = {"copy": Contender([sys.executable, "-c", COPY, str(folder / "a"), str(copied)], copied)}
    for method in args.methods:
        config = folder / f"{method}.yaml"
        config.write_text(json.dumps(mergekit_config(method, folder), indent=1) + "\n")
        merged = folder / f"merged by mergekit {method}"
        options = ["--no-copy-tokenizer", "--quiet", *args.peer_options]
        mergekit = [str(args.peer), "-m", "mergekit.scripts.run_yaml", str(config), str(merged), *options]
        found[f"mergekit {method}"] = Contender(mergekit, merged)
        if not args.peer_only:
            merged = folder / f"merged {method}"
            ours = [sys.executable, "-m", "benchmarks.merges", "--merge", method, str(folder), str(merged)]
            found[f"ours {method}"] = Contender(ours, merged)
    return found


def run(contender: Contender, threads: int) -> dict[str, float]:
    """Run a contender until its files are on the disk, and measure it."""
    shutil.rmtree(contender.output, ignore_errors=True)
    os.sync()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"}
    start = time.perf_counter()
    process = subprocess.Popen(contender.command, cwd=ROOT, env=environment)
    memory = PeakMemory(process.pid)
    memory.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peaks = memory.stop(), memory.peak_rss
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(contender.command)}")
    sync(contender.output)
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "clock_s": time.perf_counter() - start,
        "peak_own_gb": peaks[0] / 1e9,
        "peak_rss_gb": peaks[1] / 1e9,
    }


def sync(folder: Path) -> None:
    """Wait until a folder's files are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read_once(folder: Path) -> None:
    """Bring the models into the page cache, as far as they fit."""
    for path in sorted(folder.glob("*/*.safetensors")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def max_difference(one: Path, other: Path) -> float:
    """The largest difference between the numbers of two models."""
    import torch
    from safetensors import safe_open

    def places(folder: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def read(path: Path, name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    first, second = places(one), places(other)
    if first.keys() != second.keys():
        raise SystemExit(f"must have the same tensors: {sorted(first.keys() ^ second.keys())[:5]}")
    return max(float((read(first[name], name) - read(second[name], name)).abs().max()) for name in first)


def best(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The smallest times and the largest memory of a contender's rounds."""
    return {name: (max if "peak" in name else min)(one[name] for one in rounds) for name in rounds[0]}


def peer_version(peer: Path) -> str:
    """The version of mergekit in the peer's environment, which must be there before a gigabyte is written."""
    code = "from importlib.metadata import version; print(version('mergekit'))"
    try:
        return subprocess.run([str(peer), "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--peer must name a Python with mergekit, but '{peer}' is none: {error}") from error


def measure(args: argparse.Namespace, folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Figures of all contenders, and the largest difference between the two merged models by method."""
    rounds: dict[str, list[dict[str, float]]] = {}
    differences: dict[str, float] = {}
    commands = contenders(args, folder)
    for number in range(args.rounds):
        for name, contender in commands.items():
            print(f"round {number + 1}: {name} ...", file=sys.stderr, flush=True)
            rounds.setdefault(name, []).append(run(contender, args.threads))
            method = name.removeprefix("ours ")
            if method != name and method not in differences:
                differences[method] = max_difference(commands[f"mergekit {method}"].output, contender.output)
            if not name.startswith("mergekit") or args.peer_only:
                for written in (contender, commands.get(f"mergekit {method}", contender)):
                    shutil.rmtree(written.output, ignore_errors=True)
    return {name: best(figures) for name, figures in rounds.items()}, differences


def summarise(figures: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> dict[str, dict]:
    """Compare with mergekit and with a plain copy."""
    pairs = {method: (figures[f"ours {method}"], figures[f"mergekit {method}"]) for method in methods}
    return {
        "vs_mergekit": {
            method: {name: peer[f"{name}_s"] / ours[f"{name}_s"] for name in ("clock", "cpu")}
            for method, (ours, peer) in pairs.items()
        },
        "memory_ratio": {method: ours["peak_own_gb"] / peer["peak_own_gb"] for method, (ours, peer) in pairs.items()},
        "vs_copy": {method: ours["clock_s"] / figures["copy"]["clock_s"] for method, (ours, _) in pairs.items()},
    }


def compare(args: argparse.Namespace) -> None:
    """Run every contender in turns, print the table, write the figures."""
    version = peer_version(args.peer)
    folder = args.folder.resolve() / f"{args.megabytes:g} MB in files of {args.shard_megabytes} MB"
    make_models(folder, args.megabytes, args.shard_megabytes)
    read_once(folder)
    figures, differences = measure(args, folder)
    columns = ("cpu_s", "clock_s", "peak_own_gb", "peak_rss_gb")
    print(f"{'':18}" + "".join(f"{column:>14}" for column in columns))
    for name, row in figures.items():
        print(f"{name:18}" + "".join(f"{row[column]:>14.4g}" for column in columns))
    summary = {} if args.peer_only else summarise(figures, args.methods) | {"max_difference": differences}
    for name, value in summary.items():
        print(f"{name:18}{value}")
    if args.json:
        args.json.write_text(json.dumps({"mergekit": version, "contenders": figures, **summary}, indent=1) + "\n")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="the Python of an environment with mergekit")
    parser.add_argument("--peer-options", nargs="*", default=[], help="more options of mergekit's command")
    parser.add_argument("--peer-only", action="store_true", help="measure mergekit and the copy alone")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--megabytes", type=float, default=1000, help="size of each model")
    parser.add_argument("--shard-megabytes", type=int, default=50_000, help="size of its files; transformers' default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "benchmark" / "merges")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--merge", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merge:
        method, folder, merged = args.merge
        merge(method, Path(folder), Path(merged))
    elif args.peer is None:
        parser.error("--peer must name the Python of an environment with mergekit")
    else:
        compare(args)


if __name__ == "__main__":
    main()
