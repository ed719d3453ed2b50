"""Pages in a real browser: headless Chromium, if there is one here (Debian: apt-get install chromium)."""

import shutil
from typing import Any

import numpy as np
import pytest

from captioner.caption import Caption
from captioner.figures.heatmap import find_colormap
from captioner.figures.style import FigureStyle

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; install the package chromium")


class Opened:
    """A page in the browser, with what it reported and requested."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.reports: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._record)
        self.page.on("pageerror", lambda error: self.reports.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.reports.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.address = address

    def _record(self, message: Any) -> None:
        if "readback" not in message.text:  # it is this test that reads the canvas back
            self.reports.append(message.text)

    def assert_quiet(self) -> None:
        assert self.reports == []
        assert [url for url in self.requests if not url.startswith("data:")] == [self.address]

    def heatmap(self, picture: int) -> np.ndarray:
        """The pixels of a picture's canvas, or zeros if it is not shown."""
        found = self.page.evaluate(
            """(number) => {
                const picture = document.querySelectorAll(".picture")[number];
                if (getComputedStyle(picture.querySelector("canvas")).opacity === "0") return null;
                const canvas = picture.querySelector("canvas");
                const { width, height } = canvas;
                return [width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
            }""",
            picture,
        )
        if found is None:
            return np.zeros((1, 1, 4))
        side, pixels = found
        return np.array(pixels).reshape(side, side, 4)

    def worst_contrast(self) -> float:
        """The least ratio of luminances of text and what is behind it, as WCAG 2 defines it."""
        return float(
            self.page.evaluate(
                """() => {
            const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
            const luminance = (colour) => {
                const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                const [r, g, b] = colour.map((v) => linear(v / 255));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const paper = (element) => {
                const colour = rgb(getComputedStyle(element).backgroundColor);
                return colour[3] === 0 ? paper(element.parentElement) : colour;
            };
            const ratio = (element) => {
                const [a, b] = [rgb(getComputedStyle(element).color), paper(element)].map(luminance);
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            };
            const texts = document.querySelectorAll("h1, h2, p, label, output, summary, .word, .failed");
            return Math.min(...[...texts].map(ratio));
        }"""
            )
        )

    def word(self, picture: int, position: int) -> Any:
        return self.page.locator(".picture").nth(picture).locator(".text > .caption .word").nth(position)


def expected_heatmap(caption: Caption, position: int, side: int) -> np.ndarray:
    """What a figure draws for a word on a square of that side: on the scale of the caption's words."""
    heatmaps = [caption.heatmap(index, (side, side)) for index in range(len(caption.tokens))]
    return 255 * find_colormap(FigureStyle())(heatmaps[position] / np.max(heatmaps))[..., :3]
