from dataclasses import replace
from itertools import product
from typing import Any, Literal

import pytest
import torch
from torch import nn

from captioner.bounds import check_bounds
from captioner.config import DecoderConfig
from captioner.model import lstm
from captioner.model.attention import (
    AttentionOutput,
    HardAttentionSample,
    attend,
    attend_hard,
    mask_padding,
)
from captioner.model.captioning import make_decoder
from captioner.model.decoder import Decoder, Memory
from captioner.model.lstm import LSTMDecoder, LSTMState
from captioner.training.loss import CaptionLoss, attention_penalty
from captioner.vocabulary import END, START
from tests.conftest import SMALL_DECODER, batch_of


def ragged_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three pictures with three captions each, of which one is missing; not sorted on purpose."""
    torch.manual_seed(3)
    annotations = torch.randn(3, 9, 10)
    lengths = torch.tensor([[2, 5, 3], [6, 1, 4], [3, 0, 2]])
    tokens = torch.zeros(3, 3, 7, dtype=torch.long)
    for picture in range(3):
        for caption in range(3):
            length = int(lengths[picture, caption])
            if length:
                words = torch.randint(4, 11, (length - 1,)).tolist()
                tokens[picture, caption, : length + 1] = torch.tensor([START, *words, END])
    return annotations, tokens, lengths


def step_by_step(
    decoder: Decoder[Any], annotations: torch.Tensor, tokens: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and alphas of one caption of one picture, by nothing but repeated `step`."""
    memory = decoder.prepare_memory(annotations[None])
    state = decoder.initial_state(memory, 1)
    logits, alphas = [], []
    for token in tokens:
        output = decoder.step(torch.tensor([[token]]), state, memory)
        state = output.state
        logits.append(decoder.logits(output.readout)[0, 0])
        alphas.append(output.alphas[0, 0].mean(dim=0))
    return torch.stack(logits), torch.stack(alphas)


@torch.no_grad()
def test_forward_equals_repeated_step_whatever_the_padding_and_the_batch_mates(
    any_decoder: Decoder[Any],
) -> None:
    decoder = any_decoder
    annotations, tokens, lengths = ragged_batch()
    output = decoder(annotations, tokens, lengths)
    logits = torch.zeros(*output.word_mask.shape, output.logits.shape[-1])
    logits[output.word_mask] = output.logits
    for picture in range(3):
        for caption in range(3):
            length = int(lengths[picture, caption])
            assert output.word_mask[picture, caption].sum() == length
            assert output.alphas[picture, caption, length:].abs().sum() == 0
            if length:
                given = tokens[picture, caption, :length].tolist()
                expected_logits, expected_alphas = step_by_step(decoder, annotations[picture], given)
                torch.testing.assert_close(logits[picture, caption, :length], expected_logits)
                torch.testing.assert_close(output.alphas[picture, caption, :length], expected_alphas)


def test_gradients_do_not_come_from_padding(any_decoder: Decoder[Any]) -> None:
    decoder = any_decoder
    annotations, tokens, lengths = ragged_batch()
    decoder(annotations, tokens, lengths).logits.sum().backward()
    before = decoder.embedding.weight.grad.clone()
    decoder.zero_grad()
    longer = nn.functional.pad(tokens, (0, 4), value=5)
    decoder(annotations, longer, lengths).logits.sum().backward()
    torch.testing.assert_close(decoder.embedding.weight.grad, before)


def test_padded_cells_are_neither_attended_to_nor_learned_from(any_decoder: Decoder[Any]) -> None:
    """Sentences are of different length: with a mask, one is read as it is alone, whatever the padding."""
    annotations, tokens, lengths = ragged_batch()
    num_cells = [9, 4, 1]
    cell_mask = torch.arange(9) < torch.tensor(num_cells)[:, None]
    filled = annotations.masked_fill(~cell_mask[..., None], 1e4).requires_grad_()
    together = any_decoder(filled, tokens, lengths, cell_mask=cell_mask)
    penalty = attention_penalty(together)
    (gradient,) = torch.autograd.grad(together.logits.square().sum() + penalty, filled)
    assert gradient.isfinite().all()
    assert (gradient[~cell_mask] == 0).all()
    logits = torch.zeros(*together.word_mask.shape, together.logits.shape[-1])
    logits[together.word_mask] = together.logits
    penalties = 0.0
    for sentence, cells in enumerate(num_cells):
        one = slice(sentence, sentence + 1)
        alone = any_decoder(annotations[one, :cells], tokens[one], lengths[one])
        torch.testing.assert_close(logits[one][alone.word_mask], alone.logits)
        torch.testing.assert_close(together.alphas[one, ..., :cells], alone.alphas)
        assert (together.alphas[one, ..., cells:] == 0).all()
        penalties += attention_penalty(alone)
    torch.testing.assert_close(penalty, penalties)


