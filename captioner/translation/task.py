"""Translation task: data, model and score of a run on sentences."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from matplotlib.figure import Figure

from captioner.backends.torch_backend import choose_device
from captioner.checkpoint.weights import save_checkpoint
from captioner.config import FORMAT_VERSION, TextEncoderConfig, TranslationConfig
from captioner.errors import CaptionerError
from captioner.records import TranslatedSentence
from captioner.training.preparation import check_same_architecture, reduce_rank
from captioner.training.recipe import Recipe
from captioner.training.task import Validation, shown
from captioner.training.validation import TRIED, choose_decoding, dev_entry, validate
from captioner.translation.metrics import TranslationScores, score_translations
from captioner.translation.model import (
    TranslationCheckpoint,
    TranslationModel,
    load_translation_checkpoint,
    make_translation_model,
)
from captioner.translation.sentences import SentenceDataset
from captioner.translation.translator import Translator
from captioner.vocabulary import Vocabulary


class TranslationTask:
    """Translating sentences, as a `captioner.training.task.Task`."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        vocabulary: Vocabulary,
        train: Sequence[TranslatedSentence],
        dev: Sequence[TranslatedSentence],
        start: TranslationCheckpoint | None = None,
    ) -> None:
        """`start` provides the initial weights; otherwise they are random."""
        assert isinstance(recipe.encoder, TextEncoderConfig)
        self.recipe, self.vocabulary, self.start = recipe, vocabulary, start
        self.train, self.dev = (
            SentenceDataset(
                records=records, vocabulary=vocabulary, max_words=recipe.training.max_caption_words
            )
            for records in (train, dev)
        )
        self.config = TranslationConfig(
            format_version=FORMAT_VERSION,
            text_encoder=recipe.encoder,
            decoder=recipe.decoder,
            decoding=recipe.decoding,
        )

    @classmethod
    def prepare(
        cls,
        _: Accelerator,
        *,
        recipe: Recipe,
        train: Sequence[TranslatedSentence],
        dev: Sequence[TranslatedSentence],
    ) -> "TranslationTask":
        """The task of a run, with subwords of the training sentences of both languages.

        Raises:
            CaptionerError: the message says what to do.
        """
        assert isinstance(recipe.encoder, TextEncoderConfig)
        start = _load_start(recipe)
        if start is not None:
            vocabulary = start.vocabulary
        else:
            texts = (text for record in train for text in (record.sentence, *record.translations))
            try:
                vocabulary = Vocabulary.build_subwords(texts, size=recipe.encoder.num_subwords)
            except ValueError as error:
                raise CaptionerError(
                    f"{error}; raise num_subwords with --recipe, a file containing "
                    '{"encoder": {"num_subwords": 1000}}'
                ) from error
        dev = dev[: recipe.training.max_dev_pictures]
        return cls(recipe=recipe, vocabulary=vocabulary, train=train, dev=dev, start=start)

    def make_model(self) -> TranslationModel:
        model = make_translation_model(self.config, vocab_size=len(self.vocabulary))
        if self.start is not None:
            model.load_state_dict(self.start.model.state_dict())
        return model

    def digest(self) -> str:
        digest = hashlib.sha256(self.vocabulary.to_json())
        if self.start is not None:
            for value in self.start.model.state_dict().values():
                digest.update(value.numpy().tobytes())
        for record in (*self.train.records, *self.dev.records):
            digest.update(repr((record.sentence, record.translations)).encode())
        return digest.hexdigest()

    def validate(self, model: TranslationModel, *, num_workers: int) -> Validation:
        scores, _ = validate(
            model,
            self.dev,
            vocabulary=self.vocabulary,
            options=self.recipe.decoding,
            score=partial(score_translations, references=self.dev.references),
            num_workers=num_workers,
        )
        return Validation(score=scores.bleu, entries={"dev": asdict(scores)})

    def to_checkpoint(self, model: TranslationModel, metrics: dict[str, Any]) -> TranslationCheckpoint:
        return TranslationCheckpoint(model, self.config, self.vocabulary, metrics)

    def objects(self) -> dict[str, set[str]]:
        return {}

    def figures(self, model: TranslationModel) -> Iterator[Figure]:
        translator = Translator(model=model, config=self.config, vocabulary=self.vocabulary)
        for translation in translator.translate([record.sentence for record in shown(self.dev.records)]):
            yield translation.plot()

    def tune_decoding(self, folder: Path, *, num_workers: int = 0) -> TranslationScores:
        """The model is loaded as it was saved, in half precision, and the scores are those of its
        translations then."""
        checkpoint = load_translation_checkpoint(folder)
        model, references = checkpoint.model.to(choose_device("auto")).eval(), self.dev.references
        decoding, tried = choose_decoding(
            checkpoint,
            self.dev,
            score=lambda translations: score_translations(translations, references).bleu,
            num_workers=num_workers,
        )
        config = replace(checkpoint.config, decoding=decoding)
        translator = Translator(model=model, config=config, vocabulary=self.vocabulary)
        translated = translator.translate([record.sentence for record in self.dev.records])
        texts = {
            record.sentence_id: translation.text
            for record, translation in zip(self.dev.records, translated, strict=True)
        }
        scores = score_translations(texts, references)
        metrics = checkpoint.metrics | {"dev": dev_entry(decoding, scores), TRIED: tried}
        save_checkpoint(folder, replace(checkpoint, config=config, metrics=metrics))
        return scores


def _load_start(recipe: Recipe) -> TranslationCheckpoint | None:
    """The translator that the run starts from, if the recipe names one."""
    if recipe.training.start_from is None:
        return None
    assert isinstance(recipe.encoder, TextEncoderConfig)
    start = reduce_rank(load_translation_checkpoint(recipe.training.start_from), recipe.decoder.rank)
    check_same_architecture(recipe, start.config.text_encoder, start.config.decoder)
    return start
