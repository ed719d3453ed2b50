"""A model folder as a torch model, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save

from captioner.config import ModelConfig
from captioner.encoder import EncoderError
from captioner.model import CaptioningModel
from captioner.model_folder import (
    CONFIG,
    METRICS,
    VOCABULARY,
    WEIGHTS,
    CheckpointError,
    damage_told,
    read_config,
    read_vocabulary,
    replaced_folder,
    require_finite,
    to_json,
)
from captioner.vocabulary import Vocabulary


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
        (aside / CONFIG).write_bytes(to_json(checkpoint.config))
        (aside / VOCABULARY).write_bytes(checkpoint.vocabulary.to_json())
        (aside / METRICS).write_bytes(to_json(checkpoint.metrics))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a model folder onto the CPU, with its weights in single precision.

    Raises:
        CheckpointError: a file is missing, or does not fit the others.
    """
    config = read_config(folder)
    vocabulary = read_vocabulary(folder)
    with damage_told(folder):
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=dict[str, Any])
        weights = load_file(folder / WEIGHTS)
    require_finite(folder, {name: bool(value.isfinite().all()) for name, value in weights.items()})
    try:
        _require_fit(config, len(vocabulary), weights)
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


def _require_fit(config: ModelConfig, vocab_size: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare shapes before a model of the sizes that the config states is made, which may take any memory.

    Raises: RuntimeError.
    """
    with torch.device("meta"):
        stated = CaptioningModel.from_config(config, vocab_size=vocab_size).state_dict()
    for name, value in stated.items():
        if name not in weights:
            raise RuntimeError(f"{WEIGHTS} lacks {name}")
        if weights[name].shape != value.shape:
            given = tuple(weights[name].shape)
            raise RuntimeError(f"{CONFIG} states {tuple(value.shape)} for {name}, but {WEIGHTS} has {given}")
    unknown = weights.keys() - stated.keys()
    if unknown:
        raise RuntimeError(f"{WEIGHTS} has {min(unknown)}, which {CONFIG} knows nothing of")
