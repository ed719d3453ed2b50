"""Settings that follow from the training captions."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from captioner.bounds import MOST_WORDS
from captioner.config import DecodingOptions
from captioner.tokenize import are_spaceless, tokenize
from captioner.training.recipe import Recipe
from captioner.vocabulary import UNK, Vocabulary

LEAST_COVERAGE = 0.5
"""Share of the words of the training captions that a vocabulary must have, to learn anything from them."""

_PERCENTILE = 99
_SHORTEST_LIMIT = DecodingOptions().max_words

_logger = logging.getLogger(__name__)


def caption_limit(lengths: Sequence[int]) -> int:
    """The default limit on a caption's words: the 99th percentile of the lengths, and at least 20."""
    return max(_SHORTEST_LIMIT, math.ceil(np.percentile(lengths or [0], _PERCENTILE)))


def fit_to_captions(recipe: Recipe, captions: Iterable[str]) -> Recipe:
    """The recipe with what its training captions decide, which is logged.

    `max_caption_words` is by default `caption_limit`. Captions are generated up to that length too, if it is
    more than 20 words and the recipe does not state another limit.
    """
    words_of = [tokenize(caption) for caption in captions]
    lengths = [len(words) for words in words_of]
    if are_spaceless(words_of):
        _logger.info("the captions are in a script without spaces: each of its characters counts as a word")
    training, decoding = recipe.training, recipe.decoding
    limit = training.max_caption_words or caption_limit(lengths)
    if decoding.max_words == _SHORTEST_LIMIT < limit:
        decoding = replace(decoding, max_words=min(limit, MOST_WORDS))
    _logger.info(
        "training captions are cut after %d words, which %s of %s exceed; generated ones have at most %d "
        "(--max-caption-words)",
        limit,
        f"{sum(length > limit for length in lengths):,}",
        f"{len(lengths):,}",
        decoding.max_words,
    )
    return replace(recipe, training=replace(training, max_caption_words=limit), decoding=decoding)


def coverage(captions: Iterable[str], vocabulary: Vocabulary) -> float:
    """The share of the words of captions that a vocabulary has."""
    ids = [token for caption in captions for token in vocabulary.encode(caption)[1:-1]]
    return sum(token != UNK for token in ids) / max(len(ids), 1)
