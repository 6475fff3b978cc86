"""Training objectives of SAEs: each architecture against its paper's formula, computed densely, and by hand."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from saelineage.errors import InputError
from saelineage.saes.objectives import OBJECTIVES, Loss, Objective, auxiliary_loss
from saelineage.saes.sparse_products import AllEntries, Entries, screen

D_IN, D_SAE, N_TOKENS = 5, 12, 40
COEFFICIENT = 0.3
FRACTIONS = [0.25, 0.5]


@pytest.fixture
def settings(sae_settings) -> dict:
    """Settings with a bandwidth so wide that some pre-activations lie in the rectangle."""
    return sae_settings | {"k": 3, "bandwidth": 0.4, "matryoshka_fractions": FRACTIONS}


def random_weights(objective: Objective, dtype: torch.dtype = torch.float64, bias: float = 0.0) -> dict:
    """Weights without any symmetry. Thresholds are between 0.3 and 1, above half the bandwidth."""
    random = torch.Generator().manual_seed(0)
    names = ["W_dec", "W_enc", "b_dec", *sorted(objective.own_tensors())]
    shapes = {"W_dec": (D_SAE, D_IN), "W_enc": (D_SAE, D_IN), "b_dec": (D_IN,)}
    weights = {name: torch.randn(shapes.get(name, (D_SAE,)), generator=random, dtype=dtype) for name in names}
    for name in {"b_enc", "b_gate"} & weights.keys():
        weights[name] += bias
    if "log_threshold" in weights:
        weights["log_threshold"] = torch.linspace(0.3, 1.0, D_SAE, dtype=dtype).log()
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def random_acts(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(N_TOKENS, D_IN, generator=torch.Generator().manual_seed(1), dtype=dtype)


@torch.no_grad()
def choose(objective: Objective, acts: torch.Tensor, weights: dict) -> tuple:
    screened = screen(acts, weights["W_enc"], weights["b_dec"], objective.bias(weights))
    return objective.choose(screened)


def squared(error: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the squared norms of rows."""
    return error.square().sum(1).mean()


# Each function returns the loss and the latents [token, d_sae]; autograd finds the gradients.


