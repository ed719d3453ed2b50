import pytest
import torch
from torch import nn

from captioner.config import DecoderConfig
from captioner.decoder import Decoder, DecoderState, Memory
from captioner.vocabulary import END, START


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
    decoder: Decoder, annotations: torch.Tensor, tokens: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and alphas of one caption of one picture, by nothing but repeated `step`."""
    memory = decoder.remember(annotations[None])
    state = decoder.initial_state(memory, 1)
    logits, alphas = [], []
    for token in tokens:
        output = decoder.step(torch.tensor([[token]]), state, memory)
        state = output.state
        logits.append(decoder.logits(output.readout)[0, 0])
        alphas.append(output.alpha[0, 0])
    return torch.stack(logits), torch.stack(alphas)


@torch.no_grad()
def test_forward_equals_repeated_step_whatever_the_padding_and_the_batch_mates(decoder: Decoder) -> None:
    annotations, tokens, lengths = ragged_batch()
    output = decoder(annotations, tokens, lengths)
    logits = torch.zeros(*output.is_word.shape, output.logits.shape[-1])
    logits[output.is_word] = output.logits
    for picture in range(3):
        for caption in range(3):
            length = int(lengths[picture, caption])
            assert output.is_word[picture, caption].sum() == length
            assert output.alphas[picture, caption, length:].abs().sum() == 0
            if length:
                given = tokens[picture, caption, :length].tolist()
                expected_logits, expected_alphas = step_by_step(decoder, annotations[picture], given)
                torch.testing.assert_close(logits[picture, caption, :length], expected_logits)
                torch.testing.assert_close(output.alphas[picture, caption, :length], expected_alphas)


def test_gradients_do_not_come_from_padding(decoder: Decoder) -> None:
    annotations, tokens, lengths = ragged_batch()
    decoder(annotations, tokens, lengths).logits.sum().backward()
    before = decoder.embedding.weight.grad.clone()
    decoder.zero_grad()
    longer = nn.functional.pad(tokens, (0, 4), value=5)
    decoder(annotations, longer, lengths).logits.sum().backward()
    torch.testing.assert_close(decoder.embedding.weight.grad, before)


@torch.no_grad()
def test_recurrence_equals_torch_lstm_cell(decoder: Decoder) -> None:
    """Our gates stand in the order input, forget, output, candidate; torch's have the last two swapped."""
    annotations = torch.randn(2, 9, 10)
    memory = decoder.remember(annotations)
    state = DecoderState(torch.randn(2, 1, 16), torch.randn(2, 1, 16))
    tokens = torch.tensor([[5], [7]])
    cell = nn.LSTMCell(12 + 10, 16)
    order = torch.cat([torch.arange(32), torch.arange(48, 64), torch.arange(32, 48)])
    cell.weight_ih.copy_(decoder.lstm.weight[order, :22])
    cell.weight_hh.copy_(decoder.lstm.weight[order, 22:])
    cell.bias_ih.copy_(decoder.lstm.bias[order])
    cell.bias_hh.zero_()
    context, _ = decoder.attention(memory.annotations, memory.keys, state.hidden)
    context = torch.sigmoid(decoder.gate(state.hidden)) * context
    inputs = torch.cat([decoder.embedding(tokens), context], dim=-1)[:, 0]
    hidden, memory_cell = cell(inputs, (state.hidden[:, 0], state.cell[:, 0]))
    output = decoder.step(tokens, state, memory)
    torch.testing.assert_close(output.state.hidden[:, 0], hidden)
    torch.testing.assert_close(output.state.cell[:, 0], memory_cell)


@torch.no_grad()
def test_first_state_is_a_function_of_the_mean_annotation(decoder: Decoder) -> None:
    memory = decoder.remember(torch.randn(1, 9, 10))
    uniform = memory.annotations.mean(dim=1, keepdim=True).expand(-1, 9, -1)
    first, second = (decoder.initial_state(m, 2) for m in (memory, Memory(uniform, memory.keys)))
    torch.testing.assert_close(first.hidden, second.hidden)
    torch.testing.assert_close(first.cell, second.cell)


@torch.no_grad()
def test_attention_moves_from_word_to_word(decoder: Decoder) -> None:
    _, alphas = step_by_step(decoder, torch.randn(9, 10) * 3, [START, 4, 5, 7])
    assert (alphas[1:] - alphas[:-1]).abs().max(dim=1).values.min() > 1e-4


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(embedding_dim=8, hidden_dim=8, attention_dim=4, dropout=0.5)
    decoder = Decoder(config=config, annotation_dim=10, vocab_size=11)
    annotations, tokens, lengths = ragged_batch()
    noisy = [decoder(annotations, tokens, lengths).logits for _ in range(2)]
    decoder.eval()
    still = [decoder(annotations, tokens, lengths).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*still)


@pytest.mark.parametrize("value", [0, -1, 100_000])
def test_sizes_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="hidden_dim must be in"):
        DecoderConfig(hidden_dim=value)
