"""Readers of Flickr8k and Flickr30k in their official layouts.

Flickr8k (Hodosh, Young and Hockenmaier 2013, "Framing Image Description as a Ranking Task"):

    Flickr8k.token.txt           picture#number<TAB>caption, one caption per line
    Flickr_8k.trainImages.txt    the pictures of a split, one per line; also devImages, testImages
    the pictures                 in a folder, or in zip archives, which need not be unpacked

Flickr30k (Young et al. 2014, "From Image Descriptions to Visual Denotations"):

    results_20130124.token       as above
    the pictures                 as above
    train.txt, val.txt, test.txt the splits of Flickr30k Entities, if present: one picture per line,
                                 with or without suffix
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import reject_string
from captioner.images.reading import StoredPicture, ZipMember
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError
from .karpathy import read_karpathy
from .splitting import split_by_picture

FLICKR8K_TOKENS = "Flickr8k.token.txt"
FLICKR8K_LISTS: Mapping[SplitName, str] = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
FLICKR30K_TOKENS = "results_20130124.token"
FLICKR30K_LISTS: Mapping[SplitName, str] = {"train": "train.txt", "dev": "val.txt", "test": "test.txt"}
FLICKR30K_HELD_OUT = 1_000
"""Pictures of dev and of test if there are no split lists: as many as in Flickr30k Entities."""


@dataclass(frozen=True, kw_only=True)
class Flickr8k:
    """Flickr8k in its official layout."""

    root: Path
    """Folder with Flickr8k.token.txt, the split lists, and the pictures in folders or zips."""
    karpathy: Path | None = None
    """dataset_flickr8k.json: use Karpathy's captions and splits instead of the official ones."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of the split lists.

        Raises:
            CaptionerError: a file is missing or not in the official layout, or a listed picture has no
                captions.
        """
        reject_string(splits, "splits")
        if self.karpathy is not None:
            return _karpathy_records(self.root, self.karpathy, splits)
        captions = _read_captions(self.root / FLICKR8K_TOKENS)
        return _records(self.root, captions, _read_lists(self.root, FLICKR8K_LISTS, splits))


@dataclass(frozen=True, kw_only=True)
class Flickr30k:
    """Flickr30k in its official layout, with the splits of Flickr30k Entities or random ones."""

    root: Path
    """Folder with results_20130124.token, the pictures in folders or zips, and optionally the split lists."""
    karpathy: Path | None = None
    """dataset_flickr30k.json: use Karpathy's captions and splits instead."""
    split_seed: int = 0
    """Without split lists: seed of the choice of 1,000 pictures each for dev and test."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits; random ones in the order of the caption file.

        Raises:
            CaptionerError: a file is not in the official layout, or a listed picture has no captions.
        """
        reject_string(splits, "splits")
        if self.karpathy is not None:
            return _karpathy_records(self.root, self.karpathy, splits)
        captions = _read_captions(self.root / FLICKR30K_TOKENS)
        if any((self.root / name).exists() for name in FLICKR30K_LISTS.values()):
            lists = _read_lists(self.root, FLICKR30K_LISTS, splits)
            by_stem = {name.rpartition(".")[0]: name for name in captions}
            names_of = {
                split: [name if name in captions else by_stem.get(name, name) for name in names]
                for split, names in lists.items()
            }
        else:
            held_out = min(FLICKR30K_HELD_OUT, len(captions) // 3)
            split_of = split_by_picture(captions, num_dev=held_out, num_test=held_out, seed=self.split_seed)
            names_of = {split: [name for name in captions if split_of[name] == split] for split in splits}
        return _records(self.root, captions, names_of)


def _records(
    root: Path, captions: Mapping[str, Sequence[str]], names_of: Mapping[SplitName, Sequence[str]]
) -> list[CaptionedImage]:
    sources = _find_pictures(root)
    records = []
    for split, names in names_of.items():
        for name in names:
            if name not in captions:
                raise CaptionerError(f"{root} has no caption of {name}, which its {split} split lists")
            records.append(
                CaptionedImage(
                    image_id=name,
                    source=_find(sources, name, root),
                    captions=tuple(captions[name]),
                    split=split,
                )
            )
    return records


def _karpathy_records(root: Path, path: Path, splits: Sequence[SplitName]) -> list[CaptionedImage]:
    sources = _find_pictures(root)
    return [
        CaptionedImage(
            image_id=image.filename,
            source=_find(sources, image.filename, root),
            captions=image.captions,
            split=split,
        )
        for split, image in read_karpathy(path, splits)
    ]


def _read_lists(
    root: Path, lists: Mapping[SplitName, str], splits: Sequence[SplitName]
) -> dict[SplitName, list[str]]:
    return {split: list(filter(None, _read_lines(root / lists[split]))) for split in splits}


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing; --root must have the official layout") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionerError(f"cannot read {path}: {error}") from None
    return [line.strip() for line in lines]


def _read_captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line:
            continue
        key, tab, caption = line.partition("\t")
        name, mark, _ = key.partition("#")
        if not mark or "/" in name:
            raise CaptionerError(f"{path}:{number}: expected picture#number<TAB>caption, not {line[:60]!r}")
        captions.setdefault(name, []).append(caption.strip() if tab else "")
    return captions


def _find_pictures(root: Path) -> dict[str, StoredPicture]:
    """Pictures by file name, from folders and zip archives inside the root; files take precedence."""
    sources: dict[str, StoredPicture] = {}
    for archive in sorted(path for path in root.glob("*") if path.suffix.lower() == ".zip"):
        try:
            with zipfile.ZipFile(archive) as opened:
                names = opened.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise CaptionerError(f"{archive} is a damaged or truncated zip archive: {error}") from None
        for name in names:
            if is_jpeg(name):
                base = name.rpartition("/")[2]
                sources[base] = sources[base.lower()] = ZipMember(archive, name)
    for path in sorted(root.rglob("*")):
        if is_jpeg(path.name):
            sources[path.name] = sources[path.name.lower()] = path
    return sources


def _find(sources: Mapping[str, StoredPicture], name: str, root: Path) -> StoredPicture:
    """The picture of that name, also if its file is spelled in another case."""
    return sources.get(name) or sources.get(name.lower()) or root / name


def is_jpeg(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg"))
