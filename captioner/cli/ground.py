"""The command `captioner ground`."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from captioner.cli.evaluate import BROKEN, Dataset
from captioner.cli.options import (
    SPLIT_OF,
    ModelFlags,
    arg,
    check_batch_size,
    model_options,
    report_broken_plugins,
)
from captioner.errors import CaptionerError, ImageError, UsageError
from captioner.inference import Captioner
from captioner.records import CaptionedImage

if TYPE_CHECKING:
    from captioner.caption import Caption
    from captioner.evaluation.faithfulness import Faithfulness
    from captioner.evaluation.grounding import Estimate, Grounding

_BASELINES = {
    "uniform": "uniform attention",
    "gaussian": "a Gaussian around the picture's centre",
    "shuffled": "the caption's other words",
}


@dataclass(frozen=True, kw_only=True)
class GroundCommand:
    """Measure whether attention falls on what a word names, on pictures of DATASET with annotated objects.

    For words that name a category of COCO: how often the most attended point lies on an object of that
    category (the pointing game), and how much of the attention does, compared with uniform attention, a
    Gaussian around the centre, and the caption's other words. With 95 % intervals, bootstrapped over
    pictures.
    """

    dataset: Dataset
    instances: Annotated[Path | None, arg("FILE", "required without --faithfulness")] = None
    """COCO annotation file with the instances of the pictures, matched by their names."""
    words_of: Annotated[Literal["generated", "references"], arg("generated|references", "generated")] = (
        "generated"
    )
    """Measure on the model's own captions, or on its attention while it reads those of DATASET."""
    faithfulness: Annotated[bool, arg("")] = False
    """Instead, measure how much less likely a word becomes without the cells that it attended to most."""
    json: Annotated[Path | None, arg("FILE")] = None
    """Write the values to this file too."""
    split: Annotated[Literal["train", "dev", "val", "test"], arg("SPLIT", "dev")] = "dev"
    """Split of DATASET: train, dev (also called val) or test."""
    batch_size: Annotated[int, arg("INT", "16")] = 16
    """Pictures per batch."""
    machine: ModelFlags = field(default_factory=ModelFlags)

    def run(self) -> int:
        """Measure and print a table."""
        report_broken_plugins(BROKEN)
        if self.instances is None and not self.faithfulness:
            raise UsageError(
                "--instances FILE is needed: a COCO annotation file with objects in the pictures"
            )
        if self.instances is not None and self.faithfulness:
            raise UsageError("give --instances or --faithfulness, not both")
        check_batch_size(self.batch_size)
        machine = model_options(self.machine)
        records = self.dataset.read([SPLIT_OF[self.split]])
        captioner = Captioner.from_options(machine)
        measure = self._faithfulness if self.faithfulness else self._grounding
        found = measure(captioner, records)
        if self.json is not None:
            _write(self.json, asdict(found), words_of=self.words_of)
        sys.stdout.write(f"{_table(found)}\n")
        return 0

    def _grounding(self, captioner: Captioner, records: Sequence[CaptionedImage]) -> "Grounding":
        from captioner.evaluation.grounding import Grounding, grounded_words
        from captioner.objects.instances import Instances

        assert self.instances is not None
        instances = Instances(self.instances)
        names = {record.source: record.file_name for record in records}  # a mixture may have one twice
        instances.check_pictures(list(names.values()))
        return Grounding.from_words(
            [
                word
                for caption in captions
                for word in grounded_words(caption, instances.masks(record.file_name))
            ]
            for record, captions in self._captions(captioner, records)
        )

    def _faithfulness(self, captioner: Captioner, records: Sequence[CaptionedImage]) -> "Faithfulness":
        from captioner.evaluation.faithfulness import Faithfulness, occlusion_drops

        return Faithfulness.from_drops(
            [
                occlusion_drops(captioner, captions, seed=number)
                for number, (_, captions) in enumerate(self._captions(captioner, records))
            ]
        )

    def _captions(
        self, captioner: Captioner, records: Sequence[CaptionedImage]
    ) -> "Iterator[tuple[CaptionedImage, list[Caption]]]":
        """Each picture with the captions to measure. Raises: ImageError."""
        from tqdm import tqdm

        bar = tqdm(records, desc="measuring", unit=" pictures", delay=2, disable=None)
        if self.words_of == "references":
            for record in bar:
                yield record, captioner.attend(record.source, record.captions)
            return
        sources = [record.source for record in records]
        batches = captioner.caption_files(sources, batch_size=self.batch_size)
        results = (result for batch in batches for result in batch)
        for record, result in zip(bar, results, strict=True):
            if isinstance(result, ImageError):
                raise result
            yield record, [result]


def _write(path: Path, found: dict[str, Any], *, words_of: str) -> None:
    """The values by measure and method as plain numbers, and their intervals separately."""
    from captioner.evaluation.grounding import CONFIDENCE

    values: dict[str, Any] = {"words_of": words_of, "confidence": CONFIDENCE}
    intervals: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict) and "value" in value:
            values[name], intervals[name] = value["value"], [value["low"], value["high"]]
        elif isinstance(value, dict):
            values[name] = {method: estimate["value"] for method, estimate in value.items()}
            intervals[name] = {method: [e["low"], e["high"]] for method, e in value.items()}
        else:
            values[name] = value
    try:
        path.write_text(json.dumps(values | {"intervals": intervals}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CaptionerError(f"cannot write {path}: {error.strerror or error}") from error


def _table(found: "Grounding | Faithfulness") -> str:
    from captioner.evaluation.faithfulness import Faithfulness

    if isinstance(found, Faithfulness):
        return "\n".join(
            [
                f"{found.num_words:,} words; {found.occluded_share:.0%} of the cells occluded",
                f"{'':<38} {'nats':>6}",
                f"{'drop without the most attended cells':<38} {_nats(found.attended)}",
                f"{'drop without as many random cells':<38} {_nats(found.random)}",
                f"{'difference':<38} {_nats(found.margin)}",
                f"{'words that drop more without attended':<38} {_percent(found.share_more)}",
            ]
        )
    lines = [
        f"{found.num_words:,} words in {found.num_pictures:,} pictures; {found.num_unannotated:,} more name "
        "objects that are not annotated",
        f"{'':<40} {'pointing game':<26} attention inside",
        f"{'model':<40} {_percent(found.pointing_game['model']):<26} "
        f"{_percent(found.attention_share['model'])}",
    ]
    for method, meaning in _BASELINES.items():
        lines.append(
            f"{meaning:<40} {_percent(found.pointing_game[method]):<26} "
            f"{_percent(found.attention_share[method])}"
        )
        lines.append(
            f"{'  model minus that':<40} {_percent(found.pointing_margin[method]):<26} "
            f"{_percent(found.share_margin[method])}"
        )
    return "\n".join(lines)


def _percent(estimate: "Estimate") -> str:
    return f"{estimate.value:6.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _nats(estimate: "Estimate") -> str:
    return f"{estimate.value:6.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
