"""One model from several: the mean of their weights."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captioner.checkpoint import Checkpoint
from captioner.config import ModelConfig
from captioner.errors import CaptionerError


class AveragingError(CaptionerError):
    """Models that cannot be averaged."""


def average_models(models: Sequence[Checkpoint], shares: Sequence[float]) -> Checkpoint:
    """The mean of the models' weights by their shares, with the vocabulary and decoding of the last.

    Of use for models that come from one another, as one before and one after self-critical training: their
    mean can be better than either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

    Raises:
        AveragingError: the models differ in more than their weights, or the shares do not sum to one.
    """
    if len(models) != len(shares) or len(models) < 2:
        numbers = f"{len(models)} models, {len(shares)} shares"
        raise AveragingError(f"give two models or more, and a share for each: not {numbers}")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise AveragingError(f"shares are 0 or more and sum to 1, unlike {', '.join(map(str, shares))}")
    last = models[-1]
    for number, model in enumerate(models, start=1):
        if model.vocabulary != last.vocabulary:
            raise AveragingError(f"model {number} has another vocabulary than the last")
        if _build(model.config) != _build(last.config):
            raise AveragingError(f"model {number} is built otherwise than the last")
    states = [model.model.state_dict() for model in models]
    weights = {name: _mean([state[name] for state in states], shares) for name in states[-1]}
    last.model.load_state_dict(weights)
    parts = [
        {"share": share, "metrics": dict(model.metrics)} for model, share in zip(models, shares, strict=True)
    ]
    return replace(last, metrics={"average_of": parts})


def _build(config: ModelConfig) -> ModelConfig:
    """What must be the same: all but the search, the dropout and what was measured."""
    return replace(
        config,
        format_version=1,
        grid=replace(config.grid, field_px=None),
        decoder=replace(config.decoder, dropout=0.0),
        decoding=type(config.decoding)(),
    )


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Counters, such as BatchNorm's of its steps, are those of the last model."""
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    total = sum(share * tensor.double() for tensor, share in zip(tensors, shares, strict=True))
    assert isinstance(total, torch.Tensor)
    return total.to(tensors[-1].dtype)
