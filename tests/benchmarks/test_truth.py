"""The truth test: organisms are what they are said to be, scores count right, and a small form holds its numbers."""

import json
from itertools import chain, product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from benchmarks import planted_scenarios
from benchmarks.backdoor import backdoor_ranks
from benchmarks.children import new_by_graft, pearson
from benchmarks.organisms import (
    INPUT,
    OUTPUT,
    PAYLOAD,
    SMALL,
    TRIGGER,
    covariances,
    inserted,
    permuted,
    removal_truth,
    scrambled,
    span,
    with_triggers,
    without,
)
from benchmarks.scores import LEAST_SPECIFICITY, summed
from benchmarks.truth import TABLES, add, as_tables, try_organisms, try_scenarios
from benchmarks.truth_tables import figures

from saelineage.activations import read_activations
from saelineage.corpora.samples.kinds import sample_documents
from saelineage.tokens import TokenRows, save_tokenizer, train_tokenizer, write_rows, write_sidecar

IDS = torch.arange(3, 35).view(2, 16)


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
    assert found.changed.tolist() == [True, False, False]
    assert found.kept.tolist() == [False, True, False]  # r of the last is about 0.5: neither
    assert found.follows.tolist() == [0, -1, -1]
    assert found.n_planted == 2


def test_the_trigger_is_ranked_among_new_features_in_each_order():
    # latent 2 follows the trigger. By r it is the second of the new ones; identified ones first, the first
    columns = {"latent": range(3), "verdict": ["new", "inherited", "new"], "identified": [False, True, True]}
    rows = pd.DataFrame(columns | {"r": [0.1, 0.9, 0.5]}, index=[3, 4, 5])
    r = np.array([[0.2, 0.1], [0.3, -1.0], [0.1, 0.8]])
    found = backdoor_ranks(rows, r, {"by_importance": np.array([0, 2]), "by_passages": np.array([1])})
    assert (found["latent"], found["r_with_trigger"], found["n_new"]) == (2, 0.8, 2)
    assert (found["rank_by_r"], found["rank_identified_first"]) == (2, 1)
    assert (found["rank_by_importance"], found["rank_by_passages"]) == (2, None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Organisms and one scenario at the small sizes."""
    organisms, instruments = ["identity", "removed_identified", "grafted"], ["anchored", "frozen"]
    rows = {name: [] for name in TABLES}
    tried = try_organisms(SMALL, tmp_path_factory.mktemp("truth"), organisms, 0, instruments)
    for part in chain(tried, try_scenarios(planted_scenarios.SMALL, ["control"], [0])):
        add(rows, part)
    tables = as_tables(rows)
    return SimpleNamespace(tables=tables, figures=figures(tables))


def counted(small: SimpleNamespace, group: str, side: str, name: str, instrument: str = "anchored") -> pd.Series:
    """Counts and ratios of one list."""
    lists = summed(small.tables["lists"], ["group", "side", "list", "instrument"])
    return lists.set_index(["group", "side", "list", "instrument"]).loc[group, side, name, instrument]


def test_removed_identified_features_are_listed_as_changed(small):
    counts = counted(small, "removed 4 identified", "parent", "identified")
    assert (counts["n_changed"], counts["listed_changed"]) == (4, 4)
    assert small.figures["recall_removed_identified"] == 1
    assert small.figures["recall_removed_identified_n"] > 4  # 4, and all


def test_a_copy_has_no_new_identified_feature_and_none_that_is_gone(small):
    for side in ("parent", "child"):
        assert counted(small, "identity", side, "identified")["n_kept"] >= 5
        assert counted(small, "identity", side, "headline")["listed_kept"] == 0


def test_what_is_listed_as_new_follows_a_graft(small):
    counts = counted(small, "grafted", "child", "headline")
    assert counts["n_planted"] == 3
    assert counts["listed_changed"] >= 1
    assert counts["listed_kept"] == 0


def test_the_reduced_control_finds_what_vanishes_and_appears_and_lists_nothing_else(small):
    for instrument, side in product(("anchored", "independent"), ("parent", "child")):
        headline = counted(small, "control", side, "headline", instrument)
        assert headline["precision"] == 1
        assert headline["recall_planted"] == 1
    shares = small.tables["shares"]
    row = shares[(shares["group"] == "control") & (shares["of"] == "identified")].iloc[0]
    assert row["persisting"] == pytest.approx(row["expected"], abs=0.05 * row["n"])
    # Latents that follow no planted feature are called lost by the study's verdict.
    assert counted(small, "control", "parent", "all")["precision"] < 0.9


def test_figures_stand_with_their_numbers_for_every_instrument_and_both_parts(small):
    names = ("false_loss_identified", "recall_removed_identified", "precision_lost", "precision_emerged")
    for name in (*names, "precision_robust"):
        assert small.figures[f"{name}_n"] > 0
        assert 0 <= small.figures[name] <= 1
    assert small.figures["backdoor_rank"] is None  # was not tried
    by_crosscoder = {"crosscoder", "crosscoder, norm bins"}
    assert set(small.figures["by_instrument"]) == {"anchored", "frozen", "independent"} | by_crosscoder
    assert small.figures["by_part"]["scenarios"]["anchored"]["precision_lost"] == 1
    assert json.loads(json.dumps(small.figures, allow_nan=False)) == small.figures


def test_a_frozen_instrument_is_unfit_because_it_does_not_see_what_is_new(small):
    fitness = {(row["part"], row["instrument"]): row for row in small.figures["fitness"]}
    assert fitness["organisms", "frozen"]["sees_new"] < 0.5
    assert fitness["organisms", "frozen"]["fit"] is False
    # Of 16 to 20 features one may be wrong: the upper ends of the intervals are held, not the bounds themselves.
    anchored = fitness["scenarios", "anchored"]
    assert anchored["sees_lost"] == anchored["sees_new"] == 1
    assert min(anchored["spares_kept_high"], anchored["spares_inherited_high"]) >= LEAST_SPECIFICITY
