"""Logs of a training run: TensorBoard, log.jsonl, and one line per epoch."""

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
from captioner.figures.files import rendered

_logger = logging.getLogger(__name__)


class RunLog:
    """The logs of the run in a folder. All curves are over steps, so that a resumed run continues them.

    Of several processes only the first one logs.
    """

    def __init__(self, folder: Path, *, first_step: int, is_on: bool = True) -> None:
        self.path, self.is_on = folder / "log.jsonl", is_on
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_step) if is_on else None
        self._hook = threading.excepthook
        threading.excepthook = self._ignore_disk_errors

    def _ignore_disk_errors(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread; errors of the disk there are raised again by the next call."""
        if not issubclass(failed.exc_type, OSError):
            self._hook(failed)

    def close(self) -> None:
        threading.excepthook = self._hook
        if self.writer:
            with suppress(OSError):  # an error under way is more informative
                self.writer.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step's values to the curves. Raises: CaptionerError."""
        if self.writer:
            with self._translate_disk_errors():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def figures(self, step: int, figures: Iterable[Figure]) -> None:
        """Add a few figures, the same ones each time; TensorBoard shows them over the steps. Without a log
        none are drawn. Raises: CaptionerError."""
        if self.writer is None:
            return
        for number, figure in enumerate(figures):
            with self._translate_disk_errors():
                self.writer.add_image(f"dev_figures/{number}", rendered(figure), step, dataformats="HWC")

    def epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite the log of all epochs, and add the last one's dev scores to the curves.

        Raises:
            CaptionerError: the disk refuses.
        """
        if self.writer is None:
            return
        entry = history[-1]
        groups = {name: values for name, values in entry.items() if name == "dev" or name.startswith("dev/")}
        dev = {
            f"{group}/{name}": value
            for group, values in groups.items()
            for name, value in values.items()
            if value is not None
        }
        # At the last step rather than after it, because a run resumed after it drops what is there.
        statistics = entry.get("dev_statistics", {})
        curves = {f"dev_statistics/{name}": value for name, value in statistics.items()}
        self.step(entry["step"] - 1, {**dev, **curves, "data_wait_share": entry["data_wait_share"]})
        scores = "; ".join(f"{name} {_describe_scores(values)}" for name, values in groups.items())
        _logger.info(
            "epoch %d: loss %.3f; %.0f captions/s, %.1f %% of the time spent waiting for data; %s%s",
            entry["epoch"],
            entry["loss"]["total"],
            entry["captions_per_s"],
            100 * entry["data_wait_share"],
            scores,
            _describe(statistics),
        )
        self.rewrite(history)

    def rewrite(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write log.jsonl from the start. Raises: CaptionerError."""
        if self.writer:
            with self._translate_disk_errors():
                self.path.write_text("".join(json.dumps(line) + "\n" for line in history))
                self.writer.flush()

    @contextmanager
    def _translate_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CaptionerError(
                f"cannot write the log in {self.path.parent}: {error.strerror or error}; make room, "
                "then continue with --resume"
            ) from error


def _describe_scores(scores: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{name} {'not computed' if value is None else f'{value:.1f}'}" for name, value in scores.items()
    )


def _describe(statistics: Mapping[str, float]) -> str:
    """Statistics of the captions, if the entry has them."""
    if not statistics:
        return ""
    shares = (100 * statistics[f"{name}_share"] for name in ("distinct", "truncated", "repetitive"))
    return "; {:.1f} words, {:.0f} % distinct, {:.1f} % truncated, {:.1f} % repetitive".format(
        statistics["mean_length"], *shares
    )
