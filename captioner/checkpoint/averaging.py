"""Averages of models' weights."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captioner.checkpoint.weights import CaptioningCheckpoint
from captioner.config import ModelConfig
from captioner.errors import CaptionerError


def average_models(models: Sequence[CaptioningCheckpoint], shares: Sequence[float]) -> CaptioningCheckpoint:
    """The mean of the models' weights by their shares, with the vocabulary and decoding of the last.

    Useful for models trained from one another, such as before and after self-critical training: their
    mean can be better than either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

    Raises:
        CaptionerError: the models differ in more than their weights, or the shares do not sum to one.
    """
    if len(models) != len(shares) or len(models) < 2:
        numbers = f"{len(models)} models and {len(shares)} shares"
        raise CaptionerError(f"give at least two models and one share for each, not {numbers}")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise CaptionerError(f"shares must be at least 0 and sum to 1, not {', '.join(map(str, shares))}")
    last = models[-1]
    advice = "average models that were trained from one another (train.py --start-from)"
    for number, model in enumerate(models, start=1):
        if model.vocabulary != last.vocabulary:
            raise CaptionerError(f"model {number} has a different vocabulary from the last; {advice}")
        own, others = (
            {**vars(config), **vars(config.decoder)}
            for config in (_architecture(model.config), _architecture(last.config))
        )
        differing = [name for name in own if own[name] != others[name] and name != "decoder"]
        if differing:
            raise CaptionerError(f"model {number} differs from the last in {', '.join(differing)}; {advice}")
    states = [model.model.state_dict() for model in models]
    weights = {name: _mean([state[name] for state in states], shares) for name in states[-1]}
    last.model.load_state_dict(weights)
    sources = [
        {"share": share, "metrics": dict(model.metrics)} for model, share in zip(models, shares, strict=True)
    ]
    return replace(last, metrics={"average_of": sources})


def _architecture(config: ModelConfig) -> ModelConfig:
    """What must be the same: everything but decoding, dropout and measured values."""
    return replace(
        config,
        grid=config.grid.geometry,
        decoder=replace(config.decoder, dropout=0.0),
        decoding=type(config.decoding)(),
    )


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Counters, such as BatchNorm's number of steps, are those of the last model."""
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    total = sum(share * tensor.double() for tensor, share in zip(tensors, shares, strict=True))
    assert isinstance(total, torch.Tensor)
    return total.to(tensors[-1].dtype)
