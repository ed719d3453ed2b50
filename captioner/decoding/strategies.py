"""Strategies of the decoding loop: beam search, constrained beam search and sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from captioner.config import DecodingOptions
from captioner.decoding.search import Candidates, SearchStep, Totals
from captioner.decoding.step_model import Words
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

    required = ()

    @property
    def num_best(self) -> int:
        """2 x group_size, and those that earlier groups may have chosen."""
        return (self.num_groups + 1) * self.group_size

    def first(self) -> Float[np.ndarray, " beam"]:
        log_probs = np.full((self.num_groups, self.group_size), -np.inf)
        log_probs[:, 0] = 0.0
        return log_probs.ravel()

    def candidates(self, step: SearchStep) -> Candidates:
        chosen = np.zeros((len(step.words), 0), dtype=int)  # by earlier groups
        groups = []
        for start in range(0, step.totals.shape[1], self.group_size):
            words, totals = (array[:, start : start + self.group_size] for array in (step.words, step.totals))
            times_chosen = (words[..., None] == chosen[:, None, None]).sum(axis=3)
            ranking = totals - self.diversity * times_chosen
            found = best_extensions(words, totals, ranking, self.group_size, offset=start)
            groups.append(found)
            if self.num_groups > 1:
                chosen = np.concatenate([chosen, found.continuing(self.group_size).words[:, 0]], axis=1)
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

    @property
    def num_best(self) -> int:
        """Besides 2 x group_size, the required words and END, which not all groups may choose."""
        return 2 * self.group_size + len(self.required) + 1

    def first(self) -> Float[np.ndarray, " beam"]:
        log_probs = np.full(self.num_groups * self.group_size, -np.inf)
        log_probs[0] = 0.0
        return log_probs

    def candidates(self, step: SearchStep) -> Candidates:
        words, totals, required = step.words, step.totals, np.array(self.required)
        is_missing = (step.tokens[..., None] != required).all(axis=2)  # (pictures, beam, required)
        would_rise = ((words[..., None] == required) & is_missing[:, :, None]).any(axis=3)
        staying = np.where(would_rise, -np.inf, totals)
        staying[:, :, -len(required) :] = -np.inf  # a likely one is among the other words too
        staying[:, : -self.group_size][words[:, : -self.group_size] == END] = -np.inf
        rising = np.full_like(totals, -np.inf)
        rising[:, :, -len(required) :] = np.where(is_missing, totals[:, :, -len(required) :], -np.inf)
        groups = []
        for start in range(0, totals.shape[1], self.group_size):
            below, own = slice(max(start - self.group_size, 0), start), slice(start, start + self.group_size)
            both = np.concatenate([rising[:, below], staying[:, own]], axis=1)
            theirs = words[:, below.start : own.stop]
            groups.append(best_extensions(theirs, both, both, self.group_size, offset=below.start))
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
    required = ()

    def __init__(self, options: DecodingOptions, seeds: Sequence[Sequence[int]]) -> None:
        """`seeds` has one per picture, so that its captions do not depend on its neighbours."""
        self.options, self.num_groups = options, options.num_captions
        self.num_best = options.top_k
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def first(self) -> Float[np.ndarray, " beam"]:
        return np.zeros(self.num_groups)

    def candidates(self, step: SearchStep) -> Candidates:
        words, totals = step.words, step.totals
        if self.num_best is not None:  # exactly so many, whatever may be forbidden to other hypotheses
            best = np.argsort(-totals, axis=2, kind="stable")[:, :, : self.num_best]
            words, totals = np.take_along_axis(words, best, axis=2), np.take_along_axis(totals, best, axis=2)
        ranked = self._cut(totals / self.options.temperature)
        noise = np.stack([self._rngs[picture].gumbel(size=ranked.shape[1:]) for picture in step.pictures])
        # Gumbel's trick: the largest of log-probabilities with Gumbel noise is a sample.
        drawn = (ranked + noise).argmax(axis=2)[..., None]
        parents = np.broadcast_to(np.arange(self.num_groups)[:, None], drawn.shape)
        return Candidates(
            parents, np.take_along_axis(words, drawn, axis=2), np.take_along_axis(totals, drawn, axis=2)
        )

    def _cut(self, totals: Totals) -> Totals:
        """Only the likeliest that together have `top_p` of the probability remain."""
        if self.options.top_p >= 1:
            return totals
        order = np.argsort(-totals, axis=2, kind="stable")
        ranked = np.take_along_axis(totals, order, axis=2)
        highest = np.where(np.isfinite(ranked[:, :, :1]), ranked[:, :, :1], 0.0)
        shares = np.exp(ranked - highest)
        shares = shares / np.maximum(shares.sum(axis=2, keepdims=True), np.finfo(float).tiny)
        before = np.cumsum(shares, axis=2) - shares
        cut = np.full_like(totals, -np.inf)
        np.put_along_axis(cut, order, np.where(before < self.options.top_p, ranked, -np.inf), axis=2)
        return cut

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


def best_extensions(
    words: Words, totals: Totals, ranking: Totals, group_size: int, *, offset: int
) -> Candidates:
    """The best 2 x group_size extensions of each picture as one group, best first by `ranking`.

    At most one extension of each hypothesis ends, so that at least `group_size` of these continue (in a
    group that takes from two, END is allowed for one of them alone). Parents are counted from `offset`.
    """
    num_pictures, _, num_words = words.shape
    best = np.argsort(-ranking.reshape(num_pictures, -1), axis=1, kind="stable")[:, : 2 * group_size]
    chosen = (
        np.take_along_axis(array.reshape(num_pictures, -1), best, axis=1)[:, None]
        for array in (words, totals)
    )
    return Candidates((offset + best // num_words)[:, None], *chosen)
