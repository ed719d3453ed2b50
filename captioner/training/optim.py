"""Optimizer, learning rate schedules and moving average of the weights."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]

_WARM_UP_SHARE = 0.1  # of a group's steps, in which its learning rate rises
_START, _END = 1 / 25, 1 / 250_000  # of the peak rate, as in torch's OneCycleLR


@dataclass(frozen=True)
class OneCycle:
    """A learning rate that rises for a tenth of its steps and then falls, both along a half cosine.

    Smith and Topin 2018, "Super-Convergence". As torch's OneCycleLR, but a plain function of the step,
    so that a resumed run needs no state for it and each group of parameters has its own first step.
    """

    highest: float
    first_step: int
    last_step: int

    def at(self, step: int) -> float:
        """The rate at a step, from the first step on."""
        num_steps = max(self.last_step - self.first_step, 1)
        warm_up = max(_WARM_UP_SHARE * num_steps, 1.0)
        done = step - self.first_step
        if done < warm_up:
            share = _half_cosine(_START, 1.0, done / warm_up)
        else:
            share = _half_cosine(1.0, _END, min((done - warm_up) / max(num_steps - warm_up, 1.0), 1.0))
        return self.highest * share


@dataclass(frozen=True)
class ChainedSchedule:
    """Cycles one after another: at each step the last that has started; zero before the first."""

    cycles: tuple[OneCycle, ...]

    def at(self, step: int) -> float:
        started = [cycle for cycle in self.cycles if cycle.first_step <= step]
        return started[-1].at(step) if started else 0.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(
    model: nn.Module, groups: Sequence[Sequence[nn.Parameter]], *, weight_decay: float
) -> AdamW:
    """AdamW over groups of the model's parameters, with weight decay for matrices only.

    Each group becomes two: its weights, and its biases, norms and embeddings, which are not decayed
    (Radford et al. 2018). Both have the key "schedule", the index of their group, by which
    `set_learning_rates` gives them their rate.
    """
    undecayed = {id(parameter) for parameter in _undecayed_parameters(model)}
    return AdamW(
        [
            {
                "params": [one for one in group if (id(one) not in undecayed) == is_decayed],
                "weight_decay": weight_decay if is_decayed else 0.0,
                "schedule": index,
            }
            for index, group in enumerate(groups)
            for is_decayed in (True, False)
        ],
        fused=True,
    )


def _undecayed_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    """Biases and norms, which are vectors, and embeddings."""
    yield from (parameter for parameter in model.parameters() if parameter.ndim < 2)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters()
        if hasattr(module, "no_weight_decay"):  # timm's models name their position embeddings and the like
            own = dict(module.named_parameters())
            names: Iterable[str] = cast(Any, module).no_weight_decay()
            yield from (own[name] for name in names if name in own)


def set_learning_rates(optimizer: Optimizer, schedules: Sequence[ChainedSchedule], step: int) -> None:
    """Give each group the rate of this step by its schedule."""
    for group in optimizer.param_groups:
        group["lr"] = schedules[group["schedule"]].at(step)


def moving_average(model: nn.Module, *, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights, which is scored and saved.

    It generalises better than the weights of any one step. The decay rises to its value over the first
    steps, as (1 + n) / (10 + n), so that the random initial weights are soon forgotten.
    """

    def average(averaged: _Tensors, current: _Tensors, num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, num_averaged)

    averaged = AveragedModel(model, multi_avg_fn=average)
    averaged.eval()
    return averaged
