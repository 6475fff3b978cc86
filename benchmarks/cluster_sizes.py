"""Estimate the needs of large lineages: jobs, hours, disk, the largest file and the largest memory.

    python -m benchmarks.cluster_sizes [--run results/demo] [--json FILE]

Nothing large is run. The lineage is that of config/config.yaml (a base from the hub, two fine-tunes, their merge, a
model with random weights; 4 corpora; two seeds and anchored SAEs), at other sizes. Jobs are those that Snakemake plans.
Bytes follow from the formats (docs/artifacts.md), memory from `saelineage.plan.sizes`, hours from the operations and a
rate. With `--run`, the same formulas are first compared with a finished run of that config: with the sizes of its
files, and with the memory and time that its jobs measured (run it with SAELINEAGE_LAUNCHER=off, because jobs from a
launcher count the libraries that they share).
"""

import argparse
import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from saelineage.jobs.listing import planned
from saelineage.plan import sizes as resources
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[1]
# ASSUME one GPU computes 5e13 operations a second, a sixth of the bfloat16 peak of an A100; no GPU was tried. A core
# with AVX-512 did 9e10 in the float32 product of an encoder of 16,384 latents (README), of which half is assumed.
GPU_FLOP, CORE_FLOP = 5e13, 4.5e10
CORRELATION_SECONDS = 48 / (1_048_576 * 32**2 + 16_384**2)
"""Core seconds for each product and each pair of features: 24 s on two cores at the size in the README."""
GPU_STAGES = ("models", "activations", "saes")
BYTES_PER_PAIR_AND_FEATURE = 3_700
"""A pair's correlation and replicates, measured in the default run (200 replicates, 8 matches, pairs above 0.3)."""
BYTES_PER_DASHBOARD = 1_550
"""A feature on the page, compressed, measured in the default run."""
BYTES_PER_VERDICT = 220
"""A feature in all tables of an edge, measured in the default run."""
BYTES_PER_PRODUCT = 14
"""Two features that fire together: a sum, a count and an index."""


class Sizes(NamedTuple):
    """Sizes of a lineage's models, SAEs and token sets."""

    model: resources.ModelSize
    sae: resources.SaeSize
    k: int
    finetuned_tokens: int
    dumped_tokens: int
    """Tokens of all corpora, for each model; SAEs are trained on them once."""
    probe_tokens: int
    stored_weight_bytes: int
    """Bytes of one weight in a file."""


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
    """The needs of one stage; sizes in bytes."""

    name: str
    n_runs: int
    """Number of models, SAEs or pairs."""
    flop: float
    disk: float
    largest_file: float
    memory: float


def default_plan(n_shards: int = 1) -> Plan:
    """The default lineage, with dumps and the probe in so many shards."""
    config = copy.deepcopy(read_yaml(ROOT / "config" / "config.yaml"))
    config["activations"] |= {"n_shards": n_shards, "n_probe_shards": n_shards}
    return Plan(load_config(config, read_schema(ROOT / "config" / "config.schema.yaml")))


def stages(plan: Plan, sizes: Sizes, n_shards: int) -> list[Stage]:
    """Every stage after the tokens, in order."""
    config, compared = plan.config, plan.comparisons
    model, sae, block = sizes.model, sizes.sae, config["correlations"]["block_features"]
    n_models, n_saes = len(config["models"]), len(compared.trained_saes)
    n_encoded, n_pairs = len(compared.saes), len(compared.pairs)
    n_shown, finetunes = len(compared.leading_saes), 2
    acts = 2 * sae.d_in
    entry_bytes = 8 * sizes.k + 17  # latents with values; a row's start, its position and a mark
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
    """Count the jobs of Snakemake, and the jobs of SLURM that they become with the groups of the profile."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    rules = Counter(job["rule"] for job in jobs)
    components: Counter[str] = Counter()
    for rule, n_jobs in rules.items():
        if rule not in RUN_BY_SNAKEMAKE and rule != "sum_products":  # sums join the correlation that needs them
            components[profile["groups"].get(rule, rule)] += n_jobs
    return len(jobs), sum(math.ceil(n / profile["group-components"].get(name, 1)) for name, n in components.items())


def show(name: str, sizes: Sizes) -> dict:
    """Print the table of one lineage, and return it."""
    plan = default_plan(N_SHARDS)
    n_jobs, n_submitted = submissions(planned(plan.config))
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
        for stage in stages(plan, sizes, N_SHARDS)
    ]
    table = pd.DataFrame(rows).set_index("stage")
    table.loc["all"] = [*table[["GPU h", "core h", "disk GB"]].sum(), *table[["largest file GB", "memory GB"]].max()]
    print(table.to_string(float_format="%.1f"))
    lean = resources.training_bytes(sizes.model, BATCH_TOKENS // 16, is_rounded=True, is_checkpointed=True) / 1e9
    print(f"a fine-tune with precision: bfloat16, gradient_checkpointing and accumulate: 16 holds {lean:.1f} GB")
    figures = {"n_jobs": n_jobs, "n_submitted": n_submitted, "lean_finetune_gb": lean}
    return figures | {"stages": table.to_dict("index")}


def measured_sizes(run: Path) -> Sizes:
    """The sizes of a finished run of the default config."""
    model = resources.model_size(run / "models" / "baby_python")
    sae = resources.sae_size(run / "saes" / "mlp" / "baby_python" / "seed0")
    dumps = run / "activations" / "mlp" / "baby_python"
    dumped = resources.dump_size(sorted(dumps.glob("*/train/*.safetensors"))).n_tokens
    probed = resources.dump_size(sorted(dumps.glob("*/probe/*.safetensors"))).n_tokens
    return Sizes(model, sae, 32, 200_000, dumped, probed, 4)


def compare(run: Path) -> dict[str, dict]:
    """Print the estimates for a finished run with the measurements, and return them by stage."""
    plan, sizes = default_plan(), measured_sizes(run)
    compared = {}
    print(f"{run}: MB on disk estimated and measured; largest memory in MB requested and measured; seconds of jobs")
    for stage in stages(plan, sizes, 1):
        folder = run / stage.name if stage.name != "report" else run / "report" / "data"
        removed = len(plan.comparisons.pairs) / 8 * products_of(sizes) if stage.name == "correlations" else 0
        paths = sorted((run / "benchmarks" / stage.name).glob("*.tsv"))
        jobs = pd.concat([pd.read_csv(path, sep="\t", na_values=["-", "NA"]) for path in paths])
        row = {
            "disk_mb": (stage.disk - removed) / 1e6,
            "measured_disk_mb": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
            "memory_mb": resources.memory_mb(round(stage.memory)),
            "measured_memory_mb": float(jobs["max_rss"].max()),
            "seconds": float(jobs["s"].sum()),
            "n_jobs": len(jobs),
        }
        print(f"{stage.name:14}{row['disk_mb']:10.1f}{row['measured_disk_mb']:10.1f} MB", end="")
        print(f"{row['memory_mb']:8d}{row['measured_memory_mb']:8.0f} MB", end="")
        print(f"{row['seconds']:8.0f} s in {row['n_jobs']} jobs")
        compared[stage.name] = row
    return compared


def products_of(sizes: Sizes) -> float:
    """Bytes of the sums of one pair, which are removed after use."""
    return min(sizes.probe_tokens * sizes.k**2, sizes.sae.d_sae**2) * BYTES_PER_PRODUCT


def main() -> None:
    """Compare with a finished run if one is given, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run of config/config.yaml")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    figures = {"run": compare(args.run)} if args.run else {}
    figures |= {name: show(name, sizes) for name, sizes in LINEAGES.items()}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
