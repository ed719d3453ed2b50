"""Beam search and greedy decoding over any `step` callable.

Written over plain arrays: it knows neither the model nor torch. A model takes part by giving a
`StepFunction` and a `SearchState`; each picture has `beam` hypotheses, which form one array axis.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from captioner.config import DecodingConfig
from captioner.vocabulary import END, PAD, START, UNK

BANNED_TOKENS = (PAD, START, UNK)
"""Tokens that no caption may hold: an <unk> tells a reader nothing."""

State = TypeVar("State", bound="SearchState")


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


def beam_search(
    step: StepFunction[State], state: State, *, num_pictures: int, config: DecodingConfig
) -> list[list[Hypothesis]]:
    """Search captions for many pictures at once; a beam of 1 is greedy decoding.

    At each step a picture's hypotheses are extended by every token. Those among the best `beam_size`
    that end are set aside, and the best `beam_size` others go on. A picture is done, and leaves the
    batch, when `beam_size` hypotheses have ended. A caption has at least one word. The ranking is
    log p(y) / length**p with the length in tokens, <end> included (the length normalisation of Wu et
    al. 2016 without its constant).

    `state` holds `beam_size` hypotheses for each picture, all of them fresh.

    Returns: for each picture its hypotheses, best first: those that ended, or where none did, those cut
        after `max_words`.
    """
    beam_size = config.beam_size
    finished: list[list[Hypothesis]] = [[] for _ in range(num_pictures)]
    pictures = np.arange(num_pictures)  # those that are still searched
    tokens = np.full((num_pictures, beam_size, 1), START)
    alphas: np.ndarray | None = None
    log_probs = np.full((num_pictures, beam_size), -np.inf)
    log_probs[:, 0] = 0.0  # all beams are alike at first: only one of them counts

    for num_words in range(config.max_words + 1):
        if not len(pictures):
            break
        next_log_probs, alpha, state = step(tokens[:, :, -1], state)
        totals = log_probs[:, :, None] + next_log_probs
        totals[:, :, BANNED_TOKENS if num_words else (*BANNED_TOKENS, END)] = -np.inf
        totals, parents, words = _best_candidates(totals, beam_size)
        used = alpha[:, :, None] if alphas is None else np.concatenate([alphas, alpha[:, :, None]], axis=2)

        is_end = words == END
        for row, place in np.argwhere(is_end[:, :beam_size] & np.isfinite(totals[:, :beam_size])):
            parent = parents[row, place]
            finished[pictures[row]].append(
                _hypothesis([*tokens[row, parent, 1:], END], used[row, parent], totals[row, place])
            )
        if num_words == config.max_words:
            break

        totals = np.where(is_end, -np.inf, totals)
        chosen = np.argsort(-totals, axis=1, kind="stable")[:, :beam_size]
        log_probs, parents, words = (
            np.take_along_axis(array, chosen, axis=1) for array in (totals, parents, words)
        )
        is_open = np.array([len(finished[picture]) < beam_size for picture in pictures])
        kept = np.flatnonzero(is_open & np.isfinite(log_probs).any(axis=1))
        pictures, log_probs, parents, words = pictures[kept], log_probs[kept], parents[kept], words[kept]
        tokens = np.take_along_axis(tokens[kept], parents[:, :, None], axis=1)
        tokens = np.concatenate([tokens, words[:, :, None]], axis=2)
        alphas = used[kept[:, None], parents]
        state = state.select(kept, parents)

    for row, picture in enumerate(pictures):
        if not finished[picture] and alphas is not None:
            finished[picture] = [
                _hypothesis(tokens[row, beam, 1:], alphas[row, beam], log_probs[row, beam])
                for beam in np.flatnonzero(np.isfinite(log_probs[row]))
            ]
    return [rank(hypotheses, config.length_penalty) for hypotheses in finished]


def _best_candidates(
    totals: Float[np.ndarray, "pictures beam vocab"], beam_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best 2 x beam extensions of each picture, best first: their totals, parents and tokens.

    At most one extension of each hypothesis ends, so that at least `beam_size` of these go on.
    """
    num_pictures, _, vocab_size = totals.shape
    num_words = min(2 * beam_size, vocab_size)
    words = np.argpartition(-totals, num_words - 1, axis=2)[:, :, :num_words]  # of each hypothesis
    best = np.take_along_axis(totals, words, axis=2).reshape(num_pictures, -1)
    order = np.argsort(-best, axis=1, kind="stable")[:, : 2 * beam_size]
    return (
        np.take_along_axis(best, order, axis=1),
        order // num_words,
        np.take_along_axis(words.reshape(num_pictures, -1), order, axis=1),
    )


def _hypothesis(
    tokens: "list[int | np.integer] | Int[np.ndarray, ' tokens']", alphas: np.ndarray, log_prob: float
) -> Hypothesis:
    return Hypothesis(tokens=tuple(int(token) for token in tokens), alphas=alphas, log_prob=float(log_prob))
