"""Benchmarks: their synthetic data, tables and studies."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from benchmarks import ablation, captioning, data, everyday, flickr8k_as_coco, runs, translation
from benchmarks.report import write_between
from captioner.config import GridConfig, PreprocessConfig
from captioner.evaluation.metrics import score_captions
from captioner.evaluation.statistics import CaptionStatistics
from captioner.images.reading import load_image
from captioner.inference import Captioner
from captioner.model.encoder import Encoder
from captioner.records import TranslatedSentence
from captioner.training.recipe import PRESETS
from captioner.translation.translator import Translation
from captioner.vocabulary import SPECIAL_TOKENS, Vocabulary
from datasets.coco import Coco
from datasets.flickr import Flickr8k
from tests.conftest import TINY_CNN, TINY_SIZE_PX, make_caption, noise_picture
from tests.datasets.test_coco import annotation_file
from tests.datasets.test_flickr import root  # noqa: F401 (a fixture)


def test_flickr8k_in_cocos_layout_has_the_same_pictures_and_captions(
    root: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    flickr8k_as_coco.main(root=root, out=tmp_path / "coco")
    before = Flickr8k(root=root).read(["train", "dev"])
    after = Coco(root=tmp_path / "coco").read(["train", "dev"])
    for one, other in zip(before, after, strict=True):
        assert (one.split, one.captions) == (other.split, other.captions)
        np.testing.assert_array_equal(
            np.asarray(load_image(one.source)), np.asarray(load_image(other.source))
        )


def test_synthetic_coco_repeats_real_captions_under_new_ids(tmp_path: Path) -> None:
    images = [(7, "7.jpg", ["A dog.", "A brown dog."]), (9, "9.jpg", ["A cat."])]
    (tmp_path / "real.json").write_text(json.dumps(annotation_file(images)))
    data.write_coco(tmp_path / "real.json", tmp_path, num_pictures=5)
    records = Coco(root=tmp_path).read(["train"])
    assert len({record.image_id for record in records}) == 5
    assert all(isinstance(record.source, Path) and record.source.is_file() for record in records)
    dog, cat = images[0][2], images[1][2]
    assert [list(record.captions) for record in records] == [dog, cat, dog, cat, dog]


def test_rows_of_the_ablation_study_are_valid_and_distinct() -> None:
    assert len({row.key for row in ablation.ROWS}) == len(ablation.ROWS)
    recipes = {row.key: row.recipe(None) for row in ablation.ROWS}
    trained = [row for row in ablation.ROWS if row.group != "decoding"]
    assert len({str(recipes[row.key]) for row in trained}) == len(trained)
    folders = {ablation._folder(recipes[row.key], row.seed) for row in ablation.ROWS}
    assert len(folders) == len(trained)


def test_committed_results_belong_to_the_current_recipes() -> None:
    """Otherwise the studies would train everything again."""
    rows = json.loads(ablation.RESULTS.read_text())
    weights = Path("tf_efficientnet_lite2.safetensors")
    assert rows.keys() == {row.key for row in ablation.ROWS}
    for row in ablation.ROWS:
        assert runs.is_same_recipe(rows[row.key]["recipe"], row.recipe(weights)), row.key
    variants = json.loads(translation.RESULTS.read_text())
    assert variants.keys() == translation.VARIANTS.keys()
    for variant, found in variants.items():
        assert runs.is_same_recipe(found["recipe"], translation.recipe_of(variant, 0)), variant


def test_ablation_study_trains_each_run_once(
    root: Path,  # noqa: F811
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that differ only in their beam size share a run; a second call trains and scores nothing."""
    weights = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.cnn.state_dict().items()}, weights)
    overrides = {
        "encoder": {"backbone": TINY_CNN, "image_size": TINY_SIZE_PX},
        "decoder": {"embedding_dim": 8, "hidden_dim": 8, "attention_dim": 8},
        "training": {"min_count": 1, "batch_size": 2},
        "decoding": {"max_words": 5},
    }
    rows = (
        ablation.Row(group="decoding", name="beam 3"),
        ablation.Row(group="decoding", name="greedy", beam_size=1),
    )
    monkeypatch.setitem(PRESETS, "flickr8k", PRESETS["flickr8k"].overridden(overrides))
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)  # METEOR is slow
    monkeypatch.setattr(ablation, "EPOCHS", 2)
    monkeypatch.setattr(ablation, "ROWS", rows)
    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(ablation, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr("captioner.training.log.RunLog.figures", lambda *_: None)
    (tmp_path / "page.md").write_text(f"{ablation.BEGIN_MARKER}\n{ablation.END_MARKER}\n")
    folders = {"root": root, "weights": weights, "runs": tmp_path / "runs", "cache_dir": tmp_path / "cache"}
    AcceleratorState._reset_state()  # the precision is the same for the whole process
    try:
        ablation.main(**folders)
        (written,) = (tmp_path / "runs").rglob("model.safetensors")
        times = [path.stat().st_mtime_ns for path in (written, ablation.RESULTS)]
        ablation.main(**folders)
        assert times == [path.stat().st_mtime_ns for path in (written, ablation.RESULTS)]
    finally:
        AcceleratorState._reset_state()
    results = json.loads(ablation.RESULTS.read_text())
    assert [found["epochs"] for found in results.values()] == [2, 2]
    assert [found["beam_size"] for found in results.values()] == [3, 1]
    assert "| decoding | greedy | 0 | 2 |" in ablation.PAGE.read_text()


def test_table_of_the_ablation_study_replaces_only_what_is_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{ablation.BEGIN_MARKER}\nold\n{ablation.END_MARKER}\nafter\n")
    scores = score_captions({"1": "a dog runs"}, {"1": ["a dog runs"]}, with_meteor=False)
    row = ablation.ROWS[0]
    result = {
        "epochs": 4,
        "minutes": 6.4,
        "fastest_epoch_s": 88.4,
        "decoder_parameters": 9_900_000,
        "scores": asdict(scores),
        "statistics": asdict(CaptionStatistics.from_captions(["a dog runs"])),
    }
    markers = ablation.BEGIN_MARKER, ablation.END_MARKER
    write_between(page, *markers, ablation.table({row.key: result}))
    before, *lines, last, after = page.read_text().splitlines()
    assert (before, last, after) == ("before", ablation.END_MARKER, "after")
    assert "old" not in lines
    (shown,) = [line for line in lines if row.name in line]
    assert "| 4 | 6 | 88 | 9.9 | 100.0 |" in shown
    page.write_text("no markers")
    with pytest.raises(ValueError, match="does not contain the markers"):
        write_between(page, *markers, "")


def test_sentences_of_each_length_are_scored_separately() -> None:
    """One short sentence is right and the other is wrong; the long one is right; there is no medium one."""
    long = " ".join(["words"] * 15)
    dev = [
        TranslatedSentence(sentence_id=text, sentence=text, translations=(text,), split="dev")
        for text in ("a short one it is", "another that is short", long)
    ]
    texts = ["a short one it is", "nothing at all like it", long]
    empty = {"sentence_words": (), "words": (), "log_prob": 0.0, "alphas": np.zeros((0, 0))}
    given = [Translation(sentence=text, text=text, **empty) for text in texts]
    found = translation.by_length(given, dev)
    assert [group["sentences"] for group in found.values()] == [2, 0, 1]
    short, medium, of_long = (group["bleu"] for group in found.values())
    assert 0 < short < 100
    assert medium == 0
    assert of_long == pytest.approx(100)
    scores = translation.intervals({"none": given[:1] * 3, "additive": given}, dev)
    assert scores["additive"]["bleu"] > scores["none"]["bleu"]
    assert scores["additive"]["interval"] > 0


def test_translation_study_trains_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.en").write_text("A dog runs.\nTwo cats sleep.\nA man reads a book.")
        (tmp_path / f"{name}.de").write_text("Ein Hund rennt.\nZwei Katzen schlafen.\nEin Mann liest.")
    tiny = {"embedding_dim": 8, "hidden_dim": 8}
    overrides = {
        "encoder": tiny | {"annotation_dim": 8, "num_subwords": 60},
        "decoder": tiny | {"attention_dim": 8},
        "training": {"epochs": 1, "batch_size": 2},
        "decoding": {"max_words": 5},
    }
    monkeypatch.setitem(PRESETS, "multi30k", PRESETS["multi30k"].overridden(overrides))
    monkeypatch.setattr(translation, "VARIANTS", {"none": {"attention": "none"}, "dot": {"score": "dot"}})
    monkeypatch.setattr(translation, "NUM_RESAMPLES", 10)
    monkeypatch.setattr(translation, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(translation, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr("captioner.training.log.RunLog.figures", lambda *_: None)
    (tmp_path / "page.md").write_text(f"{translation.BEGIN_MARKER}\n{translation.END_MARKER}\n")
    translation.main(root=tmp_path, runs=tmp_path / "runs")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    assert len(written) == 2
    assert json.loads((tmp_path / "results.json").read_text()).keys() == {"none", "dot"}
    assert "| none | 0.0" in (tmp_path / "page.md").read_text()
    translation.main(root=tmp_path, runs=tmp_path / "runs")
    assert written == {path: path.stat().st_mtime_ns for path in written}
    best = tmp_path / "runs" / "dot-seed0" / "best"
    assert runs.is_complete(best, translation.recipe_of("dot", 0))
    assert not runs.is_complete(best, translation.recipe_of("none", 0))
    assert not runs.is_complete(best, translation.recipe_of("dot", 1))


def test_variants_of_the_translation_study_differ_only_in_their_attention() -> None:
    recipes = {variant: translation.recipe_of(variant, 0).described() for variant in translation.VARIANTS}
    assert len({str(recipe) for recipe in recipes.values()}) == len(recipes) == 4
    for recipe in recipes.values():
        recipe["decoder"] |= {"attention": "soft", "score": "additive"}
        assert recipe == PRESETS["multi30k"].described()


def test_captioning_is_timed_on_every_picture(captioner: Captioner, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        noise_picture(number).save(path)
    encoded: list[int] = []
    encode = captioner.backend.encode
    captioner.backend.encode = lambda images: (encoded.append(len(images)), encode(images))[1]  # type: ignore[method-assign]
    timed = captioning.tasks(captioner, paths, 2)
    batches = {"file to caption": [2, 2, 1], "encoder alone": [2, 2, 1], "JPEG decoding alone": []}
    for name, expected in batches.items():
        encoded.clear()
        timed[name]()
        assert encoded == expected, name


def test_rows_of_the_study_of_data_are_valid_and_distinct() -> None:
    assert len({row.key for row in everyday.ROWS}) == len(everyday.ROWS)
    for row in everyday.ROWS:
        row.recipe(None)


def test_entropy_of_uniform_attention_is_one_and_of_one_cell_zero(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    one_cell = np.eye(9)[[4, 4]].reshape(2, 3, 3)
    for alphas, expected in ((np.full((2, 3, 3), 1 / 9), 1), (one_cell, 0)):
        caption = make_caption(("a", "dog"), even_grid, preprocess_config, alphas)
        assert everyday.mean_entropy(caption) == pytest.approx(expected, abs=1e-9)


def test_study_of_data_trains_and_measures_each_row_once(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two data sets of three pictures with a dog's box each, which are COCO's pictures too."""
    weights = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.cnn.state_dict().items()}, weights)
    images, boxes, texts = [], [], []
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "train2017").mkdir()
    for number in range(3):
        noise_picture(number).save(tmp_path / "coco" / "train2017" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 50, "height": 40})
        box = {"bbox": [0, 0, 25, 40], "iscrowd": 0, "area": 1000, "category_id": 1}
        boxes.append({"id": number, "image_id": number, **box})
        texts.append({"id": number, "image_id": number, "caption": "a dog runs"})
    categories = [{"id": 1, "name": "dog"}]
    for name, content in (
        ("instances", {"images": images, "annotations": boxes, "categories": categories}),
        ("captions", {"images": images, "annotations": texts}),
    ):
        (tmp_path / "coco" / "annotations" / f"{name}_train2017.json").write_text(json.dumps(content))
    rows = [{"image": f"coco/train2017/{n}.jpg", "caption": "a dog", "split": "train"} for n in range(2)]
    rows.append({"image": "coco/train2017/2.jpg", "caption": "a dog", "split": "dev"})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {
        "format": "custom",
        "captions": "captions.jsonl",
        "instances": "coco/annotations/instances_train2017.json",
    }
    (tmp_path / "sets.json").write_text(json.dumps(dict.fromkeys(("everyday", "people", "flickr8k"), entry)))
    overrides = {
        "encoder": {"backbone": TINY_CNN, "image_size": TINY_SIZE_PX},
        "decoder": {"embedding_dim": 8, "hidden_dim": 8, "attention_dim": 8, "num_heads": 2},
        "training": {"min_count": 1, "batch_size": 2, "max_caption_words": 5},
        "decoding": {"max_words": 5},
    }
    recipe = everyday.Row.recipe
    monkeypatch.setattr(everyday.Row, "recipe", lambda row, given: recipe(row, given).overridden(overrides))
    monkeypatch.setattr(everyday, "EPOCHS", 1)
    chosen = (everyday.Row(data=("people",)), everyday.Row(data=("everyday", "flickr8k"), supervision=1.0))
    monkeypatch.setattr(everyday, "ROWS", chosen)
    monkeypatch.setattr(everyday, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(everyday, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr("captioner.training.log.RunLog.figures", lambda *_: None)
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)
    dog = Vocabulary((*SPECIAL_TOKENS, "dog", "a"))  # so that each caption names one
    monkeypatch.setattr(everyday.Vocabulary, "build", lambda *_, **__: dog)
    (tmp_path / "page.md").write_text(f"{everyday.BEGIN_MARKER}\n{everyday.END_MARKER}\n")
    folders = {"sets": tmp_path / "sets.json", "coco": tmp_path / "coco", "weights": weights}
    folders |= {"runs": tmp_path / "runs", "cache_dir": tmp_path / "cache"}
    AcceleratorState._reset_state()
    try:
        everyday.main(**folders)
        times = [path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")]
        everyday.main(**folders)
    finally:
        AcceleratorState._reset_state()
    assert times == [path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")]
    found = json.loads((tmp_path / "results.json").read_text())
    assert [one["train_pictures"] for one in found.values()] == [2, 4]
    assert all(one["chair_i"] == 0 and 0 < one["entropy"] <= 1 for one in found.values())
    assert "| everyday and flickr8k | 1 | 0 | 4 |" in (tmp_path / "page.md").read_text()
