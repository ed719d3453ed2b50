"""Encoding of many pictures: the encoder's annotations, from whatever computes them fastest."""

import numpy as np
import pytest
import torch

from captioner.backends import batch_encoder
from captioner.backends.batch_encoder import fast_batch_encoder, torch_batch_encoder
from captioner.images.prefetch import available_cores
from captioner.model.encoder import Encoder
from tests.conftest import TINY_CNN, TINY_SIZE_PX

SIZES_PX = {
    TINY_CNN: TINY_SIZE_PX,
    "resnet10t": 64,
    "mobilenetv3_small_050": 64,
    "convnext_atto": 64,
    "test_vit": 160,  # a transformer with a grid, and a class token besides
}


def images_of(size_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, size_px, size_px, 3), np.uint8)


@pytest.mark.parametrize(
    ("backbone", "stage"),
    [
        (TINY_CNN, None),
        (TINY_CNN, -2),
        *(pytest.param(name, None, marks=pytest.mark.long) for name in SIZES_PX if name != TINY_CNN),
    ],
)
def test_annotations_are_the_encoders_within_half_precision(backbone: str, stage: int | None) -> None:
    torch.manual_seed(0)
    encoder, size_px = Encoder(backbone=backbone, stage=stage).eval(), SIZES_PX[backbone]
    images = images_of(size_px)
    expected = encoder.annotate(torch.tensor(images)).numpy()
    fast = fast_batch_encoder(encoder, size_px=size_px, num_pictures=1000)
    assert fast.num_threads == available_cores()
    found = fast.encode(images)
    half_of_the_last_digit = np.abs(expected.astype(np.float16).astype(np.float32) - expected).max()
    assert np.abs(found - expected).max() <= max(half_of_the_last_digit, 1e-5)
    np.testing.assert_allclose(torch_batch_encoder(encoder).encode(images), expected, atol=1e-5)


def test_encoder_that_cannot_be_exported_still_encodes(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such\noperator")

    said: list[str] = []
    monkeypatch.setattr(batch_encoder, "encoder_graph", refuse)
    monkeypatch.setattr(batch_encoder._logger, "info", lambda text, *values: said.append(text % values))
    found = fast_batch_encoder(encoder, size_px=TINY_SIZE_PX, num_pictures=1000).encode(
        images_of(TINY_SIZE_PX)
    )
    assert said == ["the CNN cannot be exported (no such operator); torch runs it, which is slower"]
    expected = encoder.annotate(torch.tensor(images_of(TINY_SIZE_PX)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_few_pictures_are_not_worth_an_export(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_encoder, "encoder_graph", None)
    assert fast_batch_encoder(encoder, size_px=TINY_SIZE_PX, num_pictures=10).num_threads == 1
