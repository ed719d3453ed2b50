"""The training loop: epochs over captions, validation on decoded captions, early stopping, resume.

A run's folder holds

    best/               the model with the highest dev CIDEr so far, ready for caption.py
    last/               what is needed to go on where the run was, after each epoch
    log.jsonl           one line an epoch: losses, learning rate, speed, dev scores
    tensorboard/        the same and more, for TensorBoard
"""

import json
import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from captioner.checkpoint import Checkpoint, save_checkpoint
from captioner.config import FORMAT_VERSION, GridConfig, ModelConfig, PreprocessConfig, Recipe
from captioner.data import CaptionBatch, CaptionDataset, epoch_loader
from captioner.decoder import Decoder
from captioner.encoder import Encoder
from captioner.errors import CaptionerError
from captioner.loss import CaptionLoss
from captioner.metrics import Scores
from captioner.model import CaptioningModel
from captioner.resume import load_state, save_state
from captioner.run_log import RunLog
from captioner.validation import Split, validate
from captioner.vocabulary import Vocabulary

_WARM_UP_SHARE = 0.1  # of all steps, while the learning rate rises


class TrainingError(CaptionerError):
    """Training that cannot start or go on; the message says why and what to do."""


@dataclass
class Progress:
    """How far a run is. `history` has the log's entry of each finished epoch."""

    epoch: int = 0
    step: int = 0
    best_cider: float = -1.0
    epochs_without_gain: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One training run on cached grids: the encoder is frozen and only its output is used."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        encoder: Encoder,
        preprocess: PreprocessConfig,
        grid: GridConfig,
        vocabulary: Vocabulary,
        train: Split,
        dev: Split,
        out: Path,
    ) -> None:
        training = recipe.training
        self.recipe, self.encoder, self.vocabulary, self.dev, self.out = recipe, encoder, vocabulary, dev, out
        self.dataset = CaptionDataset(
            records=train.records,
            grids=train.grids,
            vocabulary=vocabulary,
            max_words=training.max_caption_words,
        )
        self.model_config = ModelConfig(
            format_version=FORMAT_VERSION,
            backbone=recipe.encoder.backbone,
            preprocess=preprocess,
            grid=grid,
            annotation_dim=encoder.annotation_dim,
            decoder=recipe.decoder,
            decoding=recipe.decoding,
        )
        set_seed(training.seed)
        decoder = Decoder(
            config=recipe.decoder, annotation_dim=encoder.annotation_dim, vocab_size=len(vocabulary)
        )
        self.accelerator = Accelerator(mixed_precision=training.mixed_precision)
        if self.accelerator.num_processes > 1:
            raise TrainingError("training in several processes is not there yet; start one process")
        if training.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            raise TrainingError("fp16 needs a GPU; use --mixed-precision bf16 or no on a CPU")
        # The average is what is scored and saved; it generalises better than the weights of any one step.
        self.averaged = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay))
        self.averaged.to(self.accelerator.device)
        self.loss = CaptionLoss(
            label_smoothing=training.label_smoothing, attention_penalty=training.attention_penalty
        )
        optimizer = AdamW(decoder.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        num_batches = -(-len(self.dataset) // training.batch_size)
        num_steps = max(training.epochs * num_batches, 4)  # the least that has two phases
        self.schedule = OneCycleLR(
            optimizer,
            max_lr=training.learning_rate,
            total_steps=num_steps,
            pct_start=max(_WARM_UP_SHARE, 2 / num_steps),
            cycle_momentum=False,
        )
        self.decoder, self.optimizer = self.accelerator.prepare(decoder, optimizer)
        self.progress = Progress()

    @property
    def averaged_decoder(self) -> Decoder:
        return cast(Decoder, self.averaged.module)

    def run(self) -> Path:
        """Train to the end or until dev CIDEr no longer grows; gives the folder of the best model.

        Raises:
            TrainingError: the loss is not finite; the message names the step and the pictures.
            captioner.checkpoint.CheckpointError, captioner.run_log.LogError: the disk refuses.
        """
        training, progress = self.recipe.training, self.progress
        with closing(RunLog(self.out, first_step=progress.step)) as log:
            while progress.epoch < training.epochs and progress.epochs_without_gain < training.patience:
                entry = self._train_epoch(log)
                scores = self._validate()
                progress.epoch += 1
                progress.history.append(entry | {"dev": asdict(scores)})
                self._keep_if_best(scores)
                self.save()
                log.epoch(progress.history)
        return self.out / "best"

    def _train_epoch(self, log: RunLog) -> dict[str, Any]:
        training, progress = self.recipe.training, self.progress
        loader = epoch_loader(
            self.dataset, batch_size=training.batch_size, seed=training.seed, epoch=progress.epoch
        )
        sums = {"total": 0.0, "cross_entropy": 0.0, "attention_penalty": 0.0}
        num_captions, started = 0, time.monotonic()
        self.decoder.train()
        bar = tqdm(
            total=len(self.dataset), desc=f"epoch {progress.epoch + 1}/{training.epochs}", unit=" pictures"
        )
        for batch in loader:
            terms = self._train_step(batch.to(self.accelerator.device), log)
            for name, value in terms.items():
                sums[name] += value
            num_captions += int((batch.lengths > 0).sum())
            bar.set_postfix_str(
                f"loss {terms['total']:.3f}, {num_captions / (time.monotonic() - started):.0f} captions/s"
            )
            bar.update(len(batch.image_ids))
        bar.close()
        seconds = time.monotonic() - started
        return {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "learning_rate": self.schedule.get_last_lr()[0],
            "loss": {name: value / len(loader) for name, value in sums.items()},
            "captions_per_s": num_captions / seconds,
            "train_s": seconds,
        }

    def _train_step(self, batch: CaptionBatch, log: RunLog) -> dict[str, float]:
        with self.accelerator.autocast():
            output = self.decoder(batch.annotations, batch.tokens, batch.lengths)
            loss = self.loss(output, batch.tokens)
        terms = {name: float(value.detach()) for name, value in vars(loss).items()}
        step = self.progress.step
        if not math.isfinite(terms["total"]):
            raise TrainingError(
                f"the loss is {terms['total']} at step {step} on {', '.join(batch.image_ids)}; "
                "lower --learning-rate, or look at these pictures and captions"
            )
        self.accelerator.backward(loss.total)
        clip = self.recipe.training.gradient_clip
        norm = float(self.accelerator.clip_grad_norm_(self.decoder.parameters(), clip))
        if not (math.isfinite(norm) or self.accelerator.scaler):  # a scaler passes such steps over itself
            raise TrainingError(f"the gradient is {norm} at step {step}; lower --learning-rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.averaged.update_parameters(self.accelerator.unwrap_model(self.decoder))
        losses = {f"loss/{name}": value for name, value in terms.items()}
        rate = float(self.schedule.get_last_lr()[0])
        log.step(step, {**losses, "learning_rate": rate, "gradient_norm": norm})
        self.progress.step += 1
        return terms

    def _validate(self) -> Scores:
        scores, _ = validate(
            self.averaged_decoder, self.dev, vocabulary=self.vocabulary, config=self.recipe.decoding
        )
        return scores

    def _keep_if_best(self, scores: Scores) -> None:
        """Save the model where it is the best so far."""
        progress = self.progress
        progress.epochs_without_gain += 1
        if scores.cider > progress.best_cider:
            progress.best_cider, progress.epochs_without_gain = scores.cider, 0
            metrics = {
                "dev": {**asdict(self.recipe.decoding), **asdict(scores)},
                "recipe": self.recipe.described(),
                "history": progress.history,
            }
            model = CaptioningModel(encoder=self.encoder, decoder=self.averaged_decoder)
            save_checkpoint(self.out / "best", Checkpoint(model, self.model_config, self.vocabulary, metrics))

    def save(self) -> None:
        """Save all that decides how the run goes on."""
        save_state(
            self.out / "last",
            recipe=self.recipe,
            state={
                "decoder": self.accelerator.unwrap_model(self.decoder).state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": torch.get_rng_state(),
                "progress": json.dumps(asdict(self.progress)),
            },
        )

    def resume(self) -> None:
        """Go on where the run in `out` was after its last finished epoch.

        Raises:
            ResumeError: there is nothing to resume, or it was made by another recipe.
        """
        state = load_state(self.out / "last", recipe=self.recipe, device=self.accelerator.device)
        self.accelerator.unwrap_model(self.decoder).load_state_dict(state["decoder"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        self.progress = Progress(**json.loads(state["progress"]))
