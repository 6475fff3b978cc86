"""`all` asks for everything that a run keeps, so that a plain run notices what is gone, and for nothing else."""

from pathlib import Path

import yaml

from saelineage.jobs.listing import WORKFLOW, Job, ask_snakemake
from tests.faults.kills import CONFIG

MOST = {
    "saes": {"seeds": [0, 1], "one_pass": True},
    "correlations": {"random_controls": ["shifted", "rotated"]},
    "lineage": {"instruments": ["independent", "same_init"], "token_type": True, "ablations": True, "readouts": True},
    "activations": {
        "n_shards": 2,
        "n_probe_shards": 2,
        "hookpoints": {"mlp": "model.layers.0.mlp.down_proj.input", "residual": "model.layers.0.output"},
    },
}
"""Settings under which most rules have jobs."""


def planned(config: dict, folder: Path, *targets: str) -> list[Job]:
    return ask_snakemake(config, folder, WORKFLOW, *targets).jobs


def test_all_asks_for_every_manifest_that_is_kept_and_adds_no_job(tmp_path: Path):
    config = yaml.safe_load(CONFIG.read_text())
    config |= {key: config.get(key, {}) | block for key, block in MOST.items()}
    jobs = planned(config, tmp_path)
    (asked,) = (job.inputs for job in jobs if job.rule == "all")
    kept = {path for job in jobs for path in set(job.outputs) - set(job.temporary) if path.endswith("manifest.json")}
    assert {path for path in asked if path.endswith("manifest.json")} == kept
    results = [path for path in asked if not path.endswith("manifest.json")]
    needed = {tuple(job.outputs) for job in planned(config, tmp_path, *results)}
    assert {tuple(job.outputs) for job in jobs if job.outputs} == needed
