"""`all` asks for everything that a run keeps, so that a plain run notices what is gone, and for nothing else."""

import re
from pathlib import Path

import pytest
import yaml

from saelineage.jobs.listing import TEMPORARY, WORKFLOW, ask_snakemake, read_jobs
from tests.faults.kills import CONFIG

SHARDS = {"n_shards": 2, "n_probe_shards": 2}
ALL = re.compile(r"^(?:local)?rule all:\n    input: (.*)$", re.MULTILINE)


def planned(config: dict, folder: Path, *targets: str) -> str:
    return ask_snakemake(config, folder, WORKFLOW, "--forceall", *targets)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "saes": {"seeds": [0, 1], "one_pass": True},
            "correlations": {"nulls": ["shifted", "rotated"]},
            "lineage": {"instruments": ["independent", "same_init"], "token_type": True},
            "activations": SHARDS,
        },
    ],
    ids=["small", "most"],
)
def test_all_asks_for_every_manifest_that_is_kept_and_adds_no_job(tmp_path: Path, changes: dict):
    config = yaml.safe_load(CONFIG.read_text())
    config |= {key: config.get(key, {}) | block for key, block in changes.items()}
    text = planned(config, tmp_path)
    asked = set(ALL.search(text)[1].split(", "))
    made = {path for job in read_jobs(text) for path in job.outputs if path.endswith("manifest.json")}
    assert {path for path in asked if path.endswith("manifest.json")} == made - set(TEMPORARY.findall(text))
    results = [path for path in asked if not path.endswith("manifest.json")]
    needed = {tuple(job.outputs) for job in read_jobs(planned(config, tmp_path, *results))}
    assert {tuple(job.outputs) for job in read_jobs(text)} == needed
