"""Text encoder: sentences to annotation vectors."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from captioner.config import TextEncoderConfig
from captioner.translation.sentences import Sentences


class TextEncoder(nn.Module):
    """A bidirectional LSTM (Bahdanau et al. 2015, section 3.2): the annotation of a word is the forward and
    backward state at its position, projected to `annotation_dim`."""

    def __init__(self, *, config: TextEncoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.annotation_dim = config.annotation_dim
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        self.lstm = nn.LSTM(
            config.embedding_dim,
            config.hidden_dim,
            num_layers=config.num_layers,
            batch_first=True,
            bidirectional=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.projection = nn.Linear(2 * config.hidden_dim, config.annotation_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Int[Tensor, "batch cells"], lengths: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch cells annotation"], Bool[Tensor, "batch cells"]]:
        """The annotations of sentences of `lengths` tokens, and a mask that is false for padding."""
        embedded = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1])
        cell_mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return self.projection(self.dropout(states)), cell_mask

    def annotations_of(
        self, sentences: Sentences
    ) -> tuple[Float[Tensor, "batch cells annotation"], Bool[Tensor, "batch cells"]]:
        annotations, cell_mask = self(sentences.tokens, sentences.lengths)
        return annotations.float(), cell_mask
