"""Reader of your own captions: a table, or a folder of pictures with captions beside them.

A table has a picture and captions of it in each row (`datasets.tables` has the formats):

    {"image": "photos/1.jpg", "caption": "A dog runs.", "split": "train"}

Several rows may name the same picture. Paths are relative to the file. A folder has one of these:

    metadata.jsonl, metadata.csv     Hugging Face's imagefolder, in the folder or in train/, validation/, ...
    *.tar                            webdataset: 1.jpg, 1.txt, 2.jpg, 2.txt, ...
    *.parquet                        tables with the pictures inside
    1.jpg, 1.txt, 2.jpg, 2.txt, ...  pictures, each with its caption beside it, also in subfolders
"""

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from captioner.errors import reject_string
from captioner.images.discovery import walk_files
from captioner.images.formats import has_picture_suffix
from captioner.images.reading import ParquetCell, StoredPicture, TarMember
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, MaySkipInvalid, picture_in, say
from .splitting import split_by_picture
from .tables import CAPTION_COLUMNS, ColumnNames, Row, read_rows

SPLIT_OF: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}
"""Values that the column `split` may have, and names of folders and files of a split."""

_CAPTION_SUFFIXES = (".txt", ".caption")


@dataclass(frozen=True)
class _Found:
    """A picture with captions of it."""

    name: str
    source: StoredPicture
    captions: tuple[str, ...]
    split: str
    where: str


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
        by_name: dict[str, list[_Found]] = {}
        num_with_split = num_rows = 0
        for found in self._found(problems):
            problem = _conflict(found, by_name.get(found.name, []))
            if problem:
                problems.append(f"{found.where}: {problem}")
                continue
            by_name.setdefault(found.name, []).append(found)
            num_rows += 1
            num_with_split += bool(found.split)
        self.report(problems)
        if 0 < num_with_split < num_rows:
            raise CaptionerError(
                f"{self.captions}: {num_rows - num_with_split} of {num_rows} rows have no split; "
                "fill in all or none"
            )
        split_of = self._random_splits(by_name)
        if num_with_split:
            split_of = {name: SPLIT_OF[rows[0].split] for name, rows in by_name.items()}
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

    def _random_splits(self, names: Iterable[str]) -> dict[str, SplitName]:
        names = list(names)
        num_dev, num_test = (round(share * len(names)) for share in (self.dev_share, self.test_share))
        return split_by_picture(names, num_dev=max(num_dev, 1), num_test=num_test, seed=self.split_seed)

    def _found(self, problems: list[str]) -> Iterator[_Found]:
        """The pictures with captions; invalid rows are added to `problems`. Raises: CaptionerError."""
        path = self.captions
        if path.is_dir():
            yield from self._in_folder(path, problems)
        elif path.suffix.lower() == ".tar":
            yield from _in_tar(path, problems, prefix="")
        else:
            yield from self._in_table(path, problems)

    def _in_table(self, path: Path, problems: list[str], *, below: Path | None = None) -> Iterator[_Found]:
        """The rows of a table. One in a folder of a data set has names relative to the folder `below`."""
        folder = self.images or path.parent
        split = "" if below is None else _split_of_path(path.relative_to(below))
        prefix = "" if below is None else _prefix(path.parent.relative_to(below))
        for row in read_rows(path, ColumnNames(image=self.image_column, caption=self.caption_column)):
            try:
                name, source = _source(row, folder)
            except CaptionerError as error:
                problems.append(str(error))
                continue
            yield _Found(f"{prefix}{name}", source, row.captions, row.split or split, row.where)

    def _in_folder(self, folder: Path, problems: list[str]) -> Iterator[_Found]:
        files = list(walk_files(folder))
        tables = [path for path in files if path.stem == "metadata" and path.suffix in (".jsonl", ".csv")]
        archives = [path for path in files if path.suffix.lower() == ".tar"]
        parquet = [path for path in files if path.suffix.lower() == ".parquet"]
        if tables or parquet:
            for path in tables or parquet:
                yield from self._in_table(path, problems, below=folder)
        elif archives:
            say(f"{folder}: {len(archives):,} tar archives, in webdataset's layout")
            for path in archives:
                yield from _in_tar(path, problems, prefix=f"{path.relative_to(folder).as_posix()}/")
        else:
            yield from _beside(folder, files, problems)


