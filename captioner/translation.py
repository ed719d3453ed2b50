"""From sentences to translations: the decoder that captions pictures, over the words of a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from captioner.batches import moved
from captioner.checkpoint import load_translation_checkpoint
from captioner.config import DEFAULT_STYLE, DecodingConfig, Device, FigureStyle, TranslationConfig
from captioner.decoding import search_captions
from captioner.model import TranslationModel
from captioner.search import Hypothesis
from captioner.sentences import Sentences, sentence_tokens
from captioner.torch_backend import TorchDecoder, choose_device
from captioner.vocabulary import WORD_START, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captioner.matrix import AttentionMatrix, HasMatrix


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A translation and what each of its words looked at.

    `alphas[t, i]` is the attention on word i of the sentence when word t was chosen; each word's sum to one.
    The model reads and writes parts of words: of a word of the sentence the parts are added up, of a word
    written the mean is taken. `log_prob` is the natural logarithm of the translation's probability, its end
    included.
    """

    sentence: str
    text: str
    sentence_words: tuple[str, ...]
    words: tuple[str, ...]
    log_prob: float
    alphas: Float[np.ndarray, "words sentence_words"]

    def matrix(self) -> "AttentionMatrix":
        """The alignment: words written by words read (Bahdanau et al. 2015, figure 3)."""
        from captioner.matrix import AttentionMatrix

        return AttentionMatrix(
            title=self.text,
            rows=self.words,
            weights=self.alphas,
            groups=tuple((word, 1) for word in self.sentence_words),
            places="words of the sentence",
        )

    def plot(self, *others: "HasMatrix", style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """The alignment as a heat map, beside other translations or captions (`captioner.matrix`)."""
        from captioner.matrix import draw_matrices

        return draw_matrices([self, *others], style=style)

    def _repr_html_(self) -> str:
        """How a notebook shows a translation: its figure, with the text in its place."""
        from captioner.figures import figure_as_html

        return figure_as_html(self.plot(), alternative=self.text)


class Translator:
    """A model that is ready to translate sentences."""

    def __init__(self, *, model: TranslationModel, config: TranslationConfig, vocabulary: Vocabulary) -> None:
        self.model, self.config, self.vocabulary = model.eval(), config, vocabulary

    @classmethod
    def load(cls, folder: Path | str, *, device: Device = "auto") -> "Translator":
        """Load a model folder.

        Raises:
            captioner.model_folder.CheckpointError: the folder is not a whole and sound translator.
            captioner.backends.DeviceError: the device is not there.
        """
        checkpoint = load_translation_checkpoint(Path(folder))
        model = checkpoint.model.to(choose_device(device))
        return cls(model=model, config=checkpoint.config, vocabulary=checkpoint.vocabulary)

    def translate(
        self, sentences: Sequence[str], *, decoding: DecodingConfig | None = None, batch_size: int = 32
    ) -> list[Translation]:
        """Translate sentences, by default as scored best on the model's dev split; a blank one stays so."""
        if isinstance(sentences, str):
            raise TypeError("sentences is a list of texts; put the one in brackets")
        num_parts = [len(self.vocabulary.split(text)) for text in sentences]
        wordy = [place for place, count in enumerate(num_parts) if count]
        wordy.sort(key=lambda place: num_parts[place])  # little is padding then
        found: dict[int, Hypothesis] = {}
        starts = range(0, len(wordy), batch_size)
        for start in tqdm(starts, desc="translating", unit=" batches", delay=2):
            places = wordy[start : start + batch_size]
            hypotheses = self._search([sentences[place] for place in places], decoding)
            found |= zip(places, hypotheses, strict=True)
        return [self._translation(text, found.get(place)) for place, text in enumerate(sentences)]

    @torch.inference_mode()
    def _search(self, sentences: Sequence[str], decoding: DecodingConfig | None) -> list[Hypothesis]:
        """The best hypothesis of each."""
        batch = Sentences.of([sentence_tokens(self.vocabulary, text) for text in sentences])
        device = next(self.model.parameters()).device
        annotations, is_cell = self.model.encoder.annotations_of(moved(batch, device))
        decoder = TorchDecoder(self.model.decoder, is_cell)
        found = search_captions(decoder, annotations, decoding or self.config.decoding)
        return [hypotheses[0] for hypotheses in found]

    def _translation(self, sentence: str, found: Hypothesis | None) -> Translation:
        parts = self.vocabulary.split(sentence)
        written = [] if found is None else self.vocabulary.decode(found.tokens)
        read_words, words = _words_of(parts), _words_of(written)
        alphas = np.zeros((len(words), len(read_words)))
        if found is not None:
            by_part = found.alphas.mean(axis=1)[:, : len(parts)]  # of all heads; the rest is padding
            by_word = np.stack([by_part[:, place].sum(axis=1) for _, place in read_words], axis=1)
            alphas = np.stack([by_word[place].mean(axis=0) for _, place in words]) if words else alphas
        return Translation(
            sentence=sentence,
            text="" if found is None else self.vocabulary.caption(found.tokens),
            sentence_words=tuple(word for word, _ in read_words),
            words=tuple(word for word, _ in words),
            log_prob=0.0 if found is None else found.log_prob,
            alphas=alphas,
        )


def _words_of(parts: Sequence[str]) -> list[tuple[str, slice]]:
    """Words that the parts make, each with the place of its parts. A mark after a word is one of its own."""
    starts = [place for place in range(len(parts)) if place == 0 or _begins_word(parts, place)]
    places = [slice(start, end) for start, end in pairwise([*starts, len(parts)])]
    return [("".join(parts[place]).replace(WORD_START, ""), place) for place in places]


def _begins_word(parts: Sequence[str], place: int) -> bool:
    if parts[place].startswith(WORD_START):
        return True
    rest = takewhile(lambda part: not part.startswith(WORD_START), parts[place:])
    is_mark = not any(character.isalnum() for part in rest for character in part)
    return is_mark and parts[place - 1] != WORD_START
