"""From pictures to captions: load a model folder and caption files with it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from captioner.backends import Backend, load_backend
from captioner.captions import Caption
from captioner.config import (
    MAX_CAPTIONS,
    BackendName,
    DecodingConfig,
    Device,
    ModelConfig,
    SamplingConfig,
    require,
)
from captioner.decoding import draw_captions, padded, read_captions, search_captions
from captioner.errors import CaptionerError
from captioner.images import ImageError, ImageSource, Preprocess, upright_rgb
from captioner.loading import loaded_batches, mapped
from captioner.model_folder import SHIPPED_MODEL, read_config, read_vocabulary
from captioner.search import Hypothesis
from captioner.vocabulary import UNK, Vocabulary, tokenize

Loaded = tuple[ImageSource, UInt8[np.ndarray, "size size 3"] | ImageError]


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


class Captioner:
    """A model that is ready to caption pictures."""

    def __init__(
        self,
        *,
        backend: Backend[Any],
        config: ModelConfig,
        vocabulary: Vocabulary,
        threads: int | None = None,
    ) -> None:
        """`threads` decode pictures, by default one a core."""
        self.backend, self.threads = backend, threads
        self.config = config
        self.vocabulary = vocabulary
        self.preprocess = Preprocess(config.preprocess)

    @classmethod
    def load(
        cls,
        folder: Path | str = SHIPPED_MODEL,
        *,
        device: Device = "auto",
        backend: BackendName = "auto",
        threads: int | None = None,
    ) -> "Captioner":
        """Load a model folder; without one, the model that ships with captioner.

        `threads` is how many the CPU's part takes, by default one a core.

        Raises:
            captioner.model_folder.CheckpointError: the folder is not a whole and sound model.
            captioner.backends.DeviceError: the device is not there.
            captioner.backends.BackendError: what would run the model is not installed.
        """
        folder = Path(folder)
        config, vocabulary = read_config(folder), read_vocabulary(folder)
        chosen = load_backend(folder, config, vocabulary, device=device, backend=backend, threads=threads)
        return cls(backend=chosen, config=config, vocabulary=vocabulary, threads=threads)

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
        (caption,) = self._caption_batch(self._squashed(picture)[None], [picture], [0], settled)
        return caption

    def annotations(self, picture: ImageSource | Image.Image) -> Any:
        """The annotation vectors of a picture, (1, cells, annotation), as an array of the backend's kind.

        Raises: ImageError.
        """
        return self.backend.encode(self._squashed(picture)[None])

    def attend(self, picture: ImageSource | str | Image.Image, captions: Sequence[str]) -> list[Caption]:
        """What the model looks at as it reads captions that are given (teacher forcing).

        A word that the model does not know keeps its place and is read as <unk>.

        Raises:
            ImageError: the file cannot be read as a picture.
        """
        if isinstance(captions, str):
            raise TypeError("captions is a list of texts; put the one in brackets")
        picture = Path(picture) if isinstance(picture, str) else picture
        if not captions:
            return []
        tokens = padded([self.vocabulary.encode(text) for text in captions])
        log_probs, alphas = read_captions(self.backend, self.annotations(picture), tokens[None])
        return [
            self._to_caption(picture, text, tokenize(text), float(log_prob.sum()), alpha)
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

        def caption(numbered: tuple[int, Sequence[Loaded]]) -> list[Caption | ImageError]:
            return self._caption_loaded(*numbered, settled)

        paths = (Path(source) if isinstance(source, str) else source for source in sources)
        loaded = loaded_batches(paths, self.preprocess.load, batch_size=batch_size, num_threads=self.threads)
        numbered = zip(count(step=batch_size), loaded)
        at_once = self.backend.num_at_once
        if at_once == 1:
            yield from map(caption, numbered)
        else:
            yield from mapped(caption, numbered, num_threads=at_once, ahead=at_once)

    def _caption_loaded(
        self, first: int, batch: Sequence[Loaded], settled: _Settled
    ) -> list[Caption | ImageError]:
        """Caption those of a batch that could be read; the first of it has the number `first`."""
        readable = [
            (number, source, pixels)
            for number, (source, pixels) in enumerate(batch, start=first)
            if not isinstance(pixels, ImageError)
        ]
        if not readable:
            return [pixels for _, pixels in batch if isinstance(pixels, ImageError)]
        numbers, sources, images = zip(*readable, strict=True)
        captions = iter(self._caption_batch(np.stack(images), sources, numbers, settled))
        return [pixels if isinstance(pixels, ImageError) else next(captions) for _, pixels in batch]

    def _squashed(self, picture: ImageSource | Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        if isinstance(picture, Image.Image):
            return self.preprocess(upright_rgb(picture))
        return self.preprocess.load(picture)

    def _settle(self, decoding: DecodingConfig | None, wanted: Wanted | None) -> _Settled:
        """Raises: UnknownWordError."""
        wanted = wanted or Wanted()
        required = []
        for word in wanted.must_include:
            ids = self.vocabulary.encode(word)[1:-1]
            if len(ids) != 1 or ids[0] == UNK:
                raise UnknownWordError(f"the model does not know {word!r} as a word; it cannot write it")
            required += ids
        return _Settled(decoding or self.config.decoding, wanted, tuple(required))

    def _caption_batch(
        self,
        images: UInt8[np.ndarray, "pictures size size 3"],
        pictures: Sequence[ImageSource | Image.Image],
        numbers: Sequence[int],
        settled: _Settled,
    ) -> list[Caption]:
        annotations, wanted = self.backend.encode(images), settled.wanted
        if wanted.sampling is not None:
            found = draw_captions(
                self.backend,
                annotations,
                settled.decoding,
                sampling=wanted.sampling,
                num_captions=wanted.num_captions,
                numbers=numbers,
            )
        else:
            found = search_captions(self.backend, annotations, settled.decoding, required=settled.required)
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
