from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models import VGG

from captioner.backends import batch_encoder
from captioner.config import PreprocessConfig
from captioner.data import feature_cache
from captioner.data.feature_cache import cached_features, weights_digest
from captioner.errors import CaptionerError, ImageError
from captioner.images.geometry import Preprocess
from captioner.images.reading import load_image
from captioner.model.encoder import Encoder
from captioner.records import CaptionedImage
from tests.conftest import TINY_CNN, TINY_SIZE_PX, noise_picture


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    records = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        noise_picture(index).save(path)
        records.append(CaptionedImage(image_id=path.name, source=path, captions=("a",), split="train"))
    return records


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each computation was of; empty as long as all came from the cache."""
    counts: list[int] = []
    compute = feature_cache._compute

    def counting(partial: Path, records: list[CaptionedImage], *rest: object) -> None:
        counts.append(len(records))
        compute(partial, records, *rest)

    monkeypatch.setattr(feature_cache, "_compute", counting)
    return counts


def features_of(
    records: list[CaptionedImage],
    encoder: Encoder,
    cache_dir: Path,
    preprocess: PreprocessConfig | None = None,
) -> np.ndarray:
    preprocess = preprocess or encoder.preprocess_config(TINY_SIZE_PX)
    return cached_features(
        records=records,
        encoder=encoder,
        preprocess=preprocess,
        grid=encoder.grid_config(preprocess.size_px),
        cache_dir=cache_dir,
        batch_size=2,
    )


def test_features_are_the_encoders_in_half_precision_and_in_order(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path
) -> None:
    features = features_of(records, encoder, tmp_path / "cache")
    assert isinstance(features, np.memmap)
    assert features.dtype == np.float16
    preprocess = Preprocess(encoder.preprocess_config(TINY_SIZE_PX))
    for record, cached in zip(records, features, strict=True):
        squashed = torch.from_numpy(preprocess(load_image(record.source)).copy())
        expected = encoder.annotate(squashed[None])[0].numpy()
        np.testing.assert_allclose(cached.astype(np.float32), expected, rtol=2e-3, atol=2e-3)


def test_second_call_computes_nothing(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, computed: list[int]
) -> None:
    first = np.array(features_of(records, encoder, tmp_path / "cache"))
    second = features_of(records, encoder, tmp_path / "cache")
    np.testing.assert_array_equal(first, second)
    assert computed == [5]


def test_cache_is_rebuilt_when_any_part_of_its_key_changes(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, computed: list[int]
) -> None:
    cache = tmp_path / "cache"
    features_of(records, encoder, cache)
    preprocess = encoder.preprocess_config(TINY_SIZE_PX)
    features_of(records, encoder, cache, replace(preprocess, mean=(0.1, 0.1, 0.1)))
    features_of(records, encoder, cache, replace(preprocess, interpolation="bilinear"))
    features_of(records, encoder, cache, replace(preprocess, size_px=96))
    features_of(records[::-1], encoder, cache)
    torch.manual_seed(99)
    features_of(records, Encoder(backbone=TINY_CNN), cache)
    noise_picture(77, 60, 60).save(records[0].source)  # the same name, another picture
    features_of(records, encoder, cache)
    assert computed == [5] * 7


@pytest.mark.skipif(not hasattr(VGG, "prune_intermediate_layers"), reason="needs a newer timm")
def test_stages_of_a_cnn_that_have_the_same_weights_are_told_apart() -> None:
    """What follows VGG's last convolution has none."""
    whole, stage = Encoder(backbone="vgg11"), Encoder(backbone="vgg11", stage=-2)
    stage.load_state_dict(whole.state_dict())
    assert weights_digest(stage) != weights_digest(whole)


def suffixes_in(cache_dir: Path) -> list[str]:
    """The suffixes of the hidden entries of a cache's folder; a finished cache has none."""
    return sorted(path.suffix if path.name.startswith(".") else "finished" for path in cache_dir.iterdir())


def test_picture_that_cannot_be_read_leaves_no_finished_cache(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path
) -> None:
    Path(str(records[3].source)).write_text("no picture")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"3\.png: not a picture"):
            features_of(records, encoder, tmp_path / "cache")
        assert suffixes_in(tmp_path / "cache") == [".lock", ".partial"]


def test_interrupted_computation_resumes_after_the_pictures_that_are_saved(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_SAVED_EVERY", 2)
    expected = np.array(features_of(records, encoder, tmp_path / "uninterrupted"))
    annotate, num_calls = encoder.annotate, 0

    def interrupted(images: torch.Tensor) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:  # of the second batch of two
            raise KeyboardInterrupt
        return annotate(images)

    monkeypatch.setattr(encoder, "annotate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features_of(records, encoder, tmp_path / "cache")
    assert suffixes_in(tmp_path / "cache") == [".lock", ".partial"]
    np.testing.assert_array_equal(features_of(records, encoder, tmp_path / "cache"), expected)
    assert num_calls == 4 + 3
    assert suffixes_in(tmp_path / "cache") == [".lock", "finished"]


def test_features_of_many_pictures_are_those_of_few(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of many come from several threads and another library."""
    few = np.array(features_of(records, encoder, tmp_path / "few"))
    monkeypatch.setattr(batch_encoder, "_WORTH_EXPORTING", 1)
    monkeypatch.setattr(batch_encoder, "available_cores", lambda: 3)
    many = features_of(records, encoder, tmp_path / "many")
    np.testing.assert_allclose(many, few, rtol=2**-10, atol=1e-4)


def test_disk_without_room_is_refused_before_anything_is_written(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = feature_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(
        CaptionerError,
        match=r"the features take .* GB but .* GB free; .* choose another disk with --cache-dir",
    ):
        features_of(records, encoder, tmp_path / "cache")
    assert suffixes_in(tmp_path / "cache") == [".lock"]
