"""The command `captioner evaluate`: score a model on a data set, or captions that are there already.

The data sets that can be named are those of the entry points "captioner.datasets": this library knows
records, not how they lie on disk.
"""

import sys
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from captioner.cli_model import ModelOptions
from captioner.errors import CaptionerError, UsageError
from captioner.flags import hint, one_of
from captioner.records import CaptionedImage, RecordReader, SplitName

if TYPE_CHECKING:
    from captioner.evaluation import Evaluation

    Dataset = RecordReader
else:
    Dataset = one_of(
        {
            name: reader
            for group in entry_points(group="captioner.datasets")
            for name, reader in group.load().items()
        }
    )

SPLIT_OF: dict[str, SplitName] = {"train": "train", "dev": "dev", "val": "dev", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score captions: those of a model on a DATASET, or those of --results.

    Captions are scored exactly as `captioner caption` prints them. Prints BLEU-1..4, METEOR (where Java is),
    ROUGE-L, CIDEr-D, the number of different words, the mean length, and the shares of captions that are
    distinct, broken off, repetitive, and copied from train.
    """

    dataset: Dataset | None = None
    split: Literal["train", "dev", "val", "test"] = "dev"
    """Which split of DATASET; val is another name of dev. Choose settings on dev, never on test."""
    results: Annotated[Path | None, hint("FILE", "caption the pictures of DATASET")] = None
    """Captions to score: COCO results, or the JSON lines of `captioner caption`."""
    references: Annotated[Path | None, hint("FILE", "those of DATASET")] = None
    """With --results and no DATASET: COCO annotation file with the references."""
    train_references: Annotated[Path | None, hint("FILE", "the train split of DATASET")] = None
    """COCO annotation file with the training captions, to tell which captions are copied."""
    results_out: Annotated[Path | None, hint("FILE", "none")] = None
    """Write the captions in the format that COCO's evaluation server takes."""
    batch_size: int = 32
    """Pictures captioned at a time."""
    run: ModelOptions = field(default_factory=ModelOptions)


def run_evaluate(command: EvaluateCommand) -> None:
    """Evaluate as the command says, and print the result."""
    if command.dataset is None and (command.results is None or command.references is None):
        raise UsageError("name a DATASET, or give --results and --references; see --help")
    if command.dataset is not None and command.references is not None:
        raise UsageError("give a DATASET or --references, not both")
    if command.results is not None and command.run.model is not None:
        raise UsageError("give --results or --model, not both")
    command.run.check()
    if command.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {command.batch_size}")
    try:
        evaluation = _evaluation(command)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"scoring needs {error.name}; install it with: pip install 'captioner[train]'"
        ) from error
    sys.stdout.write(f"{evaluation}\n")


def _evaluation(command: EvaluateCommand) -> "Evaluation":
    from captioner.coco_format import CocoImage, read_coco_captions, read_results, write_results
    from captioner.evaluation import caption_records, evaluate_captions
    from captioner.metrics import require_references

    records: list[CaptionedImage] = []
    if command.dataset is not None:
        records = command.dataset.read([SPLIT_OF[command.split]])
        require_references({record.image_id: record.captions for record in records})
        images = [CocoImage(record.image_id, record.file_name, record.captions) for record in records]
    elif command.references is not None:
        images = read_coco_captions(command.references)
    if command.results is not None:
        captions = read_results(command.results, images)
    else:
        captioner = command.run.load()
        captions = caption_records(captioner, records, batch_size=command.batch_size)
    if command.results_out is not None:
        write_results(command.results_out, captions)
    references = {image.image_id: image.captions for image in images}
    return evaluate_captions(captions, references, train_captions=_train_captions(command, records))


def _train_captions(command: EvaluateCommand, evaluated: list[CaptionedImage]) -> list[str] | None:
    """The captions that the model may have copied, where they are to be had."""
    from captioner.coco_format import read_coco_captions

    if command.train_references is not None:
        return [text for image in read_coco_captions(command.train_references) for text in image.captions]
    if command.dataset is None or SPLIT_OF[command.split] == "train":
        return None
    try:
        records = command.dataset.read(["train"])
    except CaptionerError:
        return None  # a data set may be evaluated without its train split
    if {record.image_id for record in records} & {record.image_id for record in evaluated}:
        return None  # one file serves as every split
    return [text for record in records for text in record.captions]
