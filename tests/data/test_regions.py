"""Regions that words name: how much of a cell they cover, and that they move with the picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from captioner.config import GridConfig, PreprocessConfig
from captioner.data.augmentation import Augmentation
from captioner.data.batching import CaptionItem, collate
from captioner.data.epoch_order import SampleKey
from captioner.data.regions import PictureRegions, RegionStore, look_up_words
from captioner.errors import CaptionerError
from captioner.images.geometry import cell_coverage
from captioner.objects.instances import Instances
from captioner.records import CaptionedImage
from captioner.vocabulary import SPECIAL_TOKENS, Vocabulary

WORDS = Vocabulary((*SPECIAL_TOKENS, "a", "dog", "hot", "red", "horse", "and"))


def box(category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"category_id": category, "bbox": bbox, "iscrowd": 0, "area": bbox[2] * bbox[3], **more}


def write_instances(
    path: Path, annotations: dict[str, list[dict[str, Any]]], *, size: tuple[int, int] = (96, 96)
) -> Path:
    """An instances file of pictures with boxes of dogs (1) and horses (2)."""
    images = [
        {"id": number, "file_name": f"folder/{name}", "width": size[0], "height": size[1]}
        for number, name in enumerate(annotations)
    ]
    listed = [
        {"id": 10 * number + index, "image_id": number, **annotation}
        for number, found in enumerate(annotations.values())
        for index, annotation in enumerate(found)
    ]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "horse"}]
    path.write_text(json.dumps({"images": images, "annotations": listed, "categories": categories}))
    return path


def record_of(name: str, instances: Path | None) -> CaptionedImage:
    return CaptionedImage(
        image_id=name, source=Path(name), captions=("a dog",), split="train", instances=instances
    )


def test_coverage_is_the_share_of_the_cells_pixels(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    mask = np.zeros((60, 120))  # cells of 20 x 40
    mask[0:20, 0:40] = 1  # the first cell
    mask[20:30, 40:80] = 1  # half of the middle one
    mask[59, 119] = 1
    covered = cell_coverage(mask, grid=even_grid, preprocess=preprocess_config)
    np.testing.assert_allclose(covered, [[1, 0, 0], [0, 0.5, 0], [0, 0, 1 / 800]])


def test_coverage_follows_the_centres_of_the_grid(preprocess_config: PreprocessConfig) -> None:
    """Centres at 32, 64 and 96 of 96 pixels: the first cell ends at 48, the last one begins at 80."""
    shifted = GridConfig(rows=3, cols=3, stride_px=32, offset_px=31.5)
    mask = np.zeros((96, 96))
    mask[:48, :48] = 1
    covered = cell_coverage(mask, grid=shifted, preprocess=preprocess_config)
    np.testing.assert_allclose(covered, np.diag([1.0, 0.0, 0.0]))
    mask[:, :] = 0
    mask[88:, 80:] = 1
    covered = cell_coverage(mask, grid=shifted, preprocess=preprocess_config)
    np.testing.assert_allclose(covered, np.diag([0.0, 0.0, 0.5]))


def test_coverage_of_the_whole_picture_is_one_whatever_its_size(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    for height, width in ((96, 96), (7, 300), (3, 3)):
        covered = cell_coverage(np.ones((height, width)), grid=even_grid, preprocess=preprocess_config)
        np.testing.assert_allclose(covered, 1)


def test_boxes_of_a_category_are_one_region_with_their_scores(
    tmp_path: Path, even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    boxes = [box(1, [0, 0, 32, 32], score=0.5), box(2, [0, 64, 96, 32]), box(1, [64, 0, 16, 32], score=0.8)]
    path = write_instances(tmp_path / "instances.json", {"1.png": boxes, "2.png": []})
    records = [record_of(name, path) for name in ("1.png", "2.png", "3.png")]
    store = RegionStore(records, grid=even_grid, preprocess=preprocess_config)
    for without in (1, 2):  # the second picture has no objects, the third is not listed
        assert store.on_grid(without).categories == ()
    item = store.on_grid(0)
    assert item.categories == ("dog", "horse")
    # The second dog covers half of its cell: 0.4 of it by its score, 0.5 for the whole cell of the first.
    dog = np.array([1, 0, 0.8, *[0] * 6])
    np.testing.assert_allclose(item.coverage, [dog, [0, 0, 0, 0, 0, 0, 1, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(item.confidence, [0.8, 1.0], rtol=1e-6)


def test_masks_are_used_where_there_are_any(
    tmp_path: Path, even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    triangle = [[0, 0, 32, 0, 0, 32]]
    path = write_instances(
        tmp_path / "instances.json", {"1.png": [box(1, [0, 0, 96, 96], segmentation=triangle)]}
    )
    regions = RegionStore([record_of("1.png", path)], grid=even_grid, preprocess=preprocess_config)[0]
    assert 0.4 < regions.masks[0, :32, :32].mean() < 0.6
    assert not regions.masks[0, 32:].any()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["2.png"], "lists none of the training pictures"),
        (["a/1.png", "b/1.png"], "several pictures have the name 1.png"),
    ],
)
def test_pictures_that_cannot_be_matched_are_refused(
    tmp_path: Path,
    even_grid: GridConfig,
    preprocess_config: PreprocessConfig,
    names: list[str],
    message: str,
) -> None:
    path = write_instances(tmp_path / "instances.json", {"1.png": []})
    records = [record_of(name, path) for name in names]
    with pytest.raises(CaptionerError, match=message):
        RegionStore(records, grid=even_grid, preprocess=preprocess_config)


def run_lengths(mask: np.ndarray, *, is_compressed: bool) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if is_compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    changes = np.flatnonzero(np.diff(mask.flatten(order="F"), prepend=0)) if mask.any() else []
    counts = np.diff([0, *changes, mask.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


@pytest.mark.parametrize("is_compressed", [True, False])
def test_run_length_encoded_masks_are_read(tmp_path: Path, is_compressed: bool) -> None:
    mask = np.zeros((96, 96))
    mask[10:30, 40:50] = 1
    crowd = box(1, [0, 0, 1, 1], segmentation=run_lengths(mask, is_compressed=is_compressed)) | {"iscrowd": 1}
    path = write_instances(tmp_path / "instances.json", {"1.png": [crowd]})
    np.testing.assert_array_equal(Instances(path).masks("1.png")["dog"], mask == 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, float("nan"), 3]},
        {"bbox": [1, 2, -3, 3]},
        {"bbox": None},
        {"bbox": "here"},
        {"score": 95},
        {"score": "high"},
        {"score": float("nan")},
        {"category_id": 7},
        {"category_id": None},
        {"segmentation": [[1, 2]]},
        {"segmentation": "?"},
        {"segmentation": {"size": [5, 5], "counts": [25]}},
        {"segmentation": {"size": [96, 96], "counts": [25]}},
        {"segmentation": {"size": [96, 96], "counts": "é"}},
    ],
    ids=str,
)
def test_malformed_annotation_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_instances(tmp_path / "instances.json", {"1.png": [box(1, [0, 0, 5, 5]) | changes]})
    with pytest.raises(CaptionerError, match="annotation 0") as error:
        Instances(path).instances("1.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "picture", [{"file_name": 5}, {"file_name": "1.png"}, {"file_name": "1.png", "width": 9, "height": -1}]
)
def test_malformed_picture_is_named_in_one_line(tmp_path: Path, picture: dict[str, Any]) -> None:
    path = tmp_path / "instances.json"
    content = {"images": [{"id": 1, "width": 5} | picture], "annotations": [], "categories": []}
    path.write_text(json.dumps(content))
    with pytest.raises(CaptionerError, match="not a COCO file with instances"):
        Instances(path)


def test_region_out_of_sight_is_left_out(even_grid: GridConfig, preprocess_config: PreprocessConfig) -> None:
    masks = np.zeros((2, 96, 96), np.float32)
    assert PictureRegions(("dog", "horse"), masks).on_grid(even_grid, preprocess_config).categories == ()
    masks[1, 0, 0] = 1
    item = PictureRegions(("dog", "horse"), masks).on_grid(even_grid, preprocess_config)
    assert item.categories == ("horse",)


def batch_with_regions(*categories: tuple[str, ...], captions: list[list[str]]) -> Any:
    masks = np.ones((3, 96, 96), np.float32)
    grid = GridConfig(rows=3, cols=3, stride_px=32, offset_px=15.5)
    preprocess = PreprocessConfig(size_px=96, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic")
    items: list[CaptionItem] = []
    for number, names in enumerate(categories):
        regions = PictureRegions(names, masks[: len(names)]).on_grid(grid, preprocess)
        tokens = [np.array(WORDS.ids(caption.split())) for caption in captions[number]]
        items.append(CaptionItem(str(number), str(number), torch.zeros(1), tokens, regions))
    return collate(items, stack=torch.stack)


def test_words_are_matched_with_the_regions_of_their_own_picture() -> None:
    batch = batch_with_regions(
        ("horse", "dog"), (), captions=[["a dog and a red horse", "a hot dog"], ["a dog"]]
    )
    found = look_up_words(batch, WORDS).regions
    none = -1
    assert found.of_word.tolist() == [
        [[none, 1, none, none, none, 0, none], [none] * 7],  # a hot dog is not a dog
        [[none] * 7, [none] * 7],
    ]
    assert found.coverage.shape == (2, 2, 9)
    assert found.coverage[1].sum() == found.confidence[1].sum() == 0


def test_pictures_without_objects_have_regions_that_no_word_names() -> None:
    found = look_up_words(batch_with_regions((), captions=[["a dog"]]), WORDS).regions
    assert found.of_word.tolist() == [[[-1, -1, -1]]]


def test_data_set_without_annotated_objects_has_no_regions() -> None:
    tokens = [np.array(WORDS.ids(["a", "dog"]))]
    batch = collate([CaptionItem("0", "0", torch.zeros(1), tokens)], stack=torch.stack)
    assert batch.regions is None
    assert look_up_words(batch, WORDS) is batch


def test_objects_are_known_only_where_a_file_lists_the_picture(
    tmp_path: Path, even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    dog, horse = box(1, [0, 0, 10, 10]), box(2, [5, 5, 9, 9])
    path = write_instances(tmp_path / "boxes.json", {"a.png": [dog, horse, dog], "b.png": []})
    records = [record_of("a.png", path), record_of("b.png", path), record_of("c.png", path)]
    records.append(record_of("d.png", None))
    store = RegionStore(records, grid=even_grid, preprocess=preprocess_config)
    found = [store.categories(index) for index in range(len(records))]
    assert found == [{"dog", "horse"}, set(), None, None]


@pytest.mark.parametrize("size", [(120, 90), (60, 45)])
def test_masks_are_cropped_and_flipped_like_the_picture(size: tuple[int, int]) -> None:
    """A picture that is red where the mask is: so it must be afterwards, at any size of the mask."""
    picture = np.zeros((90, 120, 3), np.uint8)
    picture[20:60, 10:50, 0] = 255
    width, height = size
    mask = np.asarray(Image.fromarray(picture[:, :, 0]).resize(size, Image.Resampling.NEAREST)) / 255
    augmentation, centres = Augmentation(0, 96), set()
    for index in range(20):
        moved, masks = augmentation.with_masks(
            Image.fromarray(picture), mask[None].astype(np.float32), captions=[], key=SampleKey(0, index)
        )
        assert masks is not None
        is_red = moved[..., 0].numpy() > 60
        assert (is_red == (masks[0] > 0.5)).mean() > 0.97, (width, height)
        centres.add(int(np.argwhere(is_red)[:, 1].mean()))
    assert len(centres) > 5


def test_masks_do_not_change_what_happens_to_the_picture() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8))
    for index in range(5):
        alone = Augmentation(0, 48)(picture, captions=[], key=SampleKey(1, index))
        together, _ = Augmentation(0, 48).with_masks(
            picture, np.ones((2, 50, 60), np.float32), captions=[], key=SampleKey(1, index)
        )
        assert torch.equal(alone, together)
