"""Scores and attention, against their equations written out and exact gradients by enumeration."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch

from captioner.config import DecoderConfig
from captioner.model import lstm
from captioner.model.attention import (
    AttentionOutput,
    HardAttentionSample,
    Score,
    attend,
    attend_hard,
    make_score,
)
from captioner.model.lstm import LSTMDecoder
from captioner.training.loss import CaptionLoss
from captioner.vocabulary import END, START
from tests.conftest import batch_of

SCORES = ("additive", "dot", "general", "multihead")
CONFIG = DecoderConfig(hidden_dim=6, attention_dim=4, num_heads=2)


def score_of(name: str) -> Score:
    torch.manual_seed(0)
    return make_score(replace(CONFIG, score=name), annotation_dim=8)


@pytest.mark.parametrize("name", SCORES)
def test_alphas_of_each_head_are_a_distribution_that_depends_on_the_hidden_state(name: str) -> None:
    score, annotations, hidden = score_of(name), torch.randn(2, 9, 8), torch.randn(2, 3, 6)
    keys, values = score.project(annotations)
    alphas = attend(score(keys, hidden), values).alphas
    num_heads = 2 if name == "multihead" else 1
    assert alphas.shape == (2, 3, num_heads, 9)
    assert (alphas >= 0).all()
    torch.testing.assert_close(alphas.sum(dim=-1), torch.ones(2, 3, num_heads))
    assert (alphas[:, 0] - alphas[:, 1]).abs().amax(dim=-1).min() > 1e-3


@pytest.mark.parametrize("name", SCORES)
def test_permuted_cells_give_permuted_alphas_and_the_same_context(name: str) -> None:
    score, annotations, hidden = score_of(name), torch.randn(2, 9, 8), torch.randn(2, 3, 6)
    order = torch.randperm(9)
    outputs = []
    for cells in (annotations, annotations[:, order]):
        keys, values = score.project(cells)
        outputs.append(attend(score(keys, hidden), values))
    torch.testing.assert_close(outputs[1].alphas, outputs[0].alphas[..., order])
    torch.testing.assert_close(outputs[1].context, outputs[0].context)


def test_additive_score_is_the_paper_equation_written_out() -> None:
    score, annotations, hidden = score_of("additive"), torch.randn(1, 4, 8), torch.randn(1, 1, 6)
    keys, values = score.project(annotations)
    w, b, u, v = score.key.weight, score.key.bias, score.query.weight, score.score.weight[0]
    energies = torch.stack([v @ torch.tanh(w @ a + b + u @ hidden[0, 0]) for a in annotations[0]])
    torch.testing.assert_close(score(keys, hidden)[0, 0, 0], energies)
    alpha = energies.exp() / energies.exp().sum()
    output = attend(score(keys, hidden), values)
    torch.testing.assert_close(output.alphas[0, 0, 0], alpha)
    by_hand = sum(share * a for share, a in zip(alpha, annotations[0], strict=True))
    torch.testing.assert_close(output.context[0, 0], by_hand)


def test_dot_and_general_scores_are_luongs_except_for_the_factor() -> None:
    annotations, hidden = torch.randn(1, 4, 8), torch.randn(1, 1, 6)
    general = score_of("general")
    keys, _ = general.project(annotations)
    expected = torch.stack([hidden[0, 0] @ general.key.weight @ a for a in annotations[0]]) / 6**0.5
    torch.testing.assert_close(general(keys, hidden)[0, 0, 0], expected)
    dot = make_score(replace(CONFIG, score="dot"), annotation_dim=6)
    assert list(dot.parameters()) == []
    same_size = torch.randn(1, 4, 6)
    keys, values = dot.project(same_size)
    assert torch.equal(values, same_size)
    torch.testing.assert_close(dot(keys, hidden)[0, 0, 0], same_size[0] @ hidden[0, 0] / 6**0.5)


def test_multihead_score_equals_torchs_multi_head_attention() -> None:
    score = make_score(replace(CONFIG, score="multihead", attention_dim=6), annotation_dim=8)
    torchs = torch.nn.MultiheadAttention(6, 2, kdim=8, vdim=8, batch_first=True)
    annotations, hidden = torch.randn(2, 9, 8), torch.randn(2, 3, 6)
    with torch.no_grad():
        layers = {"q": score.query, "k": score.key, "v": score.value}
        for name, layer in layers.items():
            getattr(torchs, f"{name}_proj_weight").copy_(layer.weight)
        torchs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers.values()]))
        torchs.out_proj.weight.copy_(torch.eye(6))
        torchs.out_proj.bias.zero_()
    context, alphas = torchs(hidden, annotations, annotations, average_attn_weights=False)
    keys, values = score.project(annotations)
    output = attend(score(keys, hidden), values)
    torch.testing.assert_close(output.context, context)
    torch.testing.assert_close(output.alphas.transpose(1, 2), alphas)


def test_without_attention_the_context_is_the_mean_annotation() -> None:
    score = make_score(replace(CONFIG, attention="none"), annotation_dim=8)
    annotations = torch.randn(2, 9, 8)
    keys, values = score.project(annotations)
    output = attend(score(keys, torch.randn(2, 3, 6)), values)
    torch.testing.assert_close(output.context, annotations.mean(dim=1)[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(output.alphas, torch.full((2, 3, 1, 9), 1 / 9))


def test_hard_attention_takes_the_likeliest_cell_when_captioning() -> None:
    energies, values = torch.randn(2, 3, 1, 9), torch.randn(2, 9, 8)
    output = attend_hard(energies, values, is_training=False)
    cells = energies[:, :, 0].argmax(dim=-1)
    for picture, caption in product(range(2), range(3)):
        assert torch.equal(output.context[picture, caption], values[picture, cells[picture, caption]])
    assert torch.equal(output.alphas.sum(dim=-1), torch.ones(2, 3, 1))


def test_hard_attention_draws_cells_as_often_as_their_probability_says() -> None:
    torch.manual_seed(0)
    num_draws = 20_000
    energies = torch.tensor([0.0, 1.0, -1.0]).expand(1, num_draws, 1, 3)
    output = attend_hard(energies, torch.randn(1, 3, 4), is_training=True, expected_share=0.25)
    probabilities = energies[0, 0, 0].softmax(dim=0)
    is_drawn = output.alphas[0, :, 0].amax(dim=-1) == 1
    assert float(is_drawn.float().mean()) == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(output.alphas[0, is_drawn, 0].mean(dim=0), probabilities, atol=0.02, rtol=0.0)
    torch.testing.assert_close(output.alphas[0, ~is_drawn, 0][0], probabilities)
    log_prob = (output.alphas[0, :, 0] * probabilities.log()).sum(dim=-1)
    assert output.hard_sample is not None
    torch.testing.assert_close(output.hard_sample.log_prob[0], log_prob * is_drawn)
    entropy = -(probabilities * probabilities.log()).sum()
    torch.testing.assert_close(output.hard_sample.entropy, entropy.expand(1, num_draws))


class Toy:
    """A caption of one word and its end over a grid of three cells, whose nine (or, with the expected
    context as a fourth choice, sixteen) ways of attending can all be enumerated."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = DecoderConfig(attention="hard", embedding_dim=3, hidden_dim=4, attention_dim=3, dropout=0.0)
        self.decoder = LSTMDecoder(config=config, annotation_dim=5, vocab_size=6)
        self.annotations = torch.randn(1, 3, 5)
        with torch.no_grad():
            self.decoder.output.weight.mul_(6)  # so that attention matters

    def run(
        self,
        attend_by: Callable[..., AttentionOutput],
        monkeypatch: pytest.MonkeyPatch,
        num_captions: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and log p(y) with the outputs that a function gives, b = -1."""
        monkeypatch.setattr(lstm, "attend_hard", attend_by)
        tokens = torch.tensor([START, 5, END]).expand(1, num_captions, 3)
        output = self.decoder(self.annotations, tokens, torch.full((1, num_captions), 2))
        loss = CaptionLoss(label_smoothing=0.0, attention_penalty=0.0, reinforce_weight=1.0)
        log_prob = output.logits.log_softmax(dim=-1).gather(1, tokens[..., 1:][output.word_mask][:, None])
        return loss(output, batch_of(tokens), baseline=-1.0)["total"], log_prob.sum()

    def gradients(self, value: torch.Tensor) -> torch.Tensor:
        parameters = list(self.decoder.parameters())
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("expected_share", [0.0, 0.5])
def test_gradient_of_hard_attention_is_unbiased(
    expected_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean gradient of the loss over draws is the exact one of -E[log p(y | s)] / words."""
    toy = Toy()
    objective = torch.zeros(())
    for way in product(range(4 if expected_share else 3), repeat=2):
        places, chances = iter(way), []

        def attend_to(energies: torch.Tensor, values: torch.Tensor, **_: object) -> AttentionOutput:
            place = next(places)  # noqa: B023
            soft = attend(energies, values)
            if place == 3:
                chances.append(torch.tensor(expected_share))  # noqa: B023
                return soft
            chances.append((1 - expected_share) * soft.alphas[0, 0, 0, place])  # noqa: B023
            alphas = torch.zeros_like(soft.alphas)
            alphas[..., place] = 1
            nothing = torch.zeros(1, 1)
            return AttentionOutput(values[:, place][:, None], alphas, HardAttentionSample(nothing, nothing))

        _, log_prob = toy.run(attend_to, monkeypatch)
        objective = objective - chances[0] * chances[1] * log_prob / 2
    exact = toy.gradients(objective)
    assert exact[: toy.decoder.annotation_norm.weight.numel()].abs().max() > 1e-3

    draw = partial(attend_hard, expected_share=expected_share)
    torch.manual_seed(1)
    sampled = torch.stack(
        [toy.gradients(toy.run(draw, monkeypatch, num_captions=1_000)[0]) for _ in range(60)]
    )
    error = (sampled.mean(dim=0) - exact).abs()
    standard_error = sampled.std(dim=0) / len(sampled) ** 0.5
    assert (error <= 4.5 * standard_error + 1e-6).all()
    assert error.norm() < 0.05 * exact.norm()
