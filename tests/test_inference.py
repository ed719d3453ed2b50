import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.backends.torch_backend import choose_device
from captioner.bounds import check_bounds
from captioner.caption import Caption
from captioner.config import ModelOptions
from captioner.errors import CaptionerError, ImageError
from captioner.images.sources import as_picture
from captioner.inference import Captioner
from captioner.tokenize import detokenize
from captioner.vocabulary import END
from tests.conftest import noise_picture, torch_model


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for index in range(7):
        paths.append(tmp_path / f"{index}.png")
        noise_picture(index).save(paths[-1])
    return paths


def flat(batches: object) -> list[Caption | ImageError]:
    return [result for batch in batches for result in batch]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "onnnx"}, "backend must be one of auto, onnx, openvino, torch, not 'onnnx'"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, mps, not 'gpu'"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
    ],
)
def test_options_of_a_model_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_bounds(ModelOptions, arguments)  # which they call; tests refuse the types first


def test_same_picture_gets_the_same_caption_alone_and_in_a_batch(
    captioner: Captioner, pictures: list[Path]
) -> None:
    alone = [captioner.caption(path) for path in pictures]
    for batch_size in (1, 3, 7):
        names = [str(path) for path in pictures]
        for one, other in zip(
            alone, flat(captioner.caption_files(names, batch_size=batch_size)), strict=True
        ):
            assert (one.file, one.text, one.tokens) == (other.file, other.text, other.tokens)
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
            np.testing.assert_allclose(one.alphas, other.alphas, atol=1e-5)


def test_unreadable_files_give_errors_at_their_positions_and_change_no_caption(
    captioner: Captioner, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    alone = [captioner.caption(path).text for path in pictures]
    mixed = [tmp_path / "missing.png", *pictures[:2], tmp_path / "bad.jpg", *pictures[2:]]
    results = flat(captioner.caption_files(mixed, batch_size=2))
    assert [isinstance(result, ImageError) for result in results] == [path not in pictures for path in mixed]
    assert [result.text for result in results if isinstance(result, Caption)] == alone


def test_alphas_are_a_distribution_over_the_grid_for_each_printed_word(
    captioner: Captioner, pictures: list[Path]
) -> None:
    caption = captioner.caption(pictures[0])
    assert caption.alphas.shape == (len(caption.tokens), caption.grid.rows, caption.grid.cols)
    np.testing.assert_allclose(caption.alphas.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert detokenize(caption.tokens) == caption.text
    assert not any(token.startswith("<") for token in caption.tokens)


def test_pillow_image_and_file_give_the_same_caption(captioner: Captioner, pictures: list[Path]) -> None:
    with Image.open(pictures[0]) as image:
        assert captioner.caption(image).text == captioner.caption(pictures[0]).text


def test_missing_file_is_an_image_error(captioner: Captioner) -> None:
    with pytest.raises(ImageError, match="no such file"):
        captioner.caption("nowhere.jpg")


def test_model_that_wants_to_end_at_once_still_gives_a_word(
    captioner: Captioner, pictures: list[Path]
) -> None:
    with torch.no_grad():
        torch_model(captioner).decoder.output.bias[END] = 1e4
    caption = captioner.caption(pictures[0], replace(captioner.config.decoding, beam_size=1))
    assert len(caption.tokens) == len(caption.alphas) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_is_refused() -> None:
    with pytest.raises(CaptionerError, match="torch finds no cuda device on this machine; use --device auto"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("text", "tokens", "pieces", "tail"),
    [
        (
            "the man's dog",
            ("the", "man", "'s", "dog"),
            [("", "the"), (" ", "man"), ("", "'s"), (" ", "dog")],
            "",
        ),
        ('A "Dog", sits.', ("a", "dog", "sits"), [("", "A"), (' "', "Dog"), ('", ', "sits")], "."),
        ("other text", ("dog", "text"), [("", "dog"), ("other ", "text")], ""),
        ("...", (), [], "..."),
    ],
)
def test_text_is_split_at_its_words(
    captioner: Captioner, text: str, tokens: tuple[str, ...], pieces: list[tuple[str, str]], tail: str
) -> None:
    caption = replace(captioner.caption(noise_picture(0)), text=text, tokens=tokens)
    assert caption.pieces() == (pieces, tail)
    if "other" not in text:
        assert "".join(gap + word for gap, word in pieces) + tail == text


def test_captions_to_attend_are_a_list(captioner: Captioner) -> None:
    with pytest.raises(TypeError, match="captions must be a list, not the single text 'a dog'"):
        captioner.attend(noise_picture(0), "a dog")


def test_pictures_are_taken_as_programs_have_them(captioner: Captioner, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    noise_picture(3).save(path)
    expected = captioner.caption(path).text
    content = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as image:
        for given in (str(path), content, io.BytesIO(content), file, image):
            assert captioner.caption(given).text == expected
    assert as_picture(bytearray(content)) == as_picture(content)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"not a numpy\.ndarray; of an array .* Image\.fromarray\(array\)"),
        (torch.zeros(3, 4, 4), r"not a torch\.Tensor; of an array"),
        (None, "a picture is a path, bytes, a binary file or a Pillow image, not a builtins.NoneType"),
        (io.StringIO("x"), "must be opened in binary mode"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_to_pass(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_picture(given)
