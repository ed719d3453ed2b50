"""Beam search, its variants, and sampling, over any `step` callable.

Written over plain arrays: it knows neither the model nor torch. A model takes part by giving a
`StepFunction` and a `SearchState`; each picture has a number of hypotheses, which form one array axis. One
loop serves all: what differs is which extensions of the hypotheses go on, and that a `Strategy` says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from captioner.config import DecodingConfig, SamplingConfig
from captioner.vocabulary import END, PAD, START, UNK

BANNED_TOKENS = (PAD, START, UNK)
"""Tokens that no caption may hold: an <unk> tells a reader nothing."""

State = TypeVar("State", bound="SearchState")
Totals = Float[np.ndarray, "pictures beam vocab"]
Tokens = Int[np.ndarray, "pictures beam tokens"]


@runtime_checkable
class SearchState(Protocol):
    """What a model carries from step to step for its pictures and their hypotheses."""

    def select(
        self: State, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> State:
        """Keep these pictures, in each the hypotheses `parents` (of which some may occur twice)."""
        ...


@runtime_checkable
class StepFunction(Protocol[State]):
    """One decoding step: the previous tokens and the state to what may come next."""

    def __call__(
        self, tokens: Int[np.ndarray, "pictures beam"], state: State
    ) -> tuple[
        Float[np.ndarray, "pictures beam vocab"], Float[np.ndarray, "pictures beam *attention"], State
    ]:
        """Give the log-probabilities of the next token, the attention used for it, and the next state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A caption as the search found it.

    `tokens` is without <start> and with <end> if it has ended; `alphas` has the attention of each token,
    in the shape that the step function gives it, and `log_prob` is the sum over the tokens.
    """

    tokens: tuple[int, ...]
    alphas: Float[np.ndarray, "tokens *alphas"]
    log_prob: float

    @property
    def has_ended(self) -> bool:
        return self.tokens[-1] == END

    def score(self, length_penalty: float) -> float:
        """What hypotheses are ranked by: log p(y) / length**p, with the length in tokens."""
        return self.log_prob / len(self.tokens) ** length_penalty


def rank(hypotheses: Iterable[Hypothesis], length_penalty: float) -> list[Hypothesis]:
    """Sort hypotheses, best first."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score(length_penalty))


@dataclass(frozen=True)
class Candidates:
    """Extensions of the hypotheses, by group, best first: whose, by which word, and their log-probability.

    Of those among the first `Strategy.group_size` of a group that end, captions are made, and the first
    `group_size` of the others go on.
    """

    parents: Int[np.ndarray, "pictures groups candidates"]
    words: Int[np.ndarray, "pictures groups candidates"]
    log_probs: Float[np.ndarray, "pictures groups candidates"]

    @classmethod
    def joined(cls, groups: "Sequence[Candidates]") -> "Candidates":
        return cls(*(np.concatenate(arrays, axis=1) for arrays in zip(*map(_arrays, groups), strict=True)))

    def going_on(self, group_size: int) -> "Candidates":
        """The first of each group that do not end, flat: one group of all hypotheses to come."""
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
class Front:
    """Where a search stands: each hypothesis so far, and its log-probability with each next token.

    `pictures` are the places, among all that are searched, of those that are still.
    """

    totals: Totals
    tokens: Tokens
    pictures: Int[np.ndarray, " pictures"]


@runtime_checkable
class Strategy(Protocol):
    """Which extensions go on. A picture's hypotheses are `num_groups` groups of `group_size`."""

    @property
    def num_groups(self) -> int: ...

    @property
    def group_size(self) -> int: ...

    def first(self) -> Float[np.ndarray, " beam"]:
        """Log-probabilities to start from: 0 for each hypothesis that begins, -inf for the others, since
        at first all are alike."""
        ...

    def candidates(self, front: Front) -> Candidates:
        """What may come next, by group."""
        ...

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        """Whether enough captions have ended, by their numbers in each group."""
        ...

    def is_whole(self, group: int) -> bool:
        """Whether a caption of this group may be given where it was cut."""
        ...


