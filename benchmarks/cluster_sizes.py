"""What a large lineage would need: jobs, hours, disk, the largest file, the largest memory, and what breaks first.

    python benchmarks/cluster_sizes.py [--run results/demo]

Nothing large is run. The lineage is that of config/config.yaml (a base taken over from the hub, two fine-tunes, their
merge, a model with random weights; 4 corpora; two seeds and anchored SAEs), at other sizes. Jobs are those that
Snakemake plans. Bytes follow from the formats (docs/artifacts.md), memory from `saelineage.plan.sizes`, hours from the
operations and a rate. With `--run`, the same formulas are first compared with a finished run of that config: sizes of
its files, and the memory and time that Snakemake measured.
"""

import argparse
import copy
import math
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "workflow" / "scripts"))

from saelineage.jobs.listing import planned  # noqa: E402
from saelineage.plan import comparisons  # noqa: E402
from saelineage.plan import sizes as resources  # noqa: E402
from saelineage.plan.config import load_config, read_yaml  # noqa: E402

# ASSUME one GPU computes 5e13 operations a second, a sixth of what an A100 promises in bfloat16; none was tried. A core
# with AVX-512 did 9e10 in the float32 product of an encoder of 16,384 latents (README), of which half is assumed.
GPU_FLOP, CORE_FLOP = 5e13, 4.5e10
CORRELATION_SECONDS = 48 / (1_048_576 * 32**2 + 16_384**2)
"""Core seconds for each product and each pair of features: 24 s on two cores at the size that the README gives."""
GPU_STAGES = ("models", "activations", "saes")
BYTES_PER_PAIR_AND_FEATURE = 3_700
"""Of a pair's correlation and replicates, measured in the default run (200 replicates, 8 matches, pairs above 0.3)."""
BYTES_PER_DASHBOARD = 1_550
"""Of a feature on the page, compressed, measured in the default run."""
BYTES_PER_VERDICT = 220
"""Of a feature in all tables of an edge, measured in the default run."""
BYTES_PER_PRODUCT = 14
"""Of two features that fire together: a sum, a count and an index."""


class Sizes(NamedTuple):
    """What a lineage is computed on."""

    model: resources.ModelSize
    sae: resources.SaeSize
    k: int
    finetuned_tokens: int
    dumped_tokens: int
    """Of all corpora, for each model; SAEs are trained on them once."""
    probe_tokens: int
    stored_weight_bytes: int
    """Of one weight in a file."""


LINEAGES = {
    "1B, mlp output (2,048)": Sizes(
        resources.ModelSize(1_011_781_632, 16, 2048, 8192, 50_304),
        resources.SaeSize(2048, 131_072),
        *(64, 100_000_000, 200_000_000, 1_000_000, 2),
    ),
    "1B, inside the mlp (8,192)": Sizes(
        resources.ModelSize(1_011_781_632, 16, 2048, 8192, 50_304),
        resources.SaeSize(8192, 131_072),
        *(64, 100_000_000, 200_000_000, 1_000_000, 2),
    ),
    "7B, mlp output (4,096)": Sizes(
        resources.ModelSize(6_738_415_616, 32, 4096, 11_008, 32_000),
        resources.SaeSize(4096, 131_072),
        *(64, 100_000_000, 200_000_000, 1_000_000, 2),
    ),
}
N_SHARDS = 16
RUN_BY_SNAKEMAKE = ("draw_dag", "write_report")
BATCH_TOKENS = 16 * 1024
SAE_BATCH_TOKENS = 4096


class Stage(NamedTuple):
    """What one stage needs; sizes in bytes."""

    name: str
    n_runs: int
    """Models, SAEs or pairs."""
    flop: float
    disk: float
    largest_file: float
    memory: float


def default_config(n_shards: int = 1) -> dict:
    """The default lineage, with dumps and the probe in so many shards."""
    config = copy.deepcopy(read_yaml(ROOT / "config" / "config.yaml"))
    config["activations"] |= {"n_shards": n_shards, "n_probe_shards": n_shards}
    return load_config(config, read_yaml(ROOT / "config" / "config.schema.yaml"))


