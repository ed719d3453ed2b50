"""Captions in files beside the pictures, as trainers of image generators and photo tools read them."""

import os
from functools import lru_cache
from pathlib import Path

from captioner.atomic import replace_text
from captioner.caption import Caption
from captioner.errors import CaptionerError, ImageError, UsageError
from captioner.images.formats import has_picture_suffix


class SidecarWriter:
    """Writes the caption of photo.jpg into photo.txt beside it.

    Raises:
        UsageError: the suffix is none, or that of a picture.
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

    def is_wanted(self, picture: Path) -> bool:
        """Whether the picture has no caption beside it yet, or it is to be replaced."""
        return self.overwrite or not self._path(picture).exists()

    def write(self, caption: Caption) -> None:
        """
        Raises:
            ImageError: another picture would have the same file.
            CaptionerError: the disk refuses.
        """
        picture = Path(caption.file)
        others = [name for name in _same_stem(picture.parent, picture.stem) if name != picture.name]
        if others:
            raise ImageError(
                caption.file, f"{others[0]} would share {self._path(picture).name}; rename one of them"
            )
        try:
            replace_text(self._path(picture), f"{caption.text}\n")
        except OSError as error:
            raise CaptionerError(f"cannot write {self._path(picture)}: {error.strerror}") from error

    def _path(self, picture: Path) -> Path:
        return picture.with_suffix(self.suffix)


@lru_cache(maxsize=8)
def _pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    by_stem: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if has_picture_suffix(name):
            by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    return by_stem


def _same_stem(folder: Path, stem: str) -> list[str]:
    """The pictures of a folder that are called so, whatever their suffix."""
    try:
        return _pictures_by_stem(folder).get(stem, [])
    except OSError:
        return []
