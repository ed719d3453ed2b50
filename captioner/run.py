"""How a training run is put together: from records and a recipe to a model with its decoding chosen."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from captioner.captioning_task import CaptioningTask
from captioner.checkpoint import (
    Checkpoint,
    TranslationCheckpoint,
    load_checkpoint,
    load_translation_checkpoint,
)
from captioner.cli_train import ARGUMENTS_FILE, RunOptions
from captioner.config import DecoderConfig, TextEncoderConfig
from captioner.encoder import build_encoder
from captioner.features import cached_splits, read_ahead
from captioner.learner import TrainingError, make_accelerator
from captioner.model_folder import recover_folder
from captioner.recipe import EncoderConfig, Recipe
from captioner.records import CaptionedImage, TranslatedSentence
from captioner.resume import require_same_recipe
from captioner.stopping import locked, stop_on_signals
from captioner.task import Task
from captioner.training import Trainer
from captioner.translation_task import TranslationTask
from captioner.vocabulary import SPECIAL_TOKENS, Vocabulary

_logger = logging.getLogger(__name__)


def run_training(
    *,
    recipe: Recipe,
    train: Sequence[Any],
    dev: Sequence[Any],
    options: RunOptions,
    arguments: Sequence[str],
) -> Path:
    """Train, choose the beam size and length penalty on dev, and give the folder of the best model.

    The records are `CaptionedImage`s, or `TranslatedSentence`s for a recipe whose encoder reads text.
    In several processes each calls this, and the first one writes.

    Raises:
        CaptionerError: of one of many kinds; the message says what to do.
    """
    accelerator = make_accelerator(recipe)
    with locked(options.out) if accelerator.is_main_process else nullcontext():
        trainer = prepare_training(recipe=recipe, train=train, dev=dev, options=options, arguments=arguments)
        with stop_on_signals(trainer.accelerator):
            best = trainer.run()
        _settle(trainer, best)
    trainer.accelerator.end_training()
    return best


def _settle(trainer: Trainer, best: Path) -> None:
    if trainer.accelerator.is_main_process:
        _logger.info("choosing the beam size and length penalty on dev")
        scores = trainer.task.settle(best, num_workers=trainer.num_workers)
        _logger.info("%s on dev: %s", best, scores)


def prepare_training(
    *,
    recipe: Recipe,
    train: Sequence[Any],
    dev: Sequence[Any],
    options: RunOptions,
    arguments: Sequence[str],
) -> Trainer:
    """A run that is ready to start, or to go on where it was.

    The command's arguments are kept with the run, so that it can be gone on with by its folder alone.

    Raises:
        CaptionerError: of one of many kinds; the message says what to do.
    """
    accelerator = make_accelerator(recipe)
    with accelerator.main_process_first():
        recover_folder(options.out / "last")
    if options.resume:
        require_same_recipe(options.out / "last", recipe)
    elif (options.out / "last").exists():
        raise TrainingError(
            f"{options.out} holds a run; add --resume to go on with it, or give another --out"
        )
    logging.getLogger().setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    if accelerator.is_main_process:
        _keep(options.out / ARGUMENTS_FILE, list(arguments))
        _keep(options.out / "recipe.json", recipe.described())
    _logger.info("%s", accelerator.state)
    dev = dev[: recipe.training.max_dev_pictures]
    task: Task
    if isinstance(recipe.encoder, TextEncoderConfig):
        _logger.info("%s training sentences, %s dev sentences", f"{len(train):,}", f"{len(dev):,}")
        task = _translation_task(recipe, train, dev)
    else:
        _logger.info("%s training pictures, %s dev pictures", f"{len(train):,}", f"{len(dev):,}")
        task = _captioning_task(recipe, train, dev, options, accelerator)
    trainer = Trainer(
        accelerator=accelerator,
        recipe=recipe,
        task=task,
        out=options.out,
        num_workers=_num_workers(options, recipe, task),
        save_minutes=options.save_minutes,
    )
    if options.resume:
        trainer.resume()
    return trainer


def _captioning_task(
    recipe: Recipe,
    train: Sequence[CaptionedImage],
    dev: Sequence[CaptionedImage],
    options: RunOptions,
    accelerator: Accelerator,
) -> CaptioningTask:
    """The task, with the vocabulary of the training captions and its grids cached."""
    assert isinstance(recipe.encoder, EncoderConfig)
    start = _captioning_start(recipe)
    encoder = build_encoder(recipe.encoder) if start is None else start.model.encoder
    preprocess = encoder.preprocess_config(recipe.encoder.image_size)
    grid = encoder.grid_config(recipe.encoder.image_size)
    encoder.to(accelerator.device)
    with accelerator.main_process_first():
        dev_split, train_split = cached_splits(
            [dev, train],
            encoder=encoder,
            preprocess=preprocess,
            grid=grid,
            cache_dir=options.cache_dir,
            # A cache is of no use where the CNN changes from the first epoch on.
            limit_gb=0.0 if recipe.training.finetune_from_epoch == 1 else options.cache_limit_gb,
        )
    read_ahead(train_split.grids)
    if start is None:
        captions = (caption for record in train for caption in record.captions)
        vocabulary = Vocabulary.build(captions, min_count=recipe.training.min_count)
    else:
        vocabulary = start.vocabulary
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise TrainingError(
            f"no word occurs {recipe.training.min_count} times in the training captions; lower min_count by "
            '--recipe, a file with {"training": {"min_count": 1}}'
        )
    return CaptioningTask(
        recipe=recipe,
        encoder=encoder,
        preprocess=preprocess,
        grid=grid,
        vocabulary=vocabulary,
        train=train_split,
        dev=dev_split,
        start=start,
    )


def _num_workers(options: RunOptions, recipe: Recipe, task: Task) -> int:
    """Workers pay where pictures are decoded; cached grids are read faster than they are handed over."""
    if options.workers is not None:
        return options.workers
    is_live = any(dataset.is_live for dataset in (task.train, task.dev))
    return min(8, os.cpu_count() or 1) if is_live or recipe.training.finetune_from_epoch else 0


def _translation_task(
    recipe: Recipe, train: Sequence[TranslatedSentence], dev: Sequence[TranslatedSentence]
) -> TranslationTask:
    """The task, with the subwords of the training sentences of both languages."""
    assert isinstance(recipe.encoder, TextEncoderConfig)
    start = _translation_start(recipe)
    if start is None:
        texts = (text for record in train for text in (record.sentence, *record.translations))
        try:
            vocabulary = Vocabulary.build_subwords(texts, size=recipe.encoder.num_subwords)
        except ValueError as error:
            raise TrainingError(
                f"{error}; raise num_subwords by --recipe, a file with "
                '{"encoder": {"num_subwords": 1000}}'
            ) from error
    else:
        vocabulary = start.vocabulary
    return TranslationTask(recipe=recipe, vocabulary=vocabulary, train=train, dev=dev, start=start)


def _translation_start(recipe: Recipe) -> TranslationCheckpoint | None:
    """The translator that the run starts from, if it does not start afresh."""
    if recipe.training.start_from is None:
        return None
    assert isinstance(recipe.encoder, TextEncoderConfig)
    start = load_translation_checkpoint(Path(recipe.training.start_from))
    encoder = replace(start.config.text_encoder, dropout=recipe.encoder.dropout)
    _require_same_build(recipe, start.config.decoder, is_same_encoder=encoder == recipe.encoder)
    return start


def _captioning_start(recipe: Recipe) -> Checkpoint | None:
    """The model that the run starts from, if it does not start afresh."""
    if recipe.training.start_from is None:
        return None
    assert isinstance(recipe.encoder, EncoderConfig)
    if recipe.encoder.weights is not None:
        raise TrainingError("a run that starts from a model has its weights; leave those of the backbone out")
    start = load_checkpoint(Path(recipe.training.start_from))
    is_same_encoder = recipe.encoder.backbone == start.config.backbone
    _require_same_build(recipe, start.config.decoder, is_same_encoder=is_same_encoder)
    return start


def _require_same_build(recipe: Recipe, decoder: DecoderConfig, *, is_same_encoder: bool) -> None:
    """`decoder` is that of the model which the run starts from. Raises: TrainingError."""
    sizes = replace(decoder, dropout=recipe.decoder.dropout)
    if not is_same_encoder or sizes != recipe.decoder:
        raise TrainingError(
            f"the recipe has another encoder or decoder than {recipe.training.start_from}; of these a run "
            "that starts from a model can change the dropout alone"
        )


def _keep(path: Path, values: Mapping[str, Any] | Sequence[str]) -> None:
    """Save a part of the resolved configuration with the run, and show it."""
    described = json.dumps(values, indent=1)
    _logger.info("%s: %s", path, described)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(described + "\n")
    except OSError as error:
        raise TrainingError(f"cannot write to {path.parent}: {error.strerror}; give another --out") from error
