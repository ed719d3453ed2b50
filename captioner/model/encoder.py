"""Encoder: image tensors to annotation vectors, with any timm backbone.

timm provides each backbone's number of channels, mean, standard deviation and interpolation.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.models import group_parameters
from torch import Tensor, nn

from captioner.config import EncoderConfig, GridConfig, Interpolation, PreprocessConfig
from captioner.errors import CaptionerError, one_line
from captioner.model.batch import Pictures
from captioner.model.pretrained import require_reachable
from captioner.model.receptive_field import grid_config, receptive_field_std_px


class _InSinglePrecision:
    """Mixed into depthwise convolutions: in training on a CPU they compute in single precision.

    There torch's gradient of a depthwise convolution in bf16 takes several times as long as that in fp32.
    """

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        convolution: nn.Conv2d = super()  # type: ignore[assignment]
        is_trained = torch.is_grad_enabled() and self.weight.requires_grad  # type: ignore[attr-defined]
        if images.device.type != "cpu" or not is_trained:
            return convolution.forward(images)
        with torch.autocast("cpu", enabled=False):
            return convolution.forward(images.float())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickling and copying: the class was made for the instance."""
        return _mixed, (type(self).__bases__[1], self.__dict__)


def _mixed(kind: type[nn.Conv2d], state: dict[str, Any]) -> nn.Conv2d:
    module = kind.__new__(kind)
    module.__dict__.update(state)
    _mix_in_single_precision(module)
    return module


def _mix_in_single_precision(cnn: nn.Module) -> None:
    for module in cnn.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            kind = type(module)
            module.__class__ = type(kind.__name__, (_InSinglePrecision, kind), {})


