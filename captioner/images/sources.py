"""Where a picture's bytes are: a file, a member of an archive, a cell of a table, or memory."""

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from PIL import Image

from captioner.errors import CaptionerError, one_line


def file_fingerprint(path: Path) -> str:
    """What changes with a file, usually: its size and time. Raises: OSError."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A picture inside a zip archive, read without unpacking it."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> Any:  # noqa: ARG002
        """A binary file to read from. Raises: OSError, zipfile.BadZipFile, KeyError (no such member)."""
        return _opened_archive(self.archive, os.getpid()).open(self.name)

    @property
    def size(self) -> int:
        """Bytes of the member, from the archive's index."""
        return _opened_archive(self.archive, os.getpid()).getinfo(self.name).file_size

    @property
    def checksum(self) -> int:
        """CRC-32 of the member's bytes, from the archive's index."""
        return _opened_archive(self.archive, os.getpid()).getinfo(self.name).CRC

    @property
    def fingerprint(self) -> str:
        """What changes with the picture."""
        return f"{self.checksum:08x}"


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture inside an uncompressed tar archive, read without unpacking it."""

    archive: Path
    name: str
    offset: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> Any:
        """A binary file to read from. Raises: OSError."""
        with self.archive.open(mode) as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.num_bytes))

    @property
    def fingerprint(self) -> str:
        """What changes with the picture. Raises: OSError."""
        return f"{file_fingerprint(self.archive)}-{self.offset}"


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """A picture inside a Parquet file, as bytes or as a struct with the field bytes."""

    file: Path
    row_group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.file}#{self.row_group}.{self.row}"

    def open(self, mode: Literal["rb"] = "rb") -> Any:  # noqa: ARG002
        """A binary file to read from. Raises: OSError, CaptionerError."""
        value = _parquet_column(self.file, self.row_group, self.column)[self.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            path = PurePosixPath(value["path"])
            if path.is_absolute() or ".." in path.parts:
                raise CaptionerError(f"the picture {str(path)!r} is not a path inside {self.file.parent}")
            return (self.file.parent / path).open("rb")
        return io.BytesIO(content or b"")

    @property
    def fingerprint(self) -> str:
        """What changes with the picture. Raises: OSError."""
        return f"{file_fingerprint(self.file)}-{self.row_group}-{self.row}"


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """An opened Parquet file.

    Raises: CaptionerError, if it is missing or damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise CaptionerError(f"{path}: Parquet needs pyarrow; install it with: pip install pyarrow") from None
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing") from None
    except (OSError, pa.ArrowException) as error:
        raise CaptionerError(f"{path} is not a valid Parquet file: {one_line(error)}") from None


@lru_cache(maxsize=4)
def _parquet_column(path: Path, row_group: int, column: str) -> Any:
    """A column of a row group; the last few are kept, because pictures are read in order."""
    with parquet_file(path) as file:
        return file.read_row_group(row_group, columns=[column]).column(0)


@lru_cache(maxsize=64)
def _opened_archive(path: Path, process: int) -> zipfile.ZipFile:  # noqa: ARG001
    """An archive stays open, once per process: a fork would share the position in the file."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True, slots=True)
class PictureBytes:
    """A picture in memory, with the name it is reported by."""

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"] = "rb") -> Any:  # noqa: ARG002
        """A binary file to read from."""
        return io.BytesIO(self.content)


@runtime_checkable
class BinaryFile(Protocol):
    """A file that is open for reading in binary mode, or what behaves like one."""

    def read(self) -> bytes: ...


StoredPicture: TypeAlias = Path | ZipMember | TarMember | ParquetCell
"""A picture that can be read repeatedly: a file, or inside one."""

ImageSource: TypeAlias = StoredPicture | PictureBytes
"""Where a picture's bytes are."""


def as_picture(given: Any) -> "ImageSource | Image.Image":
    """What can be read as a picture: a path, bytes, a binary file, a Pillow image or an `ImageSource`.

    Raises:
        TypeError: it is something else; arrays and tensors do not say what their axes and colours are.
    """
    if isinstance(given, Image.Image | ZipMember | TarMember | ParquetCell | PictureBytes):
        return given
    if isinstance(given, str | os.PathLike):
        return Path(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return PictureBytes("picture", bytes(given))
    if hasattr(given, "read"):
        content = given.read()
        if not isinstance(content, bytes):
            raise TypeError("a picture's file must be opened in binary mode: open(path, 'rb')")
        return PictureBytes(str(getattr(given, "name", "picture")), content)
    kind = f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}"
    hint = ""
    if hasattr(given, "shape"):
        hint = "; of an array in RGB, height x width x 3 and uint8, that is Image.fromarray(array)"
        hint += " (OpenCV's are BGR: array[..., ::-1])"
    raise TypeError(f"a picture is a path, bytes, a binary file or a Pillow image, not a {kind}{hint}")
