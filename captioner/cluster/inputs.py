"""Inputs of a cluster job, split into shards.

An input shard is a tar archive, a row group of a Parquet file, or a number of files from folders. Its
captions are one shard of the output (`captioner.cluster.shards`).
"""

import gzip
import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from captioner.errors import CaptionerError, ImageError, one_line, reject_string
from captioner.images.discovery import HEAD_BYTES, is_own_figure, walk_files
from captioner.images.formats import has_picture_suffix
from captioner.images.prefetch import batches
from captioner.images.sources import ImageSource, PictureBytes

_TAR_SUFFIXES, _PARQUET_SUFFIX = (".tar", ".tar.gz", ".tgz"), ".parquet"
_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content", "path", "file", "file_name")


_DAMAGE = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, EOFError, ValueError),
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowInvalid),
)
"""Errors that mean missing or damaged data: trying again would not help."""


@dataclass(frozen=True, kw_only=True)
class InputShard:
    """A unit of a job: `location` is a tar archive or a Parquet file, or empty if there are `files`.

    `row_group` and `column` belong to a Parquet file. Locations are paths or URIs that pyarrow supports.
    """

    location: str = ""
    row_group: int = 0
    column: str = ""
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the output shard, without suffix: the same for the same input in every run."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:20]

    def pictures(self) -> Iterator[ImageSource | ImageError]:
        """The pictures, in order. What cannot be opened yields an `ImageError` instead of its pictures."""
        if self.files:
            return map(_file, self.files)
        reader = self._tar_members if _has_suffix(self.location, _TAR_SUFFIXES) else self._parquet_rows
        return _translate_errors(self.location, reader())

    def _tar_members(self) -> Iterator[ImageSource]:
        system, path = resolve_filesystem(self.location)
        with (
            system.open_input_stream(path, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictHeader) as archive,
        ):
            for member in archive:
                if member.isfile() and has_picture_suffix(member.name):
                    content = archive.extractfile(member)
                    assert content is not None  # because it is a file
                    yield PictureBytes(f"{self.location}/{member.name}", content.read())

    def _parquet_rows(self) -> Iterator[ImageSource | ImageError]:
        system, path = resolve_filesystem(self.location)
        with pq.ParquetFile(path, filesystem=system) as file:
            before = sum(file.metadata.row_group(group).num_rows for group in range(self.row_group))
            rows = file.iter_batches(64, row_groups=[self.row_group], columns=[self.column])
            values = (value for batch in rows for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, start=before):
                yield _parquet_picture(self.location, number, value)


class _StrictHeader(tarfile.TarInfo):
    """tarfile silently takes a damaged or truncated header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or truncated header: {error}") from error


def _translate_errors(
    location: str, pictures: Iterator[ImageSource | ImageError]
) -> Iterator[ImageSource | ImageError]:
    """The pictures, and an `ImageError` instead of those that are lost to damage.

    Raises: OSError, if the storage does not respond, which may succeed another time.
    """
    try:
        yield from pictures
    except (*_DAMAGE, CaptionerError) as error:
        yield ImageError(location, f"cannot read the rest ({one_line(error)})")


def _parquet_picture(location: str, number: int, value: Any) -> ImageSource | ImageError:
    """A picture given by its bytes, its path, or both as in Hugging Face's datasets. Paths are relative to
    the Parquet file."""
    name = f"{location}#{number}"
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return PictureBytes(name, value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        return PictureBytes(name, value)
    if not isinstance(value, str) or not value:
        return ImageError(name, "the row has no picture")
    is_absolute = "://" in value or value.startswith("/") or "/" not in location
    return _file(value if is_absolute else f"{location.rpartition('/')[0]}/{value}")


def _file(location: str) -> ImageSource | ImageError:
    if "://" not in location:
        return Path(location)
    try:
        system, path = resolve_filesystem(location)
        with system.open_input_stream(path, compression=None) as stream:
            return PictureBytes(location, stream.read())
    except (*_DAMAGE, CaptionerError) as error:
        return ImageError(location, f"cannot fetch it ({one_line(error)})")


def absolute(location: str) -> str:
    """A path made absolute, because workers may run in another folder; a URI unchanged."""
    return location if "://" in location else str(Path(location).absolute())


def resolve_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path on it. Raises: CaptionerError."""
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        system, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CaptionerError(f"cannot open {location}: {one_line(error)}") from error
    return system, path


