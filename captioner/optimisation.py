"""How the weights move: parameter groups, their learning rates, and the moving average."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]

_WARM_UP_SHARE = 0.1  # of a group's steps, while its learning rate rises
_START, _END = 1 / 25, 1 / 250_000  # of the highest rate, as in torch's OneCycleLR


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
        """The rate of a step from the first on."""
        num_steps = max(self.last_step - self.first_step, 1)
        warm_up = max(_WARM_UP_SHARE * num_steps, 1.0)
        done = step - self.first_step
        if done < warm_up:
            share = _half_cosine(_START, 1.0, done / warm_up)
        else:
            share = _half_cosine(1.0, _END, min((done - warm_up) / max(num_steps - warm_up, 1.0), 1.0))
        return self.highest * share


@dataclass(frozen=True)
class Cycles:
    """One cycle after another: at each step the last that has begun; zero before the first."""

    cycles: tuple[OneCycle, ...]

    def at(self, step: int) -> float:
        begun = [cycle for cycle in self.cycles if cycle.first_step <= step]
        return begun[-1].at(step) if begun else 0.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(groups: Sequence[Sequence[nn.Parameter]], *, weight_decay: float) -> AdamW:
    """AdamW with a group for each list of parameters; `set_learning_rates` gives them their rates."""
    return AdamW([{"params": list(parameters)} for parameters in groups], weight_decay=weight_decay)


def set_learning_rates(optimizer: Optimizer, rates: Sequence[Cycles], step: int) -> None:
    """Give each group the rate of this step."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate.at(step)


def moving_average(model: nn.Module, *, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights, which is what gets scored and saved.

    It generalises better than the weights of any one step. The decay rises to its value over the first
    steps, as (1 + n) / (10 + n), so that the random first weights are soon forgotten.
    """

    def average(averaged: _Tensors, current: _Tensors, num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, num_averaged)

    averaged = AveragedModel(model, multi_avg_fn=average)
    averaged.eval()
    return averaged
