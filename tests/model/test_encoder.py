import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from captioner.config import EncoderConfig, GridConfig, ModelConfig
from captioner.errors import CaptionerError
from captioner.model.captioning import CaptioningModel, make_captioning_model
from captioner.model.encoder import Encoder, build_encoder
from captioner.model.pretrained import require_reachable
from tests.conftest import TINY_SIZE_PX


@pytest.mark.parametrize(
    ("backbone", "size_px", "side", "annotation_dim"),
    [
        ("resnet50", 160, 5, 2048),
        ("vgg19", 160, 5, 512),
        ("convnext_tiny", 160, 5, 768),
        ("efficientnet_b0", 160, 5, 1280),
        ("densenet121", 160, 5, 1024),
        ("vit_tiny_patch16_224", 224, 14, 192),
        ("swin_tiny_patch4_window7_224", 224, 7, 768),
    ],
)
def test_a_backbone_of_any_family_gives_one_annotation_a_cell(
    backbone: str, size_px: int, side: int, annotation_dim: int
) -> None:
    encoder = Encoder(backbone=backbone)
    grid = encoder.grid_config(size_px)
    assert (grid.rows, grid.cols) == (side, side)
    annotations = encoder(torch.randn(1, 3, size_px, size_px))
    assert annotations.shape == (1, side * side, annotation_dim)
    assert encoder.annotation_dim == annotation_dim
    assert encoder.last_stages(1, size_px=size_px)


def test_frozen_encoder_does_not_move_and_neither_do_its_batch_norms(model: CaptioningModel) -> None:
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.encoder.modules())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tokens, lengths = torch.tensor([[[1, 5, 2]], [[1, 6, 2]]]), torch.tensor([[2], [2]])
    for _ in range(2):
        annotations = model.encoder(torch.randn(2, 3, 64, 64) * 5)
        model.decoder(annotations, tokens, lengths).logits.square().sum().backward()
        optimizer.step()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not module.training for module in model.encoder.modules())


def centre_of_receptive_field(cnn: nn.Module, size_px: int, cell: int) -> float:
    """Where a cell of the diagonal looks, measured: with equal positive weights everywhere and no
    nonlinearity, the gradient of the cell counts the paths from each pixel to it."""
    for module in cnn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    image = torch.ones(1, 3, size_px, size_px, requires_grad=True)
    cnn(image)[0, :, cell, cell].sum().backward()
    assert image.grad is not None
    weight = image.grad[0].sum(dim=0).sum(dim=0)
    return float((weight * torch.arange(size_px)).sum() / weight.sum())


class SmallCNN(nn.Module):
    """Strided layers with the padding under test, and a parallel shortcut as residual networks have."""

    def __init__(self, padding: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, kernel, stride=2, padding=padding)
        self.pool = nn.AvgPool2d(2, stride=2)
        self.second = nn.Conv2d(4, 4, kernel, stride=2, padding=padding)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(self.pool(self.first(image)))

    forward_features = forward


@pytest.mark.parametrize(("padding", "kernel"), [(1, 3), (2, 5), (3, 7), (0, 2)])
@pytest.mark.parametrize("size_px", [64, 65, 72])
def test_cells_are_centred_where_their_receptive_field_is(padding: int, kernel: int, size_px: int) -> None:
    encoder = Encoder(backbone="test_efficientnet")
    encoder.cnn, encoder.annotation_dim = SmallCNN(padding, kernel).eval(), 4
    grid = encoder.grid_config(size_px)
    cell = grid.rows // 2  # an inner cell, whose field no border cuts
    measured = centre_of_receptive_field(encoder.cnn, size_px, cell)
    assert grid.offset_px + grid.stride_px * cell == pytest.approx(measured, abs=0.01)


