"""Captions of a model that takes one step at a time: searched, drawn at random, or read as they are given.

Plain arrays, no torch: what computes a step is a backend's own affair (`captioner.backends`).
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from captioner.config import DecodingConfig, SamplingConfig
from captioner.search import Hypothesis, State, beam_search, beam_strategy, sample
from captioner.vocabulary import PAD


@runtime_checkable
class StepModel(Protocol[State]):
    """What decoding needs of a model.

    Annotations are arrays of the model's own kind, (pictures, cells, annotation): they have a length and
    can be indexed by numpy arrays, and nothing else is done with them here.
    """

    def start(self, annotations: Any, num_hypotheses: int) -> State:
        """The state before the first word, with so many fresh hypotheses for each picture."""
        ...

    def step(
        self, tokens: Int[np.ndarray, "pictures beam"], state: State
    ) -> tuple[
        Float[np.ndarray, "pictures beam vocab"], Float[np.ndarray, "pictures beam heads cells"], State
    ]:
        """One decoding step (see `captioner.search.StepFunction`)."""
        ...


def search_captions(
    model: StepModel[Any], annotations: Any, config: DecodingConfig, *, required: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """Hypotheses for each picture, best first, that hold the tokens `required` (see `captioner.search`)."""
    strategy = beam_strategy(config, required)
    state = model.start(annotations, strategy.num_groups * strategy.group_size)
    return beam_search(model.step, state, num_pictures=len(annotations), config=config, strategy=strategy)


def draw_captions(
    model: StepModel[Any],
    annotations: Any,
    config: DecodingConfig,
    *,
    sampling: SamplingConfig,
    num_captions: int,
    numbers: Sequence[int],
) -> list[list[Hypothesis]]:
    """Captions drawn at random for each picture, whose `numbers` with the seed decide what is drawn."""
    return sample(
        model.step,
        model.start(annotations, num_captions),
        seeds=[(sampling.seed, number) for number in numbers],
        config=config,
        sampling=sampling,
        num_captions=num_captions,
    )


def read_captions(
    model: StepModel[Any], annotations: Any, tokens: Int[np.ndarray, "pictures captions tokens"]
) -> tuple[
    Float[np.ndarray, "pictures captions steps"], Float[np.ndarray, "pictures captions steps heads cells"]
]:
    """The log-probability of each word of captions that are given (teacher forcing), and its attention.

    Captions are from <start> to <end>, then padding, of which the log-probability is 0.
    """
    state = model.start(annotations, tokens.shape[1])
    log_probs, alphas = [], []
    for step in range(tokens.shape[2] - 1):
        of_each_word, alpha, state = model.step(tokens[:, :, step], state)
        read = tokens[:, :, step + 1]
        log_prob = np.take_along_axis(of_each_word, read[..., None], axis=2)[..., 0]
        log_probs.append(np.where(read == PAD, 0.0, log_prob))
        alphas.append(alpha)
    return np.stack(log_probs, axis=2), np.stack(alphas, axis=2)


def padded(captions: Sequence[Sequence[int]]) -> Int[np.ndarray, "captions tokens"]:
    """Captions as one array, the shorter ones filled up."""
    return np.array(list(zip_longest(*captions, fillvalue=PAD))).T
