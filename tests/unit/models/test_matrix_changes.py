"""Changes of matrices: closed forms for their size, rank, place among the parent's directions, and new directions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from saelineage.errors import InputError
from saelineage.models.matrix_changes import (
    INPUT_FIRST,
    MatrixChange,
    edge_changes,
    edge_figures,
    effective_rank,
    matrix_change,
)
from tests.vocabularies import small_model

TRANSFORMERS = Path(transformers.__file__).parent

CPU = torch.device("cpu")
UPRIGHT, LYING = (300, 200), (200, 300)


def gaussian(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """A matrix of independent standard normal entries."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n_rows: int, n: int, seed: int = 0) -> Tensor:
    """Orthonormal columns."""
    return torch.linalg.qr(gaussian((n_rows, n), seed))[0]


def of_rank(shape: tuple[int, int], values: list[float], seed: int = 0) -> Tensor:
    """A matrix with these singular values and random vectors."""
    left, right = (orthonormal(n, len(values), seed + place) for place, n in enumerate(shape))
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


def spike(parent: Tensor, strength: float, seed: int) -> Tensor:
    """A parent of standard normal entries plus x y^T of random unit vectors.

    Strength 1 is (rows x columns)^(1/4), below which no singular value leaves the others (Benaych-Georges and
    Nadakuditi 2012); of a square matrix it is half of the largest singular value.
    """
    x, y = (orthonormal(n, 1, seed) for n in parent.shape)
    return parent + strength * parent.numel() ** 0.25 * x @ y.T


def by_decomposition(parent: Tensor, child: Tensor) -> tuple[float, int, float, float]:
    """Effective rank, intruders, and the energies of the change among leading directions and along intruders."""
    before, after, change = (matrix.double().numpy() for matrix in (parent, child, child.double() - parent.double()))
    u, _, vt = np.linalg.svd(before, full_matrices=False)
    values = np.linalg.svd(change, compute_uv=False)
    shares = values / values.sum()
    leading = np.linalg.svd(after, full_matrices=False)[0][:, :10]
    new = leading[:, np.abs(u.T @ leading).max(axis=0) < 0.5]
    whole = (change**2).sum()
    inside, along = u[:, :10].T @ change @ vt[:10].T, new.T @ change
    rank = np.exp(-(shares * np.log(shares)).sum())
    return rank, new.shape[1], (inside**2).sum() / whole, (along**2).sum() / whole


def test_equal_values_have_their_number_as_effective_rank_and_unequal_ones_less():
    assert effective_rank(torch.full((7,), 3.0)) == pytest.approx(7)
    # Shares 3/4 and 1/4: exp(H) = 4 / 3^(3/4).
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)
    assert effective_rank(torch.zeros(0)) == 0


@pytest.mark.parametrize("shape", [UPRIGHT, LYING])
def test_equal_weights_give_zeros(shape: tuple[int, int]):
    weights = gaussian(shape)
    change = matrix_change(weights, weights.clone())
    assert change[4:6] == (0, 0)
    assert change[8:] == (0, 0, 0, 0)
    assert change.subspace_energy is change.subspace_energy_if_random is None


@pytest.mark.parametrize("shape", [UPRIGHT, LYING])
def test_a_multiple_of_a_low_rank_parent_lies_wholly_among_its_directions(shape: tuple[int, int]):
    parent = of_rank(shape, [5.0, 4.0, 3.0])
    for factor in (0.25, -2.0, -1.0):  # the last takes everything away
        change = matrix_change(parent, parent * (1 + factor))
        assert change.relative_change == pytest.approx(abs(factor))
        assert change.subspace_energy == pytest.approx(1)
        assert change.intruders == change.intruder_energy == 0
        # Shares 5/12, 4/12 and 3/12.
        assert change.effective_rank == pytest.approx(12 * 5 ** (-5 / 12) * 4 ** (-4 / 12) * 3 ** (-3 / 12))


@pytest.mark.parametrize("shape", [UPRIGHT, LYING])
def test_a_low_rank_change_has_that_effective_rank(shape: tuple[int, int]):
    parent = gaussian(shape)
    for rank in (1, 4, 16):
        change = matrix_change(parent, parent + of_rank(shape, [0.5] * rank, seed=1))
        assert change.effective_rank == pytest.approx(rank, rel=1e-6)
        assert change.difference == pytest.approx(0.25 * rank)


