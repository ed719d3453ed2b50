"""Training run: its folder, lock, device and task."""

import ctypes
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from captioner.atomic import recover_folder, replace_text
from captioner.backends.torch_backend import limit_threads
from captioner.errors import CaptionerError, Stopped
from captioner.images.prefetch import available_cores
from captioner.training.interrupts import run_lock
from captioner.training.options import COMMAND_FILE, RunOptions, refuse_other_run
from captioner.training.recipe import Recipe, to_plain
from captioner.training.state import load_matching_state
from captioner.training.task import Task
from captioner.training.trainer import Trainer

_TIMEOUT = timedelta(hours=12)  # for other processes, while the first one computes a cache
_MAX_WORKERS = 8
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)

_logger = logging.getLogger(__name__)


@contextmanager
def training_run(
    *,
    recipe: Recipe,
    make_task: Callable[[Accelerator], Task],
    options: RunOptions,
    command: Mapping[str, Any],
) -> Iterator[Trainer]:
    """A trainer whose `run` trains from the start, or from where the run in `options.out` was saved.

    While it is open, the folder is locked. In several processes each calls this, and the first one writes.
    `command` is stored with the run.

    Raises:
        CaptionerError: the message says what to do.
    """
    accelerator = make_accelerator(recipe)
    out, is_main = options.out, accelerator.is_main_process
    with run_lock(out) if is_main else nullcontext():
        with accelerator.main_process_first():
            for name in ("last", "best"):
                recover_folder(out / name)
        if options.resume:
            load_matching_state(out / "last", recipe)
        else:
            refuse_other_run(out)
        _logger.info(
            "device %s, processes %d, precision %s",
            accelerator.device,
            accelerator.num_processes,
            accelerator.mixed_precision,
        )
        try:
            task = make_task(accelerator)
        except KeyboardInterrupt:
            raise Stopped(
                "stopped before the first step; features that were computed are kept: give the command again"
            ) from None
        trainer = Trainer(
            accelerator=accelerator,
            recipe=recipe,
            task=task,
            out=out,
            num_workers=_num_workers(options, recipe, task),
            save_minutes=options.save_minutes,
        )
        if options.resume:
            trainer.resume()
        if is_main:
            _write_json(out / COMMAND_FILE, command)
            _write_json(out / "recipe.json", to_plain(recipe))
        yield trainer
    accelerator.end_training()


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The device and the processes of this run.

    Raises:
        CaptionerError: the device does not support the precision of the recipe.
    """
    limit_threads()
    keep_freed_memory()
    precision = recipe.training.mixed_precision
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else accelerate ignores torchrun's processes
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
        )
    except ValueError as error:
        raise CaptionerError(f"--mixed-precision {precision} is not supported here: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise CaptionerError("fp16 needs a GPU; use --mixed-precision bf16 or no on a CPU")
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for those of the next step.

    Otherwise it returns large ones to the system, which clears and maps their pages again: a fifth of the
    time of a step on a CPU (benchmarks/stages.py). Nothing happens with another C library.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _num_workers(options: RunOptions, recipe: Recipe, task: Task) -> int:
    """Workers help where pictures are decoded; cached features are read faster than they are passed on."""
    if options.workers is not None:
        return options.workers
    decodes = any(dataset.encodes_on_the_fly for dataset in (task.train, task.dev))
    finetunes = recipe.training.finetune_from_epoch is not None
    return min(_MAX_WORKERS, available_cores()) if decodes or finetunes else 0


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Save a part of the resolved configuration with the run."""
    _logger.info("settings: %s", path)
    try:
        replace_text(path, json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise CaptionerError(
            f"cannot write to {path.parent}: {error.strerror}; choose another --out"
        ) from error
