import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captioner.model.attention import HardAttentionSample
from captioner.model.batch import CaptionBatch, Regions
from captioner.model.captioning import make_decoder
from captioner.model.decoder import DecoderOutput
from captioner.training.loss import CaptionLoss, TokenCounts, attention_penalty, attention_supervision
from captioner.training.self_critical import Reward, SelfCriticalLoss
from tests.conftest import DECODER_CHANGES, SMALL_DECODER, batch_of


def captions(tokens: Tensor) -> CaptionBatch:
    """A batch with these captions, which padding follows."""
    return batch_of(tokens, (tokens[..., 1:] > 0).sum(dim=-1))


class FixedReward(Reward):
    """A reward that gives each picture's captions what it is told to."""

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        self.values = values

    def __call__(self, batch: CaptionBatch) -> Tensor:
        return torch.tensor([self.values[picture] for picture in batch.ids])


def two_captions() -> tuple[DecoderOutput, CaptionBatch]:
    """Captions of two words and of one, and a missing one; two cells; uniform over four words."""
    word_mask = torch.tensor([[[True, True], [True, False], [False, False]]])
    alphas = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]], [[0.9, 0.1], [0, 0]], [[0, 0], [0, 0]]]])
    tokens = torch.tensor([[[1, 3, 2], [1, 2, 0], [0, 0, 0]]])
    return DecoderOutput(torch.zeros(3, 4), alphas, word_mask), captions(tokens)


def test_attention_penalty_equals_a_hand_computation() -> None:
    output, _ = two_captions()
    first = (1 - 1.25) ** 2 + (1 - 0.75) ** 2
    second = (1 - 0.9) ** 2 + (1 - 0.1) ** 2
    assert float(attention_penalty(output)) == pytest.approx(first + second)


def test_cross_entropy_of_uniform_logits_is_the_log_of_their_number() -> None:
    output, batch = two_captions()
    terms = CaptionLoss(label_smoothing=0.0, attention_penalty=0.0)(output, batch)
    assert float(terms["cross_entropy"]) == pytest.approx(math.log(4))
    assert float(terms["total"]) == pytest.approx(math.log(4))


def test_total_is_the_sum_of_the_weighted_terms() -> None:
    output, batch = two_captions()
    terms = CaptionLoss(label_smoothing=0.0, attention_penalty=0.5)(output, batch)
    assert terms.keys() == {"total", "cross_entropy", "attention_penalty"}
    assert float(terms["total"]) == pytest.approx(
        float(terms["cross_entropy"]) + 0.5 * float(terms["attention_penalty"])
    )


def test_label_smoothing_equals_a_hand_computation() -> None:
    output, batch = two_captions()
    logits = torch.tensor([[2.0, 0.0, 0.0, 1.0]]).repeat(3, 1)
    smoothed = CaptionLoss(label_smoothing=0.1, attention_penalty=0.0)(replace(output, logits=logits), batch)
    log_p = logits[0].log_softmax(0)
    by_hand = -sum(0.9 * log_p[target] + 0.1 * log_p.mean() for target in (3, 2, 2)) / 3
    assert float(smoothed["total"]) == pytest.approx(float(by_hand))


def hard_output() -> tuple[DecoderOutput, CaptionBatch]:
    """As `two_captions`, with samples of hard attention."""
    output, batch = two_captions()
    log_prob = torch.tensor([[[-0.5, -1.0], [-2.0, 0.0], [0.0, 0.0]]])
    entropy = torch.tensor([[[0.3, 0.4], [0.6, 0.0], [0.0, 0.0]]])
    return replace(output, hard_sample=HardAttentionSample(log_prob, entropy)), batch


def test_hard_attention_term_equals_a_hand_computation() -> None:
    """All words have probability 1/4, so that log p(y) is -2 log 4 and -log 4."""
    output, batch = hard_output()
    loss = CaptionLoss(
        label_smoothing=0.0, attention_penalty=0.0, reinforce_weight=0.5, attention_entropy_weight=0.1
    )
    terms = loss(output, batch, baseline=-1.0)
    gains = -2 * math.log(4) + 1, -math.log(4) + 1
    reinforced = gains[0] * (-0.5 - 1.0) + gains[1] * -2.0
    by_hand = (-0.5 * reinforced - 0.1 * (0.3 + 0.4 + 0.6)) / 3
    assert float(terms["hard_attention"]) == pytest.approx(by_hand)
    assert float(terms["total"]) == pytest.approx(math.log(4) + by_hand)