@pytest.mark.parametrize("shape", [(200, 200), UPRIGHT, LYING])
@pytest.mark.parametrize(("strength", "n"), [(0.25, 0), (0.5, 0), (0.75, 0), (2, 1), (5, 1), (20, 1)])
def test_a_planted_spike_of_strength_below_1_gives_no_intruder_and_from_2_on_exactly_one(
    shape: tuple[int, int], strength: float, n: int
):
    for seed in range(3):
        parent = gaussian(shape, seed)
        change = matrix_change(parent, spike(parent, strength, seed + 10))
        assert change.intruders == n
        assert change.effective_rank == pytest.approx(1, rel=1e-6)
        # With entries of variance 1 / columns and c = rows / columns, the spike is s = strength c^(1/4), and the first
        # left vector has this share of its energy along x, as tau has (Benaych-Georges and Nadakuditi 2012, 3.1).
        c, s2 = shape[0] / shape[1], strength**2 * (shape[0] / shape[1]) ** 0.5
        assert change.intruder_energy == pytest.approx(n * (1 - c * (1 + s2) / (s2 * (s2 + c))), abs=0.1)
        if n:
            assert change.intruder_energy > 5 * change.intruder_energy_if_random


@pytest.mark.parametrize("shape", [UPRIGHT, LYING])
def test_random_directions_are_intruders_too_and_hold_little_of_the_change(shape: tuple[int, int]):
    parent = gaussian(shape)
    change = matrix_change(parent, parent + 5 * gaussian(shape, 1))
    assert change.intruders == 10
    # Each holds at most (1 / sqrt(300) + 1 / sqrt(200))^2 = 0.0165; a random direction 0.0033 or 0.005.
    assert change.intruder_energy_if_random == pytest.approx(10 * 0.016498, rel=1e-4)
    assert 0.1 < change.intruder_energy < change.intruder_energy_if_random
    assert change.subspace_energy_if_random == pytest.approx(100 / 60_000)
    assert change.subspace_energy == pytest.approx(change.subspace_energy_if_random, rel=0.5)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (200, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_figures_are_those_of_a_singular_value_decomposition(shape: tuple[int, int], dtype: torch.dtype):
    parent = (gaussian(shape) + of_rank(shape, [40.0, 30.0], 3)).to(dtype)
    child = (parent + 0.3 * gaussian(shape, 1) + of_rank(shape, [60.0], 5)).to(dtype)
    change, (rank, n_new, inside, along) = matrix_change(parent, child), by_decomposition(parent, child)
    assert n_new > 0
    assert change.intruders == n_new
    found = (change.effective_rank, change.subspace_energy, change.intruder_energy)
    assert found == pytest.approx((rank, inside, along), rel=1e-6)


def test_left_vectors_decide_what_an_intruder_is():
    # The parent writes along e0 alone, and so does the child, which reads other places: nothing new is written.
    parent = torch.zeros(4, 6)
    parent[0, :3] = 1.0
    child = torch.zeros(4, 6)
    child[0, 3:] = 2.0
    assert matrix_change(parent, child).intruders == 0
    turned = matrix_change(parent.T, child.T)
    assert turned.intruders == 1
    assert turned.intruder_energy_of_child == pytest.approx(1)
    # tau = child - parent has 3 and 12 along the old and the new direction.
    assert turned.intruder_energy == pytest.approx(12 / 15)
    assert (turned.subspace_energy, turned.subspace_energy_if_random) == (pytest.approx(3 / 15), 1 / 24)


def test_of_a_parent_of_zeros_everything_is_new_and_shares_of_it_are_undefined():
    change = matrix_change(torch.zeros(4, 3), torch.eye(4, 3))
    assert (change.relative_change, change.subspace_energy) == (None, None)
    assert (change.intruders, change.intruder_energy, change.intruder_energy_of_child) == (3, 1.0, 1.0)


def saved(folder: Path, name: str, **tensors: Tensor) -> Path:
    """A file of weights."""
    save_file({key.replace("__", "."): tensor.clone() for key, tensor in tensors.items()}, folder / name)
    return folder / name


def compared(*paths: Path, model_type: str = "llama"):
    return edge_changes((paths[0], paths[1]), ("base", "lua"), model_type, CPU)


def test_matrices_are_compared_by_name_and_what_has_no_counterpart_is_named(tmp_path: Path):
    same, grown = torch.ones(3, 4), torch.ones(5, 4)
    parent = saved(tmp_path, "a", wte=torch.ones(4, 4), same=same, norm=torch.ones(4), experts=torch.ones(2, 3, 4))
    experts = torch.stack([torch.ones(3, 4), 3 * torch.ones(3, 4)])
    child = saved(tmp_path, "b", wte=grown, same=2 * same, norm=torch.zeros(4), experts=experts, head=grown)
    found = compared(parent, child)
    changes = {name: change.relative_change for name, change in found.matrices.items()}
    assert changes == {"experts[0]": 0, "experts[1]": 2, "same": 1}
    assert found.left_out == ["head", "wte"]


def test_tied_embeddings_count_once(tmp_path: Path):
    paths = []
    for seed in (0, 1):
        small_model(300, seed, tie_word_embeddings=True).save_pretrained(tmp_path / str(seed))
        paths.append(tmp_path / str(seed) / "model.safetensors")
    found = compared(*paths)
    assert [name for name in found.matrices if "layers" not in name] == ["model.embed_tokens.weight"]
    assert len(found.matrices) == 1 + 2 * 7
    assert found.left_out == []


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path):
    parent, child = torch.ones(3, 4), torch.ones(3, 4)
    child[1, 2] = torch.nan
    with pytest.raises(InputError, match=r"must be finite, but 'h\.w' of 'lua' holds infinity or NaN; train"):
        compared(saved(tmp_path, "a", h__w=parent), saved(tmp_path, "b", h__w=child))


