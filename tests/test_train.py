"""train.py from end to end, on a few made pictures in Flickr8k's layout, with a tiny CNN."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import train
from captioner.encoder import Encoder
from captioner.vocabulary import Vocabulary
from tests.conftest import TINY_CNN, TINY_SIZE_PX, noise_picture

CAPTIONS = {
    "train": ["a dog runs in the snow", "a boy jumps over a wall", "a girl holds a red ball"],
    "dev": ["a dog jumps over a ball", "an unseen word"],
}

Run = Callable[..., str | int | None]


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.metrics.has_java", lambda: False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "flickr8k"
    root.mkdir()
    lines, number = [], 0
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
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Run:
    weights = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.cnn.state_dict().items()}, weights)
    size = ["--backbone", TINY_CNN, "--weights", str(weights), "--image-size", str(TINY_SIZE_PX)]
    dims = ["--embedding-dim", "8", "--hidden-dim", "8", "--attention-dim", "8"]
    short = ["--epochs", "2", "--batch-size", "2", "--min-count", "1", "--max-words", "6"]
    places = ["--root", str(root), "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]

    def run(*arguments: str) -> str | int | None:
        """The exit status: none, a number, or the line that goes to standard error."""
        if arguments[0] == "flickr8k":
            arguments = ("flickr8k", *size, *dims, *short, *places, *arguments[1:])
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            train.main()
        except SystemExit as exit_:
            return exit_.code
        return None

    return run


def test_run_gives_a_model_whose_scores_evaluate_repeats(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("flickr8k") is None
    best = tmp_path / "run" / "best"
    metrics = json.loads((best / "metrics.json").read_text())
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    capsys.readouterr()
    assert run("evaluate", "--root", str(root), "--model", str(best)) is None
    printed = capsys.readouterr().out
    assert f"CIDEr {metrics['dev']['cider']:.1f}" in printed
    assert "METEOR not computed (needs Java)" in printed


def test_vocabulary_is_of_the_training_captions_alone(run: Run, tmp_path: Path) -> None:
    run("flickr8k")
    vocabulary = Vocabulary.from_json((tmp_path / "run" / "best" / "vocabulary.json").read_bytes())
    words = {word for caption in CAPTIONS["train"] for word in caption.split()}
    assert set(vocabulary.words[4:]) == words


def test_run_is_not_overwritten_by_another(run: Run, tmp_path: Path) -> None:
    run("flickr8k")
    before = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert "holds a run; add --resume" in str(run("flickr8k"))
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == before
    assert run("flickr8k", "--resume") is None


def test_what_the_user_can_mend_is_one_line(run: Run, root: Path, tmp_path: Path) -> None:
    assert "no epoch was finished" in str(run("flickr8k", "--resume"))
    assert "timm has no model named 'nothing'" in str(run("flickr8k", "--backbone", "nothing"))
    assert run("flickr8k", "--epochs", "0") == 2
    (tmp_path / "file").touch()
    assert "cannot make" in str(run("flickr8k", "--cache-dir", str(tmp_path / "file" / "x")))
    assert "cannot make" in str(run("flickr8k", "--out", str(tmp_path / "file" / "x")))
    (root / "Flickr8k.token.txt").unlink()
    assert "Flickr8k.token.txt is missing" in str(run("flickr8k"))
