"""Training SAEs: order of tokens, planted features, sparsity, and equal bytes after an interruption."""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saelineage.errors import InputError
from saelineage.saes import trainer as sae_trainer
from saelineage.saes import training as sae_training
from saelineage.saes.batches import Dump, ahead, measure_scaling, token_batches
from saelineage.saes.objectives import OBJECTIVES
from saelineage.saes.sae import PER_LATENT, Sae, save_sae
from saelineage.saes.trainer import SaeTrainer, initial_directions, settings_kept
from saelineage.saes.training import Trained, fold_scale, train_saes

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


def test_folding_the_scale_in_keeps_latents_and_scales_reconstructions_back():
    for architecture in PER_LATENT:
        random = torch.Generator().manual_seed(0)
        sae = Sae(architecture, 4, 9, 3)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
        acts = torch.randn(20, 4, generator=random)
        latents, recons = sae.encode(acts * 8), sae(acts * 8) / 8
        fold_scale(sae, 8.0)
        assert torch.allclose(sae.encode(acts), latents, atol=1e-4), architecture
        assert torch.allclose(sae(acts), recons, atol=1e-5), architecture
        assert bool(latents.any())


def test_initial_directions_have_the_given_norm_and_follow_from_the_seed():
    directions = [initial_directions(64, 200, 0.1, seed) for seed in (0, 0, 1)]
    assert torch.allclose(directions[0].norm(dim=1), torch.full((200,), 0.1))
    assert torch.equal(directions[0], directions[1])
    # Cosines of random directions in 64 dimensions have standard deviation 1/8, also those of equal number.
    assert (directions[0] * directions[2]).sum(1).abs().mean().item() < 0.2 * 0.1**2


def test_encoder_and_decoder_start_from_the_same_directions_and_b_dec_from_the_mean(sae_settings):
    mean = torch.arange(4.0)
    for architecture in OBJECTIVES:
        weights = SaeTrainer(sae_settings | {"architecture": architecture, "initial_threshold": 0.3}, mean, 10).weights
        norm = 0.1 if architecture == "relu" else 1.0
        assert torch.allclose(weights["W_dec"].norm(dim=1), torch.full((12,), norm)), architecture
        assert torch.equal(weights["W_enc"], weights["W_dec"])
        assert torch.equal(weights["b_dec"], mean)
        for name in weights.keys() - {"W_enc", "W_dec", "b_dec"}:
            start = math.log(0.3) if name == "log_threshold" else 0.0
            assert torch.allclose(weights[name], torch.full((12,), start)), (architecture, name)


def test_k_falls_geometrically_from_its_start_and_is_bounded_by_d_sae(sae_settings):
    annealed = sae_settings | {"k": 3, "k_start": 1000, "k_anneal_fraction": 0.4}
    trainer = SaeTrainer(annealed, torch.zeros(8), 10)  # 24 latents, 4 of 10 steps
    ks = []
    for trainer.step_number in range(11):
        ks.append(trainer.k)
    # 24 x (3 / 24) ^ (step / 4): 24, 14.3, 8.5, 5.0, 3
    assert ks == [24, 14, 8, 5, 3, 3, 3, 3, 3, 3, 3]
    assert SaeTrainer(sae_settings, torch.zeros(8), 10).k == 3
    with pytest.raises(InputError, match="k_start must be at least k = 3"):
        SaeTrainer(annealed | {"k_start": 2}, torch.zeros(8), 10)


def test_each_token_comes_once_per_pass_in_another_order():
    tokens = np.concatenate(list(token_batches(30, 90, 10, seed=0)))
    passes = tokens.reshape(3, 30)
    assert all(sorted(order) == list(range(30)) for order in passes.tolist())
    assert len({tuple(order) for order in passes.tolist()}) == 3


def test_batches_are_full_and_run_over_the_ends_of_passes():
    # 30 of 12 tokens in batches of 8 are three batches; the remaining 6 do not fill a fourth.
    batches = list(token_batches(12, 30, 8, seed=0))
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert sorted(np.concatenate(batches).tolist()) == sorted([*range(12), *range(12)])


def test_batches_can_be_skipped():
    batches = [batch.tolist() for batch in token_batches(12, 50, 8, seed=3)]
    assert [batch.tolist() for batch in token_batches(12, 50, 8, seed=3, first=4)] == batches[4:]
    assert list(token_batches(12, 50, 8, seed=3, first=6)) == []


def test_a_batch_may_be_longer_than_the_dump():
    assert sorted(next(token_batches(3, 6, 6, seed=0)).tolist()) == [0, 0, 1, 1, 2, 2]


