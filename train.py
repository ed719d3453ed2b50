"""Training from the command line: `python train.py coco --root DIR --out runs/NAME`."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from captioner.checkpoint.folder import locate_model
from captioner.cli.main import command_line, parse
from captioner.cli.options import (
    arg,
    checked,
    dataset_subcommands,
    flags,
    installed_datasets,
    report_broken_plugins,
)
from captioner.cli.train import RecipeOverrides, ResumeFlags, RunFlags, StoredCommand, to_stored
from captioner.config import EncoderConfig
from captioner.errors import CaptionerError, UsageError
from captioner.formats import escape_controls
from captioner.records import CaptionedImage, RecordReader, SentenceReader, SplitName
from captioner.training.options import RunOptions, refuse_other_run
from captioner.training.recipe import PRESETS, Recipe, TrainingConfig
from datasets.mixture import Mixture
from datasets.registry import DATASETS, TRANSLATION_DATASETS

VocabularyFlags: Any = flags(TrainingConfig, ("min_count", "max_caption_words", "keep_case"))
_INSTALLED, _BROKEN = installed_datasets()
CAPTIONED = _INSTALLED | DATASETS
TRAINABLE = CAPTIONED | TRANSLATION_DATASETS

if TYPE_CHECKING:
    Dataset = RecordReader
    TrainingDataset = RecordReader | SentenceReader
else:
    Dataset, TrainingDataset = dataset_subcommands(CAPTIONED), dataset_subcommands(TRAINABLE)


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Train on a data set, scoring decoded captions of its dev split every epoch.

    Writes OUT/best, a model folder for caption.py (for multi30k, a translator). `train.py DATASET --help`
    says where a data set's files go, `train.py check DATASET` checks it, and `train.py --resume OUT`
    continues an interrupted run.
    """

    dataset: TrainingDataset
    instances: Annotated[Path | None, arg("FILE")] = None
    """COCO annotation file with objects in the training pictures, as masks or boxes: attention is drawn to
    the object that a word names, and the setting self_critical_object_penalty lowers the reward of captions
    that name objects which are not in the picture. An annotation may have a score."""
    run: RunFlags
    recipe: RecipeOverrides = field(default_factory=RecipeOverrides)


