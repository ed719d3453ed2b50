"""Captioner: from pictures to captions."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from captioner.backends.load import Backend, load_backend
from captioner.caption import Caption
from captioner.checkpoint.folder import read_config, read_vocabulary
from captioner.checkpoint.names import find_model
from captioner.config import BackendName, DecodingOptions, Device, ModelConfig, ModelOptions
from captioner.decoding.generate import force_decode, generate_captions, padded
from captioner.decoding.search import Hypothesis
from captioner.errors import CaptionerError, ImageError, reject_string
from captioner.images.geometry import Preprocess
from captioner.images.prefetch import map_in_threads, prefetch_batches
from captioner.images.reading import load_opened
from captioner.images.sources import BinaryFile, ImageSource, as_picture
from captioner.vocabulary import UNK, Vocabulary

PictureLike: TypeAlias = ImageSource | str | os.PathLike[str] | bytes | BinaryFile | Image.Image
"""What `captioner.images.sources.as_picture` takes."""

Prepared = tuple[ImageSource | Image.Image, UInt8[np.ndarray, "size size 3"] | ImageError]


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
        """`threads` decode pictures, by default one per core."""
        self.backend, self.threads = backend, threads
        self.config = config
        self.vocabulary = vocabulary
        self.preprocess = Preprocess(config.preprocess)

    @classmethod
    def load(
        cls,
        folder: Path | str | None = None,
        *,
        device: Device = "auto",
        backend: BackendName = "auto",
        threads: int | None = None,
    ) -> "Captioner":
        """Load a model: a folder, or a name as `captioner.checkpoint.names.find_model` takes it.

        `threads` is the number of CPU threads, by default one per core.

        Raises:
            captioner.errors.ModelFolderError: the folder is not a complete and valid model.
            CaptionerError: there is no such device, or a package that the backend needs is missing.
            ValueError: an argument is not among its choices or out of its range.
        """
        model = None if folder is None else Path(folder)
        options = ModelOptions(model=model, device=device, backend=backend, threads=threads)
        return cls.from_options(options)

    @classmethod
    def from_options(cls, options: ModelOptions) -> "Captioner":
        """Load the model that options name. Raises: as `load`."""
        folder = find_model(options.model)
        config, vocabulary = read_config(folder), read_vocabulary(folder)
        chosen = load_backend(
            folder,
            config,
            vocabulary,
            device=options.device,
            backend=options.backend,
            threads=options.threads,
        )
        return cls(backend=chosen, config=config, vocabulary=vocabulary, threads=options.threads)

    def caption(self, picture: PictureLike, options: DecodingOptions | None = None) -> Caption:
        """Caption one picture: a path, its bytes, a binary file, or a Pillow image.

        `options` are by default the model's own, those with the best score on its dev split. Further
        captions are the result's `alternatives`.

        Raises:
            ImageError: the file cannot be read as a picture.
            CaptionerError: a word in `must_include` is not in the model's vocabulary.
            TypeError: it is none of these, such as an array; the message says what to pass.
        """
        picture = as_picture(picture)
        options = options or self.config.decoding
        (caption,) = self.caption_prepared([(picture, self.prepare(picture))], options, numbers=[0])
        assert isinstance(caption, Caption)
        return caption

    def annotations(self, picture: PictureLike) -> Any:
        """The annotation vectors of a picture, (1, cells, annotation), as an array of the backend's kind.

        Raises: ImageError.
        """
        return self.backend.encode(self.prepare(as_picture(picture))[None])

    def attend(self, picture: PictureLike, captions: Sequence[str]) -> list[Caption]:
        """What the model attends to while it reads given captions (teacher forcing).

        A word that is not in the vocabulary keeps its position and is read as `<unk>`.

        Raises:
            ImageError: the file cannot be read as a picture.
        """
        reject_string(captions, "captions")
        picture = as_picture(picture)
        if not captions:
            return []
        tokens = padded([self.vocabulary.encode(text) for text in captions])
        log_probs, alphas = force_decode(self.backend, self.annotations(picture), tokens[None])
        return [
            self._to_caption(picture, text, self.vocabulary.split(text), float(log_prob.sum()), alpha)
            for text, log_prob, alpha in zip(captions, log_probs[0], alphas[0], strict=True)
        ]

    def caption_files(
        self,
        sources: Iterable[ImageSource | str],
        *,
        batch_size: int | None = None,
        options: DecodingOptions | None = None,
    ) -> Iterator[list[Caption | ImageError]]:
        """Caption many pictures in order; yields a list for each batch as it is done.

        `sources` are paths, or `captioner.images.sources.ZipMember`s. A picture that cannot be read yields
        its `ImageError` instead. A batch has by default 8 pictures, on a GPU 128. `options` are as in
        `caption`; samples depend on a picture's number among the sources, not on its batch.

        Raises:
            CaptionerError: a word in `must_include` is not in the model's vocabulary.
        """
        reject_string(sources, "sources")
        batch_size = self.backend.batch_size if batch_size is None else batch_size
        options = options or self.config.decoding
        required_tokens(options, self.vocabulary)  # which may be refused
        paths = map(_as_source, sources)
        loaded = prefetch_batches(
            paths, self.preprocess.load, batch_size=batch_size, num_threads=self.threads
        )
        concurrent = self.backend.max_concurrent_batches
        numbered = (
            (batch, range(first, first + len(batch))) for first, batch in zip(count(step=batch_size), loaded)
        )
        return map_in_threads(
            lambda one: self.caption_prepared(one[0], options, numbers=one[1]),
            numbered,
            num_threads=concurrent,
            ahead=concurrent,
        )

    def prepare(self, picture: ImageSource | Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """Decode a picture and squash it to the CNN's input. Raises: ImageError."""
        if isinstance(picture, Image.Image):
            return self.preprocess(load_opened(picture))
        return self.preprocess.load(picture)

    def caption_prepared(
        self, batch: Sequence[Prepared], options: DecodingOptions, *, numbers: Sequence[int]
    ) -> list[Caption | ImageError]:
        """Caption as one batch pictures that were prepared; those that could not be read stay errors.

        Samples depend on a picture's number.

        Raises:
            CaptionerError: a word in `must_include` is not in the vocabulary, or no caption contains it.
        """
        required = required_tokens(options, self.vocabulary)
        results: list[Caption | ImageError | None] = [
            pixels if isinstance(pixels, ImageError) else None for _, pixels in batch
        ]
        readable = [index for index, result in enumerate(results) if result is None]
        if readable:
            found = generate_captions(
                self.backend,
                self.backend.encode(np.stack([np.asarray(batch[index][1]) for index in readable])),
                options,
                required=required,
                numbers=[numbers[index] for index in readable],
            )
            for index, hypotheses in zip(readable, found, strict=True):
                if not hypotheses:
                    raise CaptionerError(
                        f"no caption of at most {options.max_words} words contains "
                        f"{', '.join(options.must_include)}; allow more words"
                    )
                results[index] = self._best_of(batch[index][0], hypotheses[: options.num_captions])
        return [result for result in results if result is not None]

    def _best_of(self, picture: ImageSource | Image.Image, hypotheses: Sequence[Hypothesis]) -> Caption:
        """The first hypothesis as a caption, the others as its alternatives, without special tokens."""
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
        """`alphas` may be longer than the words: with the attention of <end>, and padding."""
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


def required_tokens(options: DecodingOptions, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of the words that captions must include.

    Raises:
        CaptionerError: one is not in the vocabulary, or is several words.
    """
    required = []
    for word in options.must_include:
        ids = vocabulary.encode(word)[1:-1]
        if len(ids) > 1:
            raise CaptionerError(f"{word!r} is several words; give each as a required word of its own")
        if not ids or ids[0] == UNK:
            raise CaptionerError(f"{word!r} is not in the model's vocabulary, so captions cannot include it")
        required += ids
    return tuple(required)


def _as_source(given: ImageSource | str) -> ImageSource:
    source = as_picture(given)
    if isinstance(source, Image.Image):
        raise TypeError("caption_files takes files; caption a Pillow image with caption")
    return source
