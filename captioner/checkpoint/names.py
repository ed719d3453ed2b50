"""Models by name: a folder, a model that ships, or one on the Hugging Face Hub."""

import re
from pathlib import Path

from captioner.checkpoint.folder import SHIPPED_MODEL
from captioner.errors import ModelFolderError

# pathlib turns hf://owner/name into hf:/owner/name.
_ON_HUB = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")


def find_model(name: Path | str | None = None) -> Path:
    """The folder of a model, by default that of the model that ships with captioner.

    A name is a folder, the name of a model that ships, or hf://OWNER/NAME[@REVISION]: a repository on the
    Hugging Face Hub and its branch, tag or commit. Such a model is downloaded at its first use into the Hub's
    cache, from which it is also read when there is no network.

    Raises:
        ModelFolderError: the name is malformed, there is no such repository, or it is not a captioner model.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    if name is None:
        return SHIPPED_MODEL
    if is_on_hub(name):
        match = _ON_HUB.fullmatch(_text(name))
        if match is None:
            written = re.sub("^hf:/+", "hf://", _text(name))
            raise ModelFolderError(
                f"{written} does not name a model on the Hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
            )
        from captioner.checkpoint.hub import download_model

        return download_model(match["repository"], revision=match["revision"])
    folder = Path(name)
    shipped = SHIPPED_MODEL.parent / folder
    is_plain = folder.name == str(folder)
    return shipped if is_plain and shipped.is_dir() and not folder.exists() else folder


def is_on_hub(name: Path | str) -> bool:
    return _text(name).startswith("hf:")


def public_name(name: Path | str | None, folder: Path) -> str:
    """What to call the model that `find_model` found: on the Hub with its commit, else as its folder."""
    if name is None or not is_on_hub(name):
        return folder.absolute().name
    match = _ON_HUB.fullmatch(_text(name))
    assert match is not None
    return f"hf://{match['repository']}@{folder.name}"  # the cache names folders by commits


def _text(name: Path | str) -> str:
    return name.as_posix() if isinstance(name, Path) else name
