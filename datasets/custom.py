"""Reader of your own captions: a table, or a folder of pictures with captions beside them.

A table has a picture and captions of it in each row (`datasets.tables` has the formats):

    {"image": "photos/1.jpg", "caption": "A dog runs.", "split": "train"}

Several rows may name the same picture. Paths are relative to the file. A folder has one of these:

    metadata.jsonl, metadata.csv     Hugging Face's imagefolder, in the folder or in train/, validation/, ...
    *.tar                            webdataset: 1.jpg, 1.txt, 2.jpg, 2.txt, ...
    *.parquet                        tables with the pictures inside
    1.jpg, 1.txt, 2.jpg, 2.txt, ...  pictures, each with captions beside it, one per line, also in subfolders
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import reject_string
from captioner.images.discovery import walk_files
from captioner.images.sources import ParquetCell, StoredPicture
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, MaySkipInvalid, log_once, picture_in
from .columns import ColumnNames, Row
from .folders import SPLIT_OF, Found, captions_beside, captions_in_tar, split_of_folders, split_of_name
from .splitting import split_by_picture
from .tables import read_rows

_METADATA = ("metadata.jsonl", "metadata.csv")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, kw_only=True)
class CustomCaptions(MaySkipInvalid):
    """Your own captions: a table (JSON lines, JSON, CSV, TSV, Parquet), or a folder with captions in it."""

    captions: Path
    """The table, whose columns are found by their names; or a folder with metadata.jsonl, tar archives, or a
    .txt beside each picture."""
    images: Path | None = None
    """Folder that the paths of pictures are relative to; by default that of the table."""
    image_column: str | None = None
    """Column with pictures, if it is not found."""
    caption_column: str | None = None
    """Column with captions, if it is not found."""
    dev_share: float = 0.05
    """Without a split column: share of the pictures for dev."""
    test_share: float = 0.05
    """Without a split column: share of the pictures for test."""
    split_seed: int = 0
    """Without a split column: seed of the random split."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, in the order of their first rows.

        Raises:
            CaptionerError: the file is missing, or rows are not valid; the message names them.
        """
        reject_string(splits, "splits")
        if not (self.dev_share > 0 and self.test_share >= 0 and self.dev_share + self.test_share < 1):
            raise CaptionerError("--dev-share and --test-share must be positive and leave some for train")
        problems: list[str] = []
        by_name: dict[str, list[Found]] = {}
        for found in self._found(problems):
            problem = _conflict(found, by_name.get(found.name, []))
            if problem:
                problems.append(f"{found.where}: {problem}")
            else:
                by_name.setdefault(found.name, []).append(found)
        self.report(problems)
        split_of = self._splits(by_name)
        return [
            CaptionedImage(
                image_id=name,
                source=rows[0].source,
                captions=tuple(text for row in rows for text in row.captions),
                split=split_of[name],
            )
            for name, rows in by_name.items()
            if split_of[name] in splits
        ]

    def _splits(self, by_name: Mapping[str, Sequence[Found]]) -> dict[str, SplitName]:
        """The split of each picture: by the rows, else by the names of folders and files if they name train
        and another split, else at random. Without dev, some of train is dev.

        Raises: CaptionerError.
        """
        rows = [row for found in by_name.values() for row in found]
        num_with_split = sum(bool(row.split) for row in rows)
        if 0 < num_with_split < len(rows):
            raise CaptionerError(
                f"{self.captions}: {len(rows) - num_with_split} of {len(rows)} rows have no split; "
                "fill in all or none"
            )
        by_place = {SPLIT_OF[row.split_by_place] for row in rows if row.split_by_place}
        if num_with_split:
            split_of = {name: SPLIT_OF[found[0].split] for name, found in by_name.items()}
        elif all(row.split_by_place for row in rows) and "train" in by_place and len(by_place) > 1:
            split_of = {name: SPLIT_OF[found[0].split_by_place] for name, found in by_name.items()}
            log_once(f"{self.captions}: splits by the names of folders and files")
        else:
            log_once(f"{self.captions}: random splits (--dev-share, --test-share, --split-seed)")
            return self._random_splits(by_name, test_share=self.test_share)
        if "dev" not in split_of.values():
            log_once(f"{self.captions}: it has no dev split; random pictures of train are dev (--dev-share)")
            train = [name for name, split in split_of.items() if split == "train"]
            split_of |= self._random_splits(train, test_share=0.0)
        return split_of

    def _random_splits(self, names: Iterable[str], *, test_share: float) -> dict[str, SplitName]:
        names = list(names)
        num_dev, num_test = (round(share * len(names)) for share in (self.dev_share, test_share))
        return split_by_picture(names, num_dev=max(num_dev, 1), num_test=num_test, seed=self.split_seed)

    def _found(self, problems: list[str]) -> Iterator[Found]:
        """The pictures with captions; invalid rows are added to `problems`. Raises: CaptionerError."""
        path = self.captions
        if not path.exists():
            raise CaptionerError(f"{path} is missing; see --captions")
        if path.is_dir():
            yield from self._in_folder(path, problems)
        elif path.name.lower().endswith(_TAR_SUFFIXES):
            yield from captions_in_tar(path, problems, below=path.parent)
        else:
            yield from self._in_table(path, problems, below=path.parent)

    def _in_table(self, path: Path, problems: list[str], *, below: Path) -> Iterator[Found]:
        """The rows of a table, with names relative to the folder `below`."""
        folder = self.images or path.parent
        prefix = path.parent.relative_to(below)
        for row in read_rows(path, ColumnNames(image=self.image_column, caption=self.caption_column)):
            try:
                name, source = _source(row, folder)
            except CaptionerError as error:
                problems.append(str(error))
                continue
            name = (prefix / name).as_posix()
            place = split_of_name(path.name) or split_of_folders(Path(name))
            yield Found(name, source, row.captions, row.split, place, row.where)

    def _in_folder(self, folder: Path, problems: list[str]) -> Iterator[Found]:
        files = list(walk_files(folder))
        tables = [path for path in files if path.name.lower() in _METADATA]
        parquet = [path for path in files if path.suffix.lower() == ".parquet"]
        archives = [path for path in files if path.name.lower().endswith(_TAR_SUFFIXES)]
        doubled = {path.parent for path in tables if sum(path.parent == one.parent for one in tables) > 1}
        if doubled:
            raise CaptionerError(f"{doubled.pop()} has both {' and '.join(_METADATA)}; remove one")
        if tables or parquet:
            for path in tables or parquet:
                yield from self._in_table(path, problems, below=folder)
            return
        if self.images or self.image_column or self.caption_column:
            raise CaptionerError("--images, --image-column and --caption-column need a table as --captions")
        if archives:
            log_once(f"{folder}: {len(archives):,} tar archives, in WebDataset's layout")
            for path in archives:
                yield from captions_in_tar(path, problems, below=folder)
        else:
            yield from captions_beside(folder, files, problems)


def _conflict(found: Found, others: Sequence[Found]) -> str:
    """What is wrong with a row beside other rows of the same picture."""
    if found.split and found.split not in SPLIT_OF:
        return f"the split {found.split!r} must be one of train, dev, val, validation, test"
    for other in others:
        if other.split and found.split and SPLIT_OF[other.split] != SPLIT_OF[found.split]:
            return f"{found.name} is in {SPLIT_OF[other.split]} above and in {found.split} here"
    return ""


def _source(row: Row, folder: Path) -> tuple[str, StoredPicture]:
    """Name and place of a row's picture. Raises: CaptionerError, naming the row."""
    if row.problem:
        raise CaptionerError(f"{row.where}: {row.problem}")
    if isinstance(row.image, ParquetCell):
        return f"{row.image.file.name}#{row.image.row_group}.{row.image.row}", row.image
    path = picture_in(folder, row.image, where=row.where)
    return path.relative_to(folder).as_posix(), path
