"""Linear layers of low rank (Sainath et al. 2013; for LSTMs, Kuchaiev and Ginsburg 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_RIDGE = 1e-4


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
def reduced(
    layer: nn.Linear, *, rank: int, second_moment: Float[Tensor, "inputs inputs"] | None = None
) -> Linear:
    """The layer of this rank that is closest to a given one (Eckart and Young 1936).

    That is the one whose outputs differ least for inputs x with this sum of x x^T, in the sum of squares; by
    default the one whose matrix differs least. Both its matrices have the same norm.
    """
    product = linear(layer.in_features, layer.out_features, rank=rank)
    if isinstance(product, nn.Linear):
        return layer
    weighted = weight = layer.weight.double()
    if second_moment is not None:
        moment = second_moment / second_moment.diagonal().mean()
        moment += _RIDGE * torch.eye(len(moment), device=moment.device)  # it may be singular
        weighted = weight @ torch.linalg.cholesky(moment)
    outer = torch.linalg.svd(weighted, full_matrices=False).U[:, :rank]
    inner = outer.T @ weight
    scale = (inner.norm() / outer.norm()).sqrt()
    product.inner.weight.copy_(inner / scale)
    product.outer.weight.copy_(outer * scale)
    product.bias.copy_(layer.bias)
    return product
