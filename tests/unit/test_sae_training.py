"""Training SAEs: exact gradients, every token once, planted features found."""

import numpy as np
import pytest
import torch

from saelineage.errors import InputError
from saelineage.sae_training import (
    Dump,
    SaeTrainer,
    TopKStep,
    fold_scale,
    initialise,
    measure_scaling,
    token_batches,
    train_sae,
)
from saelineage.saes import Sae, save_sae

CPU = torch.device("cpu")


def step_inputs(n_tokens=5, d_in=4, d_sae=9, bias=0.0):
    random = torch.Generator().manual_seed(0)
    shapes = ((n_tokens, d_in), (d_sae, d_in), (d_sae,), (d_sae, d_in), (d_in,))
    inputs = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    inputs[2] += bias
    return [tensor.requires_grad_() for tensor in inputs]


def dense_step(acts, W_enc_rows, b_enc, W_dec, b_dec, k):
    """The same reconstructions from dense arrays, with autograd's own gradients."""
    values, indices = ((acts - b_dec) @ W_enc_rows.T + b_enc).topk(k, dim=1)
    latent_acts = torch.zeros(len(acts), len(b_enc), dtype=acts.dtype).scatter(1, indices, values.relu())
    return latent_acts @ W_dec + b_dec


# With a bias of -3 some tokens fire fewer than k latents.
@pytest.mark.parametrize("bias", [0.0, -3.0])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_gradients_equal_finite_differences(k, bias):
    assert torch.autograd.gradcheck(lambda *inputs: TopKStep.apply(*inputs, k)[0], step_inputs(bias=bias))


@pytest.mark.parametrize("bias", [0.0, -3.0])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_sparse_step_equals_its_dense_twin(k, bias):
    sparse, dense = step_inputs(64, bias=bias), step_inputs(64, bias=bias)
    recons = TopKStep.apply(*sparse, k)[0], dense_step(*dense, k)
    assert torch.allclose(*recons, rtol=0, atol=1e-12)
    weights = torch.randn(recons[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for found in recons:
        (weights * found.square()).sum().backward()
    for name, mine, theirs in zip(("acts", "W_enc_rows", "b_enc", "W_dec", "b_dec"), sparse, dense, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=0, atol=1e-11), name


def test_gradients_of_weights_do_not_need_those_of_activations():
    inputs = step_inputs()
    inputs[0].requires_grad_(False)
    TopKStep.apply(*inputs, 3)[0].sum().backward()
    assert inputs[0].grad is None
    assert all(tensor.grad is not None for tensor in inputs[1:])


def test_a_step_reports_the_latents_it_kept():
    inputs = step_inputs(bias=-3.0)
    _, values, indices = TopKStep.apply(*inputs, 3)
    dense = torch.zeros(5, 9, dtype=torch.float64).scatter(1, indices, values)
    pre_acts = (inputs[0] - inputs[4]) @ inputs[1].T + inputs[2]
    assert torch.equal(dense > 0, (pre_acts > 0) & (pre_acts >= pre_acts.topk(3).values[:, -1:]))


def test_scaling_by_hand():
    # Means (2, 0); deviations (-1, 0), (1, 0), (0, -2), (0, 2), so squares sum to 10 over 8 numbers.
    acts = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, -2.0], [2.0, 2.0]])
    scaling = measure_scaling(acts)
    assert scaling.mean.tolist() == [2.0, 0.0]
    assert scaling.scale == pytest.approx((10 / 8) ** -0.5)
    scaled = (acts - scaling.mean) * scaling.scale
    assert float(scaled.square().sum(1).mean()) == pytest.approx(2.0)  # d_in


def test_activations_that_do_not_vary_are_refused():
    with pytest.raises(InputError, match=r"activations\.hookpoint do not vary"):
        measure_scaling(torch.full((5, 3), 0.1))


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_folding_the_scale_in_keeps_latents_and_scales_reconstructions_back(architecture):
    random = torch.Generator().manual_seed(0)
    sae = Sae(architecture, 4, 9, 3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    acts = torch.randn(20, 4, generator=random)
    latents, recons = sae.encode(acts * 8), sae(acts * 8) / 8
    fold_scale(sae, 8.0)
    assert torch.allclose(sae.encode(acts), latents, atol=1e-4)
    assert torch.allclose(sae(acts), recons, atol=1e-5)


def test_initial_weights_are_unit_directions_their_transpose_and_the_mean():
    sae, mean = Sae("topk", 4, 9, 3), torch.arange(4.0)
    initialise(sae, mean, seed=0)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(9))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(sae.b_dec, mean)
    assert not sae.b_enc.any()


