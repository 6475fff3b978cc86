"""Every SAE metric against its closed form."""

import numpy as np
import pytest
import torch

from saelineage.activations import hooked, read_activations
from saelineage.models.loading import evaluate
from saelineage.models.losses import next_token_loss
from saelineage.models.predictions import Predictions, predict
from saelineage.saes import metrics as sae_metrics
from saelineage.saes.metrics import Moments, SaeSums, measure, measure_clean, measure_corpora, reconstruction_sums
from saelineage.saes.sae import Sae, SparseLatents
from saelineage.tokens import TokenRows

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_IN = 48


@pytest.fixture
def rows(tiny):
    return TokenRows(tiny.tokens["words"]["validation"])


def sums_of(acts: torch.Tensor, recons: torch.Tensor, *parts: slice) -> SaeSums:
    """Sums over parts of some tokens, none of whose two latents fires."""
    added = SaeSums()
    for part in parts or (slice(None),):
        n = len(acts[part])
        nothing = SparseLatents(
            torch.zeros(n + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int32), torch.empty(0)
        )
        added = added.add(reconstruction_sums(acts[part], recons[part], nothing, 2))
    return added


def far_off_acts() -> torch.Tensor:
    """Activations whose mean is a thousand times their deviation."""
    return torch.randn(500, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1000


PARTS = (slice(0, 3), slice(3, 3), slice(3, 400), slice(400, 500))


def test_predicting_the_mean_leaves_all_variance_unexplained():
    acts = far_off_acts()
    mean = acts.mean(0).expand_as(acts)
    for parts in ((), PARTS):
        assert sae_metrics.fvu(sums_of(acts, mean, *parts)) == pytest.approx(1, abs=1e-12)


def test_perfect_reconstructions_leave_none():
    acts = far_off_acts()
    assert sae_metrics.fvu(sums_of(acts, acts, *PARTS)) == 0


def test_fvu_by_hand():
    # Around the mean 2: 1 + 1. Residuals 0.5 and 1: 1.25.
    sums = sums_of(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.5], [2.0]]))
    assert sae_metrics.fvu(sums) == pytest.approx(0.625)


def test_fvu_of_activations_that_do_not_vary_is_undefined():
    assert sae_metrics.fvu(sums_of(torch.ones(4, 2), torch.zeros(4, 2))) is None


def test_moments_of_parts_merge_to_those_of_the_whole():
    acts = far_off_acts()
    whole, merged = Moments.of(acts), Moments()
    for part in PARTS:
        merged = merged.add(Moments.of(acts[part]))
    assert merged.n == whole.n == 500
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-14)
    assert merged.deviation == pytest.approx(whole.deviation, rel=1e-12)
    assert whole.deviation == pytest.approx(float((acts - acts.mean(0)).square().sum()))


def test_moments_of_nothing_add_nothing():
    assert Moments().add(Moments()).n == 0
    one = Moments().add(Moments.of(torch.tensor([[2.0, 4.0]])))
    assert (one.n, one.mean.tolist(), one.deviation) == (1, [2, 4], 0)


def firing(*firings: int, n_tokens: int) -> SaeSums:
    return SaeSums(Moments(n_tokens), 0.0, np.array(firings))


def test_l0_and_dead_fraction_by_hand():
    sums = firing(10, 0, 2, 0, n_tokens=8)
    assert sae_metrics.l0(sums) == 12 / 8
    assert sae_metrics.dead_fraction(sums) == 0.5


def test_a_latent_that_fires_in_one_part_only_is_not_dead():
    assert sae_metrics.dead_fraction(firing(1, 0, 0, n_tokens=5).add(firing(0, 3, 0, n_tokens=5))) == pytest.approx(
        1 / 3
    )


@pytest.mark.parametrize(
    ("clean", "spliced", "ablated", "recovered"),
    [(1.0, 1.0, 3.0, 1.0), (1.0, 1.5, 3.0, 0.75), (1.0, 3.0, 3.0, 0.0), (1.0, 5.0, 3.0, -1.0), (2.0, 2.5, 2.0, None)],
    ids=["perfect", "three quarters", "as zeros", "worse than zeros", "ablation changes nothing"],
)
def test_recovered_loss_by_hand(clean, spliced, ablated, recovered):
    sums = SaeSums(ce_clean=4 * clean, ce_spliced=4 * spliced, ce_ablated=4 * ablated, n_predictions=4)
    assert sae_metrics.ce_recovered(sums) == recovered
    sums.ce_ablated, sums.ce_mean_ablated = 0.0, sums.ce_ablated
    assert sae_metrics.ce_recovered_from_mean(sums) == recovered
    assert sae_metrics.ce_difference(sums) == spliced - clean


