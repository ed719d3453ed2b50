"""From pictures to captions: load a model folder and caption files with it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from captioner.checkpoint import load_checkpoint
from captioner.config import (
    DEFAULT_STYLE,
    MAX_CAPTIONS,
    DecodingConfig,
    Device,
    FigureStyle,
    GridConfig,
    ModelConfig,
    PreprocessConfig,
    SamplingConfig,
    require,
)
from captioner.decoding import draw_captions, padded, read_captions, search_captions
from captioner.errors import CaptionerError
from captioner.images import ImageError, ImageSource, Preprocess, heatmap, load_image, upright_rgb
from captioner.loading import loaded_batches
from captioner.model import CaptioningModel
from captioner.search import Hypothesis
from captioner.vocabulary import UNK, Vocabulary, tokenize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHIPPED_MODEL = Path(__file__).parent / "models" / "flickr8k"


class DeviceError(CaptionerError):
    """A device that torch does not find here."""


class UnknownWordError(CaptionerError):
    """A word that a caption should hold and the model does not know."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which captions are wanted of a picture: so many, with these words, searched or drawn at random.

    Those after the first are its `alternatives`. A search gives as many as its beam is wide.
    """

    num_captions: int = 1
    must_include: tuple[str, ...] = ()
    sampling: SamplingConfig | None = None

    def __post_init__(self) -> None:
        fits = 1 <= self.num_captions <= MAX_CAPTIONS
        require(fits, f"the number of captions must be in 1..{MAX_CAPTIONS}", self.num_captions)
        fits = self.sampling is None or not self.must_include
        require(fits, "captions drawn at random cannot be made to include words", self.must_include)


@dataclass(frozen=True)
class _Settled:
    """How captions are searched or drawn, with the words that are wanted as tokens."""

    decoding: DecodingConfig
    wanted: Wanted
    required: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and what each of its words looked at.

    `picture` is what was captioned. `alphas[t, row, col]` is the attention on a cell of the grid when
    `tokens[t]` was chosen; each word's sum to one. They are the mean of `head_alphas`, which has each
    head's. `log_prob` is the natural logarithm of the caption's probability, its end included. `grid` and
    `preprocess` say where the cells lie on the picture. `alternatives` are the next captions, where more
    than one was asked for.
    """

    picture: ImageSource | Image.Image
    text: str
    tokens: tuple[str, ...]
    log_prob: float
    head_alphas: Float[np.ndarray, "tokens heads rows cols"]
    grid: GridConfig
    preprocess: PreprocessConfig
    alternatives: tuple["Caption", ...] = ()

    @property
    def file(self) -> str:
        """The picture's path as given; nothing for one that was no file."""
        return "" if isinstance(self.picture, Image.Image) else str(self.picture)

    @cached_property
    def alphas(self) -> Float[np.ndarray, "tokens rows cols"]:
        return self.head_alphas.mean(axis=1)

    def pieces(self) -> tuple[list[tuple[str, str]], str]:
        """The text cut at its words: for each the text before it and the word as it stands; and the rest.

        A word that does not stand in the text as it is in `tokens` is put in after a space.
        """
        lower = self.text.lower()
        text = lower if len(lower) == len(self.text) else self.text
        pieces: list[tuple[str, str]] = []
        end = 0
        for token in self.tokens:
            start = text.find(token, end)
            if start < 0:
                pieces.append((" " if pieces else "", token))
            else:
                pieces.append((self.text[end:start], self.text[start : start + len(token)]))
                end = start + len(token)
        return pieces, self.text[end:]

    def image(self) -> Image.Image:
        """The picture, RGB and upright. Raises: ImageError, where its file has gone since."""
        if isinstance(self.picture, Image.Image):
            return upright_rgb(self.picture)
        return load_image(self.picture)

    def heatmap(
        self, word: int | str, image_size: tuple[int, int], *, is_smooth: bool = True
    ) -> Float[np.ndarray, "height width"]:
        """The attention of a word on a picture of (width, height) pixels, in attention per cell.

        `word` is a place in `tokens`, or the word itself, of which the first one counts.

        Raises:
            ValueError: the caption has no such word.
        """
        if isinstance(word, str):
            if word not in self.tokens:
                raise ValueError(f"the caption has no word {word!r}; it has: {', '.join(self.tokens)}")
            word = self.tokens.index(word)
        return heatmap(
            self.alphas[word],
            grid=self.grid,
            preprocess=self.preprocess,
            image_size=image_size,
            is_smooth=is_smooth,
        )

    def plot(self, *, style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """The matplotlib figure of `captioner.overlay.draw_overlay`. Raises: ImageError."""
        from captioner.overlay import draw_overlay

        return draw_overlay(self, self.image(), style=style)

    def plot_matrix(self, *others: "Caption", style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """Words by cells, beside those of other captions of the same picture (`captioner.matrix`)."""
        from captioner.matrix import draw_matrices

        return draw_matrices([self, *others], style=style)

    def _repr_html_(self) -> str:
        """How a notebook shows a caption: its figure, with the caption as the text in its place."""
        from captioner.figures import figure_as_html

        return figure_as_html(self.plot(), alternative=self.text)


class Captioner:
    """A model that is ready to caption pictures."""

    def __init__(
        self, *, model: CaptioningModel, config: ModelConfig, vocabulary: Vocabulary, device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.config = config
        self.vocabulary = vocabulary
        self.device = device
        self.preprocess = Preprocess(config.preprocess)

    @classmethod
    def load(cls, folder: Path | str = SHIPPED_MODEL, *, device: Device = "auto") -> "Captioner":
        """Load a model folder; without one, the model that ships with captioner.

        Raises:
            captioner.checkpoint.CheckpointError: the folder is not a whole and sound model.
            DeviceError: the device is not there.
        """
        checkpoint = load_checkpoint(Path(folder))
        return cls(
            model=checkpoint.model,
            config=checkpoint.config,
            vocabulary=checkpoint.vocabulary,
            device=choose_device(device),
        )

    def caption(
        self,
        picture: ImageSource | str | Image.Image,
        *,
        decoding: DecodingConfig | None = None,
        wanted: Wanted | None = None,
    ) -> Caption:
        """Caption one picture, given as a file or as a Pillow image.

        `decoding` is how captions are searched, by default what scored best on the model's dev split, and
        `wanted` which: by default the best.

        Raises:
            ImageError: the file cannot be read as a picture.
            UnknownWordError: the model does not know a word that is wanted.
        """
        picture = Path(picture) if isinstance(picture, str) else picture
        settled = self._settle(decoding, wanted)
        (caption,) = self._caption_batch(self._pixels(picture)[None], [picture], [0], settled)
        return caption

    @torch.inference_mode()
    def annotations(self, picture: ImageSource | Image.Image) -> Float[torch.Tensor, "1 cells annotation"]:
        """The annotation vectors of a picture. Raises: ImageError."""
        return self._encode(self._pixels(picture)[None])

    def attend(self, picture: ImageSource | str | Image.Image, captions: Sequence[str]) -> list[Caption]:
        """What the model looks at as it reads captions that are given (teacher forcing).

        A word that the model does not know keeps its place and is read as <unk>. `head_alphas` has the
        mean of all heads alone.

        Raises:
            ImageError: the file cannot be read as a picture.
        """
        if isinstance(captions, str):
            raise TypeError("captions is a list of texts; put the one in brackets")
        picture = Path(picture) if isinstance(picture, str) else picture
        if not captions:
            return []
        tokens, lengths = padded([[self.vocabulary.encode(text) for text in captions]])
        log_probs, alphas = read_captions(self.model.decoder, self.annotations(picture), tokens, lengths)
        return [
            self._to_caption(picture, text, tokenize(text), float(log_prob.sum()), alpha[:, None])
            for text, log_prob, alpha in zip(captions, log_probs[0], alphas[0], strict=True)
        ]

    def caption_files(
        self,
        sources: Iterable[ImageSource | str],
        *,
        batch_size: int = 8,
        decoding: DecodingConfig | None = None,
        wanted: Wanted | None = None,
    ) -> Iterator[list[Caption | ImageError]]:
        """Caption many pictures in order; gives a list for each batch as it is done.

        `sources` are paths, or `captioner.images.ZipMember`s. A picture that cannot be read gives its
        `ImageError` in its place. `decoding` and `wanted` are as in `caption`; what is drawn at random for
        a picture depends on its number among the sources, not on the batch.
        """
        settled = self._settle(decoding, wanted)
        count = 0
        paths = (Path(source) if isinstance(source, str) else source for source in sources)
        for batch in loaded_batches(paths, self.preprocess.load, batch_size=batch_size):
            readable = [
                (number, source, pixels)
                for number, (source, pixels) in enumerate(batch, start=count)
                if not isinstance(pixels, ImageError)
            ]
            count += len(batch)
            captions = iter(
                self._caption_batch(
                    np.stack([pixels for _, _, pixels in readable]),
                    [source for _, source, _ in readable],
                    [number for number, _, _ in readable],
                    settled,
                )
                if readable
                else []
            )
            yield [pixels if isinstance(pixels, ImageError) else next(captions) for _, pixels in batch]

    def _pixels(self, picture: ImageSource | Image.Image) -> Float[np.ndarray, "3 size size"]:
        if isinstance(picture, Image.Image):
            return self.preprocess(upright_rgb(picture))
        return self.preprocess.load(picture)

    def _encode(
        self, pixels: Float[np.ndarray, "batch 3 size size"]
    ) -> Float[torch.Tensor, "batch cells annotation"]:
        return self.model.encoder(torch.from_numpy(pixels).to(self.device))

    def _settle(self, decoding: DecodingConfig | None, wanted: Wanted | None) -> "_Settled":
        """Raises: UnknownWordError."""
        wanted = wanted or Wanted()
        required = []
        for word in wanted.must_include:
            ids = self.vocabulary.encode(word)[1:-1]
            if len(ids) != 1 or ids[0] == UNK:
                raise UnknownWordError(f"the model does not know {word!r} as a word; it cannot write it")
            required += ids
        return _Settled(decoding or self.config.decoding, wanted, tuple(required))

    @torch.inference_mode()
    def _caption_batch(
        self,
        pixels: Float[np.ndarray, "batch 3 size size"],
        pictures: Sequence[ImageSource | Image.Image],
        numbers: Sequence[int],
        settled: "_Settled",
    ) -> list[Caption]:
        annotations, decoder, wanted = self._encode(pixels), self.model.decoder, settled.wanted
        if wanted.sampling is not None:
            found = draw_captions(
                decoder,
                annotations,
                settled.decoding,
                sampling=wanted.sampling,
                num_captions=wanted.num_captions,
                numbers=numbers,
            )
        else:
            found = search_captions(decoder, annotations, settled.decoding, required=settled.required)
        return [
            self._best_of(picture, hypotheses[: wanted.num_captions])
            for picture, hypotheses in zip(pictures, found, strict=True)
        ]

    def _best_of(self, picture: ImageSource | Image.Image, hypotheses: Sequence[Hypothesis]) -> Caption:
        """The first hypothesis as a caption, the others as its alternatives, without the special tokens."""
        best, *others = (
            self._to_caption(
                picture,
                self.vocabulary.caption(found.tokens),
                self.vocabulary.decode(found.tokens),
                found.log_prob,
                found.alphas,
            )
            for found in hypotheses
        )
        return replace(best, alternatives=tuple(others))

    def _to_caption(
        self,
        picture: ImageSource | Image.Image,
        text: str,
        words: Sequence[str],
        log_prob: float,
        alphas: Float[np.ndarray, "tokens heads cells"],
    ) -> Caption:
        """`alphas` may go on after the words: with that of <end>, and with padding."""
        grid = self.config.grid
        return Caption(
            picture=picture,
            text=text,
            tokens=tuple(words),
            log_prob=log_prob,
            head_alphas=alphas[: len(words)].reshape(len(words), alphas.shape[1], grid.rows, grid.cols),
            grid=grid,
            preprocess=self.config.preprocess,
        )


def choose_device(name: Device) -> torch.device:
    """The device of that name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        DeviceError: the device is not there.
    """
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if is_there[device])
    if not is_there[name]:
        raise DeviceError(f"torch finds no {name} device here; use --device auto")
    return torch.device(name)
