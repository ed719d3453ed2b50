"""COCO's JSON formats: annotation files and results.

https://cocodataset.org/#format-data and #format-results. Results are also read as `caption.py --format
jsonl` writes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError, abbreviate
from captioner.objects.coco_file import read_coco_file, reading

_NAMED = 10  # entries


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of an annotation file. `image_id` is its id as text; a missing `file_name` is empty."""

    image_id: str
    file_name: str
    captions: tuple[str, ...]


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
    with reading(path, "captions"):
        for number, image in enumerate(images, start=1):
            image_id, name = image["id"], image.get("file_name")
            if not isinstance(image_id, int | str) or isinstance(image_id, bool):
                problems.append(f"{path}, image number {number}: expected an id, not {image_id!r:.60}")
            elif name is not None and not isinstance(name, str):
                problems.append(f"{path}, image {image_id}: expected text, not {name!r:.60}")
            elif image_id in names:
                raise CaptionerError(f"{path} has the same image id twice: {image_id}")
            else:
                names[image_id], captions_of[image_id] = name or "", []
        for annotation in annotations:
            image_id, caption = annotation["image_id"], annotation.get("caption")
            if image_id not in captions_of:
                problems.append(f"{path} has captions of {image_id}, which is not among its images")
            elif not isinstance(caption, str):
                problems.append(f"{path}, image {image_id}: expected text, not {caption!r:.60}")
            else:
                captions_of[image_id].append(caption)
    found = [CocoImage(str(one), name, tuple(captions_of[one])) for one, name in names.items()]
    return found, problems


def read_results(path: Path, images: Sequence[CocoImage]) -> dict[str, str]:
    """Captions by image id from COCO results, or from JSON lines of caption.py, matched by file name.

    Raises:
        CaptionerError: the file is missing or in neither format, or an image has two captions.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CaptionerError(f"{path} is neither COCO results nor JSON lines: {error}") from None
    id_of = _ids_by_file_name(images)
    captions: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
            raise CaptionerError(f"{where}: expected an object with caption and image_id or file")
        image_id = _image_id(entry, id_of, where)
        if image_id in captions:
            raise CaptionerError(f"{where}: image {image_id} already has a caption")
        captions[image_id] = entry["caption"]
    return captions


def _ids_by_file_name(images: Sequence[CocoImage]) -> dict[str, str | None]:
    """Image ids by file names without folders; None if two images share one."""
    id_of: dict[str, str | None] = {}
    for image in images:
        name = Path(image.file_name).name
        id_of[name] = None if name in id_of else image.image_id
    return id_of


def _image_id(entry: dict[str, Any], id_of: Mapping[str, str | None], where: str) -> str:
    if isinstance(entry.get("image_id"), int | str):
        return str(entry["image_id"])
    if not isinstance(entry.get("file"), str):
        raise CaptionerError(f"{where}: neither image_id nor file is given")
    name = Path(entry["file"]).name
    image_id = id_of.get(name)
    if image_id is None:
        reason = "several images have" if name in id_of else "no image has"
        raise CaptionerError(f"{where}: {reason} the file name {name} in the references")
    return image_id


def write_results(path: Path, captions: Mapping[str, str]) -> None:
    """Write captions in the format of COCO's evaluation server; numeric ids become numbers.

    Raises:
        CaptionerError: the disk refuses.
    """
    entries = [
        {
            "image_id": _as_number(image_id),
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
