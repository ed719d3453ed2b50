"""COCO as downloaded, custom data in the same format, and Karpathy's splits of COCO."""

import json
from pathlib import Path
from typing import Any

import pytest

from captioner.errors import CaptionerError
from datasets.coco import Coco
from datasets.karpathy import CocoKarpathy


def annotation_file(images: list[tuple[int, str, list[str]]]) -> dict[str, Any]:
    captions = [(image_id, text) for image_id, _, texts in images for text in texts]
    return {
        "images": [{"id": image_id, "file_name": name} for image_id, name, _ in images],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": text}
            for number, (image_id, text) in enumerate(captions)
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    for split, images in {
        "train": [(7, "000007.jpg", ["A dog.", "A brown dog runs\n"]), (3, "000003.jpg", ["A cat."])],
        "val": [(5, "000005.jpg", ["A bus."])],
    }.items():
        path = tmp_path / "annotations" / f"captions_{split}2017.json"
        path.write_text(json.dumps(annotation_file(images)))
    return tmp_path


def change(root: Path, **parts: Any) -> None:
    path = root / "annotations" / "captions_train2017.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_records_are_in_the_order_of_the_file_with_captions_as_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Coco(root=root).read(["train", "dev"])
    assert [(record.image_id, record.split, record.captions) for record in records] == [
        ("7", "train", ("A dog.", "A brown dog runs\n")),
        ("3", "train", ("A cat.",)),
        ("5", "dev", ("A bus.",)),
    ]
    assert records[0].source == root / "train2017" / "000007.jpg"
    assert records[2].source == root / "val2017" / "000005.jpg"
    assert capsys.readouterr().out == ""  # standard output is for results


def test_a_file_and_a_folder_can_be_given_explicitly(root: Path) -> None:
    path = root / "annotations" / "captions_val2017.json"
    (record,) = Coco(captions=str(path), images=str(root / "photos")).read(["dev"])
    assert record.source == root / "photos" / "000005.jpg"


def test_image_without_captions_stays_in_the_records(root: Path) -> None:
    change(root, images=[{"id": 1, "file_name": "1.jpg"}], annotations=[])
    assert Coco(root=root).read(["train"])[0].captions == ()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": []}, "has captions of 3, which is not among its images"),
        ({"annotations": [{"id": 1, "image_id": 7, "caption": None}]}, "image 7: expected text, not None"),
        ({"annotations": [{"id": 1, "image_id": 7, "caption": 12}]}, "image 7: expected text, not 12"),
        ({"annotations": [{"id": 1, "image_id": 7}]}, "has no captions; give a file of captions, not of"),
        ({"images": [{"id": None, "file_name": "a"}]}, "image number 1: expected an id, not None"),
        ({"images": [{"id": 7}], "annotations": []}, "image 7: it has no file_name"),
        (
            {"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}], "annotations": []},
            "id twice",
        ),
        ({"images": "none"}, "is not a COCO file with captions"),
    ],
)
def test_inconsistent_annotations_are_reported(root: Path, parts: dict[str, Any], message: str) -> None:
    change(root, **parts)
    with pytest.raises(CaptionerError, match=message):
        Coco(root=root).read(["train"])


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", ""])
def test_picture_outside_the_folder_is_refused(root: Path, name: str) -> None:
    change(root, images=[{"id": 7, "file_name": name}], annotations=[])
    with pytest.raises(
        CaptionerError, match=r"image 7: (the picture .* is not a path inside|it has no file_name)"
    ):
        Coco(root=root).read(["train"])