def find_shards(
    inputs: Sequence[str],
    *,
    is_recursive: bool,
    column: str | None,
    files_per_shard: int,
    done: Iterable[str],
) -> Iterator[InputShard]:
    """The shards of files, folders and URIs; of the pictures in folders, those that are not `done`.

    Raises:
        CaptionerError: an input is missing or contains no pictures, or a Parquet file lacks the column.
    """
    reject_string(inputs, "inputs")
    files = []
    for given in dict.fromkeys(map(absolute, inputs)):
        is_empty = True
        for location in _files_at(given, is_recursive=is_recursive):
            if _has_suffix(location, _TAR_SUFFIXES):
                yield InputShard(location=location)
            elif _has_suffix(location, _PARQUET_SUFFIX):
                yield from _row_groups(location, column)
            elif location == given or (
                has_picture_suffix(location) and not is_own_figure(location, partial(_head, location))
            ):
                files.append(location)
            else:
                continue
            is_empty = False
        if is_empty:
            raise CaptionerError(f"{given}: no pictures, tar archives or Parquet files in this folder")
    known = set(done) if files else set()
    left = (file for file in dict.fromkeys(files) if as_stored(file) not in known)
    for chunk in batches(left, files_per_shard):
        yield InputShard(files=tuple(chunk))


def _has_suffix(location: str, suffixes: str | tuple[str, ...]) -> bool:
    return location.lower().endswith(suffixes)


def _head(location: str) -> bytes:
    """The start of a file, or nothing if it cannot be read: captioning it will name the reason."""
    try:
        system, path = resolve_filesystem(location)
        with system.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read(HEAD_BYTES))
    except (OSError, CaptionerError, pa.ArrowException):
        return b""


def _files_at(given: str, *, is_recursive: bool) -> list[str]:
    system, path = resolve_filesystem(given)
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise CaptionerError(f"{given}: no such file or folder")
        if info.type != fs.FileType.Directory:
            return [given]
        if "://" not in given:
            return _local_files(given, is_recursive=is_recursive)
        found = system.get_file_info(fs.FileSelector(path, recursive=is_recursive))
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise CaptionerError(f"cannot list {given}: {one_line(error)}") from error
    visible = (
        file.path
        for file in found
        if file.type == fs.FileType.File
        and not any(part.startswith(".") for part in Path(file.path).relative_to(path).parts)
    )
    # Host, port and options stay as given.
    uri = urlsplit(given)
    above = uri.path.rstrip("/")
    below = (quote(str(Path(name).relative_to(path))) for name in visible)
    return sorted(urlunsplit(uri._replace(path=f"{above}/{name}")) for name in below)


def _local_files(folder: str, *, is_recursive: bool) -> list[str]:
    """Raises: CaptionerError."""

    def refuse(message: str) -> None:
        raise CaptionerError(message)

    return sorted(map(str, walk_files(folder, is_recursive=is_recursive, report=refuse)))


def _row_groups(location: str, column: str | None) -> Iterator[InputShard]:
    system, path = resolve_filesystem(location)
    try:
        with pq.ParquetFile(path, filesystem=system) as file:
            names, num_groups = file.schema_arrow.names, file.num_row_groups
    except (OSError, pa.ArrowException) as error:
        raise CaptionerError(f"{location} is not a valid Parquet file: {one_line(error)}") from error
    if column is None:
        column = next((name for name in _COLUMNS if name in names), None)
    if column is None or column not in names:
        raise CaptionerError(
            f"{location} has the columns {', '.join(names)}; name the one with pictures with --column"
        )
    for row_group in range(num_groups):
        yield InputShard(location=location, row_group=row_group, column=column)


def as_stored(name: str) -> str:
    """A name as stored in a row: bytes that are not UTF-8 become \\x.., because Parquet's text is UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
