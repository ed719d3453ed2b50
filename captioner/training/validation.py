"""Validation on decoded texts, and tuning of decoding options."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from captioner.backends.torch_backend import TorchDecoder
from captioner.checkpoint.folder import Config
from captioner.checkpoint.weights import Checkpoint
from captioner.config import DecodingOptions
from captioner.data.batching import CaptionedDataset, load_batches
from captioner.data.epoch_order import in_order
from captioner.decoding.generate import generate_captions
from captioner.decoding.search import Hypothesis, rank
from captioner.model.captioning import AttentionModel, EncoderT
from captioner.model.decoder import Decoder
from captioner.training.loss import CaptionLoss
from captioner.vocabulary import Vocabulary

BEAM_SIZES = (1, 3, 5, 8)
LENGTH_PENALTIES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Candidates of `choose_decoding`."""

TRIED = "decoding_scores"
"""What a model's metrics call the scores of all that were tried."""

_BATCH_SIZE = 32

Scores = TypeVar("Scores")


@dataclass(frozen=True)
class EncodedBatch:
    """Annotations of a batch of sources; `cell_mask` as in `captioner.model.decoder`."""

    ids: tuple[str, ...]
    annotations: Float[Tensor, "batch cells annotation"]
    cell_mask: Bool[Tensor, "batch cells"] | None

    def offloaded(self) -> "EncodedBatch":
        """The batch in half precision and in main memory, to be kept."""
        return replace(self, annotations=self.annotations.half().cpu())

    def generate(self, decoder: Decoder[Any], options: DecodingOptions) -> dict[str, list[Hypothesis]]:
        device = next(decoder.parameters()).device
        cell_mask = None if self.cell_mask is None else self.cell_mask.to(device)
        annotations = self.annotations.to(device).float()
        found = generate_captions(TorchDecoder(decoder, cell_mask), annotations, options)
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
    """The annotations of a process's share of the sources, batch by batch."""
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
    options: DecodingOptions,
    score: Callable[[dict[str, str]], Scores],
    num_workers: int = 0,
) -> tuple[Scores, dict[str, str]]:
    """Generate a text for each source by search, not by teacher forcing, and score it as shown to a user.

    `score` takes the texts by the sources' ids. The model must be in evaluation mode. Several processes
    share the sources, each of which is decoded once, and all get the same scores.
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
        own |= _texts(batch.generate(model.decoder, options), vocabulary)
    shares = gather_object([own])
    texts = {source: text for share in shares for source, text in share.items()}
    if not len(texts) == sum(map(len, shares)) == len(dataset):
        raise RuntimeError(f"{len(dataset)} sources were decoded {sum(map(len, shares))} times")
    scores: list[Any] = [score(texts) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(scores)
    return scores[0], texts


@torch.inference_mode()
def dev_loss(model: AttentionModel[Any], dataset: CaptionedDataset) -> float:
    """Cross-entropy per word of the sources' own captions, by teacher forcing, in nats. The model must be in
    evaluation mode. Of several processes, the first computes it for all."""
    state = PartialState()
    found: list[Any] = [_dev_loss(model, dataset) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return float(found[0])


def _dev_loss(model: AttentionModel[Any], dataset: CaptionedDataset) -> float:
    device = next(model.parameters()).device
    loss, total, words = CaptionLoss(label_smoothing=0.0, attention_penalty=0.0), 0.0, 0
    for loaded in load_batches(dataset, in_order(len(dataset), batch_size=_BATCH_SIZE), num_workers=0):
        batch = loaded.to(device)
        num_words = int(batch.lengths.sum())
        total += float(loss(model(batch), batch)["cross_entropy"]) * num_words
        words += num_words
    return total / words


def _texts(found: Mapping[str, Sequence[Hypothesis]], vocabulary: Vocabulary) -> dict[str, str]:
    return {source: vocabulary.caption(hypotheses[0].tokens) for source, hypotheses in found.items()}


def choose_decoding(
    checkpoint: Checkpoint[EncoderT, Config],
    dataset: CaptionedDataset,
    *,
    score: Callable[[dict[str, str]], float],
    num_workers: int = 0,
) -> tuple[DecodingOptions, dict[str, float]]:
    """The beam size and length penalty whose texts have the highest score, and the scores of all tried.

    The hypotheses of a search do not depend on the length penalty, which only ranks them: one search
    per beam size serves all penalties. The other options stay the model's own, and all do if it samples.
    """
    model, own = checkpoint.model, checkpoint.config.decoding
    if own.sample:
        return own, {}
    kept = [batch.offloaded() for batch in encoded_batches(model, dataset, num_workers=num_workers)]
    tried: dict[DecodingOptions, float] = {}
    for beam_size in BEAM_SIZES:
        options = replace(own, beam_size=beam_size)
        found: dict[str, list[Hypothesis]] = {}
        for batch in tqdm(kept, desc=f"beam {beam_size}", unit=" batches", delay=2):
            found |= batch.generate(model.decoder, options)
        for penalty in LENGTH_PENALTIES:
            ranked = {source: rank(hypotheses, penalty) for source, hypotheses in found.items()}
            tried[replace(options, length_penalty=penalty)] = score(_texts(ranked, checkpoint.vocabulary))
    best = max(tried, key=lambda options: tried[options])
    return best, {f"beam {c.beam_size}, length penalty {c.length_penalty}": v for c, v in tried.items()}


def dev_entry(options: DecodingOptions, scores: Any) -> dict[str, Any]:
    """What a model's metrics say of dev: its scores, a dataclass, and the options they were reached with."""
    return {"beam_size": options.beam_size, "length_penalty": options.length_penalty, **asdict(scores)}
