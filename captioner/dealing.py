"""In which order the pictures of an epoch come, and which process gets which."""

import numpy as np

from captioner.errors import CaptionerError

Key = tuple[int, int]
"""Which picture, and in which epoch: a picture's augmentation depends on both."""


class LoadingError(CaptionerError):
    """Pictures that cannot be dealt to processes or loaded by workers; the message says what to do."""


def epoch_batches(
    num_pictures: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    parts: int = 1,
    process: int = 0,
    num_processes: int = 1,
) -> list[list[Key]]:
    """The pictures of each step of an epoch, as one process sees them: `parts` lists for every step.

    The order depends on the seed and the epoch alone, and a step has the same pictures whatever the
    number of processes and parts they are dealt to. Steps are of even size, so that none is nearly
    empty: 25 pictures in batches of 24 make steps of 13 and 12.

    Raises:
        LoadingError: a step would leave a process or a part without pictures.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_pictures)
    steps = np.array_split(order, -(-num_pictures // batch_size))
    if len(steps[-1]) < num_processes * parts:
        raise LoadingError(
            f"a step of {len(steps[-1])} pictures or sentences "
            f"cannot be dealt to {num_processes} processes in {parts} parts; "
            "raise --batch-size, or lower --accumulate or the number of processes"
        )
    own_parts = (part for step in steps for part in np.array_split(step[process::num_processes], parts))
    return [[(epoch, int(index)) for index in part] for part in own_parts]


def in_order(
    num_pictures: int, *, batch_size: int, process: int = 0, num_processes: int = 1
) -> list[list[Key]]:
    """Every picture once, in batches, dealt to the processes in turn."""
    own = [(0, index) for index in range(process, num_pictures, num_processes)]
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
