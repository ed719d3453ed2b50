"""Decoding loop of beam search and sampling, in numpy.

A model takes part by implementing `StepModel`; each picture has several hypotheses, which form one array
axis. A `Strategy` (`captioner.decoding.strategies`) decides which extensions of the hypotheses continue. The
model passes on only the words that the strategy may choose, so that a GPU need not copy its vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from captioner.config import DecodingOptions
from captioner.decoding.step_model import StepModel, Words
from captioner.vocabulary import END, PAD, START, UNK

BANNED_TOKENS = (PAD, START, UNK)
"""Tokens that no caption may contain: an <unk> means nothing to a reader."""

Totals = Float[np.ndarray, "pictures beam words"]
Tokens = Int[np.ndarray, "pictures beam tokens"]

_NONE = -1  # no word


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A caption found by a search.

    `tokens` is without <start> and with <end> if the caption ended; `alphas` has the attention of each
    token, in the shape that the model gives it, and `log_prob` is the sum over the tokens.
    """

    tokens: tuple[int, ...]
    alphas: Float[np.ndarray, "tokens *alphas"]
    log_prob: float

    def score(self, length_penalty: float) -> float:
        """The ranking log p(y) / length**p, with the length in tokens."""
        return self.log_prob / len(self.tokens) ** length_penalty


def rank(hypotheses: Iterable[Hypothesis], length_penalty: float) -> list[Hypothesis]:
    """Sort hypotheses, best first."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score(length_penalty))


@dataclass(frozen=True)
class Candidates:
    """Extensions of the hypotheses by group, best first: parent, word and log-probability of each.

    Those among the first `Strategy.group_size` of a group that end become captions, and the first
    `group_size` of the others continue.
    """

    parents: Int[np.ndarray, "pictures groups candidates"]
    words: Int[np.ndarray, "pictures groups candidates"]
    log_probs: Float[np.ndarray, "pictures groups candidates"]

    @classmethod
    def joined(cls, groups: "Sequence[Candidates]") -> "Candidates":
        return cls(*(np.concatenate(arrays, axis=1) for arrays in zip(*map(_arrays, groups), strict=True)))

    def continuing(self, group_size: int) -> "Candidates":
        """The first of each group that do not end, as one group of all hypotheses of the next step."""
        log_probs = np.where(self.words == END, -np.inf, self.log_probs)
        first = np.argsort(np.isneginf(log_probs), axis=2, kind="stable")[:, :, :group_size]
        return Candidates(
            *(
                np.take_along_axis(array, first, axis=2).reshape(len(array), 1, -1)
                for array in (self.parents, self.words, log_probs)
            )
        )


def _arrays(candidates: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return candidates.parents, candidates.words, candidates.log_probs


@dataclass(frozen=True)
class SearchStep:
    """Input of a strategy: the hypotheses so far, the words that may come next, and the log-probabilities of
    the hypotheses with each of them. The strategy's required words are the last ones.

    `pictures` are the indices, among all pictures, of those that are still searched.
    """

    words: Words
    totals: Totals
    tokens: Tokens
    pictures: Int[np.ndarray, " pictures"]


@runtime_checkable
class Strategy(Protocol):
    """Decides which extensions continue. A picture has `num_groups` groups of `group_size` hypotheses."""

    @property
    def num_groups(self) -> int: ...

    @property
    def group_size(self) -> int: ...

    @property
    def num_best(self) -> int | None:
        """How many of the likeliest permitted words of a hypothesis it may choose from; None for all."""
        ...

    @property
    def required(self) -> tuple[int, ...]:
        """Words that it may choose although they are unlikely."""
        ...

    def first(self) -> Float[np.ndarray, " beam"]:
        """Initial log-probabilities: 0 for each hypothesis that starts, -inf for the others, since at
        first all are alike."""
        ...

    def candidates(self, step: SearchStep) -> Candidates:
        """What may come next, by group."""
        ...

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        """Whether enough captions have ended, given their numbers in each group."""
        ...

    def allows_truncated(self, group: int) -> bool:
        """Whether a caption of this group may be returned although it was cut."""
        ...


Grouped = list[tuple[int, Hypothesis]]
"""A picture's hypotheses, each with its group."""