def test_hard_attention_learns_under_a_mask() -> None:
    """The entropy of a distribution with zeros is that of the rest, and its gradient is finite."""
    torch.manual_seed(0)
    energies = torch.randn(2, 3, 1, 5, requires_grad=True)
    cell_mask = torch.arange(5) < torch.tensor([5, 2])[:, None]
    found = attend_hard(mask_padding(energies, cell_mask), torch.randn(2, 5, 4), is_training=True).hard_sample
    assert found is not None
    of_two = energies[1, :, 0, :2].softmax(dim=-1)
    torch.testing.assert_close(found.entropy[1], -(of_two * of_two.log()).sum(dim=-1))
    (gradient,) = torch.autograd.grad(found.entropy.sum() + found.log_prob.sum(), energies)
    assert gradient.isfinite().all()
    assert (gradient[1, :, 0, 2:] == 0).all()


@torch.no_grad()
def test_recurrence_equals_torch_lstm_cell(decoder: LSTMDecoder) -> None:
    """Our gates stand in the order input, forget, output, candidate; torch's have the last two swapped."""
    annotations = torch.randn(2, 9, 10)
    memory = decoder.prepare_memory(annotations)
    state = LSTMState(torch.randn(2, 1, 16), torch.randn(2, 1, 16), torch.zeros(2, 1, 0))
    tokens = torch.tensor([[5], [7]])
    cell = nn.LSTMCell(12 + 10, 16)
    order = torch.cat([torch.arange(32), torch.arange(48, 64), torch.arange(32, 48)])
    cell.weight_ih.copy_(decoder.lstm.weight[order, :22])
    cell.weight_hh.copy_(decoder.lstm.weight[order, 22:])
    cell.bias_ih.copy_(decoder.lstm.bias[order])
    cell.bias_hh.zero_()
    glance = attend(decoder.attention(memory.keys, state.hidden), memory.values)
    context = torch.sigmoid(decoder.gate(state.hidden)) * glance.context
    inputs = torch.cat([decoder.embedding(tokens), context], dim=-1)[:, 0]
    hidden, memory_cell = cell(inputs, (state.hidden[:, 0], state.cell[:, 0]))
    output = decoder.step(tokens, state, memory)
    torch.testing.assert_close(output.state.hidden[:, 0], hidden)
    torch.testing.assert_close(output.state.cell[:, 0], memory_cell)


@torch.no_grad()
def test_first_state_is_a_function_of_the_mean_annotation(decoder: LSTMDecoder) -> None:
    memory = decoder.prepare_memory(torch.randn(1, 9, 10))
    torch.testing.assert_close(memory.mean, memory.values.mean(dim=1))
    other = Memory(torch.randn(1, 9, 8), torch.randn(1, 9, 10), memory.mean)
    first, second = (decoder.initial_state(m, 2) for m in (memory, other))
    torch.testing.assert_close(first.hidden, second.hidden)
    torch.testing.assert_close(first.cell, second.cell)


@torch.no_grad()
def test_attention_moves_from_word_to_word(decoder: LSTMDecoder) -> None:
    _, alphas = step_by_step(decoder, torch.randn(9, 10) * 3, [START, 4, 5, 7])
    assert (alphas[1:] - alphas[:-1]).abs().max(dim=1).values.min() > 1e-4


@pytest.mark.parametrize("when", ["before_lstm", "after_lstm"])
@torch.no_grad()
def test_attention_depends_on_the_previous_word_only_after_the_lstm(
    when: Literal["before_lstm", "after_lstm"],
) -> None:
    torch.manual_seed(4)
    config = replace(SMALL_DECODER, attend=when)
    decoder = make_decoder(config, annotation_dim=10, vocab_size=11).eval()
    annotations = torch.randn(9, 10) * 3
    _, alphas = step_by_step(decoder, annotations, [START, 4, 5])
    _, others = step_by_step(decoder, annotations, [START, 4, 6])
    is_same = torch.isclose(alphas, others).all(dim=1).tolist()
    assert is_same == [True, True, when == "before_lstm"]


