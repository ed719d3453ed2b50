"""train.py from end to end, on a few made pictures in Flickr8k's layout, with a tiny CNN."""

import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from captioner import cli
from captioner.checkpoint.folder import SHIPPED_MODEL
from captioner.model.encoder import Encoder
from captioner.training.recipe import PRESETS
from captioner.training.state import Progress
from captioner.translation.translator import Translator
from captioner.vocabulary import Vocabulary
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

Run = Callable[..., str | int | None]


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "flickr8k"
    root.mkdir()
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
    return root


@pytest.fixture
def recipe(tmp_path: Path, encoder: Encoder) -> list[str]:
    """Flags that make a run of seconds: a tiny CNN with random weights and a small decoder."""
    weights = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.cnn.state_dict().items()}, weights)
    path = tmp_path / "recipe.json"
    small = {
        "encoder": {"backbone": TINY_CNN, "weights": str(weights), "image_size": TINY_SIZE_PX},
        "decoder": {"embedding_dim": 8, "hidden_dim": 8, "attention_dim": 8, "dropout": 0.0},
        "training": {"min_count": 1, "epochs": 2, "batch_size": 2, "finetune_learning_rate": 0.01},
        "decoding": {"max_words": 6},
    }
    path.write_text(json.dumps(small))
    return ["--recipe", str(path), "--cache-dir", str(tmp_path / "cache")]


