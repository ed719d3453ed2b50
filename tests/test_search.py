"""The search on a mock model of four words: no network, all laws against brute force."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from captioner.config import DecodingConfig
from captioner.search import Hypothesis, beam_search
from captioner.vocabulary import END, PAD, START, UNK

WORDS = (4, 5, 6, 7)
VOCAB_SIZE, NUM_CELLS = 8, 5
Prefix = tuple[int, ...]


@dataclass
class MockState:
    """What has been written so far: for each picture its name, for each hypothesis its tokens."""

    names: list[int]
    prefixes: list[list[Prefix]]

    def select(self, pictures: np.ndarray, parents: np.ndarray) -> "MockState":
        return MockState(
            [self.names[picture] for picture in pictures],
            [[self.prefixes[p][beam] for beam in beams] for p, beams in zip(pictures, parents, strict=True)],
        )


class MockModel:
    """Gives each (picture, prefix) a random but fixed distribution and attention."""

    def __init__(self, *, end_bias: float = 0.0, seed: int = 0) -> None:
        self.end_bias, self.seed = end_bias, seed
        self.rows_per_step: list[int] = []

    def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, name, *prefix])
        logits = random.normal(size=VOCAB_SIZE) * 2
        logits[END] += self.end_bias
        log_probs = logits - np.log(np.exp(logits).sum())
        return log_probs, random.dirichlet(np.ones(NUM_CELLS))

    def step(self, tokens: np.ndarray, state: MockState) -> tuple[np.ndarray, np.ndarray, MockState]:
        prefixes = [
            [(*prefix, int(token)) for prefix, token in zip(row, row_tokens, strict=True)]
            for row, row_tokens in zip(state.prefixes, tokens, strict=True)
        ]
        self.rows_per_step.append(len(prefixes))
        found = [
            [self.look_up(name, p) for p in row] for name, row in zip(state.names, prefixes, strict=True)
        ]
        log_probs = np.array([[log_prob for log_prob, _ in row] for row in found])
        alphas = np.array([[alpha for _, alpha in row] for row in found])
        return log_probs, alphas, MockState(state.names, prefixes)

    def search(self, names: list[int], config: DecodingConfig) -> list[list[Hypothesis]]:
        state = MockState(list(names), [[() for _ in range(config.beam_size)] for _ in names])
        return beam_search(self.step, state, num_pictures=len(names), config=config)

    def log_prob(self, name: int, tokens: Prefix) -> float:
        return sum(self.look_up(name, (START, *tokens[:t]))[0][token] for t, token in enumerate(tokens))


def all_captions(max_words: int) -> list[Prefix]:
    return [(*words, END) for length in range(1, max_words + 1) for words in product(WORDS, repeat=length)]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("name", range(5))
def test_beam_wide_enough_equals_brute_force(name: int, length_penalty: float) -> None:
    model, max_words = MockModel(), 3
    captions = all_captions(max_words)
    num_candidates = len(WORDS) ** max_words * (len(WORDS) + 1)  # at the last step, where there are most
    config = DecodingConfig(beam_size=num_candidates, length_penalty=length_penalty, max_words=max_words)
    (found,) = model.search([name], config)
    assert {hypothesis.tokens for hypothesis in found} == set(captions)
    best = max(captions, key=lambda tokens: model.log_prob(name, tokens) / len(tokens) ** length_penalty)
    assert found[0].tokens == best
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(model.log_prob(name, hypothesis.tokens))


@pytest.mark.parametrize("name", range(10))
def test_beam_of_one_is_greedy(name: int) -> None:
    model, allowed = MockModel(), [END, *WORDS]
    written: Prefix = ()
    while END not in written:
        log_probs, _ = model.look_up(name, (START, *written))
        best = max(allowed if written else WORDS, key=lambda token: log_probs[token])
        if len(written) == 8 and best != END:
            break
        written = (*written, best)
    (found,) = model.search([name], DecodingConfig(beam_size=1, max_words=8))
    assert found[0].tokens == written


def reference_beam(model: MockModel, name: int, config: DecodingConfig) -> list[Prefix]:
    """The search written for one picture with lists, as one would explain it."""
    live: list[tuple[float, Prefix]] = [(0.0, ())]
    ended: list[tuple[float, Prefix]] = []
    for num_words in range(config.max_words + 1):
        candidates = sorted(
            (
                (total + model.look_up(name, (START, *tokens))[0][token], (*tokens, token))
                for total, tokens in live
                for token in ((END, *WORDS) if tokens else WORDS)
            ),
            reverse=True,
        )
        ended += [c for c in candidates[: config.beam_size] if c[1][-1] == END]
        if num_words < config.max_words:
            live = [c for c in candidates if c[1][-1] != END][: config.beam_size]
        if len(ended) >= config.beam_size:
            break
    return [
        tokens
        for _, tokens in sorted(
            ended or live, key=lambda c: c[0] / len(c[1]) ** config.length_penalty, reverse=True
        )
    ]


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("end_bias", [-2.0, 0.0, 2.0])
def test_batched_search_equals_the_plain_one_picture_by_picture(beam_size: int, end_bias: float) -> None:
    model = MockModel(end_bias=end_bias)
    config = DecodingConfig(beam_size=beam_size, max_words=6)
    names = list(range(12))
    for name, found in zip(names, model.search(names, config), strict=True):
        assert [hypothesis.tokens for hypothesis in found] == reference_beam(model, name, config)


@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_alphas_follow_their_beam_through_reordering(beam_size: int) -> None:
    model, names = MockModel(), list(range(8))
    for name, found in zip(
        names, model.search(names, DecodingConfig(beam_size=beam_size, max_words=6)), strict=True
    ):
        for hypothesis in found:
            expected = [
                model.look_up(name, (START, *hypothesis.tokens[:t]))[1] for t in range(len(hypothesis.tokens))
            ]
            np.testing.assert_array_equal(hypothesis.alphas, expected)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_best_unfinished_beam_is_given_where_none_has_ended(beam_size: int) -> None:
    model = MockModel(end_bias=-1000.0)
    (found,) = model.search([0], DecodingConfig(beam_size=beam_size, max_words=4))
    assert len(found) == beam_size
    assert not any(hypothesis.has_ended for hypothesis in found)
    assert all(len(hypothesis.tokens) == len(hypothesis.alphas) == 4 for hypothesis in found)
    assert found[0].log_prob == max(hypothesis.log_prob for hypothesis in found)


def test_caption_of_exactly_max_words_can_end() -> None:
    class TwoWords(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            log_probs[END] = 0.0 if len(prefix) == 3 else -1000.0
            return log_probs, alpha

    (found,) = TwoWords().search([0], DecodingConfig(beam_size=2, max_words=2))
    assert all(hypothesis.has_ended and len(hypothesis.tokens) == 3 for hypothesis in found)


def test_special_tokens_are_never_written() -> None:
    class Unsure(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            log_probs[[PAD, START, UNK]] = -1e-6
            return log_probs, alpha

    for found in Unsure().search(list(range(5)), DecodingConfig(beam_size=3, max_words=5)):
        assert found
        assert not {PAD, START, UNK} & {token for hypothesis in found for token in hypothesis.tokens}


def test_caption_has_at_least_one_word() -> None:
    for found in MockModel(end_bias=50.0).search(list(range(5)), DecodingConfig(beam_size=3)):
        assert {len(hypothesis.tokens) for hypothesis in found} == {2}


def test_finished_pictures_leave_the_batch() -> None:
    model = MockModel(end_bias=1.0)
    model.search(list(range(20)), DecodingConfig(beam_size=2, max_words=8))
    assert model.rows_per_step == sorted(model.rows_per_step, reverse=True)
    assert model.rows_per_step[-1] < model.rows_per_step[0]


def test_model_that_allows_nothing_gives_no_hypothesis() -> None:
    class Mute(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            return np.full_like(log_probs, -np.inf), alpha

    assert Mute().search([0], DecodingConfig(beam_size=3)) == [[]]


def test_no_pictures_give_no_captions() -> None:
    assert MockModel().search([], DecodingConfig()) == []
