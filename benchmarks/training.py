"""How fast the decoder trains on cached grids, beside the plain loop.

    python benchmarks/training.py --captions captions_val2017.json

Both train the default decoder on the same real captions (random grids: their values do not matter here),
with the same loss, optimiser and number of captions a step:

- as `train.py` does it: a picture is read, normalised and projected once for all its captions and words;
- the plain loop: a picture is read again for each of its captions, which are shuffled by themselves, and
  projected for each of them; also with the projection at each word, as tutorials have it.

They take turns. Figures are medians, with the least and the most. Memory is the whole process's, after the
first fifth of the steps and after the last.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from captioner.model.decoder import Decoder, Memory, StepOutput, teacher_forced
from captioner.records import CaptionedImage
from captioner.training.loss import CaptionLoss
from captioner.vocabulary import Vocabulary

CELLS, CHANNELS = 81, 1280
PICTURES_A_STEP, CAPTIONS_OF_A_PICTURE = 24, 5


@dataclass(frozen=True)
class ProjectingAtEachWord:
    """A decoder that keeps nothing of a picture between words."""

    decoder: Decoder[Any]
    annotations: Float[Tensor, "batch cells annotation"]

    def prepare_memory(self, annotations: Float[Tensor, "batch cells annotation"], cell_mask: None = None) -> Memory:
        return self.decoder.prepare_memory(annotations, cell_mask)

    def initial_state(self, memory: Memory, num_captions: int) -> Any:
        return self.decoder.initial_state(memory, num_captions)

    def step(self, tokens: Int[Tensor, "batch captions"], state: Any, _: Memory) -> StepOutput[Any]:
        return self.decoder.step(tokens, state, self.decoder.prepare_memory(self.annotations[: len(tokens)]))

    def logits(self, readout: Tensor) -> Tensor:
        return self.decoder.logits(readout)


def read_records(captions: Path, num_pictures: int) -> list[CaptionedImage]:
    """So many pictures with five captions each, from a COCO annotation file, repeated."""
    texts_of: dict[int, list[str]] = {}
    for annotation in json.loads(captions.read_text())["annotations"]:
        texts_of.setdefault(annotation["image_id"], []).append(annotation["caption"])
    texts = [each[:CAPTIONS_OF_A_PICTURE] for each in texts_of.values() if len(each) >= CAPTIONS_OF_A_PICTURE]
    return [
        CaptionedImage(
            image_id=str(number),
            source=Path(f"{number}.jpg"),
            captions=tuple(texts[number % len(texts)]),
            split="train",
        )
        for number in range(num_pictures)
    ]


def datasets(
    records: list[CaptionedImage], vocabulary: Vocabulary, folder: Path
) -> tuple[CaptionDataset, CaptionDataset]:
    """The pictures with all their captions, and with one of them each; both with cached grids."""
    preprocess = PreprocessConfig(size_px=260, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    rng = np.random.default_rng(0)
    shape = (len(records), CELLS, CHANNELS)
    grids = np.lib.format.open_memmap(folder / "grids.npy", "w+", np.float16, shape)
    for row in grids:
        row[:] = rng.normal(size=row.shape)

    def dataset(split: CachedRecords) -> CaptionDataset:
        return CaptionDataset(
            split=split, preprocess=Preprocess(preprocess), vocabulary=vocabulary, max_words=20
        )

    pairs = [replace(record, captions=(text,)) for record in records for text in record.captions]
    of_pair = np.lib.format.open_memmap(folder / "pairs.npy", "w+", np.float16, (len(pairs), CELLS, CHANNELS))
    of_pair[:] = np.repeat(grids, CAPTIONS_OF_A_PICTURE, axis=0)
    return dataset(CachedRecords(records=records, grids=grids)), dataset(CachedRecords(records=pairs, grids=of_pair))


class Trainer:
    """One way to train, with a model and an optimiser of its own."""

    def __init__(
        self, dataset: CaptionDataset, *, vocab_size: int, is_plain: bool, at_each_word: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.dataset, self.at_each_word = dataset, at_each_word
        self.items = PICTURES_A_STEP * (CAPTIONS_OF_A_PICTURE if is_plain else 1)
        self.decoder = make_decoder(DecoderConfig(), annotation_dim=CHANNELS, vocab_size=vocab_size)
        self.optimiser = torch.optim.AdamW(self.decoder.parameters())
        self.loss = CaptionLoss(label_smoothing=0.1, attention_penalty=0.005)

    def batches(self, epoch: int) -> Iterator[CaptionBatch]:
        keys = epoch_batches(len(self.dataset), batch_size=self.items, seed=0, epoch=epoch)
        return load_batches(self.dataset, keys, num_workers=0)

    def train(self, num_steps: int, epoch: int) -> int:
        """Train for so many steps; gives the number of captions."""
        captions = 0
        for _, batch in zip(range(num_steps), self.batches(epoch), strict=False):
            assert isinstance(batch.sources, Pictures)
            annotations = batch.sources.grids.float()
            decoder = ProjectingAtEachWord(self.decoder, annotations) if self.at_each_word else self.decoder
            output = teacher_forced(decoder, annotations, batch.tokens, batch.lengths)
            self.optimiser.zero_grad()
            self.loss(output, batch.tokens).total.backward()
            self.optimiser.step()
            captions += int((batch.lengths > 0).sum())
        return captions


def main(
    *,
    captions: Path,
    num_steps: int = 10,
    repeats: int = 3,
    threads: int | None = None,
    json_out: Path | None = None,
) -> None:
    """Measure and print one table each.

    Args:
        captions: COCO annotation file with captions.
        num_steps: Steps for each figure.
        repeats: How often each figure is taken.
        threads: CPU threads, by default torch's.
        json_out: Write all figures to this file too.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    records = read_records(captions, num_steps * PICTURES_A_STEP)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Vocabulary.build((text for record in records for text in record.captions), min_count=1)
        pictures, pairs = datasets(records, vocabulary, Path(folder))
        ways = {
            "each picture once": Trainer(pictures, vocab_size=len(vocabulary), is_plain=False),
            "plain loop": Trainer(pairs, vocab_size=len(vocabulary), is_plain=True),
            "plain loop, projection at each word": Trainer(
                pairs, vocab_size=len(vocabulary), is_plain=True, at_each_word=True
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for trainer in ways.values():
            trainer.train(1, epoch=0)  # warm up
        for repeat in range(repeats):
            for name, trainer in ways.items():
                started = time.perf_counter()
                count = trainer.train(num_steps, epoch=repeat)
                rates[name].append(count / (time.perf_counter() - started))
        memory: dict[str, list[float]] = {"after a fifth of the steps": [], "after all": []}
        for step in range(5):
            ways["each picture once"].train(num_steps, epoch=step)
            if step in (0, 4):
                memory["after all" if step else "after a fifth of the steps"].append(
                    psutil.Process().memory_info().rss / 2**20
                )
    first, *others = rates
    ratios = {
        f"{first} / {name}": [mine / other for mine, other in zip(rates[first], rates[name], strict=True)]
        for name in others
    }
    report({"captions a second": rates, "ratios": ratios, "memory, MB": memory}, json_out)


if __name__ == "__main__":
    tyro.cli(main)
