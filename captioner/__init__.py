"""Image captions with visual attention: Show, Attend and Tell (Xu et al. 2015) as software.

Importing this package is cheap. The public names are loaded when they are first used:

    Captioner   load a model folder and caption pictures
    Caption     one caption with its words, log-probability and attention
    Wanted      which captions are wanted of a picture: how many, with which words, drawn or searched
    ImageError  a file that cannot be read as a picture, with the reason
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.captions import Caption
    from captioner.images import ImageError
    from captioner.inference import Captioner, Wanted

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "ImageError", "Wanted", "__version__"]

_HOME_OF = {
    "Caption": "captioner.captions",
    "Captioner": "captioner.inference",
    "ImageError": "captioner.images",
    "Wanted": "captioner.inference",
}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
