"""Pictures by file name, wherever they lie below a root."""

import filecmp
import zipfile
from pathlib import Path

from captioner.errors import abbreviate
from captioner.images.discovery import walk_files
from captioner.images.formats import has_picture_suffix
from captioner.images.sources import StoredPicture, ZipMember

from . import CaptionerError


class NamedPictures:
    """The pictures inside a root by file name, in folders and in zip archives.

    A file may be an unpacked member of an archive.
    """

    def __init__(self, root: Path) -> None:
        """Raises: CaptionerError, if an archive is damaged."""
        self._root = root
        self._by_name: dict[str, list[Path | ZipMember]] = {}
        archives = []
        for path in walk_files(root):
            if path.suffix.lower() == ".zip" and path.parent == root:
                archives.append(path)
            elif has_picture_suffix(path.name):
                self._add(path.name, path)
        for archive in archives:
            for name in _members(archive):
                self._add(name.rpartition("/")[2], ZipMember(archive, name))
        self._name_of_lower = {name.lower(): name for name in self._by_name}

    def _add(self, name: str, picture: Path | ZipMember) -> None:
        known = self._by_name.setdefault(name, [])
        if not any(_are_copies(picture, other) for other in known):
            known.append(picture)

    def find(self, name: str) -> StoredPicture:
        """The picture of that name, also if its file is spelled in another case.

        Raises: CaptionerError, if there are several different ones.
        """
        found = self._by_name.get(name) or self._by_name.get(self._name_of_lower.get(name.lower(), ""))
        if not found:
            return self._root / name  # which the checks of a data set report as missing
        if len(found) > 1:
            raise CaptionerError(
                f"{len(found)} different pictures are called {name}: "
                f"{abbreviate([str(one) for one in found])}; move all but one out of {self._root}"
            )
        return found[0]


def _members(archive: Path) -> list[str]:
    """The names of an archive's pictures. Raises: CaptionerError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise CaptionerError(f"{archive} is a damaged or truncated zip archive: {error}") from None
    hidden = (".", "__MACOSX")  # a Mac's archives have a second entry for each file
    return [
        name
        for name in names
        if has_picture_suffix(name) and not any(part.startswith(hidden) for part in name.split("/"))
    ]


def _are_copies(first: Path | ZipMember, second: Path | ZipMember) -> bool:
    """Whether two pictures of one name have the same content; of a file and a member of an archive, the same
    size, because reading them all would take minutes."""
    if isinstance(first, Path) and isinstance(second, Path):
        try:
            return filecmp.cmp(first, second, shallow=False)
        except OSError:  # reading it will name the reason
            return False
    if isinstance(first, ZipMember) and isinstance(second, ZipMember):
        return first.checksum == second.checksum
    try:
        sizes = {one.stat().st_size if isinstance(one, Path) else one.size for one in (first, second)}
    except OSError:
        return False
    return len(sizes) == 1
