"""The text encoder: annotations depend on both sides of a word, and not on the batch."""

import pytest
import torch

from captioner.config import TextEncoderConfig
from captioner.translation.encoder import TextEncoder
from captioner.translation.sentences import Sentences

CONFIG = TextEncoderConfig(num_subwords=20, embedding_dim=6, hidden_dim=5, annotation_dim=7, dropout=0.0)


@pytest.fixture(params=[1, 2], ids=lambda num_layers: f"{num_layers} layers")
def text_encoder(request: pytest.FixtureRequest) -> TextEncoder:
    torch.manual_seed(0)
    config = TextEncoderConfig(**(vars(CONFIG) | {"num_layers": request.param}))
    return TextEncoder(config=config, vocab_size=20).eval()


def test_annotations_do_not_depend_on_the_rest_of_the_batch(text_encoder: TextEncoder) -> None:
    given = [torch.tensor(tokens) for tokens in ([5, 6, 7], [8], [9, 10, 11, 12, 13])]
    together, cell_mask = text_encoder.annotations_of(Sentences.from_tokens(given))
    assert together.shape == (3, 5, 7)
    assert cell_mask.sum(dim=1).tolist() == [3, 1, 5]
    for tokens, annotations in zip(given, together, strict=True):
        alone, is_there = text_encoder.annotations_of(Sentences.from_tokens([tokens]))
        assert is_there.all()
        torch.testing.assert_close(annotations[: len(tokens)], alone[0])


def test_annotation_depends_on_the_words_on_both_sides(text_encoder: TextEncoder) -> None:
    sentence = torch.tensor([5, 6, 7])
    for changed in (0, 2):
        other = sentence.clone()
        other[changed] = 15
        (before, after), _ = text_encoder.annotations_of(Sentences.from_tokens([sentence, other]))
        assert ((before - after).abs().amax(dim=1) > 1e-4).all()


def test_annotations_depend_on_the_order_of_the_words(text_encoder: TextEncoder) -> None:
    sentences = Sentences.from_tokens([torch.tensor([5, 6, 7]), torch.tensor([7, 6, 5])])
    (forwards, backwards), _ = text_encoder.annotations_of(sentences)
    assert (forwards - backwards.flip(0)).abs().max() > 1e-3
