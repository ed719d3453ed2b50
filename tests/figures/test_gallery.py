"""The gallery, in a real browser if there is one here."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.caption import Caption
from captioner.cli.main import caption_main
from captioner.config import GridConfig, PreprocessConfig
from captioner.evaluation.evaluate import CiderScorer
from captioner.evaluation.metrics import score_captions
from captioner.figures.gallery import GalleryWriter
from captioner.figures.style import FigureStyle
from tests.conftest import ROOT, make_caption, noise_picture
from tests.figures.browser import Opened, expected_heatmap, needs_browser

SENTENCES = ("a dog runs", "two cats sit down", "the man's dog sits")
REFERENCES = {
    "0.png": ("two cats sleep", "cats"),
    "1.png": ("two cats sit down", "two cats sit"),
    "2.png": ("a man's dog sits in the sun", "the man's dog sits"),
}


def captions_of(folder: Path, grid: GridConfig, preprocess: PreprocessConfig) -> list[Caption]:
    """Three pictures, each with one more caption; every word attends to a cell of its own."""
    captions = []
    for number, sentence in enumerate(SENTENCES):
        path = folder / f"{number}.png"
        noise_picture(number, 120, 80).save(path)
        words = tuple(sentence.replace("'s", " 's").split())
        other = hot_caption(path, ("some", "other", "words"), grid, preprocess, "some other words")
        captions.append(hot_caption(path, words, grid, preprocess, sentence, (other,)))
    return captions


def hot_caption(
    path: Path,
    words: tuple[str, ...],
    grid: GridConfig,
    preprocess: PreprocessConfig,
    text: str,
    alternatives: tuple[Caption, ...] = (),
) -> Caption:
    alphas = np.full((len(words), 9), 0.02)
    alphas[np.arange(len(words)), (np.arange(len(words)) * 2 + 1) % 9] = 0.84
    return Caption(
        picture=path,
        text=text,
        tokens=words,
        log_prob=-float(len(text)),
        head_alphas=alphas.reshape(-1, 1, 3, 3),
        grid=grid,
        preprocess=preprocess,
        alternatives=alternatives,
    )


@pytest.fixture
def page_file(even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path) -> Path:
    path = tmp_path / "gallery.html"
    score = CiderScorer(REFERENCES.values())
    with GalleryWriter(path, style=FigureStyle(), references=REFERENCES, score=score) as gallery:
        for caption in captions_of(tmp_path, even_grid, preprocess_config):
            gallery.write(caption)
    return path


class Addresses(HTMLParser):
    """Collects whatever a browser might fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        names = ("src", "href", "srcset", "action", "data", "poster")
        self.found += [value or "" for name, value in attrs if name in names]


def test_page_contains_all_that_it_shows(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    addresses = Addresses()
    addresses.feed(text)
    assert len(addresses.found) == 3
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses.found)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(", re.sub(r'base64,[^"]*"|data-alphas="[^"]*"', "", text)
    )