@pytest.mark.parametrize(
    ("backbone", "stage", "size_px", "stride_px", "offset_px"),
    [
        # Worked by hand. TensorFlow's SAME padding puts nothing before and one row after an even input
        # of a 3 x 3 stride 2 layer, so its windows are centred on 2 o + 1, but on 2 o for an odd input:
        # 260, 130, 65, 33, 17 gives 2 (2 (8 o)  + 1) + 1 = 32 o + 3.
        ("tf_efficientnet_lite2", None, 260, 32, 3),
        ("tf_efficientnet_lite2", None, 257, 32, 0),
        ("tf_efficientnet_lite2", None, 288, 32, 31),
        ("tf_efficientnet_lite2", -1, 288, 32, 31),
        ("tf_efficientnet_lite2", -2, 288, 16, 15),
        ("resnet18", None, 224, 32, 0),
        ("resnet18", -2, 224, 16, 0),
        ("convnext_atto", None, 224, 32, 15.5),
        ("vgg11", None, 224, 32, 15.5),
        pytest.param(
            *("vgg11", -2, 224, 16, 7.5),  # before the last pooling, as in the paper
            marks=pytest.mark.skipif(
                not hasattr(timm.models.VGG, "prune_intermediate_layers"), reason="needs a newer timm"
            ),
        ),
    ],
)
def test_known_backbones_have_their_known_geometry(
    backbone: str, stage: int | None, size_px: int, stride_px: float, offset_px: float
) -> None:
    grid = Encoder(backbone=backbone, stage=stage).grid_config(size_px)
    assert (grid.stride_px, grid.offset_px) == (stride_px, offset_px)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
@pytest.mark.parametrize("stage", [-1, -2, -5])
def test_annotations_of_a_stage_are_the_features_that_timm_extracts(backbone: str, stage: int) -> None:
    encoder = Encoder(backbone=backbone, stage=stage)
    extractor = timm.create_model(backbone, features_only=True, out_indices=(5 + stage,)).eval()
    assert not extractor.load_state_dict(encoder.cnn.state_dict(), strict=False).unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (features,) = extractor(images)
    torch.testing.assert_close(encoder(images), features.flatten(2).transpose(1, 2))
    assert features.shape[1] == encoder.annotation_dim
    assert len(encoder.last_stages(1, size_px=64)) > 0


def test_stage_of_a_transformer_is_the_one_counted_before_its_last_blocks_are_dropped() -> None:
    encoder = Encoder(backbone="test_vit", stage=-2)
    whole = timm.create_model("test_vit", num_classes=0).eval()
    assert not whole.load_state_dict(encoder.cnn.state_dict(), strict=False).unexpected_keys
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        *_, features, _ = whole.forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(encoder(images), features.flatten(2).transpose(1, 2))


def test_stage_that_does_not_exist_is_refused() -> None:
    for stage in (0, 1, -6):
        with pytest.raises(CaptionerError, match=f"the backbone has the stages -5 to -1, not {stage}"):
            Encoder(backbone="test_efficientnet", stage=stage)


def test_preprocessing_is_that_of_the_config_whatever_timm_has_today(model_config: ModelConfig) -> None:
    other = replace(
        model_config.preprocess, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), interpolation="nearest"
    )
    model = make_captioning_model(replace(model_config, preprocess=other), vocab_size=9)
    assert model.encoder.preprocess_config(other.size_px) == other != model_config.preprocess


def test_unknown_backbone_is_refused_with_similar_names() -> None:
    with pytest.raises(CaptionerError, match=r"no model named 'resnet1000'; similar names: .*resnet"):
        Encoder(backbone="resnet1000")


def test_size_that_the_backbone_does_not_take_is_refused() -> None:
    with pytest.raises(CaptionerError, match="the backbone does not take 100 pixels"):
        Encoder(backbone="test_vit").grid_config(100)


def test_file_without_weights_is_refused() -> None:
    with pytest.raises(CaptionerError, match=r"cannot load weights of test_resnet from missing\.safetensors"):
        Encoder(backbone="test_resnet", weights=Path("missing.safetensors"))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"])
