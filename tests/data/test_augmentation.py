import numpy as np
import pytest
import torch
from PIL import Image

from captioner.data.augmentation import Augmentation
from captioner.data.epoch_order import SampleKey

SIZE_PX = 48


@pytest.fixture
def half_red() -> Image.Image:
    """Red on its left half, blue on its right one."""
    pixels = np.zeros((90, 120, 3), dtype=np.uint8)
    pixels[:, :60, 0] = 255
    pixels[:, 60:, 2] = 255
    return Image.fromarray(pixels)


def is_flipped(image: torch.Tensor) -> bool:
    first_column = image[:, 0].float().mean(dim=0)
    return bool(first_column[2] > first_column[0])


def test_augmentation_depends_on_seed_epoch_and_picture_alone(half_red: Image.Image) -> None:
    def augmented(seed: int, epoch: int, index: int) -> bytes:
        torch.rand(3)  # whatever was drawn before
        image = Augmentation(seed, SIZE_PX)(half_red, captions=["a flag"], key=SampleKey(epoch, index))
        assert image.shape == (SIZE_PX, SIZE_PX, 3)
        return image.numpy().tobytes()

    assert augmented(0, 0, 0) == augmented(0, 0, 0)
    assert (
        len({augmented(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)}) == 8
    )


def test_repeats_of_a_picture_in_an_epoch_differ(half_red: Image.Image) -> None:
    pictures = [
        Augmentation(0, SIZE_PX)(half_red, captions=[], key=SampleKey(0, 3, repeat)) for repeat in range(3)
    ]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 3


def test_global_random_state_is_unchanged(half_red: Image.Image) -> None:
    before = torch.get_rng_state()
    Augmentation(0, SIZE_PX)(half_red, captions=[], key=SampleKey(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_half_of_the_pictures_are_flipped_but_none_whose_captions_mention_left_or_right(
    half_red: Image.Image,
) -> None:
    augmentation = Augmentation(0, SIZE_PX)

    def share_flipped(*captions: str) -> float:
        flips = [
            is_flipped(augmentation(half_red, captions=captions, key=SampleKey(0, index)))
            for index in range(200)
        ]
        return sum(flips) / len(flips)

    assert share_flipped("A flag.", "A bright leftover.") == pytest.approx(0.5, abs=0.1)
    assert share_flipped("A flag.", "The Left half is red.") == 0
    assert share_flipped("Red, and blue on the right.") == 0