@dataclass(frozen=True)
class Beam:
    """Beam search: the best extensions of all hypotheses. With several groups, diverse beam search.

    Groups choose in turn, each from its own hypotheses, and a word loses `diversity` for each time that
    an earlier group has chosen it at this step (Vijayakumar et al. 2018, Hamming diversity).
    """

    group_size: int
    num_groups: int = 1
    diversity: float = 0.0

    def first(self) -> Float[np.ndarray, " beam"]:
        log_probs = np.full((self.num_groups, self.group_size), -np.inf)
        log_probs[:, 0] = 0.0
        return log_probs.ravel()

    def candidates(self, front: Front) -> Candidates:
        totals = front.totals
        num_pictures, _, vocab_size = totals.shape
        times_chosen = np.zeros((num_pictures, vocab_size))
        groups = []
        for start in range(0, totals.shape[1], self.group_size):
            own = totals[:, start : start + self.group_size]
            ranking = own - self.diversity * times_chosen[:, None] if start else own
            found = best_extensions(own, ranking, self.group_size, offset=start)
            groups.append(found)
            if self.num_groups > 1:
                chosen = found.going_on(self.group_size).words[:, 0]
                np.add.at(times_chosen, (np.arange(num_pictures)[:, None], chosen), 1)
        return Candidates.joined(groups)

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        return np.all(num_ended >= self.group_size, axis=1)

    def is_whole(self, group: int) -> bool:  # noqa: ARG002
        return True


@dataclass(frozen=True)
class ConstrainedBeam:
    """Beam search for captions that hold given tokens, in any order.

    Group k has the best hypotheses that hold k of them, so that those that have one more do not compete
    with those that have not, and captions end in the last group only (Hokamp and Liu 2017, "Lexically
    Constrained Decoding", with constraints of one token).
    """

    group_size: int
    required: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        return len(self.required) + 1

    def first(self) -> Float[np.ndarray, " beam"]:
        log_probs = np.full(self.num_groups * self.group_size, -np.inf)
        log_probs[0] = 0.0
        return log_probs

    def candidates(self, front: Front) -> Candidates:
        totals, required = front.totals, np.array(self.required)
        is_missing = (front.tokens[..., None] != required).all(axis=2)  # (pictures, beam, required)
        staying, rising = totals.copy(), np.full_like(totals, -np.inf)
        values = totals[:, :, required]
        staying[:, :, required] = np.where(is_missing, -np.inf, values)
        rising[:, :, required] = np.where(is_missing, values, -np.inf)
        staying[:, : -self.group_size, END] = -np.inf
        groups = []
        for group in range(self.num_groups):
            own = slice(group * self.group_size, (group + 1) * self.group_size)
            if group == 0:
                groups.append(best_extensions(staying[:, own], staying[:, own], self.group_size, offset=0))
                continue
            below = slice(own.start - self.group_size, own.start)
            both = np.concatenate([rising[:, below], staying[:, own]], axis=1)
            groups.append(best_extensions(both, both, self.group_size, offset=below.start))
        return Candidates.joined(groups)

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        return num_ended[:, -1] >= self.group_size

    def is_whole(self, group: int) -> bool:
        return group == self.num_groups - 1


class Sampler:
    """Each hypothesis goes on by a word that is drawn at random, on its own.

    Log-probabilities are divided by the temperature; then only the `top_k` likeliest words can be drawn,
    and of these only as many of the likeliest as together have `top_p` of the probability (Holtzman et al.
    2020, nucleus sampling). The log-probabilities of captions remain the model's own.
    """

    group_size = 1

    def __init__(self, config: SamplingConfig, num_captions: int, seeds: Sequence[Sequence[int]]) -> None:
        """`seeds` has one for each picture."""
        self.config, self.num_groups = config, num_captions
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def first(self) -> Float[np.ndarray, " beam"]:
        return np.zeros(self.num_groups)

    def candidates(self, front: Front) -> Candidates:
        shape = front.totals.shape[1:]
        noise = np.stack([self._rngs[picture].gumbel(size=shape) for picture in front.pictures])
        words = self._draw(front.totals, noise)
        parents = np.broadcast_to(np.arange(self.num_groups), words.shape)
        log_probs = np.take_along_axis(front.totals, words[..., None], axis=2)[..., 0]
        return Candidates(parents[..., None], words[..., None], log_probs[..., None])

    def _draw(self, totals: Totals, noise: Totals) -> Int[np.ndarray, "pictures beam"]:
        """By Gumbel's trick: the largest of log-probabilities with Gumbel noise is a fair draw."""
        scaled = totals / self.config.temperature
        order = np.argsort(-scaled, axis=2, kind="stable")
        ranked = np.take_along_axis(scaled, order, axis=2)
        if self.config.top_k is not None:
            ranked[:, :, self.config.top_k :] = -np.inf
        if self.config.top_p < 1:
            highest = np.where(np.isfinite(ranked[:, :, :1]), ranked[:, :, :1], 0.0)
            shares = np.exp(ranked - highest)
            shares = shares / np.maximum(shares.sum(axis=2, keepdims=True), np.finfo(float).tiny)
            before = np.cumsum(shares, axis=2) - shares
            ranked = np.where(before < self.config.top_p, ranked, -np.inf)
        drawn = (ranked + noise).argmax(axis=2)
        return np.take_along_axis(order, drawn[..., None], axis=2)[..., 0]

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        return np.all(num_ended >= 1, axis=1)

    def is_whole(self, group: int) -> bool:  # noqa: ARG002
        return True


