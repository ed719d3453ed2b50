"""Statistics of captions: length, variety, truncation and repetition."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from captioner.errors import reject_string
from captioner.tokenize import tokenize

_FUNCTION_WORDS = frozenset(
    tokenize(
        "a an the this that these those his its their my your our some each of in on at by to for from with "
        "without into onto over under through across near next beside between against while as and or but "
        "than is are was were be being been has have who which where"
    )
)
"""Words that are nearly always followed by another; 1 % of Flickr8k's captions end in one."""


@dataclass(frozen=True, kw_only=True)
class CaptionStatistics:
    """Statistics that need no references. Shares are in 0..1, of the captions.

    `vocabulary_size` counts the different words in all captions, and `mean_length` is in words.
    `truncated_share` is the share that ends in a function word, as in "a dog runs through the";
    `repetitive_share` is the share that says a word twice in a row, or any three words twice. Training for
    a metric can increase the last two while the scores improve.
    """

    mean_length: float
    vocabulary_size: int
    distinct_share: float
    truncated_share: float
    repetitive_share: float

    @classmethod
    def from_captions(cls, captions: Collection[str]) -> "CaptionStatistics":
        """Raises: ValueError, if there are no captions."""
        reject_string(captions, "captions")
        if not captions:
            raise ValueError("there are no captions")
        words_of = [tokenize(text) for text in captions]
        return cls(
            mean_length=sum(map(len, words_of)) / len(captions),
            vocabulary_size=len({word for words in words_of for word in words}),
            distinct_share=len(set(captions)) / len(captions),
            truncated_share=sum(bool(words) and words[-1] in _FUNCTION_WORDS for words in words_of)
            / len(captions),
            repetitive_share=sum(map(_repeats_itself, words_of)) / len(captions),
        )

    def named(self) -> dict[str, str]:
        """The values as printed."""
        return {
            "vocabulary": f"{self.vocabulary_size:,} words",
            "mean length": f"{self.mean_length:.1f} words",
            "distinct captions": f"{self.distinct_share:.1%}",
            "truncated": f"{self.truncated_share:.1%}",
            "repetitive": f"{self.repetitive_share:.1%}",
        }


def _repeats_itself(words: Sequence[str]) -> bool:
    in_a_row = any(word == after for word, after in pairwise(words))
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return in_a_row or len(set(threes)) < len(threes)
