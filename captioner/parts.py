"""Where the pictures of a large job are, cut into parts.

A part is a tar archive, a row group of a Parquet file, or so many files of folders. Its captions are one
shard of the output (`captioner.shards`).
"""

import gzip
import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from captioner.errors import CaptionerError
from captioner.images import ImageError, ImageSource, PictureBytes
from captioner.loading import batches
from captioner.paths import has_picture_suffix, is_our_figure

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content", "path", "file", "file_name")


class InputError(CaptionerError):
    """An input that cannot be listed or holds no pictures, or an output that cannot be used."""


_DAMAGE = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, EOFError, ValueError),
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowInvalid),
)
"""What is raised of what is not there or damaged, now and at any other time."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is captioned as one: `location` is a tar archive or a Parquet file, or nothing where `files` are.

    `row_group` and `column` are of a Parquet file. Places are paths or URIs that pyarrow knows.
    """

    location: str = ""
    row_group: int = 0
    column: str = ""
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the shard, without its ending: the same for the same part in every run."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:20]

    def pictures(self) -> Iterator[ImageSource | ImageError]:
        """The pictures, in order. What cannot be opened gives an `ImageError` in place of its pictures."""
        if self.files:
            return map(_file, self.files)
        reader = self._tar_members if self.location.endswith(_TAR_SUFFIXES) else self._parquet_rows
        return _told(self.location, reader())

    def _tar_members(self) -> Iterator[ImageSource]:
        system, path = place(self.location)
        with (
            system.open_input_stream(path, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictHeader) as archive,
        ):
            for member in archive:
                if member.isfile() and has_picture_suffix(member.name):
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    yield PictureBytes(f"{self.location}/{member.name}", content.read())

    def _parquet_rows(self) -> Iterator[ImageSource | ImageError]:
        system, path = place(self.location)
        with pq.ParquetFile(path, filesystem=system) as file:
            before = sum(file.metadata.row_group(group).num_rows for group in range(self.row_group))
            rows = file.iter_batches(64, row_groups=[self.row_group], columns=[self.column])
            values = (value for batch in rows for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, start=before):
                yield _parquet_picture(self.location, number, value)


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a header that is cut off or damaged for the end of the archive, and says nothing."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged: {error}") from error


def _told(location: str, pictures: Iterator[ImageSource | ImageError]) -> Iterator[ImageSource | ImageError]:
    """The pictures, and an `ImageError` in the place of those that are lost to damage.

    Raises: OSError, where what holds them does not answer, which another time it may.
    """
    try:
        yield from pictures
    except (*_DAMAGE, InputError) as error:
        yield ImageError(location, f"cannot be read on ({in_a_line(error)})")


def _parquet_picture(location: str, number: int, value: Any) -> ImageSource | ImageError:
    """A picture's bytes, its path, or both as Hugging Face's datasets store an image. Paths are from where
    the Parquet file is."""
    name = f"{location}#{number}"
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return PictureBytes(name, value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        return PictureBytes(name, value)
    if not isinstance(value, str) or not value:
        return ImageError(name, "has no picture")
    is_whole = "://" in value or value.startswith("/") or "/" not in location
    return _file(value if is_whole else f"{location.rpartition('/')[0]}/{value}")


def _file(location: str) -> ImageSource | ImageError:
    if "://" not in location:
        return Path(location)
    try:
        system, path = place(location)
        with system.open_input_stream(path, compression=None) as stream:
            return PictureBytes(location, stream.read())
    except (*_DAMAGE, InputError) as error:
        return ImageError(location, f"cannot be fetched ({in_a_line(error)})")


def in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def whole(location: str) -> str:
    """A path from the root on, for who works at it may be in another folder; a URI as it is."""
    return location if "://" in location else str(Path(location).absolute())


def place(location: str) -> tuple[fs.FileSystem, str]:
    """The file system that a path or URI is on, and its path there. Raises: InputError."""
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        system, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{location} cannot be come by: {in_a_line(error)}") from error
    return system, path


def find_parts(
    inputs: Sequence[str], *, is_recursive: bool, column: str | None, files_a_part: int, done: Iterable[str]
) -> Iterator[Part]:
    """The parts that files, folders and URIs consist of; of the pictures in folders, those not `done`.

    Raises:
        InputError: one of them is not there or holds nothing, or a Parquet file lacks the column.
    """
    files = []
    for given in dict.fromkeys(map(whole, inputs)):
        is_empty = True
        for location in _files_at(given, is_recursive=is_recursive):
            if location.endswith(_TAR_SUFFIXES):
                yield Part(location=location)
            elif location.endswith(".parquet"):
                yield from _row_groups(location, column)
            elif location == given or (has_picture_suffix(location) and not is_our_figure(location)):
                files.append(location)
            else:
                continue
            is_empty = False
        if is_empty:
            raise InputError(f"{given}: no pictures, tar archives or Parquet files in this folder")
    known = set(done) if files else set()
    left = (file for file in dict.fromkeys(files) if as_stored(file) not in known)
    for chunk in batches(left, files_a_part):
        yield Part(files=tuple(chunk))


def _files_at(given: str, *, is_recursive: bool) -> list[str]:
    system, path = place(given)
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise InputError(f"{given}: no such file or folder")
        if info.type != fs.FileType.Directory:
            return [given]
        found = system.get_file_info(fs.FileSelector(path, recursive=is_recursive))
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise InputError(f"{given} cannot be listed: {in_a_line(error)}") from error
    visible = (
        file.path
        for file in found
        if file.type == fs.FileType.File
        and not any(part.startswith(".") for part in Path(file.path).relative_to(path).parts)
    )
    if "://" not in given:
        return sorted(visible)
    # Host, port and options stay as they were given.
    uri = urlsplit(given)
    above = uri.path.rstrip("/")
    below = (quote(str(Path(name).relative_to(path))) for name in visible)
    return sorted(urlunsplit(uri._replace(path=f"{above}/{name}")) for name in below)


def _row_groups(location: str, column: str | None) -> Iterator[Part]:
    system, path = place(location)
    try:
        with pq.ParquetFile(path, filesystem=system) as file:
            names, num_groups = file.schema_arrow.names, file.num_row_groups
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location} is no sound Parquet file: {in_a_line(error)}") from error
    if column is None:
        column = next((name for name in _COLUMNS if name in names), None)
    if column is None or column not in names:
        raise InputError(f"{location} has the columns {', '.join(names)}; say --column NAME, of the pictures")
    for row_group in range(num_groups):
        yield Part(location=location, row_group=row_group, column=column)


def as_stored(name: str) -> str:
    """A name as a row has it: what is not UTF-8 comes as \\x.., for Parquet's text is UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
