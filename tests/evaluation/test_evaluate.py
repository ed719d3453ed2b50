"""`captioner evaluate`: its values against hand counts, and the formats it reads and writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from captioner.cli.main import main
from captioner.cli.output import CaptionWriter
from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import CaptionerError
from captioner.evaluation.coco import CocoImage, read_coco_captions, read_results, write_results
from captioner.evaluation.evaluate import evaluate_captions
from captioner.evaluation.metrics import score_captions
from captioner.evaluation.statistics import CaptionStatistics
from captioner.formats import OutputFormat
from captioner.objects.coco_file import plain_id
from tests.conftest import make_caption
from tests.datasets.test_coco import annotation_file

REFERENCES = {
    "1": ("A dog runs in the snow.", "A brown dog in the snow"),
    "2": ("Two boys play football.", "Boys with a ball"),
    "3": ("A man climbs a rock.",),
}
CAPTIONS = {"1": "a dog runs in the snow", "2": "a dog runs in the snow", "3": "a man on a rock"}
TRAIN = ["A dog runs in the snow!", "A woman sits."]


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)


def test_values_equal_hand_counts() -> None:
    evaluation = evaluate_captions(CAPTIONS, REFERENCES, train_captions=TRAIN)
    assert evaluation.num_pictures == 3
    assert evaluation.statistics.vocabulary_size == 9  # a dog runs in the snow man on rock
    assert evaluation.statistics.mean_length == pytest.approx((6 + 6 + 5) / 3)
    assert evaluation.statistics.distinct_share == pytest.approx(2 / 3)
    assert evaluation.copied_share == pytest.approx(2 / 3)
    assert evaluation.scores == score_captions(CAPTIONS, REFERENCES)
    assert "copied from train  not computed" in str(evaluate_captions(CAPTIONS, REFERENCES))


def test_captions_that_are_truncated_or_repetitive_are_counted() -> None:
    statistics = CaptionStatistics.from_captions(
        [
            "A dog runs through the",
            "a dog runs on",
            "a dog dog runs",
            "a man in a hat and a man in a coat",
            "A man in a hat beside a woman in a coat.",
            "",
            "a dog runs",
            "a dog sits down",
        ]
    )
    assert statistics.truncated_share == pytest.approx(2 / 8)
    assert statistics.repetitive_share == pytest.approx(2 / 8)
    with pytest.raises(ValueError, match="no captions"):
        CaptionStatistics.from_captions([])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    images = [(int(name), f"{int(name):012}.jpg", list(texts)) for name, texts in REFERENCES.items()]
    content = {
        "references": json.dumps(annotation_file(images)),
        "train": json.dumps(annotation_file([(9, "9.jpg", TRAIN)])),
        "results": json.dumps([{"image_id": int(name), "caption": text} for name, text in CAPTIONS.items()]),
        "lines": "\n".join(
            json.dumps({"file": f"photos/{int(name):012}.jpg", "caption": text, "log_prob": -3.0})
            for name, text in CAPTIONS.items()
        ),
    }
    paths = {name: tmp_path / f"{name}.json" for name in content}
    for name, path in paths.items():
        path.write_text(content[name])
    return paths


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *map(str, arguments)])
    return exit_.value.code, *capsys.readouterr()


@pytest.mark.parametrize("results", ["results", "lines"])
def test_captions_from_files_score_as_they_do_in_memory(
    files: dict[str, Path], results: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, printed, _ = evaluate(
        capsys,
        *("--results", files[results], "--references", files["references"]),
        *("--train-references", files["train"], "--results-out", tmp_path / "out.json"),
    )
    assert status == 0
    assert printed == f"{evaluate_captions(CAPTIONS, REFERENCES, train_captions=TRAIN)}\n"
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(files["results"].read_text())


def test_coco_data_set_is_evaluated_with_given_captions(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed, _ = evaluate(
        capsys, "coco", "--captions", files["references"], "--results", files["results"], "--split", "val"
    )
    assert status == 0
    assert printed == f"{evaluate_captions(CAPTIONS, REFERENCES)}\n"  # the file is no train split


def test_picture_without_caption_or_reference_is_reported(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads(files["results"].read_text())
    files["results"].write_text(json.dumps(results[1:]))
    command = ("--results", files["results"], "--references", files["references"])
    status, printed, error = evaluate(capsys, *command)
    advice = "caption them, or leave their references out"
    assert (status, printed, error) == (1, "", f"captioner: 1 pictures have no caption: 1; {advice}\n")
    files["results"].write_text(json.dumps([*results, {"image_id": 4, "caption": "a dog"}]))
    assert evaluate(capsys, *command)[::2] == (
        0,
        "captioner: 1 captions have no reference and are not scored: 4\n",
    )


def test_wrong_usage_is_reported(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    results = ("--results", files["results"])
    for arguments, message in (
        ((), "give a DATASET, or --results and --references; see --help"),
        (results, "give a DATASET, or --results and --references; see --help"),
        ((*results, "--references", files["references"], "coco"), "give a DATASET or --references, not both"),
        ((*results, "--model", "x", "coco"), "give --results or --model, not both"),
        (("coco", "--batch-size", "0"), "--batch-size must be at least 1, not 0"),
    ):
        status, _, error = evaluate(capsys, *arguments)
        assert status == 2
        assert message in error


IMAGES = [CocoImage("1", "a/x.jpg", ()), CocoImage("2", "b/x.jpg", ()), CocoImage("3", "y.jpg", ())]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image_id": 3}]', "entry 1: expected an object with caption and image_id or file"),
        ('[{"caption": "a dog"}]', "entry 1: neither image_id nor file is given"),
        (
            '{"file": "y.jpg", "caption": "a"}\n{"file": "z/y.jpg", "caption": "b"}',
            "image 3 already has a caption",
        ),
        ('{"file": "x.jpg", "caption": "a"}', r"several images have the file name x\.jpg in the references"),
        ("[1, 2", "neither COCO results nor a file of caption.py"),
    ],
)
def test_results_that_cannot_be_matched_are_reported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CaptionerError, match=message):
        read_results(tmp_path / "results.json", IMAGES)


def test_written_results_are_read_back_and_numbers_stay_numbers(tmp_path: Path) -> None:
    captions = {"42": "a dog", "0042": "a line\u2028end", "000000000139.jpg": 'a "cat"\twith ä'}
    write_results(tmp_path / "results.json", captions)
    assert read_results(tmp_path / "results.json", []) == captions
    assert json.loads((tmp_path / "results.json").read_text())[0] == {"image_id": 42, "caption": "a dog"}


def test_what_the_command_writes_is_read_in_each_format(
    tmp_path: Path, even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    """Names with what a line cannot have, and two folders with a picture of one name."""
    names = ("a/x.jpg", "b/x.jpg", "=t\ty.jpg")
    images = [CocoImage(str(number), name, ()) for number, name in enumerate(names, start=1)]
    for kind in get_args(OutputFormat):
        path = tmp_path / f"captions.{'csv' if kind == 'exiftool' else kind}"
        with CaptionWriter(path, kind, with_attention=False, settings={}) as writer:
            for folder, name, text in zip(
                ("/p", "/p", ""), names, ("a dog", "a cat", "=a boat"), strict=True
            ):
                picture = Path(folder, name)
                best = make_caption(tuple(text.split()), even_grid, preprocess_config)
                best = replace(best, picture=picture, text=text)
                writer.write(replace(best, alternatives=(replace(best, text="another"),)))
        assert read_results(path, images) == {"1": "a dog", "2": "a cat", "3": "=a boat"}


def test_ids_may_be_text_or_floats_and_are_written_as_they_came(tmp_path: Path) -> None:
    references = tmp_path / "references.json"
    content = {"images": [{"id": "7"}, {"id": 8.0}], "annotations": [{"image_id": 7, "caption": "a"}]}
    references.write_text(json.dumps(content))
    images = read_coco_captions(references)
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 7.0, "caption": "a"}, {"image_id": "8", "caption": "b"}]')
    captions = read_results(results, images)
    assert captions == {"7": "a", "8": "b"}
    write_results(results, captions, raw_ids={image.image_id: image.raw_id for image in images})
    assert [entry["image_id"] for entry in json.loads(results.read_text())] == ["7", 8.0]


def test_references_without_a_word_are_refused() -> None:
    with pytest.raises(CaptionerError, match="1 pictures have references without a word: 2"):
        score_captions({"1": "a cat", "2": "a dog"}, {"1": ["...", "a cat"], "2": ["..."]}, with_meteor=False)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("image,caption\n1.jpg,ein Mädchen\n", "utf-8"),
        ("file;caption\n1.jpg;ein Mädchen\n", "cp1252"),  # as European spreadsheets save it
        ("image_id\tcaption\n1.0\tein Mädchen\n", "utf-16"),
    ],
)
def test_tables_of_captions_from_other_programs_are_read(tmp_path: Path, content: str, encoding: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(content, encoding=encoding)
    assert read_results(path, [CocoImage("1", "a/1.jpg", ())]) == {"1": "ein Mädchen"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,words\n1.jpg,a\n", "needs the columns file and caption, and has name, words"),
        ("file,caption\n1.jpg\n", "line 2 has another number of cells than the header"),
    ],
)
def test_tables_that_are_not_captions_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.csv").write_text(content)
    with pytest.raises(CaptionerError, match=message):
        read_results(tmp_path / "results.csv", IMAGES)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7.0, 7),
        ("7", 7),
        ("7.0", 7),
        ("007", "007"),
        ("1_0", "1_0"),
        ("1e2", "1e2"),
        ("9" * 20, "9" * 20),
        (" x ", "x"),
    ],
)
def test_ids_that_look_alike_stay_apart(value: object, expected: object) -> None:
    assert plain_id(value) == expected
