"""Self-critical training: rewards against pycocoevalcap, samples and gradients against enumeration."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocoevalcap.cider.cider import Cider

from captioner.evaluation.cider import CiderD
from captioner.evaluation.metrics import ptb_tokenize
from captioner.model.batch import CaptionBatch, Pictures
from captioner.model.decoder import Decoder, DecoderOutput
from captioner.model.lstm import LSTMDecoder
from captioner.records import CaptionedImage
from captioner.training.self_critical import Reward, SelfCriticalLoss, advantages, sample_captions
from captioner.vocabulary import END, PAD, START, UNK, Vocabulary
from tests.conftest import ROOT, SMALL_DECODER

Captions = dict[str, list[list[str]]]


@pytest.fixture
def references() -> Captions:
    """COCO val2017 captions of 200 pictures, in words."""
    path = ROOT / "tests" / "fixtures" / "coco_val2017_captions.json"
    captions: dict[str, list[str]] = json.loads(path.read_text())
    return {image_id: [ptb_tokenize(text) for text in texts] for image_id, texts in captions.items()}


def test_cider_d_of_each_caption_equals_that_of_pycocoevalcap(references: Captions) -> None:
    """Captions of the picture and of others, whole, truncated, doubled, and empty."""
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
            features=torch.zeros(1, 1, 1),
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
    reward = Reward(references_of(records), vocabulary=vocabulary)
    words = [[[*ptb_tokenize(text), "<end>"] for text in record.captions] for record in records]
    sampled = [["a", "red", "dog"], ["a", "dog", "runs"]]
    for has_end in (True, False):
        batch = make_batch(vocabulary, sampled, has_end=has_end)
        captions = [[*caption, *(["<end>"] if has_end else [])] for caption in sampled]
        assert reward(batch)[0].tolist() == pytest.approx(CiderD(words).scores(captions, words[0]))


def test_truncated_caption_is_worth_less_than_a_complete_one(
    vocabulary: Vocabulary, records: list[CaptionedImage]
) -> None:
    reward = Reward(references_of(records), vocabulary=vocabulary)
    complete, truncated = (
        make_batch(vocabulary, [["a", "dog", "runs"]], has_end=has_end) for has_end in (True, False)
    )
    assert float(reward(complete)) > float(reward(truncated)) > 0


def test_reward_uses_the_document_frequencies_of_the_pictures_own_data_set(
    vocabulary: Vocabulary, records: list[CaptionedImage]
) -> None:
    references = references_of(records)
    dataset_of = {"0": "one", "1": "one", "2": "another"}
    together = Reward(references, vocabulary=vocabulary, dataset_of=dataset_of)
    alone = Reward({name: references[name] for name in ("0", "1")}, vocabulary=vocabulary)
    pooled = Reward(references, vocabulary=vocabulary)
    batch = make_batch(vocabulary, [["a", "red", "dog"], ["a", "dog", "runs"]], has_end=True)
    assert torch.equal(together(batch), alone(batch))
    assert not torch.equal(together(batch), pooled(batch))


def test_object_that_is_not_there_costs_its_penalty_each_time_it_is_named(
    vocabulary: Vocabulary, records: list[CaptionedImage]
) -> None:
    """Picture 0 has captions of a dog. A cat is annotated in some cases, and in others nothing is known."""
    sampled = [["a", "dog", "runs"], ["a", "cat"], ["a", "cat", "a", "dog", "a", "cat"], ["a", "red"]]
    batch = make_batch(vocabulary, sampled, has_end=True)
    plain = Reward(references_of(records), vocabulary=vocabulary)(batch)

    def lost(objects: dict[str, set[str]]) -> list[float]:
        given = Reward(references_of(records), vocabulary=vocabulary, objects=objects, object_penalty=0.3)
        return (plain - given(batch))[0].tolist()

    assert lost({"0": set()}) == pytest.approx([0, 0.3, 0.6, 0], abs=1e-6)
    assert lost({"0": {"bus"}}) == pytest.approx([0, 0.3, 0.6, 0], abs=1e-6)
    assert lost({"0": {"cat"}}) == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert lost({"1": set()}) == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_advantage_is_the_reward_minus_the_mean_of_the_other_samples() -> None:
    given = advantages(torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]))
    torch.testing.assert_close(given, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


class Toy:
    """A decoder of two words, whose captions of up to two words can all be enumerated."""

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

    def forward(self, *pictures: Sequence[tuple[int, ...]]) -> tuple[DecoderOutput, CaptionBatch]:
        """Teacher forcing of the captions of pictures that look alike."""
        tokens = torch.tensor([[self._row(caption) for caption in captions] for captions in pictures])
        lengths = torch.tensor([list(map(len, captions)) for captions in pictures])
        names = tuple(str(number) for number in range(len(pictures)))
        batch = CaptionBatch(ids=names, names=names, sources=None, tokens=tokens, lengths=lengths)
        return self.decoder(self.annotations.expand(len(pictures), -1, -1), tokens, lengths), batch

    def _row(self, caption: tuple[int, ...]) -> list[int]:
        return [START, *caption] + [PAD] * (self.MAX_WORDS + 1 - len(caption))

    def probability(self, caption: tuple[int, ...]) -> torch.Tensor:
        """That of a policy which never writes <pad>, <start> or <unk>."""
        output, _ = self.forward([caption])
        chances = output.logits.exp() * torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
        chances = chances / chances.sum(dim=-1, keepdim=True)
        return torch.stack([row[token] for row, token in zip(chances, caption, strict=True)]).prod()


def test_captions_are_sampled_as_often_as_their_probability_says() -> None:
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
    for words in product((4, 5), repeat=2):  # those that are truncated
        whole = float(toy.probability((*words, END)).detach())
        probabilities[words] = float(toy.probability(words).detach()) - whole
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    for caption, probability in probabilities.items():
        standard_error = (probability * (1 - probability) / num_draws) ** 0.5
        assert drawn.count(caption) / num_draws == pytest.approx(probability, abs=5 * standard_error + 1e-4)


class Worth(Reward):
    """An arbitrary reward: a caption's length, and more for one of the words."""

    def __init__(self) -> None:
        pass

    def __call__(self, batch: CaptionBatch) -> torch.Tensor:
        return batch.lengths + 2.0 * (batch.tokens == 4).sum(dim=2)


