"""The training loop: epochs over captions, validation on decoded captions, early stopping, resume.

A run's folder holds

    best/               the model with the highest dev score so far, ready for use
    last/               what is needed to go on where the run was
    arguments.json      what the command was started with
    recipe.json         every setting that decides what comes out
    log.jsonl           one line an epoch: losses, learning rates, speed, dev scores
    tensorboard/        the same and more, for TensorBoard

Several processes, started by `accelerate launch` or `torchrun`, share the pictures of each step and of
dev; the first one writes. What is learnt, from pictures or from sentences, is the affair of a
`captioner.task.Task`.
"""

import json
import time
from contextlib import closing
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from captioner.batches import load_batches
from captioner.checkpoint import save_checkpoint
from captioner.dealing import Key, epoch_batches
from captioner.errors import Stopped
from captioner.learner import Learner, full_memory_told
from captioner.loss import LossTerms
from captioner.recipe import Recipe
from captioner.resume import Progress, load_state, save_state
from captioner.reward import Reward
from captioner.run_log import RunLog
from captioner.task import Task, Validation

_LOSSES = (*(field.name for field in fields(LossTerms)), "reward")


class Trainer:
    """One training run: of the decoder alone, of the CNN's last stages too, or of all that reads text."""

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
        model = task.make_model()
        reward = None
        if training.self_critical_from_epoch is not None:
            reward = Reward(
                task.train.references,
                vocabulary=task.vocabulary,
                bleu_weight=training.self_critical_bleu_weight,
            )
        self.learner = Learner(
            accelerator=accelerator,
            recipe=recipe,
            model=model,
            steps_an_epoch=len(self._epoch_batches(0)) // training.accumulate,
            reward=reward,
        )
        self.progress = Progress()

    def run(self) -> Path:
        """Train to the end or until the dev score no longer grows; gives the folder of the best model.

        Raises:
            TrainingError: the loss is not finite (the message names the step and what it was on), or
                memory is full.
            Stopped: a signal asked for it, and the run is saved.
            captioner.model_folder.CheckpointError, captioner.run_log.LogError: the disk refuses.
        """
        is_main = self.accelerator.is_main_process
        with closing(RunLog(self.out, first_step=self.progress.step, is_on=is_main)) as log:
            if self.progress.history:
                log.rewrite(self.progress.history)  # the last line may have been lost with the process
            while not self._is_over():
                with full_memory_told(self.progress, accumulate=self.recipe.training.accumulate):
                    self._run_epoch(log)
        return self.out / "best"

    def _is_finetuning(self) -> bool:
        """Whether the CNN's last stages train in the epoch that is next or under way."""
        first = self.recipe.training.finetune_from_epoch
        return first is not None and self.progress.epoch + 1 >= first

    @property
    def _phases(self) -> list[int]:
        """The epochs in which another way of training begins."""
        training = self.recipe.training
        firsts = (training.finetune_from_epoch, training.self_critical_from_epoch)
        return [first for first in firsts if first is not None]

    def _forget_encoded(self) -> None:
        """Encode every picture live: once the CNN has changed, cached grids no longer hold."""
        for dataset in (self.task.train, self.task.dev):
            dataset.forget_encoded()

    def _is_over(self) -> bool:
        training, progress = self.recipe.training, self.progress
        is_last_phase = all(progress.epoch + 1 >= first for first in self._phases)
        is_tired = is_last_phase and progress.epochs_without_gain >= training.patience
        return progress.epoch >= training.epochs or is_tired

    def _run_epoch(self, log: RunLog) -> None:
        entry = self._train_epoch(log)
        validation = self.task.validate(self.learner.averaged_model, num_workers=self.num_workers)
        self.progress.end_epoch(entry | validation.entries)
        self._keep_if_best(validation)
        if self.progress.epoch + 1 in self._phases:
            self.progress.epochs_without_gain = 0
        self.save()
        log.epoch(self.progress.history)
        log.figures(self.progress.step - 1, self.task.figures(self.learner.averaged_model))
        self.accelerator.wait_for_everyone()
        if not self._is_over():
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Raises: Stopped, once what there is has been saved, where any process got a signal."""
        if self.accelerator.check_trigger():
            self.save()
            raise Stopped(
                f"stopped after step {self.progress.step:,}, which is saved; "
                f"to go on: train.py --resume {self.out}"
            )

    def _train_epoch(self, log: RunLog) -> dict[str, Any]:
        training, progress = self.recipe.training, self.progress
        if self._is_finetuning():
            self._forget_encoded()
            self.learner.unfreeze()
        batches = self._epoch_batches(progress.epoch)
        num_steps = len(batches) // training.accumulate
        left = batches[progress.step_in_epoch * training.accumulate :]
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
                parts = list(islice(loader, training.accumulate))
                waited = time.monotonic() - started
                values = self.learner.step(parts, progress.step)
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

    def _epoch_batches(self, epoch: int) -> list[list[Key]]:
        training, accelerator = self.recipe.training, self.accelerator
        return epoch_batches(
            len(self.task.train),
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
            parts=training.accumulate,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )

    def _log_step(self, log: RunLog, values: dict[str, float]) -> None:
        step = self.progress.step - 1
        losses = {f"loss/{name}": values[name] for name in _LOSSES if name in values}
        rates = {name: rate.at(step) for name, rate in self.learner.rates.items()}
        speed = {"captions_per_s": self.progress.captions_per_s}
        log.step(step, {**losses, **rates, "gradient_norm": values["gradient_norm"], **speed})

    def _keep_if_best(self, validation: Validation) -> None:
        """Save the model where it is the best so far."""
        progress = self.progress
        progress.epochs_without_gain += 1
        if validation.score <= progress.best_score:
            return
        progress.best_score, progress.epochs_without_gain = validation.score, 0
        if self.accelerator.is_main_process:
            metrics = {
                "dev": {**asdict(self.recipe.decoding), **validation.entries["dev"]},
                "recipe": self.recipe.described(),
                "history": progress.history,
            }
            if self.task.start is not None:
                metrics["start"] = self.task.start.metrics
            save_checkpoint(self.out / "best", self.task.stored(self.learner.averaged_model, metrics))

    def save(self) -> None:
        """Save all that decides how the run goes on."""
        if self.accelerator.is_main_process:
            progress = json.dumps(asdict(self.progress))
            state = {"data": self.digest, "progress": progress, **self.learner.state()}
            save_state(self.out / "last", recipe=self.recipe, state=state)

    def resume(self) -> None:
        """Go on where the run in `out` was when it was last saved.

        Raises:
            ResumeError: there is nothing to resume, or it was made by another recipe or of other data.
        """
        state = load_state(self.out / "last", recipe=self.recipe, data=self.digest)
        self.learner.load_state(state)
        self.progress = Progress.from_json(state["progress"])
        if self._is_finetuning():
            self._forget_encoded()