class Encoder(nn.Module):
    """A CNN without its classifier (Xu et al. 2015, section 3.1.1): (B, 3, H, W) to (B, L, D).

    It is frozen: its parameters take no gradient and it stays in evaluation mode, so that the running
    statistics of BatchNorm do not drift while the decoder trains. The last stages may be unfrozen for
    fine-tuning; the statistics stay fixed even then.
    """

    def __init__(
        self,
        *,
        backbone: str,
        stage: int | None = None,
        weights: Path | None = None,
        is_pretrained: bool = False,
    ) -> None:
        """Build the backbone with random weights, timm's download, or the weights in a file.

        With a `stage` its output is the annotations, and what comes after it is dropped
        (`captioner.config.EncoderConfig`).

        Raises:
            CaptionerError: timm has no such model, it has no such stage, or the file does not contain its
                weights.
        """
        super().__init__()
        if not timm.is_model(backbone):
            similar = timm.list_models(f"*{backbone.split('.')[0][:8]}*")[:5]
            hint = f"; similar names: {', '.join(similar)}" if similar else ""
            raise CaptionerError(f"timm has no model named {backbone!r}{hint}")
        if is_pretrained and weights is None:
            require_reachable(backbone)
        overlay = {"file": str(weights)} if weights else None
        try:
            self.cnn = timm.create_model(
                backbone,
                pretrained=is_pretrained or weights is not None,
                pretrained_cfg_overlay=overlay,
                num_classes=0,
                global_pool="",
            )
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            raise CaptionerError(
                f"cannot load weights of {backbone} from {weights or 'the hub'}: {one_line(error)}"
            ) from error
        if hasattr(self.cnn, "pre_logits"):
            self.cnn.pre_logits = nn.Identity()  # VGG's two wide layers before the classifier: 240 MB
        prepared = resolve_data_config(model=self.cnn)
        self.mean, self.std = tuple(prepared["mean"]), tuple(prepared["std"])
        self.interpolation: Interpolation = prepared["interpolation"]
        self.annotation_dim: int = self.cnn.num_features
        self.num_prefix_tokens: int = getattr(self.cnn, "num_prefix_tokens", 0)
        self.stage = stage
        if stage is not None:
            self._end_with(stage)
        self.cnn.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.cnn.requires_grad_(False)
        _mix_in_single_precision(self.cnn)
        self.eval()

    def _end_with(self, stage: int) -> None:
        """Drop what comes after a stage. Raises: CaptionerError."""
        stages = getattr(self.cnn, "feature_info", ())
        if not hasattr(self.cnn, "prune_intermediate_layers"):
            raise CaptionerError(
                f"timm {timm.__version__} cannot divide this backbone into stages; a newer one may, or leave "
                "--stage out"
            )
        if not 0 < -stage <= len(stages):
            raise CaptionerError(
                f"the backbone has the stages -{len(stages)} to -1, not {stage}; change --stage"
            )
        self.cnn.prune_intermediate_layers([len(stages) + stage], prune_norm=True)
        self.annotation_dim = stages[stage]["num_chs"]

    def train(self, mode: bool = True) -> "Encoder":  # noqa: ARG002
        """Stay in evaluation mode, whatever the enclosing model does."""
        return super().train(False)

    def last_stages(self, num_stages: int, *, size_px: int) -> list[nn.Parameter]:
        """The parameters of the last stages, for fine-tuning; they are not unfrozen here.

        Stages are those of timm's `group_matcher`, for example the stem and layer1 to layer4 of a ResNet;
        parameters that do not influence the grid (of a classifier) are ignored.

        Raises:
            CaptionerError: there are fewer stages.
        """
        parameters = dict(self.cnn.named_parameters())
        used = self._used_parameters(parameters, size_px)
        groups = group_parameters(self.cnn, self.cnn.group_matcher(coarse=True))
        stages = [kept for names in groups.values() if (kept := [name for name in names if name in used])]
        if num_stages > len(stages):
            raise CaptionerError(
                f"the backbone has {len(stages)} stages, not {num_stages}; lower --finetune-stages"
            )
        return [parameters[name] for stage in stages[-num_stages:] for name in stage]

    def _used_parameters(self, parameters: dict[str, nn.Parameter], size_px: int) -> set[str]:
        """Names of the parameters that the grid depends on, by one backward pass over a blank picture."""
        blank = torch.zeros(1, 3, size_px, size_px, device=next(self.parameters()).device)
        self.cnn.requires_grad_(True)
        gradients = torch.autograd.grad(self(blank).sum(), list(parameters.values()), allow_unused=True)
        self.cnn.requires_grad_(False)
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch cells annotation"]:
        return self._flatten(self._features(images))

    def _features(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        if self.stage is None:
            return self.cnn.forward_features(images)
        # Counted from the first: without its last blocks, a transformer counts back from another end.
        (features,) = self.cnn.forward_intermediates(
            images, indices=[len(self.cnn.feature_info) + self.stage], intermediates_only=True
        )
        return features

    def normalise(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Squashed RGB pictures (`captioner.images.geometry.Preprocess`) to the CNN's input."""
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
        """The annotations of a batch, cached or computed; pictures need no mask of padded cells (None)."""
        if len(pictures.images) == 0:
            return pictures.features.float()[pictures.order], None
        live = self.annotate(pictures.images).float()
        joined = torch.cat([pictures.features.float(), live]) if len(pictures.features) else live
        return joined[pictures.order], None

    def _flatten(self, grid: Tensor) -> Float[Tensor, "batch cells annotation"]:
        if grid.ndim == 3:  # tokens of a transformer: (batch, prefix + cells, annotation)
            return grid[:, self.num_prefix_tokens :]
        if grid.shape[1] == self.annotation_dim:
            return grid.flatten(2).transpose(1, 2)
        return grid.flatten(1, 2)  # channels come last

    def preprocess_config(self, size_px: int) -> PreprocessConfig:
        """The preprocessing that this backbone was pretrained with, at the given input size."""
        return PreprocessConfig(
            size_px=size_px, mean=self.mean, std=self.std, interpolation=self.interpolation
        )

    def grid_config(self, size_px: int) -> GridConfig:
        """Rows, columns and centres of the cells for a square input of this side."""
        return grid_config(self, size_px)

    def receptive_field_std_px(
        self, images: Float[Tensor, "batch 3 size size"], grid: GridConfig
    ) -> float | None:
        """How far around its centre the middle cell sees (`receptive_field.receptive_field_std_px`)."""
        return receptive_field_std_px(self, images, grid, annotation_dim=self.annotation_dim)


def build_encoder(config: EncoderConfig) -> Encoder:
    """The pretrained encoder that a recipe describes."""
    return Encoder(backbone=config.backbone, stage=config.stage, weights=config.weights, is_pretrained=True)