def test_the_order_of_tokens_follows_from_the_seed():
    orders = [np.concatenate(list(token_batches(50, 50, 10, seed))).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_dump_reads_float32_across_shards_in_the_given_order(write_acts):
    acts = torch.arange(20.0).view(10, 2).half()
    parts = acts[:3], acts[3:3], acts[3:8], acts[8:]
    dump = Dump([write_acts(part, str(number)) for number, part in enumerate(parts)])
    assert (len(dump), dump.d_in) == (10, 2)
    for tokens in ([9, 0, 3, 2, 7, 8, 0], list(range(10)), [5]):
        assert torch.equal(dump[np.array(tokens)], acts[tokens].float())


def test_shards_that_do_not_belong_together_or_hold_no_tokens_are_refused(write_acts):
    first = write_acts(torch.ones(3, 2), "first")
    for second in (write_acts(torch.ones(3, 4), "wide"), write_acts(torch.ones(3, 2), "place", hookpoint="x.input")):
        with pytest.raises(InputError, match=r"\(hookpoint, width\).*; delete the dump"):
            Dump([first, second])
    for ratio in (None, 10.0):
        with pytest.raises(InputError, match=r"no tokens; look at saes\.corpora"):
            Dump([write_acts(torch.ones(0, 4), "empty")], ratio)


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
    """24 unit vectors, drawn by another generator than the one SAEs start from."""
    drawn = np.random.default_rng(2024).normal(size=(N_PLANTED, D_IN))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def planted_acts(directions) -> torch.Tensor:
    """4,096 tokens, each a small, off-centre sum of 3 of the planted directions."""
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
    """Best cosine of each planted direction with a decoder row."""
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    return (torch.from_numpy(directions).float() @ rows.T).max(1).values


# Of 48 random directions the best has a cosine of 0.53 with a planted one, on average.
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("topk", {}),
        ("batchtopk", {}),
        ("matryoshka_batchtopk", {}),
        ("relu", {"sparsity_coefficient": 1.0}),
        ("jumprelu", {"sparsity_coefficient": 1.0, "bandwidth": 0.1}),
        ("gated", {"sparsity_coefficient": 4.0}),
    ],
)
def test_every_architecture_finds_planted_directions(planted, directions, sae_settings, architecture, changes):
    changes = changes | {"n_tokens": 6 * 4096, "sparsity_warmup_fraction": 0.3, "learning_rate": 0.02}
    sae, curve = train(planted, sae_settings, architecture=architecture, **changes)
    # Seen once: fvu from 0.10 to 0.17, mean recovery from 0.81 to 0.98.
    assert fvu(sae, planted) < 0.25
    assert recovery(sae, directions).mean() > 0.75
    assert mean_l0(sae, planted) < 9
    assert curve["step"].tolist() == [25, 50, 75, 96]
    assert curve["tokens"].tolist() == [256 * step for step in curve["step"]]
    if architecture not in PENALISED:
        assert curve["fvu"].iloc[-1] < curve["fvu"].iloc[0]
        assert curve["coefficient"].eq(0).all()
        assert mean_l0(sae, planted) == pytest.approx(3, rel=0.1)
    if architecture in BATCHTOPK:
        assert sae.architecture == "jumprelu"
        assert len(set(sae.threshold.tolist())) == 1


def test_decoder_rows_keep_unit_norm_except_where_the_penalty_weights_them(planted, sae_settings):
    acts = 100 * all_acts(planted)[:256]
    for architecture in OBJECTIVES:
        trainer = SaeTrainer(sae_settings | {"architecture": architecture}, torch.zeros(D_IN), 10)
        for _ in range(3):
            trainer.step(acts)
        norms = trainer.weights["W_dec"].norm(dim=1)
        assert torch.allclose(norms, torch.ones(len(norms)), rtol=1e-5) == (architecture != "relu"), architecture


def test_two_trainings_are_equal_bytes_and_another_seed_is_not(planted, sae_settings, written):
    common = sae_settings | {"n_tokens": 3 * 256, "shuffle_seed": 0}

    def weights(seed: int) -> list:
        settings = [common | {"architecture": architecture, "seed": seed} for architecture in OBJECTIVES]
        return [written(sae) for sae in train_saes(planted, settings, CPU)]

    first = weights(7)
    assert weights(7) == first
    assert not any(a == b for a, b in zip(weights(8), first, strict=True))