def test_densities_are_binned_by_their_logarithm():
    # Of 1000 tokens: always (log10 = 0), 100 (-1), 10 (-2) twice; never.
    histogram = sae_metrics.density_histogram(firing(1000, 100, 10, 10, 0, n_tokens=1000))
    edges, counts = histogram["log10_edges"], histogram["counts"]
    assert len(edges) == len(counts) + 1 == 57
    assert (edges[0], edges[-1]) == (-7, 0)
    assert {edge: count for edge, count in zip(edges, counts, strict=False) if count} == {-0.125: 1, -1: 1, -2: 2}


def test_every_latent_is_in_a_bin_or_dead():
    # 1 of 10^9 tokens is below the lowest edge, 10^-7.
    counts = sae_metrics.density_histogram(firing(1, 5, 0, n_tokens=10**9))["counts"]
    assert (counts[0], sum(counts)) == (2, 2)


def identity() -> Sae:
    """Two latents for each input, one for each sign: exact."""
    sae = Sae("relu", D_IN, 2 * D_IN)
    eye = torch.eye(D_IN)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
    return sae


def random_sae(architecture: str) -> Sae:
    random = torch.Generator().manual_seed(0)
    sae = Sae(architecture, D_IN, 100, 5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 10)
    return sae


def measured(model, sae: Sae, rows: TokenRows, batch_rows: int) -> SaeSums:
    """The sums of one SAE."""
    return measured_together(model, {"sae": sae}, rows, batch_rows)["sae"]


def measured_together(model, saes: dict[str, Sae], rows: TokenRows, batch_rows: int) -> dict[str, SaeSums]:
    """The sums of several SAEs."""
    clean = measure_clean(model, {HOOKPOINT: [sae.max_norm for sae in saes.values()]}, rows, batch_rows)
    return measure(model, saes, HOOKPOINT, rows, batch_rows, clean)


def test_splicing_the_identity_in_changes_no_loss(model, rows):
    sums = measured(model, identity(), rows, 8)
    assert sums.ce_spliced == sums.ce_clean == pytest.approx(evaluate(model, rows, 8)["loss"] * sums.n_predictions)
    assert sums.ce_ablated != sums.ce_clean
    found = sae_metrics.report(sums)
    assert (found["fvu"], found["ce_recovered"], found["ce_difference"]) == (0, 1, 0)
    assert found["l0"] == D_IN


def test_an_sae_of_zeros_is_an_ablation(model, rows):
    sums = measured(model, Sae("topk", D_IN, 10, 3), rows, 8)
    assert sums.ce_spliced == sums.ce_ablated
    found = sae_metrics.report(sums)
    assert (found["ce_recovered"], found["l0"], found["dead_fraction"]) == (0, 0, 1)


def test_an_sae_of_the_mean_alone_recovers_nothing_from_the_mean(model, rows):
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    text = torch.from_numpy(rows.text_mask(range(len(ids))))
    mean = read_activations(model, HOOKPOINT, ids)[text].double().mean(0)
    constant = Sae("topk", D_IN, 10, 3)
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.zero_()
        constant.b_dec.copy_(mean)
    sums = measured(model, constant, rows, 7)
    assert sums.ce_spliced == pytest.approx(sums.ce_mean_ablated, rel=1e-9)
    assert sae_metrics.ce_recovered_from_mean(sums) == pytest.approx(0, abs=1e-6)
    assert sae_metrics.fvu(sums) == pytest.approx(1)
    # By hand: every text token's activations become the mean.
    with torch.no_grad(), hooked(model, HOOKPOINT, lambda acts: torch.where(text.unsqueeze(-1), mean.float(), acts)):
        by_hand = next_token_loss(predict(model, ids), ids).loss
    assert sums.ce_mean_ablated == pytest.approx(by_hand, rel=1e-6)
    assert abs(sums.ce_mean_ablated - sums.ce_ablated) > 1e-3


def test_the_unchanged_model_is_run_once_for_all_hookpoints(model, rows):
    n_passes = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: n_passes.append(1))
    places = {HOOKPOINT: [3.0, float("inf")], "model.layers.0.output": [float("inf")]}
    clean = measure_clean(model, places, rows, len(rows.ids))
    handle.remove()
    assert len(n_passes) == 1
    assert clean.losses.means() == evaluate(model, rows, len(rows.ids))
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    text = torch.from_numpy(rows.text_mask(range(len(ids))))
    for (place, max_norm), mean in clean.means.items():
        acts = read_activations(model, place, ids)
        acts = acts[text & (acts.norm(dim=-1) <= max_norm)].double()
        assert torch.allclose(mean, acts.sum(0) / max(1, len(acts)), atol=1e-12)
    assert len(clean.means) == 3


