"""Model folders to torch models and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from captioner.atomic import readable_folder, replaced_folder
from captioner.checkpoint.folder import (
    CONFIG,
    METRICS,
    VOCABULARY,
    WEIGHTS,
    Config,
    check_finite,
    check_weights,
    read_config,
    read_metrics,
    read_vocabulary,
    to_json,
    translate_errors,
    write_checksum,
)
from captioner.config import ModelConfig
from captioner.errors import CaptionerError, ModelFolderError, one_line
from captioner.model.captioning import AttentionModel, EncoderT, make_captioning_model
from captioner.model.encoder import Encoder
from captioner.vocabulary import Vocabulary


@dataclass(frozen=True)
class Checkpoint(Generic[EncoderT, Config]):
    """A model with everything stored beside it. `metrics` is free-form JSON, for people to read."""

    model: AttentionModel[EncoderT]
    config: Config
    vocabulary: Vocabulary
    metrics: dict[str, Any]


CaptioningCheckpoint = Checkpoint[Encoder, ModelConfig]


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint[EncoderT, Config], *, dtype: torch.dtype = torch.float16
) -> None:
    """Save a model folder, replacing what was there before.

    Raises:
        ModelFolderError: a weight is not finite in `dtype`, or the disk refuses.
    """
    weights = {}
    for name, value in checkpoint.model.state_dict().items():
        weights[name] = value.to(dtype).contiguous() if value.is_floating_point() else value.contiguous()
        if value.is_floating_point() and not weights[name].isfinite().all():
            raise ModelFolderError(
                f"the weight {name} is not finite as {dtype}; nothing was saved to {folder}"
            )
    try:
        with replaced_folder(folder) as new:
            (new / WEIGHTS).write_bytes(save(weights))
            write_checksum(new)
            (new / CONFIG).write_bytes(to_json(checkpoint.config))
            (new / VOCABULARY).write_bytes(checkpoint.vocabulary.to_json())
            (new / METRICS).write_bytes(to_json(checkpoint.metrics))
    except (CaptionerError, SafetensorError) as error:
        raise ModelFolderError(str(error)) from error


def load_checkpoint(folder: Path) -> CaptioningCheckpoint:
    """Load a captioning model onto the CPU, with its weights in single precision.

    Raises:
        ModelFolderError: a file is missing, or does not match the others.
    """
    config, vocabulary = read_config(folder), read_vocabulary(folder)
    try:
        model = load_model(folder, lambda: make_captioning_model(config, vocab_size=len(vocabulary)))
        grid = model.encoder.grid_config(config.preprocess.size_px)
    except ModelFolderError:
        raise
    except CaptionerError as error:  # of the encoder
        raise _mismatch(folder, error) from error
    if grid != config.grid.geometry:
        raise ModelFolderError(
            f"{folder}/{CONFIG} states {config.grid.geometry}, but its backbone gives {grid}"
        )
    return CaptioningCheckpoint(model, config, vocabulary, read_metrics(folder))


def load_model(folder: Path, make_model: Callable[[], AttentionModel[EncoderT]]) -> AttentionModel[EncoderT]:
    """The model that `make_model` makes, with the weights of a folder. Raises: ModelFolderError."""
    check_weights(folder)
    with translate_errors(folder):
        weights = load_file(readable_folder(folder) / WEIGHTS)
    check_finite(folder, {name: bool(value.isfinite().all()) for name, value in weights.items()})
    try:
        with torch.device("meta"):
            _check_match(make_model().state_dict(), weights)
        model = make_model()
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _mismatch(folder, error) from error
    return model


def _check_match(stated: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes before memory is allocated for the sizes that the config states.

    Raises: RuntimeError.
    """
    for name, value in stated.items():
        if name not in weights:
            raise RuntimeError(f"{WEIGHTS} lacks {name}")
        if weights[name].shape != value.shape:
            given = tuple(weights[name].shape)
            raise RuntimeError(f"{CONFIG} states {tuple(value.shape)} for {name}, but {WEIGHTS} has {given}")
    unknown = weights.keys() - stated.keys()
    if unknown:
        raise RuntimeError(f"{WEIGHTS} has {min(unknown)}, which {CONFIG} does not describe")


def _mismatch(folder: Path, error: Exception) -> ModelFolderError:
    return ModelFolderError(f"the files of {folder} do not match one another: {one_line(error)}")
