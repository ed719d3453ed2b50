"""What a picture of a data set with its captions is, or a sentence with its translations, and what reads them
from disk."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslatedSentence:
    """One sentence of a data set with its translations, as they are written there."""

    sentence_id: str
    sentence: str
    translations: tuple[str, ...]
    split: SplitName


class RecordReader(Protocol):
    """A data set on disk: where it is, and how its records are read. The package datasets has them."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits. The pictures themselves are not opened."""
        ...


class SentenceReader(Protocol):
    """As `RecordReader`, of sentences with their translations."""

    def read(self, splits: Sequence[SplitName]) -> list[TranslatedSentence]: ...
