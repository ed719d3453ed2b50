"""What each part of the model is worth: train and score one variant after another on Flickr8k's dev split.

python benchmarks/ablation.py --root flickr8k --weights tf_efficientnet_lite2.safetensors

Every row is the flickr8k preset with a few settings changed, trained for a few epochs in mixed precision;
scores are of the captions as printed, with a beam of 3 unless the row says otherwise. What is done is kept:
start the command again and it goes on. The table goes into docs/results.md, between two marks.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import markdown, write_between
from captioner.checkpoint.weights import load_checkpoint
from captioner.config import DecodingOptions
from captioner.errors import CaptionerError, UsageError, abbreviate
from captioner.evaluation.evaluate import caption_records, evaluate_captions
from captioner.inference import Captioner
from captioner.records import CaptionedImage
from captioner.training.options import RunOptions
from captioner.training.recipe import PRESETS, Recipe
from captioner.training.run import prepare_training
from datasets.flickr import Flickr8k

RESULTS = Path(__file__).parent / "results" / "ablation.json"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
FIRST_MARK, LAST_MARK = "<!-- ablation: written by benchmarks/ablation.py -->", "<!-- end of ablation -->"

EPOCHS = 4
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant: what it changes in the recipe, by part, and how it decodes; or only how it decodes."""

    group: str
    name: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beam_size: int = 3
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.group}: {self.name}, seed {self.seed}, beam {self.beam_size}"

    def recipe(self, weights: str | None) -> Recipe:
        """Raises: ValueError, for a change that is not allowed."""
        training = {"epochs": EPOCHS, "mixed_precision": "bf16", "seed": self.seed}
        base = PRESETS["flickr8k"].changed({"training": training, "encoder": {"weights": weights}})
        return base.changed(self.changes)


def _decoder(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"decoder": settings}


def _training(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"training": settings}


# The recipe of the others was chosen for an LSTM. A transformer wants lower rates and less dropout; these
# are the usual ones, not tuned.
_TRANSFORMER = {**_decoder(kind="transformer", dropout=0.2), **_training(learning_rate=4e-4)}
ROWS = (
    Row(group="attention", name="soft (the default of all rows)"),
    Row(group="attention", name="none", changes=_decoder(attention="none")),
    Row(group="attention", name="soft", seed=1),
    Row(group="attention", name="none", changes=_decoder(attention="none"), seed=1),
    Row(group="attention", name="hard", changes=_decoder(attention="hard")),
    Row(group="look", name="after the previous word is read", changes=_decoder(attend="after_lstm")),
    Row(group="decoding", name="greedy", beam_size=1),
    Row(group="decoding", name="beam 5", beam_size=5),
    Row(group="decoding", name="beam 10", beam_size=10),
    Row(
        group="CNN",
        name="fine-tuned from epoch 3",
        changes=_training(finetune_from_epoch=3, finetune_stages=4),
    ),
    Row(group="objective", name="cross-entropy, 2 epochs longer", changes=_training(epochs=EPOCHS + 2)),
    Row(
        group="objective",
        name="self-critical, 2 epochs more",
        changes=_training(epochs=EPOCHS + 2, self_critical_from_epoch=EPOCHS + 1),
    ),
    Row(group="score", name="dot", changes=_decoder(score="dot")),
    Row(group="score", name="general", changes=_decoder(score="general")),
    Row(group="score", name="8 heads", changes=_decoder(score="multihead", attention_dim=512)),
    Row(group="gate", name="none", changes=_decoder(gate="none")),
    Row(group="gate", name="scalar (the paper)", changes=_decoder(gate="scalar")),
    Row(group="output", name="plain", changes=_decoder(output="plain")),
    Row(group="penalty", name="0", changes=_training(attention_penalty=0.0)),
    Row(group="penalty", name="1 (the paper)", changes=_training(attention_penalty=1.0)),
    Row(group="decoder", name="transformer", changes=_TRANSFORMER),
)


def main(
    *,
    root: Path,
    weights: str | None = None,
    runs: Path = Path("runs/ablation"),
    cache_dir: Path = Path("cache"),
    only: Sequence[str] = (),
) -> None:
    """Train and score all rows that are not done yet, and write the table after each.

    Args:
        root: Folder of Flickr8k in its official layout.
        weights: The backbone's weights; without them timm downloads its own.
        runs: Folder that the runs are kept in.
        cache_dir: Where the grids of the pictures are kept.
        only: Groups of rows to do, such as attention or score; all if none is named.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    unknown = set(only) - {row.group for row in ROWS}
    if unknown:
        raise UsageError(f"there is no group {abbreviate(sorted(unknown))}; see --help")
    dataset = Flickr8k(root=root)
    train, dev = dataset.read(["train"]), dataset.read(["dev"])
    done: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row in ROWS:
        recipe = row.recipe(weights)
        if _is_done(done.get(row.key), recipe) or (only and row.group not in only):
            continue
        _logger.info("=== %s", row.key)
        folder = runs / _folder(recipe, row.seed)
        best, history = _trained(recipe, folder, train, dev, cache_dir)
        done[row.key] = _measured(row, recipe, best, history, train, dev)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        aside = RESULTS.with_suffix(".new")
        aside.write_text(json.dumps(done, indent=1) + "\n")
        aside.replace(RESULTS)
        write_between(PAGE, FIRST_MARK, LAST_MARK, table(done))


def _is_done(found: Mapping[str, Any] | None, recipe: Recipe) -> bool:
    """Whether a row was made by this recipe; settings that came later had their defaults."""
    return found is not None and Recipe().changed(found["recipe"]).described() == recipe.described()


def _folder(recipe: Recipe, seed: int) -> str:
    """Rows that differ in their decoding alone share a run."""
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
    """The run's best model and its history; trains it where that is not done."""
    trainer = prepare_training(
        recipe=recipe,
        train=train,
        dev=dev,
        options=RunOptions(out=folder, resume=(folder / "last").exists(), cache_dir=cache_dir),
        arguments=[],
    )
    best = trainer.run()
    return best, trainer.progress.history


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
    decoding = DecodingOptions(beam_size=row.beam_size)
    evaluation = evaluate_captions(
        caption_records(captioner, dev, decoding=decoding),
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
        "wording": asdict(evaluation.wording),
        "copied_share": evaluation.copied_share,
        "recipe": recipe.described(),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows in their order, as Markdown."""
    head = ["", "", "seed", "epochs", "minutes", "fastest epoch, s", "decoder, million"]
    head += ["B1", "B2", "B3", "B4", "METEOR", "ROUGE-L", "CIDEr", "distinct", "broken off", "repetitive"]
    rows = []
    for row in ROWS:
        if row.key not in results:
            continue
        found = results[row.key]
        scores, wording = found["scores"], found["wording"]
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
            f"{wording['distinct_share']:.0%}",
            *(f"{wording[name]:.1%}" for name in ("truncated_share", "repetitive_share")),
        ]
        rows.append(cells)
    return markdown(head, rows, num_names=2)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except CaptionerError as error:
        sys.exit(f"ablation.py: {error}")
