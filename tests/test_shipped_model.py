"""The models that ship: complete, small, and with the scores that their cards state."""

import json
import re

from safetensors import safe_open

from captioner.checkpoint.folder import CHECKSUM, FILES, GRAPHS, SHIPPED_MODEL
from captioner.translation.translator import Translator
from tests.conftest import ROOT

CARD = SHIPPED_MODEL / "MODEL_CARD.md"
TRANSLATOR = ROOT / "notebooks" / "english-german"


def test_folder_holds_these_files_and_no_other() -> None:
    assert sorted(path.name for path in SHIPPED_MODEL.iterdir()) == sorted(
        [*FILES, CHECKSUM, *GRAPHS.values(), CARD.name]
    )


def test_weights_are_in_half_precision_and_take_at_most_45_mb() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.iterdir()) <= 45e6
    with safe_open(SHIPPED_MODEL / "model.safetensors", framework="np") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds <= {"F16", "I64"}


def test_card_and_readme_state_the_scores_that_were_measured() -> None:
    metrics = json.loads((SHIPPED_MODEL / "metrics.json").read_text())
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
    for dataset in ("everyday", "flickr8k"):
        dev = metrics[f"dev/{dataset}"]
        row = f"| {' | '.join(f'{dev[name]:.1f}' for name in names)} |"
        assert row in CARD.read_text(), dataset
        readme = (ROOT / "README.md").read_text()
        assert re.search(rf"{dev['cider']:.1f} and (BLEU-4 )?{dev['bleu_4']:.1f} on ", readme), dataset


def test_model_scores_above_the_best_published_on_flickr8k() -> None:
    """CIDEr 58.9 of adaptive attention on a fine-tuned ResNet-152, though that is of the test split."""
    assert json.loads((SHIPPED_MODEL / "metrics.json").read_text())["dev/flickr8k"]["cider"] > 58.9


def test_translator_of_the_notebook_is_complete_and_small_and_its_card_and_the_readme_state_its_scores() -> (
    None
):
    assert sorted(path.name for path in TRANSLATOR.iterdir()) == sorted([*FILES, CHECKSUM, "MODEL_CARD.md"])
    assert sum(path.stat().st_size for path in TRANSLATOR.iterdir()) <= 15e6
    dev = json.loads((TRANSLATOR / "metrics.json").read_text())["dev"]
    card = (TRANSLATOR / "MODEL_CARD.md").read_text()
    assert f"| {dev['bleu']:.1f} | {dev['chrf']:.1f} |" in card
    assert f"beam {dev['beam_size']}, length penalty {dev['length_penalty']}" in card
    assert f"BLEU {dev['bleu']:.1f} on Multi30k's val split" in (ROOT / "README.md").read_text()


def test_translator_of_the_notebook_attends_to_the_word_it_translates() -> None:
    (translation,) = Translator.load(TRANSLATOR, device="cpu").translate(["A dog is running in the snow."])
    assert translation.text == "Ein Hund rennt im Schnee."
    attended = {
        word: translation.sentence_words[row.argmax()]
        for word, row in zip(translation.words, translation.alphas, strict=True)
    }
    assert (attended["Hund"], attended["Schnee"]) == ("dog", "snow")
