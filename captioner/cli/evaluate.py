"""The command `captioner evaluate`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from captioner.cli.options import (
    SPLIT_OF,
    ModelFlags,
    arg,
    check_batch_size,
    dataset_subcommands,
    installed_datasets,
    model_options,
    report_broken_plugins,
)
from captioner.errors import CaptionerError, UsageError, abbreviate
from captioner.formats import escape_controls
from captioner.inference import Captioner
from captioner.records import CaptionedImage, RecordReader

_READERS, BROKEN = installed_datasets()

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.evaluation.coco import CocoImage
    from captioner.evaluation.evaluate import Evaluation

    Dataset = RecordReader
else:
    Dataset = dataset_subcommands(_READERS)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score captions: those of a model on a DATASET, or those of --results.

    Captions are scored exactly as `captioner caption` prints them. Prints BLEU-1 to 4, METEOR (if Java is
    installed), ROUGE-L and CIDEr-D, the vocabulary size, the mean length, and the shares of captions that
    are distinct, truncated, repetitive, and copied from train; with --instances also how much captions make
    up. The data sets of a mixture are scored separately.
    """

    dataset: Dataset | None = None
    split: Annotated[Literal["train", "dev", "val", "test"], arg("SPLIT", "dev")] = "dev"
    """Split of DATASET: train, dev (also called val) or test. Choose settings on dev, never on test."""
    results: Annotated[Path | None, arg("FILE", "caption the pictures of DATASET")] = None
    """Captions to score: COCO results, or what `captioner caption` writes (JSON lines, CSV or text)."""
    references: Annotated[Path | None, arg("FILE", "those of DATASET")] = None
    """With --results and without DATASET: COCO annotation file with the references."""
    train_references: Annotated[Path | None, arg("FILE", "the train split of DATASET")] = None
    """COCO annotation file with the training captions, to find copied captions."""
    instances: Annotated[Path | None, arg("FILE")] = None
    """COCO annotation file with the objects in the pictures. Prints CHAIR_i, the share of the named objects
    that are not in the picture; CHAIR_s, the share of the captions that name one of those; and the share of
    the objects in the pictures that are named."""
    results_out: Annotated[Path | None, arg("FILE")] = None
    """Write the captions in the format of COCO's evaluation server."""
    batch_size: Annotated[int, arg("INT", "32")] = 32
    """Pictures per batch."""
    machine: ModelFlags = field(default_factory=ModelFlags)

    def run(self) -> int:
        """Print the scores."""
        report_broken_plugins(BROKEN)
        if self.dataset is None and (self.results is None or self.references is None):
            raise UsageError("give a DATASET, or --results and --references; see --help")
        if self.dataset is not None and self.references is not None:
            raise UsageError("give a DATASET or --references, not both")
        if self.results is not None and self.machine.model is not None:
            raise UsageError("give --results or --model, not both")
        check_batch_size(self.batch_size)
        evaluations = self._evaluate()
        for name, evaluation in evaluations.items():
            title = f"{escape_controls(name)}\n" if len(evaluations) > 1 else ""
            sys.stdout.write(f"{title}{evaluation}\n")
        return 0

    def _evaluate(self) -> "dict[str, Evaluation]":
        """The evaluation of each data set, of which only a mixture has several."""
        from captioner.evaluation.coco import CocoImage, read_coco_captions, read_results, write_results
        from captioner.evaluation.evaluate import caption_records, evaluate_captions
        from captioner.evaluation.metrics import check_complete, check_references

        records: list[CaptionedImage] = []
        if self.dataset is not None:
            records = self.dataset.read([SPLIT_OF[self.split]])
            if not records:
                raise CaptionerError(f"the data set has no pictures in {self.split}; choose another --split")
            check_references({record.image_id: record.captions for record in records})
            images = [CocoImage(record.image_id, str(record.source), record.captions) for record in records]
        elif self.references is not None:
            images = read_coco_captions(self.references)
        annotated = self._annotated({image.image_id: image.file_name for image in images})
        if self.results is not None:
            captions = _of_images(read_results(self.results, images), images)
        else:
            captioner = Captioner.from_options(model_options(self.machine))
            captions = caption_records(captioner, records, batch_size=self.batch_size)
        if self.results_out is not None:
            write_results(self.results_out, captions, raw_ids=_raw_ids(images))
        check_complete(captions, {image.image_id: image.captions for image in images})
        train_captions = self._train_captions(records)
        dataset_of = {record.image_id: record.dataset for record in records}
        evaluations = {}
        for name in dict.fromkeys(dataset_of.values()) or [""]:
            own = [image for image in images if dataset_of.get(image.image_id, "") == name]
            evaluations[name] = evaluate_captions(
                {image.image_id: captions[image.image_id] for image in own},
                {image.image_id: image.captions for image in own},
                train_captions=train_captions,
                annotated=annotated,
            )
        return evaluations

    def _annotated(self, names: dict[str, str]) -> dict[str, set[str]] | None:
        """The categories of the objects in each picture, by its id, if they are given."""
        from captioner.objects.instances import Instances

        if self.instances is None:
            return None
        instances = Instances(self.instances)
        without_folders = {image_id: Path(name).name for image_id, name in names.items()}
        instances.check_pictures(list(without_folders.values()))
        return {image_id: instances.categories(name) for image_id, name in without_folders.items()}

    def _train_captions(self, evaluated: list[CaptionedImage]) -> list[str] | None:
        """The captions that the model may have copied, if they are available."""
        from captioner.evaluation.coco import read_coco_captions

        if self.train_references is not None:
            return [text for image in read_coco_captions(self.train_references) for text in image.captions]
        if self.dataset is None or SPLIT_OF[self.split] == "train":
            return None
        try:
            records = self.dataset.read(["train"])
        except CaptionerError:
            return None  # a data set may be evaluated without its train split
        if {record.image_id for record in records} & {record.image_id for record in evaluated}:
            return None  # one file serves as every split
        return [text for record in records for text in record.captions]


def _of_images(captions: dict[str, str], images: "Sequence[CocoImage]") -> dict[str, str]:
    """The captions of these images; how many there are of others is said."""
    wanted = {image.image_id for image in images}
    others = [name for name in captions if name not in wanted]
    if others:
        named = escape_controls(abbreviate(others))
        sys.stderr.write(
            f"captioner: {len(others):,} captions have no reference and are not scored: {named}\n"
        )
    return {image_id: text for image_id, text in captions.items() if image_id in wanted}


def _raw_ids(images: "Sequence[CocoImage]") -> dict[str, Any]:
    """The ids as the annotation file has them, if they come from one."""
    return {image.image_id: image.raw_id for image in images if image.raw_id is not None}
