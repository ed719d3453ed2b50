"""Pictures as what a batch is about: their cached grids, or else their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from captioner.augmentation import Augmentation
from captioner.batches import CaptionItem, EncodedCaptions
from captioner.dealing import Key
from captioner.images import ImageError, Preprocess, load_image
from captioner.records import CaptionedImage
from captioner.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Split:
    """The records of a split, and the cached grids of the first of them; the others are encoded live."""

    records: Sequence[CaptionedImage]
    grids: Float[np.ndarray, "cached cells annotation"]

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        return {record.image_id: record.captions for record in self.records}

    def without_grids(self) -> "Split":
        """The same pictures, all encoded live, as they must be once the encoder trains."""
        return replace(self, grids=self.grids[:0])


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of a batch: `grids` are the cached annotations of some and `images` the pixels of the others
    (squashed RGB); row i of the batch is row `order[i]` of the one followed by the other."""

    grids: Float[Tensor, "cached cells annotation"]
    images: UInt8[Tensor, "live height width 3"]
    order: Int[Tensor, " batch"]

    def encoded(self, annotations: Float[Tensor, "batch cells annotation"]) -> "Pictures":
        """The same with their annotations in the place of pixels."""
        order = torch.arange(len(annotations), device=annotations.device)
        return Pictures(grids=annotations, images=self.images[:0], order=order)


class CaptionDataset(Dataset[CaptionItem | ImageError]):
    """The pictures of a split with their encoded captions (`captioner.batches.CaptionedDataset`)."""

    def __init__(
        self,
        *,
        split: Split,
        preprocess: Preprocess,
        vocabulary: Vocabulary,
        max_words: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.split, self.preprocess, self.augmentation = split, preprocess, augmentation
        captions = [record.captions for record in split.records]
        self.captions = EncodedCaptions(captions, vocabulary=vocabulary, max_words=max_words)

    def __len__(self) -> int:
        return len(self.split.records)

    def __getitem__(self, key: Key) -> CaptionItem | ImageError:
        try:
            return self._item(*key)
        except ImageError as error:
            return error

    def _item(self, epoch: int, index: int) -> CaptionItem:
        record = self.split.records[index]
        if index < len(self.split.grids):
            picture = torch.from_numpy(np.array(self.split.grids[index]))
        else:
            image = load_image(record.source, enough_px=self.preprocess.config.size_px)
            if self.augmentation is None:
                picture = torch.from_numpy(self.preprocess(image).copy())
            else:
                picture = self.augmentation(image, captions=record.captions, epoch=epoch, index=index)
        return CaptionItem(record.image_id, str(record.source), picture, self.captions[index])

    @staticmethod
    def stack(sources: Sequence[Tensor]) -> Pictures:
        """Grids (cells, annotation) and pixels (height, width, 3), in any order."""
        cached = [index for index, source in enumerate(sources) if source.ndim == 2]
        live = [index for index, source in enumerate(sources) if source.ndim == 3]
        place_of = {index: place for place, index in enumerate(cached + live)}
        return Pictures(
            grids=_stack([sources[index] for index in cached], torch.zeros(0, 0, 0)),
            images=_stack([sources[index] for index in live], torch.zeros(0, 0, 0, 3, dtype=torch.uint8)),
            order=torch.tensor([place_of[index] for index in range(len(sources))]),
        )

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        return self.split.references

    @property
    def is_live(self) -> bool:
        return len(self.split.grids) < len(self.split.records)

    def forget_encoded(self) -> None:
        self.split = self.split.without_grids()

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are not forked get the cache's name, not a copy of what it holds."""
        state = self.__dict__.copy()
        grids = self.split.grids
        if isinstance(grids, np.memmap) and grids.filename is not None:
            state["split"] = replace(self.split, grids=grids[:0])
            state["cache"] = (Path(grids.filename), len(grids))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state.pop("cache", None)
        self.__dict__.update(state)
        if cache is not None:
            path, count = cache
            self.split = replace(self.split, grids=np.load(path, mmap_mode="r")[:count])


def _stack(tensors: Sequence[Tensor], none: Tensor) -> Tensor:
    return torch.stack(list(tensors)) if tensors else none
