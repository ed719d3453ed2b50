import json
from pathlib import Path
from typing import Any

import pytest
from datasets.own import CustomCaptions

from datasets import CaptionerError

ROWS = [
    {"image": "photos/1.jpg", "caption": 'A dog, "Rex", runs.', "split": "train"},
    {"image": "photos/2.jpg", "caption": "Ein Hund läuft.", "split": "val"},
    {"image": "photos/1.jpg", "caption": "A dog.", "split": "train"},
    {"image": "photos/3.jpg", "caption": "A cat.", "split": "test"},
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as file:  # as a spreadsheet saves it
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_jsonl_and_csv_give_the_same_records(tmp_path: Path) -> None:
    jsonl = CustomCaptions(captions=write_jsonl(tmp_path / "own.jsonl", ROWS)).read(["train", "dev", "test"])
    csv = CustomCaptions(captions=write_csv(tmp_path / "own.csv", ROWS)).read(["train", "dev", "test"])
    assert jsonl == csv
    assert [(record.image_id, record.split, record.captions) for record in jsonl] == [
        ("photos/1.jpg", "train", ('A dog, "Rex", runs.', "A dog.")),
        ("photos/2.jpg", "dev", ("Ein Hund läuft.",)),
        ("photos/3.jpg", "test", ("A cat.",)),
    ]
    assert jsonl[0].source == tmp_path / "photos" / "1.jpg"


def test_without_a_split_all_captions_of_a_picture_fall_into_one(tmp_path: Path) -> None:
    rows = [{"image": f"{number % 40}.jpg", "caption": f"caption {number}"} for number in range(200)]

    def split_of(order: list[dict[str, str]], **options: Any) -> dict[str, str]:
        reader = CustomCaptions(captions=write_jsonl(tmp_path / "own.jsonl", order), **options)
        return {record.image_id: record.split for record in reader.read(["train", "dev", "test"])}

    found = split_of(rows)
    assert sorted(found.values()) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 36
    assert split_of(rows[::-1]) == found  # neither the order nor the machine decides
    assert split_of(rows, split_seed=1) != found
    assert sorted(split_of(rows, dev_share=0.5, test_share=0.0).values()) == ["dev"] * 20 + ["train"] * 20


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "1.jpg"}], r"own\.jsonl:1: a row needs image and caption"),
        ([{"image": "1.jpg", "caption": None}], r"own\.jsonl:1: a row needs image and caption"),
        ([{"image": "1.jpg", "caption": 5}], r"own\.jsonl:1: caption must be text, not 5"),
        ([["1.jpg", "A dog."]], r"own\.jsonl:1: expected an object"),
        ([{"image": "../1.jpg", "caption": "A dog."}], r"'\.\./1\.jpg' is no path below"),
        (
            [ROWS[0], {**ROWS[1], "split": "holdout"}],
            r"own\.jsonl:3: the split 'holdout' is none of train, dev",
        ),
        (
            [ROWS[0], {**ROWS[0], "split": "test"}],
            r"own\.jsonl:3: photos/1\.jpg is in train above, and in test",
        ),
        (
            [ROWS[0], {"image": "2.jpg", "caption": "A cat."}],
            "1 of 2 rows have no split; fill in all or none",
        ),
    ],
)
def test_row_that_is_not_as_it_should_be_is_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(CaptionerError, match=message):
        CustomCaptions(captions=write_jsonl(tmp_path / "own.jsonl", rows)).read(["train", "dev"])


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"own\.jsonl is missing"):
        CustomCaptions(captions=tmp_path / "own.jsonl").read(["train"])
    (tmp_path / "own.jsonl").write_text('{"image": "1.jpg", "caption": "x"}\n{"image": ')
    with pytest.raises(CaptionerError, match=r"own\.jsonl:2: not JSON"):
        CustomCaptions(captions=tmp_path / "own.jsonl").read(["train"])
    (tmp_path / "own.csv").write_bytes(b"image,caption\n1.jpg,\xff\xfe")
    with pytest.raises(CaptionerError, match=r"own\.csv cannot be read"):
        CustomCaptions(captions=tmp_path / "own.csv").read(["train"])
    (tmp_path / "own.csv").write_text("image,caption\n1.jpg,A dog, running fast\n")
    with pytest.raises(CaptionerError, match=r"own\.csv:2: more cells than columns; put captions with commas"):
        CustomCaptions(captions=tmp_path / "own.csv").read(["train"])
    (tmp_path / "own.txt").write_text("x")
    with pytest.raises(CaptionerError, match=r"own\.txt must end in \.jsonl or \.csv"):
        CustomCaptions(captions=tmp_path / "own.txt").read(["train"])
