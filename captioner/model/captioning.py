"""Captioning model: an encoder and a decoder."""

from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from captioner.config import DecoderConfig, ModelConfig
from captioner.model.batch import CaptionBatch
from captioner.model.decoder import Decoder, DecoderOutput
from captioner.model.encoder import Encoder
from captioner.model.lstm import LSTMDecoder
from captioner.model.transformer import TransformerDecoder


@runtime_checkable
class AnyEncoder(Protocol):
    """What a model needs of its encoder."""

    annotation_dim: int

    def annotations_of(
        self, sources: Any
    ) -> tuple[Float[Tensor, "batch cells annotation"], Bool[Tensor, "batch cells"] | None]:
        """The annotations of a batch's sources, and a mask of the cells that are not padding (None: all)."""
        ...


EncoderT = TypeVar("EncoderT", bound=AnyEncoder)


class AttentionModel(nn.Module, Generic[EncoderT]):
    """Picture, or sentence, to annotation vectors to words (Xu et al. 2015, section 3.1)."""

    def __init__(self, *, encoder: EncoderT, decoder: Decoder[Any]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, batch: CaptionBatch) -> DecoderOutput:
        """Teacher forcing: predict each word of the batch's captions from those before it."""
        annotations, cell_mask = self.encoder.annotations_of(batch.sources)
        output: DecoderOutput = self.decoder(annotations, batch.tokens, batch.lengths, cell_mask)
        return output


CaptioningModel = AttentionModel[Encoder]


def make_captioning_model(config: ModelConfig, *, vocab_size: int) -> CaptioningModel:
    """The model that a config describes, with random weights."""
    encoder = Encoder(backbone=config.backbone, stage=config.stage)
    prepared = config.preprocess  # timm's may change
    encoder.mean, encoder.std, encoder.interpolation = prepared.mean, prepared.std, prepared.interpolation
    decoder = make_decoder(config.decoder, annotation_dim=config.annotation_dim, vocab_size=vocab_size)
    return CaptioningModel(encoder=encoder, decoder=decoder)


def make_decoder(config: DecoderConfig, *, annotation_dim: int, vocab_size: int) -> Decoder[Any]:
    """The decoder that a config describes, with random weights."""
    kind = LSTMDecoder if config.kind == "lstm" else TransformerDecoder
    return kind(config=config, annotation_dim=annotation_dim, vocab_size=vocab_size)