def test_each_token_comes_once_per_pass_in_another_order():
    tokens = np.concatenate(list(token_batches(30, 90, 10, seed=0)))
    passes = tokens.reshape(3, 30)
    assert all(sorted(one) == list(range(30)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 3


def test_batches_are_full_and_run_over_the_ends_of_passes():
    # 30 of 12 tokens in batches of 8: three, the last 6 tokens asked for would not fill a fourth.
    batches = list(token_batches(12, 30, 8, seed=0))
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert sorted(np.concatenate(batches).tolist()) == sorted([*range(12), *range(12)])


def test_a_batch_may_be_longer_than_the_dump():
    assert sorted(next(token_batches(3, 6, 6, seed=0)).tolist()) == [0, 0, 1, 1, 2, 2]


def test_the_order_of_tokens_follows_from_the_seed():
    orders = [np.concatenate(list(token_batches(50, 50, 10, seed))).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_dump_reads_across_shards_in_the_order_asked_for(write_acts):
    acts = torch.arange(20.0).view(10, 2)
    paths = [
        write_acts(acts[:3], "0"),
        write_acts(acts[3:3], "1"),
        write_acts(acts[3:8], "2"),
        write_acts(acts[8:], "3"),
    ]
    dump = Dump(paths)
    assert (len(dump), dump.d_in) == (10, 2)
    for tokens in ([9, 0, 3, 2, 7, 8, 0], list(range(10)), [5]):
        assert torch.equal(dump[np.array(tokens)], acts[tokens])


def test_a_dump_in_half_precision_is_read_as_float32(write_acts):
    dump = Dump([write_acts(torch.ones(3, 2).half())])
    assert dump[np.array([1])].dtype == torch.float32


@pytest.mark.parametrize("other", [{"acts": torch.ones(3, 4)}, {"acts": torch.ones(3, 2), "hookpoint": "x.input"}])
def test_shards_that_do_not_belong_together_are_refused(write_acts, other):
    with pytest.raises(InputError, match=r"differ in \(hookpoint, width\)"):
        Dump([write_acts(torch.ones(3, 2), "first"), write_acts(**other, name="second")])


D_IN, N_PLANTED = 16, 24


@pytest.fixture
def directions() -> np.ndarray:
    """24 unit vectors, from another kind of random stream than SAEs start from."""
    drawn = np.random.default_rng(2024).normal(size=(N_PLANTED, D_IN))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def planted(write_acts, directions) -> Dump:
    """4,096 tokens, each the sum of 3 of the planted directions, off centre and small."""
    random = np.random.default_rng(2025)
    code = np.zeros((4096, N_PLANTED))
    for token in code:
        token[random.choice(N_PLANTED, 3, replace=False)] = random.uniform(1, 2, 3)
    acts = torch.from_numpy(0.01 * (code @ directions + 5)).float()
    return Dump([write_acts(acts[:1500], "0"), write_acts(acts[1500:], "1")])


def fvu(sae: Sae, dump: Dump) -> float:
    acts = dump[np.arange(len(dump))]
    with torch.no_grad():
        return float((acts - sae(acts)).square().sum() / (acts - acts.mean(0)).square().sum())


def mean_l0(sae: Sae, dump: Dump) -> float:
    return float((sae.encode(dump[np.arange(len(dump))]) > 0).sum(1).float().mean())


def worst_recovery(sae: Sae, directions: np.ndarray) -> float:
    """Of all planted directions' best cosines with a decoder row, the smallest."""
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    return float((torch.from_numpy(directions).float() @ rows.T).max(1).values.min())


def test_training_finds_planted_directions(planted, directions, sae_settings):
    short, _ = train_sae(planted, sae_settings | {"n_tokens": 512}, CPU)
    sae, curve = train_sae(planted, sae_settings | {"n_tokens": 15 * 4096}, CPU)
    # Seen once: two steps 0.56 and 0.39, the whole training 0.11 and 0.93.
    assert fvu(short, planted) > 0.4
    assert worst_recovery(short, directions) < 0.6
    assert fvu(sae, planted) < 0.2
    assert worst_recovery(sae, directions) > 0.8
    assert mean_l0(sae, planted) <= 3
    assert curve["step"].tolist() == [25, 50, 75, 100, 125, 150, 175, 200, 225, 240]
    assert curve["tokens"].tolist() == [256 * step for step in curve["step"]]
    assert curve["fvu"].iloc[-1] < curve["fvu"].iloc[0]


def test_without_a_number_of_tokens_training_is_one_pass(planted, sae_settings):
    _, curve = train_sae(planted, sae_settings, CPU)
    assert curve["tokens"].tolist() == [4096]


def test_decoder_rows_keep_unit_norm_before_the_scale_is_folded_in(planted, sae_settings):
    sae, _ = train_sae(planted, sae_settings, CPU)
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(norms, norms[0].expand(len(norms)), rtol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_two_trainings_are_equal_bytes_and_another_seed_is_not(planted, sae_settings, tmp_path, architecture):
    def weights(name: str, seed: int) -> bytes:
        settings = sae_settings | {"architecture": architecture, "seed": seed}
        save_sae(train_sae(planted, settings, CPU)[0], tmp_path / name, {})
        return (tmp_path / name / "sae_weights.safetensors").read_bytes()

    first = weights("first", 7)
    assert weights("second", 7) == first
    assert weights("third", 8) != first


def test_seeds_draw_unrelated_directions():
    saes = [Sae("topk", 64, 200, 3) for _ in range(2)]
    for seed, sae in enumerate(saes):
        initialise(sae, torch.zeros(64), seed)
    # Cosines of random directions in 64 dimensions have standard deviation 1/8; same-index ones are no exception.
    cosines = (saes[0].W_dec * saes[1].W_dec).sum(1)
    assert cosines.abs().mean().item() < 0.2


def trainer_with_dead_latents(dump: Dump, settings: dict, n_steps: int) -> tuple[SaeTrainer, torch.Tensor]:
    """A TopK trainer of which 24 of 48 latents have encoders so short that they are never among the k largest."""
    acts = dump[np.arange(len(dump))]
    scaling = measure_scaling(acts)
    sae = Sae("topk", D_IN, 48, settings["k"])
    initialise(sae, scaling.mean * scaling.scale, settings["seed"])
    with torch.no_grad():
        sae.W_enc[:, 24:] *= 0.001
    return SaeTrainer(sae, settings, n_steps), acts * scaling.scale


@pytest.mark.parametrize(("aux_coefficient", "revived"), [(0.0, False), (0.03125, True)])
def test_the_auxiliary_loss_revives_dead_latents(planted, sae_settings, aux_coefficient, revived):
    settings = sae_settings | {"aux_coefficient": aux_coefficient, "dead_after_tokens": 1024}
    trainer, acts = trainer_with_dead_latents(planted, settings, 160)
    for tokens in token_batches(4096, 8 * 256, 256, seed=0):
        trainer.step(acts[tokens])
    assert int(trainer.dead()[24:].sum()) >= 23
    for tokens in token_batches(4096, 152 * 256, 256, seed=1):
        trainer.step(acts[tokens])
    still_dead = int(trainer.dead()[24:].sum())
    assert still_dead <= 6 if revived else still_dead >= 23


def test_latents_count_as_dead_after_the_tokens_set(planted, sae_settings):
    trainer, acts = trainer_with_dead_latents(planted, sae_settings | {"dead_after_tokens": 512}, 10)
    trainer.step(acts[:256])
    assert not trainer.dead().any()
    figures = trainer.step(acts[256:512])
    assert trainer.dead()[24:].all()
    assert not (trainer.dead() & figures.fired).any()


def test_a_larger_l1_coefficient_gives_fewer_active_latents(planted, sae_settings):
    relu = sae_settings | {"architecture": "relu", "n_tokens": 10 * 4096}
    saes = [train_sae(planted, relu | {"l1_coefficient": coefficient}, CPU)[0] for coefficient in (0.001, 0.03)]
    assert mean_l0(saes[1], planted) < 0.8 * mean_l0(saes[0], planted)
    assert fvu(saes[0], planted) < fvu(saes[1], planted) < 0.5


def test_relu_loss_by_hand():
    # Acts (2, 0), one latent reading and writing (1, 0) with decoder norm 3: code 2, reconstruction 6.
    sae = Sae("relu", 2, 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0], [0.0]]))
        sae.W_dec.copy_(torch.tensor([[3.0, 0.0]]))
    settings = {
        "learning_rate": 0.001,
        "adam_betas": [0.9, 0.999],
        "l1_coefficient": 0.5,
        "warmup_fraction": 0.0,
        "decay_fraction": 0.0,
    }
    figures = SaeTrainer(sae, settings, 1).step(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))
    # Second token: code 0, error (-2, 0). Mean of 16, 0, 4, 0 is 5; penalty 0.5 x mean(2 x 3, 0) = 1.5.
    assert float(figures.loss) == pytest.approx(6.5)
    assert float(figures.l0) == 0.5
    # Residual 16 + 4 over the variance around the mean (0, 0), 4 + 4.
    assert float(figures.fvu) == pytest.approx(2.5)


def test_the_learning_rate_rises_stays_and_falls(sae_settings):
    settings = sae_settings | {"warmup_fraction": 0.2, "decay_fraction": 0.4, "learning_rate": 1.0}
    sae = Sae("topk", 2, 4, 1)
    initialise(sae, torch.zeros(2), 0)
    trainer, rates = SaeTrainer(sae, settings, 10), []
    for _ in range(10):
        trainer.step(torch.ones(2, 2))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    # Two steps up, then full, then down over the last four.
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_dump_smaller_than_a_batch_is_refused(planted, sae_settings):
    with pytest.raises(InputError, match=r"saes\.batch_tokens \(5000\) must not exceed the 4096 training tokens"):
        train_sae(planted, sae_settings | {"batch_tokens": 5000}, CPU)
