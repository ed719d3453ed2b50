"""Which data sets can be named on a command line."""

from captioner.records import RecordReader, SentenceReader

from .coco import Coco
from .flickr import Flickr8k, Flickr30k
from .karpathy import CocoKarpathy
from .multi30k import Multi30k
from .own import Own

DATASETS: dict[str, type[RecordReader]] = {
    "flickr8k": Flickr8k,
    "flickr30k": Flickr30k,
    "coco": Coco,
    "coco-karpathy": CocoKarpathy,
    "own": Own,
}
"""The reader of each; `captioner.recipe.PRESETS` has a training recipe for each of these names."""

TRANSLATION_DATASETS: dict[str, type[SentenceReader]] = {"multi30k": Multi30k}
"""As `DATASETS`, of sentences to be translated."""