def test_self_critical_loss_equals_a_hand_computation() -> None:
    """Of six tokens, captions may contain three: <end> and the two that are not special."""
    output, _ = two_captions()
    batch = captions(torch.tensor([[[1, 5, 2], [1, 2, 0], [0, 0, 0]]]))
    reward = FixedReward({"0": [3.0, 0.0, 1.0]})  # so the advantages are 2.5, -2 and -0.5
    loss = SelfCriticalLoss(attention_penalty=0.5, reward=reward)
    terms = loss(replace(output, logits=torch.zeros(3, 6)), batch)
    policy = (2.5 * 2 * math.log(3) - 2 * math.log(3)) / 3
    assert float(terms["total"]) == pytest.approx(policy + 0.5 * float(terms["attention_penalty"]))
    assert float(terms["cross_entropy"]) == pytest.approx(math.log(3))
    assert float(terms["reward"]) == pytest.approx(4.0 / 2)  # over the captions that there are


@pytest.mark.parametrize("kind", ["hard", "self-critical"])
def test_terms_of_micro_batches_add_up_to_those_of_the_whole_step(kind: str) -> None:
    """Micro-batches may split even a picture's captions, unless they are samples, which share a baseline."""
    one, batch = hard_output()
    assert one.hard_sample is not None
    # Two pictures, the second one with the captions of the first in another order.
    order = torch.tensor([1, 0, 2])
    alphas, word_mask, log_prob, entropy, tokens = (
        torch.cat([value, value[:, order]])
        for value in (
            one.alphas,
            one.word_mask,
            one.hard_sample.log_prob,
            one.hard_sample.entropy,
            batch.tokens,
        )
    )
    logits = torch.arange(36.0).view(6, 6).sin()
    output = DecoderOutput(logits, alphas, word_mask, HardAttentionSample(log_prob, entropy))
    counts = TokenCounts.from_mask(word_mask)
    reward = FixedReward({"0": [2.0, -1.0, 7.0], "1": [0.5, 3.0, -4.0]})
    blocks = [(slice(0, 1), slice(0, 1)), (slice(0, 1), slice(1, 3)), (slice(1, 2), slice(0, 3))]
    loss: CaptionLoss | SelfCriticalLoss = CaptionLoss(
        label_smoothing=0.1, attention_penalty=0.5, reinforce_weight=1, attention_entropy_weight=1
    )
    if kind == "self-critical":
        tokens = torch.where(tokens == 3, 5, tokens)  # a word
        output = replace(output, hard_sample=None)
        loss = SelfCriticalLoss(attention_penalty=0.5, reward=reward)
        blocks = [(slice(0, 1), slice(0, 3)), (slice(1, 2), slice(0, 3))]
    whole = captions(tokens)
    row_of_word = torch.zeros(word_mask.shape, dtype=torch.long)
    row_of_word[word_mask] = torch.arange(len(logits))

    def part(pictures: slice, columns: slice) -> dict[str, Tensor]:
        block = (pictures, columns)
        hard_sample = output.hard_sample
        if hard_sample is not None:
            hard_sample = HardAttentionSample(hard_sample.log_prob[block], hard_sample.entropy[block])
        mask = word_mask[block]
        part_of_output = DecoderOutput(logits[row_of_word[block][mask]], alphas[block], mask, hard_sample)
        part_of_batch = replace(
            whole,
            ids=whole.ids[pictures],
            names=whole.names[pictures],
            tokens=whole.tokens[block],
            lengths=whole.lengths[block],
        )
        return loss(part_of_output, part_of_batch, counts=counts, baseline=-1.0)

    parts = [part(*block) for block in blocks]
    terms = loss(output, whole, counts=counts, baseline=-1.0)
    expected = {"total", "cross_entropy", "attention_penalty"}
    assert terms.keys() == expected | {"hard_attention" if kind == "hard" else "reward"}
    for name, value in terms.items():
        assert float(value) == pytest.approx(sum(float(part[name]) for part in parts), abs=1e-6), name


def supervised(of_word: list[list[list[int]]]) -> tuple[DecoderOutput, CaptionBatch]:
    """As `two_captions`, with two regions: the first covers the first cell, the second half of the other."""
    output, batch = two_captions()
    regions = Regions(
        categories=(("dog", "horse"),),
        coverage=torch.tensor([[[1.0, 0.0], [0.5, 1.0]]]),
        confidence=torch.tensor([[1.0, 0.4]]),
        of_word=torch.tensor(of_word),
    )
    return output, replace(batch, regions=regions)


