"""Study of the shipped model's data and of supervised attention.

    python benchmarks/everyday.py --sets sets.json --coco coco --weights tf_efficientnet_lite2.safetensors

`sets.json` is a mixture (`datasets/mixture.py`) with the data sets everyday, people (everyday with captions
by people only) and flickr8k, with annotated objects. `--coco` has pictures of COCO with captions and
instances, in COCO's layout. Each row trains the shipped model's decoder on a frozen CNN, in mixed precision.
Scores are on the dev splits, of captions as printed, with a beam size of 3; what is made up and where the
model looks are measured on its captions of the pictures of COCO. Finished rows are kept: after an
interruption, the same command continues. The table is written into docs/results.md, between two markers.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import markdown, write_between
from benchmarks.runs import is_same_recipe, train_once
from captioner.atomic import replace_text
from captioner.caption import Caption
from captioner.config import DecoderConfig, DecodingOptions
from captioner.data.feature_cache import cached_features
from captioner.data.pictures import CachedRecords
from captioner.data.regions import RegionStore
from captioner.errors import CaptionerError, ImageError, abbreviate
from captioner.evaluation.evaluate import caption_records
from captioner.evaluation.faithfulness import Faithfulness, occlusion_drops
from captioner.evaluation.grounding import Grounding, grounded_words
from captioner.evaluation.hallucination import find_hallucination
from captioner.evaluation.metrics import score_by_dataset
from captioner.inference import Captioner
from captioner.model.encoder import build_encoder
from captioner.objects.instances import Instances
from captioner.records import CaptionedImage
from captioner.training.captioning import CaptioningTask
from captioner.training.options import RunOptions
from captioner.training.recipe import PRESETS, Recipe
from captioner.vocabulary import Vocabulary
from datasets.coco import Coco
from datasets.mixture import Mixture

RESULTS = Path(__file__).parent / "results" / "everyday.json"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
BEGIN_MARKER = "<!-- everyday: written by benchmarks/everyday.py -->"
END_MARKER = "<!-- end of everyday -->"

EPOCHS = 3
_DEV = ("everyday", "flickr8k")
_NUM_TUNED = 300  # dev pictures of each data set that choose the best epoch
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model: the data sets that it is trained on, and the weight of supervised attention."""

    data: tuple[str, ...]
    supervision: float = 0.0
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{' and '.join(self.data)}, supervision {self.supervision:g}, seed {self.seed}"

    def recipe(self, weights: Path | None) -> Recipe:
        preset = PRESETS["mixture"]
        training = replace(
            preset.training,
            epochs=EPOCHS,
            batch_size=48,
            learning_rate=1.4e-3,
            attention_supervision=self.supervision,
            max_dev_pictures=_NUM_TUNED,
            mixed_precision="bf16",
            max_caption_words=20,
            seed=self.seed,
        )
        encoder = replace(preset.encoder, weights=weights, image_size=320)
        decoder = DecoderConfig(attend="after_lstm", score="multihead")
        return replace(preset, encoder=encoder, decoder=decoder, training=training)


