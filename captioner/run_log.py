"""What a training run tells of itself: TensorBoard's curves, log.jsonl, and a line an epoch."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from captioner.errors import CaptionerError

_logger = logging.getLogger(__name__)


class LogError(CaptionerError):
    """A log that cannot be written."""


class RunLog:
    """The logs of the run in a folder. All curves are over steps, so that a resumed run's join."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self.path = folder / "log.jsonl"
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_step)

    def close(self) -> None:
        self.writer.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step's values to the curves."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the log of all epochs anew, and add the last one's dev scores to the curves.

        Raises:
            LogError: the disk refuses.
        """
        entry = history[-1]
        dev = {f"dev/{name}": value for name, value in entry["dev"].items() if value is not None}
        self.step(entry["step"], dev)
        self.writer.flush()
        scores = ", ".join(
            f"{name} {'not computed' if value is None else f'{value:.1f}'}"
            for name, value in entry["dev"].items()
        )
        _logger.info("epoch %d: loss %.3f; dev %s", entry["epoch"], entry["loss"]["total"], scores)
        try:
            self.path.write_text("".join(json.dumps(line) + "\n" for line in history))
        except OSError as error:
            raise LogError(
                f"cannot write {self.path}: {error.strerror}; the run is saved up to here"
            ) from error
