"""Readers of captioned pictures by the names of their formats."""

from captioner.records import RecordReader

from .coco import Coco
from .custom import CustomCaptions
from .flickr import Flickr8k, Flickr30k
from .karpathy import CocoKarpathy

FORMATS: dict[str, type[RecordReader]] = {
    "flickr8k": Flickr8k,
    "flickr30k": Flickr30k,
    "coco": Coco,
    "coco-karpathy": CocoKarpathy,
    "custom": CustomCaptions,
}
