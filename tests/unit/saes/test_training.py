"""Training SAEs: every token once, planted features found, sparsity held, and the same bytes after an interruption."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saelineage.errors import InputError
from saelineage.saes import training as sae_training
from saelineage.saes.objectives import OBJECTIVES
from saelineage.saes.sae import PER_LATENT, Sae, save_sae
from saelineage.saes.training import (
    Dump,
    SaeTrainer,
    Trained,
    fold_scale,
    initial_directions,
    measure_scaling,
    token_batches,
    train_saes,
)

CPU = torch.device("cpu")
BATCHTOPK = ("batchtopk", "matryoshka_batchtopk")
PENALISED = ("relu", "jumprelu", "gated")


def train(dump: Dump, settings: dict, **changes: object) -> Trained:
    """One SAE."""
    return train_saes(dump, [settings | changes], CPU)[0]


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


@pytest.mark.parametrize("architecture", PER_LATENT)
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
    assert bool(latents.any())


def test_initial_directions_have_the_norm_asked_for_and_follow_from_the_seed():
    directions = [initial_directions(64, 200, 0.1, seed) for seed in (0, 0, 1)]
    assert torch.allclose(directions[0].norm(dim=1), torch.full((200,), 0.1))
    assert torch.equal(directions[0], directions[1])
    # Cosines of random directions in 64 dimensions have standard deviation 1/8; same-index ones are no exception.
    assert (directions[0] * directions[2]).sum(1).abs().mean().item() < 0.2 * 0.1**2


@pytest.mark.parametrize(("architecture", "norm"), [(name, 0.1 if name == "relu" else 1.0) for name in OBJECTIVES])
def test_encoder_and_decoder_start_from_one_direction_and_b_dec_from_the_mean(architecture, norm, sae_settings):
    mean = torch.arange(4.0)
    weights = SaeTrainer(sae_settings | {"architecture": architecture}, mean, 10).weights
    assert torch.allclose(weights["W_dec"].norm(dim=1), torch.full((12,), norm))
    assert torch.equal(weights["W_enc"], weights["W_dec"])
    assert torch.equal(weights["b_dec"], mean)
    own = {name: tensor for name, tensor in weights.items() if name not in ("W_enc", "W_dec", "b_dec", "log_threshold")}
    assert not any(bool(tensor.any()) for tensor in own.values())


def test_jumprelu_s_thresholds_start_where_they_are_set(sae_settings):
    weights = SaeTrainer(
        sae_settings | {"architecture": "jumprelu", "initial_threshold": 0.3}, torch.zeros(4), 10
    ).weights
    assert torch.allclose(weights["log_threshold"].exp(), torch.full((12,), 0.3))


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


def test_batches_can_be_passed_over():
    batches = [batch.tolist() for batch in token_batches(12, 50, 8, seed=3)]
    assert [batch.tolist() for batch in token_batches(12, 50, 8, seed=3, first=4)] == batches[4:]
    assert list(token_batches(12, 50, 8, seed=3, first=6)) == []


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


def test_tokens_far_longer_than_the_median_are_left_out(write_acts):
    # Norms 5, 5, 100, 5, 4: the median is 5, and 20 times as long is more than 10 times.
    acts = torch.tensor([[3.0, 4.0], [0.0, 5.0], [60.0, 80.0], [5.0, 0.0], [0.0, 4.0]])
    paths = [write_acts(acts[:2], "0"), write_acts(acts[2:], "1")]
    dump = Dump(paths, max_norm_ratio=10.0)
    assert (len(dump), dump.n_left_out, dump.max_norm) == (4, 1, 50.0)
    assert torch.equal(dump[np.array([3, 1, 2, 0])], acts[[4, 1, 3, 0]])
    assert len(Dump(paths, max_norm_ratio=20.0)) == 5  # as long as 20 times is not longer
    everything = Dump(paths)
    assert (len(everything), everything.n_left_out, everything.max_norm) == (5, 0, math.inf)


D_IN, N_PLANTED = 16, 24


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    """24 unit vectors, from another kind of random stream than SAEs start from."""
    drawn = np.random.default_rng(2024).normal(size=(N_PLANTED, D_IN))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def planted_acts(directions) -> torch.Tensor:
    """4,096 tokens, each the sum of 3 of the planted directions, off centre and small."""
    random = np.random.default_rng(2025)
    code = np.zeros((4096, N_PLANTED))
    for token in code:
        token[random.choice(N_PLANTED, 3, replace=False)] = random.uniform(1, 2, 3)
    return torch.from_numpy(0.01 * (code @ directions + 5)).float()


@pytest.fixture
def planted(write_acts, planted_acts) -> Dump:
    """The planted tokens in two shards."""
    return Dump([write_acts(planted_acts[:1500], "0"), write_acts(planted_acts[1500:], "1")])


def all_acts(dump: Dump) -> torch.Tensor:
    return dump[np.arange(len(dump))]


def fvu(sae: Sae, dump: Dump) -> float:
    acts = all_acts(dump)
    with torch.no_grad():
        return float((acts - sae(acts)).square().sum() / (acts - acts.mean(0)).square().sum())


def mean_l0(sae: Sae, dump: Dump) -> float:
    return float((sae.encode(all_acts(dump)) > 0).sum(1).float().mean())


def recovery(sae: Sae, directions: np.ndarray) -> torch.Tensor:
    """Of each planted direction the best cosine with a decoder row."""
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    return (torch.from_numpy(directions).float() @ rows.T).max(1).values


def test_training_finds_planted_directions(planted, directions, sae_settings):
    short = train(planted, sae_settings, n_tokens=512).sae
    sae, curve = train(planted, sae_settings, n_tokens=15 * 4096)
    # Seen once: two steps 0.56 and 0.39, the whole training 0.11 and 0.89.
    assert fvu(short, planted) > 0.4
    assert recovery(short, directions).min() < 0.6
    assert fvu(sae, planted) < 0.2
    assert recovery(sae, directions).min() > 0.8
    assert mean_l0(sae, planted) <= 3
    assert curve["step"].tolist() == [25, 50, 75, 100, 125, 150, 175, 200, 225, 240]
    assert curve["tokens"].tolist() == [256 * step for step in curve["step"]]
    assert curve["fvu"].iloc[-1] < curve["fvu"].iloc[0]
    assert curve["coefficient"].eq(0).all()


# Of 48 random directions the best has a cosine of 0.53 with a planted one, on average.
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("batchtopk", {}),
        ("matryoshka_batchtopk", {}),
        ("relu", {"sparsity_coefficient": 1.0}),
        ("jumprelu", {"sparsity_coefficient": 1.0, "bandwidth": 0.1}),
        ("gated", {"sparsity_coefficient": 4.0}),
    ],
)
def test_every_architecture_finds_planted_directions(planted, directions, sae_settings, architecture, changes):
    changes = changes | {"n_tokens": 15 * 4096, "sparsity_warmup_fraction": 0.3}
    sae = train(planted, sae_settings, architecture=architecture, **changes).sae
    assert fvu(sae, planted) < 0.3
    assert mean_l0(sae, planted) < 9
    assert recovery(sae, directions).mean() > 0.75


def test_without_a_number_of_tokens_training_is_one_pass(planted, sae_settings):
    assert train(planted, sae_settings).curve["tokens"].tolist() == [4096]


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_decoder_rows_keep_unit_norm_except_where_the_penalty_weighs_them(planted, sae_settings, architecture):
    trainer = SaeTrainer(sae_settings | {"architecture": architecture}, torch.zeros(D_IN), 10)
    for _ in range(3):
        trainer.step(100 * all_acts(planted)[:256])
    norms = trainer.weights["W_dec"].norm(dim=1)
    assert torch.allclose(norms, torch.ones(len(norms)), rtol=1e-5) == (architecture != "relu")


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_two_trainings_are_equal_bytes_and_another_seed_is_not(planted, sae_settings, tmp_path, architecture):
    def weights(name: str, seed: int) -> bytes:
        save_sae(train(planted, sae_settings, architecture=architecture, seed=seed).sae, tmp_path / name, {})
        return (tmp_path / name / "sae_weights.safetensors").read_bytes()

    first = weights("first", 7)
    assert weights("second", 7) == first
    assert weights("third", 8) != first


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_bfloat16_trains_the_same_sae(planted, sae_settings, architecture):
    exact, low = (
        train(planted, sae_settings, architecture=architecture, sparsity_coefficient=2.0, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert torch.allclose(exact.sae.W_dec, low.sae.W_dec, rtol=0, atol=1e-5 * exact.sae.W_dec.abs().max().item())
    assert exact.curve["l0"].tolist() == pytest.approx(low.curve["l0"].tolist(), rel=1e-3)


@pytest.mark.parametrize("architecture", PENALISED)
def test_all_latents_are_computed_a_chunk_of_tokens_at_a_time(planted, sae_settings, architecture, monkeypatch):
    def stepped(chunk: int) -> tuple:
        monkeypatch.setattr(sae_training, "DENSE_TOKENS", chunk)
        trainer = SaeTrainer(sae_settings | {"architecture": architecture}, torch.zeros(D_IN), 10)
        acts = 100 * all_acts(planted)[:250]
        assert trainer.choose(acts)[1] is None, "too few latents fire for the test"
        figures = trainer.step(acts)
        return figures, {name: tensor.grad.clone() for name, tensor in trainer.weights.items()}

    (whole, gradients), (chunked, others) = stepped(1000), stepped(60)
    for name in ("loss", "l0"):
        assert float(getattr(whole, name)) == pytest.approx(float(getattr(chunked, name)), rel=1e-5)
    assert torch.equal(whole.fired, chunked.fired)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-4, atol=1e-4), name


def trainer_with_dead_latents(dump: Dump, settings: dict, n_steps: int) -> tuple[SaeTrainer, torch.Tensor]:
    """A TopK trainer of which 24 of 48 latents have encoders so short that they are never among the k largest."""
    acts = all_acts(dump)
    scaling = measure_scaling(acts)
    trainer = SaeTrainer(settings, scaling.mean * scaling.scale, n_steps)
    with torch.no_grad():
        trainer.weights["W_enc"][24:] *= 0.001
    return trainer, acts * scaling.scale


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


@pytest.mark.parametrize("architecture", PENALISED)
def test_a_larger_coefficient_gives_fewer_active_latents(planted, sae_settings, architecture):
    saes = [
        train(
            planted, sae_settings, architecture=architecture, n_tokens=10 * 4096, sparsity_coefficient=coefficient
        ).sae
        for coefficient in (0.02, 1.0)
    ]
    assert mean_l0(saes[1], planted) < 0.8 * mean_l0(saes[0], planted)
    assert fvu(saes[0], planted) < fvu(saes[1], planted) < 0.5


def hand_trainer(settings: dict, n_steps: int = 10, **changes: object) -> SaeTrainer:
    """Two inputs and three ReLU latents, of which only the first ever fires; weights all but stand still."""
    fixed = {"architecture": "relu", "expansion_factor": 1.5, "learning_rate": 1e-12, "warmup_fraction": 0.0}
    trainer = SaeTrainer(settings | fixed | {"decay_fraction": 0.0} | changes, torch.zeros(2), n_steps)
    with torch.no_grad():
        trainer.weights["W_enc"].copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        trainer.weights["W_dec"].copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 5.0]]))
        trainer.weights["b_enc"].copy_(torch.tensor([0.0, -100.0, -100.0]))
    return trainer


def test_a_step_reports_the_batch(sae_settings):
    figures = hand_trainer(sae_settings, sparsity_coefficient=0.5).step(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    # (2, 0) is reconstructed; (0, 3) leaves 9. Penalty 0.5 x 2.
    assert float(figures.loss) == pytest.approx((9 + 0.5 * 2) / 2)
    assert float(figures.l0) == 0.5
    assert figures.error.tolist() == [[0.0, 0.0], [0.0, 3.0]]
    assert figures.fired.tolist() == [True, False, False]


@pytest.mark.parametrize(("size", "is_long"), [(1e-4, False), (1e4, True)])
def test_long_gradients_are_shortened_to_norm_1_and_short_ones_left(sae_settings, size, is_long):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.0)
    trainer.step(torch.tensor([[2.0, 1.0], [0.0, 3.0]]) * size)
    moments = {name: trainer.optimizer.state[tensor]["exp_avg"] for name, tensor in trainer.weights.items()}
    norm = torch.stack([moment.norm() / (1 - 0.9) for moment in moments.values()]).norm()
    # What Adam divides gradients by.
    scale = float(trainer.optimizer.grad_scale)
    if is_long:
        assert scale > 1
        assert float(norm) == pytest.approx(1.0)
    else:
        assert scale == 1
        assert float(norm) < 1


def test_the_learning_rate_rises_stays_and_falls(sae_settings):
    settings = sae_settings | {"warmup_fraction": 0.2, "decay_fraction": 0.4, "learning_rate": 1.0}
    trainer, rates = SaeTrainer(settings, torch.zeros(2), 10), []
    for _ in range(10):
        trainer.step(torch.ones(2, 2))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    # Two steps up, then full, then down over the last four.
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_jumprelu_s_thresholds_learn_ten_times_as_fast(planted_acts, sae_settings):
    flat = {"warmup_fraction": 0.0, "decay_fraction": 0.0, "learning_rate": 1e-3, "sparsity_coefficient": 1.0}
    trainer = SaeTrainer(sae_settings | flat | {"architecture": "jumprelu"}, torch.zeros(D_IN), 10)
    before = {name: tensor.detach().clone() for name, tensor in trainer.weights.items()}
    trainer.step(100 * planted_acts[:256])
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in trainer.weights.items()}
    # Adam's first step is the learning rate, whatever the gradient; W_dec is brought back to unit norm.
    assert moved["log_threshold"] == pytest.approx(1e-2, rel=1e-3)
    assert [moved[name] for name in ("W_enc", "b_dec", "b_enc")] == pytest.approx([1e-3] * 3, rel=1e-3)


def test_the_penalty_rises_over_the_warm_up(sae_settings):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.5, sparsity_warmup_fraction=0.4)
    losses = [float(trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]])).loss) for _ in range(6)]
    # 4.5 of the error and 0.5 of the penalty, of which a quarter more in each of the first 4 of 10 steps.
    assert losses == pytest.approx([4.625, 4.75, 4.875, 5, 5, 5])


def test_a_target_starts_from_the_whole_coefficient(sae_settings):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.5, sparsity_warmup_fraction=0.4, target_l0=2.0)
    assert float(trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]])).loss) == pytest.approx(5)


# Of two tokens one fires one latent: l0 is 0.5.
@pytest.mark.parametrize(("target", "direction"), [(0.3, 1), (0.45, 1), (0.5, 0), (0.55, -1), (5.0, -1), (None, 0)])
def test_the_coefficient_moves_towards_the_target(sae_settings, target, direction):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.5, target_l0=target)
    trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    assert np.sign(trainer.coefficient - 0.5) == direction


def test_the_goal_comes_down_to_the_target_over_the_warm_up(sae_settings):
    moved = []
    for warmup in (0.0, 0.4, 0.8):
        trainer = hand_trainer(sae_settings, sparsity_coefficient=1.0, target_l0=0.45, sparsity_warmup_fraction=warmup)
        trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        moved.append(math.log(trainer.coefficient))
    # l0 is 0.5. For the second of 10 steps the goal is 0.45, or half and a quarter of the way there.
    assert moved == pytest.approx([moved[0], moved[0] / 2, moved[0] / 4])
    assert moved[0] > 0


def test_the_coefficient_moves_no_faster_however_far_l0_is_off(sae_settings):
    moved = []
    for target in (1e-6, 1e-3, 1e3, 1e6):
        trainer = hand_trainer(sae_settings, sparsity_coefficient=1.0, target_l0=target)
        trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        moved.append(math.log(trainer.coefficient))
    assert moved[0] == pytest.approx(moved[1])
    assert moved[2] == pytest.approx(moved[3])
    assert moved[0] > 0 > moved[2]


def test_a_topk_s_coefficient_never_moves(sae_settings, planted):
    curve = train(planted, sae_settings, target_l0=1.0).curve
    assert curve["coefficient"].eq(0).all()


# 4 latents a token take a coefficient between 0.6 and 2.8 here: 0.1 and 10 are about ten times too small and too large.
@pytest.mark.parametrize("coefficient", [0.1, 10.0])
@pytest.mark.parametrize("architecture", PENALISED)
def test_the_target_l0_is_met(planted, sae_settings, architecture, coefficient):
    settings = sae_settings | {"architecture": architecture, "sparsity_coefficient": coefficient, "target_l0": 4.0}
    settings["sparsity_warmup_fraction"] = 0.1  # the config's own
    scaling = measure_scaling(all_acts(planted))
    n_steps, l0 = 640, []
    trainer = SaeTrainer(settings, scaling.mean * scaling.scale, n_steps)
    for tokens in token_batches(4096, n_steps * 256, 256, seed=0):
        l0.append(float(trainer.step(planted[tokens] * scaling.scale).l0))
    assert np.mean(l0[-n_steps // 10 :]) == pytest.approx(4, rel=0.2)


def resampling_trainer(settings: dict, n_steps: int, **changes: object) -> SaeTrainer:
    return hand_trainer(settings, n_steps, dead_after_tokens=8, resample_every_tokens=8, **changes)


# (1, 0) is reconstructed, (0, 3) is not: all of the loss is its.
BADLY = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 0.0]])


def test_dead_latents_get_the_direction_of_badly_reconstructed_tokens(sae_settings):
    trainer = resampling_trainer(sae_settings, n_steps=4)
    trainer.step(BADLY)
    before = {name: tensor.detach().clone() for name, tensor in trainer.weights.items()}
    assert not trainer.dead().any()
    trainer.step(BADLY)  # 8 tokens: latents 1 and 2 are dead by now, and it is time
    weights = trainer.weights
    for latent in (1, 2):
        assert weights["W_dec"][latent].tolist() == pytest.approx([0, 1])  # as long as the living one's
        assert weights["W_enc"][latent].tolist() == pytest.approx([0, 0.2])
        assert weights["b_enc"][latent] == 0
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.allclose(weights[name][0], before[name][0], rtol=0, atol=1e-9), name
        for moment in ("exp_avg", "exp_avg_sq"):
            moments = trainer.optimizer.state[weights[name]][moment]
            assert not bool(moments[1:].any()), name
            assert bool(moments[0].any()), name
    assert torch.allclose(weights["b_dec"], before["b_dec"], rtol=0, atol=1e-9)
    assert trainer.silent_tokens.tolist() == [0, 0, 0]
    assert trainer.step(BADLY).fired.all()


@pytest.mark.parametrize(
    ("n_steps", "changes"),
    [
        (3, {}),  # the second step lies in the second half
        (4, {"resample_every_tokens": None}),
        (4, {"resample_every_tokens": 1000}),
        (4, {"dead_after_tokens": 1000}),
    ],
)
def test_latents_are_not_resampled(sae_settings, n_steps, changes):
    trainer = hand_trainer(sae_settings, n_steps, **{"dead_after_tokens": 8, "resample_every_tokens": 8} | changes)
    for _ in range(2):
        trainer.step(BADLY)
    assert trainer.weights["b_enc"][1:].tolist() == [-100, -100]


def test_latents_are_not_resampled_where_nothing_is_badly_reconstructed(sae_settings):
    trainer = resampling_trainer(sae_settings, 4, sparsity_coefficient=0.0)
    for _ in range(2):
        trainer.step(torch.tensor([[1.0, 0.0], [2.0, 0.0]]).repeat(2, 1))
    assert trainer.weights["b_enc"][1:].tolist() == [-100, -100]


@pytest.mark.parametrize("architecture", ["jumprelu", "gated"])
def test_resampled_latents_get_the_biases_of_the_start(sae_settings, planted, architecture):
    settings = sae_settings | {"architecture": architecture, "dead_after_tokens": 512, "resample_every_tokens": 512}
    trainer = SaeTrainer(settings | {"learning_rate": 1e-12}, torch.zeros(D_IN), 10)
    fresh = {name: trainer.weights[name].detach().clone() for name in trainer.objective.own_tensors()}
    gate = "b_gate" if architecture == "gated" else "b_enc"
    with torch.no_grad():
        for name in fresh:
            trainer.weights[name][40:] = -3.0
        trainer.weights[gate][40:] = -1e6
    for _ in range(2):
        trainer.step(100 * all_acts(planted)[:256])
    for name, tensor in fresh.items():
        assert torch.allclose(trainer.weights[name][40:], tensor[40:], rtol=0, atol=1e-6), name


def test_dead_latents_of_a_training_are_resampled_and_live(planted, sae_settings, caplog):
    settings = sae_settings | {"architecture": "relu", "sparsity_coefficient": 5.0, "dead_after_tokens": 1024}
    with caplog.at_level(logging.INFO):
        plain, resampled = (
            train(planted, settings, n_tokens=8 * 4096, resample_every_tokens=every).curve for every in (None, 4096)
        )
    steps = [int(record.args[0]) for record in caplog.records if "resampled" in record.getMessage()]
    assert steps
    assert max(steps) <= 64
    assert resampled["dead_fraction"].iloc[2] < plain["dead_fraction"].iloc[2]


@pytest.mark.parametrize("architecture", BATCHTOPK)
def test_the_threshold_keeps_k_latents_on_average(planted, sae_settings, architecture):
    sae = train(planted, sae_settings, architecture=architecture, n_tokens=5 * 4096).sae
    assert sae.architecture == "jumprelu"
    assert len(set(sae.threshold.tolist())) == 1
    assert mean_l0(sae, planted) == pytest.approx(3, rel=0.15)


def test_the_sae_knows_what_was_left_out_of_its_training(write_acts, planted, sae_settings):
    acts = all_acts(planted)
    longer = acts.clone()
    longer[::100] *= 20
    dump = Dump([write_acts(longer, "longer")], max_norm_ratio=10.0)
    assert dump.n_left_out == 41
    sae, curve = train(dump, sae_settings)
    assert sae.max_norm == dump.max_norm == pytest.approx(10 * float(longer.norm(dim=1).median()), rel=1e-3)
    assert curve["tokens"].tolist() == [15 * 256]  # of 4,055 tokens
    assert train(planted, sae_settings).sae.max_norm == math.inf
    # It is the SAE of a dump that never held them.
    without = Dump([write_acts(torch.cat([acts[i : i + 99] for i in range(1, 4096, 100)]), "without")])
    assert torch.equal(sae.W_dec, train(without, sae_settings).sae.W_dec)


RESUMABLE = [
    {"architecture": "topk", "dead_after_tokens": 300},
    {"architecture": "relu", "target_l0": 4.0, "seed": 8, "resample_every_tokens": 512, "dead_after_tokens": 512},
    {"architecture": "batchtopk", "seed": 9},
]


@pytest.fixture
def resumable(sae_settings) -> list[dict]:
    """Three SAEs to be trained off one pass, 32 steps with a checkpoint every 10 and a point of the curve at 25."""
    common = sae_settings | {"n_tokens": 2 * 4096, "checkpoint_steps": 10, "shuffle_seed": 1}
    return [common | changes for changes in RESUMABLE]


@pytest.fixture
def written(tmp_path) -> Callable:
    """The bytes of an SAE's weights and its curve as the script writes them."""

    def write(trained: Trained) -> tuple[bytes, str]:
        save_sae(trained.sae, tmp_path / "sae", {})
        return (tmp_path / "sae" / "sae_weights.safetensors").read_bytes(), trained.curve.to_csv(index=False)

    return write


