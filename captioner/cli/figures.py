"""The figures of `captioner caption`: their flags and their writers."""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

from captioner.cli.options import arg, flags, given
from captioner.cli.output import Failures
from captioner.errors import ImageError
from captioner.figures.style import FigureFormat, FigureStyle
from captioner.images.discovery import MATRIX_STEM, OVERLAY_STEM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captioner.caption import Caption

StyleFlags: Any = flags(FigureStyle)


@dataclass(frozen=True, kw_only=True)
class FigureFlags:
    """More figures, and how they look."""

    matrix: Annotated[Path | None, arg("DIR")] = None
    """Write a figure per picture into this folder: words by cells of the grid."""
    animate: Annotated[Path | None, arg("FILE.gif")] = None
    """Write an animation of the caption being written; further pictures go to FILE-2.gif, FILE-3.gif, ..."""
    references: Annotated[Path | None, arg("FILE")] = None
    """With --gallery: COCO annotation file with captions by people, matched by the pictures' names."""
    figure_format: Annotated[FigureFormat, arg("png|svg|pdf", "png")] = "png"
    """Format of --overlay and --matrix."""
    style: StyleFlags = field(default_factory=StyleFlags)


def given_style(flags: FigureFlags) -> str | None:
    """The first flag that says how figures look, if there is one."""
    if flags.figure_format != FigureFlags.figure_format:
        return "--figure-format"
    return next((f"--{name.replace('_', '-')}" for name in given(flags.style)), None)


@runtime_checkable
class FigureWriter(Protocol):
    """Draws a caption into a file. Raises: ImageError, if the picture has disappeared; CaptionerError."""

    def write(self, caption: "Caption") -> None: ...

    def summary(self) -> str | None:
        """What is to be said at the end."""
        ...


def draw_or_report(writer: FigureWriter, caption: "Caption", failures: Failures) -> None:
    try:
        writer.write(caption)
    except ImageError as error:
        failures.report(str(error))


def _overlay(caption: "Caption", style: FigureStyle) -> "Figure":
    return caption.plot(style=style)


def _matrix(caption: "Caption", style: FigureStyle) -> "Figure":
    return caption.plot_matrix(style=style)


def figure_writers(
    flags: FigureFlags,
    style: FigureStyle,
    *,
    overlay: Path | None,
    gallery: Path | None,
    stack: contextlib.ExitStack,
) -> list[FigureWriter]:
    """The writers of the figures that were asked for; `stack` closes them.

    Raises: UsageError, CaptionerError.
    """
    words = tuple(word for chosen in style.words for word in chosen.split(","))
    style = replace(style, words=words)
    writers: list[FigureWriter] = []
    for out, draw, stem in (
        (overlay, _overlay, OVERLAY_STEM),
        (flags.matrix, _matrix, MATRIX_STEM),
    ):
        if out is not None:
            from captioner.figures.files import FolderWriter

            kind = flags.figure_format
            writers.append(FolderWriter(out, draw=draw, stem=stem, style=style, kind=kind))
    if flags.animate is not None:
        from captioner.figures.animation import AnimationWriter

        writers.append(AnimationWriter(flags.animate, style))
    if gallery is not None:
        from captioner.figures.gallery import GalleryWriter

        references, score = None, None
        if flags.references is not None:
            from captioner.evaluation.coco import read_coco_captions
            from captioner.evaluation.evaluate import CiderScorer
            from captioner.objects.coco_file import by_file_name

            path = flags.references
            images = read_coco_captions(path)
            references = by_file_name(path, ((image.file_name, image.captions) for image in images))
            score = CiderScorer(references.values())
        page = GalleryWriter(gallery, style=style, references=references, score=score)
        writers.append(stack.enter_context(page))
    return writers