@pytest.mark.parametrize("number_format", ["bfloat16", "int16"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_rounded_products_train_the_same_sae(planted, sae_settings, architecture, number_format):
    settings = sae_settings | {"architecture": architecture, "sparsity_coefficient": 2.0, "n_tokens": 2048}
    exact, low = (train(planted, settings, precision=precision) for precision in ("float32", number_format))
    assert torch.allclose(exact.sae.W_dec, low.sae.W_dec, rtol=0, atol=1e-5 * exact.sae.W_dec.abs().max().item())
    assert exact.curve["l0"].tolist() == pytest.approx(low.curve["l0"].tolist(), rel=1e-3)


@pytest.mark.parametrize("architecture", PENALISED)
def test_chunks_of_tokens_give_the_gradients_of_the_whole_batch(planted, sae_settings, architecture, monkeypatch):
    def stepped(chunk: int) -> tuple:
        monkeypatch.setattr(sae_trainer, "DENSE_TOKENS", chunk)
        trainer = SaeTrainer(sae_settings | {"architecture": architecture}, torch.zeros(D_IN), 10)
        acts = 100 * all_acts(planted)[:250]
        assert trainer.choose(acts)[1] is None, "too few latents fire for the test"
        figures = trainer.step(acts)
        return figures, {name: tensor.grad.clone() for name, tensor in trainer.weights.items()}

    (whole, whole_gradients), (chunked, chunked_gradients) = stepped(1000), stepped(60)
    for name in ("loss", "l0"):
        assert float(getattr(whole, name)) == pytest.approx(float(getattr(chunked, name)), rel=1e-5)
    assert torch.equal(whole.fired, chunked.fired)
    for name, gradient in whole_gradients.items():
        assert torch.allclose(gradient, chunked_gradients[name], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("architecture", ["topk", "matryoshka_batchtopk", "gated"])
def test_chunks_of_entries_give_the_gradients_of_the_whole_batch(planted, sae_settings, architecture, monkeypatch):
    def stepped(entries: int) -> tuple:
        monkeypatch.setattr(sae_trainer, "CHUNK_ENTRIES", entries)
        trainer = SaeTrainer(sae_settings | {"architecture": architecture}, torch.zeros(D_IN), 10)
        if architecture == "gated":
            with torch.no_grad():
                trainer.weights["b_gate"].fill_(-8.0)
        acts = 100 * all_acts(planted)[:250]
        chosen = trainer.choose(acts)[1]
        assert chosen is not None, "too many latents fire for the test"
        assert len(chosen) > 200, "too few latents fire for the test"
        figures = trainer.step(acts)
        return figures, {name: tensor.grad.clone() for name, tensor in trainer.weights.items()}

    (whole, whole_gradients), (chunked, chunked_gradients) = stepped(10**6), stepped(100)
    assert float(whole.loss) == pytest.approx(float(chunked.loss), rel=1e-5)
    assert float(whole.l0) == pytest.approx(float(chunked.l0), rel=1e-5)
    assert torch.equal(whole.fired, chunked.fired)
    assert torch.allclose(whole.error, chunked.error, atol=1e-5)
    for name, gradient in whole_gradients.items():
        assert torch.allclose(gradient, chunked_gradients[name], rtol=1e-4, atol=1e-4), name


class Waits(TorchDispatchMode):
    """Counts operations that make the host wait for a GPU, because it needs a value or a size that depends on values.

    Left out are copies between devices, which look alike on a CPU.
    """

    OPS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        sizes = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in self.OPS or masks or sizes:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_a_step_on_a_gpu_trains_the_same_sae_and_does_not_wait_for_it(planted, sae_settings, architecture, precision):
    """The steps that a GPU makes, made by a CPU; with a penalty they wait once, for the number of entries."""
    settings = sae_settings | {"architecture": architecture, "precision": precision, "target_l0": 4.0}
    settings |= {"dead_after_tokens": 512, "learning_rate": 0.003}
    scaling = measure_scaling(all_acts(planted))
    trainers = [SaeTrainer(settings, scaling.mean * scaling.scale, 30) for _ in range(2)]
    on_cpu, on_gpu = trainers
    on_gpu.on_gpu = True
    batches = [planted[tokens] * scaling.scale for tokens in token_batches(4096, 4 * 256, 256, seed=0)]
    on_cpu.step(batches[0])
    on_gpu.step(batches[0])  # dead latents are listed at the first of 16 steps
    for number, acts in enumerate(batches[1:]):
        expected = on_cpu.step(acts)
        with Waits() as mode:
            figures = on_gpu.step(acts)
        assert mode.waits == ["_local_scalar_dense"] * (architecture in PENALISED), number
        assert torch.allclose(figures.error, expected.error, atol=1e-3)
        assert float(figures.l0) == pytest.approx(float(expected.l0), rel=1e-3)
    assert on_gpu.unsure_tokens == 0
    assert on_gpu.coefficient == pytest.approx(on_cpu.coefficient, rel=1e-3)
    for name, tensor in on_gpu.weights.items():
        assert torch.allclose(tensor, on_cpu.weights[name], atol=2e-3), name
    assert torch.equal(on_gpu.silent_tokens, on_cpu.silent_tokens)


def test_the_test_of_waiting_sees_a_step_of_a_cpu_wait(planted_acts, sae_settings):
    trainer = SaeTrainer(sae_settings | {"precision": "bfloat16"}, torch.zeros(D_IN), 30)
    with Waits() as mode:
        trainer.step(100 * planted_acts[:256])
    assert {"nonzero", "_local_scalar_dense"} <= set(mode.waits)


def test_a_gpu_lists_dead_latents_now_and_then_and_resumes_with_the_list(planted, sae_settings, monkeypatch):
    monkeypatch.setattr(sae_trainer, "LIST_DEAD_EVERY", 4)
    settings = sae_settings | {"dead_after_tokens": 512}
    trainer, acts = trainer_with_dead_latents(planted, settings, 10)
    resumed = trainer_with_dead_latents(planted, settings, 10)[0]
    trainer.on_gpu = resumed.on_gpu = True
    n_dead = []
    for number in range(8):
        trainer.step(acts[256 * number : 256 * (number + 1)])
        n_dead.append(len(trainer.dead_latents))
        if number == 5:
            tensors, rest = trainer.state()
            resumed.restore({name: tensor.clone() for name, tensor in tensors.items()}, rest)
        if number > 5:
            resumed.step(acts[256 * number : 256 * (number + 1)])
    # Latents are dead after two steps of 256 tokens; the list is made in the first and the fifth step.
    assert n_dead[:4] == [0] * 4
    assert n_dead[4] >= 24
    assert n_dead[5:] == [n_dead[4]] * 3
    for name, tensor in trainer.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name


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
    settings = sae_settings | {"aux_coefficient": aux_coefficient, "dead_after_tokens": 512, "learning_rate": 0.01}
    trainer, acts = trainer_with_dead_latents(planted, settings, 64)
    for tokens in token_batches(4096, 4 * 256, 256, seed=0):
        trainer.step(acts[tokens])
    assert int(trainer.dead()[24:].sum()) >= 23
    for tokens in token_batches(4096, 60 * 256, 256, seed=1):
        trainer.step(acts[tokens])
    still_dead = int(trainer.dead()[24:].sum())
    assert still_dead <= 8 if revived else still_dead >= 23


def test_latents_count_as_dead_after_the_tokens_set(planted, sae_settings):
    trainer, acts = trainer_with_dead_latents(planted, sae_settings | {"dead_after_tokens": 512}, 10)
    trainer.step(acts[:256])
    assert not trainer.dead().any()
    figures = trainer.step(acts[256:512])
    assert trainer.dead()[24:].all()
    assert not (trainer.dead() & figures.fired).any()


def hand_trainer(settings: dict, n_steps: int = 10, **changes: object) -> SaeTrainer:
    """Two inputs and three ReLU latents, of which only the first ever fires; weights hardly change."""
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


@pytest.mark.parametrize(("size", "is_large"), [(1e-4, False), (1e4, True)])
def test_large_gradients_are_scaled_down_to_norm_1(sae_settings, size, is_large):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.0)
    trainer.step(torch.tensor([[2.0, 1.0], [0.0, 3.0]]) * size)
    moments = [trainer.optimizer.state[tensor]["exp_avg"] for tensor in trainer.weights.values()]
    norm = float(torch.stack([moment.norm() / (1 - 0.9) for moment in moments]).norm())
    if is_large:
        assert norm == pytest.approx(1.0)
    else:
        assert float(trainer.optimizer.grad_scale) == 1
        assert norm < 1


def rates_of(trainer: SaeTrainer) -> dict[str, float]:
    """The learning rate of each weight in the last step."""
    return {name: group["lr"] for name, group in zip(trainer.weights, trainer.optimizer.param_groups, strict=True)}


def test_the_learning_rate_rises_plateaus_and_falls(sae_settings):
    settings = sae_settings | {"warmup_fraction": 0.2, "decay_fraction": 0.4, "learning_rate": 1.0}
    trainer, rates = SaeTrainer(settings, torch.zeros(2), 10), []
    for _ in range(10):
        trainer.step(torch.ones(2, 2))
        rates.append(rates_of(trainer)["W_enc"])
    # Two steps up, then full, then down over the last four.
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_decoder_of_topk_learns_three_times_as_fast_unless_it_starts_from_an_sae(planted_acts, sae_settings):
    settings = sae_settings | {"warmup_fraction": 0.0, "decay_fraction": 0.0, "learning_rate": 1e-3}
    for architecture in OBJECTIVES:
        common = settings | {"architecture": architecture}
        fresh = SaeTrainer(common, torch.zeros(D_IN), 10)
        start = fresh.objective.trained(fresh.weights, 0.1)
        fresh.step(100 * planted_acts[:256])
        is_topk = architecture in ("topk", *BATCHTOPK)
        assert rates_of(fresh)["W_dec"] == pytest.approx(3e-3 if is_topk else 1e-3), architecture
        assert rates_of(fresh)["W_enc"] == rates_of(fresh)["b_dec"] == 1e-3
        further = SaeTrainer(common, torch.zeros(D_IN), 10, start=start)
        further.step(100 * planted_acts[:256])
        assert rates_of(further)["W_dec"] == 1e-3, architecture


def test_jumprelu_s_thresholds_learn_ten_times_as_fast(planted_acts, sae_settings):
    flat = {"warmup_fraction": 0.0, "decay_fraction": 0.0, "learning_rate": 1e-3, "sparsity_coefficient": 1.0}
    trainer = SaeTrainer(sae_settings | flat | {"architecture": "jumprelu"}, torch.zeros(D_IN), 10)
    before = {name: tensor.detach().clone() for name, tensor in trainer.weights.items()}
    trainer.step(100 * planted_acts[:256])
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in trainer.weights.items()}
    # Adam's first step is the learning rate, whatever the gradient; W_dec is normalised again.
    assert moved["log_threshold"] == pytest.approx(1e-2, rel=1e-3)
    assert [moved[name] for name in ("W_enc", "b_dec", "b_enc")] == pytest.approx([1e-3] * 3, rel=1e-3)


def test_the_penalty_rises_over_the_warm_up(sae_settings):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.5, sparsity_warmup_fraction=0.4)
    losses = [float(trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]])).loss) for _ in range(6)]
    # 4.5 of the error, and 0.5 of the penalty, which rises by a quarter in each of the first 4 of 10 steps.
    assert losses == pytest.approx([4.625, 4.75, 4.875, 5, 5, 5])


