"""Batches of sources with their captions, as a model reads them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of a batch: `features` are the cached annotations of some, `images` the pixels of the others
    (squashed RGB). Picture i of the batch is row `order[i]` of the features followed by the images."""

    features: Float[Tensor, "cached cells annotation"]
    images: UInt8[Tensor, "live height width 3"]
    order: Int[Tensor, " batch"]

    def encoded(self, annotations: Float[Tensor, "batch cells annotation"]) -> "Pictures":
        """The same pictures with their annotations instead of pixels."""
        order = torch.arange(len(annotations), device=annotations.device)
        return Pictures(features=annotations, images=self.images[:0], order=order)


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The annotated objects of a batch's pictures, a region for each category in a picture.

    `categories` are their names by picture. `coverage` is the share of each cell that the region covers,
    times the scores of its objects, relative to the cell where that is largest. `confidence` is the score of
    its best object. Both are in [0, 1], and zero where a picture has fewer regions than another. `of_word` is
    the region that each word names, -1 for none; None until the words are looked up.
    """

    categories: tuple[tuple[str, ...], ...]
    coverage: Float[Tensor, "batch regions cells"]
    confidence: Float[Tensor, "batch regions"]
    of_word: Int[Tensor, "batch captions steps"] | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionBatch:
    """Sources, each once, with all their captions.

    `sources` is what the encoder reads: `Pictures`, or `captioner.translation.sentences.Sentences`; its row i
    belongs to row i of the captions. `names` identify the sources in errors.

    `tokens` holds <start> w1 ... wn <end> <pad>..., and `lengths` the number of words to predict, n + 1; a
    source with fewer captions than others has captions of length 0. If the longest captions come first, of
    a source and among the sources, the decoder does not compute the finished ones.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    sources: Any
    tokens: Int[Tensor, "batch captions tokens"]
    lengths: Int[Tensor, "batch captions"]
    regions: Regions | None = None

    def to(self, device: torch.device) -> "CaptionBatch":
        return to_device(self, device)

    def pin_memory(self) -> "CaptionBatch":
        """Called by torch's DataLoader, so that the copy to a GPU is asynchronous."""
        return _map_tensors(self, Tensor.pin_memory)


Tensors = TypeVar("Tensors")


def to_device(value: Tensors, device: torch.device) -> Tensors:
    """A batch or its sources on another device."""
    return _map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to all tensors of a dataclass, of its sources and of its regions."""
    changed = {name: function(field) for name, field in vars(value).items() if isinstance(field, Tensor)}
    if isinstance(value, CaptionBatch):
        changed["sources"] = _map_tensors(value.sources, function)
        if value.regions is not None:
            changed["regions"] = _map_tensors(value.regions, function)
    return replace(value, **changed)
