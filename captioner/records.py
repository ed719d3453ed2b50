"""What a picture of a data set with its captions is, and what reads them from disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from captioner.images import StoredPicture

SplitName = Literal["train", "dev", "test"]
"""Training, choosing and testing. What some data sets call val is dev here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """One picture of a data set with its captions, as its annotation file has them."""

    image_id: str
    source: StoredPicture
    captions: tuple[str, ...]
    split: SplitName

    @property
    def file_name(self) -> str:
        """The picture's name without its folder or archive."""
        return str(self.source).rpartition("/")[2]


class RecordReader(Protocol):
    """A data set on disk: where it is, and how its records are read. The package datasets has them."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits. The pictures themselves are not opened."""
        ...
