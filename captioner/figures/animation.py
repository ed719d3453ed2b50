"""Animated GIF of a caption being written over its picture."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from captioner.atomic import replaced_file
from captioner.errors import CaptionerError
from captioner.figures.fonts import font_file_for
from captioner.figures.heatmap import AttendedCaption, AttentionHeatmaps, find_colormap
from captioner.figures.style import DEFAULT_STYLE, FIGURE_PX, FigureStyle
from captioner.images.discovery import ANIMATION_COMMENT

_SIDE_PX = 480  # the longer side of the picture
_MIN_WIDTH_PX = 240  # of a frame, so that words have room
_FONT_PX, _LINE_PX, _EDGE_PX = 19, 26, 12
_FIRST_S, _WORD_S, _LAST_S = 1.0, 0.7, 2.5
_PAPER, _INK, _ACCENT = "white", "black", "#b4261c"


def draw_frames(
    caption: AttendedCaption, image: Image.Image, *, style: FigureStyle = DEFAULT_STYLE
) -> Iterator[tuple[Image.Image, float]]:
    """The frames of the animation with the seconds that each is shown.

    The picture alone; then one frame per word with the word's attention over the picture and the caption
    so far below it, its last word in red; then the picture with the whole caption. All attention is on one
    scale, as in `captioner.figures.overlay.draw_overlay`. `image` is RGB and upright.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
    """
    heatmaps = AttentionHeatmaps.from_caption(caption, image, side_px=_SIDE_PX, style=style)
    page = _Page(caption, heatmaps.picture.size)
    yield page.frame(heatmaps.picture, 0), _FIRST_S
    for count, pixels in enumerate(heatmaps.drawn(), start=1):
        yield page.frame(Image.fromarray(np.round(255 * pixels).astype(np.uint8)), count), _WORD_S
    yield page.frame(heatmaps.picture, len(caption.tokens), is_done=True), _LAST_S


class _Page:
    """Positions of the picture and of each word; the same for all frames."""

    def __init__(self, caption: AttendedCaption, picture_size: tuple[int, int]) -> None:
        self.font = ImageFont.truetype(font_file_for(caption.text), _FONT_PX)
        pieces, tail = caption.pieces()
        self.width = max(picture_size[0], _MIN_WIDTH_PX)
        self.text_top = picture_size[1] + _EDGE_PX // 2
        self.words: list[tuple[float, float, str]] = []
        x, y = float(_EDGE_PX), float(self.text_top)
        for number, (gap, word) in enumerate(pieces, start=1):
            shown = gap.lstrip() + word + (tail if number == len(pieces) else "")
            if gap.startswith(" "):
                x += self.font.getlength(" ")
            length = self.font.getlength(shown)
            if x > _EDGE_PX and x + length > self.width - _EDGE_PX:
                x, y = float(_EDGE_PX), y + _LINE_PX
            self.words.append((x, y, shown))
            x += length
        self.height = int(y) + _LINE_PX + _EDGE_PX // 2

    def frame(self, picture: Image.Image, num_words: int, *, is_done: bool = False) -> Image.Image:
        """The picture above the first `num_words` words."""
        frame = Image.new("RGB", (self.width, self.height), _PAPER)
        frame.paste(picture, ((self.width - picture.width) // 2, 0))
        draw = ImageDraw.Draw(frame)
        for count, (x, y, word) in enumerate(self.words[:num_words], start=1):
            is_last = count == num_words and not is_done
            draw.text((x, y), word, font=self.font, fill=_ACCENT if is_last else _INK)
        return frame


class AnimationWriter:
    """Writes one GIF per caption: FILE.gif, then FILE-2.gif, FILE-3.gif, ...

    Raises:
        captioner.errors.UsageError: there is no such colour map.
        CaptionerError: the file cannot be written, or FILE.gif exists and is not one of our animations; of
            the further names, those that are taken by other files are left out.
        ImageError: the picture has disappeared.
    """

    def __init__(self, path: Path, style: FigureStyle) -> None:
        self.path, self.style, self.count = path, style, 0
        find_colormap(style)
        if not path.parent.is_dir():
            raise CaptionerError(f"cannot write {path}: the folder {path.parent} does not exist")
        if _is_foreign(path):
            raise CaptionerError(
                f"{path} exists and was not drawn by captioner; choose another file or remove it"
            )

    def write(self, caption: AttendedCaption) -> None:
        path = self._next_path()
        frames, seconds = zip(
            *draw_frames(caption, caption.image(enough_px=FIGURE_PX), style=self.style), strict=True
        )
        first, *others = (_with_own_palette(frame) for frame in frames)
        try:
            with replaced_file(path) as new:
                first.save(
                    new,
                    format="GIF",
                    save_all=True,
                    append_images=others,
                    duration=[round(1000 * time) for time in seconds],
                    loop=0,
                    comment=ANIMATION_COMMENT,
                )
        except OSError as error:
            raise CaptionerError(f"cannot write {path}: {error.strerror or error}") from error

    def summary(self) -> str | None:
        """What is to be said at the end: nothing."""
        return None

    def _next_path(self) -> Path:
        while True:
            self.count += 1
            path = self.path if self.count == 1 else self.path.with_stem(f"{self.path.stem}-{self.count}")
            if not _is_foreign(path):
                return path


def _is_foreign(path: Path) -> bool:
    """Whether a file exists and was not drawn by captioner: it may be a picture."""
    if not os.path.lexists(path):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("comment") != ANIMATION_COMMENT
    except OSError:
        return True


def _with_own_palette(frame: Image.Image) -> Image.Image:
    """A frame in 256 colours, among them those of the text, which are too few pixels to be chosen."""
    own = [ImageColor.getrgb(colour) for colour in (_PAPER, _INK, _ACCENT)]
    palette = frame.quantize(256 - len(own)).getpalette() or []
    colours = Image.new("P", (1, 1))
    colours.putpalette([*palette[: 3 * (256 - len(own))], *(level for colour in own for level in colour)])
    return frame.quantize(palette=colours, dither=Image.Dither.NONE)
