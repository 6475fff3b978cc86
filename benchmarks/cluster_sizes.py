"""Estimate the needs of large lineages: jobs, hours, disk, the largest file and the largest memory.

    python -m benchmarks.cluster_sizes [--run results/demo] [--json FILE]

Nothing large is run. Lineages are a base and its fine-tune, both brought, at three hookpoints, and that of
config/config.yaml (two fine-tunes made in the run, their merge, a model with random weights; 4 corpora) at one. Jobs
are those that Snakemake plans. Bytes follow from the formats (docs/artifacts.md), memory from `saelineage.plan.sizes`,
hours from the operations and a rate. Disk is given for each `activations.keep`. With `--run`, the same formulas are
first compared with a finished run of config/config.yaml: with the sizes of its files, and with the memory and time that
its jobs measured (run it with SAELINEAGE_LAUNCHER=off, because jobs from a launcher count the libraries that they
share).
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
CORRELATION_SECONDS = 19 / (1_048_576 * 32**2 + 16_384**2)
"""Core seconds for each product and each pair of features, from the size in docs/benchmarks.md."""
GPU_STAGES = ("models", "activations", "saes", "measures", "features", "lineage")
BYTES_PER_PAIR_AND_FEATURE = 950
"""A pair's correlation and replicates, mean over the default run's pairs, of which a quarter have replicates."""
BYTES_PER_DASHBOARD = 1_550
"""A feature on the page, compressed, measured in the default run."""
BYTES_PER_VERDICT = 700
"""A feature in all tables of an edge, measured in the default run."""


class Sizes(NamedTuple):
    """Sizes of a lineage's models, SAEs and token sets."""

    model: resources.ModelSize
    sae: resources.SaeSize
    k: int
    finetuned_tokens: int
    """Tokens of each of two fine-tunes; 0 where models are brought."""
    dumped_tokens: int
    """Tokens of all corpora, for each model; SAEs are trained on them once."""
    probe_tokens: int
    batch_rows: int
    n_hookpoints: int


GEMMA_2_2B = resources.ModelSize(2_614_341_888, 26, 2304, 9216, 256_000, 2)
LLAMA_3_8B = resources.ModelSize(8_030_261_248, 32, 4096, 14_336, 128_256, 2)
OLMO_1B = resources.ModelSize(1_011_781_632, 16, 2048, 8192, 50_304, 2)
PAIR, STUDY = "pair", "study"
LINEAGES = {
    (PAIR, "2B, residual stream (2,304)"): Sizes(
        GEMMA_2_2B, resources.SaeSize(2304, 16_384), 64, 0, 50_000_000, 1_000_000, 4, 3
    ),
    (PAIR, "8B, residual stream (4,096)"): Sizes(
        LLAMA_3_8B, resources.SaeSize(4096, 65_536), 64, 0, 50_000_000, 1_000_000, 2, 3
    ),
    (STUDY, "1B, mlp output (2,048)"): Sizes(
        OLMO_1B, resources.SaeSize(2048, 131_072), 64, 100_000_000, 200_000_000, 1_000_000, 4, 1
    ),
}
KEEPS = (True, False, "stream")
N_CTX = 1024
VALIDATION_TOKENS = 200_000
RUN_BY_SNAKEMAKE = ("draw_dag", "write_report")
SAE_BATCH_TOKENS = 4096


MOST_SHARD_BYTES = 20e9
"""Shards of a dump are assumed to be as many as keep a file below this."""


class Stage(NamedTuple):
    """The needs of one stage; sizes in bytes."""

    name: str
    n_runs: int
    """Number of models, SAEs or pairs."""
    flop: float
    disk: float
    largest_file: float
    memory: float


def planned_lineage(kind: str, sizes: Sizes) -> Plan:
    """A lineage of one of the two kinds."""
    config = copy.deepcopy(read_yaml(ROOT / "config" / "config.yaml"))
    if kind == PAIR:
        source = {"repo": "owner/name", "revision": "main"}
        config["models"] = {"base": {"hub": source}, "tuned": {"hub": {**source, "parents": ["base"]}}}
        config["corpora"] = {"text": config["corpora"]["english"]}
        config |= {"sweeps": {}, "tokenizer": {"source": "hub", **source}, "labels": {}}
    layers = range(sizes.n_hookpoints)
    config["activations"]["hookpoints"] = {f"layer{layer}": f"model.layers.{layer}.output" for layer in layers}
    return Plan(load_config(config, read_schema(ROOT / "config" / "config.schema.yaml")))