def dense_relu(acts, w, settings) -> tuple:
    """Anthropic, April 2024: |x - x'|^2 + lambda sum_i f_i |W_dec_i|."""
    f = ((acts - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    penalty = (f * w["W_dec"].norm(dim=1)).sum(1).mean()
    return squared(acts - f @ w["W_dec"] - w["b_dec"]) + COEFFICIENT * penalty, f


def dense_topk(acts, w, settings) -> tuple:
    """arXiv 2406.04093: z = TopK(W_enc (x - b_pre) + b_enc), L = |x - x'|^2."""
    pre = (acts - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
    kept = torch.zeros(pre.shape, dtype=torch.bool).scatter(1, pre.topk(settings["k"]).indices, True)
    f = pre.relu() * kept
    return squared(acts - f @ w["W_dec"] - w["b_dec"]), f


def batch_latents(acts, w, settings) -> torch.Tensor:
    pre = ((acts - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    largest = pre.flatten().topk(settings["k"] * len(acts)).indices
    return pre * torch.zeros(pre.numel(), dtype=torch.bool).scatter(0, largest, True).view(pre.shape)


def dense_batchtopk(acts, w, settings) -> tuple:
    """arXiv 2412.06410: the k n largest of all ReLU(W_enc (x - b_dec) + b_enc) of n tokens, L = |x - x'|^2."""
    f = batch_latents(acts, w, settings)
    return squared(acts - f @ w["W_dec"] - w["b_dec"]), f


def dense_matryoshka(acts, w, settings) -> tuple:
    """arXiv 2503.17547: the mean over m in M of |x - f_{0:m} W_dec_{0:m} - b_dec|^2; M = 3, 6, 12 here."""
    f = batch_latents(acts, w, settings)
    return sum(squared(acts - f[:, :m] @ w["W_dec"][:m] - w["b_dec"]) for m in (3, 6, 12)) / 3, f


def dense_gated(acts, w, settings) -> tuple:
    """arXiv 2404.16014, equations 5 to 8, with W_gate = W_enc and W_mag = exp(r_mag) W_enc."""
    pi = (acts - w["b_dec"]) @ w["W_enc"].T + w["b_gate"]
    f = (pi > 0) * ((acts - w["b_dec"]) @ (w["r_mag"].exp()[:, None] * w["W_enc"]).T + w["b_mag"]).relu()
    frozen = pi.relu() @ w["W_dec"].detach() + w["b_dec"].detach()
    loss = squared(acts - f @ w["W_dec"] - w["b_dec"]) + COEFFICIENT * pi.relu().sum(1).mean() + squared(acts - frozen)
    return loss, f


DENSE = {
    "relu": dense_relu,
    "topk": dense_topk,
    "batchtopk": dense_batchtopk,
    "matryoshka_batchtopk": dense_matryoshka,
    "gated": dense_gated,
}


def with_gradients(dense: Callable) -> Callable:
    """Loss, latents and the gradients that autograd finds."""

    def run(acts: torch.Tensor, weights: dict, settings: dict) -> SimpleNamespace:
        loss, latents = dense(acts, weights, settings)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        return SimpleNamespace(loss=loss, latents=latents, gradients=dict(zip(weights, gradients, strict=True)))

    return run


def jumprelu_by_equations(acts: torch.Tensor, weights: dict, settings: dict) -> SimpleNamespace:
    """arXiv 2407.14435: loss of equation 9, gradients of the threshold from equations 11 and 12, others by autograd.

    With K one between -1/2 and 1/2: d JumpReLU(z) / d theta = -theta / eps K((z - theta) / eps), and
    d H(z - theta) / d theta = -1 / eps K((z - theta) / eps). theta is exp(log_threshold), so that the gradient of
    log_threshold is theta times that of theta.
    """
    w, theta, eps = weights, weights["log_threshold"].detach().exp(), settings["bandwidth"]
    z = ((acts - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    f = z * (z > theta)
    f.retain_grad()
    l0 = (z > theta).double().sum(1).mean()
    loss = squared(acts - f @ w["W_dec"] - w["b_dec"]) + COEFFICIENT * l0
    loss.backward()
    K = ((z - theta).abs() < eps / 2).double()
    of_theta = f.grad * -(theta / eps) * K + COEFFICIENT / len(acts) * (-1 / eps) * K
    gradients = {name: tensor.grad for name, tensor in w.items()} | {"log_threshold": of_theta.sum(0) * theta}
    return SimpleNamespace(loss=loss, latents=f, gradients=gradients, n_in_rectangle=int(K.sum()))


RUNS = {name: with_gradients(dense) for name, dense in DENSE.items()} | {"jumprelu": jumprelu_by_equations}


def assert_equals(dense: SimpleNamespace, acts: torch.Tensor, weights: dict, batch: Loss) -> None:
    """Compare the loss, its figures and all gradients."""
    assert torch.allclose(batch.loss, dense.loss, rtol=0, atol=1e-11)
    assert float(batch.l0) == pytest.approx(float((dense.latents > 0).sum(1).double().mean()))
    assert torch.equal(batch.fired, (dense.latents > 0).any(0))
    recons = dense.latents @ weights["W_dec"] + weights["b_dec"]
    assert torch.allclose(batch.error, acts - recons, rtol=0, atol=1e-11)
    assert not batch.error.requires_grad
    gradients = torch.autograd.grad(batch.loss, list(weights.values()))
    for (name, expected), gradient in zip(dense.gradients.items(), gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-11), name


# With a bias of -4 few latents fire, some tokens none; with -100 none at all.
@pytest.mark.parametrize("bias", [0.0, -4.0, -100.0])
@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_losses_and_gradients_equal_the_paper_s_formula(architecture, bias, settings):
    objective = OBJECTIVES[architecture](settings, D_IN, D_SAE)
    acts, weights = random_acts(), random_weights(objective, bias=bias)
    dense = RUNS[architecture](acts, weights, settings)
    assert bias == -100 or getattr(dense, "n_in_rectangle", 1) > 0, "no pre-activations lie within the rectangle"
    entries, pre_acts = choose(objective, acts, weights)
    assert isinstance(entries, Entries) or bias == 0
    batch = objective.loss(entries, acts, weights, pre_acts, COEFFICIENT)
    assert_equals(dense, acts, weights, batch)
    computed = objective.loss(entries, acts, weights, None, COEFFICIENT)  # pre-activations that are not given
    assert torch.allclose(computed.loss, batch.loss, rtol=0, atol=1e-11)
    if objective.has_penalty:
        assert_equals(dense, acts, weights, objective.loss(AllEntries(D_SAE), acts, weights, None, COEFFICIENT))


def one_loss(architecture: str, settings: dict, acts: list, coefficient: float = 0.0, **weights: list) -> tuple:
    """The loss on a few tokens with some weights given and the others zero, and the weights."""
    acts = torch.tensor(acts, dtype=torch.float64)
    d_sae = len(weights["W_enc"])
    objective = OBJECTIVES[architecture](settings, acts.shape[1], d_sae)
    zeros = {name: torch.zeros(d_sae, dtype=torch.float64) for name in objective.own_tensors()}
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in weights.items()}
    all_weights = {"b_dec": torch.zeros(acts.shape[1], dtype=torch.float64)} | zeros | given
    all_weights = {name: tensor.requires_grad_() for name, tensor in all_weights.items()}
    entries, pre_acts = choose(objective, acts, all_weights)
    return objective.loss(entries, acts, all_weights, pre_acts, coefficient), all_weights


def test_relu_by_hand(settings):
    # Token (2, 0): code 2, reconstruction (6, 0), squared error 16. Token (-2, 0): code 0, squared error 4.
    # Mean 10; penalty 0.5 x mean(2 x |(3, 0)|, 0) = 1.5.
    batch, _ = one_loss("relu", settings, [[2, 0], [-2, 0]], 0.5, W_enc=[[1, 0]], W_dec=[[3, 0]])
    assert (batch.loss.item(), float(batch.l0), batch.fired.tolist()) == (11.5, 0.5, [True])
    assert batch.error.tolist() == [[-4, 0], [-2, 0]]


def test_relu_over_two_models_adds_up_the_norms_of_a_row_s_parts(settings):
    # Token (2, 0): code 2, reconstruction (6, 8), squared error 16 + 64; penalty 0.5 x 2 x (3 + 4), not 0.5 x 2 x 5.
    given = {"W_enc": [[1, 0]], "W_dec": [[3, 4]]}
    batch, _ = one_loss("relu", settings | {"n_models": 2}, [[2, 0]], 0.5, **given)
    assert batch.loss.item() == 87
    assert one_loss("relu", settings, [[2, 0]], 0.5, **given)[0].loss.item() == 85


UNIT = [[1, 0], [0, 1]]


def test_topk_by_hand(settings):
    # (3, 1) keeps 3 and leaves (0, 1); (1, -2) keeps 1 and leaves (0, -2): (1 + 4) / 2.
    batch, _ = one_loss("topk", settings | {"k": 1}, [[3, 1], [1, -2]], W_enc=UNIT, W_dec=UNIT)
    assert (batch.loss.item(), float(batch.l0), batch.fired.tolist()) == (2.5, 1.0, [True, False])


def test_batchtopk_by_hand(settings):
    # The two largest of 3, 2, 1, -2 are both of the first token; the second leaves (1, -2): 5 / 2.
    batch, _ = one_loss("batchtopk", settings | {"k": 1}, [[3, 2], [1, -2]], W_enc=UNIT, W_dec=UNIT)
    assert (batch.loss.item(), float(batch.l0), batch.fired.tolist()) == (2.5, 1.0, [True, True])


def test_matryoshka_by_hand(settings):
    # All of 3, 2, 1 are kept. The first latent alone leaves (0, 2) and (0, -2): 4. Both leave (0, 0) and (0, -2): 2.
    changed = settings | {"k": 2, "matryoshka_fractions": [0.5]}
    batch, _ = one_loss("matryoshka_batchtopk", changed, [[3, 2], [1, -2]], W_enc=UNIT, W_dec=UNIT)
    assert (batch.loss.item(), float(batch.l0)) == (3.0, 1.5)
    assert batch.error.tolist() == [[0, 0], [0, -2]]  # of all latents


def test_jumprelu_by_hand(settings):
    # Threshold 1, rectangle from 0.75 to 1.25. Token 3 fires and leaves nothing, 0.9 does not and leaves 0.9:
    # (0.81 + 2 x 1) / 2. Only 0.9 lies within the rectangle:
    # d loss / d f = 2 (0 - 0.9) / 2 = -0.9, times -theta / eps = -2, is 1.8; the step gives 2 / 2 x -1 / 0.5 = -2.
    batch, weights = one_loss(
        "jumprelu", settings | {"bandwidth": 0.5}, [[3.0], [0.9]], 2.0, W_enc=[[1]], W_dec=[[1]], log_threshold=[0.0]
    )
    assert batch.loss.item() == pytest.approx(1.405)
    assert (float(batch.l0), batch.fired.tolist()) == (0.5, [True])
    batch.loss.backward()
    assert weights["log_threshold"].grad.tolist() == pytest.approx([-0.2])
    # f = 3 fires with no error; 0.9 does not fire: the encoder has nothing to gain.
    assert weights["W_enc"].grad.tolist() == [[0.0]]


def test_gated_by_hand(settings):
    # Token 3: gate 2, magnitude 2 x 3 + 0.5 = 6.5, reconstruction 13, squared error 100; the gate's own 4 leaves 1.
    # Token 0.5: gate -0.5, so both reconstructions are 0 and leave 0.25. (100 + 1 + 0.5 x 2 + 0.25 + 0.25) / 2.
    gate_weights = {"b_gate": [-1.0], "r_mag": [math.log(2)], "b_mag": [0.5]}
    batch, weights = one_loss("gated", settings, [[3.0], [0.5]], 0.5, W_enc=[[1]], W_dec=[[2]], **gate_weights)
    assert batch.loss.item() == pytest.approx(51.25)
    assert (float(batch.l0), batch.fired.tolist()) == (0.5, [True])
    batch.loss.backward()
    # Of the reconstruction alone: 2 x (13 - 3) x 6.5 / 2; the gate's leaves the decoder as it is.
    assert float(weights["W_dec"].grad) == pytest.approx(65)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_the_trained_sae_computes_what_the_objective_did(architecture, settings):
    objective = OBJECTIVES[architecture](settings, D_IN, D_SAE)
    acts, weights = random_acts(torch.float32), random_weights(objective, torch.float32, bias=-3.0)
    entries, pre_acts = choose(objective, acts, weights)
    batch = objective.loss(entries, acts, weights, pre_acts, COEFFICIENT)
    threshold = None
    if objective.needs_threshold:
        threshold = float(torch.nextafter(pre_acts.min(), torch.tensor(0.0)))
    sae = objective.trained({name: tensor.detach() for name, tensor in weights.items()}, threshold)
    latent_acts = sae.encode(acts)
    assert torch.equal((latent_acts > 0).any(0), batch.fired)
    assert float((latent_acts > 0).sum(1).float().mean()) == pytest.approx(float(batch.l0))
    assert torch.allclose(acts - sae(acts), batch.error, rtol=0, atol=1e-5)
    if architecture in ("topk", "batchtopk", "matryoshka_batchtopk", "relu"):
        expected = torch.zeros(N_TOKENS, D_SAE).index_put((entries.tokens, entries.latents), pre_acts.relu())
        assert torch.allclose(latent_acts, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_a_k_beyond_the_number_of_latents_is_refused(architecture, settings):
    with pytest.raises(InputError, match=r"k must be between 1 and d_sae = 12 .* got 13; lower it"):
        OBJECTIVES[architecture](settings | {"k": 13}, D_IN, D_SAE)


def test_prefixes_that_do_not_grow_are_refused(settings):
    # Of 12 latents 0.01 is none, 0.99 is all of them, and 0.25 and 0.26 both are 3.
    for fractions in ([0.01, 0.5], [0.5, 0.99], [0.25, 0.26], [0.5, 0.25]):
        with pytest.raises(InputError, match=r"saes\.matryoshka_fractions must rise .* correct them"):
            OBJECTIVES["matryoshka_batchtopk"](settings | {"matryoshka_fractions": fractions}, D_IN, D_SAE)


def test_the_auxiliary_loss_by_hand():
    # Latents 1 and 2 are dead, and d_in / 2 = 1 of them is taken: for (0, 1) latent 2 with 2, decoded as (0, -2), which
    # leaves (1, 3) of the error (1, 1); for (0, -1) the larger is -1, no activation, and the error (1, 0) stays.
    # (10 + 1) / 2.
    weights = {
        "W_enc": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        "b_dec": torch.zeros(2),
        "b_enc": torch.zeros(3),
    }
    acts, error = torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert float(auxiliary_loss(acts, error, torch.tensor([1, 2]), weights)) == 5.5
    assert float(auxiliary_loss(acts, error, torch.zeros(0, dtype=torch.int64), weights)) == 0


@pytest.mark.parametrize("n_dead", [1, 7, 12])
def test_the_auxiliary_loss_equals_its_dense_formula(n_dead, settings):
    weights, acts = random_weights(OBJECTIVES["topk"](settings, D_IN, D_SAE)), random_acts()
    error = random_acts().flip(0)
    dead = torch.arange(D_SAE) >= D_SAE - n_dead
    # Appendix A.2: the k_aux = d_in / 2 largest of the dead latents, with the decoder and without its bias.
    pre = torch.where(dead, (acts - weights["b_dec"].detach()) @ weights["W_enc"].T + weights["b_enc"], -torch.inf)
    kept = torch.zeros(pre.shape, dtype=torch.bool).scatter(1, pre.topk(2).indices, True)
    dense = squared(error - (pre.relu() * kept) @ weights["W_dec"])
    names = ("W_enc", "W_dec", "b_enc")
    loss = auxiliary_loss(acts, error, dead.nonzero().flatten(), weights)
    assert torch.allclose(loss, dense, rtol=0, atol=1e-11)
    gradients = [torch.autograd.grad(value, [weights[name] for name in names]) for value in (loss, dense)]
    for name, gradient, expected in zip(names, *gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-11), name
        assert not bool(gradient[: D_SAE - n_dead].any()), name


def test_the_auxiliary_loss_gives_the_decoder_s_bias_no_gradient(settings):
    weights, acts = random_weights(OBJECTIVES["topk"](settings, D_IN, D_SAE)), random_acts()
    auxiliary_loss(acts, acts, torch.arange(D_SAE), weights).backward()
    assert weights["b_dec"].grad is None