def search(
    model: StepModel[Any], annotations: Any, strategy: Strategy, options: DecodingOptions
) -> list[tuple[Grouped, Grouped]]:
    """Decode captions of many pictures at once.

    At each step a picture's hypotheses are extended by every token, and the strategy picks among the
    extensions. A picture leaves the batch when the strategy is done with it. Of the options, the limits on
    length and repetition apply; a caption has at least one word.

    Returns: for each picture the hypotheses that ended, and in groups without one those cut after
        `max_words`.
    """
    num_pictures, num_groups, group_size = len(annotations), strategy.num_groups, strategy.group_size
    state = model.start(annotations, 1)  # at first all hypotheses are alike
    ended: list[Grouped] = [[] for _ in range(num_pictures)]
    cut: list[Grouped] = [[] for _ in range(num_pictures)]
    num_ended = np.zeros((num_pictures, num_groups), dtype=int)
    pictures = np.arange(num_pictures)  # those that are still searched
    log_probs = np.tile(strategy.first(), (num_pictures, 1))
    tokens = np.full((*log_probs.shape, 1), START)
    attention: list[np.ndarray] = []  # of each step, a row for each hypothesis
    rows = np.zeros((*log_probs.shape, 0), dtype=int)  # of a hypothesis in each of them

    for num_words in range(options.max_words + 1):
        if not len(pictures):
            break
        read = tokens if num_words else tokens[:, :1]
        words, next_log_probs, alphas, state = _step(model, read, state, strategy, options)
        attention.append(alphas.reshape(-1, *alphas.shape[2:]))
        row = np.arange(len(attention[-1])).reshape(alphas.shape[:2])
        if not num_words:
            words, next_log_probs, row = (
                np.repeat(array, num_groups * group_size, axis=1) for array in (words, next_log_probs, row)
            )
        totals = log_probs[:, :, None] + next_log_probs
        used = np.concatenate([rows, row[:, :, None]], axis=2)
        found = strategy.candidates(SearchStep(words, totals, tokens, pictures))

        is_end = (found.words == END) & np.isfinite(found.log_probs)
        for at, group, index in np.argwhere(is_end[:, :, :group_size]):
            parent, total = found.parents[at, group, index], found.log_probs[at, group, index]
            caption = _hypothesis([*tokens[at, parent, 1:], END], attention, used[at, parent], total)
            ended[pictures[at]].append((int(group), caption))
            num_ended[pictures[at], group] += 1
        if num_words == options.max_words:
            break

        chosen = found.continuing(group_size)
        parents, words, log_probs = chosen.parents[:, 0], chosen.words[:, 0], chosen.log_probs[:, 0]
        is_open = ~strategy.is_done(num_ended[pictures])
        kept = np.flatnonzero(is_open & np.isfinite(log_probs).any(axis=1))
        pictures, log_probs, parents, words = pictures[kept], log_probs[kept], parents[kept], words[kept]
        tokens = np.take_along_axis(tokens[kept], parents[:, :, None], axis=1)
        tokens = np.concatenate([tokens, words[:, :, None]], axis=2)
        rows = np.take_along_axis(used[kept], parents[:, :, None], axis=1)
        state = state.select(kept, parents if num_words else np.zeros_like(parents))

    for at, beam in np.argwhere(np.isfinite(log_probs)):
        group = int(beam) // group_size
        if strategy.allows_truncated(group) and not num_ended[pictures[at], group]:
            caption = _hypothesis(tokens[at, beam, 1:], attention, rows[at, beam], log_probs[at, beam])
            cut[pictures[at]].append((group, caption))
    return list(zip(ended, cut, strict=True))


def _step(
    model: StepModel[Any], tokens: Tokens, state: Any, strategy: Strategy, options: DecodingOptions
) -> tuple[Words, Totals, Float[np.ndarray, "pictures beam *attention"], Any]:
    """The words that the strategy may choose from, their log-probabilities, the attention and the state."""
    forbidden = _forbidden(tokens, options)
    num_best = strategy.num_best
    if num_best is not None:  # and so many that these may all be forbidden
        num_best += int((forbidden != _NONE).sum(axis=2).max())
    asked = np.broadcast_to(
        np.array(strategy.required, dtype=int), (*tokens.shape[:2], len(strategy.required))
    )
    result = model.step(tokens[:, :, -1], state, num_best=num_best, asked=asked)
    words = np.concatenate([result.words, asked], axis=2)
    log_probs = np.concatenate([result.log_probs, result.asked], axis=2)
    is_forbidden = (words[..., None] == forbidden[:, :, None]).any(axis=3)
    return words, np.where(is_forbidden, -np.inf, log_probs), result.alphas, result.state


def _forbidden(tokens: Tokens, options: DecodingOptions) -> Int[np.ndarray, "pictures beam forbidden"]:
    """The words that may not come next."""
    num_words, longest = tokens.shape[2] - 1, options.no_repeat_ngram
    always = (*BANNED_TOKENS, END) if num_words < options.min_words else BANNED_TOKENS
    forbidden = np.broadcast_to(np.array(always), (*tokens.shape[:2], len(always)))
    if not 0 < longest <= num_words:
        return forbidden
    # An n-gram may not come twice: its last word may not follow its other words again.
    ngrams = np.lib.stride_tricks.sliding_window_view(tokens[:, :, 1:], longest, axis=2)
    is_begun = (ngrams[..., :-1] == tokens[:, :, None, num_words + 2 - longest :]).all(axis=3)
    return np.concatenate([forbidden, np.where(is_begun, ngrams[..., -1], _NONE)], axis=2)


def _hypothesis(
    tokens: "list[int | np.integer] | Int[np.ndarray, ' tokens']",
    attention: Sequence[np.ndarray],
    rows: Int[np.ndarray, " steps"],
    log_prob: float,
) -> Hypothesis:
    alphas = np.stack([attention[step][row] for step, row in enumerate(rows)])
    return Hypothesis(tokens=tuple(int(token) for token in tokens), alphas=alphas, log_prob=float(log_prob))
