"""Translation model and its folder."""

from pathlib import Path

from captioner.checkpoint.folder import read_metrics, read_translation_config, read_vocabulary
from captioner.checkpoint.weights import Checkpoint, load_model
from captioner.config import TranslationConfig
from captioner.model.captioning import AttentionModel, make_decoder
from captioner.translation.encoder import TextEncoder

TranslationModel = AttentionModel[TextEncoder]
TranslationCheckpoint = Checkpoint[TextEncoder, TranslationConfig]


def make_translation_model(config: TranslationConfig, *, vocab_size: int) -> TranslationModel:
    """The model that a config describes, with random weights."""
    encoder = TextEncoder(config=config.text_encoder, vocab_size=vocab_size)
    decoder = make_decoder(config.decoder, annotation_dim=encoder.annotation_dim, vocab_size=vocab_size)
    return TranslationModel(encoder=encoder, decoder=decoder)


def load_translation_checkpoint(folder: Path) -> TranslationCheckpoint:
    """Load a translator onto the CPU, with its weights in single precision.

    Raises:
        captioner.errors.ModelFolderError: a file is missing, or does not match the others.
    """
    config, vocabulary = read_translation_config(folder), read_vocabulary(folder)
    model = load_model(folder, lambda: make_translation_model(config, vocab_size=len(vocabulary)))
    return TranslationCheckpoint(model, config, vocabulary, read_metrics(folder))
