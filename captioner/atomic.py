"""Files and folders that are replaced whole or not at all."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner.errors import CaptionerError


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` that takes its place once the block has succeeded.

    If the block fails, the old folder stays as it is.

    Raises:
        CaptionerError: the disk is full or refuses.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        new.chmod(0o755)
        try:
            yield new
            publish_folder(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise CaptionerError(f"cannot save {folder}: {error}; what was saved there before is kept") from error


def publish_folder(new: Path, folder: Path) -> None:
    """Flush a folder to disk and rename it to `folder`, in place of what was there. Raises: OSError.

    A folder cannot be renamed over another one, so the old one steps aside first. After a crash between
    the two renames, readers find it with `readable_folder` and the next writer calls `recover_folder`.
    """
    for path in new.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = _aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        recover_folder(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo a replacement that was cut off half-way; only the folder's one writer may call this."""
    old = _aside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def readable_folder(folder: Path) -> Path:
    """The folder to read: itself, or its old version while a replacement is under way or was cut off.

    Changes nothing on disk: the folder may belong to a process that is about to rename it.
    """
    old = _aside(folder)
    return old if old.is_dir() and not folder.exists() else folder


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give the name of a new file beside `path` that takes its place once the block has succeeded.

    If the block fails, the old file stays as it is, and nothing is left behind. Raises: OSError.
    """
    new = path.with_name(f".captioner-{secrets.token_hex(8)}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all. Raises: OSError."""
    with replaced_file(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def folder_lock(folder: Path, *, used_by: str, option: str) -> Iterator[None]:
    """Keep other processes out of a folder until this one ends, in whatever way; creates the folder.

    `used_by` is who else may hold the lock, and `option` the flag that names the folder.

    Raises:
        CaptionerError: another process holds it, or the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CaptionerError(
            f"{used_by} is using {folder}; wait for it, or choose another {option}"
        ) from None
    except OSError as error:
        raise CaptionerError(
            f"cannot write to {folder}: {error.strerror}; choose another {option}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
