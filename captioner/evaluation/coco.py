"""COCO's JSON formats: annotation files and results.

https://cocodataset.org/#format-data and #format-results. Results are also read as caption.py
writes captions.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from captioner.errors import CaptionerError, abbreviate
from captioner.formats import undo_defusing, unescape_name
from captioner.objects.coco_file import plain_id, read_coco_file, reading

_NAMED = 10  # entries


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of an annotation file. `image_id` is its id as text; a missing `file_name` is empty."""

    image_id: str
    file_name: str
    captions: tuple[str, ...]
    raw_id: Any = None
    """The id as the file has it."""


def read_coco_captions(path: Path) -> list[CocoImage]:
    """The images of an annotation file in their order.

    Raises:
        CaptionerError: the file is missing or not in COCO's format, or has invalid entries, which are named.
    """
    images, problems = read_valid_captions(path)
    if problems:
        raise CaptionerError(f"{len(problems):,} entries are not valid: {abbreviate(problems, _NAMED)}")
    return images


def read_valid_captions(path: Path) -> tuple[list[CocoImage], list[str]]:
    """As `read_coco_captions`, but invalid entries are left out; says what is wrong with each of them."""
    images, annotations, _ = read_coco_file(path, "captions")
    problems: list[str] = []
    captions_of: dict[Any, list[str]] = {}
    names: dict[Any, str] = {}
    raw_ids: dict[Any, Any] = {}
    with reading(path, "captions"):
        for number, image in enumerate(images, start=1):
            image_id, name = image["id"], image.get("file_name")
            if not isinstance(image_id, int | str) or isinstance(image_id, bool):
                problems.append(f"{path}, image number {number}: expected an id, not {image_id!r:.60}")
            elif name is not None and not isinstance(name, str):
                problems.append(f"{path}, image {image_id}: expected text, not {name!r:.60}")
            elif image_id in names:
                problems.append(f"{path} has the same image id twice: {image_id}")
            else:
                names[image_id], captions_of[image_id] = name or "", []
                raw_ids[image_id] = image["raw_id"]
        if annotations and not any("caption" in annotation for annotation in annotations):
            raise CaptionerError(f"{path} has no captions; give a file of captions, not of instances")
        for annotation in annotations:
            image_id, caption = annotation["image_id"], annotation.get("caption")
            if isinstance(image_id, bool) or image_id not in captions_of:
                problems.append(f"{path} has captions of {image_id}, which is not among its images")
            elif not isinstance(caption, str):
                problems.append(f"{path}, image {image_id}: expected text, not {caption!r:.60}")
            else:
                captions_of[image_id].append(caption)
    found = [CocoImage(str(one), name, tuple(captions_of[one]), raw_ids[one]) for one, name in names.items()]
    return found, problems


def read_results(path: Path, images: Sequence[CocoImage]) -> dict[str, str]:
    """Captions by image id from COCO results, or from what caption.py writes: JSON lines, CSV or text.

    A file of caption.py is matched by the pictures' names, where several have one by the end of their paths.
    Of several captions of a picture it has the best first, which counts. A name that the references do not
    have keeps its caption, under that name.

    Raises:
        CaptionerError: the file is missing or in none of the formats, an image of COCO results has two
            captions, or several images have a name.
    """
    try:
        entries = list(_best_first(iter(_decoded_entries(path))))
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise CaptionerError(f"{path} is neither COCO results nor a file of caption.py: {error}") from None
    names = _Names(images)
    captions: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
            raise CaptionerError(f"{where}: expected an object with caption and image_id or file")
        image_id = _image_id(entry, names, where)
        if image_id in captions:
            raise CaptionerError(f"{where}: image {image_id} already has a caption")
        captions[image_id] = entry["caption"]
    return captions


def _best_first(entries: Iterator[Any]) -> Iterator[Any]:
    """The first of the entries of caption.py that follow each other with the same file."""
    last = None
    for entry in entries:
        file = entry.get("file") if isinstance(entry, dict) else None
        if file is None or file != last:
            yield entry
        last = file


