"""Readers of data sets as they are on disk, one file per format; no tensors in here.

Each reader is a small dataclass: its fields say where the data set is, and its `read` gives
`captioner.records.CaptionedImage` records. train.py imports this package as it is. Installed, it goes by
the name captioner_datasets, for `datasets` belongs to the package of Hugging Face.
"""

from pathlib import Path, PurePosixPath

from captioner.errors import CaptionerError


class DatasetError(CaptionerError):
    """A data set that is not as its format says; the message names the file and line."""


def picture_in(folder: Path, name: str, *, where: str) -> Path:
    """The picture that an annotation names, which must lie below the folder.

    `where` says in an error which annotation it is. Raises: DatasetError.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DatasetError(f"{where}: the picture {name!r} is no path below {folder}")
    return folder / name
