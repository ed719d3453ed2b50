"""Readers of Flickr8k and Flickr30k in their official layouts and as they are downloaded from Kaggle.

Flickr8k (Hodosh, Young and Hockenmaier 2013, "Framing Image Description as a Ranking Task"):

    Flickr8k.token.txt           picture#number<TAB>caption, one caption per line
    Flickr_8k.trainImages.txt    the pictures of a split, one per line; also devImages, testImages
    the pictures                 in a folder, or in zip archives, which need not be unpacked

Flickr30k (Young et al. 2014, "From Image Descriptions to Visual Denotations"):

    results_20130124.token       as above
    train.txt, val.txt, test.txt the splits of Flickr30k Entities, with or without the pictures' suffix
    the pictures                 as above

From Kaggle:

    captions.txt                 image,caption
    results.csv                  image_name| comment_number| comment

Caption files and split lists lie in the root or in a folder of it. Without split lists, 1,000 random pictures
each are dev and test.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import reject_string
from captioner.images.formats import has_picture_suffix
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, MaySkipInvalid, log_once
from .karpathy import read_karpathy
from .named_pictures import NamedPictures
from .splitting import split_by_picture

FLICKR8K_TOKENS = "Flickr8k.token.txt"
FLICKR8K_LISTS: Mapping[SplitName, str] = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
FLICKR30K_TOKENS = "results_20130124.token"
FLICKR30K_LISTS: Mapping[SplitName, str] = {"train": "train.txt", "dev": "val.txt", "test": "test.txt"}
KAGGLE_CAPTIONS = ("captions.txt", "results.csv")
HELD_OUT = 1_000
"""Pictures of dev and of test if there are no split lists: as many as in the official splits."""

_HEADERS = ("image,caption", "image_name,comment_number,comment", "image_name|comment_number|comment")
# Of Flickr30k's rows on Kaggle, one lacks its second bar.
_BARS = re.compile(r"\s*(?P<name>[^|]+?)\s*\|\s*\d+\s*\|?\s*(?P<caption>.*?)\s*")


@dataclass(frozen=True, kw_only=True)
class Flickr8k(MaySkipInvalid):
    """Flickr8k, in its official layout or from Kaggle."""

    root: Path
    """Folder with Flickr8k.token.txt or captions.txt, the split lists, the pictures in folders or zips."""
    karpathy: Path | None = None
    """dataset_flickr8k.json: use Karpathy's captions and splits instead of the official ones."""
    split_seed: int = 0
    """Without split lists: seed of the choice of 1,000 pictures each for dev and test."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of the split lists; random ones in the order of the
        caption file.

        Raises:
            CaptionerError: a file is missing or in none of the layouts, or a listed picture has no captions.
        """
        reject_string(splits, "splits")
        return _read(self, splits, tokens=FLICKR8K_TOKENS, lists=FLICKR8K_LISTS)


