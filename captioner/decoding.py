"""The torch decoder as a step of the search, which is plain arrays; and captions sampled from the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from captioner.config import DecodingConfig, SamplingConfig
from captioner.decoder import Decoder, DecoderState, Memory, teacher_forced
from captioner.search import (
    BANNED_TOKENS,
    Hypothesis,
    StepFunction,
    beam_search,
    beam_strategy,
    sample,
)
from captioner.vocabulary import END, PAD, START


@dataclass(frozen=True)
class DecoderSearchState:
    """The decoder's memory for the pictures still searched, and the state of each hypothesis."""

    memory: Memory
    state: DecoderState

    def select(
        self, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> "DecoderSearchState":
        memory = self.memory
        if len(pictures) < len(memory.mean):
            memory = memory.select(torch.from_numpy(pictures).to(memory.mean.device))
        index = torch.from_numpy(pictures)[:, None], torch.from_numpy(parents)
        return DecoderSearchState(memory, self.state.select(index))


@torch.inference_mode()
def search_captions(
    decoder: Decoder,
    annotations: Float[Tensor, "batch cells annotation"],
    config: DecodingConfig,
    *,
    required: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """Hypotheses for each picture, best first, that hold the tokens `required` (see `captioner.search`)."""
    strategy = beam_strategy(config, required)
    state = _fresh_state(decoder, annotations, strategy.num_groups * strategy.group_size)
    return beam_search(
        _step_of(decoder), state, num_pictures=len(annotations), config=config, strategy=strategy
    )


@torch.inference_mode()
def draw_captions(
    decoder: Decoder,
    annotations: Float[Tensor, "batch cells annotation"],
    config: DecodingConfig,
    *,
    sampling: SamplingConfig,
    num_captions: int,
    numbers: Sequence[int],
) -> list[list[Hypothesis]]:
    """Captions drawn at random for each picture, whose `numbers` with the seed decide what is drawn."""
    return sample(
        _step_of(decoder),
        _fresh_state(decoder, annotations, num_captions),
        seeds=[(sampling.seed, number) for number in numbers],
        config=config,
        sampling=sampling,
        num_captions=num_captions,
    )


def _fresh_state(
    decoder: Decoder, annotations: Float[Tensor, "batch cells annotation"], num_hypotheses: int
) -> DecoderSearchState:
    memory = decoder.remember(annotations)
    return DecoderSearchState(memory, decoder.initial_state(memory, num_hypotheses))


def _step_of(decoder: Decoder) -> StepFunction[DecoderSearchState]:
    """The decoder's step over plain arrays."""

    def step(
        tokens: Int[np.ndarray, "pictures beam"], state: DecoderSearchState
    ) -> tuple[np.ndarray, np.ndarray, DecoderSearchState]:
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(state.memory.mean.device)
        output = decoder.step(ids, state.state, state.memory)
        log_probs = decoder.logits(output.readout).log_softmax(dim=-1)
        next_state = DecoderSearchState(state.memory, output.state)
        return log_probs.cpu().numpy(), output.alphas.cpu().numpy(), next_state

    return step


def padded(
    captions: Sequence[Sequence[Sequence[int]]],
) -> tuple[Int[Tensor, "batch captions tokens"], Int[Tensor, "batch captions"]]:
    """Token ids, <start> and <end> included, and the number to predict, as `teacher_forced` takes them.

    Each picture has as many captions.
    """
    flat = [torch.tensor(ids) for group in captions for ids in group]
    tokens = pad_sequence(flat, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([[len(ids) - 1 for ids in group] for group in captions])
    return tokens.view(*lengths.shape, -1), lengths


@torch.inference_mode()
def read_captions(
    decoder: Decoder,
    annotations: Float[Tensor, "batch cells annotation"],
    tokens: Int[Tensor, "batch captions tokens"],
    lengths: Int[Tensor, "batch captions"],
) -> tuple[Float[np.ndarray, "batch captions steps"], Float[np.ndarray, "batch captions steps cells"]]:
    """The log-probability of each word of captions that are given, and its attention; 0 for padding."""
    tokens, lengths = tokens.to(annotations.device), lengths.to(annotations.device)
    output = teacher_forced(decoder, annotations, tokens, lengths)
    targets = tokens[..., 1:][output.is_word]
    log_probs = torch.zeros(output.is_word.shape, device=annotations.device)
    log_probs[output.is_word] = -cross_entropy(output.logits, targets, reduction="none")
    return log_probs.cpu().numpy(), output.alphas.cpu().numpy()


@torch.no_grad()
def sample_captions(
    decoder: Decoder,
    annotations: Float[Tensor, "batch cells annotation"],
    *,
    num_captions: int,
    max_words: int,
) -> tuple[Int[Tensor, "batch captions tokens"], Int[Tensor, "batch captions"]]:
    """Draw captions from the model's own distribution, for self-critical training.

    Gives their tokens and lengths as a `CaptionBatch` has them, the longest of each picture first. A
    caption that has not ended after `max_words` words is cut, without <end>. Unlike those of the search,
    a caption may end before its first word.
    """
    memory = decoder.remember(annotations)
    state = decoder.initial_state(memory, num_captions)
    steps = [torch.full((len(annotations), num_captions), START, device=annotations.device)]
    is_open = torch.ones_like(steps[0], dtype=torch.bool)
    lengths = torch.zeros_like(steps[0])
    for num_words in range(max_words + 1):
        output = decoder.step(steps[-1], state, memory)
        state = output.state
        probabilities = without_banned(decoder.logits(output.readout)).softmax(dim=-1)
        drawable = probabilities.flatten(0, 1).nan_to_num(1.0)  # what is not finite is for the loss to find
        drawn = drawable.multinomial(1).view_as(is_open)
        if num_words == max_words:
            is_open = is_open & (drawn == END)  # what goes on is cut here
        steps.append(torch.where(is_open, drawn, PAD))
        lengths += is_open
        is_open = is_open & (drawn != END)
        if not is_open.any():
            break
    lengths, order = lengths.sort(dim=1, descending=True)
    tokens = torch.stack(steps, dim=-1)
    return tokens.gather(1, order[..., None].expand_as(tokens)), lengths


def without_banned(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Logits that leave no probability to the tokens that no caption may hold."""
    banned = torch.tensor(BANNED_TOKENS, device=logits.device)
    return logits.index_fill(-1, banned, -torch.inf)
