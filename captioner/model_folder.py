"""A model as a folder: which files it has, and how they are read and replaced.

    model.safetensors   the weights, in half precision unless asked otherwise
    config.json         `captioner.config.ModelConfig`, or of a translator `TranslationConfig`
    vocabulary.json     the words, by id
    metrics.json        what the model scored, and the recipe that made it

and, where it was exported, the graphs of `captioner.export`. Nothing in it is a pickle, so loading a
stranger's folder runs no code of theirs. A folder is written aside and renamed, so that what bears the
name is always whole.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors import SafetensorError

from captioner.config import ModelConfig, TranslationConfig
from captioner.errors import CaptionerError
from captioner.vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, METRICS = "model.safetensors", "config.json", "vocabulary.json", "metrics.json"
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS)

GRAPHS = {"encoder": "encoder.onnx", "start": "start.onnx", "step": "step.onnx"}
"""The graphs of an exported model, which read their weights from the same file."""

LAYOUT_KEY = "captioner.weights_layout"
"""Where a graph keeps the `weights_layout` that it was exported for."""

SHIPPED_MODEL = Path(__file__).parent / "models" / "flickr8k"


class CheckpointError(CaptionerError):
    """A model folder that cannot be loaded or saved; the message says what is wrong and what to do."""


Config = TypeVar("Config", ModelConfig, TranslationConfig)


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder.

    Raises:
        CheckpointError: the folder lacks a file, or the config is damaged or that of a translator.
    """
    return _read_config(folder, ModelConfig)


def read_translation_config(folder: Path) -> TranslationConfig:
    """The config of a translator's folder. Raises: CheckpointError, as `read_config`."""
    return _read_config(folder, TranslationConfig)


def _read_config(folder: Path, kind: type[Config]) -> Config:
    recover_folder(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no model folder; give one that holds {', '.join(FILES)}")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no whole model folder: it lacks {', '.join(missing)}")
    with damage_told(folder):
        content = (folder / CONFIG).read_bytes()
        is_translator = "text_encoder" in msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        if is_translator != (kind is TranslationConfig):
            told = "captions pictures; give one that translates sentences"
            if is_translator:
                told = "translates sentences; give one that captions pictures"
            raise CheckpointError(f"the model in {folder} {told}")
        return msgspec.json.decode(content, type=kind)


def require_finite(folder: Path, is_finite: Mapping[str, bool]) -> None:
    """Raises: CheckpointError, where a weight, by its name, is not finite."""
    unsound = [name for name, is_sound in is_finite.items() if not is_sound]
    if unsound:
        raise CheckpointError(
            f"{folder} has weights that are not finite, among them {unsound[0]}; train it anew"
        )


def has_graphs(folder: Path) -> bool:
    return all((folder / name).is_file() for name in GRAPHS.values())


def weights_header(folder: Path) -> tuple[bytes, int]:
    """The JSON at the beginning of the weights' file, which names the tensors and their places, and where
    the tensors begin, in bytes. Raises: CheckpointError."""
    with damage_told(folder), (folder / WEIGHTS).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = (folder / WEIGHTS).stat().st_size
        if 8 + length > size:
            raise SafetensorError(f"{WEIGHTS} states a header of {length} bytes and has {size}")
        return file.read(length), 8 + length


def weights_layout(folder: Path) -> str:
    """A digest of the weights' names, shapes and places in their file. Raises: CheckpointError."""
    return hashlib.sha256(weights_header(folder)[0]).hexdigest()


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a model folder. Raises: CheckpointError, where it is damaged."""
    with damage_told(folder):
        return Vocabulary.from_json((folder / VOCABULARY).read_bytes())


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Tell of files that cannot be read as damage to the folder. Raises: CheckpointError."""
    try:
        yield
    except (msgspec.DecodeError, SafetensorError, OSError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}; copy it again from its source") from error


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` that takes its place when the block has succeeded.

    If the block fails the old folder stays as it is.

    Raises:
        CheckpointError: the disk is full or refuses.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        aside.chmod(0o755)
        try:
            yield aside
            for path in aside.rglob("*"):
                if path.is_file():
                    _sync(path)
            _swap(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot save {folder}: {error}; what was saved there before is kept"
        ) from error


def _swap(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. A folder cannot be renamed over another, so the old one steps aside;
    where a crash comes between the two renames, `recover_folder` puts it back."""
    old = _stepped_aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        recover_folder(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo a replacement that was cut off half-way: the old folder takes its name again."""
    old = _stepped_aside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _stepped_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def to_json(value: Any) -> bytes:
    """A config or metrics as they stand in the folder."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
