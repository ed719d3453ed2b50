"""Gallery: one self-contained page of captioned pictures whose words show their attention.

The page is plain HTML, readable without its script (`page/`). It requests nothing from outside, which its
content-security policy forbids.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from types import TracebackType

from PIL import Image

from captioner.errors import CaptionerError
from captioner.figures.heatmap import AttendedCaption, find_colormap
from captioner.figures.page import (
    attention_setting,
    content_policy,
    page_css,
    page_file,
    picture_article,
)
from captioner.figures.style import FIGURE_PX, FigureStyle


class GalleryWriter:
    """Writes the page picture by picture: if the command is stopped, the page so far opens. An older page is
    replaced with the first picture.

    `references` has captions by people, by the pictures' file names without folders. Pictures with
    references show them, and can be sorted by `score`, the CIDEr-D of a text against its references.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
        CaptionerError: the file cannot be written.
        ImageError: a picture has disappeared.
    """

    def __init__(
        self,
        path: Path,
        *,
        style: FigureStyle,
        references: Mapping[str, Sequence[str]] | None = None,
        score: Callable[[str, Sequence[str]], float] | None = None,
    ) -> None:
        self.path, self.style, self.score = path, style, score
        find_colormap(style)  # which may be refused
        self.references = references or {}
        self._is_any_known = False
        self._has_head = False
        try:
            self._stream = path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> "GalleryWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._has_head:
                self._stream.write("</main>\n</body>\n</html>\n")
            self._stream.close()
        except OSError as closing:
            raise self._error(closing) from closing

    def write(self, caption: AttendedCaption) -> None:
        """Add a picture with its caption and alternatives."""
        article = self._article(caption, caption.image(enough_px=FIGURE_PX))
        try:
            if not self._has_head:
                if self.path.is_file():
                    self._stream.truncate(0)
                self._stream.write(self._head(caption))
                self._has_head = True
            self._stream.write(article)
            self._stream.flush()
        except OSError as error:
            raise self._error(error) from error

    def summary(self) -> str | None:
        """What is to be said at the end."""
        if not self.references or not self._has_head or self._is_any_known:
            return None
        return f"{self.path}: none of its pictures has the name of one with references"

    def _error(self, error: OSError) -> CaptionerError:
        return CaptionerError(f"cannot write {self.path}: {error.strerror or error}")

    def _head(self, caption: AttendedCaption) -> str:
        """Everything before the pictures. All of them share one grid and its geometry."""
        css, script = page_css(), page_file("attention.js") + page_file("gallery.js")
        return Template(page_file("gallery.html")).substitute(
            policy=content_policy(script=script, css=css),
            css=css,
            script=script,
            setting=attention_setting(caption.grid, caption.preprocess, self.style),
            cider_option='<option value="cider">CIDEr, worst first</option>' if self.score else "",
        )

    def _article(self, caption: AttendedCaption, image: Image.Image) -> str:
        numbers = {"log-prob": caption.log_prob}
        references = self.references.get(Path(caption.file).name, ())
        if references:
            self._is_any_known = True
        if self.score and references:
            numbers["cider"] = self.score(caption.text, references)
        return picture_article(caption, image, numbers=numbers, references=references)
