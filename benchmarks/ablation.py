"""Ablation study on Flickr8k: the effect of each part of the model.

    python benchmarks/ablation.py --root flickr8k --weights tf_efficientnet_lite2.safetensors

Each row is the flickr8k preset with a few settings changed, trained for a few epochs in mixed precision.
Scores are on the dev split, of captions as printed, with a beam size of 3 unless the row says otherwise.
Finished rows are kept: after an interruption, the same command continues. The table is written into
docs/results.md, between two markers.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import markdown, write_between
from benchmarks.runs import is_same_recipe, train_once
from captioner.atomic import replace_text
from captioner.checkpoint.weights import load_checkpoint
from captioner.config import DecodingOptions
from captioner.errors import CaptionerError, UsageError, abbreviate
from captioner.evaluation.evaluate import caption_records, evaluate_captions
from captioner.inference import Captioner
from captioner.records import CaptionedImage
from captioner.training.captioning import CaptioningTask
from captioner.training.options import RunOptions
from captioner.training.recipe import PRESETS, Recipe
from datasets.flickr import Flickr8k

RESULTS = Path(__file__).parent / "results" / "ablation.json"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
BEGIN_MARKER = "<!-- ablation: written by benchmarks/ablation.py -->"
END_MARKER = "<!-- end of ablation -->"

EPOCHS = 4
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant: the settings that it overrides in the recipe, by section, and its beam size."""

    group: str
    name: str
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beam_size: int = 3
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.group}: {self.name}, seed {self.seed}, beam {self.beam_size}"

    def recipe(self, weights: Path | None) -> Recipe:
        """Raises: ValueError, if an override is not allowed."""
        preset = PRESETS["flickr8k"]
        encoder = replace(preset.encoder, weights=weights)
        training = replace(
            preset.training, epochs=EPOCHS, mixed_precision="bf16", max_caption_words=20, seed=self.seed
        )
        return replace(preset, encoder=encoder, training=training).overridden(self.overrides)


def _decoder(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"decoder": settings}


def _encoder(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"encoder": settings}


def _training(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"training": settings}


# The preset was tuned for an LSTM. A transformer needs a lower learning rate and less dropout; these are
# the usual values, not tuned.
_TRANSFORMER = {**_decoder(kind="transformer", dropout=0.2), **_training(learning_rate=4e-4)}
ROWS = (
    Row(group="attention", name="soft (the default of all rows)"),
    Row(group="attention", name="none", overrides=_decoder(attention="none")),
    Row(group="attention", name="soft", seed=1),
    Row(group="attention", name="none", overrides=_decoder(attention="none"), seed=1),
    Row(group="attention", name="hard", overrides=_decoder(attention="hard")),
    Row(group="attend", name="after the LSTM", overrides=_decoder(attend="after_lstm")),
    Row(group="decoding", name="greedy", beam_size=1),
    Row(group="decoding", name="beam 5", beam_size=5),
    Row(group="decoding", name="beam 10", beam_size=10),
    Row(
        group="CNN",
        name="fine-tuned from epoch 3",
        overrides=_training(finetune_from_epoch=3, finetune_stages=4),
    ),
    Row(group="stage", name="-1, 9 x 9 cells of 352", overrides=_encoder(stage=-1)),
    Row(group="stage", name="-2, 17 x 17 cells of 120", overrides=_encoder(stage=-2)),
    Row(group="objective", name="cross-entropy, 2 epochs longer", overrides=_training(epochs=EPOCHS + 2)),
    Row(
        group="objective",
        name="self-critical, 2 epochs more",
        overrides=_training(epochs=EPOCHS + 2, self_critical_from_epoch=EPOCHS + 1),
    ),
    Row(group="score", name="dot", overrides=_decoder(score="dot")),
    Row(group="score", name="general", overrides=_decoder(score="general")),
    Row(group="score", name="8 heads", overrides=_decoder(score="multihead", attention_dim=512)),
    Row(group="gate", name="none", overrides=_decoder(gate="none")),
    Row(group="gate", name="scalar (the paper)", overrides=_decoder(gate="scalar")),
    Row(group="output", name="plain", overrides=_decoder(output="plain")),
    Row(group="penalty", name="0", overrides=_training(attention_penalty=0.0)),
    Row(group="penalty", name="1 (the paper)", overrides=_training(attention_penalty=1.0)),
    Row(group="decoder", name="transformer", overrides=_TRANSFORMER),
)


