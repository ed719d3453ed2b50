"""The captioning model: an encoder and a decoder."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data import CaptionBatch
from captioner.decoder import Decoder, DecoderOutput
from captioner.encoder import Encoder


class CaptioningModel(nn.Module):
    """Picture to annotation vectors to words (Xu et al. 2015, section 3.1)."""

    def __init__(self, *, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def from_config(cls, config: ModelConfig, *, vocab_size: int) -> "CaptioningModel":
        """The model that a config describes, with random weights."""
        return cls(
            encoder=Encoder(backbone=config.backbone),
            decoder=Decoder(
                config=config.decoder, annotation_dim=config.annotation_dim, vocab_size=vocab_size
            ),
        )

    def annotations(self, batch: CaptionBatch) -> Float[Tensor, "batch cells annotation"]:
        """The batch's annotation vectors: the cached ones, and those of pictures given as pixels."""
        if len(batch.images) == 0:
            return batch.grids.float()[batch.order]
        live = self.encoder(self.encoder.normalise(batch.images)).float()
        return (torch.cat([batch.grids.float(), live]) if len(batch.grids) else live)[batch.order]

    def forward(self, batch: CaptionBatch) -> DecoderOutput:
        """Teacher forcing: predict each word of the batch's captions from those before it."""
        return self.decoder(self.annotations(batch), batch.tokens, batch.lengths)
