"""Does a word depend on where it looked? Its probability without the cells that it attended to most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from captioner.captions import Caption
from captioner.decoding import read_captions
from captioner.grounding import Estimate, GroundingError, estimates
from captioner.inference import Captioner

ERASED_SHARE = 0.2  # of the cells
_NUM_RANDOM = 5  # draws of as many of all cells, whose mean is taken
_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ErasedWord:
    """How far a word's log-probability falls, in nats, without some cells.

    `attended` is without those it attended to most, `random` without as many drawn at random, on average.
    """

    attended: float
    random: float


def erased_words(captioner: Captioner, captions: Sequence[Caption], *, seed: int = 0) -> list[ErasedWord]:
    """All words of captions of one picture, which the model wrote or was given.

    The cells are taken out of the grid, so that neither an earlier word nor the first state can tell of
    them; a decoder takes a grid of any number of cells. `seed` draws the random ones. Raises: ImageError.
    """
    if not captions:
        return []
    annotations = captioner.annotations(captions[0].picture)
    rng = np.random.default_rng(seed)
    return [word for caption in captions for word in _erased(captioner, caption, annotations, rng)]


def _erased(
    captioner: Captioner,
    caption: Caption,
    annotations: Any,
    rng: np.random.Generator,
) -> list[ErasedWord]:
    if not caption.tokens:
        return []
    alphas = caption.alphas.reshape(len(caption.tokens), -1)
    num_cells = alphas.shape[1]
    num_erased = max(round(ERASED_SHARE * num_cells), 1)
    most = np.argsort(-alphas, axis=1, kind="stable")[:, :num_erased]
    kept = [np.arange(num_cells)[None]]  # nothing is erased
    for place in range(len(caption.tokens)):
        draws = [rng.permutation(num_cells)[:num_erased] for _ in range(_NUM_RANDOM)]
        kept.append(np.stack([np.delete(np.arange(num_cells), cells) for cells in [most[place], *draws]]))
    whole = _log_probs(captioner, annotations, kept[0], caption)[0]
    without = _log_probs(captioner, annotations, np.concatenate(kept[1:]), caption)
    by_word = without.reshape(len(caption.tokens), 1 + _NUM_RANDOM, -1)
    return [
        ErasedWord(
            attended=float(whole[place] - by_word[place, 0, place]),
            random=float(whole[place] - by_word[place, 1:, place].mean()),
        )
        for place in range(len(caption.tokens))
    ]


def _log_probs(
    captioner: Captioner,
    annotations: Any,
    kept: Int[np.ndarray, "variants kept"],
    caption: Caption,
) -> Float[np.ndarray, "variants tokens"]:
    """Each word's log-probability, for grids that have but some cells."""
    ids = captioner.vocabulary.ids(caption.tokens)
    rows = []
    for start in range(0, len(kept), _BATCH_SIZE):
        cells = kept[start : start + _BATCH_SIZE]
        tokens = np.broadcast_to(ids, (len(cells), 1, len(ids)))
        log_probs, _ = read_captions(captioner.backend, annotations[0][cells], tokens)
        rows.append(log_probs[:, 0, : len(caption.tokens)])
    return np.concatenate(rows)


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """The mean fall of words' log-probability, in nats.

    `margin` is the fall without the attended cells less that without random ones; above 0, the words
    depend on where they looked. `share_more` is the share of words that fall more without the attended.
    """

    num_words: int
    erased_share: float
    attended: Estimate
    random: Estimate
    margin: Estimate
    share_more: Estimate

    @classmethod
    def of(cls, pictures: Sequence[Sequence[ErasedWord]]) -> "Faithfulness":
        """From the words of each picture. Raises: GroundingError, where there are none."""
        rows = [[_falls(word) for word in words] for words in pictures]
        if not any(rows):
            raise GroundingError("there are no words to erase cells for")
        attended, random, margin, share_more = estimates(rows)
        return cls(
            num_words=sum(map(len, rows)),
            erased_share=ERASED_SHARE,
            attended=attended,
            random=random,
            margin=margin,
            share_more=share_more,
        )


def _falls(word: ErasedWord) -> Float[np.ndarray, "4"]:
    difference = word.attended - word.random
    return np.array([word.attended, word.random, difference, difference > 0])
