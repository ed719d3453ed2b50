"""Training processes that are killed at random moments, and what a resumed run makes of what is left."""

import multiprocessing
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioner.atomic import readable_folder
from captioner.config import DecoderConfig, DecodingOptions, EncoderConfig
from captioner.data.pictures import CachedRecords
from captioner.data.regions import RegionStore
from captioner.model.batch import CaptionBatch
from captioner.model.encoder import Encoder
from captioner.records import CaptionedImage
from captioner.training.captioning import CaptioningTask
from captioner.training.options import RunOptions
from captioner.training.recipe import Recipe, TrainingConfig
from captioner.training.run import training_run
from captioner.training.step import TrainStep
from captioner.vocabulary import Vocabulary
from tests.conftest import TINY_CNN, TINY_SIZE_PX, noise_picture
from tests.data.test_regions import box, write_instances

NUM_KILLS = int(os.environ.get("CAPTIONER_KILLS", "3"))
"""How many processes are killed; the long run has 20."""
NUM_PICTURES = 8
RECIPE = Recipe(
    encoder=EncoderConfig(backbone=TINY_CNN, image_size=TINY_SIZE_PX),
    decoder=DecoderConfig(embedding_dim=16, hidden_dim=24, attention_dim=8, dropout=0.3),
    training=TrainingConfig(
        batch_size=2, epochs=4, patience=4, min_count=1, finetune_from_epoch=3, finetune_stages=1
    ),
    decoding=DecodingOptions(max_words=5),
)


class CountedSteps:
    """The steps of a run, counted for the process that watches it."""

    def __init__(self, train_step: TrainStep, count: "multiprocessing.sharedctypes.Synchronized") -> None:
        self.train_step, self.count = train_step, count

    def __call__(self, micro_batches: Sequence[CaptionBatch], number: int) -> dict[str, float]:
        self.count.value += 1
        return self.train_step(micro_batches, number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.train_step, name)


def train(folder: Path, pictures: Path, num_steps_seen: "multiprocessing.sharedctypes.Synchronized") -> None:
    """A whole run, or the rest of one: saved after every step, with dropout, augmentation, fine-tuning,
    weights of pictures and supervised attention."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder(backbone=TINY_CNN)
    records = [
        CaptionedImage(
            image_id=str(number),
            source=pictures / f"{number}.png",
            captions=(f"a dog of colour {number % 3}", "a dog"),
            split="train",
            weight=1.5,
            instances=pictures / "boxes.json",
        )
        for number in range(NUM_PICTURES)
    ]
    grid, preprocess = encoder.grid_config(TINY_SIZE_PX), encoder.preprocess_config(TINY_SIZE_PX)
    features = np.zeros((0, grid.num_cells, encoder.annotation_dim), np.float16)
    split = CachedRecords(records=records, features=features)
    task = CaptioningTask(
        recipe=RECIPE,
        encoder=encoder,
        preprocess=preprocess,
        grid=grid,
        vocabulary=Vocabulary.build((text for record in records for text in record.captions), min_count=1),
        train=split,
        dev=split,
        regions=RegionStore(records, grid=grid, preprocess=preprocess),
    )
    task.figures = lambda _: iter(())
    options = RunOptions(
        out=folder, resume=readable_folder(folder / "last").is_dir(), workers=0, save_minutes=0.0
    )
    with training_run(recipe=RECIPE, make_task=lambda _: task, options=options, command={}) as trainer:
        trainer.train_step = CountedSteps(trainer.train_step, num_steps_seen)
        trainer.run()


@pytest.mark.slow
def test_run_killed_at_any_moment_ends_like_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes get SIGKILL, during steps, saves, validation and tuning alike; not one may matter."""
    monkeypatch.setenv("PATH", "")  # no Java, no METEOR
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    boxes = {f"{number}.png": [box(1, [0, 0, 20, 20 + number])] for number in range(NUM_PICTURES)}
    write_instances(pictures / "boxes.json", boxes, size=(50, 40))
    for number in range(NUM_PICTURES):
        noise_picture(number).save(pictures / f"{number}.png")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_crash", "torchvision.transforms.v2"])
    num_steps = context.Value("i", 0, lock=False)  # a killed process would never give a lock back

    def start(folder: Path) -> "multiprocessing.context.ForkServerProcess":
        process = context.Process(target=train, args=(folder, pictures, num_steps))
        process.start()
        return process

    def finish(folder: Path) -> None:
        process = start(folder)
        process.join()
        assert process.exitcode == 0

    finish(tmp_path / "whole")
    steps_of_a_run = num_steps.value
    samples_per_epoch = 1.5 * NUM_PICTURES
    assert steps_of_a_run == RECIPE.training.epochs * samples_per_epoch // RECIPE.training.batch_size
    whole = torch.load(tmp_path / "whole" / "last" / "training_state.pt", weights_only=True)
    best = (tmp_path / "whole" / "best" / "model.safetensors").read_bytes()

    draw = random.Random(0)
    killed_in_time = 0
    for kill in range(NUM_KILLS):
        folder = tmp_path / str(kill)
        goal = num_steps.value + draw.randrange(steps_of_a_run)
        process = start(folder)
        while process.is_alive() and num_steps.value <= goal:
            process.join(0.001)
        process.join(draw.random() * 0.05)  # somewhere within what follows that step
        killed_in_time += process.is_alive()
        process.kill()
        process.join()
        finish(folder)
        state = torch.load(folder / "last" / "training_state.pt", weights_only=True)
        for part in ("model", "averaged"):
            for name, value in whole[part].items():
                assert torch.equal(value, state[part][name]), (kill, part, name)
        assert (folder / "best" / "model.safetensors").read_bytes() == best
    assert killed_in_time >= NUM_KILLS - 1  # the last step may be over before it is killed