def main(
    *,
    root: Path,
    weights: Path | None = None,
    runs: Path = Path("runs/ablation"),
    cache_dir: Path = Path("cache"),
    only: Sequence[str] = (),
) -> None:
    """Train and score the rows that are not finished yet, and write the table after each.

    Args:
        root: Folder of Flickr8k in its official layout.
        weights: File with the backbone's weights; by default timm downloads its own.
        runs: Folder of the training runs.
        cache_dir: Folder of the cached features.
        only: Groups of rows to run, such as attention or score; by default all.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    groups = dict.fromkeys(row.group for row in ROWS)
    unknown = set(only) - groups.keys()
    if unknown:
        raise UsageError(
            f"there is no group {abbreviate(sorted(unknown))}; the groups are {', '.join(groups)}"
        )
    dataset = Flickr8k(root=root)
    train, dev = dataset.read(["train"]), dataset.read(["dev"])
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row in ROWS:
        recipe = row.recipe(weights)
        is_done = row.key in results and is_same_recipe(results[row.key]["recipe"], recipe)
        if is_done or (only and row.group not in only):
            continue
        _logger.info("=== %s", row.key)
        folder = runs / _folder(recipe, row.seed)
        best, history = _trained(recipe, folder, train, dev, cache_dir)
        results[row.key] = _measured(row, recipe, best, history, train, dev)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        replace_text(RESULTS, json.dumps(results, indent=1) + "\n")
        write_between(PAGE, BEGIN_MARKER, END_MARKER, table(results))


def _folder(recipe: Recipe, seed: int) -> str:
    """The name of a run's folder. Rows that differ only in their beam size share a run."""
    default = Row(group="", name="", seed=seed).recipe(recipe.encoder.weights).described()
    changed = [
        f"{name}={value}"
        for part, settings in recipe.described().items()
        for name, value in settings.items()
        if default[part][name] != value
    ]
    return "_".join([f"seed{seed}", *changed])


def _trained(
    recipe: Recipe,
    folder: Path,
    train: Sequence[CaptionedImage],
    dev: Sequence[CaptionedImage],
    cache_dir: Path,
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run's best model, and an entry per epoch; trains unless the run is complete."""
    options = RunOptions(out=folder, resume=(folder / "last").exists(), cache_dir=cache_dir)
    make_task = partial(CaptioningTask.prepare, recipe=recipe, train=train, dev=dev, options=options)
    best = train_once(recipe=recipe, make_task=make_task, options=options)
    return best, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _measured(
    row: Row,
    recipe: Recipe,
    best: Path,
    history: Sequence[Mapping[str, Any]],
    train: Sequence[CaptionedImage],
    dev: Sequence[CaptionedImage],
) -> dict[str, Any]:
    captioner = Captioner.load(best)
    decoder = load_checkpoint(best).model.decoder
    options = DecodingOptions(beam_size=row.beam_size)
    evaluation = evaluate_captions(
        caption_records(captioner, dev, options=options),
        {record.image_id: record.captions for record in dev},
        train_captions=[text for record in train for text in record.captions],
    )
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    return {
        "group": row.group,
        "name": row.name,
        "seed": row.seed,
        "epochs": len(history),
        "minutes": sum(entry["train_s"] for entry in history) / 60,
        "fastest_epoch_s": min(entry["train_s"] for entry in history),
        "decoder_parameters": parameters,
        "beam_size": row.beam_size,
        "scores": asdict(evaluation.scores),
        "statistics": asdict(evaluation.statistics),
        "copied_share": evaluation.copied_share,
        "recipe": recipe.described(),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as Markdown, in the order of `ROWS`."""
    head = ["", "", "seed", "epochs", "minutes", "fastest epoch, s", "decoder, million"]
    head += ["B1", "B2", "B3", "B4", "METEOR", "ROUGE-L", "CIDEr", "distinct", "truncated", "repetitive"]
    rows = []
    for row in ROWS:
        if row.key not in results:
            continue
        found = results[row.key]
        scores, statistics = found["scores"], found["statistics"]
        names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
        cells = [
            row.group,
            row.name,
            str(row.seed),
            str(found["epochs"]),
            f"{found['minutes']:.0f}",
            f"{found['fastest_epoch_s']:.0f}",
            f"{found['decoder_parameters'] / 1e6:.1f}",
            *("-" if scores[name] is None else f"{scores[name]:.1f}" for name in names),
            f"{statistics['distinct_share']:.0%}",
            *(f"{statistics[name]:.1%}" for name in ("truncated_share", "repetitive_share")),
        ]
        rows.append(cells)
    return markdown(head, rows, num_names=2)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except CaptionerError as error:
        sys.exit(f"ablation.py: {error}")
