"""Readers of pictures, captions and models, given files that chance has changed.

FUZZ_EXAMPLES=100000 searches longer than the tests do by default.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.errors import CaptionerError, ImageError
from captioner.images.reading import load_image
from captioner.images.sources import PictureBytes
from captioner.records import CaptionedImage, RecordReader
from datasets.coco import Coco
from datasets.custom import CustomCaptions
from datasets.karpathy import CocoKarpathy
from tests.conftest import noise_picture
from tests.images.test_bad_pictures import FORMATS, encoded

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, which the command does not show either

many = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VALID = [encoded(noise_picture(number), name) for number, name in enumerate(FORMATS)]
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), max_size=8)


def edited(content: bytes, edits: list[tuple[int, bytes]], length: float) -> bytes:
    changed = bytearray(content)
    for place, inserted in edits:
        at = place % max(len(changed), 1)
        changed[at : at + len(inserted)] = inserted
    return bytes(changed[: int(length * len(changed))])


@many
@given(st.sampled_from(VALID), EDITS, st.floats(0.0, 1.0))
def test_any_bytes_are_a_picture_or_an_error_of_one_line(
    content: bytes, edits: list[tuple[int, bytes]], length: float
) -> None:
    result: object
    try:
        result = load_image(PictureBytes("a.png", edited(content, edits, length)))
    except ImageError as error:
        result = error
    if isinstance(result, Image.Image):
        assert result.mode == "RGB"
    else:
        assert str(result).startswith("a.png: ")
        assert "\n" not in str(result)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def coco(picture: Any, caption: Any, image_id: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": picture}, {"id": image_id, "file_name": "b.png"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": caption}, {"id": 2, "image_id": image_id}],
    }


@many
@given(JSON, JSON, JSON, st.booleans(), st.floats(0.5, 1.0))
@example({"\n": None}, None, None, False, 1.0)
def test_any_annotations_are_records_or_an_error_of_one_line(
    tmp_path: Path, one: Any, two: Any, three: Any, is_whole: bool, length: float
) -> None:
    content = coco(one, two, three) if is_whole else one
    text = json.dumps(content)
    path = tmp_path / "annotations.json"
    path.write_text(text[: int(length * len(text))])
    karpathy = {"images": [{"filename": one, "split": two, "sentences": [{"raw": three}], "cocoid": 1}]}
    (tmp_path / "karpathy.json").write_text(json.dumps(karpathy if is_whole else one))
    (tmp_path / "custom.jsonl").write_text(
        json.dumps({"image": one, "caption": two, "split": three} if is_whole else one) + "\n" + text[:20]
    )
    for reader in (
        Coco(root=tmp_path, captions="annotations.json", images="."),
        CocoKarpathy(captions=tmp_path / "karpathy.json", images=tmp_path),
        CustomCaptions(captions=tmp_path / "custom.jsonl"),
    ):
        told, records = read(reader)
        assert "\n" not in told, reader
        for record in records:
            assert all(isinstance(caption, str) for caption in record.captions)


def read(reader: RecordReader) -> tuple[str, Sequence[CaptionedImage]]:
    """What the reader tells if it refuses, and the records if not."""
    try:
        return "", reader.read(["train", "dev"])
    except CaptionerError as error:
        return str(error), ()


@pytest.fixture(autouse=True)
def no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
