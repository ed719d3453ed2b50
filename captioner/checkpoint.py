"""A model folder as a torch model, and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import msgspec
import torch
from safetensors.torch import load_file, save

from captioner.config import ModelConfig, TranslationConfig
from captioner.encoder import Encoder, EncoderError
from captioner.model import (
    AttentionModel,
    EncoderT,
    make_captioning_model,
    make_translation_model,
)
from captioner.model_folder import (
    CONFIG,
    METRICS,
    VOCABULARY,
    WEIGHTS,
    CheckpointError,
    Config,
    damage_told,
    read_config,
    read_translation_config,
    read_vocabulary,
    replaced_folder,
    require_finite,
    to_json,
)
from captioner.text_encoder import TextEncoder
from captioner.vocabulary import Vocabulary


@dataclass(frozen=True)
class StoredModel(Generic[EncoderT, Config]):
    """A model with all that belongs to it. `metrics` is free-form JSON, for people to read."""

    model: AttentionModel[EncoderT]
    config: Config
    vocabulary: Vocabulary
    metrics: dict[str, Any]


Checkpoint = StoredModel[Encoder, ModelConfig]
TranslationCheckpoint = StoredModel[TextEncoder, TranslationConfig]


def save_checkpoint(
    folder: Path, checkpoint: StoredModel[EncoderT, Config], *, dtype: torch.dtype = torch.float16
) -> None:
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
    config, vocabulary = read_config(folder), read_vocabulary(folder)
    try:
        model = _filled(folder, lambda: make_captioning_model(config, vocab_size=len(vocabulary)))
        grid = model.encoder.grid_config(config.preprocess.size_px)
    except EncoderError as error:
        raise _misfit(folder, error) from error
    stated = replace(config.grid, field_px=None)  # that is measured on pictures
    if grid != stated:
        raise CheckpointError(f"{folder}/{CONFIG} states {stated}, but its backbone gives {grid}")
    return Checkpoint(model, config, vocabulary, read_metrics(folder))


def load_translation_checkpoint(folder: Path) -> TranslationCheckpoint:
    """As `load_checkpoint`, of a translator's folder. Raises: CheckpointError."""
    config, vocabulary = read_translation_config(folder), read_vocabulary(folder)
    model = _filled(folder, lambda: make_translation_model(config, vocab_size=len(vocabulary)))
    return TranslationCheckpoint(model, config, vocabulary, read_metrics(folder))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Raises: CheckpointError."""
    with damage_told(folder):
        return msgspec.json.decode((folder / METRICS).read_bytes(), type=dict[str, Any])


def _filled(folder: Path, make: Callable[[], AttentionModel[EncoderT]]) -> AttentionModel[EncoderT]:
    """The model that `make` makes, with the weights of a folder. Raises: CheckpointError."""
    with damage_told(folder):
        weights = load_file(folder / WEIGHTS)
    require_finite(folder, {name: bool(value.isfinite().all()) for name, value in weights.items()})
    try:
        with torch.device("meta"):
            _require_fit(make().state_dict(), weights)
        model = make()
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _misfit(folder, error) from error
    return model


def _require_fit(stated: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes, before a model of the sizes that the config states is made: it may take any
    memory. Raises: RuntimeError.
    """
    for name, value in stated.items():
        if name not in weights:
            raise RuntimeError(f"{WEIGHTS} lacks {name}")
        if weights[name].shape != value.shape:
            given = tuple(weights[name].shape)
            raise RuntimeError(f"{CONFIG} states {tuple(value.shape)} for {name}, but {WEIGHTS} has {given}")
    unknown = weights.keys() - stated.keys()
    if unknown:
        raise RuntimeError(f"{WEIGHTS} has {min(unknown)}, which {CONFIG} knows nothing of")


def _misfit(folder: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(f"the files of {folder} do not fit one another: {reason}")
