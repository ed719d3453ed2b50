import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.checkpoint import load_checkpoint
from captioner.config import DecoderConfig, DecodingConfig, EncoderConfig, Recipe, TrainingConfig
from captioner.data import CaptionDataset, CaptionedImage, collate
from captioner.encoder import Encoder
from captioner.metrics import Scores
from captioner.resume import ResumeError
from captioner.training import Trainer, TrainingError
from captioner.validation import Split, settle_decoding, validate
from captioner.vocabulary import END, Vocabulary
from tests.conftest import TINY_CNN, TINY_SIZE_PX

CAPTIONS = [
    "a black dog runs through the snow",
    "two boys play football on the grass",
    "a woman in a red coat crosses the street",
    "a man climbs a steep rock",
    "three children jump into a pool",
    "a brown horse stands in a field",
    "a cyclist rides down a hill",
    "an old man sits on a bench",
]

RECIPE = Recipe(
    encoder=EncoderConfig(backbone=TINY_CNN, image_size=TINY_SIZE_PX),
    decoder=DecoderConfig(embedding_dim=32, hidden_dim=64, attention_dim=16, dropout=0.1),
    training=TrainingConfig(
        batch_size=4,
        epochs=60,
        learning_rate=0.01,
        label_smoothing=0.0,
        attention_penalty=0.0,
        ema_decay=0.5,
        patience=60,
        min_count=1,
    ),
    decoding=DecodingConfig(beam_size=3, max_words=12),
)


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each METEOR starts a Java process, which these tests can do without."""
    monkeypatch.setattr("captioner.metrics.has_java", lambda: False)


@pytest.fixture
def make_trainer(encoder: Encoder) -> Callable[..., Trainer]:
    grid = encoder.grid_config(TINY_SIZE_PX)
    shape = (len(CAPTIONS), grid.num_cells, encoder.annotation_dim)
    split = Split(
        records=[
            CaptionedImage(
                image_id=str(number), source=Path(f"{number}.png"), captions=(text,), split="train"
            )
            for number, text in enumerate(CAPTIONS)
        ],
        grids=np.random.default_rng(0).normal(size=shape).astype(np.float16),
    )

    def make(out: Path, recipe: Recipe = RECIPE) -> Trainer:
        return Trainer(
            recipe=recipe,
            encoder=encoder,
            preprocess=encoder.preprocess_config(TINY_SIZE_PX),
            grid=grid,
            vocabulary=Vocabulary.build(CAPTIONS, min_count=1),
            train=split,
            dev=split,
            out=out,
        )

    return make


def shorter(epochs: int, **changes: object) -> Recipe:
    return replace(RECIPE, training=replace(RECIPE.training, epochs=epochs, **changes))


def test_model_overfits_eight_pictures_and_says_them_back(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path)
    best = trainer.run()
    loaded = load_checkpoint(best)
    scores, captions = validate(
        loaded.model.decoder,
        trainer.dev,
        vocabulary=loaded.vocabulary,
        config=loaded.config.decoding,
    )
    assert list(captions.values()) == CAPTIONS
    assert scores.bleu_4 == pytest.approx(100)


class PowerCutError(Exception):
    pass


def cut_power_after(trainer: Trainer, num_epochs: int) -> None:
    """Let the run end like a crash, once so many epochs have been saved."""
    save = trainer.save

    def save_and_stop() -> None:
        save()
        if trainer.progress.epoch == num_epochs:
            raise PowerCutError

    trainer.save = save_and_stop


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    recipe = shorter(5)
    whole = make_trainer(tmp_path / "whole", recipe)
    whole.run()

    interrupted = make_trainer(tmp_path / "parts", recipe)
    cut_power_after(interrupted, 2)
    with pytest.raises(PowerCutError):
        interrupted.run()
    torch.manual_seed(12345)
    resumed = make_trainer(tmp_path / "parts", recipe)
    resumed.resume()
    resumed.run()

    for name, value in whole.decoder.state_dict().items():
        assert torch.equal(value, resumed.decoder.state_dict()[name]), name
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(value, resumed.averaged.state_dict()[name]), name
    for file in ("best/model.safetensors", "best/config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    entries = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert [entry["loss"] for entry in entries[0]] == [entry["loss"] for entry in entries[1]]
    assert [entry["dev"] for entry in entries[0]] == [entry["dev"] for entry in entries[1]]


def test_resuming_with_another_recipe_is_refused_with_the_difference(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    make_trainer(tmp_path, shorter(1)).run()
    with pytest.raises(ResumeError, match=r"epochs was 1 and is 2"):
        make_trainer(tmp_path, shorter(2)).resume()
    with pytest.raises(ResumeError, match="no epoch was finished"):
        make_trainer(tmp_path / "elsewhere", shorter(1)).resume()


def test_best_model_is_by_decoded_cider_and_training_stops_when_it_no_longer_grows(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ciders = iter([10.0, 30.0, 20.0, 25.0, 99.0])

    def scripted(_: Trainer) -> Scores:
        return Scores(bleu_1=0, bleu_2=0, bleu_3=0, bleu_4=0, rouge_l=0, cider=next(ciders), meteor=None)

    monkeypatch.setattr(Trainer, "_validate", scripted)
    trainer = make_trainer(tmp_path, shorter(5, patience=2))
    best = trainer.run()
    assert trainer.progress.epoch == 4
    assert load_checkpoint(best).metrics["dev"]["cider"] == 30.0


def test_loss_that_is_not_finite_stops_with_the_step_and_the_pictures(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.dataset.grids = np.full_like(trainer.dataset.grids, np.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 on \d, \d, \d, \d"):
        trainer.run()


def test_settling_keeps_the_weights_and_sets_the_decoding_that_scores_best(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, shorter(3))
    best = trainer.run()
    weights = (best / "model.safetensors").read_bytes()
    scores = settle_decoding(best, trainer.dev)
    loaded = load_checkpoint(best)
    assert (best / "model.safetensors").read_bytes() == weights
    tried = loaded.metrics["decoding_cider"]
    assert scores.cider == pytest.approx(max(tried.values()))
    assert loaded.metrics["dev"]["beam_size"] == loaded.config.decoding.beam_size


def test_batch_holds_each_picture_once_longest_first() -> None:
    records = [
        CaptionedImage(image_id="short", source=Path("s"), captions=("a dog",), split="train"),
        CaptionedImage(image_id="long", source=Path("l"), captions=("a", "a dog runs far"), split="train"),
    ]
    vocabulary = Vocabulary.build(["a dog runs far"], min_count=1)
    dataset = CaptionDataset(
        records=records, grids=np.zeros((2, 4, 3), np.float16), vocabulary=vocabulary, max_words=9
    )
    batch = collate([dataset[0], dataset[1]])
    assert batch.image_ids == ("long", "short")
    assert batch.lengths.tolist() == [[5, 2], [3, 0]]
    assert batch.tokens.shape == (2, 2, 6)


def test_captions_over_the_limit_are_cut_and_do_not_claim_to_end() -> None:
    record = CaptionedImage(image_id="x", source=Path("x"), captions=("a b c d", "a b"), split="train")
    vocabulary = Vocabulary.build(["a b c d"], min_count=1)
    dataset = CaptionDataset(
        records=[record], grids=np.zeros((1, 4, 3), np.float16), vocabulary=vocabulary, max_words=2
    )
    cut, whole = dataset.tokens[0]
    assert len(cut) == 3
    assert END not in cut
    assert whole[-1] == END
