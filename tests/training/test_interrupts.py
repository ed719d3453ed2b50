"""Training that is asked to stop, and two runs that want the same folder; with real processes and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.test_train import recipe, root  # noqa: F401 (fixtures)
from tests.conftest import ROOT

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(root: Path, recipe: list[str], tmp_path: Path) -> Start:  # noqa: F811
    """Start a run of very many epochs, or what else is given."""

    def start(*arguments: str) -> "subprocess.Popen[str]":
        places = ["flickr8k", "--root", str(root), "--out", str(tmp_path / "run")]
        given = [*places, *recipe, "--epochs", "10000", "--patience", "10000", "--workers", "1", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *given],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def num_epochs(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_epochs(process: "subprocess.Popen[str]", log: Path, count: int) -> None:
    """Wait until the run has got so many epochs on."""
    deadline, goal = time.monotonic() + 120, num_epochs(log) + count
    while num_epochs(log) < goal:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def saved_step(run: Path) -> int:
    state = torch.load(run / "last" / "training_state.pt", weights_only=True)
    return int(json.loads(state["progress"])["step"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_run_after_its_step_with_a_save_and_a_message(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start()
    wait_for_epochs(process, run / "log.jsonl", 2)
    os.killpg(process.pid, number)  # as a terminal does it: to the loading workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last == (
        f"train.py: stopped after step {saved_step(run):,}, which is saved; to go on: train.py --resume {run}"
    )
    assert "Traceback" not in errors
    before = saved_step(run)
    process = start("--resume")
    wait_for_epochs(process, run / "log.jsonl", 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert saved_step(run) > before


@pytest.mark.slow
def test_second_run_in_a_folder_is_refused_and_harms_nothing(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start()
    wait_for_epochs(first, run / "log.jsonl", 1)
    for arguments in ([], ["--resume"]):
        second = start(*arguments)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 1
        assert errors.strip().splitlines()[-1] == (
            f"train.py: another run is at work in {run}; wait for it, or give another --out"
        )
    assert first.poll() is None
    first.kill()  # which gives no time to leave the folder in order
    first.communicate()
    third = start("--resume")
    wait_for_epochs(third, run / "log.jsonl", 2)
    third.terminate()
    third.communicate(timeout=60)
    assert third.returncode == 130
