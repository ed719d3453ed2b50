"""Training to the metric: rewards against pycocoevalcap, samples and gradients against enumeration."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from captioner.evaluation.cider import CiderD
from captioner.evaluation.metrics import ptb_tokenize
from captioner.model.batch import CaptionBatch, Pictures
from captioner.model.decoder import Decoder, DecoderOutput, teacher_forced
from captioner.model.lstm import LSTMDecoder
from captioner.records import CaptionedImage
from captioner.sampling import sample_captions
from captioner.training.self_critical import Reward, SelfCriticalLoss, advantages
from captioner.vocabulary import END, PAD, START, UNK, Vocabulary
from tests.conftest import SMALL_DECODER

Captions = dict[str, list[list[str]]]


@pytest.fixture
def references() -> Captions:
    """COCO val2017 captions of 200 pictures, in words."""
    path = ROOT / "tests" / "fixtures" / "coco_val2017_captions.json"
    captions: dict[str, list[str]] = json.loads(path.read_text())
    return {image_id: [ptb_tokenize(text) for text in texts] for image_id, texts in captions.items()}


def test_cider_d_of_each_caption_equals_that_of_pycocoevalcap(references: Captions) -> None:
    """Captions of the picture and of others, whole, cut, doubled, and empty."""
    ids = list(references)
    captions: dict[str, list[str]] = {}
    for number, image_id in enumerate(ids):
        own, other = references[image_id][0], references[ids[number - 1]][1]
        captions[image_id] = [own, other, own[:3], own + own, [], own[:1], own[2:] + other][number % 7]
    joined = {image_id: [" ".join(words) for words in texts] for image_id, texts in references.items()}
    _, expected = Cider().compute_score(joined, {i: [" ".join(words)] for i, words in captions.items()})
    cider = CiderD(references.values())
    scores = [cider.scores([captions[image_id]], references[image_id])[0] for image_id in references]
    assert scores == pytest.approx(expected.tolist(), abs=1e-9)
    assert max(scores) > 1


def make_batch(vocabulary: Vocabulary, captions: Sequence[Sequence[str]], *, has_end: bool) -> CaptionBatch:
    """A picture named "0" with captions as they may be sampled."""
    length = max(map(len, captions)) + 2
    rows = []
    for words in captions:
        ids = [START, *map(vocabulary.words.index, words), *([END] if has_end else [])]
        rows.append(ids + [PAD] * (length - len(ids)))
    return CaptionBatch(
        ids=("0",),
        names=("0.png",),
        sources=Pictures(
            grids=torch.zeros(1, 1, 1),
            images=torch.zeros(0, 0, 0, 3, dtype=torch.uint8),
            order=torch.tensor([0]),
        ),
        tokens=torch.tensor([rows]),
        lengths=torch.tensor([[len(words) + has_end for words in captions]]),
    )


@pytest.fixture
def records() -> list[CaptionedImage]:
    texts = [("A red dog runs.", "a dog runs"), ("a cat sits", "a blue cat"), ("a dog sits",)]
    return [
        CaptionedImage(image_id=str(number), source=Path("x.png"), captions=captions, split="train")
        for number, captions in enumerate(texts)
    ]


def references_of(records: list[CaptionedImage]) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for record in records}


def test_reward_is_cider_d_with_the_end_as_a_word(
    vocabulary: Vocabulary, records: list[CaptionedImage]
) -> None:
    reward = Reward(references_of(records), vocabulary=vocabulary, bleu_weight=0.0)
    words = [[[*ptb_tokenize(text), "<end>"] for text in record.captions] for record in records]
    sampled = [["a", "red", "dog"], ["a", "dog", "runs"]]
    for has_end in (True, False):
        batch = make_batch(vocabulary, sampled, has_end=has_end)
        captions = [[*caption, *(["<end>"] if has_end else [])] for caption in sampled]
        assert reward(batch)[0].tolist() == pytest.approx(CiderD(words).scores(captions, words[0]))


def test_caption_that_is_broken_off_is_worth_less(
    vocabulary: Vocabulary, records: list[CaptionedImage]
) -> None:
    reward = Reward(references_of(records), vocabulary=vocabulary, bleu_weight=0.0)
    ended, cut = (make_batch(vocabulary, [["a", "dog", "runs"]], has_end=end) for end in (True, False))
    assert float(reward(ended)) > float(reward(cut)) > 0


def test_bleu_is_added_by_its_weight(vocabulary: Vocabulary, records: list[CaptionedImage]) -> None:
    sampled = [["a", "red", "dog", "runs"], ["a", "dog"]]
    batch = make_batch(vocabulary, sampled, has_end=True)
    plain, mixed = (
        Reward(references_of(records), vocabulary=vocabulary, bleu_weight=w)(batch) for w in (0.0, 2.0)
    )
    truths = [" ".join([*ptb_tokenize(text), "<end>"]) for text in records[0].captions]
    for place, caption in enumerate(sampled):
        text = " ".join([*caption, "<end>"])
        _, scores = Bleu(4).compute_score({0: truths}, {0: [text]}, verbose=0)
        assert float(mixed[0, place] - plain[0, place]) == pytest.approx(2 * scores[3][0], abs=1e-6)


def test_advantage_is_over_the_mean_of_the_other_samples() -> None:
    given = advantages(torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]))
    torch.testing.assert_close(given, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


class Toy:
    """A decoder of two words, all of whose captions of up to two words can be gone through."""

    MAX_WORDS = 2

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = replace(SMALL_DECODER, dropout=0.0)
        self.decoder = LSTMDecoder(config=config, annotation_dim=5, vocab_size=6).eval()
        self.annotations = torch.randn(1, 4, 5)
        with torch.no_grad():
            self.decoder.output.weight.mul_(4)

    def captions(self) -> list[tuple[int, ...]]:
        """All that there are, each with its end."""
        return [(*words, END) for length in range(3) for words in product((4, 5), repeat=length)]

    def forward(self, captions: Sequence[tuple[int, ...]]) -> tuple[DecoderOutput, torch.Tensor]:
        rows = [[START, *caption] + [PAD] * (self.MAX_WORDS + 1 - len(caption)) for caption in captions]
        tokens = torch.tensor([rows])
        return teacher_forced(
            self.decoder, self.annotations, tokens, torch.tensor([list(map(len, captions))])
        ), tokens

    def probability(self, caption: tuple[int, ...]) -> torch.Tensor:
        """That of a policy which never says <pad>, <start> or <unk>."""
        output, _ = self.forward([caption])
        chances = output.logits.exp() * torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
        chances = chances / chances.sum(dim=-1, keepdim=True)
        return torch.stack([row[token] for row, token in zip(chances, caption, strict=True)]).prod()


def test_captions_are_drawn_as_often_as_their_probability_says() -> None:
    toy, num_draws = Toy(), 20_000
    torch.manual_seed(1)
    tokens, lengths = sample_captions(
        toy.decoder, toy.annotations, num_captions=num_draws, max_words=toy.MAX_WORDS
    )
    drawn = [
        tuple(row[1 : length + 1])
        for row, length in zip(tokens[0].tolist(), lengths[0].tolist(), strict=True)
    ]
    assert not set(tokens[..., 1:][tokens[..., 1:] != PAD].tolist()) & {START, UNK}
    probabilities = {caption: float(toy.probability(caption).detach()) for caption in toy.captions()}
    for words in product((4, 5), repeat=2):  # those that are cut
        whole = float(toy.probability((*words, END)).detach())
        probabilities[words] = float(toy.probability(words).detach()) - whole
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    for caption, probability in probabilities.items():
        standard_error = (probability * (1 - probability) / num_draws) ** 0.5
        assert drawn.count(caption) / num_draws == pytest.approx(probability, abs=5 * standard_error + 1e-4)


def test_gradient_is_that_of_the_expected_reward() -> None:
    """Summed over all captions by their probability, whatever the baseline."""
    toy = Toy()
    captions = [caption for caption in toy.captions() if len(caption) < 3]
    captions += list(product((4, 5), repeat=2))  # cut after two words, ended or not
    worth = {caption: float(len(caption) + 2 * caption.count(4)) for caption in captions}
    parameters = list(toy.decoder.parameters())

    def gradients(value: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(value, parameters, materialize_grads=True, allow_unused=True))

    exact = gradients(sum((toy.probability(y) * worth[y] for y in captions), torch.zeros(())))
    loss = SelfCriticalLoss(attention_penalty=0.0)
    estimated = [torch.zeros_like(parameter) for parameter in parameters]
    for caption in captions:
        output, tokens = toy.forward([caption])
        terms = loss(output, tokens, advantages=torch.tensor([[worth[caption] - 3.0]]))
        weight = float(toy.probability(caption).detach()) * len(caption)  # the loss is a mean over words
        for total, gradient in zip(estimated, gradients(terms.total), strict=True):
            total -= weight * gradient
    for one, other in zip(estimated, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_samples_of_every_decoder_hold_what_a_batch_needs(any_decoder: Decoder[Any]) -> None:
    torch.manual_seed(0)
    tokens, lengths = sample_captions(any_decoder, torch.randn(4, 9, 10), num_captions=5, max_words=6)
    assert torch.equal(tokens[..., 0], torch.full((4, 5), START))
    for row, length in zip(tokens.flatten(0, 1).tolist(), lengths.flatten().tolist(), strict=True):
        assert PAD not in row[: length + 1]
        assert set(row[length + 1 :]) <= {PAD}
        assert row[length] == END or length == 6  # and more words than that there are not
        assert length <= 7
        assert END not in row[1:length]