def beam_strategy(config: DecodingConfig, required: Sequence[int] = ()) -> Beam | ConstrainedBeam:
    """The search that a config describes; captions must hold the tokens `required`."""
    if required:
        return ConstrainedBeam(config.beam_size, tuple(dict.fromkeys(required)))
    size = config.beam_size // config.diverse_groups
    return Beam(size, config.diverse_groups, config.diversity)


def beam_search(
    step: StepFunction[State],
    state: State,
    *,
    num_pictures: int,
    config: DecodingConfig,
    strategy: Beam | ConstrainedBeam | None = None,
) -> list[list[Hypothesis]]:
    """Search captions for many pictures at once; a beam of 1 is greedy decoding.

    At each step a picture's hypotheses are extended by every token. Those among the best `beam_size`
    that end are set aside, and the best `beam_size` others go on. A picture is done, and leaves the
    batch, when `beam_size` hypotheses have ended. A caption has at least one word. The ranking is
    log p(y) / length**p with the length in tokens, <end> included (the length normalisation of Wu et
    al. 2016 without its constant).

    `strategy` is by default what the config describes (see `beam_strategy`). `state` holds as many
    hypotheses for each picture as that has, all of them fresh.

    Returns: for each picture its hypotheses, best first: those that ended, or where none did, those cut
        after `max_words`.
    """
    strategy = strategy or beam_strategy(config)
    return [
        rank((found for _, found in ended or cut), config.length_penalty)
        for ended, cut in _run(step, state, strategy, num_pictures=num_pictures, config=config)
    ]


def sample(
    step: StepFunction[State],
    state: State,
    *,
    seeds: Sequence[Sequence[int]],
    config: DecodingConfig,
    sampling: SamplingConfig,
    num_captions: int,
) -> list[list[Hypothesis]]:
    """Draw captions at random (see `Sampler`), `num_captions` for each picture, in the order drawn.

    Each picture has a seed of its own, so that what is drawn does not depend on its neighbours. `state`
    holds as many hypotheses for each picture, all of them fresh. Of the config the limits of length and
    repetition count. A caption that does not end is cut after `max_words`.
    """
    sampler = Sampler(sampling, num_captions, seeds)
    return [
        [drawn for _, drawn in sorted(ended + cut, key=lambda numbered: numbered[0])]
        for ended, cut in _run(step, state, sampler, num_pictures=len(seeds), config=config)
    ]


Grouped = list[tuple[int, Hypothesis]]
"""A picture's hypotheses, each with its group."""


