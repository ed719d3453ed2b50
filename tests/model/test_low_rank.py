import numpy as np
import pytest
import torch
from torch import nn

from captioner.model.low_rank import LowRankLinear, linear, reduced


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_reduced_layer_is_the_closest_of_its_rank(rank: int) -> None:
    """What is left has the norm of the singular values that were left out (Eckart and Young 1936)."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 30)
    product = reduced(layer, rank=rank)
    inputs = torch.eye(20)
    matrix = (product(inputs) - product(torch.zeros(20))).numpy()
    assert np.linalg.matrix_rank(matrix) == rank
    values = np.linalg.svd(layer.weight.numpy(), compute_uv=False)
    distance = np.linalg.norm(matrix - layer.weight.numpy().T)
    assert distance == pytest.approx(np.linalg.norm(values[rank:]), rel=1e-4)


@torch.no_grad()
def test_layer_that_has_the_rank_stays_the_same_function() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 30)
    layer.weight.copy_(torch.randn(30, 2) @ torch.randn(2, 20))
    inputs = torch.randn(7, 20)
    torch.testing.assert_close(reduced(layer, rank=2)(inputs), layer(inputs))


def test_product_that_would_be_larger_is_not_made() -> None:
    """20 x 30 = 600 weights, and 12 x (20 + 30) = 600."""
    assert isinstance(linear(20, 30, rank=12), nn.Linear)
    assert isinstance(linear(20, 30, rank=11), LowRankLinear)
    layer = nn.Linear(20, 30)
    assert reduced(layer, rank=12) is layer


@torch.no_grad()
def test_reduced_layer_is_the_closest_on_its_inputs() -> None:
    """What is left of the outputs has the norm of their singular values that were left out."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 30)
    inputs = torch.randn(500, 5) @ torch.randn(5, 20) + 0.1 * torch.randn(500, 20)
    outputs = inputs @ layer.weight.T
    product = reduced(layer, rank=3, second_moment=(inputs.T @ inputs).double())
    distance = torch.linalg.norm(product(inputs) - layer(inputs))
    assert float(distance) == pytest.approx(float(torch.linalg.svdvals(outputs)[3:].norm()), rel=1e-3)
    assert distance < torch.linalg.norm(reduced(layer, rank=3)(inputs) - layer(inputs))
