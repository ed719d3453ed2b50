"""Flickr8k and Flickr30k in their official layouts, and in Karpathy's splits."""

import json
import multiprocessing
import zipfile
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.images.reading import load_image
from captioner.images.sources import ImageSource
from captioner.records import CaptionedImage
from datasets.flickr import Flickr8k, Flickr30k
from tests.conftest import noise_picture

NAMES = {"train": ["t1.jpg", "t2.jpg"], "dev": ["d1.jpg"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures with two captions each, in the official layout, pictures in a folder."""
    for split, names in NAMES.items():
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in names))
    (tmp_path / "Flicker8k_Dataset").mkdir()
    lines = []
    for index, name in enumerate(name for names in NAMES.values() for name in names):
        noise_picture(index).save(tmp_path / "Flicker8k_Dataset" / name)
        lines += [f"{name}#{number}\tCaption {number} of {name} .\n" for number in range(2)]
    (tmp_path / "Flickr8k.token.txt").write_text("".join(lines))
    return tmp_path


def zip_pictures(root: Path) -> None:
    pictures = sorted((root / "Flicker8k_Dataset").iterdir())
    with zipfile.ZipFile(root / "one.zip", "w") as archive:
        for path in pictures:
            archive.write(path, f"Flicker8k_Dataset/{path.name}")
            path.unlink()


def read(root: Path) -> list[CaptionedImage]:
    return Flickr8k(root=root).read(["train", "dev"])


def test_records_follow_the_split_lists_and_keep_captions_as_written(root: Path) -> None:
    records = read(root)
    assert [(record.split, record.image_id) for record in records] == [
        ("train", "t1.jpg"),
        ("train", "t2.jpg"),
        ("dev", "d1.jpg"),
    ]
    assert records[0].captions == ("Caption 0 of t1.jpg .", "Caption 1 of t1.jpg .")


def pixels(source: ImageSource) -> np.ndarray:
    return np.asarray(load_image(source))


def test_pictures_in_zips_are_the_same_as_in_a_folder(root: Path) -> None:
    from_folder = [pixels(record.source) for record in read(root)]
    zip_pictures(root)
    for one, other in zip(from_folder, [record.source for record in read(root)], strict=True):
        np.testing.assert_array_equal(one, pixels(other))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_members_of_a_zip_can_be_read_in_several_processes_at_once(root: Path) -> None:
    from_folder = [pixels(record.source) for record in read(root)]
    zip_pictures(root)
    sources = [record.source for record in read(root)]
    pixels(sources[0])  # the archive is open in this process already
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for one, other in zip(from_folder * 5, pool.map(pixels, sources * 5, chunksize=1), strict=True):
            np.testing.assert_array_equal(one, other)


def test_split_that_is_not_requested_may_be_missing(root: Path) -> None:
    (root / "Flickr_8k.trainImages.txt").unlink()
    assert [record.image_id for record in Flickr8k(root=root).read(["dev"])] == ["d1.jpg"]
    with pytest.raises(
        CaptionerError, match=r"trainImages\.txt is missing; --root must have the official layout"
    ):
        read(root)


def test_files_that_are_not_in_the_format_are_reported(root: Path) -> None:
    tokens = root / "Flickr8k.token.txt"
    whole = tokens.read_text()

    tokens.write_text(whole + "a line without its tab\n")
    with pytest.raises(CaptionerError, match=r"Flickr8k\.token\.txt:7: expected picture#number"):
        read(root)

    tokens.write_text("\n".join(line for line in whole.splitlines() if not line.startswith("d1")))
    with pytest.raises(CaptionerError, match=r"no caption of d1\.jpg, which its dev split lists"):
        read(root)

    tokens.write_text(whole)
    (root / "damaged.zip").write_text("no archive")
    with pytest.raises(CaptionerError, match=r"damaged\.zip is a damaged or truncated zip archive"):
        read(root)


@pytest.fixture
def root30k(tmp_path: Path) -> Path:
    names = [f"{number}.jpg" for number in range(30)]
    lines = [f"{name}#{number}\tCaption {number} of {name} ." for name in names for number in range(5)]
    (tmp_path / "results_20130124.token").write_text("\n".join(lines))
    return tmp_path


def test_flickr30k_uses_the_lists_of_entities_if_they_exist(root30k: Path) -> None:
    for name, pictures in {"train": "3\n4", "val": "5", "test": "6.jpg"}.items():
        (root30k / f"{name}.txt").write_text(pictures)
    records = Flickr30k(root=root30k).read(["train", "dev", "test"])
    assert [(record.image_id, record.split) for record in records] == [
        ("3.jpg", "train"),
        ("4.jpg", "train"),
        ("5.jpg", "dev"),
        ("6.jpg", "test"),
    ]
    assert len(records[0].captions) == 5


def test_flickr30k_without_lists_is_split_by_picture_and_seed(root30k: Path) -> None:
    def split_of(seed: int) -> dict[str, str]:
        records = Flickr30k(root=root30k, split_seed=seed).read(["train", "dev", "test"])
        return {record.image_id: record.split for record in records}

    assert split_of(0) == split_of(0) != split_of(1)
    assert sorted(split_of(0).values()) == ["dev"] * 10 + ["test"] * 10 + ["train"] * 10


def test_karpathys_splits_find_the_pictures_of_the_official_layout(root: Path) -> None:
    sentences = [{"raw": "A dog runs.", "tokens": ["a", "dog", "runs"]}]
    images = [
        {"filename": "t1.jpg", "split": "val", "sentences": sentences},
        {"filename": "d1.jpg", "split": "train", "sentences": sentences},
    ]
    path = root / "dataset_flickr8k.json"
    path.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    train, dev = sorted(
        Flickr8k(root=root, karpathy=path).read(["train", "dev"]), key=lambda record: record.image_id
    )
    assert (train.image_id, train.split, dev.image_id, dev.split) == ("d1.jpg", "train", "t1.jpg", "dev")
    assert train.captions == ("A dog runs.",)
    assert pixels(train.source).shape == (40, 50, 3)


@pytest.mark.parametrize("suffix", [".JPG", ".Jpg", ".jpeg", ".JPEG"])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_pictures_are_found_whatever_the_case_of_their_suffix(
    root: Path, suffix: str, is_zipped: bool
) -> None:
    """The token file and the split lists name pictures by their files' own names."""
    for path in root.rglob("*.jpg"):
        path.rename(path.with_suffix(suffix))
    for path in root.glob("*.txt"):
        path.write_text(path.read_text().replace(".jpg", suffix))
    if is_zipped:
        with zipfile.ZipFile(root / "pictures.ZIP", "w") as archive:
            for path in sorted(root.rglob(f"*{suffix}")):
                archive.write(path, f"images/{path.name}")
                path.unlink()
    records = Flickr8k(root=root).read(["train", "dev"])
    assert records
    for record in records:
        assert record.image_id.endswith(suffix)
        load_image(record.source)


def write_kaggle(root: Path, content: str, folder: str, numbers: range) -> None:
    (root / folder).mkdir(parents=True)
    for number in numbers:
        noise_picture(number).save(root / folder / f"{number}.jpg")
    name = "results.csv" if "|" in content else "captions.txt"
    (root / name).write_text(content)


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (
            "image,caption\n0.jpg,A dog , brown and wet , runs .\n"
            '0.jpg,"A dog, brown, runs."\n1.jpg,"He said ""stop"" ."\n2.jpg,A cat .\n',
            ("A dog , brown and wet , runs .", "A dog, brown, runs."),
        ),
        (
            "image_name,comment_number,comment\n0.jpg,0,A dog .\n1.jpg,0,A cat .\n2.jpg,0,A boat .\n",
            ("A dog .",),
        ),
        (
            "image_name| comment_number| comment\n0.jpg| 0| A dog .\n0.jpg| 1   A dog runs .\n"
            "1.jpg| 0| A cat .\n2.jpg| 0| A boat .\n",
            ("A dog .", "A dog runs ."),
        ),
    ],
    ids=["captions.txt", "with numbers", "results.csv, whose second row lacks a bar"],
)
@pytest.mark.parametrize("reader", [Flickr8k, Flickr30k])
def test_kaggle_archives_are_read_as_they_are_unpacked(
    tmp_path: Path, content: str, captions: tuple[str, ...], reader: type[Flickr8k | Flickr30k]
) -> None:
    write_kaggle(tmp_path, content, "Images", range(3))
    records = reader(root=tmp_path).read(["train", "dev", "test"])
    assert sorted(record.split for record in records) == ["dev", "test", "train"]
    (found,) = (record for record in records if record.image_id == "0.jpg")
    assert found.captions == captions
    assert pixels(found.source).shape == (40, 50, 3)
    assert reader(root=tmp_path).read(["train", "dev", "test"]) == records


