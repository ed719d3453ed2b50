"""What a training run tells of itself: TensorBoard's curves and figures, log.jsonl, and a line an epoch."""

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from captioner.errors import CaptionerError
from captioner.figures import rendered

_logger = logging.getLogger(__name__)


class LogError(CaptionerError):
    """A log that cannot be written."""


class RunLog:
    """The logs of the run in a folder. All curves are over steps, so that a resumed run's join.

    Of several processes only the first has its log on; those of the others do nothing.
    """

    def __init__(self, folder: Path, *, first_step: int, is_on: bool = True) -> None:
        self.path, self.is_on = folder / "log.jsonl", is_on
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_step) if is_on else None
        self._hook = threading.excepthook
        threading.excepthook = self._leave_disk_errors

    def _leave_disk_errors(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread; what the disk refuses there is raised anew by the next call."""
        if not issubclass(failed.exc_type, OSError):
            self._hook(failed)

    def close(self) -> None:
        threading.excepthook = self._hook
        if self.writer:
            with suppress(OSError):  # what is under way says more than this could
                self.writer.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step's values to the curves. Raises: LogError."""
        if self.writer:
            with self._refusal_told():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def figures(self, step: int, figures: Iterable[Figure]) -> None:
        """Add a few figures, the same ones each time; TensorBoard shows them over the steps. Where the log is
        off none is drawn. Raises: LogError."""
        if self.writer is None:
            return
        for number, figure in enumerate(figures):
            with self._refusal_told():
                self.writer.add_image(f"dev_figures/{number}", rendered(figure), step, dataformats="HWC")

    def epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the log of all epochs anew, and add the last one's dev scores to the curves.

        Raises:
            LogError: the disk refuses.
        """
        if self.writer is None:
            return
        entry = history[-1]
        dev = {f"dev/{name}": value for name, value in entry["dev"].items() if value is not None}
        # At the last step rather than after it, for a run resumed after it drops what is there.
        wording = entry.get("dev_wording", {})
        words = {f"dev_wording/{name}": value for name, value in wording.items()}
        self.step(entry["step"] - 1, {**dev, **words, "data_wait_share": entry["data_wait_share"]})
        scores = ", ".join(
            f"{name} {'not computed' if value is None else f'{value:.1f}'}"
            for name, value in entry["dev"].items()
        )
        _logger.info(
            "epoch %d: loss %.3f; %.0f captions/s, %.1f %% of the time spent waiting for data; dev %s%s",
            entry["epoch"],
            entry["loss"]["total"],
            entry["captions_per_s"],
            100 * entry["data_wait_share"],
            scores,
            _told(wording),
        )
        self.rewrite(history)

    def rewrite(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write log.jsonl from the start. Raises: LogError."""
        if self.writer:
            with self._refusal_told():
                self.path.write_text("".join(json.dumps(line) + "\n" for line in history))
                self.writer.flush()

    @contextmanager
    def _refusal_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogError(
                f"cannot write the log in {self.path.parent}: {error.strerror or error}; make room and go on "
                "with --resume"
            ) from error


def _told(wording: Mapping[str, float]) -> str:
    """How captions are worded, where the entry tells of it."""
    if not wording:
        return ""
    shares = (100 * wording[f"{name}_share"] for name in ("distinct", "broken_off", "repetitive"))
    return "; {:.1f} words, {:.0f} % distinct, {:.1f} % broken off, {:.1f} % repetitive".format(
        wording["mean_length"], *shares
    )