def test_attention_supervision_equals_a_hand_computation() -> None:
    output, batch = supervised([[[0, -1], [1, 1], [0, 0]]])  # padding names nothing, whatever it says
    assert batch.regions is not None
    by_hand = -math.log(0.75) - 0.4 * math.log(0.9 * 0.5 + 0.1)
    assert float(attention_supervision(output, batch.regions)) == pytest.approx(by_hand, abs=1e-5)
    terms = CaptionLoss(label_smoothing=0.0, attention_penalty=0.0, attention_supervision=2.0)(output, batch)
    assert float(terms["attention_supervision"]) == pytest.approx(by_hand / 3, abs=1e-5)  # three words
    assert float(terms["total"]) == pytest.approx(math.log(4) + 2 * by_hand / 3, abs=1e-5)


def test_gradient_of_supervision_draws_attention_to_the_region() -> None:
    """By hand: with alpha = softmax(e), the gradient is alpha_i (1 - c_i / sum_j c_j alpha_j)."""
    output, batch = supervised([[[1, -1], [-1, -1], [-1, -1]]])
    assert batch.regions is not None
    energies = output.alphas.clamp_min(1e-9).log().requires_grad_(True)
    attended = replace(output, alphas=energies.softmax(dim=-1))
    attention_supervision(attended, batch.regions).backward()
    assert energies.grad is not None
    alphas, coverage = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 1.0])
    by_hand = 0.4 * alphas * (1 - coverage / (coverage * alphas).sum())
    torch.testing.assert_close(energies.grad[0, 0, 0], by_hand, atol=1e-5, rtol=0)
    energies.grad[0, 0, 0] = 0
    assert not energies.grad.any()  # words without a region teach nothing


def test_supervision_is_finite_where_no_attention_is_near() -> None:
    output, batch = supervised([[[0, -1], [-1, -1], [-1, -1]]])
    assert batch.regions is not None
    elsewhere = replace(output, alphas=torch.tensor([0.0, 1.0]).expand_as(output.alphas))
    assert 5 < float(attention_supervision(elsewhere, batch.regions)) < 20


def test_supervision_without_annotated_objects_changes_nothing() -> None:
    output, batch = two_captions()
    plain = CaptionLoss(label_smoothing=0.1, attention_penalty=0.5)(output, batch)
    terms = CaptionLoss(label_smoothing=0.1, attention_penalty=0.5, attention_supervision=1.0)(output, batch)
    assert terms == plain


def test_sampled_captions_are_supervised_too() -> None:
    output, batch = supervised([[[0, -1], [-1, -1], [-1, -1]]])
    reward = FixedReward({"0": [1.0, 1.0, 1.0]})  # so the advantages are zero
    loss = SelfCriticalLoss(attention_penalty=0.0, reward=reward, attention_supervision=1.0)
    writable = replace(batch, tokens=batch.tokens.where(batch.tokens != 3, 4))  # captions contain no <unk>
    terms = loss(replace(output, logits=torch.zeros(3, 6)), writable)
    assert float(terms["total"]) == pytest.approx(-math.log(0.75) / 3, abs=1e-5)


@pytest.mark.parametrize(
    "changes", [changes for name, changes in DECODER_CHANGES.items() if name not in ("hard", "no attention")]
)
def test_supervision_teaches_every_decoder_where_to_look(changes: dict[str, str]) -> None:
    """Twenty steps on this term alone bring most of a word's attention to its cell."""
    torch.manual_seed(0)
    decoder = make_decoder(replace(SMALL_DECODER, **changes), annotation_dim=10, vocab_size=9)
    annotations, batch = torch.randn(1, 6, 10), captions(torch.tensor([[[1, 4, 5, 2]]]))
    regions = Regions(
        categories=(("dog",),),
        coverage=torch.eye(6)[None, 3:4],
        confidence=torch.ones(1, 1),
        of_word=torch.tensor([[[-1, 0, -1]]]),
    )

    def inside() -> Tensor:
        return decoder(annotations, batch.tokens, batch.lengths).alphas[0, 0, 1, 3]

    optimizer, before = torch.optim.Adam(decoder.parameters(), lr=0.03), float(inside().detach())
    for _ in range(20):
        optimizer.zero_grad()
        output = decoder(annotations, batch.tokens, batch.lengths)
        attention_supervision(output, regions).backward()
        optimizer.step()
    assert before < 0.5 < float(inside().detach())
