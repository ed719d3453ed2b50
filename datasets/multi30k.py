"""Reader of Multi30k's first task, English to German, in its raw files.

Elliott et al. 2016, "Multi30K: Multilingual English-German Image Descriptions".

    train.en, train.de           one sentence per line, and its translation on the same line; also val, test
    train.en.gz, ...             the same, as they are distributed
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import reject_string
from captioner.records import SplitName, TranslatedSentence

from . import CaptionerError

NAME_OF: Mapping[SplitName, str] = {"train": "train", "dev": "val", "test": "test"}
SOURCE, TARGET = "en", "de"


@dataclass(frozen=True, kw_only=True)
class Multi30k:
    """Multi30k: English sentences with German translations, to train a translator."""

    root: Path
    """Folder with train.en, train.de, val.en and val.de, each with or without .gz."""

    def read(self, splits: Sequence[SplitName]) -> list[TranslatedSentence]:
        """The records of the given splits, in the order of their lines.

        Raises:
            CaptionerError: a file is missing or cannot be read, two have different numbers of lines, or
                a line is blank.
        """
        reject_string(splits, "splits")
        records = []
        for split in splits:
            name = NAME_OF[split]
            sentences, translations = (self._lines(f"{name}.{language}") for language in (SOURCE, TARGET))
            if len(sentences) != len(translations):
                raise CaptionerError(
                    f"{self.root}: {name}.{SOURCE} has {len(sentences):,} lines and {name}.{TARGET} "
                    f"{len(translations):,}; each line must have its translation"
                )
            records += [
                TranslatedSentence(
                    sentence_id=f"{name}:{number}", sentence=sentence, translations=(text,), split=split
                )
                for number, (sentence, text) in enumerate(zip(sentences, translations, strict=True), start=1)
            ]
        return records

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        if not path.exists():
            path = self.root / f"{name}.gz"
        try:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        except FileNotFoundError:
            raise CaptionerError(f"{self.root} has neither {name} nor {name}.gz; see --root") from None
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise CaptionerError(f"cannot read {path}: {error}") from None
        lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
        if "" in lines:
            raise CaptionerError(f"{path}:{lines.index('') + 1}: the line is blank")
        return lines
