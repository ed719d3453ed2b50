"""Linear layers of low rank (Sainath et al. 2013; of LSTMs, Kuchaiev and Ginsburg 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer whose matrix is the product of two smaller ones."""

    def __init__(self, num_inputs: int, num_outputs: int, *, rank: int) -> None:
        super().__init__()
        self.inner = nn.Linear(num_inputs, rank, bias=False)
        self.outer = nn.Linear(rank, num_outputs)

    @property
    def bias(self) -> nn.Parameter:
        return self.outer.bias

    def forward(self, rows: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        product: Tensor = self.outer(self.inner(rows))
        return product


Linear = nn.Linear | LowRankLinear


def linear(num_inputs: int, num_outputs: int, *, rank: int | None) -> Linear:
    """A linear layer, of full rank if `rank` is None or two matrices would have more weights than one."""
    if rank is None or rank * (num_inputs + num_outputs) >= num_inputs * num_outputs:
        return nn.Linear(num_inputs, num_outputs)
    return LowRankLinear(num_inputs, num_outputs, rank=rank)


@torch.no_grad()
def reduced(layer: nn.Linear, *, rank: int) -> Linear:
    """The layer of this rank that is closest to a given one, by its singular values (Eckart and Young 1936).

    Each matrix gets their square roots, so that both train at the same pace.
    """
    product = linear(layer.in_features, layer.out_features, rank=rank)
    if isinstance(product, nn.Linear):
        return layer
    left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
    roots = values[:rank].sqrt()
    product.inner.weight.copy_(roots[:, None] * right[:rank])
    product.outer.weight.copy_(left[:, :rank] * roots)
    product.bias.copy_(layer.bias)
    return product
