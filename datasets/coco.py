"""Reader of COCO captions and of other data in COCO's format.

    annotations/captions_train2017.json, annotations/captions_val2017.json
    train2017/, val2017/                    the pictures

Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.errors import reject_string
from captioner.evaluation.coco import read_valid_captions
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, MaySkipInvalid, picture_in

COCO_NAME: dict[SplitName, str] = {"train": "train", "dev": "val"}
"""COCO's names of the splits. Its test captions are not public."""


@dataclass(frozen=True, kw_only=True)
class Coco(MaySkipInvalid):
    """COCO captions as downloaded, or your own data in the same format."""

    root: Path = Path()
    """Folder with annotations/ and the folders of pictures."""
    year: Literal["2014", "2017"] = "2017"
    """Release."""
    captions: str = "annotations/captions_{split}{year}.json"
    """Annotation file of a split, relative to root; {split} becomes train or val, {year} the release."""
    images: str = "{split}{year}"
    """Folder of a split's pictures, relative to root."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of the annotation file's images.

        Raises:
            CaptionerError: an annotation file is missing or not in COCO's format, or a picture's name leads
                out of its folder.
        """
        reject_string(splits, "splits")
        return [record for split in splits for record in self._read_split(split)]

    def _read_split(self, split: SplitName) -> list[CaptionedImage]:
        if split not in COCO_NAME:
            raise CaptionerError("COCO's test captions are not public; use --split val, or Karpathy's splits")
        path = self.root / self._fill_in(self.captions, split)
        folder = self.root / self._fill_in(self.images, split)
        images, problems = read_valid_captions(path)
        records = []
        for image in images:
            where = f"{path}, image {image.image_id}"
            try:
                source = picture_in(folder, image.file_name, where=where)
            except CaptionerError as error:
                problems.append(str(error) if image.file_name else f"{where}: it has no file_name")
                continue
            records.append(
                CaptionedImage(image_id=image.image_id, source=source, captions=image.captions, split=split)
            )
        self.report(problems)
        return records

    def _fill_in(self, template: str, split: SplitName) -> str:
        return template.replace("{split}", COCO_NAME[split]).replace("{year}", self.year)
