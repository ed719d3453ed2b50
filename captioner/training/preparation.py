"""What a captioning run starts with: dev pictures, annotated objects, the weights of another model."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from captioner.checkpoint.folder import Config
from captioner.checkpoint.weights import CaptioningCheckpoint, Checkpoint, load_checkpoint
from captioner.config import (
    DecoderConfig,
    EncoderConfig,
    GridConfig,
    PreprocessConfig,
    TextEncoderConfig,
)
from captioner.data.regions import RegionStore
from captioner.errors import CaptionerError, abbreviate
from captioner.model.captioning import EncoderT
from captioner.model.lstm import LSTMDecoder
from captioner.objects.categories import mentions
from captioner.records import CaptionedImage
from captioner.tokenize import tokenize
from captioner.training.fitting import LEAST_COVERAGE, coverage
from captioner.training.recipe import Recipe
from captioner.vocabulary import Vocabulary

_logger = logging.getLogger(__name__)


def first_of_each(dev: Sequence[CaptionedImage], limit: int | None) -> list[CaptionedImage]:
    """The first dev pictures of each data set, at most `limit` of each."""
    kept = Counter[str]()
    first = []
    for record in dev:
        if limit is None or kept[record.dataset] < limit:
            kept[record.dataset] += 1
            first.append(record)
    return first


def load_regions(
    recipe: Recipe, train: Sequence[CaptionedImage], grid: GridConfig, preprocess: PreprocessConfig
) -> RegionStore | None:
    """The annotated objects of train, if they are given and wanted. Raises: CaptionerError."""
    training = recipe.training
    is_supervised = training.attention_supervision > 0
    is_penalised = training.self_critical_from_epoch is not None and training.self_critical_object_penalty > 0
    is_annotated = any(record.instances is not None for record in train)
    if is_penalised and not is_annotated:
        raise CaptionerError(
            "self_critical_object_penalty needs annotated objects: give --instances (for a mixture, "
            "instances in the file of --sets), or set it to 0 in --recipe"
        )
    if not (is_annotated and (is_supervised or is_penalised)):
        if is_annotated:
            _logger.info("the annotated objects are not used: attention_supervision is 0")
        return None
    if is_supervised and recipe.decoder.attention != "soft":
        raise CaptionerError(
            f"supervised attention needs soft attention, not {recipe.decoder.attention}; leave the "
            "instances out, or set attention_supervision to 0 in --recipe"
        )
    regions = RegionStore(train, grid=grid, preprocess=preprocess)
    if is_supervised:
        _check_objects_are_named(train, regions)
    return regions


def _check_objects_are_named(train: Sequence[CaptionedImage], regions: RegionStore) -> None:
    """Say how many words supervise attention. Raises: CaptionerError, if there are none."""
    num_words = num_pictures = 0
    for index, record in enumerate(train):
        there = regions.categories(index) or ()
        named = [
            mention
            for caption in (record.captions if there else ())
            for mention in mentions(tokenize(caption))
            if mention.category in there
        ]
        num_words, num_pictures = num_words + len(named), num_pictures + bool(named)
    if not num_words:
        annotated = f"annotated are {abbreviate(regions.names)}" if regions.names else "none is annotated"
        raise CaptionerError(
            f"no word of the training captions names an object of its picture: {annotated}; categories must "
            "have COCO's English names; leave --instances out, or set attention_supervision to 0 in --recipe"
        )
    _logger.info(
        "%s words in the captions of %s pictures name annotated objects",
        f"{num_words:,}",
        f"{num_pictures:,}",
    )


def load_start(recipe: Recipe) -> CaptioningCheckpoint | None:
    """The model that the run starts from, if the recipe names one."""
    if recipe.training.start_from is None:
        return None
    assert isinstance(recipe.encoder, EncoderConfig)
    if recipe.encoder.weights is not None:
        raise CaptionerError("a run that starts from a model has its weights; leave --weights out")
    start = reduce_rank(load_checkpoint(recipe.training.start_from), recipe.decoder.rank)
    encoder = replace(recipe.encoder, backbone=start.config.backbone, stage=start.config.stage)
    check_same_architecture(recipe, encoder, start.config.decoder)
    return start


def reduce_rank(start: Checkpoint[EncoderT, Config], rank: int | None) -> Checkpoint[EncoderT, Config]:
    """The model that a run starts from, at the rank that the recipe asks for, if its own is full."""
    decoder = start.model.decoder
    if rank is None or start.config.decoder.rank is not None or not isinstance(decoder, LSTMDecoder):
        return start
    decoder.reduce_rank(rank)
    _logger.info("reducing the decoder's matrices to rank %d", rank)
    return replace(start, config=replace(start.config, decoder=decoder.config))


def check_coverage(
    train: Sequence[CaptionedImage], vocabulary: Vocabulary, *, min_count: int | None = None
) -> None:
    """Say how many words of the captions a vocabulary has: a new one, of the words that occur `min_count`
    times, or that of the model that the run starts from.

    Raises: CaptionerError, if it is too few.
    """
    share = coverage((caption for record in train for caption in record.captions), vocabulary)
    of_start = "" if min_count else " of the model that the run starts from"
    known = f"the vocabulary{of_start} has {share:.1%} of the words of train"
    if share < LEAST_COVERAGE:
        remedy = f"lower --min-count, which is {min_count}" if min_count else "start without --start-from"
        raise CaptionerError(f"{known}, too few to learn from; {remedy}")
    _logger.info("%s", known)


def check_same_architecture(
    recipe: Recipe, encoder: EncoderConfig | TextEncoderConfig, decoder: DecoderConfig
) -> None:
    """Compare a recipe with the encoder and decoder of the model that the run starts from.

    Raises: CaptionerError, naming the settings that differ; the dropout may.
    """
    changed = [
        f"{name} is {value!r} in the model and {getattr(wanted, name)!r} in the recipe"
        for own, wanted in ((encoder, recipe.encoder), (decoder, recipe.decoder))
        for name, value in vars(own).items()
        if name != "dropout" and getattr(wanted, name) != value
    ]
    if changed:
        raise CaptionerError(
            f"a run that starts from a model keeps its encoder and decoder, but the recipe differs from "
            f"{recipe.training.start_from}: {', '.join(changed)}"
        )