@pytest.fixture
def run_as_given(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("captioner.training.log.RunLog.figures", lambda *_: None)

    def run(*arguments: str) -> str | int | None:
        """The exit status: none, a number, or the line that goes to standard error."""
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            train.main()
        except SystemExit as exit_:
            return exit_.code
        return None

    return run


@pytest.fixture
def run(run_as_given: Run, root: Path, tmp_path: Path, recipe: list[str]) -> Run:
    """As given, but that a run on Flickr8k gets the places and the recipe of these tests."""

    def run(*arguments: str) -> str | int | None:
        if arguments[0] == "flickr8k":
            places = ("--root", str(root), "--out", str(tmp_path / "run"))
            arguments = ("flickr8k", *places, *recipe, *arguments[1:])
        return run_as_given(*arguments)

    return run


def evaluate(*arguments: str) -> int | str | None:
    try:
        cli.main(["evaluate", *arguments])
    except SystemExit as exit_:
        return exit_.code
    return None


def test_run_goes_on_from_a_model_to_the_metric(
    run: Run, run_as_given: Run, root: Path, tmp_path: Path
) -> None:
    """What it starts from decides the vocabulary and the decoder, whatever the data set's recipe has."""
    assert run("flickr8k", "--score", "dot") is None
    best = tmp_path / "run" / "best"
    places = ("--root", str(root), "--out", str(tmp_path / "second"), "--cache-dir", str(tmp_path / "cache"))
    flags = ("--start-from", str(best), "--self-critical-from-epoch", "1", "--epochs", "2")
    assert run_as_given("flickr8k", *places, *flags) is None
    recipe = json.loads((tmp_path / "second" / "recipe.json").read_text())
    assert recipe["decoder"]["score"] == "dot"
    assert recipe["encoder"]["backbone"] == TINY_CNN
    assert recipe["training"]["start_from"] == "run/best"
    history = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    assert len(history) == 2
    assert all("reward" in entry["loss"] for entry in history)
    assert {"truncated_share", "repetitive_share"} <= history[0]["dev_statistics"].keys()
    one, other = (tmp_path / name / "best" / "vocabulary.json" for name in ("run", "second"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--decoder", "transformer"), "has another encoder or decoder than"),
        (("--weights", "w.safetensors"), "leave those of the backbone out"),
        (("--self-critical-from-epoch", "9"), "self_critical_from_epoch must be within epochs"),
    ],
)
def test_start_that_does_not_fit_is_refused_in_one_line(
    run: Run, run_as_given: Run, root: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    assert run("flickr8k") is None
    best = tmp_path / "run" / "best"
    places = ("--root", str(root), "--out", str(tmp_path / "second"), "--start-from", str(best))
    error = run_as_given("flickr8k", *places, *flags)
    assert isinstance(error, str)
    assert message in error
    assert "\n" not in error


def write_pairs(folder: Path) -> None:
    """Multi30k with four sentences to train on and two of them for dev."""
    for name, lines in {"train": TRAIN_PAIRS, "val": TRAIN_PAIRS[:2]}.items():
        for language, texts in zip(("en", "de"), zip(*lines, strict=True), strict=True):
            (folder / f"{name}.{language}").write_text("\n".join(texts), encoding="utf-8")


def write_small_translator(folder: Path) -> Path:
    """A recipe that makes a run of seconds."""
    small = {
        "encoder": {
            "num_subwords": 60,
            "embedding_dim": 8,
            "hidden_dim": 8,
            "annotation_dim": 8,
            "dropout": 0,
        },
        "decoder": {"embedding_dim": 8, "hidden_dim": 8, "attention_dim": 8, "dropout": 0},
        "training": {"epochs": 2, "batch_size": 2},
        "decoding": {"max_words": 10},
    }
    path = folder / "translator.json"
    path.write_text(json.dumps(small))
    return path


@pytest.mark.parametrize("flags", [("--score", "dot"), ("--decoder", "transformer")])
def test_command_trains_a_translator_and_goes_on_from_it(
    run_as_given: Run, tmp_path: Path, flags: tuple[str, str]
) -> None:
    """`train.py multi30k` has the loop, the folder and the flags of captioning."""
    write_pairs(tmp_path)
    path = write_small_translator(tmp_path)
    small = json.loads(path.read_text())
    first = ("multi30k", "--root", str(tmp_path), "--recipe", str(path), *flags)
    assert run_as_given(*first, "--out", str(tmp_path / "first")) is None
    translator = Translator.load(tmp_path / "first" / "best")
    assert flags[1] in (translator.config.decoder.score, translator.config.decoder.kind)
    assert len(translator.translate(["A dog runs.", "Two cats."])) == 2
    second = ("multi30k", "--root", str(tmp_path), "--start-from", str(tmp_path / "first" / "best"))
    assert run_as_given(*second, "--epochs", "1", "--out", str(tmp_path / "second")) is None
    again = Translator.load(tmp_path / "second" / "best")
    assert again.vocabulary == translator.vocabulary
    backbone = run_as_given(*first, "--out", str(tmp_path / "third"), "--backbone", "resnet18")
    assert "not 'backbone'" in str(backbone)
    finetuned = run_as_given(*first, "--out", str(tmp_path / "third"), "--finetune-from-epoch", "1")
    assert "leave finetune_from_epoch out" in str(finetuned)
    captioner = run_as_given(*first, "--out", str(tmp_path / "third"), "--start-from", str(SHIPPED_MODEL))
    assert "give one that translates sentences" in str(captioner)
    path.write_text(json.dumps(small | {"encoder": {"num_subwords": 5}}))
    few = str(run_as_given(*first, "--out", str(tmp_path / "fourth")))
    assert "makes no 5 subwords of these texts" in few
    assert len(few.splitlines()) == 1


def test_run_gives_a_model_whose_scores_evaluate_repeats(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("flickr8k") is None
    best = tmp_path / "run" / "best"
    dev = json.loads((best / "metrics.json").read_text())["dev"]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    capsys.readouterr()
    assert evaluate("flickr8k", "--root", str(root), "--model", str(best)) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["CIDEr"] == f"{dev['cider']:.1f}"
    assert lines["ROUGE-L"] == f"{dev['rouge_l']:.1f}"
    assert lines["METEOR"] == "not computed (needs Java)"
    assert lines["pictures"] == "2"


def test_vocabulary_is_of_the_training_captions_alone(run: Run, tmp_path: Path) -> None:
    run("flickr8k")
    vocabulary = Vocabulary.from_json((tmp_path / "run" / "best" / "vocabulary.json").read_bytes())
    words = {word for caption in CAPTIONS["train"] for word in caption.split()}
    assert set(vocabulary.words[4:]) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": 3}', "training must be an object with settings"),
        ('{"training": {"start_from": 5}}', "Expected `str | null`, got `int`"),
        ("[]", "a recipe is an object with parts"),
        ("{", "recipe.json: "),
        (
            '{"decoder": {"attention": "hard"}, "training": {"self_critical_from_epoch": 1}}',
            "leave self_critical",
        ),
    ],
)
def test_recipe_that_is_none_is_told_in_one_line(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.json").write_text(text)
    error = run("flickr8k")
    assert isinstance(error, str)
    assert message in error
    assert "\n" not in error


def test_recipe_that_was_resolved_is_kept_and_makes_the_same_run(run: Run, tmp_path: Path) -> None:
    assert run("flickr8k", "--epochs", "1", "--learning-rate", "0.002") is None
    path = tmp_path / "run" / "recipe.json"
    resolved = json.loads(path.read_text())
    assert resolved["training"]["epochs"] == 1
    assert resolved["training"]["learning_rate"] == 0.002
    assert resolved["training"]["min_count"] == 1  # of the file
    assert resolved["training"]["ema_decay"] == PRESETS["flickr8k"].training.ema_decay  # of the preset
    weights = str(tmp_path / "weights.safetensors")
    again = ("--weights", weights, "--out", str(tmp_path / "again"), "--recipe", str(path))
    assert run("flickr8k", *again) is None
    for file in ("model.safetensors", "config.json", "vocabulary.json"):
        first, second = (tmp_path / name / "best" / file for name in ("run", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_run_is_not_overwritten_by_another(run: Run, tmp_path: Path) -> None:
    run("flickr8k")
    before = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert "holds a run; add --resume" in str(run("flickr8k"))
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == before
    assert run("flickr8k", "--resume") is None


def test_run_is_not_gone_on_with_by_another_kind_of_data(run: Run, run_as_given: Run, tmp_path: Path) -> None:
    assert run("flickr8k", "--epochs", "1") is None
    for name in ("train.en", "train.de", "val.en", "val.de"):
        (tmp_path / name).write_text("a dog runs")
    other = run_as_given("multi30k", "--root", str(tmp_path), "--out", str(tmp_path / "run"), "--resume")
    assert "is of another data set; go on with it by: train.py --resume" in str(other)


def test_run_of_an_older_version_goes_on(run: Run, tmp_path: Path) -> None:
    """It called its best score `best_cider`."""
    assert run("flickr8k", "--epochs", "2") is None
    path = tmp_path / "run" / "last" / "training_state.pt"
    state = torch.load(path, weights_only=True)
    progress = json.loads(state["progress"])
    best = progress["best_cider"] = progress.pop("best_score")
    torch.save(state | {"progress": json.dumps(progress)}, path)
    assert Progress.from_json(json.dumps(progress)).best_score == best
    assert run("--resume", str(tmp_path / "run")) is None


def test_run_is_gone_on_with_by_its_folder_alone(run: Run, tmp_path: Path) -> None:
    run("flickr8k", "--epochs", "1")
    assert run("--resume", str(tmp_path / "run")) is None
    assert "epochs was 1 and is 4" in str(run("--resume", str(tmp_path / "run"), "--epochs", "4"))
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["training"]["epochs"] == 1
    assert "holds no run that can be gone on with" in str(run("--resume", str(tmp_path / "nothing")))


def test_captions_without_a_frequent_word_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe["training"]["min_count"] = 50
    path.write_text(json.dumps(recipe))
    assert "no word occurs 50 times in the training captions; lower min_count" in str(run("flickr8k"))


@pytest.mark.parametrize(("limit", "num_cached"), [("0", 0), ("0.000005", 2), ("1", 6)])
def test_cache_is_as_large_as_it_may_be_and_said_beforehand(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str, num_cached: int
) -> None:
    caplog.set_level("INFO")
    assert run("flickr8k", "--cache-limit-gb", limit, "--epochs", "1", "--workers", "0") is None
    assert f"cache: {num_cached} of 6 grids of 2 x 2 x 256" in caplog.text
    cached = [np.load(path, mmap_mode="r") for path in (tmp_path / "cache").glob("*/grids.npy")]
    assert sum(map(len, cached)) == num_cached


def test_what_the_user_can_mend_is_one_line(run: Run, root: Path, tmp_path: Path) -> None:
    assert "nothing was saved yet" in str(run("flickr8k", "--resume"))
    assert "timm has no model named 'nothing'" in str(run("flickr8k", "--backbone", "nothing"))
    assert "epochs must be at least 1, not 0" in str(run("flickr8k", "--epochs", "0"))
    assert "must be within epochs, not 5" in str(run("flickr8k", "--finetune-from-epoch", "5"))
    assert run("flickr8k", "--workers", "-1") == 2
    stages = ("--finetune-from-epoch", "1", "--finetune-stages", "9")
    assert "the backbone has 6 stages, not 9" in str(run("flickr8k", *stages))
    (tmp_path / "file").touch()
    assert "cannot make" in str(run("flickr8k", "--cache-dir", str(tmp_path / "file" / "x")))
    assert "cannot write to" in str(run("flickr8k", "--out", str(tmp_path / "file" / "x")))
    wrong = tmp_path / "wrong.json"
    for text, message in (
        ('{"training": {"epoch": 3}}', "training has the settings batch_size, .* not 'epoch'"),
        ('{"training": {"epochs": "3"}}', "Expected `int`, got `str`"),
        ('{"trainer": {}}', "a recipe has the parts encoder, decoder, training, decoding, not 'trainer'"),
        ("[", "Expecting value"),
        ("[1]", "a recipe is an object with parts"),
    ):
        wrong.write_text(text)
        assert re.search(message, str(run("flickr8k", "--recipe", str(wrong))))
    (root / "Flickr8k.token.txt").unlink()
    assert "Flickr8k.token.txt is missing" in str(run("flickr8k"))


def test_unsound_data_are_refused_and_checked(
    run: Run, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # There is no list of test pictures, which training can do without.
    assert run("check", "flickr8k", "--root", str(root), "--min-count", "1") == 0
    assert "sound: nothing that would spoil training was found" in capsys.readouterr().out
    with (root / "Flickr_8k.devImages.txt").open("a") as file:
        file.write("\n0.jpg")
    assert run("check", "flickr8k", "--root", str(root)) == 1
    assert "1 pictures are in two splits" in capsys.readouterr().out
    assert "1 pictures are in two splits: " in str(run("flickr8k"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_processes(kind: str) -> list[list[str]]:
    """The launchers of two processes, on one machine or as if on two that meet at an address."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if kind == "one machine":
        return [[*torchrun, "--standalone", "--nproc-per-node", "2"]]
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    of_each = ["--nnodes", "2", "--nproc-per-node", "1", *meeting]
    return [[*torchrun, *of_each, "--node-rank", rank] for rank in ("0", "1")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one machine", "two machines"])
def test_two_processes_train_to_the_same_as_one_and_score_every_picture_once(
    run: Run, root: Path, recipe: list[str], tmp_path: Path, kind: str
) -> None:
    """Started as users do, by torch's launcher, over gloo; the CNN's last stage trains in epoch 2."""
    changes = ("--finetune-from-epoch", "2", "--finetune-stages", "1", "--epochs", "3", "--workers", "0")
    assert run("flickr8k", *changes) is None
    places = ["--root", str(root), "--out", str(tmp_path / "pair")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    machines = [
        subprocess.Popen(
            [*launcher, str(ROOT / "train.py"), "flickr8k", *places, *recipe, *changes],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for launcher in two_processes(kind)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0] * len(machines), errors
    assert "Num processes: 2" in errors[0]
    alone, pair = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("run", "pair")
    )
    assert len(alone) == len(pair) == 3
    for one, other in zip(alone, pair, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["dev"]["cider"] == pytest.approx(one["dev"]["cider"], rel=1e-6)
    first, second = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("run", "pair"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_two_processes_train_a_translator_to_the_same_as_one(run_as_given: Run, tmp_path: Path) -> None:
    """Each makes the vocabulary for itself; dev is shared."""
    write_pairs(tmp_path)
    given = ["multi30k", "--root", str(tmp_path), "--recipe", str(write_small_translator(tmp_path))]
    assert run_as_given(*given, "--out", str(tmp_path / "run")) is None
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    (launcher,) = two_processes("one machine")
    subprocess.run(
        [*launcher, str(ROOT / "train.py"), *given, "--out", str(tmp_path / "pair")],
        env=environment,
        check=True,
        timeout=300,
    )
    alone, pair = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("run", "pair")
    )
    for one, other in zip(alone, pair, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["dev"] == pytest.approx(one["dev"], rel=1e-6)
    first, second = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("run", "pair"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=1e-3)