def _conflict(found: _Found, others: Sequence[_Found]) -> str:
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
        return str(row.image), row.image
    path = picture_in(folder, row.image, where=row.where)
    if "\\" in row.image and not path.exists():  # as Windows writes paths
        path = picture_in(folder, row.image.replace("\\", "/"), where=row.where)
    return row.image, path


def _prefix(folder: Path) -> str:
    return "" if folder == Path() else f"{folder.as_posix()}/"


def _split_of_path(path: Path) -> str:
    """The split that a folder or the start of a file's name says, such as train/ or test-00000-of-00002."""
    names = [*path.parts[:-1], path.name.partition("-")[0].partition("_")[0].partition(".")[0]]
    return next((name.lower() for name in reversed(names) if name.lower() in SPLIT_OF), "")


def _beside(folder: Path, files: Sequence[Path], problems: list[str]) -> Iterator[_Found]:
    """Pictures with their captions beside them."""
    pictures = [path for path in files if has_picture_suffix(path.name)]
    if not pictures:
        raise CaptionerError(f"{folder} has no pictures, tables or tar archives; see --captions")
    say(f"{folder}: {len(pictures):,} pictures with captions in files beside them")
    for path in pictures:
        text = next(
            (beside for suffix in _CAPTION_SUFFIXES if (beside := path.with_suffix(suffix)).is_file()), None
        )
        name = path.relative_to(folder)
        if text is None:
            problems.append(f"{path}: no {path.stem}.txt with its caption beside it")
            continue
        try:
            caption = text.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{text}: cannot be read ({error})")
            continue
        split = _split_of_path(name) if len(name.parts) > 1 else ""
        yield _Found(name.as_posix(), path, (" ".join(caption.split()),), split, str(path))


def _in_tar(path: Path, problems: list[str], *, prefix: str) -> Iterator[_Found]:
    """The pictures of an archive in webdataset's layout: files of one picture have one name before the dot.

    Raises: CaptionerError, if it is missing, damaged or compressed.
    """
    pictures: dict[str, TarMember] = {}
    captions: dict[str, tuple[str, ...]] = {}
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                key = str(name.parent / name.name.partition(".")[0])
                if not member.isfile():
                    continue
                if has_picture_suffix(name.name):
                    pictures[key] = TarMember(path, member.name, member.offset_data, member.size)
                elif name.suffix.lower() in (*_CAPTION_SUFFIXES, ".json"):
                    content = archive.extractfile(member)
                    assert content is not None  # because it is a file
                    captions.setdefault(key, _caption(content.read(), is_json=name.suffix.lower() == ".json"))
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing; see --captions") from None
    except (OSError, tarfile.TarError) as error:
        raise CaptionerError(f"{path} is a damaged or compressed tar archive: {error}") from None
    split = _split_of_path(Path(path.name))
    for key, picture in pictures.items():
        if captions.get(key):
            yield _Found(f"{prefix}{picture.name}", picture, captions[key], split, str(picture))
        else:
            problems.append(f"{picture}: no .txt or .json with its caption beside it")


def _caption(content: bytes, *, is_json: bool) -> tuple[str, ...]:
    text = content.decode("utf-8-sig", errors="replace")
    if not is_json:
        return (" ".join(text.split()),)
    try:
        fields: Any = json.loads(text)
        found = next(fields[name] for name in CAPTION_COLUMNS if name in fields)
    except (ValueError, TypeError, StopIteration, RecursionError):
        return ()
    texts = found if isinstance(found, list) else [found]
    return tuple(one for one in texts if isinstance(one, str))