def test_saes_off_one_pass_are_those_trained_alone(planted, resumable, written):
    together = [written(found) for found in train_saes(planted, resumable, CPU)]
    assert together == [written(train(planted, settings)) for settings in resumable]


def test_without_a_shuffle_seed_the_first_one_s_seed_orders_the_tokens(planted, sae_settings, written):
    both = train_saes(planted, [sae_settings | {"seed": seed} for seed in (7, 8)], CPU)
    assert written(both[0]) == written(train(planted, sae_settings, seed=7))
    assert written(both[1]) == written(train(planted, sae_settings, seed=8, shuffle_seed=7))
    assert written(both[1]) != written(train(planted, sae_settings, seed=8))


class Stopped(Exception):  # noqa: N818
    """What ends a training in these tests."""


def stop_at(last: int) -> Callable:
    def watch(number: int, point: dict) -> None:
        if point["step"] == last:
            raise Stopped

    return watch


@pytest.mark.parametrize("number", range(3))
def test_a_training_that_is_stopped_and_started_again_ends_with_the_same_bytes(
    planted, resumable, written, tmp_path, caplog, number
):
    settings, checkpoint = resumable[number : number + 1], tmp_path / "checkpoints" / "state.safetensors"
    with pytest.raises(Stopped):
        train_saes(planted, settings, CPU, checkpoint, stop_at(32))
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state.safetensors"]
    with caplog.at_level(logging.INFO):
        resumed = train_saes(planted, settings, CPU, checkpoint)
    assert f"going on from step 30, from '{checkpoint}'" in caplog.text
    assert written(resumed[0]) == written(train_saes(planted, settings, CPU)[0])


