"""How a training run is put together: from records and a recipe to a model with its decoding chosen."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.cli_train import ARGUMENTS_FILE, RunOptions
from captioner.data import Split
from captioner.encoder import build_encoder
from captioner.features import cached_splits, read_ahead
from captioner.learner import TrainingError, make_accelerator
from captioner.model_folder import recover_folder
from captioner.recipe import Recipe
from captioner.records import CaptionedImage
from captioner.resume import require_same_recipe
from captioner.stopping import locked, stop_on_signals
from captioner.training import Trainer
from captioner.validation import settle_decoding
from captioner.vocabulary import SPECIAL_TOKENS, Vocabulary

_logger = logging.getLogger(__name__)


def run_training(
    *,
    recipe: Recipe,
    train: Sequence[CaptionedImage],
    dev: Sequence[CaptionedImage],
    options: RunOptions,
    arguments: Sequence[str],
) -> Path:
    """Train, choose the beam size and length penalty on dev, and give the folder of the best model.

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
        scores = settle_decoding(best, trainer.dev, num_workers=trainer.num_workers)
        _logger.info("%s on dev: %s", best, scores)


def prepare_training(
    *,
    recipe: Recipe,
    train: Sequence[CaptionedImage],
    dev: Sequence[CaptionedImage],
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
    _logger.info("%s training pictures, %s dev pictures", f"{len(train):,}", f"{len(dev):,}")
    start = _start(recipe)
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
    trainer = Trainer(
        accelerator=accelerator,
        recipe=recipe,
        encoder=encoder,
        preprocess=preprocess,
        grid=grid,
        vocabulary=vocabulary,
        train=train_split,
        dev=dev_split,
        out=options.out,
        start=start,
        num_workers=_num_workers(options, recipe, [dev_split, train_split]),
        save_minutes=options.save_minutes,
    )
    if options.resume:
        trainer.resume()
    return trainer


def _start(recipe: Recipe) -> Checkpoint | None:
    """The model that the run starts from, if it does not start afresh."""
    if recipe.training.start_from is None:
        return None
    if recipe.encoder.weights is not None:
        raise TrainingError("a run that starts from a model has its weights; leave those of the backbone out")
    start = load_checkpoint(Path(recipe.training.start_from))
    sizes = replace(start.config.decoder, dropout=recipe.decoder.dropout)
    if (recipe.encoder.backbone, recipe.decoder) != (start.config.backbone, sizes):
        raise TrainingError(
            f"the recipe has another backbone or decoder than {recipe.training.start_from}; of these a run "
            "that starts from a model can change the dropout alone"
        )
    return start


def _keep(path: Path, values: Mapping[str, Any] | Sequence[str]) -> None:
    """Save a part of the resolved configuration with the run, and show it."""
    described = json.dumps(values, indent=1)
    _logger.info("%s: %s", path, described)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(described + "\n")
    except OSError as error:
        raise TrainingError(f"cannot write to {path.parent}: {error.strerror}; give another --out") from error


def _num_workers(options: RunOptions, recipe: Recipe, splits: Sequence[Split]) -> int:
    """Workers pay where pictures are decoded; cached grids are read faster than they are handed over."""
    if options.workers is not None:
        return options.workers
    is_live = any(len(split.grids) < len(split.records) for split in splits)
    return min(8, os.cpu_count() or 1) if is_live or recipe.training.finetune_from_epoch else 0
