"""Reader of your own captions in JSON lines or CSV.

Each row is a caption, with `image`, `caption` and optionally `split`:

    {"image": "photos/1.jpg", "caption": "A dog runs.", "split": "train"}

Several rows may name the same picture. Paths are relative to the file.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import reject_string
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, picture_in
from .splitting import split_by_picture

SPLIT_OF: dict[str, SplitName] = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}
"""Values that the column `split` may have."""


@dataclass(frozen=True, kw_only=True)
class CustomCaptions:
    """Your own captions: a .jsonl or .csv file with image, caption and maybe split, one row per caption."""

    captions: Path
    """The file; paths of pictures are relative to it."""
    dev_share: float = 0.05
    """Without a split column: share of the pictures for dev."""
    test_share: float = 0.05
    """Without a split column: share of the pictures for test."""
    split_seed: int = 0
    """Without a split column: seed of the random split."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of their first rows.

        Raises:
            CaptionerError: the file is missing, or a row is malformed; the message names it.
        """
        reject_string(splits, "splits")
        if not (self.dev_share > 0 and self.test_share >= 0 and self.dev_share + self.test_share < 1):
            raise CaptionerError("--dev-share and --test-share must be positive and leave some for train")
        captions: dict[str, list[str]] = {}
        split_of: dict[str, SplitName] = {}
        num_with_split = num_rows = 0
        for number, row in _rows(self.captions):
            where = f"{self.captions}:{number}"
            name, caption, split = (_text(row, column, where) for column in ("image", "caption", "split"))
            if name is None or caption is None:
                raise CaptionerError(f"{where}: a row needs image and caption")
            captions.setdefault(name, []).append(caption)
            num_rows += 1
            if split:
                num_with_split += 1
                if split not in SPLIT_OF:
                    raise CaptionerError(f"{where}: the split {split!r} must be one of {', '.join(SPLIT_OF)}")
                if split_of.setdefault(name, SPLIT_OF[split]) != SPLIT_OF[split]:
                    raise CaptionerError(f"{where}: {name} is in {split_of[name]} above and in {split} here")
        if 0 < num_with_split < num_rows:
            raise CaptionerError(
                f"{self.captions}: {num_rows - num_with_split} of {num_rows} rows have no split; "
                "fill in all or none"
            )
        if not num_with_split:
            num_dev, num_test = (round(share * len(captions)) for share in (self.dev_share, self.test_share))
            split_of = split_by_picture(
                captions, num_dev=max(num_dev, 1), num_test=num_test, seed=self.split_seed
            )
        folder = self.captions.parent
        return [
            CaptionedImage(
                image_id=name,
                source=picture_in(folder, name, where=str(self.captions)),
                captions=tuple(texts),
                split=split_of[name],
            )
            for name, texts in captions.items()
            if split_of[name] in splits
        ]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its line number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    if None in row:
                        raise CaptionerError(
                            f"{path}:{reader.line_num}: more cells than columns; "
                            "quote captions that contain commas"
                        )
                    yield reader.line_num, row
                return
            if path.suffix.lower() != ".jsonl":
                raise CaptionerError(f"{path} must end in .jsonl or .csv")
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing; see --captions") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CaptionerError(f"cannot read {path}: {error}") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise CaptionerError(f"{where}: expected an object with image and caption, not {line.strip()[:60]}")
    return row


def _text(row: dict[str, Any], column: str, where: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise CaptionerError(f"{where}: {column} must be text, not {value!r:.60}")
    return value
