"""Readers of data sets on disk, one module per format.

Each reader is a small dataclass: its fields, which are also its flags, say where the data set is, and `read`
gives its records. train.py imports this package as datasets; installed it is called captioner_datasets,
because `datasets` is the name of Hugging Face's package.
"""

from pathlib import Path, PurePosixPath

from captioner.errors import CaptionerError


def picture_in(folder: Path, name: str, *, where: str) -> Path:
    """The picture that an annotation names, which must be inside the folder.

    `where` names the annotation in an error. Raises: CaptionerError.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise CaptionerError(f"{where}: the picture {name!r} is not a path inside {folder}")
    return folder / name
