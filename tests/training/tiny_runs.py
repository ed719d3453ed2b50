"""Training runs of seconds: synthetic pictures in Flickr8k's layout, sentence pairs in Multi30k's, and how to
start train.py on them, in this process or in one of its own."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

import train
from captioner.model.batch import CaptionBatch
from captioner.model.encoder import Encoder
from captioner.training.log import RunLog
from captioner.training.step import TrainStep
from tests.conftest import ROOT, TINY_CNN, TINY_SIZE_PX, noise_picture

CAPTIONS = {
    "train": ["a dog runs in the snow", "a boy jumps over a wall", "a girl holds a red ball", "two dogs run"],
    "dev": ["a dog jumps over a ball", "an unseen word"],
}

TRAIN_PAIRS = [
    ("A dog runs.", "Ein Hund läuft."),
    ("Two cats sleep.", "Zwei Katzen schlafen."),
    ("A red ball.", "Ein roter Ball."),
    ("A man reads.", "Ein Mann liest."),
]


class Result(NamedTuple):
    """How a command ended: its status, and the line on standard error that says why it failed."""

    status: int
    message: str


def write_flickr8k(folder: Path) -> None:
    """Six pictures in `folder`/flickr8k, and a recipe: a tiny CNN with random weights and a small decoder."""
    root = folder / "flickr8k"
    root.mkdir(parents=True)
    lines: list[str] = []
    number = 0
    with zipfile.ZipFile(root / "pictures.zip", "w") as archive:
        for split, captions in CAPTIONS.items():
            names = []
            for caption in captions:
                names.append(f"{number}.jpg")
                with archive.open(names[-1], "w") as file:
                    noise_picture(number).save(file, "JPEG")
                lines += [f"{number}.jpg#0\t{caption} .", f"{number}.jpg#1\t{caption} ."]
                number += 1
            (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names))
    (root / "Flickr8k.token.txt").write_text("\n".join(lines))
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    cnn = Encoder(backbone=TINY_CNN).cnn
    save_file({name: value.contiguous() for name, value in cnn.state_dict().items()}, weights)
    small = {
        "encoder": {"backbone": TINY_CNN, "weights": str(weights), "image_size": TINY_SIZE_PX},
        "decoder": {"embedding_dim": 8, "hidden_dim": 8, "attention_dim": 8, "dropout": 0.0},
        "training": {"min_count": 1, "epochs": 2, "batch_size": 2, "finetune_learning_rate": 0.01},
        "decoding": {"max_words": 6},
    }
    (folder / "recipe.json").write_text(json.dumps(small))


def flickr8k_flags(folder: Path) -> list[str]:
    """Where a run finds what `write_flickr8k` wrote."""
    places = {"root": "flickr8k", "recipe": "recipe.json", "cache-dir": "cache"}
    return [word for flag, name in places.items() for word in (f"--{flag}", str(folder / name))]


def write_multi30k(folder: Path) -> None:
    """Four pairs to train on, two of which are dev too, and a recipe with a small translator."""
    for name, lines in {"train": TRAIN_PAIRS, "val": TRAIN_PAIRS[:2]}.items():
        for language, texts in zip(("en", "de"), zip(*lines, strict=True), strict=True):
            (folder / f"{name}.{language}").write_text("\n".join(texts), encoding="utf-8")
    sizes = {"embedding_dim": 8, "hidden_dim": 8}
    small = {
        "encoder": {"num_subwords": 60, "annotation_dim": 8, "dropout": 0, **sizes},
        "decoder": {"attention_dim": 8, "dropout": 0, **sizes},
        "training": {"epochs": 2, "batch_size": 2},
        "decoding": {"max_words": 10},
    }
    (folder / "translator.json").write_text(json.dumps(small))


def run_here(*arguments: str) -> Result:
    """Run train.py in this process, without Java and figures. An error must be reported in one line."""
    errors = io.StringIO()
    with (
        patch.object(sys, "argv", ["train.py", *arguments]),
        patch("captioner.evaluation.metrics.has_java", lambda: False),
        patch.object(RunLog, "figures", lambda *_: None),
        redirect_stderr(errors),
        pytest.raises(SystemExit) as exit_,
    ):
        train.main()
    _, _, message = errors.getvalue().partition("train.py: ")
    assert message == "" or message.index("\n") == len(message) - 1, errors.getvalue()
    return Result(exit_.value.code, message.rstrip("\n"))


def start_process(
    *arguments: str, launcher: Sequence[str] = (sys.executable,), cwd: Path = ROOT
) -> "subprocess.Popen[str]":
    """Start train.py in a process of its own, on one thread of the CPU and without Java."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    return subprocess.Popen(
        [*launcher, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def send_signal_after(
    monkeypatch: pytest.MonkeyPatch, num_steps: int, number: signal.Signals = signal.SIGTERM
) -> None:
    """Let a run in this process get a signal during one of its next steps."""
    train_step, done = TrainStep.__call__, 0

    def step(self: TrainStep, micro_batches: Sequence[CaptionBatch], index: int) -> dict[str, float]:
        nonlocal done
        done += 1
        if done == num_steps:
            os.kill(os.getpid(), number)
        return train_step(self, micro_batches, index)

    monkeypatch.setattr(TrainStep, "__call__", step)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The epochs in a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def saved_step(run: Path) -> int:
    state = torch.load(run / "last" / "training_state.pt", weights_only=True)
    return int(json.loads(state["progress"])["step"])
