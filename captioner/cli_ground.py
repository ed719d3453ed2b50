"""The command `captioner ground`: does the model look where it says, and does what it says depend on it?"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from captioner.cli_evaluate import SPLIT_OF, Dataset
from captioner.cli_model import ModelOptions
from captioner.errors import CaptionerError, UsageError
from captioner.flags import hint
from captioner.records import CaptionedImage

if TYPE_CHECKING:
    from captioner.captions import Caption
    from captioner.faithfulness import Faithfulness
    from captioner.grounding import Estimate, Grounding
    from captioner.inference import Captioner

_BASELINES = {
    "uniform": "attention that is the same everywhere",
    "gaussian": "a Gaussian around the picture's centre",
    "shuffled": "the caption's other words",
}


@dataclass(frozen=True, kw_only=True)
class GroundCommand:
    """Measure whether attention lies on what a word names, on pictures of DATASET with marked objects.

    Of the words that name a category of COCO, by a table of synonyms: how often the most attended point
    lies in a region of that category (the pointing game), and how much of the attention does, against
    attention that is the same everywhere, a Gaussian around the centre, and the caption's other words.
    With 95 % intervals, by drawing whole pictures again.
    """

    dataset: Dataset
    instances: Annotated[Path | None, hint("FILE", "needed, but for --faithfulness")] = None
    """COCO annotation file with the instances of the pictures, matched by their names."""
    words_of: Literal["generated", "references"] = "generated"
    """Look at the model's own captions, or at what it attends to as it reads those of DATASET."""
    faithfulness: bool = False
    """Measure instead how far a word's probability falls without the cells that it attended to most."""
    json: Annotated[Path | None, hint("FILE", "none")] = None
    """Write the figures to this file too."""
    split: Literal["train", "dev", "val", "test"] = "dev"
    """Which split of DATASET; val is another name of dev."""
    batch_size: int = 16
    """Pictures captioned at a time."""
    run: ModelOptions = field(default_factory=ModelOptions)


def run_ground(command: GroundCommand) -> None:
    """Measure as the command says, and print a table."""
    if command.instances is None and not command.faithfulness:
        raise UsageError("--instances FILE is needed: COCO's annotation file with what is in the pictures")
    if command.instances is not None and command.faithfulness:
        raise UsageError("--faithfulness needs no --instances; give one of the two")
    command.run.check()
    if command.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {command.batch_size}")

    records = command.dataset.read([SPLIT_OF[command.split]])
    captioner = command.run.load()
    try:
        found = (
            _faithfulness(command, captioner, records)
            if command.faithfulness
            else _grounding(command, captioner, records)
        )
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this needs {error.name}; install it with: pip install 'captioner[train]'"
        ) from error
    if command.json is not None:
        _write(command.json, asdict(found), words_of=command.words_of)
    sys.stdout.write(f"{_table(found)}\n")


def _grounding(
    command: GroundCommand, captioner: "Captioner", records: Sequence[CaptionedImage]
) -> "Grounding":
    from captioner.grounding import Grounding, grounded_words
    from captioner.instances import Instances

    assert command.instances is not None
    instances = Instances(command.instances)
    instances.require(record.file_name for record in records)
    return Grounding.of(
        [word for caption in captions for word in grounded_words(caption, instances.masks(record.file_name))]
        for record, captions in _captions(command, captioner, records)
    )


def _faithfulness(
    command: GroundCommand, captioner: "Captioner", records: Sequence[CaptionedImage]
) -> "Faithfulness":
    from captioner.faithfulness import Faithfulness, erased_words

    return Faithfulness.of(
        [
            erased_words(captioner, captions, seed=number)
            for number, (_, captions) in enumerate(_captions(command, captioner, records))
        ]
    )


def _captions(
    command: GroundCommand, captioner: "Captioner", records: Sequence[CaptionedImage]
) -> "Iterator[tuple[CaptionedImage, list[Caption]]]":
    """Each picture with the captions that are looked at. Raises: ImageError."""
    from tqdm import tqdm

    from captioner.images import ImageError

    bar = tqdm(records, desc="looking", unit=" pictures", delay=2)
    if command.words_of == "references":
        for record in bar:
            yield record, captioner.attend(record.source, record.captions)
        return
    sources = [record.source for record in records]
    batches = captioner.caption_files(sources, batch_size=command.batch_size)
    results = (result for batch in batches for result in batch)
    for record, result in zip(bar, results, strict=True):
        if isinstance(result, ImageError):
            raise result
        yield record, [result]


def _write(path: Path, found: dict[str, Any], *, words_of: str) -> None:
    """The values by measure and method as plain numbers, and their intervals beside them."""
    from captioner.grounding import CONFIDENCE

    figures: dict[str, Any] = {"words_of": words_of, "confidence": CONFIDENCE}
    intervals: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict) and "value" in value:
            figures[name], intervals[name] = value["value"], [value["low"], value["high"]]
        elif isinstance(value, dict):
            figures[name] = {method: estimate["value"] for method, estimate in value.items()}
            intervals[name] = {method: [e["low"], e["high"]] for method, e in value.items()}
        else:
            figures[name] = value
    try:
        path.write_text(json.dumps(figures | {"intervals": intervals}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CaptionerError(f"cannot write {path}: {error.strerror or error}") from error


def _table(found: "Grounding | Faithfulness") -> str:
    from captioner.faithfulness import Faithfulness

    if isinstance(found, Faithfulness):
        return "\n".join(
            [
                f"{found.num_words:,} words; {found.erased_share:.0%} of the cells erased",
                f"{'':<34} {'nats':>6}",
                f"{'fall without the most attended':<34} {_nats(found.attended)}",
                f"{'fall without as many at random':<34} {_nats(found.random)}",
                f"{'difference':<34} {_nats(found.margin)}",
                f"{'words that fall more':<34} {_percent(found.share_more)}",
            ]
        )
    lines = [
        f"{found.num_words:,} words in {found.num_pictures:,} pictures; {found.num_unmarked:,} more name "
        "what is not marked there",
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
            f"{'  model less that':<40} {_percent(found.pointing_margin[method]):<26} "
            f"{_percent(found.share_margin[method])}"
        )
    return "\n".join(lines)


def _percent(estimate: "Estimate") -> str:
    return f"{estimate.value:6.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _nats(estimate: "Estimate") -> str:
    return f"{estimate.value:6.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
