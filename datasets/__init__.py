"""Readers of data sets on disk, one module per format.

Each reader is a small dataclass: its fields, which are also its flags, say where the data set is, and `read`
gives its records. train.py imports this package as datasets; installed it is called captioner_datasets,
because `datasets` is the name of Hugging Face's package.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from captioner.errors import CaptionerError, abbreviate

_logger = logging.getLogger(__name__)

_NAMED = 10  # rows


@cache
def say(message: str) -> None:
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
            say(f"left out {len(problems):,}: {named}")
        elif len(problems) == 1:
            raise CaptionerError(f"{problems[0]}; --skip-invalid leaves such rows out")
        else:
            raise CaptionerError(
                f"{len(problems):,} rows are not valid: {named}; --skip-invalid leaves them out"
            )


def picture_in(folder: Path, name: str, *, where: str) -> Path:
    """The picture that an annotation names, which must be inside the folder.

    `where` names the annotation in an error. Raises: CaptionerError.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise CaptionerError(f"{where}: the picture {name!r} is not a path inside {folder}")
    return folder / name
