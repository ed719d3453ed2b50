import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.images.reading import load_image
from datasets.custom import CustomCaptions
from tests.conftest import noise_picture

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
        ([{"image": "1.jpg"}, ROWS[0]], r"custom\.jsonl:1: a row needs image and caption"),
        (
            [{"image": "1.jpg", "words": "A dog."}],
            r"has the columns image, words; none is called caption, .* --caption-column",
        ),
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
    (tmp_path / "custom.jsonl").write_bytes(b"\x81\xff\xfe")
    with pytest.raises(CaptionerError, match=r"cannot read .*custom\.jsonl: "):
        CustomCaptions(captions=tmp_path / "custom.jsonl").read(["train"])
    (tmp_path / "custom.csv").write_text("image,caption\n1.jpg,A dog, running fast\n")
    with pytest.raises(
        CaptionerError, match=r"custom\.csv:2: more cells than columns; quote captions that contain commas"
    ):
        CustomCaptions(captions=tmp_path / "custom.csv").read(["train"])
    (tmp_path / "custom.xlsx").write_text("x")
    with pytest.raises(CaptionerError, match=r"custom\.xlsx must end in \.jsonl, .* or be a folder"):
        CustomCaptions(captions=tmp_path / "custom.xlsx").read(["train"])


PICTURES = ["1.jpg", "2.jpg"]
CAPTIONS = {"1.jpg": ("A dog; brown, runs.", "Ein Hund läuft."), "2.jpg": ("A cat.",)}
PAIRS = [(name, text) for name, texts in CAPTIONS.items() for text in texts]


def lines(header: str, delimiter: str, *, is_quoted: bool = False) -> str:
    rows = ((name, f'"{text}"' if is_quoted else text) for name, text in PAIRS)
    return "\n".join([header, *(delimiter.join(row) for row in rows)])


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def write_as(kind: str, folder: Path) -> Path:
    """The pictures and captions above in a format that people have; gives what --captions takes."""
    contents = {}
    for number, name in enumerate(PICTURES):
        noise_picture(number).save(folder / name)
        contents[name] = (folder / name).read_bytes()
    joined = {name: " ".join(texts) for name, texts in CAPTIONS.items()}
    texts = {
        "blip.json": json.dumps([{"image": name, "caption": texts} for name, texts in CAPTIONS.items()]),
        "by-name.json": json.dumps(CAPTIONS),
        "lines.json": "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in PAIRS),
        "european.csv": lines("Image;Caption", ";", is_quoted=True),
        "tabs.tsv": lines("filename\ttext", "\t"),
        "bars.csv": lines("image_name | comment", " | "),
        "metadata.csv": lines("file_name,text", ",", is_quoted=True),
        "numbered.csv": "image,caption_0,caption_1\n"
        '1.jpg,"A dog; brown, runs.",Ein Hund läuft.\n2.jpg,A cat.,\n',
    }
    if kind in texts:
        encoding = {"european.csv": "cp1252", "tabs.tsv": "utf-16", "bars.csv": "utf-8-sig"}.get(
            kind, "utf-8"
        )
        (folder / kind).write_text(texts[kind], encoding=encoding)
        return folder / kind
    if kind == "imagefolder":
        (folder / "metadata.jsonl").write_text(texts["lines.json"], encoding="utf-8")
    elif kind == "beside":
        for name, text in joined.items():
            (folder / name).with_suffix(".txt").write_text(f"\ufeff{text}\n", encoding="utf-8")
    elif kind == "webdataset":
        members = {}
        for name, content in contents.items():
            members |= {name: content, f"{name[:-4]}.json": json.dumps({"caption": CAPTIONS[name]}).encode()}
            (folder / name).unlink()
        tar(folder / "shard-0.tar", members)
    elif kind == "parquet":
        rows = [{"image": {"bytes": contents[name], "path": name}, "text": text} for name, text in PAIRS]
        parquet(folder / "data.parquet", rows)
    elif kind == "paths.parquet":
        parquet(folder / kind, [{"image": name, "caption": list(texts)} for name, texts in CAPTIONS.items()])
        return folder / kind
    return folder


TABLES = ("blip.json", "by-name.json", "lines.json", "european.csv", "tabs.tsv", "bars.csv", "metadata.csv")


