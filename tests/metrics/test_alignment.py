"""Metrics of pictures and captions, and confidence intervals."""

import pytest
import torch
from torch import Tensor

from latentdiff.errors import InputError
from latentdiff.metrics import alignment, frechet_distance, retrieval
from latentdiff.metrics.bootstrap import intervals


def test_alignment_is_the_mean_cosine() -> None:
    image, text = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 1]])
    assert alignment(image, text) == pytest.approx((1 + 0.5**0.5) / 2)
    with pytest.raises(InputError, match="use pairs from one CLIP model"):
        alignment(image, text[:1])


def test_retrieval_of_right_of_wrong_and_of_random_captions() -> None:
    own = torch.eye(300)
    assert retrieval(own, own) == {"r1": 1.0, "r5": 1.0}
    assert retrieval(own, -own) == {"r1": 0.0, "r5": 0.0}
    found = retrieval(torch.randn(4000, 16), torch.randn(4000, 16))
    assert found["r1"] == pytest.approx(0.01, abs=0.006) and found["r5"] == pytest.approx(0.05, abs=0.012)


def test_equal_captions_do_not_compete() -> None:
    text = torch.eye(10).repeat(5, 1)
    assert retrieval(text, text) == {"r1": 1.0, "r5": 1.0}
    rounded = text + 1e-7 * torch.randn(text.shape)
    assert retrieval(text, rounded) == {"r1": 1.0, "r5": 1.0}


def test_candidates_are_random_and_not_the_neighbours() -> None:
    """Neighbours in a folder sorted by class show the same object, so they would all be equally good."""
    text = torch.nn.functional.normalize(torch.randn(400, 64))
    classes = torch.eye(64)[torch.arange(40)].repeat_interleave(10, 0)
    found = retrieval(classes, classes + 0.01 * text, candidates=10)
    assert found["r1"] > 0.5
    assert found != retrieval(classes, classes + 0.01 * text, candidates=10, seed=1)


def test_as_many_candidates_as_there_are_agree_with_the_whole_ranking() -> None:
    image, text = torch.randn(40, 3), torch.randn(40, 3)
    similarity = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    expected = {"r1": (rank < 1).double().mean().item(), "r5": (rank < 5).double().mean().item()}
    assert retrieval(image, text, candidates=100, seed=3) == pytest.approx(expected)


def test_the_interval_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(400, dtype=torch.float64)
    found = intervals(lambda rows, _: {"mean": values[rows].mean().item()}, (400, 2), 2000, seed=0)["mean"]
    assert found.value == values.mean().item()
    assert found.std == pytest.approx(values.std().item() / 20, rel=0.06)
    assert (found.low + found.high) / 2 == pytest.approx(found.value)
    again = intervals(lambda rows, _: {"mean": values[rows].mean().item()}, (400, 2), 2000, seed=0)["mean"]
    assert again == found


def test_the_interval_of_a_frechet_distance_is_its_spread_over_new_pictures() -> None:
    def distance(first: Tensor, second: Tensor) -> float:
        return frechet_distance(first, second + 1)

    draws = [torch.randn(2, 150, 4, dtype=torch.float64) for _ in range(150)]
    true = torch.tensor([distance(*pair) for pair in draws]).std().item()
    first, second = draws[0]
    found = intervals(lambda a, b: {"d": distance(first[a], second[b])}, (150, 150), 150, seed=0)["d"]
    assert found.std == pytest.approx(true, rel=0.3)