def test_expected_gradient_is_that_of_the_expected_reward() -> None:
    """Summed over all pairs of captions by their probability; each caption is the other's baseline."""
    toy = Toy()
    captions = [caption for caption in toy.captions() if len(caption) < 3]
    captions += list(product((4, 5), repeat=2))  # cut after two words, whether they had ended or not
    worth = {caption: float(len(caption) + 2 * caption.count(4)) for caption in captions}
    parameters = list(toy.decoder.parameters())

    def gradients(value: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(value, parameters, materialize_grads=True, allow_unused=True))

    exact = gradients(sum((toy.probability(y) * worth[y] for y in captions), torch.zeros(())))
    loss = SelfCriticalLoss(attention_penalty=0.0, reward=Worth())
    probability = {caption: float(toy.probability(caption).detach()) for caption in captions}
    estimated = [torch.zeros_like(parameter) for parameter in parameters]
    for pair in product(captions, repeat=2):
        output, batch = toy.forward(pair)
        num_words = sum(map(len, pair))  # the loss is a mean over words, of both captions
        weight = probability[pair[0]] * probability[pair[1]] * num_words / len(pair)
        for total, gradient in zip(estimated, gradients(loss(output, batch)["total"]), strict=True):
            total -= weight * gradient
    for one, other in zip(estimated, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_samples_of_every_decoder_are_padded_and_ended_as_a_batch_requires(any_decoder: Decoder[Any]) -> None:
    torch.manual_seed(0)
    tokens, lengths = sample_captions(any_decoder, torch.randn(4, 9, 10), num_captions=5, max_words=6)
    assert torch.equal(tokens[..., 0], torch.full((4, 5), START))
    for row, length in zip(tokens.flatten(0, 1).tolist(), lengths.flatten().tolist(), strict=True):
        assert PAD not in row[: length + 1]
        assert set(row[length + 1 :]) <= {PAD}
        assert row[length] == END or length == 6  # it was cut there
        assert length <= 7
        assert END not in row[1:length]
