"""The same decoder on text: training, translations, their alignments, and model folders."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from captioner.checkpoint.weights import load_checkpoint, save_checkpoint
from captioner.config import DecodingOptions, TextEncoderConfig
from captioner.errors import CaptionerError, ModelFolderError
from captioner.figures.files import save_figure
from captioner.figures.style import FigureFormat, FigureStyle
from captioner.inference import Captioner
from captioner.records import TranslatedSentence
from captioner.training.log import RunLog
from captioner.training.recipe import Recipe, TrainingConfig
from captioner.training.run import make_accelerator
from captioner.training.trainer import Trainer
from captioner.training.validation import validate
from captioner.translation.metrics import TranslationScores, score_translations
from captioner.translation.model import load_translation_checkpoint
from captioner.translation.task import TranslationTask
from captioner.translation.translator import Translation, Translator, _join_subwords
from captioner.vocabulary import Vocabulary
from tests.conftest import SMALL_DECODER, noise_picture
from tests.training.test_trainer import PowerCutError, cut_power_at

CELLS = "cells, by the rows of the grid"

PAIRS = {
    "A dog runs.": "Ein Hund läuft.",
    "A red dog sits in the garden.": "Ein roter Hund sitzt im Garten.",
    "Two cats sleep.": "Zwei Katzen schlafen.",
    "The woman reads a book.": "Die Frau liest ein Buch.",
    "A man, outside, laughs.": "Ein Mann lacht im Freien.",
    "Blue.": "Blau.",
    "The children play with a ball in the park.": "Die Kinder spielen im Park mit einem Ball.",
    "She sings": "Sie singt",
}
ENCODER = TextEncoderConfig(num_subwords=90, embedding_dim=16, hidden_dim=12, annotation_dim=16, dropout=0.0)
RECIPE = Recipe(
    encoder=ENCODER,
    decoder=replace(SMALL_DECODER, embedding_dim=24, hidden_dim=32, attention_dim=16),
    training=TrainingConfig(
        batch_size=4,
        epochs=3,
        learning_rate=0.02,
        label_smoothing=0.0,
        attention_penalty=0.0,
        ema_decay=0.0,
        max_caption_words=40,
        patience=100,
    ),
    decoding=DecodingOptions(beam_size=2, max_words=40),
)
RECORDS = [
    TranslatedSentence(sentence_id=str(number), sentence=english, translations=(german,), split="train")
    for number, (english, german) in enumerate(PAIRS.items())
]


@pytest.fixture
def vocabulary() -> Vocabulary:
    texts = (text for pair in PAIRS.items() for text in pair)
    return Vocabulary.build_subwords(texts, size=ENCODER.num_subwords)


@pytest.fixture
def make_trainer(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    draw = RunLog.figures

    def one_figure(log: RunLog, step: int, figures: Iterator[Figure]) -> None:
        """Of the first epoch, for each takes half a second."""
        draw(log, step, islice(figures, step < 2))

    monkeypatch.setattr(RunLog, "figures", one_figure)

    def make(out: Path, recipe: Recipe = RECIPE, **changes: Any) -> Trainer:
        recipe = replace(recipe, training=replace(recipe.training, **changes))
        task = TranslationTask(recipe=recipe, vocabulary=vocabulary, train=RECORDS, dev=RECORDS)
        return Trainer(accelerator=make_accelerator(recipe), recipe=recipe, task=task, out=out)

    return make


@pytest.fixture
def translator(vocabulary: Vocabulary) -> Translator:
    """One with random weights."""
    torch.manual_seed(3)
    task = TranslationTask(recipe=RECIPE, vocabulary=vocabulary, train=RECORDS, dev=RECORDS)
    return Translator(model=task.make_model(), config=task.config, vocabulary=vocabulary)


@pytest.mark.long
def test_model_learns_eight_sentences_and_translates_them(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The loop, the search and the folder are those of captioning."""
    trainer = make_trainer(tmp_path, epochs=40)
    tune = trainer.task.tune_decoding
    observed: list[TranslationScores] = []

    def observe(folder: Path, **options: int) -> TranslationScores:
        observed.append(tune(folder, **options))
        return observed[-1]

    trainer.task.tune_decoding = observe
    best = trainer.run()
    assert [str(scores) for scores in observed] == ["BLEU 100.0, chrF 100.0"]
    translator = Translator.load(best)
    translations = translator.translate(list(PAIRS))
    assert [translation.text for translation in translations] == list(PAIRS.values())
    metrics = load_translation_checkpoint(best).metrics
    assert metrics["dev"]["bleu"] == pytest.approx(100)
    assert metrics["dev"]["beam_size"] == translator.config.decoding.beam_size


