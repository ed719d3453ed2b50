"""What a batch is: sources, each once, with all their captions, and how they become one.

A source is a picture to be captioned (`captioner.data`) or a sentence to be translated
(`captioner.sentences`); what is written about it goes by the name of caption here either way.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from captioner.dealing import Key, LoadingError
from captioner.images import ImageError
from captioner.vocabulary import PAD, Vocabulary


@dataclass(frozen=True, kw_only=True)
class CaptionBatch:
    """Sources, each once, with all their captions.

    `sources` is what the encoder reads, `captioner.data.Pictures` or `captioner.sentences.Sentences`: row i
    of it is what row i of the captions is about. `names` are what an error calls them.

    `tokens` holds <start> w1 ... wn <end> <pad>..., and `lengths` the number of words to predict, n + 1; a
    source with fewer captions than others has captions of length 0. Where the longest captions come first,
    of a source and among the sources, the decoder leaves finished ones behind.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    sources: Any
    tokens: Int[Tensor, "batch captions tokens"]
    lengths: Int[Tensor, "batch captions"]

    def to(self, device: torch.device) -> "CaptionBatch":
        return moved(self, device)

    def pin_memory(self) -> "CaptionBatch":
        """Called by torch's DataLoader, so that the copy to a GPU does not wait."""
        return _with_tensors(self, Tensor.pin_memory)


Tensors = TypeVar("Tensors")


def moved(value: Tensors, device: torch.device) -> Tensors:
    """A batch or its sources on another device."""
    return _with_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass with its tensors changed, and those of its sources."""
    changed = {name: change(part) for name, part in vars(value).items() if isinstance(part, Tensor)}
    if isinstance(value, CaptionBatch):
        changed["sources"] = _with_tensors(value.sources, change)
    return replace(value, **changed)


@dataclass(frozen=True)
class CaptionItem:
    """What a dataset gives for one source: what the encoder reads of it, and its captions."""

    id: str
    name: str
    source: Tensor
    tokens: list[Int[np.ndarray, "_"]]


@runtime_checkable
class CaptionedDataset(Protocol):
    """Sources with their encoded captions, one item a source, as torch's DataLoader takes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> CaptionItem | ImageError:
        """A picture that cannot be read gives its error, for torch's workers would lose its kind."""
        ...

    @staticmethod
    def stack(sources: Sequence[Tensor]) -> Any:
        """Those of a batch."""
        ...

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """The captions as they were written, by the source's id."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether files are decoded as the items are taken, so that worker processes pay."""
        ...

    def forget_encoded(self) -> None:
        """Have every source encoded live from now on, for the encoder has begun to change."""
        ...


class EncodedCaptions:
    """The tokens of the captions of many sources."""

    def __init__(self, captions: Sequence[Sequence[str]], *, vocabulary: Vocabulary, max_words: int) -> None:
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


def _cut(tokens: list[int], max_words: int) -> list[int]:
    """Shorten a caption that has more words; it then ends without <end>, for it is not over."""
    return tokens if len(tokens) <= max_words + 2 else tokens[: max_words + 1]


def collate(
    given: Sequence[CaptionItem | ImageError], *, stack: Callable[[Sequence[Tensor]], Any]
) -> CaptionBatch | ImageError:
    """Pad and stack, longest first; of a batch with a picture that cannot be read, the error."""
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
    )


def _leave_signals(_: int) -> None:
    """Ctrl-C goes to all processes of a terminal, SIGTERM to all of a job; the one that trains decides what
    comes of it, and ends those that load."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    dataset: CaptionedDataset, batches: Sequence[list[Key]], *, num_workers: int
) -> Iterator[CaptionBatch]:
    """Load batches in order, `num_workers` processes ahead of where they are needed; 0 is in this one.

    Raises:
        captioner.images.ImageError: a picture cannot be read.
        LoadingError: a worker died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # any object with these two methods will do
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=partial(collate, stack=dataset.stack),
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
            raise LoadingError(f"a worker that loads data died ({error}); lower --workers") from error
        raise
