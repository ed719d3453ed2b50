"""Captions in folders and archives: beside each picture, and in WebDataset's layout."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captioner.images.formats import has_picture_suffix
from captioner.images.sources import StoredPicture, TarMember
from captioner.records import SplitName

from . import CaptionerError, decode_text, log_once
from .columns import captions_in

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


@dataclass(frozen=True)
class Found:
    """A picture with captions of it."""

    name: str
    source: StoredPicture
    captions: tuple[str, ...]
    split: str
    """What the row says, if it says a split."""
    split_by_place: str
    """The split that the names of its folder, table or archive say, if they do."""
    where: str


def split_of_folders(path: Path) -> str:
    """The split that a folder of a picture says, such as train/."""
    return next((name.lower() for name in reversed(path.parts[:-1]) if name.lower() in SPLIT_OF), "")


def split_of_name(name: str) -> str:
    """The split that the name of a table or an archive says, such as test-00000-of-00001.parquet."""
    return next((word for word in re.split(r"[-_.]", name.lower()) if word in SPLIT_OF), "")


def captions_beside(folder: Path, files: Sequence[Path], problems: list[str]) -> Iterator[Found]:
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
    log_once(
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
        yield Found(name.as_posix(), path, captions, "", split_of_folders(name), str(path))


def _lines(content: bytes, where: object) -> tuple[str, ...]:
    """The captions in a text, one in each line; an empty one if there is none. Raises: CaptionerError."""
    lines = (" ".join(line.split()) for line in decode_text(content, where=where)[0].splitlines())
    return tuple(filter(None, lines)) or ("",)


def captions_in_tar(path: Path, problems: list[str], *, below: Path) -> Iterator[Found]:
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
    split = split_of_name(path.name) or split_of_folders(place)
    for key, picture in pictures:
        if key in captions:
            named = f"{place.as_posix()}/{picture.name}"
            yield Found(named, picture, captions[key], "", split, str(picture))
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
