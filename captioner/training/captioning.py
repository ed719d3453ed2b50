"""Captioning task: data, model and score of a run on pictures."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from captioner.backends.torch_backend import TorchBackend, choose_device
from captioner.checkpoint.weights import CaptioningCheckpoint, load_checkpoint, save_checkpoint
from captioner.config import (
    FORMAT_VERSION,
    EncoderConfig,
    GridConfig,
    ModelConfig,
    PreprocessConfig,
)
from captioner.data.augmentation import Augmentation
from captioner.data.feature_cache import cached_splits, read_ahead, weights_digest
from captioner.data.pictures import CachedRecords, CaptionDataset
from captioner.data.regions import RegionStore
from captioner.errors import CaptionerError, ImageError
from captioner.evaluation.evaluate import caption_records
from captioner.evaluation.metrics import ScoresByDataset, score_by_dataset
from captioner.evaluation.statistics import CaptionStatistics
from captioner.figures.overlay import draw_overlay
from captioner.figures.style import FIGURE_PX
from captioner.images.geometry import Preprocess
from captioner.inference import Captioner, required_tokens
from captioner.model.captioning import CaptioningModel, make_decoder
from captioner.model.encoder import Encoder, build_encoder
from captioner.records import CaptionedImage
from captioner.training.options import RunOptions
from captioner.training.preparation import check_coverage, first_of_each, load_regions, load_start
from captioner.training.recipe import Recipe
from captioner.training.task import Validation, shown
from captioner.training.validation import TRIED, choose_decoding, dev_entry, dev_loss, validate
from captioner.vocabulary import SPECIAL_TOKENS, Vocabulary

_logger = logging.getLogger(__name__)

LEAST_PICTURES_FOR_CIDER = 10
"""Dev pictures of a data set; the document frequencies of fewer are too coarse to compare models by."""

_NUM_MEASURED = 16  # pictures on which the receptive field is measured


class CaptioningTask:
    """Captioning pictures, as a `captioner.training.task.Task`."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        encoder: Encoder,
        preprocess: PreprocessConfig,
        grid: GridConfig,
        vocabulary: Vocabulary,
        train: CachedRecords,
        dev: CachedRecords,
        start: CaptioningCheckpoint | None = None,
        regions: RegionStore | None = None,
    ) -> None:
        """`start` provides the decoder's initial weights; otherwise they are random. `regions` are the
        annotated objects of train's pictures."""
        assert isinstance(recipe.encoder, EncoderConfig)
        self.recipe, self.encoder, self.vocabulary, self.start = recipe, encoder, vocabulary, start
        self._regions = regions
        is_supervised = regions is not None and recipe.training.attention_supervision > 0
        self.train = self._dataset(
            train,
            preprocess,
            is_augmented=recipe.training.augmentation,
            regions=regions if is_supervised else None,
        )
        self.dev = self._dataset(dev, preprocess, is_augmented=False)
        counts = Counter(self.dev.dataset_of.values())
        self._large = [name for name, count in counts.items() if count >= LEAST_PICTURES_FOR_CIDER]
        if not self._large:
            other = "loss" if recipe.training.self_critical_from_epoch is None else "mean BLEU"
            _logger.info(
                "%d dev pictures are too few for CIDEr to compare models by: the %s on dev chooses the best, "
                "and beam size and length penalty stay as in the recipe",
                sum(counts.values()),
                other,
            )
        was_supervised = start is not None and start.config.grid.is_supervised
        self.config = ModelConfig(
            format_version=FORMAT_VERSION,
            backbone=recipe.encoder.backbone,
            stage=recipe.encoder.stage,
            preprocess=preprocess,
            grid=replace(grid, is_supervised=is_supervised or was_supervised),
            annotation_dim=encoder.annotation_dim,
            decoder=recipe.decoder,
            decoding=recipe.decoding,
        )

    @classmethod
    def prepare(
        cls,
        accelerator: Accelerator,
        *,
        recipe: Recipe,
        train: Sequence[CaptionedImage],
        dev: Sequence[CaptionedImage],
        options: RunOptions,
    ) -> "CaptioningTask":
        """The task of a run: load the encoder, cache features and build the vocabulary.

        Raises:
            CaptionerError: the message says what to do.
        """
        assert isinstance(recipe.encoder, EncoderConfig)
        training, size_px = recipe.training, recipe.encoder.image_size
        start = load_start(recipe)
        encoder = build_encoder(recipe.encoder) if start is None else start.model.encoder
        preprocess, grid = encoder.preprocess_config(size_px), encoder.grid_config(size_px)
        regions = load_regions(recipe, train, grid, preprocess)
        encoder.to(accelerator.device)
        with accelerator.main_process_first():
            dev_split, train_split = cached_splits(
                [first_of_each(dev, training.max_dev_pictures), train],
                encoder=encoder,
                preprocess=preprocess,
                grid=grid,
                cache_dir=options.cache_dir,
                # A cache is useless if the CNN changes from the first epoch on.
                limit_gb=0.0 if training.finetune_from_epoch == 1 else options.cache_limit_gb,
            )
        read_ahead(train_split.features)
        if start is None:
            captions = (caption for record in train for caption in record.captions)
            vocabulary = Vocabulary.build(
                captions, min_count=training.min_count, keep_case=training.keep_case
            )
            if len(vocabulary) == len(SPECIAL_TOKENS):
                raise CaptionerError(
                    f"no word occurs {training.min_count} times in the training captions; lower --min-count"
                )
            check_coverage(train, vocabulary, min_count=training.min_count)
        else:
            vocabulary = start.vocabulary
            check_coverage(train, vocabulary)
        required_tokens(recipe.decoding, vocabulary)  # which may be refused
        return cls(
            recipe=recipe,
            encoder=encoder,
            preprocess=preprocess,
            grid=grid,
            vocabulary=vocabulary,
            train=train_split,
            dev=dev_split,
            start=start,
            regions=regions,
        )

    def _dataset(
        self,
        split: CachedRecords,
        preprocess: PreprocessConfig,
        *,
        is_augmented: bool,
        regions: RegionStore | None = None,
    ) -> CaptionDataset:
        training = self.recipe.training
        return CaptionDataset(
            split=split,
            preprocess=Preprocess(preprocess),
            vocabulary=self.vocabulary,
            max_words=training.max_caption_words,
            augmentation=Augmentation(training.seed, preprocess.size_px) if is_augmented else None,
            regions=regions,
        )

    def objects(self) -> dict[str, set[str]]:
        if self._regions is None:
            return {}
        known = {
            record.image_id: self._regions.categories(index)
            for index, record in enumerate(self.train.split.records)
        }
        return {image_id: categories for image_id, categories in known.items() if categories is not None}

    def make_model(self) -> CaptioningModel:
        decoder = make_decoder(
            self.recipe.decoder, annotation_dim=self.encoder.annotation_dim, vocab_size=len(self.vocabulary)
        )
        if self.start is not None:
            decoder.load_state_dict(self.start.model.decoder.state_dict())
        return CaptioningModel(encoder=self.encoder, decoder=decoder)

    def digest(self) -> str:
        digest = hashlib.sha256(self.vocabulary.to_json())
        digest.update(weights_digest(self.encoder).encode())
        digest.update(str(len(self.train.split.features)).encode())
        for record in (*self.train.split.records, *self.dev.split.records):
            content = (record.image_id, record.captions, record.dataset, record.weight)
            digest.update(repr(content).encode(errors="surrogateescape"))
        if self._regions is not None:
            digest.update(self._regions.digest)
        return digest.hexdigest()

    def validate(self, model: CaptioningModel, *, num_workers: int) -> Validation:
        """Raises: captioner.errors.ImageError."""
        scores, captions = validate(
            model,
            self.dev,
            vocabulary=self.vocabulary,
            options=self.recipe.decoding,
            score=self._score,
            num_workers=num_workers,
        )
        statistics = asdict(CaptionStatistics.from_captions(captions.values()))
        entries = scores.entries() | {"dev_statistics": statistics}
        score = self._cider(scores)
        if score is None and self.recipe.training.self_critical_from_epoch is not None:
            mean = scores.mean  # the loss would grow
            score = (mean.bleu_1 + mean.bleu_2 + mean.bleu_3 + mean.bleu_4) / 4
        if score is None:
            loss = dev_loss(model, self.dev)
            entries["dev"] |= {"cross_entropy": loss}
            score = math.exp(-loss)
        return Validation(score=score, entries=entries)

    def _cider(self, scores: ScoresByDataset) -> float | None:
        """The mean of the data sets whose dev split is large enough, None if there is none."""
        ciders = [scores.by_dataset[name].cider for name in self._large]
        return sum(one for one in ciders if one is not None) / len(ciders) if ciders else None

    def _score(self, captions: dict[str, str], *, with_meteor: bool = True) -> ScoresByDataset:
        return score_by_dataset(
            captions, self.dev.references, dataset_of=self.dev.dataset_of, with_meteor=with_meteor
        )

    def to_checkpoint(self, model: CaptioningModel, metrics: dict[str, Any]) -> CaptioningCheckpoint:
        return CaptioningCheckpoint(model, self.config, self.vocabulary, metrics)

    def figures(self, model: CaptioningModel) -> Iterator[Figure]:
        captioner = Captioner(
            backend=TorchBackend(model, next(model.parameters()).device),
            config=self.config,
            vocabulary=self.vocabulary,
        )
        for batch in captioner.caption_files(record.source for record in shown(self.dev.split.records)):
            for caption in batch:
                if not isinstance(caption, ImageError):
                    yield draw_overlay(caption, caption.image(enough_px=FIGURE_PX))

    def tune_decoding(self, folder: Path, *, num_workers: int = 0) -> ScoresByDataset:
        """Choose the decoding options on dev, measure the receptive field, and save both with the scores.

        The model is loaded as it was saved, in half precision, and the scores are those of the captions
        that caption.py prints for the dev pictures' files.
        """
        checkpoint, device = load_checkpoint(folder), choose_device("auto")
        model = checkpoint.model.to(device).eval()
        decoding, tried = checkpoint.config.decoding, dict[str, float]()
        if self._large:
            decoding, tried = choose_decoding(
                checkpoint,
                self.dev,
                score=lambda captions: self._cider(self._score(captions, with_meteor=False)) or 0.0,
                num_workers=num_workers,
            )
        grid = replace(
            checkpoint.config.grid, receptive_field_std_px=self._receptive_field_std_px(model.encoder)
        )
        config = replace(checkpoint.config, decoding=decoding, grid=grid)
        captioner = Captioner(backend=TorchBackend(model, device), config=config, vocabulary=self.vocabulary)
        scores = self._score(caption_records(captioner, self.dev.split.records))
        dev = scores.entries() | {"dev": checkpoint.metrics["dev"] | dev_entry(decoding, scores.mean)}
        metrics = checkpoint.metrics | dev | {TRIED: tried}
        save_checkpoint(folder, replace(checkpoint, config=config, metrics=metrics))
        return scores

    def _receptive_field_std_px(self, encoder: Encoder) -> float | None:
        """How far a cell sees on the first dev pictures. Raises: ImageError."""
        load = Preprocess(self.config.preprocess).load
        squashed = np.stack([load(record.source) for record in self.dev.split.records[:_NUM_MEASURED]])
        images = torch.from_numpy(squashed).to(next(encoder.parameters()).device)
        return encoder.receptive_field_std_px(encoder.normalise(images), self.config.grid)
