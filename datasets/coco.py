"""COCO captions of 2014 and 2017 as downloaded, and any other data in COCO's format.

    annotations/captions_train2017.json, annotations/captions_val2017.json
    train2017/, val2017/                    the pictures

Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.coco_format import read_coco_captions
from captioner.records import CaptionedImage, SplitName

from . import DatasetError, picture_in

COCO_NAME: dict[SplitName, str] = {"train": "train", "dev": "val"}
"""What COCO calls a split. Its test captions are kept by the evaluation server."""


@dataclass(frozen=True, kw_only=True)
class Coco:
    """COCO captions as downloaded, or your own data in the same format."""

    root: Path = Path()
    """Folder with annotations/ and the folders of pictures."""
    year: Literal["2014", "2017"] = "2017"
    """Which release."""
    captions: str = "annotations/captions_{split}{year}.json"
    """The annotation file of a split, below root; {split} becomes train or val."""
    images: str = "{split}{year}"
    """The folder of a split's pictures, below root."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of the annotation file's images.

        Raises:
            DatasetError: a picture's name leads out of its folder, or the split has no captions.
            captioner.coco_format.CocoFormatError: an annotation file is missing or not in COCO's format.
        """
        return [record for split in splits for record in self._read_split(split)]

    def _read_split(self, split: SplitName) -> list[CaptionedImage]:
        if split not in COCO_NAME:
            raise DatasetError("COCO's test captions are not public; use --split val, or Karpathy's splits")
        path = self.root / self._place(self.captions, split)
        folder = self.root / self._place(self.images, split)
        return [
            CaptionedImage(
                image_id=image.image_id,
                source=picture_in(folder, image.file_name, where=f"{path}, image {image.image_id}"),
                captions=image.captions,
                split=split,
            )
            for image in read_coco_captions(path)
        ]

    def _place(self, template: str, split: SplitName) -> str:
        try:
            return template.format(split=COCO_NAME[split], year=self.year)
        except (LookupError, ValueError):
            raise DatasetError(
                f"{template} has braces other than {{split}} and {{year}}; name a file or folder"
            ) from None
