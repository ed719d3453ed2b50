"""train.py from end to end, on a few synthetic pictures in Flickr8k's layout, with a tiny CNN."""

import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from captioner.checkpoint.folder import SHIPPED_MODEL, read_config
from captioner.checkpoint.weights import load_checkpoint
from captioner.cli.main import main as captioner_main
from captioner.cli.train import RecipeOverrides, TrainingFlags
from captioner.errors import CaptionerError, ModelFolderError
from captioner.model.low_rank import LowRankLinear
from captioner.model.lstm import LSTMDecoder
from captioner.training.recipe import PRESETS
from captioner.translation.translator import Translator
from captioner.vocabulary import Vocabulary
from tests.conftest import TINY_CNN
from tests.training.tiny_runs import (
    CAPTIONS,
    Result,
    flickr8k_flags,
    read_log,
    run_here,
    saved_step,
    send_signal_after,
    start_process,
    write_flickr8k,
    write_multi30k,
)

Run = Callable[..., Result]

DONE = Result(0, "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a recipe, to be read only."""
    folder = tmp_path_factory.mktemp("data")
    write_flickr8k(folder)
    write_boxes(folder / "boxes.json")
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, to be read only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run_here("flickr8k", "--out", str(out), *flickr8k_flags(data)) == DONE
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed, in the folder "run"."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    """As given, but that a run on Flickr8k gets these pictures and recipe, and the folder "run"."""

    def run(*arguments: str) -> Result:
        if arguments[0] == "flickr8k":
            out = ("--out", str(tmp_path / "run"))
            arguments = ("flickr8k", *out, *flickr8k_flags(data), *arguments[1:])
        return run_here(*arguments)

    return run


def evaluate(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        captioner_main(["evaluate", *arguments])
    return exit_.value.code


def test_self_critical_run_starts_from_a_model(run: Run, data: Path, tmp_path: Path) -> None:
    """The model that it starts from decides the vocabulary and the decoder, whatever the preset has."""
    assert run("flickr8k", "--score", "dot", "--epochs", "1") == DONE
    best, second = tmp_path / "run" / "best", tmp_path / "second"
    places = ("--root", str(data / "flickr8k"), "--out", str(second), "--cache-dir", str(tmp_path / "cache"))
    flags = ("--start-from", str(best), "--self-critical-from-epoch", "1", "--epochs", "2")
    assert run_here("flickr8k", *places, *flags) == DONE
    recipe = json.loads((second / "recipe.json").read_text())
    assert recipe["decoder"]["score"] == "dot"
    assert recipe["encoder"]["backbone"] == TINY_CNN
    assert recipe["training"]["start_from"] == str(best)
    published = json.loads((second / "best" / "metrics.json").read_text())
    assert published["recipe"]["training"]["start_from"] == "run/best"  # folders differ between machines
    history = read_log(second)
    assert len(history) == 2
    assert all("reward" in entry["loss"] for entry in history)
    assert {"truncated_share", "repetitive_share"} <= history[0]["dev_statistics"].keys()
    vocabularies = [folder / "vocabulary.json" for folder in (best, second / "best")]
    assert vocabularies[0].read_bytes() == vocabularies[1].read_bytes()


def write_boxes(path: Path) -> Path:
    """A dog's box in each of the training pictures."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 50, "height": 40} for n in range(4)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 0, "area": 400}
        for n in range(4)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 1, "name": "gate"}]}, "annotated are gate; categories must have"),
        ({"annotations": []}, "none is annotated; categories must have"),
        (
            {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [900, 900, 9, 9]}]},
            "none is annotated",
        ),
    ],
    ids=["unknown categories", "no objects", "outside"],
)
def test_objects_that_no_word_names_are_refused(
    run: Run, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    boxes = write_boxes(tmp_path / "boxes.json")
    boxes.write_text(json.dumps(json.loads(boxes.read_text()) | change))
    refused = run("flickr8k", "--instances", str(boxes))
    assert refused.status == 1
    assert message in refused.message


@pytest.mark.parametrize(
    "changes",
    [("--finetune-from-epoch", "2"), ("--self-critical-from-epoch", "2")],
    ids=["fine-tuned", "self-critical"],
)
def test_attention_is_supervised_where_objects_are_given(
    run: Run, data: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    boxes = write_boxes(tmp_path / "boxes.json")
    assert run("flickr8k", "--instances", str(boxes), *changes) == DONE
    first, second = (entry["loss"] for entry in read_log(tmp_path / "run"))
    assert first["attention_supervision"] > 0
    assert second["attention_supervision"] >= 0  # a sampled caption may name no dog
    assert load_checkpoint(tmp_path / "run" / "best").config.grid.is_supervised
    start = ("--start-from", str(tmp_path / "run" / "best"), "--epochs", "1")
    places = ("--root", str(data / "flickr8k"), "--out", str(tmp_path / "next"))
    assert run_here("flickr8k", *places, *start, "--cache-dir", str(tmp_path / "cache")) == DONE
    assert load_checkpoint(tmp_path / "next" / "best").config.grid.is_supervised
    (tmp_path / "moved").mkdir()
    for name in ("run", "boxes.json"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert run("--resume", str(tmp_path / "moved" / "run")) == DONE


def test_stage_of_the_cnn_is_the_models_and_that_of_runs_that_start_from_it(
    run: Run, data: Path, tmp_path: Path
) -> None:
    assert run("flickr8k", "--stage", "-2", "--epochs", "1", "--finetune-from-epoch", "1") == DONE
    first, second = tmp_path / "run" / "best", tmp_path / "second"
    given = ("flickr8k", "--root", str(data / "flickr8k"), "--start-from", str(first), "--epochs", "1")
    cache = ("--cache-dir", str(tmp_path / "cache"))
    assert run_here(*given, "--out", str(second), *cache) == DONE
    for folder in (first, second / "best"):
        checkpoint = load_checkpoint(folder)
        assert checkpoint.config.stage == -2
        assert checkpoint.config.grid.rows == 4  # of 16 pixels; the CNN's own are of 32
    refused = run_here(*given, "--out", str(tmp_path / "third"), "--stage", "-1")
    assert refused.message.endswith("stage is -2 in the model and -1 in the recipe")


def test_rank_reduces_the_matrices_of_the_model_that_a_run_starts_from(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    """And is that of runs that start from the result."""
    given = (
        "flickr8k",
        "--root",
        str(data / "flickr8k"),
        "--cache-dir",
        str(tmp_path / "cache"),
        "--epochs",
        "1",
    )
    start = tmp_path / "low" / "best"
    low = ("--start-from", str(finished / "best"), "--rank", "3")
    assert run_here(*given, *low, "--out", str(tmp_path / "low")) == DONE
    assert run_here(*given, "--start-from", str(start), "--out", str(tmp_path / "again")) == DONE
    for folder in (start, tmp_path / "again" / "best"):
        checkpoint = load_checkpoint(folder)
        assert checkpoint.config.decoder.rank == 3
        decoder = checkpoint.model.decoder
        assert isinstance(decoder, LSTMDecoder)
        for layer in (decoder.lstm, decoder.output):
            assert isinstance(layer, LowRankLinear)
            assert layer.inner.out_features == 3
    refused = run_here(*given, "--start-from", str(start), "--rank", "2", "--out", str(tmp_path / "third"))
    assert refused.message.endswith("rank is 3 in the model and 2 in the recipe")


def recipe_with(data: Path, folder: Path, **training: Any) -> str:
    """The path of the recipe of `data`, with other settings of training."""
    recipe = json.loads((data / "recipe.json").read_text())
    recipe["training"] = recipe.get("training", {}) | training
    (folder / "changed.json").write_text(json.dumps(recipe))
    return str(folder / "changed.json")


def test_objects_that_are_not_there_lower_the_reward(run: Run, data: Path, tmp_path: Path) -> None:
    """In a run whose attention is not supervised."""
    objects = ("--instances", str(write_boxes(tmp_path / "boxes.json")))
    recipe = recipe_with(data, tmp_path, attention_supervision=0, self_critical_object_penalty=100)
    flags = ("--recipe", recipe, "--self-critical-from-epoch", "2")
    assert run("flickr8k", *objects, *flags) == DONE
    assert read_log(tmp_path / "run")[1]["loss"]["reward"] < 0
    assert not load_checkpoint(tmp_path / "run" / "best").config.grid.is_supervised


def test_supervision_that_is_not_possible_is_refused_in_one_line(
    run: Run, data: Path, tmp_path: Path
) -> None:
    boxes = write_boxes(tmp_path / "boxes.json")
    refused = run("flickr8k", "--instances", str(boxes), "--attention", "hard")
    assert refused == Result(
        1,
        "supervised attention needs soft attention, not hard; leave the instances out, or set "
        "attention_supervision to 0 in --recipe",
    )
    recipe = recipe_with(data, tmp_path, self_critical_object_penalty=1, self_critical_from_epoch=1)
    refused = run("flickr8k", "--recipe", recipe)
    assert refused == Result(
        1,
        "self_critical_object_penalty needs annotated objects: give --instances (for a mixture, instances in "
        "the file of --sets), or set it to 0 in --recipe",
    )
    refused = run("flickr8k", "--instances", str(tmp_path / "none.json"))
    assert refused.message.endswith("none.json is missing; see --instances")
    sets = tmp_path / "sets.json"
    sets.write_text(json.dumps({"a": {"format": "flickr8k", "root": str(data / "flickr8k")}}))
    refused = run("mixture", "--sets", str(sets), "--out", str(tmp_path / "x"), "--instances", str(boxes))
    assert refused == Result(2, "mixture takes no --instances; the file of --sets names them")


def test_run_without_annotated_objects_has_no_term_of_supervision(finished: Path) -> None:
    assert "attention_supervision" not in read_log(finished)[0]["loss"]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--decoder", "transformer"), 1, "run/best has the decoder lstm, not transformer"),
        (
            ("--weights", "w.safetensors"),
            1,
            "a run that starts from a model has its weights; leave --weights out",
        ),
        (("--self-critical-from-epoch", "9"), 2, "--self-critical-from-epoch must be at most 6"),
    ],
)
def test_start_that_does_not_match_is_refused_in_one_line(
    finished: Path, data: Path, tmp_path: Path, flags: tuple[str, ...], status: int, message: str
) -> None:
    places = ("--root", str(data / "flickr8k"), "--out", str(tmp_path / "second"))
    result = run_here("flickr8k", *places, "--start-from", str(finished / "best"), *flags)
    assert result.status == status
    assert message in result.message


def test_recipe_with_a_transformer_needs_no_settings_of_the_lstm(tmp_path: Path) -> None:
    """The preset of multi30k has a gate that a transformer has not."""
    path = tmp_path / "recipe.json"
    path.write_text('{"decoder": {"kind": "transformer"}}')
    recipe = RecipeOverrides(recipe=path).applied_to(PRESETS["multi30k"])
    assert (recipe.decoder.kind, recipe.decoder.gate) == ("transformer", "vector")


def test_decoder_of_a_recipe_that_the_start_does_not_have_is_refused(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"decoder": {"kind": "transformer"}}')
    places = ("--root", "x", "--out", str(tmp_path / "second"), "--start-from", str(finished / "best"))
    refused = run_here("flickr8k", *places, "--recipe", str(path))
    assert refused == Result(1, f"{finished / 'best'} has the decoder lstm, not transformer")


@pytest.mark.parametrize("flags", [("--score", "dot"), ("--decoder", "transformer")])
def test_command_trains_a_translator_and_starts_from_it(tmp_path: Path, flags: tuple[str, str]) -> None:
    """`train.py multi30k` has the loop, the folder and the flags of captioning."""
    write_multi30k(tmp_path)
    path = tmp_path / "translator.json"
    small = json.loads(path.read_text())
    first = ("multi30k", "--root", str(tmp_path), "--recipe", str(path), *flags)
    assert run_here(*first, "--out", str(tmp_path / "first")) == DONE
    translator = Translator.load(tmp_path / "first" / "best")
    assert flags[1] in (translator.config.decoder.score, translator.config.decoder.kind)
    assert len(translator.translate(["A dog runs.", "Two cats."])) == 2
    second = ("multi30k", "--root", str(tmp_path), "--start-from", str(tmp_path / "first" / "best"))
    assert run_here(*second, "--epochs", "1", "--out", str(tmp_path / "second")) == DONE
    again = Translator.load(tmp_path / "second" / "best")
    assert again.vocabulary == translator.vocabulary
    backbone = run_here(*first, "--out", str(tmp_path / "third"), "--backbone", "resnet18")
    assert "not '--backbone'" in backbone.message
    finetuned = run_here(*first, "--out", str(tmp_path / "third"), "--finetune-from-epoch", "1")
    assert "with a text encoder, --finetune-from-epoch must be None" in finetuned.message
    captioner = run_here(*first, "--out", str(tmp_path / "third"), "--start-from", str(SHIPPED_MODEL))
    assert "give one that translates sentences" in captioner.message
    path.write_text(json.dumps(small | {"encoder": {"num_subwords": 5}}))
    few = run_here(*first, "--out", str(tmp_path / "fourth"))
    assert few.status == 1
    assert "5 subwords are too few for texts with " in few.message


def test_scores_of_a_run_are_reproduced_by_evaluate(
    finished: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)
    best = finished / "best"
    dev = json.loads((best / "metrics.json").read_text())["dev"]
    assert len(read_log(finished)) == 2
    assert list((finished / "tensorboard").iterdir())
    assert evaluate("flickr8k", "--root", str(data / "flickr8k"), "--model", str(best)) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["CIDEr"] == f"{dev['cider']:.1f}"
    assert lines["ROUGE-L"] == f"{dev['rouge_l']:.1f}"
    assert lines["METEOR"] == "not computed (needs Java)"
    assert lines["pictures"] == "2"


def test_vocabulary_is_of_the_training_captions_alone(finished: Path) -> None:
    vocabulary = Vocabulary.from_json((finished / "best" / "vocabulary.json").read_bytes())
    words = {word for caption in CAPTIONS["train"] for word in caption.split()}
    assert set(vocabulary.words[4:]) == words


def test_recipe_and_flags_are_checked_together(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"training": {"finetune_from_epoch": 9, "self_critical_samples": 3}}')
    flags = {"epochs": 12, "self_critical_from_epoch": 10}
    recipe = RecipeOverrides(recipe=path, training=TrainingFlags(**flags)).applied_to(PRESETS["flickr8k"])
    training = recipe.training
    assert (training.epochs, training.finetune_from_epoch, training.self_critical_samples) == (12, 9, 3)
    flags["epochs"] = 8
    overrides = RecipeOverrides(recipe=path, training=TrainingFlags(**flags))
    with pytest.raises(CaptionerError) as found:
        overrides.applied_to(PRESETS["flickr8k"])
    assert str(found.value) == (
        "training: finetune_from_epoch must be at most 8, the value of --epochs, not 9"
    )


def test_vocabulary_of_the_start_cannot_be_changed(run: Run, finished: Path) -> None:
    start = ("--start-from", str(finished / "best"))
    assert run("flickr8k", *start, "--min-count", "3") == Result(
        2, "a run that starts from a model has its vocabulary; leave --min-count out"
    )


def test_run_has_the_decoding_options_of_its_start_unless_the_recipe_states_others(tmp_path: Path) -> None:
    start = {"start_from": SHIPPED_MODEL}
    own = RecipeOverrides(training=TrainingFlags(**start)).applied_to(PRESETS["custom"]).decoding
    assert own == read_config(SHIPPED_MODEL).decoding != PRESETS["custom"].decoding
    path = tmp_path / "recipe.json"
    path.write_text('{"decoding": {"no_repeat_ngram": 4}}')
    stated = RecipeOverrides(recipe=path, training=TrainingFlags(**start)).applied_to(PRESETS["custom"])
    assert stated.decoding == replace(own, no_repeat_ngram=4)


def test_files_are_missed_before_pictures_are_looked_at(
    run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.flickr.Flickr8k.read", lambda *_: pytest.fail("it was read"))
    missing = str(tmp_path / "missing")
    for flags in (("--weights", missing), ("--instances", missing)):
        assert run("flickr8k", *flags) == Result(1, f"{missing} is missing; see {flags[0]}")
    assert "is not a model folder" in run("flickr8k", "--start-from", missing).message
    assert "contains a run; resume it" in run_here("flickr8k", "--root", "x", "--out", str(finished)).message


def test_stages_without_an_epoch_from_which_they_are_tuned_are_refused(run: Run) -> None:
    assert run("flickr8k", "--finetune-stages", "3") == Result(
        2, "--finetune-stages needs --finetune-from-epoch"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": 3}', "training must be an object with settings"),
        (
            '{"training": {"start_from": 5}}',
            "expected a path in quotes, not 5 - at `$.start_from`",
        ),
        ("[]", "a recipe is an object with sections"),
        ("{", "recipe.json: "),
        ('{"decoder": {"dropout": 0.1}, "decoder": {"rank": 8}}', "'decoder' is there twice"),
        (
            '{"decoder": {"attention": "hard"}, "training": {"self_critical_from_epoch": 1}}',
            "with hard attention, self_critical_from_epoch must be None, not 1; leave it out",
        ),
    ],
)
def test_invalid_recipe_is_reported_in_one_line(run: Run, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    result = run("flickr8k", "--recipe", str(path))
    assert result.status == 1
    assert message in result.message


def test_resolved_recipe_is_stored_and_reproduces_the_run(run: Run, data: Path, tmp_path: Path) -> None:
    assert run("flickr8k", "--epochs", "1", "--learning-rate", "0.002") == DONE
    path = tmp_path / "run" / "recipe.json"
    resolved = json.loads(path.read_text())
    assert resolved["training"]["epochs"] == 1
    assert resolved["training"]["learning_rate"] == 0.002
    assert resolved["training"]["min_count"] == 1  # of the file
    assert resolved["training"]["ema_decay"] == PRESETS["flickr8k"].training.ema_decay  # of the preset
    weights = str(data / "weights.safetensors")
    again = ("--weights", weights, "--out", str(tmp_path / "again"), "--recipe", str(path))
    assert run("flickr8k", *again) == DONE
    for file in ("model.safetensors", "config.json", "vocabulary.json"):
        first, second = (tmp_path / name / "best" / file for name in ("run", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_run_is_not_overwritten_by_another(run: Run, copied: Path) -> None:
    before = (copied / "best" / "model.safetensors").read_bytes()
    refused = run("flickr8k")
    assert refused.status == 1
    assert f"contains a run; resume it with: train.py --resume {copied}" in refused.message
    assert (copied / "best" / "model.safetensors").read_bytes() == before
    assert run("flickr8k", "--resume") == DONE


def test_run_is_not_resumed_with_another_kind_of_data(copied: Path, tmp_path: Path) -> None:
    before = (copied / "command.json").read_bytes()
    write_multi30k(tmp_path)
    other = run_here("multi30k", "--root", str(tmp_path), "--out", str(copied), "--resume")
    assert other.status == 1
    assert "has a different recipe" in other.message
    assert f"resume it with: train.py --resume {copied}" in other.message
    assert (copied / "command.json").read_bytes() == before


def test_run_is_resumed_by_its_folder_alone_with_its_recipe(run: Run, copied: Path, tmp_path: Path) -> None:
    before = (copied / "recipe.json").read_bytes()
    assert run_here("--resume", str(copied)) == DONE
    changed = run("flickr8k", "--batch-size", "4", "--resume")
    assert changed.status == 1
    assert "batch_size was 2 and is 4" in changed.message
    assert run_here("--resume", str(copied), "--batch-size", "4").status == 2
    assert (copied / "recipe.json").read_bytes() == before
    assert run_here("--resume", str(copied), "--epochs", "3") == DONE
    assert [entry["epoch"] for entry in read_log(copied)] == [1, 2, 3]
    shorter = run_here("--resume", str(copied), "--epochs", "1")
    assert shorter.status == 0  # it has had more
    missing = run_here("--resume", str(tmp_path / "nothing"))
    assert missing.status == 1
    assert "does not contain a run that can be resumed" in missing.message


def test_resumed_run_cannot_end_before_a_phase_begins(run: Run, tmp_path: Path) -> None:
    assert run("flickr8k", "--epochs", "2", "--self-critical-from-epoch", "2") == DONE
    message = "self_critical_from_epoch must be at most 1, the value of --epochs, not 2"
    assert run_here("--resume", str(tmp_path / "run"), "--epochs", "1") == Result(2, message)


@pytest.mark.parametrize("kept", [0, 5_000])
def test_damaged_state_is_an_error_of_one_line(copied: Path, kept: int) -> None:
    state = copied / "last" / "training_state.pt"
    state.write_bytes(state.read_bytes()[:kept])
    refused = run_here("--resume", str(copied))
    assert refused.status == 1
    assert "training_state.pt is damaged: " in refused.message
    assert refused.message.endswith(f"--start-from {copied / 'best'}")


def test_folder_of_a_run_in_place_of_its_model_is_refused_with_the_models(finished: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"is the folder of a run; its model is .*/best$"):
        load_checkpoint(finished)


@pytest.mark.parametrize(
    "others", [("two dogs run", "two dogs sleep"), ("an unseen word", "another unseen word")]
)
def test_refused_resume_changes_nothing(
    run: Run, data: Path, copied: Path, tmp_path: Path, others: tuple[str, str]
) -> None:
    """With other captions, of train or of dev, the run cannot continue; with its own it still can."""
    root = shutil.copytree(data / "flickr8k", tmp_path / "other")
    captions = root / "Flickr8k.token.txt"
    assert others[0] in captions.read_text()
    captions.write_text(captions.read_text().replace(*others))
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    refused = run("flickr8k", "--root", str(root), "--resume")
    assert refused.status == 1
    assert "was started with other data" in refused.message
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    assert run_here("--resume", str(copied)) == DONE


def test_flags_that_do_not_change_the_result_may_change_on_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patches:
        send_signal_after(patches, 1)
        assert run_here("flickr8k", "--out", str(out), *flickr8k_flags(data)).status == 130
    cache = tmp_path / "other cache"
    flags = ("--gradient-accumulation-steps", "2", "--workers", "1", "--save-minutes", "0")
    assert run_here("--resume", str(out), *flags, "--cache-dir", str(cache), "--cache-limit-gb", "1") == DONE
    assert len(read_log(out)) == 2
    assert list(cache.iterdir())
    for wrong in (("--gradient-accumulation-steps", "0"), ("--workers", "-1"), ("--save-minutes", "-1")):
        result = run_here("--resume", str(out), *wrong)
        assert result.status == 2
        assert result.message.startswith(f"{wrong[0]} must be at least")


def interrupt_run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """Run train.py, which gets a signal during its first step."""
    with monkeypatch.context() as patches:
        send_signal_after(patches, 1)
        return run_here(*arguments)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "moved", ["the run", "the run and its data", "the run and its data without the cache"]
)
def test_interrupted_run_that_is_moved_resumes_in_its_new_place(
    moved: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started with relative paths in one folder, and resumed from another folder after each of two moves. It
    becomes the run that stayed where it was, and writes nothing to the places that it has left."""
    start, elsewhere, goal = (tmp_path / name for name in ("start", "elsewhere", "goal"))
    for folder in (start, elsewhere, goal):
        folder.mkdir()
    monkeypatch.chdir(start)
    project = Path("project")
    write_flickr8k(project)
    out = project / "runs" / "one"
    stopped = interrupt_run(monkeypatch, "flickr8k", "--out", str(out), *flickr8k_flags(project))
    assert stopped.status == 130
    assert stopped.message == f"stopped after step 1, which is saved; to resume: train.py --resume {out}"
    monkeypatch.chdir(elsewhere)
    place, subfolder = (
        (start / out, Path()) if moved == "the run" else (start / project, out.relative_to(project))
    )
    for number in (1, 2):
        place = place.rename(goal / str(number))
        if "without" in moved:
            shutil.rmtree(place / "cache")
        left = tree(start)
        run = Path("..", "goal", str(number), subfolder)
        if number == 1:
            assert interrupt_run(monkeypatch, "--resume", str(run)).status == 130
        else:
            assert run_here("--resume", str(run)) == DONE
        assert saved_step(run) == {1: 2, 2: 4}[number]
        assert tree(start) == left
        assert tree(elsewhere) == set()
        assert [path.name for path in goal.iterdir()] == [str(number)]
    assert [entry["epoch"] for entry in read_log(run)] == [1, 2]
    for file in ("model.safetensors", "config.json", "vocabulary.json"):
        assert (run / "best" / file).read_bytes() == (finished / "best" / file).read_bytes()


def test_captions_without_a_frequent_word_are_refused(run: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    recipe = json.loads((data / "recipe.json").read_text())
    recipe["training"]["min_count"] = 50
    path.write_text(json.dumps(recipe))
    refused = run("flickr8k", "--recipe", str(path))
    assert refused.status == 1
    assert "no word occurs 50 times in the training captions; lower --min-count" in refused.message


@pytest.mark.parametrize(("limit", "num_cached"), [("0", 0), ("0.000005", 2), ("1", 6)])
def test_cache_is_as_large_as_its_limit_allows_and_its_size_is_logged_first(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str, num_cached: int
) -> None:
    caplog.set_level("INFO")
    cache = tmp_path / "cache"
    flags = ("--cache-limit-gb", limit, "--cache-dir", str(cache), "--epochs", "1", "--workers", "0")
    assert run("flickr8k", *flags) == DONE
    said = caplog.text.index(f"cache: features of {num_cached} of 6 pictures (2 x 2 x 256, half precision)")
    assert said < caplog.text.index("computing the features") if num_cached else True
    cached = [np.load(path, mmap_mode="r") for path in cache.glob("*/features.npy")]
    assert sum(map(len, cached)) == num_cached


def test_errors_of_the_user_are_reported_in_one_line(run: Run, data: Path, tmp_path: Path) -> None:
    def assert_refused(message: str, *arguments: str, status: int = 1) -> None:
        result = run("flickr8k", *arguments)
        assert result.status == status
        assert re.search(message, result.message), result.message

    assert_refused("nothing was saved yet", "--resume")
    assert_refused("timm has no model named 'nothing'", "--backbone", "nothing")
    assert_refused("--epochs must be at least 1, not 0", "--epochs", "0", status=2)
    assert_refused("--finetune-from-epoch must be at most 2, .*not 5", "--finetune-from-epoch", "5", status=2)
    assert_refused("--workers must be at least 0, not -1", "--workers", "-1", status=2)
    stages = ("--finetune-from-epoch", "1", "--finetune-stages", "9")
    assert_refused("the backbone has 6 stages, not 9", *stages)
    (tmp_path / "file").touch()
    assert_refused("cannot write .*/file/x: Not a directory", "--cache-dir", str(tmp_path / "file" / "x"))
    assert_refused("cannot write to .*/file/x: Not a directory", "--out", str(tmp_path / "file" / "x"))
    wrong = tmp_path / "wrong.json"
    for text, message in (
        ('{"training": {"epoch": 3}}', "the settings of training are batch_size, .* not 'epoch'"),
        ('{"training": {"epochs": "3"}}', "Expected `int`, got `str`"),
        (
            '{"trainer": {}}',
            "the sections of a recipe are encoder, decoder, training, decoding, not 'trainer'",
        ),
        ("[", "Expecting value"),
        ("[1]", "a recipe is an object with sections"),
    ):
        wrong.write_text(text)
        assert_refused(message, "--recipe", str(wrong))
    root = shutil.copytree(data / "flickr8k", tmp_path / "flickr8k")
    (root / "Flickr8k.token.txt").unlink()
    assert_refused("has no Flickr8k.token.txt or captions.txt", "--root", str(root))


def test_invalid_data_are_refused_and_named_by_the_check(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # There is no list of test pictures, which training does not need.
    root = shutil.copytree(data / "flickr8k", tmp_path / "flickr8k")
    assert run("check", "flickr8k", "--root", str(root), "--min-count", "1") == DONE
    assert "valid: no problems were found" in capsys.readouterr().out
    with (root / "Flickr_8k.devImages.txt").open("a") as file:
        file.write("\n0.jpg")
    assert run("check", "flickr8k", "--root", str(root)) == (1, "")
    assert "1 pictures are in two splits" in capsys.readouterr().out
    refused = run("flickr8k", "--root", str(root))
    assert refused.status == 1
    assert "1 pictures are in two splits: " in refused.message


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


FINETUNED = ("--finetune-from-epoch", "2", "--finetune-stages", "1", "--epochs", "3", "--workers", "0")


def supervised_flags(folder: Path) -> list[str]:
    """Of a run whose CNN trains too and whose attention is supervised."""
    return [*flickr8k_flags(folder), *FINETUNED, "--instances", str(folder / "boxes.json")]


@pytest.fixture(scope="module")
def finetuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process whose CNN trains too, to be read only."""
    out = tmp_path_factory.mktemp("finetuned") / "run"
    assert run_here("flickr8k", "--out", str(out), *supervised_flags(data)) == DONE
    return out


def assert_same_run(
    alone: Path, pair: Path, same_scores: Callable[[dict[str, Any], dict[str, Any]], bool]
) -> None:
    """A run of two processes learned what a run of one did, up to rounding."""
    histories = read_log(alone), read_log(pair)
    for one, other in zip(*histories, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert same_scores(one["dev"], other["dev"])
    first, second = (load_file(out / "best" / "model.safetensors") for out in (alone, pair))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one machine", pytest.param("two machines", marks=pytest.mark.long)])
def test_two_processes_train_to_the_same_as_one_and_score_every_picture_once(
    finetuned: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    """Started as users do, by torch's launcher, over gloo; the CNN's last stage trains in epoch 2, and
    attention is supervised."""
    flags = ("--out", str(tmp_path / "pair"), *supervised_flags(data))
    machines = [start_process("flickr8k", *flags, launcher=launcher) for launcher in two_processes(kind)]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0] * len(machines), errors
    assert "processes 2" in errors[0]
    assert len(read_log(finetuned)) == 3
    assert_same_run(
        finetuned,
        tmp_path / "pair",
        lambda one, other: other["cider"] == pytest.approx(one["cider"], rel=1e-6),
    )


@pytest.mark.long
def test_two_processes_train_a_translator_to_the_same_as_one(tmp_path: Path) -> None:
    """Each builds the vocabulary itself; dev is shared."""
    write_multi30k(tmp_path)
    given = ["multi30k", "--root", str(tmp_path), "--recipe", str(tmp_path / "translator.json")]
    assert run_here(*given, "--out", str(tmp_path / "run")) == DONE
    (launcher,) = two_processes("one machine")
    pair = start_process(*given, "--out", str(tmp_path / "pair"), launcher=launcher)
    errors = pair.communicate(timeout=300)[1]
    assert pair.returncode == 0, errors
    assert_same_run(
        tmp_path / "run", tmp_path / "pair", lambda one, other: other == pytest.approx(one, rel=1e-6)
    )


def test_command_reduces_a_model_on_the_pictures_of_a_data_set(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reduced"
    flags = ("--root", str(data / "flickr8k"), "--model", str(finished / "best"), "--out", str(out))
    with pytest.raises(SystemExit) as exited:
        captioner_main(["reduce", "flickr8k", *flags, "--rank", "3", "--epochs", "1", "--pictures", "3"])
    assert (exited.value.code, capsys.readouterr().out) == (0, f"{out}\n")
    reduced, full = load_checkpoint(out), load_checkpoint(finished / "best")
    assert reduced.config == replace(full.config, decoder=replace(full.config.decoder, rank=3))
    with pytest.raises(SystemExit) as exited:
        captioner_main(["reduce", "flickr8k", *flags[:-1], str(tmp_path / "x"), "--rank", "0"])
    assert exited.value.code == 2
