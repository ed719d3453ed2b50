"""The texts that a model writes for a dev split, and the decoding by which they score best."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from captioner.batches import CaptionedDataset, load_batches
from captioner.checkpoint import StoredModel
from captioner.config import DecodingConfig
from captioner.dealing import in_order
from captioner.decoding import search_captions
from captioner.model import AnyDecoder, AttentionModel, EncoderT
from captioner.model_folder import Config
from captioner.search import Hypothesis, rank
from captioner.torch_backend import TorchDecoder
from captioner.vocabulary import Vocabulary

BEAM_SIZES = (1, 3, 5, 8)
LENGTH_PENALTIES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
"""What `choose_decoding` tries."""

_BATCH_SIZE = 32

Scores = TypeVar("Scores")


@dataclass(frozen=True)
class EncodedBatch:
    """Annotations of some sources; `is_cell` as in `captioner.decoder`."""

    ids: tuple[str, ...]
    annotations: Float[Tensor, "batch cells annotation"]
    is_cell: Bool[Tensor, "batch cells"] | None

    def stored(self) -> "EncodedBatch":
        """The same in half precision and in the computer's memory, to be kept."""
        return replace(self, annotations=self.annotations.half().cpu())

    def search(self, decoder: AnyDecoder, config: DecodingConfig) -> dict[str, list[Hypothesis]]:
        device = next(decoder.parameters()).device
        is_cell = None if self.is_cell is None else self.is_cell.to(device)
        annotations = self.annotations.to(device).float()
        found = search_captions(TorchDecoder(decoder, is_cell), annotations, config)
        return dict(zip(self.ids, found, strict=True))


@torch.inference_mode()
def encoded_batches(
    model: AttentionModel[Any],
    dataset: CaptionedDataset,
    *,
    num_workers: int = 0,
    process: int = 0,
    num_processes: int = 1,
) -> Iterator[EncodedBatch]:
    """The annotations of the sources that fall to a process, batch by batch."""
    device = next(model.parameters()).device
    batches = in_order(len(dataset), batch_size=_BATCH_SIZE, process=process, num_processes=num_processes)
    loaded = load_batches(dataset, batches, num_workers=num_workers)
    for batch in tqdm(loaded, total=len(batches), desc="dev", unit=" batches", delay=2, disable=process > 0):
        yield EncodedBatch(batch.ids, *model.encoder.annotations_of(batch.to(device).sources))


def validate(
    model: AttentionModel[Any],
    dataset: CaptionedDataset,
    *,
    vocabulary: Vocabulary,
    config: DecodingConfig,
    score: Callable[[dict[str, str]], Scores],
    num_workers: int = 0,
) -> tuple[Scores, dict[str, str]]:
    """Write about each source by search, not by teacher forcing, and score what a user would be shown.

    `score` takes the texts by the sources' ids. The model must be in evaluation mode. Several processes
    share the sources, each of which is written about once, and all get the same scores.
    """
    state = PartialState()
    own: dict[str, str] = {}
    for batch in encoded_batches(
        model,
        dataset,
        num_workers=num_workers,
        process=state.process_index,
        num_processes=state.num_processes,
    ):
        own |= _texts(batch.search(model.decoder, config), vocabulary)
    shares = gather_object([own])
    texts = {source: text for share in shares for source, text in share.items()}
    if not len(texts) == sum(map(len, shares)) == len(dataset):
        raise RuntimeError(f"{len(dataset)} sources were written about {sum(map(len, shares))} times")
    scores: list[Any] = [score(texts) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(scores)
    return scores[0], texts


def _texts(found: Mapping[str, Sequence[Hypothesis]], vocabulary: Vocabulary) -> dict[str, str]:
    return {source: vocabulary.caption(hypotheses[0].tokens) for source, hypotheses in found.items()}


def choose_decoding(
    stored: StoredModel[EncoderT, Config],
    dataset: CaptionedDataset,
    *,
    score: Callable[[dict[str, str]], float],
    num_workers: int = 0,
) -> tuple[DecodingConfig, dict[str, float]]:
    """The beam size and length penalty whose texts have the highest score, and the scores of all tried.

    The hypotheses of a search do not depend on the length penalty, which only ranks them: one search
    for each beam size serves all penalties.
    """
    model, max_words = stored.model, stored.config.decoding.max_words
    kept = [batch.stored() for batch in encoded_batches(model, dataset, num_workers=num_workers)]
    tried: dict[DecodingConfig, float] = {}
    for beam_size in BEAM_SIZES:
        search = DecodingConfig(beam_size=beam_size, max_words=max_words)
        found: dict[str, list[Hypothesis]] = {}
        for batch in tqdm(kept, desc=f"beam {beam_size}", unit=" batches", delay=2):
            found |= batch.search(model.decoder, search)
        for penalty in LENGTH_PENALTIES:
            ranked = {source: rank(hypotheses, penalty) for source, hypotheses in found.items()}
            tried[replace(search, length_penalty=penalty)] = score(_texts(ranked, stored.vocabulary))
    best = max(tried, key=lambda config: tried[config])
    return best, {f"beam {c.beam_size}, length penalty {c.length_penalty}": v for c, v in tried.items()}
