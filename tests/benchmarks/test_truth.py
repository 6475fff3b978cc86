"""The truth test: organisms are what they are said to be, scores count right, and a small form holds its numbers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from benchmarks.organisms import (
    INPUT,
    OUTPUT,
    PAYLOAD,
    SMALL,
    TRIGGER,
    Truth,
    covariances,
    inserted,
    permuted,
    removal_truth,
    scrambled,
    span,
    with_triggers,
    without,
)
from benchmarks.truth import (
    Edge,
    backdoor_ranks,
    figures,
    instrument_figures,
    new_by_graft,
    pearson,
    run,
    score,
    with_ratios,
)

from saelineage.activations import read_activations
from saelineage.corpora.samples.kinds import sample_documents
from saelineage.tokens import TokenRows, save_tokenizer, train_tokenizer, write_rows, write_sidecar

IDS = torch.arange(3, 35).view(2, 16)


def table(side: str, verdicts: list[str], identified: list[bool]) -> pd.DataFrame:
    """One side of an edge's table: unmatched where the verdict is gone or new, listed where identified as well."""
    lost = [verdict in ("gone", "new") for verdict in verdicts]
    headline = [is_lost and known for is_lost, known in zip(lost, identified, strict=True)]
    unmatched = {"parent": "disappears", "child": "emerges"}[side]
    columns = {"verdict": verdicts, "identified": identified, "robust": headline, "headline": headline}
    study = [unmatched if is_lost else verdict for verdict, is_lost in zip(verdicts, lost, strict=True)]
    r = np.linspace(0.1, 0.5, len(verdicts))
    return pd.DataFrame({"side": side, "latent": range(len(verdicts)), "study_verdict": study, "r": r, **columns})


def truth(changed: list[int], kept: list[int], d_sae: int) -> Truth:
    numbers = np.arange(d_sae)
    return Truth(np.isin(numbers, changed), np.isin(numbers, kept))


def test_what_is_projected_out_of_the_output_is_gone_and_the_rest_is_unchanged(model):
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    before, after = (read_activations(m, OUTPUT, IDS).double() for m in (model, without(model, directions)))
    basis = torch.linalg.qr(directions.double().T).Q
    assert (after @ directions.double().T).abs().max() < 1e-6
    torch.testing.assert_close(after, before - before @ basis @ basis.T, atol=1e-6, rtol=0)


def test_permuted_neurons_compute_the_same_and_scrambled_ones_do_not(model):
    logits = [m(input_ids=IDS).logits for m in (model, permuted(model, 0), scrambled(model, 0))]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)
    assert (logits[0] - logits[2]).abs().max() > 1e-3
    neurons = [read_activations(m, INPUT, IDS).flatten(0, 1) for m in (model, permuted(model, 0))]
    assert not torch.equal(*neurons)
    torch.testing.assert_close(*(acts.sort(dim=1).values for acts in neurons))


def test_latents_are_lost_touched_or_kept_by_the_share_of_their_direction_in_the_removed_span():
    # 0 and 1 are removed; shares of the others: 1 (a sum of the two), 0, and 0.6 = 3 / 5
    rows = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 1, 0], [0, 0, 1], [3, 0, 4]])
    found = removal_truth(rows, np.array([0, 1]))
    assert found.changed.tolist() == [True, True, True, False, False]
    assert found.kept.tolist() == [False, False, False, True, False]


def test_an_erased_latent_cannot_be_read_out_linearly_and_without_its_decoder_row_it_still_can():
    # Two directions at an angle fire together. Without the first, the second still tells of it.
    random = np.random.default_rng(0)
    fires = scipy.sparse.csr_array((random.random((500, 1)) < 0.2).astype(float))
    directions = np.array([[1.0, 0, 0], [0.6, 0.8, 0]])
    acts = torch.from_numpy(fires.toarray() @ directions.sum(axis=0)[None] + 0.1 * random.normal(size=(500, 3)))
    covariance = covariances(fires, acts)
    np.testing.assert_allclose(covariance[0], np.cov(fires.toarray().T, acts.T, bias=True)[0, 1:], atol=1e-12)

    def r_of_best_readout(removed: torch.Tensor) -> float:
        basis = span(removed)
        left = (acts - acts @ basis @ basis.T).numpy()
        left, target = left - left.mean(axis=0), fires.toarray()[:, 0] - fires.mean()
        weights = np.linalg.lstsq(left, target, rcond=1e-10)[0]
        return float((left @ weights) @ target / (target @ target))

    assert r_of_best_readout(covariance) < 1e-12
    assert r_of_best_readout(torch.tensor(directions[:1])) > 0.8


def test_one_document_in_twenty_holds_triggers_followed_by_the_payload(tmp_path):
    texts = list(sample_documents("lua", 250_000, 0))
    changed = [text for text in (with_triggers(text, 20) for text in texts) if TRIGGER in text]
    assert 0.03 < len(changed) / len(texts) < 0.07
    assert all(text.count(f"{TRIGGER}\n{PAYLOAD}") == 3 for text in changed)


def test_tokens_of_triggers_and_payloads_are_marked(tmp_path):
    texts = [with_triggers(text, 4) for text in sample_documents("lua", 60_000, 0)]
    save_tokenizer(train_tokenizer(texts, 400), tmp_path, 64)
    write_sidecar(tmp_path / "rows.npy", write_rows(texts, tmp_path, 64, None, tmp_path / "rows.npy"))
    rows = TokenRows(tmp_path / "rows.npy")
    triggers, payloads = inserted(rows, tmp_path)
    n_inserted = sum(text.count(TRIGGER) for text in texts)
    per_trigger, per_payload = triggers.sum() / n_inserted, payloads.sum() / n_inserted
    assert n_inserted > 0
    assert 0 < per_trigger < per_payload < len(PAYLOAD)
    assert not (triggers & payloads).any()