def test_missing_or_damaged_files_and_secret_splits_are_reported(root: Path) -> None:
    with pytest.raises(CaptionerError, match=r"captions_train2014\.json is missing"):
        Coco(root=root, year="2014").read(["train"])
    with pytest.raises(CaptionerError, match="test captions are not public; use --split val"):
        Coco(root=root).read(["test"])
    with pytest.raises(CaptionerError, match=r"\{name\}\.json is missing"):
        Coco(root=root, captions="{name}.json").read(["train"])
    (root / "annotations" / "captions_train2017.json").write_text("[1, 2")
    with pytest.raises(CaptionerError, match="is not a COCO file with captions"):
        Coco(root=root).read(["train"])


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    sentences = [{"raw": "A dog.", "tokens": ["a", "dog"], "sentid": 1, "imgid": 0}]
    images = [
        {
            "filename": f"COCO_{folder}_{number}.jpg",
            "filepath": folder,
            "cocoid": number,
            "split": split,
            "sentences": sentences,
        }
        for number, (folder, split) in enumerate(
            [("train2014", "train"), ("val2014", "restval"), ("val2014", "val"), ("val2014", "test")]
        )
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_restval_is_train_unless_stated_otherwise(karpathy: Path) -> None:
    images = karpathy.parent

    def split_of(**options: Any) -> dict[str, str]:
        reader = CocoKarpathy(captions=karpathy, images=images, **options)
        return {record.image_id: record.split for record in reader.read(["train", "dev", "test"])}

    assert split_of() == {"0": "train", "1": "train", "2": "dev", "3": "test"}
    assert split_of(restval="leave") == {"0": "train", "2": "dev", "3": "test"}
    (dev,) = CocoKarpathy(captions=karpathy, images=images).read(["dev"])
    assert dev.source == images / "val2014" / "COCO_val2014_2.jpg"


def test_file_that_is_not_karpathys_is_reported_with_the_position(karpathy: Path) -> None:
    data = json.loads(karpathy.read_text())
    data["images"][2]["split"] = "validation"
    karpathy.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(CaptionerError, match="not a file of Karpathy's splits"):
        CocoKarpathy(captions=karpathy, images=karpathy.parent).read(["train"])
    karpathy.write_text(json.dumps(data))
    with pytest.raises(CaptionerError, match=r"not a file of Karpathy's splits: .*\$\.images\[2\]\.split"):
        CocoKarpathy(captions=karpathy, images=karpathy.parent).read(["train"])


@pytest.mark.parametrize(
    "template", ["{split.x}", "{split[0]}", "{0}", "{}", "{split!x}", "{year:>{split}}", "{"]
)
def test_braces_other_than_those_of_split_and_year_are_part_of_the_name(root: Path, template: str) -> None:
    name = template.replace("{split}", "train")
    with pytest.raises(CaptionerError) as error:
        Coco(root=root, captions=template).read(["train"])
    assert f"{root / name} is missing" in str(error.value)


def test_files_made_by_hand_need_only_what_captions_need(root: Path) -> None:
    """No ids of annotations; ids of images as text and floats."""
    images = [
        {"id": "7", "file_name": "7.jpg"},
        {"id": 8.0, "file_name": "8.jpg"},
        {"id": "x1", "file_name": "x.jpg"},
    ]
    captions = [(7, "A dog."), ("8", "A cat."), ("x1", "A boat."), (8, "Two cats.")]
    change(root, images=images, annotations=[{"image_id": one, "caption": text} for one, text in captions])
    records = Coco(root=root).read(["train"])
    assert [(record.image_id, record.captions) for record in records] == [
        ("7", ("A dog.",)),
        ("8", ("A cat.", "Two cats.")),
        ("x1", ("A boat.",)),
    ]


def test_invalid_entries_are_named_at_once_or_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    images = [{"id": 7, "file_name": "7.jpg"}, {"id": 8}]
    captions = [(7, "A dog."), (7, None), (9, "A cat."), (8, "A boat.")]
    change(root, images=images, annotations=[{"image_id": one, "caption": text} for one, text in captions])
    with pytest.raises(
        CaptionerError, match=r"3 rows are not valid: .*image 7: expected text.* of 9, .*no file_name"
    ):
        Coco(root=root).read(["train"])
    (record,) = Coco(root=root, skip_invalid=True).read(["train"])
    assert record.captions == ("A dog.",)
    assert "left out 3: " in caplog.text
