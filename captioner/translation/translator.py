"""Translator: from sentences to translations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from captioner.backends.torch_backend import TorchDecoder, choose_device, limit_threads
from captioner.config import DecodingOptions, Device, TranslationConfig
from captioner.decoding.generate import generate_captions
from captioner.decoding.search import Hypothesis
from captioner.errors import CaptionerError, reject_string
from captioner.figures.style import DEFAULT_STYLE, FigureStyle
from captioner.model.batch import to_device
from captioner.translation.model import TranslationModel, load_translation_checkpoint
from captioner.translation.sentences import Sentences, sentence_tokens
from captioner.vocabulary import WORD_START, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captioner.figures.matrix import AttentionMatrix, HasMatrix


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A translation and the attention of each of its words.

    `alphas[t, i]` is the attention on word i of the sentence when word t was chosen; each word's sum to one.
    The model reads and writes subwords: attention is summed over the subwords of a source word, and averaged
    over those of a target word. `log_prob` is the natural logarithm of the translation's probability, its
    end included.
    """

    sentence: str
    text: str
    sentence_words: tuple[str, ...]
    words: tuple[str, ...]
    log_prob: float
    alphas: Float[np.ndarray, "words sentence_words"]

    def matrix(self) -> "AttentionMatrix":
        """The alignment: target words by source words (Bahdanau et al. 2015, figure 3)."""
        from captioner.figures.matrix import AttentionMatrix

        return AttentionMatrix(
            title=self.text,
            rows=self.words,
            weights=self.alphas,
            groups=tuple((word, 1) for word in self.sentence_words),
            positions="words of the sentence",
        )

    def plot(self, *others: "HasMatrix", style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """The alignment as a heatmap, beside other translations or captions (`captioner.figures.matrix`)."""
        from captioner.figures.matrix import draw_matrices

        return draw_matrices([self, *others], style=style)

    def _repr_html_(self) -> str:
        """Notebooks show a translation as its figure, with the text as alternative."""
        from captioner.figures.files import figure_as_html

        return figure_as_html(self.plot(), alternative=self.text)


class Translator:
    """A model that is ready to translate sentences."""

    def __init__(self, *, model: TranslationModel, config: TranslationConfig, vocabulary: Vocabulary) -> None:
        self.model, self.config, self.vocabulary = model.eval(), config, vocabulary

    @classmethod
    def load(cls, folder: Path | str, *, device: Device = "auto") -> "Translator":
        """Load a model folder.

        Raises:
            captioner.errors.ModelFolderError: the folder is not a complete and valid translator.
            captioner.errors.CaptionerError: there is no such device.
        """
        checkpoint = load_translation_checkpoint(Path(folder))
        limit_threads()
        model = checkpoint.model.to(choose_device(device))
        return cls(model=model, config=checkpoint.config, vocabulary=checkpoint.vocabulary)

    def translate(
        self, sentences: Sequence[str], *, options: DecodingOptions | None = None, batch_size: int = 32
    ) -> list[Translation]:
        """Translate sentences, by default with the options that scored best on the model's dev split; a blank
        sentence stays blank. Samples depend on a sentence's index.

        Raises:
            captioner.errors.CaptionerError: the options name words to include.
        """
        reject_string(sentences, "sentences")
        options = options or self.config.decoding
        if options.must_include:
            raise CaptionerError("translations cannot be made to include words; leave must_include out")
        lengths = [len(self.vocabulary.split(text)) for text in sentences]
        order = [index for index, length in enumerate(lengths) if length]
        order.sort(key=lambda index: lengths[index])  # for little padding
        found: dict[int, Hypothesis] = {}
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="translating", unit=" batches", delay=2):
            indices = order[start : start + batch_size]
            hypotheses = self._generate([sentences[index] for index in indices], indices, options)
            found |= zip(indices, hypotheses, strict=True)
        return [self._translation(text, found.get(index)) for index, text in enumerate(sentences)]

    @torch.inference_mode()
    def _generate(
        self, sentences: Sequence[str], numbers: Sequence[int], options: DecodingOptions
    ) -> list[Hypothesis]:
        """The best hypothesis of each."""
        batch = Sentences.from_tokens([sentence_tokens(self.vocabulary, text) for text in sentences])
        device = next(self.model.parameters()).device
        annotations, cell_mask = self.model.encoder.annotations_of(to_device(batch, device))
        decoder = TorchDecoder(self.model.decoder, cell_mask)
        found = generate_captions(decoder, annotations, options, numbers=numbers)
        return [hypotheses[0] for hypotheses in found]

    def _translation(self, sentence: str, found: Hypothesis | None) -> Translation:
        source = self.vocabulary.split(sentence)
        target = [] if found is None else self.vocabulary.decode(found.tokens)
        source_words, words = _join_subwords(source), _join_subwords(target)
        alphas = np.zeros((len(words), len(source_words)))
        if found is not None:
            by_subword = found.alphas.mean(axis=1)[:, : len(source)]  # over heads; the rest is padding
            by_word = np.stack([by_subword[:, span].sum(axis=1) for _, span in source_words], axis=1)
            alphas = np.stack([by_word[span].mean(axis=0) for _, span in words]) if words else alphas
        return Translation(
            sentence=sentence,
            text="" if found is None else self.vocabulary.caption(found.tokens),
            sentence_words=tuple(word for word, _ in source_words),
            words=tuple(word for word, _ in words),
            log_prob=0.0 if found is None else found.log_prob,
            alphas=alphas,
        )


def _join_subwords(subwords: Sequence[str]) -> list[tuple[str, slice]]:
    """The words that subwords spell, each with its span. Punctuation after a word is a word of its own."""
    starts = [index for index in range(len(subwords)) if index == 0 or _starts_word(subwords, index)]
    spans = [slice(start, end) for start, end in pairwise([*starts, len(subwords)])]
    return [("".join(subwords[span]).replace(WORD_START, ""), span) for span in spans]


def _starts_word(subwords: Sequence[str], index: int) -> bool:
    if subwords[index].startswith(WORD_START):
        return True
    rest = takewhile(lambda subword: not subword.startswith(WORD_START), subwords[index:])
    is_punctuation = not any(character.isalnum() for subword in rest for character in subword)
    return is_punctuation and subwords[index - 1] != WORD_START