def _decoded_entries(path: Path) -> list[Any]:
    """Raises: OSError, ValueError, csv.Error."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    entries = list(_entries(path, content.decode(encoding, "surrogateescape")))  # names may have any bytes
    if any(isinstance(entry, dict) and _has_raw_bytes(entry.get("caption")) for entry in entries):
        entries = list(_entries(path, content.decode("cp1252")))  # as a spreadsheet saves it again
    return entries


def _has_raw_bytes(text: Any) -> bool:
    return isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text)


def _entries(path: Path, text: str) -> Iterator[Any]:
    """Raises: ValueError, csv.Error."""
    start = text.lstrip()[:1]
    if start == "[":
        yield from json.loads(text)
    elif start == "{":
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
    elif path.suffix.lower() == ".csv":
        yield from _csv_entries(text)
    else:
        for line in filter(None, text.split("\n")):
            name, tab, rest = line.partition("\t")
            if not tab:
                raise ValueError(f"expected path<TAB>caption, not {line[:60]!r}")
            yield {"file": unescape_name(name), "caption": rest.partition("\t")[0]}


def _csv_entries(text: str) -> Iterator[Any]:
    """Raises: ValueError, csv.Error."""
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    caption, image = (
        next((columns[name] for name in names if name in columns), None)
        for names in (
            ("caption", "xmp-dc:description", "text"),
            ("file", "sourcefile", "image", "file_name", "image_id"),
        )
    )
    if caption is None or image is None:
        raise ValueError(f"a CSV file needs the columns file and caption, and has {', '.join(columns)}")
    for row in reader:
        if row[image] is None or row[caption] is None or None in row:
            raise ValueError(f"line {reader.line_num} has another number of cells than the header")
        name, text = row[image], row[caption]
        if image == "file":  # our own, in which formulas are defused
            name, text = unescape_name(undo_defusing(name)), undo_defusing(text)
        yield {"image_id" if image.lower() == "image_id" else "file": name, "caption": text}


class _Names:
    """Images by the names of their files."""

    def __init__(self, images: Sequence[CocoImage]) -> None:
        self._by_name: dict[str, list[CocoImage]] = {}
        for image in images:
            self._by_name.setdefault(PurePath(image.file_name).name, []).append(image)

    def find(self, file: str) -> str | None:
        """The id of the image whose path shares the longest ending with this one; None if there is none.

        Raises: CaptionerError, if there are several.
        """
        if PurePath(file).name not in self._by_name:
            file = PureWindowsPath(file).as_posix()
        found = self._by_name.get(PurePath(file).name, [])
        shared = [_shared_end(image.file_name, file) for image in found]
        if shared.count(max(shared, default=0)) > 1:
            raise CaptionerError(f"several images have the file name {PurePath(file).name} in the references")
        return found[shared.index(max(shared))].image_id if found else None


def _shared_end(one: str, other: str) -> int:
    """How many parts two paths have in common at their ends."""
    pairs = zip(reversed(PurePath(one).parts), reversed(PurePath(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _image_id(entry: dict[str, Any], names: _Names, where: str) -> str:
    image_id = plain_id(entry.get("image_id"))
    if isinstance(image_id, int | str) and not isinstance(image_id, bool):
        return str(image_id)
    if not isinstance(entry.get("file"), str):
        raise CaptionerError(f"{where}: neither image_id nor file is given")
    try:
        return names.find(entry["file"]) or entry["file"]
    except CaptionerError as error:
        raise CaptionerError(f"{where}: {error}") from None


def write_results(
    path: Path, captions: Mapping[str, str], *, raw_ids: Mapping[str, Any] | None = None
) -> None:
    """Write captions in the format of COCO's evaluation server, with ids as in `raw_ids`; others become
    numbers if they are.

    Raises:
        CaptionerError: the disk refuses.
    """
    entries = [
        {
            "image_id": (raw_ids or {}).get(image_id, _as_number(image_id)),
            "caption": text,
        }
        for image_id, text in captions.items()
    ]
    try:
        path.write_text(json.dumps(entries), encoding="utf-8")
    except OSError as error:
        raise CaptionerError(f"cannot write {path}: {error.strerror}") from error


def _as_number(image_id: str) -> int | str:
    """An id as COCO writes it; one that would not survive the conversion, such as "007", stays text."""
    is_number = image_id.isascii() and image_id.isdigit() and str(int(image_id)) == image_id
    return int(image_id) if is_number else image_id
