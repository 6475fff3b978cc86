"""Crosscoders in a run: what they read, their verdicts beside floor and nulls, and the page."""

from pathlib import Path

import pandas as pd
import pytest

from saelineage.crosscoders.crosscoder import load_crosscoder
from saelineage.files.atomic import read_json
from tests.workflow.conftest import Checkout

OF_CROSSCODERS = (
    "train_crosscoder",
    "encode_crosscoder",
    "match_crosscoder",
    "measure_crosscoder",
    "ablate_crosscoder",
)


@pytest.fixture(scope="module")
def checkout(two_hookpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished run at two hookpoints, with a crosscoder of both models at each, from two seeds."""
    return Checkout(tmp_path_factory.mktemp("crosscoders"), two_hookpoints)


def test_each_hookpoint_has_a_crosscoder_of_both_models_for_each_seed(checkout: Checkout):
    run = checkout.folder / "results/two"
    for hookpoint, d_in in (("early", 24), ("late", 16)):
        crosscoders = [load_crosscoder(run / f"crosscoders/{hookpoint}/lineage/seed{seed}") for seed in (0, 1)]
        for crosscoder in crosscoders:
            assert (crosscoder.models, crosscoder.d_in, crosscoder.d_sae) == (["base", "left"], d_in, 4 * d_in)
        assert not crosscoders[0].W_enc.equal(crosscoders[1].W_enc)


def test_every_latent_has_a_verdict_and_every_edge_its_floor(checkout: Checkout):
    folder = checkout.folder / "results/two/lineage/early/crosscoders"
    latents = pd.read_parquet(folder / "lineage.seed0.parquet")
    shares = pd.read_parquet(folder / "lineage.seed0.shares.parquet")
    assert latents.groupby("role").size().to_dict() == {"edge": 96}
    assert shares["role"].tolist() == ["edge", "the parent on other documents"]
    edge = shares.iloc[0]
    counts = latents["verdict"].value_counts()
    assert all(edge[verdict] == n for verdict, n in counts.items())
    assert edge["persist_share_low"] <= edge["persist_share"] <= edge["persist_share_high"]
    assert 0 < edge["fvu_parent"] < 1
    tables = checkout.folder / "results/two/report/tables/early"
    assert len(pd.read_csv(tables / "crosscoders.csv")) == 2 * len(shares)  # two seeds
    curves = pd.read_csv(tables / "crosscoder_curves.csv")
    assert len(curves) == 2 * 2 * 50  # seeds, the edge and its floor, thresholds
    assert (curves["n_testable"][curves["role"] == "edge"].iloc[0]) == len(latents) - edge["untestable"]
    histograms = pd.read_csv(tables / "crosscoder_norms.csv")
    norms = pd.read_parquet(folder / "lineage.seed0.norms.parquet")
    assert norms["norm"].dtype == "float64"
    assert histograms.groupby(["seed", "model"])["n_latents"].sum()["seed0"].tolist() == [norms["fires"].sum() / 2] * 2
    page = (checkout.folder / "results/two/report/index.html").read_text(encoding="utf-8")
    assert "One dictionary for all models" in page


def test_features_stand_beside_the_crosscoder_s_verdicts_on_the_latents_that_they_fire_with(checkout: Checkout):
    folder = checkout.folder / "results/two/lineage/early"
    edge = pd.read_parquet(folder / "edges/base__left.parquet")
    matches = pd.read_parquet(folder / "crosscoders/lineage.seed0.matches.parquet")
    latents = pd.read_parquet(folder / "crosscoders/lineage.seed0.parquet").set_index("latent")
    named = [("base", "seed0"), ("left", "seed0")]
    assert matches.groupby(["model", "sae"]).size().to_dict() == dict.fromkeys(named, 96)
    of_parent = matches[matches["model"] == "base"]
    threshold = read_json(folder / "summary.json")["threshold"]
    expected = latents["verdict"].reindex(of_parent["match"]).where(of_parent["r"].to_numpy() >= threshold, "unmatched")
    assert edge.loc[edge["side"] == "parent", "crosscoder"].tolist() == expected.tolist()
    csv = pd.read_csv(checkout.folder / "results/two/report/tables/early/crosstable.csv")
    counted = csv[(csv["side"] == "parent") & (csv["group"] == "all")]
    assert counted["unmatched"].sum() == (expected == "unmatched").sum() < 96
    seeds = pd.read_csv(checkout.folder / "results/two/report/tables/early/crosscoder_seeds.csv")
    assert (seeds["seed"] == "seed1").all()
    assert seeds["n"].sum() == 96
    features = pd.read_parquet(folder / "features.parquet")
    marks = pd.concat([features.loc[features["model"] == model, "all_agree"] for model in ("base", "left")])
    assert marks.tolist() == edge["all_agree"].tolist()  # the only edge
    assert edge["all_agree"].notna().any()


def test_another_seed_trains_one_crosscoder_and_measures_it(checkout: Checkout):
    checkout.edit(
        "tiny.yaml", "crosscoder: {n_document_groups: 8}", "crosscoder: {n_document_groups: 8, seeds: [0, 1, 2]}"
    )
    jobs = checkout.stale_jobs()
    checkout.edit(
        "tiny.yaml", "crosscoder: {n_document_groups: 8, seeds: [0, 1, 2]}", "crosscoder: {n_document_groups: 8}"
    )
    made = {(rule, name) for rule, name in jobs if rule in OF_CROSSCODERS}
    assert made == {
        (rule, name)
        for hookpoint in ("early", "late")
        for rule, name in (
            ("train_crosscoder", f"{hookpoint}.lineage.seed2"),
            ("encode_crosscoder", f"{hookpoint}.lineage.seed2.00000-of-00001"),
            ("match_crosscoder", f"{hookpoint}.lineage.seed2.matches"),
            ("measure_crosscoder", f"{hookpoint}.lineage.seed2.crosscoder"),
            ("ablate_crosscoder", f"{hookpoint}.lineage.seed2.ablations"),
        )
    }
    assert {rule for rule, _ in jobs} == {*OF_CROSSCODERS, "draw_dag", "write_report"}


def test_both_models_of_an_edge_are_measured_without_what_one_of_them_writes_alone(checkout: Checkout):
    run = checkout.folder / "results/two"
    for hookpoint in ("early", "late"):
        folder = run / f"lineage/{hookpoint}/crosscoders"
        verdicts = pd.read_parquet(folder / "lineage.seed0.parquet")["verdict"]
        table = pd.read_parquet(folder / "lineage.seed0.ablations.parquet")
        groups = [(side, verdict) for side in ("parent", "child") for verdict in ("emerges", "disappears")]
        assert list(zip(table["side"], table["verdict"], strict=True)) == groups
        assert table["n_latents"].tolist() == [int((verdicts == verdict).sum()) for _, verdict in groups]
        assert table["loss_reconstructed"].notna().all()
        assert table["loss"].nunique() == 2  # of parent and child
        none = table["n_latents"] == 0
        assert (table["loss_without"].isna() == none).all()
        csv = pd.read_csv(run / f"report/tables/{hookpoint}/crosscoder_ablations.csv")
        assert len(csv) == 2 * len(table)  # two seeds


def test_other_rows_to_ablate_on_measure_the_losses_alone_and_none_leave_them_out(checkout: Checkout):
    before = "crosscoder: {n_document_groups: 8}"
    for n_rows, rules in ((4, {"ablate_crosscoder", "write_report"}), (0, {"write_report"})):
        after = f"crosscoder: {{n_document_groups: 8, ablated_rows: {n_rows}}}"
        checkout.edit("tiny.yaml", before, after)
        assert {rule for rule, _ in checkout.stale_jobs()} == rules
        checkout.edit("tiny.yaml", after, before)