def test_a_target_starts_from_the_whole_coefficient(sae_settings):
    trainer = hand_trainer(sae_settings, sparsity_coefficient=0.5, sparsity_warmup_fraction=0.4, target_l0=2.0)
    assert float(trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]])).loss) == pytest.approx(5)


def test_the_coefficient_moves_towards_the_target(sae_settings):
    # Of two tokens one fires one latent: l0 is 0.5.
    for target, direction in [(0.3, 1), (0.45, 1), (0.5, 0), (0.55, -1), (5.0, -1), (None, 0)]:
        trainer = hand_trainer(sae_settings, sparsity_coefficient=0.5, target_l0=target)
        trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        assert np.sign(trainer.coefficient - 0.5) == direction, target


def test_the_goal_falls_to_the_target_over_the_warm_up(sae_settings):
    moved = []
    for warmup in (0.0, 0.4, 0.8):
        trainer = hand_trainer(sae_settings, sparsity_coefficient=1.0, target_l0=0.45, sparsity_warmup_fraction=warmup)
        trainer.step(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        moved.append(math.log(trainer.coefficient))
    # l0 is 0.5. For the second of 10 steps the goal is 0.45, or half or a quarter of the way there.
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


# 4 latents a token need a coefficient between 0.6 and 2.8 here; 0.1 and 10 are about ten times too small and too large.
@pytest.mark.parametrize(
    ("architecture", "coefficient"), [("relu", 0.1), ("relu", 10.0), ("jumprelu", 10.0), ("gated", 0.1)]
)
def test_the_target_l0_is_met(planted, sae_settings, architecture, coefficient):
    settings = sae_settings | {"architecture": architecture, "sparsity_coefficient": coefficient, "target_l0": 4.0}
    settings["sparsity_warmup_fraction"] = 0.1  # the config's default
    scaling = measure_scaling(all_acts(planted))
    n_steps, l0 = 240, []
    trainer = SaeTrainer(settings, scaling.mean * scaling.scale, n_steps)
    for tokens in token_batches(4096, n_steps * 128, 128, seed=0):
        l0.append(float(trainer.step(planted[tokens] * scaling.scale).l0))
    # Seen once: from 3.95 to 4.16.
    assert np.mean(l0[-n_steps // 10 :]) == pytest.approx(4, rel=0.15)


def resampling_trainer(settings: dict, n_steps: int, **changes: object) -> SaeTrainer:
    return hand_trainer(settings, n_steps, dead_after_tokens=8, resample_every_tokens=8, **changes)


# (1, 0) is reconstructed, (0, 3) is not and has all of the loss.
BADLY = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 0.0]])


