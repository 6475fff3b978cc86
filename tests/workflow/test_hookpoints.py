"""A run that is read at two hookpoints: models and dumps are shared, everything from the SAEs on lies side by side."""

from pathlib import Path

import pandas as pd
import pytest

from saelineage.activations import ActivationShard
from saelineage.files.atomic import read_json
from saelineage.jobs.manifests import check_run
from saelineage.notebook import open_run
from tests.workflow.conftest import Checkout

HOOKPOINTS = {"early": "model.layers.0.mlp.down_proj.input", "late": "model.layers.1.output"}
MODELS = {"prepare_corpus", "make_tokenizer", "tokenize_split", "pretrain_model", "finetune_model"}
"""Rules up to the models."""


@pytest.fixture(scope="module")
def checkout(two_hookpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished run."""
    return Checkout(tmp_path_factory.mktemp("two"), two_hookpoints)


@pytest.fixture(scope="module")
def run(checkout: Checkout) -> Path:
    return checkout.folder / "results" / "two"


def test_one_job_dumps_the_activations_of_both_hookpoints(run: Path):
    logs = sorted(path.stem for path in (run / "logs/activations").iterdir())
    assert logs == [f"{model}.{split}.00000-of-00001" for model in ("base", "left") for split in ("probe", "train")]
    for hookpoint, place in HOOKPOINTS.items():
        for split in ("probe", "train"):
            shard = ActivationShard(run / f"activations/{hookpoint}/left/lua/{split}/shard-00000-of-00001.safetensors")
            assert shard.header["hookpoint"] == place
            assert shard.d_in == {"early": 24, "late": 16}[hookpoint]  # d_mlp and d_model


def test_settings_of_a_hookpoint_are_those_of_its_saes_alone(run: Path):
    config = {
        (hookpoint, model): read_json(run / f"saes/{hookpoint}/{model}/seed0/cfg.json")
        for hookpoint in HOOKPOINTS
        for model in ("base", "left")
    }
    k = {name: cfg["k"] for name, cfg in config.items()}
    assert k == {("early", "base"): 4, ("early", "left"): 4, ("late", "base"): 2, ("late", "left"): 3}
    places = {hookpoint: cfg["metadata"]["saelineage"]["hookpoint"] for (hookpoint, _), cfg in config.items()}
    assert places == HOOKPOINTS


def test_each_hookpoint_has_a_page_that_links_to_the_other(run: Path):
    pages = {name: (run / f"report/{name}.html").read_text(encoding="utf-8") for name in ("index", "late")}
    assert '<a href="late.html">late</a>' in pages["index"]
    assert '<a href="index.html">early</a>' in pages["late"]
    assert '<strong aria-current="page">early</strong>' in pages["index"]
    assert '<strong aria-current="page">late</strong>' in pages["late"]
    assert all('download="hookpoints.csv"' in page for page in pages.values())


def test_shares_of_both_hookpoints_are_one_table_beside_either_page(run: Path):
    shares = pd.read_csv(run / "report/tables/early/hookpoints.csv")
    pd.testing.assert_frame_equal(shares, pd.read_csv(run / "report/tables/late/hookpoints.csv"))
    everything = shares[shares["group"] == "all"].set_index("hookpoint")
    assert everything.index.tolist() == ["early", "late"]
    for hookpoint in HOOKPOINTS:
        (edge,) = read_json(run / f"lineage/{hookpoint}/summary.json")["edges"]
        assert everything.loc[hookpoint, "persist_share_n"] == edge["groups"]["all"]["persist_share_n"]


def test_a_notebook_reads_either_hookpoint(run: Path):
    # 4 latents for each of 24 or 16 inputs
    assert {name: len(open_run(run, name).features) for name in HOOKPOINTS} == {"early": 2 * 96, "late": 2 * 64}


def test_every_manifest_describes_the_files_beside_it(run: Path):
    assert check_run(run).problems == []


def test_another_k_at_one_hookpoint_concerns_that_hookpoint_and_the_report(checkout: Checkout):
    assert checkout.stale_jobs() == set()
    checkout.edit("tiny.yaml", "{late: {k: 2,", "{late: {k: 1,")
    jobs = checkout.stale_jobs()
    checkout.edit("tiny.yaml", "{late: {k: 1,", "{late: {k: 2,")
    assert ("train_sae", "late.base.seed0") in jobs
    assert ("trace_lineage", "late.lineage") in jobs
    # One job measures a model's SAEs of all hookpoints, and drift is shown beside what they leave unexplained.
    elsewhere = {(rule, name) for rule, name in jobs if not name.startswith("late.")}
    assert elsewhere == {("measure_model", "metrics.base"), ("measure_drift", "early.drift"), ("write_report", "page")}


def test_a_further_hookpoint_is_read_from_the_models_that_are_there(checkout: Checkout):
    places = "late: model.layers.1.output}"
    checkout.edit("tiny.yaml", places, f"middle: model.layers.0.output, {places}")
    jobs = checkout.stale_jobs()
    checkout.edit("tiny.yaml", f"middle: model.layers.0.output, {places}", places)
    assert {rule for rule, _ in jobs} & MODELS == set()
    assert ("train_sae", "middle.left.seed0") in jobs
