"""Base of the decoders: step, and teacher forcing over it.

`LSTMDecoder` and `TransformerDecoder` implement the step, which serves training, beam search and sampling
alike. A decoder sees annotation vectors, whether of a picture or of a sentence to be translated.

Shapes: a picture has several captions in training and several hypotheses in a search; both are the
axis `captions`, so that what depends on the picture alone is computed and stored once. `cell_mask` is false
for padding, where one sentence of a batch is shorter than another; None means that there is none.
"""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from captioner.config import DecoderConfig
from captioner.model.attention import HardAttentionSample


@dataclass(frozen=True)
class Memory:
    """What a decoder attends to: the attention's keys and values, and the mean annotation."""

    keys: Float[Tensor, "batch *keys"]
    values: Float[Tensor, "batch *values"]
    mean: Float[Tensor, "batch annotation"]
    cell_mask: Bool[Tensor, "batch cells"] | None = None

    def select(self, pictures: "slice | Int[Tensor, ' kept']") -> "Memory":
        cell_mask = None if self.cell_mask is None else self.cell_mask[pictures]
        return Memory(self.keys[pictures], self.values[pictures], self.mean[pictures], cell_mask)


def mean_annotation(
    annotations: Float[Tensor, "batch cells annotation"], cell_mask: Bool[Tensor, "batch cells"] | None
) -> Float[Tensor, "batch annotation"]:
    """The mean over the cells, without padding."""
    if cell_mask is None:
        return annotations.float().mean(dim=1)
    return (annotations.float() * cell_mask[..., None]).sum(dim=1) / cell_mask.sum(dim=1, keepdim=True)


@runtime_checkable
class DecoderState(Protocol):
    """What a decoder carries from word to word. All its tensors start with the axes batch and captions."""

    def select(self: "State", index: tuple[Any, Any]) -> "State":
        """Index these two axes of all tensors, by slices or by tensors of indices."""
        ...


State = TypeVar("State", bound=DecoderState)


@dataclass(frozen=True)
class StepOutput(Generic[State]):
    """The result of one step.

    `state` is the next one, `readout` what `Decoder.logits` turns into scores for the next word, and
    `alphas` the attention that was used: each head's sums to one. `hard_sample` belongs to hard attention.
    """

    state: State
    readout: Float[Tensor, "batch captions readout"]
    alphas: Float[Tensor, "batch captions heads cells"]
    hard_sample: HardAttentionSample | None = None


@dataclass(frozen=True)
class DecoderOutput:
    """The result of teacher forcing.

    `logits` has a row for each word to predict, in the order of the true entries of `word_mask`; nothing
    is computed for padding. `alphas`, the mean over heads, is zero where `word_mask` is false, and so is
    `hard_sample`.
    """

    logits: Float[Tensor, "words vocab"]
    alphas: Float[Tensor, "batch captions steps cells"]
    word_mask: Bool[Tensor, "batch captions steps"]
    hard_sample: HardAttentionSample | None = None
    cell_mask: Bool[Tensor, "batch cells"] | None = None


class Decoder(nn.Module, Generic[State]):
    """Writes captions word by word, attending to annotation vectors."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    def prepare_memory(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        cell_mask: Bool[Tensor, "batch cells"] | None = None,
    ) -> Memory:
        """Normalise and project the annotations, once for all words and captions."""
        raise NotImplementedError

    def initial_state(self, memory: Memory, num_captions: int) -> State:
        """The state before the first word, the same for each of a picture's captions."""
        raise NotImplementedError

    def step(self, tokens: Int[Tensor, "batch captions"], state: State, memory: Memory) -> StepOutput[State]:
        """Read the previous word, attend, and advance by one word."""
        raise NotImplementedError

    def logits(self, readout: Float[Tensor, "*rows readout"]) -> Float[Tensor, "*rows vocab"]:
        """Unnormalised log-probabilities of the next word."""
        raise NotImplementedError

    def forward(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        tokens: Int[Tensor, "batch captions tokens"],
        lengths: Int[Tensor, "batch captions"],
        cell_mask: Bool[Tensor, "batch cells"] | None = None,
    ) -> DecoderOutput:
        """Teacher forcing: predict each word of given captions from the words before it.

        Each step computes only the leading block of pictures and captions that still have words; in a
        batch sorted by `captioner.data.batching.collate` little of that block is padding.
        """
        memory = self.prepare_memory(annotations, cell_mask)
        batch, captions, num_steps = tokens.shape[0], tokens.shape[1], tokens.shape[2] - 1
        state = self.initial_state(memory, captions)
        word_mask = torch.arange(num_steps, device=lengths.device) < lengths[..., None]
        readouts, alphas, log_probs, entropies = [], [], [], []
        for step, (rows, columns) in enumerate(_unfinished_blocks(word_mask)):
            state = state.select((slice(rows), slice(columns)))
            attended = (
                memory if rows == batch else memory.select(slice(rows))
            )  # a slice has a costly gradient
            output = self.step(tokens[:rows, :columns, step], state, attended)
            state = output.state
            outside = (0, captions - columns, 0, batch - rows)
            readouts.append(pad(output.readout, (0, 0, *outside)))
            alphas.append(pad(output.alphas.mean(dim=2), (0, 0, *outside)))
            if output.hard_sample is not None:
                log_probs.append(pad(output.hard_sample.log_prob, outside))
                entropies.append(pad(output.hard_sample.entropy, outside))
        logits = self.logits(torch.stack(readouts, dim=2)[word_mask])
        hard_sample = None
        if log_probs:
            stacked = (torch.stack(values, dim=2) * word_mask for values in (log_probs, entropies))
            hard_sample = HardAttentionSample(*stacked)
        masked_alphas = torch.stack(alphas, dim=2) * word_mask[..., None]
        return DecoderOutput(logits, masked_alphas, word_mask, hard_sample, cell_mask)


def _unfinished_blocks(word_mask: Bool[Tensor, "batch captions steps"]) -> list[tuple[int, int]]:
    """For each step the smallest number of leading pictures and captions that contain all its words."""
    blocks = []
    for step in word_mask.cpu().unbind(dim=2):
        rows, columns = step.any(dim=1).nonzero(), step.any(dim=0).nonzero()
        blocks.append((int(rows.max()) + 1, int(columns.max()) + 1) if len(rows) else (0, 0))
    return blocks
