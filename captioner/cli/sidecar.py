"""Captions in files beside the pictures, as trainers of image generators and photo tools read them."""

import errno
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from captioner.atomic import replace_text
from captioner.caption import Caption
from captioner.errors import CaptionerError, ImageError, UsageError
from captioner.images.formats import has_picture_suffix, is_raw


class SidecarWriter:
    """Writes the caption of photo.jpg into photo.txt beside it.

    Raises:
        UsageError: the suffix is not valid, or belongs to a picture format.
    """

    def __init__(self, suffix: str, *, overwrite: bool) -> None:
        if (
            len(suffix) < 2
            or not suffix.startswith(".")
            or os.sep in suffix
            or has_picture_suffix(f"x{suffix}")
        ):
            raise UsageError(f"--sidecar {suffix} must be a suffix such as .txt, and not that of a picture")
        self.suffix, self.overwrite = suffix, overwrite
        self._picture_of: dict[Path, Path] = {}
        self._num_skipped = 0

    def is_wanted(self, picture: Path, report: Callable[[str], None]) -> bool:
        """Whether the picture is to be captioned: it has no caption beside it, or that is to be replaced. One
        that would share its file with another is reported."""
        if is_raw(picture.name):
            return True  # reading it reports it
        try:
            path = picture.with_suffix(self.suffix)
            exists = path.exists()
        except (OSError, ValueError):
            return True  # reading it will name the reason
        others = [name for name in _same_stem(picture.parent, picture.stem) if name != picture.name]
        first = self._picture_of.setdefault(path, picture)
        if path == picture:
            report(f"{picture}: a file of that suffix cannot have a sidecar; choose another --sidecar")
        elif others or first != picture:
            report(f"{picture}: {others[0] if others else first} would share {path.name}; rename one of them")
        elif exists and not self.overwrite:
            self._num_skipped += 1
        else:
            return True
        return False

    def summary(self) -> str | None:
        """What is to be said at the end."""
        if not self._num_skipped:
            return None
        skipped = f"{self._num_skipped:,} pictures that have a {self.suffix} were skipped"
        return f"{skipped}; --overwrite captions them again"

    def write(self, caption: Caption) -> None:
        """
        Raises:
            ImageError: the file cannot be written here.
            CaptionerError: the disk refuses any file.
        """
        path = Path(caption.file).with_suffix(self.suffix)
        try:
            replace_text(path, f"{caption.text}\n")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise CaptionerError(f"cannot write {path}: {error.strerror}") from error
            raise ImageError(caption.file, f"cannot write {path.name} beside it: {error.strerror}") from error


@lru_cache(maxsize=8)
def _pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    by_stem: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if has_picture_suffix(name) and not is_raw(name):  # which many cameras store beside a JPEG
            by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    return by_stem


def _same_stem(folder: Path, stem: str) -> list[str]:
    """The pictures of a folder that are called so, whatever their suffix."""
    try:
        return _pictures_by_stem(folder).get(stem, [])
    except OSError:
        return []
