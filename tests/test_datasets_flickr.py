import zipfile
from pathlib import Path

import numpy as np
import pytest

from captioner.images import load_image
from datasets import DatasetError
from datasets.flickr import read_flickr8k
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


def test_records_follow_the_split_lists_and_keep_captions_as_written(root: Path) -> None:
    records = read_flickr8k(root)
    assert [(record.split, record.image_id) for record in records] == [
        ("train", "t1.jpg"),
        ("train", "t2.jpg"),
        ("dev", "d1.jpg"),
    ]
    assert records[0].captions == ("Caption 0 of t1.jpg .", "Caption 1 of t1.jpg .")


def test_pictures_in_zips_are_the_same_as_in_a_folder(root: Path) -> None:
    from_folder = [np.asarray(load_image(record.source)) for record in read_flickr8k(root)]
    zip_pictures(root)
    from_zip = [np.asarray(load_image(record.source)) for record in read_flickr8k(root)]
    for one, other in zip(from_folder, from_zip, strict=True):
        np.testing.assert_array_equal(one, other)


def test_split_that_is_not_asked_for_need_not_be_there(root: Path) -> None:
    (root / "Flickr_8k.trainImages.txt").unlink()
    assert [record.image_id for record in read_flickr8k(root, ["dev"])] == ["d1.jpg"]
    with pytest.raises(DatasetError, match=r"trainImages\.txt is missing; --root must hold"):
        read_flickr8k(root)


def test_what_is_not_as_the_format_says_is_named(root: Path) -> None:
    tokens = root / "Flickr8k.token.txt"
    whole = tokens.read_text()

    tokens.write_text(whole + "a line without its tab\n")
    with pytest.raises(DatasetError, match=r"Flickr8k\.token\.txt:7: expected picture#number"):
        read_flickr8k(root)

    tokens.write_text("\n".join(line for line in whole.splitlines() if not line.startswith("d1")))
    with pytest.raises(DatasetError, match=r"no caption of d1\.jpg, listed in Flickr_8k\.devImages\.txt"):
        read_flickr8k(root)

    tokens.write_text(whole)
    (root / "Flickr_8k.devImages.txt").write_text("d1.jpg\nt1.jpg\n")
    with pytest.raises(DatasetError, match=r"t1\.jpg is listed twice, in train and dev"):
        read_flickr8k(root)

    (root / "Flickr_8k.devImages.txt").write_text("d1.jpg\n")
    (root / "Flicker8k_Dataset" / "d1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"d1\.jpg, listed in .*, is in no folder or zip"):
        read_flickr8k(root)

    (root / "broken.zip").write_text("no archive")
    with pytest.raises(DatasetError, match=r"broken\.zip is not a whole zip archive"):
        read_flickr8k(root)
