"""Translation study on Multi30k: the effect of attention in the same decoder.

    python benchmarks/translation.py --root multi30k --runs runs/translation

Each row is the multi30k preset with a different kind of attention. Scores are sacrebleu's BLEU and chrF of
translations as printed, for all sentences of the val split and by sentence length. The decoding options are
those with the best score on val too, because the study uses no other split. Finished runs are kept: after an
interruption, the same command continues. The table is written into docs/results.md, between two markers.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import markdown, write_between
from benchmarks.runs import train_once
from captioner.checkpoint.folder import read_metrics
from captioner.errors import CaptionerError
from captioner.records import TranslatedSentence
from captioner.training.options import RunOptions
from captioner.training.recipe import PRESETS, Recipe
from captioner.translation.task import TranslationTask
from captioner.translation.translator import Translation, Translator
from datasets.multi30k import Multi30k

RESULTS = Path(__file__).parent / "results" / "translation.json"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
BEGIN_MARKER = "<!-- translation: written by benchmarks/translation.py -->"
END_MARKER = "<!-- end of translation -->"

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "none": {"attention": "none"},
    "additive": {"score": "additive"},
    "dot": {"score": "dot"},
    "general": {"score": "general"},
}
LENGTHS = {"up to 9 words": range(10), "10 to 14": range(10, 15), "15 and more": range(15, 1_000)}
"""Short, medium and long sentences, by the number of words between spaces."""

NUM_RESAMPLES = 1_000  # of the bootstrap


def recipe_of(variant: str, seed: int) -> Recipe:
    overrides = {"decoder": VARIANTS[variant], "training": {"seed": seed}}
    return PRESETS["multi30k"].overridden(overrides)


def main(*, root: Path, runs: Path, seed: int = 0) -> None:
    """Train the variants that are not trained yet, score all, and write the table.

    Args:
        root: Folder with Multi30k's files.
        runs: Folder of the training runs, one per variant.
        seed: Seed of all runs.
    """
    dataset = Multi30k(root=root)
    train, dev = dataset.read(["train"]), dataset.read(["dev"])
    translations: dict[str, list[Translation]] = {}
    results: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        folder, recipe = runs / f"{variant}-seed{seed}", recipe_of(variant, seed)
        best = train_once(
            recipe=recipe,
            make_task=partial(TranslationTask.prepare, recipe=recipe, train=train, dev=dev),
            options=RunOptions(out=folder, resume=(folder / "last").exists()),
        )
        translator = Translator.load(best)
        translations[variant] = translator.translate([record.sentence for record in dev])
        results[variant] = described(translator, read_metrics(best))
        results[variant]["by_length"] = by_length(translations[variant], dev)
    for variant, found in intervals(translations, dev).items():
        results[variant] |= found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_between(PAGE, BEGIN_MARKER, END_MARKER, table(results))


def described(translator: Translator, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A model's size, decoding options and recipe, and the cost of its training."""
    return {
        "chrf": metrics["dev"]["chrf"],
        "parameters": sum(parameter.numel() for parameter in translator.model.parameters()),
        "epochs": len(metrics["history"]),
        "minutes": sum(entry["train_s"] for entry in metrics["history"]) / 60,
        "decoding": {name: metrics["dev"][name] for name in ("beam_size", "length_penalty")},
        "recipe": metrics["recipe"],
    }


def intervals(
    translations: Mapping[str, Sequence[Translation]], dev: Sequence[TranslatedSentence]
) -> dict[str, dict[str, float]]:
    """BLEU of each variant, half the width of its 95 % confidence interval, and the p-value of its difference
    from the first variant, by paired bootstrap resampling (Koehn 2004)."""
    references = [[record.translations[0] for record in dev]]
    systems = [(name, [translation.text for translation in given]) for name, given in translations.items()]
    test = PairedTest(systems, {"BLEU": BLEU()}, references, test_type="bs", n_samples=NUM_RESAMPLES)
    _, scores = test()
    return {
        name: {"bleu": found.score, "interval": found.ci, "p_value": found.p_value}
        for name, found in zip(scores["System"], scores["BLEU"], strict=True)
    }


def by_length(
    translations: Sequence[Translation], dev: Sequence[TranslatedSentence]
) -> dict[str, dict[str, float]]:
    """The number of sentences of each length, and their BLEU."""
    found = {}
    for name, lengths in LENGTHS.items():
        chosen = [index for index, record in enumerate(dev) if len(record.sentence.split()) in lengths]
        texts = [translations[index].text for index in chosen]
        references = [dev[index].translations[0] for index in chosen]
        score = BLEU().corpus_score(texts, [references]).score if chosen else 0.0
        found[name] = {"sentences": len(chosen), "bleu": score}
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The variants as Markdown, in the order of the results."""
    counts = next(iter(results.values()))["by_length"]
    lengths = [f"{name} ({counts[name]['sentences']})" for name in LENGTHS]
    head = ["attention", "million parameters", "BLEU", "chrF", *lengths, "minutes"]
    rows = [
        [
            name,
            f"{found['parameters'] / 1e6:.2f}",
            f"{found['bleu']:.1f} ± {found['interval']:.1f}",
            f"{found['chrf']:.1f}",
            *(f"{found['by_length'][length]['bleu']:.1f}" for length in LENGTHS),
            f"{found['minutes']:.0f}",
        ]
        for name, found in results.items()
    ]
    return markdown(head, rows)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except CaptionerError as error:
        sys.exit(f"translation.py: {error}")
