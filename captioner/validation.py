"""Scores of decoded captions on a dev split, and the decoding that scores best there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float
from tqdm import tqdm

from captioner.checkpoint import load_checkpoint, save_checkpoint
from captioner.config import DecodingConfig, ModelConfig
from captioner.data import CaptionDataset, Split, load_batches
from captioner.dealing import in_order
from captioner.decoding import search_captions
from captioner.encoder import Encoder
from captioner.evaluation import caption_records
from captioner.images import Preprocess
from captioner.inference import Captioner
from captioner.metrics import Scores, score_captions
from captioner.model import AnyDecoder, CaptioningModel
from captioner.search import Hypothesis, rank
from captioner.torch_backend import TorchBackend, TorchDecoder, choose_device
from captioner.vocabulary import Vocabulary

BEAM_SIZES = (1, 3, 5, 8)
LENGTH_PENALTIES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
"""What `choose_decoding` tries."""

_BATCH_SIZE = 32
_NUM_MEASURED = 16  # pictures that a cell's field of view is measured on


@torch.inference_mode()
def annotations_of(
    model: CaptioningModel,
    dataset: CaptionDataset,
    *,
    num_workers: int = 0,
    process: int = 0,
    num_processes: int = 1,
) -> Iterator[tuple[tuple[str, ...], Float[torch.Tensor, "batch cells annotation"]]]:
    """Image ids and annotations of the pictures that fall to a process, batch by batch."""
    device = next(model.parameters()).device
    batches = in_order(len(dataset), batch_size=_BATCH_SIZE, process=process, num_processes=num_processes)
    loaded = load_batches(dataset, batches, num_workers=num_workers)
    for batch in tqdm(loaded, total=len(batches), desc="dev", unit=" batches", delay=2, disable=process > 0):
        yield batch.image_ids, model.annotations(batch.to(device))


def validate(
    model: CaptioningModel,
    dataset: CaptionDataset,
    *,
    vocabulary: Vocabulary,
    config: DecodingConfig,
    num_workers: int = 0,
) -> tuple[Scores, dict[str, str]]:
    """Caption the pictures by search, not by teacher forcing, and score what a user would be shown.

    The model must be in evaluation mode. Several processes share the pictures, each of which is
    captioned once, and all get the same scores.
    """
    state = PartialState()
    own: dict[str, str] = {}
    for image_ids, annotations in annotations_of(
        model,
        dataset,
        num_workers=num_workers,
        process=state.process_index,
        num_processes=state.num_processes,
    ):
        found = search_captions(TorchDecoder(model.decoder), annotations, config)
        own |= _captions(dict(zip(image_ids, found, strict=True)), vocabulary)
    shares = gather_object([own])
    captions = {image_id: text for share in shares for image_id, text in share.items()}
    if not len(captions) == sum(map(len, shares)) == len(dataset):
        raise RuntimeError(f"{len(dataset)} pictures were captioned {sum(map(len, shares))} times")
    scores: list[Scores | None] = [None]
    if state.is_main_process:
        scores = [score_captions(captions, dataset.split.references)]
    if state.num_processes > 1:
        broadcast_object_list(scores)
    assert scores[0] is not None
    return scores[0], captions


def _captions(found: Mapping[str, Sequence[Hypothesis]], vocabulary: Vocabulary) -> dict[str, str]:
    return {image_id: vocabulary.caption(hypotheses[0].tokens) for image_id, hypotheses in found.items()}


def choose_decoding(
    decoder: AnyDecoder,
    grids: Mapping[str, Float[np.ndarray, "cells annotation"]],
    references: Mapping[str, Sequence[str]],
    *,
    vocabulary: Vocabulary,
    max_words: int,
) -> tuple[DecodingConfig, dict[str, float]]:
    """The beam size and length penalty with the highest CIDEr, and the CIDEr of all that were tried.

    The hypotheses of a search do not depend on the length penalty, which only ranks them: one search
    for each beam size serves all penalties.
    """
    tried: dict[DecodingConfig, float] = {}
    for beam_size in BEAM_SIZES:
        search = DecodingConfig(beam_size=beam_size, max_words=max_words)
        found = _search(decoder, grids, search)
        for penalty in LENGTH_PENALTIES:
            ranked = {image_id: rank(hypotheses, penalty) for image_id, hypotheses in found.items()}
            scores = score_captions(_captions(ranked, vocabulary), references, with_meteor=False)
            tried[replace(search, length_penalty=penalty)] = scores.cider
    best = max(tried, key=lambda config: tried[config])
    return best, {f"beam {c.beam_size}, length penalty {c.length_penalty}": v for c, v in tried.items()}


def _search(
    decoder: AnyDecoder, grids: Mapping[str, Float[np.ndarray, "cells annotation"]], config: DecodingConfig
) -> dict[str, list[Hypothesis]]:
    device = next(decoder.parameters()).device
    image_ids = list(grids)
    found: dict[str, list[Hypothesis]] = {}
    starts = range(0, len(image_ids), _BATCH_SIZE)
    for start in tqdm(starts, desc=f"beam {config.beam_size}", unit=" batches", delay=2):
        chosen = image_ids[start : start + _BATCH_SIZE]
        annotations = torch.from_numpy(np.stack([grids[image_id] for image_id in chosen])).float()
        hypotheses = search_captions(TorchDecoder(decoder), annotations.to(device), config)
        found.update(zip(chosen, hypotheses, strict=True))
    return found


def settle_decoding(folder: Path, dev: CaptionDataset, *, num_workers: int = 0) -> Scores:
    """Give a trained model the decoding that scores best on dev, and its scores with that.

    How far a cell of its CNN sees is measured on the first dev pictures, for the figures. The model is
    loaded as it was saved, in half precision. The scores that are kept are those of the captions that
    caption.py prints for the dev pictures' files.
    """
    checkpoint, device = load_checkpoint(folder), choose_device("auto")
    model, vocabulary = checkpoint.model.to(device).eval(), checkpoint.vocabulary
    references = dev.split.references
    grids = {
        image_id: grid
        for image_ids, annotations in annotations_of(model, dev, num_workers=num_workers)
        for image_id, grid in zip(image_ids, annotations.half().cpu().numpy(), strict=True)
    }
    decoding, tried = choose_decoding(
        model.decoder,
        grids,
        references,
        vocabulary=vocabulary,
        max_words=checkpoint.config.decoding.max_words,
    )
    grid = replace(checkpoint.config.grid, field_px=_field_px(model.encoder, checkpoint.config, dev.split))
    config = replace(checkpoint.config, decoding=decoding, grid=grid)
    captioner = Captioner(backend=TorchBackend(model, device), config=config, vocabulary=vocabulary)
    scores = score_captions(caption_records(captioner, dev.split.records), references)
    metrics = checkpoint.metrics | {"dev": {**asdict(decoding), **asdict(scores)}, "decoding_cider": tried}
    save_checkpoint(folder, replace(checkpoint, config=config, metrics=metrics))
    return scores


def _field_px(encoder: Encoder, config: ModelConfig, split: Split) -> float | None:
    """How far a cell sees on the first pictures of a split. Raises: ImageError."""
    load = Preprocess(config.preprocess).load
    squashed = np.stack([load(record.source) for record in split.records[:_NUM_MEASURED]])
    images = torch.from_numpy(squashed).to(next(encoder.parameters()).device)
    return encoder.field_px(encoder.normalise(images), config.grid)
