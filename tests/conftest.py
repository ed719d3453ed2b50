"""Small real parts for the tests: a tiny CNN with random weights, a small decoder, synthetic pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.backends.torch_backend import TorchBackend
from captioner.caption import Caption
from captioner.checkpoint.weights import CaptioningCheckpoint, save_checkpoint
from captioner.config import (
    FORMAT_VERSION,
    DecoderConfig,
    DecodingOptions,
    EncoderConfig,
    GridConfig,
    ModelConfig,
    PreprocessConfig,
)
from captioner.inference import Captioner
from captioner.model.batch import CaptionBatch
from captioner.model.captioning import CaptioningModel, make_decoder
from captioner.model.decoder import Decoder
from captioner.model.encoder import Encoder
from captioner.model.low_rank import LowRankLinear
from captioner.model.lstm import LSTMDecoder
from captioner.vocabulary import END, SPECIAL_TOKENS, Vocabulary

ROOT = Path(__file__).parent.parent
TINY_CNN = "test_efficientnet"
TINY_SIZE_PX = 64
SMALL_DECODER = DecoderConfig(embedding_dim=12, hidden_dim=16, attention_dim=8, dropout=0.0, num_heads=2)
DECODER_CHANGES: dict[str, dict[str, Any]] = {
    "the default": {},
    "hard": {"attention": "hard"},
    "no attention": {"attention": "none"},
    "dot": {"score": "dot"},
    "general": {"score": "general"},
    "multihead": {"score": "multihead"},
    "attend after the LSTM": {"attend": "after_lstm"},
    "no gate": {"gate": "none"},
    "scalar gate": {"gate": "scalar"},
    "plain output": {"output": "plain"},
    "low rank": {"rank": 4},
    "transformer": {"kind": "transformer"},
}
"""Every kind of decoder, by what differs from the default."""


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary((*SPECIAL_TOKENS, "a", "dog", "cat", "runs", "sits", "red", "blue"))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(backbone=TINY_CNN)


@pytest.fixture
def decoder(vocabulary: Vocabulary) -> LSTMDecoder:
    torch.manual_seed(1)
    return LSTMDecoder(config=SMALL_DECODER, annotation_dim=10, vocab_size=len(vocabulary)).eval()


@pytest.fixture(params=DECODER_CHANGES)
def any_decoder(request: pytest.FixtureRequest, vocabulary: Vocabulary) -> Decoder[Any]:
    torch.manual_seed(1)
    config = replace(SMALL_DECODER, **DECODER_CHANGES[request.param])
    return make_decoder(config, annotation_dim=10, vocab_size=len(vocabulary)).eval()


@torch.no_grad()
def make_captions_differ(decoder: Decoder[Any]) -> None:
    """Let a decoder with random weights depend less on the word before and more on the rest."""
    decoder.embedding.weight.mul_(0.1)
    output = decoder.output
    (output.outer if isinstance(output, LowRankLinear) else output).weight.mul_(12)


@pytest.fixture
def model_config(encoder: Encoder) -> ModelConfig:
    return ModelConfig(
        format_version=FORMAT_VERSION,
        backbone=TINY_CNN,
        preprocess=encoder.preprocess_config(TINY_SIZE_PX),
        grid=encoder.grid_config(TINY_SIZE_PX),
        annotation_dim=encoder.annotation_dim,
        decoder=SMALL_DECODER,
        decoding=DecodingOptions(beam_size=3, max_words=6),
    )


@pytest.fixture
def model(encoder: Encoder, model_config: ModelConfig, vocabulary: Vocabulary) -> CaptioningModel:
    torch.manual_seed(2)
    decoder = LSTMDecoder(
        config=SMALL_DECODER, annotation_dim=model_config.annotation_dim, vocab_size=len(vocabulary)
    )
    with torch.no_grad():
        decoder.output.bias[END] -= 3  # so that captions have a few words
    return CaptioningModel(encoder=encoder, decoder=decoder)


@pytest.fixture
def captioner(model: CaptioningModel, model_config: ModelConfig, vocabulary: Vocabulary) -> Captioner:
    return Captioner(backend=TorchBackend(model), config=model_config, vocabulary=vocabulary)


def torch_model(captioner: Captioner) -> CaptioningModel:
    assert isinstance(captioner.backend, TorchBackend)
    return captioner.backend.model


@pytest.fixture
def model_folder(captioner: Captioner, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_checkpoint(
        folder, CaptioningCheckpoint(torch_model(captioner), captioner.config, captioner.vocabulary, {})
    )
    return folder


@pytest.fixture
def encoder_config() -> EncoderConfig:
    return EncoderConfig(backbone=TINY_CNN, image_size=TINY_SIZE_PX)


@pytest.fixture
def preprocess_config() -> PreprocessConfig:
    return PreprocessConfig(size_px=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")


@pytest.fixture
def even_grid() -> GridConfig:
    """Three by three cells that tile the 96 pixels of `preprocess_config` evenly."""
    return GridConfig(rows=3, cols=3, stride_px=32, offset_px=15.5)


def noise_picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def batch_of(tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> CaptionBatch:
    """Captions (batch, captions, tokens) as a batch without sources, for losses and decoders."""
    ids = tuple(str(row) for row in range(len(tokens)))
    if lengths is None:
        lengths = torch.full(tokens.shape[:2], tokens.shape[2] - 1)
    return CaptionBatch(ids=ids, names=ids, sources=None, tokens=tokens, lengths=lengths)


def make_caption(
    tokens: tuple[str, ...], grid: GridConfig, preprocess: PreprocessConfig, alphas: np.ndarray | None = None
) -> Caption:
    if alphas is None:
        alphas = np.random.default_rng(0).dirichlet(np.ones(9), size=len(tokens)).reshape(-1, 3, 3)
    return Caption(
        picture=Path("x.png"),
        text=" ".join(tokens),
        tokens=tokens,
        log_prob=-1.0,
        head_alphas=alphas[:, None],
        grid=grid,
        preprocess=preprocess,
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from tests.figures.browser import BROWSER

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"],
        )
        yield browser
        browser.close()
