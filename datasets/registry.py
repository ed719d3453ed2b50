"""Data sets by their names on the command line."""

from captioner.records import RecordReader, SentenceReader

from .coco import Coco
from .custom import CustomCaptions
from .flickr import Flickr8k, Flickr30k
from .karpathy import CocoKarpathy
from .multi30k import Multi30k

DATASETS: dict[str, type[RecordReader]] = {
    "flickr8k": Flickr8k,
    "flickr30k": Flickr30k,
    "coco": Coco,
    "coco-karpathy": CocoKarpathy,
    "custom": CustomCaptions,
}
"""Readers by name; `captioner.training.recipe.PRESETS` has a recipe for each of these names."""

TRANSLATION_DATASETS: dict[str, type[SentenceReader]] = {"multi30k": Multi30k}
"""Readers of sentences to be translated."""