@pytest.mark.parametrize("kind", [*TABLES, "numbered.csv", "imagefolder", "webdataset", "paths.parquet"])
def test_each_format_gives_the_same_pictures_and_captions(kind: str, tmp_path: Path) -> None:
    records = CustomCaptions(captions=write_as(kind, tmp_path)).read(["train", "dev", "test"])
    assert {record.image_id.rpartition("/")[2]: record.captions for record in records} == CAPTIONS
    for record in records:
        expected = noise_picture(PICTURES.index(record.image_id.rpartition("/")[2]))
        assert load_image(record.source).size == expected.size


def test_captions_beside_pictures_are_one_each(tmp_path: Path) -> None:
    records = CustomCaptions(captions=write_as("beside", tmp_path)).read(["train", "dev", "test"])
    assert {record.image_id: record.captions for record in records} == {
        name: (" ".join(texts),) for name, texts in CAPTIONS.items()
    }


def test_pictures_inside_parquet_are_read_in_any_order(tmp_path: Path) -> None:
    records = CustomCaptions(captions=write_as("parquet", tmp_path)).read(["train", "dev", "test"])
    assert [record.captions for record in records] == [(text,) for _, text in PAIRS]
    for (name, _), record in reversed(list(zip(PAIRS, records, strict=True))):
        picture = load_image(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(load_image(record.source)), np.asarray(picture))


def test_folders_of_splits_say_the_split(tmp_path: Path) -> None:
    for folder in ("train", "validation"):
        (tmp_path / folder).mkdir()
        write_as("imagefolder", tmp_path / folder)
    records = CustomCaptions(captions=tmp_path).read(["train", "dev"])
    assert [(record.image_id, record.split) for record in records] == [
        *((f"train/{name}", "train") for name in PICTURES),
        *((f"validation/{name}", "dev") for name in PICTURES),
    ]


def test_all_invalid_rows_are_named_at_once_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [
        *ROWS,
        {"image": "4.jpg", "caption": None},
        {"image": "", "caption": "A cat."},
        {"image": "5.jpg", "caption": 7},
    ]
    path = write_jsonl(tmp_path / "custom.jsonl", rows)
    with pytest.raises(
        CaptionerError, match=r"3 rows are not valid: \S+:9: .*, \S+:11: .*, \S+:13: .*7; --skip-inv"
    ):
        CustomCaptions(captions=path).read(["train"])
    records = CustomCaptions(captions=path, skip_invalid=True).read(["train", "dev", "test"])
    assert len(records) == 3
    assert "left out 3: " in caplog.text


def test_columns_of_any_name_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("foto,titre,note\na.jpg,Un chien,x\n")
    with pytest.raises(
        CaptionerError, match=r"has the columns foto, titre, note; none is called image, .* --image-col"
    ):
        CustomCaptions(captions=path).read(["train"])
    reader = CustomCaptions(captions=path, image_column="foto", caption_column="titre", test_share=0.0)
    assert [record.captions for record in reader.read(["train", "dev"])] == [("Un chien",)]


def test_coco_format_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(CaptionerError, match="has COCO's format; read it with the format coco"):
        CustomCaptions(captions=path).read(["train"])


