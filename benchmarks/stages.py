"""Speed of a training step on a CPU, by stage and number format.

    python benchmarks/stages.py --captions captions_val2017.json

Pictures per second of complete updates with the default recipe: on cached features, and on pixels with the
CNN's last stages fine-tuned. Captions are real; features and pixels are random, which does not affect the
speed. Measurements are interleaved and repeated; the table has their median, minimum and maximum.
"""

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from benchmarks.training import read_records
from captioner.backends.torch_backend import limit_threads
from captioner.config import EncoderConfig
from captioner.data.batching import CaptionItem, EncodedCaptions, collate
from captioner.data.pictures import CaptionDataset
from captioner.model.batch import CaptionBatch
from captioner.model.captioning import CaptioningModel, make_decoder
from captioner.model.encoder import Encoder
from captioner.training.recipe import MixedPrecision, Recipe
from captioner.training.run import keep_freed_memory
from captioner.training.step import TrainStep
from captioner.vocabulary import Vocabulary

BACKBONE, SIZE_PX = "tf_efficientnet_lite2", 320
PRECISIONS: tuple[MixedPrecision, ...] = ("no", "bf16")


def batches(
    vocabulary: Vocabulary, captions: Path, num: int, size: int, *, cached: bool
) -> list[CaptionBatch]:
    """Batches of real captions with features or pixels."""
    rng = np.random.default_rng(0)
    records = read_records(captions, num * size)
    tokens = EncodedCaptions([one.captions for one in records], vocabulary=vocabulary, max_words=20)
    cells = (SIZE_PX // 32) ** 2

    def item(index: int) -> CaptionItem:
        shape = (cells, 1280) if cached else (SIZE_PX, SIZE_PX, 3)
        values = (
            rng.normal(size=shape).astype(np.float16) if cached else rng.integers(0, 256, shape, np.uint8)
        )
        return CaptionItem(str(index), str(index), torch.from_numpy(values), tokens[index], None)

    rows = [range(start, start + size) for start in range(0, num * size, size)]
    found = [collate([item(index) for index in row], stack=CaptionDataset.stack) for row in rows]
    return [batch for batch in found if isinstance(batch, CaptionBatch)]


def train_step(vocabulary: Vocabulary, precision: MixedPrecision, *, finetuned: bool) -> TrainStep:
    torch.manual_seed(0)
    AcceleratorState._reset_state()  # one precision per process, otherwise
    recipe = Recipe(encoder=EncoderConfig(backbone=BACKBONE, image_size=SIZE_PX))
    recipe = replace(
        recipe,
        training=replace(recipe.training, finetune_from_epoch=1 if finetuned else None, finetune_stages=2),
    )
    encoder = Encoder(backbone=BACKBONE)
    decoder = make_decoder(recipe.decoder, annotation_dim=encoder.annotation_dim, vocab_size=len(vocabulary))
    step = TrainStep(
        accelerator=Accelerator(cpu=True, mixed_precision=precision),
        recipe=recipe,
        model=CaptioningModel(encoder=encoder, decoder=decoder),
        steps_per_epoch=100,
        vocabulary=vocabulary,
    )
    step.unfreeze()
    return step


def main(
    *,
    captions: Path,
    cached_batch_size: int = 48,
    pixels_batch_size: int = 12,
    repeats: int = 5,
    threads: int | None = None,
    profile: bool = False,
    json_out: Path | None = None,
) -> None:
    """Measure, and print a table.

    Args:
        captions: COCO annotation file with captions.
        cached_batch_size: Pictures per update on cached features.
        pixels_batch_size: Pictures per update with a fine-tuned CNN.
        repeats: Number of measurements.
        threads: CPU threads, by default one per core.
        profile: Print the operations that take the time of each stage, instead of measuring.
        json_out: Also write all values to this file.
    """
    limit_threads(threads)
    keep_freed_memory()
    texts = (text for record in read_records(captions, 5000) for text in record.captions)
    vocabulary = Vocabulary.build(texts, min_count=2)
    given = {
        "cached features": batches(vocabulary, captions, 3, cached_batch_size, cached=True),
        "fine-tuned CNN": batches(vocabulary, captions, 2, pixels_batch_size, cached=False),
    }
    steps = {
        (stage, precision): train_step(vocabulary, precision, finetuned=stage == "fine-tuned CNN")
        for stage in given
        for precision in PRECISIONS
    }
    rates: dict[str, list[float]] = {}
    for number in range(repeats + 1):
        for (stage, precision), step in steps.items():
            started = time.perf_counter()
            with torch.profiler.profile() if profile else nullcontext() as profiler:
                for batch in given[stage]:
                    step([batch], number)
            rate = sum(len(batch.ids) for batch in given[stage]) / (time.perf_counter() - started)
            if number:  # the first is a warm-up
                rates.setdefault(f"{stage}, {precision}", []).append(rate)
            if profile and number:
                sys.stdout.write(f"{stage}, {precision}\n")
                sys.stdout.write(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=18))
    report({f"pictures per second, {torch.get_num_threads()} threads": rates}, json_out)


if __name__ == "__main__":
    tyro.cli(main)
