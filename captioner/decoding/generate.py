"""Captions from a model's steps: searched, sampled, or forced to given texts."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from captioner.config import DecodingOptions
from captioner.decoding.search import Hypothesis, rank, search
from captioner.decoding.step_model import StepModel
from captioner.decoding.strategies import Sampler, beam_strategy
from captioner.vocabulary import PAD


def generate_captions(
    model: StepModel[Any],
    annotations: Any,
    options: DecodingOptions,
    *,
    required: Sequence[int] = (),
    numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Hypotheses for each picture: of a search all, best first; of sampling `num_captions`, as drawn.

    A search ranks by log p(y) / length**p with the length in tokens, <end> included (the length
    normalisation of Wu et al. 2016 without its constant), with repeated captions last. It returns captions
    cut after `max_words` only if none ended; these must contain the tokens `required`. Samples depend on the
    seed and on a picture's `numbers`, by default its index.
    """
    if options.sample:
        numbers = range(len(annotations)) if numbers is None else numbers
        sampler = Sampler(options, seeds=[(options.seed, number) for number in numbers])
        return [
            [sampled for _, sampled in sorted(ended + cut, key=lambda numbered: numbered[0])]
            for ended, cut in search(model, annotations, sampler, options)
        ]
    found = search(model, annotations, beam_strategy(options, required), options)
    return [
        _distinct_first(rank((hypothesis for _, hypothesis in ended or cut), options.length_penalty))
        for ended, cut in found
    ]


def _distinct_first(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """With captions that another group of a diverse search has found too at the end."""
    first = {hypothesis.tokens: hypothesis for hypothesis in reversed(hypotheses)}
    return sorted(hypotheses, key=lambda hypothesis: first[hypothesis.tokens] is not hypothesis)


def force_decode(
    model: StepModel[Any], annotations: Any, tokens: Int[np.ndarray, "pictures captions tokens"]
) -> tuple[
    Float[np.ndarray, "pictures captions steps"], Float[np.ndarray, "pictures captions steps heads cells"]
]:
    """The log-probability of each word of given captions (teacher forcing), and its attention.

    Captions run from <start> to <end>, then padding, whose log-probability is 0.
    """
    state = model.start(annotations, tokens.shape[1])
    log_probs, alphas = [], []
    for step in range(tokens.shape[2] - 1):
        forced = tokens[:, :, step + 1]
        result = model.step(tokens[:, :, step], state, num_best=0, asked=forced[..., None])
        log_probs.append(np.where(forced == PAD, 0.0, result.asked[..., 0]))
        alphas.append(result.alphas)
        state = result.state
    return np.stack(log_probs, axis=2), np.stack(alphas, axis=2)


def padded(captions: Sequence[Sequence[int]]) -> Int[np.ndarray, "captions tokens"]:
    """Captions as one array, the shorter ones padded."""
    return np.array(list(zip_longest(*captions, fillvalue=PAD))).T
