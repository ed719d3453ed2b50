"""One step of the recurrence that writes a caption, and the loop over it.

Shapes: a picture has several captions in training and several hypotheses in a search; both are the
axis `captions`, so that what depends on the picture alone is computed and kept once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from captioner.attention import AdditiveAttention
from captioner.config import DecoderConfig


@dataclass(frozen=True)
class Memory:
    """What the decoder looks back at: the annotation vectors and the attention's keys for them."""

    annotations: Float[Tensor, "batch cells annotation"]
    keys: Float[Tensor, "batch cells attention"]

    def select(self, pictures: "slice | Int[Tensor, ' kept']") -> "Memory":
        return Memory(self.annotations[pictures], self.keys[pictures])


@dataclass(frozen=True)
class DecoderState:
    """The LSTM's hidden state h and cell state c."""

    hidden: Float[Tensor, "batch captions hidden"]
    cell: Float[Tensor, "batch captions hidden"]


@dataclass(frozen=True)
class StepOutput:
    """What one step gives: the state after it, the readout that `Decoder.logits` turns into scores for
    the next word, and the attention that it used."""

    state: DecoderState
    readout: Float[Tensor, "batch captions embedding"]
    alpha: Float[Tensor, "batch captions cells"]


@dataclass(frozen=True)
class DecoderOutput:
    """What `Decoder.forward` gives for whole captions.

    `logits` has a row for each word that is there to predict, in the order of `is_word`'s true
    entries; nothing is computed for padding. `alphas` is zero where `is_word` is false.
    """

    logits: Float[Tensor, "words vocab"]
    alphas: Float[Tensor, "batch captions steps cells"]
    is_word: Bool[Tensor, "batch captions steps"]


class Decoder(nn.Module):
    """The LSTM decoder with soft attention (Xu et al. 2015, section 3.1.2).

    beta_t   = sigmoid(f_beta(h_{t-1}))                                     section 4.2.1
    h_t, c_t = LSTM([E y_{t-1}; beta_t z_t], h_{t-1}, c_{t-1})                  eq. 1 to 3
    h_0, c_0 = tanh(W_h mean_i a_i), tanh(W_c mean_i a_i)
    p(y_t)   ~ exp(L_o(E y_{t-1} + L_h h_t + L_z beta_t z_t))                   eq. 7

    Differs from the paper in that the annotations are layer-normalised first, so that backbones of any
    scale train alike; that beta_t has a value for each channel, where the paper's is a scalar; and that
    h_0 and c_0 have one layer.
    """

    def __init__(self, *, config: DecoderConfig, annotation_dim: int, vocab_size: int) -> None:
        super().__init__()
        embedding_dim, hidden_dim = config.embedding_dim, config.hidden_dim
        self.annotation_norm = nn.LayerNorm(annotation_dim)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.attention = AdditiveAttention(
            annotation_dim=annotation_dim, hidden_dim=hidden_dim, attention_dim=config.attention_dim
        )
        self.gate = nn.Linear(hidden_dim, annotation_dim)
        self.initial_hidden = nn.Linear(annotation_dim, hidden_dim)
        self.initial_cell = nn.Linear(annotation_dim, hidden_dim)
        self.lstm = nn.Linear(embedding_dim + annotation_dim + hidden_dim, 4 * hidden_dim)
        self.hidden_readout = nn.Linear(hidden_dim, embedding_dim)
        self.context_readout = nn.Linear(annotation_dim, embedding_dim, bias=False)
        self.output = nn.Linear(embedding_dim, vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            # Start with an open forget gate, so that the cell remembers (Jozefowicz et al. 2015).
            self.lstm.bias[hidden_dim : 2 * hidden_dim] = 1.0

    def remember(self, annotations: Float[Tensor, "batch cells annotation"]) -> Memory:
        """Normalise and project the annotations once for all the words and captions to come."""
        annotations = self.annotation_norm(annotations)
        keys = self.attention.keys(annotations)
        return Memory(annotations.to(keys.dtype), keys)  # under autocast: cast once, not at each step

    def initial_state(self, memory: Memory, num_captions: int) -> DecoderState:
        """h_0 and c_0 from the mean annotation, the same for each of a picture's captions."""
        mean = memory.annotations.float().mean(dim=1)
        hidden, cell = torch.tanh(self.initial_hidden(mean)), torch.tanh(self.initial_cell(mean))
        return DecoderState(
            hidden.float()[:, None].expand(-1, num_captions, -1),
            cell.float()[:, None].expand(-1, num_captions, -1),
        )

    def step(self, tokens: Int[Tensor, "batch captions"], state: DecoderState, memory: Memory) -> StepOutput:
        """Read the previous word, look at the picture, and move on by one word.

        Training, greedy decoding, beam search and sampling all take this one step.
        """
        embedded = self.dropout(self.embedding(tokens))
        context, alpha = self.attention(memory.annotations, memory.keys, state.hidden)
        context = torch.sigmoid(self.gate(state.hidden)) * self.dropout(context)
        gates = self.lstm(torch.cat([embedded, context, state.hidden], dim=-1)).float()
        input_gate, forget_gate, output_gate, candidate = gates.chunk(4, dim=-1)
        cell = forget_gate.sigmoid() * state.cell + input_gate.sigmoid() * candidate.tanh()
        hidden = output_gate.sigmoid() * cell.tanh()
        readout = embedded + self.hidden_readout(self.dropout(hidden)) + self.context_readout(context)
        return StepOutput(DecoderState(hidden, cell), readout, alpha)

    def logits(self, readout: Float[Tensor, "*rows embedding"]) -> Float[Tensor, "*rows vocab"]:
        """Unnormalised log-probabilities of the next word."""
        return self.output(self.dropout(readout)).float()

    def forward(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        tokens: Int[Tensor, "batch captions tokens"],
        lengths: Int[Tensor, "batch captions"],
    ) -> DecoderOutput:
        """Feed given captions through `step` (teacher forcing).

        At each step only the leading block of pictures and captions that still have words is computed;
        with a batch sorted as `captioner.data.collate` does it, little of that block is padding.
        """
        memory = self.remember(annotations)
        batch, captions, num_steps = tokens.shape[0], tokens.shape[1], tokens.shape[2] - 1
        state = self.initial_state(memory, captions)
        is_word = torch.arange(num_steps, device=lengths.device) < lengths[..., None]
        readouts, alphas = [], []
        for step, (rows, columns) in enumerate(_unfinished_blocks(is_word)):
            state = DecoderState(state.hidden[:rows, :columns], state.cell[:rows, :columns])
            output = self.step(tokens[:rows, :columns, step], state, memory.select(slice(rows)))
            state = output.state
            outside = (0, 0, 0, captions - columns, 0, batch - rows)
            readouts.append(pad(output.readout, outside))
            alphas.append(pad(output.alpha, outside))
        logits = self.logits(torch.stack(readouts, dim=2)[is_word])
        return DecoderOutput(logits, torch.stack(alphas, dim=2) * is_word[..., None], is_word)


def _unfinished_blocks(is_word: Bool[Tensor, "batch captions steps"]) -> list[tuple[int, int]]:
    """For each step the least number of leading pictures and captions that hold all its words."""
    blocks = []
    for step in is_word.cpu().unbind(dim=2):
        rows, columns = step.any(dim=1).nonzero(), step.any(dim=0).nonzero()
        blocks.append((int(rows.max()) + 1, int(columns.max()) + 1) if len(rows) else (0, 0))
    return blocks
