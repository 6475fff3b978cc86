"""Difference SAEs in a run: an ordinary folder for each edge, tables that add up, and the page."""

from pathlib import Path

import pandas as pd
import pytest

from saelineage.activations import ActivationShard
from saelineage.files.atomic import read_json
from saelineage.lineage.new_directions import DIRECTIONS
from saelineage.saes.sae import load_sae
from tests.workflow.conftest import Checkout

EDGE = "base__left"


@pytest.fixture(scope="module")
def checkout(two_hookpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished run at two hookpoints with a difference SAE of its edge at each."""
    return Checkout(tmp_path_factory.mktemp("differences"), two_hookpoints)


def test_the_folder_is_that_of_an_sae_and_says_what_it_reads(checkout: Checkout):
    run = checkout.folder / "results/two"
    for hookpoint, d_in, k in (("early", 24, 4), ("late", 16, 2)):
        folder = run / f"difference_saes/{hookpoint}/{EDGE}/seed0"
        sae = load_sae(folder)
        assert (sae.d_in, sae.d_sae, sae.k) == (d_in, 4 * d_in, k)
        metadata = read_json(folder / "cfg.json")["metadata"]
        assert metadata["saelineage"]["input"] == "activations of left minus activations of base, of the same tokens"
        assert (metadata["hook_name"], metadata["model_name"]) == (None, "results/two/models/left")
        assert len(pd.read_csv(folder / "training.csv")) > 0


def test_tables_add_up_and_stand_on_the_page(checkout: Checkout):
    run = checkout.folder / "results/two"
    latents = pd.read_parquet(run / f"lineage/early/differences/{EDGE}.seed0.parquet")
    summary = pd.read_parquet(run / f"lineage/early/differences/{EDGE}.seed0.summary.parquet").set_index("corpus")
    pooled = summary.loc["pooled"]
    assert summary.index.tolist() == ["pooled", "lua"]
    assert (len(latents), pooled["n_latents"], pooled["role"]) == (96, 96, "edge")
    assert pooled["n_alive"] == (latents["n_firings"] > 0).sum()
    assert pooled["l0"] == pytest.approx(latents["n_firings"].sum() / pooled["n_tokens"])
    assert sum(pooled[direction] for direction in DIRECTIONS) == pooled["n_testable"]
    assert 0 < pooled["fvu"] < 1
    path = "activations/early/{}/lua/probe/shard-00000-of-00001.safetensors"
    parent, child = (ActivationShard(run / path.format(model)).acts().double() for model in ("base", "left"))
    size = (child - parent).square().sum() / (child - child.mean(0)).square().sum()
    assert pooled["difference_size"] == pytest.approx(float(size), rel=1e-5)
    csv = pd.read_csv(run / "report/tables/early/differences.csv")
    assert csv["child_alone"].tolist() == summary["child_alone"].tolist()
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert "What each edge wrote anew" in page


def test_another_seed_trains_one_sae_for_each_edge_and_another_bound_trains_none(checkout: Checkout):
    before = "difference_saes: {seeds: [0]}"
    jobs = {}
    for name, after in (("seed", "seeds: [0, 5]"), ("bound", "seeds: [0], same_above: 0.9")):
        checkout.edit("tiny.yaml", before, f"difference_saes: {{{after}}}")
        jobs[name] = {job for job in checkout.stale_jobs() if job[0] != "draw_dag"}
        checkout.edit("tiny.yaml", f"difference_saes: {{{after}}}", before)
    places = ("early", "late")
    assert jobs["seed"] == {
        *(("train_difference_sae", f"{place}.{EDGE}.seed5") for place in places),
        *(("measure_difference_sae", f"{place}.{EDGE}.seed5.difference") for place in places),
        ("write_report", "page"),
    }
    measured = {("measure_difference_sae", f"{place}.{EDGE}.seed0.difference") for place in places}
    assert jobs["bound"] == measured | {("write_report", "page")}
