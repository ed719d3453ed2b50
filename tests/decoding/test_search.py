"""The search on a mock model of four words: no network, all laws against brute force."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from captioner.config import DecodingOptions
from captioner.decoding.generate import generate_captions
from captioner.decoding.search import Hypothesis
from captioner.decoding.step_model import StepResult
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

    def step(
        self, tokens: np.ndarray, state: MockState, *, num_best: int | None, asked: np.ndarray
    ) -> StepResult[MockState]:
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
        of_asked = np.take_along_axis(log_probs, asked, axis=2)
        words = np.broadcast_to(np.arange(log_probs.shape[2]), log_probs.shape)
        if num_best is not None:
            words = np.argsort(-log_probs, axis=2)[:, :, :num_best]
            log_probs = np.take_along_axis(log_probs, words, axis=2)
        return StepResult(
            words=words,
            log_probs=log_probs,
            asked=of_asked,
            alphas=alphas,
            state=MockState(state.names, prefixes),
        )

    def start(self, annotations: list[int], num_hypotheses: int) -> MockState:
        """The annotations of a picture are its name."""
        return MockState(list(annotations), [[() for _ in range(num_hypotheses)] for _ in annotations])

    def search(
        self, names: list[int], config: DecodingOptions, required: Prefix = ()
    ) -> list[list[Hypothesis]]:
        return generate_captions(self, names, config, required=required)

    def draw(self, names: list[int], config: DecodingOptions) -> list[list[Hypothesis]]:
        return generate_captions(self, names, config, numbers=names)

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
    config = DecodingOptions(beam_size=num_candidates, length_penalty=length_penalty, max_words=max_words)
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
    (found,) = model.search([name], DecodingOptions(beam_size=1, max_words=8))
    assert found[0].tokens == written


def reference_beam(model: MockModel, name: int, config: DecodingOptions) -> list[Prefix]:
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
    config = DecodingOptions(beam_size=beam_size, max_words=6)
    names = list(range(12))
    for name, found in zip(names, model.search(names, config), strict=True):
        assert [hypothesis.tokens for hypothesis in found] == reference_beam(model, name, config)


@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_alphas_follow_their_beam_through_reordering(beam_size: int) -> None:
    model, names = MockModel(), list(range(8))
    for name, found in zip(
        names, model.search(names, DecodingOptions(beam_size=beam_size, max_words=6)), strict=True
    ):
        for hypothesis in found:
            expected = [
                model.look_up(name, (START, *hypothesis.tokens[:t]))[1] for t in range(len(hypothesis.tokens))
            ]
            np.testing.assert_array_equal(hypothesis.alphas, expected)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_best_unfinished_beam_is_given_where_none_has_ended(beam_size: int) -> None:
    model = MockModel(end_bias=-1000.0)
    (found,) = model.search([0], DecodingOptions(beam_size=beam_size, max_words=4))
    assert len(found) == beam_size
    assert not any(hypothesis.tokens[-1] == END for hypothesis in found)
    assert all(len(hypothesis.tokens) == len(hypothesis.alphas) == 4 for hypothesis in found)
    assert found[0].log_prob == max(hypothesis.log_prob for hypothesis in found)


def test_caption_of_exactly_max_words_can_end() -> None:
    class TwoWords(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            log_probs[END] = 0.0 if len(prefix) == 3 else -1000.0
            return log_probs, alpha

    (found,) = TwoWords().search([0], DecodingOptions(beam_size=2, max_words=2))
    assert all(hypothesis.tokens[-1] == END and len(hypothesis.tokens) == 3 for hypothesis in found)


def test_special_tokens_are_never_written() -> None:
    class Unsure(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            log_probs[[PAD, START, UNK]] = -1e-6
            return log_probs, alpha

    for found in Unsure().search(list(range(5)), DecodingOptions(beam_size=3, max_words=5)):
        assert found
        assert not {PAD, START, UNK} & {token for hypothesis in found for token in hypothesis.tokens}


def test_caption_has_at_least_one_word() -> None:
    for found in MockModel(end_bias=50.0).search(list(range(5)), DecodingOptions(beam_size=3)):
        assert {len(hypothesis.tokens) for hypothesis in found} == {2}


def test_finished_pictures_leave_the_batch() -> None:
    model = MockModel(end_bias=1.0)
    model.search(list(range(20)), DecodingOptions(beam_size=2, max_words=8))
    assert model.rows_per_step == sorted(model.rows_per_step, reverse=True)
    assert model.rows_per_step[-1] < model.rows_per_step[0]


def test_model_that_allows_nothing_gives_no_hypothesis() -> None:
    class Mute(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            return np.full_like(log_probs, -np.inf), alpha

    assert Mute().search([0], DecodingOptions(beam_size=3)) == [[]]


def test_no_pictures_give_no_captions() -> None:
    assert MockModel().search([], DecodingOptions()) == []


def best_by_brute_force(model: MockModel, name: int, captions: list[Prefix]) -> Prefix:
    return max(captions, key=lambda tokens: model.log_prob(name, tokens) / len(tokens))


WIDE = DecodingOptions(beam_size=len(WORDS) ** 3 * (len(WORDS) + 1), max_words=3)


@pytest.mark.parametrize("required", [(5,), (4, 7), (6, 5, 4), (6, 6)])
@pytest.mark.parametrize("name", range(3))
def test_required_words_are_there_and_the_best_such_caption_is_found(name: int, required: Prefix) -> None:
    model = MockModel(end_bias=3.0)
    fitting = [tokens for tokens in all_captions(3) if set(required) <= set(tokens)]
    (found,) = model.search([name], WIDE, required)
    assert {hypothesis.tokens for hypothesis in found} == set(fitting)
    assert found[0].tokens == best_by_brute_force(model, name, fitting)
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(model.log_prob(name, hypothesis.tokens))


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_required_words_are_there_in_a_narrow_beam_and_where_captions_are_cut(beam_size: int) -> None:
    config = DecodingOptions(beam_size=beam_size, max_words=4)
    for end_bias in (3.0, -1000.0):
        for found in MockModel(end_bias=end_bias).search(list(range(10)), config, (4, 6)):
            assert found
            assert all({4, 6} <= set(hypothesis.tokens) for hypothesis in found)
            assert all((hypothesis.tokens[-1] == END) == (end_bias > 0) for hypothesis in found)


@pytest.mark.parametrize("min_words", [1, 2, 3])
def test_no_caption_ends_before_min_words(min_words: int) -> None:
    model = MockModel(end_bias=2.0)
    config = replace(WIDE, min_words=min_words)
    fitting = [tokens for tokens in all_captions(3) if len(tokens) > min_words]
    (found,) = model.search([0], config)
    assert {hypothesis.tokens for hypothesis in found} == set(fitting)


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_no_run_of_words_comes_twice(longest: int) -> None:
    """Of all captions of up to four words of which two differ, those are left that repeat no n-gram."""

    def repeats(words: Prefix) -> bool:
        runs = [words[start : start + longest] for start in range(len(words) - longest + 1)]
        return len(set(runs)) < len(runs)

    class TwoWords(MockModel):
        def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
            log_probs, alpha = super().look_up(name, prefix)
            log_probs[[6, 7]] = -np.inf
            return log_probs, alpha

    every = [(*words, END) for n in range(1, 6) for words in product((4, 5), repeat=n)]
    config = DecodingOptions(beam_size=200, max_words=5, no_repeat_ngram=longest)
    (found,) = TwoWords().search([0], config)
    assert {hypothesis.tokens for hypothesis in found} == {c for c in every if not repeats(c[:-1])}


def reference_diverse_beam(model: MockModel, name: int, config: DecodingOptions) -> set[Prefix]:
    """Diverse beam search for one picture with lists: groups choose in turn, and pay for words chosen."""
    size = config.beam_size // config.diverse_groups
    live: list[list[tuple[float, Prefix]]] = [[(0.0, ())] for _ in range(config.diverse_groups)]
    ended: list[list[Prefix]] = [[] for _ in live]
    for num_words in range(config.max_words + 1):
        chosen: list[int] = []
        for group, hypotheses in enumerate(live):
            candidates = sorted(
                (
                    (total - config.diversity * chosen.count(token), total, (*tokens, token))
                    for total_before, tokens in hypotheses
                    for token in ((END, *WORDS) if tokens else WORDS)
                    for total in (total_before + model.look_up(name, (START, *tokens))[0][token],)
                ),
                reverse=True,
            )
            ended[group] += [tokens for _, _, tokens in candidates[:size] if tokens[-1] == END]
            continuing = [(total, tokens) for _, total, tokens in candidates if tokens[-1] != END][:size]
            chosen += [tokens[-1] for _, tokens in continuing]
            live[group] = continuing
        if num_words == config.max_words or all(len(group) >= size for group in ended):
            break
    return {tokens for group in ended for tokens in group}


@pytest.mark.parametrize(("beam_size", "groups"), [(2, 2), (4, 2), (6, 3), (6, 1)])
@pytest.mark.parametrize("diversity", [0.0, 0.5, 5.0])
def test_diverse_search_equals_the_plain_one_group_by_group(
    beam_size: int, groups: int, diversity: float
) -> None:
    model = MockModel(end_bias=1.0)
    if groups == 1:
        diversity = 0.5  # without groups it has no effect, and another value is refused
    config = DecodingOptions(beam_size=beam_size, max_words=5, diverse_groups=groups, diversity=diversity)
    names = list(range(10))
    for name, found in zip(names, model.search(names, config), strict=True):
        assert {hypothesis.tokens for hypothesis in found} == reference_diverse_beam(model, name, config)


@pytest.mark.parametrize(
    ("beam", "captions", "groups", "width"),
    [(3, 1, 1, 3), (3, 5, 1, 5), (5, 4, 2, 6), (3, 1, 5, 5), (5, 1, 5, 5), (4, 4, 3, 6)],
)
def test_beam_is_widened_to_the_captions_and_to_whole_groups(
    beam: int, captions: int, groups: int, width: int
) -> None:
    options = DecodingOptions(beam_size=beam, num_captions=captions, diverse_groups=groups, max_words=4)
    assert options.search_width == width
    (found,) = MockModel(end_bias=3.0).search([0], options)
    assert len(found) >= captions


def test_captions_that_come_again_are_last() -> None:
    """Groups that hardly avoid one another find the same."""
    config = DecodingOptions(beam_size=6, num_captions=6, max_words=5, diverse_groups=3, diversity=0.01)
    for found in MockModel(end_bias=1.0).search(list(range(10)), config):
        tokens = [hypothesis.tokens for hypothesis in found]
        distinct = len(set(tokens))
        assert distinct < len(tokens)
        assert len(set(tokens[:distinct])) == distinct
        scores = [hypothesis.score(config.length_penalty) for hypothesis in found]
        assert scores[:distinct] == sorted(scores[:distinct], reverse=True)


def test_diverse_captions_begin_differently_where_that_is_dear() -> None:
    config = DecodingOptions(beam_size=4, max_words=5, diverse_groups=4, diversity=100.0)
    for found in MockModel(end_bias=50.0).search(list(range(8)), config):
        assert {hypothesis.tokens for hypothesis in found} == {(word, END) for word in WORDS}


@pytest.mark.parametrize(
    "sampling",
    [
        DecodingOptions(sample=True),
        *(
            pytest.param(DecodingOptions(sample=True, **change), marks=pytest.mark.long)
            for change in ({"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6})
        ),
        DecodingOptions(sample=True, temperature=2.0, top_k=3, top_p=0.8),
    ],
    ids=str,
)
def test_captions_are_drawn_as_often_as_the_model_says(sampling: DecodingOptions) -> None:
    """20,000 captions of up to two words: frequencies against probabilities by enumeration."""
    model, num_captions = MockModel(end_bias=1.0), 1_000
    rounds = 20

    def chances(prefix: Prefix) -> dict[int, float]:
        log_probs = model.look_up(0, (START, *prefix))[0] / sampling.temperature
        likeliest = sorted((END, *WORDS) if prefix else WORDS, key=lambda token: -log_probs[token])
        likeliest = likeliest[: sampling.top_k]
        shares = np.exp(log_probs[likeliest]) / np.exp(log_probs[likeliest]).sum()
        kept = int((np.cumsum(shares) - shares < sampling.top_p).sum())
        return dict(zip(likeliest, shares[:kept] / shares[:kept].sum(), strict=False))

    expected: Counter[Prefix] = Counter()
    for first, p in chances(()).items():
        for second, q in chances((first,)).items():
            if second == END:
                expected[first, END] += p * q
                continue
            after = chances((first, second)).get(END, 0.0)
            expected[first, second, END] += p * q * after
            expected[first, second] += p * q * (1 - after)  # cut after two words
    drawn = []
    for seed in range(rounds):
        options = replace(sampling, max_words=2, num_captions=num_captions, seed=seed)
        drawn += model.draw([0], options)[0]
    num_captions *= rounds
    counts = Counter(hypothesis.tokens for hypothesis in drawn)
    assert len(drawn) == num_captions
    assert counts.keys() <= {tokens for tokens, chance in expected.items() if chance > 0}
    for tokens, chance in expected.items():
        spread = 5 * np.sqrt(chance * (1 - chance) * num_captions) + 3  # of the rarest, a few
        assert abs(counts[tokens] - chance * num_captions) <= spread
    for hypothesis in drawn[:50]:
        assert hypothesis.log_prob == pytest.approx(model.log_prob(0, hypothesis.tokens))
        assert len(hypothesis.alphas) == len(hypothesis.tokens)


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_neighbours() -> None:
    model = MockModel(end_bias=1.0)

    def tokens(names: list[int], seed: int) -> list[list[Prefix]]:
        drawn = model.draw(names, DecodingOptions(max_words=6, num_captions=3, sample=True, seed=seed))
        return [[hypothesis.tokens for hypothesis in captions] for captions in drawn]

    together = tokens([3, 1, 4, 0], 7)
    assert together == tokens([3, 1, 4, 0], 7)
    assert together[2:3] == tokens([4], 7)
    assert together != tokens([3, 1, 4, 0], 8)


def test_drawing_from_one_word_is_greedy() -> None:
    model, config = MockModel(), DecodingOptions(beam_size=1, max_words=6)
    names = list(range(8))
    drawn = model.draw(names, replace(config, sample=True, top_k=1))
    found = model.search(names, config)
    assert [d[0].tokens for d in drawn] == [f[0].tokens for f in found]


class LargeVocabulary(MockModel):
    """Has so many words that a search sees few of them; or, `generous`, gives all of them, best first."""

    def __init__(self, *, generous: bool) -> None:
        super().__init__(end_bias=2.0)
        self.generous = generous
        self.most_given = 0

    def look_up(self, name: int, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, name, *prefix[-2:], len(prefix)])
        logits = random.normal(size=60) * 2
        logits[[PAD, START, UNK]] += 3  # forbidden words are among the likeliest
        logits[END] += self.end_bias
        return logits - np.log(np.exp(logits).sum()), random.dirichlet(np.ones(NUM_CELLS))

    def step(
        self, tokens: np.ndarray, state: MockState, *, num_best: int | None, asked: np.ndarray
    ) -> StepResult[MockState]:
        assert num_best is not None
        result = super().step(tokens, state, num_best=60 if self.generous else num_best, asked=asked)
        self.most_given = max(self.most_given, result.words.shape[2])
        return result


@pytest.mark.parametrize(
    ("options", "required", "most"),
    [
        ({"beam_size": 3}, (), 2 * 3 + 4),
        ({"beam_size": 3, "min_words": 4}, (), 2 * 3 + 4),
        ({"beam_size": 3, "no_repeat_ngram": 1}, (), 2 * 3 + 4 + 6),
        ({"beam_size": 3, "no_repeat_ngram": 2}, (), 2 * 3 + 4 + 5),
        ({"beam_size": 6, "diverse_groups": 3, "diversity": 1.0}, (), 4 * 2 + 4),
        ({"beam_size": 3, "no_repeat_ngram": 2}, (7, 40), 2 * 3 + 3 + 4 + 5),
    ],
)
def test_few_words_of_each_hypothesis_suffice(options: dict[str, Any], required: Prefix, most: int) -> None:
    """The search is that on the whole vocabulary, though it looks at no more than `most` words of 60."""
    config = DecodingOptions(max_words=7, **options)
    frugal, generous = LargeVocabulary(generous=False), LargeVocabulary(generous=True)
    names = list(range(20))
    for few, all_ in zip(
        frugal.search(names, config, required), generous.search(names, config, required), strict=True
    ):
        assert [(one.tokens, one.log_prob) for one in few] == [(one.tokens, one.log_prob) for one in all_]
    assert frugal.most_given <= most
    assert generous.most_given == 60
