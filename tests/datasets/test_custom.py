import json
from pathlib import Path
from typing import Any

import pytest

from captioner.errors import CaptionerError
from datasets.custom import CustomCaptions

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
    jsonl = CustomCaptions(captions=write_jsonl(tmp_path / "custom.jsonl", ROWS)).read(
        ["train", "dev", "test"]
    )
    csv = CustomCaptions(captions=write_csv(tmp_path / "custom.csv", ROWS)).read(["train", "dev", "test"])
    assert jsonl == csv
    assert [(record.image_id, record.split, record.captions) for record in jsonl] == [
        ("photos/1.jpg", "train", ('A dog, "Rex", runs.', "A dog.")),
        ("photos/2.jpg", "dev", ("Ein Hund läuft.",)),
        ("photos/3.jpg", "test", ("A cat.",)),
    ]
    assert jsonl[0].source == tmp_path / "photos" / "1.jpg"


def test_without_a_split_all_captions_of_a_picture_are_in_the_same(tmp_path: Path) -> None:
    rows = [{"image": f"{number % 40}.jpg", "caption": f"caption {number}"} for number in range(200)]

    def split_of(order: list[dict[str, str]], **options: Any) -> dict[str, str]:
        reader = CustomCaptions(captions=write_jsonl(tmp_path / "custom.jsonl", order), **options)
        return {record.image_id: record.split for record in reader.read(["train", "dev", "test"])}

    found = split_of(rows)
    assert sorted(found.values()) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 36
    assert split_of(rows[::-1]) == found  # it depends on neither the order nor the machine
    assert split_of(rows, split_seed=1) != found
    assert sorted(split_of(rows, dev_share=0.5, test_share=0.0).values()) == ["dev"] * 20 + ["train"] * 20


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "1.jpg"}], r"custom\.jsonl:1: a row needs image and caption"),
        ([{"image": "1.jpg", "caption": None}], r"custom\.jsonl:1: a row needs image and caption"),
        ([{"image": "1.jpg", "caption": 5}], r"custom\.jsonl:1: caption must be text, not 5"),
        ([["1.jpg", "A dog."]], r"custom\.jsonl:1: expected an object"),
        ([{"image": "../1.jpg", "caption": "A dog."}], r"'\.\./1\.jpg' is not a path inside"),
        (
            [ROWS[0], {**ROWS[1], "split": "holdout"}],
            r"custom\.jsonl:3: the split 'holdout' must be one of train, dev",
        ),
        (
            [ROWS[0], {**ROWS[0], "split": "test"}],
            r"custom\.jsonl:3: photos/1\.jpg is in train above and in test here",
        ),
        (
            [ROWS[0], {"image": "2.jpg", "caption": "A cat."}],
            "1 of 2 rows have no split; fill in all or none",
        ),
    ],
)
def test_malformed_row_is_reported(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(CaptionerError, match=message):
        CustomCaptions(captions=write_jsonl(tmp_path / "custom.jsonl", rows)).read(["train", "dev"])


def test_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"custom\.jsonl is missing"):
        CustomCaptions(captions=tmp_path / "custom.jsonl").read(["train"])
    (tmp_path / "custom.jsonl").write_text('{"image": "1.jpg", "caption": "x"}\n{"image": ')
    with pytest.raises(CaptionerError, match=r"custom\.jsonl:2: not JSON"):
        CustomCaptions(captions=tmp_path / "custom.jsonl").read(["train"])
    (tmp_path / "custom.csv").write_bytes(b"image,caption\n1.jpg,\xff\xfe")
    with pytest.raises(CaptionerError, match=r"cannot read .*custom\.csv: "):
        CustomCaptions(captions=tmp_path / "custom.csv").read(["train"])
    (tmp_path / "custom.csv").write_text("image,caption\n1.jpg,A dog, running fast\n")
    with pytest.raises(
        CaptionerError, match=r"custom\.csv:2: more cells than columns; quote captions that contain commas"
    ):
        CustomCaptions(captions=tmp_path / "custom.csv").read(["train"])
    (tmp_path / "custom.txt").write_text("x")
    with pytest.raises(CaptionerError, match=r"custom\.txt must end in \.jsonl or \.csv"):
        CustomCaptions(captions=tmp_path / "custom.txt").read(["train"])
