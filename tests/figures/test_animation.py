from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import CaptionerError
from captioner.figures.animation import AnimationWriter, draw_frames
from captioner.figures.style import FigureStyle
from captioner.inference import Captioner
from tests.conftest import make_caption, noise_picture

PICTURE = Image.new("RGB", (300, 150), "#888888")


def test_caption_grows_by_one_word_per_frame(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    """Between frames the text only gains ink, but for the last word, which turns from red to black."""
    caption = make_caption(("a", "dog", "runs"), even_grid, preprocess_config)
    frames = [frame for frame, _ in draw_frames(caption, PICTURE)]
    assert len(frames) == 1 + 3 + 1
    below = [np.asarray(frame.crop((0, 150, *frame.size)).convert("L")) for frame in frames]
    assert (below[0] == 255).all()
    for earlier, later in pairwise(below[:4]):
        assert ((earlier < 200) <= (later < 255)).all()
        assert (later < 255).sum() > (earlier < 255).sum()


def test_frame_of_a_word_is_hot_where_the_word_attended(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    alphas = np.zeros((2, 3, 3))
    alphas[0, 0, 2] = alphas[1, 2, 0] = 1.0
    caption = make_caption(("one", "two"), even_grid, preprocess_config, alphas)
    style = FigureStyle(overlay_style="cells")
    _, one, two, _ = (
        np.asarray(frame).sum(axis=2) for frame, _ in draw_frames(caption, PICTURE, style=style)
    )
    for frame, rows, cols in ((one, slice(0, 50), slice(200, 300)), (two, slice(100, 150), slice(0, 100))):
        hot = np.zeros((150, 300), dtype=bool)
        hot[rows, cols] = True
        assert frame[:150][hot].min() > frame[:150][~hot].max()


def test_no_word_leaves_the_page(even_grid: GridConfig, preprocess_config: PreprocessConfig) -> None:
    caption = make_caption(("extraordinarily",) * 9, even_grid, preprocess_config)
    *_, (frame, _) = draw_frames(caption, PICTURE)
    ink = ImageChops.invert(frame.crop((0, 150, *frame.size)).convert("L")).getbbox()
    assert ink is not None
    assert ink[0] > 5
    assert ink[2] < frame.width - 5
    assert ink[3] < frame.height - 150 - 2


def test_gif_has_the_frames_and_their_times(captioner: Captioner, tmp_path: Path) -> None:
    caption = captioner.caption(noise_picture(1))
    expected = [round(1000 * seconds) for _, seconds in draw_frames(caption, caption.image())]
    writer = AnimationWriter(tmp_path / "a.gif", FigureStyle())
    writer.write(caption)
    writer.write(caption)
    with Image.open(tmp_path / "a.gif") as gif:
        times = []
        for number in range(gif.n_frames):
            gif.seek(number)
            times.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert sum(times) == sum(expected)
    assert (tmp_path / "a-2.gif").read_bytes() == (tmp_path / "a.gif").read_bytes()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3)])
def test_pictures_of_odd_shapes_are_animated(
    size: tuple[int, int], even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    frames = list(draw_frames(make_caption(("a",), even_grid, preprocess_config), Image.new("RGB", size)))
    assert len({frame.size for frame, _ in frames}) == 1


def test_last_word_is_red_in_the_file(captioner: Captioner, tmp_path: Path) -> None:
    """Although a GIF has 256 colours, and the word few of a frame's pixels."""
    caption = captioner.caption(noise_picture(1, 300, 200))
    AnimationWriter(tmp_path / "a.gif", FigureStyle()).write(caption)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == len(caption.tokens) + 2
        for word in range(1, len(caption.tokens) + 1):
            animation.seek(word)
            below = np.asarray(animation.convert("RGB"), int)[200:]
            assert np.abs(below - [180, 38, 28]).sum(axis=2).min() < 8


def test_interrupted_animation_leaves_nothing(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        AnimationWriter(tmp_path / "a.gif", FigureStyle()).write(captioner.caption(noise_picture(1)))
    assert not list(tmp_path.iterdir())


def test_pictures_are_not_overwritten(captioner: Captioner, tmp_path: Path) -> None:
    caption = captioner.caption(noise_picture(1))
    for name in ("a.gif", "b-2.gif"):
        noise_picture(2).save(tmp_path / name)
    before = (tmp_path / "a.gif").read_bytes()
    with pytest.raises(
        CaptionerError, match=r"a\.gif exists and was not drawn by captioner; choose another file"
    ):
        AnimationWriter(tmp_path / "a.gif", FigureStyle())
    writer = AnimationWriter(tmp_path / "b.gif", FigureStyle())
    writer.write(caption)
    writer.write(caption)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b-2.gif").read_bytes() == before
    assert (tmp_path / "b-3.gif").exists()
    AnimationWriter(tmp_path / "b.gif", FigureStyle()).write(caption)  # but our own are


def test_words_are_spaced_in_the_animation_as_in_the_caption(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    """The same ink, whether a word is split into two tokens or not."""
    whole = make_caption(("the", "man's", "dog"), even_grid, preprocess_config)
    split = replace(
        make_caption(("the", "man", "'s", "dog"), even_grid, preprocess_config), text="the man's dog"
    )
    last = [np.asarray(list(draw_frames(caption, PICTURE))[-1][0]) for caption in (whole, split)]
    assert np.abs(last[0].astype(int) - last[1]).mean() < 0.5