def test_dead_latents_get_the_direction_of_badly_reconstructed_tokens(sae_settings):
    trainer = resampling_trainer(sae_settings, n_steps=4)
    trainer.step(BADLY)
    before = {name: tensor.detach().clone() for name, tensor in trainer.weights.items()}
    assert not trainer.dead().any()
    trainer.step(BADLY)  # after 8 tokens latents 1 and 2 are dead, and resampling is due
    weights = trainer.weights
    for latent in (1, 2):
        assert weights["W_dec"][latent].tolist() == pytest.approx([0, 1])  # the norm of the living one
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


def test_latents_are_resampled_only_when_due(sae_settings):
    for n_steps, changes in [
        (3, {}),  # the second step is in the second half
        (4, {"resample_every_tokens": None}),
        (4, {"resample_every_tokens": 1000}),
        (4, {"dead_after_tokens": 1000}),
    ]:
        trainer = hand_trainer(sae_settings, n_steps, **{"dead_after_tokens": 8, "resample_every_tokens": 8} | changes)
        for _ in range(2):
            trainer.step(BADLY)
        assert trainer.weights["b_enc"][1:].tolist() == [-100, -100], changes
    # Nothing is badly reconstructed.
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


def test_resampling_in_the_first_half_of_a_training_leaves_fewer_dead_latents(planted, sae_settings, caplog):
    settings = sae_settings | {"architecture": "relu", "sparsity_coefficient": 5.0, "dead_after_tokens": 1024}
    with caplog.at_level(logging.INFO):
        plain, resampled = (
            train(planted, settings, n_tokens=3 * 4096, resample_every_tokens=every).curve for every in (None, 2048)
        )
    steps = [int(record.args[0]) for record in caplog.records if "resampled" in record.getMessage()]
    assert steps
    assert max(steps) <= 24
    assert resampled["dead_fraction"].iloc[0] < plain["dead_fraction"].iloc[0]