@torch.no_grad()
def test_a_word_is_predicted_from_its_own_attention() -> None:
    """Change the annotations after the first step: the second word's logits change with them."""
    for decoder in (
        make_decoder(replace(SMALL_DECODER, attend=when), annotation_dim=10, vocab_size=11).eval()
        for when in ("before_lstm", "after_lstm")
    ):
        memory, other = (decoder.prepare_memory(torch.randn(1, 9, 10)) for _ in range(2))
        state = decoder.step(torch.tensor([[START]]), decoder.initial_state(memory, 1), memory).state
        logits = [
            decoder.logits(decoder.step(torch.tensor([[4]]), state, seen).readout) for seen in (memory, other)
        ]
        assert not torch.isclose(logits[0], logits[1]).all()


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(embedding_dim=8, hidden_dim=8, attention_dim=4, dropout=0.5)
    decoder = LSTMDecoder(config=config, annotation_dim=10, vocab_size=11)
    annotations, tokens, lengths = ragged_batch()
    noisy = [decoder(annotations, tokens, lengths).logits for _ in range(2)]
    decoder.eval()
    still = [decoder(annotations, tokens, lengths).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*still)


@torch.no_grad()
def test_heads_give_distributions_each(any_decoder: Decoder[Any]) -> None:
    memory = any_decoder.prepare_memory(torch.randn(2, 9, 10))
    output = any_decoder.step(torch.tensor([[5, 6], [7, 8]]), any_decoder.initial_state(memory, 2), memory)
    assert (output.alphas >= 0).all()
    torch.testing.assert_close(output.alphas.sum(dim=-1), torch.ones(output.alphas.shape[:3]))


@torch.no_grad()
@pytest.mark.parametrize("bias", [0.0, 40.0])
def test_scalar_gate_is_one_factor_of_all_channels(bias: float) -> None:
    """Where a vector gate has the same value for all channels, and, fully open, as no gate at all."""
    config = replace(SMALL_DECODER, gate="none")
    ungated = LSTMDecoder(config=config, annotation_dim=10, vocab_size=11).eval()
    annotations = torch.randn(1, 9, 10)

    def readout(gate: str) -> torch.Tensor:
        decoder = LSTMDecoder(config=replace(config, gate=gate), annotation_dim=10, vocab_size=11).eval()
        decoder.load_state_dict(ungated.state_dict(), strict=False)
        if gate != "none":
            assert decoder.gate.out_features == (1 if gate == "scalar" else 10)
            decoder.gate.weight.zero_()
            decoder.gate.bias.fill_(bias)
        memory = decoder.prepare_memory(annotations)
        return decoder.step(torch.tensor([[5]]), decoder.initial_state(memory, 1), memory).readout

    torch.testing.assert_close(readout("scalar"), readout("vector"))
    assert torch.allclose(readout("scalar"), readout("none")) == (bias == 40.0)


