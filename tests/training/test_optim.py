import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from captioner.training.optim import (
    ChainedSchedule,
    OneCycle,
    make_optimizer,
    moving_average,
    set_learning_rates,
)


def test_one_cycle_is_that_of_torch() -> None:
    num_steps = 101
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = OneCycleLR(
        optimizer, max_lr=0.5, total_steps=num_steps, pct_start=11 / num_steps, cycle_momentum=False
    )
    ours = OneCycle(highest=0.5, first_step=0, last_step=num_steps - 1)
    for step in range(num_steps):
        assert ours.at(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        schedule.step() if step < num_steps - 1 else None


def test_group_has_no_rate_before_its_first_step_and_its_own_cycle_after() -> None:
    late = ChainedSchedule((OneCycle(highest=1.0, first_step=40, last_step=100),))
    assert [late.at(step) for step in (0, 39)] == [0.0, 0.0]
    assert late.at(40) == pytest.approx(1 / 25)
    assert late.at(46) == pytest.approx(1.0)
    assert late.at(100) == pytest.approx(0.0, abs=1e-5)
    assert max(late.at(step) for step in range(101)) == pytest.approx(1.0)


def test_second_cycle_takes_over_at_its_first_step() -> None:
    first, second = OneCycle(1.0, 0, 50), OneCycle(0.1, 50, 80)
    cycles = ChainedSchedule((first, second))
    assert [cycles.at(step) for step in (0, 10, 49)] == [first.at(step) for step in (0, 10, 49)]
    assert [cycles.at(step) for step in (50, 60, 79)] == [second.at(step) for step in (50, 60, 79)]


def test_each_group_gets_its_rate() -> None:
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([[one], [other]], weight_decay=0.1)
    rates = [ChainedSchedule((OneCycle(1.0, 0, 100),)), ChainedSchedule((OneCycle(0.1, 50, 100),))]
    set_learning_rates(optimizer, rates, 60)
    assert [group["lr"] for group in optimizer.param_groups] == [rate.at(60) for rate in rates]


def test_moving_average_equals_a_hand_computation_and_soon_forgets_its_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaged = moving_average(model, decay=0.5)
    by_hand = None
    for count, value in enumerate([4.0, 1.0, 2.0, 8.0, 3.0, 5.0, 7.0, 9.0, 6.0, 1.0, 2.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        decay = min(0.5, (1 + count) / (10 + count))
        by_hand = value if by_hand is None else decay * by_hand + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(by_hand)


def test_moving_average_without_decay_is_the_model() -> None:
    model = nn.Linear(3, 2)
    averaged = moving_average(model, decay=0.0)
    for _ in range(3):
        nn.init.normal_(model.weight)
        averaged.update_parameters(model)
        assert torch.equal(averaged.module.weight, model.weight)
