import numpy as np
import pytest
import torch

from captioner.config import DecodingConfig
from captioner.decoder import Decoder
from captioner.decoding import search_captions
from captioner.vocabulary import START
from tests.conftest import SMALL_DECODER

CONFIG = DecodingConfig(beam_size=4, max_words=5)


@torch.no_grad()
def test_what_the_search_gives_is_what_the_decoder_gives_for_that_caption() -> None:
    """Log-probability and attention of each hypothesis equal those of feeding it back (teacher forcing)."""
    torch.manual_seed(2)
    decoder = Decoder(config=SMALL_DECODER, annotation_dim=10, vocab_size=11).eval()
    # Readouts that weigh the picture more than the last word: captions that differ, some end, some are cut.
    decoder.context_readout.weight.mul_(8)
    decoder.hidden_readout.weight.mul_(8)
    annotations = torch.randn(6, 9, 10) * 3
    found = search_captions(decoder, annotations, CONFIG)
    flat = [hypothesis for hypotheses in found for hypothesis in hypotheses]
    assert len({hypothesis.tokens for hypothesis in flat}) > 6
    assert {hypothesis.has_ended for hypothesis in flat} == {True, False}
    for picture, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            fed = torch.tensor([[[START, *hypothesis.tokens]]])
            length = torch.tensor([[len(hypothesis.tokens)]])
            output = decoder(annotations[picture : picture + 1], fed, length)
            log_probs = output.logits.log_softmax(dim=-1)
            expected = sum(float(log_probs[step, token]) for step, token in enumerate(hypothesis.tokens))
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-4)
            np.testing.assert_allclose(hypothesis.alphas, output.alphas[0, 0].numpy(), atol=1e-5)


@torch.no_grad()
def test_search_of_a_batch_equals_that_of_each_picture_alone(decoder: Decoder) -> None:
    annotations = torch.randn(6, 9, 10) * 3
    together = search_captions(decoder, annotations, CONFIG)
    for picture, expected in enumerate(together):
        (alone,) = search_captions(decoder, annotations[picture : picture + 1], CONFIG)
        assert [hypothesis.tokens for hypothesis in alone] == [hypothesis.tokens for hypothesis in expected]
