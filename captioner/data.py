"""What a record and a batch are, and how the one is collated from the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.images import ImageSource
from captioner.vocabulary import PAD, Vocabulary


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """One picture of a data set with its captions, as its annotation file has them."""

    image_id: str
    source: ImageSource
    captions: tuple[str, ...]
    split: str


@dataclass(frozen=True, kw_only=True)
class CaptionBatch:
    """Pictures, each once, with all their captions.

    `tokens` holds <start> w1 ... wn <end> <pad>..., and `lengths` the number of words to predict,
    n + 1; a picture with fewer captions than others has captions of length 0. The longest captions
    come first in both directions, which lets the decoder leave finished ones behind.
    """

    image_ids: tuple[str, ...]
    annotations: Float[Tensor, "batch cells annotation"]
    tokens: Int[Tensor, "batch captions tokens"]
    lengths: Int[Tensor, "batch captions"]

    def to(self, device: torch.device) -> "CaptionBatch":
        return replace(
            self,
            annotations=self.annotations.to(device),
            tokens=self.tokens.to(device),
            lengths=self.lengths.to(device),
        )


@dataclass(frozen=True)
class CaptionItem:
    """What `CaptionDataset` gives for one picture."""

    image_id: str
    annotations: Float[Tensor, "cells annotation"]
    tokens: list[list[int]]


class CaptionDataset(Dataset[CaptionItem]):
    """Cached grids with their encoded captions, one item a picture."""

    def __init__(
        self,
        *,
        records: Sequence[CaptionedImage],
        grids: Float[np.ndarray, "images cells annotation"],
        vocabulary: Vocabulary,
        max_words: int,
    ) -> None:
        if len(records) != len(grids):
            raise ValueError(f"{len(records)} records need as many grids, not {len(grids)}")
        self.grids = grids
        self.image_ids = [record.image_id for record in records]
        self.tokens = [
            [_cut(vocabulary.encode(caption), max_words) for caption in record.captions] for record in records
        ]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> CaptionItem:
        grid = torch.from_numpy(np.array(self.grids[index]))
        return CaptionItem(self.image_ids[index], grid, self.tokens[index])


def _cut(tokens: list[int], max_words: int) -> list[int]:
    """Shorten a caption that has more words; it then ends without <end>, for it is not over."""
    return tokens if len(tokens) <= max_words + 2 else tokens[: max_words + 1]


def collate(items: Sequence[CaptionItem]) -> CaptionBatch:
    """Pad and stack, longest first."""
    captions_of = [sorted(item.tokens, key=len, reverse=True) for item in items]
    order = sorted(range(len(items)), key=lambda index: len(captions_of[index][0]), reverse=True)
    num_captions = max(len(captions) for captions in captions_of)
    num_tokens = max(len(captions[0]) for captions in captions_of)
    tokens = torch.full((len(items), num_captions, num_tokens), PAD)
    lengths = torch.zeros((len(items), num_captions), dtype=torch.long)
    for row, index in enumerate(order):
        for column, caption in enumerate(captions_of[index]):
            tokens[row, column, : len(caption)] = torch.tensor(caption)
            lengths[row, column] = len(caption) - 1
    return CaptionBatch(
        image_ids=tuple(items[index].image_id for index in order),
        annotations=torch.stack([items[index].annotations for index in order]).float(),
        tokens=tokens,
        lengths=lengths,
    )


def epoch_loader(
    dataset: CaptionDataset, *, batch_size: int, seed: int, epoch: int
) -> "DataLoader[CaptionItem]":
    """Batches in an order that depends on the seed and the epoch alone, so that a resumed run repeats it."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=collate)
