"""Learning to translate sentences: the data, the model and the score of such a run."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captioner.checkpoint import TranslationCheckpoint, load_translation_checkpoint, save_checkpoint
from captioner.config import FORMAT_VERSION, TextEncoderConfig, TranslationConfig
from captioner.model import TranslationModel, make_translation_model
from captioner.recipe import Recipe
from captioner.records import TranslatedSentence
from captioner.sentences import SentenceDataset
from captioner.task import Validation, shown
from captioner.torch_backend import choose_device
from captioner.translation import Translator
from captioner.translation_metrics import TranslationScores, score_translations
from captioner.validation import choose_decoding, validate
from captioner.vocabulary import Vocabulary


class TranslationTask:
    """To translate sentences, as a `captioner.task.Task`."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        vocabulary: Vocabulary,
        train: Sequence[TranslatedSentence],
        dev: Sequence[TranslatedSentence],
        start: TranslationCheckpoint | None = None,
    ) -> None:
        """`start` is the model that the first weights are taken from; else they are random."""
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
        for record in self.train.records:
            digest.update(repr((record.sentence, record.translations)).encode())
        return digest.hexdigest()

    def validate(self, model: TranslationModel, *, num_workers: int) -> Validation:
        scores, _ = validate(
            model,
            self.dev,
            vocabulary=self.vocabulary,
            config=self.recipe.decoding,
            score=partial(score_translations, references=self.dev.references),
            num_workers=num_workers,
        )
        return Validation(score=scores.bleu, entries={"dev": asdict(scores)})

    def stored(self, model: TranslationModel, metrics: dict[str, Any]) -> TranslationCheckpoint:
        return TranslationCheckpoint(model, self.config, self.vocabulary, metrics)

    def figures(self, model: TranslationModel) -> Iterator[Figure]:
        translator = Translator(model=model, config=self.config, vocabulary=self.vocabulary)
        for translation in translator.translate([record.sentence for record in shown(self.dev.records)]):
            yield translation.plot()

    def settle(self, folder: Path, *, num_workers: int = 0) -> TranslationScores:
        """The model is loaded as it was saved, in half precision, and the scores that are kept are those of
        what it then gives for the dev sentences."""
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
        metrics = checkpoint.metrics | {
            "dev": {**asdict(decoding), **asdict(scores)},
            "decoding_bleu": tried,
        }
        save_checkpoint(folder, replace(checkpoint, config=config, metrics=metrics))
        return scores
