"""A transformer in the LSTM's place: the same interface, the same search, the same overlays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from captioner.config import DecoderConfig
from captioner.decoder import DecoderOutput, Memory, StepOutput, teacher_forced

Row = Float[Tensor, "batch captions model"]


@dataclass(frozen=True)
class TransformerState:
    """The keys and values of the words so far, in each layer, so that no word is worked through twice."""

    keys: Float[Tensor, "batch captions layers heads steps dim"]
    values: Float[Tensor, "batch captions layers heads steps dim"]

    @property
    def num_steps(self) -> int:
        return self.keys.shape[4]

    def select(self, index: tuple[Any, Any]) -> "TransformerState":
        return TransformerState(self.keys[index], self.values[index])


class TransformerDecoder(nn.Module):
    """A transformer decoder over the grid (Vaswani et al. 2017, section 3.1).

    Each layer has causal self-attention over the words, multi-head attention over the cells, and a
    feed-forward net of four times the width, each normalised before rather than after (Xiong et al.
    2020), which needs no warm-up to train. `alphas` are those of all heads of all layers, in that order.
    """

    def __init__(self, *, config: DecoderConfig, annotation_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.annotation_norm = nn.LayerNorm(annotation_dim)
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            _Layer(width, num_heads=config.num_heads, annotation_dim=annotation_dim, dropout=config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)
        self.dropout = nn.Dropout(config.dropout)

    def remember(self, annotations: Float[Tensor, "batch cells annotation"]) -> Memory:
        """Normalise the annotations and project them to the keys and values of each layer."""
        annotations = self.annotation_norm(annotations)
        projected = [layer.look.project(annotations) for layer in self._each_layer()]
        keys, values = (torch.stack(parts, dim=1) for parts in zip(*projected, strict=True))
        return Memory(keys, values, annotations.float().mean(dim=1))

    def initial_state(self, memory: Memory, num_captions: int) -> TransformerState:
        """No words yet."""
        batch, layers, heads, _, dim = memory.keys.shape
        nothing = memory.keys.new_zeros(batch, num_captions, layers, heads, 0, dim)
        return TransformerState(nothing, nothing)

    def step(
        self, tokens: Int[Tensor, "batch captions"], state: TransformerState, memory: Memory
    ) -> StepOutput[TransformerState]:
        """Read the previous word, look at the picture, and move on by one word."""
        row = self.dropout(self.embedding(tokens) + self._position(state.num_steps))
        keys, values, alphas = [], [], []
        for index, layer in enumerate(self._each_layer()):
            seen = state.keys[:, :, index], state.values[:, :, index]
            row, new_keys, new_values, layer_alphas = layer(
                row, seen, (memory.keys[:, index], memory.values[:, index])
            )
            keys.append(new_keys)
            values.append(new_values)
            alphas.append(layer_alphas)
        next_state = TransformerState(torch.stack(keys, dim=2), torch.stack(values, dim=2))
        return StepOutput(next_state, self.norm(row), torch.cat(alphas, dim=2))

    def _each_layer(self) -> "Iterator[_Layer]":
        return (cast(_Layer, layer) for layer in self.layers)

    def _position(self, step: int) -> Float[Tensor, " model"]:
        """Sines and cosines of the place in the caption (Vaswani et al. 2017, section 3.5)."""
        width = self.config.hidden_dim
        exponents = torch.arange(0, width, 2, device=self.output.weight.device) / width
        angles = step * 10_000.0**-exponents
        return torch.cat([angles.sin(), angles.cos()])[:width]

    def logits(self, readout: Float[Tensor, "*rows readout"]) -> Float[Tensor, "*rows vocab"]:
        """Unnormalised log-probabilities of the next word."""
        return self.output(readout).float()

    def forward(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        tokens: Int[Tensor, "batch captions tokens"],
        lengths: Int[Tensor, "batch captions"],
    ) -> DecoderOutput:
        """Teacher forcing; see `captioner.decoder.teacher_forced`."""
        return teacher_forced(self, annotations, tokens, lengths)


class _Layer(nn.Module):
    """Self-attention, attention over the cells and a feed-forward net, each added to what comes in."""

    def __init__(self, width: int, *, num_heads: int, annotation_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.words = nn.Linear(width, 3 * width)
        self.words_out = nn.Linear(width, width)
        self.look = _Look(width, num_heads=num_heads, annotation_dim=annotation_dim)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, row: Row, seen: tuple[Tensor, Tensor], cells: tuple[Tensor, Tensor]
    ) -> tuple[Row, Tensor, Tensor, Tensor]:
        """The row after the layer, the words' keys and values with this one's, and the alphas."""
        query, *new = (
            part.unflatten(-1, (self.num_heads, 1, -1))  # (batch, captions, heads, steps, dim)
            for part in self.words(self.norms[0](row)).chunk(3, dim=-1)
        )
        keys, values = (torch.cat([old, now], dim=3) for old, now in zip(seen, new, strict=True))
        attended = scaled_dot_product_attention(query, keys, values).flatten(2)
        row = row + self.dropout(self.words_out(attended))
        looked, alphas = self.look(self.norms[1](row), *cells)
        row = row + self.dropout(looked)
        return row + self.dropout(self.narrow(gelu(self.wide(self.norms[2](row))))), keys, values, alphas


class _Look(nn.Module):
    """Multi-head attention of a word over the cells, which keeps the weights that it used."""

    def __init__(self, width: int, *, num_heads: int, annotation_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(annotation_dim, width), nn.Linear(annotation_dim, width)

    def project(
        self, annotations: Float[Tensor, "batch cells annotation"]
    ) -> tuple[Float[Tensor, "batch heads cells dim"], Float[Tensor, "batch heads cells dim"]]:
        keys, values = (
            layer(annotations).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        return keys, values

    def forward(
        self,
        row: Row,
        keys: Float[Tensor, "batch heads cells dim"],
        values: Float[Tensor, "batch heads cells dim"],
    ) -> tuple[Row, Float[Tensor, "batch captions heads cells"]]:
        query = self.query(row).unflatten(-1, (self.num_heads, -1))
        energies = torch.einsum("bchd,bhld->bchl", query, keys) / query.shape[-1] ** 0.5
        alphas = energies.float().softmax(dim=-1)
        context = torch.einsum("bchl,bhld->bchd", alphas.to(values.dtype), values)
        return self.out(context.flatten(2)), alphas
