"""A model as a folder: which files it has, how they are read and how they are saved.

    model.safetensors   the weights, in half precision unless asked otherwise
    config.json         `captioner.config.ModelConfig`
    vocabulary.json     the words, by id
    metrics.json        what the model scored, and the recipe that made it

Nothing in it is a pickle, so loading a stranger's folder runs no code of theirs. A folder is written
aside and renamed, so that what bears the name is always whole.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from captioner.config import ModelConfig
from captioner.encoder import EncoderError
from captioner.errors import CaptionerError
from captioner.model import CaptioningModel
from captioner.vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, METRICS = "model.safetensors", "config.json", "vocabulary.json", "metrics.json"
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS)


class CheckpointError(CaptionerError):
    """A model folder that cannot be loaded or saved; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that belongs to it. `metrics` is free-form JSON, for people to read."""

    model: CaptioningModel
    config: ModelConfig
    vocabulary: Vocabulary
    metrics: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float16) -> None:
    """Save a model folder, in place of what stood there before.

    Raises:
        CheckpointError: a weight is not finite in `dtype`, or the disk refuses.
    """
    weights = {}
    for name, value in checkpoint.model.state_dict().items():
        weights[name] = value.to(dtype).contiguous() if value.is_floating_point() else value.contiguous()
        if value.is_floating_point() and not weights[name].isfinite().all():
            raise CheckpointError(
                f"the weight {name} is not finite as {dtype}; nothing was saved to {folder}"
            )
    with replaced_folder(folder) as aside:
        (aside / WEIGHTS).write_bytes(save(weights))
        (aside / CONFIG).write_bytes(_to_json(checkpoint.config))
        (aside / VOCABULARY).write_bytes(checkpoint.vocabulary.to_json())
        (aside / METRICS).write_bytes(_to_json(checkpoint.metrics))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a model folder onto the CPU, with its weights in single precision.

    Raises:
        CheckpointError: a file is missing, or does not fit the others.
    """
    config = read_config(folder)
    with _damage_told(folder):
        vocabulary = Vocabulary.from_json((folder / VOCABULARY).read_bytes())
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=dict[str, Any])
        weights = load_file(folder / WEIGHTS)
    unsound = [
        name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if unsound:
        raise CheckpointError(
            f"{folder} has weights that are not finite, among them {unsound[0]}; train it anew"
        )
    try:
        model = CaptioningModel.from_config(config, vocab_size=len(vocabulary))
        model.load_state_dict(weights)
        grid = model.encoder.grid_config(config.preprocess.size_px)
    except (EncoderError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the files of {folder} do not fit one another: {reason}") from error
    stated = replace(config.grid, field_px=None)  # that is measured on pictures
    if grid != stated:
        raise CheckpointError(f"{folder}/{CONFIG} states {stated}, but its backbone gives {grid}")
    return Checkpoint(model, config, vocabulary, metrics)


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder.

    Raises:
        CheckpointError: the folder lacks a file, or the config is damaged.
    """
    recover_folder(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no model folder; give one that holds {', '.join(FILES)}")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no whole model folder: it lacks {', '.join(missing)}")
    with _damage_told(folder):
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=ModelConfig)


@contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
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
            for path in aside.iterdir():
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


def _to_json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