def test_page_is_readable_without_its_script(page_file: Path) -> None:
    text = re.sub(r"<script.*?</script>", "", page_file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for sentence in SENTENCES:
        assert sentence.replace("'", "&#x27;") in text
    assert text.count('loading="lazy"') == text.count(' alt="') == 3


def test_interrupted_page_has_what_was_written(
    even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    gallery = GalleryWriter(tmp_path / "a.html", style=FigureStyle())
    gallery.write(captions_of(tmp_path, even_grid, preprocess_config)[0])
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.endswith("</article>\n")
    gallery.__exit__(None, None, None)


def test_cider_is_what_captioner_evaluate_gives(page_file: Path) -> None:
    shown = [float(value) for value in re.findall(r'data-cider="([\d.]+)"', page_file.read_text())]
    names = list(REFERENCES)
    scores = score_captions(dict(zip(names, SENTENCES, strict=True)), REFERENCES, with_meteor=False)
    assert np.mean(shown) == pytest.approx(scores.cider, abs=1e-3)


def test_a_thousand_pictures_take_less_than_sixty_megabytes(
    preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    """By the size of one, of a photo (the example) with five captions of 12 words on a 10 x 10 grid."""
    grid = GridConfig(rows=10, cols=10, stride_px=9.6, offset_px=4.3)
    alphas = np.random.default_rng(0).dirichlet(np.ones(100), size=12).reshape(12, 10, 10)
    caption = make_caption(("skateboarder",) * 12, grid, preprocess_config, alphas)
    photo = ROOT / "examples" / "skateboarder.jpg"
    one = replace(caption, picture=photo)
    sizes = []
    for count in (1, 2):
        with GalleryWriter(tmp_path / "a.html", style=FigureStyle()) as gallery:
            for _ in range(count):
                gallery.write(replace(one, alternatives=(one,) * 4))
        sizes.append((tmp_path / "a.html").stat().st_size)
    assert 1000 * (sizes[1] - sizes[0]) < 60e6


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Opened]:
    opened = Opened(browser, page_file.as_uri())
    yield opened
    opened.page.close()


@needs_browser
def test_word_that_is_pointed_at_draws_its_own_heatmap(
    opened: Opened, even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    caption = captions_of(tmp_path, even_grid, preprocess_config)[1]
    drawn = []
    for position in range(4):
        opened.word(1, position).hover()
        heatmap = opened.heatmap(1)[..., :3]
        difference = np.abs(heatmap - expected_heatmap(caption, position, len(heatmap)))
        assert difference.max() <= 12  # two or three levels of 255: attention comes in bytes
        drawn.append(heatmap)
        assert opened.heatmap(0).sum() == opened.heatmap(2).sum() == 0
    assert all(np.abs(one - other).max() > 50 for one in drawn for other in drawn if one is not other)
    opened.page.mouse.move(1, 1)
    assert opened.heatmap(1).sum() == 0
    opened.assert_quiet()


@needs_browser
def test_word_with_little_attention_is_not_given_a_position(
    browser: Any, even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    noise_picture(0).save(tmp_path / "a.png")
    grid = replace(even_grid, receptive_field_std_px=12.0)
    sharp = hot_caption(tmp_path / "a.png", ("a", "dog"), grid, preprocess_config, "a dog")
    sharp.head_alphas[0] = 1 / 9
    with GalleryWriter(tmp_path / "a.html", style=FigureStyle()) as gallery:
        gallery.write(sharp)
    opened = Opened(browser, (tmp_path / "a.html").as_uri())
    opened.word(0, 0).hover()
    assert opened.page.locator(".where").text_content() == "“a” attends nowhere in particular"
    opened.page.close()


@needs_browser
def test_shortcuts_of_the_browser_are_left_to_it(opened: Opened) -> None:
    opened.word(0, 0).focus()
    for key in ("Control+ArrowRight", "Alt+ArrowRight", "Shift+ArrowRight"):
        opened.page.keyboard.press(key)
        assert opened.page.locator(".word.is-on").all_text_contents() == ["a"], key


@needs_browser
def test_words_are_buttons_within_the_unchanged_caption(opened: Opened) -> None:
    texts = opened.page.locator(".text > .caption").all_text_contents()
    assert texts == list(SENTENCES)
    assert opened.page.locator(".text > .caption").nth(2).locator(".word").all_text_contents() == [
        *("the", "man", "'s", "dog", "sits")
    ]


@needs_browser
def test_arrow_keys_move_through_words_and_pictures(opened: Opened) -> None:
    page = opened.page
    opened.word(0, 0).focus()

    def lit() -> list[str]:
        return page.locator(".word.is-on").all_text_contents()

    for key, word in (
        *(("ArrowRight", "dog"), ("ArrowRight", "runs"), ("ArrowRight", "runs"), ("ArrowLeft", "dog")),
        *(("ArrowDown", "two"), ("End", "down"), ("ArrowUp", "dog"), ("Home", "a")),
    ):
        page.keyboard.press(key)
        assert lit() == [word], key
    page.keyboard.press("Escape")
    assert lit() == []
    opened.assert_quiet()


@needs_browser
def test_tapped_word_lights_up_on_a_phone(browser: Any, page_file: Path) -> None:
    opened = Opened(
        browser, page_file.as_uri(), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    opened.word(0, 1).tap()
    assert opened.heatmap(0).sum() > 0
    where = opened.page.locator(".where").first
    assert where.text_content() == "“dog” attends most to the middle left"  # the fourth of nine cells
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    opened.assert_quiet()
    opened.page.close()


@needs_browser
def test_filter_keeps_pictures_with_all_the_words(opened: Opened) -> None:
    page = opened.page
    for text, left in (
        ("DOG", [0, 2]),
        ("dog sits", [2]),
        ("zebra", []),
        ("log", []),
        ("1.png", [1]),
        ("", [0, 1, 2]),
    ):
        page.fill("#filter", text)
        assert [n for n in range(3) if page.locator(".picture").nth(n).is_visible()] == left
        assert page.locator("#count").text_content() == f"{len(left)} of 3 pictures"
    opened.assert_quiet()


@needs_browser
def test_order_puts_the_worst_first_and_back(opened: Opened) -> None:
    page = opened.page

    def order() -> list[str]:
        return page.locator(".text > .caption").all_text_contents()

    page.select_option("#order", "cider")
    numbers = [
        float(value)
        for value in page.locator(".picture").evaluate_all("all => all.map(p => p.dataset.cider)")
    ]
    assert numbers == sorted(numbers)
    assert order()[0] == SENTENCES[0]
    page.select_option("#order", "logProb")
    assert order() == sorted(SENTENCES, key=len, reverse=True)
    page.select_option("#order", "given")
    assert order() == list(SENTENCES)


@needs_browser
def test_alternatives_and_references_open_and_light_up(opened: Opened) -> None:
    first = opened.page.locator(".picture").first
    first.locator("summary").first.click()
    other = first.locator(".more .caption")
    assert other.text_content() == "some other words"
    other.locator(".word").first.hover()
    assert opened.heatmap(0).sum() > 0
    first.locator("summary").nth(1).click()
    assert first.locator(".references li").all_text_contents() == list(REFERENCES["0.png"])
    opened.assert_quiet()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_and_controls_have_names(browser: Any, page_file: Path, scheme: str) -> None:
    """All text has the contrast that WCAG 2 asks for, 4.5 to 1, and the controls have labels."""
    opened = Opened(browser, page_file.as_uri(), color_scheme=scheme)
    opened.word(0, 1).hover()
    assert opened.worst_contrast() >= 4.5
    for role, name in (("searchbox", "Filter"), ("combobox", "Order")):
        assert opened.page.get_by_role(role, name=name).count() == 1
    assert opened.page.get_by_role("img", name=SENTENCES[0]).count() == 1
    opened.page.close()


@needs_browser
def test_names_and_captions_cannot_become_code(
    browser: Any, even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    script = '</script><script>alert(2)</script>" onmouseover="alert(3)'
    path = tmp_path / f"{evil}.png"
    Image.new("RGB", (60, 40)).save(path)
    other = hot_caption(path, (script,), even_grid, preprocess_config, script)
    caption = hot_caption(path, ("a", evil), even_grid, preprocess_config, f"a {evil}", (other,))
    references = {path.name: (script, evil)}
    score = CiderScorer(references.values())
    with GalleryWriter(
        tmp_path / "a.html", style=FigureStyle(), references=references, score=score
    ) as gallery:
        gallery.write(caption)
    opened = Opened(browser, (tmp_path / "a.html").as_uri())
    opened.word(0, 1).hover()
    for summary in opened.page.locator("summary").all():
        summary.click()
    assert opened.page.locator(".text > .caption").text_content() == f"a {evil}"
    assert opened.page.locator(".more .caption").text_content() == script
    assert opened.page.locator("img").count() == 1
    opened.assert_quiet()
    opened.page.close()


def test_command_writes_the_page(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        noise_picture(number).save(tmp_path / f"{number}.png")
    references = {
        "images": [{"id": 7, "file_name": "1.png"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "a <red> dog"}],
    }
    (tmp_path / "references.json").write_text(json.dumps(references))
    arguments = [tmp_path, "--model", model_folder, "--gallery", tmp_path / "all.html"]
    with pytest.raises(SystemExit) as exit_:
        caption_main([*map(str, arguments), "--references", str(tmp_path / "references.json")])
    assert exit_.value.code == 0
    page = (tmp_path / "all.html").read_text()
    printed = [line.split("\t")[1] for line in capfd.readouterr().out.splitlines()]
    assert re.findall(r'<p class="caption"[^>]*>([^<]*)</p>', page) == printed
    assert "2 more captions" in page  # the tiny model's beam is 3
    assert page.count("a &lt;red&gt; dog") == 1
    assert page.count("data-cider=") == 1
