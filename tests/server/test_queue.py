"""The queue that forms batches."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from captioner.config import DecodingOptions
from captioner.server.queue import BatchQueue

ONE, TWO = DecodingOptions(beam_size=1), DecodingOptions(beam_size=2)


class Recorder:
    """Doubles numbers, as slowly as it is told; refuses negative ones."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], DecodingOptions]] = []
        self.may_go = threading.Event()

    def __call__(self, batch: Sequence[int], options: DecodingOptions) -> Sequence[int]:
        self.batches.append((list(batch), options))
        self.may_go.wait(10)
        if min(batch) < 0:
            raise ValueError(f"{min(batch)} is negative")
        return [2 * number for number in batch]


def queue_of(recorder: Recorder, **settings: float) -> "BatchQueue[int, int]":
    values = {"batch_size": 4, "num_threads": 1, "wait_s": 0.0, **settings}
    return BatchQueue(
        recorder,
        batch_size=int(values["batch_size"]),
        num_threads=int(values["num_threads"]),
        wait_s=values["wait_s"],
    )


def test_requests_that_wait_together_are_a_batch_if_their_options_are_the_same() -> None:
    recorder = Recorder()
    queue = queue_of(recorder)
    first = queue.submit(0, ONE)
    while not recorder.batches:  # the only thread is busy with it
        time.sleep(0.001)
    numbers = range(1, 9)
    futures = [queue.submit(number, TWO if number == 3 else ONE) for number in numbers]
    recorder.may_go.set()
    assert first.result(10) == 0
    assert [future.result(10) for future in futures] == [2 * number for number in numbers]
    assert recorder.batches == [([0], ONE), ([1, 2, 4, 5], ONE), ([3], TWO), ([6, 7, 8], ONE)]
    queue.close()


def test_a_request_waits_for_others_but_no_longer_than_agreed() -> None:
    recorder = Recorder()
    recorder.may_go.set()
    queue = queue_of(recorder, wait_s=0.5, batch_size=2)
    started = time.monotonic()
    futures = [queue.submit(number, ONE) for number in (1, 2)]
    assert [future.result(10) for future in futures] == [2, 4]
    assert time.monotonic() - started < 0.4  # the batch was full
    assert queue.submit(3, ONE).result(10) == 6
    assert time.monotonic() - started > 0.5
    assert [batch for batch, _ in recorder.batches] == [[1, 2], [3]]
    queue.close()


def test_a_request_does_not_fail_because_of_another() -> None:
    recorder = Recorder()
    recorder.may_go.set()
    queue = queue_of(recorder, wait_s=0.2)
    futures = [queue.submit(number, ONE) for number in (1, -1, 2)]
    assert futures[0].result(10) == 2
    with pytest.raises(ValueError, match="-1 is negative"):
        futures[1].result(10)
    assert futures[2].result(10) == 4
    queue.close()


def test_closing_finishes_what_waits() -> None:
    recorder = Recorder()
    queue = queue_of(recorder, batch_size=1, num_threads=2)
    futures = [queue.submit(number, ONE) for number in range(6)]
    recorder.may_go.set()
    queue.close()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8, 10]
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(1, ONE)


def test_requests_that_are_cancelled_harm_nothing() -> None:
    recorder = Recorder()
    queue = queue_of(recorder)
    first = queue.submit(0, ONE)
    while not recorder.batches:
        time.sleep(0.001)
    futures = [queue.submit(number, ONE) for number in (1, 2, 3)]
    assert not first.cancel()  # it is under way
    assert futures[1].cancel()
    recorder.may_go.set()
    assert [first.result(10), futures[0].result(10), futures[2].result(10)] == [0, 2, 6]
    assert [batch for batch, _ in recorder.batches] == [[0], [1, 3]]
    queue.close()


def test_equal_pictures_with_other_options_are_told_apart() -> None:
    """Arrays have no truth value when they are compared."""
    recorder = Recorder()
    queue: BatchQueue[np.ndarray, int] = BatchQueue(
        lambda batch, options: recorder([1] * len(batch), options), batch_size=2, num_threads=1, wait_s=0.0
    )
    first = queue.submit(np.zeros(3), ONE)
    while not recorder.batches:
        time.sleep(0.001)
    futures = [queue.submit(np.zeros(3), TWO if number % 2 else ONE) for number in range(8)]
    recorder.may_go.set()
    assert [future.result(10) for future in (first, *futures)] == [2] * 9
    assert queue.is_alive
    queue.close()


def test_closing_does_not_wait_for_ever() -> None:
    recorder = Recorder()
    queue = queue_of(recorder)
    queue.submit(1, ONE)
    started = time.monotonic()
    queue.close(timeout_s=0.1)
    assert time.monotonic() - started < 5
    recorder.may_go.set()