def _run(
    step: StepFunction[State], state: State, strategy: Strategy, *, num_pictures: int, config: DecodingConfig
) -> list[tuple[Grouped, Grouped]]:
    """For each picture the hypotheses that ended, and in groups without one those cut after `max_words`."""
    num_groups, group_size = strategy.num_groups, strategy.group_size
    ended: list[Grouped] = [[] for _ in range(num_pictures)]
    cut: list[Grouped] = [[] for _ in range(num_pictures)]
    num_ended = np.zeros((num_pictures, num_groups), dtype=int)
    pictures = np.arange(num_pictures)  # those that are still searched
    log_probs = np.tile(strategy.first(), (num_pictures, 1))
    tokens = np.full((*log_probs.shape, 1), START)
    alphas: np.ndarray | None = None

    for num_words in range(config.max_words + 1):
        if not len(pictures):
            break
        next_log_probs, alpha, state = step(tokens[:, :, -1], state)
        totals = log_probs[:, :, None] + next_log_probs
        _forbid(totals, tokens, config)
        used = alpha[:, :, None] if alphas is None else np.concatenate([alphas, alpha[:, :, None]], axis=2)
        found = strategy.candidates(Front(totals, tokens, pictures))

        is_end = (found.words == END) & np.isfinite(found.log_probs)
        for row, group, place in np.argwhere(is_end[:, :, :group_size]):
            parent, total = found.parents[row, group, place], found.log_probs[row, group, place]
            caption = _hypothesis([*tokens[row, parent, 1:], END], used[row, parent], total)
            ended[pictures[row]].append((int(group), caption))
            num_ended[pictures[row], group] += 1
        if num_words == config.max_words:
            break

        chosen = found.going_on(group_size)
        parents, words, log_probs = chosen.parents[:, 0], chosen.words[:, 0], chosen.log_probs[:, 0]
        is_open = ~strategy.is_done(num_ended[pictures])
        kept = np.flatnonzero(is_open & np.isfinite(log_probs).any(axis=1))
        pictures, log_probs, parents, words = pictures[kept], log_probs[kept], parents[kept], words[kept]
        tokens = np.take_along_axis(tokens[kept], parents[:, :, None], axis=1)
        tokens = np.concatenate([tokens, words[:, :, None]], axis=2)
        alphas = used[kept[:, None], parents]
        state = state.select(kept, parents)

    if alphas is not None:
        for row, beam in np.argwhere(np.isfinite(log_probs)):
            group = int(beam) // group_size
            if strategy.is_whole(group) and not num_ended[pictures[row], group]:
                caption = _hypothesis(tokens[row, beam, 1:], alphas[row, beam], log_probs[row, beam])
                cut[pictures[row]].append((group, caption))
    return list(zip(ended, cut, strict=True))


def _forbid(totals: Totals, tokens: Tokens, config: DecodingConfig) -> None:
    """Set to -inf what may not come next."""
    num_words, longest = tokens.shape[2] - 1, config.no_repeat_ngram
    totals[:, :, BANNED_TOKENS] = -np.inf
    if num_words < config.min_words:
        totals[:, :, END] = -np.inf
    if 0 < longest <= num_words:
        # An n-gram may not come twice: its last word may not follow where its others were the last words.
        ngrams = np.lib.stride_tricks.sliding_window_view(tokens[:, :, 1:], longest, axis=2)
        is_begun = (ngrams[..., :-1] == tokens[:, :, None, num_words + 2 - longest :]).all(axis=3)
        rows, beams, places = np.nonzero(is_begun)
        totals[rows, beams, ngrams[rows, beams, places, -1]] = -np.inf


def best_extensions(totals: Totals, ranking: Totals, group_size: int, *, offset: int) -> Candidates:
    """The best 2 x group_size extensions of each picture as one group, best first by `ranking`.

    At most one extension of each hypothesis ends, so that at least `group_size` of these go on (in a
    group that takes from two, END is allowed for one of them alone). Parents are counted from `offset`.
    """
    num_pictures, _, vocab_size = totals.shape
    num_words = min(2 * group_size, vocab_size)
    words = np.argpartition(-ranking, num_words - 1, axis=2)[:, :, :num_words]  # of each hypothesis
    best = np.take_along_axis(ranking, words, axis=2).reshape(num_pictures, -1)
    order = np.argsort(-best, axis=1, kind="stable")[:, : 2 * group_size]
    parents = order // num_words
    words = np.take_along_axis(words.reshape(num_pictures, -1), order, axis=1)
    log_probs = totals[np.arange(num_pictures)[:, None], parents, words]
    return Candidates((parents + offset)[:, None], words[:, None], log_probs[:, None])


def _hypothesis(
    tokens: "list[int | np.integer] | Int[np.ndarray, ' tokens']", alphas: np.ndarray, log_prob: float
) -> Hypothesis:
    return Hypothesis(tokens=tuple(int(token) for token in tokens), alphas=alphas, log_prob=float(log_prob))
