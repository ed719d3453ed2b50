"""Annotated objects in pictures, from files in COCO's format: masks or boxes by people or a detector."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from captioner.errors import CaptionerError, abbreviate
from captioner.objects.coco_file import by_file_name, open_coco, reading

_CONTENT = "instances"
Masks = Mapping[str, Bool[np.ndarray, "height width"]]


@dataclass(frozen=True)
class Instance:
    """An object in a picture: its category, its mask as COCO's run-length encoding, and how sure the
    detector was of it (1 for annotations by people)."""

    category: str
    encoded_mask: dict[str, Any]
    score: float

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        from pycocotools.mask import decode

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy
            mask: np.ndarray = decode(self.encoded_mask)
        return mask.astype(bool)


class Instances:
    """The instance annotations of a file, by the pictures' file names without folders.

    An annotation without `segmentation` is its box.

    Raises:
        CaptionerError: the file is missing, or not in COCO's format with instances.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._coco = open_coco(path, _CONTENT)
        with reading(path, _CONTENT):
            self._category = {number: entry["name"] for number, entry in self._coco.cats.items()}
            named = [(image["file_name"], number) for number, image in self._coco.imgs.items()]
        self._image_id = by_file_name(path, named)

    def __contains__(self, file_name: str) -> bool:
        return file_name in self._image_id

    def check_listed(self, file_names: Iterable[str]) -> None:
        """Raises: CaptionerError, naming the pictures that the file does not list."""
        missing = sorted(set(file_names) - self._image_id.keys())
        if missing:
            raise CaptionerError(
                f"{self.path} does not list {len(missing):,} pictures: {abbreviate(missing)}"
            )

    def categories(self, file_name: str) -> set[str]:
        """The categories of the objects in a listed picture."""
        with reading(self.path, _CONTENT):
            return {self._category[one["category_id"]] for one in self._annotations(file_name)}

    def instances(self, file_name: str) -> list[Instance]:
        """The objects in a listed picture, crowds included.

        Raises:
            CaptionerError: an annotation cannot be drawn.
        """
        image = self._coco.imgs[self._image_id[file_name]]
        with reading(self.path, _CONTENT):
            return [
                Instance(
                    self._category[annotation["category_id"]],
                    self._encoded_mask(annotation, image),
                    float(annotation.get("score", 1.0)),
                )
                for annotation in self._annotations(file_name)
            ]

    def masks(self, file_name: str) -> Masks:
        """For each category in a listed picture the mask of all its instances.

        Raises:
            CaptionerError: an annotation cannot be drawn.
        """
        masks: dict[str, Bool[np.ndarray, "height width"]] = {}
        for instance in self.instances(file_name):
            with reading(self.path, _CONTENT):
                mask = instance.mask
            masks[instance.category] = masks.get(instance.category, False) | mask
        return masks

    def _annotations(self, file_name: str) -> list[dict[str, Any]]:
        annotations: list[dict[str, Any]] = self._coco.imgToAnns.get(self._image_id[file_name], [])
        return annotations

    def _encoded_mask(self, annotation: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        from pycocotools.mask import frPyObjects

        if annotation.get("segmentation"):
            encoded: dict[str, Any] = self._coco.annToRLE(annotation)
            return encoded
        boxes = np.array([annotation["bbox"]], dtype=np.float64)
        (encoded,) = frPyObjects(boxes, image["height"], image["width"])
        return encoded
