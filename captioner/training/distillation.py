"""Distillation: a decoder of low rank learns to predict what a full one predicts."""

import copy
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from captioner.checkpoint.weights import CaptioningCheckpoint
from captioner.decoding.generate import generate_captions, padded
from captioner.errors import CaptionerError, ImageError
from captioner.images.prefetch import prefetch_batches
from captioner.inference import Captioner
from captioner.model.captioning import CaptioningModel
from captioner.model.decoder import Decoder, DecoderOutput
from captioner.model.lstm import LSTMDecoder
from captioner.records import CaptionedImage
from captioner.training.optim import OneCycle
from captioner.vocabulary import PAD, START

_GIVEN = 3  # captions by people for each picture; the others are the model's own
_BATCH_SIZE = 40  # pictures
_ATTENTION_WEIGHT = 0.1
_GRADIENT_CLIP = 1.0

_logger = logging.getLogger(__name__)

Texts = Int[Tensor, "pictures captions tokens"]
Lengths = Int[Tensor, "pictures captions"]


def distil(
    checkpoint: CaptioningCheckpoint,
    captioner: Captioner,
    records: Sequence[CaptionedImage],
    *,
    rank: int,
    epochs: int = 6,
    learning_rate: float = 3e-4,
    in_bf16: bool = False,
    seed: int = 0,
) -> CaptioningCheckpoint:
    """A model whose decoder has this rank and predicts what that of the checkpoint predicts.

    The LSTM's and the output layer's matrices become those of the rank that are closest on their inputs.
    Then the whole decoder learns the full one's distributions over words (Hinton et al. 2015, "Distilling
    the Knowledge in a Neural Network") and its attention, both by their divergence, on the records' captions
    and on those that the model itself finds (Kim and Rush 2016, "Sequence-Level Knowledge Distillation").
    `captioner` runs the same model. The annotations of all records are kept in memory, in half precision.

    Raises:
        ImageError: a picture cannot be read.
        CaptionerError: the decoder is not an LSTM of full rank.
    """
    teacher = checkpoint.model.decoder.eval()
    if not isinstance(teacher, LSTMDecoder) or checkpoint.config.decoder.rank is not None:
        raise CaptionerError("only an LSTM of full rank can be reduced")
    annotations, tokens, lengths = _captions_of(captioner, records, seed)
    student = copy.deepcopy(teacher)
    student.reduce_rank(rank, second_moments(teacher, _batches(annotations, tokens, lengths)))
    rng = torch.Generator().manual_seed(seed)
    parameters = list(student.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    steps = epochs * -(-len(records) // _BATCH_SIZE)
    schedule = OneCycle(learning_rate, 0, steps)
    step = 0  # a bar that is not shown does not count
    with tqdm(total=steps, desc="distilling", unit=" steps", disable=None) as bar:
        for epoch in range(epochs):
            mean = 0.0
            for number, batch in enumerate(_batches(annotations, tokens, lengths, rng), start=1):
                divergence = _learn(student, teacher, batch, in_bf16=in_bf16)
                nn.utils.clip_grad_norm_(parameters, _GRADIENT_CLIP)
                optimizer.param_groups[0]["lr"] = schedule.at(step)
                optimizer.step()
                optimizer.zero_grad()
                mean += (divergence - mean) / number
                step += 1
                bar.update()
            _logger.info("epoch %d: divergence from the full model %.4f nats a word", epoch + 1, mean)
    return replace(
        checkpoint,
        model=CaptioningModel(encoder=checkpoint.model.encoder, decoder=student.requires_grad_(False)),
        config=replace(checkpoint.config, decoder=student.config),
        metrics={"divergence": mean, "reduced_from": checkpoint.metrics},
    )


def _captions_of(
    captioner: Captioner, records: Sequence[CaptionedImage], seed: int
) -> tuple[Float[Tensor, "pictures cells annotation"], Texts, Lengths]:
    """The pictures' annotations, and the captions that the model finds and some of those that are given."""
    vocabulary, options = captioner.vocabulary, captioner.config.decoding
    rng, longest = random.Random(seed), options.max_words + 2
    annotations = []
    captions: list[list[list[int]]] = []
    sources = (record.source for record in records)
    loaded = prefetch_batches(sources, captioner.preprocess.load, batch_size=_BATCH_SIZE)
    with tqdm(total=len(records), desc="captioning", unit=" pictures", disable=None) as bar:
        for batch in loaded:
            for _, pixels in batch:
                if isinstance(pixels, ImageError):
                    raise pixels
            encoded = captioner.backend.encode(np.stack([np.asarray(pixels) for _, pixels in batch]))
            found = generate_captions(captioner.backend, encoded, options)
            first = len(captions)
            for hypotheses, record in zip(found, records[first : first + len(batch)], strict=True):
                own = [[START, *hypothesis.tokens] for hypothesis in hypotheses]
                chosen = rng.sample(record.captions, min(_GIVEN, len(record.captions)))
                captions.append(own + [vocabulary.encode(text)[:longest] for text in chosen])
            annotations.append(torch.as_tensor(encoded).half().cpu())
            bar.update(len(batch))
    most = max(map(len, captions))
    rows = padded([one for each in captions for one in (*each, *[[PAD]] * (most - len(each)))])
    tokens = torch.from_numpy(rows).unflatten(0, (len(captions), most))
    return torch.cat(annotations), tokens, ((tokens != PAD).sum(dim=2) - 1).clamp(min=0)


Batch = tuple[Float[Tensor, "batch cells annotation"], Texts, Lengths]


def _batches(
    annotations: Tensor, tokens: Texts, lengths: Lengths, rng: torch.Generator | None = None
) -> Iterator[Batch]:
    """Some pictures at a time, with `rng` in a random order."""
    order = torch.arange(len(tokens)) if rng is None else torch.randperm(len(tokens), generator=rng)
    for chosen in order.split(_BATCH_SIZE):
        yield annotations[chosen].float(), tokens[chosen], lengths[chosen]


@torch.no_grad()
def second_moments(
    decoder: LSTMDecoder, batches: Iterator[Batch]
) -> dict[str, Float[Tensor, "inputs inputs"]]:
    """The sum of x x^T over the inputs x of the layers "lstm" and "output", on captions of pictures."""
    moments: dict[str, Any] = dict.fromkeys(("lstm", "output"), 0)
    hooks = []
    for name in moments:

        def add(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            rows = inputs[0].flatten(0, -2).double()
            moments[name] = moments[name] + rows.T @ rows

        hooks.append(decoder.get_submodule(name).register_forward_pre_hook(add))
    for annotations, tokens, lengths in batches:
        decoder(annotations, tokens, lengths)
    for hook in hooks:
        hook.remove()
    return moments


def _learn(student: Decoder[Any], teacher: Decoder[Any], batch: Batch, *, in_bf16: bool) -> float:
    """Accumulate the gradient of the loss; returns the divergence of the words, in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
        with torch.no_grad():
            wanted = teacher(*batch)
        given = student(*batch)
    divergence = words_divergence(wanted, given)
    (divergence + _ATTENTION_WEIGHT * attention_divergence(wanted, given)).backward()
    return float(divergence.detach())


def words_divergence(wanted: DecoderOutput, given: DecoderOutput) -> Float[Tensor, ""]:
    """KL(wanted || given) of the next word, in nats, the mean over all words."""
    expected, found = (output.logits.float().log_softmax(dim=-1) for output in (wanted, given))
    return nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True)


def attention_divergence(wanted: DecoderOutput, given: DecoderOutput) -> Float[Tensor, ""]:
    """KL(wanted || given) of the attention, in nats, the mean over all words."""
    expected, found = (output.alphas[wanted.word_mask].clamp(min=1e-8).log() for output in (wanted, given))
    return nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True)
