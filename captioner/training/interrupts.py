"""Interrupts of a run: signals, and other runs in its folder."""

import logging
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from accelerate import Accelerator

from captioner.atomic import folder_lock

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


def run_lock(out: Path) -> AbstractContextManager[None]:
    """Keep other runs out of a run's folder until this one ends. Raises: CaptionerError."""
    return folder_lock(out, used_by="another run", option="--out")