@dataclass(frozen=True)
class Training:
    """A run with all its settings."""

    name: str
    reader: RecordReader | SentenceReader
    recipe: Recipe
    options: RunOptions
    instances: Path | None = None

    def run(self) -> int:
        """Read the data, train, and return the exit status."""
        self._check_files()  # before every picture is looked at
        from captioner.training.fitting import fit_to_captions
        from captioner.training.run import training_run

        records: Sequence[Any] = self.reader.read(["train", "dev"])
        if self.name in CAPTIONED:
            records = self._valid(records)
        train, dev = ([one for one in records if one.split == split] for split in ("train", "dev"))
        recipe = self.recipe
        if self.name in CAPTIONED:
            recipe = fit_to_captions(recipe, (caption for one in train for caption in one.captions))
        if self.instances is not None:
            train = [replace(one, instances=self.instances) for one in train]
        with training_run(
            recipe=recipe,
            make_task=self._task(recipe, train, dev),
            options=self.options,
            command=to_stored(self.name, self.reader, recipe, self.options, self.instances),
        ) as trainer:
            trainer.run()
        return 0

    def _check_files(self) -> None:
        """Raises: CaptionerError, if a file that the run needs is missing, or its folder has another run."""
        encoder, start = self.recipe.encoder, self.recipe.training.start_from
        if not self.options.resume and is_first_process() and (self.options.out / "last").exists():
            from captioner.training.interrupts import run_lock

            with run_lock(self.options.out):  # if the other run has not ended, that is what to say
                refuse_other_run(self.options.out)
        weights = encoder.weights if isinstance(encoder, EncoderConfig) and start is None else None
        for flag, path in (("--weights", weights), ("--instances", self.instances)):
            if path is not None and not path.is_file():
                raise CaptionerError(f"{path} is missing; see {flag}")
        if start is not None:
            locate_model(start)

    def _valid(self, records: Sequence[CaptionedImage]) -> Sequence[CaptionedImage]:
        """The records, without the invalid ones if those may be left out. Raises: CaptionerError."""
        from datasets.checks import leave_out_invalid, require_readable, require_valid

        if getattr(self.reader, "skip_invalid", False):
            records = leave_out_invalid(records)
            require_valid(records)
            return records
        require_valid(records)
        if not self.options.resume and is_first_process():
            require_readable(records)
        return records

    def _task(self, recipe: Recipe, train: Sequence[Any], dev: Sequence[Any]) -> Callable[..., Any]:
        if self.name in TRANSLATION_DATASETS:
            from captioner.translation.task import TranslationTask

            return partial(TranslationTask.prepare, recipe=recipe, train=train, dev=dev)
        from captioner.training.captioning import CaptioningTask

        return partial(CaptioningTask.prepare, recipe=recipe, train=train, dev=dev, options=self.options)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check a data set: counts, lengths, vocabulary, pictures that are missing, cannot be decoded or are in
    two splits, empty captions. The exit status is 1 if the data set is not valid for training."""

    dataset: Dataset
    vocabulary: VocabularyFlags = field(default_factory=VocabularyFlags)

    def run(self) -> int:
        """Print the page and return the exit status."""
        from datasets.check_page import check
        from datasets.checks import leave_out_invalid

        training = checked(TrainingConfig, vars(self.vocabulary))
        records: list[CaptionedImage] = []
        unreadable: dict[SplitName, list[str]] = {}
        parts = self.dataset.parts() if isinstance(self.dataset, Mixture) else [self.dataset]
        for split, part in product(get_args(SplitName), parts):
            try:
                records += part.read([split])
            except CaptionerError as error:  # noqa: PERF203 (a few times)
                unreadable.setdefault(split, []).append(str(error))
        if not records and unreadable:
            raise CaptionerError(next(iter(unreadable.values()))[0])
        if getattr(self.dataset, "skip_invalid", False):
            records = leave_out_invalid(records)
        page, is_valid = check(records, unreadable, training=training)
        sys.stdout.writelines(f"{escape_controls(line)}\n" for line in page.split("\n"))
        return 0 if is_valid else 1


def _command(arguments: Sequence[str]) -> Training | Check:
    if arguments[:1] == ["check"]:
        command: Check = parse(Check, arguments[1:], prog="train.py check")
        return command
    if arguments[:1] == ["--resume"]:
        stored = StoredCommand.read(parse(ResumeFlags, arguments[1:], prog="train.py --resume"), TRAINABLE)
        reader = stored.relocated(stored.reader)
        sections = {name: stored.relocated(section) for name, section in vars(stored.recipe).items()}
        instances = None if stored.instances is None else stored.relocate(stored.instances)
        return Training(stored.dataset, reader, Recipe(**sections), stored.options, instances)
    chosen: TrainFlags = parse(TrainFlags, arguments, prog="train.py")
    (name,) = (name for name, reader in TRAINABLE.items() if isinstance(chosen.dataset, reader))
    options: RunOptions = checked(RunOptions, vars(chosen.run))
    if chosen.instances is not None and isinstance(chosen.dataset, Mixture):
        raise UsageError("mixture takes no --instances; the file of --sets names them")
    if chosen.instances is not None and name in TRANSLATION_DATASETS:
        raise UsageError(f"{name} takes no --instances")
    return Training(
        name,
        chosen.dataset,
        chosen.recipe.applied_to(PRESETS.get(name, PRESETS["custom"])),
        options,
        chosen.instances,
    )


def is_first_process() -> bool:
    """As torchrun and accelerate launch number processes."""
    return os.environ.get("RANK", "0") == "0"


def main() -> None:
    level = logging.INFO if is_first_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for name in ("timm", "onnxscript", "onnx_ir"):  # which say how they work, not what happens
        logging.getLogger(name).setLevel(logging.WARNING)
    with command_line("train.py"):
        report_broken_plugins(_BROKEN)
        sys.exit(_command(sys.argv[1:]).run())


if __name__ == "__main__":
    main()
