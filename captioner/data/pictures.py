"""Dataset of pictures: cached features or pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from captioner.data.augmentation import Augmentation
from captioner.data.batching import CaptionItem, EncodedCaptions, ItemRegions
from captioner.data.epoch_order import SampleKey
from captioner.data.regions import RegionStore
from captioner.errors import ImageError
from captioner.images.geometry import Preprocess
from captioner.images.reading import load_image
from captioner.model.batch import Pictures
from captioner.records import CaptionedImage
from captioner.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class CachedRecords:
    """The records of a split, and the cached features of the first of them; the others are encoded on the
    fly."""

    records: Sequence[CaptionedImage]
    features: Float[np.ndarray, "cached cells annotation"]


class CaptionDataset(Dataset[CaptionItem | ImageError]):
    """The pictures of a split with their encoded captions (`captioner.data.batching.CaptionedDataset`)."""

    def __init__(
        self,
        *,
        split: CachedRecords,
        preprocess: Preprocess,
        vocabulary: Vocabulary,
        max_words: int | None,
        augmentation: Augmentation | None = None,
        regions: RegionStore | None = None,
    ) -> None:
        """`regions` are the annotated objects of the pictures, for supervised attention."""
        self.split, self.preprocess, self.augmentation = split, preprocess, augmentation
        self.regions = regions
        captions = [record.captions for record in split.records]
        self.captions = EncodedCaptions(captions, vocabulary=vocabulary, max_words=max_words)

    def __len__(self) -> int:
        return len(self.split.records)

    def __getitem__(self, key: SampleKey) -> CaptionItem | ImageError:
        try:
            return self._item(key)
        except ImageError as error:
            return error

    def _item(self, key: SampleKey) -> CaptionItem:
        index = key.index
        record = self.split.records[index]
        is_cached = index < len(self.split.features)
        if self.augmentation is not None and not is_cached:
            picture, regions = self._augmented(self.augmentation, self._load(record), key)
        else:
            regions = None if self.regions is None else self.regions.on_grid(index)
            pixels = self.split.features[index] if is_cached else self.preprocess(self._load(record))
            picture = torch.from_numpy(np.array(pixels))
        return CaptionItem(record.image_id, str(record.source), picture, self.captions[index], regions)

    def _load(self, record: CaptionedImage) -> Image.Image:
        return load_image(record.source, enough_px=self.preprocess.config.size_px)

    def _augmented(
        self, augmentation: Augmentation, image: Image.Image, key: SampleKey
    ) -> tuple[UInt8[Tensor, "size size 3"], ItemRegions | None]:
        """The picture and its regions, cropped and flipped alike."""
        captions = self.split.records[key.index].captions
        if self.regions is None:
            return augmentation(image, captions=captions, key=key), None
        regions = self.regions[key.index]
        picture, masks = augmentation.with_masks(image, regions.masks, captions=captions, key=key)
        return picture, self.regions.project(replace(regions, masks=masks))

    @staticmethod
    def stack(sources: Sequence[Tensor]) -> Pictures:
        """Features (cells, annotation) and pixels (height, width, 3), in any order."""
        cached = [index for index, source in enumerate(sources) if source.ndim == 2]
        live = [index for index, source in enumerate(sources) if source.ndim == 3]
        row_of = {index: row for row, index in enumerate(cached + live)}
        return Pictures(
            features=_stack([sources[index] for index in cached], torch.zeros(0, 0, 0)),
            images=_stack([sources[index] for index in live], torch.zeros(0, 0, 0, 3, dtype=torch.uint8)),
            order=torch.tensor([row_of[index] for index in range(len(sources))]),
        )

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        return {record.image_id: record.captions for record in self.split.records}

    @property
    def dataset_of(self) -> dict[str, str]:
        return {record.image_id: record.dataset for record in self.split.records}

    @property
    def weights(self) -> Float[np.ndarray, " records"]:
        return np.array([record.weight for record in self.split.records])

    @property
    def encodes_on_the_fly(self) -> bool:
        return len(self.split.features) < len(self.split.records)

    def drop_feature_cache(self) -> None:
        self.split = replace(self.split, features=self.split.features[:0])

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are not forked get the path of the cache, not a copy of its content."""
        state = self.__dict__.copy()
        features = self.split.features
        if isinstance(features, np.memmap) and features.filename is not None:
            state["split"] = replace(self.split, features=features[:0])
            state["cache"] = (Path(features.filename), len(features))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state.pop("cache", None)
        self.__dict__.update(state)
        if cache is not None:
            path, count = cache
            self.split = replace(self.split, features=np.load(path, mmap_mode="r")[:count])


def _stack(tensors: Sequence[Tensor], none: Tensor) -> Tensor:
    return torch.stack(list(tensors)) if tensors else none