def read_all(captions: Path, **options: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Split and captions of each picture, by name."""
    records = CustomCaptions(captions=captions, **options).read(["train", "dev", "test"])
    return {record.image_id: (record.split, record.captions) for record in records}


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_quotes_in_captions_do_not_swallow_rows(name: str, tmp_path: Path) -> None:
    """A row starts with a quote that is part of the caption, and a later one too, or none."""
    delimiter = "\t" if name == "t.tsv" else ";"
    texts = [f"A dog {number}" for number in range(12)]
    for quoted in ({3: '"No entry" reads a sign', 8: '"Open" it says'}, {3: '"No entry reads a sign'}):
        written = [quoted.get(number, text) for number, text in enumerate(texts)]
        rows = [f"{number}.jpg{delimiter}{text}" for number, text in enumerate(written)]
        (tmp_path / name).write_text("\n".join([f"image{delimiter}caption", *rows]))
        found = read_all(tmp_path / name)
        assert [captions for _, captions in found.values()] == [(text,) for text in written]


def test_captions_in_several_columns_and_in_lists_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('sep=,\nimage,caption,caption,caption_2,\n1.jpg,a,b,c,\n2.jpg,"[""d"", ""e""]",,,\n')
    assert [captions for _, captions in read_all(path).values()] == [("a", "b", "c"), ("d", "e")]
    path = write_jsonl(
        tmp_path / "t.jsonl", [{"image": "1.jpg", "captions": ["a", {"caption": "b"}, {"raw": "c"}]}]
    )
    assert [captions for _, captions in read_all(path).values()] == [("a", "b", "c")]


@pytest.mark.parametrize(
    ("encoding", "text"), [("gbk", "一只狗在跑步"), ("shift_jis", "犬が走る"), ("utf-16-le", "A dog")]
)
def test_text_in_unknown_encodings_is_refused(encoding: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(f"image,caption\n1.jpg,{text}\n".encode(encoding))
    with pytest.raises(CaptionerError, match="is not text in UTF-8; save it as UTF-8"):
        read_all(tmp_path / "t.csv")


def test_archives_keep_pictures_and_captions_together(tmp_path: Path) -> None:
    """Names with dots, further files of a picture, and a JSON file without a caption."""
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        members = {f"IMG.{number}.jpg": b"x" for number in range(3)}
        members |= {f"IMG.{number}.json": b'{"width": 3}' for number in range(3)}
        members |= {f"IMG.{number}.txt": f"Dog {folder} {number}\nA dog".encode() for number in range(3)}
        tar(tmp_path / folder / "000.tar", {**members, "._IMG.0.jpg": b"mac"})
    found = read_all(tmp_path)
    assert found == {
        f"{folder}/000.tar/IMG.{number}.jpg": (split, (f"Dog {folder} {number}", "A dog"))
        for folder, split in (("train", "train"), ("val", "dev"))
        for number in range(3)
    }
    whole = (tmp_path / "train" / "000.tar").read_bytes()
    (tmp_path / "train" / "000.tar").write_bytes(whole[: 2 * 512])  # between two members
    with pytest.raises(CaptionerError, match="damaged or truncated tar archive"):
        read_all(tmp_path)
    (tmp_path / "train" / "000.tar").rename(tmp_path / "train" / "000.tar.gz")
    with pytest.raises(CaptionerError, match=r"000\.tar\.gz is compressed; unpack it"):
        read_all(tmp_path)


def test_splits_follow_folders_only_if_they_name_train_and_another(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{folder}/{number}.jpg", "text": "a"}
        for folder in ("train", "test")
        for number in range(4)
    ]
    path = write_jsonl(tmp_path / "metadata.jsonl", rows)
    found = read_all(path)
    assert (
        sorted(split for split, _ in found.values()) == ["dev"] + ["test"] * 4 + ["train"] * 3
    )  # dev is from train
    assert all((split == "test") == name.startswith("test") for name, (split, _) in found.items())
    rows = [
        {"file_name": f"{folder}/{number}.jpg", "text": "a"}
        for folder in ("train", "bus")
        for number in range(40)
    ]
    found = read_all(write_jsonl(path, rows))
    assert {name.split("/")[0] for name, (split, _) in found.items() if split == "train"} == {"train", "bus"}


def test_names_of_pictures_beside_captions_are_no_splits(tmp_path: Path) -> None:
    for name in ("train_1", "train_2", "bus_1", "bus_2"):
        (tmp_path / f"{name}.JPG").touch()
        (tmp_path / f"{name}.TXT").write_text("A train.\nIt waits.")
    (tmp_path / "readme.txt").write_text("about")
    found = read_all(tmp_path, test_share=0.0)
    assert sorted(split for split, _ in found.values()) == ["dev", "train", "train", "train"]
    assert {captions for _, captions in found.values()} == {("A train.", "It waits.")}


def test_one_picture_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    rows = [
        {"image": name, "caption": "a"}
        for name in ("sub/1.jpg", "./sub/1.jpg", "sub\\1.jpg", str(tmp_path / "sub/1.jpg"))
    ]
    assert read_all(write_jsonl(tmp_path / "t.jsonl", rows), test_share=0.0).keys() == {"sub/1.jpg"}


def test_splits_of_parquet_do_not_depend_on_how_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_as("parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_all(Path("data.parquet")) == read_all(tmp_path / "data.parquet")


def test_quoted_captions_of_several_lines_are_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'image,caption\n1.jpg,"A dog runs,\nand a cat, too."\n2.jpg,"A ""boat"", red"\n'
    )
    captions = [captions for _, captions in read_all(tmp_path / "t.csv").values()]
    assert captions == [("A dog runs,\nand a cat, too.",), ('A "boat", red',)]


def test_column_of_bytes_can_be_named(tmp_path: Path) -> None:
    noise_picture(0).save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    parquet(tmp_path / "t.parquet", [{"jpg": content, "caption": text, "set": "A"} for text in ("a", "b")])
    found = read_all(tmp_path / "t.parquet", image_column="jpg")
    assert [captions for _, captions in found.values()] == [("a",), ("b",)]
