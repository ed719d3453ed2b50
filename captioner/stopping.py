"""What comes to a run from outside: a signal, which stops it after the step, or another run in its folder."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from accelerate import Accelerator
from filelock import FileLock, Timeout

from captioner.learner import TrainingError

_logger = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(accelerator: Accelerator) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C set the accelerator's trigger, on which the run is saved and stops.

    A second one ends the process at once, as if this were not here.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: FrameType | None) -> None:
        restore()
        accelerator.set_trigger()
        _logger.info("%s: saving after this step; once more ends it at once", signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder until the end, however that comes.

    Raises: TrainingError, where one is at work in it or the folder cannot be made.
    """
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(f"another run is at work in {out}; wait for it, or give another --out") from None
    except OSError as error:
        raise TrainingError(f"cannot write to {out}: {error.strerror}; give another --out") from error
    try:
        yield
    finally:
        lock.release()