def stages(config: dict, sizes: Sizes, n_shards: int) -> list[Stage]:
    """Every stage behind the tokens, in order."""
    model, sae, block = sizes.model, sizes.sae, config["correlations"]["block_features"]
    n_models, n_saes = len(config["models"]), len(comparisons.trained_saes(config))
    n_encoded, n_pairs = len(comparisons.all_saes(config)), len(comparisons.all_pairs(config))
    n_shown, finetunes = len(comparisons.leading_saes(config)), 2
    acts = 2 * sae.d_in
    entry_bytes = 8 * sizes.k + 17  # latents with values; where a row starts and stands, and whether it counts
    shard_tokens, shard_bytes = sizes.probe_tokens // n_shards, sizes.probe_tokens // n_shards * entry_bytes
    weights = sizes.stored_weight_bytes * model.n_weights
    dumped = sizes.dumped_tokens * acts
    products = min(shard_tokens * sizes.k**2, sae.d_sae**2) * BYTES_PER_PRODUCT
    pair = BYTES_PER_PAIR_AND_FEATURE * sae.d_sae
    dump = resources.DumpSize(sizes.probe_tokens, sae.d_in)
    shard = resources.DumpSize(sizes.dumped_tokens // len(config["corpora"]) // n_shards, sae.d_in)
    return [
        Stage(
            "models",
            n_models,
            finetunes * resources.training_flop(model, sizes.finetuned_tokens),
            n_models * weights,
            weights,
            resources.training_bytes(model, BATCH_TOKENS),
        ),
        Stage(
            "activations",
            n_models,
            n_models * resources.forward_flop(model, sizes.dumped_tokens + sizes.probe_tokens),
            n_models * (dumped + sizes.probe_tokens * acts),
            dumped / len(config["corpora"]) / n_shards,
            resources.dump_bytes(model, BATCH_TOKENS, shard, "float16"),
        ),
        Stage(
            "saes",
            n_saes,
            n_saes * resources.sae_training_flop(sae, sizes.dumped_tokens),
            n_saes * sae.n_bytes,
            sae.n_bytes,
            resources.sae_training_bytes(sae, SAE_BATCH_TOKENS),
        ),
        Stage(
            "features",
            n_encoded,
            n_encoded * resources.encoding_flop(sae, sizes.probe_tokens),
            n_encoded * sizes.probe_tokens * entry_bytes,
            shard_bytes / len(config["corpora"]),
            resources.encoding_bytes(sae, shard_tokens * acts),
        ),
        Stage(
            "correlations",
            n_pairs,
            n_pairs * (sizes.probe_tokens * sizes.k**2 + sae.d_sae**2) * CORRELATION_SECONDS * CORE_FLOP,
            n_pairs * pair + n_pairs / 8 * n_shards * products,
            products,
            resources.correlation_bytes(sae.d_sae, block, 2 * shard_bytes),
        ),
        Stage(
            "lineage",
            4,
            4 * resources.readout_flop(dump, sae.d_sae),
            4 * BYTES_PER_VERDICT * sae.d_sae,
            BYTES_PER_VERDICT * sae.d_sae,
            resources.readout_bytes(dump, sae.d_sae, shard_tokens * acts),
        ),
        Stage(
            "report",
            n_shown,
            0.0,
            n_shown * BYTES_PER_DASHBOARD * sae.d_sae,
            BYTES_PER_DASHBOARD * 128,
            4 * n_shown * sizes.probe_tokens * entry_bytes,
        ),
    ]


def submissions(jobs: list[dict]) -> tuple[int, int]:
    """How many jobs there are, and how many of SLURM they make with the groups of the profile."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    rules = Counter(job["rule"] for job in jobs)
    components = Counter()
    for rule, n_jobs in rules.items():
        if rule not in RUN_BY_SNAKEMAKE and rule != "sum_products":  # which joins the correlation that needs it
            components[profile["groups"].get(rule, rule)] += n_jobs
    return len(jobs), sum(math.ceil(n / profile["group-components"].get(name, 1)) for name, n in components.items())


def show(name: str, sizes: Sizes) -> None:
    """Print the table of one lineage."""
    config = default_config(N_SHARDS)
    found = stages(config, sizes, N_SHARDS)
    n_jobs, n_submitted = submissions(planned(config))
    print(f"\n{name}: {n_jobs} jobs of Snakemake, {n_submitted} of SLURM")
    rows = [
        {
            "stage": stage.name,
            "GPU h": stage.flop / GPU_FLOP / 3600 if stage.name in GPU_STAGES else 0.0,
            "core h": stage.flop / CORE_FLOP / 3600 if stage.name not in GPU_STAGES else 0.0,
            "disk GB": stage.disk / 1e9,
            "largest file GB": stage.largest_file / 1e9,
            "memory GB": stage.memory / 1e9,
        }
        for stage in found
    ]
    table = pd.DataFrame(rows).set_index("stage")
    table.loc["all"] = [*table[["GPU h", "core h", "disk GB"]].sum(), *table[["largest file GB", "memory GB"]].max()]
    print(table.to_string(float_format="%.1f"))


def measured_sizes(run: Path) -> Sizes:
    """The sizes of a finished run of the default config."""
    model = resources.model_size(run / "models" / "baby_python")
    sae = resources.sae_size(run / "saes" / "baby_python" / "seed0")
    dumps = run / "activations" / "baby_python"
    dumped = resources.dump_size(sorted(dumps.glob("*/train/*.safetensors"))).n_tokens
    probed = resources.dump_size(sorted(dumps.glob("*/probe/*.safetensors"))).n_tokens
    return Sizes(model, sae, 32, 200_000, dumped, probed, 4)


def compare(run: Path) -> None:
    """Print what the formulas say of a finished run beside what it is."""
    config, sizes = default_config(), measured_sizes(run)
    print(f"{run}: bytes by formula and as they are; largest memory asked for and measured, MB; seconds of jobs")
    for stage in stages(config, sizes, 1):
        folder = run / stage.name if stage.name != "report" else run / "report" / "data"
        removed = len(comparisons.all_pairs(config)) / 8 * products_of(sizes) if stage.name == "correlations" else 0
        bytes_there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        paths = sorted((run / "benchmarks" / stage.name).glob("*.tsv"))
        rows = pd.concat([pd.read_csv(path, sep="\t", na_values=["-", "NA"]) for path in paths])
        asked = resources.memory_mb(round(stage.memory))
        print(f"{stage.name:14}{(stage.disk - removed) / 1e6:10.1f}{bytes_there / 1e6:10.1f} MB", end="")
        print(f"{asked:8d}{rows['max_rss'].max():8.0f} MB{rows['s'].sum():8.0f} s in {len(rows)} jobs")


def products_of(sizes: Sizes) -> float:
    """Bytes of the sums of one pair, removed after use."""
    return min(sizes.probe_tokens * sizes.k**2, sizes.sae.d_sae**2) * BYTES_PER_PRODUCT


def main() -> None:
    """Compare with a run where one is given, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder of a finished run of config/config.yaml")
    args = parser.parse_args()
    if args.run:
        compare(args.run)
    for name, sizes in LINEAGES.items():
        show(name, sizes)


if __name__ == "__main__":
    main()
