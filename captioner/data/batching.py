"""Batches of sources with all their captions, loaded by worker processes.

A source is a picture to be captioned (`captioner.data.pictures`) or a sentence to be translated
(`captioner.translation.sentences`), whose translations are called captions here.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from captioner.data.epoch_order import SampleKey
from captioner.errors import CaptionerError, ImageError
from captioner.model.batch import CaptionBatch, Regions
from captioner.vocabulary import PAD, Vocabulary


@dataclass(frozen=True)
class ItemRegions:
    """The annotated objects of one picture, as a row of `captioner.model.batch.Regions`."""

    categories: tuple[str, ...]
    coverage: Float[np.ndarray, "regions cells"]
    confidence: Float[np.ndarray, " regions"]


@dataclass(frozen=True)
class CaptionItem:
    """An item of a dataset: what the encoder reads of one source, and its captions."""

    id: str
    name: str
    source: Tensor
    tokens: list[Int[np.ndarray, "_"]]
    regions: ItemRegions | None = None
    """None if the data set comes without annotated objects."""


@runtime_checkable
class CaptionedDataset(Protocol):
    """Sources with their encoded captions, one item per source, for torch's DataLoader."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> CaptionItem | ImageError:
        """A picture that cannot be read gives its error, because torch's workers would lose its type."""
        ...

    @staticmethod
    def stack(sources: Sequence[Tensor]) -> Any:
        """What the encoder reads of a batch."""
        ...

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """The captions as text, by the source's id."""
        ...

    @property
    def dataset_of(self) -> dict[str, str]:
        """The name of the data set that a source is from, by the source's id; "" if there is only one."""
        ...

    @property
    def weights(self) -> Float[np.ndarray, " sources"] | None:
        """How often each source is in an epoch, on average; None if each is once."""
        ...

    @property
    def encodes_on_the_fly(self) -> bool:
        """Whether getting an item decodes a file, so that worker processes help."""
        ...

    def drop_feature_cache(self) -> None:
        """Encode every source on the fly from now on, because the encoder is about to change."""
        ...


class EncodedCaptions:
    """The tokens of the captions of many sources."""

    def __init__(
        self, captions: Sequence[Sequence[str]], *, vocabulary: Vocabulary, max_words: int | None
    ) -> None:
        """Captions of more words are cut, unless `max_words` is None."""
        encoded = [[_cut(vocabulary.encode(text), max_words) for text in texts] for texts in captions]
        # One flat array: a list for each of COCO's captions would be copied into every worker.
        flat = [caption for texts in encoded for caption in texts]
        self._tokens = np.concatenate([np.array(caption, dtype=np.int32) for caption in flat])
        self._caption_bounds = np.cumsum([0, *(len(caption) for caption in flat)])
        self._source_bounds = np.cumsum([0, *(len(texts) for texts in encoded)])

    def __getitem__(self, index: int) -> list[Int[np.ndarray, "_"]]:
        """The captions of a source."""
        first, last = self._source_bounds[index], self._source_bounds[index + 1]
        return [self._tokens[start:end] for start, end in pairwise(self._caption_bounds[first : last + 1])]


def _cut(tokens: list[int], max_words: int | None) -> list[int]:
    """Cut a caption that has more words; it then has no <end>, because it has not ended."""
    return tokens if max_words is None or len(tokens) <= max_words + 2 else tokens[: max_words + 1]


def collate(
    given: Sequence[CaptionItem | ImageError], *, stack: Callable[[Sequence[Tensor]], Any]
) -> CaptionBatch | ImageError:
    """Pad and stack, longest first; gives the error if the batch has a picture that cannot be read."""
    items = []
    for item in given:
        if isinstance(item, ImageError):
            return item
        items.append(replace(item, tokens=sorted(item.tokens, key=len, reverse=True)))
    items.sort(key=lambda item: len(item.tokens[0]), reverse=True)
    num_captions = max(len(item.tokens) for item in items)
    num_tokens = len(items[0].tokens[0])
    tokens = torch.full((len(items), num_captions, num_tokens), PAD)
    lengths = torch.zeros((len(items), num_captions), dtype=torch.long)
    for row, item in enumerate(items):
        for column, caption in enumerate(item.tokens):
            tokens[row, column, : len(caption)] = torch.from_numpy(caption)
            lengths[row, column] = len(caption) - 1
    return CaptionBatch(
        ids=tuple(item.id for item in items),
        names=tuple(item.name for item in items),
        sources=stack([item.source for item in items]),
        tokens=tokens,
        lengths=lengths,
        regions=_collate_regions([item.regions for item in items]),
    )


def _collate_regions(items: Sequence[ItemRegions | None]) -> Regions | None:
    """None if the data set comes without annotated objects."""
    known = [item for item in items if item is not None]
    if len(known) < len(items):
        return None  # a data set comes with annotated objects, or without
    num_regions = max(1, *(len(item.categories) for item in known))
    coverage = torch.zeros(len(known), num_regions, known[0].coverage.shape[1])
    confidence = torch.zeros(len(known), num_regions)
    for row, item in enumerate(known):
        coverage[row, : len(item.categories)] = torch.from_numpy(item.coverage)
        confidence[row, : len(item.categories)] = torch.from_numpy(item.confidence)
    categories = tuple(item.categories for item in known)
    return Regions(categories=categories, coverage=coverage, confidence=confidence)


def _ignore_signals(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal, SIGTERM all of a job; the training process handles them
    and ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    dataset: CaptionedDataset, batches: Sequence[list[SampleKey]], *, num_workers: int
) -> Iterator[CaptionBatch]:
    """Load batches in order, in `num_workers` processes ahead of time; with 0, in this process.

    Raises:
        captioner.errors.ImageError: a picture cannot be read.
        CaptionerError: a worker died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # any object with these two methods works
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=partial(collate, stack=dataset.stack),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
    )
    try:
        for batch in loader:
            if isinstance(batch, ImageError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" in str(error) or "is killed by signal" in str(error):
            raise CaptionerError(f"a data loading worker died ({error}); lower --workers") from error
        raise
