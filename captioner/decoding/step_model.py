"""What decoding needs of a model: its state and its step."""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

State = TypeVar("State", bound="SearchState")
Words = Int[np.ndarray, "pictures beam words"]


@runtime_checkable
class SearchState(Protocol):
    """What a model carries from step to step for its pictures and their hypotheses."""

    def select(
        self: State, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> State:
        """Keep these pictures, and in each the hypotheses `parents` (some may occur twice)."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepResult(Generic[State]):
    """The result of a model's step.

    `words` are the likeliest next words of each hypothesis, best first, or all words by id; `asked` has the
    log-probabilities of the words that were asked for. `alphas` is the attention used.
    """

    words: Words
    log_probs: Float[np.ndarray, "pictures beam words"]
    asked: Float[np.ndarray, "pictures beam asked"]
    alphas: Float[np.ndarray, "pictures beam *attention"]
    state: State


@runtime_checkable
class StepModel(Protocol[State]):
    """What decoding needs of a model.

    Annotations are arrays of the model's own kind, (pictures, cells, annotation), with a length and
    indexable by numpy arrays.
    """

    def start(self, annotations: Any, num_hypotheses: int) -> State:
        """The state before the first word, with this many new hypotheses for each picture."""
        ...

    def step(
        self,
        tokens: Int[np.ndarray, "pictures beam"],
        state: State,
        *,
        num_best: int | None,
        asked: Int[np.ndarray, "pictures beam asked"],
    ) -> StepResult[State]:
        """Read the previous tokens; give the `num_best` likeliest next words (None: all words, by id) and
        the log-probabilities of those `asked`."""
        ...
