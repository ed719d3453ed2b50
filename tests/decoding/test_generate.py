from typing import Any

import numpy as np
import pytest
import torch

from captioner.backends.torch_backend import TorchDecoder
from captioner.config import DecodingOptions
from captioner.decoding.generate import generate_captions
from captioner.model.decoder import Decoder
from captioner.vocabulary import START
from tests.conftest import make_captions_differ

CONFIG = DecodingOptions(beam_size=4, max_words=5)


@torch.no_grad()
def test_what_the_search_gives_is_what_the_decoder_gives_for_that_caption(any_decoder: Decoder[Any]) -> None:
    """Log-probability and attention of each hypothesis equal those of feeding it back (teacher forcing)."""
    decoder = any_decoder
    torch.manual_seed(2)
    make_captions_differ(decoder)
    annotations = torch.randn(6, 9, 10) * 3
    found = generate_captions(TorchDecoder(decoder), annotations, CONFIG)
    flat = [hypothesis for hypotheses in found for hypothesis in hypotheses]
    assert len({hypothesis.tokens for hypothesis in flat}) > 6
    for picture, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            fed = torch.tensor([[[START, *hypothesis.tokens]]])
            length = torch.tensor([[len(hypothesis.tokens)]])
            output = decoder(annotations[picture : picture + 1], fed, length)
            log_probs = output.logits.log_softmax(dim=-1)
            expected = sum(float(log_probs[step, token]) for step, token in enumerate(hypothesis.tokens))
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-4)
            alphas = hypothesis.alphas.mean(axis=1)
            np.testing.assert_allclose(alphas, output.alphas[0, 0].numpy(), atol=1e-5)


@torch.no_grad()
def test_search_of_a_batch_equals_that_of_each_picture_alone(any_decoder: Decoder[Any]) -> None:
    decoder = any_decoder
    annotations = torch.randn(6, 9, 10) * 3
    together = generate_captions(TorchDecoder(decoder), annotations, CONFIG)
    for picture, expected in enumerate(together):
        (alone,) = generate_captions(TorchDecoder(decoder), annotations[picture : picture + 1], CONFIG)
        assert [hypothesis.tokens for hypothesis in alone] == [hypothesis.tokens for hypothesis in expected]
