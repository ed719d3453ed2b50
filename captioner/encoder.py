"""Image tensor to annotation vectors, with any CNN that timm has.

timm tells the number of channels, the mean, the deviation and the interpolation of each backbone;
where the cells of its grid look is worked out from the strides and padding of its layers.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.models import group_parameters
from torch import Tensor, nn

from captioner.config import GridConfig, Interpolation, PreprocessConfig
from captioner.data import Pictures
from captioner.errors import CaptionerError
from captioner.recipe import EncoderConfig


class EncoderError(CaptionerError):
    """A backbone that cannot be built; the message says why and what there is."""


class Encoder(nn.Module):
    """A CNN without its classifier (Xu et al. 2015, section 3.1.1): (B, 3, H, W) to (B, L, D).

    It is frozen: its parameters take no gradient and it stays in evaluation mode, so that the
    running statistics of BatchNorm do not drift while the decoder trains. The last
    stages may be told to take gradients; the statistics stay as they are even then.
    """

    def __init__(self, *, backbone: str, weights: str | None = None, is_pretrained: bool = False) -> None:
        """Build the backbone: random weights, timm's own download, or those in the file `weights`.

        Raises:
            EncoderError: timm has no such model, or the file does not hold its weights.
        """
        super().__init__()
        if not timm.is_model(backbone):
            alike = timm.list_models(f"*{backbone.split('.')[0][:8]}*")[:5]
            hint = f"; alike are {', '.join(alike)}" if alike else ""
            raise EncoderError(f"timm has no model named {backbone!r}{hint}")
        overlay = {"file": weights} if weights else None
        try:
            self.cnn = timm.create_model(
                backbone,
                pretrained=is_pretrained or weights is not None,
                pretrained_cfg_overlay=overlay,
                num_classes=0,
                global_pool="",
            )
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            raise EncoderError(
                f"cannot load weights of {backbone} from {weights or 'the hub'}: {error}"
            ) from error
        if hasattr(self.cnn, "pre_logits"):
            self.cnn.pre_logits = nn.Identity()  # VGG's two wide layers before the classifier: 240 MB
        prepared = resolve_data_config(model=self.cnn)
        self.mean, self.std = tuple(prepared["mean"]), tuple(prepared["std"])
        self.interpolation: Interpolation = prepared["interpolation"]
        self.annotation_dim: int = self.cnn.num_features
        self.num_prefix_tokens: int = getattr(self.cnn, "num_prefix_tokens", 0)
        self.cnn.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.cnn.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Encoder":  # noqa: ARG002
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def last_stages(self, num_stages: int, *, size_px: int) -> list[nn.Parameter]:
        """The parameters of the last stages, to be fine-tuned: they take gradients once told to.

        Stages are those that timm's `group_matcher` tells, for example the stem, layer1 ... layer4 of a
        ResNet; parameters that do not take part in the grid (those of a classifier) count for none.

        Raises:
            EncoderError: there are not so many stages.
        """
        parameters = dict(self.cnn.named_parameters())
        used = self._used_parameters(parameters, size_px)
        groups = group_parameters(self.cnn, self.cnn.group_matcher(coarse=True))
        stages = [kept for names in groups.values() if (kept := [name for name in names if name in used])]
        if num_stages > len(stages):
            raise EncoderError(
                f"the backbone has {len(stages)} stages, not {num_stages}; lower --finetune-stages"
            )
        return [parameters[name] for stage in stages[-num_stages:] for name in stage]

    def _used_parameters(self, parameters: dict[str, nn.Parameter], size_px: int) -> set[str]:
        """Which parameters the grid depends on, found by one backward pass over a blank picture."""
        blank = torch.zeros(1, 3, size_px, size_px, device=next(self.parameters()).device)
        self.cnn.requires_grad_(True)
        gradients = torch.autograd.grad(self(blank).sum(), list(parameters.values()), allow_unused=True)
        self.cnn.requires_grad_(False)
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch cells annotation"]:
        return self._flatten(self.cnn.forward_features(images))

    def normalise(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Squashed RGB pictures (`captioner.images.Preprocess`) as the CNN's input."""
        mean, std = (torch.tensor(value, device=images.device) for value in (self.mean, self.std))
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def annotate(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch cells annotation"]:
        """Annotations of squashed RGB pictures."""
        annotations: Tensor = self(self.normalise(images))
        return annotations

    def annotations_of(
        self, pictures: Pictures
    ) -> tuple[Float[Tensor, "batch cells annotation"], Bool[Tensor, "batch cells"] | None]:
        """The annotations of a batch, cached or computed, and which are there: in a picture, all."""
        if len(pictures.images) == 0:
            return pictures.grids.float()[pictures.order], None
        live = self.annotate(pictures.images).float()
        joined = torch.cat([pictures.grids.float(), live]) if len(pictures.grids) else live
        return joined[pictures.order], None

    def _flatten(self, grid: Tensor) -> Float[Tensor, "batch cells annotation"]:
        if grid.ndim == 3:  # a transformer's tokens: (batch, prefix + cells, annotation)
            return grid[:, self.num_prefix_tokens :]
        if grid.shape[1] == self.annotation_dim:
            return grid.flatten(2).transpose(1, 2)
        return grid.flatten(1, 2)  # channels come last

    def preprocess_config(self, size_px: int) -> PreprocessConfig:
        """The preparation of pictures that this backbone was trained with, at our input size."""
        return PreprocessConfig(
            size_px=size_px, mean=self.mean, std=self.std, interpolation=self.interpolation
        )

    @torch.inference_mode()
    def grid_config(self, size_px: int) -> GridConfig:
        """Rows, columns and centres of the cells for a square input, from one pass over a blank one.

        Each strided layer maps the place o of an output to the centre of its window on the input,
        stride * o + (kernel - 1) / 2 - padding. Composed over the layers this gives the centre of a
        cell's receptive field (Araujo et al. 2019, "Computing Receptive Fields of Convolutional
        Neural Networks"). Of parallel branches the one with the widest kernel counts.
        """
        with _record_strided_layers(self.cnn) as layers:
            try:
                grid = self.cnn.forward_features(torch.zeros(1, 3, size_px, size_px))
            except (AssertionError, RuntimeError) as error:
                raise EncoderError(
                    f"the backbone does not take {size_px} pixels ({error}); choose another image size"
                ) from error
        num_cells = self._flatten(grid).shape[1]
        rows = math.isqrt(num_cells)
        if rows * rows != num_cells:
            raise EncoderError(f"a grid of {num_cells} cells is no square; captioner needs a spatial grid")
        stride_px, offset_px, place = 1.0, 0.0, size_px
        while place in layers:
            layer = layers[place]
            offset_px += stride_px * layer.offset
            stride_px *= layer.stride
            place = layer.output_px
        if place != rows:  # strided by other means (patch merging): the cells tile the input evenly
            stride_px = size_px / rows
            offset_px = (stride_px - 1) / 2
        return GridConfig(rows=rows, cols=rows, stride_px=stride_px, offset_px=offset_px)

    def field_px(self, images: Float[Tensor, "batch 3 size size"], grid: GridConfig) -> float | None:
        """How far around its centre the middle cell sees, on these pictures, in pixels of the input.

        The effective receptive field (Luo et al. 2016) is what the annotation's gradient by the input
        spans. This is half the width that holds the central 68 % of the gradient's energy, which would be
        the deviation of a Gaussian; the mean of both axes. None where the cell sees nothing at all.
        """
        middle = (grid.rows // 2) * grid.cols + grid.cols // 2
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(self.annotation_dim, generator=generator).to(images.device)
        energy = torch.zeros(images.shape[2:], dtype=torch.float64)
        for image in images.split(1):  # one by one, for memory
            image = image.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(image)[0, middle] @ direction, image)
            energy += gradient[0].cpu().double().square().sum(dim=0)
        if not 0 < float(energy.sum()) < math.inf:
            return None
        widths = [_central_width(energy.sum(dim=axis)) for axis in (0, 1)]
        return sum(widths) / 4


_ONE_DEVIATION = 0.6827  # the share of a Gaussian within one deviation of its centre


def _central_width(energy: Float[Tensor, " pixels"]) -> float:
    """The width of the middle part of a profile that holds `_ONE_DEVIATION` of it, between pixels too."""
    below = torch.cat([energy.new_zeros(1), energy.cumsum(0) / energy.sum()]).cpu().numpy()
    tail = (1 - _ONE_DEVIATION) / 2
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
            # TensorFlow's SAME: what the windows lack is added, the larger half at the end.
            padding = max((output_px - 1) * self.stride + reach + 1 - input_px, 0) // 2
        self.offset = reach / 2 - padding


def _first(value: Any) -> Any:
    return next(iter(value)) if isinstance(value, Iterable) else value


@contextmanager
def _record_strided_layers(cnn: nn.Module) -> Iterator[dict[int, _StridedLayer]]:
    """Collect the layers that shrink their input while the block runs, by the input's side in pixels."""
    layers: dict[int, _StridedLayer] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        input_px = inputs[0].shape[-1]
        layer = _StridedLayer(module, input_px, output.shape[-1])
        if input_px not in layers or layer.kernel > layers[input_px].kernel:
            layers[input_px] = layer

    strided = [
        module
        for module in cnn.modules()
        if hasattr(module, "kernel_size") and _first(getattr(module, "stride", 1)) > 1
    ]
    handles = [module.register_forward_hook(record) for module in strided]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def build_encoder(config: EncoderConfig) -> Encoder:
    """The pretrained encoder that a recipe names."""
    return Encoder(backbone=config.backbone, weights=config.weights, is_pretrained=True)
