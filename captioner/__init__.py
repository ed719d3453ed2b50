"""Image captions with visual attention (Xu et al. 2015).

Importing this package is cheap; the public names are loaded on first use:

    Captioner        load a model folder and caption pictures
    Caption          a caption with its words, log-probability and attention
    DecodingOptions  how captions are searched or sampled, and how many
    CaptionerError   any problem the user can fix; ImageError is the one of a single picture
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.caption import Caption
    from captioner.config import DecodingOptions
    from captioner.errors import CaptionerError, ImageError
    from captioner.inference import Captioner

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "CaptionerError", "DecodingOptions", "ImageError", "__version__"]

# Pictures are private: what dependencies would report about their use stays off, unless the user turns it on.
# This must come before they are imported, which no module of this package does before this line.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_MODULE_OF = {
    "Caption": "captioner.caption",
    "Captioner": "captioner.inference",
    "CaptionerError": "captioner.errors",
    "DecodingOptions": "captioner.config",
    "ImageError": "captioner.errors",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
