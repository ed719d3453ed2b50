"""How captions are worded: how long, how varied, and whether they are broken off or repeat themselves."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from captioner.vocabulary import tokenize

_FUNCTION_WORDS = frozenset(
    tokenize(
        "a an the this that these those his its their my your our some each of in on at by to for from with "
        "without into onto over under through across near next beside between against while as and or but "
        "than is are was were be being been has have who which where"
    )
)
"""Words that nearly always lead on to another; of Flickr8k's own captions 1 % end in one."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What is said of captions without references. Shares are in 0..1, of the captions.

    `vocabulary_size` counts the different words in all captions, and `mean_length` is in words.
    `broken_off_share` are those that end in a function word, as in "a dog runs through the";
    `repetitive_share` are those that say a word twice in a row, or any three words twice. Training to a
    metric can drive up the last two while the scores rise.
    """

    mean_length: float
    vocabulary_size: int
    distinct_share: float
    broken_off_share: float
    repetitive_share: float

    @classmethod
    def of(cls, captions: Collection[str]) -> "Wording":
        """Raises: ValueError, if there are no captions."""
        if not captions:
            raise ValueError("there are no captions")
        words_of = [tokenize(text) for text in captions]
        return cls(
            mean_length=sum(map(len, words_of)) / len(captions),
            vocabulary_size=len({word for words in words_of for word in words}),
            distinct_share=len(set(captions)) / len(captions),
            broken_off_share=sum(bool(words) and words[-1] in _FUNCTION_WORDS for words in words_of)
            / len(captions),
            repetitive_share=sum(map(_repeats_itself, words_of)) / len(captions),
        )

    def named(self) -> dict[str, str]:
        """The figures as they are printed."""
        return {
            "vocabulary": f"{self.vocabulary_size:,} words",
            "mean length": f"{self.mean_length:.1f} words",
            "distinct captions": f"{self.distinct_share:.1%}",
            "broken off": f"{self.broken_off_share:.1%}",
            "repetitive": f"{self.repetitive_share:.1%}",
        }


def _repeats_itself(words: Sequence[str]) -> bool:
    in_a_row = any(word == after for word, after in pairwise(words))
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return in_a_row or len(set(threes)) < len(threes)
