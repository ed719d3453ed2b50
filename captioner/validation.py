"""Scores of decoded captions on a dev split, and the decoding that scores best there."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from captioner.config import DecodingConfig
from captioner.data import CaptionedImage
from captioner.decoder import Decoder
from captioner.decoding import search_captions
from captioner.metrics import Scores, score_captions
from captioner.search import Hypothesis, rank
from captioner.vocabulary import Vocabulary, detokenize

BEAM_SIZES = (1, 3, 5, 8)
LENGTH_PENALTIES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
"""What `choose_decoding` tries."""


def search_grids(
    decoder: Decoder,
    grids: Float[np.ndarray, "images cells annotation"],
    config: DecodingConfig,
    *,
    batch_size: int = 32,
) -> Iterator[list[Hypothesis]]:
    """Hypotheses for each picture, from cached grids."""
    device = next(decoder.parameters()).device
    for start in range(0, len(grids), batch_size):
        annotations = torch.from_numpy(grids[start : start + batch_size].astype(np.float32)).to(device)
        yield from search_captions(decoder, annotations, config)


def caption_text(hypotheses: Sequence[Hypothesis], vocabulary: Vocabulary) -> str:
    """The caption that a user is shown: the best hypothesis, or nothing where there is none."""
    return detokenize(vocabulary.decode(hypotheses[0].tokens)) if hypotheses else ""


def validate(
    decoder: Decoder,
    *,
    records: Sequence[CaptionedImage],
    grids: Float[np.ndarray, "images cells annotation"],
    vocabulary: Vocabulary,
    config: DecodingConfig,
) -> tuple[Scores, Mapping[str, str]]:
    """Caption the pictures by search, not by teacher forcing, and score what a user would be shown."""
    was_training = decoder.training
    decoder.eval()
    found = search_grids(decoder, grids, config)
    captions = {
        record.image_id: caption_text(hypotheses, vocabulary)
        for record, hypotheses in zip(records, found, strict=True)
    }
    decoder.train(was_training)
    return score_captions(captions, references_of(records)), captions


def references_of(records: Sequence[CaptionedImage]) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for record in records}


def choose_decoding(
    decoder: Decoder,
    *,
    records: Sequence[CaptionedImage],
    grids: Float[np.ndarray, "images cells annotation"],
    vocabulary: Vocabulary,
    max_words: int,
) -> tuple[DecodingConfig, dict[str, float]]:
    """The beam size and length penalty with the highest CIDEr, and the CIDEr of all that were tried.

    The hypotheses of a search do not depend on the length penalty, which only ranks them: one search
    for each beam size serves all penalties.
    """
    decoder.eval()
    tried: dict[DecodingConfig, float] = {}
    for beam_size in BEAM_SIZES:
        search = DecodingConfig(beam_size=beam_size, max_words=max_words)
        found = list(search_grids(decoder, grids, search))
        for penalty in LENGTH_PENALTIES:
            captions = {
                record.image_id: caption_text(rank(hypotheses, penalty), vocabulary)
                for record, hypotheses in zip(records, found, strict=True)
            }
            config = DecodingConfig(beam_size=beam_size, length_penalty=penalty, max_words=max_words)
            tried[config] = score_captions(captions, references_of(records), with_meteor=False).cider
    best = max(tried, key=lambda config: tried[config])
    return best, {f"beam {c.beam_size}, length penalty {c.length_penalty}": v for c, v in tried.items()}
