"""Transformer decoder over the grid, with the LSTM's interface."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from captioner.config import DecoderConfig
from captioner.model.attention import MultiheadScore, attend, mask_padding
from captioner.model.decoder import Decoder, Memory, StepOutput, mean_annotation


@dataclass(frozen=True)
class TransformerState:
    """Keys and values of the words so far, in each layer, so that no word is computed twice."""

    keys: Float[Tensor, "batch captions layers heads steps dim"]
    values: Float[Tensor, "batch captions layers heads steps dim"]

    @property
    def num_steps(self) -> "int | torch.SymInt":
        return self.keys.shape[4]

    def select(self, index: tuple[Any, Any]) -> "TransformerState":
        return TransformerState(self.keys[index], self.values[index])


class TransformerDecoder(Decoder[TransformerState]):
    """A transformer decoder over the grid (Vaswani et al. 2017, section 3.1).

    Each layer has causal self-attention over the words, multi-head attention over the cells, and a
    feed-forward net of four times the width. Differs from the paper in that each is normalised before
    rather than after (Xiong et al. 2020), which needs no warm-up to train, in the activation (GELU), and in
    that word embeddings are neither scaled nor shared with the output layer. `alphas` are those of all heads
    of all layers, in that order.
    """

    def __init__(self, *, config: DecoderConfig, annotation_dim: int, vocab_size: int) -> None:
        super().__init__(config)
        width = config.hidden_dim
        self.annotation_norm = nn.LayerNorm(annotation_dim)
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            _Layer(config, annotation_dim=annotation_dim) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)
        self.dropout = nn.Dropout(config.dropout)

    def prepare_memory(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        cell_mask: Bool[Tensor, "batch cells"] | None = None,
    ) -> Memory:
        annotations = self.annotation_norm(annotations)
        projected = [layer.cross_attention.project(annotations) for layer in self._each_layer()]
        keys, values = (torch.stack(layers, dim=1) for layers in zip(*projected, strict=True))
        return Memory(keys, values, mean_annotation(annotations, cell_mask), cell_mask)

    def initial_state(self, memory: Memory, num_captions: int) -> TransformerState:
        heads = self.config.num_heads
        shape = (
            memory.mean.shape[0],
            num_captions,
            len(self.layers),
            heads,
            0,
            self.config.hidden_dim // heads,
        )
        return TransformerState(memory.keys.new_zeros(shape), memory.keys.new_zeros(shape))

    def step(
        self, tokens: Int[Tensor, "batch captions"], state: TransformerState, memory: Memory
    ) -> StepOutput[TransformerState]:
        hidden = self.dropout(self.embedding(tokens) + self._position(state.num_steps))
        keys: list[Tensor] = []
        values: list[Tensor] = []
        alphas: list[Tensor] = []
        for index, layer in enumerate(self._each_layer()):
            query, key, value = layer.query_key_value(hidden)
            keys.append(torch.cat([state.keys[:, :, index], key], dim=3))
            values.append(torch.cat([state.values[:, :, index], value], dim=3))
            hidden = layer.attend_to_words(hidden, query, keys[-1], values[-1])
            hidden, used = layer.attend_to_cells(hidden, memory, index)
            alphas.append(used)
            hidden = layer.feed_forward(hidden)
        next_state = TransformerState(torch.stack(keys, dim=2), torch.stack(values, dim=2))
        return StepOutput(next_state, self.norm(hidden), torch.cat(alphas, dim=2))

    def _each_layer(self) -> "Iterator[_Layer]":
        return (cast(_Layer, layer) for layer in self.layers)

    def _position(self, step: int | torch.SymInt) -> Float[Tensor, " width"]:
        """Sinusoidal position encoding (Vaswani et al. 2017, section 3.5)."""
        width = self.config.hidden_dim
        exponents = torch.arange(0, width, 2, device=self.output.weight.device) / width
        angles = (10_000.0**-exponents).mul(step)
        return torch.cat([angles.sin(), angles.cos()])[:width]

    def logits(self, readout: Float[Tensor, "*rows readout"]) -> Float[Tensor, "*rows vocab"]:
        return self.output(readout).float()


Hidden = Float[Tensor, "batch captions width"]
OneStep = Float[Tensor, "batch captions heads 1 dim"]
ByHead = Float[Tensor, "batch captions heads steps dim"]


class _Layer(nn.Module):
    """Self-attention, attention over the cells and a feed-forward net, each with a residual connection."""

    def __init__(self, config: DecoderConfig, *, annotation_dim: int) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_dim, config.num_heads
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.self_attention_in, self.self_attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross_attention = MultiheadScore(
            annotation_dim=annotation_dim, hidden_dim=width, attention_dim=width, num_heads=config.num_heads
        )
        self.cross_attention_out = nn.Linear(width, width)
        self.feed_forward_in, self.feed_forward_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def query_key_value(self, hidden: Hidden) -> tuple[OneStep, OneStep, OneStep]:
        """Query, key and value of the previous word."""
        projected = self.self_attention_in(self.self_attention_norm(hidden)).chunk(3, dim=-1)
        query, key, value = (chunk.unflatten(-1, (self.num_heads, 1, -1)) for chunk in projected)
        return query, key, value

    def attend_to_words(self, hidden: Hidden, query: OneStep, keys: ByHead, values: ByHead) -> Hidden:
        # torch's attention takes one batch axis
        query, keys, values = (tensor.flatten(0, 1) for tensor in (query, keys, values))
        attended = scaled_dot_product_attention(query, keys, values).flatten(1).view_as(hidden)
        return hidden + self.dropout(self.self_attention_out(attended))

    def attend_to_cells(
        self,
        hidden: Hidden,
        memory: Memory,
        index: int,
    ) -> tuple[Hidden, Float[Tensor, "batch captions heads cells"]]:
        """`index` is the number of this layer, which finds its keys and values in the memory."""
        energies = self.cross_attention(memory.keys[:, index], self.cross_attention_norm(hidden))
        attended = attend(mask_padding(energies, memory.cell_mask), memory.values[:, index])
        return hidden + self.dropout(self.cross_attention_out(attended.context)), attended.alphas

    def feed_forward(self, hidden: Hidden) -> Hidden:
        wide = gelu(self.feed_forward_in(self.feed_forward_norm(hidden)))
        return hidden + self.dropout(self.feed_forward_out(wide))
