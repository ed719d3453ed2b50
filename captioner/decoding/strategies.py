"""Strategies of the decoding loop: beam search, constrained beam search and sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from captioner.config import DecodingOptions
from captioner.decoding.search import Candidates, SearchStep, Totals
from captioner.vocabulary import END


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

    def candidates(self, step: SearchStep) -> Candidates:
        totals = step.totals
        num_pictures, _, vocab_size = totals.shape
        times_chosen = np.zeros((num_pictures, vocab_size))
        groups = []
        for start in range(0, totals.shape[1], self.group_size):
            own = totals[:, start : start + self.group_size]
            ranking = own - self.diversity * times_chosen[:, None] if start else own
            found = best_extensions(own, ranking, self.group_size, offset=start)
            groups.append(found)
            if self.num_groups > 1:
                chosen = found.continuing(self.group_size).words[:, 0]
                np.add.at(times_chosen, (np.arange(num_pictures)[:, None], chosen), 1)
        return Candidates.joined(groups)

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        return np.all(num_ended >= self.group_size, axis=1)

    def allows_truncated(self, group: int) -> bool:  # noqa: ARG002
        return True


@dataclass(frozen=True)
class ConstrainedBeam:
    """Beam search for captions that contain given tokens, in any order.

    Group k has the best hypotheses that contain k of them, so that hypotheses with more of them do not
    compete with those with fewer, and captions end in the last group only (Hokamp and Liu 2017, "Lexically
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

    def candidates(self, step: SearchStep) -> Candidates:
        totals, required = step.totals, np.array(self.required)
        is_missing = (step.tokens[..., None] != required).all(axis=2)  # (pictures, beam, required)
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

    def allows_truncated(self, group: int) -> bool:
        return group == self.num_groups - 1


class Sampler:
    """Each hypothesis continues, independently of the others, with a word drawn at random.

    Log-probabilities are divided by the temperature; then only the `top_k` likeliest words can be drawn,
    and of these only as many of the likeliest as together have `top_p` of the probability (Holtzman et al.
    2020, nucleus sampling). The log-probabilities of captions remain the model's own.
    """

    group_size = 1

    def __init__(self, options: DecodingOptions, seeds: Sequence[Sequence[int]]) -> None:
        """`seeds` has one per picture, so that its captions do not depend on its neighbours."""
        self.options, self.num_groups = options, options.num_captions
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def first(self) -> Float[np.ndarray, " beam"]:
        return np.zeros(self.num_groups)

    def candidates(self, step: SearchStep) -> Candidates:
        shape = step.totals.shape[1:]
        noise = np.stack([self._rngs[picture].gumbel(size=shape) for picture in step.pictures])
        words = self._sample(step.totals, noise)
        parents = np.broadcast_to(np.arange(self.num_groups), words.shape)
        log_probs = np.take_along_axis(step.totals, words[..., None], axis=2)[..., 0]
        return Candidates(parents[..., None], words[..., None], log_probs[..., None])

    def _sample(self, totals: Totals, noise: Totals) -> Int[np.ndarray, "pictures beam"]:
        """Gumbel's trick: the largest of log-probabilities with Gumbel noise is a sample."""
        scaled = totals / self.options.temperature
        order = np.argsort(-scaled, axis=2, kind="stable")
        ranked = np.take_along_axis(scaled, order, axis=2)
        if self.options.top_k is not None:
            ranked[:, :, self.options.top_k :] = -np.inf
        if self.options.top_p < 1:
            highest = np.where(np.isfinite(ranked[:, :, :1]), ranked[:, :, :1], 0.0)
            shares = np.exp(ranked - highest)
            shares = shares / np.maximum(shares.sum(axis=2, keepdims=True), np.finfo(float).tiny)
            before = np.cumsum(shares, axis=2) - shares
            ranked = np.where(before < self.options.top_p, ranked, -np.inf)
        sampled = (ranked + noise).argmax(axis=2)
        return np.take_along_axis(order, sampled[..., None], axis=2)[..., 0]

    def is_done(self, num_ended: Int[np.ndarray, "pictures groups"]) -> Bool[np.ndarray, " pictures"]:
        return np.all(num_ended >= 1, axis=1)

    def allows_truncated(self, group: int) -> bool:  # noqa: ARG002
        return True


def beam_strategy(options: DecodingOptions, required: Sequence[int] = ()) -> Beam | ConstrainedBeam:
    """The beam search that options describe, for captions that contain the tokens `required`."""
    width = options.search_width
    if required:
        return ConstrainedBeam(width, tuple(dict.fromkeys(required)))
    return Beam(width // options.diverse_groups, options.diverse_groups, options.diversity)


def best_extensions(totals: Totals, ranking: Totals, group_size: int, *, offset: int) -> Candidates:
    """The best 2 x group_size extensions of each picture as one group, best first by `ranking`.

    At most one extension of each hypothesis ends, so that at least `group_size` of these continue (in a
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
