"""LSTM decoder of *Show, Attend and Tell*, with variants of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from captioner.config import DecoderConfig
from captioner.model.attention import (
    AttentionOutput,
    Values,
    attend,
    attend_hard,
    make_score,
    mask_padding,
)
from captioner.model.decoder import Decoder, Memory, StepOutput, mean_annotation
from captioner.model.low_rank import linear, reduced


@dataclass(frozen=True)
class LSTMState:
    """The LSTM's hidden state h and cell state c, and the gated context beta z of the last step.

    A decoder that attends before the LSTM does not need the last context: its length is then 0.
    """

    hidden: Float[Tensor, "batch captions hidden"]
    cell: Float[Tensor, "batch captions hidden"]
    context: Float[Tensor, "batch captions context"]

    def select(self, index: tuple[Any, Any]) -> "LSTMState":
        return LSTMState(self.hidden[index], self.cell[index], self.context[index])


class LSTMDecoder(Decoder[LSTMState]):
    """The LSTM decoder with attention (Xu et al. 2015, section 3.1.2).

    beta_t   = sigmoid(f_beta(h_{t-1}))                                     section 4.2.1
    h_t, c_t = LSTM([E y_{t-1}; beta_t z_t], h_{t-1}, c_{t-1})                  eq. 1 to 3
    h_0, c_0 = tanh(W_h mean_i a_i), tanh(W_c mean_i a_i)
    p(y_t)   ~ exp(L_o(E y_{t-1} + L_h h_t + L_z beta_t z_t))                   eq. 7, "deep"
    p(y_t)   ~ exp(L_o h_t)                                                     "plain"

    where z_t is what h_{t-1} attends to. With `attend="after_lstm"` it is what h_t attends to, so that
    attention for a word depends on the previous word; the LSTM then reads beta_{t-1} z_{t-1} instead of
    beta_t z_t, and the gate reads h_t (Luong et al. 2015, section 3.3, "input feeding"; z_0 = 0). In
    Luong's model not the context itself is fed and read, but tanh(W_c [z_t; h_t]).

    The gate beta_t is a scalar as in the paper, or a vector with a value for each channel, or absent.
    Differs from the paper in that the annotations are layer-normalised first, so that backbones of any
    scale train alike, and in that h_0 and c_0 have one layer. With a `rank` the LSTM's matrix and L_o are
    products of two.
    """

    def __init__(self, *, config: DecoderConfig, annotation_dim: int, vocab_size: int) -> None:
        super().__init__(config)
        embedding_dim, hidden_dim = config.embedding_dim, config.hidden_dim
        self.annotation_norm = nn.LayerNorm(annotation_dim)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.attention = make_score(config, annotation_dim=annotation_dim)
        context_dim = self.context_dim = self.attention.value_dim
        if config.gate != "none":
            self.gate = nn.Linear(hidden_dim, 1 if config.gate == "scalar" else context_dim)
        self.initial_hidden = nn.Linear(annotation_dim, hidden_dim)
        self.initial_cell = nn.Linear(annotation_dim, hidden_dim)
        self.lstm = linear(embedding_dim + context_dim + hidden_dim, 4 * hidden_dim, rank=config.rank)
        if config.output == "deep":
            self.hidden_readout = nn.Linear(hidden_dim, embedding_dim)
            self.context_readout = nn.Linear(context_dim, embedding_dim, bias=False)
        readout_dim = embedding_dim if config.output == "deep" else hidden_dim
        self.output = linear(readout_dim, vocab_size, rank=config.rank)
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            # Start with an open forget gate, so that the cell remembers (Jozefowicz et al. 2015).
            self.lstm.bias[hidden_dim : 2 * hidden_dim] = 1.0

    def reduce_rank(self, rank: int, second_moments: Mapping[str, Tensor] | None = None) -> None:
        """Replace the matrices of full rank by the closest of this one (`captioner.model.low_rank.reduced`).

        `second_moments` are those of the inputs of the layers "lstm" and "output".
        """
        for name in ("lstm", "output"):
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            moment = None if second_moments is None else second_moments[name]
            setattr(self, name, reduced(layer, rank=rank, second_moment=moment))
        self.config = replace(self.config, rank=rank)

    def prepare_memory(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        cell_mask: Bool[Tensor, "batch cells"] | None = None,
    ) -> Memory:
        annotations = self.annotation_norm(annotations)
        keys, values = self.attention.project(annotations)
        if torch.is_autocast_enabled(values.device.type):
            values = values.to(torch.get_autocast_dtype(values.device.type))  # once, not at each step
        return Memory(keys, values, mean_annotation(annotations, cell_mask), cell_mask)

    def initial_state(self, memory: Memory, num_captions: int) -> LSTMState:
        """h_0 and c_0 from the mean annotation, the same for each of a picture's captions."""
        hidden = torch.tanh(self.initial_hidden(memory.mean)).float()
        cell = torch.tanh(self.initial_cell(memory.mean)).float()
        attends_after = self.config.attend == "after_lstm"
        context = hidden.new_zeros(hidden.shape[0], self.context_dim if attends_after else 0)
        return LSTMState(*(value[:, None].expand(-1, num_captions, -1) for value in (hidden, cell, context)))

    def step(
        self, tokens: Int[Tensor, "batch captions"], state: LSTMState, memory: Memory
    ) -> StepOutput[LSTMState]:
        attends_after = self.config.attend == "after_lstm"
        embedded = self.dropout(self.embedding(tokens))
        hidden, cell = state.hidden, state.cell
        if attends_after:
            hidden, cell = self._lstm_cell(embedded, state.context, state)
        energies = mask_padding(self.attention(memory.keys, hidden), memory.cell_mask)
        attended = self._attend(energies, memory.values, hidden)
        if not attends_after:
            hidden, cell = self._lstm_cell(embedded, attended.context, state)
        readout = hidden
        if self.config.output == "deep":
            readout = embedded + self.hidden_readout(self.dropout(hidden))
            readout = readout + self.context_readout(attended.context)
        last_context = attended.context.float() if attends_after else state.context
        next_state = LSTMState(hidden, cell, last_context)
        return StepOutput(next_state, readout, attended.alphas, attended.hard_sample)

    def _lstm_cell(
        self, embedded: Tensor, context: Tensor, state: LSTMState
    ) -> tuple[Float[Tensor, "batch captions hidden"], Float[Tensor, "batch captions hidden"]]:
        """h_t and c_t (eq. 1 to 3)."""
        gates = self.lstm(torch.cat([embedded, context, state.hidden], dim=-1)).float()
        input_gate, forget_gate, output_gate, candidate = gates.chunk(4, dim=-1)
        cell = forget_gate.sigmoid() * state.cell + input_gate.sigmoid() * candidate.tanh()
        return output_gate.sigmoid() * cell.tanh(), cell

    def _attend(
        self,
        energies: Float[Tensor, "batch captions heads cells"],
        values: Values,
        hidden: Float[Tensor, "batch captions hidden"],
    ) -> AttentionOutput:
        """Attention by the energies that the hidden state gave; its context is gated, beta z."""
        if self.config.attention == "hard":
            attended = attend_hard(energies, values, is_training=self.training)
        else:
            attended = attend(energies, values)
        context = self.dropout(attended.context)
        if self.config.gate != "none":
            context = torch.sigmoid(self.gate(hidden)) * context
        return replace(attended, context=context)

    def logits(self, readout: Float[Tensor, "*rows readout"]) -> Float[Tensor, "*rows vocab"]:
        return self.output(self.dropout(readout)).float()
