"""Does attention lie where it should? Measured on words that name what is marked in the picture.

The pointing game is that of Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from captioner.captions import Caption
from captioner.categories import Mention, mentions
from captioner.errors import CaptionerError
from captioner.instances import Masks


class GroundingError(CaptionerError):
    """Captions that nothing can be measured on."""


METHODS = ("model", "uniform", "gaussian", "shuffled")
"""What lies where a word's attention lies, or what it is compared with:

model       the word's attention
uniform     attention that is the same everywhere
gaussian    a Gaussian around the picture's centre, of a deviation of a quarter of each side
shuffled    the attention of the caption's other words, on average
"""

_GAUSSIAN_DEVIATION = 0.25  # of a side
_NUM_RESAMPLES = 5_000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class GroundedWord:
    """How well attention meets the region of a word, by `METHODS`.

    `hits` says whether the most attended point lies in the region, or how probably it does, and `shares`
    how much of the attention lies there.
    """

    category: str
    hits: Float[np.ndarray, " methods"]
    shares: Float[np.ndarray, " methods"]


@dataclass(frozen=True)
class Unmarked:
    """A word for something that is not marked in the picture."""

    category: str


def grounded_words(caption: Caption, masks: Masks) -> Iterator[GroundedWord | Unmarked]:
    """The words of a caption that name a category. `masks` are the picture's regions at its full size.

    A caption of nothing else is left out, for it has no other word to compare with.
    """
    for mention in mentions(caption.tokens):
        if mention.category not in masks:
            yield Unmarked(mention.category)
        elif mention.stop - mention.start < len(caption.tokens):
            yield _grounded(caption, mention, masks[mention.category])


def _grounded(caption: Caption, mention: Mention, region: Bool[np.ndarray, "height width"]) -> GroundedWord:
    """The mean over the words of a name, and over all other words of the caption."""
    height, width = region.shape
    by_word = np.array(
        [_meets(caption.heatmap(place, (width, height)), region) for place in range(len(caption.tokens))]
    )
    is_named = np.zeros(len(caption.tokens), dtype=bool)
    is_named[mention.start : mention.stop] = True
    area = float(region.mean())
    by_method = np.array(
        [
            by_word[is_named].mean(axis=0),
            (area, area),
            _meets(_gaussian(height, width), region),
            by_word[~is_named].mean(axis=0),
        ]
    )
    return GroundedWord(category=mention.category, hits=by_method[:, 0], shares=by_method[:, 1])


def _meets(
    heat: Float[np.ndarray, "height width"], region: Bool[np.ndarray, "height width"]
) -> tuple[float, float]:
    """Whether the hottest pixel lies in the region, and the share of the heat that does."""
    return float(region.flat[heat.argmax()]), float(heat[region].sum() / heat.sum())


def _gaussian(height: int, width: int) -> Float[np.ndarray, "height width"]:
    y, x = (
        np.exp(-0.5 * (((np.arange(side) + 0.5) / side - 0.5) / _GAUSSIAN_DEVIATION) ** 2)
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

    The interval is the bootstrap's: whole pictures are drawn again, for the words of a picture are not
    independent (Efron and Tibshirani 1993). Nothing, where there are no words.
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
    """What the captions of many pictures give. All are shares in [0, 1].

    `pointing_game` and `attention_share` are by method; `pointing_margin` and `share_margin` are the
    model's less each baseline's, whose intervals tell whether the model is better.
    """

    num_pictures: int
    num_words: int
    num_unmarked: int
    pointing_game: Mapping[str, Estimate]
    attention_share: Mapping[str, Estimate]
    pointing_margin: Mapping[str, Estimate]
    share_margin: Mapping[str, Estimate]

    @classmethod
    def of(cls, pictures: Iterable[Iterable[GroundedWord | Unmarked]]) -> "Grounding":
        """From the words of each picture. Raises: GroundingError, where no word can be looked up."""
        grounded: list[list[GroundedWord]] = []
        num_unmarked = 0
        for words in pictures:
            found = list(words)
            grounded.append([word for word in found if isinstance(word, GroundedWord)])
            num_unmarked += len(found) - len(grounded[-1])
        if not any(grounded):
            raise GroundingError("no word of any caption names a category that is marked in its picture")

        def by_method(values: Callable[[GroundedWord], np.ndarray]) -> dict[str, Estimate]:
            found = estimates([[values(word) for word in words] for words in grounded])
            return dict(zip(METHODS, found, strict=True))

        def margins(values: Callable[[GroundedWord], np.ndarray]) -> dict[str, Estimate]:
            found = by_method(lambda word: values(word)[0] - values(word))
            return {method: found[method] for method in METHODS[1:]}

        return cls(
            num_pictures=sum(map(bool, grounded)),
            num_words=sum(map(len, grounded)),
            num_unmarked=num_unmarked,
            pointing_game=by_method(lambda word: word.hits),
            attention_share=by_method(lambda word: word.shares),
            pointing_margin=margins(lambda word: word.hits),
            share_margin=margins(lambda word: word.shares),
        )