def test_tokens_too_long_for_the_sae_are_neither_measured_nor_replaced(model, rows):
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    text = (ids != rows.info["bos_id"]) & (ids != rows.info["eos_id"])
    norms = read_activations(model, HOOKPOINT, ids).norm(dim=-1)
    sae = Sae("relu", D_IN, 10)
    sae.max_norm = float(norms[text].median())
    is_measured = text & (norms <= sae.max_norm)
    sums = measured(model, sae, rows, 1000)
    assert 0 < sums.moments.n == int(is_measured.sum()) < int(text.sum()) == sums.moments.n + sums.n_left_out
    with torch.no_grad(), hooked(model, HOOKPOINT, lambda acts: acts * ~is_measured.unsqueeze(-1)):
        by_hand = next_token_loss(Predictions.of(model(input_ids=ids).logits), ids).loss
    assert sums.ce_ablated == pytest.approx(by_hand, rel=1e-6)


def test_bos_and_eos_are_neither_measured_nor_replaced(model, rows):
    sums = measured(model, Sae("relu", D_IN, 10), rows, 1000)
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    text = (ids != rows.info["bos_id"]) & (ids != rows.info["eos_id"])
    assert sums.moments.n == int(text.sum()) < ids.numel() - len(ids)
    with torch.no_grad(), hooked(model, HOOKPOINT, lambda acts: acts * ~text.unsqueeze(-1)):
        by_hand = next_token_loss(Predictions.of(model(input_ids=ids).logits), ids).loss
    assert sums.ce_ablated == pytest.approx(by_hand, rel=1e-6)
    assert sums.n_predictions == ids[:, 1:].numel()


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_measured_sums_equal_those_of_the_dense_code(model, rows, architecture):
    sae = random_sae(architecture)
    sums = measured(model, sae, rows, 8)
    numbers = range(len(rows.ids))
    acts = read_activations(model, HOOKPOINT, torch.from_numpy(rows.ids.astype(np.int64)))
    acts = acts[torch.from_numpy(rows.text_mask(numbers))]
    with torch.inference_mode():
        latent_acts, recons = sae.encode(acts), sae(acts)
    assert sums.firings.tolist() == (latent_acts > 0).sum(0).tolist()
    assert sums.residual == pytest.approx(float((acts.double() - recons.double()).square().sum()), rel=1e-6)
    deviation = (acts.double() - acts.double().mean(0)).square().sum()
    assert sums.moments.deviation == pytest.approx(float(deviation), rel=1e-6)


def test_the_number_of_rows_in_a_batch_changes_nothing(model, rows):
    one, many = (sae_metrics.report(measured(model, random_sae("topk"), rows, n)) for n in (3, 1000))
    assert one == pytest.approx(many, rel=1e-5)


def test_several_saes_measured_at_once_equal_each_alone(model, rows):
    saes = {"exact": identity(), "topk": random_sae("topk"), "without outliers": random_sae("relu")}
    saes["without outliers"].max_norm = 0.5 * float(measured_norms(model, rows).max())
    together = measured_together(model, saes, rows, 8)
    assert list(together) == list(saes)
    assert together["without outliers"].n_left_out > together["exact"].n_left_out == 0
    for name, sae in saes.items():
        alone = measured(model, sae, rows, 8)
        assert sae_metrics.report(together[name]) == sae_metrics.report(alone)
        assert np.array_equal(together[name].firings, alone.firings)


def measured_norms(model, rows: TokenRows) -> torch.Tensor:
    """Norms of the activations of all text tokens."""
    acts = read_activations(model, HOOKPOINT, torch.from_numpy(rows.ids.astype(np.int64)))
    return acts[torch.from_numpy(rows.text_mask(range(len(rows.ids))))].norm(dim=-1)


def test_corpora_are_reported_apart_and_together(model, tiny):
    rows = {corpus: TokenRows(tiny.tokens[corpus]["validation"]) for corpus in ("words", "sums")}
    sae = random_sae("topk")
    clean = {corpus: measure_clean(model, {HOOKPOINT: [sae.max_norm]}, of, 8) for corpus, of in rows.items()}
    found = measure_corpora(model, {"sae": sae}, HOOKPOINT, rows, 8, clean)["sae"]
    apart = found["corpora"]
    assert list(apart) == ["sums", "words"]
    n = {corpus: entry["n_tokens"] for corpus, entry in apart.items()}
    assert found["pooled"]["n_tokens"] == sum(n.values())
    for metric in ("l0", "ce_clean", "ce_spliced", "ce_ablated", "ce_mean_ablated"):
        weights = n if metric == "l0" else {corpus: entry["n_predictions"] for corpus, entry in apart.items()}
        mean = sum(apart[corpus][metric] * weights[corpus] for corpus in apart) / sum(weights.values())
        assert found["pooled"][metric] == pytest.approx(mean)
    assert found["pooled"]["dead_fraction"] <= min(entry["dead_fraction"] for entry in apart.values())
    histogram, dead = found["density_histogram"], found["pooled"]["dead_fraction"]
    assert sum(histogram["counts"]) == round(100 * (1 - dead))
