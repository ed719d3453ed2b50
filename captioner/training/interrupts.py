"""Interrupts of a run: signals, and other runs in its folder."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from accelerate import Accelerator
from filelock import FileLock, Timeout

from captioner.errors import CaptionerError

_logger = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(accelerator: Accelerator) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C set the accelerator's trigger, on which the run is saved and stops.

    A second signal ends the process at once.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, _: FrameType | None) -> None:
        restore()
        accelerator.set_trigger()
        _logger.info("%s: saving after this step; repeat it to end at once", signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        restore()


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder until this one ends, in whatever way.

    Raises:
        CaptionerError: another run is using the folder, or it cannot be created.
    """
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CaptionerError(f"another run is using {out}; wait for it, or choose another --out") from None
    except OSError as error:
        raise CaptionerError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    try:
        yield
    finally:
        lock.release()