@dataclass(frozen=True, kw_only=True)
class Flickr30k(MaySkipInvalid):
    """Flickr30k, in its official layout or from Kaggle."""

    root: Path
    """Folder with results_20130124.token or results.csv, the pictures in folders or zips, and optionally the
    split lists of Flickr30k Entities."""
    karpathy: Path | None = None
    """dataset_flickr30k.json: use Karpathy's captions and splits instead."""
    split_seed: int = 0
    """Without split lists: seed of the choice of 1,000 pictures each for dev and test."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """As `Flickr8k.read`."""
        reject_string(splits, "splits")
        return _read(self, splits, tokens=FLICKR30K_TOKENS, lists=FLICKR30K_LISTS)


def _read(
    reader: Flickr8k | Flickr30k, splits: Sequence[SplitName], *, tokens: str, lists: Mapping[SplitName, str]
) -> list[CaptionedImage]:
    """Raises: CaptionerError."""
    root = reader.root
    if reader.karpathy is not None:
        return _karpathy_records(root, reader.karpathy, splits)
    names = (tokens, *KAGGLE_CAPTIONS)
    path = next(filter(None, (_find_file(root, name) for name in names)), None)
    if path is None:
        raise CaptionerError(f"{root} has no {' or '.join(names)}; see --root")
    captions, problems = _read_captions(path)
    names_of = _split(root, captions, lists, splits, seed=reader.split_seed)
    records = _records(root, captions, names_of, problems)
    reader.report(problems)
    return records


def _find_file(root: Path, name: str) -> Path | None:
    """A file of the root, or of a folder of it."""
    return next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()), None)


def _split(
    root: Path,
    captions: Mapping[str, Sequence[str]],
    lists: Mapping[SplitName, str],
    splits: Sequence[SplitName],
    *,
    seed: int,
) -> dict[SplitName, list[str]]:
    """The pictures of each split, by the lists if there are any. Raises: CaptionerError."""
    found = {split: _find_file(root, name) for split, name in lists.items()}
    if not any(found.values()):
        held_out = min(HELD_OUT, len(captions) // 3)
        log_once(
            f"{root} has no split lists: {held_out:,} random pictures each are dev and test (--split-seed)"
        )
        split_of = split_by_picture(captions, num_dev=held_out, num_test=held_out, seed=seed)
        return {split: [name for name in captions if split_of[name] == split] for split in splits}
    by_stem = {name.rpartition(".")[0]: name for name in captions}
    return {
        split: [
            name if name in captions else by_stem.get(name, name)
            for name in _read_lines(found[split] or root / lists[split])
            if name
        ]
        for split in splits
    }


def _records(
    root: Path,
    captions: Mapping[str, Sequence[str]],
    names_of: Mapping[SplitName, Sequence[str]],
    problems: list[str],
) -> list[CaptionedImage]:
    """The listed pictures that have captions; the others are added to `problems`."""
    pictures = NamedPictures(root)
    records = []
    for split, names in names_of.items():
        for name in names:
            if name not in captions:
                problems.append(f"{root} has no caption of {name}, which its {split} split lists")
                continue
            records.append(
                CaptionedImage(
                    image_id=name,
                    source=pictures.find(name),
                    captions=tuple(captions[name]),
                    split=split,
                )
            )
    return records


def _karpathy_records(root: Path, path: Path, splits: Sequence[SplitName]) -> list[CaptionedImage]:
    pictures = NamedPictures(root)
    return [
        CaptionedImage(
            image_id=image.filename,
            source=pictures.find(image.filename),
            captions=image.captions,
            split=split,
        )
        for split, image in read_karpathy(path, splits)
    ]


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing; --root must have the official layout") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionerError(f"cannot read {path}: {error}") from None
    return [line.strip() for line in lines]


def _read_captions(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of each picture, in the order of the file, and the lines that are not valid.

    Raises: CaptionerError.
    """
    captions: dict[str, list[str]] = {}
    problems: list[str] = []
    lines = _read_lines(path)
    first = next(filter(None, lines), "")
    has_header = first.replace(" ", "").lower() in _HEADERS
    parse = _parse_token
    if has_header or (path.name in KAGGLE_CAPTIONS and _parse_token(first) is None):
        parse = _parse_bars if "|" in first else _parse_commas
        log_once(f"{path}: captions in Kaggle's layout, {first if has_header else 'without its header'}")
    for number, line in enumerate(lines, start=1):
        if not line or (has_header and line == first):
            continue
        parsed = parse(line)
        if parsed is None:
            layout = {_parse_token: "picture#number<TAB>caption", _parse_bars: "image_name| number| comment"}
            expected = layout.get(parse, "image,caption")
            problems.append(f"{path}:{number}: expected {expected}, not {line[:60]!r}")
        else:
            captions.setdefault(parsed[0], []).append(parsed[1])
    return captions, problems


def _parse_token(line: str) -> tuple[str, str] | None:
    key, tab, caption = line.partition("\t")
    name, mark, _ = key.partition("#")
    return (name, caption.strip() if tab else "") if mark and "/" not in name else None


def _parse_bars(line: str) -> tuple[str, str] | None:
    match = _BARS.fullmatch(line)
    return None if match is None else (match["name"], match["caption"])


def _parse_commas(line: str) -> tuple[str, str] | None:
    """image,caption or image_name,comment_number,comment; not every caption with commas is in quotes."""
    try:
        name, *cells = next(csv.reader([line]))
    except (csv.Error, StopIteration):
        return None
    if len(cells) > 1 and cells[0].strip().isdigit():
        del cells[0]
    return (name.strip(), ",".join(cells).strip()) if cells and has_picture_suffix(name.strip()) else None
