import errno
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from captioner.checkpoint.weights import CaptioningCheckpoint, load_checkpoint
from captioner.config import DecoderConfig, DecodingOptions, EncoderConfig
from captioner.data.batching import load_batches
from captioner.data.epoch_order import SampleKey, in_order
from captioner.data.pictures import CachedRecords
from captioner.errors import CaptionerError, Stopped
from captioner.evaluation.metrics import Scores, ScoresByDataset, score_captions
from captioner.model.batch import CaptionBatch
from captioner.model.encoder import Encoder
from captioner.records import CaptionedImage
from captioner.training.captioning import CaptioningTask
from captioner.training.log import RunLog
from captioner.training.loss import CaptionLoss
from captioner.training.recipe import Recipe, TrainingConfig
from captioner.training.run import make_accelerator
from captioner.training.state import load_matching_state, save_state
from captioner.training.step import TrainStep
from captioner.training.trainer import Trainer
from captioner.training.validation import dev_loss, validate
from captioner.vocabulary import Vocabulary
from tests.conftest import TINY_CNN, TINY_SIZE_PX, noise_picture

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

MakeTrainer = Callable[..., Trainer]

RECIPE = Recipe(
    encoder=EncoderConfig(backbone=TINY_CNN, image_size=TINY_SIZE_PX),
    decoder=DecoderConfig(embedding_dim=32, hidden_dim=64, attention_dim=16, dropout=0.1),
    training=TrainingConfig(
        batch_size=4,
        epochs=25,
        learning_rate=0.01,
        label_smoothing=0.0,
        attention_penalty=0.0,
        ema_decay=0.5,
        patience=25,
        min_count=1,
    ),
    decoding=DecodingOptions(beam_size=3, max_words=12),
)


@pytest.fixture(autouse=True)
def no_extras(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_extras_out(monkeypatch, overlays="overlays" in request.node.name)


def leave_extras_out(monkeypatch: pytest.MonkeyPatch, *, overlays: bool = False) -> None:
    """Each METEOR starts a Java process and each overlay takes half a second; most tests can do without."""
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)
    monkeypatch.setattr("captioner.training.captioning.LEAST_PICTURES_FOR_CIDER", len(CAPTIONS))
    if not overlays:
        monkeypatch.setattr(RunLog, "figures", lambda *_: None)


def trainers_on(pictures: Path, encoder: Encoder) -> MakeTrainer:
    """Trainers on eight pictures, which are written to a new folder."""
    grid = encoder.grid_config(TINY_SIZE_PX)
    shape = (len(CAPTIONS), grid.num_cells, encoder.annotation_dim)
    pictures.mkdir()
    records = []
    for number, text in enumerate(CAPTIONS):
        path = pictures / f"{number}.png"
        noise_picture(number).save(path)
        records.append(CaptionedImage(image_id=str(number), source=path, captions=(text,), split="train"))
    features = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    def make(
        out: Path,
        recipe: Recipe = RECIPE,
        *,
        num_cached: int = len(CAPTIONS),
        start: CaptioningCheckpoint | None = None,
    ) -> Trainer:
        split = CachedRecords(records=records, features=features[:num_cached])
        task = CaptioningTask(
            recipe=recipe,
            encoder=deepcopy(encoder),
            preprocess=encoder.preprocess_config(TINY_SIZE_PX),
            grid=grid,
            vocabulary=Vocabulary.build(CAPTIONS, min_count=1),
            train=split,
            dev=split,
            start=start,
        )
        return Trainer(accelerator=make_accelerator(recipe), recipe=recipe, task=task, out=out)

    return make


@pytest.fixture
def make_trainer(encoder: Encoder, tmp_path: Path) -> MakeTrainer:
    return trainers_on(tmp_path / "pictures", encoder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Trainer]:
    """Uninterrupted runs by their recipe, to be read only: each is trained once."""
    torch.manual_seed(0)
    make = trainers_on(tmp_path_factory.mktemp("data") / "pictures", Encoder(backbone=TINY_CNN))

    @cache
    def run(recipe: Recipe) -> Trainer:
        with pytest.MonkeyPatch.context() as monkeypatch:
            leave_extras_out(monkeypatch)
            trainer = make(tmp_path_factory.mktemp("whole"), recipe)
            trainer.run()
        return trainer

    return run


