"""The flags of `captioner caption` that ask for figures, and what writes them."""

import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

from captioner.config import FigureFormat, FigureStyle
from captioner.errors import UsageError
from captioner.flags import hint
from captioner.paths import MATRIX_STEM, OVERLAY_STEM, has_picture_suffix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captioner.captions import Caption

_PAGE_SUFFIXES = {"--animate": (".gif",), "--gallery": (".html", ".htm")}


@runtime_checkable
class FigureWriter(Protocol):
    """Draws a caption into a file. Raises: ImageError, where the picture has gone since; OutputError."""

    def write(self, caption: "Caption") -> None: ...


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """What to draw, and how."""

    overlay: Annotated[Path | None, hint("DIR", "none")] = None
    """Write a figure a picture into this folder: each word with what it looked at."""
    matrix: Annotated[Path | None, hint("DIR", "none")] = None
    """Write a figure a picture into this folder: the words by the cells of the grid."""
    animate: Annotated[Path | None, hint("FILE.gif", "none")] = None
    """Write an animation of the caption being written; of further pictures into FILE-2.gif, ..."""
    gallery: Annotated[Path | None, hint("FILE.html", "none")] = None
    """Write one page of all pictures that needs no server: words light up where they looked."""
    references: Annotated[Path | None, hint("FILE", "none")] = None
    """With --gallery: COCO annotation file with what people wrote, matched by the pictures' names."""
    figure_format: FigureFormat = "png"
    """Format of the figures of --overlay and --matrix."""
    style: FigureStyle = field(default_factory=FigureStyle)

    def check(self) -> None:
        """Refuse what makes no sense. Raises: UsageError."""
        for flag, path in (("--animate", self.animate), ("--gallery", self.gallery)):
            suffixes = _PAGE_SUFFIXES[flag]
            if path is not None and path.suffix.lower() not in suffixes:
                raise UsageError(f"{flag} {path} should end in {suffixes[0]}")
        if self.references and not self.gallery:
            raise UsageError("--references need --gallery FILE.html; captioner evaluate scores without it")
        for word in self.style.words:
            if has_picture_suffix(word) or os.sep in word:
                raise UsageError(f"--words took {word} for a word; name the pictures before --words")

    def writers(self, stack: ExitStack) -> list[FigureWriter]:
        """What draws the figures that were asked for; `stack` closes what is to be closed.

        Raises: UsageError, OutputError.
        """
        words = tuple(word for given in self.style.words for word in given.split(","))
        style = replace(self.style, words=words)
        writers: list[FigureWriter] = []
        if self.overlay or self.matrix:
            from captioner.figures import FolderWriter

        if self.overlay:
            writers.append(
                FolderWriter(
                    self.overlay, draw=_overlay, stem=OVERLAY_STEM, style=style, kind=self.figure_format
                )
            )
        if self.matrix:
            writers.append(
                FolderWriter(
                    self.matrix, draw=_matrix, stem=MATRIX_STEM, style=style, kind=self.figure_format
                )
            )
        if self.animate:
            from captioner.animation import AnimationWriter

            writers.append(AnimationWriter(self.animate, style))
        if self.gallery:
            from captioner.gallery import GalleryWriter

            try:
                references = _references(self.references) if self.references else None
                gallery = GalleryWriter(self.gallery, style=style, references=references)
            except ModuleNotFoundError as error:
                raise UsageError(
                    f"--references need {error.name}; install it with: pip install 'captioner[train]'"
                ) from error
            writers.append(stack.enter_context(gallery))
        return writers


def _overlay(caption: "Caption", style: FigureStyle) -> "Figure":
    return caption.plot(style=style)


def _matrix(caption: "Caption", style: FigureStyle) -> "Figure":
    return caption.plot_matrix(style=style)


def _references(path: Path) -> dict[str, tuple[str, ...]]:
    """What people wrote, by the pictures' file names without their folders."""
    from captioner.coco_format import by_file_name, read_coco_captions

    return by_file_name(path, ((image.file_name, image.captions) for image in read_coco_captions(path)))
