"""Train a captioner: `python train.py flickr8k --root DIR --out runs/NAME`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from captioner.config import PRESETS, Recipe
from datasets import DatasetError
from datasets.flickr import read_flickr8k


@dataclass(frozen=True, kw_only=True)
class Flickr8k:
    """Train on Flickr8k in its official layout and score decoded captions of its dev split.

    Writes OUT/best, a model folder for caption.py, and OUT/log.jsonl.
    """

    root: Path
    """Folder with Flickr8k.token.txt, the split lists, and the pictures in folders or zips."""
    out: Path
    """Folder of the run, for example runs/first."""
    resume: bool = False
    """Go on with the run in OUT after its last finished epoch."""
    cache_dir: Path = Path("cache")
    """Where the grids of the pictures are kept; for Flickr8k they take 1.5 GB."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=lambda: PRESETS["flickr8k"])


Command = Annotated[Flickr8k, tyro.conf.subcommand("flickr8k")]


def train(command: Flickr8k) -> None:
    from captioner.encoder import build_encoder
    from captioner.features import cached_grids
    from captioner.training import Split, Trainer, finish
    from captioner.vocabulary import Vocabulary

    recipe = command.recipe
    records = read_flickr8k(command.root)
    encoder = build_encoder(recipe.encoder)
    preprocess = encoder.preprocess_config(recipe.encoder.image_size)
    grid = encoder.grid_config(recipe.encoder.image_size)

    def split(name: str) -> Split:
        chosen = [record for record in records if record.split == name]
        grids = cached_grids(
            records=chosen, encoder=encoder, preprocess=preprocess, grid=grid, cache_dir=command.cache_dir
        )
        return Split(records=chosen, grids=grids)

    train_split, dev_split = split("train"), split("dev")
    captions = (caption for record in train_split.records for caption in record.captions)
    trainer = Trainer(
        recipe=recipe,
        encoder=encoder,
        preprocess=preprocess,
        grid=grid,
        vocabulary=Vocabulary.build(captions, min_count=recipe.training.min_count),
        train=train_split,
        dev=dev_split,
        out=command.out,
    )
    if command.resume:
        trainer.resume()
    best = trainer.run()
    logging.info("choosing the decoding on dev")
    logging.info("%s scores on dev: %s", best, finish(best, dev_split))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    train(tyro.cli(Flickr8k))