def test_matrices_of_gpt2_are_turned_so_that_rows_are_what_they_write(tmp_path: Path):
    parent, child = torch.zeros(6, 4), torch.zeros(6, 4)
    parent[:3, 0], child[3:, 0] = 1.0, 2.0  # as above, with a row for each input
    names = ("transformer__h__0__mlp__c_fc__weight", "transformer__wte__weight")
    paths = [saved(tmp_path, end, **dict.fromkeys(names, w)) for end, w in (("a", parent), ("b", child.clone()))]
    changes = {kind: compared(*paths, model_type=kind).matrices for kind in ("gpt2", "llama")}
    turned = {kind: [each.intruders for each in found.values()] for kind, found in changes.items()}
    assert turned == {"gpt2": [0, 1], "llama": [1, 1]}


def test_the_types_whose_matrices_are_turned_are_those_that_use_conv1d():
    types = {kind: model_type_to_module_name(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    sources = {kind: TRANSFORMERS / "models" / name / f"modeling_{name}.py" for kind, name in types.items()}
    assert {kind for kind, path in sources.items() if path.exists() and "Conv1D(" in path.read_text()} == {*INPUT_FIRST}
    sizes = {"vocab_size": 9, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 4}
    for kind, turned in INPUT_FIRST.items():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        weights = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
        assert {name for name, _ in model.named_parameters() if turned.search(name)} == weights != set()


def test_the_energies_of_an_edge_are_those_of_all_its_changes_together():
    same = MatrixChange(4, 4, 0.0, 5.0, 0.0, 0.0, None, None, 0, 0.0, 0.0, 0.0)
    large = MatrixChange(4, 8, 3.0, 9.0, 0.5, 2.0, 0.5, 0.25, 2, 0.75, 0.5, 0.25)
    small = MatrixChange(8, 8, 1.0, 2.0, 0.7, 6.0, 0.1, 0.05, 0, 0.0, 0.0, 0.0)
    assert edge_figures([same, large, small]) == {
        "n_matrices": 3,
        "relative_change": 0.5,  # sqrt((3 + 1) / (5 + 9 + 2))
        "effective_rank_share": 0.625,  # between 2 / 4 and 6 / 8
        "intruders": 2,
        "with_intruders": 1,
        "subspace_energy": pytest.approx((3 * 0.5 + 0.1) / 4),
        "subspace_energy_if_random": pytest.approx((3 * 0.25 + 0.05) / 4),
        "intruder_energy": pytest.approx(3 * 0.75 / 4),
        "intruder_energy_if_random": pytest.approx(3 * 0.5 / 4),
    }
    nothing = edge_figures([same])
    assert (nothing["relative_change"], nothing["intruders"], nothing["subspace_energy"]) == (0, 0, None)
    assert edge_figures([])["effective_rank_share"] is None
