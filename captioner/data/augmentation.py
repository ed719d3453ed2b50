"""Augmentation of training pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from captioner.data.epoch_order import SampleKey, derived_seed

_SIDES = re.compile(r"\b(?:left|right)(?:most)?\b", re.IGNORECASE)

_CROP_SCALE = (0.7, 1.0)  # of the picture's area: less would remove what the captions mention
_CROP_RATIO = (0.8, 1.25)  # of the crop's sides, before it is squashed to the square
_COLOUR = 0.2  # largest relative change of brightness, contrast and saturation


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip and colour an RGB picture with torchvision's transforms; gives the CNN's square input.

    The transforms run on tensors, whose crops are resized twice as fast as Pillow's pictures. The result
    depends only on the seed, the epoch and the picture, so that a resumed run repeats it. A picture with
    "left" or "right" in a caption is not flipped.
    """

    seed: int
    size_px: int

    def __call__(
        self, image: Image.Image, *, captions: Sequence[str], key: SampleKey
    ) -> UInt8[Tensor, "size size 3"]:
        nothing = np.zeros((0, 1, 1), np.float32)
        augmented, _ = self.with_masks(image, nothing, captions=captions, key=key)
        return augmented

    def with_masks(
        self,
        image: Image.Image,
        masks: Float[np.ndarray, "regions height width"],
        *,
        captions: Sequence[str],
        key: SampleKey,
    ) -> tuple[UInt8[Tensor, "size size 3"], Float[np.ndarray, "regions size size"]]:
        """The picture, and masks over it, which are cropped and flipped in the same way. The masks may have
        another size than the picture."""
        from torchvision import tv_tensors  # takes seconds to import, and only training needs it
        from torchvision.transforms import v2

        may_flip = not any(_SIDES.search(caption) for caption in captions)
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(self.size_px, scale=_CROP_SCALE, ratio=_CROP_RATIO),
                v2.RandomHorizontalFlip(0.5 if may_flip else 0.0),
                v2.ColorJitter(brightness=_COLOUR, contrast=_COLOUR, saturation=_COLOUR),
            ]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, key.epoch, key.index, key.repeat))
            pixels = v2.functional.pil_to_tensor(image)
            if len(masks) == 0:
                augmented: Tensor = transform(pixels)
                moved = np.zeros((0, self.size_px, self.size_px), np.float32)
            else:
                scaled = v2.functional.resize_mask(torch.from_numpy(masks), list(pixels.shape[1:]))
                augmented, moved_masks = transform(pixels, tv_tensors.Mask(scaled))
                moved = moved_masks.numpy()
        return augmented.permute(1, 2, 0).contiguous(), moved
