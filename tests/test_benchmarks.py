"""That the benchmarks measure what they say: the data that they make are what they claim to be."""

import json
from pathlib import Path

import numpy as np

from benchmarks import data, flickr8k_as_coco
from captioner.images import load_image
from datasets.coco import Coco
from datasets.flickr import Flickr8k
from tests.test_datasets_coco import annotation_file
from tests.test_datasets_flickr import root  # noqa: F401 (a fixture)


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
