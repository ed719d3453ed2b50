from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from captioner.config import TextEncoderConfig
from captioner.model.captioning import make_decoder
from captioner.model.encoder import Encoder
from captioner.training.optim import (
    ChainedSchedule,
    OneCycle,
    make_optimizer,
    moving_average,
    set_learning_rates,
)
from captioner.translation.encoder import TextEncoder
from captioner.vocabulary import Vocabulary
from tests.conftest import DECODER_CHANGES, SMALL_DECODER


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


def test_each_group_gets_the_rate_of_its_own_schedule() -> None:
    one, other = nn.Linear(2, 3), nn.Linear(3, 2)
    model = nn.Sequential(one, other)
    optimizer = make_optimizer(model, [list(one.parameters()), list(other.parameters())], weight_decay=0.1)
    schedules = [ChainedSchedule((OneCycle(1.0, 0, 100),)), ChainedSchedule((OneCycle(0.1, 50, 100),))]
    set_learning_rates(optimizer, schedules, 60)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for module, schedule in zip((one, other), schedules, strict=True):
        assert [rates[id(parameter)] for parameter in module.parameters()] == [schedule.at(60)] * 2
    assert len(rates) == 4


@pytest.fixture(params=[*DECODER_CHANGES, "picture encoder", "text encoder"])
def any_module(request: pytest.FixtureRequest, vocabulary: Vocabulary, encoder: Encoder) -> nn.Module:
    """Every part of a model that is trained."""
    if request.param == "picture encoder":
        return encoder
    if request.param == "text encoder":
        return TextEncoder(config=TextEncoderConfig(num_layers=2), vocab_size=len(vocabulary))
    config = replace(SMALL_DECODER, **DECODER_CHANGES[request.param])
    return make_decoder(config, annotation_dim=10, vocab_size=len(vocabulary))


def test_weight_decay_shrinks_matrices_and_neither_biases_nor_norms_nor_embeddings(
    any_module: nn.Module,
) -> None:
    """Without gradients a weight changes only by the decay: by the share rate x decay of itself."""
    torch.manual_seed(0)
    for parameter in any_module.parameters():
        nn.init.normal_(parameter, mean=1.0)
        parameter.grad = torch.zeros_like(parameter)
    before = {name: value.detach().clone() for name, value in any_module.named_parameters()}
    optimizer = make_optimizer(any_module, [list(any_module.parameters())], weight_decay=0.25)
    set_learning_rates(optimizer, [ChainedSchedule((OneCycle(0.1, 0, 100),))], 10)
    optimizer.step()
    optimizer.zero_grad()
    owners = {
        name: any_module.get_submodule(name.rpartition(".")[0]) for name, _ in any_module.named_parameters()
    }
    kept = {
        name
        for name, owner in owners.items()
        if isinstance(owner, nn.LayerNorm | nn.BatchNorm2d | nn.Embedding)
        or name.rpartition(".")[2].startswith("bias")
    }
    assert kept
    assert kept != owners.keys()
    for name, value in any_module.named_parameters():
        expected = before[name] if name in kept else before[name] * (1 - 0.1 * 0.25)
        torch.testing.assert_close(
            value.detach(), expected, rtol=0 if name in kept else 1e-6, atol=0, msg=name
        )


def test_every_parameter_is_optimised_once(any_module: nn.Module) -> None:
    parameters = list(any_module.parameters())
    groups = make_optimizer(any_module, [parameters[::2], parameters[1::2]], weight_decay=0.1).param_groups
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(map(id, parameters))


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


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_what_a_backbone_exempts_from_weight_decay_is_not_decayed(backbone: str) -> None:
    encoder = Encoder(backbone=backbone)
    optimizer = make_optimizer(encoder, [list(encoder.parameters())], weight_decay=0.1)
    decayed = {id(one) for part in optimizer.param_groups if part["weight_decay"] for one in part["params"]}
    exempt = set(getattr(encoder.cnn, "no_weight_decay", set)())
    for name, parameter in encoder.cnn.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= 2 and name not in exempt), name
