"""The tiny lineage from nothing to the report, and parts of it once more."""

import json
import re
from pathlib import Path

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelineage.files.atomic import sha256_file
from saelineage.jobs.manifests import check_run
from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.verdicts import VERDICTS
from tests.faults.kills import Undisturbed
from tests.workflow.conftest import Checkout

TIMED = ("benchmarks", "logs")  # say how long things took, so they differ between runs
NAMES_TIMES = ("report/making.html", "report/manifest.json")
AGAIN = (
    (
        "correlations/mlp/base.seed0__left.from_base/token_types.safetensors",
        "labels/mlp/merged/from_left+right.parquet",
        "lineage/mlp/ablations/base__left.parquet",
        "lineage/mlp/passages/base__left.parquet",
        "lineage/mlp/readouts/base__left.parquet",
        "lineage/mlp/summary.json",
        "lineage/mlp/sweeps/merged.curves.parquet",
        "lineage/mlp/sweeps/merged.parquet",
        "report/data/mlp/merged.manifest.json",
        "sweeps/merged.parquet",
    ),
    (
        "correlations/mlp/base.seed0/correlations.safetensors",
        "models/left/losses.safetensors",
        "models/merged/model.safetensors",
        "saes/mlp/left/from_base/sae_weights.safetensors",
        "saes/mlp/merged/from_left+right/sae_weights.safetensors",
    ),
)
"""One of each kind that the small lineage has none of. That is run from nothing and ends with the same bytes in
tests/faults and, through SLURM, in test_slurm.py. First those at the end of the lineage: they are made from the others.
"""


def files_of(checkout: Checkout) -> dict[str, str]:
    """sha256 of every result whose bytes are promised, by path."""
    root = checkout.folder / "results" / "tiny"
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        name: sha256_file(path)
        for name, path in paths.items()
        if name.split("/")[0] not in TIMED and not name.startswith(NAMES_TIMES)
    }


def test_jobs_done_again_give_the_same_bytes(finished: Checkout, small_run: tuple[Path, Undisturbed], tmp_path: Path):
    again = Checkout(tmp_path, finished.folder)
    before = files_of(again)
    repeated = {rule for targets in AGAIN for rule in done_again(again, targets)}
    after = files_of(again)
    assert after.keys() == before.keys()
    assert [name for name in sorted(before) if before[name] != after[name]] == []
    only_here = rules_of(finished.folder) - rules_of(small_run[0])
    assert "merge_models" in only_here
    assert only_here <= repeated


def done_again(checkout: Checkout, targets: tuple[str, ...]) -> list[str]:
    """Rules of the jobs that make some results once more, whatever is there."""
    paths = [checkout.folder / "results/tiny" / target for target in targets]
    times = [path.stat().st_mtime_ns for path in paths]
    done = checkout.snakemake("--cores", "2", "--force", *(f"results/tiny/{target}" for target in targets))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert all(path.stat().st_mtime_ns > time for path, time in zip(paths, times, strict=True))
    return re.findall(r"^(?:local)?rule (\w+):$", done.stdout + done.stderr, flags=re.MULTILINE)


def rules_of(folder: Path) -> set[str]:
    """Rules that made the results of a checkout, as Snakemake remembers them."""
    return {
        json.loads(path.read_text())["rule"] for path in (folder / ".snakemake/metadata").rglob("*") if path.is_file()
    }


def test_the_summary_counts_every_feature_of_every_edge(finished: Checkout):
    summary = json.loads((finished.folder / "results/tiny/lineage/mlp/summary.json").read_text())
    edges = {(edge["parent"], edge["child"]) for edge in summary["edges"]}
    assert edges == {("base", "left"), ("base", "right"), ("left", "merged"), ("right", "merged")}
    for edge in summary["edges"]:
        # d_mlp 32 x expansion_factor 4 = 128 latents in each model
        assert edge["n_parent"] == edge["n_child"] == 128
        for side, verdicts in zip(SIDES, VERDICTS, strict=True):
            counts = edge["groups"]["all"][side]
            assert sum(counts[verdict] for verdict in (*verdicts, UNTESTABLE)) == 128
        assert edge["study"]["persists"] + edge["study"]["disappears"] == edge["groups"]["all"]["persist_share_n"]
        assert edge["two_seed_share"] is not None


def test_the_tables_hold_what_the_summary_says(finished: Checkout):
    lineage = finished.folder / "results/tiny/lineage/mlp"
    summary = json.loads((lineage / "summary.json").read_text())
    for edge in summary["edges"]:
        table = pd.read_parquet(lineage / "edges" / f"{edge['parent']}__{edge['child']}.parquet")
        for group, rows in (("all", table), ("identified", table[table["identified"]])):
            assert (rows["verdict"] == "persists").sum() == edge["groups"][group]["parent"]["persists"]
            assert (rows["verdict"] == "new").sum() == edge["groups"][group]["child"]["new"]
        assert (table["study_verdict"] == "emerges").sum() == edge["study"]["emerges"]
    features = pd.read_parquet(lineage / "features.parquet")
    assert features.groupby("model").size().to_dict() == {"base": 128, "left": 128, "right": 128, "merged": 128}


def test_every_model_opens_with_transformers(finished: Checkout):
    for model in ("base", "left", "right", "merged"):
        folder = finished.folder / "results/tiny/models" / model
        ids = AutoTokenizer.from_pretrained(folder)("local x = 1", return_tensors="pt")["input_ids"]
        assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.shape == (1, ids.shape[1], 384)


def test_every_manifest_describes_the_files_beside_it(finished: Checkout):
    found = check_run(finished.folder / "results/tiny")
    assert found.n_manifests > 50
    assert found.problems == []


def test_the_report_is_one_page_with_nothing_to_fetch(finished: Checkout):
    page = (finished.folder / "results/tiny/report/index.html").read_text(encoding="utf-8")
    # Left out: plotly.js names addresses that it opens only for maps, which the page has none of.
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"'>]*|@import|url\(["']?http""", outside_scripts) == []
    assert re.findall(r"<script[^>]*src=|<link[^>]*href=\"(?!data:)", page) == []
    assert "identified features of base" in outside_scripts


def test_after_a_run_all_jobs_are_shown_as_fresh_and_showing_them_makes_none_stale(finished: Checkout):
    done = finished.snakemake("--cores", "1", "jobs")
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(r"results/tiny/report/jobs\.html: \d+ fresh$", done.stdout + done.stderr, flags=re.MULTILINE)
    assert finished.stale_jobs() == set()


def test_verify_passes_on_a_whole_run_and_names_a_damaged_file(finished: Checkout):
    assert finished.snakemake("--cores", "1", "verify").returncode == 0
    damaged = finished.folder / "results/tiny/sweeps/merged.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + b"?")
    try:
        done = finished.snakemake("--cores", "1", "--ignore-incomplete", "verify")
        assert done.returncode != 0
        assert "results/tiny/sweeps/merged.parquet" in done.stderr + done.stdout
    finally:
        damaged.write_bytes(whole)
