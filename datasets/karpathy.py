"""Reader of Karpathy's splits of COCO, Flickr8k and Flickr30k.

Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments for Generating Image Descriptions".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from captioner.errors import reject_string
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, MaySkipInvalid, picture_in

SPLIT_OF: dict[str, SplitName] = {"train": "train", "val": "dev", "test": "test"}
"""Karpathy's names of the splits; the reader decides about restval, the rest of COCO's val."""


class _Sentence(msgspec.Struct):
    raw: str


class KarpathyImage(msgspec.Struct):
    """An image of the file; only COCO has `filepath` and `cocoid`."""

    filename: str
    split: Literal["train", "restval", "val", "test"]
    sentences: list[_Sentence]
    filepath: str = ""
    cocoid: int | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(sentence.raw for sentence in self.sentences)


class _File(msgspec.Struct):
    images: list[KarpathyImage]


def read_karpathy(
    path: Path, splits: Sequence[SplitName], *, restval: Literal["train", "leave"] = "train"
) -> list[tuple[SplitName, KarpathyImage]]:
    """The images of the given splits, in the order of the file.

    Raises:
        CaptionerError: the file is missing or not in this format.
    """
    try:
        images = msgspec.json.decode(path.read_bytes(), type=_File).images
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise CaptionerError(f"{path} is not a file of Karpathy's splits: {error}") from None
    split_of = SPLIT_OF | ({"restval": "train"} if restval == "train" else {})
    named = ((split_of.get(image.split), image) for image in images)
    return [(split, image) for split, image in named if split is not None and split in splits]


@dataclass(frozen=True, kw_only=True)
class CocoKarpathy(MaySkipInvalid):
    """COCO in Karpathy's splits: dataset_coco.json and the pictures of 2014."""

    captions: Path
    """dataset_coco.json."""
    images: Path
    """Folder that contains train2014/ and val2014/."""
    restval: Literal["train", "leave"] = "train"
    """Add the 30,504 pictures of restval to train, as is usual, or leave them out."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of the file. Captions are the raw sentences.

        Raises:
            CaptionerError: the file is missing or not in this format.
        """
        reject_string(splits, "splits")
        return [
            CaptionedImage(
                image_id=image.filename if image.cocoid is None else str(image.cocoid),
                source=picture_in(
                    self.images,
                    f"{image.filepath}/{image.filename}" if image.filepath else image.filename,
                    where=f"{self.captions}, {image.filename}",
                ),
                captions=image.captions,
                split=split,
            )
            for split, image in read_karpathy(self.captions, splits, restval=self.restval)
        ]
