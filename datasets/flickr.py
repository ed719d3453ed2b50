"""Flickr8k in its official layout.

    Flickr8k.token.txt           picture#number<TAB>caption, one caption a line
    Flickr_8k.trainImages.txt    the pictures of a split, one a line; also devImages, testImages
    the pictures                 in a folder, or in zip archives that need not be unpacked

Hodosh, Young and Hockenmaier 2013, "Framing Image Description as a Ranking Task".
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from captioner.data import CaptionedImage
from captioner.images import ImageSource
from datasets import DatasetError

TOKEN_FILE = "Flickr8k.token.txt"
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def read_flickr8k(root: Path, splits: Sequence[str] = ("train", "dev")) -> list[CaptionedImage]:
    """Read the records of the given splits, in the order of the split lists.

    Raises:
        DatasetError: a file is missing or not in the official layout, or a listed picture has no
            captions or is not there.
    """
    captions = _read_captions(root / TOKEN_FILE)
    names_of = {split: list(filter(None, _read_lines(root / SPLIT_FILES[split]))) for split in splits}
    sources = _find_pictures(root)
    records = []
    for split, names in names_of.items():
        for name in names:
            if name not in captions:
                raise DatasetError(
                    f"{root / TOKEN_FILE} has no caption of {name}, listed in {SPLIT_FILES[split]}"
                )
            if name not in sources:
                raise DatasetError(
                    f"{name}, listed in {SPLIT_FILES[split]}, is in no folder or zip under {root}"
                )
            records.append(
                CaptionedImage(
                    image_id=name, source=sources[name], captions=tuple(captions[name]), split=split
                )
            )
    _refuse_shared_pictures(names_of)
    return records


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; --root must hold Flickr8k in its official layout") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from None
    return [line.strip() for line in lines]


def _read_captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line:
            continue
        place, tab, caption = line.partition("\t")
        name, mark, _ = place.partition("#")
        if not (tab and mark and caption.strip()):
            raise DatasetError(f"{path}:{number}: expected picture#number<TAB>caption, not {line[:60]!r}")
        captions.setdefault(name, []).append(caption.strip())
    return captions


def _find_pictures(root: Path) -> dict[str, ImageSource]:
    """Pictures by file name, from folders and zip archives under the root; a folder's come first."""
    sources: dict[str, ImageSource] = {}
    for archive in sorted(root.glob("*.zip")):
        try:
            top = zipfile.Path(zipfile.ZipFile(archive))
            names = top.root.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{archive} is not a whole zip archive: {error}") from None
        for name in names:
            if name.lower().endswith(".jpg"):
                sources[name.rpartition("/")[2]] = top / name
    for path in sorted(root.rglob("*.jpg")):
        sources[path.name] = path
    return sources


def _refuse_shared_pictures(names_of: dict[str, list[str]]) -> None:
    split_of: dict[str, str] = {}
    for split, names in names_of.items():
        for name in names:
            if name in split_of:
                raise DatasetError(f"{name} is listed twice, in {split_of[name]} and {split}")
            split_of[name] = split