def test_resumed_run_repeats_the_uninterrupted_one(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """With dropout and a moving average."""
    recipe = replace(
        RECIPE,
        encoder=replace(ENCODER, dropout=0.2),
        decoder=replace(RECIPE.decoder, dropout=0.2),
        training=replace(RECIPE.training, ema_decay=0.9),
    )
    whole = make_trainer(tmp_path / "whole", recipe)
    whole.run()
    first = make_trainer(tmp_path / "parts", recipe)
    first.save_minutes = 0.0
    cut_power_at(first, 3)
    with pytest.raises(PowerCutError):
        first.run()
    second = make_trainer(tmp_path / "parts", recipe)
    second.resume()
    assert second.progress.step == 3
    second.run()
    for name, value in whole.train_step.averaged_model.state_dict().items():
        assert torch.equal(value, second.train_step.averaged_model.state_dict()[name]), name


def test_run_is_not_resumed_with_other_sentences(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    make_trainer(tmp_path, epochs=1).run()
    other = make_trainer(tmp_path, epochs=1)
    other.task.train.records = RECORDS[:-1]
    other.digest = other.task.digest()
    with pytest.raises(CaptionerError, match="other data"):
        other.resume()


def test_validation_translates_a_padded_batch_as_each_sentence_alone(
    translator: Translator, vocabulary: Vocabulary
) -> None:
    task = TranslationTask(recipe=RECIPE, vocabulary=vocabulary, train=RECORDS, dev=RECORDS)
    _, texts = validate(
        translator.model, task.dev, vocabulary=vocabulary, options=RECIPE.decoding, score=lambda _: None
    )
    for record in RECORDS:
        (alone,) = translator.translate([record.sentence])
        assert texts[record.sentence_id] == alone.text


def test_phases_that_only_captioning_has_are_refused() -> None:
    for phase in ("finetune_from_epoch", "self_critical_from_epoch"):
        with pytest.raises(
            ValueError, match=f"with a text encoder, {phase} must be None, not 2; leave it out"
        ):
            replace(RECIPE, training=replace(RECIPE.training, **{phase: 2}))


def test_translations_do_not_depend_on_the_batch_and_keep_their_order(translator: Translator) -> None:
    together = translator.translate(list(PAIRS), batch_size=8)
    for sentence, translation in zip(PAIRS, together, strict=True):
        (alone,) = translator.translate([sentence])
        assert alone.sentence == translation.sentence == sentence
        assert alone.text == translation.text
        assert alone.log_prob == pytest.approx(translation.log_prob, abs=1e-4)
        np.testing.assert_allclose(alone.alphas, translation.alphas, atol=1e-5)


def test_attention_of_each_word_is_a_distribution_over_the_words_of_the_sentence(
    translator: Translator,
) -> None:
    for sentence, translation in zip(PAIRS, translator.translate(list(PAIRS)), strict=True):
        assert translation.alphas.shape == (len(translation.words), len(translation.sentence_words))
        np.testing.assert_allclose(translation.alphas.sum(axis=1), 1, atol=1e-5)
        assert "".join(translation.sentence_words) == sentence.replace(" ", "")
        assert "".join(translation.words) == translation.text.replace(" ", "")


def test_attention_is_summed_over_the_subwords_of_a_source_word_and_averaged_over_those_of_a_target_word(
    translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: the source has a word of two subwords and a full stop, the target words of one and two."""
    subwords = {"source": ["▁Hun", "de", "."], "target": ["▁a", "▁d", "og"]}
    monkeypatch.setattr(Vocabulary, "split", lambda *_: subwords["source"])
    monkeypatch.setattr(Vocabulary, "decode", lambda *_: subwords["target"])
    alphas = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]], [[0.3, 0.5, 0.2]]])
    (found,) = translator._generate(["Hunde."], [0], translator.config.decoding)
    translation = translator._translation("Hunde.", replace(found, alphas=alphas))
    assert (translation.sentence_words, translation.words) == (("Hunde", "."), ("a", "dog"))
    np.testing.assert_allclose(translation.alphas, [[0.8, 0.2], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("subwords", "words"),
    [
        ([], []),
        (["▁Zwei", "▁jun", "ge", "▁Hunde", "."], ["Zwei", "junge", "Hunde", "."]),
        (["▁T", "-", "Shirt", ",", "▁das"], ["T-Shirt", ",", "das"]),
        (["▁", "(", "▁a", ")"], ["(", "a", ")"]),
        ([".", "▁a"], [".", "a"]),
        (["▁dog", ".", ".", "."], ["dog", ".", ".", "."]),
        (["▁said", ",", '"', "▁he"], ["said", ",", '"', "he"]),
        (["▁5", ".", "30"], ["5.30"]),
    ],
)
def test_subwords_are_joined_into_words_and_punctuation_after_a_word_is_a_word_of_its_own(
    subwords: list[str], words: list[str]
) -> None:
    found = _join_subwords(subwords)
    assert [word for word, _ in found] == words
    assert [place for _, span in found for place in range(len(subwords))[span]] == list(range(len(subwords)))


def test_blank_sentence_stays_blank_and_changes_no_other(translator: Translator) -> None:
    blank, other, last = translator.translate(["", "A dog runs.", " \n"])
    assert (blank.text, blank.words, blank.alphas.shape) == ("", (), (0, 0))
    assert last.text == ""
    assert other.text == translator.translate(["A dog runs."])[0].text
    assert translator.translate([]) == []
    with pytest.raises(TypeError, match="in brackets"):
        translator.translate("A dog runs.")


def test_error_without_sentencepiece_names_what_to_install(
    translator: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TranslationTask(recipe=RECIPE, vocabulary=translator.vocabulary, train=RECORDS, dev=RECORDS)
    save_checkpoint(tmp_path / "model", task.to_checkpoint(translator.model, {}))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        CaptionerError,
        match=r"^this model uses subwords and needs sentencepiece; install it with: pip install",
    ):
        Translator.load(tmp_path / "model")


def test_characters_never_seen_in_training_are_encoded_as_unknown(translator: Translator) -> None:
    (translation,) = translator.translate(["日本 A dog 🐕"])
    np.testing.assert_allclose(translation.alphas.sum(axis=1), 1, atol=1e-5)
    assert translation.sentence_words[0] == "日本"


@pytest.mark.parametrize("num_words", [1, 2, 8, 40])
def test_alignment_is_drawn_like_the_matrix_of_words_by_cells(num_words: int) -> None:
    """Source words are below their own columns, and none overlaps another or the labels below."""
    words = tuple(f"word{number}" for number in range(num_words))
    alphas = np.random.default_rng(0).dirichlet(np.ones(num_words), size=2)
    translation = Translation(
        sentence=" ".join(words),
        text="ja nein",
        sentence_words=words,
        words=("ja", "nein"),
        log_prob=-1.0,
        alphas=alphas,
    )
    figure = translation.plot(translation)
    heat = figure.axes[0]
    np.testing.assert_allclose(heat.images[0].get_array(), alphas)
    labels = heat.get_xticklabels()
    assert [label.get_text() for label in labels] == list(words)
    np.testing.assert_allclose(heat.get_xticks(), np.arange(num_words) + 0.5)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(left.overlaps(right) for left, right in pairwise(boxes))
    assert min(box.y0 for box in boxes) > heat.xaxis.label.get_window_extent().y1 - 1
    (scale,) = (axes for axes in figure.axes if axes.get_xlabel() == "attention")
    assert heat.xaxis.label.get_window_extent().y0 > scale.get_window_extent().y1


def test_alignment_beside_a_picture_has_a_colour_scale_of_its_own(captioner: Captioner) -> None:
    """A picture has so many cells that on a common scale its attention would be black. Titles end inside the
    figure."""
    caption = captioner.caption(noise_picture(1))
    long = "Rindfleischetikettierungsüberwachung " * 3
    translation = Translation(
        sentence="a", text=long, sentence_words=("a",), words=("ein",), log_prob=0.0, alphas=np.ones((1, 1))
    )
    figure = caption.plot_matrix(translation)
    heats = [axes for axes in figure.axes if axes.get_xlabel() in {"words of the sentence", CELLS}]
    assert [heat.images[0].norm.vmax for heat in heats] == [pytest.approx(caption.alphas.max()), 1.0]
    figure.canvas.draw()
    for title in figure.texts:
        assert title.get_window_extent().x1 < figure.bbox.x1


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_alignment_is_saved_as_a_figure_whose_text_is_text(
    translator: Translator, tmp_path: Path, kind: FigureFormat
) -> None:
    translations = translator.translate(["A red dog sits in the garden.", ""])
    for number, translation in enumerate(translations):
        save_figure(translation.plot(), tmp_path / f"{number}.{kind}", FigureStyle(), kind)
    content = (tmp_path / f"0.{kind}").read_bytes()
    assert len(content) > 1_000
    if kind == "svg":
        assert all(f">{word}<".encode() in content for word in translations[0].sentence_words)
    assert "garden" not in translations[1]._repr_html_()
    assert 'alt="' in translations[0]._repr_html_()


def test_folder_of_the_other_kind_of_model_is_refused(
    translator: Translator, model_folder: Path, tmp_path: Path
) -> None:
    task = TranslationTask(recipe=RECIPE, vocabulary=translator.vocabulary, train=RECORDS, dev=RECORDS)
    save_checkpoint(tmp_path / "translator", task.to_checkpoint(translator.model, {}))
    with pytest.raises(ModelFolderError, match="translates sentences; give one that captions pictures"):
        load_checkpoint(tmp_path / "translator")
    with pytest.raises(ModelFolderError, match="captions pictures; give one that translates sentences"):
        load_translation_checkpoint(model_folder)
    loaded = load_translation_checkpoint(tmp_path / "translator")
    assert (loaded.config, loaded.vocabulary) == (task.config, translator.vocabulary)


def test_hostile_folders_are_refused_before_memory_is_allocated(
    translator: Translator, tmp_path: Path
) -> None:
    task = TranslationTask(recipe=RECIPE, vocabulary=translator.vocabulary, train=RECORDS, dev=RECORDS)
    folder = tmp_path / "model"
    save_checkpoint(folder, task.to_checkpoint(translator.model, {}))
    config, words = folder / "config.json", folder / "vocabulary.json"
    content = json.loads(config.read_text())
    content["text_encoder"]["hidden_dim"] = 65_000  # 100 GB
    sound = config.read_text()
    config.write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=r"do not match one another: config\.json states"):
        Translator.load(folder)
    config.write_text(sound)
    words.write_text(json.dumps(json.loads(words.read_text()) | {"subwords": "bm9uc2Vuc2U="}))
    with pytest.raises(
        ModelFolderError, match="is damaged or truncated: cannot read the vocabulary's sentencepiece model"
    ):
        Translator.load(folder)


def test_training_starts_from_a_translator(
    make_trainer: Callable[..., Trainer], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    best = make_trainer(tmp_path / "first", epochs=2).run()
    start = load_translation_checkpoint(best)
    task = TranslationTask(recipe=RECIPE, vocabulary=vocabulary, train=RECORDS, dev=RECORDS, start=start)
    for name, value in task.make_model().state_dict().items():
        assert torch.equal(value, start.model.state_dict()[name])
    again = Trainer(accelerator=make_accelerator(RECIPE), recipe=RECIPE, task=task, out=tmp_path / "again")
    assert load_translation_checkpoint(again.run()).metrics["start"] == start.metrics


def test_bleu_is_that_of_the_formula() -> None:
    """One sentence by hand (Papineni et al. 2002): n-gram precisions and brevity penalty. The full stop is
    a word of its own, and case matters."""
    references = {"1": ("The cat sat on the mat.", "the cat sat")}
    scores = score_translations({"1": "The cat sat on mat."}, references)
    precisions = (6 / 6, 4 / 5, 2 / 4, 1 / 3)  # of: the The cat sat on mat .
    brevity = math.exp(1 - 7 / 6)
    expected = 100 * brevity * math.prod(precisions) ** 0.25
    assert scores.bleu == pytest.approx(expected)
    assert score_translations({"1": "The cat sat on the mat."}, references).bleu == pytest.approx(100)
    assert score_translations({"1": "the cat sat on the mat."}, references).bleu < 90