def test_last_stages_are_parameters_that_the_grid_depends_on_counted_from_its_end(backbone: str) -> None:
    encoder = Encoder(backbone=backbone)
    size_px = 160
    one, two = (encoder.last_stages(count, size_px=size_px) for count in (1, 2))
    assert {id(parameter) for parameter in one} < {id(parameter) for parameter in two}
    assert not any(parameter.requires_grad for parameter in encoder.parameters())

    for parameter in two:
        parameter.requires_grad_(True)
    encoder(torch.randn(2, 3, size_px, size_px)).square().sum().backward()
    for parameter in encoder.parameters():
        is_unfrozen = any(parameter is other for other in two)
        assert (parameter.grad is not None) == is_unfrozen


def test_more_stages_than_there_are_is_refused() -> None:
    with pytest.raises(CaptionerError, match="the backbone has 6 stages, not 7; lower --finetune-stages"):
        Encoder(backbone="test_efficientnet").last_stages(7, size_px=64)


class OneWindow(nn.Module):
    """A CNN of one convolution that weighs all pixels of each 9 x 9 window equally."""

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Conv2d(3, 4, kernel_size=9, stride=8, padding=4, bias=False)
        nn.init.ones_(self.window.weight)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.window(images)


def test_receptive_field_is_that_of_a_known_window() -> None:
    """Each of nine pixels has a ninth of the energy; 68.27 % of nine pixels, halved."""
    encoder = Encoder(backbone="test_efficientnet")
    encoder.cnn, encoder.annotation_dim = OneWindow(), 4
    grid = GridConfig(rows=8, cols=8, stride_px=8, offset_px=0)
    assert encoder.receptive_field_std_px(torch.randn(2, 3, 64, 64), grid) == pytest.approx(9 * 0.6827 / 2)


def test_cell_that_sees_nothing_has_no_field_of_view() -> None:
    encoder = Encoder(backbone="test_efficientnet")
    blind = OneWindow()
    nn.init.zeros_(blind.window.weight)
    encoder.cnn, encoder.annotation_dim = blind, 4
    grid = GridConfig(rows=8, cols=8, stride_px=8, offset_px=0)
    assert encoder.receptive_field_std_px(torch.randn(2, 3, 64, 64), grid) is None


def test_weights_that_cannot_be_downloaded_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message has the file's address; a file that the cache has needs no network."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("captioner.model.pretrained.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("captioner.model.pretrained.try_to_load_from_cache", lambda *_: None)
    message = (
        r"cannot be reached.*; download \S+/timm/resnet50\.\S+/model\.safetensors elsewhere .* with --weights"
    )
    with pytest.raises(CaptionerError, match=message) as raised:
        require_reachable("resnet50")
    assert "\n" not in str(raised.value)
    with pytest.raises(CaptionerError, match=message):
        build_encoder(EncoderConfig(backbone="resnet50"))
    monkeypatch.setattr("captioner.model.pretrained.try_to_load_from_cache", lambda *_: str(tmp_path))
    require_reachable("resnet50")


def test_trained_depthwise_convolutions_compute_in_single_precision(encoder: Encoder) -> None:
    """Only those, only where they are trained, and in copies of the encoder too."""
    copied = pickle.loads(pickle.dumps(copy.deepcopy(encoder)))
    images = torch.rand(2, 3, TINY_SIZE_PX, TINY_SIZE_PX)
    kinds: dict[bool, set[torch.dtype]] = {}

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        kinds.setdefault(module.groups > 1, set()).add(output.dtype)

    for module in copied.cnn.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        copied(images)
    assert kinds == {False: {torch.bfloat16}, True: {torch.bfloat16}}
    kinds.clear()
    copied.cnn.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        copied(images).float().sum().backward()
    assert kinds == {False: {torch.bfloat16}, True: {torch.float32}}
    assert all(p.grad is not None for p in copied.cnn.conv_stem.parameters())