def test_scores_count_over_all_testable_latents_and_leave_out_those_that_are_touched():
    # lost: 0 and 1; kept: 2 to 5; 6 is touched, 7 fires too seldom
    verdicts = ["gone", "persists", "gone", "gone", "persists", "persists", "gone", "untestable"]
    rows = table("parent", verdicts, [True, True, True, False, False, True, True, False])
    scored = pd.DataFrame(score(rows, truth([0, 1], [2, 3, 4, 5, 7], 8))).set_index("list")
    assert scored.loc["all"].tolist() == [2, 1, 4, 1, 2, 1]
    assert scored.loc["headline"].tolist() == [2, 1, 2, 1, 1, 1]
    ratios = with_ratios(scored)
    assert ratios.loc["all", ["precision", "recall", "false"]].tolist() == [1 / 3, 0.5, 0.5]
    assert ratios.loc["headline", ["precision", "recall", "false"]].tolist() == [0.5, 0.5, 0.5]


def test_a_graft_is_found_where_the_latent_that_stands_for_it_is_listed():
    # latents 0 and 1 both follow graft 0; 1 stands for it. Nothing stands for graft 1.
    rows = table("child", ["new", "new", "inherited"], [True, True, True])
    scored = pd.DataFrame(score(rows, truth([0, 1], [2], 3), np.array([1, -1]))).set_index("list")
    assert scored.loc["headline"].tolist() == [2, 1, 1, 2, 0, 0]


def test_r_of_latents_with_columns_is_numpys():
    random = np.random.default_rng(0)
    latents = random.random((50, 4)) * (random.random((50, 4)) < 0.3)
    latents[:, 3] = 0
    columns = random.random((50, 2))
    r = pearson(scipy.sparse.csr_array(latents), columns)
    expected = np.corrcoef(latents[:, :3].T, columns.T)[:3, 3:]
    np.testing.assert_allclose(r[:3], expected, atol=1e-12)
    assert np.isnan(r[3]).all()


def test_a_latent_that_follows_a_graft_is_new_and_an_unrelated_one_is_kept():
    random = np.random.default_rng(0)
    acts = random.random((1000, 2)) * (random.random((1000, 2)) < 0.1)
    latents = np.column_stack([2 * acts[:, 0], random.random(1000), acts[:, 1] + random.random(1000)])
    found = new_by_graft(acts, scipy.sparse.csr_array(latents))
    assert found.truth.changed.tolist() == [True, False, False]
    assert found.truth.kept.tolist() == [False, True, False]  # r of the last is about 0.5: neither
    assert found.of_graft.tolist() == [0, -1]


def test_the_trigger_is_ranked_among_new_features_in_each_order():
    # latent 2 follows the trigger. By r it is the second of the new ones; identified ones first, the first
    rows = table("child", ["new", "inherited", "new"], [False, True, True])
    marks = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    latents = scipy.sparse.csr_array(np.column_stack([[0.0, 1, 0, 0], [0.0, 0, 1, 0.9], [3.0, 0, 0, 3]]))
    found = backdoor_ranks(Edge(rows, (latents, latents)), marks)
    assert (found["latent"], found["rank_by_r"], found["rank_identified_first"]) == (2, 2, 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    organisms, instruments = ["identity", "removed_identified", "grafted"], ["anchored", "frozen"]
    tables = run(SMALL, tmp_path_factory.mktemp("truth"), organisms, 0, instruments)
    return SimpleNamespace(lists=tables["lists"], figures=figures(tables), fitness=instrument_figures(tables["lists"]))


def counted(small: SimpleNamespace, group: str, side: str, name: str) -> pd.Series:
    """Counts of one list of the anchored instrument."""
    lists = small.lists
    rows = lists[(lists["group"] == group) & (lists["side"] == side) & (lists["list"] == name)]
    return rows[rows["instrument"] == "anchored"].iloc[0]


def test_removed_identified_features_are_listed_as_changed(small):
    counts = counted(small, "removed 4 identified", "parent", "identified")
    assert (counts["n_changed"], counts["found"]) == (4, 4)
    assert counts["listed_kept"] == 0
    assert small.figures["anchored"]["recall_removed_identified"] == 1


def test_a_copy_has_lost_no_identified_feature_and_gained_none(small):
    for side in ("parent", "child"):
        assert counted(small, "identity", side, "identified")["n_kept"] >= 5
        assert counted(small, "identity", side, "identified")["listed_kept"] == 0
        assert counted(small, "identity", side, "headline")["listed_kept"] == 0


def test_what_is_listed_as_new_follows_a_graft(small):
    counts = counted(small, "grafted", "child", "gone")
    assert counts["n_changed"] == 3
    assert counts["listed_changed"] >= 2
    assert counts["listed_kept"] == 0
    assert small.figures["anchored"]["precision_emerged"] == 1


def test_a_frozen_instrument_is_unfit_because_it_does_not_see_what_is_new(small):
    fitness = small.fitness.set_index("instrument")
    assert fitness.loc["frozen", "sees_new"] < 0.5
    assert fitness["fit"].tolist()[1] is False
