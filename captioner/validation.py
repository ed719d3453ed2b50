"""Scores of decoded captions on a dev split, and the decoding that scores best there."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from captioner.checkpoint import load_checkpoint, save_checkpoint
from captioner.config import DecodingConfig
from captioner.data import CaptionedImage
from captioner.decoder import Decoder
from captioner.decoding import search_captions
from captioner.metrics import Scores, score_captions
from captioner.search import Hypothesis, rank
from captioner.vocabulary import Vocabulary

BEAM_SIZES = (1, 3, 5, 8)
LENGTH_PENALTIES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
"""What `choose_decoding` tries."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The records of a split and their grids, in the same order."""

    records: Sequence[CaptionedImage]
    grids: Float[np.ndarray, "images cells annotation"]

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        return {record.image_id: record.captions for record in self.records}


def search_grids(
    decoder: Decoder,
    grids: Float[np.ndarray, "images cells annotation"],
    config: DecodingConfig,
    *,
    batch_size: int = 32,
) -> Iterator[list[Hypothesis]]:
    """Hypotheses for each picture, from cached grids, without dropout."""
    was_training = decoder.training
    decoder.eval()
    device = next(decoder.parameters()).device
    for start in range(0, len(grids), batch_size):
        annotations = torch.from_numpy(grids[start : start + batch_size].astype(np.float32)).to(device)
        yield from search_captions(decoder, annotations, config)
    decoder.train(was_training)


def validate(
    decoder: Decoder, split: Split, *, vocabulary: Vocabulary, config: DecodingConfig
) -> tuple[Scores, dict[str, str]]:
    """Caption the pictures by search, not by teacher forcing, and score what a user would be shown."""
    found = list(search_grids(decoder, split.grids, config))
    captions = _captions(split, found, vocabulary)
    return score_captions(captions, split.references), captions


def _captions(split: Split, found: Sequence[Sequence[Hypothesis]], vocabulary: Vocabulary) -> dict[str, str]:
    return {
        record.image_id: vocabulary.caption(hypotheses[0].tokens)
        for record, hypotheses in zip(split.records, found, strict=True)
    }


def choose_decoding(
    decoder: Decoder, split: Split, *, vocabulary: Vocabulary, max_words: int
) -> tuple[DecodingConfig, dict[str, float]]:
    """The beam size and length penalty with the highest CIDEr, and the CIDEr of all that were tried.

    The hypotheses of a search do not depend on the length penalty, which only ranks them: one search
    for each beam size serves all penalties.
    """
    tried: dict[DecodingConfig, float] = {}
    for beam_size in BEAM_SIZES:
        search = DecodingConfig(beam_size=beam_size, max_words=max_words)
        found = list(search_grids(decoder, split.grids, search))
        for penalty in LENGTH_PENALTIES:
            ranked = [rank(hypotheses, penalty) for hypotheses in found]
            captions = _captions(split, ranked, vocabulary)
            config = replace(search, length_penalty=penalty)
            tried[config] = score_captions(captions, split.references, with_meteor=False).cider
    best = max(tried, key=lambda config: tried[config])
    return best, {f"beam {c.beam_size}, length penalty {c.length_penalty}": v for c, v in tried.items()}


def settle_decoding(folder: Path, dev: Split) -> Scores:
    """Give a trained model the decoding that scores best on dev, and its scores with that.

    The decoder is loaded as it was saved, in half precision; the grids are those of the cache.
    """
    checkpoint = load_checkpoint(folder)
    decoder, vocabulary = checkpoint.model.decoder, checkpoint.vocabulary
    decoding, tried = choose_decoding(
        decoder, dev, vocabulary=vocabulary, max_words=checkpoint.config.decoding.max_words
    )
    scores, _ = validate(decoder, dev, vocabulary=vocabulary, config=decoding)
    metrics = checkpoint.metrics | {"dev": {**asdict(decoding), **asdict(scores)}, "decoding_cider": tried}
    config = replace(checkpoint.config, decoding=decoding)
    save_checkpoint(folder, replace(checkpoint, config=config, metrics=metrics))
    return scores