@torch.no_grad()
def test_plain_output_reads_the_hidden_state_alone() -> None:
    config = replace(SMALL_DECODER, output="plain")
    decoder = LSTMDecoder(config=config, annotation_dim=10, vocab_size=11).eval()
    memory = decoder.prepare_memory(torch.randn(1, 9, 10))
    output = decoder.step(torch.tensor([[5]]), decoder.initial_state(memory, 1), memory)
    assert torch.equal(output.readout, output.state.hidden)
    torch.testing.assert_close(decoder.logits(output.readout), decoder.output(output.state.hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_of_every_decoder_learns(any_decoder: Decoder[Any], dtype: torch.dtype) -> None:
    """Also in mixed precision: a parameter without a gradient would stop training on several GPUs."""
    any_decoder.train()
    annotations, tokens, lengths = ragged_batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = any_decoder(annotations, tokens, lengths)
        loss = CaptionLoss(label_smoothing=0.1, attention_penalty=0.1, reinforce_weight=1.0)
        loss(output, batch_of(tokens, lengths))["total"].backward()
    for name, parameter in any_decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name


def test_samples_of_hard_attention_do_not_depend_on_padding_and_batch_mates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the likeliest cell in the place of the drawn one, for the sake of comparison."""

    def likeliest(energies: torch.Tensor, values: torch.Tensor, **_: object) -> AttentionOutput:
        found = attend_hard(energies, values, is_training=False)
        log_probs = energies.log_softmax(dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)[..., 0]
        return replace(
            found, hard_sample=HardAttentionSample((found.alphas * log_probs).sum(dim=-1)[..., 0], entropy)
        )

    monkeypatch.setattr(lstm, "attend_hard", likeliest)
    torch.manual_seed(0)
    config = replace(SMALL_DECODER, attention="hard")
    decoder = LSTMDecoder(config=config, annotation_dim=10, vocab_size=11)
    annotations, tokens, lengths = ragged_batch()
    together = decoder(annotations, tokens, lengths).hard_sample
    for picture, caption in product(range(3), range(3)):
        length = int(lengths[picture, caption])
        for name in ("log_prob", "entropy"):
            values = getattr(together, name)[picture, caption]
            assert values[length:].abs().sum() == 0
            if length:
                alone = decoder(
                    annotations[picture : picture + 1],
                    tokens[picture, caption, : length + 1][None, None],
                    lengths[picture, caption][None, None],
                )
                torch.testing.assert_close(values[:length], getattr(alone.hard_sample, name)[0, 0])


@torch.no_grad()
def test_transformer_layer_equals_that_of_torch() -> None:
    """torch's decoder layer, over whole captions at once with a causal mask, as against ours word by word."""
    config = replace(SMALL_DECODER, kind="transformer", num_layers=1)
    decoder = make_decoder(config, annotation_dim=16, vocab_size=11).eval()
    ours = decoder.layers[0]
    theirs = nn.TransformerDecoderLayer(
        16, nhead=2, dim_feedforward=64, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    theirs.self_attn.in_proj_weight.copy_(ours.self_attention_in.weight)
    theirs.self_attn.in_proj_bias.copy_(ours.self_attention_in.bias)
    theirs.self_attn.out_proj.load_state_dict(ours.self_attention_out.state_dict())
    score = ours.cross_attention
    cross = (score.query, score.key, score.value)
    theirs.multihead_attn.in_proj_weight.copy_(torch.cat([layer.weight for layer in cross]))
    theirs.multihead_attn.in_proj_bias.copy_(torch.cat([layer.bias for layer in cross]))
    theirs.multihead_attn.out_proj.load_state_dict(ours.cross_attention_out.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward_in.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward_out.state_dict())
    annotations, tokens = torch.randn(1, 9, 16), [START, 4, 5, 7, 6]
    places = torch.stack([decoder._position(step) for step in range(len(tokens))])
    words = decoder.embedding(torch.tensor([tokens])) + places
    mask = nn.Transformer.generate_square_subsequent_mask(len(tokens))
    expected = theirs(words, decoder.annotation_norm(annotations), tgt_mask=mask)
    logits, _ = step_by_step(decoder, annotations[0], tokens)
    torch.testing.assert_close(logits, decoder.logits(decoder.norm(expected))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "transformer", "attention": "hard"},
            "attention must be soft for a transformer, not 'hard'; leave it out",
        ),
        (
            {"score": "multihead", "attention": "hard"},
            "score must be additive, dot or general if attention is hard, not 'multihead'",
        ),
        ({"score": "multihead", "num_heads": 3}, "must be a multiple of num_heads"),
        ({"kind": "transformer", "score": "dot"}, "score must be additive for a transformer, not 'dot'"),
        (
            {"attention": "none", "score": "dot"},
            "score must be additive if attention is none, not 'dot'; leave it out",
        ),
        ({"kind": "transformer", "hidden_dim": 12}, "hidden_dim must be a multiple of num_heads"),
        ({"num_layers": 0}, "num_layers must be in"),
        ({"rank": 0}, "rank must be in"),
        ({"kind": "transformer", "rank": 8}, "rank must be None for a transformer, not 8; leave it out"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**changes)


@pytest.mark.parametrize("name", ["kind", "attention", "score", "attend", "gate", "output"])
def test_names_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, not 'Soft'"):
        check_bounds(DecoderConfig, {name: "Soft"})  # which every config calls; tests refuse the type first


@pytest.mark.parametrize("value", [0, -1, 100_000])
def test_sizes_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="hidden_dim must be in"):
        DecoderConfig(hidden_dim=value)
