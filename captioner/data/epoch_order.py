"""Order of samples in an epoch, and derived seeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from captioner.errors import CaptionerError


@dataclass(frozen=True, slots=True)
class SampleKey:
    """A sample in an epoch; `repeat` counts from 0 how often it was there before."""

    epoch: int
    index: int
    repeat: int = 0


def derived_seed(*position: int) -> int:
    """A seed for a position in a run, such as (the run's seed, step, process).

    It depends on nothing that happened before, so a resumed run repeats it; different positions give
    unrelated seeds.
    """
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])


def epoch_batches(
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    micro_batches: int = 1,
    process: int = 0,
    num_processes: int = 1,
    weights: Float[np.ndarray, " samples"] | None = None,
) -> list[list[SampleKey]]:
    """The samples of an epoch as one process sees them: `micro_batches` lists for every step.

    Each sample is in the epoch once, or with `weights` as often as its weight says, rounded up or down: one
    of weight 0.5 is in about half of the epochs. All epochs have the same length, the sum of the weights.

    The order depends only on the seed and the epoch, and a step has the same samples whatever the
    number of processes and micro-batches. Steps have even sizes, so that none is nearly empty: 25 samples
    in batches of 24 make steps of 13 and 12.

    Raises:
        CaptionerError: a step would leave a process or a micro-batch without samples.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(num_samples)
    if weights is not None and (weights != 1).any():
        order = rng.permutation(np.repeat(order, _times_drawn(weights[order], rng)))
    keys = _keys(order.tolist(), epoch)
    steps = np.array_split(np.arange(len(keys)), -(-len(keys) // batch_size))
    if len(steps[-1]) < num_processes * micro_batches:
        raise CaptionerError(
            f"a step of {len(steps[-1])} samples is too small for {num_processes} processes with "
            f"{micro_batches} micro-batches each; raise --batch-size, or lower "
            "--gradient-accumulation-steps or the number of processes"
        )
    own = (split for step in steps for split in np.array_split(step[process::num_processes], micro_batches))
    return [[keys[position] for position in split] for split in own]


def _keys(order: Sequence[int], epoch: int) -> list[SampleKey]:
    seen = Counter[int]()
    keys = []
    for index in order:
        keys.append(SampleKey(epoch, index, seen[index]))
        seen[index] += 1
    return keys


def _times_drawn(
    weights: Float[np.ndarray, " samples"], rng: np.random.Generator
) -> Int[np.ndarray, " samples"]:
    """How often each sample is drawn, by systematic sampling: its weight rounded up or down at random, with a
    sum that is always the sum of the weights, rounded."""
    total = max(round(float(weights.sum())), 1)
    ends = np.cumsum(weights) * (total / weights.sum())
    ends[-1] = total  # exactly
    return np.diff(np.ceil(ends - rng.random()), prepend=0).astype(int)


def in_order(
    num_samples: int, *, batch_size: int, process: int = 0, num_processes: int = 1
) -> list[list[SampleKey]]:
    """Every sample once, in batches, assigned to the processes in turn."""
    own = [SampleKey(0, index) for index in range(process, num_samples, num_processes)]
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
