"""Arguments that are lists of texts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.cluster.inputs import find_shards
from captioner.evaluation.evaluate import evaluate_captions
from captioner.evaluation.metrics import score_captions
from captioner.evaluation.statistics import CaptionStatistics
from captioner.images.discovery import find_pictures
from captioner.inference import Captioner
from captioner.tokenize import detokenize
from captioner.vocabulary import Vocabulary
from datasets.registry import DATASETS, TRANSLATION_DATASETS
from tests.conftest import ROOT

CALLS: dict[str, Callable[[Captioner], object]] = {
    "caption_files": lambda captioner: captioner.caption_files("a.jpg"),
    "attend": lambda captioner: captioner.attend("a.jpg", "a dog"),
    "vocabulary": lambda _: Vocabulary.build("a dog", min_count=1),
    "paths": lambda _: list(find_pictures("a.jpg", is_recursive=False, report=print)),
    "subwords": lambda _: Vocabulary.build_subwords("a dog", size=10),
    "words": lambda captioner: captioner.vocabulary.ids("dog"),
    "detokenize": lambda _: detokenize("dog"),
    "inputs": lambda _: list(
        find_shards("/tmp", is_recursive=False, column=None, files_per_shard=1, done=())
    ),
    "statistics": lambda _: CaptionStatistics.from_captions("a dog"),
    "train captions": lambda _: evaluate_captions({"1": "a"}, {"1": ("a",)}, train_captions="a dog"),
    "references": lambda _: score_captions({"1": "a dog"}, {"1": "a dog"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_single_text_where_a_list_belongs_is_not_taken_for_its_letters(
    name: str, captioner: Captioner
) -> None:
    with pytest.raises(TypeError, match="must be a list, not the single text"):
        CALLS[name](captioner)


@pytest.mark.parametrize(
    "made",
    [
        "captioner.config.DecodingOptions(must_include='dog')",
        "captioner.figures.style.FigureStyle(words='dog')",
        "captioner.records.CaptionedImage(image_id='1', source=Path('1'), captions='a dog', split='dev')",
        "captioner.records.TranslatedSentence("
        "sentence_id='1', sentence='a dog', translations='ein Hund', split='dev')",
    ],
)
def test_single_text_is_not_taken_for_a_tuple_of_settings_either(made: str) -> None:
    """In a process of its own: in this one the tests' type checker would refuse it first."""
    module = made[: made.index("(")].rpartition(".")[0]
    code = f"from pathlib import Path\nimport {module}\n{made}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "must be a list, not the single text" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", [*DATASETS, *TRANSLATION_DATASETS])
def test_single_split_where_a_list_belongs_is_not_taken_for_its_letters(name: str, tmp_path: Path) -> None:
    kind = (DATASETS | TRANSLATION_DATASETS)[name]
    places = {
        field: tmp_path
        for field in kind.__dataclass_fields__
        if field in ("root", "captions", "images", "sets")
    }
    if name == "coco":
        places = {"root": tmp_path}
    with pytest.raises(TypeError, match="splits must be a list, not the single text 'train'"):
        kind(**places).read("train")
