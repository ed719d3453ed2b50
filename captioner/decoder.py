"""What a decoder is: one step of a recurrence that writes a caption, and the loop over it.

`captioner.lstm.LSTMDecoder` and `captioner.transformer.TransformerDecoder` are decoders. Training,
greedy decoding, beam search and sampling all take the same `step`.

What is written about is a picture, or a sentence to be translated: the decoder sees annotation vectors and
does not know of what.

Shapes: a picture has several captions in training and several hypotheses in a search; both are the
axis `captions`, so that what depends on the picture alone is computed and kept once. `is_cell` is false
where a batch is filled up because one sentence is shorter than another; None stands for no such places.
"""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from captioner.attention import Choice


@dataclass(frozen=True)
class Memory:
    """What a decoder looks back at: the attention's keys and values, and the mean annotation."""

    keys: Float[Tensor, "batch *keys"]
    values: Float[Tensor, "batch *values"]
    mean: Float[Tensor, "batch annotation"]
    is_cell: Bool[Tensor, "batch cells"] | None = None

    def select(self, pictures: "slice | Int[Tensor, ' kept']") -> "Memory":
        is_cell = None if self.is_cell is None else self.is_cell[pictures]
        return Memory(self.keys[pictures], self.values[pictures], self.mean[pictures], is_cell)


def mean_annotation(
    annotations: Float[Tensor, "batch cells annotation"], is_cell: Bool[Tensor, "batch cells"] | None
) -> Float[Tensor, "batch annotation"]:
    """The mean over the cells that are there."""
    if is_cell is None:
        return annotations.float().mean(dim=1)
    return (annotations.float() * is_cell[..., None]).sum(dim=1) / is_cell.sum(dim=1, keepdim=True)


@runtime_checkable
class DecoderState(Protocol):
    """What a decoder carries from word to word. All its tensors begin with the axes batch and captions."""

    def select(self: "State", index: tuple[Any, Any]) -> "State":
        """Index these two axes of all tensors, by slices or by tensors of indices."""
        ...


State = TypeVar("State", bound=DecoderState)


@dataclass(frozen=True)
class StepOutput(Generic[State]):
    """What one step gives.

    `state` is the one after it, `readout` what `Decoder.logits` turns into scores for the next word, and
    `alphas` the attention that it used: each head's sums to one. `choice` is what hard attention drew.
    """

    state: State
    readout: Float[Tensor, "batch captions readout"]
    alphas: Float[Tensor, "batch captions heads cells"]
    choice: Choice | None = None


@dataclass(frozen=True)
class DecoderOutput:
    """What `teacher_forced` gives for whole captions.

    `logits` has a row for each word that is there to predict, in the order of `is_word`'s true
    entries; nothing is computed for padding. `alphas`, the mean over heads, is zero where `is_word` is
    false, and so is what hard attention drew.
    """

    logits: Float[Tensor, "words vocab"]
    alphas: Float[Tensor, "batch captions steps cells"]
    is_word: Bool[Tensor, "batch captions steps"]
    choice: Choice | None = None
    is_cell: Bool[Tensor, "batch cells"] | None = None


@runtime_checkable
class Decoder(Protocol[State]):
    """Writes captions word by word, looking back at annotation vectors."""

    def remember(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        is_cell: Bool[Tensor, "batch cells"] | None = None,
    ) -> Memory:
        """Normalise and project the annotations once for all the words and captions to come."""
        ...

    def initial_state(self, memory: Memory, num_captions: int) -> State:
        """The state before the first word, the same for each of a picture's captions."""
        ...

    def step(self, tokens: Int[Tensor, "batch captions"], state: State, memory: Memory) -> StepOutput[State]:
        """Read the previous word, look at the picture, and move on by one word."""
        ...

    def logits(self, readout: Float[Tensor, "*rows readout"]) -> Float[Tensor, "*rows vocab"]:
        """Unnormalised log-probabilities of the next word."""
        ...


def teacher_forced(
    decoder: Decoder[Any],
    annotations: Float[Tensor, "batch cells annotation"],
    tokens: Int[Tensor, "batch captions tokens"],
    lengths: Int[Tensor, "batch captions"],
    *,
    is_cell: Bool[Tensor, "batch cells"] | None = None,
) -> DecoderOutput:
    """Feed given captions through `step`.

    At each step only the leading block of pictures and captions that still have words is computed;
    with a batch sorted as `captioner.batches.collate` does it, little of that block is padding.
    """
    memory = decoder.remember(annotations, is_cell)
    batch, captions, num_steps = tokens.shape[0], tokens.shape[1], tokens.shape[2] - 1
    state = decoder.initial_state(memory, captions)
    is_word = torch.arange(num_steps, device=lengths.device) < lengths[..., None]
    readouts, alphas, log_probs, entropies = [], [], [], []
    for step, (rows, columns) in enumerate(_unfinished_blocks(is_word)):
        state = state.select((slice(rows), slice(columns)))
        output = decoder.step(tokens[:rows, :columns, step], state, memory.select(slice(rows)))
        state = output.state
        outside = (0, captions - columns, 0, batch - rows)
        readouts.append(pad(output.readout, (0, 0, *outside)))
        alphas.append(pad(output.alphas.mean(dim=2), (0, 0, *outside)))
        if output.choice is not None:
            log_probs.append(pad(output.choice.log_prob, outside))
            entropies.append(pad(output.choice.entropy, outside))
    logits = decoder.logits(torch.stack(readouts, dim=2)[is_word])
    choice = None
    if log_probs:
        choice = Choice(*(torch.stack(values, dim=2) * is_word for values in (log_probs, entropies)))
    return DecoderOutput(logits, torch.stack(alphas, dim=2) * is_word[..., None], is_word, choice, is_cell)


def _unfinished_blocks(is_word: Bool[Tensor, "batch captions steps"]) -> list[tuple[int, int]]:
    """For each step the least number of leading pictures and captions that hold all its words."""
    blocks = []
    for step in is_word.cpu().unbind(dim=2):
        rows, columns = step.any(dim=1).nonzero(), step.any(dim=0).nonzero()
        blocks.append((int(rows.max()) + 1, int(columns.max()) + 1) if len(rows) else (0, 0))
    return blocks
