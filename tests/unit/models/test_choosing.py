"""Settings of merges that are chosen by what merged models do: greedy soups, and divisors of random differences."""

import json

import pytest
import torch

from saelineage.errors import InputError
from saelineage.models.loading import evaluate, load_model
from saelineage.models.merging.choosing import Measuring, greedy_weights, least_changing, mean_divergence, mean_loss
from saelineage.models.merging.parents import open_parents
from saelineage.plan.merges import needs_choice, with_choice
from saelineage.tokens import TokenRows
from tests.merges import settings


def test_models_are_tried_from_the_best_on_and_one_that_makes_the_mean_worse_never_enters():
    tried = []
    losses_of = {(1, 0, 0, 0): 9.0, (0, 1, 0, 0): 2.0, (0, 0, 1, 0): 3.0, (0, 0, 0, 1): 4.0}
    losses_of |= {(0, 1, 1, 0): 1.5, (0, 1, 1, 1): 1.4, (1, 1, 1, 1): 9.0}

    def measure(weights: list[float]) -> float:
        tried.append(tuple(int(weight) for weight in weights))
        return losses_of[tried[-1]]

    assert greedy_weights(4, measure) == ([0.0, 1.0, 1.0, 1.0], [9.0, 2.0, 3.0, 4.0])
    assert tried[4:] == [(0, 1, 1, 0), (0, 1, 1, 1), (1, 1, 1, 1)]


def test_a_model_that_does_not_make_the_mean_worse_is_added_and_one_alone_may_be_best():
    assert greedy_weights(2, lambda weights: 2.0)[0] == [1.0, 1.0]
    assert greedy_weights(3, lambda weights: abs(weights[1] - 1) + sum(weights))[0] == [0.0, 1.0, 0.0]


def test_the_divisor_that_changes_least_is_chosen_and_of_equal_ones_the_least():
    divisor, changes = least_changing(0.1, lambda q: abs(q - 0.4))
    assert divisor == pytest.approx(0.4)
    assert list(changes) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert least_changing(0.1, lambda q: 0.0)[0] == 0.1
    with pytest.raises(InputError, match="must be finite to choose q"):
        least_changing(0.1, lambda q: float("nan"))


def test_what_needs_a_choice_and_what_becomes_of_it():
    soup = settings(["a", "b"], method="greedy_soup")
    assert needs_choice(soup)
    mean = with_choice(soup, {"weights": [1.0, 0.0]})
    assert (mean["method"], mean["weights"]) == ("greedy_soup", [1.0, 0.0])
    dare = settings(["a"], method="dare_linear", rescale="q")
    assert needs_choice(dare)
    assert with_choice(dare, {"q": 0.3})["q"] == 0.3
    assert not needs_choice(settings(["a"], method="dare_linear", rescale="q", q=0.2))
    assert not needs_choice(settings(["a", "b"], method="linear"))
    with pytest.raises(InputError, match="greedy_soup must have at least 2"):
        settings(["a"], method="greedy_soup")


@pytest.fixture
def measuring(tiny) -> Measuring:
    rows = {"words": TokenRows(tiny.tokens["words"]["validation"])}
    return Measuring(rows, 8, torch.device("cpu"), "float32", "refuse")


def test_the_loss_of_a_soup_of_one_is_that_of_the_model(tiny, measuring):
    parents = open_parents([tiny.models["a"], tiny.models["b"]], None)
    soup = settings(["a", "b"], method="greedy_soup")
    own = [evaluate(load_model(tiny.models[name]), measuring.rows["words"], 8)["loss"] for name in "ab"]
    alone = [with_choice(soup, {"weights": weights}) for weights in ([1.0, 0.0], [0.0, 1.0])]
    assert [mean_loss(parents, of, measuring) for of in alone] == own


def test_keeping_all_differences_changes_no_prediction_and_dividing_them_does(tiny, measuring):
    dare = settings(["a"], method="dare_linear", rescale="q", density=1.0)
    models = [tiny.models["a"]], tiny.models["b"]
    changes = [mean_divergence(*models, dare | {"q": q}, measuring) for q in (1.0, 0.5)]
    assert changes[0] == pytest.approx(0, abs=1e-9)
    assert changes[1] > 1e-4


def test_a_choice_is_written_with_what_it_was_made_by(tiny, measuring, tmp_path):
    from choose_merge import choose_merge

    folders = [tiny.models["a"], tiny.models["b"]]
    for own, base, key in (
        ({"method": "greedy_soup"}, None, "losses"),
        ({"method": "dare_linear", "rescale": "q", "density": 0.5}, tiny.models["b"], "changes"),
    ):
        of_base = folders[:1] if base else folders
        names = [folder.name for folder in of_base]
        choose_merge(settings(names, **own), of_base, base, measuring, str(tmp_path / "choice.json"))
        choice = json.loads((tmp_path / "choice.json").read_text())
        assert key in choice
        if key == "losses":
            best = min(choice["losses"], key=choice["losses"].get)
            assert choice["settings"]["weights"][names.index(best)] == 1
        else:
            assert 0.5 <= choice["settings"]["q"] <= 1
            assert choice["changes"][f"{choice['settings']['q']:g}"] == min(choice["changes"].values())
