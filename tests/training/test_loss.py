import math
from dataclasses import replace

import pytest
import torch

from captioner.model.attention import HardAttentionSample
from captioner.model.decoder import DecoderOutput
from captioner.training.loss import CaptionLoss, TokenCounts, attention_penalty
from captioner.training.self_critical import SelfCriticalLoss


def two_captions() -> tuple[DecoderOutput, torch.Tensor]:
    """Captions of two words and of one, and a missing one; two cells; uniform over four words."""
    word_mask = torch.tensor([[[True, True], [True, False], [False, False]]])
    alphas = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]], [[0.9, 0.1], [0, 0]], [[0, 0], [0, 0]]]])
    tokens = torch.tensor([[[1, 3, 2], [1, 2, 0], [0, 0, 0]]])
    return DecoderOutput(torch.zeros(3, 4), alphas, word_mask), tokens


def test_attention_penalty_equals_a_hand_computation() -> None:
    output, _ = two_captions()
    first = (1 - 1.25) ** 2 + (1 - 0.75) ** 2
    second = (1 - 0.9) ** 2 + (1 - 0.1) ** 2
    assert float(attention_penalty(output)) == pytest.approx(first + second)


def test_cross_entropy_of_uniform_logits_is_the_log_of_their_number() -> None:
    output, tokens = two_captions()
    terms = CaptionLoss(label_smoothing=0.0, attention_penalty=0.0)(output, tokens)
    assert float(terms.cross_entropy) == pytest.approx(math.log(4))
    assert float(terms.total) == pytest.approx(math.log(4))


def test_total_is_the_sum_of_the_weighted_terms() -> None:
    output, tokens = two_captions()
    terms = CaptionLoss(label_smoothing=0.0, attention_penalty=0.5)(output, tokens)
    assert float(terms.total) == pytest.approx(
        float(terms.cross_entropy) + 0.5 * float(terms.attention_penalty)
    )


def test_label_smoothing_equals_a_hand_computation() -> None:
    output, tokens = two_captions()
    logits = torch.tensor([[2.0, 0.0, 0.0, 1.0]]).repeat(3, 1)
    smoothed = CaptionLoss(label_smoothing=0.1, attention_penalty=0.0)(
        DecoderOutput(logits, output.alphas, output.word_mask), tokens
    )
    log_p = logits[0].log_softmax(0)
    by_hand = -sum(0.9 * log_p[target] + 0.1 * log_p.mean() for target in (3, 2, 2)) / 3
    assert float(smoothed.total) == pytest.approx(float(by_hand))


def hard_output() -> tuple[DecoderOutput, torch.Tensor]:
    """As `two_captions`, with choices of hard attention."""
    output, tokens = two_captions()
    log_prob = torch.tensor([[[-0.5, -1.0], [-2.0, 0.0], [0.0, 0.0]]])
    entropy = torch.tensor([[[0.3, 0.4], [0.6, 0.0], [0.0, 0.0]]])
    return replace(output, hard_sample=HardAttentionSample(log_prob, entropy)), tokens


def test_hard_attention_term_equals_a_hand_computation() -> None:
    """All words have probability 1/4, so that log p(y) is -2 log 4 and -log 4."""
    output, tokens = hard_output()
    loss = CaptionLoss(
        label_smoothing=0.0, attention_penalty=0.0, reinforce_weight=0.5, attention_entropy_weight=0.1
    )
    terms = loss(output, tokens, baseline=-1.0)
    gains = -2 * math.log(4) + 1, -math.log(4) + 1
    reinforced = gains[0] * (-0.5 - 1.0) + gains[1] * -2.0
    by_hand = (-0.5 * reinforced - 0.1 * (0.3 + 0.4 + 0.6)) / 3
    assert float(terms.hard_attention) == pytest.approx(by_hand)
    assert float(terms.total) == pytest.approx(math.log(4) + by_hand)


def test_self_critical_loss_equals_a_hand_computation() -> None:
    """Four tokens of which one, <end>, and no other of the special ones may be said."""
    output, _ = two_captions()
    logits = torch.zeros(3, 6)
    tokens = torch.tensor([[[1, 5, 2], [1, 2, 0], [0, 0, 0]]])
    loss = SelfCriticalLoss(attention_penalty=0.5)
    terms = loss(replace(output, logits=logits), tokens, advantages=torch.tensor([[2.0, -1.0, 7.0]]))
    policy = (2 * 2 * math.log(3) - math.log(3)) / 3
    assert float(terms.total) == pytest.approx(policy + 0.5 * float(terms.attention_penalty))
    assert float(terms.cross_entropy) == pytest.approx(math.log(3))


@pytest.mark.parametrize("kind", ["hard", "self-critical"])
def test_terms_of_parts_add_up_to_those_of_the_whole(kind: str) -> None:
    output, tokens = hard_output()
    size = TokenCounts.from_mask(output.word_mask)
    whole, parts = None, []
    captions_and_words = ((slice(0, 3), slice(0, 3)), (slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, 3)))
    for columns, words in captions_and_words:
        word_mask = output.word_mask[:, columns]
        hard_sample = HardAttentionSample(output.hard_sample.log_prob[:, columns], output.hard_sample.entropy[:, columns])
        part = DecoderOutput(output.logits[words], output.alphas[:, columns], word_mask, hard_sample)
        if kind == "hard":
            loss = CaptionLoss(
                label_smoothing=0.1, attention_penalty=0.5, reinforce_weight=1, attention_entropy_weight=1
            )
            terms = loss(part, tokens[:, columns], size=size, baseline=-1.0)
        else:
            advantages = torch.tensor([[2.0, -1.0, 7.0]])[:, columns]
            part = replace(part, logits=torch.arange(18.0).view(3, 6).sin()[words])
            said = torch.tensor([[[1, 5, 2], [1, 2, 0], [0, 0, 0]]])[:, columns]
            terms = SelfCriticalLoss(attention_penalty=0.5)(part, said, advantages=advantages, size=size)
        if whole is None:
            whole = terms
        else:
            parts.append(terms)
    for name, value in whole.named().items():
        assert float(value) == pytest.approx(sum(float(getattr(part, name)) for part in parts), abs=1e-6), (
            name
        )
