"""Readers of data sets as they are on disk, one file per format; no tensors in here.

Each reader gives `captioner.data.CaptionedImage` records. This package belongs to train.py and is not
installed with captioner; it has nothing to do with the package of the same name by Hugging Face.
"""

from captioner.errors import CaptionerError


class DatasetError(CaptionerError):
    """A data set that is not as its format says; the message names the file and line."""
