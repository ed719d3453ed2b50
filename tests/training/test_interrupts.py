"""Training that is asked to stop, and two runs that want the same folder; with real processes and signals."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.tiny_runs import (
    flickr8k_flags,
    run_here,
    saved_step,
    send_signal_after,
    start_process,
    write_flickr8k,
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A run of very many epochs in the folder "run"."""
    write_flickr8k(tmp_path)
    endless = ("--epochs", "10000", "--patience", "10000")
    return ["flickr8k", "--out", str(tmp_path / "run"), *flickr8k_flags(tmp_path), *endless]


@pytest.fixture
def start(flags: list[str]) -> Start:
    """Start this run in a process of its own, with one to load pictures."""
    return lambda *arguments: start_process(*flags, "--workers", "1", *arguments)


def num_epochs(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_epochs(process: "subprocess.Popen[str]", log: Path, count: int) -> None:
    """Wait until the run has completed so many more epochs."""
    deadline, goal = time.monotonic() + 120, num_epochs(log) + count
    while num_epochs(log) < goal:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_signal_ends_a_run_after_its_step_with_a_save_and_a_message(
    number: signal.Signals, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    process = start()
    wait_for_epochs(process, run / "log.jsonl", 2)
    os.killpg(process.pid, number)  # as a terminal does it: to the loading workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    before = saved_step(run)
    last = errors.strip().splitlines()[-1]
    stopped = "stopped after step {:,}, which is saved; to resume: train.py --resume {}"
    assert last == f"train.py: {stopped.format(before, run)}"
    assert "Traceback" not in errors
    epochs = num_epochs(run / "log.jsonl")
    send_signal_after(monkeypatch, 6, number)  # two steps an epoch
    assert run_here("--resume", str(run), "--workers", "0") == (130, stopped.format(before + 6, run))
    assert saved_step(run) == before + 6
    assert num_epochs(run / "log.jsonl") >= epochs + 2


@pytest.mark.slow
def test_second_run_in_a_folder_is_refused_and_harms_nothing(
    start: Start, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first = start()
    wait_for_epochs(first, run / "log.jsonl", 1)
    refused = (1, f"another run is using {run}; wait for it, or choose another --out")
    for arguments in (flags, [*flags, "--resume"], ["--resume", str(run)]):
        assert run_here(*arguments) == refused
    assert first.poll() is None
    first.kill()  # which leaves it no time to clean up
    first.communicate()
    epochs = num_epochs(run / "log.jsonl")
    send_signal_after(monkeypatch, 6)
    assert run_here(*flags, "--resume", "--workers", "0").status == 130
    assert num_epochs(run / "log.jsonl") >= epochs + 2


def test_interrupt_while_features_are_computed_says_how_to_go_on(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("captioner.training.captioning.cached_splits", interrupted)
    message = "stopped before the first step; features that were computed are kept: give the command again"
    assert run_here(*flags) == (130, message)
