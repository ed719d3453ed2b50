"""Disks that are really full: small file systems in memory, where the tests may mount one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.backends.export import export_model
from tests.cli.test_interrupted_output import files_in
from tests.conftest import ROOT, noise_picture
from tests.training.test_interrupts import (  # noqa: F401 (fixtures)
    Start,
    flags,
    num_epochs,
    start,
    wait_for_epochs,
)
from tests.training.tiny_runs import run_here, saved_step, send_signal_after


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, free: int) -> Path:
    """Fill the disk up to `free` bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(ballast, ballast.stat().st_size - free)
    return ballast


@pytest.mark.long
def test_training_on_a_disk_that_fills_up_reports_it_and_resumes_once_there_is_room(
    start: Start,  # noqa: F811
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = small_disk / "run"
    places = ("--out", str(run))
    process = start(*places)
    wait_for_epochs(process, run / "log.jsonl", 2)
    ballast = fill(small_disk, free=0)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("train.py: cannot ")
    assert "No space left on device" in last
    assert "Traceback" not in errors
    before = saved_step(run)
    ballast.unlink()
    epochs = num_epochs(run / "log.jsonl")
    send_signal_after(monkeypatch, 6)  # two steps an epoch
    assert run_here("--resume", str(run), "--workers", "0").status == 130
    assert num_epochs(run / "log.jsonl") >= epochs + 2
    assert saved_step(run) > before


@pytest.mark.slow
def test_captioning_on_a_disk_that_fills_up_stops_in_one_line_and_resumes_once_there_is_room(
    small_disk: Path, model_folder: Path, tmp_path: Path
) -> None:
    export_model(model_folder, tmp_path / "model")
    pictures = [tmp_path / "in" / f"{number:03}.png" for number in range(120)]
    pictures[0].parent.mkdir()
    for number, path in enumerate(pictures):
        noise_picture(number % 9).save(path)
    output = small_disk / "captions.txt"
    ballast = fill(small_disk, free=3 * 4096)  # one for the settings
    command = [sys.executable, "caption.py", str(tmp_path / "in"), "--model", str(tmp_path / "model")]
    command += ["--output", str(output), "--resume"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"captioner: cannot write {output}: No space left on device\n"
    assert output.stat().st_size == 2 * 4096
    ballast.unlink()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert files_in(output, "text") == list(map(str, pictures))
