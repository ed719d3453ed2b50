"""Train a model, or check a data set: `python train.py coco --root DIR --out runs/NAME`."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import tyro

from captioner.cli_train import ARGUMENTS_FILE, Changes, RunOptions
from captioner.errors import INTERRUPTED, CaptionerError, Stopped
from captioner.flags import DATASET_PARSING, one_of
from captioner.recipe import PRESETS
from captioner.records import CaptionedImage, RecordReader, SentenceReader, SplitName, TranslatedSentence
from datasets.registry import DATASETS, TRANSLATION_DATASETS

TRAINABLE = DATASETS | TRANSLATION_DATASETS

if TYPE_CHECKING:
    Dataset = RecordReader
    TrainingDataset = RecordReader | SentenceReader
else:
    Dataset, TrainingDataset = one_of(DATASETS), one_of(TRAINABLE)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train on a data set, scoring decoded captions of its dev split every epoch.

    Writes OUT/best, a model folder for caption.py; of multi30k, a translator. `train.py DATASET --help` shows
    where a data set's files go, `train.py check DATASET` looks one of pictures over first.
    """

    dataset: TrainingDataset
    run: RunOptions
    recipe: Changes = field(default_factory=Changes)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look a data set over, on one page: counts, lengths, vocabulary, pictures that are missing, cannot be
    decoded or are in two splits, empty captions. Exit status 1 where training would be unsound."""

    dataset: Dataset
    min_count: int = 5
    """Times a word must occur in the training captions to enter the vocabulary."""


def train(command: Train, arguments: list[str]) -> None:
    from captioner.run import run_training
    from datasets.soundness import require_sound

    (name,) = (name for name, reader in TRAINABLE.items() if isinstance(command.dataset, reader))
    recipe = command.recipe.applied_to(PRESETS[name])
    records: Sequence[CaptionedImage | TranslatedSentence] = command.dataset.read(["train", "dev"])
    if name in DATASETS:
        require_sound([record for record in records if isinstance(record, CaptionedImage)])
    run_training(
        recipe=recipe,
        train=[record for record in records if record.split == "train"],
        dev=[record for record in records if record.split == "dev"],
        options=command.run,
        arguments=[argument for argument in arguments if argument != "--resume"],
    )


def check(command: Check) -> int:
    from datasets.check import check

    records: list[CaptionedImage] = []
    unreadable: dict[SplitName, str] = {}
    for split in get_args(SplitName):
        try:
            records += command.dataset.read([split])
        except CaptionerError as error:  # noqa: PERF203 (three times)
            unreadable[split] = str(error)
    page, is_sound = check(records, unreadable, min_count=command.min_count)
    sys.stdout.write(f"{page}\n")
    return 0 if is_sound else 1


def _arguments(given: list[str]) -> list[str]:
    """The arguments, or, of `--resume FOLDER` alone, those that the run in the folder was started with."""
    if given[:1] != ["--resume"] or len(given) < 2:
        return given
    path = Path(given[1]) / ARGUMENTS_FILE
    try:
        started_with: list[str] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CaptionerError(f"{given[1]} holds no run that can be gone on with ({error})") from None
    return [*started_with, "--resume", *given[2:]]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments = _arguments(sys.argv[1:])
        if arguments[:1] == ["check"]:
            sys.exit(
                check(tyro.cli(Check, args=arguments[1:], prog="train.py check", config=DATASET_PARSING))
            )
        train(tyro.cli(Train, args=arguments, prog="train.py", config=DATASET_PARSING), arguments)
    except Stopped as stopped:
        sys.stderr.write(f"train.py: {stopped}\n")
        sys.exit(INTERRUPTED)
    except CaptionerError as error:
        sys.exit(f"train.py: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"train.py: this needs {error.name}; install it with: pip install 'captioner[train]'")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; a training run goes on from its last save with --resume")


if __name__ == "__main__":
    main()
