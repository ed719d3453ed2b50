"""What attention is worth to the same decoder on text: train translators on Multi30k and score its val split.

python benchmarks/translation.py --root multi30k --runs runs/translation

Every row is the multi30k preset with another attention, of the same sizes. Scores are sacrebleu's BLEU of the
translations as given, with the decoding that scores best on val (there is no other split here), for all
sentences and by the number of their words. What is done is kept: start the command again and it goes on. The
table goes into docs/results.md, between two marks.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import markdown, write_between
from captioner.checkpoint.folder import read_metrics
from captioner.errors import CaptionerError
from captioner.records import TranslatedSentence
from captioner.training.options import RunOptions
from captioner.training.recipe import PRESETS, Recipe
from captioner.training.run import run_training
from captioner.translation.translator import Translation, Translator
from datasets.multi30k import Multi30k

RESULTS = Path(__file__).parent / "results" / "translation.json"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
FIRST_MARK = "<!-- translation: written by benchmarks/translation.py -->"
LAST_MARK = "<!-- end of translation -->"

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "none": {"attention": "none"},
    "additive": {"score": "additive"},
    "dot": {"score": "dot"},
    "general": {"score": "general"},
}
LENGTHS = {"up to 9 words": range(10), "10 to 14": range(10, 15), "15 and more": range(15, 1_000)}
"""Short, medium and long sentences, by their words as they stand between spaces."""

NUM_RESAMPLED = 1_000  # of the bootstrap


def recipe_of(variant: str, seed: int) -> Recipe:
    changes = {"decoder": VARIANTS[variant], "training": {"seed": seed}}
    return PRESETS["multi30k"].changed(changes)


def main(*, root: Path, runs: Path, seed: int = 0) -> None:
    """Train what is not trained yet, score all, and write the table.

    Args:
        root: Folder with Multi30k's files.
        runs: Folder of the runs, one for each variant.
        seed: Of all runs.
    """
    records = Multi30k(root=root).read(["train", "dev"])
    dev = [record for record in records if record.split == "dev"]
    translations: dict[str, list[Translation]] = {}
    results: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        folder, recipe = runs / f"{variant}-seed{seed}", recipe_of(variant, seed)
        if not is_done(folder, recipe):
            run_training(
                recipe=recipe,
                train=[record for record in records if record.split == "train"],
                dev=dev,
                options=RunOptions(out=folder, resume=(folder / "last").exists()),
                arguments=[],
            )
        translator = Translator.load(folder / "best")
        translations[variant] = translator.translate([record.sentence for record in dev])
        results[variant] = described(translator, read_metrics(folder / "best"))
        results[variant]["by_length"] = by_length(translations[variant], dev)
    for variant, found in intervals(translations, dev).items():
        results[variant] |= found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_between(PAGE, FIRST_MARK, LAST_MARK, table(results))


def is_done(folder: Path, recipe: Recipe) -> bool:
    """Whether a run of this recipe has come to its end: its decoding is chosen."""
    if not (folder / "best").is_dir():
        return False
    metrics = read_metrics(folder / "best")
    return "decoding_bleu" in metrics and metrics["recipe"] == recipe.described()


def described(translator: Translator, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is, and what it took."""
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
    """BLEU of each variant, half the width of its 95 % interval, and the probability that its difference from
    the first variant is chance, by paired bootstrap (Koehn 2004)."""
    references = [[record.translations[0] for record in dev]]
    systems = [(name, [translation.text for translation in given]) for name, given in translations.items()]
    test = PairedTest(systems, {"BLEU": BLEU()}, references, test_type="bs", n_samples=NUM_RESAMPLED)
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
        chosen = [place for place, record in enumerate(dev) if len(record.sentence.split()) in lengths]
        texts = [translations[place].text for place in chosen]
        references = [dev[place].translations[0] for place in chosen]
        score = BLEU().corpus_score(texts, [references]).score if chosen else 0.0
        found[name] = {"sentences": len(chosen), "bleu": score}
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows in their order, as Markdown."""
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