def test_an_sae_never_sees_the_tokens_left_out_and_keeps_the_limit(write_acts, planted, sae_settings):
    acts = all_acts(planted)
    longer = acts.clone()
    longer[::100] *= 20
    dump = Dump([write_acts(longer, "longer")], max_norm_ratio=10.0)
    assert dump.n_left_out == 41
    sae, curve = train(dump, sae_settings)
    assert sae.max_norm == dump.max_norm == pytest.approx(10 * float(longer.norm(dim=1).median()), rel=1e-3)
    assert curve["tokens"].tolist() == [15 * 256]  # one pass over 4,055 tokens
    # It equals the SAE of a dump that never held them.
    without = Dump([write_acts(torch.cat([acts[i : i + 99] for i in range(1, 4096, 100)]), "without")])
    trained = train(without, sae_settings).sae
    assert torch.equal(sae.W_dec, trained.W_dec)
    assert trained.max_norm == math.inf


@pytest.fixture
def resumable(sae_settings, monkeypatch) -> list[dict]:
    """An SAE of every architecture, for 14 steps with a checkpoint every 5 and a point of the curve every 6."""
    monkeypatch.setattr(sae_training, "LOG_EVERY_STEPS", 6)
    common = sae_settings | {"n_tokens": 14 * 256, "checkpoint_steps": 5, "shuffle_seed": 1, "dead_after_tokens": 300}
    common |= {"target_l0": 4.0, "resample_every_tokens": 512}
    return [common | {"architecture": name, "seed": seed} for seed, name in enumerate(OBJECTIVES)]


@pytest.fixture
def written(tmp_path) -> Callable:
    """The bytes of an SAE's weights, and its curve, as the script writes them."""

    def write(trained: Trained) -> tuple[bytes, str]:
        save_sae(trained.sae, tmp_path / "sae", {})
        return (tmp_path / "sae" / "sae_weights.safetensors").read_bytes(), trained.curve.to_csv(index=False)

    return write


def test_without_a_shuffle_seed_the_first_one_s_seed_orders_the_tokens(planted, sae_settings, written):
    short = sae_settings | {"n_tokens": 1024}
    both = [written(sae) for sae in train_saes(planted, [short | {"seed": seed} for seed in (7, 8)], CPU)]
    assert both[0] == written(train(planted, short, seed=7))
    assert both[1] == written(train(planted, short, seed=8, shuffle_seed=7))
    assert both[1] != written(train(planted, short, seed=8))


class Stopped(BaseException):
    """Ends a training, as a kill does."""


def stop_at(last: int) -> Callable:
    def watch(number: int, point: dict) -> None:
        if point["step"] == last:
            raise Stopped

    return watch


