"""The whole model: an encoder that annotates, and a decoder that writes."""

from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from captioner.batches import CaptionBatch
from captioner.config import DecoderConfig, ModelConfig, TranslationConfig
from captioner.decoder import DecoderOutput, teacher_forced
from captioner.encoder import Encoder
from captioner.lstm import LSTMDecoder
from captioner.text_encoder import TextEncoder
from captioner.transformer import TransformerDecoder

AnyDecoder = LSTMDecoder | TransformerDecoder


@runtime_checkable
class AnyEncoder(Protocol):
    """What a model needs of its encoder."""

    annotation_dim: int

    def annotations_of(
        self, sources: Any
    ) -> tuple[Float[Tensor, "batch cells annotation"], Bool[Tensor, "batch cells"] | None]:
        """The annotations of a batch's sources, and which of them are there; None is all."""
        ...


EncoderT = TypeVar("EncoderT", bound=AnyEncoder)


class AttentionModel(nn.Module, Generic[EncoderT]):
    """Picture, or sentence, to annotation vectors to words (Xu et al. 2015, section 3.1)."""

    def __init__(self, *, encoder: EncoderT, decoder: AnyDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, batch: CaptionBatch) -> DecoderOutput:
        """Teacher forcing: predict each word of the batch's captions from those before it."""
        annotations, is_cell = self.encoder.annotations_of(batch.sources)
        return teacher_forced(self.decoder, annotations, batch.tokens, batch.lengths, is_cell=is_cell)


CaptioningModel = AttentionModel[Encoder]
TranslationModel = AttentionModel[TextEncoder]


def make_captioning_model(config: ModelConfig, *, vocab_size: int) -> CaptioningModel:
    """The model that a config describes, with random weights."""
    encoder = Encoder(backbone=config.backbone)
    encoder.mean, encoder.std = config.preprocess.mean, config.preprocess.std  # timm's may change
    decoder = make_decoder(config.decoder, annotation_dim=config.annotation_dim, vocab_size=vocab_size)
    return CaptioningModel(encoder=encoder, decoder=decoder)


def make_translation_model(config: TranslationConfig, *, vocab_size: int) -> TranslationModel:
    """The model that a config describes, with random weights."""
    encoder = TextEncoder(config=config.text_encoder, vocab_size=vocab_size)
    decoder = make_decoder(config.decoder, annotation_dim=encoder.annotation_dim, vocab_size=vocab_size)
    return TranslationModel(encoder=encoder, decoder=decoder)


def make_decoder(config: DecoderConfig, *, annotation_dim: int, vocab_size: int) -> AnyDecoder:
    """The decoder that a config describes, with random weights."""
    kind = LSTMDecoder if config.kind == "lstm" else TransformerDecoder
    return kind(config=config, annotation_dim=annotation_dim, vocab_size=vocab_size)
