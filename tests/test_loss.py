import math

import pytest
import torch

from captioner.decoder import DecoderOutput
from captioner.loss import CaptionLoss, attention_penalty


def two_captions() -> tuple[DecoderOutput, torch.Tensor]:
    """Captions of two words and of one, and a missing one; two cells; uniform over four words."""
    is_word = torch.tensor([[[True, True], [True, False], [False, False]]])
    alphas = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]], [[0.9, 0.1], [0, 0]], [[0, 0], [0, 0]]]])
    tokens = torch.tensor([[[1, 3, 2], [1, 2, 0], [0, 0, 0]]])
    return DecoderOutput(torch.zeros(3, 4), alphas, is_word), tokens


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
        DecoderOutput(logits, output.alphas, output.is_word), tokens
    )
    log_p = logits[0].log_softmax(0)
    by_hand = -sum(0.9 * log_p[target] + 0.1 * log_p.mean() for target in (3, 2, 2)) / 3
    assert float(smoothed.total) == pytest.approx(float(by_hand))