def stages(plan: Plan, sizes: Sizes) -> list[Stage]:
    """Every stage after the tokens, in order, with all dumps kept."""
    config, compared = plan.config, plan.comparisons
    model, sae, block, n_places = sizes.model, sizes.sae, config["correlations"]["block_features"], sizes.n_hookpoints
    n_models, n_edges = len(config["models"]), len(plan.graph.edges)
    n_saes, n_encoded = n_places * len(compared.trained_saes), n_places * len(compared.saes)
    n_pairs, n_shown = n_places * len(compared.pairs), n_places * len(compared.leading_saes)
    acts, batch_tokens = 2 * sae.d_in * n_places, sizes.batch_rows * N_CTX
    entry_bytes = 8 * sizes.k + 17  # latents with values; a row's start, its position and a mark
    features = sizes.probe_tokens * entry_bytes
    weights, dumped = model.stored_bytes * model.n_weights, sizes.dumped_tokens * acts
    pair = BYTES_PER_PAIR_AND_FEATURE * sae.d_sae
    dump = resources.DumpSize(sizes.probe_tokens, sae.d_in)
    n_shards = math.ceil(dumped / len(config["corpora"]) / MOST_SHARD_BYTES)
    shard = resources.DumpSize(sizes.dumped_tokens // len(config["corpora"]) // n_shards, n_places * sae.d_in)
    passes = n_models * (2 + n_places * (3 + len(compared.trained_saes) / n_models)) + 12 * n_edges * n_places
    return [
        Stage(
            "models",
            n_models,
            2 * resources.training_flop(model, sizes.finetuned_tokens),
            n_models * weights,
            weights,
            resources.training_bytes(model, N_CTX, is_rounded=True, is_checkpointed=True)
            if sizes.finetuned_tokens
            else 2 * weights,
        ),
        Stage(
            "activations",
            n_models,
            n_models * resources.forward_flop(model, sizes.dumped_tokens + sizes.probe_tokens),
            n_models * (dumped + sizes.probe_tokens * acts),
            dumped / len(config["corpora"]) / n_shards,
            resources.dump_bytes(model, batch_tokens, shard, "float16", model.stored_bytes),
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
            "measures",
            n_models,
            passes * resources.forward_flop(model, VALIDATION_TOKENS),
            0,
            0,
            resources.backward_bytes(model, batch_tokens, model.stored_bytes) + resources.encoding_bytes(sae, 0),
        ),
        Stage(
            "features",
            n_encoded,
            n_encoded * resources.encoding_flop(sae, sizes.probe_tokens),
            n_encoded * features,
            features / len(config["corpora"]),
            resources.encoding_bytes(sae, sizes.probe_tokens * 2 * sae.d_in),
        ),
        Stage(
            "correlations",
            n_pairs,
            n_pairs * (sizes.probe_tokens * sizes.k**2 + sae.d_sae**2) * CORRELATION_SECONDS * CORE_FLOP,
            n_pairs * pair,
            n_pairs * pair / len(compared.partners) / n_places,
            resources.correlation_bytes(sae.d_sae, block, 2 * features, 2 * features),
        ),
        Stage(
            "lineage",
            n_edges * n_places,
            n_edges * n_places * resources.readout_flop(dump, sae.d_sae),
            n_edges * n_places * BYTES_PER_VERDICT * sae.d_sae,
            BYTES_PER_VERDICT * sae.d_sae,
            resources.readout_bytes(dump, sae.d_sae, sizes.probe_tokens * 2 * sae.d_in),
        ),
        Stage(
            "report",
            n_shown,
            0.0,
            n_shown * BYTES_PER_DASHBOARD * sae.d_sae,
            BYTES_PER_DASHBOARD * 128,
            4 * n_shown / n_places * features,
        ),
    ]


def dumps_on_disk(plan: Plan, sizes: Sizes, keep: bool | str) -> float:
    """Most bytes of dumps that a run has on disk at one time: all, those of one model, or the probe's alone."""
    n_models, acts = len(plan.config["models"]), 2 * sizes.sae.d_in * sizes.n_hookpoints
    n_train = {True: n_models, False: 1, "stream": 0}[keep]
    return acts * (n_train * sizes.dumped_tokens + n_models * sizes.probe_tokens)


def submissions(jobs: list[dict]) -> tuple[int, int]:
    """Count the jobs of Snakemake, and the jobs of SLURM that they become with the groups of the profile."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    rules = Counter(job["rule"] for job in jobs)
    components: Counter[str] = Counter()
    for rule, n_jobs in rules.items():
        if rule not in RUN_BY_SNAKEMAKE:
            components[profile["groups"].get(rule, rule)] += n_jobs
    return len(jobs), sum(math.ceil(n / profile["group-components"].get(name, 1)) for name, n in components.items())


def show(kind: str, name: str, sizes: Sizes) -> dict:
    """Print the table of one lineage, and return it."""
    plan = planned_lineage(kind, sizes)
    n_jobs, n_submitted = submissions(planned(plan.config))
    print(f"\n{kind}, {name}: {n_jobs} jobs of Snakemake, {n_submitted} of SLURM")
    of_run = stages(plan, sizes)
    rows = [
        {
            "stage": stage.name,
            "GPU h": stage.flop / GPU_FLOP / 3600 if stage.name in GPU_STAGES else 0.0,
            "core h": stage.flop / CORE_FLOP / 3600 if stage.name not in GPU_STAGES else 0.0,
            "disk GB": stage.disk / 1e9,
            "largest file GB": stage.largest_file / 1e9,
            "memory GB": stage.memory / 1e9,
        }
        for stage in of_run
    ]
    table = pd.DataFrame(rows).set_index("stage")
    table.loc["all"] = [*table[["GPU h", "core h", "disk GB"]].sum(), *table[["largest file GB", "memory GB"]].max()]
    print(table.to_string(float_format="%.1f"))
    others = sum(stage.disk for stage in of_run if stage.name != "activations")
    disk = {str(keep): (others + dumps_on_disk(plan, sizes, keep)) / 1e9 for keep in KEEPS}
    print("most on disk, GB, by activations.keep:", {keep: round(n_gb, 1) for keep, n_gb in disk.items()})
    return {"n_jobs": n_jobs, "n_submitted": n_submitted, "disk_gb": disk, "stages": table.to_dict("index")}


def measured_sizes(run: Path) -> Sizes:
    """The sizes of a finished run of the default config."""
    model = resources.model_size(run / "models" / "baby_python")
    sae = resources.sae_size(run / "saes" / "mlp" / "baby_python" / "seed0")
    dumps = run / "activations" / "mlp" / "baby_python"
    dumped = resources.dump_size(sorted(dumps.glob("*/train/*.safetensors"))).n_tokens
    probed = resources.dump_size(sorted(dumps.glob("*/probe/*.safetensors"))).n_tokens
    return Sizes(model, sae, 32, 200_000, dumped, probed, 16, 1)


def compare(run: Path) -> dict[str, dict]:
    """Print the estimates for a finished run with the measurements, and return them by stage."""
    sizes = measured_sizes(run)
    plan = planned_lineage(STUDY, sizes)
    compared = {}
    print(f"{run}: MB on disk estimated and measured; largest memory in MB requested and measured; seconds of jobs")
    for stage in stages(plan, sizes):
        if stage.name == "measures":
            continue  # its jobs stand among those of models, SAEs and the lineage
        folder = run / stage.name if stage.name != "report" else run / "report" / "data"
        paths = sorted((run / "benchmarks" / stage.name).glob("*.tsv"))
        jobs = pd.concat([pd.read_csv(path, sep="\t", na_values=["-", "NA"]) for path in paths])
        row = {
            "disk_mb": stage.disk / 1e6,
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


def main() -> None:
    """Compare with a finished run if one is given, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run of config/config.yaml")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    figures = {"run": compare(args.run)} if args.run else {}
    figures |= {name: show(kind, name, sizes) for (kind, name), sizes in LINEAGES.items()}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