def test_several_saes_go_on_together(planted, resumable, written, tmp_path):
    checkpoint = tmp_path / "state.safetensors"
    for last in (25, 32):  # stopped twice
        with pytest.raises(Stopped):
            train_saes(planted, resumable, CPU, checkpoint, stop_at(last))
    resumed = [written(found) for found in train_saes(planted, resumable, CPU, checkpoint)]
    assert resumed == [written(found) for found in train_saes(planted, resumable, CPU)]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(planted, resumable, written, tmp_path, monkeypatch):
    checkpoint, writes = tmp_path / "checkpoints" / "state.safetensors", []

    def write_half(tensors: dict, path: Path, metadata: dict) -> None:
        save_file(tensors, path, metadata=metadata)
        writes.append(path)
        if len(writes) == 3:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError("no space left on device")

    save_file = sae_training.save_file
    with monkeypatch.context() as patch:
        patch.setattr(sae_training, "save_file", write_half)
        with pytest.raises(OSError, match="no space left"):
            train_saes(planted, resumable[:1], CPU, checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state.safetensors"]
    resumed = train_saes(planted, resumable[:1], CPU, checkpoint)
    assert written(resumed[0]) == written(train_saes(planted, resumable[:1], CPU)[0])


def test_a_state_given_back_is_the_same_state(planted, sae_settings):
    trainers = [SaeTrainer(sae_settings | {"seed": seed}, torch.zeros(D_IN), 10) for seed in (1, 2)]
    acts = 100 * all_acts(planted)
    for start in (0, 256):
        trainers[0].step(acts[start : start + 256])
    tensors, rest = trainers[0].state()
    trainers[1].restore({name: tensor.clone() for name, tensor in tensors.items()}, rest)
    for trainer in trainers:
        trainer.step(acts[512:768])
    (mine, my_rest), (theirs, their_rest) = trainers[0].state(), trainers[1].state()
    assert my_rest == their_rest
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_each_point_of_a_curve_is_handed_out_as_it_comes(planted, sae_settings):
    points = []
    trained = train_saes(
        planted,
        [sae_settings | {"n_tokens": 30 * 256}] * 2,
        CPU,
        watch=lambda number, point: points.append((number, point)),
    )
    assert [(number, point["step"]) for number, point in points] == [(0, 25), (1, 25), (0, 30), (1, 30)]
    assert [point for number, point in points if number == 1] == trained[1].curve.to_dict("records")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_a_loss_that_is_not_finite_ends_the_training(planted, sae_settings, architecture, precision):
    wild = sae_settings | {"learning_rate": 1e30, "resample_every_tokens": 256, "dead_after_tokens": 256}
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+; lower saes\.learning_rate \(1e\+30\)"):
        train(planted, wild, architecture=architecture, precision=precision)


def test_a_dump_smaller_than_a_batch_is_refused(planted, sae_settings):
    with pytest.raises(InputError, match=r"saes\.batch_tokens \(5000\) must not exceed the 4096 training tokens"):
        train(planted, sae_settings, batch_tokens=5000)


def test_a_dump_without_tokens_is_refused(write_acts):
    for ratio in (None, 10.0):
        with pytest.raises(InputError, match="the activations hold no tokens"):
            Dump([write_acts(torch.ones(0, 4))], ratio)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_training_that_starts_from_an_sae_starts_with_its_latents(planted, sae_settings, architecture):
    settings = sae_settings | {"architecture": architecture}
    sae = train(planted, settings).sae
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2.0, sae.d_sae)[:, None]
    trainer = SaeTrainer(settings, torch.zeros(D_IN), 10, start=sae)
    threshold = float(sae.threshold.detach()[0]) if architecture in BATCHTOPK else None
    norms = sae.W_dec.norm(dim=1) if trainer.objective.unit_norm else torch.ones(sae.d_sae)
    again = trainer.objective.trained({name: one.detach() for name, one in trainer.weights.items()}, threshold)
    acts = all_acts(planted)[:200]
    raw, raw_again = ((acts - one.b_dec) @ one.W_enc for one in (sae, again))
    # Latents in units of their decoder rows' norms, so that decoder rows of length 1 give the same reconstructions.
    assert torch.allclose(raw_again, raw * norms, atol=1e-3)
    assert torch.allclose(again.W_dec * norms[:, None], sae.W_dec, atol=1e-5)
    assert torch.equal(again.b_dec, sae.b_dec)
    for name in set(PER_LATENT[sae.architecture]) - {"threshold"}:
        assert torch.allclose(getattr(again, name), getattr(sae, name) * (1 if name == "r_mag" else norms), atol=1e-6)
    if architecture == "jumprelu":
        assert torch.allclose(again.threshold, sae.threshold * norms, rtol=1e-4)


