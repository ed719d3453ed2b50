"""Reader of your own captions: a table, or a folder of pictures with captions beside them.

A table has a picture and captions of it in each row (`datasets.tables` has the formats):

    {"image": "photos/1.jpg", "caption": "A dog runs.", "split": "train"}

Several rows may name the same picture. Paths are relative to the file. A folder has one of these:

    metadata.jsonl, metadata.csv     Hugging Face's imagefolder, in the folder or in train/, validation/, ...
    *.tar                            webdataset: 1.jpg, 1.txt, 2.jpg, 2.txt, ...
    *.parquet                        tables with the pictures inside
    1.jpg, 1.txt, 2.jpg, 2.txt, ...  pictures, each with captions beside it, one per line, also in subfolders
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captioner.errors import reject_string
from captioner.images.discovery import walk_files
from captioner.images.formats import has_picture_suffix
from captioner.images.reading import ParquetCell, StoredPicture, TarMember
from captioner.records import CaptionedImage, SplitName

from . import CaptionerError, MaySkipInvalid, decode_text, picture_in, say
from .splitting import split_by_picture
from .tables import ColumnNames, Row, captions_in, read_rows

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

_BESIDE = (".txt", ".caption")
_METADATA = ("metadata.jsonl", "metadata.csv")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class _Found:
    """A picture with captions of it."""

    name: str
    source: StoredPicture
    captions: tuple[str, ...]
    split: str
    """What the row says, if it says a split."""
    place: str
    """The split that the names of its folder, table or archive say, if they do."""
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

    def _splits(self, by_name: Mapping[str, Sequence[_Found]]) -> dict[str, SplitName]:
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
        by_place = {SPLIT_OF[row.place] for row in rows if row.place}
        if num_with_split:
            split_of = {name: SPLIT_OF[found[0].split] for name, found in by_name.items()}
        elif all(row.place for row in rows) and "train" in by_place and len(by_place) > 1:
            split_of = {name: SPLIT_OF[found[0].place] for name, found in by_name.items()}
            say(f"{self.captions}: splits by the names of folders and files")
        else:
            say(f"{self.captions}: random splits (--dev-share, --test-share, --split-seed)")
            return self._random_splits(by_name, test_share=self.test_share)
        if "dev" not in split_of.values():
            say(f"{self.captions}: it has no dev split; random pictures of train are dev (--dev-share)")
            train = [name for name, split in split_of.items() if split == "train"]
            split_of |= self._random_splits(train, test_share=0.0)
        return split_of

    def _random_splits(self, names: Iterable[str], *, test_share: float) -> dict[str, SplitName]:
        names = list(names)
        num_dev, num_test = (round(share * len(names)) for share in (self.dev_share, test_share))
        return split_by_picture(names, num_dev=max(num_dev, 1), num_test=num_test, seed=self.split_seed)

    def _found(self, problems: list[str]) -> Iterator[_Found]:
        """The pictures with captions; invalid rows are added to `problems`. Raises: CaptionerError."""
        path = self.captions
        if not path.exists():
            raise CaptionerError(f"{path} is missing; see --captions")
        if path.is_dir():
            yield from self._in_folder(path, problems)
        elif path.name.lower().endswith(_TAR_SUFFIXES):
            yield from _in_tar(path, problems, below=path.parent)
        else:
            yield from self._in_table(path, problems, below=path.parent)

    def _in_table(self, path: Path, problems: list[str], *, below: Path) -> Iterator[_Found]:
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
            place = _split_of_name(path.name) or _split_of_folders(Path(name))
            yield _Found(name, source, row.captions, row.split, place, row.where)

    def _in_folder(self, folder: Path, problems: list[str]) -> Iterator[_Found]:
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
            say(f"{folder}: {len(archives):,} tar archives, in WebDataset's layout")
            for path in archives:
                yield from _in_tar(path, problems, below=folder)
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
        return f"{row.image.file.name}#{row.image.row_group}.{row.image.row}", row.image
    path = picture_in(folder, row.image, where=row.where)
    return path.relative_to(folder).as_posix(), path


def _split_of_folders(path: Path) -> str:
    """The split that a folder of a picture says, such as train/."""
    return next((name.lower() for name in reversed(path.parts[:-1]) if name.lower() in SPLIT_OF), "")


def _split_of_name(name: str) -> str:
    """The split that the name of a table or an archive says, such as test-00000-of-00001.parquet."""
    return next((word for word in re.split(r"[-_.]", name.lower()) if word in SPLIT_OF), "")


def _beside(folder: Path, files: Sequence[Path], problems: list[str]) -> Iterator[_Found]:
    """Pictures with their captions beside them, one in each line. Raises: CaptionerError."""
    by_name = {(path.parent, path.name.lower()): path for path in files}
    pictures = [path for path in files if has_picture_suffix(path.name)]
    texts = [
        next(
            filter(None, (by_name.get((path.parent, f"{path.stem}{suffix}".lower())) for suffix in _BESIDE)),
            None,
        )
        for path in pictures
    ]
    if not any(texts):
        raise CaptionerError(
            f"{folder} has no captions: neither metadata.jsonl, tar archives, Parquet, nor a .txt beside a "
            "picture; a table is given by its own name, such as --captions DIR/captions.csv"
        )
    unused = {path for path in files if path.suffix.lower() in _BESIDE} - set(texts)
    say(
        f"{folder}: {len(pictures):,} pictures with captions in files beside them; {len(unused):,} other "
        "texts are ignored"
    )
    for path, text in zip(pictures, texts, strict=True):
        name = path.relative_to(folder)
        if text is None:
            problems.append(f"{path}: no {path.stem}.txt with its caption beside it")
            continue
        try:
            captions = _lines(text.read_bytes(), text)
        except (OSError, CaptionerError) as error:
            problems.append(str(error))
            continue
        yield _Found(name.as_posix(), path, captions, "", _split_of_folders(name), str(path))


def _lines(content: bytes, where: object) -> tuple[str, ...]:
    """The captions in a text, one in each line; an empty one if there is none. Raises: CaptionerError."""
    lines = (" ".join(line.split()) for line in decode_text(content, where=where)[0].splitlines())
    return tuple(filter(None, lines)) or ("",)


def _in_tar(path: Path, problems: list[str], *, below: Path) -> Iterator[_Found]:
    """The pictures of an archive in WebDataset's layout: a picture and its caption have one name.

    Raises: CaptionerError, if it is damaged or compressed.
    """
    if path.suffix.lower() != ".tar":
        raise CaptionerError(f"{path} is compressed; unpack it, or store it as an uncompressed .tar")
    pictures: list[tuple[str, TarMember]] = []
    captions: dict[str, tuple[str, ...]] = {}
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                key, suffix = str(name.with_suffix("")), name.suffix.lower()
                if not member.isfile() or name.name.startswith("."):
                    continue
                if has_picture_suffix(name.name):
                    pictures.append((key, TarMember(path, member.name, member.offset_data, member.size)))
                elif suffix in (*_BESIDE, ".json"):
                    stream = archive.extractfile(member)
                    assert stream is not None  # because it is a file
                    found = _caption(stream.read(), f"{path}/{member.name}", is_json=suffix == ".json")
                    if found and (suffix != ".json" or key not in captions):  # .json has other things, too
                        captions[key] = found
            if path.stat().st_size < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("its end is missing")
    except (OSError, tarfile.TarError) as error:
        raise CaptionerError(f"{path} is a damaged or truncated tar archive: {error}") from None
    place = path.relative_to(below)
    split = _split_of_name(path.name) or _split_of_folders(place)
    for key, picture in pictures:
        if key in captions:
            named = f"{place.as_posix()}/{picture.name}"
            yield _Found(named, picture, captions[key], "", split, str(picture))
        else:
            problems.append(f"{picture}: neither a .txt nor a .json of that name has a caption")


def _caption(content: bytes, where: str, *, is_json: bool) -> tuple[str, ...]:
    """The captions in a member, none if it has none. Raises: CaptionerError."""
    if not is_json:
        return _lines(content, where)
    try:
        return captions_in(json.loads(content), where)
    except (ValueError, TypeError, AttributeError, RecursionError, CaptionerError):
        return ()
