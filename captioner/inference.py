"""From pictures to captions: load a model folder and caption files with it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from captioner.checkpoint import load_checkpoint
from captioner.config import DecodingConfig, Device, GridConfig, ModelConfig, PreprocessConfig
from captioner.decoding import search_captions
from captioner.errors import CaptionerError
from captioner.images import ImageError, ImageSource, Preprocess, heatmap, upright_rgb
from captioner.loading import loaded_batches
from captioner.model import CaptioningModel
from captioner.search import Hypothesis
from captioner.vocabulary import UNK, Vocabulary

SHIPPED_MODEL = Path(__file__).parent / "models" / "flickr8k"


class DeviceError(CaptionerError):
    """A device that torch does not find here."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and what each of its words looked at.

    `alphas[t, row, col]` is the attention on a cell of the grid when `tokens[t]` was chosen; each
    word's sum to one. They are the mean of `head_alphas`, which has each head's. `log_prob` is
    the natural logarithm of the caption's probability, its end included. `grid` and `preprocess` say
    where the cells lie on the picture.
    """

    file: str
    text: str
    tokens: tuple[str, ...]
    log_prob: float
    head_alphas: Float[np.ndarray, "tokens heads rows cols"]
    grid: GridConfig
    preprocess: PreprocessConfig

    @cached_property
    def alphas(self) -> Float[np.ndarray, "tokens rows cols"]:
        return self.head_alphas.mean(axis=1)

    def heatmap(
        self, index: int, image_size: tuple[int, int], *, is_smooth: bool = True
    ) -> Float[np.ndarray, "height width"]:
        """The attention of the word `tokens[index]` on a picture of (width, height) pixels."""
        return heatmap(
            self.alphas[index],
            grid=self.grid,
            preprocess=self.preprocess,
            image_size=image_size,
            is_smooth=is_smooth,
        )


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
        self, picture: Path | str | Image.Image, *, decoding: DecodingConfig | None = None
    ) -> Caption:
        """Caption one picture, given as a file or as a Pillow image.

        Raises:
            ImageError: the file cannot be read as a picture.
        """
        if isinstance(picture, Image.Image):
            file, pixels = "", self.preprocess(upright_rgb(picture))
        else:
            file, pixels = str(picture), self.preprocess.load(Path(picture))
        (caption,) = self._caption_batch(pixels[None], [file], decoding)
        return caption

    def caption_files(
        self,
        sources: Iterable[ImageSource | str],
        *,
        batch_size: int = 8,
        decoding: DecodingConfig | None = None,
    ) -> Iterator[list[Caption | ImageError]]:
        """Caption many pictures in order; gives a list for each batch as it is done.

        `sources` are paths, or `captioner.images.ZipMember`s. A picture that cannot be read gives its
        `ImageError` in its place. `decoding` is by default what scored best on the model's dev split.
        """
        paths = (Path(source) if isinstance(source, str) else source for source in sources)
        for batch in loaded_batches(paths, self.preprocess.load, batch_size=batch_size):
            readable = [(source, pixels) for source, pixels in batch if not isinstance(pixels, ImageError)]
            captions = iter(
                self._caption_batch(
                    np.stack([pixels for _, pixels in readable]),
                    [str(source) for source, _ in readable],
                    decoding,
                )
                if readable
                else []
            )
            yield [pixels if isinstance(pixels, ImageError) else next(captions) for _, pixels in batch]

    @torch.inference_mode()
    def _caption_batch(
        self,
        pixels: Float[np.ndarray, "batch 3 size size"],
        files: list[str],
        decoding: DecodingConfig | None,
    ) -> list[Caption]:
        annotations = self.model.encoder(torch.from_numpy(pixels).to(self.device))
        found = search_captions(self.model.decoder, annotations, decoding or self.config.decoding)
        return [self._to_caption(file, hypotheses) for file, hypotheses in zip(files, found, strict=True)]

    def _to_caption(self, file: str, hypotheses: list[Hypothesis]) -> Caption:
        """The best hypothesis as a caption, without the special tokens."""
        best = hypotheses[0]
        is_word = np.array([token > UNK for token in best.tokens])
        grid = self.config.grid
        return Caption(
            file=file,
            text=self.vocabulary.caption(best.tokens),
            tokens=tuple(self.vocabulary.decode(best.tokens)),
            log_prob=best.log_prob,
            head_alphas=best.alphas[is_word].reshape(
                int(is_word.sum()), best.alphas.shape[1], grid.rows, grid.cols
            ),
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
