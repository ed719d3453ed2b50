"""The LSTM decoder of *Show, Attend and Tell*, with the variants of its parts."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from captioner.attention import AttentionOutput, attend, attend_hard, make_score, masked
from captioner.config import DecoderConfig
from captioner.decoder import Memory, StepOutput, mean_annotation


@dataclass(frozen=True)
class LSTMState:
    """The LSTM's hidden state h and cell state c, and the gated context beta z of the last look.

    A decoder that looks before it reads needs no last look, and keeps none (a context of length 0).
    """

    hidden: Float[Tensor, "batch captions hidden"]
    cell: Float[Tensor, "batch captions hidden"]
    context: Float[Tensor, "batch captions context"]

    def select(self, index: tuple[Any, Any]) -> "LSTMState":
        return LSTMState(self.hidden[index], self.cell[index], self.context[index])


class LSTMDecoder(nn.Module):
    """The LSTM decoder with attention (Xu et al. 2015, section 3.1.2).

    beta_t   = sigmoid(f_beta(h_{t-1}))                                     section 4.2.1
    h_t, c_t = LSTM([E y_{t-1}; beta_t z_t], h_{t-1}, c_{t-1})                  eq. 1 to 3
    h_0, c_0 = tanh(W_h mean_i a_i), tanh(W_c mean_i a_i)
    p(y_t)   ~ exp(L_o(E y_{t-1} + L_h h_t + L_z beta_t z_t))                   eq. 7, "deep"
    p(y_t)   ~ exp(L_o h_t)                                                     "plain"

    where z_t is what h_{t-1} attends to. With `look="after"` it is what h_t attends to, so that the choice
    of where to look for a word knows the word before; the LSTM then reads beta_{t-1} z_{t-1} in the place
    of beta_t z_t, and the gate h_t (Luong et al. 2015, section 3.3, "input feeding"; z_0 = 0).

    The gate beta_t is a scalar as in the paper, or a vector with a value for each channel, or it is left
    out. Differs from the paper in that the annotations are layer-normalised first, so that backbones of
    any scale train alike, and that h_0 and c_0 have one layer.
    """

    def __init__(self, *, config: DecoderConfig, annotation_dim: int, vocab_size: int) -> None:
        super().__init__()
        embedding_dim, hidden_dim = config.embedding_dim, config.hidden_dim
        self.config = config
        self.annotation_norm = nn.LayerNorm(annotation_dim)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.attention = make_score(config, annotation_dim=annotation_dim)
        context_dim = self.context_dim = self.attention.value_dim
        if config.gate != "none":
            self.gate = nn.Linear(hidden_dim, 1 if config.gate == "scalar" else context_dim)
        self.initial_hidden = nn.Linear(annotation_dim, hidden_dim)
        self.initial_cell = nn.Linear(annotation_dim, hidden_dim)
        self.lstm = nn.Linear(embedding_dim + context_dim + hidden_dim, 4 * hidden_dim)
        if config.output == "deep":
            self.hidden_readout = nn.Linear(hidden_dim, embedding_dim)
            self.context_readout = nn.Linear(context_dim, embedding_dim, bias=False)
        self.output = nn.Linear(embedding_dim if config.output == "deep" else hidden_dim, vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            # Start with an open forget gate, so that the cell remembers (Jozefowicz et al. 2015).
            self.lstm.bias[hidden_dim : 2 * hidden_dim] = 1.0

    def remember(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        is_cell: Bool[Tensor, "batch cells"] | None = None,
    ) -> Memory:
        annotations = self.annotation_norm(annotations)
        keys, values = self.attention.project(annotations)
        if torch.is_autocast_enabled(values.device.type):
            values = values.to(torch.get_autocast_dtype(values.device.type))  # once, not at each step
        return Memory(keys, values, mean_annotation(annotations, is_cell), is_cell)

    def initial_state(self, memory: Memory, num_captions: int) -> LSTMState:
        """h_0 and c_0 from the mean annotation, the same for each of a picture's captions."""
        hidden = torch.tanh(self.initial_hidden(memory.mean)).float()
        cell = torch.tanh(self.initial_cell(memory.mean)).float()
        context = hidden.new_zeros(hidden.shape[0], self.context_dim if self.config.look == "after" else 0)
        return LSTMState(*(value[:, None].expand(-1, num_captions, -1) for value in (hidden, cell, context)))

    def step(
        self, tokens: Int[Tensor, "batch captions"], state: LSTMState, memory: Memory
    ) -> StepOutput[LSTMState]:
        embedded = self.dropout(self.embedding(tokens))
        if self.config.look == "after":
            hidden, cell = self._read(embedded, state.context, state)
            looked = self._look(memory, hidden)
            kept = looked.context.float()
        else:
            looked = self._look(memory, state.hidden)
            hidden, cell = self._read(embedded, looked.context, state)
            kept = state.context
        readout = hidden
        if self.config.output == "deep":
            readout = embedded + self.hidden_readout(self.dropout(hidden))
            readout = readout + self.context_readout(looked.context)
        return StepOutput(LSTMState(hidden, cell, kept), readout, looked.alphas, looked.choice)

    def _read(
        self, embedded: Tensor, context: Tensor, state: LSTMState
    ) -> tuple[Float[Tensor, "batch captions hidden"], Float[Tensor, "batch captions hidden"]]:
        """h_t and c_t (eq. 1 to 3)."""
        gates = self.lstm(torch.cat([embedded, context, state.hidden], dim=-1)).float()
        input_gate, forget_gate, output_gate, candidate = gates.chunk(4, dim=-1)
        cell = forget_gate.sigmoid() * state.cell + input_gate.sigmoid() * candidate.tanh()
        return output_gate.sigmoid() * cell.tanh(), cell

    def _look(self, memory: Memory, hidden: Float[Tensor, "batch captions hidden"]) -> AttentionOutput:
        """What a hidden state attends to; the context comes gated, beta z."""
        energies = masked(self.attention(memory.keys, hidden), memory.is_cell)
        if self.config.attention == "hard":
            looked = attend_hard(energies, memory.values, is_training=self.training)
        else:
            looked = attend(energies, memory.values)
        context = self.dropout(looked.context)
        if self.config.gate != "none":
            context = torch.sigmoid(self.gate(hidden)) * context
        return replace(looked, context=context)

    def logits(self, readout: Float[Tensor, "*rows readout"]) -> Float[Tensor, "*rows vocab"]:
        return self.output(self.dropout(readout)).float()