_BOTH = ("everyday", "flickr8k")
ROWS = (
    *(Row(data=(name,), seed=seed) for name in ("flickr8k", "everyday") for seed in (0, 1)),
    Row(data=("people",)),
    *(Row(data=_BOTH, supervision=weight) for weight in (0.0, 0.1, 1.0)),
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that the rows share: records, and features of their pictures by data set and split."""

    records: Sequence[CaptionedImage]
    coco: Sequence[CaptionedImage]
    instances: Instances
    weights: Path | None
    runs: Path
    cache_dir: Path

    def of(self, split: str, names: Sequence[str]) -> list[CaptionedImage]:
        return [one for one in self.records if one.split == split and one.dataset in names]

    def train(self, row: Row) -> Path:
        """The folder of a row's best model, trained unless it is complete."""
        recipe = row.recipe(self.weights)
        out = self.runs / row.key.replace(" ", "-").replace(",", "")
        options = RunOptions(out=out, resume=(out / "last").exists(), cache_dir=self.cache_dir)

        def make_task(accelerator: Accelerator) -> CaptioningTask:
            encoder = build_encoder(recipe.encoder).to(accelerator.device)  # type: ignore[arg-type]
            size_px = recipe.encoder.image_size  # type: ignore[union-attr]
            preprocess, grid = encoder.preprocess_config(size_px), encoder.grid_config(size_px)
            splits = {}
            for split, names in (("train", row.data), ("dev", _DEV)):
                features, kept = [], []
                for name in names:  # cached by data set, because rows share them
                    own = self.of(split, [name])[: _NUM_TUNED if split == "dev" else None]
                    kept += own
                    features.append(
                        cached_features(
                            records=own,
                            encoder=encoder,
                            preprocess=preprocess,
                            grid=grid,
                            cache_dir=self.cache_dir,
                        )
                    )
                joined = features[0] if len(features) == 1 else np.concatenate(features)
                splits[split] = CachedRecords(records=kept, features=joined)
            train = splits["train"]
            texts = (text for record in train.records for text in record.captions)
            return CaptioningTask(
                recipe=recipe,
                encoder=encoder,
                preprocess=preprocess,
                grid=grid,
                vocabulary=Vocabulary.build(texts, min_count=recipe.training.min_count),
                train=train,
                dev=splits["dev"],
                regions=RegionStore(train.records, grid=grid, preprocess=preprocess)
                if row.supervision
                else None,
            )

        return train_once(recipe=recipe, make_task=make_task, options=options)

    def measured(self, row: Row, best: Path) -> dict[str, Any]:
        """Scores on both dev splits, and what the model makes up and looks at in pictures of COCO."""
        captioner, options = Captioner.load(best), DecodingOptions(beam_size=3)
        dev = self.of("dev", _DEV)
        scores = score_by_dataset(
            caption_records(captioner, dev, options=options),
            {record.image_id: record.captions for record in dev},
            dataset_of={record.image_id: record.dataset for record in dev},
            with_meteor=False,
        )
        captions = self._captions_of_coco(captioner, options)
        made_up = find_hallucination(
            {record.image_id: captions[record.image_id].text for record in self.coco},
            {record.image_id: record.captions for record in self.coco},
            {record.image_id: self.instances.categories(record.file_name) for record in self.coco},
        )
        grounding = Grounding.from_words(
            list(grounded_words(captions[record.image_id], self.instances.masks(record.file_name)))
            for record in self.coco
        )
        faithfulness = Faithfulness.from_drops(
            [occlusion_drops(captioner, [one], seed=number) for number, one in enumerate(captions.values())]
        )
        return {
            "recipe": row.recipe(self.weights).described(),
            "train_pictures": len(self.of("train", row.data)),
            "cider": {name: one.cider for name, one in scores.by_dataset.items()},
            "chair_i": made_up.chair_i,
            "recall": made_up.recall,
            "num_grounded": grounding.num_words,
            "pointing_game": {name: one.value for name, one in grounding.pointing_game.items()},
            "attention_share": {name: one.value for name, one in grounding.attention_share.items()},
            "faithfulness": faithfulness.attended.value,
            "entropy": float(np.mean([mean_entropy(caption) for caption in captions.values()])),
        }

    def _captions_of_coco(self, captioner: Captioner, options: DecodingOptions) -> dict[str, Caption]:
        captions = {}
        batches = captioner.caption_files([record.source for record in self.coco], options=options)
        results = (caption for batch in batches for caption in batch)
        for record, caption in zip(self.coco, results, strict=True):
            if isinstance(caption, ImageError):
                raise caption
            captions[record.image_id] = caption
        return captions


def mean_entropy(caption: Caption) -> float:
    """The entropy of the attention of a caption's words, on average, as a share of the largest possible."""
    alphas = caption.alphas.reshape(len(caption.tokens), -1)
    entropies = -(alphas * np.log(np.maximum(alphas, 1e-30))).sum(axis=1)
    return float(entropies.mean() / np.log(alphas.shape[1]))


def main(
    *,
    sets: Path,
    coco: Path,
    weights: Path | None = None,
    runs: Path = Path("runs/everyday"),
    cache_dir: Path = Path("cache"),
) -> None:
    """Train and measure the rows that are not finished yet, and write the table after each.

    Args:
        sets: Mixture with the data sets everyday, people and flickr8k.
        coco: Folder with pictures in train2017/ and annotations/ with their captions and instances.
        weights: File with the backbone's weights; by default timm downloads its own.
        runs: Folder of the training runs.
        cache_dir: Folder of the cached features.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    records = Mixture(sets=sets).read(["train", "dev"])
    missing = {name for row in ROWS for name in row.data} - {record.dataset for record in records}
    if missing:
        raise CaptionerError(f"{sets} has no data set {abbreviate(sorted(missing))}")
    study = Study(
        records=records,
        coco=Coco(root=coco).read(["train"]),
        instances=Instances(coco / "annotations" / "instances_train2017.json"),
        weights=weights,
        runs=runs,
        cache_dir=cache_dir,
    )
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row in ROWS:
        if row.key in results and is_same_recipe(results[row.key]["recipe"], row.recipe(weights)):
            continue
        _logger.info("=== %s", row.key)
        results[row.key] = study.measured(row, study.train(row))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        replace_text(RESULTS, json.dumps(results, indent=1) + "\n")
        write_between(PAGE, BEGIN_MARKER, END_MARKER, table(results))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as Markdown, in the order of `ROWS`."""
    head = ["trained on", "supervision", "seed", "pictures", "CIDEr everyday", "CIDEr Flickr8k", "CHAIR_i"]
    head += ["object recall", "pointing game", "Gaussian", "inside", "faithfulness, nats", "entropy"]
    rows = []
    for row in ROWS:
        if row.key not in results:
            continue
        found = results[row.key]
        rows.append(
            [
                " and ".join(row.data),
                f"{row.supervision:g}" if row.supervision else "off",
                str(row.seed),
                f"{found['train_pictures']:,}",
                *("-" if found["cider"][name] is None else f"{found['cider'][name]:.1f}" for name in _DEV),
                *("-" if found[name] is None else f"{found[name]:.2f}" for name in ("chair_i", "recall")),
                *(f"{found['pointing_game'][name]:.0%}" for name in ("model", "gaussian")),
                f"{found['attention_share']['model']:.0%}",
                f"{found['faithfulness']:.2f}",
                f"{found['entropy']:.0%}",
            ]
        )
    return markdown(head, rows, num_names=2)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except CaptionerError as error:
        sys.exit(f"everyday.py: {error}")