def test_kaggle_archive_takes_official_lists_and_files_in_a_folder(tmp_path: Path) -> None:
    write_kaggle(
        tmp_path / "archive", "image,caption\n0.jpg,A dog .\n1.jpg,A cat .\n2.jpg,x\n", "Images", range(3)
    )
    (tmp_path / "lists").mkdir()
    for split, number in (("train", 1), ("dev", 0), ("test", 2)):
        (tmp_path / "lists" / f"Flickr_8k.{split}Images.txt").write_text(f"{number}.jpg\n")
    records = Flickr8k(root=tmp_path).read(["train", "dev"])
    assert [(record.image_id, record.split) for record in records] == [("1.jpg", "train"), ("0.jpg", "dev")]


def test_two_different_pictures_of_one_name_are_told_and_copies_are_one(root: Path) -> None:
    original = root / "Flicker8k_Dataset" / "t1.jpg"
    (root / "zz").mkdir()
    (root / "zz" / "t1.jpg").write_bytes(original.read_bytes())
    zip_pictures(root)
    assert len(read(root)) == 3
    noise_picture(0).resize((10, 8)).save(root / "zz" / "t1.jpg")  # a thumbnail
    with pytest.raises(
        CaptionerError, match=r"2 different pictures are called t1\.jpg: .*zz/t1\.jpg.*; move all"
    ):
        read(root)
    (root / "zz").rename(root / ".zz")
    assert len(read(root)) == 3


def test_pictures_of_any_format_are_found_through_links(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("disk") / "pictures"
    (root / "Flicker8k_Dataset").rename(elsewhere)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    assert [pixels(record.source).shape for record in read(root)] == [(40, 50, 3)] * 3


def test_invalid_lines_are_named_at_once_or_left_out(root: Path) -> None:
    tokens = root / "Flickr8k.token.txt"
    tokens.write_text("no caption\n" + tokens.read_text() + "another\n")
    (root / "Flickr_8k.devImages.txt").write_text("d1.jpg\nmissing.jpg\n")
    with pytest.raises(
        CaptionerError, match=r"3 rows are not valid: .*:1: expected picture#number.*:8: .*missing\.jpg"
    ):
        read(root)
    assert len(Flickr8k(root=root, skip_invalid=True).read(["train", "dev"])) == 3


def test_kaggle_archive_without_its_header_is_read(tmp_path: Path) -> None:
    write_kaggle(tmp_path, "0.jpg,A dog , wet .\n1.jpg,A cat .\n2.jpg,A boat .\n", "Images", range(3))
    records = Flickr8k(root=tmp_path).read(["train", "dev", "test"])
    assert {record.image_id: record.captions for record in records}["0.jpg"] == ("A dog , wet .",)
