"""Training loop: epochs, validation on decoded captions, early stopping, resume.

A run's folder contains

    best/               the model with the highest dev score so far, ready for use
    last/               what is needed to resume the run
    command.json        the command that started the run
    recipe.json         every setting that decides the result
    log.jsonl           one line per epoch: losses, speed, dev scores
    tensorboard/        the same and more, for TensorBoard

Several processes, started by `accelerate launch` or `torchrun`, share the sources of each step and of
dev; the first one writes. What is learned, from pictures or from sentences, is defined by a
`captioner.training.task.Task`.
"""

import json
import logging
import time
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from captioner.checkpoint.folder import read_metrics
from captioner.checkpoint.weights import save_checkpoint
from captioner.data.batching import load_batches
from captioner.data.epoch_order import SampleKey, epoch_batches
from captioner.errors import Stopped
from captioner.training.interrupts import stop_on_signals
from captioner.training.log import RunLog
from captioner.training.recipe import Recipe
from captioner.training.self_critical import Reward
from captioner.training.state import Progress, load_state, save_state
from captioner.training.step import TrainStep, explain_out_of_memory
from captioner.training.task import Task, Validation
from captioner.training.validation import TRIED

_LOSSES = (
    "total",
    "cross_entropy",
    "attention_penalty",
    "attention_supervision",
    "hard_attention",
    "reward",
)

_logger = logging.getLogger(__name__)


