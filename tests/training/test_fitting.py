"""Settings that follow from the training captions."""

import json
from pathlib import Path

import pytest

from captioner.config import DecodingOptions
from captioner.inference import Captioner
from captioner.training.fitting import caption_limit, coverage, fit_to_captions
from captioner.training.recipe import Recipe, TrainingConfig
from captioner.vocabulary import Vocabulary
from tests.conftest import noise_picture
from tests.training.tiny_runs import flickr8k_flags, run_here, write_flickr8k


def test_limit_is_long_enough_for_nearly_all_captions_and_never_short() -> None:
    assert caption_limit([5] * 100) == 20
    assert caption_limit([*range(1, 101)]) == 100  # the 99th percentile, rounded up
    assert caption_limit([30] * 999 + [4_000]) == 30  # a single endless one does not count
    assert caption_limit([]) == 20


def test_captions_are_generated_as_long_as_they_were_learned() -> None:
    long = ["a " * 60] * 5
    recipe = fit_to_captions(Recipe(), long)
    assert (recipe.training.max_caption_words, recipe.decoding.max_words) == (60, 60)
    stated = Recipe(training=TrainingConfig(max_caption_words=30), decoding=DecodingOptions(max_words=25))
    recipe = fit_to_captions(stated, long)
    assert (recipe.training.max_caption_words, recipe.decoding.max_words) == (30, 25)
    endless = fit_to_captions(Recipe(), ["a " * 3_000] * 5)
    assert (endless.training.max_caption_words, endless.decoding.max_words) == (3_000, 1_000)
    assert fit_to_captions(recipe, ["a dog"]) == recipe  # a resumed run keeps what it has


def test_coverage_is_the_share_of_known_words() -> None:
    vocabulary = Vocabulary.build(["a dog runs"], min_count=1)
    assert coverage(["a dog sits", "a cat"], vocabulary) == pytest.approx(3 / 5)
    assert coverage([], vocabulary) == 0


LONG = "a very long story about one dog that runs and runs over the green field until the sun is low and red"
CHINESE = "\u4e00\u53ea\u5c0f\u72d7\u5728\u8349\u5730\u4e0a\u8dd1"
GERMAN = "Ein M\u00e4dchen l\u00e4uft mit Opa\u2019s Hund durch K\u00f6ln"


def test_vocabulary_of_too_few_words_is_refused_as_the_check_says(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    flags = ("flickr8k", *flickr8k_flags(tmp_path), "--out", str(tmp_path / "run"), "--min-count", "5")
    captions = tmp_path / "flickr8k" / "Flickr8k.token.txt"
    lines = captions.read_text().splitlines()
    texts = [f"a {' '.join(f'word{number}of{one}' for one in range(3))}" for number in range(len(lines))]
    captions.write_text(
        "\n".join(f"{line.partition(chr(9))[0]}\t{text}" for line, text in zip(lines, texts, strict=True))
    )
    refused = run_here(*flags)
    assert refused.status == 1
    assert (
        "has 25.0% of the words of train, too few to learn from; lower --min-count, which is 5"
        in refused.message
    )


def test_start_from_a_model_that_does_not_know_the_words_is_refused(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    assert run_here("flickr8k", *flickr8k_flags(tmp_path), "--out", str(tmp_path / "first")).status == 0
    captions = tmp_path / "flickr8k" / "Flickr8k.token.txt"
    start = ("--start-from", str(tmp_path / "first" / "best"), "--epochs", "1")
    places = ("--root", str(tmp_path / "flickr8k"), "--cache-dir", str(tmp_path / "cache"))
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join(f"{line.partition(chr(9))[0]}\tein Hund" for line in lines))
    refused = run_here("flickr8k", *places, *start, "--out", str(tmp_path / "second"))
    assert refused.status == 1
    assert "has 0.0% of the words of train, too few to learn from" in refused.message


@pytest.mark.parametrize(
    ("caption", "flags", "written"),
    [
        pytest.param(LONG, (), LONG, marks=pytest.mark.long, id="long"),
        pytest.param(CHINESE, (), CHINESE, id="without spaces"),
        pytest.param(
            *(GERMAN, ("--keep-case",), GERMAN.replace("\u2019", "'")), marks=pytest.mark.long, id="German"
        ),
    ],
)
def test_run_learns_to_write_captions_whole(
    tmp_path: Path, caption: str, flags: tuple[str, ...], written: str
) -> None:
    """Trained on one caption, a model writes it to its end, with its letters."""
    rows = []
    for number, split in enumerate(["train"] * 4 + ["dev"] * 2):
        noise_picture(number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": caption, "split": split})
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_flickr8k(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    del recipe["decoding"]  # it states a length
    recipe["decoder"] = {"embedding_dim": 32, "hidden_dim": 64, "attention_dim": 16, "dropout": 0.0}
    recipe["training"] |= {"epochs": 24, "learning_rate": 0.02, "ema_decay": 0.0, "patience": 24}
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(recipe))
    places = ("--captions", str(path), "--out", str(tmp_path / "run"), "--recipe", str(changed))
    assert run_here("custom", *places, "--cache-dir", str(tmp_path / "cache"), *flags).message == ""
    model = Captioner.load(tmp_path / "run" / "best")
    assert model.caption(tmp_path / "0.png").text == written