def test_an_sae_trained_on_for_no_tokens_is_the_same_but_for_what_is_too_long(planted, sae_settings):
    sae = train(planted, sae_settings).sae
    sae.max_norm = 3.0
    other = train_saes(planted, [sae_settings | {"n_tokens": 0}], CPU, starts=[sae])[0]
    assert other.curve.empty
    assert all(torch.equal(one, two) for one, two in zip(other.sae.parameters(), sae.parameters(), strict=True))
    assert (other.sae.max_norm, sae.max_norm) == (planted.max_norm, 3.0)


def test_an_sae_trained_on_where_nothing_changed_keeps_its_features(planted, sae_settings):
    first = train(planted, sae_settings).sae
    again = train_saes(planted, [sae_settings | {"n_tokens": 2048, "seed": 77}], CPU, starts=[first])[0].sae
    fresh = train(planted, sae_settings, n_tokens=2048, seed=77).sae
    to_first = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        assert float(to_first(again.W_dec, first.W_dec).median()) > 0.95
        assert float(to_first(fresh.W_dec, first.W_dec).median()) < 0.5


def test_an_sae_of_another_architecture_or_width_is_no_start(planted, sae_settings):
    with pytest.raises(InputError, match=r"saes\.architecture: .* of architecture 'relu' must become one, but 'topk'"):
        SaeTrainer(sae_settings, torch.zeros(D_IN), 10, start=Sae("relu", D_IN, 32))
    with pytest.raises(InputError, match="as wide as the activations, but they are 16 wide and it is 8"):
        SaeTrainer(sae_settings, torch.zeros(16), 10, start=Sae("topk", 8, 32, 4))
