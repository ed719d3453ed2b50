"""Annotated objects in pictures, from files in COCO's format: masks or boxes, by people or a detector."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from jaxtyping import Bool

from captioner.errors import CaptionerError, abbreviate
from captioner.objects.coco_file import by_file_name, open_coco, reading

_CONTENT = "instances"
Masks = Mapping[str, Bool[np.ndarray, "height width"]]

_Side = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Length = Annotated[float, msgspec.Meta(ge=0, le=100_000)]
_Coordinate = Annotated[float, msgspec.Meta(ge=-100_000, le=100_000)]


class _Picture(msgspec.Struct):
    file_name: str
    width: _Side
    height: _Side


class _EncodedMask(msgspec.Struct):
    """COCO's run-length encoding, compressed (text) or not."""

    size: tuple[int, int]
    counts: str | list[int]


_Polygon = Annotated[list[_Coordinate], msgspec.Meta(min_length=6)]


class _Annotation(msgspec.Struct):
    """What is used of an annotation; the rest is ignored."""

    category_id: int
    bbox: tuple[_Coordinate, _Coordinate, _Length, _Length] | None = None
    segmentation: list[_Polygon] | _EncodedMask | None = None
    score: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


@dataclass(frozen=True)
class Instance:
    """An object in a picture: its category, its mask in COCO's compressed run-length encoding, and how sure
    the detector was of it, in [0, 1]; people's annotations have 1."""

    category: str
    encoded_mask: dict[str, Any]
    score: float

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        return _decoded(self.encoded_mask)

    @property
    def area_px(self) -> int:
        from pycocotools.mask import area

        return int(area(self.encoded_mask))


class Instances:
    """The instance annotations of a file, by the pictures' file names without folders.

    An annotation without `segmentation` is its box. Coordinates are those of the upright picture, whose size
    the file states; the picture itself may be scaled.

    Raises:
        CaptionerError: the file is missing, or not in COCO's format with instances.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._coco = open_coco(path, _CONTENT)
        with reading(path, _CONTENT):
            self._category: dict[int, str] = {
                number: msgspec.convert(entry["name"], str) for number, entry in self._coco.cats.items()
            }
            pictures = {number: msgspec.convert(entry, _Picture) for number, entry in self._coco.imgs.items()}
        named = ((picture.file_name, (number, picture)) for number, picture in pictures.items())
        self._picture = by_file_name(path, named)

    def __contains__(self, file_name: str) -> bool:
        return file_name in self._picture

    def check_pictures(self, file_names: Sequence[str], *, may_lack_some: bool = False) -> int:
        """Check that pictures can be matched with the file; returns how many of them it lists.

        Raises: CaptionerError, naming the pictures that have no name of their own, or that the file lacks.
        """
        if "" in file_names:
            raise CaptionerError(
                f"{self.path} is matched by file names, which {file_names.count('')} pictures lack; add "
                "their file_name, or leave the file out"
            )
        repeated = [name for name, count in Counter(file_names).items() if count > 1]
        if repeated:
            raise CaptionerError(
                f"{self.path} is matched by file names without folders, and several pictures have the name "
                f"{abbreviate(repeated)}; rename them, or leave the file out"
            )
        missing = sorted(set(file_names) - self._picture.keys())
        if missing and not may_lack_some:
            raise CaptionerError(
                f"{self.path} does not list {len(missing):,} pictures: {abbreviate(missing)}"
            )
        return len(file_names) - len(missing)

    def categories(self, file_name: str) -> set[str]:
        """The categories of the objects in a listed picture. Raises: CaptionerError, as `instances`."""
        return {instance.category for instance in self.instances(file_name)}

    def instances(self, file_name: str) -> list[Instance]:
        """The objects in a listed picture, crowds included.

        Raises:
            CaptionerError: an annotation is malformed; it is named.
        """
        number, picture = self._picture[file_name]
        found = []
        for entry in self._coco.imgToAnns.get(number, ()):
            with reading(self.path, f"{_CONTENT}: annotation {entry.get('id')}"):
                annotation = msgspec.convert(entry, _Annotation)
                category = self._category[annotation.category_id]
                found.append(Instance(category, _encoded_mask(annotation, picture), annotation.score))
        return found

    def masks(self, file_name: str) -> Masks:
        """For each category in a listed picture the mask of all its instances. Raises: as `instances`."""
        masks: dict[str, Bool[np.ndarray, "height width"]] = {}
        for instance in self.instances(file_name):
            masks[instance.category] = masks.get(instance.category, False) | instance.mask
        return masks


def _decoded(encoded: dict[str, Any]) -> Bool[np.ndarray, "height width"]:
    """Raises: ValueError."""
    from pycocotools.mask import decode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy
        mask: np.ndarray = decode(encoded)
    return mask.astype(bool)


def _encoded_mask(annotation: _Annotation, picture: _Picture) -> dict[str, Any]:
    """Raises: ValueError."""
    from pycocotools.mask import frPyObjects, merge

    height, width = picture.height, picture.width
    encoded: dict[str, Any]
    if isinstance(annotation.segmentation, _EncodedMask):
        size, counts = list(annotation.segmentation.size), annotation.segmentation.counts
        if size != [height, width]:
            raise ValueError(f"its mask has the size {size}, the picture {[height, width]}")
        if isinstance(counts, str):
            encoded = {"size": size, "counts": counts.encode("ascii")}
            _decoded(encoded)  # raises if it is damaged
            return encoded
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError("its mask's counts do not add up to the picture's size")
        encoded = frPyObjects({"size": size, "counts": counts}, height, width)
    elif annotation.segmentation:
        encoded = merge(frPyObjects(annotation.segmentation, height, width))
    elif annotation.bbox is not None:
        (encoded,) = frPyObjects(np.array([annotation.bbox], dtype=np.float64), height, width)
    else:
        raise ValueError("it has neither a segmentation nor a bbox")
    return encoded