class Trainer:
    """One training run."""

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        recipe: Recipe,
        task: Task,
        out: Path,
        num_workers: int = 0,
        save_minutes: float = 10.0,
    ) -> None:
        training = recipe.training
        self.accelerator, self.recipe, self.task, self.out = accelerator, recipe, task, out
        self.num_workers, self.save_minutes = num_workers, save_minutes
        self.digest = task.digest()
        set_seed(training.seed)
        model, reward = task.make_model(), None
        if training.self_critical_from_epoch is not None:
            reward = Reward(
                task.train.references,
                vocabulary=task.vocabulary,
                dataset_of=task.train.dataset_of,
                objects=task.objects() if training.self_critical_object_penalty else None,
                object_penalty=training.self_critical_object_penalty,
            )
        self.train_step = TrainStep(
            accelerator=accelerator,
            recipe=recipe,
            model=model,
            steps_per_epoch=len(self._epoch_batches(0)) // training.gradient_accumulation_steps,
            vocabulary=task.vocabulary,
            reward=reward,
        )
        self.progress = Progress()

    def run(self) -> Path:
        """Train until the end or until the dev score no longer improves, then choose the decoding options
        on dev; returns the folder of the best model.

        SIGTERM and Ctrl-C stop training after a step, saved. If the run had finished before, with its options
        chosen, nothing changes.

        Raises:
            CaptionerError: the loss is not finite (the message names the step and its sources), memory is
                full, or the disk refuses.
            Stopped: a signal asked for it, and the run is saved.
        """
        advice = (
            "raise --gradient-accumulation-steps to "
            f"{2 * self.recipe.training.gradient_accumulation_steps}, which gives the same result in less "
            "memory and may be changed with --resume; or start a new run with a lower --batch-size or "
            "--image-size"
        )
        best, had_finished = self.out / "best", self._is_over()
        with (
            stop_on_signals(self.accelerator),
            closing(
                RunLog(self.out, first_step=self.progress.step, is_on=self.accelerator.is_main_process)
            ) as log,
        ):
            if self.progress.history:
                log.rewrite(self.progress.history)  # the last line may have been lost in a crash
            if had_finished:
                _logger.info("the run has finished; --epochs makes it longer")
            while not self._is_over():
                with explain_out_of_memory(self.progress, advice=advice):
                    entry = self._train_epoch(log)
                with explain_out_of_memory(
                    self.progress,
                    advice="captioning the dev pictures needs more memory: free some, then use --resume",
                ):
                    self._end_epoch(entry, log)
        if self.accelerator.is_main_process and not (had_finished and TRIED in read_metrics(best)):
            _logger.info("scoring the best model on dev")
            try:
                scores = self.task.tune_decoding(best, num_workers=self.num_workers)
            except KeyboardInterrupt:
                raise Stopped(
                    f"stopped after training; to score the best model: train.py --resume {self.out}"
                ) from None
            _logger.info("%s on dev: %s", best, scores)
        return best

    def _train_epoch(self, log: RunLog) -> dict[str, Any]:
        training, progress = self.recipe.training, self.progress
        if self._is_finetuning():
            self._drop_feature_cache()
            self.train_step.unfreeze()
        batches = self._epoch_batches(progress.epoch)
        num_steps = len(batches) // training.gradient_accumulation_steps
        left = batches[progress.step_in_epoch * training.gradient_accumulation_steps :]
        loader = load_batches(self.task.train, left, num_workers=self.num_workers)
        saved = time.monotonic()
        with tqdm(
            desc=f"epoch {progress.epoch + 1}/{training.epochs}",
            total=num_steps,
            initial=progress.step_in_epoch,
            unit=" steps",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while progress.step_in_epoch < num_steps:
                started = time.monotonic()
                micro_batches = list(islice(loader, training.gradient_accumulation_steps))
                waited = time.monotonic() - started
                values = self.train_step(micro_batches, progress.step)
                progress.add_step(values | {"seconds": time.monotonic() - started, "waiting": waited})
                self._log_step(log, values)
                bar.set_postfix_str(f"loss {values['total']:.3f}, {progress.captions_per_s:.0f} captions/s")
                bar.update()
                self._stop_if_asked()
                if time.monotonic() - saved >= 60 * self.save_minutes:
                    self.save()
                    saved = time.monotonic()
        sums = progress.sums
        return {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "is_finetuning": self._is_finetuning(),
            "loss": {name: sums[name] / num_steps for name in _LOSSES if name in sums},
            "captions_per_s": progress.captions_per_s,
            "data_wait_share": sums["waiting"] / sums["seconds"],
            "train_s": sums["seconds"],
        }

    def _end_epoch(self, entry: dict[str, Any], log: RunLog) -> None:
        """Validate, keep the model if it is the best so far, save and log."""
        validation = self.task.validate(self.train_step.averaged_model, num_workers=self.num_workers)
        self.progress.end_epoch(entry | validation.entries)
        self._keep_if_best(validation)
        if self.progress.epoch + 1 in self._phases:
            self.progress.epochs_without_improvement = 0
        self.save()
        log.epoch(self.progress.history)
        log.figures(self.progress.step - 1, self.task.figures(self.train_step.averaged_model))
        self.accelerator.wait_for_everyone()
        if not self._is_over():
            self._stop_if_asked()

    def _is_finetuning(self) -> bool:
        """Whether the CNN's last stages are trained in the current or next epoch."""
        first = self.recipe.training.finetune_from_epoch
        return first is not None and self.progress.epoch + 1 >= first

    @property
    def _phases(self) -> list[int]:
        """The epochs in which another way of training starts."""
        training = self.recipe.training
        firsts = (training.finetune_from_epoch, training.self_critical_from_epoch)
        return [first for first in firsts if first is not None]

    def _drop_feature_cache(self) -> None:
        """Encode every picture on the fly: once the CNN has changed, cached features are wrong."""
        for dataset in (self.task.train, self.task.dev):
            dataset.drop_feature_cache()

    def _is_over(self) -> bool:
        training, progress = self.recipe.training, self.progress
        is_last_phase = all(progress.epoch + 1 >= first for first in self._phases)
        patience_exhausted = is_last_phase and progress.epochs_without_improvement >= training.patience
        return progress.epoch >= training.epochs or patience_exhausted

    def _stop_if_asked(self) -> None:
        """Save and raise Stopped if any process received a signal."""
        if self.accelerator.check_trigger():
            self.save()
            raise Stopped(
                f"stopped after step {self.progress.step:,}, which is saved; "
                f"to resume: train.py --resume {self.out}"
            )

    def _epoch_batches(self, epoch: int) -> list[list[SampleKey]]:
        training, accelerator = self.recipe.training, self.accelerator
        return epoch_batches(
            len(self.task.train),
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
            micro_batches=training.gradient_accumulation_steps,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
            weights=self.task.train.weights,
        )

    def _log_step(self, log: RunLog, values: dict[str, float]) -> None:
        step = self.progress.step - 1
        losses = {f"loss/{name}": values[name] for name in _LOSSES if name in values}
        rates = {name: schedule.at(step) for name, schedule in self.train_step.schedules.items()}
        speed = {"captions_per_s": self.progress.captions_per_s}
        log.step(step, {**losses, **rates, "gradient_norm": values["gradient_norm"], **speed})

    def _keep_if_best(self, validation: Validation) -> None:
        """Save the model if it is the best so far."""
        progress = self.progress
        progress.epochs_without_improvement += 1
        if validation.score <= progress.best_score:
            return
        progress.best_score, progress.epochs_without_improvement = validation.score, 0
        if self.accelerator.is_main_process:
            decoding = self.recipe.decoding
            metrics = {
                "dev": {
                    "beam_size": decoding.beam_size,
                    "length_penalty": decoding.length_penalty,
                    **validation.entries["dev"],
                },
                **{name: scores for name, scores in validation.entries.items() if name.startswith("dev/")},
                "recipe": self.recipe.described(),
                "history": progress.history,
            }
            if self.task.start is not None:
                metrics["start"] = self.task.start.metrics
            checkpoint = self.task.to_checkpoint(self.train_step.averaged_model, metrics)
            save_checkpoint(self.out / "best", checkpoint)

    def save(self) -> None:
        """Save everything that decides how the run continues."""
        if self.accelerator.is_main_process:
            progress = json.dumps(asdict(self.progress))
            state = {"data": self.digest, "progress": progress, **self.train_step.state()}
            save_state(self.out / "last", recipe=self.recipe, state=state)

    def resume(self) -> None:
        """Continue from the last save of the run in `out`.

        Raises:
            CaptionerError: there is nothing to resume, or it was made by another recipe or from other data.
        """
        state = load_state(self.out / "last", recipe=self.recipe, data=self.digest)
        self.train_step.load_state(state)
        self.progress = Progress.from_json(state["progress"])
        before, epochs = json.loads(state["recipe"])["training"]["epochs"], self.recipe.training.epochs
        if epochs != before:
            self.progress.epochs_without_improvement = 0
            _logger.info(
                "training for %d epochs instead of %d; the learning rate anneals over all of them",
                epochs,
                before,
            )
        if self._is_finetuning():
            self._drop_feature_cache()
