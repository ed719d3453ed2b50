"""The captioning model: an encoder and a decoder."""

from torch import nn

from captioner.config import ModelConfig
from captioner.decoder import Decoder
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
