"""Instance masks from files in COCO's format."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from captioner.errors import CaptionerError, abbreviate
from captioner.evaluation.coco import by_file_name, open_coco, reading

_CONTENT = "instances"
Masks = Mapping[str, Bool[np.ndarray, "height width"]]


class Instances:
    """The instance annotations of a file, by the pictures' file names without folders.

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

    def check_listed(self, file_names: Iterable[str]) -> None:
        """Raises: CaptionerError, naming the pictures that the file does not list."""
        missing = sorted(set(file_names) - self._image_id.keys())
        if missing:
            raise CaptionerError(
                f"{self.path} does not list {len(missing):,} pictures: {abbreviate(missing)}"
            )

    def masks(self, file_name: str) -> Masks:
        """For each category in a listed picture the mask of all its instances, crowds included.

        Raises:
            CaptionerError: an annotation cannot be drawn.
        """
        masks: dict[str, Bool[np.ndarray, "height width"]] = {}
        for annotation in self._coco.imgToAnns.get(self._image_id[file_name], ()):
            with reading(self.path, _CONTENT), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, in pycocotools
                category = self._category[annotation["category_id"]]
                mask = self._coco.annToMask(annotation).astype(bool)
                masks[category] = masks[category] | mask if category in masks else mask
        return masks
