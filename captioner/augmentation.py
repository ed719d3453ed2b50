"""How a training picture is changed so that no epoch sees it twice alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from captioner.randomness import derived_seed

_SIDES = re.compile(r"\b(?:left|right)(?:most)?\b", re.IGNORECASE)

_CROP_SCALE = (0.7, 1.0)  # of the picture's area: less would cut away what the captions speak of
_CROP_RATIO = (0.8, 1.25)  # of the crop's sides, before it is squashed to the square
_COLOUR = 0.2  # largest relative change of brightness, contrast and saturation


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip and colour an RGB picture by torchvision's transforms; gives the CNN's square input.

    They work on tensors, whose crops are shrunk twice as fast as Pillow's pictures.

    What happens to a picture depends on the seed, the epoch and the picture alone, not on what was
    loaded before it or by which worker: a resumed run sees the same. A picture of whose captions one
    says "left" or "right" is not flipped.
    """

    seed: int
    size_px: int

    def __call__(
        self, image: Image.Image, *, captions: Sequence[str], epoch: int, index: int
    ) -> UInt8[Tensor, "size size 3"]:
        from torchvision.transforms import v2  # takes seconds to import, and only training needs it

        may_flip = not any(_SIDES.search(caption) for caption in captions)
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(self.size_px, scale=_CROP_SCALE, ratio=_CROP_RATIO),
                v2.RandomHorizontalFlip(0.5 if may_flip else 0.0),
                v2.ColorJitter(brightness=_COLOUR, contrast=_COLOUR, saturation=_COLOUR),
            ]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, epoch, index))
            augmented: Tensor = transform(v2.functional.pil_to_tensor(image))
        return augmented.permute(1, 2, 0).contiguous()