def test_a_training_that_is_stopped_and_started_again_ends_with_the_same_bytes(
    planted, resumable, written, tmp_path, caplog
):
    """Every architecture, trained together and stopped twice, equals the same SAE trained alone."""
    checkpoint = tmp_path / "checkpoints" / "state.safetensors"
    with caplog.at_level(logging.INFO):
        for last in (6, 12):
            with pytest.raises(Stopped):
                train_saes(planted, resumable, CPU, checkpoint, stop_at(last))
            assert [path.name for path in checkpoint.parent.iterdir()] == ["state.safetensors"]
        resumed = [written(sae) for sae in train_saes(planted, resumable, CPU, checkpoint)]
    for step in (5, 10):
        assert f"resuming from step {step}, from '{checkpoint}'" in caplog.text
    for settings, sae in zip(resumable, resumed, strict=True):
        assert sae == written(train(planted, settings)), settings["architecture"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(planted, resumable, written, tmp_path, monkeypatch):
    settings, checkpoint, writes = resumable[0], tmp_path / "checkpoints" / "state.safetensors", []

    def write_half(tensors: dict, path: Path, metadata: dict) -> None:
        save_file(tensors, path, metadata=metadata)
        writes.append(path)
        if len(writes) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError("no space left on device")

    save_file = sae_training.save_file
    with monkeypatch.context() as patch:
        patch.setattr(sae_training, "save_file", write_half)
        with pytest.raises(OSError, match="no space left"):
            train_saes(planted, [settings], CPU, checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state.safetensors"]
    resumed = train_saes(planted, [settings], CPU, checkpoint)
    assert written(resumed[0]) == written(train(planted, settings))


def test_each_point_of_a_curve_is_reported_as_it_comes(planted, resumable):
    points = []
    trained = train_saes(planted, resumable[:2], CPU, watch=lambda number, point: points.append((number, point)))
    assert [(number, point["step"]) for number, point in points] == [
        (0, 6),
        (1, 6),
        (0, 12),
        (1, 12),
        (0, 14),
        (1, 14),
    ]
    assert [point for number, point in points if number == 1] == trained[1].curve.to_dict("records")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_a_loss_that_is_not_finite_ends_the_training(planted, sae_settings, architecture, precision):
    wild = sae_settings | {"learning_rate": 1e30, "resample_every_tokens": 256, "dead_after_tokens": 256}
    with pytest.raises(InputError, match=r"(nan|inf) at step 6; lower saes\.learning_rate \(1e\+30\)"):
        train(planted, wild, architecture=architecture, precision=precision, n_tokens=6 * 256)


def test_a_dump_smaller_than_a_batch_is_refused(planted, sae_settings):
    with pytest.raises(InputError, match=r"saes\.batch_tokens \(5000\) .* 4096 training tokens; lower it"):
        train(planted, sae_settings, batch_tokens=5000)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_training_that_starts_from_an_sae_starts_with_its_latents(planted, sae_settings, architecture):
    settings = sae_settings | {"architecture": architecture}
    sae = train(planted, settings, n_tokens=1024).sae
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2.0, sae.d_sae)[:, None]
    trainer = SaeTrainer(settings, torch.zeros(D_IN), 10, start=sae)
    threshold = float(sae.threshold.detach()[0]) if architecture in BATCHTOPK else None
    norms = sae.W_dec.norm(dim=1) if trainer.objective.unit_norm else torch.ones(sae.d_sae)
    again = trainer.objective.trained({name: weight.detach() for name, weight in trainer.weights.items()}, threshold)
    acts = all_acts(planted)[:200]
    raw, raw_again = ((acts - encoder.b_dec) @ encoder.W_enc for encoder in (sae, again))
    # Latents are scaled by their decoder rows' norms, so that rows of norm 1 give the same reconstructions.
    assert torch.allclose(raw_again, raw * norms, atol=1e-3)
    assert torch.allclose(again.W_dec * norms[:, None], sae.W_dec, atol=1e-5)
    assert torch.equal(again.b_dec, sae.b_dec)
    for name in set(PER_LATENT[sae.architecture]) - {"threshold"}:
        assert torch.allclose(getattr(again, name), getattr(sae, name) * (1 if name == "r_mag" else norms), atol=1e-6)
    if architecture == "jumprelu":
        assert torch.allclose(again.threshold, sae.threshold * norms, rtol=1e-4)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_latents_that_decode_to_nothing_do_not_end_the_training_and_stay_dead(planted, sae_settings, architecture):
    settings = sae_settings | {"architecture": architecture}
    start = train(planted, settings, n_tokens=1024).sae
    with torch.no_grad():
        start.W_dec[:3] = 0  # as dead latents of published SAEs have it
    n_tokens = 30 * settings["batch_tokens"]
    result = train_saes(planted, [settings | {"n_tokens": n_tokens}], CPU, starts=[start])[0]
    assert all(bool(torch.isfinite(weight).all()) for weight in result.sae.parameters())
    assert bool(np.isfinite(result.curve["loss"]).all())
    if OBJECTIVES[architecture].unit_norm:
        assert not bool(result.sae.W_dec[:3].any())
        assert not bool(result.sae.encode(all_acts(planted))[:, :3].any())


def test_training_keeps_the_architecture_and_sparsity_of_an_imported_start():
    left = {"architecture": "topk", "k": 32, "target_l0": None}
    all_left = left | {"from_start": ["architecture", "k", "target_l0"]}
    starts = {
        "topk": (Sae("topk", 4, 8, 6), {"k": 6}),
        "relu": (Sae("relu", 4, 8), {"architecture": "relu", "target_l0": 5.4}),
        "jumprelu": (Sae("jumprelu", 4, 8), {"architecture": "jumprelu", "target_l0": 5.4}),
    }
    for start, kept in starts.values():
        assert settings_kept(all_left, start, 5.4) == kept
        assert settings_kept(left, start, None) == {}
    # BatchTopK, which gives JumpReLU SAEs, can go on from one: k is a mean over tokens there.
    assert settings_kept(all_left | {"architecture": "batchtopk"}, Sae("jumprelu", 4, 8), 5.4) == {"k": 5}
    assert settings_kept(left | {"from_start": ["architecture"]}, Sae("topk", 4, 8, 6), None) == {}
    with pytest.raises(InputError, match=r"must record its l0 above 0 in metadata\.l0"):
        settings_kept(all_left, Sae("relu", 4, 8), None)


def test_training_from_an_sae_of_centred_activations_gives_another(write_acts, planted_acts, sae_settings):
    # The mean over dimensions varies far more than all else, so that only centred activations can be reconstructed.
    shift = 20 * torch.randn(len(planted_acts), 1, generator=torch.Generator().manual_seed(1))
    path = write_acts(planted_acts + shift, "shifted")
    dump = Dump([path], centred=True)
    assert torch.allclose(all_acts(dump), planted_acts - planted_acts.mean(1, keepdim=True), atol=1e-4)
    start = train(dump, sae_settings, n_tokens=1024).sae
    sae = train_saes(dump, [sae_settings | {"n_tokens": 1024}], CPU, starts=[start])[0].sae
    acts = planted_acts[:200]
    assert (start.centred, sae.centred) == (True, True)
    assert torch.allclose(sae.encode(acts + 7), sae.encode(acts), atol=1e-3)
    assert torch.equal(sae.target(acts), acts - acts.mean(1, keepdim=True))


def test_an_sae_trained_further_for_no_tokens_only_gets_the_new_outlier_limit(planted, sae_settings):
    sae = train(planted, sae_settings, n_tokens=512).sae
    sae.max_norm = 3.0
    kept = train_saes(planted, [sae_settings | {"n_tokens": 0}], CPU, starts=[sae])[0]
    assert kept.curve.empty
    assert all(torch.equal(a, b) for a, b in zip(kept.sae.parameters(), sae.parameters(), strict=True))
    assert (kept.sae.max_norm, sae.max_norm) == (planted.max_norm, 3.0)


def test_an_sae_trained_further_on_the_same_activations_keeps_its_features(planted, sae_settings):
    first = train(planted, sae_settings).sae
    again = train_saes(planted, [sae_settings | {"n_tokens": 2048, "seed": 77}], CPU, starts=[first])[0].sae
    fresh = train(planted, sae_settings, n_tokens=2048, seed=77).sae
    to_first = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        assert float(to_first(again.W_dec, first.W_dec).median()) > 0.95
        assert float(to_first(fresh.W_dec, first.W_dec).median()) < 0.5


def test_an_sae_of_another_architecture_or_width_is_no_start(planted, sae_settings):
    with pytest.raises(InputError, match=r"saes\.architecture: .* 'relu' .* 'topk' gives 'topk'; choose another"):
        SaeTrainer(sae_settings, torch.zeros(D_IN), 10, start=Sae("relu", D_IN, 32))
    with pytest.raises(InputError, match=r"16 wide and it is 8; compare models of one shape"):
        SaeTrainer(sae_settings, torch.zeros(16), 10, start=Sae("topk", 8, 32, 4))


def test_batches_made_ahead_come_in_order_and_no_more_than_asked_for_wait():
    made: list[int] = []

    def batches(n: int) -> Iterator[torch.Tensor]:
        for number in range(n):
            made.append(number)
            yield torch.tensor(number)

    assert [int(batch) for batch in ahead(batches(20), 2)] == list(range(20))
    made.clear()
    reader = ahead(batches(20), 2)
    assert int(next(reader)) == 0
    n_threads = threading.active_count()
    reader.close()
    assert threading.active_count() == n_threads - 1  # the thread has ended, though its work has not
    assert max(made) <= 4  # one was read, two wait, one is being made, and one more after the close


def test_an_error_of_a_batch_made_ahead_is_raised_where_it_belongs():
    def batches() -> Iterator[torch.Tensor]:
        yield torch.tensor(0)
        raise InputError("damaged")

    reader = ahead(batches(), 2)
    assert int(next(reader)) == 0
    with pytest.raises(InputError, match="damaged"):
        next(reader)


def test_training_on_batches_made_ahead_gives_the_same_bytes(planted, sae_settings, written, monkeypatch):
    settings = sae_settings | {"n_tokens": 2048}
    expected = written(train(planted, settings))
    monkeypatch.setattr(sae_training, "on_device", lambda batches, device: ahead(batches, 2))  # as for a GPU
    assert written(train(planted, settings)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_of_a_dump_are_those_of_its_shards_in_any_format(write_acts, dtype):
    acts = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    dump = Dump([write_acts(acts[:12], "0"), write_acts(acts[12:], "1")])
    tokens = np.array([29, 0, 12, 11, 0, 17])
    assert torch.equal(dump[tokens], acts[torch.from_numpy(tokens)].float())
    assert torch.equal(dump[tokens[:2]], acts[[29, 0]].float())
    batches = [tokens.tolist() for tokens in token_batches(30, 60, 8, 3, first=2)]
    read = list(dump.batches(60, 8, 3, first=2))
    assert len(read) == len(batches) == 5
    assert all(torch.equal(a, acts[b].float()) for a, b in zip(read, batches, strict=True))
