"""The captioning model: an encoder and a decoder."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioner.config import DecoderConfig, ModelConfig
from captioner.data import CaptionBatch
from captioner.decoder import DecoderOutput, teacher_forced
from captioner.encoder import Encoder
from captioner.lstm import LSTMDecoder
from captioner.transformer import TransformerDecoder

AnyDecoder = LSTMDecoder | TransformerDecoder


class CaptioningModel(nn.Module):
    """Picture to annotation vectors to words (Xu et al. 2015, section 3.1)."""

    def __init__(self, *, encoder: Encoder, decoder: AnyDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def from_config(cls, config: ModelConfig, *, vocab_size: int) -> "CaptioningModel":
        """The model that a config describes, with random weights."""
        encoder = Encoder(backbone=config.backbone)
        encoder.mean, encoder.std = config.preprocess.mean, config.preprocess.std  # timm's may change
        return cls(
            encoder=encoder,
            decoder=make_decoder(config.decoder, annotation_dim=config.annotation_dim, vocab_size=vocab_size),
        )

    def annotations(self, batch: CaptionBatch) -> Float[Tensor, "batch cells annotation"]:
        """The batch's annotation vectors: the cached ones, and those of pictures given as pixels."""
        if len(batch.images) == 0:
            return batch.grids.float()[batch.order]
        live = self.encoder.annotate(batch.images).float()
        return (torch.cat([batch.grids.float(), live]) if len(batch.grids) else live)[batch.order]

    def forward(self, batch: CaptionBatch) -> DecoderOutput:
        """Teacher forcing: predict each word of the batch's captions from those before it."""
        return teacher_forced(self.decoder, self.annotations(batch), batch.tokens, batch.lengths)


def make_decoder(config: DecoderConfig, *, annotation_dim: int, vocab_size: int) -> AnyDecoder:
    """The decoder that a config describes, with random weights."""
    kind = LSTMDecoder if config.kind == "lstm" else TransformerDecoder
    return kind(config=config, annotation_dim=annotation_dim, vocab_size=vocab_size)
