"""Learning to caption pictures: the data, the model and the score of such a run."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from captioner.augmentation import Augmentation
from captioner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from captioner.config import FORMAT_VERSION, GridConfig, ModelConfig, PreprocessConfig
from captioner.data import CaptionDataset, Split
from captioner.encoder import Encoder
from captioner.evaluation import caption_records
from captioner.images import ImageError, Preprocess
from captioner.inference import Captioner
from captioner.metrics import Scores, score_captions
from captioner.model import CaptioningModel, make_decoder
from captioner.overlay import draw_overlay
from captioner.recipe import EncoderConfig, Recipe
from captioner.resume import data_digest
from captioner.task import Validation, shown
from captioner.torch_backend import TorchBackend, choose_device
from captioner.validation import choose_decoding, validate
from captioner.vocabulary import Vocabulary
from captioner.wording import Wording

_NUM_MEASURED = 16  # pictures that a cell's field of view is measured on


class CaptioningTask:
    """To caption pictures, as a `captioner.task.Task`."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        encoder: Encoder,
        preprocess: PreprocessConfig,
        grid: GridConfig,
        vocabulary: Vocabulary,
        train: Split,
        dev: Split,
        start: Checkpoint | None = None,
    ) -> None:
        """`start` is the model that the decoder's first weights are taken from; else they are random."""
        assert isinstance(recipe.encoder, EncoderConfig)
        self.recipe, self.encoder, self.vocabulary, self.start = recipe, encoder, vocabulary, start
        self.train = self._dataset(train, preprocess, is_augmented=recipe.training.augmentation)
        self.dev = self._dataset(dev, preprocess, is_augmented=False)
        self.config = ModelConfig(
            format_version=FORMAT_VERSION,
            backbone=recipe.encoder.backbone,
            preprocess=preprocess,
            grid=grid,
            annotation_dim=encoder.annotation_dim,
            decoder=recipe.decoder,
            decoding=recipe.decoding,
        )

    def _dataset(self, split: Split, preprocess: PreprocessConfig, *, is_augmented: bool) -> CaptionDataset:
        training = self.recipe.training
        return CaptionDataset(
            split=split,
            preprocess=Preprocess(preprocess),
            vocabulary=self.vocabulary,
            max_words=training.max_caption_words,
            augmentation=Augmentation(training.seed, preprocess.size_px) if is_augmented else None,
        )

    def make_model(self) -> CaptioningModel:
        decoder = make_decoder(
            self.recipe.decoder, annotation_dim=self.encoder.annotation_dim, vocab_size=len(self.vocabulary)
        )
        if self.start is not None:
            decoder.load_state_dict(self.start.model.decoder.state_dict())
        return CaptioningModel(encoder=self.encoder, decoder=decoder)

    def digest(self) -> str:
        return data_digest(self.train.split, self.vocabulary, self.encoder)

    def validate(self, model: CaptioningModel, *, num_workers: int) -> Validation:
        """Raises: captioner.images.ImageError."""
        scores, captions = validate(
            model,
            self.dev,
            vocabulary=self.vocabulary,
            config=self.recipe.decoding,
            score=partial(score_captions, references=self.dev.references),
            num_workers=num_workers,
        )
        wording = asdict(Wording.of(captions.values()))
        return Validation(score=scores.cider, entries={"dev": asdict(scores), "dev_wording": wording})

    def stored(self, model: CaptioningModel, metrics: dict[str, Any]) -> Checkpoint:
        return Checkpoint(model, self.config, self.vocabulary, metrics)

    def figures(self, model: CaptioningModel) -> Iterator[Figure]:
        captioner = Captioner(
            backend=TorchBackend(model, next(model.parameters()).device),
            config=self.config,
            vocabulary=self.vocabulary,
        )
        for batch in captioner.caption_files(record.source for record in shown(self.dev.split.records)):
            for caption in batch:
                if not isinstance(caption, ImageError):
                    yield draw_overlay(caption, caption.image())

    def settle(self, folder: Path, *, num_workers: int = 0) -> Scores:
        """How far a cell of its CNN sees is measured on the first dev pictures, for the figures. The model is
        loaded as it was saved, in half precision. The scores that are kept are those of the captions that
        caption.py prints for the dev pictures' files.
        """
        checkpoint, device = load_checkpoint(folder), choose_device("auto")
        model, references = checkpoint.model.to(device).eval(), self.dev.references
        decoding, tried = choose_decoding(
            checkpoint,
            self.dev,
            score=lambda captions: score_captions(captions, references, with_meteor=False).cider,
            num_workers=num_workers,
        )
        grid = replace(checkpoint.config.grid, field_px=self._field_px(model.encoder))
        config = replace(checkpoint.config, decoding=decoding, grid=grid)
        captioner = Captioner(backend=TorchBackend(model, device), config=config, vocabulary=self.vocabulary)
        scores = score_captions(caption_records(captioner, self.dev.split.records), references)
        metrics = checkpoint.metrics | {
            "dev": {**asdict(decoding), **asdict(scores)},
            "decoding_cider": tried,
        }
        save_checkpoint(folder, replace(checkpoint, config=config, metrics=metrics))
        return scores

    def _field_px(self, encoder: Encoder) -> float | None:
        """How far a cell sees on the first dev pictures. Raises: ImageError."""
        load = Preprocess(self.config.preprocess).load
        squashed = np.stack([load(record.source) for record in self.dev.split.records[:_NUM_MEASURED]])
        images = torch.from_numpy(squashed).to(next(encoder.parameters()).device)
        return encoder.field_px(encoder.normalise(images), self.config.grid)
