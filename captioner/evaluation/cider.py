"""CIDEr-D of single captions, fast enough to reward sampled ones in training."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Words = Sequence[str]
NGram = tuple[str, ...]

_LONGEST = 4
_SIGMA = 6.0
_SCALE = 10.0


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of a caption's n-grams, by n, and the norms of these vectors."""

    weights: tuple[dict[NGram, float], ...]
    norms: tuple[float, ...]
    num_words: int


class CiderD:
    """CIDEr-D (Vedantam et al. 2015) with document frequencies from one set of captions, such as train.

    The n-grams of a caption and of each reference, n in 1..4, are compared by the cosine of their TF-IDF
    vectors, the caption's clipped to the reference's, times a Gaussian of the difference of their
    lengths; that is averaged over n and references and multiplied by 10, as in pycocoevalcap.
    """

    def __init__(self, documents: Iterable[Sequence[Words]]) -> None:
        """`documents` are pictures, each as the words of its captions."""
        counts: Counter[NGram] = Counter()
        num_documents = 0
        for captions in documents:
            counts.update({ngram for words in captions for ngrams in _ngrams(words) for ngram in ngrams})
            num_documents += 1
        self._log_frequencies = {ngram: math.log(count) for ngram, count in counts.items()}
        self._log_documents = math.log(max(num_documents, 1))

    def scores(self, captions: Sequence[Words], references: Sequence[Words]) -> list[float]:
        """Score captions of one picture: from 0, nothing in common with its references, to 10, identical."""
        reference_vectors = [self._vector(words) for words in references]
        return [
            sum(_similarity(vector, reference) for reference in reference_vectors) / len(references)
            for vector in map(self._vector, captions)
        ]

    def _vector(self, words: Words) -> _Vector:
        log_frequencies, log_documents = self._log_frequencies, self._log_documents
        weights = tuple(
            {
                ngram: count * (log_documents - log_frequencies.get(ngram, 0.0))
                for ngram, count in Counter(ngrams).items()
            }
            for ngrams in _ngrams(words)
        )
        norms = tuple(math.sqrt(sum(value * value for value in by_ngram.values())) for by_ngram in weights)
        return _Vector(weights, norms, len(words))


def _ngrams(words: Words) -> list[list[NGram]]:
    """The n-grams by n, each as often as it occurs."""
    return [list(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, _LONGEST + 1)]


def _similarity(caption: _Vector, reference: _Vector) -> float:
    """As in the reference implementation, the length is the number of bigrams: 0 for a single word."""
    total = 0.0
    for weights, other, norm, other_norm in zip(
        caption.weights, reference.weights, caption.norms, reference.norms, strict=True
    ):
        if norm and other_norm:
            shared = weights.keys() & other.keys()
            dot = sum(min(weights[ngram], other[ngram]) * other[ngram] for ngram in shared)
            total += dot / (norm * other_norm)
    difference = max(caption.num_words - 1, 0) - max(reference.num_words - 1, 0)
    return _SCALE * total / _LONGEST * math.exp(-(difference**2) / (2 * _SIGMA**2))
