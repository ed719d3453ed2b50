"""Train a captioner, or score one: `python train.py flickr8k --root DIR --out runs/NAME`."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from captioner.config import PRESETS, Recipe
from captioner.errors import CaptionerError
from datasets.flickr import read_flickr8k

_logger = logging.getLogger("train")


@dataclass(frozen=True, kw_only=True)
class TrainFlickr8k:
    """Train on Flickr8k in its official layout, scoring decoded captions of its dev split every epoch.

    Writes OUT/best, a model folder for caption.py, and OUT/log.jsonl.
    """

    root: Path
    """Folder with Flickr8k.token.txt, the split lists, and the pictures in folders or zips."""
    out: Path
    """Folder of the run, for example runs/first."""
    resume: bool = False
    """Go on with the run in OUT after its last finished epoch."""
    cache_dir: Path = Path("cache")
    """Where the grids of the pictures are kept: 1.5 GB for Flickr8k at 260 pixels."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=lambda: PRESETS["flickr8k"])


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Caption a split of Flickr8k as caption.py does, and score the captions as printed."""

    root: Path
    """Folder with Flickr8k in its official layout."""
    split: Literal["train", "dev", "test"] = "dev"
    """Which split to score. Choose settings on dev, never on test."""
    model: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: the model that ships with captioner)"),
    ] = None
    """Folder of the model."""


Command = (
    Annotated[TrainFlickr8k, tyro.conf.subcommand("flickr8k")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
)


def train(command: TrainFlickr8k) -> None:
    from captioner.checkpoint import recover_folder
    from captioner.encoder import build_encoder
    from captioner.features import cached_grids
    from captioner.inference import choose_device
    from captioner.training import Trainer, TrainingError
    from captioner.validation import Split, settle_decoding
    from captioner.vocabulary import Vocabulary

    recover_folder(command.out / "last")
    if not command.resume and (command.out / "last").exists():
        raise TrainingError(
            f"{command.out} holds a run; add --resume to go on with it, or give another --out"
        )
    try:
        command.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make {command.out}: {error.strerror}; give another --out") from error
    recipe = command.recipe
    records = read_flickr8k(command.root)
    encoder = build_encoder(recipe.encoder)
    preprocess = encoder.preprocess_config(recipe.encoder.image_size)
    grid = encoder.grid_config(recipe.encoder.image_size)
    encoder.to(choose_device("auto"))

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
    _logger.info("choosing the beam size and length penalty on dev")
    _logger.info("%s on dev: %s", best, settle_decoding(best, dev_split))


def evaluate(command: Evaluate) -> None:
    from tqdm import tqdm

    from captioner.images import ImageError
    from captioner.inference import SHIPPED_MODEL, Captioner
    from captioner.metrics import score_captions

    records = read_flickr8k(command.root, [command.split])
    captioner = Captioner.load(command.model or SHIPPED_MODEL)
    sources = (record.source for record in records)
    batches = captioner.caption_files(sources, batch_size=32)
    results = (result for batch in batches for result in batch)
    captions = {}
    for record, result in zip(
        records, tqdm(results, total=len(records), desc="captioning", unit=" pictures", delay=2), strict=True
    ):
        if isinstance(result, ImageError):
            raise result
        captions[record.image_id] = result.text
    scores = score_captions(captions, {record.image_id: record.captions for record in records})
    sys.stdout.write(f"{scores}\n")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command = tyro.cli(
        Command,
        prog="train.py",
        description="Train a captioner, or score one.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        if isinstance(command, Evaluate):
            evaluate(command)
        else:
            train(command)
    except CaptionerError as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; a training run goes on after its last finished epoch with --resume")


if __name__ == "__main__":
    main()
