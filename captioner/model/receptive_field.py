"""Receptive fields of the cells of a CNN's grid."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioner.config import GridConfig
from captioner.errors import CaptionerError

_WITHIN_ONE_STD = 0.6827  # share of a Gaussian within one standard deviation of its centre


@torch.inference_mode()
def grid_config(encoder: nn.Module, size_px: int) -> GridConfig:
    """Rows, columns and centres of an encoder's cells for a square input, from one pass over a blank one.

    Each strided layer maps position o of its output to the centre of its window on the input,
    stride * o + (kernel - 1) / 2 - padding. Composed over the layers this gives the centre of a
    cell's receptive field (Araujo et al. 2019, "Computing Receptive Fields of Convolutional
    Neural Networks"). Of parallel branches the one with the widest kernel counts.

    Raises:
        CaptionerError: the backbone does not take this size, or its grid is not square.
    """
    with _record_strided_layers(encoder) as layers:
        try:
            num_cells = encoder(torch.zeros(1, 3, size_px, size_px)).shape[1]
        except (AssertionError, RuntimeError) as error:
            raise CaptionerError(
                f"the backbone does not take {size_px} pixels ({error}); choose another image size"
            ) from error
    rows = math.isqrt(num_cells)
    if rows * rows != num_cells:
        raise CaptionerError(
            f"a grid of {num_cells} cells is not square; choose a backbone with a spatial grid"
        )
    stride_px, offset_px, side = 1.0, 0.0, size_px
    while side in layers:
        layer = layers[side]
        offset_px += stride_px * layer.offset
        stride_px *= layer.stride
        side = layer.output_px
    if side != rows:  # strided by other means (patch merging): the cells tile the input evenly
        stride_px = size_px / rows
        offset_px = (stride_px - 1) / 2
    return GridConfig(rows=rows, cols=rows, stride_px=stride_px, offset_px=offset_px)


def receptive_field_std_px(
    encode: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch 3 size size"],
    grid: GridConfig,
    *,
    annotation_dim: int,
) -> float | None:
    """How far around its centre the middle cell sees, on these pictures, in pixels of the input.

    The effective receptive field (Luo et al. 2016) is the extent of the annotation's gradient with respect
    to the input. This is half the width that contains the central 68 % of the gradient's energy, which
    would be the standard deviation of a Gaussian, averaged over both axes. None if the gradient is zero.
    """
    middle = (grid.rows // 2) * grid.cols + grid.cols // 2
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(annotation_dim, generator=generator).to(images.device)
    energy = torch.zeros(images.shape[2:], dtype=torch.float64)
    for image in images.split(1):  # one by one, to save memory
        image = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(encode(image)[0, middle] @ direction, image)
        energy += gradient[0].cpu().double().square().sum(dim=0)
    if not 0 < float(energy.sum()) < math.inf:
        return None
    widths = [_central_width(energy.sum(dim=axis)) for axis in (0, 1)]
    return sum(widths) / 4


def _central_width(energy: Float[Tensor, " pixels"]) -> float:
    """Width of the middle part of a profile that contains `_WITHIN_ONE_STD` of it, interpolated."""
    below = torch.cat([energy.new_zeros(1), energy.cumsum(0) / energy.sum()]).cpu().numpy()
    tail = (1 - _WITHIN_ONE_STD) / 2
    first, last = np.interp([tail, 1 - tail], below, np.arange(len(below)))
    return float(last - first)


class _StridedLayer:
    """Geometry along one axis of a layer that shrinks its input."""

    def __init__(self, module: Any, input_px: int, output_px: int) -> None:
        self.stride, self.kernel, padding, dilation = (
            _first(getattr(module, name, 1 if name == "dilation" else 0))
            for name in ("stride", "kernel_size", "padding", "dilation")
        )
        self.output_px = output_px
        reach = dilation * (self.kernel - 1)
        if padding == 0 and output_px == math.ceil(input_px / self.stride):
            # TensorFlow's SAME pads as the windows need, the larger half at the end.
            padding = max((output_px - 1) * self.stride + reach + 1 - input_px, 0) // 2
        self.offset = reach / 2 - padding


def _first(value: Any) -> Any:
    return next(iter(value)) if isinstance(value, Iterable) else value


@contextmanager
def _record_strided_layers(encoder: nn.Module) -> Iterator[dict[int, _StridedLayer]]:
    """Collect the layers that shrink their input while the block runs, by the input's side in pixels."""
    layers: dict[int, _StridedLayer] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        input_px = inputs[0].shape[-1]
        layer = _StridedLayer(module, input_px, output.shape[-1])
        if input_px not in layers or layer.kernel > layers[input_px].kernel:
            layers[input_px] = layer

    strided = [
        module
        for module in encoder.modules()
        if hasattr(module, "kernel_size") and _first(getattr(module, "stride", 1)) > 1
    ]
    handles = [module.register_forward_hook(record) for module in strided]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
