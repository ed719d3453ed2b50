"""BLEU and chrF of translations as printed, by sacrebleu."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import sacrebleu


@dataclass(frozen=True, kw_only=True)
class TranslationScores:
    """Corpus scores in percent, with sacrebleu's defaults: BLEU with tokenizer 13a and case (Post 2018, "A
    Call for Clarity in Reporting BLEU Scores"), chrF with character 6-grams (Popovic 2015)."""

    bleu: float
    chrf: float

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.1f}, chrF {self.chrf:.1f}"


def score_translations(
    translations: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> TranslationScores:
    """Score one translation for each sentence against its references, both by the sentence's id.

    Raises:
        KeyError: a sentence of the references has no translation.
    """
    texts = [translations[sentence] for sentence in references]
    streams = [list(stream) for stream in zip_longest(*references.values())]
    return TranslationScores(
        bleu=sacrebleu.corpus_bleu(texts, streams).score, chrf=sacrebleu.corpus_chrf(texts, streams).score
    )
