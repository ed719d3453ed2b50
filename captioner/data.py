"""What a batch is, and how pictures and captions become one."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.augmentation import Augmentation
from captioner.dealing import Key, LoadingError
from captioner.images import ImageError, Preprocess, load_image
from captioner.records import CaptionedImage
from captioner.vocabulary import PAD, Vocabulary


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
class CaptionBatch:
    """Pictures, each once, with all their captions.

    `grids` are the cached annotations of some pictures and `images` the pixels of the others (squashed
    RGB); row i of the batch is row `order[i]` of the one followed by the other.

    `tokens` holds <start> w1 ... wn <end> <pad>..., and `lengths` the number of words to predict,
    n + 1; a picture with fewer captions than others has captions of length 0. Where the longest captions
    come first, of a picture and among the pictures, the decoder leaves finished ones behind.
    """

    image_ids: tuple[str, ...]
    files: tuple[str, ...]
    grids: Float[Tensor, "cached cells annotation"]
    images: UInt8[Tensor, "live height width 3"]
    order: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch captions tokens"]
    lengths: Int[Tensor, "batch captions"]

    def encoded(self, annotations: Float[Tensor, "batch cells annotation"]) -> "CaptionBatch":
        """The same batch with its annotations in the place of pixels."""
        order = torch.arange(len(annotations), device=annotations.device)
        return replace(self, grids=annotations, images=self.images[:0], order=order)

    def to(self, device: torch.device) -> "CaptionBatch":
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "CaptionBatch":
        """Called by torch's DataLoader, so that the copy to a GPU does not wait."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "CaptionBatch":
        tensors: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class CaptionItem:
    """What `CaptionDataset` gives for one picture: its cached grid, or else its pixels."""

    image_id: str
    file: str
    picture: Float[Tensor, "cells annotation"] | UInt8[Tensor, "height width 3"]
    tokens: list[Int[np.ndarray, "_"]]


class CaptionDataset(Dataset[CaptionItem | ImageError]):
    """The pictures of a split with their encoded captions, one item a picture."""

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
        captions = [
            [_cut(vocabulary.encode(caption), max_words) for caption in record.captions]
            for record in split.records
        ]
        # One flat array: a list for each of COCO's captions would be copied into every worker.
        flat = [caption for texts in captions for caption in texts]
        self._tokens = np.concatenate([np.array(caption, dtype=np.int32) for caption in flat])
        self._caption_bounds = np.cumsum([0, *(len(caption) for caption in flat)])
        self._picture_bounds = np.cumsum([0, *(len(texts) for texts in captions)])

    def __len__(self) -> int:
        return len(self.split.records)

    def __getitem__(self, key: Key) -> CaptionItem | ImageError:
        """A picture that cannot be read gives its error, for torch's workers would lose its kind."""
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
        return CaptionItem(record.image_id, str(record.source), picture, self.tokens(index))

    def tokens(self, index: int) -> list[Int[np.ndarray, "_"]]:
        """The encoded captions of a picture."""
        first, last = self._picture_bounds[index], self._picture_bounds[index + 1]
        return [self._tokens[start:end] for start, end in pairwise(self._caption_bounds[first : last + 1])]

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


def _cut(tokens: list[int], max_words: int) -> list[int]:
    """Shorten a caption that has more words; it then ends without <end>, for it is not over."""
    return tokens if len(tokens) <= max_words + 2 else tokens[: max_words + 1]


def collate(given: Sequence[CaptionItem | ImageError]) -> CaptionBatch | ImageError:
    """Pad and stack, longest first; of a batch with a picture that cannot be read, the error."""
    items = []
    for item in given:
        if isinstance(item, ImageError):
            return item
        items.append(item)
    captions_of = [sorted(item.tokens, key=len, reverse=True) for item in items]
    longest_first = sorted(range(len(items)), key=lambda index: len(captions_of[index][0]), reverse=True)
    num_captions = max(len(captions) for captions in captions_of)
    num_tokens = max(len(captions[0]) for captions in captions_of)
    tokens = torch.full((len(items), num_captions, num_tokens), PAD)
    lengths = torch.zeros((len(items), num_captions), dtype=torch.long)
    for row, index in enumerate(longest_first):
        for column, caption in enumerate(captions_of[index]):
            tokens[row, column, : len(caption)] = torch.from_numpy(caption)
            lengths[row, column] = len(caption) - 1
    cached = [index for index, item in enumerate(items) if item.picture.ndim == 2]
    live = [index for index, item in enumerate(items) if item.picture.ndim == 3]
    place_of = {index: place for place, index in enumerate(cached + live)}
    return CaptionBatch(
        image_ids=tuple(items[index].image_id for index in longest_first),
        files=tuple(items[index].file for index in longest_first),
        grids=_stack([items[index].picture for index in cached], torch.zeros(0, 0, 0)),
        images=_stack([items[index].picture for index in live], torch.zeros(0, 0, 0, 3, dtype=torch.uint8)),
        order=torch.tensor([place_of[index] for index in longest_first]),
        tokens=tokens,
        lengths=lengths,
    )


def _stack(tensors: Sequence[Tensor], none: Tensor) -> Tensor:
    return torch.stack(list(tensors)) if tensors else none


def _leave_signals(_: int) -> None:
    """Ctrl-C goes to all processes of a terminal, SIGTERM to all of a job; the one that trains decides what
    comes of it, and ends those that load."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    dataset: CaptionDataset, batches: Sequence[list[Key]], *, num_workers: int
) -> Iterator[CaptionBatch]:
    """Load batches in order, `num_workers` processes ahead of where they are needed; 0 is in this one.

    Raises:
        captioner.images.ImageError: a picture cannot be read.
        LoadingError: a worker died.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals,
    )
    try:
        for batch in loader:
            if isinstance(batch, ImageError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" in str(error) or "is killed by signal" in str(error):
            raise LoadingError(f"a worker that loads pictures died ({error}); lower --workers") from error
        raise
