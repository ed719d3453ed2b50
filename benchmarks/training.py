"""Training speed of the decoder on cached features, against a plain loop.

    python benchmarks/training.py --captions captions_val2017.json

Both train the default decoder on the same real captions and on random features (their values do not affect
the speed), with the same loss, optimiser and number of captions per step:

- as in `train.py`, a picture is read, normalised and projected once for all its captions and words;
- in the plain loop, captions are shuffled individually, and a picture is read and projected again for each
  caption; in a second variant the projection is repeated for each word, as in tutorials.

Measurements are interleaved and repeated; the tables have their median, minimum and maximum. Memory is that
of the whole process, after the first fifth of the steps and after the last step.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.config import DecoderConfig, PreprocessConfig
from captioner.data.batching import load_batches
from captioner.data.epoch_order import epoch_batches
from captioner.data.pictures import CachedRecords, CaptionDataset
from captioner.images.geometry import Preprocess
from captioner.model.batch import CaptionBatch, Pictures
from captioner.model.captioning import make_decoder
from captioner.model.decoder import Decoder, Memory, StepOutput
from captioner.records import CaptionedImage
from captioner.training.loss import CaptionLoss
from captioner.vocabulary import Vocabulary

CELLS, CHANNELS = 81, 1280
PICTURES_PER_STEP, CAPTIONS_PER_PICTURE = 24, 5


class ProjectingAtEachWord(Decoder[Any]):
    """A decoder that projects the annotations again for each word."""

    def __init__(self, decoder: Decoder[Any]) -> None:
        super().__init__(decoder.config)
        self.decoder = decoder

    def prepare_memory(
        self, annotations: Float[Tensor, "batch cells annotation"], cell_mask: None = None
    ) -> Memory:
        self.annotations = annotations
        return self.decoder.prepare_memory(annotations, cell_mask)

    def initial_state(self, memory: Memory, num_captions: int) -> Any:
        return self.decoder.initial_state(memory, num_captions)

    def step(self, tokens: Int[Tensor, "batch captions"], state: Any, _: Memory) -> StepOutput[Any]:
        return self.decoder.step(tokens, state, self.decoder.prepare_memory(self.annotations[: len(tokens)]))

    def logits(self, readout: Tensor) -> Tensor:
        return self.decoder.logits(readout)


def read_records(captions: Path, num_pictures: int) -> list[CaptionedImage]:
    """Pictures with five captions each from a COCO annotation file, repeated as needed."""
    texts_of: dict[int, list[str]] = {}
    for annotation in json.loads(captions.read_text())["annotations"]:
        texts_of.setdefault(annotation["image_id"], []).append(annotation["caption"])
    texts = [each[:CAPTIONS_PER_PICTURE] for each in texts_of.values() if len(each) >= CAPTIONS_PER_PICTURE]
    return [
        CaptionedImage(
            image_id=str(number),
            source=Path(f"{number}.jpg"),
            captions=tuple(texts[number % len(texts)]),
            split="train",
        )
        for number in range(num_pictures)
    ]


def make_datasets(
    records: list[CaptionedImage], vocabulary: Vocabulary, folder: Path
) -> tuple[CaptionDataset, CaptionDataset]:
    """The pictures with all their captions, and pairs of a picture and a caption, with cached features."""
    preprocess = PreprocessConfig(size_px=260, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    rng = np.random.default_rng(0)
    shape = (len(records), CELLS, CHANNELS)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape)
    for row in features:
        row[:] = rng.normal(size=row.shape)

    def dataset(split: CachedRecords) -> CaptionDataset:
        return CaptionDataset(
            split=split, preprocess=Preprocess(preprocess), vocabulary=vocabulary, max_words=20
        )

    pairs = [replace(record, captions=(text,)) for record in records for text in record.captions]
    shape = (len(pairs), CELLS, CHANNELS)
    repeated = np.lib.format.open_memmap(folder / "repeated.npy", "w+", np.float16, shape)
    repeated[:] = np.repeat(features, CAPTIONS_PER_PICTURE, axis=0)
    return (
        dataset(CachedRecords(records=records, features=features)),
        dataset(CachedRecords(records=pairs, features=repeated)),
    )


class Trainer:
    """One way of training, with its own model and optimiser."""

    def __init__(
        self, dataset: CaptionDataset, *, vocab_size: int, is_plain: bool, projects_at_each_word: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.dataset = dataset
        self.batch_size = PICTURES_PER_STEP * (CAPTIONS_PER_PICTURE if is_plain else 1)
        decoder = make_decoder(DecoderConfig(), annotation_dim=CHANNELS, vocab_size=vocab_size)
        self.decoder = ProjectingAtEachWord(decoder) if projects_at_each_word else decoder
        self.optimiser = torch.optim.AdamW(self.decoder.parameters())
        self.loss = CaptionLoss(label_smoothing=0.1, attention_penalty=0.005)

    def batches(self, epoch: int) -> Iterator[CaptionBatch]:
        keys = epoch_batches(len(self.dataset), batch_size=self.batch_size, seed=0, epoch=epoch)
        return load_batches(self.dataset, keys, num_workers=0)

    def train(self, num_steps: int, epoch: int) -> int:
        """Train for `num_steps`, and return the number of captions."""
        num_captions = 0
        for _, batch in zip(range(num_steps), self.batches(epoch), strict=False):
            assert isinstance(batch.sources, Pictures)
            annotations = batch.sources.features.float()[batch.sources.order]
            output = self.decoder(annotations, batch.tokens, batch.lengths)
            self.optimiser.zero_grad()
            self.loss(output, batch)["total"].backward()
            self.optimiser.step()
            num_captions += int((batch.lengths > 0).sum())
        return num_captions


def main(
    *,
    captions: Path,
    num_steps: int = 10,
    repeats: int = 3,
    threads: int | None = None,
    json_out: Path | None = None,
) -> None:
    """Measure, and print three tables.

    Args:
        captions: COCO annotation file with captions.
        num_steps: Steps per measurement.
        repeats: Number of measurements.
        threads: CPU threads, by default torch's.
        json_out: Also write all values to this file.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    records = read_records(captions, num_steps * PICTURES_PER_STEP)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Vocabulary.build((text for record in records for text in record.captions), min_count=1)
        pictures, pairs = make_datasets(records, vocabulary, Path(folder))
        trainers = {
            "each picture once": Trainer(pictures, vocab_size=len(vocabulary), is_plain=False),
            "plain loop": Trainer(pairs, vocab_size=len(vocabulary), is_plain=True),
            "plain loop, projection at each word": Trainer(
                pairs, vocab_size=len(vocabulary), is_plain=True, projects_at_each_word=True
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in trainers}
        for trainer in trainers.values():
            trainer.train(1, epoch=0)  # warm up
        for repeat in range(repeats):
            for name, trainer in trainers.items():
                started = time.perf_counter()
                count = trainer.train(num_steps, epoch=repeat)
                rates[name].append(count / (time.perf_counter() - started))
        memory: dict[str, list[float]] = {"after a fifth of the steps": [], "after all steps": []}
        for step in range(5):
            trainers["each picture once"].train(num_steps, epoch=step)
            if step in (0, 4):
                memory["after all steps" if step else "after a fifth of the steps"].append(
                    psutil.Process().memory_info().rss / 2**20
                )
    first, *others = rates
    ratios = {
        f"{first} / {name}": [mine / other for mine, other in zip(rates[first], rates[name], strict=True)]
        for name in others
    }
    report({"captions per second": rates, "ratios": ratios, "memory, MB": memory}, json_out)


if __name__ == "__main__":
    tyro.cli(main)
