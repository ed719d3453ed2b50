"""Data sets by their names on the command line."""

from captioner.records import RecordReader, SentenceReader

from .formats import FORMATS
from .mixture import Mixture
from .multi30k import Multi30k

DATASETS: dict[str, type[RecordReader]] = FORMATS | {"mixture": Mixture}
"""Readers by name; `captioner.training.recipe.PRESETS` has a recipe for each of these names."""

TRANSLATION_DATASETS: dict[str, type[SentenceReader]] = {"multi30k": Multi30k}
"""Readers of sentences to be translated."""
