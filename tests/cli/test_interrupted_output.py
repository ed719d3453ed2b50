"""What is left of the captions when caption.py is killed, and how it resumes."""

import csv
import gc
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from captioner.backends.export import export_model
from captioner.cli.main import main
from captioner.inference import Captioner
from tests.conftest import ROOT, noise_picture

NUM_PICTURES = 200
NUM_KILLS = int(os.environ.get("CAPTIONER_KILLS", "3"))
"""How many times it is killed; the long run has 20."""


def files_in(output: Path, output_format: str) -> list[str]:
    """The pictures' names, of which each line must be whole."""
    text = output.read_text()
    assert text == "" or text.endswith("\n")
    if output_format == "jsonl":
        return [json.loads(line)["file"] for line in text.splitlines()]
    if output_format == "csv":
        header, *rows = csv.reader(text.splitlines())
        assert header == ["file", "caption", "log_prob"]
        assert all(len(row) == 3 for row in rows)
        return [row[0] for row in rows]
    rows = [line.split("\t") for line in text.splitlines()]
    assert all(len(row) == 2 for row in rows)
    return [row[0] for row in rows]


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_and_neither_skips_nor_repeats_a_picture(
    model_folder: Path, tmp_path: Path
) -> None:
    """`kill -9` at points all over the work; in between, the file consists of whole lines."""
    export_model(model_folder, tmp_path / "model")
    pictures = [tmp_path / "in" / f"{number:03}.png" for number in range(NUM_PICTURES)]
    pictures[0].parent.mkdir()
    for number, path in enumerate(pictures):
        noise_picture(number % 9).save(path)
    pictures[50].write_text("no picture")
    output = tmp_path / "captions.txt"
    command = [sys.executable, "caption.py", str(tmp_path / "in"), "--model", str(tmp_path / "model")]
    command += ["--output", str(output), "--resume", "--batch-size", "1", "--threads", "1"]
    draw = random.Random(0)
    done_when_killed = []
    for kill in range(NUM_KILLS):
        goal = (kill + draw.random()) * NUM_PICTURES / (NUM_KILLS + 1)
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if output.exists() and output.read_bytes().count(b"\n") >= goal:
                    break
                time.sleep(0.001)
            time.sleep(draw.random() * 0.01)
            process.kill()
        done_when_killed.append(len(files_in(output, "text")) if output.exists() else 0)
    assert done_when_killed == sorted(done_when_killed)
    assert len(set(done_when_killed)) > NUM_KILLS / 2  # else they were not killed at work
    assert done_when_killed[-1] < NUM_PICTURES
    last = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert last.returncode == 1
    assert "050.png: not a picture" in last.stderr
    assert files_in(output, "text") == [str(path) for path in pictures if path != pictures[50]]
    captioner = Captioner.load(tmp_path / "model", device="cpu")
    of_noise = [captioner.caption(noise_picture(number)).text for number in range(9)]
    for line in output.read_text().splitlines():
        name, text = line.split("\t")
        assert text == of_noise[int(Path(name).stem) % 9]


@pytest.mark.parametrize("output_format", ["text", "jsonl", "csv"])
@pytest.mark.parametrize("kept", [0, 1, 30, 100, 10_000])
def test_output_that_was_cut_anywhere_is_resumed(
    output_format: str, kept: int, model_folder: Path, tmp_path: Path
) -> None:
    names = ["a.png", "-b.png", "file", 'c"d,e.png', "f\tg.png"]
    for number, name in enumerate(names):
        noise_picture(number).save(tmp_path / name, "png")
    paths = [str(tmp_path / name) for name in names]
    output = tmp_path / "captions"
    arguments = ["caption", *paths, "--model", str(model_folder), "--device", "cpu"]
    arguments += ["--format", output_format, "--output", str(output)]

    def run(*more: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *more])
        assert ended.value.code == 0

    run()
    whole = output.read_bytes()
    output.write_bytes(whole[:kept])
    run("--resume")
    assert output.read_bytes() == whole
    output.unlink()
    run("--resume")
    assert output.read_bytes() == whole


@pytest.mark.parametrize("has_settings", [False, True])
def test_other_files_are_not_continued(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], has_settings: bool
) -> None:
    """Whether or not the file replaced captions, whose settings are still beside it."""
    noise_picture(0).save(tmp_path / "0.png")
    output = tmp_path / "notes"
    arguments = ["caption", str(tmp_path / "0.png"), "--model", str(model_folder), "--output", str(output)]
    for output_format in ("text", "jsonl", "csv"):
        given = [*arguments, "--format", output_format]
        if has_settings:
            with pytest.raises(SystemExit):
                main(given)
        else:
            for path in tmp_path.glob(".notes*"):
                path.unlink()
        notes = ["my notes\nof long ago"]
        if output_format != "text" or not has_settings:  # any short text may be what was left of a text file
            notes.append('{"my": "notes"}')
        for text in notes:
            output.write_text(text)
            with pytest.raises(SystemExit) as ended:
                main([*given, "--resume"])
            assert ended.value.code == 1
            assert "was not written by captioner" in (error := capfd.readouterr().err)
            assert "choose another --output" in error
            assert output.read_text() == text


def test_resume_that_is_killed_while_it_starts_can_be_repeated(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is being written at that moment is left empty."""
    for number in range(3):
        noise_picture(number).save(tmp_path / f"{number}.png")
    output = tmp_path / "captions"
    arguments = ["caption", *sorted(map(str, tmp_path.glob("*.png"))), "--model", str(model_folder)]
    arguments += ["--output", str(output)]

    def run(*more: str) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *more])
        return ended.value.code

    assert run() == 0
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])

    def kill(path: Path, *_: object, **__: object) -> None:
        path.open("w").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patches, warnings.catch_warnings():
        patches.setattr(Path, "write_text", kill)
        patches.setattr(Path, "write_bytes", kill)
        warnings.simplefilter("ignore", ResourceWarning)  # files that were open
        run("--resume")
        gc.collect()
    assert run("--resume") == 0
    assert output.read_bytes() == whole


def test_cells_of_csv_are_never_formulas(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "d=e.png", "f\ng.png", "\t=h.png"]
    for number, name in enumerate(names):
        noise_picture(number).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(
            ["caption", "--model", str(model_folder), "--format", "csv", "--output", "out.csv", "--", *names]
        )
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))[1:]
    assert [row[0] for row in rows] == [
        *("'=1+1.png", "'+a.png", "'-b.png", "'@c.png", "d=e.png", "f\\ng.png", "\\t=h.png")
    ]
    assert all(float(row[2]) < 0 for row in rows)  # numbers stay numbers
