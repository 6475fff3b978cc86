"""The tiny lineage from nothing to the report, twice."""

import json
import re
from pathlib import Path

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelineage.files import sha256_file
from saelineage.manifests import check_manifest
from tests.workflow.conftest import Checkout

TIMED = ("benchmarks", "logs")  # say how long things took, so they differ between runs
NAMES_TIMES = ("report/index.html", "report/manifest.json")


def files_of(checkout: Checkout) -> dict[str, str]:
    """sha256 of every result whose bytes are promised, by path."""
    root = checkout.folder / "results" / "tiny"
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        name: sha256_file(path)
        for name, path in paths.items()
        if name.split("/")[0] not in TIMED and not name.startswith(NAMES_TIMES)
    }


def test_a_second_run_from_nothing_gives_the_same_bytes(finished: Checkout, tmp_path: Path):
    # With fewer comparisons, for time: what those that are left out change is in lineage/ and report/ alone.
    again = Checkout(tmp_path)
    again.edit("tiny.yaml", "saes: {", "saes: {seeds: [0], ")
    targets = [f"results/tiny/{name}" for name in ("lineage/summary.json", "saes/merged/seed0/metrics.json")]
    done = again.snakemake("--cores", "2", *targets)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    first, second = files_of(finished), files_of(again)
    same = {name for name in second if not name.startswith("lineage/")}
    assert same <= first.keys()
    assert {name.split("/")[0] for name in same} == {
        *("corpora", "tokenizer", "tokens", "models", "activations", "saes", "features", "correlations")
    }
    assert [name for name in sorted(same) if first[name] != second[name]] == []


def test_the_lineage_traced_again_has_the_same_bytes(finished: Checkout):
    before = files_of(finished)
    done = finished.snakemake("--cores", "2", "--force", "results/tiny/lineage/summary.json")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert files_of(finished) == before
    assert finished.snakemake("--cores", "2", "--touch").returncode == 0


def test_the_summary_counts_every_feature_of_every_edge(finished: Checkout):
    summary = json.loads((finished.folder / "results/tiny/lineage/summary.json").read_text())
    edges = {(edge["parent"], edge["child"]) for edge in summary["edges"]}
    assert edges == {("base", "left"), ("base", "right"), ("left", "merged"), ("right", "merged")}
    for edge in summary["edges"]:
        # d_mlp 32 x expansion_factor 4 = 128 latents in each model
        assert edge["persists"] + edge["disappears"] + edge["untestable_parent"] == edge["n_parent"] == 128
        assert edge["inherited"] + edge["emerges"] + edge["untestable_child"] == edge["n_child"] == 128
        assert edge["persist_share_n"] == edge["persists"] + edge["disappears"]
        assert edge["seed_floor_share"] is not None


def test_the_tables_hold_what_the_summary_says(finished: Checkout):
    lineage = finished.folder / "results/tiny/lineage"
    summary = json.loads((lineage / "summary.json").read_text())
    for edge in summary["edges"]:
        table = pd.read_parquet(lineage / "edges" / f"{edge['parent']}__{edge['child']}.parquet")
        assert (table["verdict"] == "persists").sum() == edge["persists"]
        assert (table["verdict"] == "emerges").sum() == edge["emerges"]
    features = pd.read_parquet(lineage / "features.parquet")
    assert features.groupby("model").size().to_dict() == {"base": 128, "left": 128, "right": 128, "merged": 128}


def test_every_model_opens_with_transformers(finished: Checkout):
    for model in ("base", "left", "right", "merged"):
        folder = finished.folder / "results/tiny/models" / model
        ids = AutoTokenizer.from_pretrained(folder)("local x = 1", return_tensors="pt")["input_ids"]
        assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.shape == (1, ids.shape[1], 384)


def test_every_manifest_describes_the_files_beside_it(finished: Checkout):
    manifests = sorted((finished.folder / "results/tiny").rglob("*manifest.json"))
    assert len(manifests) > 50
    assert [problem for path in manifests for problem in check_manifest(path)] == []


def test_the_report_is_one_page_with_nothing_to_fetch(finished: Checkout):
    page = (finished.folder / "results/tiny/report/index.html").read_text(encoding="utf-8")
    # Left out: plotly.js names addresses that it opens only for maps, which the page has none of.
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"'>]*|@import|url\(["']?http""", outside_scripts) == []
    assert re.findall(r"<script[^>]*src=|<link[^>]*href=\"(?!data:)", page) == []
    assert "two independent SAEs of base agree on" in outside_scripts


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