def shorter(epochs: int, **changes: object) -> Recipe:
    return replace(RECIPE, training=replace(RECIPE.training, epochs=epochs, **changes))


def test_model_overfits_eight_pictures_and_repeats_their_captions(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path)
    best = trainer.run()
    loaded = load_checkpoint(best)
    scores, captions = validate(
        loaded.model.eval(),
        trainer.task.dev,
        vocabulary=loaded.vocabulary,
        options=loaded.config.decoding,
        score=partial(score_captions, references=trainer.task.dev.references),
    )
    assert [captions[str(number)] for number in range(8)] == CAPTIONS
    assert scores.bleu_4 == pytest.approx(100)


def test_self_critical_training_raises_the_reward_of_the_samples(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    recipe = shorter(20, self_critical_from_epoch=7, self_critical_learning_rate=3e-3)
    trainer = make_trainer(tmp_path, recipe)
    trainer.run()
    rewards = [entry["loss"].get("reward") for entry in trainer.progress.history]
    assert rewards[:6] == [None] * 6
    assert np.mean(rewards[-5:]) > 1.3 * rewards[6]


def test_baseline_of_hard_attention_is_the_papers_moving_average(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    recipe = shorter(1)
    trainer = make_trainer(tmp_path, replace(recipe, decoder=replace(recipe.decoder, attention="hard")))
    expected = 0.0
    for number in range(2):
        keys = [SampleKey(0, 1), SampleKey(0, 4 + number)]
        micro_batches = list(load_batches(trainer.task.train, [keys], num_workers=0))
        values = trainer.train_step(micro_batches, number)
        log_likelihood = -values["cross_entropy"] * int(micro_batches[0].lengths.sum()) / 2
        expected = 0.9 * expected + 0.1 * log_likelihood
    assert trainer.train_step.baseline == pytest.approx(expected, rel=1e-5)


def test_samples_are_of_the_pictures_whose_gradient_is_taken(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """With half of the pictures cached: the samples' pictures are all replaced by their annotations."""
    trainer = make_trainer(tmp_path, shorter(1, self_critical_from_epoch=1), num_cached=4)
    keys = [SampleKey(0, index) for index in (7, 2, 5)]
    (batch,) = load_batches(trainer.task.train, [keys], num_workers=0)
    sampled = trainer.train_step._sample(batch)
    model = trainer.train_step.raw_model
    assert sampled.ids == batch.ids
    assert len(sampled.sources.images) == 0
    found, expected = (model.encoder.annotations_of(given.sources)[0] for given in (sampled, batch))
    torch.testing.assert_close(found, expected)
    assert trainer.train_step.self_critical_loss is not None
    rewards = trainer.train_step.self_critical_loss.reward(sampled)
    assert rewards.shape == sampled.lengths.shape == (3, 5)


def test_run_starts_from_a_model_as_it_was_saved(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer(tmp_path / "first", shorter(1))
    saved = load_checkpoint(first.run())
    second = make_trainer(tmp_path / "second", shorter(1), start=saved)
    for name, value in saved.model.decoder.state_dict().items():
        assert torch.equal(second.train_step.raw_model.decoder.state_dict()[name], value), name
    assert load_checkpoint(second.run()).metrics["start"] == saved.metrics


class PowerCutError(Exception):
    pass


class StepsUntil:
    """The steps of a run, with a power cut before one of them."""

    def __init__(self, train_step: TrainStep, number: int) -> None:
        self.train_step, self.number = train_step, number

    def __call__(self, micro_batches: Sequence[CaptionBatch], number: int) -> dict[str, float]:
        if number == self.number:
            raise PowerCutError
        return self.train_step(micro_batches, number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.train_step, name)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def cut_power_at(trainer: Trainer, step: int) -> None:
    """Let the run end like a crash before a step, with the save before it as the last one."""
    trainer.train_step = StepsUntil(trainer.train_step, step)


def assert_same_weights(one: Trainer, other: Trainer) -> None:
    for first, second in (
        (one.train_step.raw_model, other.train_step.raw_model),
        (one.train_step.averaged, other.train_step.averaged),
    ):
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name


def test_state_is_loaded_for_the_recipe_it_was_saved_with_and_no_other(tmp_path: Path) -> None:
    save_state(tmp_path, recipe=RECIPE, state={"step": 3})
    assert load_matching_state(tmp_path, RECIPE)["step"] == 3
    accumulated = RECIPE.overridden({"training": {"gradient_accumulation_steps": 2}})
    assert load_matching_state(tmp_path, accumulated)["step"] == 3
    with pytest.raises(
        CaptionerError, match="different recipe: no_repeat_ngram was 0 and is 2; resume it with"
    ):
        load_matching_state(tmp_path, RECIPE.overridden({"decoding": {"no_repeat_ngram": 2}}))


@pytest.mark.parametrize(
    ("changes", "attention", "step"),
    [
        *[({"finetune_from_epoch": 3, "finetune_stages": 1}, "soft", step) for step in (1, 4)],
        *[
            pytest.param(
                {"finetune_from_epoch": 3, "finetune_stages": 1}, "soft", step, marks=pytest.mark.long
            )
            for step in (0, 3, 5, 8)
        ],
        *[({"self_critical_from_epoch": 3}, "soft", step) for step in (4, 5)],
        *[
            pytest.param({"self_critical_from_epoch": 3}, "soft", step, marks=pytest.mark.long)
            for step in (3, 8)
        ],
        ({}, "hard", 5),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make_trainer: MakeTrainer,
    finished: Callable[[Recipe], Trainer],
    tmp_path: Path,
    changes: dict[str, int],
    attention: str,
    step: int,
) -> None:
    """Two steps an epoch, saved after each; epoch 3, in which another phase begins, starts with step 4."""
    recipe = shorter(5, **changes)
    recipe = replace(recipe, decoder=replace(recipe.decoder, attention=attention))
    whole = finished(recipe)
    interrupted = make_trainer(tmp_path / "parts", recipe)
    interrupted.save_minutes = 0
    interrupted.save()
    cut_power_at(interrupted, step)
    with pytest.raises(PowerCutError):
        interrupted.run()
    torch.manual_seed(12345)
    resumed = make_trainer(tmp_path / "parts", recipe)
    resumed.resume()
    assert resumed.progress.step == step
    resumed.run()

    assert_same_weights(whole, resumed)
    for file in ("best/model.safetensors", "best/config.json"):
        assert (whole.out / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    entries = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (whole.out, tmp_path / "parts")
    ]
    for name in ("loss", "dev", "step", "is_finetuning"):
        assert [entry[name] for entry in entries[0]] == [entry[name] for entry in entries[1]]


def test_resuming_with_another_recipe_or_other_data_is_refused_with_the_difference(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(tmp_path, shorter(1)).run()
    with pytest.raises(CaptionerError, match=r"batch_size was 4 and is 2"):
        make_trainer(tmp_path, shorter(1, batch_size=2)).resume()
    with pytest.raises(CaptionerError, match="nothing was saved yet"):
        make_trainer(tmp_path / "elsewhere", shorter(1)).resume()
    trainer = make_trainer(tmp_path, shorter(1))
    with torch.no_grad():
        next(trainer.train_step.raw_model.encoder.parameters()).add_(1.0)
    other = trainer.task.digest()
    assert other != trainer.digest
    trainer.digest = other
    with pytest.raises(CaptionerError, match="other data"):
        trainer.resume()


def test_full_disk_keeps_the_last_good_save(
    make_trainer: MakeTrainer,
    finished: Callable[[Recipe], Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = shorter(3)
    trainer = make_trainer(tmp_path / "run", recipe)
    trainer.save_minutes = 0
    write = torch.save

    def write_until_full(state: dict[str, object], path: Path) -> None:
        write(state, path)
        if trainer.progress.step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", write_until_full)
    with pytest.raises(CaptionerError, match=r"cannot save .*last: .*No space left .* before is kept"):
        trainer.run()
    monkeypatch.setattr(torch, "save", write)
    resumed = make_trainer(tmp_path / "run", recipe)
    resumed.resume()
    assert resumed.progress.step == 2
    resumed.run()
    assert_same_weights(finished(recipe), resumed)


def test_gradient_accumulation_changes_nothing(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    recipe = shorter(3)
    recipe = replace(recipe, decoder=replace(recipe.decoder, dropout=0.0))
    whole = make_trainer(tmp_path / "whole", recipe)
    whole.run()
    accumulated = recipe.overridden({"training": {"gradient_accumulation_steps": 3}})
    parts = make_trainer(tmp_path / "parts", accumulated)
    parts.run()
    for name, value in whole.train_step.raw_model.state_dict().items():
        other = parts.train_step.raw_model.state_dict()[name]
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=name)
    for one, other in zip(whole.progress.history, parts.progress.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_mixed_precision_applies_to_every_step_of_both_phases(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    AcceleratorState._reset_state()  # the precision is the same for the whole process
    try:
        recipe = shorter(3, mixed_precision="bf16", finetune_from_epoch=3, finetune_stages=1)
        trainer = make_trainer(tmp_path, recipe)
        seen = []
        hidden_readout = trainer.train_step.raw_model.decoder.hidden_readout
        hidden_readout.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        trainer.run()
        assert len(seen) >= 6
        assert set(seen) == {torch.bfloat16}
    finally:
        AcceleratorState._reset_state()


def test_frozen_stages_and_statistics_stay_unchanged_while_the_last_stage_is_trained(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    recipe = shorter(4, finetune_from_epoch=3, finetune_stages=1)
    trainer = make_trainer(tmp_path, recipe)
    encoder = trainer.train_step.raw_model.encoder
    stage = {id(parameter) for parameter in encoder.last_stages(1, size_px=TINY_SIZE_PX)}
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    train_step = trainer.train_step
    cut_power_at(trainer, 4)  # the first step of epoch 3
    with pytest.raises(PowerCutError):
        trainer.run()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name

    trainer.train_step = train_step
    trainer.run()
    parameters = dict(encoder.named_parameters())
    for name, value in encoder.state_dict().items():
        is_in_stage = name in parameters and id(parameters[name]) in stage
        assert torch.equal(value, before[name]) != is_in_stage, name
    saved = load_checkpoint(tmp_path / "best").model.encoder.state_dict()
    assert saved.keys() == before.keys()


def test_uncached_pictures_are_trained_on_too(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    recipe = shorter(2, augmentation=False)
    losses = []
    for num_cached in (0, 3):
        trainer = make_trainer(tmp_path / str(num_cached), recipe, num_cached=num_cached)
        trainer.run()
        losses.append(trainer.progress.history[-1]["loss"]["total"])
    assert all(np.isfinite(losses))
    assert losses[0] != losses[1]  # the cached features of these tests are not those of the pictures


def test_best_model_has_the_highest_cider_of_decoded_captions_and_training_stops_when_it_no_longer_improves(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_dev_ciders(monkeypatch, [10.0, 30.0, 20.0, 25.0, 99.0])
    trainer = make_trainer(tmp_path, shorter(5, patience=2))
    best = trainer.run()
    assert trainer.progress.epoch == 4
    history = load_checkpoint(best).metrics["history"]
    assert [entry["dev"]["cider"] for entry in history] == [10.0, 30.0]


def test_fine_tuning_starts_whatever_the_patience_and_restarts_its_count(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_dev_ciders(monkeypatch, [30.0, 20.0, 20.0, 20.0, 20.0, 99.0])
    trainer = make_trainer(tmp_path, shorter(6, patience=1, finetune_from_epoch=5, finetune_stages=1))
    trainer.run()
    assert [entry["is_finetuning"] for entry in trainer.progress.history] == [False] * 4 + [True]


def test_loss_chooses_the_model_where_dev_is_too_small_for_cider(
    make_trainer: MakeTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single dev picture has no CIDEr; the model with the least loss is kept, and decoding as it was."""
    said: list[str] = []
    monkeypatch.setattr(
        "captioner.training.captioning._logger.info", lambda text, *values: said.append(text % values)
    )
    monkeypatch.setattr("captioner.training.captioning.LEAST_PICTURES_FOR_CIDER", len(CAPTIONS) + 1)
    script_dev_ciders(monkeypatch, [None] * 4)
    losses = iter([3.0, 2.0, 2.5, 2.4])
    monkeypatch.setattr("captioner.training.captioning.dev_loss", lambda *_: next(losses))
    trainer = make_trainer(tmp_path, shorter(4, patience=2))
    best = load_checkpoint(trainer.run())
    assert [entry["dev"]["cross_entropy"] for entry in best.metrics["history"]] == [3.0, 2.0]
    assert best.config.decoding == RECIPE.decoding
    assert said[0].startswith("8 dev pictures are too few for CIDEr to compare models by: the loss on dev")


def test_dev_loss_is_that_of_the_training_loss(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, shorter(1))
    task, model = trainer.task, trainer.train_step.averaged_model.eval()
    loss = CaptionLoss(label_smoothing=0.0, attention_penalty=0.0)
    (batch,) = load_batches(task.dev, in_order(len(task.dev), batch_size=99), num_workers=0)
    with torch.inference_mode():
        assert dev_loss(model, task.dev) == pytest.approx(float(loss(model(batch), batch)["total"]), rel=1e-4)


def script_dev_ciders(monkeypatch: pytest.MonkeyPatch, values: Sequence[float | None]) -> None:
    ciders = iter(values)

    def scripted(*_: object, **__: object) -> tuple[ScoresByDataset, dict[str, str]]:
        scores = Scores(bleu_1=0, bleu_2=0, bleu_3=0, bleu_4=0, rouge_l=0, cider=next(ciders), meteor=None)
        return ScoresByDataset({"": scores}), {"0": "a dog"}

    monkeypatch.setattr("captioner.training.captioning.validate", scripted)


@pytest.mark.parametrize(
    ("attention", "changes"), [("soft", {}), ("hard", {}), ("soft", {"self_critical_from_epoch": 1})]
)
def test_loss_that_is_not_finite_stops_with_the_step_and_the_pictures(
    make_trainer: MakeTrainer, tmp_path: Path, attention: str, changes: dict[str, int]
) -> None:
    recipe = shorter(2, **changes)
    trainer = make_trainer(tmp_path, replace(recipe, decoder=replace(recipe.decoder, attention=attention)))
    split = trainer.task.train.split
    trainer.task.train.split = replace(split, features=np.full_like(split.features, np.nan))
    message = r"the loss is nan at step 0 on \S+\d\.png, \S+, \S+, \S+; lower"
    with pytest.raises(CaptionerError, match=message):
        trainer.run()


def test_full_memory_is_reported_with_the_flag_to_change(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(TrainStep, "__call__", full)
    message = "out of memory at step 0; raise --gradient-accumulation-steps to 2"
    with pytest.raises(CaptionerError, match=message):
        make_trainer(tmp_path).run()


def test_fp16_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    AcceleratorState._reset_state()  # the precision is the same for the whole process
    try:
        with pytest.raises(CaptionerError, match=r"fp16 .*(needs|requires) a GPU"):
            make_accelerator(RECIPE.overridden({"training": {"mixed_precision": "fp16"}}))
    finally:
        AcceleratorState._reset_state()


def test_tensorboard_has_curves_and_the_overlays_of_the_same_eight_pictures(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(tmp_path, shorter(2).overridden({"decoding": {"max_words": 2}})).run()  # small overlays
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    for number in range(8):
        assert [event.step for event in events.Images(f"dev_figures/{number}")] == [1, 3]
    for name in ("loss/total", "loss/cross_entropy", "loss/attention_penalty", "learning_rate"):
        assert [event.step for event in events.Scalars(name)] == [0, 1, 2, 3]
    for name in ("gradient_norm", "captions_per_s", "dev/cider", "data_wait_share"):
        assert events.Scalars(name)


def test_run_resumed_at_the_end_of_an_epoch_keeps_its_earlier_logs(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    recipe = shorter(3)
    trainer = make_trainer(tmp_path, recipe)
    cut_power_at(trainer, 4)  # the first step of epoch 3
    with pytest.raises(PowerCutError):
        trainer.run()
    (tmp_path / "log.jsonl").write_text("")  # as if it had been killed before this was written
    resumed = make_trainer(tmp_path, recipe)
    resumed.resume()
    resumed.run()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("dev/cider")] == [1, 3, 5]
    assert [event.step for event in events.Scalars("loss/total")] == list(range(6))


def test_log_that_the_disk_refuses_is_reported_in_one_line(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", refuse)
    monkeypatch.setattr(SummaryWriter, "close", refuse)
    message = r"cannot write the log in .*: No space left on device; make room"
    with pytest.raises(CaptionerError, match=message):
        make_trainer(tmp_path).run()


def test_finished_run_that_is_resumed_leaves_its_model_alone(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    best = make_trainer(tmp_path).run()
    (best / "MODEL_CARD.md").write_text("my own")
    before = {path: path.read_bytes() for path in best.iterdir()}
    resumed = make_trainer(tmp_path)
    resumed.resume()
    resumed.run()
    assert {path: path.read_bytes() for path in best.iterdir()} == before


def test_run_that_ended_before_its_decoding_was_tuned_is_resumed_without_stale_features(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = shorter(2, finetune_from_epoch=2, finetune_stages=1)
    trainer = make_trainer(tmp_path, recipe)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.task, "tune_decoding", interrupt)
        with pytest.raises(Stopped, match=r"stopped after training; .* train\.py --resume"):
            trainer.run()
    resumed = make_trainer(tmp_path, recipe)
    assert len(resumed.task.dev.split.features) == len(CAPTIONS)
    resumed.resume()
    resumed.run()
    assert len(resumed.task.dev.split.features) == 0


def test_gradient_accumulation_may_change_on_resume(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    recipe = shorter(2)
    trainer = make_trainer(tmp_path, recipe)
    cut_power_at(trainer, 2)
    with pytest.raises(PowerCutError):
        trainer.run()
    resumed = make_trainer(tmp_path, recipe.overridden({"training": {"gradient_accumulation_steps": 2}}))
    resumed.resume()
    resumed.run()
    assert resumed.progress.step == 4


def test_tuning_keeps_the_weights_and_stores_the_decoding_options_with_the_best_score(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    own = {"decoding": {"no_repeat_ngram": 2, "min_words": 2}}
    recipe = shorter(3, finetune_from_epoch=3, finetune_stages=1).overridden(own)
    trainer = make_trainer(tmp_path, recipe)
    tune = trainer.task.tune_decoding
    observed: list[tuple[bytes, ScoresByDataset]] = []

    def observe(folder: Path, **options: int) -> ScoresByDataset:
        weights = (folder / "model.safetensors").read_bytes()
        observed.append((weights, tune(folder, **options)))
        return observed[-1][1]

    trainer.task.tune_decoding = observe
    best = trainer.run()
    ((weights, scores),) = observed
    loaded = load_checkpoint(best)
    assert (best / "model.safetensors").read_bytes() == weights
    tried = loaded.metrics["decoding_scores"]
    assert scores.mean.cider == pytest.approx(max(tried.values()))
    assert loaded.metrics["dev"]["cider"] == scores.mean.cider
    assert loaded.metrics["dev"]["beam_size"] == loaded.config.decoding.beam_size
    assert loaded.metrics["dev"]["length_penalty"] == loaded.config.decoding.length_penalty
    chosen = {"beam_size", "length_penalty"}
    assert {name: value for name, value in vars(loaded.config.decoding).items() if name not in chosen} == {
        name: value for name, value in vars(recipe.decoding).items() if name not in chosen
    }


def test_run_goes_on_longer_if_resumed_with_more_epochs(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(tmp_path, shorter(2)).run()
    resumed = make_trainer(tmp_path, shorter(4))
    resumed.resume()
    resumed.progress.best_score = 1e9  # the first epochs were better, but patience starts again
    resumed.run()
    assert resumed.progress.epoch == 4
