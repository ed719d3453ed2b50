"""Annotated objects of training pictures: their regions and categories."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from captioner.config import GridConfig, PreprocessConfig
from captioner.data.batching import ItemRegions
from captioner.errors import CaptionerError
from captioner.images.geometry import cell_coverage
from captioner.images.sources import StoredPicture
from captioner.model.batch import CaptionBatch
from captioner.objects.categories import mentions
from captioner.objects.instances import Instance, Instances
from captioner.records import CaptionedImage
from captioner.vocabulary import Vocabulary

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureRegions:
    """The categories in a picture, and for each a mask with the score of the best object at each pixel."""

    categories: tuple[str, ...]
    masks: Float[np.ndarray, "regions height width"]

    def on_grid(self, grid: GridConfig, preprocess: PreprocessConfig) -> ItemRegions:
        """The regions on a grid of cells, without those that a crop has removed."""
        coverage = cell_coverage(self.masks, grid=grid, preprocess=preprocess)
        coverage = coverage.reshape(len(coverage), grid.num_cells).astype(np.float32)
        most = coverage.max(axis=1, initial=0)
        seen = most > 0
        return ItemRegions(
            categories=tuple(name for name, is_seen in zip(self.categories, seen, strict=True) if is_seen),
            coverage=coverage[seen] / most[seen, None],
            confidence=self.masks[seen].max(axis=(1, 2), initial=0),
        )


class RegionStore:
    """The annotated objects of many pictures, by the index of their record.

    They are kept as COCO's run-length encodings in one flat array: objects would be copied into every worker
    process.
    """

    def __init__(
        self, records: Sequence[CaptionedImage], *, grid: GridConfig, preprocess: PreprocessConfig
    ) -> None:
        """Read the files that the records name.

        Raises:
            CaptionerError: a file cannot be read, lists none of its records' pictures, or does not tell them
                apart.
        """
        files = _open_files(records)
        names: dict[str, int] = {}
        num_outside = 0
        categories, scores, encoded, sizes, bounds, listed = [], [], [], [], [0], []
        for record in tqdm(records, desc="annotated objects", unit=" pictures", delay=2):
            found: list[Instance] | None = None
            if record.instances is not None and record.file_name in files[record.instances]:
                found = files[record.instances].instances(record.file_name)
            listed.append(found is not None)
            for instance in found or ():
                if not instance.area_px:
                    num_outside += 1
                    continue
                categories.append(names.setdefault(instance.category, len(names)))
                scores.append(instance.score)
                encoded.append(np.frombuffer(instance.encoded_mask["counts"], np.uint8))
            sizes.append(found[0].encoded_mask["size"] if found else (1, 1))
            bounds.append(len(scores))
        if num_outside:
            _logger.info("%s annotated objects cover no pixel of their picture", f"{num_outside:,}")
        self._grid, self._preprocess = grid, preprocess
        self._projected: dict[int, ItemRegions] = {}
        self.names = tuple(names)
        """The categories of all objects."""
        self._category, self._score = np.array(categories, np.int16), np.array(scores, np.float32)
        self._encoded = np.concatenate([np.zeros(0, np.uint8), *encoded])
        self._encoded_bounds = np.cumsum([0, *map(len, encoded)])
        self._size, self._bounds = np.array(sizes, np.int32), np.array(bounds)
        self._is_listed = np.array(listed)

    def __getitem__(self, index: int) -> PictureRegions:
        """The regions of a picture; none if no object is annotated in it."""
        instances = [self._instance(number, self._size[index].tolist()) for number in self._range(index)]
        categories = tuple(dict.fromkeys(instance.category for instance in instances))
        masks = np.zeros((len(categories), *self._size[index]), np.float32)
        for instance in instances:
            mask = masks[categories.index(instance.category)]
            np.maximum(mask, instance.score, out=mask, where=instance.mask)
        return PictureRegions(categories, masks)

    def categories(self, index: int) -> set[str] | None:
        """The categories in a picture; None if no file lists it, so that they are not known."""
        if not self._is_listed[index]:
            return None
        return {self.names[self._category[number]] for number in self._range(index)}

    def on_grid(self, index: int) -> ItemRegions:
        """The regions of a picture on the model's grid, computed once."""
        if index not in self._projected:
            self._projected[index] = self.project(self[index])
        return self._projected[index]

    def project(self, regions: PictureRegions) -> ItemRegions:
        """Regions on the model's grid."""
        return regions.on_grid(self._grid, self._preprocess)

    @property
    def digest(self) -> bytes:
        """A digest of all regions, for a run that resumes."""
        content = hashlib.sha256(repr(self.names).encode())
        for array in (
            self._category,
            self._score,
            self._encoded,
            self._encoded_bounds,
            self._size,
            self._bounds,
            self._is_listed,
        ):
            content.update(array.tobytes())
        return content.digest()

    def _range(self, index: int) -> Iterable[int]:
        return range(self._bounds[index], self._bounds[index + 1])

    def _instance(self, number: int, size: list[int]) -> Instance:
        start, end = self._encoded_bounds[number], self._encoded_bounds[number + 1]
        encoded = {"size": size, "counts": self._encoded[start:end].tobytes()}
        return Instance(self.names[self._category[number]], encoded, float(self._score[number]))


def _open_files(records: Sequence[CaptionedImage]) -> dict[Path, Instances]:
    """The files that the records name. Raises: CaptionerError."""
    pictures_of: dict[Path, dict[StoredPicture, str]] = {}
    for record in records:
        if record.instances is not None:
            pictures_of.setdefault(record.instances, {})[record.source] = record.file_name
    files = {}
    for path, pictures in pictures_of.items():
        names = list(pictures.values())
        files[path] = Instances(path)
        num_listed = files[path].check_pictures(names, may_lack_some=True)
        if not num_listed:
            raise CaptionerError(f"{path} lists none of the training pictures; see --instances")
        _logger.info("%s lists %s of %s training pictures", path, f"{num_listed:,}", f"{len(names):,}")
    return files


def look_up_words(batch: CaptionBatch, vocabulary: Vocabulary) -> CaptionBatch:
    """The batch with the region that each of its words names (`captioner.model.batch.Regions.of_word`)."""
    if batch.regions is None:
        return batch
    rows = [
        [_named_regions(vocabulary, caption, categories) for caption in captions]
        for captions, categories in zip(batch.tokens[..., 1:].tolist(), batch.regions.categories, strict=True)
    ]
    return replace(
        batch, regions=replace(batch.regions, of_word=torch.tensor(rows, device=batch.tokens.device))
    )


def _named_regions(vocabulary: Vocabulary, tokens: Sequence[int], categories: tuple[str, ...]) -> list[int]:
    """For each word the index of the category that it names, -1 if it is not among the picture's."""
    region_of_word = [-1] * len(tokens)
    for mention in mentions([vocabulary.words[token] for token in tokens]):
        if mention.category in categories:
            index = categories.index(mention.category)
            region_of_word[mention.start : mention.stop] = [index] * (mention.stop - mention.start)
    return region_of_word
