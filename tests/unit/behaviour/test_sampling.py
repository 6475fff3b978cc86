"""Samples are drawn from the plausible tokens by the difference of two models, the same on every way of reading."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from saelineage.behaviour.sampling import ALONE, CONTRAST, ITSELF, draw, sampled
from saelineage.models.loading import load_model
from saelineage.tokens import TokenRows

ALLOWED = list(range(2, 300))


def log(*shares: float) -> torch.Tensor:
    return torch.tensor([shares], dtype=torch.float64).log()


def drawn(child: torch.Tensor, beside: torch.Tensor, *uniforms: float) -> list[int]:
    n = len(uniforms)
    return draw(child.expand(n, -1), beside.expand(n, -1), torch.tensor(uniforms, dtype=torch.float64)).tolist()


def test_a_contrast_draws_by_the_ratio_of_probabilities_among_plausible_tokens():
    child, parent = log(0.5, 0.3, 0.16, 0.04), log(0.5, 0.1, 0.08, 0.0001)
    # The last one has less than a tenth of the first one's. The ratios are 1, 3 and 2: ends at 1/6, 4/6 and 1.
    assert drawn(child, parent, 0.0, 0.16, 0.17, 0.66, 0.67, 0.999999) == [0, 0, 1, 1, 2, 2]
    # Alone: 0.5, 0.3 and 0.16 of 0.96.
    assert drawn(child, torch.zeros_like(child), 0.0, 0.52, 0.53, 0.83, 0.84, 0.999999) == [0, 0, 1, 1, 2, 2]


def test_a_model_beside_itself_draws_plausible_tokens_with_equal_chances():
    child = log(0.04, 0.5, 0.3, 0.16)
    assert drawn(child, child, 0.0, 0.33, 0.34, 0.66, 0.67, 0.999999) == [1, 1, 2, 2, 3, 3]


@pytest.fixture(scope="module")
def pair(tiny):
    return [load_model(tiny.models[name]) for name in "ba"]


@pytest.fixture
def starts(tiny) -> torch.Tensor:
    return torch.from_numpy(TokenRows(tiny.tokens["words"]["probe"]).read(range(3))[:, :4])


def by_hand(child, parent, starts, way, seed, n_new) -> list[list[int]]:
    """The same without keeping anything of the tokens before."""
    uniforms, rows = np.random.default_rng(seed).random((n_new, len(starts))), starts
    for uniform in uniforms:
        of_child, of_parent = (
            model(input_ids=rows, use_cache=False).logits[:, -1, ALLOWED].double().log_softmax(-1)
            for model in (child, parent)
        )
        beside = {CONTRAST: of_parent, ITSELF: of_child, ALONE: torch.zeros_like(of_child)}[way]
        place = draw(of_child, beside, torch.from_numpy(uniform))
        rows = torch.cat([rows, torch.tensor(ALLOWED)[place].unsqueeze(1)], dim=1)
    return rows[:, starts.shape[1] :].tolist()


@pytest.mark.parametrize("way", [CONTRAST, ALONE, ITSELF])
@torch.inference_mode()
def test_samples_are_those_of_the_whole_row_read_again_for_every_token(pair, starts, way):
    found = sampled(*pair, (starts, starts), ALLOWED, 5, way, 7)
    assert found.tolist() == by_hand(*pair, starts, way, 7, 5)
    assert found.min() >= 2


def test_the_contrast_of_a_model_with_itself_is_the_model_beside_itself(pair, starts):
    child, parent = pair
    same = sampled(child, child, (starts, starts), ALLOWED, 6, CONTRAST, 3)
    assert same.tolist() == sampled(child, parent, (starts, starts), ALLOWED, 6, ITSELF, 3).tolist()
    assert same.tolist() != sampled(child, parent, (starts, starts), ALLOWED, 6, CONTRAST, 3).tolist()


def test_a_model_that_keeps_nothing_reads_whole_rows(pair, starts):
    child, parent = pair
    forgetful, widths = deepcopy(child), []

    def forward(input_ids, use_cache):
        widths.append(input_ids.shape[1])
        return child(input_ids=input_ids, use_cache=False)

    forgetful.forward = forward
    expected = sampled(child, parent, (starts, starts), ALLOWED, 3, CONTRAST, 0)
    found = sampled(forgetful, parent, (starts, starts), ALLOWED, 3, CONTRAST, 0)
    assert found.tolist() == expected.tolist()
    assert widths == [4, 5, 6]
