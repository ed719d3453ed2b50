"""Records of data sets: captioned pictures, translated sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from captioner.errors import reject_string
from captioner.images.sources import StoredPicture

SplitName = Literal["train", "dev", "test"]
"""Splits for training, for choosing settings, and for testing. What some data sets call val is dev here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """One picture of a data set with its captions, unchanged from the annotation file."""

    image_id: str
    source: StoredPicture
    captions: tuple[str, ...]
    split: SplitName
    dataset: str = ""
    """Name of the data set, where a run has several."""
    weight: float = 1.0
    """How often the picture is seen per epoch of training, on average."""
    instances: Path | None = None
    """COCO annotation file with the objects in the picture."""

    def __post_init__(self) -> None:
        reject_string(self.captions, "captions")

    @property
    def file_name(self) -> str:
        """The picture's name without its folder or archive."""
        return str(self.source).rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslatedSentence:
    """One sentence of a data set with its translations, unchanged from its files."""

    sentence_id: str
    sentence: str
    translations: tuple[str, ...]
    split: SplitName

    def __post_init__(self) -> None:
        reject_string(self.translations, "translations")


@runtime_checkable
class RecordReader(Protocol):
    """Reader of a captioning data set on disk; the package datasets has one per format."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits. The pictures themselves are not opened."""
        ...


@runtime_checkable
class SentenceReader(Protocol):
    """Reader of a translation data set on disk."""

    def read(self, splits: Sequence[SplitName]) -> list[TranslatedSentence]: ...
