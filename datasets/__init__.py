"""Readers of data sets on disk, one module per format.

Each reader is a small dataclass: its fields, which are also its flags, say where the data set is, and `read`
gives its records. train.py imports this package as datasets; installed it is called captioner_datasets,
because `datasets` is the name of Hugging Face's package.
"""

import codecs
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from captioner.errors import CaptionerError, abbreviate

_logger = logging.getLogger(__name__)

_NAMED = 10  # rows


@cache
def log_once(message: str) -> None:
    """Log what a reader took a file for, once, however many splits are read from it."""
    _logger.info("%s", message)


@dataclass(frozen=True, kw_only=True)
class MaySkipInvalid:
    """What all readers of captioned pictures have in common."""

    skip_invalid: bool = False
    """Leave out invalid rows and pictures that cannot be read, which are counted and named, instead of
    refusing the data set."""

    def report(self, problems: Sequence[str]) -> None:
        """Refuse invalid rows, all at once, or name those that are left out. Raises: CaptionerError."""
        if not problems:
            return
        named = abbreviate(problems, _NAMED)
        if self.skip_invalid:
            log_once(f"left out {len(problems):,}: {named}")
        elif len(problems) == 1:
            raise CaptionerError(f"{problems[0]}; --skip-invalid leaves such rows out")
        else:
            raise CaptionerError(
                f"{len(problems):,} rows are not valid: {named}; --skip-invalid leaves them out"
            )


def picture_in(folder: Path, name: str, *, where: str) -> Path:
    """The picture that an annotation names, which must be inside the folder; Windows' backslashes are taken.

    `where` names the annotation in an error. Raises: CaptionerError.
    """
    if _URL.match(name):
        raise CaptionerError(f"{where}: URLs are not fetched: download {name[:60]} first")
    path = PurePosixPath(name)
    if "\\" in name and not (folder / name).exists():
        path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise CaptionerError(f"{where}: the picture {name!r} is not a path inside {folder}")
    return folder / path


_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def decode_text(content: bytes, *, where: object) -> tuple[str, str]:
    """A text that people have typed, and its encoding unless that is UTF-8.

    Text with few bytes beyond ASCII that is not UTF-8 is Windows-1252, as European spreadsheets write it.

    Raises:
        CaptionerError: it is in another encoding, or no text.
    """
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        if b"\0" in content and encoding != "utf-16":
            raise CaptionerError(f"cannot read {where}: it is not text in UTF-8; save it as UTF-8")
        return content.decode(encoding), "" if encoding == "utf-8-sig" else f", {encoding}"
    except UnicodeDecodeError:
        num_foreign = len(content) - len(content.decode("ascii", "ignore"))
        if num_foreign <= _MOST_FOREIGN * len(content):
            with suppress(UnicodeDecodeError):
                return content.decode("cp1252"), ", Windows-1252"
    raise CaptionerError(f"cannot read {where}: it is not text in UTF-8; save it as UTF-8")


_MOST_FOREIGN = 0.15  # of the bytes; in the encodings of Chinese and Japanese it is most of them
