"""Grounding: whether attention falls on the objects that words name.

The pointing game is that of Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from captioner.caption import Caption
from captioner.errors import CaptionerError
from captioner.objects.categories import Mention, mentions
from captioner.objects.instances import Masks

METHODS = ("model", "uniform", "gaussian", "shuffled")
"""A word's attention, and the baselines that it is compared with:

model       the word's attention
uniform     uniform attention
gaussian    a Gaussian around the picture's centre, with a standard deviation of a quarter of each side
shuffled    the attention of the caption's other words, on average
"""

_GAUSSIAN_STD = 0.25  # of a side
_NUM_RESAMPLES = 5_000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class GroundedWord:
    """Match of attention and the region of a word, by `METHODS`.

    `hits` says whether the most attended point lies in the region, or with what probability, and `shares`
    how much of the attention lies there.
    """

    category: str
    hits: Float[np.ndarray, " methods"]
    shares: Float[np.ndarray, " methods"]


@dataclass(frozen=True)
class UnannotatedWord:
    """A word for something that is not annotated in the picture."""

    category: str


def grounded_words(caption: Caption, masks: Masks) -> Iterator[GroundedWord | UnannotatedWord]:
    """The words of a caption that name a category. `masks` are the picture's regions at its full size.

    A caption without other words is skipped, because it has nothing to compare with.
    """
    for mention in mentions(caption.tokens):
        if mention.category not in masks:
            yield UnannotatedWord(mention.category)
        elif mention.stop - mention.start < len(caption.tokens):
            yield _grounded(caption, mention, masks[mention.category])


def _grounded(caption: Caption, mention: Mention, region: Bool[np.ndarray, "height width"]) -> GroundedWord:
    """The mean over the words of a name, and over all other words of the caption."""
    height, width = region.shape
    by_word = np.array(
        [_match(caption.heatmap(index, (width, height)), region) for index in range(len(caption.tokens))]
    )
    is_named = np.zeros(len(caption.tokens), dtype=bool)
    is_named[mention.start : mention.stop] = True
    area = float(region.mean())
    by_method = np.array(
        [
            by_word[is_named].mean(axis=0),
            (area, area),
            _match(_gaussian(height, width), region),
            by_word[~is_named].mean(axis=0),
        ]
    )
    return GroundedWord(category=mention.category, hits=by_method[:, 0], shares=by_method[:, 1])


def _match(
    heat: Float[np.ndarray, "height width"], region: Bool[np.ndarray, "height width"]
) -> tuple[float, float]:
    """Whether the most attended pixel lies in the region, and the share of the attention that does."""
    return float(region.flat[heat.argmax()]), float(heat[region].sum() / heat.sum())


def _gaussian(height: int, width: int) -> Float[np.ndarray, "height width"]:
    y, x = (
        np.exp(-0.5 * (((np.arange(side) + 0.5) / side - 0.5) / _GAUSSIAN_STD) ** 2)
        for side in (height, width)
    )
    return np.outer(y, x)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over words, with its interval of confidence `CONFIDENCE`."""

    value: float
    low: float
    high: float


def estimates(
    pictures: Sequence[Sequence[Float[np.ndarray, " columns"]]], *, seed: int = 0
) -> list[Estimate]:
    """The mean of each column over all words, which are given by picture.

    The interval is a bootstrap over whole pictures, because the words of a picture are not independent
    (Efron and Tibshirani 1993). Empty if there are no words.
    """
    words = [np.asarray(picture) for picture in pictures if len(picture)]
    if not words:
        return []
    sums, counts = (
        np.array([values.sum(axis=0) for values in words]),
        np.array([len(values) for values in words]),
    )
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(words), np.full(len(words), 1 / len(words)), size=_NUM_RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return [
        Estimate(value=float(value), low=float(bottom), high=float(top))
        for value, bottom, top in zip(sums.sum(axis=0) / counts.sum(), low, high, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Grounding over the captions of many pictures. All values are shares in [0, 1].

    `pointing_game` and `attention_share` are by method; `pointing_margin` and `share_margin` are the
    model's minus each baseline's, whose intervals show whether the model is better.
    """

    num_pictures: int
    num_words: int
    num_unannotated: int
    pointing_game: Mapping[str, Estimate]
    attention_share: Mapping[str, Estimate]
    pointing_margin: Mapping[str, Estimate]
    share_margin: Mapping[str, Estimate]

    @classmethod
    def from_words(cls, pictures: Iterable[Iterable[GroundedWord | UnannotatedWord]]) -> "Grounding":
        """From the words of each picture. Raises: CaptionerError, if no word names an annotated category."""
        grounded: list[list[GroundedWord]] = []
        num_unannotated = 0
        for words in pictures:
            found = list(words)
            grounded.append([word for word in found if isinstance(word, GroundedWord)])
            num_unannotated += len(found) - len(grounded[-1])
        if not any(grounded):
            raise CaptionerError("no word of any caption names a category that is annotated in its picture")

        def by_method(values: Callable[[GroundedWord], np.ndarray]) -> dict[str, Estimate]:
            found = estimates([[values(word) for word in words] for words in grounded])
            return dict(zip(METHODS, found, strict=True))

        def margins(values: Callable[[GroundedWord], np.ndarray]) -> dict[str, Estimate]:
            found = by_method(lambda word: values(word)[0] - values(word))
            return {method: found[method] for method in METHODS[1:]}

        return cls(
            num_pictures=sum(map(bool, grounded)),
            num_words=sum(map(len, grounded)),
            num_unannotated=num_unannotated,
            pointing_game=by_method(lambda word: word.hits),
            attention_share=by_method(lambda word: word.shares),
            pointing_margin=margins(lambda word: word.hits),
            share_margin=margins(lambda word: word.shares),
        )
